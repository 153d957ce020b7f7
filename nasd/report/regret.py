"""What it would cost to learn what a cutoff missed: its cut candidates, trained to the end."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from nasd.config import Config
from nasd.errors import NasdError
from nasd.lifecycle import State
from nasd.pace import Effort
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
    effort = Effort(snapshot, config)
    for candidate in candidates:
        for name in names[names.index(candidate.stage) + 1 :]:
            paces = effort.paces(name)
            if not paces:
                raise NasdError(
                    f"the price is not known: nobody has finished {name} yet, so its pace is not"
                    " measured"
                )
            operations = effort.operations(candidate, name)
            usual = operations * median(paces) / 3600
            stages[name] = stages.get(name, 0.0) + usual
            total["median"] += usual
            total["low"] += operations * min(paces) / 3600
            total["high"] += operations * max(paces) / 3600
    ids = tuple(one.id for one in candidates)
    return Price(ids, total["median"], total["low"], total["high"], stages)
