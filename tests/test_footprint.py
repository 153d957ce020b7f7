"""What is worked out of a genotype, against the model that it decodes to."""

import json
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from nasd.contract.config import Measure
from nasd.contract.footprint import exported_bytes, flop
from nasd.contract.genotype import Backbone, Block, FeedForward, Genotype
from nasd.search.objectives.figures import figures
from nasd.worker.model import phenotype
from nasd.worker.model.architecture import Architecture

BACKBONE = Backbone(vocab_size=120, positions=40, width=48)
GENOTYPES = [
    Genotype((Block(4, (FeedForward("gelu", (96,)),)),)),
    Genotype(
        (
            Block(2, (FeedForward("relu", (32, 80)), FeedForward("gelu", (16,)))),
            Block(8, (FeedForward("gelu", (64,)),)),
        )
    ),
]


def model_of(genotype: Genotype) -> phenotype.QuestionAnswering:
    plain = Architecture(BACKBONE.vocab_size, BACKBONE.positions, BACKBONE.width, ())
    model = phenotype.QuestionAnswering(plain.with_blocks(genotype.to_json()["blocks"]))
    phenotype.initialise(model, torch.Generator().manual_seed(0))
    return model


@pytest.mark.parametrize("genotype", GENOTYPES, ids=str)
def test_the_bytes_of_an_export_are_its_files_but_for_the_header(
    tmp_path: Path, genotype: Genotype
) -> None:
    phenotype.save(model_of(genotype), tmp_path)
    file = tmp_path / phenotype.WEIGHTS
    header = 8 + int.from_bytes(file.read_bytes()[:8], "little")
    assert exported_bytes(genotype, BACKBONE) == file.stat().st_size - header
    assert set(json.loads(file.read_bytes()[8:header])) > {"qa_outputs.weight"}


@pytest.mark.parametrize("genotype", GENOTYPES, ids=str)
@pytest.mark.parametrize(("batch", "tokens"), [(1, 16), (3, 40)])
def test_the_operations_are_those_that_torch_counts(
    genotype: Genotype, batch: int, tokens: int
) -> None:
    encoder = model_of(genotype).encoder.train()  # the attention that is spelled out is counted
    for block in encoder.blocks:
        block.attention.dropout = 0.5  # type: ignore[union-attr]
    with FlopCounterMode(display=False) as counter:
        encoder(torch.zeros(batch, tokens, dtype=torch.long))
    assert flop(genotype, BACKBONE, batch, tokens) == counter.get_total_flops()


def test_figures_are_of_the_batch_and_length_that_are_measured_at() -> None:
    one, other = (
        figures(GENOTYPES[0], BACKBONE, Measure(batch=batch, tokens=32)) for batch in (1, 4)
    )
    assert other["flop"] == 4 * one["flop"]
    assert other["bytes"] == one["bytes"]
