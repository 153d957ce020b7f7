"""The encoding of an architecture, and how it came from its parent's.

A genotype is an immutable list of encoder blocks (thesis 4.1). It knows nothing of weights: the
same architecture always has the same hash. Which modules still wait for their first training
(the thesis's flag, 4.2.1) is a `Lineage`, kept beside the genotype.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any, Literal, Self, get_args

from nasd.contract.errors import NasdError
from nasd.contract.readable import shown

# relu2: relu, squared (Primer, So et al. 2021); geglu: gated gelu (Shazeer 2020).
Activation = Literal["relu", "gelu", "relu2", "geglu"]
LETTERS = {"relu": "r", "gelu": "g", "relu2": "s", "geglu": "gg"}  # in a genotype's line
Role = Literal["local", "global"]
Origin = Literal["kept", "altered", "added"]
Transfer = Literal["kept", "fresh", "identity", "ranked"]

GATED = ("geglu",)  # its first layer gives each unit a second value, by which it is multiplied

# Of what an architecture may be made at all. So its parameters can be counted in SQLite's 64 bits.
MOST_BLOCKS = 1000
MOST_FFNS = 64  # in a block
MOST_LAYERS = 64  # in a feed-forward network
LARGEST = 10**6  # of a size, and of a number of heads
LONGEST_KERNEL = 99  # of a convolution
# Each of these may be large, and not all at once: to train so many takes 1.6 TB in float32.
MOST_PARAMETERS = 10**11


@dataclass(frozen=True, slots=True)
class FeedForward:
    """A feed-forward network: `len(sizes) + 1` stacked linear layers with an activation between.

    The first layer maps the backbone's width to `sizes[0]`, the last one back to the width. A gated
    one (Shazeer 2020) has two layers.
    """

    activation: Activation
    sizes: tuple[int, ...]

    def __str__(self) -> str:
        return _ffn_text(self.activation, self.sizes)

    @property
    def gated(self) -> bool:
        return self.activation in GATED

    @property
    def in_words(self) -> str:
        """`gelu 1024-2048`."""
        return f"{self.activation} {'-'.join(map(str, self.sizes))}"


@dataclass(frozen=True, slots=True)
class Block:
    """An encoder block: multi-head self-attention, then one or more feed-forward networks.

    role: of its attention where the seed's blocks have different ones, as ModernBERT's; None where
    each looks at all tokens. bare: its attention has no norm, as of ModernBERT's first block, which
    stands behind the embeddings' norm.

    convolution: tokens that the depthwise convolutions of its queries, keys and values reach over,
    an odd number (Primer, So et al. 2021); None where there are none. branch: likewise of a
    convolution beside the attention, to whose output it is added (AutoBERT-Zero, Gao et al. 2022).

    heads: into how many parts the backbone's width is divided, and so how wide a head is.
    remaining: how many of these heads there are, fewer than that; None where all are. With fewer,
    queries, keys and values are narrower than the backbone (as in AutoTinyBERT, Yin et al. 2021).
    """

    heads: int
    ffns: tuple[FeedForward, ...]
    role: Role | None = None
    bare: bool = False
    convolution: int | None = None
    branch: int | None = None
    remaining: int | None = None

    def __str__(self) -> str:
        marks = _marks(self.role, self.bare, self.convolution, self.branch)
        return _block_text(self.heads, self.remaining, marks, [str(ffn) for ffn in self.ffns])

    @property
    def attends(self) -> tuple[object, ...]:
        """All that its attention is: where it is equal, one can take the place of another."""
        return self.heads, self.remaining, self.role, self.bare, self.convolution, self.branch

    @property
    def present(self) -> int:
        """How many heads there are."""
        return self.heads if self.remaining is None else self.remaining

    def inner(self, width: int) -> int:
        """The width of its queries, of all heads together, in a backbone of this width."""
        return width if self.remaining is None else width // self.heads * self.remaining

    @property
    def heads_in_words(self) -> str:
        """`12`, `6 of 12`."""
        return heads_in_words(self.heads, self.remaining)

    @property
    def convolves(self) -> str:
        """`, convolved over 3, with a branch over 5`; "" where it does not."""
        found = "" if self.convolution is None else f", convolved over {self.convolution}"
        return found + ("" if self.branch is None else f", with a branch over {self.branch}")

    def to_json(self) -> dict[str, Any]:
        return {
            "heads": self.heads,
            "ffns": [{"activation": ffn.activation, "sizes": list(ffn.sizes)} for ffn in self.ffns],
            # Only where there is one, so that every other architecture keeps its hash.
            **({} if self.role is None else {"role": self.role}),
            **({"bare": True} if self.bare else {}),
            **({} if self.convolution is None else {"convolution": self.convolution}),
            **({} if self.branch is None else {"branch": self.branch}),
            **({} if self.remaining is None else {"remaining": self.remaining}),
        }


@dataclass(frozen=True, slots=True)
class Genotype:
    """An architecture: the encoder blocks from the embeddings upwards.

    rank: of the word embeddings, where they are the product of a narrow table [vocabulary, rank]
    and a matrix [rank, width] (as in ALBERT, Lan et al. 2020); None where the table is full.
    frequent: so many of the most frequent words have a row of the full width in its place (as in
    the adaptive inputs of Baevski and Auli 2019); 0 where there is no product.
    """

    blocks: tuple[Block, ...]
    rank: int | None = None
    frequent: int = 0

    def __str__(self) -> str:
        """One line, equal neighbours counted: `4x[12h g3072] [8h r512+g1024-2048] [12h g3072]`,
        with `e96` before it where the embeddings' rank is 96, `e96+1000` where 1,000 words' are in
        full beside it, `6/12h` where 6 of 12 heads remain, and `c3` or `b5` behind heads with
        convolutions."""
        return _in_line([str(block) for block in self.blocks], self.rank, self.frequent)

    @property
    def words(self) -> tuple[int | None, int]:
        """The shape of its word embeddings."""
        return self.rank, self.frequent

    @property
    def hash(self) -> str:
        """Canonical name of the architecture: 16 hex digits, equal if and only if it is."""
        canonical = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]

    def to_json(self) -> dict[str, Any]:
        return {
            "blocks": [block.to_json() for block in self.blocks],
            # Only where there is one, so that every other architecture keeps its hash.
            **({} if self.rank is None else {"rank": self.rank}),
            **({"frequent": self.frequent} if self.frequent else {}),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Inverse of `to_json`; raises NasdError if the data is no genotype."""
        try:
            blocks = tuple(
                Block(
                    heads=_count(block["heads"]),
                    ffns=tuple(
                        FeedForward(
                            activation=_activation(ffn["activation"]),
                            sizes=tuple(_count(size) for size in ffn["sizes"]),
                        )
                        for ffn in block["ffns"]
                    ),
                    role=_role(block.get("role")),
                    bare=bool(block.get("bare", False)),
                    convolution=_kernel(block.get("convolution")),
                    branch=_kernel(block.get("branch")),
                    remaining=_remaining(block.get("remaining"), block["heads"]),
                )
                for block in data["blocks"]
            )
            rank = None if data.get("rank") is None else _count(data["rank"])
            frequent = _count(data["frequent"]) if data.get("frequent") else 0
        except KeyError as error:
            raise NasdError(f"this is not a genotype: {error} is missing") from error
        except (TypeError, ValueError) as error:
            raise NasdError(f"this is not a genotype: {error}") from error
        genotype = cls(blocks, rank, frequent)
        if not blocks:
            raise NasdError("this is not a genotype: it has no blocks")
        if any(not block.ffns or any(not ffn.sizes for ffn in block.ffns) for block in blocks):
            raise NasdError("this is not a genotype: a block has no FFN, or an FFN no hidden size")
        if any(ffn.gated and len(ffn.sizes) > 1 for block in blocks for ffn in block.ffns):
            raise NasdError("this is not a genotype: a gated FFN has one hidden size")
        if frequent and rank is None:
            raise NasdError("this is not a genotype: frequent words stand beside a rank alone")
        for what, count, most in (
            ("blocks", len(blocks), MOST_BLOCKS),
            ("FFNs in a block", max(len(block.ffns) for block in blocks), MOST_FFNS),
            (
                "layers in an FFN",
                1 + max(len(ffn.sizes) for block in blocks for ffn in block.ffns),
                MOST_LAYERS,
            ),
        ):
            if count > most:
                raise NasdError(
                    f"this is not a genotype: it has {count:,} {what}, of at most {most:,}"
                )
        return genotype


