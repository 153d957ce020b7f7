"""Tasks: one entry each in either plane, and no other place that knows one from another."""

import ast
from pathlib import Path

import pytest

import nasd
from nasd.contract import tasks
from nasd.contract.config import parse
from nasd.contract.errors import NasdError
from nasd.contract.genotype import Backbone, Block, FeedForward, Genotype, unchanged
from nasd.contract.volumes import Volumes
from nasd.estimate.cost import work
from tests.training import demo_config

ROOT = Path(nasd.__file__).parent
# Where a task may be told from another: its own files, in either plane.
OWN = {"contract/tasks.py", *(f"worker/tasks/{name}.py" for name in tasks.TASKS)}
VOLUMES = Volumes(2000, 8, 400, 100, 404, 1000, qa_tokens=40.0)
ENTRIES = pytest.mark.parametrize("task", tasks.TASKS.values(), ids=lambda one: one.name)


def test_no_file_but_its_own_names_a_task():
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in sorted(ROOT.rglob("*.py"))
        if str(path.relative_to(ROOT)) not in OWN and "worker" not in path.parts
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and node.value in tasks.TASKS
    ]
    assert found == []


@ENTRIES
def test_each_entry_says_all_that_the_control_plane_asks(task: tasks.Task):
    config = demo_config()
    assert tasks.of(task.name) is task
    assert task.words
    assert task.stage.split(" ")[0] in ("a", "an")
    assert "loss" in task.metrics
    assert hasattr(config.data, task.data)
    assert ("none" in task.trains) == task.scores  # what trains nothing is there to score
    assert 0 < task.tokens(config.data, VOLUMES) <= task.limit(config.data)
    assert task.looks(VOLUMES) > 0
    assert bool(task.tested(VOLUMES)) == task.scores
    masks = task.masks(config.data)
    assert masks is None or 0 < masks < task.limit(config.data)


@ENTRIES
def test_each_entrys_stages_are_accepted_with_what_it_trains_and_priced(task: tasks.Task):
    config = demo_config()
    ffn = FeedForward("relu", (64,))
    genotype = Genotype((Block(4, (ffn,)), Block(4, (ffn, ffn))))
    backbone = Backbone(width=64, vocab_size=500, positions=128)
    alike = [stage for stage in config.stages if stage.task == task.name]
    assert {stage.train for stage in alike} <= set(task.trains)
    for train in task.trains:
        like = next(stage for stage in alike if (stage.train == "none") == (train == "none"))
        stage = like.model_copy(update={"train": train})
        asked = work(stage, genotype, unchanged(genotype), backbone, config.data, VOLUMES)
        assert asked.flop > 0
        assert bool(asked.steps) == (train in ("all", "head"))  # nothing is new here


@ENTRIES
def test_what_a_task_does_not_train_is_refused_in_a_sentence_that_names_who_does(
    task: tasks.Task,
):
    for train in {"new", "all", "head", "none"} - set(task.trains):
        config = demo_config().model_dump(by_alias=True)
        stage = next(one for one in config["stages"] if one["task"] == task.name)
        stage |= {"train": train, "keep": None}
        if train == "none":
            stage |= {"epochs": None, "learning_rate": None}
        with pytest.raises(NasdError) as caught:
            parse(config, "config.toml")
        assert f'train = "{train}" stands only on' in str(caught.value)
        assert all(one.stage in str(caught.value) for one in tasks.allowing(train))
