"""The lock that keeps a second daemon out of a state folder, for as long as the first one lives."""

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from nasd.contract.errors import NasdError

LOOK_SECONDS = 0.1
LONGEST = 2000  # characters of what is in its way


@contextmanager
def hold(path: Path) -> Iterator[Callable[[str], None]]:
    """Holds the lock for this process; raises NasdError if another one does, or if the file system
    does not lock: then nothing would keep two daemons apart.

    Gives a way to say what is in the daemon's way, for `word`: it needs no new file.
    The descriptor is not inherited by workers: it would keep the lock after the daemon's death.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise NasdError(
            f"{path} cannot be written ({error.strerror}): make it writable for who runs nasd"
        ) from error

    def say(text: str) -> None:
        content = f"{os.getpid()}\n{text}"[:LONGEST].encode()
        os.pwrite(descriptor, content, 0)
        os.ftruncate(descriptor, len(content))

    try:
        got = _locked(descriptor, path)
        if not got:  # perhaps only `held` does, for the instant that it looks
            time.sleep(LOOK_SECONDS)
            got = _locked(descriptor, path)
        if not got:
            owner = _content(descriptor)[0] or "unknown"
            raise NasdError(
                f"{path.parent} is served by another nasd already (pid {owner}): look at it with"
                " `nasd status`, or stop that one first"
            )
        # Some file systems grant every lock, also one that is taken.
        second = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            if _locked(second, path):
                raise _unlockable(path, "it grants the same lock twice")
        finally:
            os.close(second)
        say("")
        yield say
    finally:
        os.close(descriptor)


def _locked(descriptor: int, path: Path) -> bool:
    """Takes the lock, or tells that it is taken; raises NasdError where there are no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise _unlockable(path, error.strerror or str(error)) from error
    return True


def _unlockable(path: Path, why: str) -> NasdError:
    return NasdError(
        f"the file system of {path.parent} does not lock files ({why}), so two daemons could serve"
        " it at once: choose an experiment.state on a local disk"
    )


def word(path: Path) -> str:
    """What is in the way of the daemon that holds the lock, in its words; "": nothing."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        return _content(descriptor)[1]
    finally:
        os.close(descriptor)


def _content(descriptor: int) -> tuple[str, str]:
    """The pid, and the daemon's word."""
    text = os.pread(descriptor, 4 * LONGEST, 0).decode(errors="replace")
    owner, _, said = text.partition("\n")
    return owner.strip(), said.strip()


def held(path: Path) -> bool:
    """Whether a daemon holds the lock just now; none does where the file system does not lock."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    else:
        return False
    finally:
        os.close(descriptor)
