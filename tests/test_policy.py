"""What is decided, from what is recorded."""

import json
import math
from collections.abc import Mapping
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nasd.contract.config import Config
from nasd.contract.protocol import Outcome
from nasd.policy import decisions, scheduling
from nasd.policy.decisions import Cutoff, Halt, OpenGeneration, Select, StartSelecting
from nasd.record.lifecycle import AttemptVerdict, Event, ExperimentState, Phase, State
from nasd.record.state import Breed, Member, Snapshot, StageResult
from nasd.record.store import BASELINE
from nasd.search import pareto
from tests.conftest import small_config
from tests.snapshots import (
    CONFIG,
    SLOTS,
    baseline_at,
    begun,
    generation_0,
    generation_1,
    in_phase,
    lost,
    put,
    with_attempts,
)
from tests.test_endings import ends
from tests.test_scheduling import started

__all__ = ["begun", "generation_0", "generation_1"]  # fixtures

# -- the beginning -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stage", "state", "has_head", "opens"),
    [
        ("prepare", State.PENDING, None, False),
        ("prepare", State.RUNNING, None, False),
        ("pretrain_head", State.PENDING, False, False),
        ("pretrain_head", State.RUNNING, False, False),
        ("finetune", State.PENDING, False, True),  # the head is trained
        ("finetune", State.PENDING, True, True),  # the seed has one: no need to wait for it
        ("evaluate", State.RUNNING, True, True),
        ("evaluate", State.SCORED, False, True),
    ],
)
def test_generation_0_waits_for_all_that_its_weights_come_from(
    begun, stage, state, has_head, opens
):
    found = decisions.next_decision(baseline_at(begun, stage, state, has_head), CONFIG)
    assert found == (OpenGeneration(0, ()) if opens else None)


def test_generation_0_is_mu_different_mutants_of_the_baseline(generation_0):
    born = generation_0.born_in(0)
    assert [one.id for one in born] == [1, 2, 3]
    assert {one.parent for one in born} == {BASELINE}
    assert len({one.hash for one in generation_0.candidates.values()}) == 4


def test_an_experiment_that_does_not_run_decides_and_starts_nothing(generation_0):
    for state in (ExperimentState.HALTED, ExperimentState.COMPLETE):
        still = replace(generation_0, experiment=replace(generation_0.experiment, state=state))
        assert decisions.next_decision(still, CONFIG) is None
        assert scheduling.starts(still, CONFIG, SLOTS, 0.0) == []


# -- the cutoff ----------------------------------------------------------------------------------

WAITING = ("pretrain_0", State.WAITING)
DIVERGED = ("pretrain_0", State.FAILED)


def with_results(
    snapshot: Snapshot, stage: str, metrics: Mapping[int, Mapping[str, float]]
) -> Snapshot:
    results = {
        (number, stage): StageResult(
            number, stage, json.dumps(found), json.dumps([(1, 9.9), (2, found["loss"])]), 2, 1.0
        )
        for number, found in metrics.items()
    }
    return replace(snapshot, results=snapshot.results | results)


def at_the_cutoff(
    snapshot: Snapshot, losses: Mapping[int, float], others: Mapping[int, tuple[str, State]]
) -> Snapshot:
    found = put(snapshot, dict.fromkeys(losses, WAITING) | others)
    return with_results(found, "pretrain_0", {number: {"loss": x} for number, x in losses.items()})


def keeping(share: float) -> Config:
    return small_config(stages__pretrain_0__keep=share)


