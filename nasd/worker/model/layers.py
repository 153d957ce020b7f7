"""What all modules are made of: activations, dropout, convolutions, and where the tokens of a batch
stand.

It travels with exported models. Needs only torch. Shapes: b = examples, l = tokens of an example,
n = tokens of a batch end to end, k = chosen tokens of an example, w = the backbone's width.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def relu2(states: Tensor) -> Tensor:
    """relu, squared (Primer, So et al. 2021)."""
    return F.relu(states).square()


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "relu2": relu2,
}
# Of a classifier's first layer: DistilBERT's, and BERT's pooler's, ELECTRA's.
CLASSIFIERS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "tanh": torch.tanh,
    "gelu": F.gelu,
}
GATED = {"geglu": "gelu"}  # the activation of the units, which as many gates scale


class Packing(NamedTuple):
    """Where the n tokens of a batch stand that are no padding, so that nothing else is computed.

    places: [n] in the flattened batch, in order; offsets: [b + 1] where each example begins among
    them, and n.
    """

    places: Tensor
    offsets: Tensor


class Spans(NamedTuple):
    """Examples end to end: example i is offsets[i]:offsets[i + 1] of [1, n, w], none longer than
    `longest`, and looks at nothing but itself."""

    offsets: Tensor
    longest: int

    def places(self, tokens: int) -> Tensor:
        """[n]: where in its example each of the n tokens stands."""
        begins = self.offsets[:-1].repeat_interleave(self.offsets.diff(), output_size=tokens)
        return torch.arange(tokens, device=self.offsets.device) - begins


class Dropout(nn.Module):
    """torch's dropout, but that the CPU draws 16 random bits a value, as its own draw for each
    takes longer there than the layers around it: the share is rounded to a 65,536th."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, states: Tensor) -> Tensor:
        if not self.training or not self.share or states.device.type != "cpu":
            return F.dropout(states, self.share, self.training)
        lots = round(self.share * LOTS)
        return states.masked_fill(dropped(states, lots), 0.0) * scale_of(lots)


LOTS = 1 << 16


def dropped(like: Tensor, lots: int) -> Tensor:
    """Which values go: each with probability `lots` / LOTS, drawn from torch's CPU generator."""
    if lots == LOTS:  # 16 bits know no such number
        return torch.ones_like(like, dtype=torch.bool)
    count = like.numel()
    bits = torch.empty((count + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    return (bits.view(torch.int16)[:count] < lots - LOTS // 2).view(like.shape)


def scale_of(lots: int) -> float:
    """What the values that stay are multiplied with, so that their mean stays as well."""
    return LOTS / (LOTS - lots) if lots < LOTS else 0.0


def owners_of(mask: "Tensor | Spans | None", tokens: int) -> Tensor | None:
    """[1 or b, n] whose each token is: of packed examples the example's number, and where there is
    padding 0, or 1 in it."""
    if mask is None:
        return None
    if isinstance(mask, Spans):
        lengths = mask.offsets.diff()
        numbers = torch.arange(len(lengths), device=lengths.device)
        return numbers.repeat_interleave(lengths, output_size=tokens)[None]
    return (~mask[:, 0, 0]).long()


def at_places(states: Tensor, places: Tensor | None) -> Tensor:
    """[b, n, w] to [b, k, w]; None: all of them."""
    if places is None:
        return states
    return states.gather(1, places.unsqueeze(-1).expand(-1, -1, states.shape[-1]))


class Depthwise(nn.Module):
    """A convolution of each channel by itself over so many neighbouring tokens, an odd number:
    [b, n, w] to [b, n, w]. What lies beyond an example, or in its padding, counts as zero."""

    def __init__(self, width: int, kernel: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(kernel, width))

    @torch.no_grad()
    def pass_through(self) -> None:
        """Lets it give what it is given."""
        self.weight.zero_()
        self.weight[len(self.weight) // 2] = 1.0

    def forward(self, states: Tensor, owners: Tensor | None) -> Tensor:
        """owners: [1 or b, n], of each token, as `owners_of` gives them: only tokens of the same
        owner see each other. None: each example is one's, and has no padding."""
        kernel = self.weight.to(states.dtype)  # of autocast's layers
        reach = len(kernel) // 2
        tokens = states.shape[1]
        padded = F.pad(states, (0, 0, reach, reach))
        found = torch.zeros_like(states)
        for place in range(len(kernel)):
            seen = padded[:, place : place + tokens] * kernel[place]
            if owners is not None and place != reach:
                theirs = F.pad(owners, (reach, reach), value=-1)
                same = torch.eq(theirs[:, place : place + tokens], owners)
                seen = seen.masked_fill(~same[..., None], 0.0)
            found = found + seen
        return found
