"""What children know of their parents: exact growth, ranked shrinking, and refits that hold."""

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nasd.contract.genotype import (
    Block,
    BlockLineage,
    FeedForward,
    Genotype,
    ModuleLineage,
    unchanged,
)
from nasd.search.variation.keeping import holds, informed
from nasd.worker.model import feedforward, phenotype, transfers
from nasd.worker.model.architecture import Architecture, FeedForwardShape
from nasd.worker.model.attention import rotated
from nasd.worker.model.inherit import Windows, born
from nasd.worker.model.layers import Depthwise
from nasd.worker.model.phenotype import MaskedLM, QuestionAnswering

WIDTH, VOCABULARY, TOKENS = 24, 50, 12
SIZES = st.sampled_from([8, 16, 24, 48])


MODERN = {"pre_norm": True, "theta": 100.0, "local_theta": 20.0, "window": 2, "deep_head": True}
# What stands around the blocks, of every family, and in which the modules differ.
FAMILIES: dict[str, dict[str, Any]] = {
    "bert": {},
    "electra": {"embedding_width": 10},
    "modernbert": {**MODERN, "biases": False},
    "modernbert with biases": MODERN,
}
EVERY = pytest.mark.parametrize("family", FAMILIES)


def ffn(layers: int = 2) -> Any:
    return st.builds(
        FeedForward,
        st.sampled_from(["relu", "gelu", "relu2"]),
        st.lists(SIZES, min_size=1, max_size=layers).map(tuple),
    )


def ffn_of(family: str, layers: int = 2) -> Any:
    return ffn(layers) if "pre_norm" not in FAMILIES[family] else GATED_FFN


GATED_FFN = st.builds(FeedForward, st.just("geglu"), SIZES.map(lambda size: (size,)))
KERNELS = st.sampled_from([None, None, 3, 5])
CONVOLVED = {"convolution": KERNELS, "branch": KERNELS}
REMAINING = {"remaining": st.sampled_from([None, None, 1])}
BLOCK = st.builds(
    Block,
    st.sampled_from([2, 3, 4, 6]),
    st.lists(ffn(), min_size=1, max_size=2).map(tuple),
    **CONVOLVED,
    **REMAINING,
)
GATED_BLOCK = st.builds(
    Block,
    st.sampled_from([2, 3, 4, 6]),
    st.lists(GATED_FFN, min_size=1, max_size=2).map(tuple),
    st.sampled_from(["local", "global"]),
    **CONVOLVED,
    **REMAINING,
)
GENOTYPE = st.builds(Genotype, st.lists(BLOCK, min_size=1, max_size=3).map(tuple))


def block_of(family: str) -> Any:
    return BLOCK if "pre_norm" not in FAMILIES[family] else GATED_BLOCK


@st.composite
def genotypes(draw: Any, family: str) -> Genotype:
    blocks = draw(st.lists(block_of(family), min_size=1, max_size=3))
    if "pre_norm" in FAMILIES[family]:
        blocks[0] = replace(blocks[0], bare=True)
    return Genotype(tuple(blocks))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def model_of(
    genotype: Genotype, seed: int = 0, kind: Any = QuestionAnswering, family: str = "bert"
) -> Any:
    """With weights of a trained model's scale, and norms that are not plain."""
    arch = Architecture(VOCABULARY, TOKENS, WIDTH, (), **FAMILIES[family])
    arch = arch.with_genotype(genotype.to_json())
    model = phenotype.empty(kind, arch)
    draws = generator(seed)
    phenotype.initialise(model, draws, 0.15)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 1:
                weight.add_(torch.empty_like(weight).normal_(0, 0.2, generator=draws))
        for part in model.modules():  # which begin as passing through
            if isinstance(part, Depthwise):
                drawn = torch.empty_like(part.weight).normal_(0, 0.3, generator=draws)
                part.weight.add_(drawn)
    return model.eval()


def windows(count: int = 24, seed: int = 1) -> Windows:
    ids = torch.randint(1, VOCABULARY, (count, TOKENS), generator=generator(seed))
    mask = torch.ones_like(ids)
    mask[::3, TOKENS - 4 :] = 0
    return Windows(ids, mask)