@pytest.mark.parametrize(
    ("losses", "others", "keep", "kept"),
    [
        ({4: 3.0, 5: 1.0, 6: 2.0, 7: 4.0}, {}, 0.5, (5, 6)),
        ({4: 3.0, 5: 1.0, 6: 2.0, 7: 4.0}, {}, 0.25, (5,)),
        ({4: 3.0, 5: 1.0, 6: 2.0, 7: 4.0}, {}, 0.26, (5, 6)),  # rounded up
        ({4: 3.0, 5: 1.0, 6: 2.0, 7: 4.0}, {}, 0.01, (5,)),  # never nobody
        ({4: 3.0, 5: 1.0, 6: 2.0, 7: 4.0}, {}, 1.0, (4, 5, 6, 7)),
        ({4: 2.0, 5: 2.0, 6: 2.0, 7: 2.0}, {}, 0.5, (4, 5)),  # ties: the lower ids
        ({4: 2.0, 5: 1.0, 6: 2.0, 7: 2.0}, {}, 0.5, (4, 5)),
        ({4: 3.0, 5: 1.0, 6: 2.0}, {7: DIVERGED}, 0.5, (5, 6)),  # half of the four
        ({4: 3.0}, {5: DIVERGED, 6: DIVERGED, 7: DIVERGED}, 0.5, (4,)),  # two places, one left
        ({4: 3.0, 5: 1.0}, {6: DIVERGED, 7: DIVERGED}, 0.5, (4, 5)),
    ],
)
def test_the_cutoff_keeps_the_share_with_the_lowest_losses(
    generation_1, losses, others, keep, kept
):
    decision = decisions.next_decision(at_the_cutoff(generation_1, losses, others), keeping(keep))
    assert isinstance(decision, Cutoff)
    assert tuple(sorted(decision.promotion.kept)) == kept
    assert set(decision.promotion.cut) == set(losses) - set(kept)
    assert (decision.stage, decision.next_stage) == ("pretrain_0", "pretrain_1")


@given(
    st.lists(st.sampled_from([1.0, 1.5, 2.0, None]), min_size=4, max_size=4),
    st.floats(0.01, 1.0),
)
def test_no_candidate_is_cut_that_is_better_than_one_kept(generation_1, drawn, keep):
    losses = {n: loss for n, loss in enumerate(drawn, 4) if loss is not None}
    diverged = {n: DIVERGED for n in range(4, 8) if n not in losses}
    decision = decisions.next_decision(at_the_cutoff(generation_1, losses, diverged), keeping(keep))
    if not losses:
        assert decision == StartSelecting(1)
        return
    assert isinstance(decision, Cutoff)
    assert len(decision.promotion.kept) == min(len(losses), math.ceil(keep * 4))
    assert {*decision.promotion.kept, *decision.promotion.cut} == set(losses)
    for one in decision.promotion.kept:
        assert all((losses[one], one) < (losses[other], other) for other in decision.promotion.cut)


@pytest.mark.parametrize("state", [State.PENDING, State.RUNNING])
def test_the_cutoff_waits_until_all_have_finished_the_stage(generation_1, state):
    losses = {4: 3.0, 5: 1.0, 6: 2.0}
    found = at_the_cutoff(generation_1, losses, {7: ("pretrain_0", state)})
    assert decisions.next_decision(found, CONFIG) is None


def test_the_cutoff_says_what_it_saw_and_why(generation_1):
    found = at_the_cutoff(generation_1, {4: 3.0, 5: 1.0, 6: 2.0}, {7: DIVERGED})
    decision = decisions.next_decision(found, CONFIG)
    assert isinstance(decision, Cutoff)
    among = "among the lowest 2 of 4 (the last one kept has 2.0000)"
    assert decision.promotion.to_json() == {
        "name": "share",
        "rule": "the lowest 2 of 4 by the last evaluation loss",
        "keep": 0.5,
        "places": 2,
        "reached": 4,
        "losses": {"5": 1.0, "6": 2.0, "4": 3.0},
        "curves": {str(n): [[1, 9.9], [2, x]] for n, x in ((5, 1.0), (6, 2.0), (4, 3.0))},
        "threshold": 2.0,
        "kept": [5, 6],
        "cut": [4],
        "reasons": {
            "5": f"pretrain_0 loss 1.0000 is {among}",
            "6": f"pretrain_0 loss 2.0000 is {among}",
            "4": f"pretrain_0 loss 3.0000 is not {among}",
        },
    }


