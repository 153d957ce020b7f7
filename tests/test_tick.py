"""Whole searches, turn by turn, with workers that only pretend: in order, out of order, killed."""

import json
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import astuple
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nasd.contract.config import Config
from nasd.contract.errors import NasdError
from nasd.contract.genotype import Backbone, Block, BlockLineage, FeedForward, Genotype
from nasd.contract.protocol import Outcome, Spec, read
from nasd.control import tick as tick_module
from nasd.control.tick import Tick
from nasd.record.folders import StateFolder
from nasd.record.lifecycle import AttemptState, Phase, State
from nasd.record.store import BASELINE
from tests.conftest import (
    ROOT,
    Clock,
    FakeLauncher,
    Script,
    advance,
    all_succeed,
    begin,
    drive,
    events_of,
    make_tick,
    open_quickly,
    small_config,
    story,
    succeeded,
    thesis_config,
    without_summaries,
)
from tests.faults import (
    PATIENT,
    Fuse,
    Killed,
    at_stage,
    attempts_of,
    begin_in,
    live_again_and_again,
    live_until_killed,
    small_search,
    some_diverge,
    story_in,
)

STORY = ROOT / "tests/data/thesis_story.json"
DISTILBERT = Genotype((Block(12, (FeedForward("gelu", (3072,)),)),) * 6)


@pytest.fixture(autouse=True)
def _quick() -> Iterator[None]:
    with without_summaries():
        yield


# -- a whole search ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def thesis(tmp_path_factory: pytest.TempPathFactory) -> Tick:
    """The thesis's search as shipped (mu 8, lambda 12, 3 generations, 4 slots), at its end."""
    with without_summaries():
        return run_thesis(StateFolder(tmp_path_factory.mktemp("thesis") / "state"))


def test_the_search_of_the_thesis_is_what_it_was_in_the_version_that_told_its_story(
    thesis: Tick,
) -> None:
    """tests/data/thesis_story.json was recorded before the modules moved into rooms, by this very
    search: the same population, lineages, decisions, scores and events come of the same seed."""
    told = json.loads(STORY.read_text())
    now = json.loads(json.dumps(story(thesis.store), default=str, skipkeys=True))
    assert (now["state"], now["generations"]) == (told["state"], told["generations"])
    assert now["events"] == told["events"]
    assert now["candidates"].keys() == told["candidates"].keys()
    for number, before in told["candidates"].items():
        one = now["candidates"][number]
        assert [*one[:3], *one[4:]] == [*before[:3], *before[4:]], number
        lineage = [BlockLineage.from_json(block) for block in json.loads(one[3])]
        assert lineage == [BlockLineage.from_json(block) for block in before[3]]
    assert len(now["decisions"]) == len(told["decisions"])
    for one, before in zip(now["decisions"], told["decisions"], strict=True):
        assert one[:3] == before[:3]
        payload = {key: one[3].get(key) for key in before[3]}  # it may say more by now
        assert payload == before[3]
    members = json.loads(json.dumps([astuple(one) for one in thesis.store.read().members]))
    assert members == told["members"]
    results = [
        [*key, one.metrics, one.curve, one.steps]
        for key, one in thesis.store.read().results.items()
    ]
    assert json.loads(json.dumps(results)) == told["results"]


def run_thesis(state: StateFolder) -> Tick:
    config = thesis_config()
    store = open_quickly(state.database)
    begin(store, config, Backbone(30522, 512, 768), DISTILBERT)
    tick = make_tick(state, config, some_diverge, store=store)
    drive(tick)
    return tick


def test_a_search_of_the_thesis_shape_runs_to_its_end(thesis: Tick):
    found = thesis.store.read()
    assert found.experiment.state == "complete"
    assert [(one.number, one.phase) for one in found.generations] == [
        (number, Phase.COMPLETE) for number in range(4)
    ]
    assert len(found.candidates) == 1 + 8 + 3 * 12
    assert all(one.final for one in found.candidates.values())
    assert found.leases == {}


