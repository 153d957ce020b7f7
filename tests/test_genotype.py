import json
import re
from itertools import product
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nasd.contract.errors import NasdError
from nasd.contract.genotype import (
    Backbone,
    Block,
    BlockLineage,
    FeedForward,
    Genotype,
    ModuleLineage,
    changes,
    distance,
    new_modules,
    parameters,
    text_of,
    unchanged,
)

# Few values each, so that equal genotypes and equal modules come up often.
ffns = st.builds(
    FeedForward,
    st.sampled_from(["relu", "gelu", "relu2"]),
    st.lists(st.sampled_from([2, 4]), min_size=1, max_size=2).map(tuple),
)
blocks = st.builds(
    Block, st.sampled_from([1, 2]), st.lists(ffns, min_size=1, max_size=2).map(tuple)
)
genotypes = st.builds(
    Genotype,
    st.lists(blocks, min_size=1, max_size=3).map(tuple),
    st.sampled_from([None, None, 3, 96]),
)

DISTILBERT = Genotype((Block(12, (FeedForward("gelu", (3072,)),)),) * 6)
BACKBONE = Backbone(vocab_size=30522, positions=512, width=768)


@given(genotypes)
@settings(deadline=None)
def test_json_round_trip(genotype: Genotype) -> None:
    again = Genotype.from_json(json.loads(json.dumps(genotype.to_json())))
    assert again == genotype
    assert again.hash == genotype.hash


@given(genotypes)
@settings(deadline=None)
def test_lineage_round_trip(genotype: Genotype) -> None:
    lineage = (*unchanged(genotype), BlockLineage.of(None, True, ("added", "added")))
    text = json.dumps([block.to_json() for block in lineage])
    assert tuple(BlockLineage.from_json(block) for block in json.loads(text)) == lineage


def test_a_lineage_that_an_earlier_version_wrote_is_read() -> None:
    """Candidates of a search that began with nasd 0.1 are still in its database."""
    wrote = {"source": 1, "attention_new": True, "ffns": ["added", "kept", "altered"]}
    line = BlockLineage.from_json(wrote)
    assert line == BlockLineage(
        ModuleLineage("fresh", 0, 1),
        (
            ModuleLineage("fresh", 0, 1, None),
            ModuleLineage("kept", 0, 1, 0),
            ModuleLineage("fresh", 0, 1, 1),
        ),
    )
    assert line.origins == ("added", "kept", "altered")
    assert BlockLineage.from_json(line.to_json()) == line


@given(genotypes, genotypes)
@settings(deadline=None)
def test_hashes_and_lines_are_equal_if_and_only_if_the_genotypes_are(
    one: Genotype, other: Genotype
) -> None:
    assert (one.hash == other.hash) == (one == other)
    assert (str(one) == str(other)) == (one == other)


def test_the_hash_never_changes_between_versions() -> None:
    assert re.fullmatch("[0-9a-f]{16}", DISTILBERT.hash)
    assert DISTILBERT.hash == "586ec9fc636b4ef9"
    narrow = Genotype(DISTILBERT.blocks, 96)
    assert (narrow.hash, str(narrow)) == ("0de9c6dac6d1e966", "e96 6x[12h g3072]")


def test_one_line_counts_equal_neighbours() -> None:
    plain = Block(12, (FeedForward("gelu", (3072,)),))
    odd = Block(8, (FeedForward("relu", (512,)), FeedForward("gelu", (1024, 2048))))
    assert str(Genotype((plain, plain, odd, plain))) == (
        "2x[12h g3072] [8h r512+g1024-2048] [12h g3072]"
    )