@given(count=st.integers(1, 40), tokens=st.integers(1, 40 * TOKENS))
def test_of_windows_so_many_stay_as_hold_the_tokens_asked_for_and_one_at_least(
    count: int, tokens: int
) -> None:
    seen = windows(count)
    kept = seen.within(tokens)
    assert len(kept.input_ids) == len(kept.attention_mask) >= 1
    whole = int(seen.attention_mask.sum())
    if tokens >= whole:
        assert torch.equal(kept.input_ids, seen.input_ids)
    else:
        assert int(kept.attention_mask.sum()) <= tokens + 2 * TOKENS


def outputs(model: Any, seen: Windows) -> torch.Tensor:
    with torch.no_grad():
        states = model.encoder(seen.input_ids, seen.attention_mask)
    return states[seen.attention_mask.bool()]


def fewer_than(heads: int) -> Any:
    """How many of them remain; None: all."""
    return st.sampled_from([None, *range(1, heads)])


def grown_kernel(kernel: int | None) -> Any:
    """The same, or one that reaches farther."""
    return st.sampled_from([kernel, *(one for one in (3, 5, 7) if one > (kernel or 0))])


@st.composite
def growths(draw: Any, family: str = "bert") -> tuple[Genotype, Genotype, tuple[BlockLineage, ...]]:
    """A genotype and one that holds it: blocks and FFNs added, FFNs wider and deeper, heads and
    convolutions too. Right above embeddings that are mapped to the width nothing is added, as no
    operator does either."""
    parent = draw(genotypes(family))
    blocks, lines = [], []
    for index, block in enumerate(parent.blocks):
        if draw(st.booleans()) and (index or family != "electra"):
            like = replace(draw(st.sampled_from([block, draw(block_of(family))])), bare=False)
            blocks.append(like)
            lines.append(BlockLineage.of(None, True, ["added"] * len(like.ffns)))
        ffns, modules = [], []
        for place, one in enumerate(block.ffns):
            larger = draw(st.lists(st.integers(0, 9), max_size=1))
            sizes = [size + draw(st.integers(0, 5)) for size in one.sizes]
            if larger and not one.gated:  # one more layer behind any of these
                at = draw(st.integers(0, len(sizes) - 1))
                factor = draw(st.sampled_from([2] if one.activation == "relu2" else [1, 2]))
                sizes.insert(at + 1, factor * one.sizes[at] + larger[0])
            grown = FeedForward(one.activation, tuple(sizes))
            ffns.append(grown)
            modules.append(ModuleLineage("kept" if grown == one else "fresh", 0, index, place))
            if draw(st.booleans()):
                ffns.append(draw(ffn_of(family)))
                modules.append(ModuleLineage("fresh", 0, index, None))
        reach = {name: draw(grown_kernel(getattr(block, name))) for name in CONVOLVED}
        more = draw(st.sampled_from([None, *range(block.present, block.heads)]))
        longer = replace(block, **reach, remaining=more)
        how: Any = "kept" if longer == block else "fresh"
        blocks.append(replace(longer, ffns=tuple(ffns)))
        lines.append(BlockLineage(ModuleLineage(how, 0, index), tuple(modules)))
    child = Genotype(tuple(blocks))
    return parent, child, informed(child, tuple(lines), [parent])


@EVERY
@given(st.data(), st.integers(0, 3))
@settings(deadline=None, max_examples=40)
def test_a_child_that_only_grew_computes_what_its_parent_does(
    family: str, data: Any, seed: int
) -> None:
    parent, child, lineage = data.draw(growths(family))
    assert all(
        module.transfer in transfers.EXACT
        for line in lineage
        for module in (line.attention, *line.ffns)
    )
    model = model_of(parent, seed, family=family)
    grown = born(child, lineage, [model], generator(seed))
    torch.testing.assert_close(
        outputs(grown, windows()), outputs(model, windows()), atol=1e-5, rtol=1e-5
    )


