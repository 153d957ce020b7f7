"""An exported model in int8: the file, and what it costs in score.

What model-int8.onnx holds: a byte for each entry of every weight matrix that an activation is
multiplied by, and of the word embeddings (both matrices, where those are a product), with a scale
in float32 for each column, or for each token; positions, norms and biases in float32.
Activations are quantised as they come, by ONNX Runtime's dynamic quantisation.
"""

import contextlib
import math
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from nasd.contract.errors import NasdError
from nasd.contract.protocol import Spec
from nasd.worker import runtime

OLDEST = 11  # of the opsets that know dynamic quantisation
TURNS = 15  # of both files, by which their speed is told
TOKENS = 128  # of the text that it is told for
LEVELS = 127
# One by one: an activation's scale is one for a whole batch, so an example's logits would depend on
# who shares it.
BATCH = 1


def quantise(source: Path, made: Path) -> None:
    """Writes the file in int8; raises NasdError where it is so already, or cannot be."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    model = onnx.load(source)
    opset = max(one.version for one in model.opset_import if one.domain in ("", "ai.onnx"))
    if opset < OLDEST:
        raise NasdError(
            f"{source} is of opset {opset}, and int8 takes {OLDEST} at least: export it again"
        )
    if any("Quantize" in node.op_type for node in model.graph.node):
        raise NasdError(f"{source} is quantised already: take the file in float32")
    rows(model)
    for node in model.graph.node:  # where in torch's code each came from
        node.ClearField("metadata_props")
    quantize_dynamic(
        model,
        made,
        op_types_to_quantize=["MatMul", "Gemm"],
        per_channel=True,
        # Seven bits of weights: sums of products of eight are cut off by processors without VNNI,
        # and the score told would be another machine's.
        reduce_range=True,
        weight_type=QuantType.QInt8,
    )


def rows(model: Any) -> None:
    """Looks embeddings up in int8, each row with a scale of its own. The quantiser has one for the
    whole table, which its largest entry sets."""
    from onnx import TensorProto, helper, numpy_helper

    graph = model.graph
    weights = {one.name: one for one in graph.initializer}
    readers = [name for node in graph.node for name in node.input]
    for node in [one for one in graph.node if one.op_type == "Gather"]:
        name, tokens = node.input
        table = weights.get(name)
        axis = next((one.i for one in node.attribute if one.name == "axis"), 0)
        if table is None or table.data_type != TensorProto.FLOAT or len(table.dims) != 2 or axis:
            continue
        entries = numpy_helper.to_array(table)
        scales = np.abs(entries).max(1, keepdims=True) / LEVELS
        scales[scales == 0] = 1.0
        small = np.rint(entries / scales).astype(np.int8)
        parts = {f"rows_int8_{name}": small, f"rows_scale_{name}": scales.astype(np.float32)}
        graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in parts.items())
        if readers.count(name) == 1:
            graph.initializer.remove(table)
        entry, scale = parts
        # By no name that the quantiser makes of an output, where a product reads it: OUTPUT_scale.
        inner = [f"rows_{step}_{node.output[0]}" for step in ("int8", "float", "scale")]
        place = list(graph.node).index(node)
        graph.node.remove(node)
        for new in (
            helper.make_node("Mul", inner[1:], [node.output[0]]),
            helper.make_node("Gather", [scale, tokens], inner[2:]),
            helper.make_node("Cast", inner[:1], inner[1:2], to=TensorProto.FLOAT),
            helper.make_node("Gather", [entry, tokens], inner[:1]),
        ):
            graph.node.insert(place, new)


def compared(folder: Path, asked: dict[str, Any]) -> dict[str, Any]:
    """The metrics of both files on the task's test data, and how many times as fast int8 is.

    asked: the spec of the attempt that scored the model, with the folder of the exported one as its
    weights. Raises NasdError where the test data is not there any more.
    """
    from nasd.worker import caches
    from nasd.worker.model.phenotype import load_architecture
    from nasd.worker.tasks import registry
    from nasd.worker.training.progress import quiet

    spec = Spec.model_validate(asked)
    assert spec.stage is not None
    entry = registry.of(spec.stage)
    cache = entry.cache(spec)
    try:
        caches.check(entry.kind, cache, quiet)
    except NasdError as error:
        raise NasdError(
            f"int8 cannot be scored, as the test data in {cache} is not there or damaged:"
            " export it without --int8"
        ) from error
    tokens = min(TOKENS, load_architecture(folder).positions)
    return {
        "float32": _scored(folder / runtime.FLOAT, spec, entry),
        "int8": _scored(folder / runtime.INT8, spec, entry),
        "speed": speed(folder, tokens),
        "tokens": tokens,
    }


def _scored(path: Path, spec: Spec, entry: Any) -> dict[str, float]:
    """The metrics of the task's own scorer, asked about a file."""
    import torch

    from nasd.worker.tasks.task import Ranks
    from nasd.worker.training.progress import quiet

    alone = Ranks(0, 1, torch.device("cpu"))
    with (
        tempfile.TemporaryDirectory(prefix="nasd-") as made,
        contextlib.redirect_stdout(sys.stderr),
        runtime.spoken(entry.model, runtime.session(path)),
    ):
        found: dict[str, float] = entry.score(
            spec, spec.stage, Path(made) / "result", alone, BATCH, quiet
        )
    if not all(math.isfinite(one) for one in found.values()):
        raise NasdError(f"{path.name} gives scores that are no numbers: export it without --int8")
    return found


def speed(folder: Path, tokens: int) -> float:
    """How many times as fast int8 is as float32, for one text of so many tokens on one thread: the
    ratio of the medians of seconds of the processor, by turns."""
    import torch

    sessions = [runtime.session(folder / name, 1) for name in (runtime.FLOAT, runtime.INT8)]
    shown = torch.ones((1, tokens), dtype=torch.long)
    spent: list[list[float]] = [[], []]
    for _ in range(TURNS):
        for one, found in zip(spent, sessions, strict=True):
            begun = time.process_time()
            runtime.logits(found, shown, None)
            one.append(time.process_time() - begun)
    slow, quick = (statistics.median(one[1:]) for one in spent)  # the first one warms up
    return slow / quick
