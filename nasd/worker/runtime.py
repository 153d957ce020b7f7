"""Models whose logits ONNX Runtime computes, from the files beside an exported model."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nasd.contract.errors import NasdError

FLOAT, INT8 = "model.onnx", "model-int8.onnx"
OPTIONS = {FLOAT: "--onnx", INT8: "--int8"}  # of `nasd export`
QUIET = 3  # errors alone


def session(path: Path, threads: int | None = None) -> Any:
    """What runs a file of OPTIONS on the CPU; threads: None takes all cores. Raises NasdError."""
    import onnxruntime

    if not path.is_file():
        raise NasdError(
            f"{path.parent} has no {path.name}: export it again with {OPTIONS[path.name]}"
        )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = QUIET
    if threads is not None:
        options.intra_op_num_threads = options.inter_op_num_threads = threads
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # it knows its kinds in C++ alone: damaged, or of a newer opset
        first = (str(error).splitlines() or [repr(error)])[0]
        raise NasdError(
            f"onnxruntime {onnxruntime.__version__} cannot run {path} ({first}): upgrade it, or"
            " export the model again"
        ) from error


def logits(found: Any, input_ids: Tensor, attention_mask: Tensor | None) -> dict[str, Tensor]:
    """A session's outputs, by their names. Both inputs are [b, l]."""
    mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    given = {"input_ids": input_ids.numpy(), "attention_mask": mask.long().numpy()}
    names = [one.name for one in found.get_outputs()]
    told = found.run(names, given)
    return {name: torch.from_numpy(one) for name, one in zip(names, told, strict=True)}


@contextmanager
def spoken(kind: Any, found: Any) -> Iterator[None]:
    """Meanwhile models of a kind of nasd.worker.model.phenotype leave their logits to a session,
    and so whatever scores such models scores it. They are not to pack."""
    plain = kind.forward

    def forward(
        model: Any, input_ids: Tensor, attention_mask: Tensor | None = None, packing: Any = None
    ) -> Any:
        assert packing is None
        told = tuple(logits(found, input_ids, attention_mask).values())
        return told if len(told) > 1 else told[0]

    kind.forward = forward
    try:
        yield
    finally:
        kind.forward = plain
