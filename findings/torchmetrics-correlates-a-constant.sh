#!/usr/bin/env bash
# torchmetrics 1.9.0: Matthews' correlation of a model that says the same of every example is 0 by
# convention, or undefined. For two labels torchmetrics gives (p - n) / sqrt(p n (p + n)) instead, of p
# examples of the label that is said and n others: a collapsed model gets 0.84 on nine to one, and
# less on a more balanced or larger set. Told of three labels, it gives 0 for the same examples.
# Seen: 0.843 for 9 of 10, 0.276 for 7 of 10, -0.843 for the other constant; of three labels 0.0
set -euo pipefail
there=$(mktemp -d)
trap 'rm -rf "$there"' EXIT
python3 -m venv "$there/venv"
"$there/venv/bin/pip" install --quiet --disable-pip-version-check \
    torch==2.13.0 torchmetrics==1.9.0 numpy==2.4.6 setuptools==80.9.0
"$there/venv/bin/python" - <<'PY'
import sys

import torch
import torchmetrics
from torchmetrics.classification import MulticlassMatthewsCorrCoef


def score(says, ones, zeros, labels):
    truth = torch.tensor([1] * ones + [0] * zeros)
    return round(float(MulticlassMatthewsCorrCoef(labels)(torch.full_like(truth, says), truth)), 3)


found = [score(1, 9, 1, 2), score(1, 7, 3, 2), score(0, 9, 1, 2)]
three = score(1, 9, 1, 3)
print(f"torchmetrics {torchmetrics.__version__}: constants of two labels {found}, of three {three}")
sys.exit(not (found == [0.843, 0.276, -0.843] and three == 0.0))
PY
