"""Attentions that lose heads: what they compute, weigh and cost."""

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nasd.contract import latency
from nasd.contract.config import Measure, SearchSpace, check_against_seed, parse
from nasd.contract.errors import NasdError
from nasd.contract.footprint import flop, int8_bytes
from nasd.contract.genotype import (
    Backbone,
    Block,
    Genotype,
    ModuleLineage,
    changes,
    distance,
    text_of,
    unchanged,
)
from nasd.estimate.latency import supposed
from nasd.record.folders import StateFolder
from nasd.record.lifecycle import State
from nasd.search.variation.breeding import check_genotype
from nasd.search.variation.keeping import informed
from nasd.search.variation.operators import OPERATORS, Draft
from nasd.worker.measure import table
from nasd.worker.model import phenotype
from nasd.worker.model.architecture import CONFIG, Architecture
from nasd.worker.model.inherit import born
from nasd.worker.model.phenotype import QuestionAnswering
from nasd.worker.training.progress import quiet
from tests.conftest import drive, make_tick, without_summaries
from tests.genes import (
    BACKBONE,
    FFN,
    check_examples_stay_apart,
    check_taken_home,
    check_weighs_as_told,
)
from tests.test_task_lineage import task_dict
from tests.test_transfers import FAMILIES, generator, model_of, outputs, windows

NARROW = Genotype(
    (
        Block(4, FFN, remaining=1),
        Block(6, FFN, remaining=4, convolution=3),
        Block(2, FFN),
    )
)
WHOLE = Genotype(tuple(replace(one, remaining=None) for one in NARROW.blocks))
SPACE = SearchSpace(
    blocks=(1, 3), heads=(2, 4, 6), remaining_heads=(1, 3), ffns=1, layers=(2,), sizes=(16, 32),
    activations=("gelu",),
)  # fmt: skip


def altered(parent: Genotype, block: int, child: Genotype) -> Any:
    """The lineage of one whose attention in that block is another."""
    lines = list(unchanged(parent))
    lines[block] = replace(lines[block], attention=ModuleLineage("fresh", 0, block))
    return informed(child, tuple(lines), [parent])


# -- the genotype --------------------------------------------------------------------------------


def test_only_what_has_lost_heads_says_so_and_so_all_others_keep_their_hash() -> None:
    plain = Genotype((Block(4, FFN), Block(6, FFN), Block(2, FFN)))
    assert plain.hash == "5944719df9ea1964"
    assert all(block.keys() == {"heads", "ffns"} for block in plain.to_json()["blocks"])
    told = json.loads(json.dumps(NARROW.to_json()))
    assert Genotype.from_json(told) == NARROW
    assert len({NARROW.hash, WHOLE.hash, plain.hash}) == 3
    assert str(NARROW) == "[1/4h g32] [4/6h c3 g32] [2h g32]" == text_of(told)


@pytest.mark.parametrize("remaining", [0, 4, 5, -1, True, "2", 2.0])
def test_more_heads_than_there_are_or_none_are_refused(remaining: Any, tmp_path: Path) -> None:
    data = WHOLE.to_json()
    data["blocks"][0]["remaining"] = remaining
    with pytest.raises(NasdError, match="this is not a genotype"):
        Genotype.from_json(data)
    phenotype.save(model_of(NARROW), tmp_path)
    told = json.loads((tmp_path / CONFIG).read_text())
    told["blocks"][0]["remaining"] = remaining
    (tmp_path / CONFIG).write_text(json.dumps(told))
    with pytest.raises(ValueError, match=r"remaining in config\.json"):
        phenotype.load(QuestionAnswering, tmp_path)


def test_what_was_changed_is_said() -> None:
    child = Genotype((NARROW.blocks[0], *WHOLE.blocks[1:]))
    lineage = altered(WHOLE, 0, child)
    assert changes(child, lineage, WHOLE) == ["block 1: 1 of 4 heads instead of 4"]
    assert changes(WHOLE, lineage, child) == ["block 1: 4 heads instead of 1 of 4"]
    assert distance(child, WHOLE) == 1


def test_one_outside_of_the_space_is_refused_by_its_key() -> None:
    inside = Genotype((Block(4, FFN, remaining=3),))
    check_genotype(inside, SPACE, 24)
    with pytest.raises(NasdError, match=r"has 2 of 4 heads, and search_space.remaining_heads"):
        check_genotype(Genotype((Block(4, FFN, remaining=2),)), SPACE, 24)


# -- operators -----------------------------------------------------------------------------------


