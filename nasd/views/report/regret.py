"""What a cutoff missed: what it would cost to train its cut candidates to the end, and how that is
asked for.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from nasd.contract.config import Config, Stage
from nasd.contract.errors import NasdError
from nasd.contract.readable import counted, hours
from nasd.estimate.pace import Effort
from nasd.policy.ladder import undivided
from nasd.policy.steering import drawn
from nasd.record.state import Candidate, Snapshot


@dataclass(frozen=True)
class Price:
    """GPU-hours to be expected: at the median pace of the experiment's own attempts, and at the
    quickest and slowest of them. stages: what of it goes into each. longest: hours that one of the
    candidates takes on as many slots as its stages ask for."""

    candidates: tuple[int, ...]
    gpu_hours: float
    low: float
    high: float
    stages: dict[str, float]
    longest: float

    def hours(self, slots: float) -> float:
        """Until all of them are through, on so many slots, a share of a GPU being a part of one; at
        best."""
        return max(self.longest, self.gpu_hours / slots)


def stopped(snapshot: Snapshot) -> tuple[Candidate, ...]:
    """Those of the newest generation whom cutoffs stopped, and who have not been trained on since:
    the only ones that can be."""
    newest = snapshot.generation
    return () if newest is None else tuple(snapshot.stopped_in(newest.number))


def price(snapshot: Snapshot, config: Config, candidates: Sequence[Candidate]) -> Price:
    """What the stages behind their cutoff will take, by nasd.estimate.cost's operations and the
    time that the experiment's attempts at these stages took for theirs, lost work included.

    Raises NasdError if nobody has finished one of these stages yet, so that its pace is not known.
    """
    total = {"median": 0.0, "low": 0.0, "high": 0.0}
    stages: dict[str, float] = {}
    ladder = config.ladder("candidates")
    names = [stage.name for stage in ladder]
    effort = Effort(snapshot, config)
    longest = 0.0
    for candidate in candidates:
        takes = 0.0
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
            takes += usual / _held(config, next(one for one in ladder if one.name == name))
            total["median"] += usual
            total["low"] += operations * min(paces) / 3600
            total["high"] += operations * max(paces) / 3600
        longest = max(longest, takes)
    ids = tuple(one.id for one in candidates)
    return Price(ids, total["median"], total["low"], total["high"], stages, longest)


def _held(config: Config, stage: Stage) -> float:
    """Whole slots that an attempt at the stage holds."""
    return 1.0 if undivided(config, stage.name) else stage.slots / config.slots.share


def offer(
    snapshot: Snapshot,
    config: Config,
    slots: int,
    unit: str,
    now: float,
    sample: int | None = None,
) -> str:
    """The price in words, for a person to say yes or no to. config: of the daemon that will do it.
    sample: not of all who were cut, but of so many.

    Raises NasdError if the price is not known, or is more than the budget leaves.
    """
    candidates = drawn(snapshot, stopped(snapshot), sample)
    asked = price(snapshot, config, candidates)
    budget, used = snapshot.experiment.budget(config.experiment.budget_gpu_hours), 0.0
    if budget is not None and (used := snapshot.gpu_hours(now)) + asked.gpu_hours > budget:
        raise NasdError(
            f"to train {counted(len(candidates), 'cut candidate')} to the end takes about"
            f" {hours(asked.gpu_hours)} {unit}, and of the budget of {hours(budget)} there are"
            f" {hours(max(0.0, budget - used))} left: raise it with `nasd budget`"
        )
    shares = ", ".join(f"{name} {hours(share)}" for name, share in asked.stages.items())
    return (
        f"To train {counted(len(candidates), 'cut candidate')} of generation"
        f" {candidates[0].generation} to the end takes about {hours(asked.gpu_hours)} {unit}"
        f" ({shares}; {hours(asked.low)} at the quickest pace measured, {hours(asked.high)} at the"
        f" slowest), and at least {hours(asked.hours(slots / config.slots.share))} hours on"
        f" {counted(slots, 'slot')}. Nothing of it changes the selection."
    )
