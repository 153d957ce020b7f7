from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nasd.contract.genotype import Block, BlockLineage, FeedForward, Genotype, Lineage, unchanged
from nasd.search.variation.breeding import align
from nasd.worker.model import phenotype
from nasd.worker.model.architecture import Architecture
from nasd.worker.model.inherit import inherit, new_parameters
from nasd.worker.model.phenotype import MaskedLM

A, B, C = FeedForward("gelu", (20,)), FeedForward("relu", (8, 24)), FeedForward("gelu", (16,))
PARENT = Genotype((Block(3, (A,)), Block(4, (B, C)), Block(6, (C,))))
ARCH = Architecture(vocab_size=31, positions=16, width=12, blocks=(), dropout=0.3).with_blocks(
    PARENT.to_json()["blocks"]
)
NEW = FeedForward("relu", (10,))

# Parent's blocks 0, 1, 2 to: 1 with an altered attention and an FFN added before its own, a new
# block, 2 with its FFN altered, 0 as it was; so every module moved or changed but block 0's.
CHILD = Genotype((Block(2, (NEW, B, C)), Block(4, (NEW, A)), Block(6, (NEW,)), Block(3, (A,))))
LINEAGE: Lineage = (
    BlockLineage.of(1, True, ("added", "kept", "kept")),
    BlockLineage.of(None, True, ("added", "added")),
    BlockLineage.of(2, False, ("altered",)),
    BlockLineage.of(0, False, ("kept",)),
)
# What every module of CHILD comes from, written out by hand.
KEPT = {
    "encoder.embeddings": "encoder.embeddings",
    "head": "head",
    "encoder.blocks.0.attention_norm": "encoder.blocks.1.attention_norm",
    "encoder.blocks.0.ffns.1": "encoder.blocks.1.ffns.0",
    "encoder.blocks.0.ffn_norms.1": "encoder.blocks.1.ffn_norms.0",
    "encoder.blocks.0.ffns.2": "encoder.blocks.1.ffns.1",
    "encoder.blocks.0.ffn_norms.2": "encoder.blocks.1.ffn_norms.1",
    "encoder.blocks.2.attention": "encoder.blocks.2.attention",
    "encoder.blocks.2.attention_norm": "encoder.blocks.2.attention_norm",
    "encoder.blocks.2.ffn_norms.0": "encoder.blocks.2.ffn_norms.0",
    "encoder.blocks.3": "encoder.blocks.0",
}
FRESH = (
    "encoder.blocks.0.attention",
    "encoder.blocks.0.ffns.0",
    "encoder.blocks.0.ffn_norms.0",
    "encoder.blocks.1",
    "encoder.blocks.2.ffns.0",
)


