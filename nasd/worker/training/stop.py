"""Being asked to leave, and when that can be acted on. Light: it is there before torch is."""

import signal


class Stopped(Exception):
    """Asked to leave; everything up to now stands in a checkpoint, or there is none to write."""


class StopRequest:
    """SIGTERM, remembered until the worker can act on it."""

    def __init__(self) -> None:
        self.asked = False
        signal.signal(signal.SIGTERM, self._remember)

    def _remember(self, number: int, frame: object) -> None:
        self.asked = True
