"""The model a genotype decodes to: a DistilBERT whose blocks may differ from each other.

Thesis 4.1: a backbone is a list of encoder blocks; each has one multi-head self-attention and one
or more feed-forward networks. Everything around the blocks (embeddings, norms, heads) is the
seed's, DistilBERT's unless the architecture says otherwise, so that the unmodified seed computes
exactly what it computed before.

This file needs only torch and safetensors, because it also travels with exported models. Shapes:
b = examples, l = tokens of an example, k = chosen tokens of an example, w = the backbone's width.
"""

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import pairwise, takewhile
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self, TypeVar, cast

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

MODEL_TYPE = "nasd"
WEIGHTS = "model.safetensors"
CONFIG = "config.json"


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
MOST = {"blocks": 1000, "ffns": 64, "sizes": 64}  # the longest lists, as in a genotype
LARGEST = 10**6  # of every other size, and of a number of heads
LONGEST_KERNEL = 99  # of a convolution
CLASSIFYING = ("labels", "classifier_activation", "classifier_dropout")
MOST_PARAMETERS = 4 * 10**9  # of all together: 16 GB in float32


@dataclass(frozen=True, slots=True)
class FeedForwardShape:
    activation: str
    sizes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class BlockShape:
    """role: `local` where its attention looks at neighbours alone. bare: without the attention's
    norm. convolution: tokens that the depthwise convolutions of its queries, keys and values reach
    over; branch: likewise of the convolution beside it; None where there are none."""

    heads: int
    ffns: tuple[FeedForwardShape, ...]
    role: str | None = None
    bare: bool = False
    convolution: int | None = None
    branch: int | None = None


@dataclass(frozen=True, slots=True)
class Architecture:
    """All that the model's shape and behaviour depend on; the defaults are DistilBERT's.

    vocab_size, positions: rows of the two embedding tables. width: of every hidden state.
    dropout: after the embeddings and each feed-forward network; attention_dropout: on the attention
    probabilities; qa_dropout: before the question-answering head. All are shares of 1.
    rank: of the word embeddings, where they are a product; None: one full table. labels: what the
    outputs of a classifier mean; classifier_activation, classifier_dropout: in its head.

    embedding_width: of the embeddings, where a layer then maps them to the width. biases: of linear
    layers and norms. pre_norm: norms stand before their modules, and one behind the last block.
    theta: the base of rotary positions, in the place of learned ones; local_theta: of local blocks,
    each of whose tokens sees `window` tokens to either side. deep_head: the head for questions has
    a layer, an activation and a norm of its own before its outputs. separator: the token behind
    whose first one in an example the second of two texts stands, where that is told from the first
    by an embedding (BERT's token types); None: the two are alike.
    """

    vocab_size: int
    positions: int
    width: int
    blocks: tuple[BlockShape, ...]
    pad_token_id: int = 0
    dropout: float = 0.1
    attention_dropout: float = 0.1
    qa_dropout: float = 0.1
    head_activation: str = "gelu"
    norm_eps: float = 1e-12
    initializer_range: float = 0.02
    rank: int | None = None
    labels: tuple[str, ...] = ()
    classifier_activation: str = "relu"
    classifier_dropout: float = 0.2
    embedding_width: int | None = None
    biases: bool = True
    pre_norm: bool = False
    theta: float | None = None
    local_theta: float | None = None
    window: int | None = None
    deep_head: bool = False
    separator: int | None = None

    def with_blocks(self, blocks: Iterable[Mapping[str, Any]]) -> Self:
        """The same backbone around other blocks, given as in a genotype's JSON."""
        return replace(self, blocks=_blocks(blocks))

    def with_genotype(self, data: Mapping[str, Any]) -> Self:
        """The same backbone with all that a genotype's JSON says."""
        return replace(self, blocks=_blocks(data["blocks"]), rank=data.get("rank"))

    def with_dropout(self, share: float | None) -> Self:
        """The same architecture with every dropout set to `share`; None leaves them alone."""
        if share is None:
            return self
        return replace(
            self,
            dropout=share,
            attention_dropout=share,
            qa_dropout=share,
            classifier_dropout=share,
        )

    def with_labels(self, labels: Iterable[str]) -> Self:
        """The same architecture, of which a classifier is to tell these."""
        return replace(self, labels=tuple(labels))

    def to_json(self) -> dict[str, Any]:
        """The content of config.json, where `blocks` reads as in a genotype's JSON."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        for name in LATER:  # as it was before there were such things
            if plain[name] == _DEFAULTS[name]:
                del plain[name]
        for block in plain["blocks"]:
            for name, usual in _LATER_OF_BLOCKS.items():
                if block[name] == usual:
                    del block[name]
        if not self.labels:  # as it was before there were classifiers
            plain = {name: plain[name] for name in plain if name not in CLASSIFYING}
        return {"model_type": MODEL_TYPE, **plain}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Inverse of `to_json`; keys of others (transformers adds some) are passed over."""
        _check_sizes(data)
        known = {field.name: data[field.name] for field in fields(cls) if field.name in data}
        labels = tuple(map(str, known.get("labels") or ()))
        found = cls(**{**known, "blocks": _blocks(data["blocks"]), "labels": labels})
        if found.classifier_activation not in CLASSIFIERS:
            raise ValueError(
                f"classifier_activation in {CONFIG} is none of {', '.join(CLASSIFIERS)}"
            )
        found.check_parameters()
        return found

    def check_parameters(self) -> None:
        """Raises ValueError for more than anyone means, though each number by itself may be one."""
        width, inner = self.width, self.embedding_width or self.width
        total = self.vocab_size * (self.rank or inner) + (self.rank or 0) * inner
        total += 0 if self.embedding_width is None else inner * width
        total += 0 if self.theta is not None else self.positions * inner
        total += 4 * width**2 * len(self.blocks)
        for block in self.blocks:
            total += 3 * width * (block.convolution or 0)
            total += 0 if block.branch is None else width * (block.branch + width)
        for ffn in (ffn for block in self.blocks for ffn in block.ffns):
            total += sum(into * out for into, out in pairwise((width, *ffn.sizes, width)))
            total += width * ffn.sizes[0] if ffn.activation in GATED else 0
        if total > MOST_PARAMETERS:
            raise ValueError(
                f"{CONFIG} asks for {total:,} parameters, of at most {MOST_PARAMETERS:,}"
            )


