"""The operators of variation: each makes one small change to a child that is being made.

Beside the thesis's mutation (4.2.1, nasd.search.variation.breeding), which redraws modules, these
go one step in the search space: one size, one layer, one number of heads, one network or one block
more or less. A small step keeps nearly all that a parent knows, where a redraw loses it. All of it
is pure.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

from nasd.contract.config import SearchSpace
from nasd.contract.genotype import (
    GATED,
    Block,
    BlockLineage,
    FeedForward,
    Genotype,
    Lineage,
    ModuleLineage,
    unchanged,
)

T = TypeVar("T")
TRAIN_ON = "train_on"  # in records: by no operator, but the same again, to be trained on


@dataclass
class Draft:
    """A child in the making: its blocks from below, each with its lineage, and its embeddings'
    rank; it begins as a copy of the first parent. parents: their genotypes. ancestry: for each
    parent, the name of each block's line of descent, by which the blocks of two parents are
    aligned."""

    parents: tuple[Genotype, ...]
    ancestry: tuple[tuple[str, ...], ...]
    blocks: list[tuple[Block, BlockLineage]]
    rank: int | None = None
    frequent: int = 0

    @classmethod
    def of(cls, parents: Sequence[Genotype], ancestry: Sequence[Sequence[str]] = ()) -> "Draft":
        blocks = list(zip(parents[0].blocks, unchanged(parents[0]), strict=True))
        return cls(tuple(parents), tuple(map(tuple, ancestry)), blocks, *parents[0].words)

    @property
    def genotype(self) -> Genotype:
        return Genotype(tuple(block for block, _ in self.blocks), self.rank, self.frequent)

    @property
    def lineage(self) -> Lineage:
        return tuple(line for _, line in self.blocks)


@dataclass(frozen=True)
class Operator:
    """name: in configs and records; words: for people. parents: how many it takes. apply: changes
    the draft in place; False where the space, or the draft, has no room for it."""

    name: str
    words: str
    parents: int
    apply: Callable[[Draft, SearchSpace, random.Random], bool]


def grown_or_shrunk(draft: Draft, space: SearchSpace, rng: random.Random, up: bool) -> bool:
    """One hidden size of one FFN, to the next one in the space."""
    sizes = sorted(set(space.sizes))
    places = [
        (index, place, layer, other)
        for index, (block, _) in enumerate(draft.blocks)
        for place, ffn in enumerate(block.ffns)
        for layer, size in enumerate(ffn.sizes)
        for other in [_next(sizes, size, up)]
        if other is not None
    ]
    if not places:
        return False
    index, place, layer, other = rng.choice(places)
    ffn = draft.blocks[index][0].ffns[place]
    changed = (*ffn.sizes[:layer], other, *ffn.sizes[layer + 1 :])
    _alter_ffn(draft, index, place, replace(ffn, sizes=changed))
    return True


def deepened(draft: Draft, space: SearchSpace, rng: random.Random) -> bool:
    """One more layer in an FFN, behind its last one and as wide."""
    places = [
        (index, place)
        for index, (block, _) in enumerate(draft.blocks)
        for place, ffn in enumerate(block.ffns)
        if len(ffn.sizes) + 2 in space.layers and ffn.sizes[-1] in space.sizes and not ffn.gated
    ]
    if not places:
        return False
    index, place = rng.choice(places)
    ffn = draft.blocks[index][0].ffns[place]
    _alter_ffn(draft, index, place, replace(ffn, sizes=(*ffn.sizes, ffn.sizes[-1])))
    return True


def flattened(draft: Draft, space: SearchSpace, rng: random.Random) -> bool:
    """One layer less in an FFN: its last one."""
    places = [
        (index, place)
        for index, (block, _) in enumerate(draft.blocks)
        for place, ffn in enumerate(block.ffns)
        if len(ffn.sizes) > 1 and len(ffn.sizes) in space.layers
    ]
    if not places:
        return False
    index, place = rng.choice(places)
    ffn = draft.blocks[index][0].ffns[place]
    _alter_ffn(draft, index, place, replace(ffn, sizes=ffn.sizes[:-1]))
    return True


def switched(draft: Draft, space: SearchSpace, rng: random.Random) -> bool:
    """An FFN with another activation."""
    places = [
        (index, place, activation)
        for index, (block, _) in enumerate(draft.blocks)
        for place, ffn in enumerate(block.ffns)
        for activation in space.activations
        if activation != ffn.activation
        and not (activation in GATED and len(ffn.sizes) > 1)  # those have one layer
    ]
    if not places:
        return False
    index, place, activation = rng.choice(places)
    ffn = draft.blocks[index][0].ffns[place]
    _alter_ffn(draft, index, place, replace(ffn, activation=activation))
    return True


def network_added(draft: Draft, space: SearchSpace, rng: random.Random) -> bool:
    """One more FFN in a block, behind its others, with the fewest layers and the smallest size."""
    places = [i for i, (block, _) in enumerate(draft.blocks) if len(block.ffns) < space.ffns]
    if not places:
        return False
    index = rng.choice(places)
    block, line = draft.blocks[index]
    activation = rng.choice(space.activations)
    layers = 2 if activation in GATED else min(space.layers)
    ffn = FeedForward(activation, (min(space.sizes),) * (layers - 1))
    module = ModuleLineage("fresh", line.attention.parent, line.source)
    draft.blocks[index] = (
        replace(block, ffns=(*block.ffns, ffn)),
        replace(line, ffns=(*line.ffns, module)),
    )
    return True


def network_removed(draft: Draft, space: SearchSpace, rng: random.Random) -> bool:
    """One FFN less in a block that has several."""
    places = [
        (index, place)
        for index, (block, line) in enumerate(draft.blocks)
        for place in range(len(block.ffns))
        if _stays(line, place)
    ]
    if not places:
        return False
    index, place = rng.choice(places)
    block, line = draft.blocks[index]
    draft.blocks[index] = (
        replace(block, ffns=_without(block.ffns, place)),
        replace(line, ffns=_without(line.ffns, place)),
    )
    return True


def heads_changed(draft: Draft, space: SearchSpace, rng: random.Random, up: bool) -> bool:
    """An attention with the next number of heads in the space, which are as wide together: where
    heads are gone, so many remain as come to that."""
    heads = sorted(set(space.heads))
    places = [
        (index, other, remaining)
        for index, (block, _) in enumerate(draft.blocks)
        for other in [_next(heads, block.heads, up)]
        if other is not None
        for remaining in _as_wide(block, other, space)
    ]
    if not places:
        return False
    index, other, remaining = rng.choice(places)
    _alter_attention(draft, index, heads=other, remaining=remaining)
    return True


def _as_wide(block: Block, heads: int, space: SearchSpace) -> list[int | None]:
    """How many of so many heads are together as wide as those of the block; none where no number
    in the space is."""
    if block.remaining is None:
        return [None]
    exact, rest = divmod(block.remaining * heads, block.heads)
    return [exact] if not rest and exact in space.remaining_heads else []


def heads_dropped(draft: Draft, space: SearchSpace, rng: random.Random, up: bool) -> bool:
    """An attention with the next lower number of remaining heads in the space, or up the next
    higher, above whose highest all are there. How wide a head is stays."""
    remaining = sorted(set(space.remaining_heads))
    places = [
        (index, other if other < block.heads else None)
        for index, (block, _) in enumerate(draft.blocks)
        if not up or block.remaining is not None
        for other in [_next([*remaining, block.heads], block.present, up)]
        if other is not None
    ]
    if not places:
        return False
    index, other = rng.choice(places)
    _alter_attention(draft, index, remaining=other)
    return True


def block_added(draft: Draft, space: SearchSpace, rng: random.Random) -> bool:
    """One more block, at any place, in the shape of the one below it; at the bottom, in that of the
    lowest, above which it then stands, as the lowest knows what the embeddings give."""
    if len(draft.blocks) >= space.blocks[1]:
        return False
    index = rng.randint(0, len(draft.blocks))
    like = draft.blocks[max(0, index - 1)][0]
    like = replace(like, bare=False)
    line = BlockLineage.of(None, True, ["added"] * len(like.ffns))
    draft.blocks.insert(max(1, index), (like, line))
    return True


def block_removed(draft: Draft, space: SearchSpace, rng: random.Random) -> bool:
    """One block less."""
    if len(draft.blocks) <= space.blocks[0]:
        return False
    del draft.blocks[rng.randrange(len(draft.blocks))]
    return True


def crossed(draft: Draft, space: SearchSpace, rng: random.Random) -> bool:
    """Blocks of both parents, aligned by descent: of each pair, one; of those that only one has,
    about half. The first and the second parent's order are both kept."""
    if len(draft.parents) < 2:
        return False
    one, other = draft.parents[:2]
    pairs = _aligned(draft.ancestry[0], draft.ancestry[1])
    lines = unchanged(one), _of_the_second(unchanged(other))
    chosen: list[tuple[Block, BlockLineage]] = []
    for first, second in pairs:
        takes = rng.random() < 0.5
        if first is not None and (second is None or takes):
            if second is not None or takes:
                chosen.append((one.blocks[first], lines[0][first]))
        elif second is not None and (first is not None or takes):
            chosen.append((other.blocks[second], lines[1][second]))
    fewest, most = space.blocks
    blocks = tuple(block for block, _ in chosen)
    known = replace(draft.genotype, blocks=blocks) in (one, other)
    if known or not fewest <= len(blocks) <= most:
        return False
    draft.blocks = chosen
    return True


