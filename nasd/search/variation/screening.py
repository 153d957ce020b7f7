"""Which of many mutants are born, by what can be told of them untrained.

A child that keeps what its parent knows can be judged before any training: by its loss on held-out
windows, in seconds. Hundreds are tried, and the few that are best for their size are trained.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from nasd.search.pareto import Point, survivors


@dataclass(frozen=True)
class Tried:
    """loss: untrained, on held-out windows; None where there was none. known: the objectives that
    are known from birth, to be maximised."""

    loss: float | None
    known: Point


def best(tried: Sequence[Tried], count: int) -> list[int]:
    """So many of them, as indices in their order: by NSGA-II's survival over (loss, objectives).
    Those without a loss only fill up."""
    judged = [(index, one.loss) for index, one in enumerate(tried) if one.loss is not None]
    points = [(-loss, *tried[index].known) for index, loss in judged]
    chosen = [judged[place][0] for place in survivors(points, count)]
    chosen += [index for index, one in enumerate(tried) if one.loss is None]
    return sorted(chosen[:count])
