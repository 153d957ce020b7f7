"""Hyperband (Li et al. 2018) over generations: successive halving that begins later each time.

The first generation is halved at each rung, the next one goes past the first of them, and so forth,
until one climbs without any; then it begins anew. So a rung whose losses tell little costs some of
the generations their best, and never all; and those who come to the end unhalved show what the
rungs would have cut. Each bracket of the paper is a generation here, which is as large as any.
"""

from nasd.search.fidelity.halving import decide
from nasd.search.fidelity.promotion import Rule


def spared(generation: int, rungs: int) -> int:
    """How many of its rungs, the first ones, a generation goes past. generation: from 1."""
    return (generation - 1) % (rungs + 1)


HYPERBAND = Rule(
    "hyperband",
    "the {places} of {reached} that are preferred by last loss and size",
    decide,
    spared=spared,
)
