import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations, pairwise
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nasd.contract.config import Mutation, SearchSpace, Variation
from nasd.contract.errors import NasdError
from nasd.contract.genotype import (
    Backbone,
    Block,
    FeedForward,
    Genotype,
    Lineage,
    distance,
    parameters,
    unchanged,
)
from nasd.contract.streams import stream, stream_seed
from nasd.search.variation.breeding import (
    Parent,
    adopted,
    align,
    check_genotype,
    check_space,
    diversity,
    draw_ffn,
    draw_heads,
    initial_population,
    mutate,
    offspring,
)

BASELINE = Genotype((Block(12, (FeedForward("gelu", (3072,)),)),) * 6)
BACKBONE = Backbone(vocab_size=30522, positions=512, width=768)
SPACE = SearchSpace(
    blocks=(2, 12), heads=(6, 8, 12), ffns=4, layers=(2, 3), sizes=(512, 1024, 3072)
)
THESIS = Mutation(encoder=0.2, encoder_add=2 / 3, ffn=0.4, ffn_add=2 / 3, attention=0.4)
AGGRESSIVE = Mutation(encoder=0.6, encoder_add=0.5, ffn=0.6, ffn_add=0.5, attention=0.6)
VARIATION = Variation(initial=AGGRESSIVE, offspring=THESIS, min_distance=3)


def rates(**changes: float) -> Mutation:
    """Nothing happens but what is named."""
    nothing = {"encoder": 0, "encoder_add": 0, "ffn": 0, "ffn_add": 0, "attention": 0}
    return Mutation.model_validate(nothing | changes)


def space(**changes: Any) -> SearchSpace:
    return SearchSpace.model_validate(SPACE.model_dump() | changes)


def subsets(*values: Any) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.lists(st.sampled_from(values), min_size=1, max_size=3).map(tuple)


spaces = st.builds(
    SearchSpace,
    blocks=st.tuples(st.integers(1, 4), st.integers(1, 4)).map(lambda pair: tuple(sorted(pair))),
    heads=subsets(1, 2, 4),
    ffns=st.integers(1, 3),
    layers=subsets(2, 3, 4),
    sizes=subsets(8, 16, 32),
    activations=subsets("relu", "gelu"),
)
probabilities = st.sampled_from([0.0, 0.5, 1.0])
mutations = st.builds(
    Mutation,
    encoder=probabilities,
    encoder_add=probabilities,
    ffn=probabilities,
    ffn_add=probabilities,
    attention=probabilities,
)
seeds = st.integers(0, 2**32)


def draw_genotype(space: SearchSpace, rng: random.Random) -> Genotype:
    def block() -> Block:
        count = rng.randint(1, space.ffns)
        return Block(draw_heads(space, rng), tuple(draw_ffn(space, rng) for _ in range(count)))

    return Genotype(tuple(block() for _ in range(rng.randint(*space.blocks))))


def check_lineage(child: Genotype, lineage: Lineage, parent: Genotype, baseline: Genotype) -> None:
    """What the lineage says of each module is so."""
    assert len(lineage) == len(child.blocks)
    for block, line in zip(child.blocks, lineage, strict=True):
        assert len(line.origins) == len(block.ffns)
        if line.source is None:
            assert line.attention_new
            assert set(line.origins) == {"added"}
            assert len(block.ffns) - len(baseline.blocks[0].ffns) in (0, 1)
            continue
        source = parent.blocks[line.source]
        assert line.attention_new == (block.heads != source.heads)
        assert len(block.ffns) - len(source.ffns) in (0, 1)
        assert ["added"] * (len(block.ffns) - len(source.ffns)) == list(
            line.origins[len(source.ffns) :]
        )
        for ffn, origin, old in zip(block.ffns, line.origins, source.ffns, strict=False):
            assert origin == ("kept" if ffn == old else "altered")
        assert sum(origin != "kept" for origin in line.origins) <= 1
    kept = [line.source for line in lineage if line.source is not None]
    assert kept == sorted(set(kept))  # the order stands, and nothing is used twice
    assert len(parent.blocks) - len(kept) in (0, 1)
    assert len(lineage) - len(kept) in (0, 1)


