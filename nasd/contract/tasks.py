"""What the control plane knows of each task: an entry each, and nothing of it stands elsewhere.

A stage of the ladder names its task. What that task trains on, what it costs, what its results may
be used for, and how people call it, is asked of its entry here; how it is trained is told by the
entry of the same name in nasd.worker.tasks.registry.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

if TYPE_CHECKING:  # a config is checked by what stands here
    from nasd.contract.config import Data, LabelledData, MlmData, QaData
    from nasd.contract.volumes import Volumes

Trains = Literal["new", "all", "head", "none"]
SIGN = "-"  # between a task's kind and the name of its own data, where it has such
SAMPLED = 512  # test examples that a look at the loss takes, where they are a sample


@dataclass(frozen=True)
class CardWords:
    does: str
    pipeline: str
    auto: str
    use: str
    known: str


@dataclass(frozen=True)
class Task:
    """
    name            in a config, in tables, and of the folder that TensorBoard finds its curves in
    words           what people call it
    stage           a stage of it, with its article
    data            the section of [data] that it reads
    trains          what may train in a stage of it
    metrics         that an evaluation gives; `loss` is among them
    shown           those of them that views show, each with its title; all in percent
    chosen          its quality is the metric that its data names; else the objective says it
    counts          the examples that are trained on, and those that are tested; None: not counted
    example         what people call one of these
    card            of an exported model: what it does; transformers' name of the task and of the
                    class, how it is asked, and what else is to be known
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
    shown: tuple[tuple[str, str], ...]
    chosen: bool
    counts: "Callable[[Mapping[str, Any]], tuple[int | None, int | None]]"
    example: str
    card: "CardWords | None"
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

    @property
    def kind(self) -> str:
        """The name of what it is, whichever data it reads."""
        return kind_of(self.name)


def _mlm(data: "Data") -> "MlmData":
    """A config with an MLM stage has it."""
    assert data.mlm is not None
    return data.mlm


def questions(data: "Data") -> "QaData":
    """A config with a question-answering stage has them."""
    assert data.qa is not None
    return data.qa


def labelled(data: "Data") -> "LabelledData":
    """The section of the task whose examples are texts with labels; of the first where there are
    several."""
    return _section(data, next(one for one in all_scored(data) if one is not QA).data)


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
    shown=(),
    chosen=False,
    counts=lambda prepared: (None, None),
    example="sequence",
    card=None,
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
    metrics=("loss", "exact_match", "f1", "quality_error"),
    shown=(("exact_match", "EM"), ("f1", "F1")),
    chosen=False,
    counts=lambda prepared: (
        prepared.get("qa_train_questions"),
        prepared.get("qa_test_questions"),
    ),
    example="question",
    card=CardWords(
        does="It finds the answer to a question in a text.",
        pipeline="question-answering",
        auto="AutoModelForQuestionAnswering",
        use='answer("Who keeps the red kite?", "Mara keeps a red kite in the old mill.")',
        known="It always finds an answer, also where the text holds none: SQuAD v1.1 has no such"
        " questions.",
    ),
    ranks=False,
    scores=True,
    varies=True,
    steady=True,
    limit=lambda data: questions(data).tokens,
    tokens=lambda data, volumes: volumes.qa_tokens,
    examples=lambda volumes: volumes.qa_train_features,
    looks=lambda volumes: sampled(volumes.qa_test_features),
    tested=lambda volumes: volumes.qa_test_features,
    masks=lambda data: None,
    head=lambda width, vocabulary, seen: 4 * width * seen,
)


def _section(data: "Data", name: str) -> "LabelledData":
    """A config with a stage of such a task has it."""
    found: LabelledData = section(data, name)
    return found


def section(data: "Data", name: str) -> Any:
    """What stands there in [data]; None where nothing does."""
    return getattr(data, name, None)


def prepared_of(prepared: Mapping[str, Any], task: str) -> Mapping[str, Any]:
    """What prepare has found, with what it says of texts with labels as of this task's."""
    return {**prepared, **(prepared.get("labelled_tasks") or {}).get(task, {})}


