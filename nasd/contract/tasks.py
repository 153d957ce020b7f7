"""What the control plane knows of each task: an entry each, and nothing of it stands elsewhere.

A stage of the ladder names its task. What that task trains on, what it costs, what its results may
be used for, and how people call it, is asked of its entry here; how it is trained is told by the
entry of the same name in nasd.worker.tasks.registry.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, TypeVar

if TYPE_CHECKING:  # a config is checked by what stands here
    from nasd.contract.config import Data, MlmData
    from nasd.contract.volumes import Volumes

Trains = Literal["new", "all", "head", "none"]
SAMPLED = 512  # test examples that a look at the loss takes, where they are a sample


@dataclass(frozen=True)
class Task:
    """
    name            in a config, in tables, and of the folder that TensorBoard finds its curves in
    words           what people call it
    stage           a stage of it, with its article
    data            the section of [data] that it reads
    trains          what may train in a stage of it
    metrics         that an evaluation gives; `loss` is among them
    ranks           its loss ranks candidates: cutoffs go by it, all that climb are charted by it,
                    and what it trained is what others may inherit
    scores          a stage of it that trains nothing gives a candidate its score
    varies          examples differ in length
    steady          an example is the same every time that it is seen
    limit           tokens of its longest example
    tokens          of an example as it is computed, on average
    examples        there are to train on
    looks           examples that an evaluation while training takes
    tested          examples that the score is of
    masks           positions of an example that its head sees; None: all
    head            operations of the head on an example, forward: (width, vocabulary, positions)
    """

    name: str
    words: str
    stage: str
    data: str
    trains: tuple[Trains, ...]
    metrics: tuple[str, ...]
    ranks: bool
    scores: bool
    varies: bool
    steady: bool
    limit: "Callable[[Data], int]"
    tokens: "Callable[[Data, Volumes], float]"
    examples: "Callable[[Volumes], int]"
    looks: "Callable[[Volumes], int]"
    tested: "Callable[[Volumes], int]"
    masks: "Callable[[Data], int | None]"
    head: Callable[[int, float, float], float]


def _mlm(data: "Data") -> "MlmData":
    """A config with an MLM stage has it."""
    assert data.mlm is not None
    return data.mlm


def masks_of(tokens: int, share: float) -> int:
    """How many tokens of a sequence are masked: [CLS] and [SEP] never are."""
    return max(1, round(share * (tokens - 2)))


def sampled(examples: int) -> int:
    """How many of so many test examples a look at the loss takes."""
    return min(SAMPLED, examples)


MLM = Task(
    name="mlm",
    words="masked language modelling",
    stage="an MLM stage",
    data="mlm",
    trains=("new", "all", "head"),
    metrics=("loss",),
    ranks=True,
    scores=False,
    varies=False,
    steady=False,
    limit=lambda data: _mlm(data).tokens,
    tokens=lambda data, volumes: float(_mlm(data).tokens),
    examples=lambda volumes: volumes.mlm_train_sequences,
    looks=lambda volumes: volumes.mlm_evaluation_sequences,
    tested=lambda volumes: 0,
    masks=lambda data: masks_of(_mlm(data).tokens, _mlm(data).mask_share),
    head=lambda width, vocabulary, seen: seen * (2 * width**2 + 2 * width * vocabulary),
)

QA = Task(
    name="qa",
    words="question answering",
    stage="a question-answering stage",
    data="qa",
    trains=("all", "none"),
    metrics=("loss", "exact_match", "f1"),
    ranks=False,
    scores=True,
    varies=True,
    steady=True,
    limit=lambda data: data.qa.tokens,
    tokens=lambda data, volumes: volumes.qa_tokens,
    examples=lambda volumes: volumes.qa_train_features,
    looks=lambda volumes: sampled(volumes.qa_test_features),
    tested=lambda volumes: volumes.qa_test_features,
    masks=lambda data: None,
    head=lambda width, vocabulary, seen: 4 * width * seen,
)

TASKS = {one.name: one for one in (MLM, QA)}
SCORED = "task"  # variation.inherit_from: what the task that scores has trained


def of(name: str) -> Task:
    """The entry; a config or a spec that was checked names none that is not there."""
    return TASKS[name]


def ranking() -> tuple[Task, ...]:
    return tuple(one for one in TASKS.values() if one.ranks)


def scoring() -> tuple[Task, ...]:
    return tuple(one for one in TASKS.values() if one.scores)


def allowing(train: Trains) -> tuple[Task, ...]:
    """The tasks in which that may train."""
    return tuple(one for one in TASKS.values() if train in one.trains)


class OfTask(Protocol):
    """What names a task: a stage."""

    @property
    def task(self) -> str: ...


S = TypeVar("S", bound=OfTask)


def reading(stages: Sequence[S], data: str) -> tuple[S, ...]:
    """The stages that read that section of [data]."""
    return tuple(stage for stage in stages if of(stage.task).data == data)


def hands_on(task: str, inherit_from: str) -> bool:
    """Whether children may begin from what a stage of the task has trained."""
    return of(task).scores if inherit_from == SCORED else task == inherit_from


def one_of(found: Sequence[Task]) -> str:
    """Their names as they stand in a config."""
    return " or ".join(f'"{one.name}"' for one in found)
