"""Memory on a CPU: what a step has freed stays with the process, for the next step.

glibc asks the kernel for every large block anew and gives it back as soon as it is freed, so that
each step pays for having its activations mapped and cleared again (figures in docs/decisions.md). A
GPU's memory is kept by torch itself.
"""

import contextlib
import ctypes
import os

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of malloc.h
_NEVER = -1
# oneDNN keeps a program for each shape that it has met, up to 1,024 of them; they stand between the
# blocks that a step frees, and the heap grows around them.
_CAPACITY, _FEW = "ONEDNN_PRIMITIVE_CACHE_CAPACITY", "32"


def keep_freed_memory() -> None:
    """From here on, this process keeps what its main thread frees; without glibc, as it was."""
    with contextlib.suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_MAX, 0)  # large blocks come from the heap, which is ours to reuse
        mallopt(_M_TRIM_THRESHOLD, _NEVER)


def bound_programs() -> None:
    """Where examples differ in length, and nearly every step meets new shapes: oneDNN keeps a few
    programs, and makes others anew. To be called before the first computation; who has set another
    number keeps it."""
    os.environ.setdefault(_CAPACITY, _FEW)
