"""What follows from what is recorded: decisions, starts, and what the end of an attempt means."""

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nasd import endings, ladder, pareto, policy, scheduling
from nasd.config import Config
from nasd.endings import BACKOFF_SECONDS, INTERRUPTED
from nasd.folders import StateFolder
from nasd.genotype import Block, FeedForward, Genotype, unchanged
from nasd.lifecycle import AttemptState, Event, Phase, State
from nasd.policy import (
    Cutoff,
    Halt,
    OpenGeneration,
    Select,
    StartSelecting,
)
from nasd.protocol import Heartbeat, Outcome
from nasd.snapshot import Attempt, Member, Quarantine, Snapshot, StageResult
from nasd.store import BASELINE
from tests.conftest import drive, make_tick, prepared, small_config

CONFIG = small_config()
SLOTS = ("cpu:0", "cpu:1", "cpu:2", "cpu:3")


# -- snapshots -----------------------------------------------------------------------------------


def phase_of(number: int, phase: Phase) -> Any:
    return lambda snapshot: any(
        one.number == number and one.phase is phase for one in snapshot.generations
    )


def snapshot_when(folder: StateFolder, config: Config, until: Any) -> Snapshot:
    tick = make_tick(folder, config)
    drive(tick, until)
    snapshot = tick.store.read()
    tick.store.close()
    return snapshot


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    """The experiment has just begun: the baseline waits for prepare."""
    tick = make_tick(StateFolder(tmp_path_factory.mktemp("begun")), CONFIG)
    return tick.store.read()


