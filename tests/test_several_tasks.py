"""A search of several tasks: what is trained for each from what, and what their scores come to."""

import json
import os
import signal
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from typer.testing import CliRunner

from nasd.cli import app
from nasd.contract import tasks
from nasd.contract.config import Config, Data, load, parse
from nasd.contract.errors import NasdError
from nasd.contract.genotype import Genotype
from nasd.contract.protocol import Outcome, Spec
from nasd.contract.volumes import Volumes
from nasd.control import retention
from nasd.export.export import export
from nasd.launch.launcher import wait_until
from nasd.policy import ladder
from nasd.presets import rewritten, write_preset
from nasd.presets.demo import write_demo_data
from nasd.record import lookup, snapshot
from nasd.record.folders import StateFolder
from nasd.record.lifecycle import State
from nasd.record.state import Snapshot
from nasd.views.report import write as report
from nasd.worker import inputs
from nasd.worker import stage as worker
from nasd.worker.model import phenotype
from nasd.worker.tasks import registry
from nasd.worker.tasks.task import Ranks
from nasd.worker.training.progress import quiet
from tests.conftest import (
    drive,
    make_tick,
    of_tuned_parents,
    small_dict,
    succeeded,
    without_summaries,
)
from tests.labelled import FILES, search_values, write
from tests.training import make_workshop

STEPS = {"narrow": 2, "widen": 1, "fewer_heads": 1, "more_heads": 1, "cross": 2}


def several_dict(by_task: bool = False, **changes: Any) -> dict[str, Any]:
    """Questions, labels of texts and labels of words; a stage of each that trains, and one that
    scores. by_task: children begin from fine-tuned parents, and there are no MLM stages."""
    data = small_dict(**changes)
    for task in (tasks.CLASSIFY, tasks.TAG):
        data["data"][task.data] = {"files": [f"{task.name}.jsonl"], "tokens": 48}
        for one in ("finetune", "evaluate"):
            stage = next(stage for stage in data["stages"] if stage["name"] == one)
            data["stages"].append({**stage, "name": f"{one}_{task.name}", "task": task.name})
    return of_tuned_parents(data, STEPS) if by_task else data


def several(**changes: Any) -> Config:
    return parse(several_dict(**changes), "several.toml")