def test_a_ladder_with_two_cutoffs_has_them_one_after_the_other(generation_1):
    config = small_config(stages__pretrain_1__keep=0.5)
    second = ("pretrain_1", State.WAITING)
    found = put(generation_1, {4: ("pretrain_0", State.CUT), 5: DIVERGED, 6: second, 7: second})
    found = with_results(found, "pretrain_1", {6: {"loss": 2.0}, 7: {"loss": 1.0}})
    decision = decisions.next_decision(found, config)
    assert isinstance(decision, Cutoff)
    chosen = decision.promotion
    assert (decision.stage, chosen.kept, chosen.cut) == ("pretrain_1", (7,), (6,))
    # and what still climbs below holds the upper one back
    under_way = put(found, {4: ("pretrain_0", State.RUNNING)})
    assert decisions.next_decision(under_way, config) is None


# -- selection and the next generation -----------------------------------------------------------


def scored(snapshot: Snapshot, scores: Mapping[int, float]) -> Snapshot:
    """All others of generation 1 failed; these are scored, with this quality."""
    where = dict.fromkeys(range(4, 8), DIVERGED) | dict.fromkeys(scores, ("evaluate", State.SCORED))
    metrics = {n: {"loss": 1.0, "f1": x, "exact_match": x} for n, x in scores.items()}
    return with_results(put(snapshot, where), "evaluate", metrics)


def ended(snapshot: Snapshot) -> Snapshot:
    """As if all that were born last had come to an end."""
    return put(snapshot, dict.fromkeys((4, 5, 6, 7), ("pretrain_0", State.CUT)))


def test_selection_comes_when_every_candidate_is_at_an_end(generation_1):
    there = {4: ("evaluate", State.SCORED), 5: ("pretrain_0", State.CUT), 6: DIVERGED}
    assert decisions.next_decision(put(generation_1, there), CONFIG) is None
    assert decisions.next_decision(put(generation_1, {**there, 7: DIVERGED}), CONFIG) == (
        StartSelecting(1)
    )


@given(st.dictionaries(st.integers(4, 7), st.integers(0, 100).map(float)))
def test_selection_takes_the_best_mu_of_parents_and_scored_offspring(generation_1, scores):
    found = in_phase(scored(generation_1, scores), Phase.SELECTING)
    decision = decisions.next_decision(found, CONFIG)
    assert isinstance(decision, Select)
    parents = {m.candidate for m in found.members if m.generation == 1 and m.role == "parent"}
    pool = sorted(parents | set(scores))
    assert sorted(decision.members) == pool  # who was cut or failed has no part in it
    points = decisions.points(found, pool)
    best = {pool[index] for index in pareto.survivors(points, CONFIG.population.mu)}
    assert {one for one, (survives, _, _) in decision.members.items() if survives} == best
    assert [rank for _, rank, _ in decision.members.values()] == pareto.ranks(points)
    assert decision.payload["survivors"] == sorted(best)
    assert decision.payload["hypervolume"] == pareto.hypervolume(points, (0.0, 0.0))


def test_the_survivors_are_the_parents_of_the_next_generation(generation_1):
    members = tuple(
        replace(one, survives=one.candidate in (2, 4, 6)) if one.generation == 1 else one
        for one in generation_1.members
    )
    found = replace(in_phase(ended(generation_1), Phase.COMPLETE), members=members)
    assert decisions.next_decision(found, CONFIG) == OpenGeneration(2, (2, 4, 6))


def test_offspring_come_from_parents_only_and_have_genotypes_of_their_own(generation_1):
    parents = {m.candidate for m in generation_1.members if m.role == "parent"}
    born = generation_1.born_in(1)
    assert {one.parent for one in born} <= parents
    assert len({one.hash for one in generation_1.candidates.values()}) == 8
    (decision,) = [d for d in generation_1.decisions if (d.kind, d.generation) == ("breed", 1)]
    assert decision.payload["picked"] == [one.parent for one in born]


def test_where_nobody_was_scored_the_next_generation_begins_from_the_baseline(generation_1):
    members = tuple(one for one in generation_1.members if one.role != "parent")
    found = replace(in_phase(generation_1, Phase.BREEDING), members=members)
    decision = decisions.next_decision(found, CONFIG)
    assert isinstance(decision, Breed)
    assert [one.parent for one in decision.births] == [BASELINE] * CONFIG.population.lambda_


