"""What a turn lets people see of the search. A view draws it; the daemon is handed it, and knows
only this."""

from collections.abc import Callable
from typing import Protocol

from nasd.record.folders import StateFolder
from nasd.record.store import Store


class Pictures(Protocol):
    """Each is a function of the database alone, so that a kill loses none."""

    def show(self, candidate: int) -> None:
        """A candidate, as it stands."""

    def show_all(self) -> None:
        """All that is in play, and what was decided."""

    def show_search(self) -> None:
        """The search as a whole."""


Artist = Callable[[StateFolder, Store], Pictures]


class Unseen:
    """No pictures, as for a search that is only simulated."""

    def show(self, candidate: int) -> None:
        pass

    def show_all(self) -> None:
        pass

    def show_search(self) -> None:
        pass


def unseen(state: StateFolder, store: Store) -> Pictures:
    return Unseen()
