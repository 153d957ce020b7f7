"""Turns of a daemon with very many slots, on the simulated launcher.

    bin/bench slots [--slots 1000]

A generation of as many candidates as there are slots climbs a ladder whose stages take an hour or
so each, one slot an attempt; a turn comes each five seconds, from the first end on. What the
simulated launcher takes itself, which leaves the files of all workers, is not counted.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nasd.contract.config import Config
from nasd.control.tick import Tick
from nasd.launch.simulated import SimulatedLauncher
from nasd.record.folders import StateFolder
from nasd.record.store import Store
from nasd.views.forecast.virtual_time import VirtualClock
from tests.conftest import BACKBONE, BASELINE, begin, small_config
from tests.test_simulation import SLOW, SMALL_VOLUMES

FILES = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.listdir", "os.scandir")


class Apart(SimulatedLauncher):
    """Keeps the time that it takes itself. inside: whether it is at work just now."""

    inside = False
    seconds = 0.0

    def _timed(self, name: str, *about: Any) -> Any:
        outer, self.inside = self.inside, True
        began = time.perf_counter()
        try:
            return getattr(SimulatedLauncher, name)(self, *about)
        finally:
            self.inside = outer
            if not outer:
                self.seconds += time.perf_counter() - began

    def start(self, *about: Any) -> dict[str, Any]:
        found: dict[str, Any] = self._timed("start", *about)
        return found

    def alive(self, process: Mapping[str, Any]) -> bool:
        return bool(self._timed("alive", process))

    def clear(self, token: str) -> int:
        return int(self._timed("clear", token))

    def look(self) -> None:
        self._timed("look")


class Counted:
    """What a process does to files, and how often its database commits."""

    def __init__(self, launcher: Apart, store: Store) -> None:
        self.files: Counter[str] = Counter()
        self.commits = 0
        self._launcher = launcher
        sys.addaudithook(self._hear)
        self.syncs, self._sync = 0, os.fsync
        os.fsync = self._synced  # type: ignore[assignment]
        store._db.conn.set_trace_callback(self._trace)

    def _hear(self, event: str, about: Sequence[Any]) -> None:
        if event in FILES and not self._launcher.inside:
            self.files[event] += 1

    def _synced(self, descriptor: int) -> None:
        """Not of simulated workers, each of which would wait for its own node."""
        if not self._launcher.inside:
            self.syncs += 1
            self._sync(descriptor)

    def _trace(self, statement: str) -> None:
        self.commits += statement.startswith("COMMIT")


def config_of(slots: int) -> Config:
    one = {name: {"slots": 1} for name in ("pretrain_head", "pretrain_0", "pretrain_1", "finetune")}
    changes = {f"stages__{name}__slots": 1 for name in one}
    return small_config(
        slots__devices=[f"cpu:{number}" for number in range(slots)],
        population__mu=slots,
        population__lambda=slots,
        search_space__blocks=[1, 12],
        **changes,
    )


def measured(slots: int, turns: int) -> dict[str, Any]:
    config = config_of(slots)
    with tempfile.TemporaryDirectory(prefix="nasd-bench-") as name:
        state = StateFolder(Path(name) / "state")
        clock = VirtualClock()
        store = Store(state.database)
        begin(store, config, now=clock())
        launcher = Apart(clock, BACKBONE, BASELINE, SMALL_VOLUMES, SLOW, metrics=False)
        assert config.slots.devices != "auto"
        tick = Tick(
            *(store, config, state.path, state, config.slots.devices, launcher, clock),
            monotonic=clock,
            free_bytes=lambda path: 1 << 50,
        )
        counted = Counted(launcher, store)
        spent: dict[str, list[float]] = {}
        rests: list[int] = []
        each: dict[str, list[float]] = {}  # for an attempt that ends, and one that starts
        ended = 0
        most = 0
        while turns:
            launcher.look()
            before = {one.id for one in store.in_play().live_attempts}
            files, commits, own = counted.files.total(), counted.commits, launcher.seconds
            syncs = counted.syncs
            began = time.perf_counter()
            tick()
            seconds = time.perf_counter() - began - (launcher.seconds - own)
            after = {one.id for one in store.in_play().live_attempts}
            gone, new = len(before - after), len(after - before)
            most = max(most, len(after))
            kind = "rests" if not gone and not new else "ends and starts some"
            kind = "starts very many" if new >= 50 else kind
            if most > slots / 2:
                spent.setdefault(kind, []).append(seconds)
                ended += gone
                turns -= 1
                first = launcher.next_event()
                if kind == "starts very many" and first is not None:
                    clock.advance_to(max(clock(), first - tick.config.daemon.tick_seconds))
                if kind == "rests":
                    rests.append(counted.files.total() - files)
                if gone and kind != "starts very many":
                    told = {
                        "file operations": counted.files.total() - files - most,  # heartbeats
                        "commits": counted.commits - commits,
                        "waits for the disk, beside commits": counted.syncs - syncs,
                    }
                    for what, count in told.items():
                        each.setdefault(what, []).append(count / gone)
            step = clock() + tick.config.daemon.tick_seconds
            ends = launcher.next_event()
            idles = most <= slots / 2 and ends is not None  # the baseline climbs
            clock.advance_to(max(step, ends) if idles and ends is not None else step)
        store.close()
    found: dict[str, Any] = {"slots": slots, "attempts at once": most, "attempts ended": ended}
    for kind, values in spent.items():
        found[f"turn that {kind}, ms"] = round(1000 * statistics.median(values), 1)
        found[f"turn that {kind}, slowest, ms"] = round(1000 * max(values), 1)
        found[f"turns that {kind}"] = len(values)
    for what, values in each.items():
        found[f"{what}, an attempt"] = round(statistics.median(values), 1)
    found["file operations, a turn that rests"] = statistics.median(rests) if rests else 0
    return found


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="bin/bench slots", description=__doc__.split("\n")[0])
    parser.add_argument("--slots", type=int, default=1000)
    parser.add_argument("--turns", type=int, default=300)
    options = parser.parse_args(arguments)
    print(json.dumps(measured(options.slots, options.turns), indent=1))
