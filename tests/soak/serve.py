"""One life of a daemon in virtual time: `python -m tests.soak.serve FOLDER`.

Tick, store, policy, files and transactions are nasd's own; the workers, the clock and the weather
are made up. It serves FOLDER/state as FOLDER/life.json says, until the search is complete (exit
code 0), halted (3), or somebody kills it.
"""

import errno
import json
import logging
import mmap
import os
import random
import sqlite3
import struct
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nasd.contract import config as config_module
from nasd.contract.genotype import Genotype
from nasd.contract.protocol import AttemptFolder, Spec
from nasd.contract.volumes import Volumes
from nasd.control import tick as tick_module
from nasd.control.machine import GB
from nasd.control.tick import Tick
from nasd.estimate.cost import Machine
from nasd.estimate.surrogate import Surrogate
from nasd.launch.gpus import Gpu, GpuProcess
from nasd.launch.simulated import Fate, SimulatedLauncher
from nasd.record import daemon_lock
from nasd.record.folders import StateFolder
from nasd.record.store import Store
from nasd.views.forecast.virtual_time import VirtualClock
from tests.soak import mischief

VOLUMES = Volumes(10_000_000, 4096, 70_079, 17_520, 70_819, 17_705)  # the thesis's
DIVERGING = 0.08
STEP = 900.0  # virtual seconds between two turns, at most: a daemon that is away notices no stall
HOUR = 3600.0
STRANGER = 4242  # the pid of somebody else's process
COMPLETE, HALTED = 0, 3  # exit codes
WORN = (2, "finetune")  # the candidate and stage that loses attempts until the search halts


@dataclass(frozen=True)
class Life:
    """leashed: attempts die with the daemon. calm: nothing goes wrong. pace: virtual seconds for a
    real one, where not calm. wears: a candidate loses attempts until the search halts. speed: how
    many times as fast as the thesis's machine this one is."""

    seed: int
    number: int
    leashed: bool
    calm: bool
    pace: float
    wears: bool
    speed: float

    @property
    def machine(self) -> Machine:
        usual = Machine()
        return Machine(
            tflops=usual.tflops * self.speed,
            step_seconds=usual.step_seconds / self.speed,
            prepare_tokens=usual.prepare_tokens * self.speed,
        )


class LastingClock(VirtualClock):
    """Virtual time in a file: it goes on where a killed process has left it."""

    def __init__(self, path: Path, begin: float = 0.0) -> None:
        new = not path.exists()
        if new:
            path.write_bytes(struct.pack("d", begin))
        with path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), 8)
        super().__init__(struct.unpack_from("d", self._memory)[0])

    def advance_to(self, time: float) -> None:
        super().advance_to(time)
        struct.pack_into("d", self._memory, 0, self.now)


@dataclass(frozen=True)
class Weather:
    """Clock, disk and GPUs at an instant of virtual time: they follow from it and the seed, and so
    outlast a daemon."""

    seed: int
    calm: bool = False

    def ahead(self, now: float) -> float:
        """By how much the wall clock is wrong."""
        draw = self._fault("clock", now, 4 * HOUR, 0.4)
        return draw.uniform(-3 * HOUR, 3 * HOUR) if draw else 0.0

    def free(self, now: float) -> float:
        return 5 * GB if self._fault("disk", now, 6 * HOUR, 0.4) else 1e15

    def gpu(self, slot: str, now: float) -> Gpu:
        draw = self._fault(slot, now, 8 * HOUR, 0.4)
        if draw is None:
            return Gpu(slot, memory=40 * 10**9)
        if draw.random() < 0.5:
            return Gpu(slot, fault="GPU is lost")
        return Gpu(slot, memory=40 * 10**9, processes=(GpuProcess(STRANGER, 3 * 10**9),))

    def _fault(self, kind: str, now: float, every: float, share: float) -> random.Random | None:
        """While a fault lasts: numbers to draw its details from. In a share of all stretches of
        time there is one, of a tenth to a third of its stretch."""
        if self.calm:
            return None
        number, into = divmod(now / every, 1.0)
        draw = random.Random(f"{self.seed}/{kind}/{number}")
        begin = draw.uniform(0.0, 0.6)
        lasts = draw.random() < share and begin <= into < begin + draw.uniform(0.1, 0.33)
        return draw if lasts else None


class FullDisk:
    """For some turns what is written fails, now and then."""

    def __init__(self, draw: random.Random) -> None:
        self.turns = 0
        self._draw = draw

    def strikes(self) -> bool:
        return self.turns > 0 and self._draw.random() < 0.5

    def around(self, function: Callable[..., None]) -> Callable[..., None]:
        def guarded(*arguments: Any) -> None:
            if self.strikes():
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            function(*arguments)

        return guarded


def is_full(error: Exception) -> bool:
    return "is full" in str(error) or (isinstance(error, OSError) and error.errno == errno.ENOSPC)


class StoreOnDisk(Store):
    disk: FullDisk

    def _check(self) -> None:
        if self.disk.strikes():
            raise sqlite3.OperationalError("database or disk is full")

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._check()
        with super()._transaction():
            yield
            self._check()

    def backup(self, path: Path) -> None:
        self._check()
        super().backup(path)


