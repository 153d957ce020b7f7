"""`bin/bench fidelity`: rules of promotion on real learning curves that were recorded before
(tests/data, `bin/record-curves`): the same candidates under each rule, on four slots.

Hours are the recorded seconds of training. The hypervolume is that of the candidates that have come
to their end, by quality and compression, above no quality and none. `regained`: hours until it is
what the thesis's rule (the half with the lowest loss goes on, half-way) comes to in the end, over
that rule's hours; a seed that never comes to it counts as infinite. `cut`: the share of the true
front, of all candidates trained to their end, that the rule has cut; `missed`: the share that it
has cut though nobody else who came to the end is as small, and as good but for noise (95 %). How
much of the front the noise of the scores costs a rule that keeps half, the row that cuts at the
very end tells, which knows all of each curve.

1/4 to 4/4: the hypervolume after these shares of the hours of `MOASHA, mended`
(tests.bench.moasha), which has the same candidates, in the order in which asynchronous rules start
them. Where Syne Tune is not installed, those of the asynchronous rule with the same rungs are
taken, and it is said.
"""

import argparse
import heapq
import json
import math
import random
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from statistics import mean, median
from typing import Any

from rich.console import Console
from rich.table import Table

from nasd.search.fidelity import RULES, promote
from nasd.search.fidelity.promotion import Budget, Rung
from nasd.search.pareto import ranks
from tests.bench.replayed import SLOTS, Known, Run, missed, read

try:
    from tests.bench import moasha
except ImportError:  # it is of Syne Tune, which nothing else needs
    moasha = None  # type: ignore[assignment]

TABLE = Path(__file__).parents[1] / "data" / "curves-demo.json"
PEER, INSTEAD = "MOASHA, mended", "asha at 1/8, 1/4, 1/2"
QUARTERS = (1, 2, 3, 4)


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
    "asha at 1/8": Way("asha", ((0.125, 0.5),)),
    "asha at 1/8, 2 of 3": Way("asha", ((0.125, 2 / 3),)),
    "asha at 1/4, 1/2": Way("asha", HALVES),
    "asha at 1/8, 1/4, 1/2": Way("asha", EARLY),
    "curve at 1/4, 1/2": Way("curve", HALVES),
    "curve at 1/8, 1/4, 1/2": Way("curve", EARLY),
    "halving, half at the end": Way("halving", ((1.0, 0.5),)),
    "no cutoff": Way("share", ()),
}


@dataclass
class Replay(Run):
    """One generation under a rule."""

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
        place = {one: number for number, one in enumerate(self.first)}
        pending, running = [*self.pool], list[tuple[float, int]]()
        while pending or running:
            pending.sort(key=lambda one: (-self.at[one], place[one]))
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

    @cached_property
    def first(self) -> list[int]:
        """In which order they start, as nasd.policy.ladder.turn has it."""
        return in_turn(self.pool, RULES[self.way.rule].asynchronous)

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
                come = [*self.first] if not rung else self.kept[rung - 1]
                left = sum(
                    one not in self.cut and self.at[one] <= rung and one not in here
                    for one in self.pool
                )
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


def in_turn(pool: Mapping[int, Known], asynchronous: bool) -> list[int]:
    """The shortest first under an asynchronous rule, else the longest."""
    sign = 1 if asynchronous else -1
    return sorted(pool, key=lambda one: (sign * pool[one].seconds, one))


def figures(known: Sequence[Known], count: int, seeds: int) -> dict[str, dict[str, Any]]:
    """Of each way, over the seeds."""
    told: dict[str, dict[str, list[float]]] = {}
    for seed in range(seeds):
        drawn = random.Random(f"fidelity/{seed}").sample(range(len(known)), count)
        pool = dict(enumerate(known[one] for one in drawn))
        front = [
            one
            for one, rank in zip(pool, ranks([k.point for k in pool.values()]), strict=True)
            if rank == 0
        ]
        runs: dict[str, Run] = {name: Replay(way, pool).run() for name, way in WAYS.items()}
        if moasha is not None:
            for name, priority in moasha.PRIORITIES.items():
                runs[name] = moasha.Peer(pool, in_turn(pool, True), priority()).run()
        first = runs[next(iter(WAYS))]
        beside = runs.get(PEER, runs[INSTEAD])
        aim = first.volumes()[-1][1]
        for name, run in runs.items():
            reached = (at for at, volume in run.volumes() if volume >= aim)
            row = told.setdefault(name, {})
            values = {
                "regained": next(reached, math.inf) / first.busy,
                "hours": run.busy / first.busy,
                "volume": run.volumes()[-1][1] / aim,
                "cut": sum(one in run.cut for one in front) / len(front),
                "missed": missed(run, front),
                "use": run.busy / (SLOTS * run.now),
                **{f"{n}/4": run.volume_at(n / 4 * beside.busy) / aim for n in QUARTERS},
            }
            for key, value in values.items():
                row.setdefault(key, []).append(value)
    return {
        name: {
            "regained": median(row["regained"]),
            "never": sum(math.isinf(one) for one in row["regained"]),
            **{key: mean(row[key]) for key in row if key != "regained"},
        }
        for name, row in told.items()
    }


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="bin/bench fidelity", description=__doc__)
    parser.add_argument("--table", type=Path, default=TABLE)
    parser.add_argument("--candidates", type=int, default=64, help="of a generation")
    parser.add_argument(
        "--half", type=int, choices=(1, 2), help="of the table: choose on one, tell the other"
    )
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args(arguments)
    known = read(options.table)
    if options.half:
        known = random.Random("halves").sample(known, len(known))[options.half - 1 :: 2]
    if len(known) < options.candidates:
        sys.exit(f"bin/bench fidelity: {options.table} has {len(known)} candidates")
    found = figures(known, options.candidates, options.seeds)
    made = Table(
        title=f"{options.candidates} of {len(known)} recorded candidates, {options.seeds} seeds"
    )
    shown = [f"{n}/4" for n in QUARTERS]
    for name in ("", "regained", "never", "hours", "volume", "cut", "missed", "use", *shown):
        made.add_column(name, justify="right" if name else "left")
    for name, row in found.items():
        made.add_row(
            name,
            f"{row['regained']:.2f}",
            f"{row['never']}",
            f"{row['hours']:.2f}",
            f"{row['volume']:.3f}",
            *(f"{100 * row[key]:.1f} %" for key in ("cut", "missed", "use")),
            *(f"{row[key]:.3f}" for key in shown),
        )
    Console(width=None if sys.stdout.isatty() else 120).print(made)
    if moasha is None:
        print(f"Syne Tune is not installed: quarters are of the hours of {INSTEAD}")
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))