@pytest.fixture(scope="module")
def generation_0(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    """Generation 0, candidates 1 to 3, has just been born, and nobody runs."""
    folder = StateFolder(tmp_path_factory.mktemp("gen0"))
    return idle(snapshot_when(folder, CONFIG, phase_of(0, Phase.CLIMBING)), "pretrain_0")


@pytest.fixture(scope="module")
def generation_1(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    """Generation 1, candidates 4 to 7, has just been born, and nobody runs. All four have the same
    work ahead."""
    folder = StateFolder(tmp_path_factory.mktemp("gen1"))
    found = idle(snapshot_when(folder, CONFIG, phase_of(1, Phase.CLIMBING)), "pretrain_0")
    return shaped(found, found.candidates[4].genotype, 4, 5, 6, 7)


def idle(snapshot: Snapshot, stage: str) -> Snapshot:
    """As if the newest generation stood at this stage and no attempt at it had been made yet."""
    assert snapshot.generation is not None
    born = [one.id for one in snapshot.born_in(snapshot.generation.number)]
    others = tuple(one for one in snapshot.attempts if not one.live and one.candidate not in born)
    found = replace(snapshot, attempts=others, leases={})
    if not snapshot.baseline.final:
        found = put(found, {BASELINE: ("evaluate", State.SCORED)})
    return put(found, dict.fromkeys(born, (stage, State.PENDING)))


def put(snapshot: Snapshot, where: Mapping[int, tuple[str, State]], reason: str = "") -> Snapshot:
    """The snapshot with these candidates at other places."""
    candidates = dict(snapshot.candidates)
    for number, (stage, state) in where.items():
        candidates[number] = replace(candidates[number], stage=stage, state=state, reason=reason)
    return replace(snapshot, candidates=candidates)


BIGGER = Genotype((Block(4, (FeedForward("gelu", (96,)),)),) * 5)


def shaped(snapshot: Snapshot, genotype: Genotype, *numbers: int) -> Snapshot:
    """The snapshot with these candidates of this architecture, with nothing new in it."""
    text = json.dumps(genotype.to_json())
    origin = json.dumps([block.to_json() for block in unchanged(genotype)])
    found = {
        number: replace(snapshot.candidates[number], genotype_json=text, lineage_json=origin)
        for number in numbers
    }
    return replace(snapshot, candidates=snapshot.candidates | found)


def with_results(
    snapshot: Snapshot, stage: str, metrics: Mapping[int, Mapping[str, float]]
) -> Snapshot:
    results = {
        (number, stage): StageResult(
            number, stage, dict(found), [(1, 9.9), (2, found["loss"])], 2, 1.0
        )
        for number, found in metrics.items()
    }
    return replace(snapshot, results=snapshot.results | results)


def attempt_of(candidate: int, stage: str, state: AttemptState, **more: Any) -> Attempt:
    given: dict[str, Any] = {"number": 1, "slots": ("cpu:0",), "process": None, "message": ""}
    given |= {"started_at": 2000.0, "verdict": "", "token": "", "id": 99}
    given["reached"] = 0
    given["ended_at"] = None if state is AttemptState.RUNNING else 2010.0
    return Attempt(candidate=candidate, stage=stage, state=state, **(given | more))


def with_attempts(snapshot: Snapshot, *attempts: Attempt) -> Snapshot:
    return replace(snapshot, attempts=(*snapshot.attempts, *attempts))


def lost(candidate: int, times: int, verdict: str = "", stage: str = "pretrain_0") -> list[Attempt]:
    state = AttemptState.FAILED if verdict else AttemptState.LOST
    return [
        attempt_of(candidate, stage, state, verdict=verdict, message="boom", id=100 + n)
        for n in range(times)
    ]


# -- the beginning -------------------------------------------------------------------------------


def baseline_at(snapshot: Snapshot, stage: str, state: State, has_head: bool | None) -> Snapshot:
    found = put(snapshot, {BASELINE: (stage, state)})
    said = None if has_head is None else prepared(has_head).model_dump()
    return replace(found, experiment=replace(found.experiment, prepared=said))


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
    found = policy.next_decision(baseline_at(begun, stage, state, has_head), CONFIG)
    assert found == (OpenGeneration(0, ()) if opens else None)


@pytest.mark.parametrize(
    ("has_head", "event", "stage"),
    [(True, Event.ADVANCE, "finetune"), (False, Event.ADVANCE, "pretrain_head")],
)
def test_after_prepare_the_baseline_trains_a_head_only_if_the_seed_has_none(
    begun, has_head, event, stage
):
    outcome = Outcome(verdict="succeeded", prepared=prepared(has_head))
    running = put(begun, {BASELINE: ("prepare", State.RUNNING)})
    attempt = attempt_of(BASELINE, "prepare", AttemptState.RUNNING)
    end = endings.ending(with_attempts(running, attempt), CONFIG, attempt, outcome)
    assert (end.state, end.event, end.next_stage) == (AttemptState.SUCCEEDED, event, stage)


def test_generation_0_is_mu_different_mutants_of_the_baseline(generation_0):
    born = generation_0.born_in(0)
    assert [one.id for one in born] == [1, 2, 3]
    assert {one.parent for one in born} == {BASELINE}
    assert len({one.hash for one in generation_0.candidates.values()}) == 4


def test_an_experiment_that_does_not_run_decides_and_starts_nothing(generation_0):
    for state in ("halted", "complete"):
        still = replace(generation_0, experiment=replace(generation_0.experiment, state=state))
        assert policy.next_decision(still, CONFIG) is None
        assert scheduling.starts(still, CONFIG, SLOTS, 0.0) == []


# -- where a candidate goes, and from which weights ----------------------------------------------


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


# -- the cutoff ----------------------------------------------------------------------------------

WAITING = ("pretrain_0", State.WAITING)
DIVERGED = ("pretrain_0", State.FAILED)


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
    decision = policy.next_decision(at_the_cutoff(generation_1, losses, others), keeping(keep))
    assert isinstance(decision, Cutoff)
    assert decision.kept == kept
    assert set(decision.cut) == set(losses) - set(kept)
    assert (decision.stage, decision.next_stage) == ("pretrain_0", "pretrain_1")


@given(
    st.lists(st.sampled_from([1.0, 1.5, 2.0, None]), min_size=4, max_size=4),
    st.floats(0.01, 1.0),
)
def test_no_candidate_is_cut_that_is_better_than_one_kept(generation_1, drawn, keep):
    losses = {n: loss for n, loss in enumerate(drawn, 4) if loss is not None}
    diverged = {n: DIVERGED for n in range(4, 8) if n not in losses}
    decision = policy.next_decision(at_the_cutoff(generation_1, losses, diverged), keeping(keep))
    if not losses:
        assert decision == StartSelecting(1)
        return
    assert isinstance(decision, Cutoff)
    assert len(decision.kept) == min(len(losses), math.ceil(keep * 4))
    assert {*decision.kept, *decision.cut} == set(losses)
    for one in decision.kept:
        assert all((losses[one], one) < (losses[other], other) for other in decision.cut)


@pytest.mark.parametrize("state", [State.PENDING, State.RUNNING])
def test_the_cutoff_waits_until_all_have_finished_the_stage(generation_1, state):
    losses = {4: 3.0, 5: 1.0, 6: 2.0}
    found = at_the_cutoff(generation_1, losses, {7: ("pretrain_0", state)})
    assert policy.next_decision(found, CONFIG) is None


def test_the_cutoff_says_what_it_saw_and_why(generation_1):
    found = at_the_cutoff(generation_1, {4: 3.0, 5: 1.0, 6: 2.0}, {7: DIVERGED})
    decision = policy.next_decision(found, CONFIG)
    assert isinstance(decision, Cutoff)
    assert decision.payload == {
        "rule": "the lowest 2 of 4 by the last evaluation loss",
        "keep": 0.5,
        "places": 2,
        "reached": 4,
        "losses": {"5": 1.0, "6": 2.0, "4": 3.0},
        "curves": {str(n): [(1, 9.9), (2, x)] for n, x in ((5, 1.0), (6, 2.0), (4, 3.0))},
        "kept": [5, 6],
        "cut": [4],
    }
    assert decision.cut[4] == (
        "pretrain_0 loss 3.0000 is not among the lowest 2 of 4 (the last one kept has 2.0000)"
    )


def test_a_ladder_with_two_cutoffs_has_them_one_after_the_other(generation_1):
    config = small_config(stages__pretrain_1__keep=0.5)
    second = ("pretrain_1", State.WAITING)
    found = put(generation_1, {4: ("pretrain_0", State.CUT), 5: DIVERGED, 6: second, 7: second})
    found = with_results(found, "pretrain_1", {6: {"loss": 2.0}, 7: {"loss": 1.0}})
    decision = policy.next_decision(found, config)
    assert isinstance(decision, Cutoff)
    assert (decision.stage, decision.kept, set(decision.cut)) == ("pretrain_1", (7,), {6})
    # and what still climbs below holds the upper one back
    under_way = put(found, {4: ("pretrain_0", State.RUNNING)})
    assert policy.next_decision(under_way, config) is None


# -- selection and the next generation -----------------------------------------------------------


def scored(snapshot: Snapshot, scores: Mapping[int, float]) -> Snapshot:
    """All others of generation 1 failed; these are scored, with this quality."""
    where = dict.fromkeys(range(4, 8), DIVERGED) | dict.fromkeys(scores, ("evaluate", State.SCORED))
    metrics = {n: {"loss": 1.0, "f1": x, "exact_match": x} for n, x in scores.items()}
    return with_results(put(snapshot, where), "evaluate", metrics)


def in_phase(snapshot: Snapshot, phase: Phase) -> Snapshot:
    *before, last = snapshot.generations
    return replace(snapshot, generations=(*before, replace(last, phase=phase)))


def ended(snapshot: Snapshot) -> Snapshot:
    """As if all that were born last had come to an end."""
    return put(snapshot, dict.fromkeys((4, 5, 6, 7), ("pretrain_0", State.CUT)))


def test_selection_comes_when_every_candidate_is_at_an_end(generation_1):
    there = {4: ("evaluate", State.SCORED), 5: ("pretrain_0", State.CUT), 6: DIVERGED}
    assert policy.next_decision(put(generation_1, there), CONFIG) is None
    assert policy.next_decision(put(generation_1, {**there, 7: DIVERGED}), CONFIG) == (
        StartSelecting(1)
    )


@given(st.dictionaries(st.integers(4, 7), st.integers(0, 100).map(float)))
def test_selection_takes_the_best_mu_of_parents_and_scored_offspring(generation_1, scores):
    found = in_phase(scored(generation_1, scores), Phase.SELECTING)
    decision = policy.next_decision(found, CONFIG)
    assert isinstance(decision, Select)
    parents = {m.candidate for m in found.members if m.generation == 1 and m.role == "parent"}
    pool = sorted(parents | set(scores))
    assert sorted(decision.members) == pool  # who was cut or failed has no part in it
    points = policy.points(found, pool)
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
    assert policy.next_decision(found, CONFIG) == OpenGeneration(2, (2, 4, 6))


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
    decision = policy.next_decision(found, CONFIG)
    assert isinstance(decision, policy.Breed)
    assert [one.parent for one in decision.births] == [BASELINE] * CONFIG.population.lambda_


def test_a_selection_among_nobody_has_no_survivors(generation_1):
    members = (Member(1, 4, "offspring", None, None, None),)
    found = replace(in_phase(generation_1, Phase.SELECTING), members=members)
    decision = policy.next_decision(put(found, {4: DIVERGED}), CONFIG)
    assert isinstance(decision, Select)
    assert (decision.members, decision.payload["survivors"]) == ({}, [])


def test_the_same_snapshot_gives_the_same_decision(generation_1):
    found = in_phase(generation_1, Phase.BREEDING)
    assert policy.next_decision(found, CONFIG) == policy.next_decision(found, CONFIG)


@pytest.mark.parametrize(
    ("state", "expected"),
    [(State.SCORED, policy.Complete()), (State.RUNNING, None), (State.PENDING, None)],
)
def test_the_search_is_complete_behind_the_last_generation_and_the_baselines_score(
    generation_1, state, expected
):
    found = put(in_phase(ended(generation_1), Phase.COMPLETE), {BASELINE: ("evaluate", state)})
    config = small_config(experiment__generations=1)
    assert policy.next_decision(found, config) == expected


@pytest.mark.parametrize("generations", [1, 2])
def test_nothing_follows_a_complete_generation_while_a_cut_candidate_is_trained_on(
    generation_1, generations
):
    found = in_phase(ended(generation_1), Phase.COMPLETE)
    config = small_config(experiment__generations=generations)
    assert policy.next_decision(found, config) is not None
    revived = put(found, {5: ("pretrain_1", State.PENDING)})
    assert policy.next_decision(revived, config) is None
    assert [one.candidate for one in scheduling.starts(revived, config, SLOTS, 0.0)] == [5]


def test_no_cutoff_holds_up_who_is_trained_on_behind_the_selection(generation_1):
    config = small_config(stages__pretrain_1__keep=0.5)
    climbing = put(generation_1, {5: ("pretrain_1", State.RUNNING)})
    one = climbing.candidates[5]
    assert ladder.after(climbing, config, one) == (Event.HOLD, None)
    assert [stage.name for stage in ladder.way(climbing, config, one)] == ["pretrain_1"]
    revived = in_phase(climbing, Phase.COMPLETE)
    assert ladder.after(revived, config, one) == (Event.ADVANCE, "finetune")
    assert len(ladder.way(revived, config, one)) == 3


# -- starts --------------------------------------------------------------------------------------


def started(snapshot: Snapshot, config: Config = CONFIG, free: Any = SLOTS, now: float = 5000.0):
    leases = {slot: 98 for slot in SLOTS if slot not in free}
    found = replace(snapshot, leases=leases)
    starts = scheduling.starts(found, config, SLOTS, now)
    return [(one.candidate, one.stage, one.slots) for one in starts]


def quarantined(snapshot: Snapshot, *slots: str, kind: str = "lost") -> Snapshot:
    given = {slot: Quarantine(slot, kind, "why", 0.0) for slot in slots}
    return replace(snapshot, quarantine=given)


def test_the_furthest_up_the_ladder_starts_first_then_the_older(generation_1):
    found = put(
        generation_1,
        {
            4: ("pretrain_0", State.PENDING),
            5: ("finetune", State.PENDING),
            6: ("evaluate", State.PENDING),
            7: ("pretrain_0", State.PENDING),
        },
    )
    assert started(found) == [
        (6, "evaluate", ("cpu:0",)),
        (5, "finetune", ("cpu:1", "cpu:2")),
    ]
    assert started(found, free=SLOTS[:2]) == [(6, "evaluate", ("cpu:0",))]


def test_of_one_stage_the_longest_starts_first_and_of_equals_the_older(generation_1):
    assert [one[0] for one in started(generation_1)] == [4, 5]
    assert [one[0] for one in started(generation_1, free=SLOTS[:3])] == [4]
    assert started(generation_1, free=SLOTS[:1]) == []
    assert started(generation_1, free=()) == []
    equal = put(generation_1, dict.fromkeys(range(4, 8), ("pretrain_1", State.PENDING)))
    assert [one[0] for one in started(shaped(equal, BIGGER, 6))] == [6, 4]


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


def test_before_the_data_is_counted_there_is_no_work_to_compare(begun):
    assert ladder.work_ahead(begun, CONFIG, begun.baseline) == 0.0
    assert started(begun) == [(BASELINE, "prepare", ("cpu:0",))]


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["pretrain_0", "pretrain_1", "finetune", "evaluate"]),
            st.sampled_from(list(State)),
        ),
        min_size=4,
        max_size=4,
    ),
    st.sets(st.sampled_from(SLOTS)),
)
def test_only_who_is_pending_starts_with_as_many_slots_as_its_stage_says(
    generation_1, places, free
):
    found = put(generation_1, dict(enumerate(places, 4)))
    used: list[str] = []
    for candidate, stage, slots in started(found, free=sorted(free)):
        assert found.candidates[candidate].state is State.PENDING
        assert stage == found.candidates[candidate].stage
        assert len(slots) == ladder.slots_needed(CONFIG, stage, len(SLOTS))
        used += slots
    assert len(used) == len(set(used))
    assert set(used) <= free


