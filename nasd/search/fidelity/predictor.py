"""Which of the losses that are known at a rung tells best how good a candidate will be: pure.

By rank correlation with quality among those whom this very search has scored so far. Whoever was
cut is not among them, so later losses, by which it was cut, look a little worse than they are;
those of generations that climb without a cutoff are told as they are.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nasd.search.correlation import spearman

Pairs = Mapping[str, Sequence[tuple[float, float]]]  # (loss, quality) by the predictor's name
LEAST = 8  # scored candidates, below which a correlation says nothing


@dataclass(frozen=True, slots=True)
class Metric:
    """What a promotion went by in the place of the rung's own loss. correlation: of ranks, with
    quality, the sign so that 1 is always right; None where it was not chosen for it. n: of so many
    candidates."""

    name: str
    correlation: float | None = None
    n: int = 0

    @property
    def words(self) -> str:
        if self.correlation is None:
            return f"by the loss {self.name}"
        return (
            f"by the loss {self.name}, whose rank correlation with quality is"
            f" {self.correlation:.2f} among the {self.n} scored so far"
        )


def best(pairs: Pairs, names: Sequence[str]) -> Metric | None:
    """Of these, the one that tells most; of equals the last. None before enough were scored.
    names: what is known of all who are to be judged, the rung's own loss last."""
    found = [
        Metric(name, told, len(pairs[name]))
        for name in names
        if (told := rank_correlation(pairs.get(name, ()))) is not None
    ]
    if len(found) < len(names):  # one cannot be told, and may be better
        return None
    return max(reversed(found), key=lambda one: one.correlation or 0.0, default=None)


def rank_correlation(pairs: Sequence[tuple[float, float]]) -> float | None:
    """Spearman's, of falling losses with rising qualities; None of too few, or where all are
    alike."""
    losses, qualities = [loss for loss, _ in pairs], [quality for _, quality in pairs]
    if len(pairs) < LEAST or len({*losses}) < 2 or len({*qualities}) < 2:
        return None
    return -spearman(losses, qualities)
