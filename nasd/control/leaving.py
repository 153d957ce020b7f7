"""Being asked to leave, by SIGTERM or Ctrl-C: once, with time for checkpoints; twice, at once."""

import os
import shlex
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from nasd.launch import interpreter

Tell = Callable[[str], None]

SIGNALS = (signal.SIGTERM, signal.SIGINT)


def on_stderr(text: str) -> None:
    """A line past all buffers: a signal may come in the middle of another line."""
    os.write(2, f"nasd: {text}\n".encode(errors="backslashreplace"))


class Leaving:
    """What has been asked so far. told: the signals that came while it served. aborted: the exit
    code where it was asked twice, else 0."""

    def __init__(self, config_path: Path, tell: Tell = on_stderr) -> None:
        self.told: list[int] = []
        self.aborted = 0
        self._again = f"to go on: {go_on(config_path)}"
        self._tell = tell
        self._leave: Callable[[], None] | None = None
        self._grace = 0.0
        self._before: dict[int, Any] = {}  # handlers

    def listen(self) -> None:
        """From here on signals come here, in the main thread."""
        self._before = {number: signal.signal(number, self._asked) for number in SIGNALS}

    def serves(self, leave: Callable[[], None], grace_seconds: float) -> None:
        """There may be attempts from now on: the first signal calls `leave`, which returns."""
        self._leave, self._grace = leave, grace_seconds

    def __enter__(self) -> Self:
        self.listen()
        return self

    def __exit__(self, *error: object) -> None:
        """Where it was asked to leave, the rest takes a moment, and cannot be aborted."""
        for number, before in self._before.items():
            signal.signal(number, signal.SIG_IGN if self.told else before)

    def _asked(self, number: int, frame: object) -> None:
        if self._leave is None:
            self._tell(f"stopped before anything was started; {self._again}")
            raise SystemExit(0)
        if self.told:
            self.aborted = 128 + number
            self._tell(
                "aborted: attempts end without a last checkpoint, and what they had written before"
                f" stands; {self._again}"
            )
            raise SystemExit(self.aborted)
        self.told.append(number)
        self._tell(f"stopping, writing checkpoints, up to {self._grace:g} s; again to abort")
        self._leave()


def go_on(config_path: Path) -> str:
    """What to type to go on with a search."""
    return f"{interpreter.nasd()} run --config {shlex.quote(str(config_path))}"
