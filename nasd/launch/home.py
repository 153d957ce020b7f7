"""A home for processes without one: libraries keep caches below it, and fail where they cannot."""

import os
from pathlib import Path

HUB = ".cache/huggingface"


def usable() -> bool:
    """Whether this process's home folder can be written, or made."""
    home = Path(os.path.expanduser("~"))
    there = next((one for one in (home, *home.parents) if one.exists()), home)
    return home.is_absolute() and there.is_dir() and os.access(there, os.W_OK | os.X_OK)


def lend(folder: Path) -> None:
    """Makes `folder`, which need not be there yet, the home of this process and all its children,
    where theirs cannot be used. What the hub's cache of the old one holds is still read."""
    if usable():
        return
    before = Path(os.path.expanduser("~")) / HUB
    if before.is_absolute() and os.access(before, os.R_OK | os.X_OK):
        os.environ.setdefault("HF_HOME", str(before))
    os.environ["HOME"] = str(folder)
