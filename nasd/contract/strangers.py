"""Files that somebody else may have put where nasd reads: a pipe, a link, a device, a giant.

They are opened without waiting and without following, and read only up to a limit.
"""

import json
import os
import stat
from pathlib import Path
from typing import Any

from nasd.contract.errors import NasdError
from nasd.contract.readable import named

LARGEST_JSON = 1 << 22  # bytes of a genotype, or of a config.json: what is larger is none


def content(path: Path, limit: int) -> bytes:
    """What a regular file of at most `limit` bytes holds.

    Raises NasdError, which tells nothing of what it holds, if it is anything else.
    """
    name = named(path.name)
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


def json_object(path: Path, what: str = "JSON object") -> dict[str, Any]:
    """The JSON object of a file that a person names, through links as well; a byte order mark is no
    part of it. Raises NasdError if it holds anything else, nests too deeply, or is too large.

    what: it is meant to hold, for the sentence.
    """
    try:
        text = content(path.resolve(strict=True), LARGEST_JSON)
        found = json.loads(text.decode("utf-8-sig"))
    except OSError as error:
        raise NasdError(f"{path} cannot be read: {error.strerror}") from None
    except RecursionError:
        raise NasdError(f"{path} is no JSON that anyone means: it nests too deeply") from None
    except ValueError as error:  # no UTF-8, no JSON, or a number of thousands of digits
        raise NasdError(f"{path} is not JSON: {str(error).partition(';')[0]}") from None
    if not isinstance(found, dict):
        raise NasdError(f"{path} holds no {what}")
    return found


ACTS = bytes(one for one in range(32) if one not in b"\n\t") + b"\x7f"


def harmless(text: bytes) -> bytes:
    """Text that others have written, for a terminal: what would act on it is shown as `?`."""
    return text.translate(bytes.maketrans(ACTS, b"?" * len(ACTS)))
