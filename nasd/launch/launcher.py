"""What every launcher does: start, watch and stop one attempt, which is a folder with a spec.

It is the seam for other machines.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from nasd.contract.protocol import AttemptFolder


class Launcher(Protocol):
    """Starts, watches and stops attempts. `process` is the launcher's own JSON note of one."""

    def start(self, folder: AttemptFolder, slots: Sequence[str], token: str) -> dict[str, Any]:
        """Starts the worker of the attempt whose spec stands in `folder`."""

    def alive(self, process: Mapping[str, Any]) -> bool:
        """Whether the attempt's own process (not a later one with its number) still runs."""

    def stop(self, token: str) -> None:
        """Asks the attempt to write a checkpoint and leave."""

    def owns(self, pid: int) -> bool | None:
        """Whether a process belongs to an attempt; None if there is none that can be seen."""

    def clear(self, token: str) -> int:
        """Ends whatever still runs in this attempt's name; returns how many processes it found.

        Raises NasdError if one of them does not die: then nothing of its slots is free.
        """


def wait_until(done: Any, seconds: float) -> bool:
    """Polls until `done()`, for at most so many seconds; returns whether it came."""
    end = time.monotonic() + seconds
    while not done():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True
