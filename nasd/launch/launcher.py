"""What every launcher does: start, watch and stop one attempt, which is a folder with a spec.

It is the seam for other machines: nasd.launch.launchers lists them by name.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from nasd.contract.config import Slots
from nasd.contract.protocol import AttemptFolder
from nasd.contract.slots import Slot
from nasd.launch.gpus import Health


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


@dataclass(frozen=True, slots=True)
class Entry:
    """What nasd has to know of a kind of launcher.

    devices  the slots that a config asks for; raises NasdError for one that is not there. With
             `begun` the search goes on, and does without a lost GPU as long as another one answers
    open     a launcher as a config asks for it; None where no config may name the kind
    health   within it, how the devices of some slots are; nothing of those that nobody can ask
    leashed  whether attempts die with the launcher that started them; else another one takes over
    """

    devices: Callable[[Slots, bool], tuple[Slot, ...]]
    open: Callable[[Slots], Launcher] | None
    health: Callable[[Sequence[str]], AbstractContextManager[Health]]
    leashed: bool


def wait_until(done: Any, seconds: float) -> bool:
    """Polls until `done()`, for at most so many seconds; returns whether it came."""
    end = time.monotonic() + seconds
    while not done():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True
