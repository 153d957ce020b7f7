"""The operators of variation: small steps in the space, and children of two parents."""

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nasd.contract.config import SearchSpace
from nasd.contract.genotype import Block, FeedForward, Genotype, ancestry, distance, unchanged
from nasd.search.variation.breeding import check_genotype
from nasd.search.variation.keeping import informed
from nasd.search.variation.operators import OPERATORS, Draft, crossed
from nasd.worker.model.inherit import born
from tests.test_transfers import generator, model_of, outputs, windows

WIDTH = 24
SPACE = SearchSpace(
    blocks=(1, 4),
    heads=(2, 3, 4, 6),
    remaining_heads=(1, 2, 3),
    ffns=2,
    layers=(2, 3),
    sizes=(8, 16, 24),
    ranks=(4, 8, 16),
    convolutions=(3, 7),
    branches=(3, 5),
)
FFN = st.builds(
    FeedForward,
    st.sampled_from(SPACE.activations),
    st.lists(st.sampled_from(SPACE.sizes), min_size=1, max_size=2).map(tuple),
)
BLOCK = st.builds(
    Block,
    st.sampled_from(SPACE.heads),
    st.lists(FFN, min_size=1, max_size=2).map(tuple),
    convolution=st.sampled_from([None, *SPACE.convolutions]),
    branch=st.sampled_from([None, *SPACE.branches]),
    remaining=st.sampled_from([None, 1]),
)
GENOTYPE = st.builds(
    Genotype,
    st.lists(BLOCK, min_size=1, max_size=4).map(tuple),
    st.sampled_from([None, *SPACE.ranks]),
)
STEPS = [name for name, one in OPERATORS.items() if one.parents == 1]


def line(genotype: Genotype, name: str = "a") -> tuple[str, ...]:
    return tuple(f"{name}{index}" for index in range(len(genotype.blocks)))


@pytest.mark.parametrize("name", STEPS)
@given(GENOTYPE, st.integers(0, 99))
@settings(deadline=None, max_examples=40)
def test_a_step_stays_in_the_space_and_makes_another_child_one_module_away(
    name: str, parent: Genotype, seed: int
) -> None:
    draft = Draft.of([parent])
    if not OPERATORS[name].apply(draft, SPACE, random.Random(seed)):
        assert draft.genotype == parent
        return
    check_genotype(draft.genotype, SPACE, WIDTH)
    assert draft.genotype != parent
    if name not in ("add_block", "drop_block", "drop_ffn"):
        assert distance(draft.genotype, parent) == 1


@given(GENOTYPE, st.lists(st.sampled_from(STEPS), min_size=1, max_size=4), st.integers(0, 99))
@settings(deadline=None, max_examples=60)
def test_whatever_steps_were_made_the_child_can_be_born(
    parent: Genotype, steps: list[str], seed: int
) -> None:
    draft, rng = Draft.of([parent]), random.Random(seed)
    for name in steps:
        OPERATORS[name].apply(draft, SPACE, rng)
    lineage = informed(draft.genotype, draft.lineage, [parent])
    model = born(draft.genotype, lineage, [model_of(parent)], generator(), windows())
    assert bool(outputs(model, windows()).isfinite().all())


@given(GENOTYPE, GENOTYPE, st.integers(0, 99))
@settings(deadline=None, max_examples=60)
def test_a_child_of_two_parents_has_their_blocks_in_their_order_and_can_be_born(
    one: Genotype, other: Genotype, seed: int
) -> None:
    draft = Draft.of([one, other], [line(one), line(other)[:1] + line(other, "b")[1:]])
    if not crossed(draft, SPACE, random.Random(seed)):
        return
    check_genotype(draft.genotype, SPACE, WIDTH)
    for parent in (0, 1):
        order = [at.source for at in draft.lineage if at.attention.parent == parent]
        assert order == sorted(order, key=lambda index: -1 if index is None else index)
    for block, at in draft.blocks:
        assert block == (one, other)[at.attention.parent].blocks[at.source or 0]
    lineage = informed(draft.genotype, draft.lineage, [one, other])
    model = born(
        draft.genotype, lineage, [model_of(one), model_of(other, 1)], generator(), windows()
    )
    assert bool(outputs(model, windows()).isfinite().all())


@given(GENOTYPE, GENOTYPE, st.integers(0, 99))
@settings(deadline=None, max_examples=60)
def test_a_crossover_that_finds_no_new_child_leaves_the_draft_as_it_was(
    one: Genotype, other: Genotype, seed: int
) -> None:
    for second in (other, one, Genotype(one.blocks[:1] + other.blocks[1:], one.rank)):
        draft = Draft.of([one, second], [line(one), line(second)])
        if not crossed(draft, SPACE, random.Random(seed)):
            assert (draft.genotype, draft.lineage) == (one, unchanged(one))


def test_ranks_go_down_from_full_to_the_largest_and_up_again() -> None:
    draft = Draft.of([Genotype((Block(2, (FeedForward("gelu", (16,)),)),))])
    seen = []
    for name in ["unfactorise", *["factorise"] * 4, *["unfactorise"] * 4]:
        changed = OPERATORS[name].apply(draft, SPACE, random.Random(0))
        seen.append(draft.genotype.rank if changed else "no room")
    assert seen == ["no room", 16, 8, 4, "no room", 8, 16, None, "no room"]
    often = SPACE.model_copy(update={"frequent_words": 3})
    for name, words in (("factorise", (16, 3)), ("factorise", (8, 3)), ("unfactorise", (16, 3))):
        assert OPERATORS[name].apply(draft, often, random.Random(0))
        assert draft.genotype.words == words
    assert OPERATORS["unfactorise"].apply(draft, often, random.Random(0))
    assert draft.genotype.words == (None, 0)
    never = SPACE.model_copy(update={"ranks": ()})
    assert not OPERATORS["factorise"].apply(draft, never, random.Random(0))


def test_blocks_of_one_descent_are_alternatives_and_never_both_there() -> None:
    block = Block(2, (FeedForward("gelu", (16,)),))
    one = Genotype((block,) * 3)
    other = Genotype((Block(3, block.ffns),) * 3)
    for seed in range(30):
        draft = Draft.of([one, other], [line(one), line(other)])
        if crossed(draft, SPACE, random.Random(seed)):
            assert [at.source for at in draft.lineage] == [0, 1, 2]
            assert len({at.attention.parent for at in draft.lineage}) == 2


def test_ancestry_follows_blocks_and_names_new_ones() -> None:
    parent = Genotype((Block(2, (FeedForward("gelu", (16,)),)),) * 2)
    draft: Any = Draft.of([parent])
    OPERATORS["add_block"].apply(draft, SPACE, random.Random(1))
    found = ancestry(draft.lineage, 7, [("0.0", "0.1")])
    new = [index for index, at in enumerate(draft.lineage) if at.source is None]
    assert found[new[0]] == f"7.{new[0]}"
    assert [name for index, name in enumerate(found) if index not in new] == ["0.0", "0.1"]
    assert ancestry(unchanged(parent), 8, [("0.0", "7.1")]) == ("0.0", "7.1")
