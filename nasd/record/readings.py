"""The search as views read it that are handed no database: by the store, or beside it."""

from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from nasd.record import snapshot
from nasd.record.state import Holdings, Selected, Snapshot


class Reads(Protocol):
    """What the store can read, see there."""

    def read(self) -> Snapshot: ...

    def lines(self, candidates: Iterable[int]) -> Snapshot: ...

    def selected(self) -> list[Selected]: ...

    def holdings(self) -> Holdings: ...


class Readings:
    """The same by a connection of its own each time, from any thread. Raises NasdError where the
    state folder holds no experiment, or nothing that can be read."""

    def __init__(self, state: Path) -> None:
        self._state = state

    def read(self) -> Snapshot:
        with snapshot.opened(self._state) as connection:
            return snapshot.read(connection)

    def lines(self, candidates: Iterable[int]) -> Snapshot:
        with snapshot.opened(self._state) as connection:
            return snapshot.read(connection, lines=candidates)

    def selected(self) -> list[Selected]:
        with snapshot.opened(self._state) as connection:
            return snapshot.selected(connection)

    def holdings(self) -> Holdings:
        with snapshot.opened(self._state) as connection:
            return snapshot.holdings(connection)
