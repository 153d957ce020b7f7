"""Damage as disks and memory do it, and folders that may not be written, also by root."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def flip_a_bit(path: Path, at: float = 0.5) -> None:
    """One bit of a file, at that share of it."""
    content = bytearray(path.read_bytes())
    content[min(len(content) - 1, int(at * len(content)))] ^= 1
    path.write_bytes(content)


class _Header(ctypes.Structure):
    _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]


class _Sets(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint32) for name in ("effective", "permitted", "inheritable")]


@contextmanager
def bound_by_modes() -> Iterator[None]:
    """Root reads and writes whatever a file's mode says; within, this thread of root's does not."""
    libc = ctypes.CDLL(None, use_errno=True)
    header, sets = _Header(0x20080522, 0), (_Sets * 2)()
    assert libc.capget(ctypes.byref(header), sets) == 0
    before = sets[0].effective
    sets[0].effective = before & ~(1 << 1 | 1 << 2)  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    assert libc.capset(ctypes.byref(header), sets) == 0
    try:
        yield
    finally:
        sets[0].effective = before
        assert libc.capset(ctypes.byref(header), sets) == 0


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Neither the folder nor a file or folder below it can be written."""
    below = [folder, *folder.rglob("*")]
    modes = {path: path.stat().st_mode for path in below}
    for path, mode in modes.items():
        path.chmod(mode & ~0o222)
    try:
        with bound_by_modes():
            yield
    finally:
        for path, mode in modes.items():
            if path.exists():
                path.chmod(mode)
