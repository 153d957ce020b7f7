"""The feed-forward network (thesis 4.1).

It travels with exported models. Needs only torch. Shapes: b = examples, k = chosen tokens of an
example, w = the backbone's width.
"""

from itertools import pairwise

from torch import Tensor, nn

from .architecture import Architecture, FeedForwardShape
from .layers import ACTIVATIONS, GATED, Dropout


class FeedForward(nn.Module):
    """Stacked linear layers with an activation between (thesis 4.1): [b, k, w] to [b, k, w].

    Of a gated one the first layer gives the units, and then as many values that scale them behind
    the activation.
    """

    def __init__(self, shape: FeedForwardShape, arch: Architecture) -> None:
        super().__init__()
        self.kind = shape.activation
        self.gated = self.kind in GATED
        self.activation = ACTIVATIONS[GATED.get(self.kind, self.kind)]
        widths = (arch.width, *shape.sizes, arch.width)
        self.linears = nn.ModuleList(
            nn.Linear(
                into, out * (2 if self.gated and place < len(shape.sizes) else 1), arch.biases
            )
            for place, (into, out) in enumerate(pairwise(widths))
        )
        self.dropout = Dropout(arch.dropout)

    def between(self, states: Tensor) -> Tensor:
        """What a layer gives, as the next one reads it."""
        if not self.gated:
            return self.activation(states)
        units, gates = states.chunk(2, -1)
        return self.activation(units) * gates

    def forward(self, states: Tensor) -> Tensor:
        for index, linear in enumerate(self.linears):
            states = linear(self.between(states) if index else states)
        dropped: Tensor = self.dropout(states)
        return dropped