def rank_changed(draft: Draft, space: SearchSpace, rng: random.Random, up: bool) -> bool:
    """The word embeddings with the next rank in the space, above whose largest they are full; and
    with as many frequent words beside it as the space has."""
    ranks = sorted(set(space.ranks))
    if draft.rank is None:
        if up or not ranks:
            return False
        draft.rank = ranks[-1]
    else:
        other = _next(ranks, draft.rank, up)
        if other is None and not up:
            return False
        draft.rank = other
    draft.frequent = 0 if draft.rank is None else space.frequent_words
    return True


Where = Literal["convolution", "branch"]  # of a block


def kernel_changed(
    draft: Draft, space: SearchSpace, rng: random.Random, where: Where, up: bool
) -> bool:
    """One block's convolution with the next kernel in the space, below whose smallest is none."""
    kernels = sorted(set(space.convolutions if where == "convolution" else space.branches))
    places = [
        (index, other)
        for index, (block, _) in enumerate(draft.blocks)
        for other in [_next([0, *kernels], getattr(block, where) or 0, up)]
        if other is not None
    ]
    if not places:
        return False
    index, other = rng.choice(places)
    _alter_attention(draft, index, **{where: other or None})
    return True


OPERATORS = {
    operator.name: operator
    for operator in (
        Operator("widen", "an FFN one size up", 1, lambda d, s, r: grown_or_shrunk(d, s, r, True)),
        Operator(
            "narrow", "an FFN one size down", 1, lambda d, s, r: grown_or_shrunk(d, s, r, False)
        ),
        Operator("deepen", "an FFN with one layer more", 1, deepened),
        Operator("flatten", "an FFN with one layer less", 1, flattened),
        Operator("switch", "an FFN with another activation", 1, switched),
        Operator("add_ffn", "an FFN added", 1, network_added),
        Operator("drop_ffn", "an FFN removed", 1, network_removed),
        Operator(
            "more_heads", "an attention with more heads", 1,
            lambda d, s, r: heads_changed(d, s, r, True),
        ),
        Operator(
            "fewer_heads", "an attention with fewer heads", 1,
            lambda d, s, r: heads_changed(d, s, r, False),
        ),
        Operator(
            "drop_heads", "an attention that loses heads", 1,
            lambda d, s, r: heads_dropped(d, s, r, False),
        ),
        Operator(
            "restore_heads", "an attention that gets lost heads again", 1,
            lambda d, s, r: heads_dropped(d, s, r, True),
        ),
        Operator("add_block", "a block added", 1, block_added),
        Operator("drop_block", "a block removed", 1, block_removed),
        Operator("cross", "blocks of two parents", 2, crossed),
        Operator(
            "factorise", "embeddings one rank down", 1,
            lambda d, s, r: rank_changed(d, s, r, False),
        ),
        Operator(
            "unfactorise", "embeddings one rank up", 1, lambda d, s, r: rank_changed(d, s, r, True)
        ),
        Operator(
            "convolve", "convolutions of queries, keys and values", 1,
            lambda d, s, r: kernel_changed(d, s, r, "convolution", True),
        ),
        Operator(
            "unconvolve", "shorter convolutions of queries, keys and values, or none", 1,
            lambda d, s, r: kernel_changed(d, s, r, "convolution", False),
        ),
        Operator(
            "branch", "a convolution beside an attention", 1,
            lambda d, s, r: kernel_changed(d, s, r, "branch", True),
        ),
        Operator(
            "unbranch", "a shorter convolution beside an attention, or none", 1,
            lambda d, s, r: kernel_changed(d, s, r, "branch", False),
        ),
    )
}  # fmt: skip


