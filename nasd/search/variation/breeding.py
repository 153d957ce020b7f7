"""How one genotype comes from others: mutation or small steps, the two ways that makes a
generation, and the adoption of one that a person made.

Thesis 4.2.1 (mutation), 4.2.2 (the initial population) and 4.2.3 (mating, without crossover).
All of it is pure: the same arguments give the same genotypes.
"""

import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

from nasd.contract.config import Mutation, SearchSpace, Variation
from nasd.contract.errors import NasdError
from nasd.contract.genotype import (
    GATED,
    MOST_PARAMETERS,
    Backbone,
    Block,
    BlockLineage,
    FeedForward,
    Genotype,
    Lineage,
    ModuleLineage,
    Origin,
    distance,
    parameters,
    parameters_of_attention,
    parameters_of_convolutions,
    parameters_of_ffn,
    unchanged,
)
from nasd.contract.streams import stream
from nasd.search.pareto import Point, crowding, ranks, tournament
from nasd.search.variation.keeping import informed
from nasd.search.variation.operators import OPERATORS, TRAIN_ON, Draft

CROWDED_BY = "compression"  # tournaments go by it alone (thesis 4.2.3), where it is an objective
TRIES = 1000  # mutations per individual before the search space counts as exhausted


@dataclass(frozen=True, slots=True)
class Offspring:
    """A mutant. operators: by which it was made, where they have names; crosses: whether it has
    modules of a second parent."""

    genotype: Genotype
    lineage: Lineage
    operators: tuple[str, ...] = ()

    @property
    def crosses(self) -> bool:
        return any(
            module.parent for line in self.lineage for module in (line.attention, *line.ffns)
        )


@dataclass(frozen=True, slots=True)
class Parent:
    """A scored candidate that may be mutated; its point is as in nasd.search.objectives."""

    candidate: int
    genotype: Genotype
    point: Point
    ancestry: tuple[str, ...] = ()  # the line of descent of each block
    missed: float = 0.0  # by how much it breaks the experiment's limits


@dataclass(frozen=True, slots=True)
class Bred:
    """A mutant of the parent with this candidate id."""

    parent: int
    genotype: Genotype
    lineage: Lineage
    second: int | None = None  # of a crossover: the parent whom the lineage calls 1
    operators: tuple[str, ...] = ()
    begins: str = ""  # the stage at which, where that is not the first: nothing in it is new

    @property
    def trains_on(self) -> bool:
        """Whether it is its parent again."""
        return self.operators == (TRAIN_ON,)

    @property
    def parents(self) -> tuple[int, ...]:
        return (self.parent,) if self.second is None else (self.parent, self.second)


def draw_heads(space: SearchSpace, rng: random.Random) -> int:
    """The attention of a new module, drawn independently of what stood there (thesis 4.1)."""
    return rng.choice(space.heads)


def draw_ffn(space: SearchSpace, rng: random.Random) -> FeedForward:
    """A new feed-forward network, drawn independently of what stood there (thesis 4.1)."""
    activation = rng.choice(space.activations)
    layers = rng.choice(space.layers)
    sizes = tuple(rng.choice(space.sizes) for _ in range(layers - 1))
    return FeedForward(activation, sizes[:1] if activation in GATED else sizes)


def mutate(
    parent: Genotype,
    baseline: Genotype,
    space: SearchSpace,
    rates: Mutation,
    rng: random.Random,
) -> tuple[Genotype, Lineage]:
    """A child of the parent, and where its modules come from (thesis 4.2.1).

    First a block may be added or removed; then the blocks are visited in random order, and each
    may have a feed-forward network added or altered, and its attention altered. An alteration
    draws something different from what stood there; where the space has nothing else to offer,
    the module stays. The child may be equal to the parent.
    """
    blocks = list(zip(parent.blocks, unchanged(parent), strict=True))
    if rng.random() < rates.encoder:
        _mutate_encoder(blocks, baseline.blocks[0], space, rates, rng)
    for index in rng.sample(range(len(blocks)), len(blocks)):
        if rng.random() < rates.ffn:
            blocks[index] = _mutate_ffns(*blocks[index], space, rates, rng)
        if rng.random() < rates.attention:
            blocks[index] = _alter_attention(*blocks[index], space, rng)
    child = replace(parent, blocks=tuple(block for block, _ in blocks))
    return child, tuple(lineage for _, lineage in blocks)