def test_heads_go_one_step_down_and_up_again_and_stay_as_wide_as_they_are() -> None:
    draft = Draft.of([Genotype((Block(4, FFN),))])
    seen = []
    for name in ["restore_heads", *["drop_heads"] * 3, *["restore_heads"] * 3]:
        changed = OPERATORS[name].apply(draft, SPACE, random.Random(0))
        seen.append(str(draft.genotype) if changed else "no room")
        assert draft.genotype.blocks[0].heads == 4
    below, above = "[1/4h g32]", "[3/4h g32]"
    assert seen == ["no room", above, below, "no room", above, "[4h g32]", "no room"]
    never = SPACE.model_copy(update={"remaining_heads": ()})
    assert not OPERATORS["drop_heads"].apply(draft, never, random.Random(0))


def test_other_heads_are_as_wide_together_as_those_that_remained() -> None:
    for heads, remaining, wanted in ((6, 3, None), (2, 1, None), (4, 3, None), (6, 1, None)):
        before = Block(heads, FFN, remaining=remaining)
        for name in ("more_heads", "fewer_heads"):
            draft = Draft.of([Genotype((before,))])
            if OPERATORS[name].apply(draft, SPACE, random.Random(0)):
                after = draft.genotype.blocks[0]
                wanted = after.inner(24)
                assert after.heads != heads
                assert wanted == before.inner(24)
                check_genotype(draft.genotype, SPACE, 24)
    halves = Draft.of([Genotype((Block(2, FFN, remaining=1),))])
    space = SPACE.model_copy(update={"remaining_heads": (1, 2)})
    assert OPERATORS["more_heads"].apply(halves, space, random.Random(0))
    assert str(halves.genotype) == "[2/4h g32]"


# -- what they compute ---------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_no_example_sees_its_padding_or_whoever_it_is_packed_with(family: str) -> None:
    check_examples_stay_apart(NARROW, family)


@pytest.mark.parametrize("family", FAMILIES)
@given(st.data())
@settings(deadline=None, max_examples=15)
def test_heads_that_nothing_reads_can_go_without_a_trace(family: str, data: Any) -> None:
    """The others are those that stay, with their weights, positions and convolutions."""
    heads = data.draw(st.sampled_from([2, 3, 4, 6]))
    silent = data.draw(st.sets(st.integers(0, heads - 1), min_size=1, max_size=heads - 1))
    more: Any = {"convolution": data.draw(st.sampled_from([None, 3]))}
    if "pre_norm" in FAMILIES[family]:
        more["role"] = data.draw(st.sampled_from(["local", "global"]))
    parent = Genotype((Block(heads, FFN, **more),))
    model = model_of(parent, family=family)
    out = model.encoder.blocks[0].attention.out.weight
    size = 24 // heads
    with torch.no_grad():
        for head in silent:
            out[:, head * size : (head + 1) * size] = 0.0
    child = Genotype((replace(parent.blocks[0], remaining=heads - len(silent)),))
    lineage = altered(parent, 0, child)
    assert lineage[0].attention.transfer == "ranked"
    # The last bits of a refit apart, it is what it was.
    for text in (windows(48), None):
        made = born(child, lineage, [model], generator(), text)
        torch.testing.assert_close(
            outputs(made, windows()), outputs(model, windows()), atol=1e-4, rtol=1e-4
        )


def test_the_heads_that_stay_are_those_that_tell_most() -> None:
    parent = Genotype((Block(4, FFN),))
    model = model_of(parent)
    attention = model.encoder.blocks[0].attention
    with torch.no_grad():
        attention.out.weight[:, 6:12] *= 0.01
        attention.out.weight[:, 18:] *= 0.01
    child = Genotype((Block(4, FFN, remaining=2),))
    made = born(child, altered(parent, 0, child), [model], generator(), windows(48))
    for name in ("q", "k", "v"):
        theirs = getattr(attention, name).weight
        mine = getattr(made.encoder.blocks[0].attention, name).weight
        torch.testing.assert_close(mine, torch.cat([theirs[:6], theirs[12:18]]))


def test_heads_that_come_back_change_nothing_and_learn() -> None:
    parent = Genotype((Block(4, FFN, remaining=2), *WHOLE.blocks[1:]))
    child = Genotype((Block(4, FFN), *WHOLE.blocks[1:]))
    lineage = altered(parent, 0, child)
    assert lineage[0].attention.transfer == "identity"
    mother = model_of(parent)
    model = born(child, lineage, [mother], generator(), windows())
    torch.testing.assert_close(outputs(model, windows()), outputs(mother, windows()))
    seen = windows()
    start, _ = model(seen.input_ids, seen.attention_mask)
    start.square().sum().backward()
    assert float(model.encoder.blocks[0].attention.out.weight.grad[:, 12:].abs().max()) > 0


# -- what they weigh and cost --------------------------------------------------------------------


