"""Words that people give: names, paths, texts. What of them can be written down and shown.

A byte that is no UTF-8 reaches Python as half a character (a surrogate), which neither JSON nor
SQLite can hold, and a control character in a name acts on the terminal that shows it.
"""

import os
import unicodedata
from pathlib import Path

from nasd.contract.errors import NasdError
from nasd.contract.readable import named

LONGEST_NAME = 255  # bytes of one part of a path, on the file systems that there are
LONGEST_PATH = 4000


def fault(text: str) -> str | None:
    """Why a text is no plain one, in words; None if it is."""
    kinds = {unicodedata.category(one) for one in text}
    if "Cs" in kinds:
        return "has bytes that are not UTF-8"
    if "Cc" in kinds:
        return "has control characters"
    return None


def path(given: Path, what: str) -> Path:
    """A path that somebody gave, with ~ in full; raises NasdError if it can be none.

    what: the argument or key, for the sentence.
    """
    if (found := fault(str(given))) is not None:
        raise NasdError(f"{what}: the name {named(str(given))} {found}: give another one")
    try:
        full = given.expanduser()
    except RuntimeError:
        raise NasdError(f"{what}: there is no user of the name in {named(str(given))}") from None
    longest = max((len(os.fsencode(part)) for part in full.parts), default=0)
    if longest > LONGEST_NAME or len(os.fsencode(full)) > LONGEST_PATH:
        raise NasdError(
            f"{what}: the name {named(str(given))} is too long: a part of a path has at most"
            f" {LONGEST_NAME} bytes, and all of it {LONGEST_PATH}"
        )
    return full


def text(given: str, what: str) -> str:
    """A text that somebody gave; raises NasdError where its bytes are not UTF-8."""
    if "Cs" in {unicodedata.category(one) for one in given}:
        raise NasdError(f"{what}: {named(given)} has bytes that are not UTF-8")
    return given
