"""Who learns from whom: what a config may say of it, and what follows for a search. Pure."""

from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from nasd.contract.config import Config, parse
from nasd.contract.errors import NasdError
from nasd.contract.genotype import Block, FeedForward, Genotype, unchanged
from nasd.contract.protocol import Spec, read
from nasd.contract.volumes import Volumes
from nasd.control import retention
from nasd.estimate.cost import work
from nasd.policy import decisions, ladder
from nasd.record.folders import StateFolder
from nasd.record.lifecycle import Phase, State
from nasd.record.state import Snapshot
from nasd.record.store import BASELINE
from nasd.views import dossier, dossier_view
from tests.conftest import BACKBONE, drive, make_tick, small_config, small_dict, without_summaries
from tests.snapshots import phase_of, put, snapshot_when
from tests.test_task_lineage import task_dict

pytestmark = pytest.mark.usefixtures("no_summaries")


def config_with(source: str = "baseline", **more: Any) -> Config:
    return small_config(teacher={"source": source, **more})


@pytest.fixture(scope="module")
def generation_1(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    """Generation 1 has just been born; its teacher is the best of its parents."""
    with without_summaries():
        state = StateFolder(tmp_path_factory.mktemp("gen1"))
        return snapshot_when(state, config_with("best"), phase_of(1, Phase.CLIMBING))


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"share": 1.5}, "teacher.share: "),
        ({"share": -0.1}, "teacher.share: "),
        ({"temperature": 0}, "teacher.temperature: "),
        ({"match": []}, "teacher.match: take one or more of logits, hidden, relations"),
        ({"match": ["logit"]}, "teacher.match: take one or more of logits, hidden, relations"),
        ({"match": ["hidden", "hidden"]}, "each once"),
        ({"match": "logits"}, "teacher.match: take one or more"),
        ({"match": [["logits"]]}, "teacher.match: take one or more"),
        ({"source": ""}, "teacher.source: "),
        ({"relation_heads": 0}, "teacher.relation_heads: "),
        ({"sauce": "best"}, "unknown key teacher.sauce; did you mean source?"),
    ],
)
def test_a_teacher_that_cannot_be_is_refused_by_its_key(section: dict[str, Any], words: str):
    with pytest.raises(NasdError) as caught:
        parse(small_dict(teacher=section), "c.toml")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_without_a_teacher_nobody_has_one_and_nothing_waits_for_it(generation_1: Snapshot):
    config = small_config()
    assert config.teacher is None
    for one in generation_1.candidates.values():
        assert ladder.teacher_of(generation_1, config, one) is None
        assert ladder.teacher_name(generation_1, config, one) == ""
    assert ladder.teachers(generation_1, config, 1) == set()
    assert ladder.teacher_is_known(generation_1, config)


@pytest.mark.parametrize(
    ("stage", "model"),
    [("pretrain_0", "prepare"), ("pretrain_1", "prepare"), ("finetune", "finetune")],
)
def test_a_stage_learns_from_the_last_model_of_its_own_task(
    generation_1: Snapshot, stage: str, model: str
):
    config = config_with()
    found = put(generation_1, {4: (stage, State.PENDING)})
    one = found.candidates[4]
    assert ladder.teacher_of(found, config, one) == (BASELINE, model)
    assert ladder.teacher_name(found, config, one) == "the baseline"
    without_head = replace(
        found,
        experiment=replace(
            found.experiment,
            prepared={**(found.experiment.prepared or {}), "has_mlm_head": False},
        ),
    )
    given = "pretrain_head" if model == "prepare" else model
    assert ladder.teacher_of(without_head, config, one) == (BASELINE, given)


def test_who_only_answers_and_the_baseline_itself_learn_from_nobody(generation_1: Snapshot):
    config = config_with()
    found = put(
        generation_1, {4: ("evaluate", State.PENDING), BASELINE: ("finetune", State.PENDING)}
    )
    assert ladder.teacher_of(found, config, found.candidates[4]) is None
    assert ladder.teacher_of(found, config, found.baseline) is None
    assert not ladder.taught(config, found.baseline)


