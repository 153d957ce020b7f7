"""Who may look into a state folder: its owner alone, unless a person has opened it to others.

Weights, texts and questions lie in it, and who may write there steers the search.
"""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PRIVATE = 0o700
OTHERS = 0o077
OF_NOBODY = {".gitkeep", "daemon.lock", "cache"}  # what may lie there before the first search does


def make(folder: Path) -> None:
    """Makes a state folder, for its owner alone whatever the umask; raises OSError.

    One that is there and empty is taken for new. One in which something lies keeps its mode: it may
    be open to others on purpose, as a search of an older nasd is by its umask.
    """
    new = not folder.exists()
    if new:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=PRIVATE)
    if new or {path.name for path in folder.iterdir()} <= OF_NOBODY:
        with suppress(PermissionError):  # another's: `opened` tells of it
            folder.chmod(PRIVATE)


def opened(folder: Path) -> str:
    """A sentence on who else may enter the folder; "" if nobody may."""
    mode = stat.S_IMODE(folder.stat().st_mode)
    if not mode & OTHERS:
        return ""
    may = "change" if mode & 0o022 else "look into"
    return (
        f"others on this machine may {may} {folder} (mode {mode:o}): if that is not meant,"
        f" `chmod -R go= {folder}`"
    )


@contextmanager
def kept(folder: Path) -> Iterator[str]:
    """What this process and its children write meanwhile is for the owner alone, whatever the
    umask; in a folder that is opened to others it stays theirs as far as the umask says. Gives
    the sentence of `opened`."""
    sentence = opened(folder)
    before = os.umask(OTHERS)
    if sentence:
        os.umask(before)
    try:
        yield sentence
    finally:
        os.umask(before)