def test_a_selection_among_nobody_has_no_survivors(generation_1):
    members = (Member(1, 4, "offspring", None, None, None),)
    found = replace(in_phase(generation_1, Phase.SELECTING), members=members)
    decision = decisions.next_decision(put(found, {4: DIVERGED}), CONFIG)
    assert isinstance(decision, Select)
    assert (decision.members, decision.payload["survivors"]) == ({}, [])


def test_the_same_snapshot_gives_the_same_decision(generation_1):
    found = in_phase(generation_1, Phase.BREEDING)
    assert decisions.next_decision(found, CONFIG) == decisions.next_decision(found, CONFIG)


@pytest.mark.parametrize(
    ("state", "expected"),
    [(State.SCORED, decisions.Complete()), (State.RUNNING, None), (State.PENDING, None)],
)
def test_the_search_is_complete_behind_the_last_generation_and_the_baselines_score(
    generation_1, state, expected
):
    found = put(in_phase(ended(generation_1), Phase.COMPLETE), {BASELINE: ("evaluate", state)})
    config = small_config(experiment__generations=1)
    assert decisions.next_decision(found, config) == expected


@pytest.mark.parametrize("generations", [1, 2])
def test_nothing_follows_a_complete_generation_while_a_cut_candidate_is_trained_on(
    generation_1, generations
):
    found = in_phase(ended(generation_1), Phase.COMPLETE)
    config = small_config(experiment__generations=generations)
    assert decisions.next_decision(found, config) is not None
    revived = put(found, {5: ("pretrain_1", State.PENDING)})
    assert decisions.next_decision(revived, config) is None
    assert [one.candidate for one in scheduling.starts(revived, config, SLOTS, 0.0)] == [5]


# -- halts ---------------------------------------------------------------------------------------


def test_a_baseline_that_fails_halts_the_search(begun):
    found = put(begun, {BASELINE: ("prepare", State.FAILED)}, reason="diverged: NaN")
    assert decisions.next_decision(found, CONFIG) == (
        Halt("the baseline failed at prepare: diverged: NaN")
    )


def test_an_error_of_the_baseline_that_comes_back_halts_with_the_workers_words(begun):
    error = Outcome(verdict="error", message="squad.json is gone")
    once = lost(BASELINE, 1, "error", stage="prepare")
    assert ends(begun, BASELINE, error, *once).event is Event.INTERRUPT
    assert decisions.next_decision(with_attempts(begun, *once), CONFIG) is None
    twice = lost(BASELINE, 2, "error", stage="prepare")
    assert decisions.next_decision(with_attempts(begun, *twice), CONFIG) == (
        Halt("candidate 0 at prepare: boom (see attempts/101/worker.log)")
    )


@pytest.mark.parametrize(("times", "halts"), [(5, False), (6, True)])
def test_attempts_lost_in_a_row_halt_the_search_beyond_the_retries(generation_1, times, halts):
    assert CONFIG.daemon.infrastructure_retries == 5
    decision = decisions.next_decision(with_attempts(generation_1, *lost(4, times)), CONFIG)
    assert isinstance(decision, Halt) == halts
    if halts:
        assert "candidate 4 at pretrain_0 lost 6 attempts in a row" in decision.reason


@pytest.mark.parametrize(("times", "halts"), [(1, False), (2, True)])
def test_a_damaged_file_that_a_second_attempt_finds_so_too_halts_with_its_name(
    generation_1, times, halts
):
    said = "/state/candidates/1/pretrain_1/model.safetensors is damaged"
    told = [replace(one, message=said) for one in lost(4, times, "machine")]
    decision = decisions.next_decision(with_attempts(generation_1, *told), CONFIG)
    if halts:
        assert isinstance(decision, Halt)
        assert said in decision.reason
    else:
        assert decision is None


def test_data_at_fault_halt_at_the_first_attempt_of_prepare_and_may_be_tried_again(begun):
    at_prepare = put(begun, {BASELINE: ("prepare", State.PENDING)})
    [told] = lost(BASELINE, 1, "invalid", "prepare")
    told = replace(told, message="data.qa.files: squad.json holds no questions")
    halted = with_attempts(at_prepare, told)
    decision = decisions.next_decision(halted, CONFIG)
    assert isinstance(decision, Halt)
    assert "squad.json holds no questions" in decision.reason
    resumed = replace(halted, experiment=replace(halted.experiment, resumed_after=told.id))
    assert decisions.next_decision(resumed, CONFIG) is None


