#!/usr/bin/env bash
# torch 2.13.0: one attention over a jagged nested tensor, forward and backward, goes through thousands
# of calls of Python, where the same over a plain tensor takes a dozen. So what is meant to save the
# padding makes a small model wait for its interpreter: a step of 6 blocks took 91 ms by it on an H100,
# and 16 ms by the operation that it ends in.
# Seen: 14 calls of Python for a plain attention, 6056 for a nested one
set -euo pipefail
there=$(mktemp -d)
trap 'rm -rf "$there"' EXIT
python3 -m venv "$there/venv"
"$there/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
"$there/venv/bin/python" - <<'PY'
import sys

import torch
import torch.nn.functional as F

lengths = torch.tensor([5, 7, 3, 9])
ends = torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)])
states = torch.randn(int(ends[-1]), 2, 8, requires_grad=True)


def plain() -> None:
    heads = states.transpose(0, 1)[None]
    F.scaled_dot_product_attention(heads, heads, heads).sum().backward()


def nested() -> None:
    heads = torch.nested.nested_tensor_from_jagged(
        states, ends, min_seqlen=3, max_seqlen=9
    ).transpose(1, 2)
    found = F.scaled_dot_product_attention(heads, heads, heads)
    found.transpose(1, 2).values().sum().backward()


def calls(attend) -> int:
    for _ in range(2):  # what happens only once
        attend()
    count = 0

    def watch(frame, event, argument) -> None:
        nonlocal count
        count += event == "call"

    sys.setprofile(watch)
    try:
        attend()
    finally:
        sys.setprofile(None)
    return count


few, many = calls(plain), calls(nested)
print(f"torch {torch.__version__}: {few} calls of Python for a plain attention, {many} for a nested one")
sys.exit(0 if few < 100 and many > 2000 else 1)
PY
