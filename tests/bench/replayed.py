"""Recorded learning curves (tests/data, `bin/record-curves`), and what is told of a run on them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nasd.search import noise
from nasd.search.pareto import Point, hypervolume

ABOVE = (0.0, 0.0)
SLOTS = 4


@dataclass(frozen=True)
class Known:
    """A recorded candidate. curve: of training alone, without the loss before it."""

    curve: tuple[tuple[int, float], ...]
    steps: int
    seconds: float
    quality: float
    error: float
    compression: float

    @property
    def point(self) -> Point:
        return self.quality, self.compression

    def upto(self, share: float) -> tuple[tuple[int, float], ...]:
        return tuple(one for one in self.curve if one[0] <= round(share * self.steps))


def read(path: Path) -> list[Known]:
    table = json.loads(path.read_text())
    whole = table["baseline"]["parameters"]
    return [
        Known(
            tuple((step, loss) for step, loss in one["curve"] if step),
            one["steps"],
            one["seconds"],
            (one["exact_match"] + one["f1"]) / 2,
            one["quality_error"],
            whole / one["parameters"],
        )
        for one in table["candidates"]
        if "diverged" not in one
    ]


class Run:
    """A generation that went its way. ended: (slot-seconds spent so far, candidate). busy, now:
    slot-seconds that were used, and seconds that passed until the end."""

    pool: Mapping[int, Known]
    ended: list[tuple[float, int]]
    cut: set[int]
    busy: float
    now: float

    def volumes(self) -> list[tuple[float, float]]:
        """(seconds, hypervolume) behind each end."""
        points, found = list[Point](), []
        for at, one in self.ended:
            points.append(self.pool[one].point)
            found.append((at, hypervolume(points, ABOVE)))
        return found

    def volume_at(self, seconds: float) -> float:
        """The hypervolume behind so many slot-seconds."""
        return max((volume for at, volume in self.volumes() if at <= seconds), default=0.0)


def missed(run: Run, front: Sequence[int]) -> float:
    """The share of the front that has no equal among those that came to the end."""
    ended = [one for _, one in run.ended]
    lost = 0
    for member in front:
        pool = {
            one: noise.Measured(it.quality, it.error, (it.compression,))
            for one in {member, *ended}
            for it in [run.pool[one]]
        }
        lost += member in run.cut and not noise.unsure(member, pool)
    return lost / len(front)
