"""The long-running process: one lock, one store, one tick every few seconds."""

import itertools
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from apscheduler.events import EVENT_JOB_ERROR, JobExecutionEvent
from apscheduler.executors.debug import DebugExecutor
from apscheduler.jobstores.base import JobLookupError
from apscheduler.schedulers.blocking import BlockingScheduler

from nasd.contract.config import PREPARE, Config, check_against_slots, parse
from nasd.contract.errors import NasdError
from nasd.contract.protocol import write_atomically
from nasd.control import notify, preflight, unusable
from nasd.control.herald import Herald
from nasd.control.leaving import Leaving, Tell, on_stderr
from nasd.control.mirrors import Mirrors
from nasd.control.pictures import Artist, Beside, unseen
from nasd.control.tick import Tick
from nasd.control.watchdog import Watchdog
from nasd.launch import home, launchers
from nasd.launch.launcher import Entry
from nasd.record import daemon_lock, privacy, snapshot
from nasd.record.folders import StateFolder
from nasd.record.lifecycle import ExperimentState
from nasd.record.readings import Readings
from nasd.record.state import PAUSED, Snapshot
from nasd.record.store import Store

log = logging.getLogger("nasd")

Check = Callable[[Config, Path, preflight.Seed], None]

OVERDUE_SECONDS = 5.0  # beyond two intervals without a turn
FRESH = "--fresh"  # of `nasd run`, which sets aside what is there
MOVING = "moving"  # in old/: the name of the folder there that an experiment is moved to just now
HANG_SECONDS = 300.0  # after which a turn counts as hanging

# What may differ from what the experiment was begun with; all else would change its meaning.
MAY_CHANGE = (
    "slots",
    "slurm",
    "notify",
    "wandb",
    "mlflow",
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
    tell: Tell = on_stderr,
    artist: Artist = unseen,
    check: Check = lambda config, path, seed: None,
) -> bool:
    """Runs the search until it is complete, halted, or told to stop; whether it is complete.

    Begins the experiment if the state folder holds none, and goes on with it otherwise. With
    `fresh`, an experiment that is there is set aside first. `on_begin` is called once nothing
    stands in the way; `tell` has a line for whoever stops it; `artist` draws what people see of
    the search; `check` raises NasdError where a new search makes no sense by what it is forecast
    to take. Raises NasdError for whatever the user can mend, before anything is written.
    """
    with Leaving(config_path, tell) as leaving:
        return _run(config, config_path, fresh, on_begin, leaving, artist, check)


def _run(
    config: Config,
    config_path: Path,
    fresh: bool,
    on_begin: Callable[[], None],
    leaving: Leaving,
    artist: Artist,
    check: Check,
) -> bool:
    folder = config_path.resolve().parent
    state = StateFolder(folder / config.experiment.state)
    home.lend(state.home)
    _finish_aside(state)
    if not fresh:
        _bring_up_to_date(state)
    began = None if fresh else _began_with(state)
    kind = launchers.of(config.slots)
    slots = kind.devices(config, began is not None)
    if began is not None:
        _changes(began, state, config, config_path)
    else:
        check_against_slots(config, len({slot.device for slot in slots}), str(config_path))
    seed = preflight.check(config, folder, str(config_path)) if began is None else None
    if seed is not None:
        check(config, config_path, seed)
    try:
        privacy.make(state.path)
    except OSError as error:
        raise NasdError(
            f"{config_path}: experiment.state: {state.path} cannot be made: {error.strerror}"
        ) from error
    names = tuple(str(slot) for slot in slots)
    with ExitStack() as stack:
        if (reason := unusable.unwritable(state)) is not None:
            raise NasdError(reason)
        opened = stack.enter_context(privacy.kept(state.path))
        say = stack.enter_context(daemon_lock.hold(state.lock))
        if fresh and state.database.exists():
            with unusable.refused(state):
                set_aside(state)
        began = _began_with(state)  # once more: another daemon may just have left
        changed = "" if began is None else _changes(began, state, config, config_path)
        with unusable.refused(state):
            store = Store(state.database)
            stack.callback(store.close)
            store.check()
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
            _check_jobs(store, kind)
        on_begin()
        if opened:
            log.warning("%s", opened)
        assert kind.open is not None, f"a config names the launcher {config.slots.launcher}"
        # Before the pictures, and so let go after the last of them stands.
        mirrors = stack.enter_context(Mirrors(config, state, store.in_play().experiment))
        pictures = stack.enter_context(Beside(artist(state, Readings(state.path))))
        with unusable.refused(state):
            tick = Tick(
                *(store, config, folder, state, names),
                kind.open(config, state.path),
                leashed=kind.leashed,
                pictures=pictures,
            )
        tick.health = stack.enter_context(kind.health(names))
        tick.say = say
        tick.told = lambda: bool(leaving.told)
        return _serve(tick, leaving, mirrors)


