#!/usr/bin/env bash
# torchinfo 1.8.0: its multiply-adds of a layer, convolutions and recurrent ones apart, are its
# parameters times the number of examples. So those of an encoder are the same for 8 tokens and for
# 512, and a lookup counts as a product with the whole table of words: by that number a search shrinks
# the vocabulary, which costs no time, before the layers, which do.
# Seen: 1986496 for 8 and for 512 tokens, 1953408 of it the lookup; the products are 262144 and 16777216
set -euo pipefail
there=$(mktemp -d)
trap 'rm -rf "$there"' EXIT
python3 -m venv "$there/venv"
"$there/venv/bin/pip" install --quiet --disable-pip-version-check \
    torch==2.13.0 torchinfo==1.8.0 numpy==2.4.6
"$there/venv/bin/python" - <<'PY'
import sys

import torch
import torchinfo
from torch import nn

WORDS, HIDDEN, INNER = 30522, 64, 256
words = nn.Embedding(WORDS, HIDDEN)
layers = nn.Sequential(nn.Linear(HIDDEN, INNER), nn.GELU(), nn.Linear(INNER, HIDDEN))


def told(module, tokens):
    """What it says of one example."""
    shown = torch.zeros((1, tokens), dtype=torch.long)
    return torchinfo.summary(module, input_data=[shown], verbose=0).total_mult_adds


found = [told(nn.Sequential(words, layers), tokens) for tokens in (8, 512)]
lookup = told(words, 512)
products = [2 * HIDDEN * INNER * tokens for tokens in (8, 512)]
print(
    f"torchinfo {torchinfo.__version__}: {found} for 8 and 512 tokens, of that {lookup} for the lookup;"
    f" the products are {products}"
)
sys.exit(not (found[0] == found[1] < products[1] and lookup == WORDS * HIDDEN))
PY