@pytest.mark.parametrize("times", [1, 2, 3, 4])
def test_who_lost_attempts_waits_longer_each_time(generation_1, times):
    found = with_attempts(generation_1, *lost(4, times))
    ready = 2010.0 + BACKOFF_SECONDS[times - 1]
    assert 4 not in [one[0] for one in started(found, now=ready - 0.1)]
    assert 4 in [one[0] for one in started(found, now=ready)]


def test_the_wait_has_a_longest_value(generation_1):
    found = with_attempts(generation_1, *lost(4, 5))
    assert 4 in [one[0] for one in started(found, now=2010.0 + BACKOFF_SECONDS[-1])]


@pytest.mark.parametrize(
    "after_it",
    [
        attempt_of(4, "pretrain_0", AttemptState.PREEMPTED),  # ran well, and was asked to stop
        attempt_of(4, "finetune", AttemptState.SUCCEEDED),
    ],
)
def test_who_was_asked_to_stop_or_lost_another_stage_does_not_wait(generation_1, after_it):
    stage = "pretrain_0" if after_it.state is AttemptState.PREEMPTED else "finetune"
    found = with_attempts(generation_1, *lost(4, 3, stage=stage), after_it)
    assert 4 in [one[0] for one in started(found, now=2010.0)]


def test_a_clock_that_was_set_back_makes_nobody_wait(generation_1):
    found = with_attempts(generation_1, *lost(4, 5))
    assert 4 in [one[0] for one in started(found, now=1500.0)]