# -- alignment -----------------------------------------------------------------------------------


def _aligned(one: Sequence[str], other: Sequence[str]) -> list[tuple[int | None, int | None]]:
    """Both in their order, with what is of one line of descent side by side (a longest common
    subsequence); what only one has stands alone."""
    longest = [[0] * (len(other) + 1) for _ in range(len(one) + 1)]
    for i in reversed(range(len(one))):
        for j in reversed(range(len(other))):
            longest[i][j] = (
                1 + longest[i + 1][j + 1]
                if one[i] == other[j]
                else max(longest[i + 1][j], longest[i][j + 1])
            )
    pairs: list[tuple[int | None, int | None]] = []
    i = j = 0
    while i < len(one) or j < len(other):
        if i < len(one) and j < len(other) and one[i] == other[j]:
            pairs.append((i, j))
            i, j = i + 1, j + 1
        elif j == len(other) or (i < len(one) and longest[i + 1][j] >= longest[i][j + 1]):
            pairs.append((i, None))
            i += 1
        else:
            pairs.append((None, j))
            j += 1
    return pairs


def _of_the_second(lineage: Lineage) -> Lineage:
    return tuple(
        BlockLineage(
            replace(line.attention, parent=1), tuple(replace(ffn, parent=1) for ffn in line.ffns)
        )
        for line in lineage
    )