# --- streams ---


def test_a_stream_is_its_name() -> None:
    names = [(0, 0, "a", 0), (1, 0, "a", 0), (0, 1, "a", 0), (0, 0, "b", 0), (0, 0, "a", 1)]
    names += [(-1, 0, "a", 0), (1, 11, "a", 0), (11, 1, "a", 0)]
    firsts = [stream(*name).random() for name in names]
    assert len(set(firsts)) == len(names)
    assert firsts[::-1] == [stream(*name).random() for name in reversed(names)]


def test_streams_never_change_between_versions() -> None:
    assert stream_seed(7, 2, "mutate", 3) == 282316553792634366
    assert stream(7, 2, "mutate", 3).randrange(10**6) == 293480


@given(st.integers(), st.integers())
@settings(deadline=None)
def test_a_stream_seed_has_63_bits(seed: int, index: int) -> None:
    assert 0 <= stream_seed(seed, 0, "pair", index) < 2**63


# --- mutation ---


@given(spaces, mutations, seeds)
@settings(deadline=None)
def test_a_mutant_lies_in_the_space_and_its_lineage_is_true(
    space: SearchSpace, rates: Mutation, seed: int
) -> None:
    rng = random.Random(seed)
    baseline, parent = draw_genotype(space, rng), draw_genotype(space, rng)
    for _ in range(3):
        child, lineage = mutate(parent, baseline, space, rates, rng)
        check_genotype(child, space, width=64)
        check_lineage(child, lineage, parent, baseline)
        assert (child == parent) == (lineage == unchanged(parent))
        parent = child


@given(spaces, mutations, seeds)
@settings(deadline=None)
def test_the_same_stream_gives_the_same_mutant(
    space: SearchSpace, rates: Mutation, seed: int
) -> None:
    parent = draw_genotype(space, random.Random(seed))
    one, other = (mutate(parent, parent, space, rates, stream(seed, 1, "mutate")) for _ in "ab")
    assert one == other


def test_without_mutations_the_child_is_an_exact_copy() -> None:
    child, lineage = mutate(BASELINE, BASELINE, SPACE, rates(), random.Random(0))
    assert child == BASELINE
    assert lineage == unchanged(BASELINE)


def test_an_added_block_copies_the_first_of_the_baseline_with_fresh_weights() -> None:
    first = Block(8, (FeedForward("relu", (512,)), FeedForward("gelu", (1024, 512))))
    baseline = Genotype((first, *BASELINE.blocks[1:]))
    rng = random.Random(0)
    places = Counter[int]()
    for _ in range(1400):
        child, lineage = mutate(BASELINE, baseline, SPACE, rates(encoder=1, encoder_add=1), rng)
        (place,) = (index for index, line in enumerate(lineage) if line.source is None)
        places[place] += 1
        assert child.blocks[place] == first
        assert lineage[place].attention_new
        assert lineage[place].origins == ("added", "added")
        assert [line.source for line in lineage if line.source is not None] == [*range(6)]
    assert set(places) == set(range(7))
    assert all(140 < count < 260 for count in places.values())  # uniform: 200 each


def test_the_removed_block_is_any_one() -> None:
    rng = random.Random(0)
    removed = Counter[int]()
    for _ in range(1200):
        _, lineage = mutate(BASELINE, BASELINE, SPACE, rates(encoder=1, encoder_add=0), rng)
        (gone,) = {*range(6)} - {line.source for line in lineage}
        removed[gone] += 1
    assert all(140 < removed[index] < 260 for index in range(6))


