"""The search space of a model that is to become smaller: its own modules, and smaller ones."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from nasd.contract.errors import NasdError
from nasd.contract.genotype import (
    Backbone,
    Block,
    FeedForward,
    Genotype,
    parameters,
    weights_of_words,
)

STEPS = (0.25, 0.5, 0.75, 1.0)  # of the widest intermediate size
RANKS = (1 / 4, 1 / 3, 1 / 2, 2 / 3)  # of the width: below a quarter words lose too much
FREQUENT = 1000  # words that keep full embeddings beside a rank, where there are 16 times as many
FINE = 8  # GPUs are fast at multiples of it
FEWEST_HEADS = 0.25  # of the most that the model has
LEFT = (0.25, 0.5, 0.75)  # of them, where heads are removed
STEP = 0.01  # in which a share is told
TRIED = 24  # mutants for each place, where children go all the way at once
# A dropped block is dear where there is one training; units and heads come first.
STRAIGHT = {"narrow": 4, "drop_heads": 2, "drop_block": 0.3}
# Of 1e-4 to 5e-4 the best for a model 384 wide (docs/measured.md); 3e-5 to 5e-5 is usual for 768.
RATE, RATE_WIDTH, HIGHEST_RATE = 2e-4, 384, 3e-4


def space(model: Genotype, backbone: Backbone, target: float) -> dict[str, Any]:
    """The section [search_space]: what the model has, and steps down from there, to fewer blocks
    than make `target` of its parameters. Raises NasdError where the smallest is larger than that.

    target: share of the whole encoder's parameters, the embeddings among them.
    """
    ffns = [ffn for block in model.blocks for ffn in block.ffns]
    own = {size for ffn in ffns for size in ffn.sizes}
    sizes = sorted(own | {_fine(step * max(own)) for step in STEPS})
    frequent = model.frequent or min(FREQUENT, backbone.vocab_size // 16)
    ranks = _ranks(model, backbone, frequent)
    heads = _heads({block.heads for block in model.blocks}, backbone.width)
    remaining = _remaining(model)
    block = _smallest_block(model, backbone, sizes, heads, remaining)
    least = _least(model, backbone, ranks, frequent)
    smallest = parameters(Genotype((block,), *least), backbone)
    check_target(target, parameters(model, backbone), smallest)
    return {
        "blocks": [_fewest(model, backbone, target, block, least), len(model.blocks)],
        "heads": heads,
        "remaining_heads": remaining,
        "ffns": max(len(block.ffns) for block in model.blocks),
        "layers": sorted({2} | {len(ffn.sizes) + 1 for ffn in ffns}),
        "sizes": sizes,
        "activations": sorted({ffn.activation for ffn in ffns}),
        "ranks": ranks,
        "frequent_words": frequent if ranks else 0,
        **_kernels(model),
    }


def straight(target: float, steps: int, limits: Sequence[str]) -> dict[str, Any]:
    """The keys of a search that goes to its target at once, for a budget that pays few trainings
    and no generations of small steps: among many mutants of about so many steps, those are born
    that are small enough and know most untrained (docs/decisions.md). limits: of the config,
    beside its own.
    """
    return {
        "experiment.limits": [*limits, limit(target)],
        "experiment.generations": 0,
        "population.finishing": 0,
        "population.screened": TRIED,
        "variation.steps": [steps // 2, steps + steps // 2],
        **{f"variation.operators.{name}": share for name, share in STRAIGHT.items()},
    }


def limit(target: float) -> str:
    """Of at most this share of the parameters."""
    return f"compression >= {math.floor(1e6 / target) / 1e6:.6f}".rstrip("0").removesuffix(".")


def learning_rate(backbone: Backbone) -> float:
    """For fine-tuned models that have become smaller, which learn more than at their end: falls
    with the square of the width."""
    rate = RATE * (RATE_WIDTH / backbone.width) ** 2
    return min(HIGHEST_RATE, float(f"{rate:.1e}"))


def check_target(target: float, whole: int, smallest: int) -> None:
    """Raises NasdError where a model of `smallest` parameters is more than `target` of `whole`."""
    if smallest > target * whole:
        least = math.ceil(smallest / whole / STEP) * STEP
        raise NasdError(
            f"--target {target:g}: the smallest encoder of this search, its embeddings and one"
            f" block, has {100 * smallest / whole:.0f} % of the model's parameters: give"
            f" {least:.2f} or more"
        )


def smallest_of(config_space: Any, model: Genotype, backbone: Backbone) -> int:
    """Parameters of the smallest encoder in a search space."""
    block = _smallest_block(
        model, backbone, config_space.sizes, config_space.heads, config_space.remaining_heads
    )
    words = _least(model, backbone, config_space.ranks, config_space.frequent_words)
    return parameters(Genotype((block,) * config_space.blocks[0], *words), backbone)


def embeddings(
    model: Genotype, backbone: Backbone, ranks: Sequence[int] = (), frequent: int = 0
) -> float:
    """Their share of the model's parameters; at the narrowest of these ranks, where there are
    some, with so many frequent words beside."""
    block = model.blocks[0]
    words = _least(model, backbone, ranks, frequent)
    one, two = (parameters(Genotype((block,) * n, *words), backbone) for n in (1, 2))
    return (one - (two - one)) / parameters(model, backbone)


def _least(
    model: Genotype, backbone: Backbone, ranks: Sequence[int], frequent: int
) -> tuple[int | None, int]:
    """The smallest word embeddings: the model's own, or of the lowest rank, with so many frequent
    words beside."""
    shapes = [model, *(replace(model, rank=one, frequent=frequent) for one in ranks)]
    return min(shapes, key=lambda one: weights_of_words(one, backbone)).words


def _ranks(model: Genotype, backbone: Backbone, frequent: int) -> list[int]:
    """Of its word embeddings: its own, and lower ones that take less."""
    own = backbone.width if model.rank is None else model.rank
    table = weights_of_words(model, backbone)
    lower = {_fine(step * backbone.width) for step in RANKS}
    found = {
        rank
        for rank in lower
        if rank < own
        and weights_of_words(replace(model, rank=rank, frequent=frequent), backbone) < table
    }
    return sorted(found | (set() if model.rank is None else {model.rank}))


def _smallest_block(
    model: Genotype,
    backbone: Backbone,
    sizes: Sequence[int],
    heads: Sequence[int],
    remaining: Sequence[int],
) -> Block:
    """One FFN of the smallest size, and the attention whose heads are least wide together."""
    ffns = (FeedForward(model.blocks[0].ffns[0].activation, (min(sizes),)),)
    found = [
        Block(number, ffns, remaining=left)
        for number in heads
        for left in (None, *remaining)
        if left is None or left < number
    ]
    return min(found, key=lambda block: block.inner(backbone.width))


def _fewest(
    model: Genotype,
    backbone: Backbone,
    target: float,
    block: Block,
    words: tuple[int | None, int],
) -> int:
    """Blocks: the target's share of the model's, or as many as fit into it at their smallest."""
    whole = parameters(model, backbone)
    fits = [
        blocks
        for blocks in range(1, len(model.blocks) + 1)
        if parameters(Genotype((block,) * blocks, *words), backbone) <= target * whole
    ]
    return max(1, min(math.floor(target * len(model.blocks)), fits[-1]))


def _kernels(model: Genotype) -> dict[str, Any]:
    """Of its convolutions, where it has some."""
    found = {
        "convolutions": {block.convolution for block in model.blocks if block.convolution},
        "branches": {block.branch for block in model.blocks if block.branch},
    }
    return {key: sorted(kernels) for key, kernels in found.items() if kernels}


def _heads(own: set[int], width: int) -> list[int]:
    """The model's own numbers, and fewer: divisors of the width, of heads that GPUs are fast at."""
    most = max(own)
    fewer = {
        heads
        for heads in range(max(1, math.ceil(FEWEST_HEADS * most)), most)
        if width % heads == 0 and (width // heads) % FINE == 0
    }
    return sorted(own | fewer)


def _remaining(model: Genotype) -> list[int]:
    """Of its heads: as many as remain in its own blocks, and shares of the most that it has."""
    most = max(block.heads for block in model.blocks)
    own = {block.remaining for block in model.blocks if block.remaining is not None}
    return sorted(own | {left for share in LEFT if (left := round(share * most)) in range(1, most)})


def _fine(size: float) -> int:
    return max(1, int(size) // FINE * FINE or int(size))
