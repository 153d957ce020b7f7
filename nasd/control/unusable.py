"""What keeps a daemon from its state folder: not writable, gone, on a full disk, damaged. And what
keeps it from its turns: a fault of its own.

Each is told in one sentence, once, where a person looks: in the log, and beside the daemon's lock,
where `nasd status` reads it, as nothing can be recorded meanwhile. Nothing is decided or started
until it is over; then the search goes on by itself.
"""

import errno
import logging
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from nasd.contract.errors import NasdError
from nasd.record.database_file import damaged
from nasd.record.folders import StateFolder

log = logging.getLogger("nasd")

LEAST_BYTES = 1 << 20  # that a turn of the daemon may want to write
AGAIN = "and the search goes on by itself"
LONGEST = 200  # characters of an error that are told
FULL = {errno.ENOSPC, errno.EDQUOT}


def unwritable(state: StateFolder) -> str | None:
    """Why nothing can be written to a state folder, as far as there is one; None if it can."""
    for path in (state.path, state.database, state.lock):
        if not path.exists():
            continue
        if os.statvfs(path).f_flag & os.ST_RDONLY:
            return f"{path} is on a file system that is read-only: make it writable"
        if not os.access(path, os.W_OK, effective_ids=True):
            return f"{path} cannot be written (permission denied): make it writable"
    return None


def fault(state: StateFolder, database: os.stat_result) -> str | None:
    """What stands in the way just now, and what to do; None: nothing.

    database: of the file that was opened when the daemon began.
    """
    for path in (state.path, state.database):
        if not path.exists():
            return f"{path} is gone: put it back, {AGAIN}"
    if not os.path.samestat(state.database.stat(), database):
        return f"{state.database} is another file than when nasd began: start nasd again"
    if (reason := unwritable(state)) is not None:
        return f"{reason}, {AGAIN}"
    room = os.statvfs(state.path)
    if room.f_bavail * room.f_frsize < LEAST_BYTES:
        return f"the disk of {state.path} is full: make room, {AGAIN}"
    return None


def in_words(state: StateFolder, error: Exception) -> str:
    """What an error of the database's or of the file system's means, and what to do."""
    if isinstance(error, NasdError):
        return str(error)
    if isinstance(error, sqlite3.Error):
        name = getattr(error, "sqlite_errorname", "")
        if name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
            return damaged(state.database, error)
        if name.startswith("SQLITE_FULL"):
            return f"the disk of {state.path} is full: make room, {AGAIN}"
        return f"{state.database} cannot be used ({error}): mend that, {AGAIN}"
    assert isinstance(error, OSError)
    if error.errno in FULL:
        return f"the disk of {state.path} is full: make room, {AGAIN}"
    if error.filename is None:
        return f"{error.strerror or error}: mend that, {AGAIN}"
    return f"{error.filename} cannot be used ({error.strerror}): mend that, {AGAIN}"


@contextmanager
def refused(state: StateFolder) -> Iterator[None]:
    """A context in which such an error is the user's to mend, and ends the command."""
    try:
        yield
    except (OSError, sqlite3.Error) as error:
        raise NasdError(in_words(state, error)) from error


class Trouble:
    """What is in the way from one turn to the next. say: where else than in the log it is told."""

    def __init__(self, state: StateFolder, say: Callable[[str], None]) -> None:
        self._state = state
        self._say = say
        self._database = state.database.stat()
        self.told = ""

    def turn(self, act: Callable[[], object]) -> None:
        """A turn, which is not begun where something is in its way. What comes of that is told, and
        not raised; what is no such thing, but a fault of nasd's own, is told and raised."""
        try:
            if (reason := fault(self._state, self._database)) is not None:
                raise NasdError(reason)
            act()
        except (OSError, sqlite3.Error, NasdError) as error:
            self._tell(self._now() or in_words(self._state, error))
        except Exception as error:
            said = " ".join(f"{type(error).__name__}: {error}".split())[:LONGEST]
            self._tell(f"{said}, a fault of nasd's own: report it with the log; it tries on")
            raise
        else:
            self._tell("")

    def _now(self) -> str | None:
        """What is behind an error says more than the file that it met."""
        with suppress(OSError):
            return fault(self._state, self._database)
        return None

    def _tell(self, text: str) -> None:
        before, self.told = self.told, text
        if text == before:
            return
        if text:
            log.error("nothing is decided or started: %s", text)
        else:
            log.info("%s can be used again: the search goes on", self._state.path)
        with suppress(OSError):  # it stands in the log
            self._say(text)
