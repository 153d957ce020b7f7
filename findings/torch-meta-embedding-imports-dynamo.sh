#!/usr/bin/env bash
# torch 2.13.0: the meta device is for making a model without paying for its weights. But an Embedding
# there is drawn by a function in Python, which imports torch._dynamo, its compiler: some 800 modules,
# a second of each process that only wants to read a checkpoint. A Linear's weights, drawn uniformly,
# import nothing.
# Seen: after a Linear and a LayerNorm 0 modules more and no torch._dynamo, after an Embedding of
# 10 x 10 some 800 and torch._dynamo among them, in 1.2 s of a processor
set -euo pipefail
there=$(mktemp -d)
trap 'rm -rf "$there"' EXIT
python3 -m venv "$there/venv"
"$there/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
"$there/venv/bin/python" - <<'PY'
import sys
import time

import torch
from torch import nn


def grown(make):
    before, began = len(sys.modules), time.process_time()
    with torch.device("meta"):
        made = make()
    assert made.weight.is_meta
    return len(sys.modules) - before, "torch._dynamo" in sys.modules, time.process_time() - began


linear = grown(lambda: nn.Linear(10, 10))
norm = grown(lambda: nn.LayerNorm(10))
embedding = grown(lambda: nn.Embedding(10, 10))
print(f"torch {torch.__version__}: (modules more, torch._dynamo, seconds)")
for name, told in {"Linear": linear, "LayerNorm": norm, "Embedding": embedding}.items():
    print(f"  {name}: {told[0]}, {told[1]}, {told[2]:.2f}")
quiet = all(not told[1] and told[0] < 10 for told in (linear, norm))
sys.exit(not (quiet and embedding[1] and embedding[0] > 400))
PY