def test_nothing_starts_while_the_search_is_on_hold(generation_1):
    held = replace(generation_1.experiment, hold="the disk is full")
    assert started(replace(generation_1, experiment=held)) == []


@pytest.mark.parametrize("kind", ["lost", "foreign", "suspect"])
def test_a_slot_in_quarantine_is_left_alone_and_the_search_goes_on_on_the_others(
    generation_1, kind
):
    found = quarantined(generation_1, SLOTS[0], SLOTS[2], kind=kind)
    assert started(found) == [(4, "pretrain_0", (SLOTS[1], SLOTS[3]))]


def test_a_stage_makes_do_with_fewer_slots_where_no_more_can_be_used(generation_1):
    found = quarantined(generation_1, *SLOTS[1:])
    assert started(found) == [(4, "pretrain_0", (SLOTS[0],))]


def test_a_stage_waits_for_its_slots_where_they_are_only_taken(generation_1):
    assert started(generation_1, free=SLOTS[:1]) == []


# -- widening ------------------------------------------------------------------------------------

WIDE = small_config(slots__widen=True)
EIGHT = tuple(f"cpu:{n}" for n in range(8))
CUT = ("pretrain_0", State.CUT)
AT_WORK = Heartbeat(doing="training", step=100, steps=1000, at=0.0, age=700.0)  # 105 minutes to go


def standing(
    snapshot: Snapshot, places: Mapping[int, tuple[str, State]], held: Mapping[int, int] = {}
) -> Snapshot:
    """These of candidates 4 to 7 at these places, the others cut; who runs has an attempt of the
    id 100 + candidate on so many slots, cpu:0 and so on, or on as many as its stage asks for."""
    found = put(snapshot, dict.fromkeys(range(4, 8), CUT) | dict(places))
    attempts, leases, free = [], {}, list(EIGHT)
    for number, (stage, state) in places.items():
        if state is State.RUNNING:
            count = held.get(number, ladder.slots_needed(WIDE, stage, len(EIGHT)))
            its, free = tuple(free[:count]), free[count:]
            attempts.append(
                attempt_of(number, stage, AttemptState.RUNNING, id=100 + number, slots=its)
            )
            leases |= dict.fromkeys(its, 100 + number)
    return replace(with_attempts(found, *attempts), leases=leases)