def scores_of(spec: Spec) -> dict[str, float]:
    """Of each task other ones, as a genotype has them."""
    luck = int(Genotype.from_json(spec.genotype).hash[:8], 16)
    assert spec.stage is not None
    if spec.stage.task == tasks.QA.name:
        said = {"exact_match": float(luck % 53), "f1": float(luck % 53 + luck % 11)}
        return {**said, "quality_error": 3.0}
    task = tasks.of(spec.stage.task)
    place = list(tasks.TASKS).index(task.name)
    found = float(luck // 7**place % 97)
    error = {"classify": 4.0, "tag": 12.0}[task.name]
    return {**{name: found for name, _ in task.shown}, "quality": found, "quality_error": error}


def scripted(spec: Spec, before: int) -> tuple[float, Outcome | None]:
    outcome = succeeded(spec)
    if outcome.prepared is not None:
        counts = {"labelled_train": 100, "labelled_test": 40, "labelled_tokens": 12.0}
        each = {
            name: {**counts, "labelled_cache": f"/cache/{name}"} for name in ("classify", "tag")
        }
        found = outcome.prepared.model_copy(update={**counts, "labelled_tasks": each})
        outcome = outcome.model_copy(update={"prepared": found})
    if spec.stage is not None and spec.stage.train == "none":
        metrics = {"loss": 1.0, **scores_of(spec)}
        outcome = outcome.model_copy(update={"metrics": metrics})
    return 30.0, outcome


def finished(folder: Path, config: Config) -> tuple[Snapshot, list[Spec]]:
    with without_summaries():
        tick = make_tick(StateFolder(folder / "state"), config, scripted)
        drive(tick)
        found = tick.store.read()
        specs = tick.launcher.specs  # type: ignore[attr-defined]
        tick.store.close()
    return found, specs


def own(found: Snapshot, candidate: int) -> dict[str, float]:
    """The quality of each task, by its own evaluation."""
    stages = {"qa": "evaluate", "classify": "evaluate_classify", "tag": "evaluate_tag"}
    metrics = {task: found.results[candidate, name].metrics for task, name in stages.items()}
    qa = metrics["qa"]
    return {
        "qa": (qa["exact_match"] + qa["f1"]) / 2,
        "classify": metrics["classify"]["accuracy"],
        "tag": metrics["tag"]["f1"],
    }


ERRORS = {"qa": 3.0, "classify": 4.0, "tag": 12.0}
COMES_TO = {
    "mean": lambda each: sum(each.values()) / len(each),
    "worst": lambda each: min(each.values()),
    "classify": lambda each: each["classify"],
}


@pytest.mark.parametrize("by", COMES_TO)
@pytest.mark.parametrize("by_task", [False, True])
def test_each_task_has_its_score_and_what_they_come_to_is_selected_by(
    tmp_path: Path, by: str, by_task: bool
) -> None:
    found, _ = finished(tmp_path, several(by_task=by_task, experiment__quality=by))
    assert found.experiment.state == "complete"
    scored = [one for one in found.candidates.values() if one.state is State.SCORED]
    assert len(scored) > 4
    for one in scored:
        each = own(found, one.id)
        scores = found.scores(one.id)
        assert scores is not None
        assert {name: scores[tasks.own_quality(name)] for name in each} == each
        assert found.quality(one.id) == pytest.approx(COMES_TO[by](each))
        for name in each:
            told = found.task_scores(one.id, name)
            assert told is not None and told.keys() >= {name for name, _ in tasks.of(name).shown}
            assert told.get("quality", each[name]) == each[name]
            assert told["quality_error"] == ERRORS[name]
        error = {"mean": 13 / 3, "worst": ERRORS[min(each, key=lambda one: each[one])]}
        assert found.quality_error(one.id) == pytest.approx(error.get(by, 4.0))
    chosen = found.decisions[-1].points
    assert chosen
    assert all(at["quality"] == found.quality(number) for number, at in chosen.items())


def test_each_task_starts_from_its_own_parents_or_from_what_all_build_on(tmp_path: Path) -> None:
    """By lineage of the task a child's model is born of its parents' for the same task; else all of
    them build on its last MLM stage."""
    for by_task, folder in ((True, "task"), (False, "mlm")):
        config = several(by_task=by_task)
        found, specs = finished(tmp_path / folder, config)
        children = {one.id: one for one in found.candidates.values() if one.generation}
        seen = set()
        for spec in specs:
            if spec.candidate not in children or spec.stage is None:
                continue
            weights = Path(str(spec.weights))
            candidate, stage = int(weights.parent.name), weights.name
            if spec.stage.train == "none":
                task = spec.stage.task
                assert (candidate, spec.inherits) == (spec.candidate, False)
                assert stage == ("finetune" if task == "qa" else f"finetune_{task}")
            elif by_task:
                assert candidate == children[spec.candidate].parent and spec.inherits
                assert stage == spec.stage.name
                seen.add(spec.second_weights is not None)
            elif spec.stage.task != "mlm":
                assert (candidate, stage, spec.inherits) == (spec.candidate, "pretrain_1", False)
        assert seen == ({True, False} if by_task else set())


@pytest.mark.parametrize("rungs", [[], [{"at": 0.5, "keep": 0.5}]])
@pytest.mark.parametrize("by_task", [False, True])
def test_weights_stay_until_the_last_task_has_begun_from_them(
    tmp_path: Path, by_task: bool, rungs: list[Any]
) -> None:
    config = several(by_task=by_task, stages__finetune__rungs=rungs)
    with without_summaries():
        tick = make_tick(StateFolder(tmp_path / "state"), config, scripted)
        asked = 0

        def looked(found: Snapshot) -> bool:
            nonlocal asked
            kept = retention.needed(found, config, tick.store.scored())
            for one in found.candidates.values():
                if one.final or one.stage == "prepare":
                    continue
                steps = ladder.steps_of(found, config, one)
                done = steps[: steps.index(one.stage)]
                for step in steps[len(done) :]:
                    start = ladder.before(found, config, one, step)
                    if start in done:
                        assert (one.id, start) in kept
                    elif start is None and one.parent is not None:
                        task = next(stage.task for stage in config.parts if stage.name == step)
                        left = ladder.left_by(found, config, one.parent, task)
                        assert (one.parent, left) in kept
                    asked += 1
            return False

        drive(tick, looked)
        tick.store.close()
    assert asked > 50


def test_the_first_generation_waits_until_the_baseline_has_weights_for_every_task(
    tmp_path: Path,
) -> None:
    config = several(by_task=True)
    with without_summaries():
        tick = make_tick(StateFolder(tmp_path / "state"), config, scripted)
        found = drive(tick, lambda seen: seen.generation is not None)
        tick.store.close()
    assert {stage for one, stage in found.results if not one} >= {
        "finetune", "finetune_classify", "finetune_tag",
    }  # fmt: skip


def without(data: dict[str, Any], *names: str) -> dict[str, Any]:
    return {**data, "stages": [one for one in data["stages"] if one["name"] not in names]}


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (several_dict(experiment__quality="regress"), 'no stage is of task = "regress"'),
        (several_dict(experiment__quality="best"), 'take one of "mean", "worst", "qa"'),
        (without(several_dict(), "finetune_tag"), "nothing trains the candidates for token"),
        (without(several_dict(), "evaluate"), "nothing scores the candidates for question"),
        (without(several_dict(), "finetune_tag", "evaluate_tag"), "data.tag: no stage is of"),
        (several_dict(teacher={"source": "elsewhere"}), "a teacher from outside knows one task"),
        (
            {
                **several_dict(),
                "stages": [*several_dict()["stages"][3:], *several_dict()["stages"]],
            },
            "the name 'finetune' is taken",
        ),
    ],
)
def test_what_does_not_fit_several_tasks_is_refused(data: dict[str, Any], said: str) -> None:
    with pytest.raises(NasdError) as refused:
        parse(data, "config")
    assert said in str(refused.value)


