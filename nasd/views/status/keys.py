"""Keys as they are pressed on the terminal, which is given back as it was."""

import os
import re
import select
import signal
import sys
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Protocol

NAMES = {
    b"\x1b[A": "up",
    b"\x1b[B": "down",
    b"\x1bOA": "up",
    b"\x1bOB": "down",
    b"\x1b[D": "back",
    b"\x1bOD": "back",
    b"\x1b[5~": "page up",
    b"\x1b[6~": "page down",
    b"\x1b": "back",
    b"\r": "enter",
    b"\n": "enter",
}
SEQUENCE = re.compile(rb"\x1b[\[O][0-9;]*[A-Za-z~]|.", re.DOTALL)


class Keys(Protocol):
    def wait(self, seconds: float) -> list[str]:
        """The keys pressed since, after at most so many seconds; sooner with the first."""


class Terminal:
    """Of the keyboard on a file descriptor."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def wait(self, seconds: float) -> list[str]:
        if not select.select([self._descriptor], [], [], seconds)[0]:
            return []
        typed = os.read(self._descriptor, 1024)
        if not typed:  # the terminal is gone
            return ["q"]
        return names(typed)


def names(typed: bytes) -> list[str]:
    """What was pressed: arrows and the like by name, other keys as what they write."""
    found = (NAMES.get(one, one.decode("ascii", "replace")) for one in SEQUENCE.findall(typed))
    return [one for one in found if len(one) == 1 or one in NAMES.values()]


@contextmanager
def pressed() -> Iterator[Keys | None]:
    """Keys without their echo, each at once; None where standard input is no terminal, of which
    nothing is read then. SIGTERM and SIGHUP leave by way of SystemExit, so that what stands around
    this gives the terminal back, too. Only in the main thread."""
    if not sys.stdin.isatty():
        yield None
        return
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    handlers = {one: signal.signal(one, _leave) for one in (signal.SIGTERM, signal.SIGHUP)}
    try:
        tty.setcbreak(descriptor)
        yield Terminal(descriptor)
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
        for one, handler in handlers.items():
            signal.signal(one, handler)


def _leave(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)