@pytest.mark.parametrize(
    ("limits", "encoder_add", "expected"),
    [
        ((1, 6), 1, 5),  # full: removes
        ((6, 9), 0, 7),  # as few as may be: adds
        ((6, 6), 1, 6),
        ((6, 6), 0, 6),
        ((1, 4), 1, 5),  # the baseline is larger than the space: only towards it
        ((8, 9), 0, 7),
    ],
)
def test_at_a_limit_of_blocks_the_other_direction_is_taken(
    limits: tuple[int, int], encoder_add: float, expected: int
) -> None:
    child, _ = mutate(
        BASELINE,
        BASELINE,
        space(blocks=limits),
        rates(encoder=1, encoder_add=encoder_add),
        random.Random(0),
    )
    assert len(child.blocks) == expected


def test_a_full_block_has_an_ffn_altered_where_one_was_to_be_added() -> None:
    for seed in range(20):
        child, lineage = mutate(
            BASELINE, BASELINE, space(ffns=1), rates(ffn=1, ffn_add=1), random.Random(seed)
        )
        assert all(line.origins == ("altered",) for line in lineage)
        assert all(block.ffns != BASELINE.blocks[0].ffns for block in child.blocks)


def test_any_ffn_of_a_block_may_be_altered() -> None:
    ffns = tuple(FeedForward("gelu", (size,)) for size in (512, 1024, 3072))
    parent = Genotype((Block(12, ffns),) * 2)
    rng = random.Random(0)
    altered = Counter[int]()
    for _ in range(600):
        _, lineage = mutate(parent, BASELINE, SPACE, rates(ffn=1), rng)
        altered.update(line.origins.index("altered") for line in lineage)
    assert all(330 < altered[index] < 470 for index in range(3))  # uniform: 400 each


def test_where_the_space_offers_nothing_else_nothing_changes() -> None:
    only = space(heads=(12, 12), ffns=1, layers=(2,), sizes=(3072,), activations=("gelu",))
    child, lineage = mutate(
        BASELINE, BASELINE, only, rates(ffn=1, ffn_add=1, attention=1), random.Random(0)
    )
    assert child == BASELINE
    assert lineage == unchanged(BASELINE)


def test_a_module_outside_of_the_space_is_altered_to_the_only_one_inside() -> None:
    only = space(heads=(8,), ffns=1, layers=(2,), sizes=(512,), activations=("relu",))
    child, lineage = mutate(BASELINE, BASELINE, only, rates(ffn=1, attention=1), random.Random(0))
    assert child == Genotype((Block(8, (FeedForward("relu", (512,)),)),) * 6)
    check_lineage(child, lineage, BASELINE, BASELINE)


def test_further_mutations_of_a_new_block_leave_it_wholly_new() -> None:
    rng = random.Random(0)
    shapes = set()
    for _ in range(100):
        child, lineage = mutate(
            BASELINE,
            BASELINE,
            SPACE,
            rates(encoder=1, encoder_add=1, ffn=1, ffn_add=0.5, attention=1),
            rng,
        )
        (place,) = (index for index, line in enumerate(lineage) if line.source is None)
        assert lineage[place].attention_new
        assert set(lineage[place].origins) == {"added"}
        assert child.blocks[place] != BASELINE.blocks[0]
        shapes.add(len(child.blocks[place].ffns))
    assert shapes == {1, 2}


def test_mutations_are_as_frequent_as_their_rates() -> None:
    rng = random.Random(0)
    draws = 3000
    blocks = Counter[int]()
    modules = Counter[str]()
    visits = 0
    for _ in range(draws):
        child, lineage = mutate(BASELINE, BASELINE, SPACE, THESIS, rng)
        blocks[len(child.blocks) - 6] += 1
        for line in lineage:
            if line.source is not None:
                visits += 1
                modules["attention"] += line.attention_new
                modules["added"] += "added" in line.origins
                modules["altered"] += "altered" in line.origins
    # The bounds are four standard deviations and more.
    assert blocks[1] / draws == pytest.approx(0.2 * 2 / 3, abs=0.03)
    assert blocks[-1] / draws == pytest.approx(0.2 / 3, abs=0.03)
    assert modules["attention"] / visits == pytest.approx(0.4, abs=0.02)
    assert modules["added"] / visits == pytest.approx(0.4 * 2 / 3, abs=0.02)
    assert modules["altered"] / visits == pytest.approx(0.4 / 3, abs=0.02)


