"""What all peers of `bin/bench search` are given."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from tests.bench.laboratory import Judge, Laboratory
from tests.bench.standing import Model

DEPTH = 3  # of the control, where our search is not among the peers
Say = Callable[[str], None]


@dataclass
class Contest:
    """What all peers are given. seconds: of training for each. charges_scoring: whether scoring
    counts as well. depth: of our search's deepest line, once it is known."""

    lab: Laboratory
    judge: Judge
    seconds: float
    say: Say
    charges_scoring: bool = False
    depth: int = DEPTH

    @property
    def start(self) -> float:
        """What the baseline costs each."""
        lab = self.lab
        return lab.begin.seconds + (lab.scored.seconds if self.charges_scoring else 0.0)

    def baseline(self) -> Model:
        lab = self.lab
        return lab.model("baseline", lab.baseline, self.start, lab.scored.quality, self._told)

    @cached_property
    def _told(self) -> float:
        return self.judge(self.lab.begin.result)