def test_each_generation_keeps_half_of_those_that_reached_the_cutoff(thesis: Tick):
    found = thesis.store.read()
    cutoffs = [one for one in found.decisions if one.kind == "cutoff"]
    assert [one.generation for one in cutoffs] == [1, 2, 3]
    for one in cutoffs:
        assert (one.payload["reached"], one.payload["places"]) == (12, 6)
        born = found.born_in(one.generation)
        diverged = [c for c in born if c.state is State.FAILED]
        assert len(one.payload["kept"]) == min(6, 12 - len(diverged))
        assert sum(c.state is State.CUT for c in born) == 12 - len(diverged) - len(
            one.payload["kept"]
        )
    assert any(c.state is State.FAILED for c in found.candidates.values())


def test_mu_survive_each_generation_and_are_the_parents_of_the_next(thesis: Tick):
    found = thesis.store.read()
    for number in range(4):
        survivors = set(found.survivors(number))
        scored = {c.id for c in found.born_in(number) if c.state is State.SCORED}
        parents = {
            m.candidate for m in found.members if (m.generation, m.role) == (number, "parent")
        }
        assert survivors <= scored | parents
        assert len(survivors) == min(8, len(scored | parents))
        if number < 3:
            assert survivors == {
                m.candidate
                for m in found.members
                if (m.generation, m.role) == (number + 1, "parent")
            }


def test_every_candidate_climbs_its_ladder_one_stage_after_the_other(thesis: Tick):
    found = thesis.store.read()
    climbed = [
        ("born", "pretrain_0"),
        ("start", "pretrain_0"),
        ("advance", "pretrain_1"),
        ("start", "pretrain_1"),
        ("advance", "finetune"),
        ("start", "finetune"),
        ("advance", "evaluate"),
        ("start", "evaluate"),
        ("score", "evaluate"),
    ]
    later = [*climbed[:2], ("hold", "pretrain_0"), ("keep", "pretrain_1"), *climbed[3:]]
    for one in found.candidates.values():
        expected = {
            (0, State.SCORED): climbed,
            (0, State.FAILED): [*climbed[:2], ("fail", "pretrain_0")],
            (1, State.SCORED): later,
            (1, State.CUT): [*later[:3], ("cut", "pretrain_0")],
            (1, State.FAILED): [*later[:2], ("fail", "pretrain_0")],
        }
        if not one.is_baseline:
            assert one.generation is not None
            assert events_of(thesis.store, one.id) == expected[min(one.generation, 1), one.state]
    assert [event for event, _ in events_of(thesis.store, BASELINE)] == (
        ["born"] + ["start", "advance"] * 2 + ["start", "score"]
    )


def test_the_slots_are_never_leased_twice_and_never_more_than_there_are(thesis: Tick):
    found = thesis.store.read()
    times = sorted({one.started_at for one in found.attempts})
    for now in times:
        held = [
            slot
            for one in found.attempts
            if one.ended_at is not None and one.started_at <= now < one.ended_at
            for slot in one.slots
        ]
        assert len(held) == len(set(held))
        assert set(held) <= set(thesis.slots)


def test_stages_hold_as_many_slots_as_table_2_of_the_thesis_says(thesis: Tick):
    held = {(one.stage, len(one.slots)) for one in thesis.store.read().attempts}
    assert held == {
        ("prepare", 1),
        ("pretrain_0", 2),
        ("pretrain_1", 2),
        ("finetune", 2),
        ("evaluate", 1),
    }


def test_the_ledger_is_the_sum_over_attempts_of_slots_by_time(thesis: Tick):
    found = thesis.store.read()
    total = sum(len(a.slots) * ((a.ended_at or 0) - a.started_at) for a in found.attempts)
    assert found.gpu_hours(1e9) == pytest.approx(total / 3600)
    assert total > 0


def test_the_same_search_a_second_time_ends_the_same(thesis: Tick, folder):
    assert story(run_thesis(folder()).store) == story(thesis.store)


