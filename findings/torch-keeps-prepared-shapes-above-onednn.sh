#!/usr/bin/env bash
# torch 2.13.0 on a CPU: ONEDNN_PRIMITIVE_CACHE_CAPACITY is oneDNN's documented bound on what it keeps
# for shapes that it has met, and torch keeps as much again above it: up to 1,024 prepared products,
# each with memory of its own, bounded by LRU_CACHE_CAPACITY, which torch's documentation does not
# name. A model in bfloat16 whose batches differ in length grows by hundreds of MB, with oneDNN's
# bound set, too. It is read when the first product is computed: setting it after the import is
# early enough.
# Seen: a layer grows by 112 MB in 400 lengths, and by 0.1 MB with LRU_CACHE_CAPACITY=8
set -euo pipefail
there=$(mktemp -d)
trap 'rm -rf "$there"' EXIT
python3 -m venv "$there/venv"
"$there/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
cat >"$there/grows.py" <<'PY'
import ctypes
import os
import sys

import torch

os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] = "8"
if sys.argv[1:]:
    os.environ["LRU_CACHE_CAPACITY"] = sys.argv[1]


class Told(ctypes.Structure):  # mallinfo2 of malloc.h
    _fields_ = [(f"field{n}", ctypes.c_size_t) for n in range(10)]


libc = ctypes.CDLL(None)
libc.mallinfo2.restype = Told


def used():  # hblkhd and uordblks
    told = libc.mallinfo2()
    return (told.field4 + told.field7) / 1e6


torch.set_num_threads(1)
layer = torch.nn.Linear(384, 1536).to(torch.bfloat16)
with torch.no_grad():
    for length in range(1, 20):
        layer(torch.ones(length, 384, dtype=torch.bfloat16))
    before = used()
    for length in range(1000, 1400):
        layer(torch.ones(length, 384, dtype=torch.bfloat16))
print(f"{used() - before:.1f}")
PY
unset LRU_CACHE_CAPACITY ONEDNN_PRIMITIVE_CACHE_CAPACITY
itself=$("$there/venv/bin/python" "$there/grows.py")
bound=$("$there/venv/bin/python" "$there/grows.py" 8)
echo "torch 2.13.0: grows by $itself MB in 400 lengths, by $bound MB with LRU_CACHE_CAPACITY=8"
"$there/venv/bin/python" -c "import sys; sys.exit(not (float('$itself') > 50 and float('$bound') < 10))"