def _mutate_encoder(
    blocks: list[tuple[Block, BlockLineage]],
    template: Block,
    space: SearchSpace,
    rates: Mutation,
    rng: random.Random,
) -> None:
    """Adds a copy of the template with fresh weights, or removes a block, in place."""
    fewest, most = space.blocks
    may_add, may_remove = len(blocks) < most, len(blocks) > fewest
    wants_to_add = rng.random() < rates.encoder_add
    # At a limit of the space the other direction is taken.
    if may_add and (wants_to_add or not may_remove):
        fresh = BlockLineage.of(None, True, ["added"] * len(template.ffns))
        blocks.insert(rng.randint(0, len(blocks)), (replace(template, bare=False), fresh))
    elif may_remove:
        del blocks[rng.randrange(len(blocks))]


def _mutate_ffns(
    block: Block, lineage: BlockLineage, space: SearchSpace, rates: Mutation, rng: random.Random
) -> tuple[Block, BlockLineage]:
    ffns, modules = list(block.ffns), list(lineage.ffns)
    if rng.random() < rates.ffn_add and len(ffns) < space.ffns:
        ffns.append(draw_ffn(space, rng))
        modules.append(ModuleLineage("fresh", block=lineage.source))
    else:
        place = rng.randrange(len(ffns))
        fresh = _other_ffn(ffns[place], space, rng)
        if fresh != ffns[place]:
            modules[place] = replace(modules[place], transfer="fresh")
        ffns[place] = fresh
    return replace(block, ffns=tuple(ffns)), replace(lineage, ffns=tuple(modules))


def _alter_attention(
    block: Block, lineage: BlockLineage, space: SearchSpace, rng: random.Random
) -> tuple[Block, BlockLineage]:
    if set(space.heads) == {block.heads}:
        return block, lineage
    while (heads := draw_heads(space, rng)) == block.heads:
        pass
    remaining = block.remaining if (block.remaining or heads) < heads else None
    return replace(block, heads=heads, remaining=remaining), replace(
        lineage, attention=replace(lineage.attention, transfer="fresh")
    )


def _other_ffn(current: FeedForward, space: SearchSpace, rng: random.Random) -> FeedForward:
    axes = [space.activations, space.sizes]
    if not set(space.activations) <= set(GATED):  # which have two layers
        axes.append(space.layers)
    only_one = all(len(set(axis)) == 1 for axis in axes)
    fresh = draw_ffn(space, rng)
    while fresh == current and not only_one:
        fresh = draw_ffn(space, rng)
    return fresh


def child_of(
    parents: Sequence[Genotype],
    ancestry: Sequence[Sequence[str]],
    baseline: Genotype,
    space: SearchSpace,
    variation: Variation,
    rates: Mutation | None,
    shares: Mapping[str, float],
    rng: random.Random,
) -> Offspring:
    """One child, by the thesis's mutation at these rates, or by small steps at these shares; its
    modules begin as `variation.transfers` says. It may be equal to its parent."""
    if variation.operators is None:
        assert rates is not None
        genotype, lineage = mutate(parents[0], baseline, space, rates, rng)
        made: tuple[str, ...] = ()
    else:
        draft = Draft.of(parents, ancestry)
        made = _step(draft, space, shares, rng.randint(*variation.steps), rng)
        genotype, lineage = draft.genotype, draft.lineage
    if variation.transfers == "informed":
        lineage = informed(genotype, lineage, parents)
    return Offspring(genotype, lineage, made)


def _step(
    draft: Draft, space: SearchSpace, shares: Mapping[str, float], count: int, rng: random.Random
) -> tuple[str, ...]:
    """Takes `count` small steps, or fewer where there is no room; a crossover only as the first."""
    names = [name for name in OPERATORS if shares.get(name, 0) > 0]
    made: list[str] = []
    for number in range(count):
        pool = [one for one in names if OPERATORS[one].parents == 1 or not number]
        while pool:
            name = rng.choices(pool, [shares[one] for one in pool])[0]
            if OPERATORS[name].apply(draft, space, rng):
                made.append(name)
                break
            pool.remove(name)
    return tuple(made)


