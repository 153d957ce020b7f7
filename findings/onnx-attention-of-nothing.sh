#!/usr/bin/env bash
# torch 2.13.0, onnxruntime 1.32.0: where a boolean mask leaves a query nothing to attend to, as in a
# row that only fills up a batch, torch's attention gives zeros, and the graph that torch exports of
# it gives the mean of all values there. The exporter's own comparison, and any on batches without
# such a row, sees no difference.
# Seen: largest difference 0.0 where something is seen, 0.8 where nothing is
set -euo pipefail
there=$(mktemp -d)
trap 'rm -rf "$there"' EXIT
python3 -m venv "$there/venv"
"$there/venv/bin/pip" install --quiet --disable-pip-version-check \
    torch==2.13.0 onnx==1.23.2 onnxscript==0.7.2 onnxruntime==1.32.0 numpy==2.4.6
"$there/venv/bin/python" - "$there/model.onnx" <<'PY' 2>/dev/null
import sys

import onnxruntime
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention as attention


class Attention(nn.Module):
    def forward(self, states, mask):  # [examples, 1, tokens, width], [examples, 1, 1, tokens]
        return attention(states, states, states, attn_mask=mask)


torch.manual_seed(0)
states = torch.randn(2, 1, 6, 8)
mask = torch.ones(2, 1, 1, 6, dtype=torch.bool)
mask[0, ..., 4:] = False
torch.onnx.export(
    Attention(), (states, mask), sys.argv[1], input_names=["states", "mask"],
    output_names=["attended"], dynamo=True, verbose=False,
)
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])


def apart():
    expected = Attention()(states, mask)
    said = session.run(None, {"states": states.numpy(), "mask": mask.numpy()})[0]
    return float((torch.from_numpy(said) - expected).abs().max())


seen = apart()
mask[1] = False
nothing = apart()
print(
    f"torch {torch.__version__}, onnxruntime {onnxruntime.__version__}: largest difference"
    f" {seen:.1f} where something is seen, {nothing:.1f} where nothing is"
)
sys.exit(not (seen < 1e-4 and nothing > 0.1))
PY
