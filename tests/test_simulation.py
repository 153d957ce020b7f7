"""A search without training: the surrogate, the cost model, the launcher's files and fates."""

import itertools
import json
import math
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import correlation
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from nasd.contract import tasks
from nasd.contract.config import PREPARE, Config, Stage
from nasd.contract.genotype import (
    Block,
    BlockLineage,
    FeedForward,
    Genotype,
    Lineage,
    parameters,
    unchanged,
)
from nasd.contract.protocol import (
    AttemptFolder,
    Heartbeat,
    Outcome,
    Spec,
    read,
    read_metrics,
    write,
)
from nasd.contract.schedule import Schedule
from nasd.contract.slots import divided
from nasd.contract.volumes import Volumes
from nasd.control.tick import Tick
from nasd.estimate.cost import (
    Machine,
    Timeline,
    attempt_seconds,
    example_flop,
    memory_gb,
)
from nasd.estimate.surrogate import Surrogate, Trained
from nasd.launch.simulated import (
    ECC,
    Fate,
    SimulatedLauncher,
    all_succeed,
    newest_checkpoint,
    save_checkpoint,
)
from nasd.policy import ladder, scheduling
from nasd.policy.scheduling import WIDEN_SECONDS
from nasd.record.folders import StateFolder
from nasd.record.lifecycle import AttemptState, State
from nasd.record.state import Snapshot
from nasd.search.variation.breeding import initial_population, mutate
from nasd.views.forecast.premises import DISTILBERT
from nasd.views.forecast.virtual_time import VirtualClock, run
from tests.conftest import (
    BACKBONE,
    BASELINE,
    begin,
    open_quickly,
    small_config,
    story,
    thesis_config,
)

THESIS_VOLUMES = Volumes(10_000_000, 4096, 70_079, 17_520, 70_819, 17_705)
SMALL_VOLUMES = Volumes(2000, 8, 400, 100, 404, 101, qa_tokens=40.0)
SLOW = Machine(tflops=3e-6, step_seconds=0.0, start_seconds=30.0)  # attempts of an hour


def simulated(
    state: StateFolder,
    fate: Callable[[Spec, int], Fate] = all_succeed,
    config: Config | None = None,
    clock: VirtualClock | None = None,
    machine: Machine = SLOW,
    **options: Any,
) -> tuple[Tick, VirtualClock, SimulatedLauncher]:
    """A simulated search of the small config, begun or taken over from another daemon."""
    config = config or small_config(daemon__checkpoint_minutes=5.0)
    clock = clock or VirtualClock()
    new = not state.database.exists()
    store = open_quickly(state.database)
    if new:
        begin(store, config, now=clock())
    launcher = SimulatedLauncher(clock, BACKBONE, BASELINE, SMALL_VOLUMES, machine, fate, **options)
    assert config.slots.devices != "auto"
    tick = Tick(
        store,
        config,
        state.path,
        state,
        divided(config.slots.devices, config.slots.share),
        launcher,
        clock,
        monotonic=clock,
        free_bytes=lambda path: 1 << 50,
    )
    return tick, clock, launcher


def finished(state: StateFolder, *arguments: Any, **options: Any) -> tuple[Snapshot, Any]:
    """The end of a whole search, and its story."""
    tick, clock, launcher = simulated(state, *arguments, **options)
    snapshot = run(tick, clock, launcher)
    told = story(tick.store)
    tick.store.close()
    return snapshot, told


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> tuple[Snapshot, Any]:
    """The small search, undisturbed."""
    return finished(StateFolder(tmp_path_factory.mktemp("usual") / "state"))


def only(kind: Any, at: float = 0.5, candidate: int = 1, stage: str = "pretrain_0", times: int = 1):
    """A fate for the first attempts of one candidate at one stage; all others succeed."""

    def fate(spec: Spec, before: int) -> Fate:
        name = PREPARE if spec.stage is None else spec.stage.name
        here = (spec.candidate, name) == (candidate, stage) and before < times
        return Fate(kind, at) if here else Fate()

    return fate


# -- the surrogate -------------------------------------------------------------------------------


def thesis_candidates(count: int) -> list[Genotype]:
    config = thesis_config()
    pool: list[Genotype] = []
    for seed in range(math.ceil(count / 8)):
        mutants = initial_population(
            DISTILBERT.baseline, config.search_space, config.variation, 8, seed
        )
        pool += [mutant.genotype for mutant in mutants]
    return pool[:count]


SURROGATE = Surrogate(DISTILBERT.backbone, DISTILBERT.baseline, seed=3)
LADDER = Trained(new=19_532, all=39_064)  # 4 and 8 epochs of 10 million sequences


def test_the_curves_are_finite_and_fall_up_to_their_noise():
    for genotype in thesis_candidates(16):
        curve = [
            SURROGATE.evaluation_loss(genotype, "pretrain_0", step, Trained(new=step))
            for step in range(1, 20_000, 600)
        ] + [
            SURROGATE.evaluation_loss(genotype, "pretrain_1", step, Trained(new=19_400, all=step))
            for step in range(1, 40_000, 600)
        ]
        assert all(0 < loss < 20 for loss in curve)
        assert all(later < earlier + 0.03 for earlier, later in itertools.pairwise(curve))
        assert curve[-1] < curve[0] - 0.1