def _check_sizes(data: Mapping[str, Any]) -> None:
    """Raises ValueError, naming the key, for a model that nobody means, before any is allocated."""
    for key in ("vocab_size", "positions", "width"):
        check_size(key, data[key])
    for key in ("rank", "embedding_width", "window"):
        if data.get(key) is not None:
            check_size(key, data[key])
    separator = data.get("separator")
    if separator is not None and separator not in range(data["vocab_size"]):
        raise ValueError(f"separator in {CONFIG} is no token of the vocabulary")
    for number, block in enumerate(_short("blocks", data["blocks"])):
        check_size(f"blocks[{number}].heads", block["heads"])
        for key in ("convolution", "branch"):
            if block.get(key) is not None:
                check_size(f"blocks[{number}].{key}", block[key], LONGEST_KERNEL)
                if block[key] % 2 == 0:
                    raise ValueError(f"blocks[{number}].{key} in {CONFIG} is no odd number")
        for ffn in _short("ffns", block["ffns"]):
            for size in _short("sizes", ffn["sizes"]):
                check_size(f"blocks[{number}].ffns sizes", size)


def check_size(key: str, value: Any, most: int = LARGEST) -> None:
    """Raises ValueError, naming the key of config.json, for what is no size of a model."""
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise ValueError(f"{key} in {CONFIG} is no whole number from 1 to {most:,}")


def _short(key: str, values: Any) -> Any:
    if not isinstance(values, list | tuple) or len(values) > MOST[key]:
        raise ValueError(f"{key} in {CONFIG} is no list of at most {MOST[key]:,}")
    return values


def _blocks(blocks: Iterable[Mapping[str, Any]]) -> tuple[BlockShape, ...]:
    return tuple(
        BlockShape(
            heads=block["heads"],
            ffns=tuple(
                FeedForwardShape(ffn["activation"], tuple(ffn["sizes"])) for ffn in block["ffns"]
            ),
            role=block.get("role"),
            bare=bool(block.get("bare", False)),
            convolution=block.get("convolution"),
            branch=block.get("branch"),
        )
        for block in blocks
    )