def _more(variation: Variation, rates: str) -> str:
    """What lets a mutant be farther from its parent."""
    return f"raise variation.{'steps' if variation.operators else rates}"


def initial_population(
    baseline: Genotype,
    space: SearchSpace,
    variation: Variation,
    mu: int,
    seed: int,
    times: int = 1,
) -> list[Offspring]:
    """Diverse mutants of the baseline, by the aggressive rates of variation.initial (thesis 4.2.2),
    or by small steps.

    Each lies at least variation.min_distance from the baseline and from every other one; mutants
    that do not are drawn again. times: mutants for each of mu places; where there are several, a
    place may come to have fewer, or none. Raises NasdError if the search space gives less than mu.
    """
    population: list[Offspring] = []
    for individual in range(mu):
        known = [baseline, *(other.genotype for other in population)]
        found = 0
        for attempt in range(TRIES):
            rng = stream(seed, 0, "initial", individual * TRIES + attempt)
            mutant = child_of(
                [baseline],
                (),
                baseline,
                space,
                variation,
                variation.initial,
                variation.operators or {},
                rng,
            )
            far = variation.min_distance
            if all(distance(mutant.genotype, other) >= far for other in known):
                population.append(mutant)
                known.append(mutant.genotype)
                found += 1
            if found == times:
                break
        if not found and len(population) < mu:
            raise NasdError(
                f"{TRIES} mutations of the baseline gave none that lies variation.min_distance ="
                f" {variation.min_distance} from the baseline and from the {individual} of {mu}"
                f" found before: lower variation.min_distance, {_more(variation, 'initial')}, or"
                " widen search_space"
            )
    return population


def diversity(genotypes: Sequence[Genotype], backbone: Backbone) -> dict[str, float]:
    """How far the genotypes lie apart, and how their sizes spread (thesis 4.2.2).

    Distances are those of `nasd.contract.genotype.distance` over all pairs, and 0 where there is no
    pair.
    """
    distances = [distance(one, other) for one, other in combinations(genotypes, 2)] or [0]
    sizes = [parameters(genotype, backbone) for genotype in genotypes] or [0]
    return {
        "mean_distance": sum(distances) / len(distances),
        "min_distance": min(distances),
        "distinct_sizes": len(set(sizes)) if genotypes else 0,
        "min_parameters": min(sizes),
        "max_parameters": max(sizes),
    }


def offspring(
    parents: Sequence[Parent],
    baseline: Genotype,
    space: SearchSpace,
    variation: Variation,
    *,
    objectives: Sequence[str],
    lambda_: int,
    tournament_size: int,
    taken: Collection[str],
    seed: int,
    generation: int,
    shares: Mapping[str, float] | None = None,
    times: int = 1,
) -> list[Bred]:
    """The children of a generation: lambda mutants of parents picked in pairs (thesis 4.2.3).

    Each parent of a pair is mutated into one child; of the last pair only the first if lambda is
    odd. A child whose hash is `taken`, or is that of its parent or of a child before it, is drawn
    again from the same parent; raises NasdError if that leads nowhere. `taken` holds the hashes
    of all candidates of the experiment, the baseline among them. objectives: by name, the axes of
    the parents' points. shares: of the operators, where they have taken others than the config's.
    times: mutants for each of lambda places; where there are several, a place may have fewer, or
    none, as long as there are lambda.
    """
    known = set(taken)
    children: list[Bred] = []
    axes = [objectives.index(CROWDED_BY)] if CROWDED_BY in objectives else None
    count = lambda_ + lambda_ % 2
    picked = _pick_parents(parents, axes, count, tournament_size, seed, generation)
    for index, parent in enumerate(picked[:lambda_]):
        partner = picked[index ^ 1]
        both = [parent] if partner.candidate == parent.candidate else [parent, partner]
        found = 0
        for attempt in range(TRIES):
            rng = stream(seed, generation, "mutate", index * TRIES + attempt)
            child = child_of(
                [one.genotype for one in both],
                [one.ancestry for one in both],
                baseline,
                space,
                variation,
                variation.offspring,
                shares if shares is not None else variation.operators or {},
                rng,
            )
            genotype = child.genotype
            if genotype != parent.genotype and genotype.hash not in known:
                known.add(genotype.hash)
                second = partner.candidate if child.crosses else None
                children.append(
                    Bred(parent.candidate, genotype, child.lineage, second, child.operators)
                )
                found += 1
            if found == times:
                break
        if not found and len(children) < lambda_:
            raise NasdError(
                f"{TRIES} mutations of candidate {parent.candidate} gave no genotype that is new"
                f" to the experiment (generation {generation}, offspring {index}): widen"
                f" search_space, or {_more(variation, 'offspring')}"
            )
    return children