def test_loss_and_quality_are_tied_as_in_the_thesis():
    """Its Figure 10: -0.789 at the cutoff, -0.771 at the end, of one generation."""
    pool = thesis_candidates(100)
    quality = [SURROGATE.quality(genotype, LADDER) for genotype in pool]
    final = [SURROGATE.mlm_loss(genotype, LADDER) for genotype in pool]
    cutoff = [SURROGATE.mlm_loss(genotype, Trained(new=LADDER.new)) for genotype in pool]
    assert -0.95 < correlation(final, quality) < -0.6
    assert -0.95 < correlation(cutoff, quality) < -0.6
    assert len(set(quality)) == len(pool)


def test_smaller_candidates_are_somewhat_worse_and_both_sides_have_their_front():
    pool = thesis_candidates(100)
    size = [float(parameters(genotype, DISTILBERT.backbone)) for genotype in pool]
    quality = [SURROGATE.quality(genotype, LADDER) for genotype in pool]
    assert 0.1 < correlation(size, quality) < 0.9
    front = [
        one
        for one in range(len(pool))
        if not any(size[o] < size[one] and quality[o] > quality[one] for o in range(len(pool)))
    ]
    assert len(front) >= 4


def test_the_baseline_scores_as_in_the_thesis():
    scores = SURROGATE.scores(DISTILBERT.baseline, Trained())
    assert scores == pytest.approx({"exact_match": 62.0, "f1": 75.9})


def test_equal_hashes_have_equal_values_and_other_seeds_have_others():
    for genotype in thesis_candidates(8):
        twin = Genotype.from_json(json.loads(json.dumps(genotype.to_json())))
        again = Surrogate(DISTILBERT.backbone, DISTILBERT.baseline, seed=3)
        other = Surrogate(DISTILBERT.backbone, DISTILBERT.baseline, seed=4)
        assert again.scores(twin, LADDER) == SURROGATE.scores(genotype, LADDER)
        one, two = (
            s.evaluation_loss(g, "pretrain_0", 500, Trained(new=500))
            for s, g in ((again, twin), (SURROGATE, genotype))
        )
        assert one == two
        assert other.scores(genotype, LADDER) != SURROGATE.scores(genotype, LADDER)


@given(exact=st.integers(0, 10**6), seed=st.integers(0, 50))
def test_scores_are_percentages_and_f1_is_never_below_exact_match(exact: int, seed: int):
    config = thesis_config()
    genotype, _ = mutate(
        DISTILBERT.baseline,
        DISTILBERT.baseline,
        config.search_space,
        config.variation.initial,
        random.Random(seed),
    )
    scores = SURROGATE.scores(genotype, Trained(all=exact))
    assert 0 <= scores["exact_match"] <= scores["f1"] <= 100


def test_who_diverges_is_a_matter_of_the_architecture_alone():
    surrogate = replace(SURROGATE, diverging=0.25)
    pool = thesis_candidates(100)
    found = [surrogate.diverges(genotype) for genotype in pool]
    assert found == [surrogate.diverges(genotype) for genotype in pool]
    assert 10 <= sum(share is not None for share in found) <= 40
    assert not any(SURROGATE.diverges(genotype) for genotype in pool)
    assert replace(surrogate, diverging=1.0).diverges(DISTILBERT.baseline) is None


# -- the cost model ------------------------------------------------------------------------------


def flop_per_token(masks: int | None, train: Any, lineage: Lineage | None = None) -> float:
    lineage = lineage or unchanged(DISTILBERT.baseline)
    seed = DISTILBERT
    task = tasks.QA if masks is None else tasks.MLM
    return example_flop(task, seed.baseline, lineage, seed.backbone, 512, masks, train) / 512 / 1e6


def test_the_operations_of_distilbert_are_those_that_were_counted():
    """MFLOP a token at 512 tokens: 271 for training with the head and the last block on the masks
    alone, 134 where one FFN of block 3 trains."""
    lineage = list(unchanged(DISTILBERT.baseline))
    lineage[3] = BlockLineage.of(3, False, ("altered",))
    assert flop_per_token(77, "all") == pytest.approx(271, rel=0.01)
    assert flop_per_token(77, "new", tuple(lineage)) == pytest.approx(134, rel=0.03)
    assert flop_per_token(77, "none") == pytest.approx(271 / 3, rel=0.01)
    assert flop_per_token(77, "none") < flop_per_token(77, "head") < flop_per_token(77, "all")


