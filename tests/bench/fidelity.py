"""`bin/bench fidelity`: rules of promotion on real learning curves that were recorded before
(tests/data, `bin/record-curves`): the same candidates under each rule, on four slots.

Hours are the recorded seconds of training. The hypervolume is that of the candidates that have come
to their end, by quality and compression, above no quality and none. `regained`: hours until it is
what the thesis's rule (the half with the lowest loss goes on, half-way) comes to in the end, over
that rule's hours; a seed that never comes to it counts as infinite. `cut`: the share of the true
front, of all candidates trained to their end, that the rule has cut; `missed`: the share that it
has cut though nobody else who came to the end is as small, and as good but for noise (95 %).
"""

import argparse
import heapq
import json
import math
import random
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile
from pathlib import Path
from statistics import mean, median
from typing import Any

from rich.console import Console
from rich.table import Table

from nasd.search import noise
from nasd.search.fidelity import RULES, promote
from nasd.search.fidelity.promotion import Budget, Rung
from nasd.search.pareto import Point, hypervolume, ranks

TABLE = Path(__file__).parents[1] / "data" / "curves-demo.json"
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


@dataclass(frozen=True)
class Way:
    """A rule, and where it decides: (share of the steps, share that goes on)."""

    rule: str
    rungs: tuple[tuple[float, float], ...]
    probability: float = 0.95


HALVES = ((0.25, 0.5), (0.5, 0.5))
EARLY = ((0.125, 0.5), (0.25, 0.5), (0.5, 0.5))
WAYS = {
    "share, half at 1/2": Way("share", ((0.5, 0.5),)),
    "share, halves at 1/4, 1/2": Way("share", HALVES),
    "halving at 1/4, 1/2": Way("halving", HALVES),
    "halving at 1/8, 1/4, 1/2": Way("halving", EARLY),
    "asha at 1/4, 1/2": Way("asha", HALVES),
    "asha at 1/8, 1/4, 1/2": Way("asha", EARLY),
    "curve at 1/4, 1/2": Way("curve", HALVES),
    "no cutoff": Way("share", ()),
}


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


@dataclass
class Replay:
    """One generation under a rule. ended: (hours spent so far, candidate). busy, span: slot-seconds
    that were used, and those that passed until the end."""

    way: Way
    pool: Mapping[int, Known]
    at: dict[int, int] = field(default_factory=dict)  # the rung that a candidate is on its way to
    done: dict[int, set[int]] = field(default_factory=dict)  # by rung
    kept: dict[int, list[int]] = field(default_factory=dict)
    cut: set[int] = field(default_factory=set)
    ended: list[tuple[float, int]] = field(default_factory=list)
    busy: float = 0.0
    now: float = 0.0

    def run(self) -> "Replay":
        rungs = self.way.rungs
        self.at = dict.fromkeys(self.pool, 0)
        self.done = {rung: set() for rung in range(len(rungs) + 1)}
        self.kept = {rung: [] for rung in range(len(rungs))}
        pending, running = [*self.pool], list[tuple[float, int]]()
        while pending or running:
            pending.sort(key=lambda one: (-self.at[one], -self.pool[one].seconds, one))
            while pending and len(running) < SLOTS:
                one = pending.pop(0)
                heapq.heappush(running, (self.now + self._seconds(one), one))
            self.now, one = heapq.heappop(running)
            self.busy += self._seconds(one)
            self.done[self.at[one]].add(one)
            if self.at[one] == len(rungs):
                self.ended.append((self.busy, one))
            pending += self._decide()
        return self

    def _seconds(self, one: int) -> float:
        shares = (0.0, *(share for share, _ in self.way.rungs), 1.0)
        rung = self.at[one]
        return (shares[rung + 1] - shares[rung]) * self.pool[one].seconds

    def _decide(self) -> list[int]:
        """Who goes on now."""
        rule, found = RULES[self.way.rule], list[int]()
        for rung, (share, keep) in enumerate(self.way.rungs):
            while True:
                went, here = self.kept[rung], self.done[rung]
                waiting = here - {*went} - self.cut
                if not waiting:
                    break
                come = [*self.pool] if not rung else self.kept[rung - 1]
                left = sum(
                    one not in self.cut and self.at[one] <= rung and one not in here
                    for one in self.pool
                )
                if not rung:
                    come.sort(key=lambda one: (-self.pool[one].seconds, one))
                at, asked = Rung(str(share), len(come), left, share), waiting
                if rule.asynchronous:
                    arrived = tuple(takewhile(here.__contains__, come))
                    at = replace(at, arrived=arrived, promoted=tuple(went))
                    asked = waiting | {*went}
                curves = {one: self.pool[one].upto(share) for one in sorted(asked)}
                beside = {one: (self.pool[one].compression,) for one in curves}
                made = promote(rule, curves, [at], Budget(keep, beside, self.way.probability))
                if made is None:
                    break
                for one in made.kept:
                    self.at[one] = rung + 1
                went += made.kept
                found += made.kept
                self.cut |= {*made.cut}
        return found

    def volumes(self) -> list[tuple[float, float]]:
        """(seconds, hypervolume) behind each end."""
        points, found = list[Point](), []
        for at, one in self.ended:
            points.append(self.pool[one].point)
            found.append((at, hypervolume(points, ABOVE)))
        return found


