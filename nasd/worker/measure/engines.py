"""What runs a model: a registry by the name in a config. An entry takes a module with the inputs of
its forward pass, and gives a call that does one pass, and waits for its end."""

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nasd.contract.config import Measure
from nasd.contract.errors import NasdError

Call = Callable[[], object]


@dataclass(frozen=True)
class Engine:
    """load: the call, of a model as it is taken home. part: the call, of a piece of one, which may
    come quicker in another form. version: of what runs it. missing: why it cannot run here, "" if
    it can."""

    load: Callable[[nn.Module, Sequence[Tensor], Measure], Call]
    part: Callable[[nn.Module, Sequence[Tensor], Measure], Call]
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
    """Of a graph for any number of examples and tokens, as `nasd export --onnx` writes it."""
    return _session(graph(module.eval(), given), given, measure)


def _onnxruntime_part(module: nn.Module, given: Sequence[Tensor], measure: Measure) -> Call:
    return _session(traced(module.eval(), given), given, measure)


def _session(written: bytes, given: Sequence[Tensor], measure: Measure) -> Call:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = measure.threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(written, options, providers=["CPUExecutionProvider"])
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
    with _silence():
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


def traced(module: nn.Module, given: Sequence[Tensor]) -> bytes:
    """The same by torch's older way, in a tenth of the time: for pieces, whose operations it gives
    as well. What a whole model takes differently so is in the scale that a table is fitted with."""
    file = io.BytesIO()
    names = [f"input_{index}" for index in range(len(given))]
    with _silence():
        torch.onnx.export(
            module,
            tuple(given),
            file,  # type: ignore[arg-type]
            input_names=names,
            dynamic_axes={name: {0: "examples", 1: "tokens"} for name in names},
            dynamo=False,
        )
    return file.getvalue()


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Exporting has much to say that is nobody's to mend."""
    loggers = [logging.getLogger(name) for name in ("onnxscript", "onnx_ir", "torch.onnx")]
    before = [one.level for one in loggers]
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        for one in loggers:
            one.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for one, level in zip(loggers, before, strict=True):
                one.setLevel(level)


def _version() -> str:
    import onnxruntime

    return f"onnxruntime {onnxruntime.__version__}"


ENGINES: Mapping[str, Engine] = {
    "torch": Engine(_torch, _torch, lambda: f"torch {torch.__version__}", _no_torch),
    "onnxruntime": Engine(_onnxruntime, _onnxruntime_part, _version, _no_onnxruntime),
}
