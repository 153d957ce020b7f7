#!/usr/bin/env bash
# torch 2.13.0: the meta device is for making a model without paying for its weights, and `to_empty` for
# giving it memory then. But an Embedding there is drawn by a function in Python, which imports
# torch._dynamo, its compiler: some 800 modules, a second of each process that only wants to read a
# checkpoint. And `to_empty` of anything imports sympy and torch's symbolic shapes, some 500 modules and
# half a second, though all shapes are plain numbers. A Linear's weights, drawn uniformly there, import
# nothing, nor does torch.empty.
# Seen: after a Linear and a LayerNorm 0 modules more, after `to_empty` of the Linear 487 and sympy among
# them, after an Embedding of 10 x 10 some 800 and torch._dynamo among them, in 0.5 and 1.2 s of a
# processor
set -euo pipefail
there=$(mktemp -d)
trap 'rm -rf "$there"' EXIT
python3 -m venv "$there/venv"
"$there/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
cat >"$there/grown.py" <<'PY'
import sys
import time

import torch
from torch import nn


def grown(make, module):
    before, began = len(sys.modules), time.process_time()
    with torch.device("meta"):
        made = make()
    told = len(sys.modules) - before, module in sys.modules, time.process_time() - began
    return made, told


linear, of_linear = grown(lambda: nn.Linear(10, 10), "sympy")
norm, of_norm = grown(lambda: nn.LayerNorm(10), "sympy")
assert linear.weight.is_meta and norm.weight.is_meta
_, of_empty = grown(lambda: torch.empty(10, 10, device="cpu"), "sympy")
if sys.argv[1] == "to_empty":
    _, of_it = grown(lambda: linear.to_empty(device="cpu"), "sympy")
    assert not linear.weight.is_meta
else:
    _, of_it = grown(lambda: nn.Embedding(10, 10), "torch._dynamo")
print(f"torch {torch.__version__}, {sys.argv[1]}: modules more, the one asked about, seconds")
print(f"  Linear {of_linear}, LayerNorm {of_norm}, empty {of_empty}, {sys.argv[1]} {of_it}")
quiet = all(not told[1] and told[0] < 10 for told in (of_linear, of_norm, of_empty))
sys.exit(not (quiet and of_it[1] and of_it[0] > 300))
PY
for one in to_empty Embedding; do "$there/venv/bin/python" "$there/grown.py" "$one"; done