def _check_jobs(store: Store, kind: Entry) -> None:
    """Raises NasdError where attempts still run that this kind of launcher cannot see."""
    jobs = [one.id for one in store.in_play().live_attempts if "job" in (one.process or {})]
    if kind.leashed and jobs:
        raise NasdError(
            f"slots.launcher: attempt {jobs[0]} and {len(jobs) - 1} others may still run as jobs of"
            ' a cluster: take launcher = "slurm" back, `nasd pause`, and then change it'
        )


def _serve(
    tick: Tick, leaving: Leaving | None = None, mirrors: Callable[[], None] = lambda: None
) -> bool:
    """Ticks until there is nothing more to do. On SIGTERM or SIGINT, attempts write a checkpoint
    and leave first."""
    # In this thread: the kernel kills a worker when the thread that started it ends.
    scheduler = BlockingScheduler(executors={"default": DebugExecutor()})
    if leaving is None:
        leaving = Leaving(tick.config_folder / "config.toml")
        leaving.listen()
    told = leaving.told
    begun = False
    failed = ""
    herald = Herald(tick.store, tick.config.notify, tick.state)
    trouble = unusable.Trouble(tick.state, tick.say)

    def leave_loop() -> None:
        if scheduler.running:
            scheduler.shutdown(wait=False)

    def act() -> None:
        nonlocal begun
        if not told:
            if not begun:
                _begin(tick)
                begun = True
            tick()
            herald()
            mirrors()
        if told or tick.leaves or not tick.store.in_play().experiment.runs:
            leave_loop()

    def turn() -> None:
        goes_on = True
        while goes_on:
            with watchdog.turn():
                trouble.turn(act)
            notify.notify(READY="1", WATCHDOG="1", STATUS=trouble.told or _in_words(tick))
            goes_on = tick.goes_on and scheduler.running and not trouble.told

    def report(event: JobExecutionEvent) -> None:
        nonlocal failed
        if leaving.aborted:  # which the scheduler takes for a fault of the turn
            return
        known, failed = failed, repr(event.exception)
        trace = "" if known == failed else f"\n{event.traceback}"  # once is enough
        log.error("a tick failed and is tried again: %s%s", failed, trace)

    leaving.serves(leave_loop, tick.config.daemon.stop_grace_seconds)
    scheduler.add_listener(report, EVENT_JOB_ERROR)
    # Late is better than never, and once is enough: nothing rests on the wall clock.
    interval = tick.config.daemon.tick_seconds
    job = scheduler.add_job(
        turn,
        "interval",
        seconds=interval,
        next_run_time=_now(),
        misfire_grace_time=None,
        coalesce=True,
        max_instances=1,
    )
    watchdog = Watchdog(
        overdue=2 * interval + OVERDUE_SECONDS,
        hang=HANG_SECONDS,
        wake=lambda: _turn_now(scheduler, job.id),
        restart=_restart,
    )
    with watchdog:
        try:
            scheduler.start()
        except JobLookupError:
            # Shut down from within its one job, it does not find that job again afterwards.
            if scheduler.running:
                raise
    if leaving.aborted:
        raise SystemExit(leaving.aborted)
    notify.notify(STOPPING="1", STATUS="attempts write their checkpoints")
    if told or tick.leaves:
        log.info("asked to stop: attempts write their checkpoints")
    with unusable.refused(tick.state):
        tick.stop()
        complete = tick.store.in_play().experiment.state is ExperimentState.COMPLETE
        tick.store.note("daemon", "stopped", time.time())
        herald()
    return complete


