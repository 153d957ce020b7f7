#!/usr/bin/env bash
# onnxruntime 1.32.0: dynamic quantisation has one scale for all of an activation, whatever examples
# it holds; so what an int8 model says of an example depends on who shares its batch, and one example
# with a large value leaves its neighbours a few levels. Scores are told for batches of one.
# Seen: alone 0.8 % off, beside a large example 33.9 % off (float32 gives the same in both)
set -euo pipefail
there=$(mktemp -d)
trap 'rm -rf "$there"' EXIT
python3 -m venv "$there/venv"
"$there/venv/bin/pip" install --quiet --disable-pip-version-check \
    onnxruntime==1.32.0 onnx==1.23.2 numpy==2.4.6
"$there/venv/bin/python" - "$there" <<'PY'
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import quantize_dynamic

there = Path(sys.argv[1])
random = np.random.default_rng(0)
weights = random.normal(size=(64, 64)).astype(np.float32)
ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 64]) for name in "xy"]
graph = helper.make_graph(
    [helper.make_node("MatMul", ["x", "w"], ["y"])], "g", ends[:1], ends[1:],
    [numpy_helper.from_array(weights, "w")],
)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
onnx.save(model, there / "float.onnx")
quantize_dynamic(there / "float.onnx", there / "int8.onnx")
one, large = random.normal(size=(2, 1, 64)).astype(np.float32)


def off(batch):
    found = onnxruntime.InferenceSession(there / "int8.onnx").run(None, {"x": batch})[0][0]
    exact = (one @ weights)[0]
    return float(np.abs(found - exact).mean() / np.abs(exact).mean())


alone, shared = off(one), off(np.concatenate([one, 100 * large]))
print(f"onnxruntime {onnxruntime.__version__}: alone {alone:.1%} off, shared {shared:.1%} off")
sys.exit(not (alone < 0.03 and shared > 0.2))
PY