def test_what_all_tasks_build_on_stands_before_them() -> None:
    data = several_dict()
    names = [one["name"] for one in data["stages"]]
    late = data["stages"].pop(names.index("pretrain_1"))
    data["stages"].insert(-2, late)
    with pytest.raises(
        NasdError, match=r"stages\.pretrain_1: all tasks build on it: put it before"
    ):
        parse(data, "config")


def test_each_task_counts_its_own_examples() -> None:
    data = several().data
    prepared = {
        "labelled_train": 10, "labelled_test": 4, "labelled_tokens": 9.0,
        "labelled_tasks": {
            "classify": {"labelled_train": 10, "labelled_test": 4, "labelled_tokens": 9.0},
            "tag": {"labelled_train": 70, "labelled_test": 30, "labelled_tokens": 20.0},
        },
    }  # fmt: skip
    volumes = Volumes.of(prepared, data)
    assert [one.examples(volumes) for one in (tasks.CLASSIFY, tasks.TAG)] == [10, 70]
    assert [one.counts(prepared) for one in (tasks.CLASSIFY, tasks.TAG)] == [(10, 4), (70, 30)]
    assert tasks.TAG.tokens(data, volumes) == 20.0
    assert tasks.focused(data, "tag") == data.model_copy(update={"qa": None, "classify": None})
    assert tasks.focused(data, "mlm") is data


# -- with real training --------------------------------------------------------------------------

ALONE = Ranks(0, 1, torch.device("cpu"))
TWO = {
    "experiment.name": "several tasks",
    "experiment.quality": "worst",
    "stages.finetune_baseline.epochs": 0.5,
    "stages.finetune.epochs": 0.25,
    "population.screened": 1,
}