def missed(run: Replay, front: Sequence[int]) -> float:
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


def figures(known: Sequence[Known], count: int, seeds: int) -> dict[str, dict[str, Any]]:
    """Of each way, over the seeds."""
    told: dict[str, dict[str, list[float]]] = {name: {} for name in WAYS}
    for seed in range(seeds):
        drawn = random.Random(f"fidelity/{seed}").sample(range(len(known)), count)
        pool = dict(enumerate(known[one] for one in drawn))
        front = [
            one
            for one, rank in zip(pool, ranks([k.point for k in pool.values()]), strict=True)
            if rank == 0
        ]
        runs = {name: Replay(way, pool).run() for name, way in WAYS.items()}
        first = runs[next(iter(WAYS))]
        aim = first.volumes()[-1][1]
        for name, run in runs.items():
            reached = (at for at, volume in run.volumes() if volume >= aim)
            row = told[name]
            values = {
                "regained": next(reached, math.inf) / first.busy,
                "hours": run.busy / first.busy,
                "volume": run.volumes()[-1][1] / aim,
                "cut": sum(one in run.cut for one in front) / len(front),
                "missed": missed(run, front),
                "use": run.busy / (SLOTS * run.now),
            }
            for key, value in values.items():
                row.setdefault(key, []).append(value)
    return {
        name: {
            "regained": median(row["regained"]),
            "never": sum(math.isinf(one) for one in row["regained"]),
            **{key: mean(row[key]) for key in ("hours", "volume", "cut", "missed", "use")},
        }
        for name, row in told.items()
    }


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="bin/bench fidelity", description=__doc__)
    parser.add_argument("--table", type=Path, default=TABLE)
    parser.add_argument("--candidates", type=int, default=64, help="of a generation")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args(arguments)
    known = read(options.table)
    if len(known) < options.candidates:
        sys.exit(f"bin/bench fidelity: {options.table} has {len(known)} candidates")
    found = figures(known, options.candidates, options.seeds)
    made = Table(
        title=f"{options.candidates} of {len(known)} recorded candidates, {options.seeds} seeds"
    )
    heads = (
        *("", "regained", "never", "hours", "hypervolume", "true front cut", "missed"),
        "slot use",
    )
    for name in heads:
        made.add_column(name, justify="right" if name else "left")
    for name, row in found.items():
        made.add_row(
            name,
            f"{row['regained']:.2f}",
            f"{row['never']} of {options.seeds}",
            f"{row['hours']:.2f}",
            f"{row['volume']:.4f}",
            f"{100 * row['cut']:.1f} %",
            f"{100 * row['missed']:.1f} %",
            f"{100 * row['use']:.1f} %",
        )
    Console(width=None if sys.stdout.isatty() else 120).print(made)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))