def widths(found: Snapshot, slots: tuple[str, ...] = SLOTS, config: Config = WIDE) -> list[Any]:
    starts = scheduling.starts(found, config, slots, 5000.0)
    return [(one.candidate, len(one.slots)) for one in starts]


def widened(
    found: Snapshot,
    slots: tuple[str, ...] = SLOTS,
    config: Config = WIDE,
    beats: Mapping[int, Heartbeat] | None = None,
) -> int | None:
    """The candidate whose attempt is to be stopped."""
    if beats is None:
        beats = {attempt.id: AT_WORK for attempt in found.live_attempts}
    attempt = scheduling.widening(found, config, slots, 5000.0, beats)
    return None if attempt is None else attempt.candidate


TRAINS, RUNS = ("pretrain_1", State.PENDING), ("pretrain_1", State.RUNNING)


def test_who_starts_with_nobody_left_to_wait_gets_what_would_idle(generation_1):
    alone = standing(generation_1, {5: TRAINS})
    assert widths(alone, config=CONFIG) == [(5, 2)]
    assert widths(alone) == [(5, 4)]
    assert widths(alone, SLOTS[:3]) == [(5, 3)]
    assert widths(standing(generation_1, {4: TRAINS, 5: TRAINS}), EIGHT) == [(4, 4), (5, 4)]
    beside = standing(generation_1, {4: RUNS, 5: TRAINS})
    assert widths(beside) == [(5, 2)]
    assert widths(beside, EIGHT) == [(5, 4)]


def test_nobody_gets_more_slots_while_another_one_waits(generation_1):
    three = standing(generation_1, {4: TRAINS, 5: TRAINS, 6: TRAINS})
    assert widths(three) == [(4, 2), (5, 2)]
    assert widths(three, SLOTS[:3]) == [(4, 2)]
    backs_off = with_attempts(
        standing(generation_1, {4: TRAINS, 5: TRAINS}), *lost(4, 1, stage="pretrain_1")
    )
    starts = scheduling.starts(backs_off, WIDE, SLOTS, 2011.0)
    assert [(one.candidate, len(one.slots)) for one in starts] == [(5, 2)]


def test_nobody_gets_more_ranks_than_a_batch_has_examples(generation_1):
    config = small_config(slots__widen=True, stages__pretrain_1__batch=3)
    assert widths(standing(generation_1, {5: TRAINS}), config=config) == [(5, 3)]


def test_an_evaluation_gets_no_more_slots_than_it_asks_for(generation_1):
    assert widths(standing(generation_1, {5: ("evaluate", State.PENDING)})) == [(5, 1)]


def test_who_was_lost_gets_no_more_slots_than_it_asks_for(generation_1):
    found = standing(generation_1, {5: TRAINS})
    again = with_attempts(found, *lost(5, 1, stage="pretrain_1"))
    assert widths(again) == [(5, 2)]
    runs = with_attempts(standing(generation_1, {5: RUNS}), *lost(5, 1, stage="pretrain_1"))
    assert widened(runs) is None


def test_the_baseline_gets_more_slots_only_while_it_is_alone_in_the_search(begun, generation_1):
    head = baseline_at(begun, "pretrain_head", State.PENDING, has_head=False)
    assert widths(head) == [(BASELINE, 4)]
    among = put(standing(generation_1, {}), {BASELINE: ("finetune", State.PENDING)})
    assert widths(among) == [(BASELINE, 2)]


def test_slots_that_somebody_under_way_will_ask_for_are_not_given_away(generation_1):
    config = small_config(slots__widen=True, stages__pretrain_1__slots=1, stages__finetune__slots=3)
    places = {4: RUNS, 5: TRAINS}
    found = standing(generation_1, places, {4: 1})
    assert widths(found, config=config) == [(5, 1)]  # 4 will want three of the four
    assert widths(found, EIGHT, config=config) == [(5, 4)]


def test_an_attempt_is_stopped_for_slots_that_idle(generation_1):
    alone = standing(generation_1, {5: RUNS})
    assert widened(alone) == 5
    assert widened(standing(generation_1, {5: RUNS, 6: RUNS}), EIGHT) is not None


SOON = AT_WORK.model_copy(update={"step": 930})  # 53 s
YOUNG = AT_WORK.model_copy(update={"age": 599.0})
RESUMED = AT_WORK.model_copy(update={"step": 50})  # where an earlier attempt ended


@pytest.mark.parametrize(
    ("places", "more"),
    [
        ({5: RUNS}, {"config": CONFIG}),
        ({5: RUNS}, {"beats": {}}),
        ({5: RUNS}, {"beats": {105: SOON}}),
        ({5: RUNS}, {"beats": {105: YOUNG}}),
        ({5: RUNS}, {"slots": SLOTS[:2]}),
        ({5: RUNS, 6: RUNS}, {}),
        ({5: RUNS, 6: ("evaluate", State.RUNNING)}, {}),  # which is soon over
        ({5: RUNS, 6: TRAINS}, {}),
        ({5: ("evaluate", State.RUNNING)}, {}),
        ({5: RUNS}, {"config": small_config(slots__widen=True, stages__pretrain_1__batch=2)}),
        ({5: RUNS}, {"config": small_config(slots__widen=True, experiment__budget_gpu_hours=1e-3)}),
    ],
)
def test_an_attempt_is_left_alone_where_more_slots_are_not_to_be_had_or_not_worth_it(
    generation_1, places, more
):
    assert widened(standing(generation_1, places), **more) is None


