#!/usr/bin/env bash
# onnxruntime 1.32.0: the dynamic quantiser names what it adds by what it reads (`h_scale` for an
# activation `h`) and does not look whether the graph has such a name. A valid model that runs, and has
# tensors called `h` and `h_scale`, is said to be no DAG where the second is a weight, and where it is
# computed becomes, without a word, a file that ONNX Runtime refuses.
# Seen: a weight: "Graph is not a DAG"; computed: "Duplicate definition of name (h_scale)"
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
weights = random.normal(size=(8, 8)).astype(np.float32)
x = random.normal(size=(1, 8)).astype(np.float32)


def quantised(scale, computed=False):
    """What becomes of y = (x * scale) @ w, if the tensor of the scale has this name."""
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 8]) for name in "xy"]
    nodes = [helper.make_node("Mul", ["x", scale], ["h"]), helper.make_node("MatMul", ["h", "w"], ["y"])]
    start = "ones" if computed else scale
    if computed:
        nodes.insert(0, helper.make_node("Abs", [start], [scale]))
    parts = {"w": weights, start: np.ones(8, np.float32)}
    graph = helper.make_graph(
        nodes, "g", ends[:1], ends[1:], [numpy_helper.from_array(one, name) for name, one in parts.items()]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, there / "float.onnx")
    onnxruntime.InferenceSession(there / "float.onnx").run(None, {"x": x})
    step = "quantised"
    try:
        quantize_dynamic(there / "float.onnx", there / "int8.onnx")
        step = "loaded"
        onnxruntime.InferenceSession(there / "int8.onnx").run(None, {"x": x})
    except Exception as error:
        return f"not {step}: {str(error).strip().splitlines()[-1][-90:]}"
    return "runs"


free, weight, computed = quantised("factor"), quantised("h_scale"), quantised("h_scale", computed=True)
print(f"onnxruntime {onnxruntime.__version__}: factor {free}; h_scale, a weight: {weight}; computed: {computed}")
sys.exit(not (free == "runs" and weight.startswith("not quantised") and computed.startswith("not ")))
PY
