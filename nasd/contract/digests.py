"""A digest beside whatever a later step reads, checked when it is read: a bit that flips on a disk,
in memory or on a wire is noticed, and changes no result without a word.

A sealed folder holds digests.json, with a digest of each file below it and one of its own; a sealed
file has its digest beside it, in FILE.digest. What an earlier nasd left has none: it is taken as it
is, once, and sealed. Who cannot write there takes it as it is each time.

The digest is xxh3, as fast as memory is read: it finds faults, and keeps nobody from forging.
"""

import contextlib
import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar

import xxhash

from nasd.contract.errors import NasdError
from nasd.contract.protocol import write_atomically

SEAL = "digests.json"
SUFFIX = ".digest"
BLOCK = 1 << 22  # bytes between two signs of life
XXH3 = "xxh3:"  # checkpoints of an earlier nasd have bare SHA-256


class Damaged(NasdError):
    """What an earlier step left is not there, or not what it was: a fault of the machine's.

    path: the file.
    """

    def __init__(self, path: Path, what: str) -> None:
        super().__init__(f"{path} {what}")
        self.path = path
        self.what = what


def alive() -> None:
    """What is done between two blocks of a file where nobody waits for a sign of life."""


def unproven(folder: Path) -> None:
    """Nothing that digests do not tell is known of what a folder should hold."""


def of_json(what: Any) -> str:
    """Of something that JSON can say, whatever the order of its keys."""
    return XXH3 + xxhash.xxh3_128_hexdigest(json.dumps(what, sort_keys=True).encode())


class Message(Protocol):
    """Of the protocol between daemon and worker; digest is "" where an earlier nasd wrote it."""

    @property
    def digest(self) -> str: ...

    def model_dump(self, *, mode: str, exclude: set[str]) -> dict[str, Any]: ...

    def model_copy(self, *, update: dict[str, Any]) -> Self: ...


M = TypeVar("M", bound=Message)


def signed(message: M) -> M:
    """The message with its own digest."""
    return message.model_copy(update={"digest": _of_message(message)})


def holds(message: Message) -> bool:
    """Whether a message is what was written, as far as it has a digest."""
    return message.digest in ("", _of_message(message))


def _of_message(message: Message) -> str:
    return of_json(message.model_dump(mode="json", exclude={"digest"}))


def of_file(path: Path, progress: Callable[[], object] = alive) -> str:
    """Raises Damaged where the file cannot be read."""
    return _of_file(path, xxhash.xxh3_128(), XXH3, progress)


def is_of(path: Path, expected: str, progress: Callable[[], object] = alive) -> bool:
    """Whether a file's digest is the expected one; raises Damaged where it cannot be read."""
    if expected.startswith(XXH3):
        return of_file(path, progress) == expected
    return _of_file(path, hashlib.sha256(), "", progress) == expected


def of_files(folder: Path, progress: Callable[[], object] = alive) -> dict[str, str]:
    """Of all files below a folder but hidden ones, by their names from there."""
    return {
        str(path.relative_to(folder)): of_file(path, progress)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != SEAL and not path.name.startswith(".")
    }


def vouch(
    folder: Path,
    files: Mapping[str, str],
    needs: Iterable[str],
    progress: Callable[[], object] = alive,
) -> None:
    """Raises Damaged unless files have these digests. needs: names that must be among them."""
    for name in needs:
        if name not in files:
            raise Damaged(folder / name, "has no digest among those of its folder")
    for name, expected in files.items():
        if not is_of(folder / name, expected, progress):
            raise Damaged(folder / name, "is damaged (it is not what was written there)")


def seal(folder: Path, progress: Callable[[], object] = alive) -> None:
    """Notes the digests of all files below a folder, for `check`."""
    files = of_files(folder, progress)
    note = {"files": files, "digest": of_json(files)}
    write_atomically(folder / SEAL, json.dumps(note, indent=1).encode())


def sealed(folder: Path) -> bool:
    return (folder / SEAL).exists()


def check(
    folder: Path,
    needs: Collection[str],
    progress: Callable[[], object] = alive,
    proof: Callable[[Path], object] = unproven,
) -> None:
    """Raises Damaged, which names the file, unless all files of a sealed folder are what they were.

    needs: names of files that it must have. A folder without digests gets them, once `proof`, which
    raises Damaged as well, has found nothing wrong with it.
    """
    for name in needs:
        if not (folder / name).is_file():
            raise Damaged(folder / name, "is missing")
    if not sealed(folder):
        proof(folder)
        with contextlib.suppress(OSError):
            seal(folder, progress)
        return
    vouch(folder, noted(folder), needs, progress)


def noted(folder: Path) -> dict[str, str]:
    """The digests of a sealed folder's files; raises Damaged where they are damaged themselves."""
    path = folder / SEAL
    try:
        note = json.loads(path.read_bytes())
        files: dict[str, str] = note["files"]
        whole = note["digest"] == of_json(files)
    except OSError as error:
        raise Damaged(path, f"cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError):
        whole = False
    if not whole:
        raise Damaged(path, "is damaged; without it, the folder is taken as it is")
    return files


def seal_file(
    path: Path, progress: Callable[[], object] = alive, final: Path | None = None
) -> None:
    """Notes the digest of one file, as that of `final` if it is yet to get that name."""
    write_atomically(note_of(final or path), of_file(path, progress).encode())


def check_file(path: Path, progress: Callable[[], object] = alive) -> None:
    """As `check`, for one file."""
    note = note_of(path)
    if not note.exists():
        with contextlib.suppress(OSError):
            seal_file(path, progress)
        return
    try:
        expected = note.read_text(encoding="ascii")
    except (OSError, ValueError) as error:
        raise Damaged(note, "cannot be read") from error
    if not is_of(path, expected, progress):
        raise Damaged(path, "is damaged (it is not what was written there)")


def note_of(path: Path) -> Path:
    return path.with_name(path.name + SUFFIX)


def _of_file(
    path: Path,
    # hashlib's and xxhash's have these two in common, and no type
    summing: "hashlib._Hash | xxhash.xxh3_128",
    prefix: str,
    progress: Callable[[], object],
) -> str:
    block = memoryview(bytearray(BLOCK))
    try:
        with path.open("rb", buffering=0) as file:
            while size := file.readinto(block):
                summing.update(block[:size])
                progress()
    except FileNotFoundError as error:
        raise Damaged(path, "is missing") from error
    except OSError as error:
        raise Damaged(path, f"cannot be read: {error.strerror}") from error
    return prefix + summing.hexdigest()