def test_new_modules_are_drawn_uniformly_and_independently() -> None:
    rng = random.Random(0)
    drawn = [draw_ffn(SPACE, rng) for _ in range(6000)]
    flat = [ffn for ffn in drawn if len(ffn.sizes) == 1]
    deep = [ffn for ffn in drawn if len(ffn.sizes) == 2]
    assert len(flat) / 6000 == pytest.approx(1 / 2, abs=0.04)
    assert len(set(flat)) == 2 * 3
    assert len(set(deep)) == 2 * 3 * 3
    assert all(n / len(flat) == pytest.approx(1 / 6, abs=0.04) for n in Counter(flat).values())
    assert all(n / len(deep) == pytest.approx(1 / 18, abs=0.03) for n in Counter(deep).values())
    heads = Counter(draw_heads(SPACE, rng) for _ in range(3000))
    assert all(heads[each] / 3000 == pytest.approx(1 / 3, abs=0.05) for each in SPACE.heads)


# --- the initial population ---


@given(seeds, st.integers(1, 8), st.integers(1, 6))
@settings(max_examples=25, deadline=None)
def test_the_initial_population_is_diverse(seed: int, mu: int, min_distance: int) -> None:
    variation = VARIATION.model_copy(update={"min_distance": min_distance})
    population = initial_population(BASELINE, SPACE, variation, mu, seed)
    assert len(population) == mu
    for one, other in combinations([BASELINE, *(each.genotype for each in population)], 2):
        assert distance(one, other) >= min_distance
    for each in population:
        check_genotype(each.genotype, SPACE, BACKBONE.width)
        check_lineage(each.genotype, each.lineage, BASELINE, BASELINE)


def test_the_initial_population_depends_on_the_seed_alone() -> None:
    first = initial_population(BASELINE, SPACE, VARIATION, 8, seed=1)
    random.seed(0)
    assert initial_population(BASELINE, SPACE, VARIATION, 8, seed=1) == first
    assert initial_population(BASELINE, SPACE, VARIATION, 8, seed=2) != first
    # A smaller population is the beginning of a larger one.
    assert initial_population(BASELINE, SPACE, VARIATION, 3, seed=1) == first[:3]


def test_the_initial_population_takes_the_initial_rates() -> None:
    still = Variation(initial=AGGRESSIVE, offspring=rates(), min_distance=1)
    assert len(initial_population(BASELINE, SPACE, still, 4, seed=0)) == 4


def test_a_space_without_enough_diverse_genotypes_is_refused() -> None:
    tiny = space(blocks=(6, 6), heads=(12,), ffns=1, layers=(2,), sizes=(3072,))
    variation = Variation(initial=AGGRESSIVE, offspring=THESIS, min_distance=4)
    with pytest.raises(NasdError, match=r"variation\.min_distance = 4 .* search_space"):
        initial_population(BASELINE, tiny, variation, 8, seed=0)


def test_diversity_states_distances_and_sizes() -> None:
    smaller = Genotype(BASELINE.blocks[:5])
    heads = Genotype((Block(8, BASELINE.blocks[0].ffns), *BASELINE.blocks[1:]))
    assert diversity([BASELINE, smaller, heads], BACKBONE) == {
        "mean_distance": pytest.approx((2 + 1 + 3) / 3),
        "min_distance": 1,
        "distinct_sizes": 2,
        "min_parameters": parameters(smaller, BACKBONE),
        "max_parameters": parameters(BASELINE, BACKBONE),
    }