def adopted(child: Genotype, parents: Mapping[int, Genotype], width: int) -> Bred:
    """A genotype made by hand, as the child of the one of `parents` that it can inherit most
    parameters from; of equals, of the lower id."""
    found = {number: align(child, parent, width) for number, parent in parents.items()}
    best = max(found, key=lambda number: (found[number][0], -number))
    return Bred(best, child, found[best][1])


def align(child: Genotype, parent: Genotype, width: int) -> tuple[int, Lineage]:
    """The lineage by which the child inherits most of the parent's blocks' parameters, and how many
    those are. Blocks stay in their order, and so do the FFNs of a block: whoever has one that the
    other lacks may skip it."""
    mine, theirs = child.blocks, parent.blocks
    # most[i][j]: with the child's first i blocks and the parent's first j.
    most = [[0] * (len(theirs) + 1) for _ in range(len(mine) + 1)]
    carried = [
        [_carry(block, source, index, width) for index, source in enumerate(theirs)]
        for block in mine
    ]
    for i, row in enumerate(carried):
        for j, (gain, lineage) in enumerate(row):
            both = most[i][j] + gain if lineage else -1
            most[i + 1][j + 1] = max(both, most[i][j + 1], most[i + 1][j])
    blocks: list[BlockLineage] = []
    i, j = len(mine), len(theirs)
    while i:
        gain, lineage = carried[i - 1][j - 1] if j else (0, None)
        if lineage and most[i][j] == most[i - 1][j - 1] + gain:
            blocks.append(lineage)
            i, j = i - 1, j - 1
        elif j and most[i][j] == most[i][j - 1]:
            j -= 1
        else:
            blocks.append(BlockLineage.of(None, True, ["added"] * len(mine[i - 1].ffns)))
            i -= 1
    return most[-1][-1], tuple(reversed(blocks))


def _carry(block: Block, source: Block, index: int, width: int) -> tuple[int, BlockLineage | None]:
    """How many parameters a block inherits from the parent's block `index`, and by which lineage;
    None where the parent's has more FFNs, as none is ever taken away."""
    norm = 2 * width
    best: tuple[int, tuple[Origin, ...]] = (-1, ())
    for places in combinations(range(len(block.ffns)), len(source.ffns)):
        origins: list[Origin] = ["added"] * len(block.ffns)
        gain = norm * len(places)
        for place, ffn in zip(places, source.ffns, strict=True):
            kept = block.ffns[place] == ffn
            origins[place] = "kept" if kept else "altered"
            gain += kept * parameters_of_ffn(ffn, width)
        if gain > best[0]:
            best = gain, tuple(origins)
    if best[0] < 0:
        return 0, None
    same = block.attends == source.attends
    attention = parameters_of_attention(block, width) + parameters_of_convolutions(block, width)
    gain = best[0] + norm + same * attention
    return gain, BlockLineage.of(index, not same, best[1])