def test_a_candidate_of_the_baselines_architecture_is_taught_as_all_others(generation_1: Snapshot):
    found = put(generation_1, {4: ("finetune", State.PENDING)})
    twin = replace(found.candidates[4], genotype_json=found.baseline.genotype_json)
    assert ladder.teacher_of(found, config_with(), twin) == (BASELINE, "finetune")


def test_an_outside_teacher_teaches_all_but_only_to_answer(generation_1: Snapshot):
    config = config_with("bert-large")
    for stage, learns in (("pretrain_1", False), ("finetune", True), ("evaluate", False)):
        found = put(generation_1, {4: (stage, State.PENDING)})
        assert ladder.taught(config, found.candidates[4]) == learns
        assert ladder.teacher_of(found, config, found.candidates[4]) is None
        assert ladder.teacher_name(found, config, found.candidates[4]) == (
            "bert-large" if learns else ""
        )
    at = put(generation_1, {BASELINE: ("finetune", State.PENDING)})
    assert ladder.taught(config, at.baseline)


def test_the_best_of_the_parents_teaches_and_the_baseline_where_it_is_better(
    generation_1: Snapshot,
):
    config = config_with("best")
    parents = {
        one.candidate
        for one in generation_1.members
        if one.generation == 1 and one.role == "parent"
    }
    pool = sorted({*parents, BASELINE}, key=lambda one: (generation_1.quality(one) or 0.0, -one))
    found = put(generation_1, {4: ("finetune", State.PENDING)})
    assert ladder.teacher_of(found, config, found.candidates[4]) == (pool[-1], "finetune")
    # Take from each the score that makes it the best: the next one is.
    seen = []
    for _ in pool:
        origin = ladder.teacher_of(found, config, found.candidates[4])
        assert origin is not None
        seen.append(origin[0])
        results = {
            key: replace(one, metrics_json='{"loss": 9.0, "exact_match": 0.0, "f1": 0.0}')
            if key == (origin[0], "evaluate")
            else one
            for key, one in found.results.items()
        }
        found = replace(found, results=results)
    assert set(pool[1:]) <= set(seen)


def test_the_first_generation_learns_from_the_baseline_and_waits_for_it(tmp_path: Path):
    for source in ("baseline", "best"):
        state = StateFolder(tmp_path / source)
        tick = make_tick(state, config_with(source))
        found = drive(tick, lambda snapshot: snapshot.generation is not None)
        tick.store.close()
        done = {stage for candidate, stage in found.results if candidate == BASELINE}
        assert "finetune" in done
        assert ladder.teachers(found, config_with(source), 0) == {
            (BASELINE, "finetune"),
            (BASELINE, "prepare"),
        }


def test_a_later_generation_waits_for_the_score_of_a_baseline_that_may_be_its_teacher(
    generation_1: Snapshot,
):
    whole = replace(generation_1.generations[0], phase=Phase.COMPLETE)
    born = {one.id: ("evaluate", State.SCORED) for one in generation_1.born_in(0)}
    found = put(replace(generation_1, generations=(whole,)), born)
    running = put(found, {BASELINE: ("evaluate", State.RUNNING)})
    for source, opens in (("best", False), ("baseline", True)):
        opened = decisions.next_decision(running, config_with(source))
        assert isinstance(opened, decisions.OpenGeneration) == opens
    scored = put(found, {BASELINE: ("evaluate", State.SCORED)})
    assert isinstance(
        decisions.next_decision(scored, config_with("best")), decisions.OpenGeneration
    )


