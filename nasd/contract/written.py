"""Folders that nasd writes for people: an exported model, a report.

A list of what it wrote, with digests, lies in each; nothing else is ever removed. Who puts a file
of their own there, or changes one, finds the folder refused by that file's name, not replaced.

    <folder>/  ...  .nasd-files.json
"""

import hashlib
import json
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from nasd.contract.errors import NasdError
from nasd.contract.protocol import sync_folder, write_atomically
from nasd.contract.strangers import content

LIST = ".nasd-files.json"
LARGEST_LIST = 1 << 20  # bytes


def vouch(folder: Path) -> None:
    """Notes all files below a folder that was just made as written by nasd."""
    files = {
        str(path.relative_to(folder)): _digest(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    folders = [str(path.relative_to(folder)) for path in sorted(folder.rglob("*")) if path.is_dir()]
    note = {"files": files, "folders": folders}
    write_atomically(folder / LIST, json.dumps(note, indent=1).encode())


def vouched(folder: Path) -> bool:
    """Whether nasd has left a list of what it wrote there."""
    return _is_file(folder / LIST)


def stranger(folder: Path) -> str | None:
    """What stands in a folder that nasd did not write, or not so: the first of it, in words; None
    where there is nothing, as in an empty folder. Links are never followed."""
    listed = _listed(folder)
    known, folders = listed or ({}, [])
    if listed is None and any(folder.iterdir()):
        return "has no list of what nasd wrote there"
    for path in _below(folder):
        name = str(path.relative_to(folder))
        if name == LIST and listed is not None:
            continue
        if name in folders and path.is_dir() and not path.is_symlink():
            continue
        if name not in known:
            return f"holds {name}, which nasd did not write"
        if not _is_file(path):
            return f"holds {name}, which is no file any more"
        if _digest(path) != known[name]:
            return f"holds {name}, which was changed since nasd wrote it"
    return None


@contextmanager
def beside(folder: Path) -> Iterator[Path]:
    """A private folder on the same file system, which is gone afterwards with all that is in it."""
    with tempfile.TemporaryDirectory(prefix=".nasd-", dir=folder.parent) as made:
        yield Path(made)


def put(made: Path, folder: Path) -> None:
    """Renames a folder that was just made and vouched for to its place, on the same file system.

    What stood there goes, file by file as its list has them; the caller has seen that there is no
    stranger. What comes meanwhile stays, in a folder of that name with `.kept` behind it.
    """
    assert vouched(made)
    old = _free(folder.with_name(f"{folder.name}.kept"))
    stood = os.path.lexists(folder)
    if stood:
        folder.rename(old)
    try:
        made.rename(folder)
    except OSError:
        if stood:
            old.rename(folder)
        raise
    sync_folder(folder.parent)
    if stood:
        _remove(old)


def aside(folder: Path) -> Path:
    """Moves a folder out of the way, whole; where it is then."""
    place = _free(folder.with_name(f"{folder.name}.before"))
    folder.rename(place)
    return place


def check_replaceable(folder: Path, mark: str, instead: str) -> None:
    """Raises NasdError unless a folder is not there, or empty, or holds only what nasd wrote, of
    the same kind.

    mark: a file that all of the kind have, as model.safetensors. instead: what to do, in the
    sentence.
    """
    if folder.is_symlink():
        raise NasdError(f"{folder} is a link: {instead}")
    if not os.path.lexists(folder):
        return
    if not folder.is_dir():
        raise NasdError(f"{folder} is no folder: {instead}")
    if (found := stranger(folder)) is not None:
        raise NasdError(f"{folder} {found}: {instead}")
    listed = _listed(folder)
    if listed is not None and mark not in listed[0]:
        raise NasdError(f"{folder} holds what another command of nasd's wrote: {instead}")


def _remove(folder: Path) -> None:
    """Removes what the list has, and the list, unless anything else is there."""
    if stranger(folder) is not None:
        return
    files, folders = _listed(folder) or ({}, [])
    for name in files:
        (folder / name).unlink(missing_ok=True)
    (folder / LIST).unlink(missing_ok=True)
    with suppress(OSError):  # somebody has put something there just now
        for name in (*sorted(folders, reverse=True), "."):  # what lies deeper comes first
            (folder / name).rmdir()


def _listed(folder: Path) -> tuple[dict[str, str], list[str]] | None:
    """The files of the list by their digests, and the folders; None where there is no list that
    could be read."""
    with suppress(NasdError, ValueError, TypeError, AttributeError, KeyError, RecursionError):
        note = json.loads(content(folder / LIST, LARGEST_LIST))
        files, folders = dict(note["files"]), list(note["folders"])
        if all(map(_stays_within, (*files, *folders))) and all(
            isinstance(found, str) for found in files.values()
        ):
            return files, folders
    return None


def _stays_within(name: Any) -> bool:
    parts = Path(name).parts
    return bool(parts) and not Path(name).is_absolute() and ".." not in parts


def _below(folder: Path) -> list[Path]:
    """Everything below a folder, without following a link."""
    found = []
    for root, folders, files in os.walk(folder, followlinks=False):
        found += [Path(root, name) for name in (*folders, *files)]
    return sorted(found)


def _is_file(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _free(path: Path) -> Path:
    """The path, or with a number behind it, under which nothing stands."""
    number, found = 1, path
    while os.path.lexists(found):
        number += 1
        found = path.with_name(f"{path.name}-{number}")
    return found
