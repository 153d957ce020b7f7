"""Where a candidate goes, what it has before it, and from which weights it starts."""

from dataclasses import replace

import pytest

from nasd.policy import ladder
from nasd.record.lifecycle import Event, Phase, State
from nasd.record.store import BASELINE
from tests.conftest import small_config
from tests.snapshots import (
    CONFIG,
    baseline_at,
    begun,
    generation_0,
    generation_1,
    in_phase,
    put,
)

__all__ = ["begun", "generation_0", "generation_1"]  # fixtures


@pytest.mark.parametrize(
    ("generation", "stage", "expected"),
    [
        (0, "pretrain_0", (Event.ADVANCE, "pretrain_1")),  # no cutoff in generation 0
        (1, "pretrain_0", (Event.HOLD, None)),
        (1, "pretrain_1", (Event.ADVANCE, "finetune")),
        (1, "finetune", (Event.ADVANCE, "evaluate")),
        (1, "evaluate", (Event.SCORE, None)),
    ],
)
def test_a_finished_stage_leads_to_the_next_or_to_the_cutoff(
    generation_1, generation, stage, expected
):
    one = replace(generation_1.born_in(generation)[0], stage=stage)
    assert ladder.after(generation_1, CONFIG, one) == expected


@pytest.mark.parametrize(
    ("stage", "expected"),
    [
        ("pretrain_1", ((4, "pretrain_0"), False)),
        ("finetune", ((4, "pretrain_1"), False)),
        ("evaluate", ((4, "finetune"), False)),
    ],
)
def test_a_stage_starts_where_the_one_before_it_ended(generation_1, stage, expected):
    one = replace(generation_1.candidates[4], stage=stage)
    assert ladder.weights_of(generation_1, CONFIG, one) == expected


def test_a_child_inherits_what_its_parent_had_before_it_learned_to_answer(generation_1):
    one = generation_1.candidates[4]
    assert one.parent in (1, 2, 3)
    assert ladder.weights_of(generation_1, CONFIG, one) == ((one.parent, "pretrain_1"), True)


@pytest.mark.parametrize(("has_head", "stage"), [(True, "prepare"), (False, "pretrain_head")])
def test_generation_0_inherits_the_baseline_with_its_head(generation_0, has_head, stage):
    found = baseline_at(generation_0, "finetune", State.PENDING, has_head)
    assert ladder.weights_of(found, CONFIG, found.candidates[1]) == ((BASELINE, stage), True)
    assert ladder.weights_of(found, CONFIG, found.baseline) == ((BASELINE, stage), False)


def test_prepare_starts_from_the_seed_itself(begun):
    assert ladder.weights_of(begun, CONFIG, begun.baseline) == (None, False)


def test_no_cutoff_holds_up_who_is_trained_on_behind_the_selection(generation_1):
    config = small_config(stages__pretrain_1__keep=0.5)
    climbing = put(generation_1, {5: ("pretrain_1", State.RUNNING)})
    one = climbing.candidates[5]
    assert ladder.after(climbing, config, one) == (Event.HOLD, None)
    assert [stage.name for stage in ladder.way(climbing, config, one)] == ["pretrain_1"]
    revived = in_phase(climbing, Phase.COMPLETE)
    assert ladder.after(revived, config, one) == (Event.ADVANCE, "finetune")
    assert len(ladder.way(revived, config, one)) == 3


def test_the_work_ahead_is_that_of_all_stages_up_to_the_next_cutoff(generation_1):
    ways = {
        (0, "pretrain_0"): ["pretrain_0", "pretrain_1", "finetune", "evaluate"],  # no cutoff
        (1, "pretrain_0"): ["pretrain_0"],
        (1, "pretrain_1"): ["pretrain_1", "finetune", "evaluate"],
        (1, "evaluate"): ["evaluate"],
    }
    for (generation, stage), expected in ways.items():
        one = replace(generation_1.born_in(generation)[0], stage=stage)
        assert [ahead.name for ahead in ladder.way(generation_1, CONFIG, one)] == expected
    one = replace(generation_1.born_in(1)[0], stage="pretrain_1")
    work = [
        ladder.work_ahead(generation_1, CONFIG, replace(one, stage=stage))
        for stage in ("pretrain_1", "finetune", "evaluate")
    ]
    assert work == sorted(work, reverse=True)
    assert work[-1] > 0