def test_every_attempt_of_a_search_is_told_of_a_teacher_whose_weights_are_kept_as_long_as_it_runs(
    tmp_path: Path,
):
    data = task_dict(population__mu=3, population__lambda=4, experiment__generations=3)
    config = parse(data | {"teacher": {"source": "best"}}, "task.toml")
    state = StateFolder(tmp_path / "state")
    tick = make_tick(state, config)
    found = drive(tick)
    assert found.experiment.state == "complete"
    taught = 0
    for attempt in found.attempts:
        spec = read(Spec, state.attempt(attempt.id).spec)
        one = found.candidates[attempt.candidate]
        if attempt.stage != "finetune" or one.is_baseline:
            assert spec.teacher is None
            continue
        taught += 1
        assert spec.teacher is not None
        assert one.generation is not None
        parents = [
            member.candidate
            for member in found.members
            if member.generation == one.generation and member.role == "parent"
        ]
        pool = [BASELINE, *parents] if one.generation else [BASELINE]
        best = max(pool, key=lambda number: (found.quality(number) or 0.0, -number))
        assert spec.teacher.weights == str(state.result(best, "finetune"))
    assert taught >= 3 + 3 * 4


def test_weights_that_the_newest_generation_learns_from_are_needed(generation_1: Snapshot):
    config = config_with("best")
    (teacher, *_) = {one for one, _ in ladder.teachers(generation_1, config, 1)}
    # Selected out while somebody still climbs, as one that is trained on by request does.
    members = tuple(
        replace(one, survives=False, rank=0, crowding=0.0) if one.generation == 1 else one
        for one in generation_1.members
    )
    found = replace(generation_1, members=members)
    needed = retention.needed(found, config, [])
    assert {(teacher, "finetune")} <= needed
    assert ladder.teachers(found, config, 1) <= needed


def test_show_tells_what_a_stage_leaves_besides_what_one_training_comes_to(tmp_path: Path):
    state = StateFolder(tmp_path / "state")
    config = small_config(stages__finetune__soup=3, stages__finetune__average=0.25)
    tick = make_tick(state, config)
    drive(tick, phase_of(0, Phase.CLIMBING))
    found = dossier.compile_dossier(state.path, "1", tick.clock())
    tick.store.close()
    console = Console(file=StringIO(), width=100, force_terminal=False, color_system=None)
    console.print(dossier_view.render(found))
    assert isinstance(console.file, StringIO)
    told = "finetune leaves the mean of 3 trainings from one start, with 25 % of the weights as it"
    assert told in console.file.getvalue()


def test_a_teacher_computed_along_costs_a_third_and_one_that_was_asked_before_nothing():
    block = Block(4, (FeedForward("relu", (64,)),))
    genotype, volumes = Genotype((block,) * 3), Volumes(2000, 8, 400, 100, 404, 1000)

    def steps(config: Config, name: str) -> float:
        stage = next(one for one in config.stages if one.name == name)
        along = config.taught_along(stage, baseline=False)
        asked = (stage, genotype, unchanged(genotype), BACKBONE, config.data, volumes)
        return work(*asked, along).step_flop

    plain = small_config()
    for name, match, ratio in (
        ("finetune", ["logits"], 1.0),
        ("finetune", ["logits", "hidden"], 4 / 3),
        ("pretrain_1", ["logits"], 4 / 3),
    ):
        taught = steps(config_with(match=match), name)
        assert taught == pytest.approx(ratio * steps(plain, name))
    finetune = next(one for one in plain.stages if one.name == "finetune")
    assert not config_with(match=["hidden"]).taught_along(finetune, baseline=True)


def test_show_tells_who_taught_a_candidate_and_in_which_stages(tmp_path: Path):
    state = StateFolder(tmp_path / "state")
    tick = make_tick(state, config_with())
    drive(tick, phase_of(0, Phase.CLIMBING))
    found = dossier.compile_dossier(state.path, "1", tick.clock())
    assert {row.stage: row.teacher for row in found.stages} == {
        "pretrain_0": "the baseline",
        "pretrain_1": "the baseline",
        "finetune": "the baseline",
        "evaluate": "",
    }
    console = Console(file=StringIO(), width=80, force_terminal=False, color_system=None)
    console.print(dossier_view.render(found))
    assert isinstance(console.file, StringIO)
    shown = console.file.getvalue()
    assert "learns from the baseline as well, in pretrain_0 and pretrain_1 and finetune" in shown
    own = dossier.compile_dossier(state.path, "baseline", tick.clock())
    assert not any(row.teacher for row in own.stages)
    tick.store.close()