# Fields that an architecture has learned of later, and says only where they differ.
LATER = (
    "rank", "embedding_width", "biases", "pre_norm", "theta", "local_theta", "window", "deep_head",
    "separator",
)  # fmt: skip
_DEFAULTS = {field.name: field.default for field in fields(Architecture)}
_LATER_OF_BLOCKS = {
    field.name: field.default for field in fields(BlockShape) if field.name not in ("heads", "ffns")
}


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
SPAN_WIDTH = 8  # of which attention over variable lengths takes multiples


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


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    """softmax(q k^T / sqrt(w)) v over [b, heads, k or l, w], where mask [b, 1, 1 or k, l] is true.

    torch's own has no fast way through dropout on a CPU, and none at all in bfloat16: there it
    computes in float32. So there it is spelled out.
    """
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
    half = states.dtype in (torch.bfloat16, torch.float16)
    return half and states.is_cuda and states.shape[-1] // heads % SPAN_WIDTH == 0


def attend_spans(
    q: Tensor, k: Tensor, v: Tensor, spans: "Spans", window: int | None, dropout: float
) -> Tensor:
    """Attention within each example of [n, heads, w / heads], and within a window where it is
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


def norm_of(width: int, arch: Architecture) -> nn.LayerNorm:
    return nn.LayerNorm(width, eps=arch.norm_eps, bias=arch.biases)


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


class Embeddings(nn.Module):
    """Word plus learned position embeddings, normalised: [b, l] token ids to [b, l, w].

    With a rank r the words' table is [vocab_size, r], and `widen` maps what stands there to the
    embeddings' width e; where that is not w, `project` maps what is normalised to w. With a
    separator, `second` [e] is added to the words of a second text; it never trains.
    """

    second: Tensor

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        inner = arch.embedding_width or arch.width
        columns = arch.rank or inner
        self.word = nn.Embedding(arch.vocab_size, columns, padding_idx=arch.pad_token_id)
        self.widen = None if arch.rank is None else nn.Linear(columns, inner, bias=False)
        self.position = None if arch.theta is not None else nn.Embedding(arch.positions, inner)
        self.separator = arch.separator
        if arch.separator is not None:
            self.register_buffer("second", torch.zeros(inner))
        self.norm = norm_of(inner, arch)
        self.project: nn.Linear | None = None
        if arch.embedding_width is not None:
            self.project = nn.Linear(inner, arch.width, bias=arch.biases)
        self.dropout = Dropout(arch.dropout)

    def forward(
        self, input_ids: Tensor, places: Tensor | None = None, behind: Tensor | None = None
    ) -> Tensor:
        """places: where in its example each token stands, if not one behind another from 0 on;
        behind: what `behind` gives for it then."""
        normed: Tensor = self.dropout(self.norm(self.summed(input_ids, places, behind)))
        return normed if self.project is None else self.project(normed)

    def behind(self, input_ids: Tensor) -> Tensor | None:
        """[b, l] whether a token is of the second text; None where that makes no difference."""
        if self.separator is None:
            return None
        ends = (input_ids == self.separator).long()
        return ends.cumsum(1) > ends

    def summed(
        self, input_ids: Tensor, places: Tensor | None = None, behind: Tensor | None = None
    ) -> Tensor:
        """The same before the norm, [b, l, e]."""
        words: Tensor = self.word(input_ids)
        if self.widen is not None:
            words = self.widen(words)
        if behind is None:
            behind = self.behind(input_ids)
        if behind is not None:
            words = words + behind[..., None].to(words.dtype) * self.second
        if self.position is None:
            return words
        if places is None:
            where = self.position.weight[: input_ids.shape[1]]
        else:
            where = self.position(places)
        return words + where

    def finished(self, summed: Tensor) -> Tensor:
        """What is made of the sum, without dropout."""
        normed: Tensor = self.norm(summed)
        return normed if self.project is None else self.project(normed)

    def logits(self, states: Tensor, bias: Tensor) -> Tensor:
        """States [b, k, e] times the embedding of each word, [b, k, vocab_size]."""
        if self.widen is not None:
            states = states @ self.widen.weight
        return F.linear(states, self.word.weight, bias)


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


def at_places(states: Tensor, places: Tensor | None) -> Tensor:
    """[b, n, w] to [b, k, w]; None: all of them."""
    if places is None:
        return states
    return states.gather(1, places.unsqueeze(-1).expand(-1, -1, states.shape[-1]))


class Attention(nn.Module):
    """Multi-head self-attention (thesis 4.1). The number of heads leaves no trace in the weights,
    nor does its role.

    With a convolution each channel of queries, keys and values is convolved over the tokens before
    they are compared (Primer, So et al. 2021); with a branch, a convolution of what is read is
    added to what is attended (AutoBERT-Zero, Gao et al. 2022).

    Raises ValueError where the heads do not divide the width, or rotary ones have an odd width.
    """

    def __init__(
        self,
        heads: int,
        arch: Architecture,
        role: str | None = None,
        convolution: int | None = None,
        branch: int | None = None,
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
        self.heads = heads
        self.dropout = arch.attention_dropout
        self.q = nn.Linear(width, width, bias=arch.biases)
        self.k = nn.Linear(width, width, bias=arch.biases)
        self.v = nn.Linear(width, width, bias=arch.biases)
        self.out = nn.Linear(width, width, bias=arch.biases)
        self.convolutions: nn.ModuleDict | None = None
        if convolution is not None:
            self.convolutions = nn.ModuleDict(
                {name: Depthwise(width, convolution) for name in ("q", "k", "v")}
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
        """Queries [b, k, w], and keys and values [b, l, w], as they are compared."""
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
                # [1, n, w] to [n, heads, w / heads]
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
        """Queries and keys [1, n, w] at these places [n]."""
        assert self.theta is not None
        turned = (rotated(self._split(one), places, self.theta) for one in (q, k))
        one, other = (states.transpose(1, 2).flatten(2) for states in turned)
        return one, other

    def _each(self, given: Sequence[Tensor], spans: Spans, dropout: float) -> Tensor:
        """Example after example, each [1, n, w], for which the device is waited for."""
        lengths = spans.offsets.diff().tolist()
        parts = [self._split(states).split_with_sizes(lengths, 2) for states in given]
        each = [
            attend(q, k, v, self.seen(None, q.shape[2], q.device), dropout)
            for q, k, v in zip(*parts, strict=True)
        ]
        return torch.cat(each, dim=2).transpose(1, 2).flatten(2)

    def _split(self, states: Tensor) -> Tensor:
        """[b, k, w] to [b, heads, k, w / heads]."""
        examples, tokens, _ = states.shape
        return states.view(examples, tokens, self.heads, -1).transpose(1, 2)


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


class Block(nn.Module):
    """An encoder block with DistilBERT's residuals, each normalised after the sum; with `pre_norm`
    what a module reads is normalised, and the sums are not.

    The norms belong to the block: a feed-forward network or an attention can be exchanged while
    the norm at its place stays.
    """

    def __init__(self, shape: BlockShape, arch: Architecture) -> None:
        super().__init__()
        self.pre_norm = arch.pre_norm
        self.attention = Attention(shape.heads, arch, shape.role, shape.convolution, shape.branch)
        self.attention_norm = nn.Identity() if shape.bare else norm_of(arch.width, arch)
        self.ffns = nn.ModuleList(FeedForward(ffn, arch) for ffn in shape.ffns)
        self.ffn_norms = nn.ModuleList(norm_of(arch.width, arch) for _ in shape.ffns)

    def layers(self) -> list[tuple[nn.Module, ...]]:
        """From below: the attention and each feed-forward network, with the norm behind it, or with
        `pre_norm` the one before it."""
        return [
            (self.attention, self.attention_norm),
            *zip(self.ffns, self.ffn_norms, strict=True),
        ]

    def forward(
        self,
        states: Tensor,
        mask: Tensor | Spans | None,
        positions: Tensor | None = None,
        first: int = 0,
        last: int | None = None,
    ) -> Tensor:
        """[b, l, w] to [b, l, w], or to [b, k, w] where only `positions` [b, k] are wanted.

        first, last: computes only these of its layers, layers()[first:last]; behind the attention,
        `states` are those at the positions already.
        """
        chosen: Tensor = states
        if first == 0:
            read: Tensor = self.attention_norm(states) if self.pre_norm else states
            asking = read
            if positions is not None:
                chosen, asking = at_places(states, positions), at_places(read, positions)
            chosen = self.attention(asking, read, mask, positions) + chosen
            if not self.pre_norm:
                chosen = self.attention_norm(chosen)
        for ffn, norm in self.layers()[max(first, 1) : last]:
            chosen = ffn(norm(chosen)) + chosen if self.pre_norm else norm(ffn(chosen) + chosen)
        return chosen


class Encoder(nn.Module):
    """Embeddings and blocks: the part that evolves. With `pre_norm` a norm stands behind them."""

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        self.embeddings = Embeddings(arch)
        self.blocks = nn.ModuleList(Block(block, arch) for block in arch.blocks)
        self.final_norm = norm_of(arch.width, arch) if arch.pre_norm else nn.Identity()

    @property
    def _blocks(self) -> list[Block]:
        return cast("list[Block]", self.blocks)

    def layers(self) -> list[tuple[nn.Module, ...]]:
        """From below: the embeddings, and those of each block."""
        return [(self.embeddings,), *(layer for block in self._blocks for layer in block.layers())]

    def frozen_prefix(self) -> list[tuple[nn.Module, ...]]:
        """The layers below the lowest module that trains."""

        def frozen(layer: tuple[nn.Module, ...]) -> bool:
            return not any(weight.requires_grad for part in layer for weight in part.parameters())

        return list(takewhile(frozen, self.layers()))

    def narrows(self, layers: int) -> bool:
        """Whether the lowest `layers` give states at the wanted positions alone, as all do that
        hold the last block's attention."""
        return layers > len(self.layers()) - len(self._blocks[-1].layers())

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        positions: Tensor | None = None,
        known: Tensor | None = None,
    ) -> Tensor:
        """Token ids [b, l] to states [b, l, w], or [b, k, w] at `positions` [b, k] alone.

        attention_mask [b, l] is 0 where a token is padding; None means that there is none, which
        is faster. Where only some positions are wanted, the last block computes no others. known:
        what `below` gives for this input and these positions, which is then not computed again.
        """
        done = 0 if known is None else len(self.frozen_prefix())
        states = input_ids if known is None else known
        given = self._through(range(done, len(self.layers())), states, attention_mask, positions)
        finished: Tensor = self.final_norm(given)
        return finished

    def below(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """What the frozen prefix makes of token ids [b, l]: states [b, l, w], or [b, k, w] at
        `positions` [b, k] where it narrows."""
        layers = range(len(self.frozen_prefix()))
        return self._through(layers, input_ids, attention_mask, positions)

    def packed(self, input_ids: Tensor, packing: Packing) -> Tensor:
        """Token ids [b, l] to states [b, l, w], 0 in the padding, for which nothing is computed."""
        examples, longest = input_ids.shape
        kept = input_ids.flatten()[packing.places][None]
        behind = self.embeddings.behind(input_ids)
        if behind is not None:
            behind = behind.flatten()[packing.places][None]
        states: Tensor = self.embeddings(kept, packing.places[None] % longest, behind)
        for block in self.blocks:
            states = block(states, Spans(packing.offsets, longest))
        states = self.final_norm(states)
        spread = states.new_zeros(examples * longest, states.shape[-1])
        return spread.index_copy(0, packing.places, states[0]).view(examples, longest, -1)

    def _through(
        self, layers: range, states: Tensor, attention_mask: Tensor | None, positions: Tensor | None
    ) -> Tensor:
        """Through a range of the layers, of which the first takes token ids."""
        mask = None if attention_mask is None else attention_mask.bool()[:, None, None, :]
        if 0 in layers:
            states = self.embeddings(states)
        begin = 1  # of the block's own layers
        for block in self._blocks:
            end = begin + len(block.layers())
            first, last = max(layers.start, begin), min(layers.stop, end)
            if first < last:
                wanted = positions if block is self._blocks[-1] else None
                part = (first - begin, None if last == end else last - begin)
                states = block(states, mask, wanted, *part)
            begin = end
        return states


class MaskedLMHead(nn.Module):
    """Logits over the vocabulary, DistilBERT's way. Its last layer multiplies with the word
    embeddings, which it is handed rather than holds, so each weight has one name and one owner."""

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        inner = arch.embedding_width or arch.width
        self.transform = nn.Linear(arch.width, inner, bias=arch.biases)
        self.activation = ACTIVATIONS[arch.head_activation]
        self.norm = norm_of(inner, arch)
        self.bias = nn.Parameter(torch.zeros(arch.vocab_size))

    def forward(self, states: Tensor, words: Embeddings) -> Tensor:
        """[b, k, w] and the embeddings to logits [b, k, vocab_size]."""
        return words.logits(self.norm(self.activation(self.transform(states))), self.bias)


class MaskedLM(nn.Module):
    """The encoder under a masked-language-model head."""

    head_name: ClassVar[str] = "head"

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        self.architecture = arch
        self.encoder = Encoder(arch)
        self.head = MaskedLMHead(arch)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        positions: Tensor | None = None,
        known: Tensor | None = None,
    ) -> Tensor:
        """Token ids [b, l] to logits [b, l, vocab_size].

        With `positions` [b, k], the places of the wanted tokens in each example, logits
        [b, k, vocab_size] at those alone. known: see the encoder.
        """
        states = self.encoder(input_ids, attention_mask, positions, known)
        logits: Tensor = self.head(states, self.encoder.embeddings)
        return logits