def test_nobody_is_stopped_for_more_slots_on_hold_or_for_slots_in_quarantine(generation_1):
    found = standing(generation_1, {5: RUNS})
    held = replace(found.experiment, hold="the disk is full")
    assert widened(replace(found, experiment=held)) is None
    assert widened(quarantined(found, *SLOTS[2:])) is None


def test_what_is_to_go_is_judged_by_this_attempts_own_pace(generation_1):
    found = standing(generation_1, {5: RUNS})
    before = attempt_of(5, "pretrain_1", AttemptState.PREEMPTED, reached=50, id=90)
    assert widened(found, beats={105: RESUMED}) == 5
    assert widened(with_attempts(found, before), beats={105: RESUMED}) is None  # no step yet
    slow = AT_WORK.model_copy(update={"step": 960})
    resumed = replace(before, reached=930)
    assert widened(found, beats={105: slow}) is None  # 40 steps of 0.7 s
    assert widened(with_attempts(found, resumed), beats={105: slow}) == 5  # of 23 s


def test_of_several_the_one_with_longest_to_go_is_stopped(generation_1):
    found = standing(generation_1, {5: RUNS, 6: RUNS})
    beats = {105: AT_WORK, 106: AT_WORK.model_copy(update={"steps": 2000})}
    assert widened(found, EIGHT, beats=beats) == 6
    assert widened(found, EIGHT, beats=beats | {105: beats[106]}) == 5  # of equals the older


def test_an_attempt_that_runs_on_fewer_slots_than_its_stage_asks_for_gets_them_back(generation_1):
    found = standing(generation_1, {5: RUNS, 6: RUNS}, {5: 1, 6: 2})
    assert widened(found) == 5
    assert widened(found, SLOTS[:3]) is None
    assert widened(standing(generation_1, {5: RUNS, 6: RUNS}, {5: 4, 6: 2}), EIGHT[:6]) is None
    # and is not stopped for so few that it would have to wait with them
    config = small_config(slots__widen=True, stages__pretrain_1__slots=4)
    beside = {5: RUNS, 6: ("evaluate", State.RUNNING)}
    assert widened(standing(generation_1, beside, {5: 1, 6: 1}), config=config) is None


STANDING = st.lists(
    st.tuples(
        st.sampled_from(["pretrain_0", "pretrain_1", "finetune", "evaluate"]),
        st.sampled_from([State.PENDING, State.RUNNING, State.CUT, State.WAITING]),
    ),
    min_size=4,
    max_size=4,
).filter(lambda places: sum(state is State.RUNNING for _, state in places) <= 3)
COUNTS = st.dictionaries(st.integers(4, 7), st.integers(1, 2))


@given(STANDING, COUNTS, st.integers(1, 8))
def test_more_slots_than_asked_for_come_only_from_those_that_would_idle(
    generation_1, places, held, count
):
    slots = EIGHT[:count]
    found = standing(generation_1, dict(enumerate(places, 4)), held)
    usual = scheduling.starts(found, CONFIG, slots, 5000.0)
    wide = scheduling.starts(found, WIDE, slots, 5000.0)
    assert [(one.candidate, one.stage) for one in usual] == [
        (one.candidate, one.stage) for one in wide
    ]
    used = [slot for one in wide for slot in one.slots]
    assert len(used) == len(set(used))
    assert set(used) <= set(slots) - set(found.leases)
    waits = [c for c in found.candidates.values() if c.state is State.PENDING]
    for before, after in zip(usual, wide, strict=True):
        assert len(after.slots) == len(before.slots) or len(waits) == len(usual)
        assert len(after.slots) >= len(before.slots)


@given(STANDING, COUNTS, st.integers(1, 8))
def test_who_is_stopped_for_more_slots_gets_them_at_once_and_is_not_stopped_again(
    generation_1, places, held, count
):
    slots = EIGHT[:count]
    found = standing(generation_1, dict(enumerate(places, 4)), held)
    beats = {one.id: AT_WORK for one in found.live_attempts}
    attempt = scheduling.widening(found, WIDE, slots, 5000.0, beats)
    if attempt is None:
        return
    assert not any(c.state is State.PENDING for c in found.candidates.values())
    ended = replace(attempt, state=AttemptState.PREEMPTED, ended_at=5000.0, verdict="stopped")
    others = tuple(ended if one.id == attempt.id else one for one in found.attempts)
    leases = {slot: one for slot, one in found.leases.items() if one != attempt.id}
    stopped = put(found, {attempt.candidate: (attempt.stage, State.PENDING)})
    stopped = replace(stopped, attempts=others, leases=leases)
    (start,) = scheduling.starts(stopped, WIDE, slots, 5000.0)  # without any back-off
    assert start.candidate == attempt.candidate
    assert len(start.slots) >= scheduling.WIDER * len(attempt.slots)
    again = attempt_of(
        start.candidate, start.stage, AttemptState.RUNNING, id=200, slots=start.slots
    )
    runs = put(stopped, {start.candidate: (start.stage, State.RUNNING)})
    runs = replace(with_attempts(runs, again), leases=leases | dict.fromkeys(start.slots, again.id))
    left = [slot for slot in slots if slot not in runs.leases]
    for other in runs.live_attempts:  # what they will ask for is there
        if other.id != again.id:
            ahead = ladder.way(runs, WIDE, runs.candidates[other.candidate])
            most = max(ladder.slots_needed(WIDE, stage.name, len(slots)) for stage in ahead)
            assert most - len(other.slots) <= len(left)
    beats |= {again.id: AT_WORK}
    next_one = scheduling.widening(runs, WIDE, slots, 5000.0, beats)
    assert next_one is None or next_one.id != again.id