@dataclass(frozen=True, slots=True)
class ModuleLineage:
    """How one module, an attention or a feed-forward network, gets its weights.

    transfer: `kept`, as they were; `fresh`, drawn anew (thesis 4.2.1); `identity`, grown so that
    the child computes what the parent did; `ranked`, the most important part of what stood there,
    refitted. parent: which of the candidate's parents (0, or 1 of a crossover). block: that
    parent's block in which it stands, None for a block that is new. place: which of that block's
    FFNs it continues, None for one that is added, and for an attention.
    """

    transfer: Transfer
    parent: int = 0
    block: int | None = None
    place: int | None = None

    @property
    def new(self) -> bool:
        """Whether it waits for training of its own."""
        return self.transfer != "kept"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class BlockLineage:
    """Where one block's modules come from; its norms are those of the places they stand at."""

    attention: ModuleLineage
    ffns: tuple[ModuleLineage, ...]

    @classmethod
    def of(cls, source: int | None, attention_new: bool, origins: Sequence[Origin]) -> Self:
        """As the thesis has it: what is not kept is fresh, and a block keeps all its FFNs.

        source: the parent's block that this one continues, None for one that is wholly new.
        """
        ffns, place = [], 0
        for origin in origins:
            stood = None if origin == "added" else place
            place += origin != "added"
            transfer: Transfer = "kept" if origin == "kept" else "fresh"
            ffns.append(ModuleLineage(transfer, 0, source, stood))
        attention = ModuleLineage("fresh" if attention_new else "kept", 0, source)
        return cls(attention, tuple(ffns))

    @property
    def source(self) -> int | None:
        """The parent's block that this one continues; None for one that is wholly new."""
        return self.attention.block

    @property
    def attention_new(self) -> bool:
        return self.attention.new

    @property
    def origins(self) -> tuple[Origin, ...]:
        """For each FFN: kept, altered (in its place, other weights), or added (with its norm)."""
        return tuple(
            "kept" if not ffn.new else "added" if ffn.place is None else "altered"
            for ffn in self.ffns
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "attention": self.attention.to_json(),
            "ffns": [ffn.to_json() for ffn in self.ffns],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Inverse of `to_json`; takes what nasd 0.1 wrote as well."""
        if "attention" not in data:
            return cls.of(data["source"], data["attention_new"], data["ffns"])
        return cls(
            ModuleLineage(**data["attention"]),
            tuple(ModuleLineage(**ffn) for ffn in data["ffns"]),
        )


Lineage = tuple[BlockLineage, ...]


def unchanged(genotype: Genotype) -> Lineage:
    """The lineage of an exact copy: every module kept."""
    return tuple(
        BlockLineage.of(index, False, ["kept"] * len(block.ffns))
        for index, block in enumerate(genotype.blocks)
    )


def new_modules(lineage: Lineage) -> int:
    """How many modules (attentions and feed-forward networks) still wait for training."""
    return sum(block.attention.new + sum(ffn.new for ffn in block.ffns) for block in lineage)


def ranks_any(lineage: Lineage) -> bool:
    """Whether a module is the most telling part of what stood there, which takes text to tell."""
    return any(
        module.transfer == "ranked" for line in lineage for module in (line.attention, *line.ffns)
    )


def ancestry(lineage: Lineage, child: int, parents: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """The name of each block's line of descent: the parent's block's, or one of its own where it is
    new in this candidate. parents: the names of the parents' blocks."""
    return tuple(
        f"{child}.{index}" if line.source is None else parents[line.attention.parent][line.source]
        for index, line in enumerate(lineage)
    )


def changes(genotype: Genotype, lineage: Lineage, parent: Genotype) -> list[str]:
    """What a mutation did to the parent, module by module, in words; blocks count from 1."""
    found = []
    if genotype.words != parent.words:
        now, then = _rank_in_words(genotype), _rank_in_words(parent).removeprefix("of ")
        found.append(f"embeddings {now} instead of {then}")
    for number, (block, origin) in enumerate(zip(genotype.blocks, lineage, strict=True), start=1):
        here = f"block {number}"
        ffns = "; ".join(ffn.in_words for ffn in block.ffns)
        if origin.source is None:
            found.append(f"{here} added: {block.heads_in_words} heads, {ffns}")
            continue
        before = parent.blocks[origin.source]
        if origin.attention_new:
            role = f", {block.role}" if block.role != before.role else ""
            now, then = block.convolves, before.convolves
            own, theirs = block.heads_in_words, before.heads_in_words
            found.append(f"{here}: {own} heads{role}{now} instead of {theirs}{then}")
        for ffn, origin_of in zip(block.ffns, origin.ffns, strict=True):
            if origin_of.new and origin_of.place is None:
                found.append(f"{here}: FFN {ffn.in_words} added")
            elif origin_of.new:
                assert origin_of.place is not None
                was = before.ffns[origin_of.place].in_words
                found.append(f"{here}: FFN {ffn.in_words} instead of {was}")
    kept = {origin.source for origin in lineage}
    gone = [index for index in range(len(parent.blocks)) if index not in kept]
    return found + [f"the parent's block {index + 1} removed" for index in gone]


def heads_in_words(heads: int, remaining: int | None) -> str:
    """`12`, `6 of 12`."""
    return str(heads) if remaining is None else f"{remaining} of {heads}"


def _rank_in_words(genotype: Genotype) -> str:
    beside = f" ({genotype.frequent:,} words in full)" if genotype.frequent else ""
    return "in full" if genotype.rank is None else f"of rank {genotype.rank}{beside}"


@dataclass(frozen=True, slots=True)
class Backbone:
    """What every candidate shares with the seed: everything but the blocks, and the embeddings'
    rank.

    embedding_width: of the embeddings, where they are mapped to the width (ELECTRA). biases: of
    linear layers and norms. pre_norm: a module's norm stands before it, and one behind all blocks.
    rotary: positions are turned into queries and keys, and have no embeddings. deep_head: the head
    for questions has a layer of its own before its outputs (all of these as in ModernBERT).
    window: tokens that a local block looks at to either side; None where that is not known, as in
    searches that began before it was.
    """

    vocab_size: int
    positions: int
    width: int
    embedding_width: int | None = None
    biases: bool = True
    pre_norm: bool = False
    rotary: bool = False
    deep_head: bool = False
    window: int | None = None


def parameters(genotype: Genotype, backbone: Backbone) -> int:
    """Parameters of the encoder (embeddings and blocks, no task head), from the genotype alone."""
    width, biases = backbone.width, backbone.biases
    norm = (1 + biases) * width
    total = weights_of_words(genotype, backbone) + parameters_around(backbone)
    for block in genotype.blocks:
        total += parameters_of_attention(block, width, biases) + norm * (not block.bare)
        total += parameters_of_convolutions(block, width, biases)
        total += sum(parameters_of_ffn(ffn, width, biases) + norm for ffn in block.ffns)
    return total


def parameters_around(backbone: Backbone) -> int:
    """Of the encoder, those neither of the words nor of the blocks."""
    width, biases = backbone.width, backbone.biases
    inner = backbone.embedding_width or width
    total = (1 + biases) * inner  # the embeddings' norm
    if not backbone.rotary:
        total += backbone.positions * inner
    if backbone.embedding_width is not None:
        total += inner * width + biases * width
    if backbone.pre_norm:
        total += (1 + biases) * width
    return total


def weights_of_words(genotype: Genotype, backbone: Backbone) -> int:
    """Entries of the word embeddings: of one table, or of its two factors and of what the frequent
    words have in their place."""
    columns = backbone.embedding_width or backbone.width
    if genotype.rank is None:
        return backbone.vocab_size * columns
    others = backbone.vocab_size - genotype.frequent
    return genotype.frequent * columns + genotype.rank * (others + columns)


def weights_of_attention(block: Block, width: int) -> int:
    """Entries of its four weight matrices, without biases, convolutions and branch."""
    return 4 * width * block.inner(width)


def parameters_of_attention(block: Block, width: int, biases: bool = True) -> int:
    """Without its norm, convolutions and branch."""
    outputs = 3 * block.inner(width) + width
    return weights_of_attention(block, width) + biases * outputs


def parameters_of_convolutions(block: Block, width: int, biases: bool = True) -> int:
    """Of those in its attention and beside it."""
    total = 0 if block.convolution is None else 3 * block.convolution * block.inner(width)
    if block.branch is not None:
        total += block.branch * width + width * width + biases * width
    return total


def parameters_of_ffn(ffn: FeedForward, width: int, biases: bool = True) -> int:
    """Without its norm."""
    outputs = (1 + ffn.gated) * sum(ffn.sizes) + width
    return weights_of_ffn(ffn, width) + biases * outputs


def weights_of_ffn(ffn: FeedForward, width: int) -> int:
    """Entries of its weight matrices, without biases."""
    gates = width * ffn.sizes[0] if ffn.gated else 0
    return gates + sum(into * out for into, out in pairwise((width, *ffn.sizes, width)))


def distance(one: Genotype, other: Genotype) -> int:
    """How many modules differ with the blocks aligned by position; a module without a partner
    counts as one, and so do embeddings of another rank. The measure of diversity for the initial
    population (thesis 4.2.2)."""
    total = int(one.words != other.words)
    for index in range(max(len(one.blocks), len(other.blocks))):
        pair = [g.blocks[index] if index < len(g.blocks) else None for g in (one, other)]
        first, second = pair
        if first is None or second is None:
            lone = first or second
            assert lone is not None
            total += 1 + len(lone.ffns)
            continue
        total += replace(first, bare=False).attends != replace(second, bare=False).attends
        shared = min(len(first.ffns), len(second.ffns))
        total += sum(first.ffns[i] != second.ffns[i] for i in range(shared))
        total += max(len(first.ffns), len(second.ffns)) - shared
    return total


def text_of(data: Mapping[str, Any]) -> str:
    """The line of a genotype from what its `to_json` gave, without the way over a Genotype: views
    show them by the thousand."""
    blocks = [_block_line(block) for block in data["blocks"]]
    return _in_line(blocks, data.get("rank"), data.get("frequent", 0))


def _block_line(block: Mapping[str, Any]) -> str:
    ffns = [_ffn_text(ffn["activation"], ffn["sizes"]) for ffn in block["ffns"]]
    if len(block) == 2:  # heads and FFNs alone, as most are
        return _block_text(block["heads"], None, "", ffns)
    marks = _marks(
        block.get("role"),
        block.get("bare", False),
        block.get("convolution"),
        block.get("branch"),
    )
    return _block_text(block["heads"], block.get("remaining"), marks, ffns)


def _ffn_text(activation: str, sizes: Iterable[int]) -> str:
    return LETTERS[activation] + "-".join(map(str, sizes))


def _marks(role: str | None, bare: bool, convolution: int | None, branch: int | None) -> str:
    """Of a block's attention, where it is not just an attention."""
    local = " local" if role == "local" else ""
    more = "" if convolution is None else f" c{convolution}"
    more += "" if branch is None else f" b{branch}"
    return f"{local}{' bare' if bare else ''}{more}"


def _block_text(heads: int, remaining: int | None, marks: str, ffns: Iterable[str]) -> str:
    there = heads if remaining is None else f"{remaining}/{heads}"
    return f"{there}h{marks} {'+'.join(ffns)}"


def _in_line(blocks: Iterable[str], rank: int | None, frequent: int) -> str:
    runs, last, count = list[str](), None, 0
    for text in blocks:
        count = count + 1 if text == last else 1
        if count > 1:
            runs[-1] = f"{count}x[{text}]"
        else:
            runs.append(f"[{text}]")
        last = text
    words = f"e{rank}+{frequent}" if frequent else f"e{rank}"
    return " ".join(runs if rank is None else [words, *runs])


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= LARGEST:
        raise ValueError(f"{shown(value)} is not a whole number from 1 to {LARGEST:,}")
    return value


def _remaining(value: Any, heads: int) -> int | None:
    if value is not None and _count(value) >= heads:
        raise ValueError(f"{value} of {heads} heads are not fewer")
    return None if value is None else int(value)


def _kernel(value: Any) -> int | None:
    if value is None:
        return None
    if _count(value) % 2 == 0 or not 3 <= value <= LONGEST_KERNEL:
        raise ValueError(f"{shown(value)} is no odd number from 3 to {LONGEST_KERNEL}")
    return int(value)


def _activation(value: Any) -> Activation:
    known: tuple[Activation, ...] = get_args(Activation)
    for activation in known:
        if value == activation:
            return activation
    raise ValueError(f"{shown(value)} is none of {', '.join(map(repr, known))}")


def _role(value: Any) -> Role | None:
    if value is None or value == "local" or value == "global":
        found: Role | None = value
        return found
    raise ValueError(f"{shown(value)} is neither 'local' nor 'global'")
