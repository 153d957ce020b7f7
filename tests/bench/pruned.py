"""Models that nobody searched: smaller ones by what is usually done to a fine-tuned model.

Blocks are dropped from the top (Sajjad et al. 2020), or every FFN keeps the same share of its
units, those with the largest weights. Heads are not pruned: in this search space an attention is
as wide as the model, whatever the number of its heads, so that fewer of them save nothing.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn

from nasd.contract.genotype import Backbone, FeedForward, Genotype
from nasd.worker.model import phenotype
from nasd.worker.model.encoder import Block
from nasd.worker.model.phenotype import QuestionAnswering
from tests.bench.standing import share_of_blocks


def without_top(genotype: Genotype, left: int) -> Genotype:
    """The lowest `left` blocks."""
    assert 1 <= left <= len(genotype.blocks)
    return Genotype(genotype.blocks[:left])


def narrowed(genotype: Genotype, backbone: Backbone, share: float) -> Genotype | None:
    """With the largest same share of every FFN's units at which the blocks have at most `share` of
    their parameters; None where attentions alone have more."""
    most = max(size for block in genotype.blocks for ffn in block.ffns for size in ffn.sizes)
    for units in range(most - 1, 0, -1):
        found = _of_width(genotype, units / most)
        if share_of_blocks(found, genotype, backbone) <= share:
            return found
    return None


def _of_width(genotype: Genotype, part: float) -> Genotype:
    def thinner(ffn: FeedForward) -> FeedForward:
        return replace(ffn, sizes=tuple(max(1, int(part * size)) for size in ffn.sizes))

    return Genotype(
        tuple(replace(one, ffns=tuple(map(thinner, one.ffns))) for one in genotype.blocks)
    )


@torch.no_grad()
def pruned(model: QuestionAnswering, into: Genotype) -> QuestionAnswering:
    """The model with as many blocks, from below, and in each FFN as many units, of the largest
    weights, as `into` has. Nothing is refitted."""
    arch = model.architecture.with_blocks(into.to_json()["blocks"])
    made = phenotype.empty(QuestionAnswering, arch)
    state = dict(model.state_dict())
    for index, block in enumerate(into.blocks):
        source = cast("Block", model.encoder.blocks[index])
        for place, ffn in enumerate(block.ffns):
            linears = [cast("nn.Linear", one) for one in source.ffns[place].linears]
            here = f"encoder.blocks.{index}.ffns.{place}.linears"
            for number, (weight, bias) in enumerate(_thinned(linears, ffn.sizes)):
                state[f"{here}.{number}.weight"], state[f"{here}.{number}.bias"] = weight, bias
    made.load_state_dict({name: state[name] for name in made.state_dict()})
    return made


def _thinned(linears: Sequence[nn.Linear], sizes: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
    """The linear layers (weight, bias) with so many of the hidden units, those whose weights into
    them and out of them are largest."""
    found = []
    inputs = torch.arange(linears[0].in_features)
    for number, linear in enumerate(linears):
        outputs = torch.arange(linear.out_features)
        if number < len(sizes):
            weights = linear.weight.square().sum(1) + linears[number + 1].weight.square().sum(0)
            outputs = weights.topk(sizes[number]).indices.sort().values
        found.append((linear.weight[outputs][:, inputs], linear.bias[outputs]))
        inputs = outputs
    return found
