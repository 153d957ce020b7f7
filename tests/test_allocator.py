"""What is freed stays with the process: no page of it is mapped again."""

import os
import subprocess
import sys

import pytest

from nasd.worker.training import allocator

BLOCK = 64 << 20
CODE = f"""
import ctypes, os, resource, sys
from types import SimpleNamespace

libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]

def use():
    block = libc.malloc(ctypes.c_size_t({BLOCK}))
    libc.memset(block, 1, {BLOCK})
    libc.free(block)

def faults():
    return resource.getrusage(resource.RUSAGE_THREAD).ru_minflt

if sys.argv[1] == "a worker":
    from nasd.worker import stage
    alone = {{"RANK": "0", "WORLD_SIZE": "1"}}
    os.environ |= alone | {{"CUDA_VISIBLE_DEVICES": ""}}
    spec = SimpleNamespace(
        threads=1, stall_minutes=1, precision="float32", share=1, stage=None
    )
    stage.join(spec)
use()
before = faults()
use()
print(faults() - before)
"""


def mapped_again(how: str) -> int:
    """Page faults of a large block that is used for the second time."""
    run = [sys.executable, "-c", CODE, how]
    return int(subprocess.run(run, check=True, capture_output=True, text=True).stdout)


def test_a_worker_on_a_cpu_uses_a_large_block_that_it_freed_again():
    assert mapped_again("a worker") < 10
    assert mapped_again("another process") > 10  # or there would be nothing to gain


def test_programs_are_few_where_lengths_differ_unless_somebody_set_another_number(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one, other = allocator.FEW
    for name in (one, other):
        monkeypatch.delenv(name, raising=False)
    allocator.bound_programs()
    assert all(int(os.environ[name]) < 1024 for name in (one, other))
    monkeypatch.setenv(one, "500")
    monkeypatch.delenv(other)
    allocator.bound_programs()
    assert (os.environ[one], os.environ[other]) == ("500", allocator.FEW[other])
