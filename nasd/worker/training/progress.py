"""Signs of life: what a worker says of where it is, and the file it says it in.

The daemon takes an attempt whose file does not change for lost. So it is the work itself that
speaks, never a thread beside it: whoever hangs falls silent. What cannot speak for long, says so
before it begins.
"""

import os
import time
from pathlib import Path
from typing import Protocol

from nasd.contract.protocol import Heartbeat
from nasd.worker.training.stop import Stopped, StopRequest

HEARTBEAT_SECONDS = 0.5
# Patience, in seconds, for what says nothing until it is done.
LONG = 30 * 60.0  # large files, slow imports, the first step
DOWNLOAD = 6 * 3600.0


class Progress(Protocol):
    def __call__(self, doing: str, step: int = 0, steps: int = 0, *, patience: float = 0.0) -> None:
        """Says where the worker is; cheap enough for every step.

        patience: seconds for which nothing more may come, where that is long. It holds until the
        next word.
        """


def quiet(doing: str, step: int = 0, steps: int = 0, *, patience: float = 0.0) -> None:
    """The progress of what nobody watches."""


class Pulse:
    """The heartbeat file: where this attempt is. Only the first rank writes it.

    Written at most every HEARTBEAT_SECONDS, but always where the worker turns to something else,
    and where patience is asked for or given back. With `leave`, it is also where a stage without
    checkpoints leaves when asked to.
    """

    def __init__(self, path: Path, first: bool, leave: StopRequest | None) -> None:
        self._leave = leave
        self._path = path
        self._first = first
        self._last = 0.0
        self._said = ("", 0.0)
        self._launched = time.monotonic() - _age_of_parent()

    def __call__(self, doing: str, step: int = 0, steps: int = 0, *, patience: float = 0.0) -> None:
        if self._leave is not None and self._leave.asked:
            raise Stopped("asked to stop; this stage begins anew")
        if not self._first:
            return
        now = time.monotonic()
        news = patience > 0 or (doing, patience) != self._said
        if not news and now - self._last < HEARTBEAT_SECONDS:
            return
        self._last, self._said = now, (doing, patience)
        beat = Heartbeat(
            doing=doing,
            step=step,
            steps=steps,
            at=time.time(),
            age=now - self._launched,
            patience=patience,
        )
        temporary = self._path.with_name(".heartbeat.tmp")
        temporary.write_text(beat.model_dump_json())
        temporary.replace(self._path)  # not synced: it speaks only of the living


def _age_of_parent() -> float:
    """Seconds since what starts the ranks was started, by the clock that counts from the boot."""
    after_name = Path(f"/proc/{os.getppid()}/stat").read_text().rpartition(")")[2].split()
    started = int(after_name[19]) / os.sysconf("SC_CLK_TCK")  # starttime, see proc(5)
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started
