"""The shape of a model: what a genotype, and the seed around it, decode to.

It travels with exported models. Needs only torch.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from itertools import pairwise
from typing import Any, Self

from torch import nn

from .layers import CLASSIFIERS, GATED

MODEL_TYPE = "nasd"


CONFIG = "config.json"


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
    over; branch: likewise of the convolution beside it; None where there are none. heads: into how
    many the width is divided; remaining: how many of these there are, None where all are."""

    heads: int
    ffns: tuple[FeedForwardShape, ...]
    role: str | None = None
    bare: bool = False
    convolution: int | None = None
    branch: int | None = None
    remaining: int | None = None

    def inner(self, width: int) -> int:
        """The width of its queries, of all heads together, in a backbone of this width."""
        return width if self.remaining is None else width // self.heads * self.remaining


@dataclass(frozen=True, slots=True)
class Architecture:
    """All that the model's shape and behaviour depend on; the defaults are DistilBERT's.

    vocab_size, positions: rows of the two embedding tables. width: of every hidden state.
    dropout: after the embeddings and each feed-forward network; attention_dropout: on the attention
    probabilities; qa_dropout: before the question-answering head. All are shares of 1.
    rank: of the word embeddings, where they are a product; None: one full table. frequent: words
    that have a row of the full width then. labels: what the outputs of a classifier mean;
    classifier_activation, classifier_dropout: in its head.

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
    frequent: int = 0

    def with_blocks(self, blocks: Iterable[Mapping[str, Any]]) -> Self:
        """The same backbone around other blocks, given as in a genotype's JSON."""
        return replace(self, blocks=_blocks(blocks))

    def with_genotype(self, data: Mapping[str, Any]) -> Self:
        """The same backbone with all that a genotype's JSON says."""
        words = {"rank": data.get("rank"), "frequent": data.get("frequent", 0)}
        return replace(self, blocks=_blocks(data["blocks"]), **words)

    @property
    def words(self) -> tuple[int | None, int]:
        """The shape of its word embeddings, as a genotype's."""
        return self.rank, self.frequent

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
        total = (self.vocab_size - self.frequent) * (self.rank or inner)
        total += (self.frequent + (self.rank or 0)) * inner
        total += 0 if self.embedding_width is None else inner * width
        total += 0 if self.theta is not None else self.positions * inner
        for block in self.blocks:
            inner = block.inner(width)
            total += 4 * width * inner + 3 * inner * (block.convolution or 0)
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
    if data.get("frequent"):
        check_size("frequent", data["frequent"], data["vocab_size"] - 1)
        if data.get("rank") is None:
            raise ValueError(f"frequent in {CONFIG} stands there without a rank")
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
        if block.get("remaining") is not None:
            check_size(f"blocks[{number}].remaining", block["remaining"], block["heads"] - 1)
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
            remaining=block.get("remaining"),
        )
        for block in blocks
    )


# Fields that an architecture has learned of later, and says only where they differ.
LATER = (
    "rank", "embedding_width", "biases", "pre_norm", "theta", "local_theta", "window", "deep_head",
    "separator", "frequent",
)  # fmt: skip
_DEFAULTS = {field.name: field.default for field in fields(Architecture)}
_LATER_OF_BLOCKS = {
    field.name: field.default for field in fields(BlockShape) if field.name not in ("heads", "ffns")
}


def norm_of(width: int, arch: Architecture) -> nn.LayerNorm:
    return nn.LayerNorm(width, eps=arch.norm_eps, bias=arch.biases)