@given(
    examples=st.integers(1, 5000),
    batch=st.integers(1, 600),
    epochs=st.sampled_from([0.05, 0.4, 1, 2, 3, 8]),
    evaluations=st.integers(1, 9),
    soup=st.integers(1, 3),
)
@hypothesis_settings(max_examples=50)
def test_the_steps_with_an_evaluation_behind_them_are_listed_as_training_finds_them(
    examples: int, batch: int, epochs: float, evaluations: int, soup: int
):
    stage = (
        thesis_config()
        .stages[1]
        .model_copy(update={"batch": batch, "epochs": epochs, "evaluations": evaluations})
    )
    each = Schedule.of(stage, examples).steps
    schedule = Schedule.of(stage.model_copy(update={"soup": soup}), examples)
    steps = range(schedule.steps)
    assert schedule.steps == soup * each
    assert {each * number for number in range(1, soup)} == {
        done for done in range(schedule.steps + 1) if schedule.begins_again_after(done)
    }
    assert [schedule.learning_rate(step) for step in range(each)] * soup == [
        schedule.learning_rate(step) for step in steps
    ]
    expected = [step + 1 for step in steps if schedule.evaluates_after(step, evaluations)]
    assert list(schedule.evaluation_steps(evaluations)) == expected


FFNS = st.builds(
    FeedForward,
    st.sampled_from(["relu", "gelu"]),
    st.lists(st.sampled_from([1024, 2048, 3072]), min_size=1, max_size=2).map(tuple),
)
MADE = st.sampled_from(["kept", "altered", "added"])
BLOCKS = st.lists(
    st.tuples(
        st.sampled_from([8, 12, 16]), st.booleans(), st.lists(st.tuples(FFNS, MADE), min_size=1)
    ),
    min_size=1,
    max_size=4,
)
STAGES = st.sampled_from(thesis_config().stages)
CONFIG = thesis_config()


def candidate_of(blocks: list[Any]) -> tuple[Genotype, Lineage]:
    genotype = Genotype(tuple(Block(heads, tuple(f for f, _ in ffns)) for heads, _, ffns in blocks))
    lineage = tuple(
        BlockLineage.of(index, new, tuple(made for _, made in ffns))
        for index, (_, new, ffns) in enumerate(blocks)
    )
    return genotype, lineage


def seconds(stage: Stage, blocks: list[Any], machine: Machine = Machine()) -> float:  # noqa: B008
    genotype, lineage = candidate_of(blocks)
    return attempt_seconds(
        stage,
        genotype,
        lineage,
        DISTILBERT.backbone,
        CONFIG.data,
        THESIS_VOLUMES,
        machine,
    )


@given(stage=STAGES, blocks=BLOCKS, where=st.integers(0, 4), more=st.data())
def test_more_blocks_or_layers_never_take_less_time(
    stage: Stage, blocks: list[Any], where: int, more: st.DataObject
):
    before = seconds(stage, blocks)
    place = min(where, len(blocks))
    extra = more.draw(BLOCKS)[0]
    assert seconds(stage, [*blocks[:place], extra, *blocks[place:]]) >= before
    index = more.draw(st.integers(0, len(blocks) - 1))
    heads, new, ffns = blocks[index]
    longer = (heads, new, [*ffns, more.draw(st.tuples(FFNS, MADE))])
    assert seconds(stage, [*blocks[:index], longer, *blocks[index + 1 :]]) >= before


@given(stage=STAGES, blocks=BLOCKS, slots=st.integers(1, 63))
def test_more_slots_and_faster_ones_never_take_more_time(
    stage: Stage, blocks: list[Any], slots: int
):
    fewer, more = (stage.model_copy(update={"slots": slots + n}) for n in (0, 1))
    assert seconds(more, blocks) <= seconds(fewer, blocks)
    assert seconds(stage, blocks, Machine(tflops=80)) <= seconds(stage, blocks, Machine(tflops=60))
    assert Machine().together(4) == pytest.approx(0.95 * 4)


@given(
    first=st.integers(0, 300),
    steps=st.integers(300, 900),
    per_step=st.floats(0.01, 50),
    minutes=st.floats(0.1, 30),
    pause=st.floats(0, 20),
)
def test_a_timeline_tells_the_same_both_ways(
    first: int, steps: int, per_step: float, minutes: float, pause: float
):
    line = Timeline(45.0, per_step, first, steps, 0.0, 60 * minutes, pause)
    assert line.done(0.0) == line.done(45.0) == first
    assert line.done(line.end) == steps
    reached = first
    for step in range(first, steps + 1, 37):
        assert line.done(line.when(step)) in (step, step - 1)  # a checkpoint may just be written
        saved = line.checkpoints(line.when(step))
        assert len(saved) <= 2
        assert all(first < s <= step and s < steps for s in saved)
        assert line.done(line.when(step)) >= reached
        reached = line.done(line.when(step))


def test_a_smaller_micro_batch_needs_less_memory():
    stage, base = CONFIG.stages[2].model_copy(update={"micro_batch": 64}), DISTILBERT
    lineage = unchanged(base.baseline)
    needs = [
        memory_gb(stage, base.baseline, lineage, base.backbone, 512, 2, "bfloat16", halvings)
        for halvings in range(9)
    ]
    assert needs[0] < 40
    assert needs[0] > needs[1] > needs[2]
    assert needs[7] == needs[8]  # one sequence cannot be halved