def test_diversity_of_one_or_none() -> None:
    alone = diversity([BASELINE], BACKBONE)
    assert (alone["mean_distance"], alone["min_distance"], alone["distinct_sizes"]) == (0, 0, 1)
    assert set(diversity([], BACKBONE).values()) == {0}


# --- offspring ---


def parents(count: int, seed: int = 0) -> list[Parent]:
    """On one front, equally lonely but for the two at its ends."""
    founders = initial_population(BASELINE, SPACE, VARIATION, count, seed)
    return [
        Parent(100 + index, founder.genotype, (50.0 + index, 2.0 - index / 10))
        for index, founder in enumerate(founders)
    ]


def breed(pool: list[Parent], **changes: Any) -> list[Any]:
    arguments: dict[str, Any] = {
        "baseline": BASELINE,
        "space": SPACE,
        "variation": VARIATION,
        "objectives": ("quality", "compression"),
        "lambda_": 12,
        "tournament_size": 3,
        "taken": {BASELINE.hash, *(parent.genotype.hash for parent in pool)},
        "seed": 0,
        "generation": 1,
    }
    return cast(Callable[..., list[Any]], offspring)(pool, **arguments | changes)


@given(seeds, st.integers(1, 8), st.integers(1, 13), st.integers(1, 4))
@settings(max_examples=25, deadline=None)
def test_offspring_are_new_true_mutants_of_their_parents(
    seed: int, mu: int, lambda_: int, tournament_size: int
) -> None:
    pool = parents(mu)
    taken = {BASELINE.hash, *(parent.genotype.hash for parent in pool)}
    children = breed(pool, seed=seed, lambda_=lambda_, tournament_size=tournament_size)
    assert len(children) == lambda_
    hashes = {child.genotype.hash for child in children}
    assert len(hashes) == lambda_
    assert not hashes & taken
    by_candidate = {parent.candidate: parent.genotype for parent in pool}
    for child in children:
        check_genotype(child.genotype, SPACE, BACKBONE.width)
        check_lineage(child.genotype, child.lineage, by_candidate[child.parent], BASELINE)
    for one, other in zip(children[::2], children[1::2], strict=False):
        assert (one.parent != other.parent) == (mu > 1)  # a pair is two different parents


def test_offspring_depend_on_the_seed_and_the_generation_alone() -> None:
    pool = parents(8)
    first = breed(pool)
    random.seed(0)
    assert breed(pool) == first
    assert breed(pool, seed=1) != first
    assert breed(pool, generation=2) != first
    assert breed(pool, lambda_=5) == first[:5]


def test_a_child_that_is_taken_is_drawn_again_from_the_same_parent() -> None:
    pool = parents(8)
    first = breed(pool)
    again = breed(pool, taken={first[3].genotype.hash})
    assert again[:3] == first[:3]
    assert again[3].genotype != first[3].genotype
    assert again[3].parent == first[3].parent
    assert again[4:] == first[4:]


def test_a_child_is_never_its_parent_even_if_that_is_not_taken() -> None:
    rare = Variation(initial=AGGRESSIVE, offspring=rates(attention=0.02), min_distance=1)
    pool = [Parent(1, BASELINE, (50.0, 1.0))]
    assert all(c.genotype != BASELINE for c in breed(pool, variation=rare, taken=()))


def test_better_ranks_have_more_children() -> None:
    genotypes = [parent.genotype for parent in parents(8)]
    pool = [Parent(i, genotype, (i, i)) for i, genotype in enumerate(genotypes)]
    counts = Counter(child.parent for child in breed(pool, lambda_=60))
    assert counts[7] > counts[5] > counts[2]
    assert counts[0] == 0  # of three contenders of seven or eight, the worst never wins


