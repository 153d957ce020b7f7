"""What the daemon lets people see of the search. A view draws it; the daemon is handed it, and
knows only this. It is drawn beside the turns, which decide: none waits for it."""

import logging
import threading
from collections.abc import Callable, Iterable
from typing import Protocol, Self

from nasd.record.folders import StateFolder
from nasd.record.readings import Reads

PAUSE_SECONDS = 0.5  # for what a turn asks for piece by piece; by then it is over
LEAVING_SECONDS = 30.0  # for what is still to be drawn when the daemon leaves

log = logging.getLogger("nasd")


class Pictures(Protocol):
    """A function of the database alone, so that what a kill kept from being drawn can be drawn
    later."""

    def show(
        self, candidates: Iterable[int], generations: Iterable[int] = (), search: bool = False
    ) -> None:
        """These candidates as they stand, what was decided in these generations, and the search as
        a whole."""


Artist = Callable[[StateFolder, Reads], Pictures]


class Unseen:
    """No pictures, as for a search that is only simulated."""

    def show(
        self, candidates: Iterable[int], generations: Iterable[int] = (), search: bool = False
    ) -> None:
        pass


def unseen(state: StateFolder, store: Reads) -> Pictures:
    return Unseen()


class Beside:
    """Draws in a thread of its own, a moment later: so not in the turn that asks, and all that it
    asks for in one go, as is what comes while it draws. What failed is raised where the next
    picture is asked for.

    pictures: their artist reads the database through connections of its own.
    """

    def __init__(self, pictures: Pictures) -> None:
        self._pictures = pictures
        self._changed = threading.Condition()
        self._candidates: set[int] = set()
        self._generations: set[int] = set()
        self._search = False
        self._draws = False
        self._leaves = self._hurried = False
        self._failed: Exception | None = None  # and what was not drawn for it
        self._missed: tuple[Iterable[int], Iterable[int], bool] = (), (), False
        self._thread = threading.Thread(target=self._work, name="pictures", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        done = self.wait(LEAVING_SECONDS)
        with self._changed:
            self._leaves = True
            self._changed.notify_all()
        if not done or self._failed is not None:
            why = f" ({self._failed})" if self._failed is not None else ""
            log.warning(
                "TensorBoard's files are not up to date%s: the next `nasd run` writes them", why
            )

    def show(
        self, candidates: Iterable[int], generations: Iterable[int] = (), search: bool = False
    ) -> None:
        with self._changed:
            failed, self._failed = self._failed, None
            for one in (self._missed, (candidates, generations, search)):
                self._candidates.update(one[0])
                self._generations.update(one[1])
                self._search = self._search or one[2]
            self._missed = (), (), False
            self._changed.notify_all()
        if failed is not None:
            raise failed

    def wait(self, seconds: float) -> bool:
        """Until all is drawn; whether it is."""
        with self._changed:
            self._hurried = True
            self._changed.notify_all()
            return self._changed.wait_for(lambda: not (self._asked or self._draws), seconds)

    @property
    def _asked(self) -> bool:
        return bool(self._candidates or self._generations or self._search)

    def _work(self) -> None:
        while True:
            with self._changed:
                self._draws, self._hurried = False, self._hurried and self._asked
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._asked or self._leaves)
                self._changed.wait_for(lambda: self._leaves or self._hurried, PAUSE_SECONDS)
                if self._leaves:
                    return
                given = sorted(self._candidates), sorted(self._generations), self._search
                self._candidates, self._generations, self._search = set(), set(), False
                self._draws = True
            try:
                self._pictures.show(*given)
            except Exception as error:
                with self._changed:
                    self._failed, self._missed = error, given