# -- the files that workers leave ----------------------------------------------------------------


def middle(tick: Tick, clock: VirtualClock, launcher: SimulatedLauncher) -> Snapshot:
    """Goes to the middle of candidate 1's first training."""
    run(tick, clock, launcher, until=lambda snap: 1 in {a.candidate for a in snap.live_attempts})
    (job,) = [job for job in launcher._jobs.values() if job.spec.candidate == 1]
    clock.advance_to(clock() + 0.6 * (job.ends - clock()))
    launcher.look()
    return tick.store.read()


def test_a_running_worker_leaves_what_a_real_one_does(state: StateFolder):
    tick, clock, launcher = simulated(state)
    snapshot = middle(tick, clock, launcher)
    attempt = next(a for a in snapshot.live_attempts if a.candidate == 1)
    folder = state.attempt(attempt.id)
    beat = read(Heartbeat, folder.heartbeat)
    assert (beat.doing, beat.at, beat.steps) == ("training", clock(), 250)
    assert 100 < beat.step < 200
    lines, _ = read_metrics(folder.metrics)
    kinds = {line["kind"]: set(line) for line in lines}
    assert kinds["train"] == {
        *("kind", "step", "loss", "gradient_norm", "learning_rate", "tokens_per_second", "at")
    }
    assert [line["step"] for line in lines] == sorted(line["step"] for line in lines)
    assert all(attempt.started_at < line["at"] <= clock() for line in lines)
    assert max(line["step"] for line in lines) <= beat.step
    saved = sorted(path.name for path in folder.checkpoints.iterdir())
    assert len(saved) == 2
    assert all(len(name) == len("step-000000123") for name in saved)
    assert folder.newest_step() == newest_checkpoint([folder.checkpoints]) <= beat.step
    assert not folder.outcome.exists()
    run(tick, clock, launcher, until=lambda snap: (1, "pretrain_0") in snap.results)
    outcome = read(Outcome, folder.outcome)
    lines, _ = read_metrics(folder.metrics)
    shown = [(one["step"], one["loss"]) for one in lines if one["kind"] == "evaluation"]
    assert outcome.curve == shown == [(250, outcome.metrics["loss"])]
    assert (outcome.token, outcome.steps) == (attempt.token, 250)
    said = json.loads((state.result(1, "pretrain_0") / "model.json").read_text())
    assert said["trained"] == {"head": 0, "new": 250, "all": 0}
    assert not folder.checkpoints.exists()


def test_checkpoints_keep_two_and_damaged_ones_are_passed_over(tmp_path: Path):
    folder, other = tmp_path / "one" / "checkpoints", tmp_path / "two" / "checkpoints"
    assert newest_checkpoint([folder, other]) is None
    for step in (10, 20, 30):
        save_checkpoint(folder, step)
    save_checkpoint(other, 25)
    assert sorted(path.name for path in folder.iterdir()) == ["step-000000020", "step-000000030"]
    assert newest_checkpoint([folder, other]) == 30
    (folder / "step-000000030" / "progress.json").write_text('{"step": 3')
    assert newest_checkpoint([folder, other]) == 25
    (other / "step-000000025" / "manifest.json").unlink()
    assert newest_checkpoint([folder, other]) == 20
    (folder / "step-000000020" / "manifest.json").write_text('{"progress.json": "0"}')
    assert newest_checkpoint([folder, other]) is None
    save_checkpoint(folder, 40)
    assert newest_checkpoint([folder, other]) == 40


def test_an_attempt_resumes_at_the_newest_whole_checkpoint(state: StateFolder):
    tick, clock, launcher = simulated(state, only("lost", 0.9))
    run(tick, clock, launcher, until=lambda snap: any(a.number == 2 for a in snap.attempts))
    lost, again = [a for a in tick.store.read().attempts if a.candidate == 1]
    assert (lost.state, again.number) == (AttemptState.LOST, 2)
    assert again.process is not None
    assert 0 < again.process["first"] == lost.reached < 225
    run(tick, clock, launcher, until=lambda snap: (1, "pretrain_0") in snap.results)
    lines, _ = read_metrics(state.attempt(again.id).metrics)
    assert min(line["step"] for line in lines) > lost.reached
    assert lost.ended_at is not None
    outcome = read(Outcome, state.attempt(again.id).outcome)
    assert outcome.seconds < 0.3 * (lost.ended_at - lost.started_at)


def test_a_search_that_is_stopped_writes_checkpoints_and_goes_on(
    state: StateFolder, usual: tuple[Snapshot, Any]
):
    tick, clock, launcher = simulated(state)
    middle(tick, clock, launcher)
    tick()
    live = tick.store.read().live_attempts
    clock.advance_to(clock() + 100)
    tick.stop()
    snapshot = tick.store.read()
    assert live
    assert not snapshot.live_attempts
    for attempt in live:
        ended = snapshot.attempts[attempt.id - 1]
        assert ended.state is AttemptState.PREEMPTED
        trains = attempt.stage != "evaluate"
        assert ("after step" if trains else "begins anew") in ended.message
        folder = state.attempt(attempt.id)
        if trains:
            beat = read(Heartbeat, folder.heartbeat)
            assert newest_checkpoint([folder.checkpoints]) == beat.step == ended.reached
    tick.store.close()
    _, told = finished(state, clock=clock)
    assert told == usual[1]


