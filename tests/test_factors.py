"""Word embeddings as a product: what a child's factors keep of its parent's; what reads them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from nasd.contract.config import SearchSpace, check_against_seed
from nasd.contract.errors import NasdError
from nasd.contract.genotype import Backbone, Block, FeedForward, Genotype, unchanged
from nasd.search.variation.breeding import check_genotype
from nasd.worker import export
from nasd.worker.model import phenotype
from nasd.worker.model.architecture import Architecture
from nasd.worker.model.inherit import Trace, born
from nasd.worker.model.phenotype import MaskedLM, QuestionAnswering
from nasd.worker.screening import _same
from tests.test_transfers import VOCABULARY, WIDTH, generator, model_of, outputs, windows
from tests.training import demo_config

BLOCKS = (Block(4, (FeedForward("gelu", (16,)),)), Block(2, (FeedForward("relu", (24,)),)))
FULL = Genotype(BLOCKS)


def child_of(
    parent: Any, rank: int | None, counts: torch.Tensor | None = None, frequent: int = 0
) -> Any:
    own = Genotype.from_json(parent.architecture.to_json())
    child = replace(own, rank=rank, frequent=frequent)
    seen = replace(windows(), counts=None if counts is None else lambda: counts)
    return born(child, unchanged(own), [parent], generator(3), seen)


def words_of(model: Any) -> torch.Tensor:
    """What each word adds, without its position: [vocabulary, width]."""
    embeddings = model.encoder.embeddings
    with torch.no_grad():
        summed = embeddings.summed(torch.arange(VOCABULARY)[:, None])[:, 0]
    return summed.detach()


@pytest.mark.parametrize("rank", [12, 23, None])
def test_a_higher_rank_computes_the_same_and_gradients_reach_what_is_new(rank: int | None) -> None:
    parent = model_of(replace(FULL, rank=8), kind=MaskedLM)
    child = child_of(parent, rank)
    seen = windows()
    with torch.no_grad():
        assert (child(seen.input_ids) - parent(seen.input_ids)).abs().max() < 1e-5
    if rank is not None:
        child(seen.input_ids).square().sum().backward()
        grown = child.encoder.embeddings.word.weight.grad[:, 8:]
        assert bool((grown.abs().sum(0) > 0).all())


def test_the_same_rank_is_copied() -> None:
    parent = model_of(replace(FULL, rank=8))
    child = child_of(parent, 8)
    assert torch.equal(child.encoder.embeddings.word.weight, parent.encoder.embeddings.word.weight)
    assert torch.equal(outputs(child, windows()), outputs(parent, windows()))


@pytest.mark.parametrize(
    ("rank", "frequent"), [(8, 0), (8, 3), (12, 7), (23, 7), (8, 9), (None, 0)]
)
def test_frequent_words_beside_the_parents_rank_or_a_higher_one_change_nothing(
    rank: int | None, frequent: int
) -> None:
    parent = model_of(replace(FULL, rank=8, frequent=7), kind=MaskedLM)
    with torch.no_grad():
        rows = parent.encoder.embeddings.row
        rows.copy_(torch.randperm(VOCABULARY, generator=generator(4)).to(rows.dtype))
        if frequent < 7 and rank == 8:  # or those that are frequent no more would not fit in
            table = parent.encoder.embeddings.frequent.weight
            table.copy_(torch.randn(7, 8) @ parent.encoder.embeddings.widen.weight.T)
    child = child_of(parent, rank, torch.arange(VOCABULARY), frequent)
    assert child.architecture.words == (rank, frequent)
    seen = windows()
    ids = seen.input_ids
    with torch.no_grad():
        assert (child(ids).log_softmax(-1) - parent(ids).log_softmax(-1)).abs().max() < 1e-4
    if frequent == 7:
        assert torch.equal(child.encoder.embeddings.row, rows)
    child(ids).square().sum().backward()
    assert all(bool(one.grad.any()) for one in child.encoder.embeddings.word.parameters())


def test_words_that_are_frequent_in_the_texts_keep_all_they_have_and_the_others_what_they_can() -> (
    None
):
    parent = model_of(FULL)
    counts = torch.ones(VOCABULARY, dtype=torch.int64)
    often = torch.tensor([3, 11, 40, 41])
    counts[often] = torch.tensor([50, 20, 90, 60])
    child = child_of(parent, 6, counts, 4)
    wanted, found = words_of(parent), words_of(child)
    torch.testing.assert_close(found[often], wanted[often])
    rare = torch.ones(VOCABULARY, dtype=torch.bool)
    rare[often] = False
    centred = wanted[rare] - wanted[rare].mean(0)
    best = torch.linalg.svdvals(centred)[6:].square().sum()
    lost = (found - wanted)[rare].square().sum()
    torch.testing.assert_close(lost, best, rtol=1e-4, atol=1e-5)
    # Its children know them by the same rows, whatever they count.
    again = child_of(child, 4, torch.arange(VOCABULARY), 4)
    assert torch.equal(again.encoder.embeddings.row, child.encoder.embeddings.row)
    torch.testing.assert_close(words_of(again)[often], wanted[often])


def test_what_is_as_simple_as_the_rank_is_kept_whole_mean_and_all() -> None:
    """Words that differ in five directions from a mean that lies in a sixth."""
    parent = model_of(FULL, kind=MaskedLM)
    draws = generator(9)
    with torch.no_grad():
        table = torch.randn(VOCABULARY, 5, generator=draws) @ torch.randn(5, WIDTH, generator=draws)
        parent.encoder.embeddings.word.weight.copy_(table + torch.randn(WIDTH, generator=draws))
    child = child_of(parent, 5)
    assert (words_of(child) - words_of(parent)).abs().max() < 1e-4
    ids = windows().input_ids
    with torch.no_grad():
        shares = [model(ids).log_softmax(-1) for model in (child, parent)]
    assert (shares[0] - shares[1]).abs().max() < 1e-3


def test_a_lower_rank_is_nearest_where_the_texts_words_are() -> None:
    parent = model_of(FULL)
    counts = torch.zeros(VOCABULARY, dtype=torch.int64)
    counts[:7] = 100
    told, alike = (words_of(child_of(parent, 6, one)) for one in (counts, None))
    wanted = words_of(parent)
    errors = [(one - wanted).square().sum(1) for one in (told, alike)]
    assert errors[0][:7].sum() < 0.01 * errors[1][:7].sum()
    assert errors[1].sum() < errors[0].sum()
    # Nothing of that rank is nearer, if all count alike.
    centred = wanted - wanted.mean(0)
    best = torch.linalg.svdvals(centred)[6:].square().sum()
    torch.testing.assert_close(errors[1].sum(), best, rtol=1e-4, atol=1e-5)


def test_lower_ranks_lose_more_and_a_chain_of_them_no_more_than_one_step() -> None:
    parent = model_of(FULL)
    wanted = words_of(parent)
    lost = [(words_of(child_of(parent, rank)) - wanted).square().sum() for rank in (16, 8, 4)]
    assert lost[0] < lost[1] < lost[2]
    chained = words_of(child_of(child_of(parent, 16), 4))
    torch.testing.assert_close((chained - wanted).square().sum(), lost[2], rtol=1e-3, atol=1e-4)


def test_a_mutant_with_other_embeddings_shares_no_block_with_its_parent() -> None:
    parent = model_of(FULL)
    child = born(replace(FULL, rank=6), unchanged(FULL), [parent], generator(), windows())
    mine = Trace(child.encoder, windows())
    again = born(
        replace(FULL, rank=6),
        unchanged(FULL),
        [parent],
        generator(),
        windows(),
        traces=[Trace(parent.encoder, windows())],
    )
    assert torch.equal(outputs(again, windows()), outputs(child, windows()))
    assert not torch.equal(mine.carried(0), Trace(parent.encoder, windows()).carried(0))
    mutant: Any = type("Mutant", (), {"genotype": replace(FULL, rank=6).to_json()})
    assert _same(mutant, parent) == 0
    beside: Any = type("Mutant", (), {"genotype": replace(FULL, rank=6, frequent=2).to_json()})
    assert _same(beside, model_of(replace(FULL, rank=6))) == 0


def test_an_exported_model_has_the_factors_in_its_files(tmp_path: Path) -> None:
    model = model_of(replace(FULL, rank=6), kind=QuestionAnswering)
    phenotype.save(model, tmp_path)
    shapes = {name: tuple(one.shape) for name, one in phenotype.load_state(tmp_path).items()}
    assert shapes["encoder.embeddings.word.weight"] == (VOCABULARY, 6)
    assert shapes["encoder.embeddings.widen.weight"] == (WIDTH, 6)
    again = phenotype.load(QuestionAnswering, tmp_path)
    assert again.architecture == model.architecture


def test_what_says_that_more_words_are_frequent_than_there_are_is_refused() -> None:
    told = model_of(replace(FULL, rank=6, frequent=3)).architecture.to_json()
    for given, fault in (
        ({"frequent": VOCABULARY}, "frequent in config.json is no whole number from 1 to 49"),
        ({"frequent": -1}, "frequent in config.json is no whole number"),
        ({"rank": None}, "frequent in config.json stands there without a rank"),
    ):
        with pytest.raises(ValueError, match=fault):
            Architecture.from_json({**told, **given})


def test_onnx_keeps_the_factors(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="the extra onnx is not installed: bin/setup onnx")
    onnx = pytest.importorskip("onnx", reason="the extra onnx is not installed: bin/setup onnx")
    pytest.importorskip("onnxscript", reason="the extra onnx is not installed: bin/setup onnx")
    phenotype.save(model_of(replace(FULL, rank=6)), tmp_path)
    assert export.write_onnx(tmp_path) < 1e-4
    shapes = [sorted(one.dims) for one in onnx.load(tmp_path / export.ONNX).graph.initializer]
    assert [6, VOCABULARY] in shapes and [WIDTH, VOCABULARY] not in shapes


def test_a_rank_that_saves_nothing_and_one_outside_of_the_space_are_refused() -> None:
    config = demo_config(search_space__ranks=[16, 32])
    with pytest.raises(NasdError, match=r"search_space\.ranks: a rank of 32 saves nothing at the"):
        check_against_seed(config, Backbone(225, 512, 32), "config.toml")
    space = SearchSpace(
        blocks=(1, 4), heads=(2, 4), ffns=2, layers=(2,), sizes=(16, 24), ranks=(8,)
    )
    check_genotype(replace(FULL, rank=8), space, WIDTH)
    with pytest.raises(NasdError, match=r"5 words have embeddings in full, and search_space\.freq"):
        check_genotype(replace(FULL, rank=8, frequent=5), space, WIDTH)
    config = demo_config(search_space__ranks=[16], search_space__frequent_words=225)
    with pytest.raises(NasdError, match=r"frequent_words: the seed has 225 words, and 225 of them"):
        check_against_seed(config, Backbone(225, 512, 32), "config.toml")
    with pytest.raises(NasdError, match=r"rank is 6, and search_space\.ranks allows 8, full"):
        check_genotype(replace(FULL, rank=6), space, WIDTH)