class DeepHead(nn.Module):
    """ModernBERT's head of a task: a layer, its activation and a norm before the outputs."""

    def __init__(self, arch: Architecture, outputs: int, dropout: float) -> None:
        super().__init__()
        self.dense = nn.Linear(arch.width, arch.width, bias=arch.biases)
        self.activation = ACTIVATIONS[arch.head_activation]
        self.norm = norm_of(arch.width, arch)
        self.dropout = Dropout(dropout)
        self.out = nn.Linear(arch.width, outputs)

    def forward(self, states: Tensor) -> Tensor:
        """[b, k, w] to [b, k, outputs]."""
        given: Tensor = self.out(self.dropout(self.norm(self.activation(self.dense(states)))))
        return given


def answering_head(arch: Architecture) -> tuple[Dropout, nn.Module]:
    """What stands on the encoder for questions: a dropout, and what gives the two logits."""
    if arch.deep_head:
        return Dropout(0.0), DeepHead(arch, 2, arch.qa_dropout)
    return Dropout(arch.qa_dropout), nn.Linear(arch.width, 2)


class QuestionAnswering(nn.Module):
    """The encoder under a head for the answer's start and end, as its seed's family has it."""

    head_name: ClassVar[str] = "qa_outputs"

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        self.architecture = arch
        self.encoder = Encoder(arch)
        self.dropout, self.qa_outputs = answering_head(arch)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        packing: Packing | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Token ids [b, l] to the logits [b, l] of the answer's start and of its end.

        packing: says what attention_mask says, and spares computing the padding, whose logits mean
        nothing then.
        """
        states = _states(self.encoder, input_ids, attention_mask, packing)
        logits = self.qa_outputs(self.dropout(states))
        start, end = logits.unbind(-1)
        return start.contiguous(), end.contiguous()


class ClassificationHead(nn.Module):
    """DistilBERT's head on the first token's state; with tanh BERT's, whose first layer is the
    pooler."""

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        self.transform = nn.Linear(arch.width, arch.width)
        self.activation = CLASSIFIERS[arch.classifier_activation]
        self.dropout = Dropout(arch.classifier_dropout)
        self.out = nn.Linear(arch.width, len(arch.labels))

    def forward(self, states: Tensor) -> Tensor:
        """[b, w] to logits [b, labels]."""
        logits: Tensor = self.out(self.dropout(self.activation(self.transform(states))))
        return logits


class SequenceClassification(nn.Module):
    """The encoder under a head for the label of a whole text; with one label, for its number."""

    head_name: ClassVar[str] = "classifier"

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        self.architecture = arch
        self.encoder = Encoder(arch)
        self.classifier = ClassificationHead(arch)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        packing: Packing | None = None,
    ) -> Tensor:
        """Token ids [b, l] to logits [b, labels]; packing as in QuestionAnswering."""
        logits: Tensor = self.classifier(
            _states(self.encoder, input_ids, attention_mask, packing)[:, 0]
        )
        return logits


class TokenClassification(nn.Module):
    """The encoder under a head for the label of each token."""

    head_name: ClassVar[str] = "classifier"

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        self.architecture = arch
        self.encoder = Encoder(arch)
        self.dropout = Dropout(arch.dropout)
        self.classifier = nn.Linear(arch.width, len(arch.labels))

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        packing: Packing | None = None,
    ) -> Tensor:
        """Token ids [b, l] to logits [b, l, labels]; packing as in QuestionAnswering."""
        states = _states(self.encoder, input_ids, attention_mask, packing)
        logits: Tensor = self.classifier(self.dropout(states))
        return logits


def _states(
    encoder: Encoder, input_ids: Tensor, attention_mask: Tensor | None, packing: Packing | None
) -> Tensor:
    """[b, l, w]; where it is packed, 0 in the padding."""
    if packing is None:
        found: Tensor = encoder(input_ids, attention_mask)
        return found
    return encoder.packed(input_ids, packing)


AnyModel = MaskedLM | QuestionAnswering | SequenceClassification | TokenClassification
Model = TypeVar("Model", MaskedLM, QuestionAnswering, SequenceClassification, TokenClassification)


@torch.no_grad()
def initialise(module: nn.Module, generator: torch.Generator, spread: float = 0.02) -> None:
    """BERT's initialisation of all that `module` holds (Devlin et al. 2019), in place.

    Weights are normal with standard deviation `spread`, biases and the padding's embedding 0, layer
    norms the identity. The draws come from `generator`, on the CPU and in the modules' order, so
    they are the same on every device.
    """
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Embedding):
            drawn = torch.empty(part.weight.shape).normal_(0.0, spread, generator=generator)
            if isinstance(part, nn.Embedding) and part.padding_idx is not None:
                drawn[part.padding_idx] = 0.0
            part.weight.copy_(drawn)
        elif isinstance(part, nn.LayerNorm):
            part.weight.fill_(1.0)
        elif isinstance(part, Depthwise):
            part.pass_through()
        if isinstance(part, nn.Linear | nn.LayerNorm | MaskedLMHead) and part.bias is not None:
            part.bias.zero_()


def empty(kind: type[Model], arch: Architecture) -> Model:
    """A model with uninitialised weights: for who fills every one, as torch's own take a second."""
    with torch.device("meta"):
        model = kind(arch)
    return model.to_empty(device="cpu")


