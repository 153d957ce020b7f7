"""Sees to it that turns begin and end, on a clock that never jumps.

The scheduler runs on the wall clock: set that back an hour, and it would not turn for an hour. And
a turn may hang, on a disk or a driver that does not answer. A thread of its own notices both.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

log = logging.getLogger("nasd")


class Watchdog:
    """wake: makes the scheduler turn now; called where no turn has begun for `overdue` seconds.
    restart: called once a turn has lasted `hang` seconds; not expected to return."""

    def __init__(
        self, overdue: float, hang: float, wake: Callable[[], None], restart: Callable[[], None]
    ) -> None:
        self._overdue, self._hang = overdue, hang
        self._wake, self._restart = wake, restart
        self._turning = False
        self._since = time.monotonic()  # a turn's begin, or the end of the last one
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="watchdog")
        self._waker: threading.Thread | None = None

    @contextmanager
    def turn(self) -> Iterator[None]:
        self._turning, self._since = True, time.monotonic()
        try:
            yield
        finally:
            self._turning, self._since = False, time.monotonic()

    def __enter__(self) -> Self:
        self._since = time.monotonic()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()

    def _watch(self) -> None:
        while not self._ended.wait(min(1.0, self._overdue / 4, self._hang / 4)):
            turning, passed = self._turning, time.monotonic() - self._since
            if turning and passed > self._hang:
                log.critical("a turn hangs for %.0f s: the daemon begins anew, in place", passed)
                self._restart()
            elif not turning and passed > self._overdue and not self._waking():
                log.warning("no turn for %.0f s, the clock may have been set: turning now", passed)
                # Waking takes the scheduler's lock, which a turn holds: not from this thread.
                self._waker = threading.Thread(target=self._wake, daemon=True)
                self._waker.start()

    def _waking(self) -> bool:
        return self._waker is not None and self._waker.is_alive()
