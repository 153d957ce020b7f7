"""Turns of a daemon with very many slots, on the simulated launcher, or as jobs of a cluster.

    bin/bench slots [--slots 1000] [--jobs]

A generation of as many candidates as there are slots climbs a ladder whose stages take an hour or
so each, one slot an attempt; a turn comes each five seconds, from the first end on. What the
simulated launcher takes itself, which leaves the files of all workers, is not counted.

With --jobs the attempts are jobs of Slurm's, in which nothing runs: the launcher for it is the real
one, squeue is a command that prints a file, and each turn asks it and waits for its answer; what
the nodes would do, and the submission itself, is not counted.
"""

import argparse
import json
import math
import os
import resource
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nasd.contract.config import Config
from nasd.contract.protocol import AttemptFolder
from nasd.control.tick import Tick
from nasd.launch import job, slurm
from nasd.launch.launcher import Launcher
from nasd.launch.queue import NAME
from nasd.launch.simulated import SimulatedLauncher
from nasd.launch.slurm import SlurmLauncher
from nasd.record.folders import StateFolder
from nasd.record.store import Store
from nasd.views.forecast.virtual_time import VirtualClock
from tests.conftest import BACKBONE, BASELINE, begin, small_config
from tests.test_simulation import SLOW, SMALL_VOLUMES

FILES = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.listdir", "os.scandir")


def processor() -> float:
    """Seconds of the processor's, of this process and of the children that have ended: on a busy
    machine they tell more than the clock."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + ended.ru_utime + ended.ru_stime


class Apart(SimulatedLauncher):
    """Keeps the time that it takes itself. inside: whether it is at work just now. worked: of
    `seconds`, the processor's."""

    inside = False
    seconds = 0.0
    worked = 0.0

    @contextmanager
    def apart(self) -> Iterator[None]:
        outer, self.inside = self.inside, True
        began, worked = time.perf_counter(), processor()
        try:
            yield
        finally:
            self.inside = outer
            if not outer:
                self.seconds += time.perf_counter() - began
                self.worked += processor() - worked

    def _timed(self, name: str, *about: Any) -> Any:
        with self.apart():
            return getattr(SimulatedLauncher, name)(self, *about)

    def start(self, *about: Any) -> dict[str, Any]:
        found: dict[str, Any] = self._timed("start", *about)
        return found

    def alive(self, process: Mapping[str, Any]) -> bool:
        return bool(self._timed("alive", process))

    def clear(self, token: str) -> int:
        return int(self._timed("clear", token))

    def look(self) -> None:
        self._timed("look")


class Jobs(SlurmLauncher):
    """Jobs in which nothing runs: `work` leaves the files of their workers, and this those of the
    jobs themselves. Commands of Slurm's stand in `folder`; `listing` is what squeue prints."""

    def __init__(self, config: Config, state: Path, work: Apart, folder: Path) -> None:
        super().__init__(config, state)
        self.work = work
        self.running: dict[str, tuple[str, AttemptFolder, Mapping[str, Any]]] = {}  # by token
        self.listing = folder / "listing"
        self.listing.write_text("")
        squeue = folder / "squeue"
        squeue.write_text(f"#!/bin/sh\nexec cat '{self.listing}'\n")
        squeue.chmod(0o755)
        os.environ["PATH"] = f"{folder}{os.pathsep}{os.environ['PATH']}"
        slurm.submitted = self._submit  # type: ignore[assignment]
        self.submitted = 0

    def _submit(self, words: Sequence[str], stage: str) -> str:
        self.submitted += 1
        return str(self.submitted)

    def start(self, folder: AttemptFolder, slots: Sequence[str], token: str) -> dict[str, Any]:
        process = super().start(folder, slots, token)
        with self.work.apart():
            note = self.work.start(folder, slots, token)
            self.running[token] = process["job"], folder, note
            job.write(folder.path / job.BEGAN, {"token": token, "at": self.work.clock()})
            self._list()
        return process

    def look(self) -> None:
        """The nodes get on; who is done has left."""
        with self.work.apart():
            self.work.look()
            for token, (_, folder, note) in list(self.running.items()):
                if not self.work.alive(note):
                    said = {"token": token, "why": "", "text": "", "code": 0}
                    job.write(folder.path / job.LEFT, said)
                    del self.running[token]
            self._list()
        self._queue._heard = -math.inf  # so that the turn asks, once

    def _list(self) -> None:
        lines = (
            f"{number}|RUNNING|None|node1|{NAME}{token}|{folder.path.resolve()}\n"
            for token, (number, folder, _) in self.running.items()
        )
        self.listing.write_text("".join(lines))


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