def test_parameters_bytes_and_operations_are_those_of_the_model(tmp_path: Path) -> None:
    # Of each channel that is gone a column of three layers with its scale, zero and bias, and a
    # row of another; and of the second block's its kernels.
    gone = 18 + 8
    less = gone * (3 * (24 + 5 + 4) + 24) + 8 * 3 * 3 * 4
    assert int8_bytes(WHOLE, BACKBONE) - int8_bytes(NARROW, BACKBONE) == less
    check_weighs_as_told(NARROW, tmp_path, uncounted=2 * 12 * 2 * 3 * 3 * 16)


def test_a_latency_table_tells_of_any_number_of_heads_by_the_fewest() -> None:
    made = supposed(SPACE, BACKBONE, Measure(tokens=12))
    assert made.fewest == 1
    assert {name for name in made.parts if "fewest" in name} == {
        "fewest heads 2", "fewest heads 4", "fewest heads 6",
    }  # fmt: skip
    for heads, remaining in ((2, 1), (4, 1), (4, 3), (6, 1), (6, 3)):
        one = Genotype((Block(heads, FFN, remaining=remaining),))
        wanted = flop(one, BACKBONE, 1, 12) / flop(Genotype((Block(heads, FFN),)), BACKBONE, 1, 12)
        whole = made.predict(Genotype((Block(heads, FFN),)))
        assert made.predict(one) / whole == pytest.approx(wanted, rel=1e-6)
    before = replace(made, parts={k: v for k, v in made.parts.items() if "fewest" not in k})
    assert before.predict(Genotype((Block(4, FFN, remaining=1),))) < before.predict(
        Genotype((Block(4, FFN),))
    )
    assert latency.Table.from_json(json.loads(json.dumps(made.to_json()))) == made
    plain = SPACE.model_copy(update={"remaining_heads": ()})
    assert "fewest" not in supposed(plain, BACKBONE, Measure(tokens=12)).to_json()


def test_each_of_these_parts_can_be_measured() -> None:
    arch = Architecture(50, 12, 24, ())
    calls, _ = table._parts(arch, SPACE, Measure(tokens=12), quiet)
    assert calls.keys() - {table.NOTHING} == latency.measured(SPACE).keys()
    for call in calls.values():
        call()
    drawn = [latency.drawn(SPACE, random.Random(n)) for n in range(20)]
    for one in drawn:
        check_genotype(one, SPACE, 24)
    assert any(block.remaining for one in drawn for block in one.blocks)
    table.whole(next(one for one in drawn if one.blocks[0].remaining), arch, Measure(tokens=12))()


# -- taken home, and distilled -------------------------------------------------------------------


def test_an_exported_model_has_them_in_transformers_and_in_onnx(tmp_path: Path) -> None:
    check_taken_home(Genotype(NARROW.blocks[1:]), tmp_path)


def test_relations_that_remaining_heads_cannot_be_divided_into_are_refused() -> None:
    data = task_dict()
    data["teacher"] = {"source": "best", "match": ["relations"], "relation_heads": 4}
    data["search_space"] |= {"heads": [2, 4], "remaining_heads": [1]}
    config = parse(data, "c")
    wrong = r"teacher.relation_heads: 4 heads do not divide 6, the width of 1 of 4 heads"
    with pytest.raises(NasdError, match=wrong):
        check_against_seed(config, Backbone(225, 10_000, 24), "c")
    check_against_seed(config, Backbone(225, 10_000, 64), "c")


# -- a search ------------------------------------------------------------------------------------


def test_a_search_loses_heads_where_its_space_lets_it(tmp_path: Path) -> None:
    data = task_dict(population__mu=4, population__lambda=6, experiment__generations=3)
    data["variation"]["operators"] = {
        "drop_heads": 3, "restore_heads": 1, "more_heads": 1, "cross": 1,
    }  # fmt: skip
    data["search_space"] |= {"remaining_heads": [1, 2, 3]}
    config = parse(data, "narrow.toml")
    with without_summaries():
        tick = make_tick(StateFolder(tmp_path / "state"), config)
        drive(tick)
        found = tick.store.read()
        tick.store.close()
    assert found.experiment.state == "complete"
    scored = [one for one in found.individuals if one.state is State.SCORED]
    lost = [one for one in scored if any(block.remaining for block in one.genotype.blocks)]
    assert lost
    whole = {one.id: one.parameters for one in found.candidates.values()}
    for one in lost:
        if one.operators == ("drop_heads",) and one.second is None:
            assert one.parent is not None
            assert one.parameters < whole[one.parent]
    transfers = {
        line.attention.transfer for one in scored for line in one.lineage if line.attention.new
    }
    assert transfers == {"identity", "ranked"}
