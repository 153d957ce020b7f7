#!/usr/bin/env bash
# torch 2.13.0: inside one autocast, the cast of a weight that requires gradients is kept until the
# block ends, under no_grad, too, and whatever is written into the weight meanwhile. Who loads
# candidate after candidate into one model there, or an average of weights, scores the first one's
# products each time (beside the others' embeddings and norms, which are not cast). With a block for
# each, cache_enabled=False, inference_mode or frozen weights, all is well.
# Seen: of weights 1, 2, 3 the scores 8, 8, 8 in one autocast, and 8, 16, 24 in the other four ways
set -euo pipefail
there=$(mktemp -d)
trap 'rm -rf "$there"' EXIT
python3 -m venv "$there/venv"
"$there/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
"$there/venv/bin/python" - <<'PY'
import sys
from contextlib import nullcontext

import torch

model = torch.nn.Linear(8, 1)
candidates = [
    {"weight": torch.full((1, 8), float(number)), "bias": torch.zeros(1)} for number in (1, 2, 3)
]


def autocast(cache_enabled=True):
    return torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=cache_enabled)


def scores(around, each, mode):
    found = []
    with around(), mode():
        for candidate in candidates:
            model.load_state_dict(candidate)
            with each():
                found.append(model(torch.ones(1, 8)).item())
    return found


one = scores(autocast, nullcontext, torch.no_grad)
others = {
    "one each": scores(nullcontext, autocast, torch.no_grad),
    "no cache": scores(lambda: autocast(False), nullcontext, torch.no_grad),
    "inference_mode": scores(autocast, nullcontext, torch.inference_mode),
}
model.requires_grad_(False)
others["frozen"] = scores(autocast, nullcontext, torch.no_grad)
print(
    f"torch {torch.__version__}: in one autocast {one}; {others};"
    f" the model holds {model.weight[0, 0].item()}"
)
sys.exit(not (one == [8.0] * 3 and all(said == [8.0, 16.0, 24.0] for said in others.values())))
PY