def _pick_parents(
    parents: Sequence[Parent],
    axes: Sequence[int] | None,
    count: int,
    tournament_size: int,
    seed: int,
    generation: int,
) -> list[Parent]:
    """The parents of `count` children, in pairs of two different ones.

    Each wins a tournament by rank, then by the crowding distance on these axes (None: all).
    """
    assert parents, "there is no parent"
    points = [parent.point for parent in parents]
    rank = ranks(points, [parent.missed for parent in parents])
    lonely = crowding(points, rank, axes)
    picked: list[int] = []
    while len(picked) < count:
        rng = stream(seed, generation, "pair", len(picked) // 2)
        first = tournament(rank, lonely, tournament_size, rng)
        others = {first} if len(parents) > 1 else ()  # a lone parent pairs with itself
        picked += [first, tournament(rank, lonely, tournament_size, rng, exclude=others)]
    return [parents[index] for index in picked[:count]]


def check_genotype(genotype: Genotype, space: SearchSpace, width: int) -> None:
    """Raises NasdError, naming the block and the key, if the genotype is outside of the space; or
    if it is more than any machine has memory for."""
    fewest, most = space.blocks
    if not fewest <= len(genotype.blocks) <= most:
        raise _outside(f"it has {len(genotype.blocks)} blocks", "blocks", f"{fewest} to {most}")
    if genotype.rank is not None and genotype.rank not in space.ranks:
        allowed = (*space.ranks, "full")
        raise _outside(f"its embeddings' rank is {genotype.rank}", "ranks", allowed)
    if genotype.frequent not in (0, space.frequent_words):
        what = f"{genotype.frequent:,} words have embeddings in full"
        raise _outside(what, "frequent_words", f"{space.frequent_words:,}, or none")
    for index, block in enumerate(genotype.blocks):
        if width % block.heads:
            raise NasdError(
                f"the genotype is impossible: block {index} has {block.heads} heads, which do not"
                f" divide the width {width}"
            )
        if block.heads not in space.heads:
            raise _outside(f"block {index} has {block.heads} heads", "heads", space.heads)
        if block.remaining is not None and block.remaining not in space.remaining_heads:
            what = f"block {index} has {block.heads_in_words} heads"
            raise _outside(what, "remaining_heads", (*space.remaining_heads, "all"))
        for what, kernel, kernels in (
            ("convolutions", block.convolution, space.convolutions),
            ("branches", block.branch, space.branches),
        ):
            if kernel is not None and kernel not in kernels:
                allowed = (*kernels, "none")
                raise _outside(f"block {index} has a convolution over {kernel}", what, allowed)
        if not 1 <= len(block.ffns) <= space.ffns:
            raise _outside(
                f"block {index} has {len(block.ffns)} FFNs", "ffns", f"1 to {space.ffns}"
            )
        for ffn in block.ffns:
            where = f"block {index} has an FFN"
            if ffn.activation not in space.activations:
                raise _outside(f"{where} with {ffn.activation}", "activations", space.activations)
            if len(ffn.sizes) + 1 not in space.layers:
                raise _outside(f"{where} of {len(ffn.sizes) + 1} layers", "layers", space.layers)
            for size in ffn.sizes:
                if size not in space.sizes:
                    raise _outside(f"{where} of size {size}", "sizes", space.sizes)

    _check_memory(_of_blocks(genotype, width), "the genotype")


def check_space(space: SearchSpace, width: int) -> None:
    """Raises NasdError if the largest encoder in it is more than any machine has memory for."""
    sizes = (max(space.sizes),) * (max(space.layers) - 1)
    ffns = (FeedForward(space.activations[0], sizes),) * space.ffns
    kernels = (max(one, default=None) for one in (space.convolutions, space.branches))
    block = Block(1, ffns, None, False, *kernels)
    count = space.blocks[1] * _of_blocks(Genotype((block,)), width)
    _check_memory(count, "search_space: its largest member")


def _of_blocks(genotype: Genotype, width: int) -> int:
    """Its parameters without the embeddings."""
    bare = Backbone(vocab_size=0, positions=0, width=width)
    return parameters(genotype, bare) - parameters(Genotype(()), bare)


def _check_memory(count: int, what: str) -> None:
    if count > MOST_PARAMETERS:
        raise NasdError(
            f"{what} would have {count:,} parameters in its blocks, more than machines have memory"
            f" for: take fewer blocks, FFNs or layers, or smaller sizes, of at most"
            f" {MOST_PARAMETERS:,} in all"
        )


def _outside(what: str, key: str, allowed: object) -> NasdError:
    if isinstance(allowed, tuple):
        allowed = ", ".join(map(str, allowed))
    return NasdError(
        f"the genotype is outside of the search space: {what}, and search_space.{key} allows"
        f" {allowed}"
    )