def test_every_stage_starts_from_the_weights_of_the_one_before_or_of_the_parent(thesis: Tick):
    """And they stand there, published by the right candidate, before the worker starts."""
    found = thesis.store.read()
    assert isinstance(thesis.launcher, FakeLauncher)
    before = {"pretrain_1": "pretrain_0", "finetune": "pretrain_1", "evaluate": "finetune"}
    assert len(thesis.launcher.specs) == len(found.attempts)
    for spec, said in zip(thesis.launcher.specs, thesis.launcher.weights, strict=True):
        one = found.candidates[spec.candidate]
        if spec.stage is None:
            assert spec.weights is None
            continue
        if one.is_baseline:
            origin = (BASELINE, "prepare" if spec.stage.name == "finetune" else "finetune")
        elif spec.stage.name == "pretrain_0":
            assert one.parent is not None
            origin = (one.parent, "prepare" if one.parent == BASELINE else "pretrain_1")
        else:
            origin = (one.id, before[spec.stage.name])
        assert spec.weights == str(thesis.state.result(*origin))
        assert spec.inherits == (spec.stage.name == "pretrain_0")
        assert said is not None
        assert said["candidate"] == origin[0]


def test_a_spec_says_what_the_worker_needs(thesis: Tick):
    found = thesis.store.read()
    assert isinstance(thesis.launcher, FakeLauncher)
    spec = next(one for one in thesis.launcher.specs if one.candidate == 1)
    attempt = next(one for one in found.attempts if one.candidate == 1)
    assert spec == read(Spec, thesis.state.attempt(attempt.id).spec)
    assert (spec.attempt, spec.generation, spec.seed) == (attempt.id, 0, 42)
    assert spec.genotype == found.candidates[1].genotype.to_json()
    assert spec.lineage == [block.to_json() for block in found.candidates[1].lineage]
    cache = thesis.state.cache
    assert (spec.mlm_cache, spec.qa_cache) == (str(cache / "mlm"), str(cache / "qa"))
    assert spec.resume == ()
    assert spec.tensorboard.endswith("tensorboard/gen00/c0001/mlm")


def test_each_candidate_has_its_genotype_beside_its_weights(thesis: Tick):
    for one in thesis.store.read().candidates.values():
        text = (thesis.state.candidate(one.id) / "genotype.json").read_text()
        assert Genotype.from_json(json.loads(text)) == one.genotype


def test_long_turns_end_and_start_only_some_leave_nobody_out_and_change_no_story(folder: Any):
    config = small_config(
        slots__devices=[f"cpu:{number}" for number in range(12)], population__mu=12
    )
    calm, slow = (make_tick(folder(), config) for _ in range(2))
    drive(calm)
    looks = 0.0

    def stopwatch() -> float:  # each look at it is far behind the one before
        nonlocal looks
        looks += 0.6 * tick_module.LONG_SECONDS
        return looks

    slow.stopwatch = stopwatch
    most, waiting = 0, 0
    for _ in range(5000):
        before = {one.id for one in slow.store.read().live_attempts}
        slow()
        found = slow.store.read()
        live = {one.id for one in found.live_attempts}
        most = max(most, len(before - live), len(live - before))
        waiting = waiting + 1 if slow.goes_on else 0
        assert waiting < 100, "it goes on for ever"
        if not found.experiment.runs:
            break
        if not slow.goes_on:
            advance(slow)
    assert 1 <= most <= 3, "of twelve at once"
    assert story(slow.store) == story(calm.store)


# -- order, loss, verdicts -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    with without_summaries():
        tick = small_search(StateFolder(tmp_path_factory.mktemp("calm") / "state"), some_diverge)
    told = story(tick.store)
    assert told["state"] == "complete"
    assert State.FAILED in [one[5] for one in told["candidates"].values()]
    return told


@settings(max_examples=10)
@given(st.data())
def test_delays_and_lost_attempts_change_no_decision(folder, undisturbed, data):
    def script(spec: Spec, before: int) -> tuple[float, Outcome | None]:
        seconds = data.draw(st.sampled_from([1.0, 30.0, 300.0, 4000.0]))
        if before < 3 and data.draw(st.integers(0, 4)) == 0:
            return seconds, None
        return seconds, some_diverge(spec, before)[1]

    tick = small_search(folder(), script)
    assert story(tick.store) == undisturbed
    tick.store.close()


