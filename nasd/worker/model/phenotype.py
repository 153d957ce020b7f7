"""The model a genotype decodes to: a DistilBERT whose blocks may differ from each other.

Thesis 4.1: a backbone is a list of encoder blocks; each has one multi-head self-attention and one
or more feed-forward networks. Everything around the blocks (embeddings, post-layer-norm residuals,
heads) is DistilBERT's, so that the unmodified seed computes exactly what DistilBERT computes.

This file needs only torch and safetensors, because it also travels with exported models. Shapes:
b = examples, l = tokens of an example, k = chosen tokens of an example, w = the backbone's width.
"""

import json
import os
from collections.abc import Callable, Iterable, Mapping
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
# Of a classifier's first layer: DistilBERT's, and BERT's pooler's.
CLASSIFIERS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "tanh": torch.tanh}
MOST = {"blocks": 1000, "ffns": 64, "sizes": 64}  # the longest lists, as in a genotype
LARGEST = 10**6  # of every other size, and of a number of heads
CLASSIFYING = ("labels", "classifier_activation", "classifier_dropout")
MOST_PARAMETERS = 4 * 10**9  # of all together: 16 GB in float32


@dataclass(frozen=True, slots=True)
class FeedForwardShape:
    activation: str
    sizes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class BlockShape:
    heads: int
    ffns: tuple[FeedForwardShape, ...]


@dataclass(frozen=True, slots=True)
class Architecture:
    """All that the model's shape and behaviour depend on; the defaults are DistilBERT's.

    vocab_size, positions: rows of the two embedding tables. width: of every hidden state.
    dropout: after the embeddings and each feed-forward network; attention_dropout: on the attention
    probabilities; qa_dropout: before the question-answering head. All are shares of 1.
    rank: of the word embeddings, where they are a product; None: one full table. labels: what the
    outputs of a classifier mean; classifier_activation, classifier_dropout: in its head.
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
        if self.rank is None:  # as it was before there was such a thing
            del plain["rank"]
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
        width = self.width
        total = self.vocab_size * (self.rank or width) + (self.rank or 0) * width
        total += self.positions * width + 4 * width**2 * len(self.blocks)
        for ffn in (ffn for block in self.blocks for ffn in block.ffns):
            total += sum(into * out for into, out in pairwise((width, *ffn.sizes, width)))
        if total > MOST_PARAMETERS:
            raise ValueError(
                f"{CONFIG} asks for {total:,} parameters, of at most {MOST_PARAMETERS:,}"
            )


def _check_sizes(data: Mapping[str, Any]) -> None:
    """Raises ValueError, naming the key, for a model that nobody means, before any is allocated."""
    for key in ("vocab_size", "positions", "width"):
        check_size(key, data[key])
    if data.get("rank") is not None:
        check_size("rank", data["rank"])
    for number, block in enumerate(_short("blocks", data["blocks"])):
        check_size(f"blocks[{number}].heads", block["heads"])
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
        )
        for block in blocks
    )


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


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    """softmax(q k^T / sqrt(w)) v over [b, heads, k or l, w], where mask [b, 1, 1, l] is true.

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


def takes_spans(device: torch.device) -> bool:
    """Whether there is an attention that takes examples of any lengths in one go."""
    return device.type == "cuda"


class Embeddings(nn.Module):
    """Word plus learned position embeddings, normalised: [b, l] token ids to [b, l, w].

    With a rank r the words' table is [vocab_size, r], and `widen` maps what stands there to w.
    """

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        columns = arch.rank or arch.width
        self.word = nn.Embedding(arch.vocab_size, columns, padding_idx=arch.pad_token_id)
        self.widen = None if arch.rank is None else nn.Linear(columns, arch.width, bias=False)
        self.position = nn.Embedding(arch.positions, arch.width)
        self.norm = nn.LayerNorm(arch.width, eps=arch.norm_eps)
        self.dropout = Dropout(arch.dropout)

    def forward(self, input_ids: Tensor, places: Tensor | None = None) -> Tensor:
        """places: where in its example each token stands, if not one behind another from 0 on."""
        embedded: Tensor = self.dropout(self.norm(self.summed(input_ids, places)))
        return embedded

    def summed(self, input_ids: Tensor, places: Tensor | None = None) -> Tensor:
        """The same before the norm."""
        if places is None:
            where = self.position.weight[: input_ids.shape[1]]
        else:
            where = self.position(places)
        words = self.word(input_ids)
        summed: Tensor = (words if self.widen is None else self.widen(words)) + where
        return summed

    def logits(self, states: Tensor, bias: Tensor) -> Tensor:
        """States [b, k, w] times the embedding of each word, [b, k, vocab_size]."""
        if self.widen is not None:
            states = states @ self.widen.weight
        return F.linear(states, self.word.weight, bias)


