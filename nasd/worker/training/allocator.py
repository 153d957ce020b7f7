"""Memory on a CPU: what a step has freed stays with the process, for the next step.

glibc asks the kernel for every large block anew and gives it back as soon as it is freed, so that
each step pays for having its activations mapped and cleared again (figures in docs/decisions.md). A
GPU's memory is kept by torch itself; where attempts share one, each keeps to its part.
"""

import contextlib
import ctypes
import os

import torch

from nasd.contract.slots import part_of

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of malloc.h
_NEVER = -1
# oneDNN keeps a program for each shape that it has met, up to 1,024 of them, and torch above it
# what it has prepared for each, as many again; they stand between the blocks that a step frees, and
# the heap grows around them.
FEW = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64", "LRU_CACHE_CAPACITY": "24"}


def keep_freed_memory() -> None:
    """From here on, this process keeps what its main thread frees; without glibc, as it was."""
    with contextlib.suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_MAX, 0)  # large blocks come from the heap, which is ours to reuse
        mallopt(_M_TRIM_THRESHOLD, _NEVER)


def bound_programs() -> None:
    """Where examples differ in length, and nearly every step meets new shapes: oneDNN and torch
    keep a few programs, and make others anew. To be called before the first computation; who has
    set another number keeps it."""
    for name, few in FEW.items():
        os.environ.setdefault(name, few)


def keep_to_share(device: torch.device, share: int) -> None:
    """From here on, this process runs out of memory where its tensors would take more than their
    part of a GPU that so many attempts share."""
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(part_of(total, share) / total, device)