def test_an_evaluation_that_is_stopped_begins_anew(state: StateFolder):
    tick, clock, launcher = simulated(state)
    run(tick, clock, launcher, until=lambda s: "evaluate" in {a.stage for a in s.live_attempts})
    (attempt,) = [a for a in tick.store.read().live_attempts if a.stage == "evaluate"]
    launcher.stop(attempt.token)
    assert "begins anew" in read(Outcome, state.attempt(attempt.id).outcome).message
    assert launcher.clear(attempt.token) == 0


# -- the launcher alone --------------------------------------------------------------------------


def spec_of(folder: AttemptFolder, **changes: Any) -> Spec:
    """The spec of an attempt that trains everything, written into its folder."""
    config = small_config()
    spec = Spec(
        attempt=1,
        candidate=1,
        generation=0,
        stage=config.stages[2],
        seed=5,
        dropout=None,
        source="seed",
        data=config.data,
        config_folder="/nowhere",
        genotype=BASELINE.to_json(),
        lineage=[block.to_json() for block in unchanged(BASELINE)],
        weights=None,
        inherits=False,
        cache="/nowhere",
        mlm_cache="",
        qa_cache="",
        tensorboard="/nowhere",
        precision="float32",
        threads=1,
        checkpoint_minutes=5,
        log_steps=10,
        stall_minutes=10,
    ).model_copy(update=changes)
    folder.path.mkdir(parents=True)
    write(spec, folder.spec)
    return spec


def alone(clock: VirtualClock, **options: Any) -> SimulatedLauncher:
    return SimulatedLauncher(clock, BACKBONE, BASELINE, SMALL_VOLUMES, SLOW, **options)


def test_a_note_is_all_that_another_instance_needs(tmp_path: Path):
    clock, folder = VirtualClock(), AttemptFolder(tmp_path / "1")
    spec_of(folder)
    note = json.loads(json.dumps(alone(clock).start(folder, ["cpu:0", "cpu:1"], "t")))
    other = alone(clock, fate=lambda spec, before: Fate("lost"))  # asked once, at the start
    assert other.alive(note)
    end = other.next_event()
    assert end is not None
    clock.advance_to(end - 1)
    assert alone(clock).alive(note)
    clock.advance_to(end)
    assert not alone(clock).alive(note)
    outcome = read(Outcome, folder.outcome)
    assert (outcome.verdict, outcome.token) == ("succeeded", "t")
    assert outcome.seconds == pytest.approx(end - note["began"] - 30)
    assert folder.outcome.stat().st_mtime == pytest.approx(end)
    before = folder.outcome.read_bytes()
    assert not alone(clock).alive(note)
    assert folder.outcome.read_bytes() == before


def test_what_an_instance_has_ended_stays_ended_for_the_next(tmp_path: Path):
    clock, folder = VirtualClock(), AttemptFolder(tmp_path / "1")
    spec_of(folder)
    launcher = alone(clock)
    note = launcher.start(folder, ["cpu:0"], "t")
    assert (launcher.clear("t"), launcher.clear("t"), launcher.alive(note)) == (1, 0, False)
    assert not alone(clock).alive(note)
    assert not folder.outcome.exists()


def test_a_stop_reaches_an_attempt_whose_note_comes_later(tmp_path: Path):
    clock, folder = VirtualClock(), AttemptFolder(tmp_path / "1")
    spec_of(folder)
    note = alone(clock).start(folder, ["cpu:0"], "t")
    clock.advance_to(clock() + 600)
    other = alone(clock)
    other.stop("t")
    assert not other.alive(note)
    assert read(Outcome, folder.outcome).verdict == "stopped"


def test_a_slot_is_never_used_twice_at_once(tmp_path: Path):
    _clock, launcher = VirtualClock(), alone(_clock := VirtualClock())
    one, two = (AttemptFolder(tmp_path / name) for name in "12")
    spec_of(one)
    spec_of(two, attempt=2, candidate=2)
    launcher.start(one, ["cpu:0", "cpu:1"], "a")
    with pytest.raises(AssertionError, match="share"):
        launcher.start(two, ["cpu:1", "cpu:2"], "b")
    launcher.clear("a")
    launcher.start(two, ["cpu:1", "cpu:2"], "b")
    assert launcher.owns(1) is None


def test_attempts_on_a_leash_die_with_their_instance(tmp_path: Path):
    clock, folder = VirtualClock(), AttemptFolder(tmp_path / "1")
    spec_of(folder)
    launcher = alone(clock, leashed=True)
    note = launcher.start(folder, ["cpu:0"], "t")
    clock.advance_to(clock() + 3000)
    assert launcher.alive(note)
    assert not alone(clock, leashed=True).alive(note)
    assert not folder.outcome.exists()
    assert (newest_checkpoint([folder.checkpoints]) or 0) > 0


