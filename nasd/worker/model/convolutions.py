"""The convolutions of an attention that is another one than its parent's: what was there stays, and
what is new changes nothing at first.

Shapes: w = the backbone's width; a kernel is [tokens that it reaches over, w].
"""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nasd.worker.model.attention import Attention, Branch
from nasd.worker.model.layers import Depthwise

LAYERS = ("q", "k", "v", "out")


@torch.no_grad()
def convolved(source: Attention, into: Attention) -> None:
    """The same attention with the convolutions of `into`: a kernel grows by zeros at its ends, one
    that is new passes through what it is given, and a new branch gives zero. Raises ValueError
    where what the source has finds no room."""
    if (source.heads, source.window, source.theta) != (into.heads, into.window, into.theta):
        raise ValueError("an attention with another number of heads is not what it was")
    if any((new or 0) < (old or 0) for new, old in zip(into.kernels, source.kernels, strict=True)):
        raise ValueError(f"kernels of {into.kernels} cannot hold those of {source.kernels}")
    for name in LAYERS:
        getattr(into, name).load_state_dict(getattr(source, name).state_dict())
    take_kernels(source.convolutions, into)
    take_branch(source.branch, into.branch)


def take_kernels(source: nn.ModuleDict | None, into: Attention) -> None:
    """Of queries, keys and values; None: there were none."""
    if into.convolutions is None:
        return
    for name, one in into.convolutions.items():
        mine = cast("Depthwise", one)
        if source is None:
            mine.pass_through()
        else:
            theirs = cast("Depthwise", source[name])
            mine.weight.copy_(resized(theirs.weight, len(mine.weight)))


def take_branch(source: Branch | None, into: Branch | None) -> None:
    if into is None:
        return
    if source is None:
        into.depthwise.pass_through()
        quiet(into.out)
        return
    kernel = len(into.depthwise.weight)
    into.depthwise.weight.copy_(resized(source.depthwise.weight, kernel))
    into.out.load_state_dict(source.out.state_dict())


def resized(kernel: Tensor, tokens: int) -> Tensor:
    """About its middle: with zeros at its ends, or without its ends."""
    ends = (tokens - len(kernel)) // 2
    return F.pad(kernel, (0, 0, ends, ends))


def quiet(layer: nn.Linear) -> None:
    """Lets it give zero."""
    layer.weight.zero_()
    if layer.bias is not None:
        layer.bias.zero_()