class Attention(nn.Module):
    """Multi-head self-attention (thesis 4.1). The number of heads leaves no trace in the weights.

    Raises ValueError where the heads do not divide the width.
    """

    def __init__(self, heads: int, arch: Architecture) -> None:
        super().__init__()
        width = arch.width
        if width % heads:
            raise ValueError(f"{heads} attention heads do not divide the width {width}")
        self.heads = heads
        self.dropout = arch.attention_dropout
        self.q = nn.Linear(width, width)
        self.k = nn.Linear(width, width)
        self.v = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(self, queries: Tensor, context: Tensor, mask: Tensor | Spans | None) -> Tensor:
        """queries [b, k, w] look at context [b, l, w] where mask [b, 1, 1, l] is true, or, as one
        and the same [1, n, w], at their own example."""
        given = (self.q(queries), self.k(context), self.v(context))
        dropout = self.dropout if self.training else 0.0
        if isinstance(mask, Spans) and takes_spans(queries.device):
            q, k, v = (self._nested(states, mask) for states in given)
            attended = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
            attended = attended.transpose(1, 2).values().flatten(1)[None]
        elif isinstance(mask, Spans):  # one after the other
            lengths = mask.offsets.diff().tolist()
            parts = [self._split(states).split_with_sizes(lengths, 2) for states in given]
            each = [attend(q, k, v, None, dropout) for q, k, v in zip(*parts, strict=True)]
            attended = torch.cat(each, dim=2).transpose(1, 2).flatten(2)
        else:
            q, k, v = (self._split(states) for states in given)
            attended = attend(q, k, v, mask, dropout).transpose(1, 2).flatten(2)
        merged: Tensor = self.out(attended)
        return merged

    def _nested(self, states: Tensor, spans: Spans) -> Tensor:
        """[1, n, w] to [b, heads, k, w / heads], where k is each example's own."""
        values = states[0].view(states.shape[1], self.heads, -1)
        # Both lengths are given because asking the device for them would wait for it.
        return torch.nested.nested_tensor_from_jagged(
            values, spans.offsets, min_seqlen=1, max_seqlen=spans.longest
        ).transpose(1, 2)

    def _split(self, states: Tensor) -> Tensor:
        """[b, k, w] to [b, heads, k, w / heads]."""
        examples, tokens, _ = states.shape
        return states.view(examples, tokens, self.heads, -1).transpose(1, 2)


class FeedForward(nn.Module):
    """Stacked linear layers with an activation between (thesis 4.1): [b, k, w] to [b, k, w]."""

    def __init__(self, shape: FeedForwardShape, arch: Architecture) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[shape.activation]
        widths = (arch.width, *shape.sizes, arch.width)
        self.linears = nn.ModuleList(nn.Linear(into, out) for into, out in pairwise(widths))
        self.dropout = Dropout(arch.dropout)

    def forward(self, states: Tensor) -> Tensor:
        for index, linear in enumerate(self.linears):
            states = linear(self.activation(states) if index else states)
        dropped: Tensor = self.dropout(states)
        return dropped


class Block(nn.Module):
    """An encoder block with DistilBERT's residuals, each normalised after the sum.

    The norms belong to the block: a feed-forward network or an attention can be exchanged while
    the norm at its place stays.
    """

    def __init__(self, shape: BlockShape, arch: Architecture) -> None:
        super().__init__()
        self.attention = Attention(shape.heads, arch)
        self.attention_norm = nn.LayerNorm(arch.width, eps=arch.norm_eps)
        self.ffns = nn.ModuleList(FeedForward(ffn, arch) for ffn in shape.ffns)
        self.ffn_norms = nn.ModuleList(
            nn.LayerNorm(arch.width, eps=arch.norm_eps) for _ in shape.ffns
        )

    def layers(self) -> list[tuple[nn.Module, ...]]:
        """From below: the attention and each feed-forward network, with the norm behind it."""
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
            if positions is not None:
                chosen = states.gather(1, positions.unsqueeze(-1).expand(-1, -1, states.shape[-1]))
            chosen = self.attention_norm(self.attention(chosen, states, mask) + chosen)
        for ffn, norm in self.layers()[max(first, 1) : last]:
            chosen = norm(ffn(chosen) + chosen)
        return chosen


class Encoder(nn.Module):
    """Embeddings and blocks: the part that evolves."""

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        self.embeddings = Embeddings(arch)
        self.blocks = nn.ModuleList(Block(block, arch) for block in arch.blocks)

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
        return self._through(range(done, len(self.layers())), states, attention_mask, positions)

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
        states: Tensor = self.embeddings(kept, packing.places[None] % longest)
        for block in self.blocks:
            states = block(states, Spans(packing.offsets, longest))
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
        self.transform = nn.Linear(arch.width, arch.width)
        self.activation = ACTIVATIONS[arch.head_activation]
        self.norm = nn.LayerNorm(arch.width, eps=arch.norm_eps)
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


class QuestionAnswering(nn.Module):
    """The encoder under a head for the answer's start and end, as DistilBERT has it."""

    head_name: ClassVar[str] = "qa_outputs"

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        self.architecture = arch
        self.encoder = Encoder(arch)
        self.dropout = Dropout(arch.qa_dropout)
        self.qa_outputs = nn.Linear(arch.width, 2)

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
        if packing is None:
            states = self.encoder(input_ids, attention_mask)
        else:
            states = self.encoder.packed(input_ids, packing)
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
    kind: type[Model], folder: Path, generator: torch.Generator, dropout: float | None = None
) -> Model:
    """The same of any kind. A classifier's labels are those of the model in `folder`."""
    arch = load_architecture(folder).with_dropout(dropout)
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