def test_delays_and_lost_attempts_change_nothing_in_a_search_of_the_thesis_shape(thesis, folder):
    """Every third attempt is lost, and each takes its own time."""
    state, config = folder(), thesis_config(daemon={"infrastructure_retries": 1000})
    store = open_quickly(state.database)
    begin(store, config, Backbone(30522, 512, 768), DISTILBERT)

    def script(spec: Spec, before: int) -> tuple[float, Outcome | None]:
        seconds = 10.0 + spec.attempt * 7919 % 300
        return seconds, None if spec.attempt % 3 == 0 else some_diverge(spec, before)[1]

    drive(make_tick(state, config, script, store=store))
    assert story(store) == story(thesis.store)


ERROR = Outcome(verdict="error", message="RuntimeError: boom")
MEMORY = Outcome(verdict="out_of_memory", message="x")


@pytest.mark.parametrize(
    ("outcomes", "attempts", "state", "reason"),
    [
        ([Outcome(verdict="diverged", message="NaN")], "failed", "failed", "diverged: NaN"),
        ([MEMORY], "failed succeeded", "scored", ""),
        ([MEMORY, None, MEMORY], "failed lost failed succeeded", "scored", ""),
        ([None, *[MEMORY] * 6], "lost" + " failed" * 6, "failed", "out_of_memory: x"),
        ([ERROR], "failed succeeded", "scored", ""),
        ([ERROR, ERROR], "failed failed", "failed", "error: RuntimeError: boom"),
        ([None, None], "lost lost succeeded", "scored", ""),
        ([None, ERROR], "lost failed succeeded", "scored", ""),
        ([ERROR, None, ERROR], "failed lost failed", "failed", "error: RuntimeError: boom"),
        ([Outcome(verdict="stopped")] * 9, "preempted " * 9 + "succeeded", "scored", ""),
    ],
)
def test_a_candidate_comes_to_the_end_that_its_attempts_deserve(
    folder, outcomes, attempts, state, reason
):
    tick = small_search(folder(), at_stage("finetune", outcomes), small_config())
    found = tick.store.read()
    assert found.experiment.state == "complete"
    assert attempts_of(found, 1, "finetune") == attempts.split()
    assert (found.candidates[1].state, found.candidates[1].reason) == (state, reason)


@pytest.mark.parametrize(
    ("candidate", "stage", "outcomes", "reason"),
    [
        (0, "prepare", [ERROR] * 2, "candidate 0 at prepare: RuntimeError: boom (see attempts/2/"),
        (0, "finetune", [Outcome(verdict="diverged", message="NaN")], "the baseline failed at"),
        (1, "pretrain_0", [None] * 6, "lost 6 attempts in a row"),
    ],
)
def test_what_only_a_person_can_mend_halts_the_search(folder, candidate, stage, outcomes, reason):
    tick = small_search(folder(), at_stage(stage, outcomes, candidate), small_config())
    found = tick.store.read()
    assert found.experiment.state == "halted"
    assert reason in found.experiment.reason
    tick()
    assert tick.store.read().attempts == found.attempts  # nothing starts any more


def test_a_resumed_search_ends_as_if_it_had_never_halted(folder, undisturbed):
    def script(spec: Spec, before: int) -> tuple[float, Outcome | None]:
        if spec.candidate == 1 and spec.stage and spec.stage.name == "pretrain_0" and before < 6:
            return 30.0, None
        return some_diverge(spec, before)

    tick = small_search(folder(), script, small_config())
    assert tick.store.read().experiment.state == "halted"
    tick.store.resume(tick.clock())
    drive(tick)
    assert story(tick.store) == undisturbed


def test_a_search_space_that_is_exhausted_halts_with_the_key_to_widen(folder):
    config = small_config(
        search_space__blocks=[3, 3],
        search_space__heads=[4],
        search_space__ffns=1,
        search_space__layers=[2],
        search_space__sizes=[32, 64],
        search_space__activations=["gelu"],
        experiment__generations=5,
    )
    found = small_search(folder(), all_succeed, config).store.read()
    assert found.experiment.state == "halted"
    assert "widen search_space" in found.experiment.reason


