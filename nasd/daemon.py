"""The long-running process: one lock, one store, one tick every few seconds."""

import logging
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from apscheduler.events import EVENT_JOB_ERROR, JobExecutionEvent
from apscheduler.executors.debug import DebugExecutor
from apscheduler.jobstores.base import JobLookupError
from apscheduler.schedulers.blocking import BlockingScheduler

from nasd import daemon_lock, preflight, slots, snapshot
from nasd.config import PREPARE, Config, check_against_slots
from nasd.errors import NasdError
from nasd.folders import StateFolder
from nasd.store import Store
from nasd.tick import Tick

log = logging.getLogger("nasd")

# What may differ from what the experiment was begun with; all else would change its meaning.
MAY_CHANGE = (
    "slots",
    "daemon",
    "experiment.state",
    "experiment.generations",
    "experiment.budget_gpu_hours",
)


def run(
    config: Config,
    config_path: Path,
    fresh: bool = False,
    on_begin: Callable[[], None] = lambda: None,
) -> bool:
    """Runs the search until it is complete, halted, or told to stop; whether it is complete.

    Begins the experiment if the state folder holds none, and goes on with it otherwise. With
    `fresh`, an experiment that is there is set aside first. `on_begin` is called once nothing
    stands in the way. Raises NasdError for whatever the user can mend, before anything is written.
    """
    folder = config_path.resolve().parent
    state = StateFolder(folder / config.experiment.state)
    devices = slots.devices(config.slots)
    check_against_slots(config, len(devices), str(config_path))
    began = None if fresh else _began_with(state)
    if began is not None:
        _changes(began, state, config, config_path)
    seed = preflight.check(config, folder, str(config_path)) if began is None else None
    try:
        state.path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise NasdError(
            f"{config_path}: experiment.state: {state.path} cannot be made: {error.strerror}"
        ) from error
    with daemon_lock.hold(state.lock):
        if fresh and state.database.exists():
            set_aside(state)
        began = _began_with(state)  # once more: another daemon may just have left
        changed = "" if began is None else _changes(began, state, config, config_path)
        store = Store(state.database)
        try:
            if changed:
                store.change_config(_as_json(config), changed, time.time())
            if seed is not None and began is None:
                store.create_experiment(
                    config.experiment.name,
                    config.experiment.seed,
                    _as_json(config),
                    seed.backbone,
                    seed.baseline,
                    PREPARE,
                    time.time(),
                )
            on_begin()
            launcher = slots.LocalLauncher(config.slots.threads)
            return _serve(Tick(store, config, folder, state, devices, launcher))
        finally:
            store.close()


def _serve(tick: Tick) -> bool:
    """Ticks until there is nothing more to do. On SIGTERM or SIGINT, attempts write a checkpoint
    and leave first."""
    now = time.time()
    snap = tick.store.read()
    more = len(snap.generations) <= tick.config.experiment.generations
    if snap.experiment.state == "halted" or (snap.experiment.state == "complete" and more):
        tick.store.resume(now)
    tick.store.note("daemon", f"started, pid {os.getpid()}, slots {' '.join(tick.slots)}", now)
    log.info("nasd serves %s with slots %s", tick.state.path, " ".join(tick.slots))
    # In this thread: the kernel kills a worker when the thread that started it ends.
    scheduler = BlockingScheduler(executors={"default": DebugExecutor()})
    told: list[int] = []

    def leave_loop() -> None:
        if scheduler.running:
            scheduler.shutdown(wait=False)

    def turn() -> None:
        if not told:
            tick()
        if told or tick.store.read().experiment.state != "running":
            leave_loop()

    def leave(number: int, frame: object) -> None:
        if told:
            raise SystemExit(128 + number)  # asked twice: leave without the grace period
        told.append(number)
        leave_loop()

    def report(event: JobExecutionEvent) -> None:
        log.error("a tick failed and is tried again: %r\n%s", event.exception, event.traceback)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, leave)
    scheduler.add_listener(report, EVENT_JOB_ERROR)
    # Late is better than never, and once is enough: nothing rests on the wall clock.
    scheduler.add_job(
        turn,
        "interval",
        seconds=tick.config.daemon.tick_seconds,
        next_run_time=datetime.now().astimezone(),
        misfire_grace_time=None,
        coalesce=True,
        max_instances=1,
    )
    try:
        scheduler.start()
    except JobLookupError:
        # Shut down from within its one job, it does not find that job again afterwards.
        if scheduler.running:
            raise
    if told:
        log.info("asked to stop: attempts write their checkpoints")
    tick.stop()
    complete = tick.store.read().experiment.state == "complete"
    tick.store.note("daemon", "stopped", time.time())
    return complete


def set_aside(state: StateFolder) -> Path:
    """Moves an experiment out of the way, whole but for the cache, which the next one may use."""
    old = state.path / "old" / time.strftime("%Y%m%d-%H%M%S")
    old.mkdir(parents=True)
    for path in sorted(state.path.iterdir()):
        if path.name not in ("old", "cache", state.lock.name, ".gitkeep"):
            path.rename(old / path.name)
    return old


def _began_with(state: StateFolder) -> dict[str, Any] | None:
    """The config of the experiment in the state folder; None if there is none, or only a database
    that was killed on its way to the first row. Raises NasdError if the database is not nasd's."""
    try:
        with snapshot.opened(state.path) as connection:
            return snapshot.read(connection).experiment.config
    except snapshot.NoExperiment:
        return None


def _changes(began: Mapping[str, Any], state: StateFolder, config: Config, origin: Path) -> str:
    """What differs from the config that the experiment was begun with, in words; raises NasdError
    if it is anything that may not change."""
    changes = []
    for key, there, here in _differences(began, _as_json(config)):
        if not any(key == allowed or key.startswith(f"{allowed}.") for allowed in MAY_CHANGE):
            raise NasdError(
                f"{state.path} holds another experiment: {key} is {_shown(there)} there and"
                f" {_shown(here)} in {origin}; take the value back, or choose another"
                " experiment.state"
            )
        changes.append(f"{key}: {_shown(there)} to {_shown(here)}")
    return ", ".join(changes)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _as_json(config: Config) -> dict[str, Any]:
    return config.model_dump(mode="json", by_alias=True)


def _differences(one: Any, other: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        for name in sorted({*one, *other}):
            below = f"{key}.{name}" if key else str(name)
            yield from _differences(one.get(name), other.get(name), below)
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for index, (here, there) in enumerate(zip(one, other, strict=True)):
            name = here.get("name") if isinstance(here, Mapping) else None
            below = f"{key}.{name}" if name else f"{key}[{index}]"
            yield from _differences(here, there, below)
    elif one != other:
        yield key, one, other
