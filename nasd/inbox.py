"""Applies what people ask of a running search: the daemon's side of nasd.requests.

A request is answered in one transaction with its effect, and only then removed. Whoever is killed
in between finds it answered, and removes it; so nothing is done twice.
"""

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from datetime import UTC, datetime
from pathlib import Path

from nasd import requests, retention, steering
from nasd.config import Config
from nasd.errors import NasdError
from nasd.folders import StateFolder
from nasd.lifecycle import Event
from nasd.requests import Request
from nasd.snapshot import Attempt
from nasd.steering import Accepted, Cut, Inject, Pause, Refused, Retry, Revive, SetBudget, Stop
from nasd.store import Store

log = logging.getLogger("nasd")

LONGEST = 300  # characters of an error that an answer repeats


class Inbox:
    """Called once a turn."""

    def __init__(
        self,
        store: Store,
        config: Config,
        state: StateFolder,
        clock: Callable[[], float],
        end: Callable[[Attempt, str, AbstractContextManager[None]], None],
    ) -> None:
        """end: ends a live attempt of a candidate that is cut, for this reason, within this
        transaction; raises NasdError if its processes do not die."""
        self._store = store
        self._config = config
        self._state = state
        self._clock = clock
        self._end = end
        self._put_off: set[Path] = set()

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
                accepted = steering.answer(
                    self._store.read(), self._config, request, self._clock(), self._state.stands
                )
            except Refused as refusal:
                self._refuse(request, str(refusal))
            else:
                try:
                    self._apply(request, accepted)
                except NasdError as error:  # it is tried again, and the others go on
                    if path not in self._put_off:
                        log.error("%s %s: not yet, %s", request.action, request.by, error)
                        self._put_off.add(path)
                    return False
                leaves = isinstance(accepted.effect, Stop)
        with suppress(OSError):  # another user's folder: it stays, and counts for nothing
            path.unlink(missing_ok=True)
        return leaves

    def _apply(self, request: Request, accepted: Accepted) -> None:
        now, effect = self._clock(), accepted.effect
        answer = self._store.answer(request, True, accepted.text, now, request.candidate)
        if isinstance(effect, Cut) and effect.attempt is not None:
            self._end(effect.attempt, request.by, answer)
        else:
            with answer:
                self._write(request, effect, now)
        if isinstance(effect, Cut):
            one = effect.candidate
            retention.clear(self._state, self._store.in_play(), one.id, one.stage)
        log.info("%s %s: %s", request.action, request.by, accepted.text)

    def _write(self, request: Request, effect: steering.Effect, now: float) -> None:
        match effect:
            case Pause(kind):
                since = f"{datetime.fromtimestamp(now, UTC):%Y-%m-%d %H:%M} UTC"
                self._store.pause(kind, f"{request.by} ({since})" if kind else "")
            case SetBudget(gpu_hours):
                self._store.set_budget(gpu_hours)
            case Retry(candidate):
                self._store.retry(candidate, request.by, now)
            case Cut(candidate, _):
                self._store.advance(candidate.id, Event.CUT, now, detail=request.by)
            case Revive(stages):
                self._store.revive(stages, request.by, now)
            case Inject(genotype):
                self._store.inject(genotype, request.id)

    def _refuse(self, request: Request, reason: str) -> None:
        known = request.candidate in self._store.read().candidates
        about = request.candidate if known else None
        with self._store.answer(request, False, reason, self._clock(), about):
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
