"""What runs a model: a registry by the name in a config. An entry takes a module with the inputs of
its forward pass, and gives a call that does one pass, and waits for its end."""

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nasd.contract.config import Measure
from nasd.contract.errors import NasdError

Call = Callable[[], object]


@dataclass(frozen=True)
class Engine:
    """load: the call. version: of what runs it. missing: why it cannot run here, "" if it can."""

    load: Callable[[nn.Module, Sequence[Tensor], Measure], Call]
    version: Callable[[], str]
    missing: Callable[[Measure], str]


def _torch(module: nn.Module, given: Sequence[Tensor], measure: Measure) -> Call:
    device = torch.device(measure.device)
    kind = torch.bfloat16 if measure.precision == "bfloat16" else torch.float32
    model = module.eval().to(device=device, dtype=kind)
    inputs = [one.to(device, kind if one.is_floating_point() else one.dtype) for one in given]

    def call() -> object:
        with torch.inference_mode():
            found = model(*inputs)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return found

    return call


def _no_torch(measure: Measure) -> str:
    if measure.device == "cuda" and not torch.cuda.is_available():
        return 'measure.device: "cuda" asks for a GPU, and torch finds none here; take "cpu"'
    return ""


def _onnxruntime(module: nn.Module, given: Sequence[Tensor], measure: Measure) -> Call:
    """As `nasd export --onnx` writes it, for any number of examples and tokens."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = measure.threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        graph(module.eval(), given), options, providers=["CPUExecutionProvider"]
    )
    names = [one.name for one in session.get_inputs()]
    feed = {name: one.numpy() for name, one in zip(names, given, strict=True)}
    return lambda: session.run(None, feed)


def _no_onnxruntime(measure: Measure) -> str:
    if measure.device != "cpu":
        return 'measure.engine: "onnxruntime" measures on the CPU; take measure.device = "cpu"'
    if measure.precision != "float32":
        return 'measure.engine: "onnxruntime" runs float32; take measure.precision = "float32"'
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        return (
            f'measure.engine: "onnxruntime" needs {error.name}: install the extra with'
            " `bin/setup onnx`"
        )
    return ""


def graph(module: nn.Module, given: Sequence[Tensor]) -> bytes:
    """The module as an ONNX model, for any number of examples and tokens: the first two sizes of
    every input."""
    shown = [one[:1].repeat(2, *[1] * (one.dim() - 1)) for one in given]  # one alone would be fixed
    sizes = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.getLogger("onnxscript").setLevel(logging.ERROR)
        program: Any = torch.onnx.export(
            module,
            tuple(shown),
            dynamic_shapes=tuple(sizes for _ in given),
            dynamo=True,
            verbose=False,
        )
    written = program.model_proto.SerializeToString()
    if len(written) >= 2**31:
        raise NasdError('measure.engine: "onnxruntime" takes no model of 2 GB or more in one piece')
    return bytes(written)


def _version() -> str:
    import onnxruntime

    return f"onnxruntime {onnxruntime.__version__}"


ENGINES: Mapping[str, Engine] = {
    "torch": Engine(_torch, lambda: f"torch {torch.__version__}", _no_torch),
    "onnxruntime": Engine(_onnxruntime, _version, _no_onnxruntime),
}
