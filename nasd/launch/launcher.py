"""What every launcher does: start, watch and stop one attempt, which is a folder with a spec.

It is the seam for other machines: nasd.launch.launchers lists them by name.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from nasd.contract.config import Config
from nasd.contract.errors import NasdError
from nasd.contract.protocol import AttemptFolder
from nasd.contract.slots import Slot
from nasd.launch.gpus import Health
from nasd.record.state import Word


class NotYet(NasdError):
    """What was asked has begun, and is done by and by: ask again in the next turn."""


class Launcher(Protocol):
    """Starts, watches and stops attempts. `process` is the launcher's own JSON note of one.

    What only a queue of jobs knows has an answer here for those that have none: subclass it.
    """

    def start(self, folder: AttemptFolder, slots: Sequence[str], token: str) -> dict[str, Any]:
        """Starts the worker of the attempt whose spec stands in `folder`.

        Raises NasdError where nothing can be started so, for a person to mend, and NotYet where it
        is not known whether it was: `clear` sees to that.
        """

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

    def waits(self, process: Mapping[str, Any]) -> str | None:
        """Why an attempt has not begun, as one in a queue; None once it has."""
        return None

    def began(self, process: Mapping[str, Any]) -> float | None:
        """When it has, as its own clock says; None where it began as it was started."""
        return None

    def word(self, process: Mapping[str, Any]) -> Word | None:
        """What it knows of the end of an attempt that is not alive, and its worker may not."""
        return None

    def away(self) -> str | None:
        """Why nothing can be started just now, as a queue whose controller does not answer."""
        return None


@dataclass(frozen=True, slots=True)
class Entry:
    """What nasd has to know of a kind of launcher.

    devices  the slots that a config asks for; raises NasdError for one that is not there. With
             `begun` the search goes on, and does without a lost GPU as long as another one answers
    open     a launcher as a config asks for it, for the attempts below a state folder; None where
             no config may name the kind
    health   within it, how the devices of some slots are; nothing of those that nobody can ask
    leashed  whether attempts die with the launcher that started them; else another one takes over
    here     whether the slots are this machine's
    """

    devices: Callable[[Config, bool], tuple[Slot, ...]]
    open: Callable[[Config, Path], Launcher] | None
    health: Callable[[Sequence[str]], AbstractContextManager[Health]]
    leashed: bool
    here: bool = True


def wait_until(done: Any, seconds: float) -> bool:
    """Polls until `done()`, for at most so many seconds; returns whether it came."""
    end = time.monotonic() + seconds
    while not done():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True
