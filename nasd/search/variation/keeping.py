"""Which transfer keeps most of what the parents know, for each module of a child.

Mutation says what is new in a child; the thesis draws that anew (4.2.1), and asks for a better use
of the retained weights (7). Pure, and by the shapes alone.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations

from nasd.contract.genotype import (
    Block,
    BlockLineage,
    FeedForward,
    Genotype,
    Lineage,
    ModuleLineage,
)

PASSING = {"relu2": 2}  # units that a value needs to pass through it, where that is more than one


def informed(child: Genotype, lineage: Lineage, parents: Sequence[Genotype]) -> Lineage:
    """The same lineage, with nothing drawn anew that could be had from the parents.

    What is added begins as doing nothing (`identity`), an FFN that holds what stood there grows out
    of it (`identity`), and any other module becomes what is most like it (`ranked`). Above a block
    that is gone, or one of another parent's, all is refitted to the states that it now sees.
    """
    found = []
    below: tuple[int, int] | None = (0, -1)  # (parent, block) of the nearest continued block below
    for block, line in zip(child.blocks, lineage, strict=True):
        if line.source is None:
            found.append(
                BlockLineage(
                    replace(line.attention, transfer="identity"),
                    tuple(replace(ffn, transfer="identity") for ffn in line.ffns),
                )
            )
            continue
        here = (line.attention.parent, line.source)
        source = parents[here[0]].blocks[here[1]]
        moved = below != (here[0], here[1] - 1)
        found.append(_informed(block, line, source, moved))
        below = here
    return tuple(found)


def _informed(block: Block, line: BlockLineage, source: Block, moved: bool) -> BlockLineage:
    """moved: the block sees other states than the parent's did."""
    attention = line.attention
    if attention.new or moved:
        grows = reaches(block, source) and not moved
        attention = replace(attention, transfer="identity" if grows else "ranked")
    gone = set(range(len(source.ffns))) - {ffn.place for ffn in line.ffns}
    ffns: list[ModuleLineage] = []
    for ffn, made in zip(block.ffns, line.ffns, strict=True):
        if made.place is None:
            ffns.append(replace(made, transfer="identity"))
            continue
        grows = holds(ffn, source.ffns[made.place])
        if moved or any(place < made.place for place in gone) or (made.new and not grows):
            made = replace(made, transfer="ranked")
        elif made.new:
            made = replace(made, transfer="identity")
        ffns.append(made)
    if gone and all(ffn.transfer != "ranked" for ffn in ffns):
        # The one above is gone: the highest that is left takes over what it can.
        last = max(n for n, ffn in enumerate(ffns) if ffn.place is not None)
        ffns[last] = replace(ffns[last], transfer="ranked")
    return BlockLineage(attention, tuple(ffns))


def reaches(block: Block, other: Block) -> bool:
    """Whether the block's attention can compute exactly what the other one's does: it is the same
    but for heads more of the same width, and convolutions that reach as far at least."""
    plain = replace(
        block, convolution=other.convolution, branch=other.branch, remaining=other.remaining
    )
    kernels = (block.convolution, other.convolution), (block.branch, other.branch)
    holds_all = all((new or 0) >= (old or 0) for new, old in kernels)
    return plain.attends == other.attends and block.present >= other.present and holds_all


def holds(ffn: FeedForward, other: FeedForward) -> bool:
    """Whether the FFN can compute exactly what the other one does: it has its activation, and in
    order its hidden layers, at least as wide, with room for them to pass through what lies behind
    each (nasd.worker.model.transfers)."""
    own, wanted = other.sizes, ffn.sizes
    if ffn.activation != other.activation or len(wanted) < len(own):
        return False
    if ffn.gated:
        return wanted[0] >= own[0]
    for rest in combinations(range(1, len(wanted)), len(own) - 1):
        places = (0, *rest)
        reached = [sum(one <= place for one in places) - 1 for place in range(len(wanted))]
        room = [
            PASSING.get(ffn.activation, 1) ** (place not in places) for place in range(len(wanted))
        ]
        if all(
            size >= each * own[layer]
            for size, each, layer in zip(wanted, room, reached, strict=True)
        ):
            return True
    return False