# -- suspects ------------------------------------------------------------------------------------

GPUS = ("cuda:0", "cuda:1", "cuda:2")


def on(slot: str, candidate: int, state: AttemptState, **more: Any) -> Attempt:
    return attempt_of(candidate, "pretrain_0", state, slots=(slot,), **more)


def test_a_gpu_on_which_attempts_of_several_candidates_are_lost_in_a_row_is_suspect(generation_1):
    good = on("cuda:1", 5, AttemptState.SUCCEEDED)
    bad = [on("cuda:0", n, AttemptState.LOST) for n in (4, 4, 6)]
    found = with_attempts(generation_1, good, *bad)
    assert list(endings.suspects(found, GPUS)) == ["cuda:0"]
    assert endings.suspects(with_attempts(generation_1, good, *bad[:2]), GPUS) == {}


def test_losses_of_one_candidate_or_everywhere_or_with_the_daemon_put_no_gpu_under_suspicion(
    generation_1,
):
    good = on("cuda:1", 5, AttemptState.SUCCEEDED)
    one = [on("cuda:0", 4, AttemptState.LOST) for _ in range(5)]
    assert endings.suspects(with_attempts(generation_1, good, *one), GPUS) == {}
    everywhere = [on(slot, n, AttemptState.LOST) for n in (4, 5, 6) for slot in GPUS]
    assert endings.suspects(with_attempts(generation_1, *everywhere), GPUS) == {}
    went = [on("cuda:0", n, AttemptState.LOST, verdict=INTERRUPTED) for n in (4, 5, 6)]
    assert endings.suspects(with_attempts(generation_1, good, *went), GPUS) == {}


def test_a_cpu_share_is_never_suspect(generation_1):
    bad = [attempt_of(n, "pretrain_0", AttemptState.LOST, slots=("cpu:0",)) for n in (4, 5, 6)]
    good = on("cpu:1", 5, AttemptState.SUCCEEDED)
    assert endings.suspects(with_attempts(generation_1, good, *bad), SLOTS) == {}


# -- the budget ----------------------------------------------------------------------------------


def test_no_attempt_starts_once_the_budget_is_spent(generation_1):
    spent = generation_1.gpu_hours(5000.0)
    assert spent > 0
    assert started(generation_1, small_config(experiment__budget_gpu_hours=spent)) == []
    more = small_config(experiment__budget_gpu_hours=spent * 1.01)
    assert len(started(generation_1, more)) == 2


def test_running_attempts_count_for_the_budget_as_they_run(generation_1):
    spent = generation_1.gpu_hours(5000.0)
    live = attempt_of(7, "pretrain_0", AttemptState.RUNNING, slots=SLOTS[:2], started_at=5000.0)
    found = with_attempts(put(generation_1, {7: ("pretrain_0", State.RUNNING)}), live)
    config = small_config(experiment__budget_gpu_hours=spent + 2)
    assert started(found, config, now=5000.0 + 3599) != []
    assert started(found, config, now=5000.0 + 3601) == []


# -- ends ----------------------------------------------------------------------------------------

ENDS = [
    # verdict, (attempt, event, words of the message)
    (None, (AttemptState.LOST, Event.INTERRUPT, "gone without an outcome")),
    ("succeeded", (AttemptState.SUCCEEDED, Event.HOLD, "")),
    ("stopped", (AttemptState.PREEMPTED, Event.INTERRUPT, "why")),
    ("diverged", (AttemptState.FAILED, Event.FAIL, "diverged: why")),
    ("out_of_memory", (AttemptState.FAILED, Event.INTERRUPT, "half the micro-batch: why")),
    ("invalid", (AttemptState.FAILED, Event.FAIL, "invalid: why")),
    ("error", (AttemptState.FAILED, Event.INTERRUPT, "why")),  # once more
]


def ends(snapshot: Snapshot, candidate: int, outcome: Outcome | None, *before: Attempt) -> Any:
    """The end of a running attempt, as the tick asks for it: while the attempt is still live."""
    stage = snapshot.candidates[candidate].stage
    live = attempt_of(candidate, stage, AttemptState.RUNNING, id=200, number=9)
    running = put(snapshot, {candidate: (stage, State.RUNNING)})
    return endings.ending(with_attempts(running, *before, live), CONFIG, live, outcome)


@pytest.mark.parametrize(("verdict", "expected"), ENDS, ids=[str(verdict) for verdict, _ in ENDS])
def test_a_verdict_means_one_end_of_the_attempt_and_one_event(generation_1, verdict, expected):
    outcome = None if verdict is None else Outcome(verdict=verdict, message="why")
    end = ends(generation_1, 4, outcome)
    state, event, words = expected
    assert (end.state, end.event, end.next_stage) == (state, event, None)
    assert words in end.message