def test_workers_write_down_what_the_wall_shows_and_take_no_notice(tmp_path: Path):
    clock, folder = VirtualClock(), AttemptFolder(tmp_path / "1")
    spec_of(folder)
    launcher = alone(clock, wall=lambda: clock() + 1e9)
    note = launcher.start(folder, ["cpu:0"], "t")
    end = launcher.next_event()
    assert end is not None
    assert end < clock() + 1e6
    clock.advance_to(end)
    assert not launcher.alive(note)
    assert read(Heartbeat, folder.heartbeat).at == pytest.approx(end + 1e9)
    assert folder.outcome.stat().st_mtime == pytest.approx(end + 1e9)


def test_half_a_line_of_a_kill_is_written_anew(tmp_path: Path):
    clock, folder = VirtualClock(), AttemptFolder(tmp_path / "1")
    spec_of(folder)
    note = alone(clock).start(folder, ["cpu:0"], "t")
    clock.advance_to(clock() + 2000)
    assert alone(clock).alive(note)
    whole, _ = read_metrics(folder.metrics)
    assert len(whole) > 3
    folder.metrics.write_bytes(folder.metrics.read_bytes()[:-20])
    assert alone(clock).alive(note)
    assert read_metrics(folder.metrics)[0] == whole


def test_a_note_without_its_folder_is_not_alive(tmp_path: Path):
    note = {"token": "t", "folder": str(tmp_path / "gone"), "slots": ["cpu:0"], "began": 0.0}
    assert not alone(VirtualClock()).alive(note)


# -- whole searches ------------------------------------------------------------------------------


def test_the_same_seed_tells_the_same_story_whatever_is_lost(
    state: StateFolder, usual: tuple[Snapshot, Any]
):
    kinds = ("lost", "stall", "machine")

    def fate(spec: Spec, before: int) -> Fate:
        dice = random.Random(f"{spec.candidate} {spec.stage and spec.stage.name} {before}")
        if before < 2 and dice.random() < 0.5:
            return Fate(dice.choice(kinds), dice.random())  # type: ignore[arg-type]
        return Fate()

    snapshot, told = finished(state, fate)
    assert told == usual[1]
    assert told["state"] == "complete"
    states = [attempt.state for attempt in snapshot.attempts]
    assert states.count(AttemptState.LOST) > 10
    assert len(states) == len(usual[0].attempts) + states.count(AttemptState.LOST)


def test_another_seed_tells_another_story(tmp_path: Path, usual: tuple[Snapshot, Any]):
    config = small_config(daemon__checkpoint_minutes=5.0, experiment__seed=6)
    _, told = finished(StateFolder(tmp_path / "state"), config=config)
    assert told["candidates"] != usual[1]["candidates"]


@pytest.mark.parametrize("leashed", [False, True])
def test_a_daemon_that_is_killed_is_followed_by_another(
    state: StateFolder, usual: tuple[Snapshot, Any], leashed: bool
):
    clock, kills = VirtualClock(), 0
    while True:
        tick, clock, launcher = simulated(state, clock=clock, leashed=leashed)
        tick.begin()
        done = len(tick.store.read().results) + 6
        snapshot = run(tick, clock, launcher, until=lambda snap, n=done: len(snap.results) >= n)
        if snapshot.experiment.state == "complete":
            break
        for job in list(launcher._jobs.values()):  # somewhere within what runs
            clock.advance_to(max(clock(), clock() + 0.4 * (job.ends - clock())))
            break
        launcher.look()
        tick.store.close()
        kills += 1
    told = story(tick.store)
    tick.store.close()
    assert kills > 2
    assert told == usual[1]
    lost = [a for a in snapshot.attempts if a.state is AttemptState.LOST]
    if leashed:
        assert lost
        assert {a.verdict for a in lost} == {"interrupted"}
        assert any(a.reached for a in lost)
    else:
        assert not lost
        assert len(snapshot.attempts) == len(usual[0].attempts)


def ended(snapshot: Snapshot, candidate: int = 1, stage: str = "pretrain_0") -> list[Any]:
    return [a for a in snapshot.attempts if (a.candidate, a.stage) == (candidate, stage)]


@pytest.mark.parametrize(
    ("kind", "at", "said"),
    [
        ("lost", 0.5, "gone without an outcome"),
        ("machine", 0.7, "uncorrectable ECC error"),
        ("stall", 0.3, "stalled: silent for"),
    ],
)
def test_what_is_lost_is_tried_again(state: StateFolder, kind: str, at: float, said: str):
    tick, clock, launcher = simulated(state, only(kind, at))
    run(tick, clock, launcher, until=lambda snap: (1, "pretrain_0") in snap.results)
    lost, again = ended(tick.store.read())
    assert (lost.state, again.state) == (AttemptState.LOST, AttemptState.SUCCEEDED)
    assert said in lost.message
    assert again.started_at >= lost.ended_at + 5  # the back-off
    if kind == "machine":
        assert ECC in state.attempt(lost.id).log.read_text()
    if kind == "stall":
        silent = 60 * tick.config.daemon.stall_minutes
        beat = read(Heartbeat, state.attempt(lost.id).heartbeat)
        assert silent < lost.ended_at - beat.at < 1.3 * silent