def test_among_equal_ranks_the_lonely_on_the_size_axis_win() -> None:
    # One front. By size, 0 and 4 are its ends and 3 stands alone; by quality, 1 would.
    genotypes = [parent.genotype for parent in parents(5)]
    front = [(90.0, 1.0), (50.0, 1.1), (12.0, 1.2), (11.0, 2.0), (10.0, 3.0)]
    pool = [
        Parent(index, genotype, point)
        for index, (genotype, point) in enumerate(zip(genotypes, front, strict=True))
    ]
    children = breed(pool, tournament_size=5, lambda_=4)
    assert [child.parent for child in children] == [0, 4, 0, 4]
    counts = Counter(child.parent for child in breed(pool, lambda_=60))
    assert counts[3] > counts[1]
    turned = [replace(parent, point=parent.point[::-1]) for parent in pool]
    again = breed(turned, lambda_=60, objectives=("compression", "quality"))
    assert Counter(child.parent for child in again) == counts
    # A search that does not go by size has no such axis: there all of them count.
    counts = Counter(
        child.parent for child in breed(pool, lambda_=60, objectives=("quality", "speed"))
    )
    assert counts[1] > counts[3]


def test_an_exhausted_space_is_refused() -> None:
    tiny = space(blocks=(6, 6), heads=(12, 8), ffns=1, layers=(2,), sizes=(3072,))
    pool = [Parent(7, BASELINE, (50.0, 1.0))]
    one_change = Variation(initial=AGGRESSIVE, offspring=rates(attention=1), min_distance=1)
    with pytest.raises(NasdError, match=r"candidate 7 .* offspring 1\): widen search_space"):
        breed(pool, space=tiny, variation=one_change)


# --- check_genotype ---


def one_block(heads: int = 12, *ffns: FeedForward) -> Genotype:
    return Genotype((BASELINE.blocks[0], Block(heads, ffns or BASELINE.blocks[0].ffns)))


@pytest.mark.parametrize(
    ("genotype", "complaint"),
    [
        (Genotype(BASELINE.blocks[:1]), "it has 1 blocks, and search_space.blocks allows 2 to 12"),
        (Genotype(BASELINE.blocks * 3), "18 blocks, and search_space.blocks allows 2 to 12"),
        (one_block(7), "block 1 has 7 heads, which do not divide the width 768"),
        (one_block(16), "block 1 has 16 heads, and search_space.heads allows 6, 8, 12"),
        (one_block(12, *BASELINE.blocks[0].ffns * 5), "search_space.ffns allows 1 to 4"),
        (
            one_block(12, FeedForward("relu", (512,) * 3)),
            "block 1 has an FFN of 4 layers, and search_space.layers allows 2, 3",
        ),
        (
            one_block(12, FeedForward("relu", (512, 768))),
            "block 1 has an FFN of size 768, and search_space.sizes allows 512, 1024, 3072",
        ),
    ],
)
def test_what_is_outside_of_the_space_is_named(genotype: Genotype, complaint: str) -> None:
    with pytest.raises(NasdError) as error:
        check_genotype(genotype, SPACE, BACKBONE.width)
    assert complaint in str(error.value)


def test_an_activation_outside_of_the_space_is_named() -> None:
    with pytest.raises(NasdError, match=r"gelu, and search_space\.activations allows relu"):
        check_genotype(BASELINE, space(activations=("relu",)), BACKBONE.width)


def test_what_no_machine_has_memory_for_is_refused_before_any_is_taken() -> None:
    huge = space(blocks=(1, 1000), ffns=64, layers=(2, 64), sizes=(512, 10**6))
    with pytest.raises(NasdError) as error:
        check_space(huge, BACKBONE.width)
    networks = 64 * (2 * 768 * 10**6 + 62 * 10**12 + 63 * 10**6 + 768 + 2 * 768)
    count = 1000 * (4 * (768**2 + 768) + 2 * 768 + networks)
    assert f"its largest member would have {count:,} parameters" in str(error.value)
    check_space(SPACE, BACKBONE.width)
    allowed = space(blocks=(1, 1000), ffns=64, layers=(2, 3), sizes=(512, 10**6), heads=(12,))
    one = Genotype((Block(12, (FeedForward("gelu", (10**6, 10**6)),)),))
    with pytest.raises(NasdError, match=r"the genotype would have 1,001,\S+ parameters"):
        check_genotype(one, allowed, BACKBONE.width)
    small = Genotype((Block(12, (FeedForward("gelu", (10**6,)),)),))
    check_genotype(small, allowed, BACKBONE.width)


