"""Multi-head self-attention (thesis 4.1), and what an architecture adds to it: rotary positions,
local attention, convolutions within it and beside it.

It travels with exported models. Needs only torch. Shapes: b = examples, l = tokens of an example,
n = tokens of a batch end to end, k = chosen tokens of an example, w = the backbone's width,
i = that of all heads together.
"""

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .architecture import Architecture
from .layers import LOTS, Depthwise, Spans, at_places, dropped, owners_of, scale_of

SPAN_WIDTH = 8  # of which attention over variable lengths takes multiples
HALVES = (torch.bfloat16, torch.float16)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    """softmax(q k^T / sqrt(w)) v over [b, heads, k or l, w], where mask [b, 1, 1 or k, l] is true.

    On a CPU torch's own has no fast way through dropout, so there that is spelled out; and its
    gradient in bfloat16 takes two to four times as long as in float32
    (findings/torch-bfloat16-attention-learns-slowly-on-a-cpu.sh).
    """
    if q.device.type == "cpu" and q.dtype in HALVES and q.requires_grad and not dropout:
        with torch.autocast("cpu", enabled=False):
            q32, k32, v32 = q.float(), k.float(), v.float()
            return F.scaled_dot_product_attention(q32, k32, v32, attn_mask=mask).to(q.dtype)
    if not dropout or q.device.type != "cpu":
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    shares = scores.softmax(-1)
    lots = round(dropout * LOTS)
    # Scaled are the values, as they are fewer.
    attended: Tensor = shares.masked_fill(dropped(shares, lots), 0.0) @ (v * scale_of(lots))
    return attended


def takes_spans(states: Tensor, heads: int) -> bool:
    """Whether there is an attention that takes examples of any lengths in one go: on a GPU, in half
    precision, for heads whose width is a multiple of SPAN_WIDTH."""
    return states.dtype in HALVES and states.is_cuda and states.shape[-1] // heads % SPAN_WIDTH == 0


def attend_spans(
    q: Tensor, k: Tensor, v: Tensor, spans: "Spans", window: int | None, dropout: float
) -> Tensor:
    """Attention within each example of [n, heads, width of a head], and within a window where it is
    local: FlashAttention for variable lengths (Dao 2023).

    By torch's operation itself: nested tensors, its other way there, spend milliseconds of Python
    on every call, and torch.nn.attention.varlen knows no dropout.
    """
    ends, most = spans.offsets.int(), spans.longest
    found = torch.ops.aten._flash_attention_forward(
        *(q, k, v, ends, ends, most, most, dropout, False, False),
        window_size_left=window,
        window_size_right=window,
    )
    attended: Tensor = found[0]
    return attended


def rotated(states: Tensor, places: Tensor, theta: float) -> Tensor:
    """States [b, heads, k, d] turned by their places, [k] or [b, k]: rotary positions with this
    base (Su et al. 2021), of which number i and number i + d / 2 are one pair."""
    width = states.shape[-1]
    steps = torch.arange(0, width, 2, dtype=torch.float32, device=states.device)
    angles = places[..., None].float() * (1.0 / theta ** (steps / width))
    both = torch.cat([angles, angles], -1)
    if both.ndim == 3:  # each example has places of its own
        both = both[:, None]
    first, second = states.float().chunk(2, -1)
    turned = torch.cat([-second, first], -1)
    return (states.float() * both.cos() + turned * both.sin()).to(states.dtype)


def nearby(places: Tensor, tokens: int, window: int) -> Tensor:
    """[1 or b, 1, k, tokens]: which tokens those at these places, [k] or [b, k], see."""
    gaps = places[..., None] - torch.arange(tokens, device=places.device)
    seen = gaps.abs() <= window
    return seen[None, None] if seen.ndim == 2 else seen[:, None]


class Branch(nn.Module):
    """A convolution beside an attention: depthwise, then a layer over the channels."""

    def __init__(self, width: int, kernel: int, biases: bool) -> None:
        super().__init__()
        self.depthwise = Depthwise(width, kernel)
        self.out = nn.Linear(width, width, bias=biases)

    def forward(self, states: Tensor, owners: Tensor | None, places: Tensor | None) -> Tensor:
        """[b, n, w] to [b, n, w], or [b, k, w] at these places alone."""
        seen = at_places(self.depthwise(states, owners), places)
        given: Tensor = self.out(seen)
        return given


