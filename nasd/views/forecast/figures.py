"""What comes of one simulated search: its hours, and the least they could be."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Any

from nasd.contract.config import PREPARE, SCREEN, Config
from nasd.contract.slots import worth
from nasd.estimate.cost import attempt_seconds, prepare_seconds
from nasd.policy import ladder
from nasd.record.lifecycle import AttemptState
from nasd.record.state import Attempt, Snapshot
from nasd.views.forecast.premises import Subject
from nasd.views.forecast.search import Run


@dataclass(frozen=True)
class Asked:
    """What a stage takes: seconds on as many slots as it asks for, and on as many as it may get."""

    slots: int
    seconds: float
    widest: float


def stages_of(config: Config) -> list[str]:
    """All that attempts can be at, in the order in which people are told of it."""
    screens = config.population.screened > 1
    return [PREPARE, *([SCREEN] if screens else []), *(stage.name for stage in config.parts)]


def told(config: Config, subject: Subject, one: Run) -> dict[str, Any]:
    """One run, in hours."""
    snap = one.snapshot
    wall = (one.ended - one.began) / 3600
    used = snap.gpu_hours(one.ended)
    stages = {}
    for name in stages_of(config):
        attempts = [attempt for attempt in snap.attempts if attempt.stage == name]
        stages[name] = {
            "attempts": len(attempts),
            "slots": min((len(attempt.slots) for attempt in attempts), default=0),
            "hours": median(_by_candidate(attempts).values() or [0.0]),
            "gpu_hours": sum(attempt.worth * _held(attempt) for attempt in attempts),
        }
    generations = []
    for generation in snap.generations:
        assert generation.completed_at is not None
        born = {one.id for one in snap.candidates.values() if one.generation == generation.number}
        generations.append(
            {
                "generation": generation.number,
                "wall_hours": (generation.completed_at - generation.opened_at) / 3600,
                "gpu_hours": sum(a.worth * _held(a) for a in snap.attempts if a.candidate in born),
            }
        )
    asked = _asked(config, subject, snap)
    share = sum(one.slots * one.seconds for one in asked.values()) / len(subject.slots) / 3600
    chain = _chain(config, snap, asked) / 3600
    return {
        "seed": one.seed,
        "wall_hours": wall,
        "gpu_hours": used,
        "slot_use": used / (wall * worth(subject.slots)),
        "work_hours": share,
        "chain_hours": chain,
        "over_bound": wall / max(share, chain),
        "candidates": len(snap.candidates) - 1,
        "stages": stages,
        "generations": generations,
        "budget_spent": _budget_spent(config.experiment.budget_gpu_hours, one),
    }


def _by_candidate(attempts: Sequence[Attempt]) -> dict[int, float]:
    """Hours that each candidate's attempts held their slots."""
    held: dict[int, float] = {}
    for attempt in attempts:
        held[attempt.candidate] = held.get(attempt.candidate, 0.0) + _held(attempt)
    return held


def _asked(config: Config, subject: Subject, snap: Snapshot) -> dict[tuple[int, str], Asked]:
    """What each finished stage of a candidate takes undisturbed."""
    found = {}
    widest = len(subject.slots) if config.slots.widen else 0
    for owner, name in snap.results:
        candidate, stage = snap.candidates[owner], ladder.stage_named(config, name)
        if name == SCREEN:  # as long as it took: nothing disturbs it here
            (held,) = (one for one in snap.attempts if one.candidate == owner)
            seconds = 3600 * _held(held)
            found[owner, name] = Asked(1, seconds, seconds)
            continue
        if stage is None:
            seconds = prepare_seconds(subject.machine, config.data.mlm, subject.volumes)
            found[owner, name] = Asked(1, seconds, seconds)
            continue
        undivided = ladder.undivided(config, name)
        usual, wide = (
            attempt_seconds(
                stage.model_copy(update={"slots": slots}),
                candidate.genotype,
                candidate.lineage,
                subject.seed.backbone,
                config.data,
                subject.volumes,
                subject.machine,
                config.daemon.checkpoint_minutes,
                config.taught_along(stage, candidate.is_baseline),
                1 if undivided else config.slots.share,
            )
            for slots in (stage.slots, max(stage.slots, widest))
        )
        leased = config.slots.share if undivided else stage.slots
        found[owner, name] = Asked(leased, usual, wide)
    return found


def _chain(config: Config, snap: Snapshot, asked: Mapping[tuple[int, str], Asked]) -> float:
    """Seconds of the longest chain of attempts, each of which waits for the one before: with any
    number of slots the search takes no less.

    Generations follow each other, and so does what lies before and behind a cutoff.
    """

    def alone(candidate: int, name: str) -> float:
        return asked[candidate, name].widest if (candidate, name) in asked else 0.0

    before = [PREPARE, *(s.name for s in config.ladder("baseline") if s.train == "head")]
    total = sum(alone(snap.baseline.id, name) for name in before)
    for generation in snap.generations:
        segments: list[list[str]] = [[]]
        cutoffs = ladder.cutoffs(config, generation.number)
        for stage in config.ladder("candidates"):
            segments[-1].append(stage.name)
            if stage.name in cutoffs:
                segments.append([])
        total += sum(
            max(
                sum(alone(one.id, name) for name in segment)
                for one in snap.born_in(generation.number)
            )
            for segment in segments
        )
    return total


def _budget_spent(budget: float | None, one: Run) -> dict[str, Any] | None:
    """When the ledger reaches the budget, and in which generation; None if it does not."""
    if budget is None:
        return None
    moments = sorted(
        {
            moment
            for a in one.snapshot.attempts
            for moment in (a.started_at, a.ended_at or one.ended)
        }
    )
    used = 0.0
    for since, until in pairwise(moments):
        busy = sum(
            a.worth
            for a in one.snapshot.attempts
            if a.started_at <= since and (a.ended_at or one.ended) >= until
        )
        more = busy * (until - since) / 3600
        if busy and used + more >= budget:
            at = since + 3600 * (budget - used) / busy
            opened = [g.number for g in one.snapshot.generations if g.opened_at <= at]
            return {"after_hours": (at - one.began) / 3600, "generation": max(opened, default=None)}
        used += more
    return None


def _held(attempt: Attempt) -> float:
    assert attempt.ended_at is not None
    assert attempt.state in (AttemptState.SUCCEEDED, AttemptState.PREEMPTED), attempt
    return (attempt.ended_at - attempt.started_at) / 3600