def test_a_generation_in_which_nobody_is_scored_leaves_the_search_alive(folder):
    def script(spec: Spec, before: int) -> tuple[float, Outcome | None]:
        if spec.generation == 0:
            return 30.0, Outcome(verdict="diverged", message="NaN")
        return all_succeed(spec, before)

    found = small_search(folder(), script).store.read()
    assert found.experiment.state == "complete"
    assert found.survivors(0) == []
    assert {one.parent for one in found.born_in(1)} == {BASELINE}
    assert len(found.survivors(1)) == 2


def test_a_search_without_generations_ends_behind_its_initial_population(folder):
    config = small_config(experiment__generations=0)
    found = small_search(folder(), all_succeed, config).store.read()
    assert (found.experiment.state, len(found.candidates)) == ("complete", 4)


def test_a_seed_without_a_head_gets_one_before_anybody_is_born(folder):
    def script(spec: Spec, before: int) -> tuple[float, Outcome | None]:
        return 30.0, succeeded(spec, has_mlm_head=False)

    tick = small_search(folder(), script)
    assert attempts_of(tick.store.read(), BASELINE, "pretrain_head") == ["succeeded"]
    assert isinstance(tick.launcher, FakeLauncher)
    child = next(one for one in tick.launcher.specs if one.candidate == 1)
    assert child.weights == str(tick.state.result(BASELINE, "pretrain_head"))


def test_a_damaged_outcome_counts_as_none(folder):
    tick = make_tick(folder(), PATIENT)
    tick()
    (attempt,) = tick.store.read().live_attempts
    tick.state.attempt(attempt.id).outcome.write_text('{"verdict": "succ')
    tick.launcher.clear(attempt.token)
    tick()
    assert attempts_of(tick.store.read(), BASELINE, "prepare") == [AttemptState.LOST]


def test_a_retry_is_told_where_the_checkpoints_of_the_attempts_before_it_are(folder):
    tick = small_search(folder(), at_stage("pretrain_1", [None, None]))
    assert isinstance(tick.launcher, FakeLauncher)
    specs = [
        one
        for one in tick.launcher.specs
        if one.candidate == 1 and one.stage and one.stage.name == "pretrain_1"
    ]
    folders = [str(tick.state.attempt(one.attempt).checkpoints) for one in specs]
    assert [one.resume for one in specs] == [(), (folders[0],), (folders[1], folders[0])]


@pytest.mark.parametrize("setback", [None, Outcome(verdict="error", message="once")])
def test_checkpoints_stay_while_a_stage_may_be_retried_and_go_when_it_is_done(folder, setback):
    def leave_checkpoint(spec: Spec, before: int) -> tuple[float, Outcome | None]:
        checkpoint = tick.state.attempt(spec.attempt).checkpoints / "step-5"
        checkpoint.mkdir(parents=True)
        return at_stage("prepare", [setback], BASELINE)(spec, before)

    tick = make_tick(folder(), PATIENT, leave_checkpoint)
    drive(tick, lambda found: len(found.attempts) == 2)
    assert (tick.state.attempt(1).checkpoints / "step-5").exists()
    drive(tick, lambda found: found.experiment.prepared is not None)
    assert not tick.state.attempt(1).checkpoints.exists()
    assert not tick.state.attempt(2).checkpoints.exists()


def test_the_slots_of_a_lost_attempt_were_held_until_its_last_heartbeat(folder):
    """The machine was off for a day: that day is not in the ledger."""
    tick = make_tick(folder(), PATIENT)
    tick()  # the heartbeat is of the start
    advance(tick, 86400)
    assert isinstance(tick.clock, Clock)
    another = make_tick(tick.state, PATIENT, clock=tick.clock, store=tick.store)
    another()
    first = tick.store.read().attempts[0]
    assert (first.state, first.ended_at) == (AttemptState.LOST, first.started_at)


def test_a_spent_budget_stops_what_runs_at_a_checkpoint_and_halts_the_search(folder):
    state = folder()
    config = small_config(experiment__budget_gpu_hours=0.05)
    tick = make_tick(state, config)
    for _ in range(100):
        tick()
        advance(tick)
    found = tick.store.read()
    assert found.live_attempts == ()
    assert 0.05 <= found.gpu_hours(tick.clock()) < 0.05 + 4 * 40 / 3600
    assert found.experiment.state == "halted"
    assert "experiment.budget_gpu_hours" in found.experiment.reason
    assert all(one.state is not State.FAILED for one in found.candidates.values())