class Attention(nn.Module):
    """Multi-head self-attention (thesis 4.1). The number of heads leaves no trace in the weights,
    nor does its role.

    With a convolution each channel of queries, keys and values is convolved over the tokens before
    they are compared (Primer, So et al. 2021); with a branch, a convolution of what is read is
    added to what is attended (AutoBERT-Zero, Gao et al. 2022). Where only some heads remain,
    queries, keys and values have the channels of these.

    Raises ValueError where the heads do not divide the width, or rotary ones have an odd width.
    """

    def __init__(
        self,
        heads: int,
        arch: Architecture,
        role: str | None = None,
        convolution: int | None = None,
        branch: int | None = None,
        remaining: int | None = None,
    ) -> None:
        super().__init__()
        width = arch.width
        if width % heads:
            raise ValueError(f"{heads} attention heads do not divide the width {width}")
        local = role == "local"
        self.theta = arch.local_theta if local else arch.theta
        self.window = arch.window if local else None
        if self.theta is not None and width // heads % 2:
            raise ValueError(f"{heads} attention heads of the width {width} cannot be rotary")
        self.heads = heads if remaining is None else remaining  # that there are
        self.head_width = width // heads
        inner = self.heads * self.head_width
        self.dropout = arch.attention_dropout
        self.q = nn.Linear(width, inner, bias=arch.biases)
        self.k = nn.Linear(width, inner, bias=arch.biases)
        self.v = nn.Linear(width, inner, bias=arch.biases)
        self.out = nn.Linear(inner, width, bias=arch.biases)
        self.convolutions: nn.ModuleDict | None = None
        if convolution is not None:
            self.convolutions = nn.ModuleDict(
                {name: Depthwise(inner, convolution) for name in ("q", "k", "v")}
            )
        self.branch = None if branch is None else Branch(width, branch, arch.biases)

    @property
    def kernels(self) -> tuple[int | None, int | None]:
        """Of its convolutions, and of its branch."""
        inner = None if self.convolutions is None else self.convolutions["q"]
        beside = None if self.branch is None else self.branch.depthwise
        return (
            None if inner is None else len(cast("Depthwise", inner).weight),
            None if beside is None else len(beside.weight),
        )

    def given(
        self,
        queries: Tensor,
        context: Tensor,
        owners: Tensor | None,
        places: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Of [b, k, w] the queries [b, k, i], and of the context [b, l, w] keys and values
        [b, l, i], as they are compared."""
        if self.convolutions is None:
            return self.q(queries), self.k(context), self.v(context)
        q, k, v = (
            self.convolutions[name](getattr(self, name)(context), owners)
            for name in ("q", "k", "v")
        )
        return at_places(q, places), k, v

    def forward(
        self,
        queries: Tensor,
        context: Tensor,
        mask: Tensor | Spans | None,
        places: Tensor | None = None,
    ) -> Tensor:
        """queries [b, k, w] look at context [b, l, w] where mask [b, 1, 1, l] is true, or, as one
        and the same [1, n, w], at their own example. places: where the queries stand, [b, k]; None:
        they are the context, one after the other."""
        owners = None
        if self.convolutions is not None or self.branch is not None:
            owners = owners_of(mask, context.shape[1])
        given = self.given(queries, context, owners, places)
        dropout = self.dropout if self.training else 0.0
        if isinstance(mask, Spans):
            if self.theta is not None:
                given = (*self._turned(given[0], given[1], mask.places(queries.shape[1])), given[2])
            if takes_spans(given[0], self.heads):
                # [1, n, i] to [n, heads, i / heads]
                shape = (queries.shape[1], self.heads, -1)
                q, k, v = (states[0].view(shape) for states in given)
                attended = attend_spans(q, k, v, mask, self.window, dropout).flatten(1)[None]
            else:  # one after the other
                attended = self._each(given, mask, dropout)
        else:
            q, k, v = (self._split(states) for states in given)
            if self.theta is not None:
                first = torch.arange(k.shape[2], device=k.device)
                q = rotated(q, first if places is None else places, self.theta)
                k = rotated(k, first, self.theta)
            mask = self.seen(mask, k.shape[2], k.device, places)
            attended = attend(q, k, v, mask, dropout).transpose(1, 2).flatten(2)
        merged: Tensor = self.out(attended)
        return merged if self.branch is None else merged + self.branch(context, owners, places)

    def seen(
        self, mask: Tensor | None, tokens: int, device: torch.device, places: Tensor | None = None
    ) -> Tensor | None:
        """The mask, and of a local one what lies nearby. A token always sees itself, as what looks
        at nothing is no number, and it would be one of the padding."""
        if self.window is None:
            return mask
        where = torch.arange(tokens, device=device) if places is None else places
        near = nearby(where, tokens, self.window)
        return near if mask is None else (near & mask) | nearby(where, tokens, 0)

    def _turned(self, q: Tensor, k: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and keys [1, n, i] at these places [n]."""
        assert self.theta is not None
        turned = (rotated(self._split(one), places, self.theta) for one in (q, k))
        one, other = (states.transpose(1, 2).flatten(2) for states in turned)
        return one, other

    def _each(self, given: Sequence[Tensor], spans: Spans, dropout: float) -> Tensor:
        """Example after example, each [1, n, i], for which the device is waited for."""
        lengths = spans.offsets.diff().tolist()
        parts = [self._split(states).split_with_sizes(lengths, 2) for states in given]
        each = [
            attend(q, k, v, self.seen(None, q.shape[2], q.device), dropout)
            for q, k, v in zip(*parts, strict=True)
        ]
        return torch.cat(each, dim=2).transpose(1, 2).flatten(2)

    def _split(self, states: Tensor) -> Tensor:
        """[b, k, i] to [b, heads, k, i / heads]."""
        examples, tokens, _ = states.shape
        return states.view(examples, tokens, self.heads, -1).transpose(1, 2)