def _begin(tick: Tick) -> None:
    """Takes the search up. Within a turn, so that a disk that is full just now does not end it."""
    now = time.time()
    found = tick.store.in_play()
    done = -1 if found.generation is None else found.generation.number
    more = done < tick.config.experiment.generations
    if found.experiment.state is ExperimentState.HALTED or (
        found.experiment.state is ExperimentState.COMPLETE and more
    ):
        tick.store.resume(now)
    tick.begin()
    tick.store.note("daemon", f"started, pid {os.getpid()}, slots {' '.join(tick.slots)}", now)
    log.info("nasd serves %s with slots %s", tick.state.path, " ".join(tick.slots))
    if paused := _paused(found):
        log.warning("%s: nothing starts until `nasd resume`", paused)


def _in_words(tick: Tick) -> str:
    found = tick.store.in_play()
    if found.experiment.hold:
        return f"on hold: {found.experiment.hold}"
    if paused := _paused(found):
        return f"{paused}: {len(found.live_attempts)} attempts run"
    where = f"generation {found.generation.number}, " if found.generation else ""
    phase = found.generation.phase if found.generation else "baseline"
    return f"{found.experiment.state}: {where}{phase}, {len(found.live_attempts)} attempts run"


def _paused(found: Snapshot) -> str:
    said = PAUSED.get(found.experiment.pause)
    return f"{said} {found.experiment.pause_note}" if said else ""


def _now() -> datetime:
    return datetime.now().astimezone()


def _turn_now(scheduler: BlockingScheduler, job: str) -> None:
    with suppress(JobLookupError):  # it has just left
        scheduler.modify_job(job, next_run_time=_now())


def _restart() -> None:
    """This process from its beginning, with the same number: whatever hung in it is gone, the
    workers end with it and are resumed, and it needs nobody to start it again."""
    os.execv(sys.executable, [sys.executable, *goes_on(sys.orig_argv[1:])])


def goes_on(command: Sequence[str]) -> list[str]:
    """The command line of a daemon that begins anew in its own place: with the search that it
    serves, also where it was told to set another one aside first."""
    return [one for one in command if one != FRESH]


def set_aside(state: StateFolder) -> Path:
    """Moves an experiment out of the way, whole but for the cache, which the next one may use."""
    folder, moment = state.path / "old", time.strftime("%Y%m%d-%H%M%S")
    names = itertools.chain([moment], (f"{moment}-{again}" for again in itertools.count(2)))
    old = next(folder / name for name in names if not (folder / name).exists())
    old.mkdir(parents=True)
    write_atomically(folder / MOVING, old.name.encode())
    return _move_aside(state, old)


def _move_aside(state: StateFolder, old: Path) -> Path:
    for path in sorted(state.path.iterdir()):
        if path.name not in ("old", "cache", state.lock.name, ".gitkeep"):
            path.rename(old / path.name)
    (old.parent / MOVING).unlink()
    return old


def _finish_aside(state: StateFolder) -> None:
    """Goes on with a move that was killed: half of it would be a search without its weights."""
    moving = state.path / "old" / MOVING
    if moving.exists():
        with daemon_lock.hold(state.lock), unusable.refused(state):
            _move_aside(state, moving.with_name(moving.read_text()))


def _bring_up_to_date(state: StateFolder) -> None:
    """The database of an older nasd, after a backup; nothing else can read it before."""
    try:
        with snapshot.opened(state.path):
            return
    except snapshot.NoExperiment:
        return
    except snapshot.OlderSchema as older:
        log.warning("%s", older)
        with daemon_lock.hold(state.lock), unusable.refused(state):
            Store(state.database).close()


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
    began = _as_json(parse(dict(began), str(state.path)))  # a key that came later has its default
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