@pytest.mark.parametrize("verdict", ["diverged", "invalid"])
def test_a_fault_of_the_candidate_is_its_end_whatever_happened_before(generation_1, verdict):
    end = ends(generation_1, 4, Outcome(verdict=verdict), *lost(4, 3))
    assert (end.state, end.event) == (AttemptState.FAILED, Event.FAIL)


def test_who_runs_out_of_memory_has_one_more_chance_at_half_the_micro_batch(generation_1):
    once = lost(4, 1, "out_of_memory")
    four = generation_1.candidates[4]
    assert endings.halvings(generation_1, CONFIG, four, slots=2) == 0
    assert endings.halvings(with_attempts(generation_1, *once), CONFIG, four, slots=2) == 1
    assert endings.halvings(with_attempts(generation_1, *once), CONFIG, four, slots=1) == 2
    end = ends(generation_1, 4, Outcome(verdict="out_of_memory", message="16 GB"), *once)
    assert (end.state, end.event) == (AttemptState.FAILED, Event.FAIL)
    assert end.message == "out_of_memory: 16 GB"


def test_the_second_chance_after_an_out_of_memory_comes_at_once(generation_1):
    found = with_attempts(generation_1, *lost(4, 1, "out_of_memory"))
    assert 4 in [one[0] for one in started(found, now=2010.0)]


def test_an_error_that_comes_back_is_the_candidates_end(generation_1):
    error = Outcome(verdict="error", message="KeyError: 'x'")
    first = ends(generation_1, 4, error)
    assert (first.state, first.event) == (AttemptState.FAILED, Event.INTERRUPT)
    second = ends(generation_1, 4, error, *lost(4, 1, "error"))
    assert (second.state, second.event) == (AttemptState.FAILED, Event.FAIL)
    assert second.message == "error: KeyError: 'x'"


def test_an_error_after_lost_attempts_still_has_its_second_chance(generation_1):
    end = ends(generation_1, 4, Outcome(verdict="error"), *lost(4, 3))
    assert end.event is Event.INTERRUPT


def test_lost_attempts_are_never_charged_to_the_candidate(generation_1):
    assert ends(generation_1, 4, None, *lost(4, 40)).event is Event.INTERRUPT


# -- halts ---------------------------------------------------------------------------------------


def test_a_baseline_that_fails_halts_the_search(begun):
    found = put(begun, {BASELINE: ("prepare", State.FAILED)}, reason="diverged: NaN")
    assert policy.next_decision(found, CONFIG) == (
        Halt("the baseline failed at prepare: diverged: NaN")
    )


def test_an_error_of_the_baseline_that_comes_back_halts_with_the_workers_words(begun):
    error = Outcome(verdict="error", message="squad.json is gone")
    once = lost(BASELINE, 1, "error", stage="prepare")
    assert ends(begun, BASELINE, error, *once).event is Event.INTERRUPT
    assert policy.next_decision(with_attempts(begun, *once), CONFIG) is None
    twice = lost(BASELINE, 2, "error", stage="prepare")
    assert policy.next_decision(with_attempts(begun, *twice), CONFIG) == (
        Halt("candidate 0 at prepare: boom (see attempts/101/worker.log)")
    )


@pytest.mark.parametrize(("times", "halts"), [(5, False), (6, True)])
def test_attempts_lost_in_a_row_halt_the_search_beyond_the_retries(generation_1, times, halts):
    assert CONFIG.daemon.infrastructure_retries == 5
    decision = policy.next_decision(with_attempts(generation_1, *lost(4, times)), CONFIG)
    assert isinstance(decision, Halt) == halts
    if halts:
        assert "candidate 4 at pretrain_0 lost 6 attempts in a row" in decision.reason


def test_attempts_that_a_killed_daemon_took_along_never_halt_the_search(generation_1):
    went = [replace(one, verdict=INTERRUPTED) for one in lost(4, 40)]
    assert policy.next_decision(with_attempts(generation_1, *went), CONFIG) is None
    assert 4 in [one[0] for one in started(with_attempts(generation_1, *went), now=2010.0)]


def test_who_gets_on_between_losses_never_halts_the_search(generation_1):
    row = [replace(one, reached=10 * (n + 1)) for n, one in enumerate(lost(4, 40))]
    assert policy.next_decision(with_attempts(generation_1, *row), CONFIG) is None


def test_a_row_of_losses_counts_from_the_last_one_that_got_on(generation_1):
    before = lost(4, 5)
    row = [replace(one, reached=10) for one in lost(4, 6)]  # the first one got there, no other
    found = with_attempts(generation_1, *before, *row)
    assert isinstance(policy.next_decision(found, CONFIG), policy.Halt)
    assert policy.next_decision(with_attempts(generation_1, *before, *row[:5]), CONFIG) is None


def test_a_halt_is_forgotten_with_the_resumption(generation_1):
    found = with_attempts(generation_1, *lost(4, 6))
    resumed = replace(found, experiment=replace(found.experiment, resumed_after=200))
    assert policy.next_decision(resumed, CONFIG) is None
    assert 4 in [one[0] for one in started(resumed, now=2006.0)]


def test_lost_attempts_of_different_candidates_do_not_add_up(generation_1):
    found = with_attempts(generation_1, *lost(4, 4), *lost(5, 4))
    assert policy.next_decision(found, CONFIG) is None