def test_a_rank_is_told_counts_as_one_module_and_saves_parameters() -> None:
    narrow = Genotype(DISTILBERT.blocks, 96)
    assert changes(narrow, unchanged(narrow), DISTILBERT) == [
        "embeddings of rank 96 instead of in full"
    ]
    assert distance(narrow, DISTILBERT) == 1
    saved = 30522 * 768 - 96 * (30522 + 768)
    assert parameters(narrow, BACKBONE) == parameters(DISTILBERT, BACKBONE) - saved
    assert text_of(narrow.to_json()) == str(narrow)
    beside = Genotype(DISTILBERT.blocks, 96, 1000)
    assert changes(beside, unchanged(beside), narrow) == [
        "embeddings of rank 96 (1,000 words in full) instead of rank 96"
    ]
    assert distance(beside, narrow) == 1
    assert parameters(beside, BACKBONE) == parameters(narrow, BACKBONE) + 1000 * (768 - 96)
    assert text_of(beside.to_json()) == str(beside) == str(narrow).replace("e96", "e96+1000")
    assert Genotype.from_json(beside.to_json()) == beside


def broken(**changes: Any) -> dict[str, Any]:
    ffn = {"activation": "gelu", "sizes": [3072]} | changes.pop("ffn", {})
    return {"blocks": [{"heads": 12, "ffns": [ffn]} | changes]}


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        ({}, "blocks"),
        ([], "this is not a genotype"),
        (None, "this is not a genotype"),
        ({"blocks": None}, "this is not a genotype"),
        ({"blocks": [None]}, "this is not a genotype"),
        ({"blocks": "text"}, "this is not a genotype"),
        ({"blocks": []}, "it has no blocks"),
        ({"blocks": [{"heads": 12}]}, "ffns"),
        ({**broken(), "rank": 0}, "0 is not a whole number from 1 to 1,000,000"),
        ({**broken(), "rank": 96, "frequent": True}, "True is not a whole number from 1 to"),
        ({**broken(), "frequent": 5}, "frequent words stand beside a rank alone"),
        ({**broken(), "rank": "96"}, "'96' is not a whole number from 1 to 1,000,000"),
        (broken(heads=0), "0 is not a whole number from 1 to 1,000,000"),
        (broken(heads=True), "True is not a whole number from 1 to 1,000,000"),
        (broken(heads=1.5), "1.5 is not a whole number from 1 to 1,000,000"),
        (broken(heads="12"), "'12' is not a whole number from 1 to 1,000,000"),
        (broken(ffns=[]), "has no FFN"),
        (broken(ffn={"sizes": []}), "no hidden size"),
        (broken(ffn={"sizes": [-1]}), "-1 is not a whole number from 1 to 1,000,000"),
        (broken(ffn={"sizes": 3072}), "this is not a genotype"),
        (broken(ffn={"activation": "tanh"}), "'tanh' is none of"),
        (broken(ffn={"activation": None}), "None is none of 'relu', 'gelu', 'relu2'"),
    ],
)
def test_what_is_no_genotype_is_refused(data: Any, complaint: str) -> None:
    with pytest.raises(NasdError, match="this is not a genotype") as error:
        Genotype.from_json(data)
    assert complaint in str(error.value)


def test_an_exact_copy_has_nothing_new() -> None:
    lineage = unchanged(DISTILBERT)
    assert [block.source for block in lineage] == [0, 1, 2, 3, 4, 5]
    assert new_modules(lineage) == 0


def test_new_modules_are_attentions_and_ffns() -> None:
    lineage = (
        BlockLineage.of(0, False, ("kept", "altered")),
        BlockLineage.of(None, True, ("added",)),
        BlockLineage.of(1, True, ("kept", "added")),
    )
    assert new_modules(lineage) == 1 + 2 + 2


SMALL = Backbone(vocab_size=10, positions=4, width=2)
EMBEDDINGS = (10 + 4) * 2 + 4
ATTENTION = 4 * (2 * 2 + 2) + 4


