"""Memory on a CPU: what a step has freed stays with the process, for the next step.

glibc asks the kernel for every large block anew and gives it back as soon as it is freed, so that
each step pays for having its activations mapped and cleared again (figures in docs/decisions.md). A
GPU's memory is kept by torch itself.
"""

import contextlib
import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of malloc.h
_NEVER = -1


def keep_freed_memory() -> None:
    """From here on, this process keeps what its main thread frees; without glibc, as it was."""
    with contextlib.suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_MAX, 0)  # large blocks come from the heap, which is ours to reuse
        mallopt(_M_TRIM_THRESHOLD, _NEVER)