def _of_labels(
    name: str,
    words: str,
    section: str,
    shown: tuple[tuple[str, str], ...],
    head: Callable[[int, float, float], float],
    card: CardWords,
) -> Task:
    """A task whose examples are short texts, each with its label or labels."""
    return Task(
        name=name,
        words=words,
        stage=f"a {words} stage",
        data=section,
        trains=("all", "none"),
        metrics=("loss", *(metric for metric, _ in shown), "quality", "quality_error"),
        shown=shown,
        chosen=True,
        counts=lambda prepared: (
            prepared_of(prepared, name).get("labelled_train"),
            prepared_of(prepared, name).get("labelled_test"),
        ),
        example="example",
        card=card,
        ranks=False,
        scores=True,
        varies=True,
        steady=True,
        limit=lambda data: _section(data, section).tokens,
        tokens=lambda data, volumes: min(
            volumes.of_task(name).labelled_tokens, float(_section(data, section).tokens)
        ),
        examples=lambda volumes: volumes.of_task(name).labelled_train,
        looks=lambda volumes: sampled(volumes.of_task(name).labelled_test),
        tested=lambda volumes: volumes.of_task(name).labelled_test,
        masks=lambda data: None,
        head=head,
    )


LABELS = 8  # of a head, where work is worked out: of next to no weight beside the encoder's
CLASSIFY = _of_labels(
    "classify",
    "classification",
    "classify",
    (("accuracy", "accuracy"), ("f1", "F1"), ("matthews", "Matthews")),
    lambda width, vocabulary, seen: 2 * width**2 + 2 * width * LABELS,
    CardWords(
        does="It tells the label of a text.",
        pipeline="text-classification",
        auto="AutoModelForSequenceClassification",
        use='predict(["The plot is thin, and I loved it."])',
        known="For pairs of texts `predict` takes the second of each as another list. The label"
        " comes with a score between 0 and 1.",
    ),
)
REGRESS = _of_labels(
    "regress",
    "regression",
    "regress",
    (("spearman", "Spearman"), ("pearson", "Pearson")),
    lambda width, vocabulary, seen: 2 * width**2 + 2 * width,
    CardWords(
        does="It tells a number of a text, or of a pair of texts.",
        pipeline="text-classification",
        auto="AutoModelForSequenceClassification",
        use='predict(["A man plays."], ["Somebody is playing."])',
        known="The number stands in the place of a score.",
    ),
)
TAG = _of_labels(
    "tag",
    "token classification",
    "tag",
    (("f1", "F1"), ("precision", "precision"), ("recall", "recall")),
    lambda width, vocabulary, seen: 2 * width * LABELS * seen,
    CardWords(
        does="It tells the label of each word of a text.",
        pipeline="token-classification",
        auto="AutoModelForTokenClassification",
        use='predict([["Mara", "lives", "in", "Oslo"]])',
        known="A text is a list of words; each label comes with a score between 0 and 1.",
    ),
)

TASKS = {one.name: one for one in (MLM, QA, CLASSIFY, REGRESS, TAG)}
NAMEABLE = tuple(one.name for one in (CLASSIFY, REGRESS, TAG))  # kinds of several data sets
SCORED = "task"  # variation.inherit_from: what the task that scores has trained


def of(name: str) -> Task:
    """The entry; a config or a spec that was checked names none that is not there."""
    return TASKS[name] if name in TASKS else _named(name)


def kind_of(name: str) -> str:
    return name.partition(SIGN)[0]


def named(kind: str, data: str) -> str:
    """The task of that kind that reads a section of [data] by a name of its own."""
    return f"{kind}{SIGN}{data}"


def known(name: str) -> bool:
    """Whether it can be a task's."""
    kind, sign, data = name.partition(SIGN)
    return name in TASKS or bool(sign and data and kind in NAMEABLE)


@cache
def _named(name: str) -> Task:
    kind, _, data = name.partition(SIGN)
    like = TASKS[kind]
    assert like.card is not None
    return _of_labels(name, f"{like.words} ({data})", data, like.shown, like.head, like.card)


def _in_order(names: Iterable[str]) -> tuple[Task, ...]:
    """The tasks of these names as TASKS has their kinds, and of one kind by name."""
    kinds = list(TASKS)
    return tuple(of(one) for one in sorted(names, key=lambda one: (kinds.index(kind_of(one)), one)))


def ranking() -> tuple[Task, ...]:
    return tuple(one for one in TASKS.values() if one.ranks)


def scoring() -> tuple[Task, ...]:
    return tuple(one for one in TASKS.values() if one.scores)