def several_text(*more: str, **changes: Any) -> str:
    """A tiny search of questions, and of labels of the same sentences for each of these tasks."""
    plain = search_values(tasks.CLASSIFY.name)
    kept = {
        key: value for key, value in plain.items() if not key.endswith(".task") and key != "data.qa"
    }
    files = {f"data.{name}.files": [FILES[name]] for name in more}
    tokens = {f"data.{name}.tokens": 48 for name in more}
    values = {**kept, **files, **tokens, **TWO, **changes}
    text = rewritten("demo", "# A search of the tests.\n", values)
    import tomlkit

    document = tomlkit.parse(text)
    stages = document["stages"]
    for stage in list(stages):  # type: ignore[union-attr, arg-type]
        for name in more:
            one = {**dict(stage), "name": f"{stage['name']}_{name}", "task": name}
            stages.append(one)  # type: ignore[union-attr]
    return tomlkit.dumps(document)


def told(found: Snapshot) -> Any:
    """What must not depend on what was killed."""
    born = [
        (one.id, one.parent, one.hash, one.state, one.stage) for one in found.candidates.values()
    ]
    results = {key: (one.metrics, one.curve, one.steps) for key, one in found.results.items()}
    return born, found.decisions, found.members, results


def read(state: Path) -> Snapshot | None:
    try:
        with snapshot.opened(state) as connection:
            return snapshot.read(connection)
    except NasdError:
        return None


def run(folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "nasd", "run", "--config", str(folder / "config.toml")],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def world(folder: Path) -> Path:
    folder.mkdir()
    write_demo_data(folder / "demo-data")
    write(folder, "classify", 120)
    (folder / "config.toml").write_text(several_text("classify"))
    return folder


def test_a_worker_trains_and_scores_each_task_by_its_own_data_and_labels(tmp_path: Path) -> None:
    """From the same weights, as prepare leaves them; and again where a cache was damaged."""
    for name in ("classify", "tag"):
        write(tmp_path, name, 80)
    config = parse(tomllib.loads(several_text("classify", "tag")), "several.toml")
    shop = make_workshop(tmp_path, config)
    told = shop.prepared.model_dump()
    caches = {name: one["labelled_cache"] for name, one in told["labelled_tasks"].items()}
    assert caches.keys() == {"classify", "tag"}
    for stage in config.ladder("candidates"):
        found = tasks.prepared_of(told, stage.task)
        spec = shop.spec(
            stage, labelled_cache=found["labelled_cache"], labelled_caches=caches, seed=5
        )
        own = worker.focused(spec)
        assert [one.name for one in tasks.all_scored(own.data)] == [stage.task]
        if stage.train == "none":
            folder = tmp_path / f"trained-{stage.task}"
            score = registry.of(stage).score
            assert score is not None
            scored = own.model_copy(update={"weights": str(folder)})
            metrics = score(scored, stage, tmp_path / stage.name, ALONE, 16, quiet)
            assert metrics.keys() == set(tasks.of(stage.task).metrics)
            continue
        task = registry.begin(own, stage, ALONE)
        assert task.model.architecture.labels == tuple(
            found["labels"] if stage.task != "qa" else ()
        )
        task.loss(
            task.outputs(task.model, task.batch(np.arange(2), 1)), task.batch(np.arange(2), 1)
        )
        phenotype.save(task.model, tmp_path / f"trained-{stage.task}")
    damaged = Path(caches["tag"]) / "train" / "tokens.npy"
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:-8] + bytes(8))
    inputs.check(spec, quiet)
    assert damaged.read_bytes() == whole


