"""What a promotion rule is given, what it answers, and the record of what came of it.

Pure, and nothing of the standard library's but values, so that whatever reads a record can.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Self

from nasd.contract import rungs

Curves = Mapping[int, Sequence[tuple[int, float]]]  # (step, evaluation loss), by candidate


class Action(StrEnum):
    KEEP = "keep"
    CUT = "cut"
    WAIT = "wait"


@dataclass(frozen=True, slots=True)
class Rung:
    """How far a generation is with a stage, or with a part of one. reached: how many came to it,
    those that failed in it included. under_way: how many have yet to finish it, those at a stage
    before it included. share: of the whole stage, that lies behind them there.

    arrived: who has finished it or failed, in the order in which they count, up to the first who
    has yet to: that in which they are to start, or of their promotions before, so that it follows
    from no clock. promoted: who of them went on from it before.
    """

    stage: str
    reached: int
    under_way: int = 0
    share: float = 1.0
    arrived: tuple[int, ...] = ()
    promoted: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Budget:
    """keep: the share of those that reached a rung that may go on, above 0, at most 1. beside: what
    is known of candidates besides losses, from their birth, each to be maximised; of all, or of
    nobody. probability: with which somebody has to be worse to be cut for it."""

    keep: float
    beside: Mapping[int, tuple[float, ...]] = field(default_factory=dict)
    probability: float = 0.95

    def places(self, reached: int) -> int:
        """How many may go on at most; never nobody."""
        return rungs.places(self.keep, reached)

    def point(self, candidate: int, loss: float) -> tuple[float, ...]:
        """To be maximised."""
        return (-loss, *self.beside.get(candidate, ()))


@dataclass(frozen=True, slots=True)
class Among:
    """Whom somebody was judged with, where others were to come: in order, the best first; of so
    many that had come, for whom there were so many places."""

    order: tuple[int, ...]
    places: int
    reached: int


@dataclass(frozen=True, slots=True)
class Choice:
    """What becomes of one candidate, and why, in words. loss: what it was judged by. threshold: the
    loss up to which one is kept, of a rule that goes by losses alone. place: among all that it was
    judged with, from 0, the best. None, all of them, while it waits. among: of an asynchronous
    rule, alike for all that are moved at once."""

    action: Action
    reason: str
    loss: float | None = None
    threshold: float | None = None
    place: int | None = None
    among: Among | None = None


def spares_none(generation: int, rungs: int) -> int:
    return 0


def all_wait(curves: Curves, at: Rung) -> Mapping[int, Choice]:
    """Of a rule that decides about a generation as a whole, while some have yet to come."""
    reason = f"{at.under_way} of its generation have yet to finish {at.stage}"
    return dict.fromkeys(curves, Choice(Action.WAIT, reason))


@dataclass(frozen=True, slots=True)
class Rule:
    """One way to decide who goes on.

    name: in records. words: for people, of {places} and {reached}. decide: a choice for each
    candidate that has a curve and has not gone on, all of which have finished the last of the
    rungs, which is the one decided on; those before it stand first. Where nobody is under way,
    nobody waits.
    asynchronous: some may go on while others wait. points: of the curve that it needs, at the first
    rung. spared: how many of so many rungs, the first ones, a generation (from 1) goes past;
    alike again after one more generations than there are rungs, or sooner.
    """

    name: str
    words: str
    decide: Callable[[Curves, Sequence[Rung], Budget], Mapping[int, Choice]]
    asynchronous: bool = False
    points: int = 1
    spared: Callable[[int, int], int] = spares_none


@dataclass(frozen=True, slots=True)
class Promotion:
    """What a cutoff came to, as it is recorded: views read this, and work nothing out again.

    name: of the rule; rule: in words. keep: the share that may go on; places: that many of the
    `reached` that came to the stage. losses: what they were judged by, the best first, as are
    kept and cut. threshold: the loss up to which one was kept; None of a rule that goes by more
    than losses. reasons: of each; of no one in what an earlier version wrote. among: all that they
    were judged with, the best first, and their losses; empty where those are the same. metric: the
    name of the loss that they were judged by, "" for the last of their curves.
    """

    name: str
    rule: str
    keep: float
    places: int
    reached: int
    losses: Mapping[int, float]
    curves: Curves
    threshold: float | None
    kept: tuple[int, ...]
    cut: tuple[int, ...]
    reasons: Mapping[int, str]
    among: Mapping[int, float] = field(default_factory=dict)
    metric: str = ""

    def place(self, candidate: int) -> int:
        """From 1, the best."""
        return [*(self.among or self.losses)].index(candidate) + 1

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
            **(
                {"among": {str(one): loss for one, loss in self.among.items()}}
                if self.among
                else {}
            ),
            **({"metric": self.metric} if self.metric else {}),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Also what earlier versions wrote: they knew one rule, and left its threshold, the loss of
        the last one kept, to be read off the losses."""
        losses = {int(candidate): loss for candidate, loss in data["losses"].items()}
        if "threshold" in data:
            threshold = data["threshold"]
        else:
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
            among={int(one): loss for one, loss in data.get("among", {}).items()},
            metric=data.get("metric", ""),
        )
