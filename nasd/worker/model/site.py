"""Where a child's module is to be filled, and how it is fitted to what the parent gave.

Shapes: n windows of l tokens, t of them no padding; w = the backbone's width; m units.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor, nn

from nasd.worker.model.attention import Attention
from nasd.worker.model.feedforward import FeedForward

Part = Attention | FeedForward
RIDGE = 0.01  # of the mean square of the units: how strongly a refit holds to what it starts from
LEAST_ROWS = 64  # tokens; with fewer nothing is refitted


@dataclass
class Site:
    """Where a module is to be filled.

    module, norm: the child's, and its norm, which stands behind it, or before it with `pre_norm`;
    below: the norm that it stands on, if it does. source: what stood there in the parent, with its
    norm; None where nothing did. states: what the child gives the module to read, and past: what
    goes past it, [n, l, w] each; target: what the parent has there before any norm, the module's
    output and what went past it, [n, l, w]; all None where there are no windows. mask: [n, l], 1
    where a token is none of the padding.
    """

    module: Part
    norm: nn.Module
    below: nn.LayerNorm | None
    source: Part | None
    source_norm: nn.Module | None
    generator: torch.Generator
    spread: float
    pre_norm: bool = False
    states: Callable[[], Tensor] | None = None
    past: Callable[[], Tensor] | None = None
    target: Callable[[], Tensor] | None = None
    mask: Tensor | None = None
    notes: list[str] = field(default_factory=list)

    def fresh(self, rows: int, columns: int) -> Tensor:
        """New weights as BERT draws them, [rows, columns]."""
        return torch.empty(rows, columns).normal_(0.0, self.spread, generator=self.generator)

    @property
    def biased(self) -> bool:
        """Whether the module's layers have biases."""
        return any(name.endswith("bias") for name, _ in self.module.named_parameters())

    @cached_property
    def rows(self) -> Tensor | None:
        """What the module reads of all tokens but the padding, [t, w]."""
        if self.states is None:
            return None
        assert self.mask is not None
        return self.states()[self.mask.bool()]

    @cached_property
    def wanted(self) -> Tensor | None:
        """What the module is to give for each of `rows`, [t, w]."""
        if self.past is None or self.target is None:
            return None
        assert self.mask is not None
        there = self.mask.bool()
        return self.target()[there] - self.past()[there]


class Linear(NamedTuple):
    """weight [out, in] and bias [out], zero where a layer has none."""

    weight: Tensor
    bias: Tensor

    @classmethod
    def of(cls, module: nn.Module) -> "Linear":
        assert isinstance(module, nn.Linear)
        weight = module.weight.detach().clone()
        if module.bias is None:
            return cls(weight, weight.new_zeros(len(weight)))
        return cls(weight, module.bias.detach().clone())

    def put(self, module: nn.Module) -> None:
        assert isinstance(module, nn.Linear)
        module.weight.copy_(self.weight)
        if module.bias is None:
            assert not bool(self.bias.any()), "a layer without biases has none to take"
        else:
            module.bias.copy_(self.bias)

    def __call__(self, inputs: Tensor) -> Tensor:
        return inputs @ self.weight.T + self.bias


def refit(
    hidden: Tensor, wanted: Tensor, start: Linear, ridge: float = RIDGE, biased: bool = True
) -> Linear:
    """The linear layer from hidden [t, m] to wanted [t, out] by ridge regression towards `start`;
    without `biased` its bias stays as it starts.

    Where the tokens tell nothing of a direction, it is left as it starts. Never gives a number that
    is not finite: then the start stays.
    """
    left = wanted - start(hidden)
    centre, middle = hidden.mean(0) * biased, left.mean(0) * biased
    inputs = hidden - centre
    gram = (inputs.T @ inputs).double()
    damping = ridge * gram.diagonal().mean().clamp_min(1e-12)
    gram.diagonal().add_(damping)
    try:
        factor = torch.linalg.cholesky(gram)
        change = torch.cholesky_solve((inputs.T @ (left - middle)).double(), factor).T.float()
    except RuntimeError:  # torch.linalg.LinAlgError is one: nearly singular all the same
        return start
    found = Linear(start.weight + change, start.bias + middle - change @ centre)
    return found if bool(found.weight.isfinite().all() and found.bias.isfinite().all()) else start


def refitted(
    site: Site, hidden: Tensor | None, start: Linear, beside: Tensor | None = None
) -> Linear:
    """The output layer of a module, fitted to what the parent gave where tokens are enough. beside:
    what the module adds to it, [t, w]."""
    wanted = site.wanted
    if wanted is not None and beside is not None:
        wanted = wanted - beside
    if hidden is None or wanted is None or len(wanted) < LEAST_ROWS:
        site.notes.append("too few tokens to refit by: the weights stay as they were ranked")
        return start
    return refit(hidden, wanted, start, biased=site.biased)
