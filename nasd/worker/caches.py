"""Cache folders that are made once, for whoever needs what is in them.

A folder is named by all that made it. It is filled under a temporary name, sealed with digests and
renamed, so what carries the final name is whole, and later attempts and experiments find it. One
that is damaged since is made again.
"""

import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nasd.contract import digests
from nasd.contract.digests import Damaged
from nasd.contract.protocol import sync_folder
from nasd.worker.training.progress import LONG, Progress

VERSION = 1  # of the layout of the caches; raise it to make old ones count no more
LOOK_SECONDS = 0.2  # between two looks at whether another attempt is done


@dataclass(frozen=True)
class Kind:
    """Of cache: the files that it has, and what reads it as far as can be without digests."""

    files: tuple[str, ...]
    proof: Callable[[Path], object]


def check(kind: Kind, folder: Path, progress: Progress) -> None:
    """Raises Damaged unless a cache is what was made."""
    digests.check(folder, kind.files, lambda: progress("checking"), kind.proof)


def make(kind: Kind, folder: Path, build: Callable[[Path], object], progress: Progress) -> Path:
    if stands(kind, folder, progress):
        print(f"cache: {folder.name} is there", flush=True)
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with alone(folder.parent, progress):
        if not stands(kind, folder, progress, says=True):  # another attempt may just have made it
            _fill(folder, build, progress)
    print(f"cache: {folder.name} made", flush=True)
    return folder


def made(kind: Kind, folder: Path, build: Callable[[Path], object], progress: Progress) -> bool:
    """Whether this attempt has made it: not where another one is at work in the folder above."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if not _locked(descriptor) or stands(kind, folder, progress):
            return False
        _fill(folder, build, progress)
        return True
    finally:
        os.close(descriptor)


def stands(kind: Kind, folder: Path, progress: Progress, says: bool = False) -> bool:
    if not folder.is_dir():
        return False
    try:
        check(kind, folder, progress)
    except Damaged as damage:
        if says:
            print(f"cache: {damage}; it is made again", flush=True)
        return False
    return True


def _fill(folder: Path, build: Callable[[Path], object], progress: Progress) -> None:
    for left in folder.parent.glob(f".{folder.name}.*.tmp"):  # of a prepare that was killed
        shutil.rmtree(left, ignore_errors=True)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    damaged = folder.with_name(f".{folder.name}.damaged.tmp")
    temporary.mkdir()
    try:
        build(temporary)
        progress("saving", patience=LONG)
        digests.seal(temporary)
        sync_tree(temporary)
        if folder.exists():
            folder.rename(damaged)
        temporary.rename(folder)
        sync_folder(folder.parent)
        sync_folder(folder.parent.parent)  # the root may be new
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(damaged, ignore_errors=True)


@contextmanager
def alone(root: Path, progress: Progress) -> Iterator[None]:
    """Of all attempts that find a cache damaged, one makes it again, and the others wait for it."""
    descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        while not _locked(descriptor):
            progress("waiting for who makes the cache")
            time.sleep(LOOK_SECONDS)
        yield
    finally:
        os.close(descriptor)


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system that does not lock: whoever is last wins, with the same
        return True
    return True


def key_of(parts: dict[str, Any]) -> str:
    text = json.dumps({"version": VERSION, **parts}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def sync_tree(folder: Path) -> None:
    """Makes all that stands in a folder durable."""
    for path in [folder, *folder.rglob("*")]:
        if path.is_dir():
            sync_folder(path)
        else:
            with path.open("rb") as file:
                os.fsync(file.fileno())
