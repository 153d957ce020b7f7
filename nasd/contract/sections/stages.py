"""The ladder: what a stage trains, and with what; its rungs; the parts as which it is climbed."""

from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, TypeAlias

from pydantic import BeforeValidator, Field, model_validator

from nasd.contract import rungs, seeds, tasks
from nasd.contract.sections.fields import (
    Count,
    Name,
    Places,
    Probability,
    Real,
    Section,
    Share,
)


def _task(value: Any) -> Any:
    """Checked as one: a task's name, or that of one which reads data by a name of its own."""
    if not isinstance(value, str) or not tasks.known(value):
        known = ", ".join(map(repr, tasks.TASKS))
        raise ValueError(f"input should be {known}, or the name of a [data.NAME] with a kind")
    return value


if TYPE_CHECKING:  # which there are is said in nasd.contract.tasks
    TaskName: TypeAlias = str
else:
    TaskName = Annotated[str, BeforeValidator(_task)]


class Rung(Section):
    at: Annotated[Real, Field(gt=0.0, lt=1.0)]
    """The share of the stage's steps after which it stands."""
    keep: Share
    """The share of a generation, from the first on, that goes on from it."""


class Stage(Section):
    """A step of the ladder. `train` says which weights move; none of them means: only score."""

    name: Name
    """What it is called in every view, and in `candidates/<id>/`."""
    task: TaskName
    """Masked language modelling (`mlm`), question answering (`qa`), classification (`classify`),
    regression (`regress`), or token classification (`tag`); or the name of a table `[data.NAME]`
    with a kind."""
    train: tasks.Trains
    """Which weights move: of new modules, all, the MLM head's, or none (only score)."""
    who: Literal["candidates", "new", "baseline", "all"] = "candidates"
    """Who climbs it. `new`: the candidates in which some module is new (not kept from a parent as
    it was); all others go past it. Only of MLM stages ahead of those of the task, where
    `variation.inherit_from = "task"`: new modules learn between what a parent has fine-tuned, under
    the baseline's MLM head, and the parent's own head is put back behind it. Where no stage trains
    the baseline, it is the seed as it is, which then has to have a head for the task."""
    slots: Places
    """How many an attempt leases; fewer where there are no more."""
    epochs: Annotated[Real, Field(gt=0, le=10**6)] | None = None
    """Over the training data."""
    batch: Count
    """Examples in a step, over all slots."""
    micro_batch: Count | None = None
    """Of them at once on a slot; else found by trying on a GPU, and all of them on a CPU."""
    learning_rate: Annotated[Real, Field(gt=0, le=1000)] | None = None
    """Its highest, for AdamW."""
    warmup: Probability = 0.0
    """The share of the steps in which it rises; then it falls to 0."""
    weight_decay: Annotated[Real, Field(ge=0, le=1000)] = 0.0
    """AdamW's."""
    max_grad_norm: Annotated[Real, Field(gt=0, le=1e30)] = 1.0
    """Gradients are clipped to it."""
    average: Annotated[Real, Field(ge=0, lt=1)] = 0.0
    """The share of the weights as the stage found them in those that it leaves, the rest being as
    trained (Wortsman et al. 2022, WiSE-FT): for a fine-tuned model that is trained on, and most of
    all for a short while; a fresh head or module would stay so much of what was drawn. Not of a
    stage with rungs."""
    soup: Annotated[Count, Field(le=100)] = 1
    """Trainings that the stage is: each of `epochs`, from the weights that it found, in another
    order. It leaves the mean of what they come to (Wortsman et al. 2022, model soups): for a
    fine-tuned model that is trained on. Not of a stage with rungs."""
    evaluations: Count = 1
    """Points of the learning curve in an epoch."""
    measure: Annotated[bool, Field(strict=True)] = False
    """Measure the model as well, as [measure] says, with the device to itself: nothing else of the
    search runs meanwhile on a CPU, nor on that GPU. Only where nothing trains."""
    keep: Share | None = None
    """A cutoff behind the stage: the share of a generation, from the first on, that goes on. Only
    for MLM."""
    rungs: tuple[Rung, ...] = ()
    """Cutoffs within the stage, as `[{ at = 0.25, keep = 0.5 }]`: there candidates are evaluated,
    and pause at a checkpoint until it is decided who goes on."""

    @property
    def cuts(self) -> bool:
        return self.keep is not None

    @property
    def whole(self) -> str:
        """The stage that it is, or is a part of."""
        return self.name

    @property
    def span(self) -> tuple[float, float]:
        """From which share of the whole stage's steps to which it goes."""
        return 0.0, 1.0

    @property
    def share(self) -> float:
        """Of the whole stage's steps."""
        begin, until = self.span
        return until - begin

    @property
    def parts(self) -> "tuple[Stage, ...]":
        """One up to each rung, and one from the last of them on, which has the stage's name: each
        goes on where the one before it paused, so that together they are the stage."""
        return _parts(self) if self.rungs else (self,)

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.train == "none":
            trained = self.epochs is not None or self.learning_rate is not None
            if trained or self.average or self.soup > 1:
                raise ValueError(
                    'epochs, learning_rate, average and soup have no meaning where train = "none"'
                )
        elif self.epochs is None or self.learning_rate is None:
            raise ValueError("epochs and learning_rate are missing")
        if self.measure and self.train != "none":
            raise ValueError('measure = true stands only on a stage with train = "none"')
        if self.rungs and self.train in ("none", "head"):
            raise ValueError(
                f'rungs stand only where candidates train, not on train = "{self.train}"'
            )
        if self.rungs and self.average:
            raise ValueError(
                "average stands on no stage with rungs: behind one it goes on half trained"
            )
        if self.rungs and self.soup > 1:
            raise ValueError(
                "soup stands on no stage with rungs: each of its trainings begins again"
            )
        for before, rung in pairwise(self.rungs):
            if rung.at <= before.at:
                raise ValueError(f"rungs must rise: {rung.at:g} does not lie behind {before.at:g}")
        task = tasks.of(self.task)
        if self.keep is not None and not (task.ranks and self.train != "none"):
            stages = stages_of(tasks.ranking())
            raise ValueError(f"keep stands only on {stages} that trains: it reads its losses")
        allowed = self.train in task.trains
        stages = stages_of(tasks.allowing(self.train))
        if self.train == "head" and not (allowed and self.who == "baseline"):
            raise ValueError(
                f'train = "head" stands only on {stages} with who = "baseline": it gives a seed'
                " without an MLM head its head"
            )
        if not allowed:
            raise ValueError(f'train = "{self.train}" stands only on {stages}')
        return self


class Part(Stage):
    """What lies between two rungs of a stage, or before the first, or behind the last; or a stage
    under a further seed. Never in a config: a stage with rungs is climbed as its parts."""

    name: str  # as nasd.contract.rungs makes it, or nasd.contract.seeds
    of: str
    begin: Probability
    until: Probability

    @property
    def whole(self) -> str:
        return self.of

    @property
    def span(self) -> tuple[float, float]:
        return self.begin, self.until

    @model_validator(mode="after")
    def _complete(self) -> Self:
        return self  # the stage was checked


@lru_cache(maxsize=256)
def _parts(stage: Stage) -> tuple[Stage, ...]:
    return tuple(Part.model_construct(**part) for part in rungs.parts(stage.model_dump()))


@lru_cache(maxsize=16)
def further_of(stages: tuple[Stage, ...], count: int) -> tuple[Stage, ...]:
    written = [stage.model_dump() for stage in stages]
    return tuple(Part.model_construct(**one) for one in seeds.further(written, count))


def stages_of(found: Sequence[tasks.Task]) -> str:
    return " or ".join(one.stage for one in found)
