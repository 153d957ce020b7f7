"""What it would cost to learn what a cutoff missed: its cut candidates, trained to the end."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from statistics import median

from nasd.config import Config
from nasd.cost import Volumes, work
from nasd.errors import NasdError
from nasd.lifecycle import State
from nasd.snapshot import Candidate, Snapshot


@dataclass(frozen=True)
class Price:
    """GPU-hours to be expected: at the median pace of the experiment's own attempts, and at the
    quickest and slowest of them. stages: what of it goes into each."""

    candidates: tuple[int, ...]
    gpu_hours: float
    low: float
    high: float
    stages: dict[str, float]


def stopped(snapshot: Snapshot) -> tuple[Candidate, ...]:
    """The cut candidates of the newest generation that has any: those whose weights stand."""
    cut = [one for one in snapshot.candidates.values() if one.state is State.CUT]
    newest = max((one.generation for one in cut if one.generation is not None), default=None)
    return tuple(one for one in cut if one.generation == newest)


def price(snapshot: Snapshot, config: Config, candidates: Sequence[Candidate]) -> Price:
    """What the stages behind their cutoff will take, by nasd.cost's operations and the time that
    the experiment's attempts at these stages took for theirs, lost work included.

    Raises NasdError if nobody has finished one of these stages yet, so that its pace is not known.
    """
    total = {"median": 0.0, "low": 0.0, "high": 0.0}
    stages: dict[str, float] = {}
    ladder = config.ladder("candidates")
    names = [stage.name for stage in ladder]
    paces: dict[str, list[float]] = {}
    for candidate in candidates:
        for name in names[names.index(candidate.stage) + 1 :]:
            if name not in paces:
                paces[name] = _paces(snapshot, config, name)
            if not paces[name]:
                raise NasdError(
                    f"the price is not known: nobody has finished {name} yet, so its pace is not"
                    " measured"
                )
            operations = _operations(snapshot, config, candidate, name)
            usual = operations * median(paces[name]) / 3600
            stages[name] = stages.get(name, 0.0) + usual
            total["median"] += usual
            total["low"] += operations * min(paces[name]) / 3600
            total["high"] += operations * max(paces[name]) / 3600
    ids = tuple(one.id for one in candidates)
    return Price(ids, total["median"], total["low"], total["high"], stages)


def _paces(snapshot: Snapshot, config: Config, name: str) -> list[float]:
    """Slot-seconds an operation, of each candidate that has finished the stage."""
    held: dict[int, float] = {}
    for attempt in snapshot.attempts:
        if attempt.stage == name and attempt.ended_at is not None:
            seconds = len(attempt.slots) * (attempt.ended_at - attempt.started_at)
            held[attempt.candidate] = held.get(attempt.candidate, 0.0) + seconds
    return [
        held[owner] / operations
        for owner, stage in snapshot.results
        if stage == name and held.get(owner)
        if (operations := _operations(snapshot, config, snapshot.candidates[owner], name))
    ]


def _operations(snapshot: Snapshot, config: Config, candidate: Candidate, name: str) -> float:
    """Floating-point operations that the stage asks for."""
    prepared = snapshot.experiment.prepared
    assert prepared is not None, "who has been cut has trained on prepared data"
    counts = {one.name: prepared[one.name] for one in fields(Volumes) if one.name in prepared}
    asked = work(
        next(stage for stage in config.stages if stage.name == name),
        candidate.genotype,
        candidate.lineage,
        snapshot.experiment.backbone,
        config.data.mlm,
        Volumes(**counts),
    )
    return asked.steps * asked.step_flop + max(1, len(asked.evaluations)) * asked.evaluation_flop