def test_what_is_lost_again_and_again_halts_the_search(state: StateFolder):
    tick, clock, launcher = simulated(state, only("lost", 0.0, times=99))
    snapshot = run(tick, clock, launcher)
    assert snapshot.experiment.state == "halted"
    assert "lost 6 attempts in a row" in snapshot.experiment.reason
    assert len(ended(snapshot)) == 6


def test_an_error_is_tried_once_more(state: StateFolder):
    tick, clock, launcher = simulated(state, only("error", 0.2, times=99))
    run(
        tick,
        clock,
        launcher,
        until=lambda snap: snap.candidates[1].final if 1 in snap.candidates else False,
    )
    snapshot = tick.store.read()
    assert [a.verdict for a in ended(snapshot)] == ["error", "error"]
    assert snapshot.candidates[1].state is State.FAILED


def test_a_candidate_that_diverges_fails(state: StateFolder):
    snapshot, _ = finished(state, only("diverge", 0.4))
    (attempt,) = ended(snapshot)
    assert snapshot.experiment.state == "complete"
    assert snapshot.candidates[1].state is State.FAILED
    assert "diverged: the loss is nan at step" in snapshot.candidates[1].reason
    assert attempt.state is AttemptState.FAILED


def test_out_of_memory_is_tried_at_half_the_micro_batch(state: StateFolder):
    tick, clock, launcher = simulated(state, only("out_of_memory"))
    run(tick, clock, launcher, until=lambda snap: (1, "pretrain_0") in snap.results)
    first, second = ended(tick.store.read())
    assert (first.verdict, second.state) == ("out_of_memory", AttemptState.SUCCEEDED)
    assert [read(Spec, state.attempt(a.id).spec).halvings for a in (first, second)] == [0, 1]


def test_who_diverges_by_nature_does_so_whatever_is_lost(tmp_path: Path):
    told = []
    for name, fate in (("one", all_succeed), ("two", only("lost", 0.05, 2, times=2))):
        snapshot, one = finished(StateFolder(tmp_path / name / "state"), fate, diverging=0.3)
        told.append(one)
        states = [candidate.state for candidate in snapshot.candidates.values()]
        assert 0 < states.count(State.FAILED) < 8
        assert snapshot.experiment.state == "complete"
    assert told[0] == told[1]


def test_candidates_that_do_not_fit_into_memory_fail_by_nature(state: StateFolder):
    config = small_config()
    one = memory_gb(
        config.stages[3], BASELINE, unchanged(BASELINE), BACKBONE, 48, 2, "float32", halvings=9
    )
    machine = replace(SLOW, memory_gb=1.1 * one)
    snapshot, _ = finished(state, machine=machine, config=config)
    assert snapshot.experiment.state == "complete"
    failed = [c for c in snapshot.candidates.values() if c.state is State.FAILED]
    assert failed
    assert any(c.state is State.SCORED and not c.is_baseline for c in snapshot.candidates.values())
    for candidate in failed:
        assert "out_of_memory" in candidate.reason
        tried = [a.verdict for a in ended(snapshot, candidate.id, candidate.stage)]
        assert tried == ["out_of_memory"] * 6  # of 32, 16, 8, 4, 2 examples and of one


def test_a_spent_budget_stops_what_runs_and_halts(state: StateFolder):
    config = small_config(experiment__budget_gpu_hours=3.0)
    snapshot, _ = finished(state, config=config)
    assert snapshot.experiment.state == "halted"
    assert "budget of 3.0 slot-hours" in snapshot.experiment.reason
    assert snapshot.gpu_hours(0.0) == pytest.approx(3.0, rel=0.01)
    assert AttemptState.PREEMPTED in {attempt.state for attempt in snapshot.attempts}


def test_a_search_in_which_nothing_can_happen_is_an_error(state: StateFolder):
    tick, clock, launcher = simulated(state)
    tick.free_bytes = lambda path: 0
    with pytest.raises(AssertionError, match="nothing ends, and nothing is decided"):
        run(tick, clock, launcher)