# -- small steps ---------------------------------------------------------------------------------


def _next(values: Sequence[int], value: int, up: bool) -> int | None:
    """The neighbour of a value among sorted ones; from between two, the nearer side's."""
    beyond = [one for one in values if (one > value if up else one < value)]
    return None if not beyond else min(beyond) if up else max(beyond)


def _alter_ffn(draft: Draft, index: int, place: int, ffn: FeedForward) -> None:
    block, line = draft.blocks[index]
    made = line.ffns[place]
    draft.blocks[index] = (
        replace(block, ffns=_with(block.ffns, place, ffn)),
        replace(line, ffns=_with(line.ffns, place, replace(made, transfer="fresh"))),
    )


def _alter_attention(draft: Draft, index: int, **changed: Any) -> None:
    block, line = draft.blocks[index]
    attention = replace(line.attention, transfer="fresh")
    draft.blocks[index] = replace(block, **changed), replace(line, attention=attention)


def _stays(line: BlockLineage, place: int) -> bool:
    """Whether the block still has an FFN of its parent's without this one, if it had any."""
    others = _without(line.ffns, place)
    return bool(others) and (line.source is None or any(one.place is not None for one in others))


def _with(items: Sequence[T], place: int, item: T) -> tuple[T, ...]:
    return (*items[:place], item, *items[place + 1 :])


def _without(items: Sequence[T], place: int) -> tuple[T, ...]:
    return (*items[:place], *items[place + 1 :])
