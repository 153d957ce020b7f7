"""Applies what people ask of a running search: the daemon's side of nasd.requests.

A request is answered in one transaction with its effect, and only then removed. Whoever is killed
in between finds it answered, and removes it; so nothing is done twice.
"""

import logging
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from nasd import requests, steering
from nasd.config import Config
from nasd.errors import NasdError
from nasd.folders import StateFolder
from nasd.requests import Request
from nasd.steering import Accepted, Pause, Refused, SetBudget, Stop
from nasd.store import Store

log = logging.getLogger("nasd")

LONGEST = 300  # characters of an error that an answer repeats


class Helm:
    """Called once a turn."""

    def __init__(
        self, store: Store, config: Config, state: StateFolder, clock: Callable[[], float]
    ) -> None:
        self._store = store
        self._config = config
        self._state = state
        self._clock = clock

    def begin(self) -> None:
        """Once, when a daemon comes up: it is not the one that was to stop."""
        with suppress(OSError):  # who asks first makes it otherwise
            self._state.requests.mkdir(exist_ok=True)
        for path in requests.waiting(self._state.requests):
            with suppress(NasdError):
                request = requests.load(path)
                if request.action == "stop" and not self._store.answered(request.id):
                    self._refuse(request, "it was asked before this daemon began: ask again")
                    path.unlink(missing_ok=True)

    def __call__(self) -> bool:
        """Answers every request that waits, in order; whether nasd is to leave."""
        leaves = False
        for path in requests.waiting(self._state.requests):
            leaves = self._answer(path) or leaves
        return leaves

    def _answer(self, path: Path) -> bool:
        leaves = False
        if not self._store.answered(path.stem):
            try:
                request = requests.load(path)
            except NasdError as error:
                self._set_aside(path, error)
                return False
            try:
                accepted = steering.answer(self._store.read(), self._config, request, self._clock())
            except Refused as refusal:
                self._refuse(request, str(refusal))
            else:
                self._apply(request, accepted)
                leaves = isinstance(accepted.effect, Stop)
        with suppress(OSError):  # another user's folder: it stays, and counts for nothing
            path.unlink(missing_ok=True)
        return leaves

    def _apply(self, request: Request, accepted: Accepted) -> None:
        now = self._clock()
        with self._store.answer(request, True, accepted.text, now):
            match accepted.effect:
                case Pause(kind):
                    since = f"{datetime.fromtimestamp(now, UTC):%Y-%m-%d %H:%M} UTC"
                    self._store.pause(kind, f"{request.by} ({since})" if kind else "")
                case SetBudget(gpu_hours):
                    self._store.set_budget(gpu_hours)
        log.info("%s %s: %s", request.action, request.by, accepted.text)

    def _refuse(self, request: Request, reason: str) -> None:
        with self._store.answer(request, False, reason, self._clock()):
            pass
        log.info("%s %s is refused: %s", request.action, request.by, reason)

    def _set_aside(self, path: Path, error: NasdError) -> None:
        """A file that is no request is answered too, as far as one can."""
        if not path.exists():  # withdrawn
            return
        text = " ".join(str(error).split())[:LONGEST]
        self._store.refuse_damaged(path.stem, text, self._clock())
        log.warning("a request is refused: %s", text)
        with suppress(OSError):
            path.rename(path.with_suffix(".damaged"))