def test_the_thesis_schedule_runs_to_its_end_on_four_slots(state: StateFolder):
    config, clock = thesis_config(), VirtualClock()
    store = open_quickly(state.database)
    begin(store, config, DISTILBERT.backbone, DISTILBERT.baseline, now=clock())
    launcher = SimulatedLauncher(
        clock, DISTILBERT.backbone, DISTILBERT.baseline, THESIS_VOLUMES, metrics=False
    )
    assert config.slots.devices != "auto"
    tick = Tick(
        store,
        config,
        state.path,
        state,
        config.slots.devices,
        launcher,
        clock,
        monotonic=clock,
        free_bytes=lambda path: 1 << 50,
    )
    began = clock()
    snapshot = run(tick, clock, launcher)
    assert snapshot.experiment.state == "complete"
    assert len(snapshot.generations) == 4
    assert len(snapshot.candidates) == 1 + 8 + 3 * 12
    assert [len(snapshot.survivors(number)) for number in range(4)] == [8] * 4
    for number in (1, 2, 3):
        states = [candidate.state for candidate in snapshot.born_in(number)]
        assert (states.count(State.CUT), states.count(State.SCORED)) == (6, 6)
    used = snapshot.gpu_hours(clock())
    hours = (clock() - began) / 3600
    assert 0.8 * 4 * hours < used <= 4 * hours
    assert 1000 < used < 6500  # the thesis used 6,500, and left more to be saved
    for slot in config.slots.devices:
        held = sorted((a.started_at, a.ended_at) for a in snapshot.attempts if slot in a.slots)
        assert all(end <= start for (_, end), (start, _) in itertools.pairwise(held))
    store.close()


def test_a_candidate_flows_on_without_waiting_unless_a_cutoff_stands_between(
    usual: tuple[Snapshot, Any],
):
    snapshot, _ = usual
    cutoffs, flown = 0, 0
    for candidate in snapshot.candidates.values():
        own = [one for one in snapshot.attempts if one.candidate == candidate.id]
        for before, after in itertools.pairwise(own):
            if before.stage == "pretrain_0" and candidate.generation:
                last = max(
                    one.ended_at or 0.0
                    for other in snapshot.born_in(candidate.generation)
                    for one in ended(snapshot, other.id)
                )
                assert after.started_at >= last
                cutoffs += 1
            else:
                assert after.started_at == before.ended_at
                flown += 1
    assert cutoffs == 2 * 2  # half of 4, in two generations
    assert flown == 2 + 3 * 3 + 2 * 2 * 2  # the baseline, generation 0, and who was kept


# -- widening ------------------------------------------------------------------------------------

WIDE = small_config(daemon__checkpoint_minutes=5.0, slots__widen=True)


def test_idle_slots_go_to_who_runs_and_the_story_stays_the_same(
    state: StateFolder, usual: tuple[Snapshot, Any]
):
    snapshot, told = finished(state, config=WIDE)
    assert told == usual[1]
    stopped = [one for one in snapshot.attempts if one.state is AttemptState.PREEMPTED]
    assert stopped
    for one in stopped:
        again = next(a for a in ended(snapshot, one.candidate, one.stage) if a.id > one.id)
        assert len(again.slots) == 2 * len(one.slots) == 4
        assert again.process is not None
        assert again.process["first"] == one.reached > 0  # nothing is done twice
        assert one.ended_at is not None
        assert again.started_at <= one.ended_at + 2 * WIDE.daemon.tick_seconds  # no back-off
        assert one.ended_at - one.started_at >= WIDEN_SECONDS
    both = [max(one.ended_at or 0.0 for one in found.attempts) for found in (snapshot, usual[0])]
    assert both[0] < both[1]


@given(seed=st.integers(0, 10**6), slots=st.integers(2, 7), lost=st.floats(0.0, 0.4))
@hypothesis_settings(max_examples=8)
def test_whatever_is_lost_nobody_waits_for_slots_that_only_widening_holds(
    seed: int, slots: int, lost: float, folder: Callable[[], StateFolder], usual: Any
):
    kinds = ("lost", "stall", "machine")

    def fate(spec: Spec, before: int) -> Fate:
        dice = random.Random(f"{seed} {spec.candidate} {spec.stage and spec.stage.name} {before}")
        if before < 2 and dice.random() < lost:
            return Fate(dice.choice(kinds), dice.random())  # type: ignore[arg-type]
        return Fate()

    devices = [f"cpu:{n}" for n in range(slots)]
    config = small_config(daemon__checkpoint_minutes=5.0, slots__widen=True, slots__devices=devices)
    tick, clock, launcher = simulated(folder(), fate, config)

    def look(found: Snapshot) -> bool:
        free = slots - len(found.leases)
        for one in found.live_attempts:
            asked = ladder.slots_needed(config, one.stage, slots)
            assert len(one.slots) >= asked
            free += len(one.slots) - asked
        ready = scheduling.starts(
            replace(found, leases={}, attempts=tuple(a for a in found.attempts if not a.live)),
            config,
            tick.config.slots.devices,
            clock(),
        )
        for start in ready:  # pending, and not for a back-off
            assert free < ladder.slots_needed(config, start.stage, slots)
        return False

    snapshot = run(tick, clock, launcher, until=look)
    assert story(tick.store) == usual[1]
    tick.store.close()
    spent = sum(len(a.slots) * ((a.ended_at or 0.0) - a.started_at) for a in snapshot.attempts)
    assert snapshot.gpu_hours(clock()) == pytest.approx(spent / 3600)
    stopped = [(a.candidate, a.stage) for a in snapshot.attempts if a.verdict == "stopped"]
    assert all(stopped.count(one) <= 2 for one in stopped)  # 2, 3 or 4, and then all
