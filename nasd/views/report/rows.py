"""The tables of a report: what a row of each holds.

A row is a flat record of numbers and texts, as CSV and Parquet take it. What is not known (yet) is
None.
"""

from dataclasses import dataclass
from typing import NamedTuple

BASELINE, CONTROL = "baseline", "control"  # which is the baseline, trained on


@dataclass(frozen=True, slots=True)
class CandidateRow:
    """size: parameters of the baseline / of this one. cut: a cutoff or a person stopped it,
    whatever came of it later. gpu_hours: of all its attempts, and what of them was lost. rank and
    survives: of the newest generation that selected among it. front: no candidate ever scored
    dominates it. quality_error: a standard error, where it was recorded. seeds: that the scores are
    the mean of."""

    id: int
    generation: int | None
    parent: int | None
    state: str
    stage: str
    reason: str
    cut: bool
    parameters: int
    size: float
    scores: dict[str, float | None]  # what the task shows of them, by the metrics' names
    quality: float | None
    quality_error: float | None
    quality_against_baseline: float | None
    rank: int | None
    survives: bool | None
    front: bool
    mutations: str
    genotype: str
    genotype_json: str
    hash: str
    attempts: int
    gpu_hours: float
    lost_gpu_hours: float
    trained_on: bool = False  # of the baseline: it stands for its best control
    seeds: int = 1

    @property
    def is_baseline(self) -> bool:
        return self.generation is None

    @property
    def name(self) -> str:
        if not self.is_baseline:
            return str(self.id)
        return CONTROL if self.trained_on else BASELINE


@dataclass(frozen=True, slots=True)
class MemberRow:
    """A candidate's part in a generation. survives and rank: None until that is selected."""

    generation: int
    candidate: int
    role: str
    state: str
    quality: float | None
    size: float
    rank: int | None
    survives: bool | None


@dataclass(frozen=True, slots=True)
class GenerationRow:
    """gpu_hours: spent in all when it was selected, or until now. hypervolume: of parents and
    scored offspring, above no quality and no size; gain: on the generation before, or on the
    baseline alone. hours: from its opening to its end, or until now. scored, cut and failed: as
    they stand, so those that were trained on behind their cutoff count as scored."""

    generation: int
    phase: str
    hours: float
    born: int
    scored: int
    cut: int
    failed: int
    new_survivors: int | None
    best_quality: float | None
    median_quality: float | None
    hypervolume: float | None
    gain: float | None
    gpu_hours: float
    gain_per_gpu_hour: float | None


@dataclass(frozen=True, slots=True)
class ProgressRow:
    """The hypervolume of all that were scored by then, the baseline apart, as each came in."""

    candidate: int
    gpu_hours: float
    quality: float
    size: float
    hypervolume: float


class CurveRow(NamedTuple):  # the quickest to make: there are a hundred thousand of them
    """One evaluation during MLM, or where there is none, in a stage with rungs. step: from the
    first of these stages on, all in a row."""

    generation: int | None
    candidate: int
    stage: str
    stage_step: int
    step: int
    loss: float


@dataclass(frozen=True, slots=True)
class CutoffRow:
    """One candidate at one cutoff. place: from 1, the lowest loss first. reached: how many came to
    the stage, those that failed in it included. threshold: the loss of the last one kept; None
    where it was decided by more than losses."""

    generation: int
    stage: str
    candidate: int
    loss: float
    place: int
    reached: int
    kept: bool
    threshold: float | None
    quality: float | None


@dataclass(frozen=True, slots=True)
class LossRow:
    """A scored candidate's last evaluation loss, of an MLM stage or up to a rung, beside its
    score."""

    generation: int
    candidate: int
    stage: str
    loss: float
    quality: float


@dataclass(frozen=True, slots=True)
class CorrelationRow:
    """Of the loss at the end of an MLM stage, or at a rung, with quality. among: which candidates.
    Without a value there were too few of them."""

    stage: str
    among: str
    method: str
    n: int
    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class MutationRow:
    """Candidates in which a kind of mutation occurred (others may have occurred beside it), against
    their parents. each: what one more of it adds to quality with the others held equal, by least
    squares. parameters_percent: the change of parameters, in percent of the parent's. survived: the
    selection of the generation they were born in."""

    mutation: str
    candidates: int
    times: int
    quality_n: int
    quality: float | None
    quality_low: float | None
    quality_high: float | None
    each: float | None
    each_low: float | None
    each_high: float | None
    size_n: int
    size: float | None
    size_low: float | None
    size_high: float | None
    parameters_percent: float | None
    parameters_percent_low: float | None
    parameters_percent_high: float | None
    survived_n: int
    survived: float | None
    survived_low: float | None
    survived_high: float | None


@dataclass(frozen=True, slots=True)
class CostRow:
    """Attempts at a stage. lost_gpu_hours: what they held beyond what a checkpoint saved, of those
    that ended without the stage's end."""

    stage: str
    who: str
    candidates: int
    attempts: int
    succeeded: int
    interrupted: int
    failed: int
    gpu_hours: float
    lost_gpu_hours: float


@dataclass(frozen=True, slots=True)
class FateRow:
    """What was spent on whom. fate: what became of them in the end."""

    fate: str
    candidates: int
    gpu_hours: float


@dataclass(frozen=True, slots=True)
class AttemptRow:
    id: int
    candidate: int
    stage: str
    number: int
    state: str
    verdict: str
    message: str
    slots: str
    started_at: float
    ended_at: float | None
    reached: int
    gpu_hours: float
    lost_gpu_hours: float


@dataclass(frozen=True, slots=True)
class MissedRow:
    """A candidate that a cutoff had stopped and that was trained to its end all the same.

    loss_place, quality_place: among the scored of its generation, from 1. would_survive: had it
    been in the selection, with all others of these; rank: its rank there, and crowded_out: others
    of that rank had places, by crowding distance. front: whether it stands on the front of all
    that were ever scored. gpu_hours: spent on it behind the cutoff."""

    generation: int
    stage: str
    candidate: int
    loss: float
    loss_place: int
    quality: float
    quality_place: int
    of: int
    size: float
    would_survive: bool
    rank: int
    crowded_out: bool
    front: bool
    gpu_hours: float
