"""How long each live attempt has said nothing, on a clock that never jumps.

A heartbeat carries the wall clock's time, which may be set; what counts here is only whether the
file has changed since the last look, and how much monotonic time has passed since then.
"""

from collections.abc import Callable
from dataclasses import dataclass

from nasd.contract.errors import NasdError
from nasd.contract.protocol import AttemptFolder, Heartbeat, read


@dataclass
class _Heard:
    since: float
    beat: Heartbeat | None
    looked: float  # when it was asked last


class Silence:
    """start_seconds: until the first sign of life. stall_seconds: between two of them."""

    def __init__(
        self, monotonic: Callable[[], float], start_seconds: float, stall_seconds: float
    ) -> None:
        self._monotonic = monotonic
        self._start = start_seconds
        self._stall = stall_seconds
        self._heard: dict[int, _Heard] = {}

    def too_long(self, attempt: int, folder: AttemptFolder) -> str | None:
        """Why the attempt counts as stalled, or None while it does not. To be asked every turn."""
        now = self._monotonic()
        heard = self._heard.setdefault(attempt, _Heard(now, None, now))
        if now - heard.looked > min(self._start, self._stall):
            # The daemon itself was away, as in a container that was frozen: nobody listened.
            heard.since += now - heard.looked
        heard.looked = now
        try:
            beat = read(Heartbeat, folder.heartbeat)
        except NasdError:
            beat = None
        if beat != heard.beat:
            self._heard[attempt] = _Heard(now, beat, now)
            return None
        silent = now - heard.since
        if beat is None:
            if silent <= self._start:
                return None
            return f"no sign of life within {self._start / 60:g} min of its start"
        if silent <= max(self._stall, beat.patience):
            return None
        return f"stalled: silent for {silent / 60:.0f} min while {beat.doing}, step {beat.step}"

    def forget(self, attempt: int) -> None:
        self._heard.pop(attempt, None)