@EVERY
def test_embeddings_of_a_higher_rank_give_the_same_in_every_family(family: str) -> None:
    few = Genotype((Block(4, (FeedForward("gelu", (16,)),)),), 4)
    model = model_of(few, family=family)
    for rank in (7, None):
        child = replace(few, rank=rank)
        grown = born(child, unchanged(few), [model], generator())
        torch.testing.assert_close(
            outputs(grown, windows()), outputs(model, windows()), atol=1e-5, rtol=1e-5
        )
    less = born(few, unchanged(few), [grown], generator())  # all that the full table has
    torch.testing.assert_close(
        outputs(less, windows()), outputs(model, windows()), atol=1e-4, rtol=1e-4
    )


@given(st.data())
@settings(deadline=None, max_examples=15)
def test_children_of_children_that_only_grew_do_so_too(data: Any) -> None:
    parent, child, lineage = data.draw(growths())
    first = model_of(parent)
    model = born(child, lineage, [first], generator())
    blocks = tuple(
        replace(block, ffns=(*block.ffns, FeedForward("gelu", (16,)))) for block in child.blocks
    )
    lines = tuple(
        replace(line, ffns=(*line.ffns, ModuleLineage("identity", 0, index, None)))
        for index, line in enumerate(unchanged(child))
    )
    grown = born(Genotype(blocks), lines, [model], generator())
    torch.testing.assert_close(
        outputs(grown, windows()), outputs(first, windows()), atol=1e-5, rtol=1e-5
    )


@given(ffn(3), ffn(3))
@settings(deadline=None, max_examples=200)
def test_what_is_said_to_hold_another_network_can_be_grown_from_it(one: Any, other: Any) -> None:
    arch = Architecture(VOCABULARY, TOKENS, WIDTH, ())

    def network(shape: FeedForward) -> feedforward.FeedForward:
        return feedforward.FeedForward(FeedForwardShape(shape.activation, shape.sizes), arch)

    grown = transfers.grow(
        network(other), network(one), lambda rows, columns: torch.zeros(rows, columns)
    )
    assert (grown is not None) == holds(one, other)


@st.composite
def changes(draw: Any, family: str = "bert") -> tuple[Genotype, Genotype, tuple[BlockLineage, ...]]:
    """Any child: blocks gone, other heads and fewer or more, other FFNs, some gone, some added."""
    parent = draw(genotypes(family))
    kept = draw(
        st.lists(st.sampled_from(range(len(parent.blocks))), min_size=1, unique=True).map(sorted)
    )
    blocks, lines = [], []
    for index in kept:
        source = parent.blocks[index]
        other = draw(block_of(family))
        heads = draw(st.sampled_from([source.heads, other.heads]))
        ffns, modules = [], []
        for place, one in enumerate(source.ffns):
            if len(source.ffns) > 1 and place == 0 and draw(st.booleans()):
                continue
            drawn = draw(st.one_of(st.just(one), ffn_of(family), ffn()))
            ffns.append(drawn)
            modules.append(ModuleLineage("kept" if drawn == one else "fresh", 0, index, place))
        reach = {name: draw(KERNELS) for name in CONVOLVED} if draw(st.booleans()) else {}
        attends = replace(source, heads=heads, **reach, remaining=draw(fewer_than(heads)))
        blocks.append(replace(attends, ffns=tuple(ffns)))
        attention = ModuleLineage("kept" if attends == source else "fresh", 0, index)
        lines.append(BlockLineage(attention, tuple(modules)))
    child = Genotype(tuple(blocks))
    return parent, child, informed(child, tuple(lines), [parent])


@EVERY
@given(st.data(), st.sampled_from(["many", "few", "equal", "none"]))
@settings(deadline=None, max_examples=40)
def test_any_child_has_finite_weights_and_a_shape_that_fits_whatever_there_is_to_refit_by(
    family: str, data: Any, seen: str
) -> None:
    parent, child, lineage = data.draw(changes(family))
    text = {"many": windows(), "few": windows(1), "equal": windows(), "none": None}[seen]
    if seen == "equal":  # every token the same: all covariances are singular
        assert text is not None
        text = replace(text, input_ids=torch.ones_like(text.input_ids))
    said: list[str] = []
    mother = model_of(parent, family=family)
    model = born(child, lineage, [mother], generator(), text, said.append)
    assert all(bool(weight.isfinite().all()) for weight in model.state_dict().values())
    assert bool(outputs(model, windows()).isfinite().all())
    new = [m.transfer for line in lineage for m in (line.attention, *line.ffns)]
    if seen in ("few", "none") and "ranked" in new:
        assert any("too few tokens" in one for one in said)


