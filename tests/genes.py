"""What holds of any gene of an attention: that examples stay apart, that the model weighs what is
told of its genotype, and that it can be taken home."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from nasd.contract.footprint import exported_bytes, flop
from nasd.contract.genotype import Backbone, FeedForward, Genotype, parameters
from nasd.worker.model import phenotype
from nasd.worker.model.layers import Packing
from tests.test_transfers import FAMILIES, generator, model_of, windows

FFN = (FeedForward("gelu", (32,)),)
BACKBONE = Backbone(vocab_size=50, positions=12, width=24)
LENGTHS = (12, 3, 7, 1)
PLACES = ((0, 2), (0, 2), (6, 1), (0, 0))  # two wanted tokens of each


def check_examples_stay_apart(genotype: Genotype, family: str) -> None:
    """Each of three blocks' examples gives by itself what it gives within a batch, padded with
    anything, packed, and at wanted tokens alone."""
    blocks = genotype.blocks
    if "pre_norm" in FAMILIES[family]:
        roles = ("global", "local", "global")
        blocks = tuple(replace(b, role=r) for b, r in zip(blocks, roles, strict=True))
    encoder = model_of(Genotype(blocks), family=family).encoder
    ids = torch.randint(1, 50, (4, 12), generator=generator(3))
    mask = (torch.arange(12) < torch.tensor(LENGTHS)[:, None]).long()
    places, chosen = mask.flatten().nonzero()[:, 0], torch.tensor(PLACES)
    with torch.no_grad():
        padded, some = encoder(ids, mask), encoder(ids, mask, chosen)
        packed = encoder.packed(ids, Packing(places, torch.tensor([0, 12, 15, 22, 23])))
        for one, length in enumerate(LENGTHS):
            alone = encoder(ids[one : one + 1, :length])[0]
            for found in (padded, packed):
                torch.testing.assert_close(found[one, :length], alone, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(some[one], alone[chosen[one]], atol=1e-5, rtol=1e-5)


def check_weighs_as_told(genotype: Genotype, folder: Path, uncounted: int) -> None:
    """uncounted: operations of two examples of 12 tokens that are no products of matrices, which
    alone torch counts."""
    model = model_of(genotype)
    assert parameters(genotype, BACKBONE) == sum(one.numel() for one in model.encoder.parameters())
    phenotype.save(model, folder)
    file = folder / phenotype.WEIGHTS
    header = 8 + int.from_bytes(file.read_bytes()[:8], "little")
    assert exported_bytes(genotype, BACKBONE) == file.stat().st_size - header
    encoder: Any = model.encoder.train()
    for block in encoder.blocks:
        block.attention.dropout = 0.5
    with FlopCounterMode(display=False) as counter:
        encoder(torch.zeros(2, 12, dtype=torch.long))
    assert flop(genotype, BACKBONE, 2, 12) - uncounted == counter.get_total_flops()


def check_taken_home(genotype: Genotype, folder: Path) -> None:
    """In transformers, and in ONNX where that is installed."""
    from transformers import AutoModelForQuestionAnswering

    from nasd.worker import export
    from nasd.worker.model.pretrained import NasdConfig, NasdForQuestionAnswering

    model = model_of(genotype)
    copy = NasdForQuestionAnswering(NasdConfig(**model.architecture.to_json()))
    copy.load_state_dict(model.state_dict())
    copy.save_pretrained(folder)
    theirs = AutoModelForQuestionAnswering.from_pretrained(folder).eval()
    seen = windows()
    with torch.no_grad():
        wanted = model(seen.input_ids, seen.attention_mask)[0]
        said = theirs(seen.input_ids, seen.attention_mask).start_logits
    torch.testing.assert_close(said, wanted)
    assert phenotype.load_architecture(folder) == model.architecture
    pytest.importorskip("onnxscript", reason="the extra onnx is not installed: bin/setup onnx")
    assert export.write_onnx(folder) <= export.ONNX_TOLERANCE