def generator(number: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(number)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The parent's weights, all different, norms and biases too."""
    parent = MaskedLM(ARCH)
    draws = generator(99)
    with torch.no_grad():
        for parameter in parent.parameters():
            parameter.normal_(0.0, 0.3, generator=draws)
    phenotype.save(parent, tmp_path)
    return tmp_path


def below(name: str, modules: Any) -> Iterator[str]:
    return (module for module in modules if name.startswith(f"{module}."))


def test_an_adopted_genotype_inherits_by_the_lineage_that_was_found_for_it(folder: Path) -> None:
    made = Genotype((Block(4, (C, B, C)), Block(6, (NEW,)), Block(2, (A, NEW)), Block(6, (C,))))
    _, lineage = align(made, PARENT, 12)
    assert [block.source for block in lineage] == [1, None, None, 2]
    assert lineage[0] == BlockLineage.of(1, False, ("added", "kept", "kept"))
    parent = phenotype.load_state(folder)
    model = inherit(made, lineage, folder, generator())
    place = "encoder.blocks.3."
    for name, tensor in model.state_dict().items():
        if name.startswith(place):
            assert torch.equal(tensor, parent["encoder.blocks.2." + name.removeprefix(place)])


def test_every_tensor_is_the_parents_or_fresh(folder: Path) -> None:
    parent = phenotype.load_state(folder)
    one, same, other = (inherit(CHILD, LINEAGE, folder, generator(n)) for n in (1, 1, 2))
    assert one.architecture == ARCH.with_blocks(CHILD.to_json()["blocks"])
    first, second, third = (model.state_dict() for model in (one, same, other))
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name
        (module,) = below(name, (*KEPT, *FRESH))
        if module in KEPT:
            assert torch.equal(tensor, parent[KEPT[module] + name.removeprefix(module)]), name
        else:
            assert fresh(name, tensor), name
            assert tensor.ndim == 1 or not torch.equal(tensor, third[name]), name


def fresh(name: str, tensor: Tensor) -> bool:
    """Whether the tensor is as BERT's initialisation leaves it."""
    if tensor.ndim == 1:
        return bool((tensor == (1.0 if "norm" in name and name.endswith("weight") else 0.0)).all())
    return 0.0 < tensor.abs().max().item() < 0.1


def test_the_new_parameters_are_those_of_the_fresh_modules(folder: Path) -> None:
    model = inherit(CHILD, LINEAGE, folder, generator())
    names = {name for name, _ in model.named_parameters()}
    assert new_parameters(model, LINEAGE) == {name for name in names if any(below(name, FRESH))}


def test_a_copy_keeps_everything_and_has_nothing_to_train(folder: Path) -> None:
    model = inherit(PARENT, unchanged(PARENT), folder, generator())
    parent = phenotype.load_state(folder)
    assert model.state_dict().keys() == parent.keys()
    assert all(torch.equal(tensor, parent[name]) for name, tensor in model.state_dict().items())
    assert new_parameters(model, unchanged(PARENT)) == set()


def test_an_unchanged_module_takes_nothing_from_the_generator(folder: Path) -> None:
    draws = generator(4)
    inherit(PARENT, unchanged(PARENT), folder, draws)
    assert torch.equal(draws.get_state(), generator(4).get_state())


def test_a_removed_block_leaves_the_others_with_their_own_weights(folder: Path) -> None:
    child = Genotype((PARENT.blocks[0], PARENT.blocks[2]))
    lineage = (unchanged(PARENT)[0], unchanged(PARENT)[2])
    model = inherit(child, lineage, folder, generator())
    parent = phenotype.load_state(folder)
    for name, tensor in model.state_dict().items():
        source = name.replace("encoder.blocks.1.", "encoder.blocks.2.")
        assert torch.equal(tensor, parent[source]), name


def test_the_backbone_and_its_dropouts_are_inherited(folder: Path) -> None:
    model = inherit(CHILD, LINEAGE, folder, generator())
    assert model.architecture.dropout == 0.3
    still = inherit(CHILD, LINEAGE, folder, generator(), dropout=0.0)
    assert still.architecture == model.architecture.with_dropout(0.0)


KEEP = unchanged(PARENT)


@pytest.mark.parametrize(
    ("child", "lineage", "message"),
    [
        (PARENT, KEEP[:2], "a lineage of 2 blocks for 3"),
        (PARENT, (BlockLineage.of(0, False, ()), *KEEP[1:]), "block 0: .* number of FFNs"),
        (PARENT, (*KEEP[:2], BlockLineage.of(7, False, ("kept",))), "no block 7"),
        (
            Genotype((Block(4, (A,)), *PARENT.blocks[1:])),
            KEEP,
            "block 0: its attention is not block 0's",
        ),
        (
            Genotype((Block(3, (FeedForward("relu", (20,)),)), *PARENT.blocks[1:])),
            KEEP,
            "block 0: an FFN is not block 0's",
        ),
        (
            Genotype((Block(3, (A, B)), *PARENT.blocks[1:])),
            (BlockLineage.of(0, False, ("kept", "kept")), *KEEP[1:]),
            "block 0: block 0 has no FFN 1",
        ),
    ],
)
def test_a_lineage_that_does_not_fit_is_refused(
    child: Genotype, lineage: Lineage, message: str, folder: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        inherit(child, lineage, folder, generator())