@given(changes())
@settings(deadline=None, max_examples=10)
def test_the_same_windows_and_seed_give_the_same_weights(drawn: Any) -> None:
    parent, child, lineage = drawn
    one, other = (
        born(child, lineage, [model_of(parent)], generator(3), windows()).state_dict()
        for _ in range(2)
    )
    assert all(torch.equal(one[name], other[name]) for name in one)


RICH = Genotype(
    (
        Block(6, (FeedForward("gelu", (48,)),)),
        Block(6, (FeedForward("gelu", (48,)),)),
        Block(6, (FeedForward("gelu", (48,)),)),
    )
)
SMALLER = {
    "half of an FFN": Block(6, (FeedForward("gelu", (24,)),)),
    "another activation": Block(6, (FeedForward("relu", (48,)),)),
    "fewer heads": Block(3, (FeedForward("gelu", (48,)),)),
    "more heads": Block(12, (FeedForward("gelu", (48,)),)),
    "heads gone": Block(6, (FeedForward("gelu", (48,)),), remaining=3),
    "heads gone, the others wider": Block(3, (FeedForward("gelu", (48,)),), remaining=2),
    "heads gone, the others narrower": Block(12, (FeedForward("gelu", (48,)),), remaining=4),
    "deeper and narrower": Block(6, (FeedForward("gelu", (24, 16)),)),
}


MODERN_RICH = Genotype(
    tuple(
        Block(6, (FeedForward("geglu", (48,)),), role, bare=not place)
        for place, role in enumerate(("global", "local", "global"))
    )
)
MODERN_SMALLER = {
    "half of an FFN": replace(MODERN_RICH.blocks[1], ffns=(FeedForward("geglu", (24,)),)),
    "no gates": replace(MODERN_RICH.blocks[1], ffns=(FeedForward("gelu", (48,)),)),
    "fewer heads": replace(MODERN_RICH.blocks[1], heads=3),
    "more heads": replace(MODERN_RICH.blocks[1], heads=12),
    "heads gone": replace(MODERN_RICH.blocks[1], remaining=3),
    "heads gone, the others wider": replace(MODERN_RICH.blocks[1], heads=3, remaining=2),
    "heads gone, the others narrower": replace(MODERN_RICH.blocks[1], heads=12, remaining=4),
}


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("name", MODERN_SMALLER)
def test_so_it_is_where_norms_stand_first_positions_turn_and_networks_are_gated(
    name: str, biased: bool
) -> None:
    family = "modernbert with biases" if biased else "modernbert"
    block = MODERN_SMALLER[name]
    fresh = BlockLineage.of(
        1,
        block.attends != MODERN_RICH.blocks[1].attends,
        ["kept" if block.ffns == MODERN_RICH.blocks[1].ffns else "altered"],
    )
    _nearer(MODERN_RICH, block, fresh, model_of(MODERN_RICH, 5, family=family))


def test_a_wider_rotary_head_looks_where_the_narrower_one_did() -> None:
    parent = model_of(MODERN_RICH, 5, family="modernbert")
    from nasd.worker.model.heads import _pairs

    one, other = parent.encoder.blocks[1].attention, _pairs(4, 8).tolist()
    assert other == [0, 2, 4, 6]
    states = torch.randn(2, TOKENS, WIDTH, generator=generator())
    places = torch.arange(TOKENS)
    q, k = (rotated(one._split(part(states)), places, 20.0) for part in (one.q, one.k))
    wide = []
    for part in (one.q, one.k):
        narrow = one._split(part(states))
        room = torch.zeros(*narrow.shape[:-1], 8)
        room[..., other] = narrow
        wide.append(rotated(room, places, 20.0))
    torch.testing.assert_close(
        q @ k.transpose(-1, -2), wide[0] @ wide[1].transpose(-1, -2), atol=1e-4, rtol=1e-4
    )