def save(model: AnyModel, folder: Path) -> None:
    """Writes config.json and model.safetensors, each whole or not at all, and durably."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "architectures": [f"NasdFor{type(model).__name__}"],
        **model.architecture.to_json(),
    }
    state = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    _replace(folder / CONFIG, lambda path: path.write_text(json.dumps(config, indent=2) + "\n"))
    _replace(folder / WEIGHTS, lambda path: save_file(state, path, metadata={"format": "pt"}))
    _sync(folder)


def load_architecture(folder: Path) -> Architecture:
    """The architecture of a model that `save`, or transformers, wrote into `folder`."""
    return Architecture.from_json(json.loads((folder / CONFIG).read_text(encoding="utf-8")))


def load_state(folder: Path) -> dict[str, Tensor]:
    """The weights of a model that `save`, or transformers, wrote into `folder`, on the CPU."""
    return load_file(folder / WEIGHTS)


def load(kind: type[Model], folder: Path, dropout: float | None = None) -> Model:
    """The model in `folder` as a `kind`, on the CPU; `dropout` overrides all three of its own.

    Raises ValueError where the folder holds another kind, or weights that do not fit.
    """
    return _filled(kind, load_architecture(folder).with_dropout(dropout), folder, {})


def load_for_answering(
    folder: Path, generator: torch.Generator, dropout: float | None = None
) -> QuestionAnswering:
    """As `load`, but from a MaskedLM too: its encoder, under a head drawn from `generator`."""
    return load_under_head(QuestionAnswering, folder, generator, dropout)


def load_under_head(
    kind: type[Model],
    folder: Path,
    generator: torch.Generator,
    dropout: float | None = None,
    labels: Iterable[str] = (),
) -> Model:
    """The same of any kind. labels: a classifier's."""
    arch = load_architecture(folder).with_dropout(dropout).with_labels(labels)
    with torch.device("meta"):
        head = kind(arch).get_submodule(kind.head_name)
    fresh = nn.ModuleDict({kind.head_name: head.to_empty(device="cpu")})
    initialise(fresh, generator, arch.initializer_range)
    return _filled(kind, arch, folder, fresh.state_dict())


def _filled(
    kind: type[Model], arch: Architecture, folder: Path, fallback: Mapping[str, Tensor]
) -> Model:
    """A `kind` with the weights in `folder`; those it lacks come from `fallback`."""
    model = empty(kind, arch)
    state = {**fallback, **load_state(folder)}
    mine = ("encoder.", f"{kind.head_name}.")  # another kind's head is passed over
    try:
        # Copied, not adopted: where a tensor lies in the file could bend its results' last bit.
        model.load_state_dict({name: state[name] for name in state if name.startswith(mine)})
    except RuntimeError as error:
        raise ValueError(f"{folder} holds no {kind.__name__}: {error}") from error
    return model


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    """Lets `write` make a file under a temporary name; syncs it and puts it in place."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        _sync(temporary)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