def test_the_baseline_lies_in_its_space() -> None:
    check_genotype(BASELINE, SPACE, BACKBONE.width)


# -- adoption ------------------------------------------------------------------------------------

FAR = st.tuples(spaces, seeds)


def inherited(child: Genotype, lineage: Lineage, width: int) -> int:
    """Parameters of blocks that the lineage keeps, told without nasd.search.variation.breeding."""
    total = 0
    for block, origin in zip(child.blocks, lineage, strict=True):
        if origin.source is None:
            continue
        total += 2 * width + (0 if origin.attention_new else 4 * (width * width + width))
        for ffn, how in zip(block.ffns, origin.origins, strict=True):
            widths = (width, *ffn.sizes, width)
            weights = sum(a * b + b for a, b in pairwise(widths))
            total += {"kept": weights + 2 * width, "altered": 2 * width, "added": 0}[how]
    return total


@given(FAR)
def test_the_lineage_of_an_adopted_genotype_is_one_that_weights_can_be_inherited_by(drawn):
    within, seed = drawn
    rng = random.Random(seed)
    child, parent = draw_genotype(within, rng), draw_genotype(within, rng)
    gain, lineage = align(child, parent, 8)
    assert gain == inherited(child, lineage, 8)
    sources = [block.source for block in lineage if block.source is not None]
    assert sources == sorted(set(sources))
    for block, origin in zip(child.blocks, lineage, strict=True):
        assert len(origin.origins) == len(block.ffns)
        if origin.source is None:
            assert origin.attention_new
            assert set(origin.origins) == {"added"}
            continue
        source = parent.blocks[origin.source]
        assert origin.attention_new == (block.heads != source.heads)
        theirs = [
            (ffn, how)
            for ffn, how in zip(block.ffns, origin.origins, strict=True)
            if how != "added"
        ]
        assert len(theirs) == len(source.ffns)
        for (ffn, how), there in zip(theirs, source.ffns, strict=True):
            assert (how == "kept") == (ffn == there)


@given(mutations, FAR)
def test_an_adopted_genotype_inherits_no_less_than_a_mutant_would(drawn_rates, drawn):
    within, seed = drawn
    rng = random.Random(seed)
    parent = draw_genotype(within, rng)
    child, lineage = mutate(parent, parent, within, drawn_rates, rng)
    gain, _ = align(child, parent, 8)
    assert gain >= inherited(child, lineage, 8)


def test_an_exact_copy_keeps_every_module():
    assert align(BASELINE, BASELINE, 768)[1] == unchanged(BASELINE)


def test_a_block_that_was_left_out_is_skipped_and_a_new_one_is_fresh():
    first, left_out, last, new = (
        Block(heads, (FeedForward("relu", (size,)),))
        for heads, size in ((6, 512), (8, 1024), (12, 3072), (6, 3072))
    )
    gain, lineage = align(Genotype((first, last, new)), Genotype((first, left_out, last)), 768)
    assert [block.source for block in lineage] == [0, 2, None]
    assert gain == inherited(Genotype((first, last, new)), lineage, 768)


def test_of_several_parents_the_one_that_gives_most_is_taken_and_of_equals_the_lower_id():
    narrow = Block(6, (FeedForward("relu", (512,)),))
    child = Genotype((narrow, *BASELINE.blocks[:3]))
    near = Genotype((narrow, *BASELINE.blocks))
    assert adopted(child, {0: BASELINE, 7: near, 5: near, 9: BASELINE}, 768).parent == 5
    assert adopted(BASELINE, {3: near, 0: BASELINE, 2: BASELINE}, 768).parent == 0