def test_no_block_is_grown_right_above_embeddings_that_are_mapped_to_the_width() -> None:
    from nasd.contract.config import SearchSpace
    from nasd.search.variation.operators import Draft, block_added

    space = SearchSpace(blocks=(1, 9), heads=(6,), ffns=1, layers=(2,), sizes=(48,))
    for seed in range(20):
        draft = Draft.of([RICH])
        assert block_added(draft, space, random.Random(seed))
        assert draft.lineage[0].source == 0


def test_one_that_is_there_all_the_same_is_noted() -> None:
    child = Genotype((RICH.blocks[0], *RICH.blocks))
    added = BlockLineage.of(None, True, ["added"])
    lineage = informed(child, (added, *unchanged(RICH)), [RICH])
    said: list[str] = []
    mother = model_of(RICH, family="electra")
    model = born(child, lineage, [mother], generator(), windows(), said.append)
    assert bool(outputs(model, windows()).isfinite().all())
    assert any("has no norm" in one for one in said)


@pytest.mark.parametrize("name", SMALLER)
def test_what_is_ranked_is_nearer_to_the_parent_than_what_is_drawn_anew_and_refits_help(
    name: str,
) -> None:
    parent = model_of(RICH, 5)
    block = SMALLER[name]
    thesis = BlockLineage.of(
        1,
        block.attends != RICH.blocks[1].attends,
        ["kept" if block.ffns == RICH.blocks[1].ffns else "altered"],
    )
    _nearer(RICH, block, thesis, parent)


def _nearer(rich: Genotype, block: Block, thesis: BlockLineage, parent: Any) -> None:
    """Of a child with another block in the middle."""
    child = Genotype((rich.blocks[0], block, rich.blocks[2]))
    keep = unchanged(rich)
    fresh = (keep[0], thesis, keep[2])
    lineage = informed(child, fresh, [rich])
    assert "ranked" in {lineage[1].attention.transfer, *(one.transfer for one in lineage[1].ffns)}
    truth, unseen = parent, windows(40, seed=9)

    def gap(made: Any) -> float:
        return float((outputs(made, unseen) - outputs(truth, unseen)).square().mean())

    drawn = gap(born(child, fresh, [parent], generator()))
    plain = gap(born(child, lineage, [parent], generator()))
    fitted = gap(born(child, lineage, [parent], generator(), windows(200)))
    assert fitted < plain
    assert fitted < drawn


def test_where_a_block_is_gone_the_next_one_is_refitted_to_what_it_now_sees() -> None:
    parent = model_of(RICH, 5)
    child = Genotype((RICH.blocks[0], RICH.blocks[2]))
    keep = unchanged(RICH)
    plain = (keep[0], keep[2])
    lineage = informed(child, plain, [RICH])
    assert lineage[0] == keep[0]
    assert {lineage[1].attention.transfer, lineage[1].ffns[0].transfer} == {"ranked"}
    unseen = windows(40, seed=9)
    truth = outputs(parent, unseen)
    gaps = [
        float(
            (outputs(born(child, one, [parent], generator(), seen), unseen) - truth).square().mean()
        )
        for one, seen in ((plain, None), (lineage, windows(200)))
    ]
    assert gaps[1] < gaps[0]


def test_a_child_of_two_parents_has_blocks_of_both() -> None:
    one, other = model_of(RICH, 1), model_of(RICH, 2)
    keep = unchanged(RICH)
    second = BlockLineage(ModuleLineage("kept", 1, 1), (ModuleLineage("kept", 1, 1, 0),))
    model = born(RICH, (keep[0], second, keep[2]), [one, other], generator())
    state = model.state_dict()
    for name, weight in state.items():
        source = other if name.startswith("encoder.blocks.1.") else one
        assert torch.equal(weight, source.state_dict()[name]), name


def test_a_language_model_is_born_with_its_head(tmp_path: Path) -> None:
    parent = model_of(RICH, kind=MaskedLM)
    model = born(RICH, unchanged(RICH), [parent], generator())
    assert isinstance(model, MaskedLM)
    assert torch.equal(model.head.bias, parent.head.bias)
