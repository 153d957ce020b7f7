"""What a promotion rule is given, what it answers, and the record of what came of it.

Pure, and nothing of the standard library's but values, so that whatever reads a record can.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Self

Curves = Mapping[int, Sequence[tuple[int, float]]]  # (step, evaluation loss), by candidate


class Action(StrEnum):
    KEEP = "keep"
    CUT = "cut"
    WAIT = "wait"


@dataclass(frozen=True, slots=True)
class Rung:
    """How far a generation is with a stage. reached: how many came to it, those that failed in it
    included. under_way: how many have yet to finish it, those at a stage before it included."""

    stage: str
    reached: int
    under_way: int = 0


@dataclass(frozen=True, slots=True)
class Budget:
    """keep: the share of those that reached a rung that may go on, above 0, at most 1."""

    keep: float

    def places(self, reached: int) -> int:
        """How many may go on at most; never nobody."""
        return max(1, math.ceil(self.keep * reached))


@dataclass(frozen=True, slots=True)
class Choice:
    """What becomes of one candidate, and why, in words. loss: what it was judged by. threshold: the
    loss up to which one is kept. Both None while it waits."""

    action: Action
    reason: str
    loss: float | None = None
    threshold: float | None = None


@dataclass(frozen=True, slots=True)
class Rule:
    """One way to decide who goes on.

    name: in records. words: for people, of {places} and {reached}. decide: a choice for each
    candidate that has a curve, all of which have finished the last of the rungs, which is the one
    decided on; those before it stand first. Where nobody is under way, nobody waits.
    """

    name: str
    words: str
    decide: Callable[[Curves, Sequence[Rung], Budget], Mapping[int, Choice]]


@dataclass(frozen=True, slots=True)
class Promotion:
    """What a cutoff came to, as it is recorded: views read this, and work nothing out again.

    name: of the rule; rule: in words. keep: the share that may go on; places: that many of the
    `reached` that came to the stage. losses: what they were judged by, the best first, as are
    kept and cut. threshold: the loss up to which one was kept. reasons: of each; of no one in what
    an earlier version wrote.
    """

    name: str
    rule: str
    keep: float
    places: int
    reached: int
    losses: Mapping[int, float]
    curves: Curves
    threshold: float
    kept: tuple[int, ...]
    cut: tuple[int, ...]
    reasons: Mapping[int, str]

    def place(self, candidate: int) -> int:
        """From 1, the best."""
        return [*self.losses].index(candidate) + 1

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "rule": self.rule,
            "keep": self.keep,
            "places": self.places,
            "reached": self.reached,
            "losses": {str(candidate): loss for candidate, loss in self.losses.items()},
            "curves": {
                str(candidate): [list(point) for point in curve]
                for candidate, curve in self.curves.items()
            },
            "threshold": self.threshold,
            "kept": list(self.kept),
            "cut": list(self.cut),
            "reasons": {str(candidate): reason for candidate, reason in self.reasons.items()},
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Also what earlier versions wrote: they knew one rule, and left its threshold, the loss of
        the last one kept, to be read off the losses."""
        losses = {int(candidate): loss for candidate, loss in data["losses"].items()}
        threshold = data.get("threshold")
        if threshold is None:
            threshold = max(losses[candidate] for candidate in data["kept"])
        return cls(
            name=data.get("name", "share"),
            rule=data["rule"],
            keep=data["keep"],
            places=data["places"],
            reached=data["reached"],
            losses=losses,
            curves={
                int(candidate): tuple((step, loss) for step, loss in curve)
                for candidate, curve in data["curves"].items()
            },
            threshold=threshold,
            kept=tuple(data["kept"]),
            cut=tuple(data["cut"]),
            reasons={int(one): reason for one, reason in data.get("reasons", {}).items()},
        )
