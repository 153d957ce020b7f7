"""Whether this machine can carry a search through: what `nasd doctor` looks at, and what it says.

Each check is one function that returns what it found; none of them changes anything but the lock
file, which a daemon would write as well.
"""

import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from nasd import backups, daemon_lock, gpus, preflight, retention, slots, snapshot
from nasd.config import Config, check_against_slots, load
from nasd.errors import NasdError
from nasd.folders import StateFolder
from nasd.genotype import Backbone

GB = 1e9
Mark = Literal["good", "note", "bad"]


@dataclass(frozen=True)
class Finding:
    about: str
    mark: Mark
    text: str


def examine(path: Path) -> Iterator[Finding]:
    """The findings on a config and its machine, one after the other as they are made."""
    try:
        config = load(path)
    except NasdError as error:
        yield Finding("config", "bad", str(error))
        return
    folder = path.resolve().parent
    state = StateFolder(folder / config.experiment.state)
    yield Finding("config", "good", f"{path} is well-formed")
    devices: list[str] = []
    backbone: list[Backbone] = []
    checks: tuple[tuple[str, Callable[[], Iterator[Finding]]], ...] = (
        ("slots", lambda: _slots(config, path, devices)),
        ("state", lambda: _state(state)),
        ("experiment", lambda: _experiment(state, config, folder, path, backbone)),
        ("disk", lambda: _disk(state, config, backbone, len(devices))),
    )
    for about, check in checks:
        try:
            yield from check()
        except NasdError as error:
            yield Finding(about, "bad", str(error))


def _slots(config: Config, path: Path, devices: list[str]) -> Iterator[Finding]:
    if config.slots.devices != "auto":
        devices += config.slots.devices  # for what comes, also where one of them is missing
    devices[:] = slots.devices(config.slots)
    names = {f"cuda:{gpu['index']}": gpu for gpu in gpus.list_gpus()} if _on_gpus(devices) else {}
    for device in devices:
        if device in names:
            gpu = names[device]
            yield Finding("slots", "good", f"{device}: {gpu['name']}, {gpu['memory'] / GB:.0f} GB")
    if not names:
        yield Finding("slots", "good", f"{len(devices)} CPU shares of {config.slots.threads} cores")
    check_against_slots(config, len(devices), str(path))


def _on_gpus(devices: list[str]) -> bool:
    return any(device.startswith("cuda") for device in devices)


def _state(state: StateFolder) -> Iterator[Finding]:
    if not state.path.exists():
        yield Finding("state", "note", f"{state.path} is not there yet: the first run makes it")
        return
    if daemon_lock.held(state.lock):
        yield Finding("state", "good", f"a daemon serves {state.path}")
        return
    try:
        with daemon_lock.hold(state.lock):
            yield Finding("state", "good", f"{state.path} can be written and locks")
    except OSError as error:
        yield Finding("state", "bad", f"{state.path} cannot be written: {error.strerror}")


def _experiment(
    state: StateFolder, config: Config, folder: Path, path: Path, backbone: list[Backbone]
) -> Iterator[Finding]:
    try:
        with snapshot.opened(state.path) as connection:
            found = snapshot.read(connection, whole=False)
            damage = _damage(connection)
    except snapshot.NoExperiment:
        seed = preflight.check(config, folder, str(path))
        backbone.append(seed.backbone)
        yield Finding("experiment", "good", "seed and data can be read; nothing has begun yet")
        return
    backbone.append(found.experiment.backbone)
    if damage:
        yield Finding(
            "database", "bad", f"{state.database} is damaged ({damage}): take a backup instead"
        )
    else:
        yield Finding("database", "good", f"{state.database} is sound")
    age = backups.age(state, time.time())
    if age is None:
        yield Finding("backup", "note", f"there is none in {state.backups} yet")
    else:
        late = age > 2 * 3600 * config.daemon.backup_hours
        yield Finding(
            "backup", "note" if late else "good", f"the newest is {age / 3600:.1f} hours old"
        )
    if found.experiment.state == "halted":
        yield Finding("experiment", "bad", f"halted: {found.experiment.reason}")
    if found.experiment.hold:
        yield Finding("experiment", "bad", f"on hold: {found.experiment.hold}")
    if found.experiment.pause:
        note = f"{found.experiment.pause} {found.experiment.pause_note}: `nasd resume` goes on"
        yield Finding("experiment", "note", note)
    for one in found.quarantine.values():
        yield Finding("slots", "bad", f"{one.slot} is left alone: {one.reason}")


def _damage(connection: sqlite3.Connection) -> str:
    """What SQLite finds wrong with the file, "" if nothing."""
    (answer,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    return "" if answer == "ok" else str(answer)


def _disk(
    state: StateFolder, config: Config, backbone: list[Backbone], slots: int
) -> Iterator[Finding]:
    home = next(path for path in (state.path, *state.path.parents) if path.exists())
    free = shutil.disk_usage(home).free
    reserve = config.daemon.disk_reserve_gb * GB
    if free < reserve:
        yield Finding(
            "disk",
            "bad",
            f"{home} has {free / GB:.1f} GB free, less than daemon.disk_reserve_gb ="
            f" {config.daemon.disk_reserve_gb:g}: nothing would start",
        )
    if not backbone or not slots:
        return
    bound = retention.bound(config, backbone[0], slots)
    there = _taken(state)
    fits = bound.total + reserve <= free + there
    yield Finding(
        "disk",
        "good" if fits else "note",
        f"weights and checkpoints take {bound.total / GB:.1f} GB at most: {bound.models} models of"
        f" up to {bound.largest_model / GB:.2f} GB, {bound.checkpoints / GB:.1f} GB of checkpoints;"
        f" they take {there / GB:.1f} GB now, and {free / GB:.1f} GB are free"
        + ("" if fits else ", so the search may have to stop and wait for space"),
    )


def _taken(state: StateFolder) -> int:
    """Bytes of weights and checkpoints that stand there now."""
    patterns = ("candidates/*/*/*", "attempts/*/result/*", "attempts/*/checkpoints/*/*")
    return sum(path.stat().st_size for pattern in patterns for path in state.path.glob(pattern))


def verdict(findings: list[Finding]) -> str:
    bad = [one for one in findings if one.mark == "bad"]
    if bad:
        return f"not ready: mend what is marked, first of all {bad[0].about}"
    return "ready"


def render(findings: list[Finding]) -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 1))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    looks = {"good": ("ok", "green"), "note": ("note", "yellow"), "bad": ("BAD", "bold red")}
    for one in findings:
        word, style = looks[one.mark]
        table.add_row(Text(word, style=style), one.about, one.text)
    return table
