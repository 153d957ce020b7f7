"""The lock that keeps a second daemon out of a state folder, for as long as the first one lives."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nasd.errors import NasdError


@contextmanager
def hold(path: Path) -> Iterator[None]:
    """Holds the lock for this process; raises NasdError if another one does.

    The descriptor is not inherited by workers: it would keep the lock after the daemon's death.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(descriptor, 20, 0).decode().strip() or "unknown"
            raise NasdError(
                f"{path.parent} is served by another nasd already (pid {owner}): look at it with"
                " `nasd status`, or stop that one first"
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


def held(path: Path) -> bool:
    """Whether a daemon holds the lock just now."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    else:
        return False
    finally:
        os.close(descriptor)
