"""Asks something of a search: checks whether it can be, files it, and waits for the answer."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nasd.contract import config as config_module
from nasd.contract.config import Config
from nasd.contract.errors import NasdError
from nasd.policy import steering
from nasd.record import daemon_lock, lookup, requests, snapshot
from nasd.record.folders import StateFolder
from nasd.record.requests import Action, Request

LOOK_SECONDS = 0.1
PATIENCE_SECONDS = 15.0  # beyond two turns: a turn may write a backup


def check(state: Path, action: Action, settings: Config, **arguments: Any) -> None:
    """Raises NasdError if this would be refused just now."""
    with snapshot.opened(state) as connection:
        found = snapshot.read(connection)
    request = requests.new(action, **arguments)
    steering.answer(found, settings, request, time.time(), StateFolder(state).stands)


def ask(
    state: Path,
    action: Action,
    why: str = "",
    wait: bool = True,
    settings: Config | None = None,
    who: str = "",
    **arguments: Any,
) -> str:
    """What came of it, in words; raises NasdError if it is refused.

    arguments: of nasd.record.requests.Request. Not wait: the daemon's answer is not waited for.
    settings: that the next daemon will have, where none serves; by default those of the last one.
    who: the candidate that it is about, by any name that nasd.record.lookup knows.
    """
    folder = StateFolder(state)
    with snapshot.opened(state) as connection:
        found = snapshot.read(connection)
    if who:
        arguments["candidate"] = lookup.find(found, who).id
    request = requests.new(action, why, **arguments)
    served = daemon_lock.held(folder.lock)
    if served or settings is None:
        settings = config_module.parse(found.experiment.config, str(state))
    if action == "stop" and not served:
        raise NasdError(f"no daemon serves {state}: there is nothing to stop")
    waiting = requests.waiting(folder.requests)
    if action == "inject" and waiting:
        steering.check_injected(found, settings, arguments["genotype"])
    if not waiting:  # what is possible may change with those before it
        steering.answer(found, settings, request, time.time(), folder.stands)
    requests.file(folder.requests, request)
    if not served:
        return f"no daemon serves {state}: this waits there until `nasd run`"
    if not wait:
        return "asked: the daemon reads it in its next turn"
    patience = PATIENCE_SECONDS + 2 * settings.daemon.tick_seconds
    return _answer(folder, request, time.monotonic() + patience)


def _answer(folder: StateFolder, request: Request, end: float) -> str:
    served: Callable[[], bool] = lambda: daemon_lock.held(folder.lock)  # noqa: E731
    while (serves := served()) and time.monotonic() < end:
        if (said := _said(folder, request)) is not None:
            return said
        time.sleep(LOOK_SECONDS)
    if (said := _said(folder, request)) is not None:
        return said
    if serves:
        return "the daemon has not answered yet: it will, and `nasd status` tells of it"
    if request.action == "stop":  # not the next one
        requests.place(folder.requests, request).unlink(missing_ok=True)
        return "the daemon has just left by itself"
    return "the daemon has just left: this waits until `nasd run`"


def _said(folder: StateFolder, request: Request) -> str | None:
    """The recorded answer; raises NasdError if that is a refusal, None if there is none yet."""
    with snapshot.opened(folder.path) as connection:
        found = snapshot.answer(connection, request.id)
    if found is None:
        return None
    accepted, text = found
    if not accepted:
        raise NasdError(f"refused: {text}")
    return text