@pytest.mark.heavy
@pytest.mark.timeout(900)
def test_a_search_of_two_tasks_survives_a_kill_and_its_models_can_be_taken_home(
    tmp_path: Path,
) -> None:
    folder = world(tmp_path / "killed")
    state = folder / "state"
    first = run(folder)

    def between() -> bool:
        """A candidate has its first task's score, and not the other's."""
        found = read(state)
        done = set() if found is None else {(one, name) for one, name in found.results if one}
        return any(
            (one, "finetune_classify") not in done for one, name in done if name == "evaluate"
        )

    assert wait_until(between, 300), first.communicate(timeout=1)
    for one in psutil.Process(first.pid).children(recursive=True):
        one.kill()
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()
    second = run(folder)
    said, _ = second.communicate(timeout=400)
    assert second.returncode == 0, said
    found = read(state)
    assert found is not None
    assert found.experiment.state == "complete"
    undisturbed = world(tmp_path / "whole")
    said, _ = run(undisturbed).communicate(timeout=400)
    whole = read(undisturbed / "state")
    assert whole is not None, said
    assert told(found) == told(whole)
    assert found.quality_words == "the lowest of its tasks'"
    for one in found.individuals:
        scores = found.scores(one.id)
        assert scores is not None
        topics = found.results[one.id, "evaluate_classify"].metrics
        assert scores["classify_quality"] == topics["accuracy"]
        assert found.quality(one.id) == min(scores["qa_quality"], scores["classify_quality"])
    status = json.loads(_said(folder, "status", "--json"))
    assert {"qa_quality", "classify_quality"} <= set(json.dumps(status).replace('"', " ").split())
    assert "classify" in _said(folder, "show", "best")
    page = report.write(report.read(state), folder / "report").read_text()
    assert "qa, %" in page and "classify, %" in page
    with pytest.raises(NasdError, match="name one with --task"):
        export(state, lookup.BEST, folder / "home")
    for task in (tasks.QA, tasks.CLASSIFY):
        done = export(state, lookup.BEST, folder / task.name, task=task.name)
        card = (done.folder / "README.md").read_text()
        assert task.card is not None and task.card.does in card
        assert "quality of qa" in card and "quality of classify" in card
    assert "label" in _ask(folder / "classify")


def _said(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "nasd", *arguments, "--config", str(folder / "config.toml")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _ask(model: Path) -> str:
    from nasd.export import answer as oracle

    (found,) = oracle.predict(model, ["Mara keeps a red kite in the old mill."])
    return json.dumps({"label": found.label})  # type: ignore[union-attr]


def test_an_old_config_reads_as_one_of_a_single_task() -> None:
    config = parse(small_dict(), "config")
    assert [one.name for one in config.scoring] == ["qa"]
    assert config.focused("qa") == config
    assert isinstance(tasks.focused(config.data, "qa"), Data)


# -- nasd init -----------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", ["thesis", "compress", "minilm", "minilm-thesis"])
@pytest.mark.parametrize("names", [["classify"], ["regress"], ["tag"], ["classify", "tag", "qa"]])
def test_every_preset_but_the_demo_s_can_be_for_other_tasks(
    tmp_path: Path, preset: str, names: list[str]
) -> None:
    path = write_preset(preset, tmp_path, [], force=False, tasks=names)
    config = load(path)
    plain = load(write_preset(preset, tmp_path / "plain", [], force=False))
    assert {one.name for one in config.scoring} == set(names)
    assert [one.name for one in config.focused(config.scoring[0].name).stages] == [
        one.name for one in plain.stages
    ]
    for name in set(names) - {"qa"}:
        assert getattr(config.data, name).files
    assert ("quality =" in path.read_text()) == (len(names) > 1)
    assert (config.data.qa == plain.data.qa) == ("qa" in names)


def test_init_names_the_data_it_was_given(tmp_path: Path) -> None:
    write(tmp_path, "classify", 60)
    made = CliRunner().invoke(
        app,
        [
            "init", "--preset", "compress", "--task", "classify",
            "--data", str(tmp_path / FILES["classify"]), str(tmp_path / "new"),
        ],
    )  # fmt: skip
    assert made.exit_code == 0, made.output
    config = load(tmp_path / "new" / "config.toml")
    assert config.data.classify is not None
    assert config.data.classify.files == (str(tmp_path / FILES["classify"]),)


@pytest.mark.parametrize(
    ("preset", "names", "files", "said"),
    [
        ("demo", ["classify"], [], "the data of the preset demo is of questions"),
        ("compress", ["mlm"], [], "--task mlm: there is no such task"),
        ("compress", ["tag", "tag"], [], "--task tag stands there twice"),
        ("compress", ["tag", "qa"], ["a.csv"], "--data: name the one --task"),
    ],
)
def test_init_refuses_what_no_config_can_be_made_of(
    tmp_path: Path, preset: str, names: list[str], files: list[str], said: str
) -> None:
    with pytest.raises(NasdError, match=said):
        write_preset(preset, tmp_path / "new", [], force=False, tasks=names, files=files)
    assert not (tmp_path / "new").exists()
