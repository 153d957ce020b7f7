"""The convolutions of an attention that is another one than its parent's: what was there stays, and
what is new changes nothing at first.

Shapes: w = the backbone's width; a kernel is [tokens that it reaches over, w].
"""

from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from nasd.worker.model.attention import Attention, Branch
from nasd.worker.model.layers import Depthwise


def take_kernels(source: nn.ModuleDict | None, into: Attention, channels: Tensor) -> None:
    """Of queries, keys and values; None: there were none. channels: of the source, that the first
    of `into` are; the others pass through."""
    if into.convolutions is None:
        return
    for name, one in into.convolutions.items():
        mine = cast("Depthwise", one)
        mine.pass_through()
        if source is not None:
            theirs = cast("Depthwise", source[name]).weight[:, channels]
            mine.weight[:, : len(channels)] = resized(theirs, len(mine.weight))


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
