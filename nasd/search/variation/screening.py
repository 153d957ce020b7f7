"""Which of many mutants are born, by what can be told of them untrained.

A child that keeps what its parent knows can be judged before any training: by its loss on held-out
windows, in seconds. Hundreds are tried, and the few that are best for their size are trained.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from nasd.search.pareto import Point, subset


@dataclass(frozen=True)
class Tried:
    """loss: untrained, on held-out windows; None where there was none. kept: which share of what
    its parent knows, counted in nats from a model that knows nothing. known: the objectives that
    are known from birth, to be maximised. missed: by how much it breaks, by what is known from
    birth, the experiment's limits."""

    loss: float | None
    kept: float
    known: Point
    missed: float = 0.0


def kept(loss: float, parent: float, ignorance: float) -> float:
    """The share of what its parent knows that is left at a loss; all of it, where the parent knows
    nothing."""
    return 1.0 if parent >= ignorance else (ignorance - loss) / (ignorance - parent)


def best(
    tried: Sequence[Tried],
    count: int,
    parents: Sequence[Tried] = (),
    *,
    least: float,
    last: bool = False,
) -> list[int]:
    """So many of them, as indices in their order: by non-dominated rank over (loss, objectives),
    and of the last front those that together dominate much (nasd.search.pareto.subset), above the
    worst along each axis of that front and of their parents.

    Whoever keeps less than the least share of its parent's knowledge, or breaks a limit of the
    experiment, comes behind all others, and those without a loss only fill up: the smallest would
    be on the front, however little they can. last: nobody is bred of them, so that whoever breaks a
    limit is of no use to anybody, and comes behind those who only know little.
    """
    judged = [(index, one.loss) for index, one in enumerate(tried) if one.loss is not None]
    points = [(-loss, *tried[index].known) for index, loss in judged]
    beside = [(-one.loss, *one.known) for one in parents if one.loss is not None]
    short = [(max(0.0, least - tried[at].kept), tried[at].missed) for at, _ in judged]
    faults = [(limits, knows) if last else (0.0, limits + knows) for knows, limits in short]
    worse = sorted({one for one in faults if any(one)})
    missed = [1.0 + worse.index(one) if any(one) else 0.0 for one in faults]
    chosen = [judged[place][0] for place in subset(points, count, missed, beside)]
    chosen += [index for index, one in enumerate(tried) if one.loss is None]
    return sorted(chosen[:count])
