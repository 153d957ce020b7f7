"""Whether a file of weights can be those of the model that its config.json tells of: by the shapes
that its header names, so that nothing is allocated for one that cannot.

That the header fits the length of the file, safetensors itself sees to.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from torch import nn

from nasd.worker.model.architecture import CONFIG, Architecture
from nasd.worker.model.phenotype import Undrawn

Shapes = Mapping[str, Sequence[int]]


def shapes(path: Path) -> dict[str, list[int]]:
    """Of each tensor in a safetensors file."""
    with safe_open(path, "pt") as file:
        return {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118


def wanted(kind: type[nn.Module], arch: Architecture) -> dict[str, list[int]]:
    """Of each tensor that the model has."""
    with torch.device("meta"), Undrawn():  # drawn there, an embedding imports torch's compiler
        model = kind(arch)
    return {name: list(tensor.shape) for name, tensor in model.state_dict().items()}


def misfit(there: Shapes, name: str, asked: Sequence[int]) -> str:
    """What is wrong with the tensor of this name; "" if nothing is."""
    if name not in there:
        return f"lacks the weights {name}"
    if list(there[name]) != list(asked):
        return (
            f"has {name} of the shape {list(there[name])}, where its {CONFIG} asks for"
            f" {list(asked)}"
        )
    return ""
