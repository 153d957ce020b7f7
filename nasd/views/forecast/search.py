"""The simulated search: all of nasd but its workers, in virtual time and in a temporary folder."""

import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from nasd.contract import readable
from nasd.contract.config import PREPARE, Config
from nasd.contract.errors import NasdError
from nasd.control.tick import Tick
from nasd.estimate.recorded import Table
from nasd.launch.simulated import SimulatedLauncher
from nasd.record.folders import StateFolder
from nasd.record.lifecycle import ExperimentState
from nasd.record.state import Snapshot
from nasd.record.store import Store
from nasd.views.forecast.premises import Subject
from nasd.views.forecast.virtual_time import VirtualClock, run

Progress = Callable[[str], None]
# Where files are of memory: nothing of a simulation has to outlive it, and a disk that many use
# makes it ten times as long. With less free than that it is left to others.
MEMORY, LEAST_FREE = "/dev/shm", 2e9


@dataclass(frozen=True)
class Run:
    """What became of one simulated search. Times are virtual seconds since its beginning."""

    seed: int
    began: float
    ended: float
    snapshot: Snapshot


def simulate(
    config: Config, subject: Subject, seed: int, progress: Progress, curves: Table | None = None
) -> Run:
    """The whole search of the config with another search seed, without a budget. curves: recorded
    ones, in the place of made-up ones."""
    experiment = config.experiment.model_copy(update={"seed": seed, "budget_gpu_hours": None})
    config = config.model_copy(update={"experiment": experiment})
    clock = VirtualClock()
    began = clock()
    with tempfile.TemporaryDirectory(prefix="nasd-simulate-", dir=_place()) as folder, _silence():
        state = StateFolder(Path(folder) / "state")
        store = Store(state.database)
        try:
            store.create_experiment(
                config.experiment.name,
                seed,
                config.model_dump(mode="json", by_alias=True),
                subject.seed.backbone,
                subject.seed.baseline,
                PREPARE,
                began,
            )
            launcher = SimulatedLauncher(
                clock,
                subject.seed.backbone,
                subject.seed.baseline,
                subject.volumes,
                subject.machine,
                has_mlm_head=subject.seed.has_mlm_head,
                metrics=False,
                curves=curves,
            )
            tick = Tick(
                store,
                config,
                Path(folder),
                state,
                subject.slots,
                launcher,
                clock,
                monotonic=clock,
                free_bytes=lambda path: 1 << 60,
            )
            end = run(
                tick,
                clock,
                launcher,
                progress=lambda snap, now: progress(_where(snap, now - began)),
            )
        finally:
            store.close()
    if end.experiment.state is not ExperimentState.COMPLETE:
        raise NasdError(f"the simulated search does not get to its end: {end.experiment.reason}")
    return Run(seed, began, clock(), end)


def _place() -> str | None:
    """Where its folder is made; None: where temporary ones are."""
    if "TMPDIR" in os.environ or not os.access(MEMORY, os.W_OK | os.X_OK):
        return None
    return MEMORY if shutil.disk_usage(MEMORY).free > LEAST_FREE else None


def _where(snap: Snapshot, seconds: float) -> str:
    generation = snap.generation
    at = "the baseline" if generation is None else f"generation {generation.number}"
    return f"{at}, {readable.duration(seconds)}"


@contextmanager
def _silence() -> Iterator[None]:
    """What the simulated search logs is no news."""
    log = logging.getLogger("nasd")
    level = log.level
    log.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        log.setLevel(level)
