"""Which weights stay: everything that somebody will start from, and little else."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nasd.contract.config import Config, parse
from nasd.contract.genotype import parameters
from nasd.control import retention
from nasd.control.tick import Tick
from nasd.policy import decisions
from nasd.record.folders import StateFolder
from nasd.record.lifecycle import AttemptState, Phase, State
from nasd.record.state import Member, Scored, Snapshot
from nasd.record.store import BASELINE
from tests.conftest import (
    BACKBONE,
    Clock,
    FakeLauncher,
    advance,
    all_succeed,
    begin,
    drive,
    make_tick,
    of_tuned_parents,
    open_quickly,
    small_config,
    small_dict,
    story,
    without_summaries,
)
from tests.faults import PATIENT, Fuse, Killed, RoughLauncher, Wall, some_diverge, weights_on_disk
from tests.snapshots import attempt_of, idle, phase_of, put, snapshot_when, with_attempts

pytestmark = pytest.mark.usefixtures("no_summaries")

CONFIG = small_config()
BASELINES = {(BASELINE, "prepare"), (BASELINE, "finetune"), (BASELINE, "evaluate")}

# -- what is needed ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def generation_1(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    """Generation 1, candidates 4 to 7, children of some of 1 to 3, has just been born."""
    with without_summaries():
        state = StateFolder(tmp_path_factory.mktemp("gen1"))
        return idle(snapshot_when(state, CONFIG, phase_of(1, Phase.CLIMBING)), "pretrain_0")


def parts(*stages: str, of: int = 4) -> set[tuple[int, str]]:
    return {(of, stage) for stage in stages}


PARENTS = parts("pretrain_1", "finetune", of=1) | parts("pretrain_1", "finetune", of=2)
PARENTS |= parts("pretrain_1", "finetune", of=3)


@pytest.mark.parametrize(
    ("stage", "state", "needed"),
    [
        ("pretrain_0", State.PENDING, []),
        ("pretrain_0", State.RUNNING, []),
        ("pretrain_0", State.WAITING, ["pretrain_0"]),
        ("pretrain_0", State.CUT, ["pretrain_0"]),
        ("pretrain_0", State.FAILED, []),
        ("pretrain_1", State.PENDING, ["pretrain_0"]),
        ("pretrain_1", State.RUNNING, ["pretrain_0"]),
        ("pretrain_1", State.FAILED, ["pretrain_0"]),
        ("finetune", State.PENDING, ["pretrain_1"]),
        ("finetune", State.RUNNING, ["pretrain_1"]),
        ("evaluate", State.PENDING, ["pretrain_1", "finetune"]),
        ("evaluate", State.RUNNING, ["pretrain_1", "finetune"]),
        ("evaluate", State.FAILED, ["pretrain_1", "finetune"]),
        ("evaluate", State.SCORED, ["pretrain_1", "finetune"]),
    ],
)
def test_each_state_needs_what_it_starts_from_and_what_its_children_will(
    generation_1: Snapshot, stage: str, state: State, needed: list[str]
):
    found = put(generation_1, {4: (stage, state)})
    wanted = retention.needed(found, CONFIG, [])
    assert wanted == BASELINES | PARENTS | parts(*needed)


@pytest.mark.parametrize("stage", ["prepare", "pretrain_head", "finetune", "evaluate"])
@pytest.mark.parametrize("state", [State.PENDING, State.RUNNING, State.SCORED])
def test_the_baseline_keeps_everything_wherever_it_stands(
    generation_1: Snapshot, stage: str, state: State
):
    wanted = retention.needed(put(generation_1, {BASELINE: (stage, state)}), CONFIG, [])
    assert wanted >= BASELINES


def test_a_head_that_the_baseline_was_given_is_kept(generation_1: Snapshot):
    prepared = dict(generation_1.experiment.prepared or {}, has_mlm_head=False)
    found = replace(generation_1, experiment=replace(generation_1.experiment, prepared=prepared))
    assert (BASELINE, "pretrain_head") in retention.needed(found, CONFIG, [])


def selected(found: Snapshot, generation: int, survivors: set[int]) -> Snapshot:
    """All members of the generation are scored, and these survive."""
    here = [one.candidate for one in found.members if one.generation == generation]
    others = tuple(one for one in found.members if one.generation != generation)
    scored = put(found, dict.fromkeys(here, ("evaluate", State.SCORED)))
    members = tuple(Member(generation, one, "offspring", one in survivors, 0, 0.0) for one in here)
    *before, last = found.generations
    done = (*before, replace(last, phase=Phase.COMPLETE))
    return replace(scored, members=others + members, generations=done)


def test_once_a_generation_is_selected_its_survivors_alone_may_have_children(
    generation_1: Snapshot,
):
    wanted = retention.needed(selected(generation_1, 1, {2, 5}), CONFIG, [])
    assert wanted == BASELINES | parts("pretrain_1", "finetune", of=2) | parts(
        "pretrain_1", "finetune", of=5
    )


def test_the_front_of_all_ever_scored_keeps_its_models(generation_1: Snapshot):
    found = selected(generation_1, 1, {5})
    known = [(0, 50.0, 100), (70, 60.0, 100), (71, 60.0, 101), (72, 40.0, 50), (73, 60.0, 100)]
    scored = [Scored(one, size, {"f1": x, "exact_match": x}, {}) for one, x, size in known]
    wanted = retention.needed(found, CONFIG, scored)
    front = {(72, "finetune"), (70, "finetune"), (73, "finetune")}  # 70 and 73 are equals
    assert wanted == BASELINES | parts("pretrain_1", "finetune", of=5) | front


def test_whom_an_unselected_one_beats_keeps_its_model_as_further_seeds_may_tell_otherwise(
    generation_1: Snapshot,
):
    lucky = put(generation_1, {4: ("evaluate", State.SCORED)})
    known = [(70, 60.0, 100), (4, 61.0, 100)]
    scored = [Scored(one, size, {"f1": x, "exact_match": x}, {}) for one, x, size in known]
    assert (70, "finetune") in retention.needed(lucky, CONFIG, scored)
    assert (70, "finetune") not in retention.needed(selected(lucky, 1, {4}), CONFIG, scored)


def test_who_is_best_within_the_limits_keeps_its_model_also_where_one_beyond_them_is_better(
    generation_1: Snapshot,
):
    limits = {**generation_1.experiment.config["experiment"], "limits": ["flop <= 5"]}
    config = {**generation_1.experiment.config, "experiment": limits}
    limited = replace(generation_1, experiment=replace(generation_1.experiment, config=config))
    light = Scored(70, 100, {"f1": 60.0, "exact_match": 60.0}, {"flop": 4.0})
    heavy = Scored(71, 100, {"f1": 61.0, "exact_match": 61.0}, {"flop": 6.0})
    both = {(70, "finetune"), (71, "finetune")}
    assert both <= retention.needed(limited, CONFIG, [light, heavy])
    assert retention.needed(generation_1, CONFIG, [light, heavy]) & both == {(71, "finetune")}


def test_a_candidate_that_was_cut_is_kept_while_its_generation_is_the_newest(
    tmp_path_factory: pytest.TempPathFactory,
):
    state = StateFolder(tmp_path_factory.mktemp("gen2"))
    found = snapshot_when(state, CONFIG, phase_of(2, Phase.CLIMBING))
    cut = [one.id for one in found.candidates.values() if one.state is State.CUT]
    assert cut
    wanted = retention.needed(found, CONFIG, [])
    assert not {number for number, _ in wanted} & set(cut)


def test_the_whole_search_and_what_is_in_play_need_the_same(tmp_path: Path):
    tick = make_tick(StateFolder(tmp_path), CONFIG, some_diverge)
    scored = tick.store.scored

    def same(found: Snapshot) -> bool:
        in_play = retention.needed(tick.store.in_play(), CONFIG, scored())
        assert retention.needed(found, CONFIG, scored()) == in_play
        return False

    drive(tick, same)


# -- what is collected ---------------------------------------------------------------------------


def make_weights(state: StateFolder, *weights: tuple[int, str]) -> None:
    for candidate, stage in weights:
        folder = state.result(candidate, stage)
        folder.mkdir(parents=True)
        for name in ("config.json", "model.safetensors"):
            (folder / name).write_text(f"{name} of {candidate} at {stage}")
        (state.candidate(candidate) / "genotype.json").write_text("{}")


def is_whole(folder: Path) -> bool:
    return {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors"}


TRAINED = ("pretrain_0", "pretrain_1", "finetune")
STANDING = [(candidate, stage) for candidate in (1, 2, 3) for stage in (*TRAINED, "evaluate")]


def test_only_weights_that_nobody_wants_are_removed(state: StateFolder):
    make_weights(state, *STANDING, (0, "prepare"), (4, "prepare"))
    gone = retention.collect(state, CONFIG, {(1, "pretrain_1"), (3, "finetune"), (0, "prepare")})
    assert gone == [
        *("1/finetune", "1/pretrain_0", "2/finetune", "2/pretrain_0", "2/pretrain_1"),
        *("3/pretrain_0", "3/pretrain_1", "4/prepare"),
    ]
    predictions = {(candidate, "evaluate") for candidate in (1, 2, 3)}
    assert weights_on_disk(state) == predictions | {
        (1, "pretrain_1"),
        (3, "finetune"),
        (0, "prepare"),
    }
    assert all((state.candidate(number) / "genotype.json").exists() for number in (1, 2, 3))
    assert retention.collect(state, CONFIG, weights_on_disk(state)) == []


def test_a_state_folder_without_candidates_has_nothing_to_collect(state: StateFolder):
    assert retention.collect(state, CONFIG, set()) == []


@contextmanager
def killed_at(point: int) -> Iterator[Fuse]:
    """At a rename or a removal: before it, behind it, or with one of its files removed."""
    fuse, remove = Fuse(point), shutil.rmtree

    def rmtree(path: Path) -> None:
        fuse()
        sorted(path.iterdir())[0].unlink()
        fuse()
        remove(path)
        fuse()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shutil, "rmtree", rmtree)
        patch.setattr(Path, "rename", fuse.around(Path.rename))
        yield fuse


def test_a_collection_that_is_killed_leaves_no_half_weights_and_the_next_one_goes_on(
    state: StateFolder,
):
    wanted = {(1, "pretrain_1"), (3, "finetune")}
    point = done = 0
    while not done:
        point += 1
        shutil.rmtree(state.path, ignore_errors=True)
        make_weights(state, *STANDING)
        with killed_at(point) as fuse:
            try:
                retention.collect(state, CONFIG, wanted)
                done = fuse.passed
            except Killed:
                pass
        for candidate, stage in weights_on_disk(state):
            assert is_whole(state.result(candidate, stage)), f"killed at {point}"
        retention.collect(state, CONFIG, wanted)
        left = {one for one in weights_on_disk(state) if one[1] != "evaluate"}
        assert left == wanted
        assert not list(state.path.rglob("*.gone"))
    assert point == done + 1 > 7 * 5


def test_a_collection_that_was_killed_is_no_hindrance_to_weights_made_again(state: StateFolder):
    """As after a search was taken back to an older backup."""
    make_weights(state, (1, "pretrain_0"))
    state.result(1, "pretrain_0").rename(state.candidate(1) / ".pretrain_0.gone")
    make_weights(state, (2, "pretrain_0"))
    state.result(2, "pretrain_0").rename(state.result(1, "pretrain_0"))
    assert retention.collect(state, CONFIG, set()) == ["1/pretrain_0"]
    assert weights_on_disk(state) == set()
    assert not list(state.path.rglob("*.gone"))


# -- what attempts leave -------------------------------------------------------------------------


def leave(state: StateFolder, attempt: int, *steps: int, half: int = 0) -> None:
    folder = state.attempt(attempt)
    folder.result.mkdir(parents=True)
    for step in steps:
        (folder.checkpoints / f"step-{step:09d}").mkdir(parents=True)
    if half:
        (folder.checkpoints / f".step-{half:09d}.tmp").mkdir(parents=True)


def left(state: StateFolder) -> list[str]:
    return sorted(
        f"{path.parent.parent.name}/{path.name}"
        for path in state.path.glob("attempts/*/checkpoints/*")
    )


def three_attempts(found: Snapshot, stage: str, state: State, last: AttemptState) -> Snapshot:
    """Of candidate 4 at pretrain_0; ids 101 to 103."""
    states = (AttemptState.LOST, AttemptState.FAILED, last)
    attempts = [
        attempt_of(4, "pretrain_0", one, id=101 + n, number=1 + n) for n, one in enumerate(states)
    ]
    return with_attempts(put(found, {4: (stage, state)}), *attempts)


NEWEST_AND_LIVE = [
    *("101/step-000000030", "101/step-000000040"),
    *("103/.step-000000017.tmp", "103/step-000000005", "103/step-000000015"),
]
CASES: dict[str, tuple[str, State, AttemptState, list[str]]] = {
    "on its way": (
        "pretrain_0",
        State.PENDING,
        AttemptState.PREEMPTED,
        ["101/step-000000040", "102/step-000000020"],
    ),
    "running": ("pretrain_0", State.RUNNING, AttemptState.RUNNING, NEWEST_AND_LIVE),
    "done": ("pretrain_1", State.PENDING, AttemptState.SUCCEEDED, []),
    "waiting": ("pretrain_0", State.WAITING, AttemptState.SUCCEEDED, []),
    "failed": ("pretrain_0", State.FAILED, AttemptState.FAILED, []),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("at_once", [True, False])
def test_the_two_newest_checkpoints_stay_while_the_stage_goes_on(
    state: StateFolder, generation_1: Snapshot, case: str, at_once: bool
):
    stage, where, last, expected = CASES[case]
    found = three_attempts(generation_1, stage, where, last)
    if case == "on its way":
        leave(state, 101, 10, 40, half=45)
        leave(state, 102, 20, half=21)
        leave(state, 103, 5, 15)
    else:
        leave(state, 101, 30, 40, half=45)
        leave(state, 102, 20, half=21)
        leave(state, 103, 5, 15, half=17)
    if at_once:
        retention.clear(state, found, 4, "pretrain_0")
    else:
        assert retention.sweep(state, found) == 1
        assert retention.sweep(state, found) == 0
    assert left(state) == expected
    live = last is AttemptState.RUNNING
    standing = [number for number in (101, 102, 103) if state.attempt(number).result.exists()]
    assert standing == ([103] if live else [])


def test_what_others_left_is_not_touched(state: StateFolder, generation_1: Snapshot):
    found = three_attempts(generation_1, "pretrain_1", State.PENDING, AttemptState.SUCCEEDED)
    other = attempt_of(5, "pretrain_0", AttemptState.LOST, id=104)
    same = attempt_of(4, "pretrain_1", AttemptState.LOST, id=105)
    found = with_attempts(found, other, same)
    for number in (104, 105):
        leave(state, number, 10, 20)
    retention.clear(state, found, 4, "pretrain_0")
    assert len(left(state)) == 4


def test_checkpoints_of_attempts_that_nobody_knows_go_and_their_logs_stay(
    state: StateFolder, generation_1: Snapshot
):
    leave(state, 999, 10, 20)
    state.attempt(999).log.write_text("of a search that was taken back to a backup")
    retention.sweep(state, generation_1)
    assert left(state) == []
    assert state.attempt(999).log.exists()


# -- whole searches ------------------------------------------------------------------------------

LADDERS: dict[str, dict[str, Any]] = {
    "as shipped": {},
    "one parent": {"population__mu": 1, "population__tournament": 1},
    "two cutoffs": {"stages__pretrain_1__keep": 0.5, "population__lambda": 6},
    "no cutoff": {"stages__pretrain_0__keep": None},
    "many parents": {"population__mu": 6, "population__lambda": 2},
    "finalists": {"select__seeds": 3, "population__control": True},
    "finalists of tuned parents": {"select__seeds": 3, "population__control": True},
}


def of_ladder(name: str, **changes: Any) -> Config:
    data = small_dict(daemon__infrastructure_retries=10_000, **changes, **LADDERS[name])
    if name == "finalists of tuned parents":
        del data["data"]["mlm"]
        data = of_tuned_parents(data, {"narrow": 1, "widen": 1, "fewer_heads": 1, "more_heads": 1})
    return parse(data, f"{name}.toml")


def search(state: StateFolder, config: Config) -> Tick:
    """A search on a launcher that insists on the weights that each attempt starts from."""
    store = open_quickly(state.database)
    begin(store, config)
    tick = make_tick(state, config, store=store)
    assert isinstance(tick.clock, Clock)
    tick.launcher = RoughLauncher(tick.clock, Wall(tick.clock, 0.0), some_diverge, False)
    return tick


def models_on_disk(state: StateFolder) -> int:
    trained = [stage for _, stage in weights_on_disk(state) if stage != "evaluate"]
    return len(trained) + len(list(state.path.glob("attempts/*/result")))


def drive_within_bounds(tick: Tick, collect: bool) -> None:
    bound = retention.bound(tick.config, BACKBONE, len(tick.slots))
    most = 0

    def within(found: Snapshot) -> bool:
        nonlocal most
        if collect:
            tick.keep()
        most = max(most, models_on_disk(tick.state))
        assert most <= bound.models
        return False

    found = drive(tick, within)
    assert found.experiment.state == "complete"
    assert most > 5
    largest = max(parameters(one.genotype, BACKBONE) for one in found.candidates.values())
    assert 4 * largest < bound.largest_model
    assert bound.total == bound.models * bound.largest_model + bound.checkpoints


@settings(max_examples=8)
@given(ladder=st.sampled_from(sorted(LADDERS)), seed=st.integers(0, 99))
def test_a_search_with_a_collection_after_every_turn_ends_as_one_without_any(
    folder: Callable[[], StateFolder], ladder: str, seed: int
):
    config = of_ladder(ladder, experiment__seed=seed, experiment__generations=3)
    calm = search(folder(), config)
    calm.keep = lambda: None  # type: ignore[method-assign]
    drive(calm)
    tick = search(folder(), config)
    drive_within_bounds(tick, collect=True)
    assert story(tick.store) == story(calm.store)
    models_stand_at_the_end(tick)
    for one in (calm, tick):
        one.store.close()
        shutil.rmtree(one.state.path)


def models_stand_at_the_end(tick: Tick) -> None:
    """The fine-tuned models of the last survivors, of the front of all, and of the baseline."""
    found = tick.store.read()
    standing = weights_on_disk(tick.state)
    assert found.generation is not None
    scored = [one.id for one in found.individuals if one.state is State.SCORED]
    at = dict(zip(scored, decisions.points(found, scored), strict=True))
    front = [
        one
        for one, (quality, size) in at.items()
        if not any(q >= quality and s >= size and (q, s) != (quality, size) for q, s in at.values())
    ]
    wanted = {*front, *found.survivors(found.generation.number), BASELINE}
    assert {(one, "finetune") for one in wanted} <= standing
    assert {(one, "evaluate") for one in scored} <= standing  # predictions are small
    assert (BASELINE, "prepare") in standing


@pytest.mark.parametrize("ladder", LADDERS)
def test_what_stands_between_two_collections_is_within_the_bound_too(
    folder: Callable[[], StateFolder], ladder: str
):
    config = of_ladder(ladder, experiment__generations=3)
    tick = search(folder(), config)
    drive_within_bounds(tick, collect=False)  # but for each generation's own
    models_stand_at_the_end(tick)


def test_weights_that_a_child_starts_from_are_gone_only_when_it_has_started_over(
    folder: Callable[[], StateFolder],
):
    """Every attempt of a child in its first stage is lost three times, with collections between."""

    def script(spec: Any, before: int) -> Any:
        if spec.stage is not None and spec.stage.name == "pretrain_0" and before < 3:
            return 30.0, None
        return all_succeed(spec, before)

    tick = make_tick(folder(), PATIENT, script)
    assert isinstance(tick.launcher, FakeLauncher)
    while tick.store.read().experiment.state == "running":
        tick()
        tick.keep()
        advance(tick)
    found = tick.store.read()
    assert found.experiment.state == "complete"
    assert all(one.state is not State.FAILED for one in found.candidates.values())
