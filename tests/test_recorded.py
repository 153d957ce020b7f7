"""Recorded curves in a simulated search."""

from dataclasses import replace
from pathlib import Path

import pytest

from nasd.contract.errors import NasdError
from nasd.contract.genotype import Genotype
from nasd.estimate.recorded import NEAREST, Recorded, Table
from nasd.estimate.surrogate import Trained
from nasd.policy.ladder import cutoffs
from nasd.record.lifecycle import State
from nasd.views.forecast.search import simulate
from tests.bench.rules import TABLE, config, subject


@pytest.fixture(scope="module")
def table() -> Table:
    return Table.read(TABLE)


@pytest.fixture(scope="module")
def recorded(table: Table) -> Recorded:
    return Recorded(table.backbone, table.baseline, 0, table=table)


def test_one_that_was_recorded_has_its_own_curve_and_score(table: Table, recorded: Recorded):
    for curve in table.curves:
        assert table.alike(curve.genotype) == (curve,)
        end = Trained(all=curve.points[-1][0])
        assert recorded.quality(curve.genotype, end) == curve.quality
        for step, loss in curve.points:
            assert recorded.answer_loss(curve.genotype, "finetune", step, Trained()) == loss
        untrained = recorded.answer_loss(curve.genotype, "screen", None, Trained())
        assert untrained == curve.points[0][1]
        assert recorded.answer_loss(curve.genotype, "evaluate", None, end) == curve.points[-1][1]


def test_between_two_evaluations_lies_the_line_and_behind_the_last_one_nothing_changes(
    table: Table,
):
    curve = table.curves[0]
    (begin, high), (end, low) = curve.points[:2]
    assert curve.at((begin + end) / 2) == pytest.approx((high + low) / 2)
    assert curve.at(10 * curve.points[-1][0]) == curve.points[-1][1]


def test_one_that_was_not_has_the_mean_of_the_three_most_like_it(table: Table, recorded: Recorded):
    known = table.curves[0].genotype
    block = known.blocks[-1]
    ffn = block.ffns[-1]
    narrower = replace(ffn, sizes=(*ffn.sizes[:-1], ffn.sizes[-1] - 1))
    other = replace(block, ffns=(*block.ffns[:-1], narrower))
    genotype = Genotype((*known.blocks[:-1], other))
    alike = table.alike(genotype)
    assert len(alike) == NEAREST
    assert table.curves[0] in alike
    mean = sum(one.quality for one in alike) / NEAREST
    assert recorded.quality(genotype, Trained(all=144)) == pytest.approx(mean)


def test_a_search_on_recorded_curves_is_cut_and_scored_by_them(table: Table):
    settings = config("hyperband", 2)
    run = simulate(settings, subject(table), 3, lambda text: None, table)
    found = run.snapshot
    assert {one.stage for one in found.cutoffs if one.generation == 2} == {*cutoffs(settings, 2)}
    scored = [one for one in found.individuals if one.state is State.SCORED]
    assert len(scored) > 8
    for one in scored:
        if one.genotype == found.baseline.genotype:
            continue  # told apart from the others
        quality = sum(each.quality for each in table.alike(one.genotype))
        told = found.quality(one.id)
        assert told == pytest.approx(quality / len(table.alike(one.genotype)))
    for made in found.cutoffs:
        for number, curve in made.promotion.curves.items():
            alike = table.alike(found.candidates[number].genotype)
            step, loss = curve[-1]
            assert loss == pytest.approx(sum(each.at(step) for each in alike) / len(alike))


@pytest.mark.parametrize("content", ["{}", "[]", '{"candidates": []', '{"candidates": [{}]}'])
def test_what_is_no_table_is_refused_in_one_sentence(tmp_path: Path, content: str):
    path = tmp_path / "curves.json"
    path.write_text(content)
    with pytest.raises(NasdError, match=r"curves\.json is no table of `bin/record-curves`"):
        Table.read(path)