@pytest.mark.parametrize(
    ("genotype", "backbone", "expected"),
    [
        (DISTILBERT, BACKBONE, 66_362_880),
        (Genotype(DISTILBERT.blocks[:5]), BACKBONE, 66_362_880 - 7_087_872),
        # Neither heads nor the activation cost a parameter.
        (Genotype((Block(6, (FeedForward("relu", (3072,)),)),) * 6), BACKBONE, 66_362_880),
        (
            Genotype((Block(1, (FeedForward("relu", (3,)),)),)),
            SMALL,
            EMBEDDINGS + ATTENTION + (2 * 3 + 3) + (3 * 2 + 2) + 4,
        ),
        (
            Genotype((Block(1, (FeedForward("relu", (3, 5)), FeedForward("gelu", (1,)))),)),
            SMALL,
            EMBEDDINGS
            + ATTENTION
            + ((2 * 3 + 3) + (3 * 5 + 5) + (5 * 2 + 2) + 4)
            + ((2 * 1 + 1) + (1 * 2 + 2) + 4),
        ),
    ],
)
def test_parameters(genotype: Genotype, backbone: Backbone, expected: int) -> None:
    assert parameters(genotype, backbone) == expected


@given(genotypes, genotypes, genotypes)
@settings(deadline=None)
def test_distance_is_a_metric(one: Genotype, other: Genotype, third: Genotype) -> None:
    assert distance(one, other) == distance(other, one) >= 0
    assert (distance(one, other) == 0) == (one == other)
    assert distance(one, third) <= distance(one, other) + distance(other, third)


def test_distance_zero_means_equal_for_every_pair_of_a_small_space() -> None:
    modules = [FeedForward("relu", (2,)), FeedForward("gelu", (2,)), FeedForward("relu", (2, 2))]
    stacks = [(ffn,) for ffn in modules] + list(product(modules, repeat=2))
    several = [Block(heads, stack) for heads in (1, 2) for stack in stacks]
    space = [Genotype((block,)) for block in several]
    space += [Genotype((one, several[0])) for one in several]
    for one, other in product(space, repeat=2):
        assert (distance(one, other) == 0) == (one == other)


def test_distance_counts_modules() -> None:
    plain = Block(12, (FeedForward("gelu", (3072,)),))
    other_heads = Block(6, plain.ffns)
    one_more = Block(12, (*plain.ffns, FeedForward("relu", (512,))))
    for changed, expected in (
        ((plain, plain), 0),
        ((plain, other_heads), 1),
        ((one_more, plain), 1),
        ((one_more, other_heads), 2),
        ((plain,), 2),
        ((plain, plain, one_more), 3),
    ):
        assert distance(Genotype((plain, plain)), Genotype(changed)) == expected


def test_what_a_mutation_changed_is_told_module_by_module():
    parent = Genotype(
        (
            Block(12, (FeedForward("gelu", (3072,)),)),
            Block(12, (FeedForward("gelu", (3072,)), FeedForward("relu", (512,)))),
            Block(8, (FeedForward("gelu", (1024,)),)),
        )
    )
    child = Genotype(
        (
            Block(4, (FeedForward("gelu", (3072,)), FeedForward("relu", (64, 128)))),
            Block(12, (FeedForward("gelu", (3072,)),)),
            Block(12, (FeedForward("gelu", (3072,)), FeedForward("gelu", (256,)))),
        )
    )
    lineage = (
        BlockLineage.of(0, True, ("kept", "added")),
        BlockLineage.of(None, True, ("added",)),
        BlockLineage.of(1, False, ("kept", "altered")),
    )
    assert changes(child, lineage, parent) == [
        "block 1: 4 heads instead of 12",
        "block 1: FFN relu 64-128 added",
        "block 2 added: 12 heads, gelu 3072",
        "block 3: FFN gelu 256 instead of relu 512",
        "the parent's block 3 removed",
    ]
    assert changes(parent, unchanged(parent), parent) == []


@given(genotypes)
@settings(deadline=None)
def test_views_write_a_genotype_as_it_writes_itself(genotype: Genotype) -> None:
    assert text_of(genotype.to_json()) == str(genotype)
