"""Building much that stays: rows of a long search by the hundred thousand."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def kept() -> Iterator[None]:
    """Within it Python does not look for cycles. It would again and again, as the objects become
    more, and find none: that took a third of the time to read 10,000 candidates. What stands at the
    end is never looked through: for a command that is done with it, that was a fifth of a second.
    """
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.freeze()
            gc.enable()