def all_scored(data: "Data") -> tuple[Task, ...]:
    """The tasks that give scores: those whose sections of [data] are there."""
    plain = [one.name for one in scoring() if section(data, one.data) is not None]
    extra = (data.model_extra or {}).items()
    return _in_order([*plain, *(named(one.kind, name) for name, one in extra if one is not None)])


def scored_by(stages: "Iterable[OfTask]") -> tuple[Task, ...]:
    """The tasks of these stages that give scores."""
    return _in_order({one.task for one in stages if of(one.task).scores})


def scored(data: "Data") -> Task:
    """The task that gives the score; the first of several."""
    return all_scored(data)[0]


def focused(data: "Data", task: str) -> "Data":
    """The data without that of other tasks that give scores; all of it for one that gives none."""
    if not of(task).scores:
        return data
    others = [one.data for one in all_scored(data) if one.name != task]
    return data.model_copy(update=dict.fromkeys(others))


MEAN, WORST = "mean", "worst"  # of the qualities of several tasks


def own_quality(task: str) -> str:
    """Among the metrics of a search of several tasks, the quality of one of them."""
    return f"{task}_quality"


def own_error(task: str) -> str:
    """Likewise its standard error."""
    return f"{own_quality(task)}_error"


def combined_error(errors: Mapping[str, float], qualities: Mapping[str, float], by: str) -> float:
    """The standard error of what `combined` gives: test examples of tasks are other samples. Of the
    lowest that of its task, as if no other could come to be lower."""
    if by == MEAN:
        return math.hypot(*errors.values()) / len(errors)
    return errors[min(qualities, key=lambda one: qualities[one]) if by == WORST else by]


def combined(qualities: Mapping[str, float], by: str) -> float:
    """What a search of several tasks goes by. qualities: of each, by its name."""
    if by == WORST:
        return min(qualities.values())
    return sum(qualities.values()) / len(qualities) if by == MEAN else qualities[by]


@dataclass(frozen=True)
class Scoring:
    """What gives the score in a search. tasks: in the order in which they stand in TASKS. quality:
    in words; "" where the objective says it. shown: the metrics that views show, each with its
    title; of several tasks, each one's quality."""

    tasks: tuple[Task, ...]
    quality: str
    shown: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, data: Mapping[str, Any], by: str = MEAN) -> "Scoring":
        """data: [data] of a config that was checked, as it is written down. by: its
        experiment.quality."""
        plain = {one.data for one in TASKS.values()}
        extra = ((name, one) for name, one in data.items() if one and name not in plain)
        found = _in_order(
            [
                *(one.name for one in scoring() if data.get(one.data)),
                *(named(one["kind"], name) for name, one in extra),
            ]
        ) or (QA,)
        if len(found) > 1:
            shown = tuple((own_quality(one.name), one.data) for one in found)
            words = {
                MEAN: "the mean of its tasks'",
                WORST: "the lowest of its tasks'",
                **{one.name: f"of {one.words}" for one in found},
            }
            return cls(found, words[by], shown)
        (task,) = found
        chosen = str(data[task.data]["quality"]) if task.chosen else ""
        return cls(found, dict(task.shown).get(chosen, ""), task.shown)

    @property
    def task(self) -> Task:
        """The first."""
        return self.tasks[0]

    @property
    def titles(self) -> tuple[str, ...]:
        return tuple(title for _, title in self.shown)

    def named(self, metrics: Mapping[str, float]) -> dict[str, float | None]:
        """What is shown by name; None for what there is not."""
        return {metric: metrics.get(metric) for metric, _ in self.shown}

    def values(self, metrics: Mapping[str, float]) -> tuple[float | None, ...]:
        """The same without their names."""
        return tuple(self.named(metrics).values())

    def in_words(self, metrics: Mapping[str, float], digits: int = 2, sign: str = ", ") -> str:
        """`EM 61.20, F1 74.90`."""
        named = zip(self.titles, self.values(metrics), strict=True)
        return sign.join(f"{title} {one:.{digits}f}" for title, one in named if one is not None)


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


def hands_on(task: str, inherit_from: str, to: str) -> bool:
    """Whether children may begin from what a stage of the task has trained, at a stage of the task
    `to`."""
    return task == (to if inherit_from == SCORED else inherit_from)


def one_of(found: Sequence[Task]) -> str:
    """Their names as they stand in a config."""
    return " or ".join(f'"{one.name}"' for one in found)