# -- stopping ------------------------------------------------------------------------------------


def test_stop_asks_every_attempt_and_leaves_none_alive(folder, undisturbed):
    state = folder()
    tick = make_tick(state, PATIENT, some_diverge)
    drive(tick, lambda found: len(found.live_attempts) == 2)
    tick.stop()
    found = tick.store.read()
    assert found.live_attempts == ()
    assert [one.state for one in found.attempts][-2:] == [AttemptState.PREEMPTED] * 2
    assert found.leases == {}
    drive(tick)
    assert story(tick.store) == undisturbed


def test_stop_ends_what_does_not_answer_in_its_time(folder):
    config = small_config(daemon__stop_grace_seconds=0.01)
    tick = make_tick(folder(), config)
    tick()
    assert isinstance(tick.launcher, FakeLauncher)
    tick.launcher.stop = lambda token: None  # type: ignore[method-assign]
    tick.stop()
    assert tick.launcher.jobs == {}
    assert tick.store.read().attempts[0].state is AttemptState.PREEMPTED  # it asked for that


def test_an_attempt_that_cannot_be_cleared_keeps_its_slots_and_stops_no_other(folder):
    tick = make_tick(folder(), PATIENT)
    drive(tick, lambda found: len(found.live_attempts) == 2)
    hung = tick.store.read().live_attempts[0]
    clear = tick.launcher.clear

    def stuck(token: str) -> int:
        if token == hung.token:
            raise NasdError("process 7 does not die")
        return clear(token)

    tick.launcher.clear = stuck  # type: ignore[method-assign]
    for _ in range(6):
        advance(tick)
        tick()
    found = tick.store.read()
    assert hung.id in [one.id for one in found.live_attempts]
    assert all(found.leases[slot] == hung.id for slot in hung.slots)
    assert len(found.attempts) > 2


# -- kills ---------------------------------------------------------------------------------------


def points_passed(state: StateFolder, config: Config, script: Script) -> int:
    fuse = Fuse()
    live_until_killed(state, config, script, Clock(), fuse)
    return fuse.passed


@settings(max_examples=15)
@given(st.lists(st.integers(1, 400), min_size=1, max_size=25))
def test_a_daemon_killed_anywhere_any_number_of_times_ends_the_same(folder, undisturbed, lives):
    state = folder()
    begin_in(state, PATIENT)
    live_again_and_again(state, PATIENT, some_diverge, lives)
    assert story_in(state) == undisturbed
    shutil.rmtree(state.path)


TINY = small_config(
    population__mu=1,
    population__lambda=1,
    experiment__generations=1,
    daemon__infrastructure_retries=10_000,
)


def test_a_tiny_search_killed_once_at_any_point_ends_the_same(folder):
    calm = folder()
    begin_in(calm, TINY)
    points = points_passed(calm, TINY, all_succeed)
    expected = story_in(calm)
    assert expected["state"] == "complete"
    assert points > 100
    state = folder()
    for point in range(1, points + 1, 5):
        shutil.rmtree(state.path, ignore_errors=True)
        begin_in(state, TINY)
        clock = Clock()
        with pytest.raises(Killed):
            live_until_killed(state, TINY, all_succeed, clock, Fuse(point))
        live_until_killed(state, TINY, all_succeed, clock, Fuse())
        assert story_in(state) == expected, f"killed at point {point}"


def test_a_turn_that_fails_is_made_up_for_by_the_next(folder, undisturbed):
    """The disk is full for a while: an error, not a kill; the same daemon goes on."""
    state = folder()
    tick = make_tick(state, PATIENT, some_diverge)
    full = OSError(28, "No space left on device")
    fuse = Fuse(5, 3, 40, 1, 2, 90, 7, 200, 33, error=full)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("write", "write_atomically"):
            patch.setattr(tick_module, name, fuse.around(getattr(tick_module, name)))
        patch.setattr(Path, "rename", fuse.around(Path.rename))
        for _ in range(2000):
            with suppress(OSError):
                tick()
            if tick.store.read().experiment.state != "running":
                break
            advance(tick)
    assert story(tick.store) == undisturbed
