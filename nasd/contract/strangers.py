"""Files that somebody else may have put where nasd reads: a pipe, a link, a device, a giant.

They are opened without waiting and without following, and read only up to a limit.
"""

import os
import stat
from pathlib import Path

from nasd.contract.errors import NasdError


def content(path: Path, limit: int) -> bytes:
    """What a regular file of at most `limit` bytes holds.

    Raises NasdError, which tells nothing of what it holds, if it is anything else.
    """
    name = shown(path.name)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError as error:
        raise NasdError(f"{name} cannot be opened: {error.strerror}") from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise NasdError(f"{name} is no file")
        if status.st_size > limit:
            raise NasdError(f"{name} is larger than {limit} bytes")
        with open(descriptor, "rb", closefd=False) as file:
            read = file.read(limit + 1)
    except OSError as error:
        raise NasdError(f"{name} cannot be read: {error.strerror}") from None
    finally:
        os.close(descriptor)
    if len(read) > limit:
        raise NasdError(f"{name} is larger than {limit} bytes")
    return read


def shown(name: str, longest: int = 80) -> str:
    """A name that somebody else gave, as one line of a log may have it: short, and with whatever is
    no letter, digit or sign written as an escape."""
    plain = "".join(
        one if one.isprintable() else one.encode("unicode_escape", "surrogatepass").decode()
        for one in name
    )
    return plain if len(plain) <= longest else f"{plain[: longest - 3]}..."