def config_of(slots: int, jobs: bool) -> Config:
    one = {name: {"slots": 1} for name in ("pretrain_head", "pretrain_0", "pretrain_1", "finetune")}
    changes: dict[str, Any] = {f"stages__{name}__slots": 1 for name in one}
    if jobs:
        changes |= {"slots__launcher": "slurm", "slurm__poll_seconds": 3600.0}
    return small_config(
        slots__devices=[f"cpu:{number}" for number in range(slots)],
        population__mu=slots,
        population__lambda=slots,
        search_space__blocks=[1, 12],
        **changes,
    )


def measured(slots: int, turns: int, jobs: bool = False) -> dict[str, Any]:
    config = config_of(slots, jobs)
    with tempfile.TemporaryDirectory(prefix="nasd-bench-") as name:
        state = StateFolder(Path(name) / "state")
        clock = VirtualClock()
        store = Store(state.database)
        begin(store, config, now=clock())
        launcher = Apart(clock, BACKBONE, BASELINE, SMALL_VOLUMES, SLOW, metrics=False)
        starts: Launcher = launcher
        looks = launcher.look
        if jobs:
            starts = queued = Jobs(config, state.path, launcher, Path(name))
            looks = queued.look
        assert config.slots.devices != "auto"
        tick = Tick(
            *(store, config, state.path, state, config.slots.devices, starts, clock),
            monotonic=clock,
            free_bytes=lambda path: 1 << 50,
            leashed=not jobs,
        )
        counted = Counted(launcher, store)
        spent: dict[str, list[tuple[float, float]]] = {}  # by the clock, and the processor's
        rests: list[int] = []
        each: dict[str, list[float]] = {}  # for an attempt that ends, and one that starts
        ended = 0
        most = 0
        burst = 0  # attempts that turns in a row have started
        tick.stopwatch = lambda: time.perf_counter() - launcher.seconds
        while turns:
            if not tick.goes_on:
                looks()
            before = {one.id for one in store.in_play().live_attempts}
            files, commits = counted.files.total(), counted.commits
            own, own_worked, syncs = launcher.seconds, launcher.worked, counted.syncs
            began, worked = time.perf_counter(), processor()
            tick()
            seconds = time.perf_counter() - began - (launcher.seconds - own)
            worked = processor() - worked - (launcher.worked - own_worked)
            after = {one.id for one in store.in_play().live_attempts}
            gone, new = len(before - after), len(after - before)
            most = max(most, len(after))
            kind = "rests" if not gone and not new else "ends and starts some"
            burst += new
            if most > slots / 2:
                spent.setdefault(kind, []).append((seconds, worked))
                ended += gone
                turns -= 1
                if kind == "rests":
                    rests.append(counted.files.total() - files)
                if gone:
                    told = {
                        "file operations": counted.files.total() - files - most,  # heartbeats
                        "commits": counted.commits - commits,
                        "waits for the disk, beside commits": counted.syncs - syncs,
                    }
                    for what, count in told.items():
                        each.setdefault(what, []).append(count / gone)
            if tick.goes_on:
                continue
            first = launcher.next_event()
            if burst >= 50 and most > slots / 2 and first is not None:
                clock.advance_to(max(clock(), first - tick.config.daemon.tick_seconds))
            burst = 0
            step = clock() + tick.config.daemon.tick_seconds
            ends = launcher.next_event()
            idles = most <= slots / 2 and ends is not None  # the baseline climbs
            clock.advance_to(max(step, ends) if idles and ends is not None else step)
        store.close()
    found: dict[str, Any] = {
        "slots": slots,
        "of": "Slurm's" if jobs else "the simulated launcher's",
        "attempts at once": most,
        "attempts ended": ended,
        "load of the machine": round(os.getloadavg()[0], 1),
        "cores": os.cpu_count(),
    }
    for kind, values in spent.items():
        by_clock, by_processor = zip(*values, strict=True)
        found[f"turn that {kind}, ms"] = round(1000 * statistics.median(by_clock), 1)
        found[f"turn that {kind}, slowest, ms"] = round(1000 * max(by_clock), 1)
        found[f"turn that {kind}, of the processor, ms"] = round(
            1000 * statistics.median(by_processor), 1
        )
        found[f"turns that {kind}"] = len(values)
    for what, values in each.items():
        found[f"{what}, an attempt"] = round(statistics.median(values), 1)
    found["file operations, a turn that rests"] = statistics.median(rests) if rests else 0
    return found


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="bin/bench slots", description=__doc__.split("\n")[0])
    parser.add_argument("--slots", type=int, default=1000)
    parser.add_argument("--turns", type=int, default=300)
    parser.add_argument("--jobs", action="store_true", help="as jobs of Slurm's, squeue a stub")
    options = parser.parse_args(arguments)
    print(json.dumps(measured(options.slots, options.turns, options.jobs), indent=1))