def test_three_candidates_in_a_row_with_the_same_error_halt_the_search_until_a_person_has_looked(
    generation_1,
):
    failed = [
        replace(one, candidate=candidate, id=200 + candidate, ended_at=3000.0 + candidate)
        for candidate in (4, 5, 6)
        for one in lost(candidate, 1, "error")
    ]
    two = put(generation_1, {4: ("pretrain_0", State.FAILED), 5: ("pretrain_0", State.FAILED)})
    assert not isinstance(decisions.next_decision(with_attempts(two, *failed[:2]), CONFIG), Halt)
    three = with_attempts(two, *failed)
    decision = decisions.next_decision(three, CONFIG)
    assert isinstance(decision, Halt)
    assert "3 candidates in a row failed at pretrain_0 with the same error: boom" in decision.reason
    assert "`nasd retry 4`, `nasd retry 5`" in decision.reason
    assert "nasd retry 6" not in decision.reason  # it is not charged, and goes on by itself
    seen = replace(three, experiment=replace(three.experiment, resumed_after=206))
    assert not isinstance(decisions.next_decision(seen, CONFIG), Halt)


def test_a_generation_in_which_all_failed_of_errors_halts_the_search_until_a_person_has_looked(
    generation_1,
):
    born = (4, 5, 6, 7)
    gone = dict.fromkeys(born, ("pretrain_0", State.FAILED))
    failed = [
        replace(one, message=f"{word}", id=200 + number, ended_at=3000.0 + number)
        for number, word in zip(born, ("one", "two", "three", "four"), strict=True)
        for one in lost(number, 1, "error")
    ]
    found = with_attempts(put(generation_1, gone, "error: boom"), *failed)
    decision = decisions.next_decision(found, CONFIG)
    assert isinstance(decision, Halt)
    assert "all 4 candidates of generation 1 failed" in decision.reason
    seen = replace(found, experiment=replace(found.experiment, resumed_after=300))
    assert isinstance(decisions.next_decision(seen, CONFIG), StartSelecting)
    diverged = put(found, gone, "diverged: NaN")
    assert isinstance(decisions.next_decision(diverged, CONFIG), StartSelecting)


def test_attempts_that_a_killed_daemon_took_along_never_halt_the_search(generation_1):
    went = [replace(one, verdict=AttemptVerdict.INTERRUPTED) for one in lost(4, 40)]
    assert decisions.next_decision(with_attempts(generation_1, *went), CONFIG) is None
    assert 4 in [one[0] for one in started(with_attempts(generation_1, *went), now=2010.0)]


def test_who_gets_on_between_losses_never_halts_the_search(generation_1):
    row = [replace(one, reached=10 * (n + 1)) for n, one in enumerate(lost(4, 40))]
    assert decisions.next_decision(with_attempts(generation_1, *row), CONFIG) is None


def test_a_row_of_losses_counts_from_the_last_one_that_got_on(generation_1):
    before = lost(4, 5)
    row = [replace(one, reached=10) for one in lost(4, 6)]  # the first one got there, no other
    found = with_attempts(generation_1, *before, *row)
    assert isinstance(decisions.next_decision(found, CONFIG), decisions.Halt)
    assert decisions.next_decision(with_attempts(generation_1, *before, *row[:5]), CONFIG) is None


def test_a_halt_is_forgotten_with_the_resumption(generation_1):
    found = with_attempts(generation_1, *lost(4, 6))
    resumed = replace(found, experiment=replace(found.experiment, resumed_after=200))
    assert decisions.next_decision(resumed, CONFIG) is None
    assert 4 in [one[0] for one in started(resumed, now=2006.0)]


def test_lost_attempts_of_different_candidates_do_not_add_up(generation_1):
    found = with_attempts(generation_1, *lost(4, 4), *lost(5, 4))
    assert decisions.next_decision(found, CONFIG) is None
