"""Applies what people ask of a running search: the daemon's side of nasd.record.requests.

A request is answered in one transaction with its effect, and only then removed. Whoever is killed
in between finds it answered, and removes it; so nothing is done twice.
"""

import json
import logging
import os
import sqlite3
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from nasd.contract.config import Config
from nasd.contract.errors import NasdError
from nasd.control import retention
from nasd.policy import steering
from nasd.policy.steering import (
    Accepted,
    Cut,
    Inject,
    Pause,
    Refused,
    Retry,
    Revive,
    SetBudget,
    Stop,
)
from nasd.record import requests
from nasd.record.folders import StateFolder
from nasd.record.lifecycle import Event
from nasd.record.requests import Request
from nasd.record.state import Attempt, Snapshot
from nasd.record.store import Store

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
        told: Callable[[], bool] = lambda: False,
    ) -> None:
        """end: ends a live attempt of a candidate that is cut, for this reason, within this
        transaction; raises NasdError if its processes do not die. told: whether the daemon has been
        told to leave; then what still waits does so until the next one."""
        self._store = store
        self._config = config
        self._state = state
        self._clock = clock
        self._end = end
        self._told = told
        self._search: Snapshot | None = None  # within a turn, until a request changes it
        self._put_off: set[Path] = set()

    def begin(self) -> None:
        """Once, when a daemon comes up: it is not the one that was to stop."""
        with suppress(OSError):  # who asks first makes it otherwise
            self._state.requests.mkdir(exist_ok=True)
        for path in requests.waiting(self._state.requests):
            try:
                request = requests.load(path)
            except Exception:  # set aside in the first turn
                continue
            if request.action == "stop" and not self._store.answered(request.id):
                self._refuse(request, "it was asked before this daemon began: ask again")
                with suppress(OSError):
                    path.unlink(missing_ok=True)

    def __call__(self) -> bool:
        """Answers every request that waits, in order; whether nasd is to leave."""
        leaves = False
        self._search = None
        for path in requests.waiting(self._state.requests):
            if self._told():
                break
            leaves = self._answer(path) or leaves
        self._search = None
        return leaves

    def _answer(self, path: Path) -> bool:
        leaves = False
        if not self._store.answered(requests.named(path)):
            try:
                request = requests.load(path)
            except Exception as error:  # whatever a file holds, the others are answered
                self._set_aside(path, error)
                return False
            try:
                meant = self._meant(request)
            except (OSError, sqlite3.Error):  # of the machine, and not of the request
                raise
            except Exception as error:
                self._set_aside(path, error)
                return False
            if isinstance(meant, Refused):
                self._refuse(request, str(meant))
            else:
                try:
                    self._apply(request, meant)
                except NasdError as error:  # it is tried again, and the others go on
                    if path not in self._put_off:
                        log.error("%s %s: not yet, %s", request.action, request.by, error)
                        self._put_off.add(path)
                    return False
                leaves = isinstance(meant.effect, Stop)
        with suppress(OSError):  # another user's folder: it stays, and counts for nothing
            path.unlink(missing_ok=True)
        return leaves

    def _meant(self, request: Request) -> Accepted | Refused:
        if self._search is None:
            self._search = self._store.read()
        try:
            return steering.answer(
                self._search, self._config, request, self._clock(), self._state.stands
            )
        except Refused as refusal:
            return refusal

    def _apply(self, request: Request, accepted: Accepted) -> None:
        now, effect = self._clock(), accepted.effect
        search, self._search = self._search, None
        answer = self._store.answer(request, True, accepted.text, now, request.candidate)
        if isinstance(effect, Cut) and effect.attempt is not None:
            self._end(effect.attempt, request.by, answer)
        else:
            with answer:
                self._write(request, effect, now)
        if search is not None and isinstance(effect, Pause | SetBudget | Stop):
            self._search = _after(search, effect, _pause_note(request, effect, now))
        if isinstance(effect, Cut):
            one = effect.candidate
            retention.clear(self._state, self._store.in_play(), one.id, one.stage)
        log.info("%s %s: %s", request.action, request.by, accepted.text)

    def _write(self, request: Request, effect: steering.Effect, now: float) -> None:
        match effect:
            case Pause(kind):
                self._store.pause(kind, _pause_note(request, effect, now))
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
        search = self._search or self._store.read()
        about = request.candidate if request.candidate in search.candidates else None
        with self._store.answer(request, False, reason, self._clock(), about):
            pass
        log.info("%s %s is refused: %s", request.action, request.by, reason)

    def _set_aside(self, path: Path, error: Exception) -> None:
        """A file that is no request is answered too, as far as one can."""
        if not os.path.lexists(path):  # withdrawn
            return
        text = str(error) if isinstance(error, NasdError) else type(error).__name__
        text = " ".join(text.split())[:LONGEST]
        self._store.refuse_damaged(requests.named(path), text, self._clock())
        log.warning("a request is refused: %s", text)
        with suppress(OSError):
            path.rename(path.with_suffix(".damaged"))


def _pause_note(request: Request, effect: steering.Effect, now: float) -> str:
    """Of a pause, by whom and since when."""
    if not isinstance(effect, Pause) or not effect.kind:
        return ""
    return f"{request.by} ({datetime.fromtimestamp(now, UTC):%Y-%m-%d %H:%M} UTC)"


def _after(search: Snapshot, effect: Pause | SetBudget | Stop, note: str) -> Snapshot:
    """What a snapshot taken behind it would say, as far as other requests ask."""
    match effect:
        case Pause(kind):
            changed = replace(search.experiment, pause=kind, pause_note=note)
        case SetBudget(gpu_hours):
            changed = replace(search.experiment, budget_set=json.dumps(gpu_hours))
        case Stop():
            changed = search.experiment
    return replace(search, experiment=changed)
