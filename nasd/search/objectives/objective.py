"""What an entry of the registry says."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol


class Model(Protocol):
    """As much of a candidate, or of the baseline, as objectives are worked out from. figures: what
    its genotype gives by itself, by name (nasd.search.objectives.figures)."""

    @property
    def parameters(self) -> int: ...

    @property
    def figures(self) -> Mapping[str, float]: ...


@dataclass(frozen=True, slots=True)
class Objective:
    """unit: of its values. direction: which of two values is better. reference: of the
    hypervolume, in its unit, or with `relative` in the baseline's own values; what is worse adds
    nothing to it. words: what it is, behind its name or alone.
    title: the head of its column in a table, and shown: what stands in that.

    value: of a candidate, with the metrics of its last stage, against the baseline; None where
    these metrics do not hold what it needs, for what is not measured is never 0.
    """

    name: str
    unit: str
    direction: Literal["highest", "lowest"]
    reference: float
    words: str
    title: str
    value: Callable[[Model, Mapping[str, float], Model], float | None]
    shown: Callable[[float], str]
    relative: bool = False

    def upwards(self, value: float) -> float:
        """As on an axis of a point, where more is always better; and back again."""
        return value if self.direction == "highest" else -value

    def bound(self, baseline: float | None) -> float | None:
        """The reference in its unit; None where it takes the baseline's value, and that is not
        known. baseline: that value."""
        if not self.relative:
            return self.reference
        return None if baseline is None else self.reference * baseline

    @property
    def label(self) -> str:
        """Of an axis in a drawing."""
        return f"{self.name}, {self.words} in {self.unit}"