class Workers(SimulatedLauncher):
    """Tells when an attempt began and when nothing was left of it: what the ledger is held
    against."""

    tell: Callable[..., None]

    def start(self, folder: AttemptFolder, slots: Sequence[str], token: str) -> dict[str, Any]:
        note = super().start(folder, slots, token)
        self.tell(began=token, at=note["began"], fate=note["fate"])
        return note

    def clear(self, token: str) -> int:
        left = super().clear(token)
        self.tell(cleared=token, at=self.clock())
        return left

    def owns(self, pid: int) -> bool | None:
        return False


def fate(life: Life, surrogate: Surrogate) -> Callable[[Spec, int], Fate]:
    """Some attempts are lost, some stall. The worn one is lost again and again. What diverges is
    left to it: a simulated attempt that is to be lost later than that gets past it."""

    def of(spec: Spec, before: int) -> Fate:
        if life.calm or surrogate.diverges(Genotype.from_json(spec.genotype)) is not None:
            return Fate()
        stage = "prepare" if spec.stage is None else spec.stage.name
        if life.wears and (spec.candidate, stage) == WORN:
            return Fate("lost", 0.0)
        draw = random.Random(f"{life.seed}/{life.number}/{spec.attempt}")
        kind = draw.choices(("succeed", "lost", "stall", "machine"), (82, 10, 4, 4))[0]
        return Fate(kind, draw.random())

    return of


def begin(tick: Tick) -> None:
    """As nasd.control.daemon does, in virtual time."""
    if tick.store.in_play().experiment.state == "halted":
        tick.store.resume(tick.clock())
    tick.begin()
    tick.store.note("daemon", f"started, pid {os.getpid()}", tick.clock())


def teller(folder: Path, life: int) -> Callable[..., None]:
    """Writes into the soak's journal; behind a line, too, that a kill has cut off."""
    journal = (folder / "journal.jsonl").open("a")

    def tell(**words: Any) -> None:
        journal.write(f"\n{json.dumps({'life': life, **words})}\n")
        journal.flush()

    return tell


def serve(folder: Path) -> int:
    life = Life(**json.loads((folder / "life.json").read_text()))
    draw = random.Random(f"{life.seed}/{life.number}")
    weather = Weather(life.seed, life.calm)
    clock = LastingClock(folder / "clock")
    booted = clock()
    state = StateFolder(folder / "state")
    tell = teller(folder, life.number)
    logging.basicConfig(filename=folder / "daemon.log", format="%(levelname)s %(message)s")
    logging.getLogger("nasd").setLevel(logging.INFO)
    disk = FullDisk(draw)
    for name in ("write", "write_atomically"):
        setattr(tick_module, name, disk.around(getattr(tick_module, name)))
    print("serving", flush=True)
    with daemon_lock.hold(state.lock):
        store = StoreOnDisk(state.database)
        store.disk = disk
        experiment = store.in_play().experiment
        baseline = store.in_play().baseline.genotype
        config = config_module.parse(experiment.config, "the database")

        def wall() -> float:
            return clock() + weather.ahead(clock())

        workers = Workers(
            clock,
            experiment.backbone,
            baseline,
            VOLUMES,
            life.machine,
            fate(life, Surrogate(experiment.backbone, baseline, experiment.seed, DIVERGING)),
            diverging=DIVERGING,
            leashed=life.leashed,
            metrics=False,
            wall=wall,
        )
        workers.tell = tell
        assert config.slots.devices != "auto"

        def health() -> Mapping[str, Gpu]:
            return {slot: weather.gpu(slot, clock()) for slot in config.slots.devices}

        tick = Tick(
            store,
            config,
            folder,
            state,
            tuple(config.slots.devices),
            workers,
            clock=wall,
            monotonic=lambda: clock() - booted,
            health=health,
            free_bytes=lambda path: int(weather.free(clock())),
        )
        begun, ahead = False, weather.ahead(clock())
        while True:
            turned = time.monotonic()
            try:
                workers.look()
                if not begun:
                    begin(tick)
                    begun = True
                tick()
            except Exception as error:  # as the daemon: reported, and tried again
                injected = disk.turns > 0 and is_full(error)
                tell(failed=repr(error), injected=injected, trace=traceback.format_exc())
            found = store.in_play()
            if found.experiment.state != "running" and begun:
                disk.turns = 0
                tick.stop()
                store.note("daemon", "stopped", tick.clock())
                return COMPLETE if found.experiment.state == "complete" else HALTED
            if not life.calm:
                disk.turns = max(0, disk.turns - 1)
                if not disk.turns and draw.random() < 0.02:
                    disk.turns = draw.randint(1, 4)
                    tell(fault="disk_full_for_turns")
                for one in mischief.ALL:
                    if draw.random() < 0.02 and (plan := one(state, found, draw, tick.clock())):
                        words, deed = plan
                        tell(fault=one.__name__, **words)
                        deed()
                time.sleep(0.002)
            then = clock() + STEP
            if not life.calm:
                then = min(then, clock() + life.pace * (time.monotonic() - turned))
            event = workers.next_event()
            if event is not None and event > clock():
                then = min(then, event)
            clock.advance_to(then)
            if weather.ahead(clock()) != ahead:
                ahead = weather.ahead(clock())
                tell(fault="clock_set", ahead=ahead)


def write_life(folder: Path, life: Life) -> None:
    (folder / "life.json").write_text(json.dumps(asdict(life)))


if __name__ == "__main__":
    sys.exit(serve(Path(sys.argv[1])))
