"""Tells people what they have to know without looking: a halt, a selected generation, the end.

What is told are events of the record, each once: the number of the last one told stands in a file,
so a daemon that is killed in between has the next one tell it. Whoever tells is a process of its
own, which no turn waits for, and which may outlive the daemon: its last word is of that.
"""

import json
import logging
import subprocess
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from nasd.contract.config import Notify
from nasd.contract.protocol import write_atomically
from nasd.launch import interpreter
from nasd.record.folders import StateFolder
from nasd.record.state import LoggedEvent, Snapshot
from nasd.record.store import Store

log = logging.getLogger("nasd")

MOST = 20  # events told at once: who was away for long is not flooded


@dataclass(frozen=True)
class Kind:
    """What is told under a name of `notify.on`. is_it: of an event. words: for it."""

    is_it: Callable[[LoggedEvent], bool]
    words: Callable[[LoggedEvent, Snapshot], str]


KINDS: Mapping[str, Kind] = {
    "halt": Kind(lambda one: one.event == "halted", lambda one, found: f"has halted: {one.detail}"),
    "end": Kind(lambda one: one.event == "complete", lambda one, found: "is complete"),
    "generation": Kind(
        lambda one: one.event == "phase" and one.detail.endswith(": complete"),
        lambda one, found: f"has selected: {one.detail}{_best(found)}",
    ),
    "hold": Kind(lambda one: one.event == "hold", lambda one, found: f"is on hold: {one.detail}"),
}


def _best(found: Snapshot) -> str:
    """How good the best one is by now, in words."""
    qualities = [q for one in found.individuals if (q := found.quality(one.id)) is not None]
    return f", {found.quality_words} {max(qualities):.2f} at best" if qualities else ""


class Herald:
    """Called after each turn."""

    def __init__(self, store: Store, settings: Notify, state: StateFolder) -> None:
        self._store = store
        self._settings = settings
        self._path = state.path / "told"
        self._state = state
        self._telling: list[subprocess.Popen[bytes]] = []
        self._told = self._known()

    def __call__(self) -> None:
        """Nothing that goes wrong with telling is in the way of a search."""
        if self._settings.command or self._settings.webhook:
            try:
                self._look()
            except OSError as error:
                log.warning("nobody was told: %s", error)

    def _look(self) -> None:
        self._reap()
        newest = self._store.newest_event()
        if newest <= self._told:
            return
        found = [
            (name, event)
            for event in self._store.events_after(self._told)
            for name in self._settings.on
            if KINDS[name].is_it(event)
        ]
        # Before they are told: twice would be worse than not at all, where telling itself fails.
        write_atomically(self._path, str(newest).encode())
        self._told = newest
        if found:
            snapshot = self._store.read()
            for name, event in found[-MOST:]:
                try:
                    self._tell(self._message(name, event, snapshot))
                except OSError as error:  # one that is lost takes no other along
                    log.warning("nobody was told: %s", error)

    def _known(self) -> int:
        """The last event that was told; of a search that has told none yet, the newest."""
        try:
            return int(self._path.read_text())
        except (OSError, ValueError):
            newest = self._store.newest_event()
            if self._settings.command or self._settings.webhook:
                with suppress(OSError):
                    write_atomically(self._path, str(newest).encode())
            return newest

    def _message(self, name: str, event: LoggedEvent, found: Snapshot) -> dict[str, Any]:
        text = f"{found.experiment.name} {KINDS[name].words(event, found)}"
        return {
            "text": text,  # what chat services show
            "event": name,
            "experiment": found.experiment.name,
            "detail": event.detail,
            "at": event.at,
            "generation": found.generation.number if found.generation else None,
            "hours": found.gpu_hours(event.at),
            "state": str(self._state.path),
        }

    def _tell(self, message: Mapping[str, Any]) -> None:
        teller = subprocess.Popen(
            interpreter.command("nasd.launch.tell"),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=interpreter.environment(),
            start_new_session=True,
        )
        asked = {
            "command": list(self._settings.command),
            "webhook": self._settings.webhook,
            "message": message,
        }
        assert teller.stdin is not None
        teller.stdin.write(json.dumps(asked).encode())
        teller.stdin.close()
        self._telling.append(teller)

    def _reap(self) -> None:
        for teller in list(self._telling):
            if teller.poll() is None:
                continue
            self._telling.remove(teller)
            assert teller.stderr is not None
            with teller.stderr as said:
                words = said.read().decode(errors="replace").strip()
            if teller.returncode:
                log.warning("nobody was told: %s", words.splitlines()[-1] if words else "no word")
