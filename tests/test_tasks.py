"""Tasks: one entry each in either plane, and no other place that knows one from another."""

import ast
import math
from collections.abc import Callable, Iterator
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import nasd
from nasd.contract import tasks
from nasd.contract.config import Config, parse
from nasd.contract.errors import NasdError
from nasd.contract.genotype import (
    Backbone,
    Block,
    BlockLineage,
    FeedForward,
    Genotype,
    unchanged,
)
from nasd.contract.protocol import Spec
from nasd.contract.volumes import Volumes
from nasd.estimate.cost import work
from nasd.worker.model import phenotype
from nasd.worker.tasks import registry
from nasd.worker.tasks.task import Batch, Outputs, Ranks, Task
from nasd.worker.training.progress import quiet
from nasd.worker.training.train import train as run_training
from tests.labelled import LABELLED, search_config, write
from tests.training import Notes, Workshop, demo_config, make_workshop, run_of

ROOT = Path(nasd.__file__).parent
# Where a task may be told from another: its own files, in either plane.
OWN = {"contract/tasks.py", *(f"worker/tasks/{name}.py" for name in tasks.TASKS)}
VOLUMES = Volumes(
    2000, 8, 400, 100, 404, 1000, qa_tokens=40.0,
    labelled_train=400, labelled_test=100, labelled_tokens=20.0,
)  # fmt: skip


def config_for(name: str) -> Config:
    """Of a search with stages of the task."""
    return search_config(name) if name in LABELLED else demo_config()


ENTRIES = pytest.mark.parametrize("task", tasks.TASKS.values(), ids=lambda one: one.name)


def outside_types(node: ast.AST) -> Iterator[ast.AST]:
    """All below, but for what a Literal says: the words that a key may have are a type."""
    for below in ast.iter_child_nodes(node):
        named = below.value if isinstance(below, ast.Subscript) else None
        if not (isinstance(named, ast.Name) and named.id == "Literal"):
            yield below
            yield from outside_types(below)


def test_no_file_but_its_own_names_a_task():
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in sorted(ROOT.rglob("*.py"))
        if str(path.relative_to(ROOT)) not in OWN
        for node in outside_types(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and node.value in tasks.TASKS
    ]
    assert found == []


@ENTRIES
def test_each_entry_says_all_that_the_control_plane_asks(task: tasks.Task):
    config = config_for(task.name)
    assert tasks.of(task.name) is task
    assert task.words
    assert task.stage.split(" ")[0] in ("a", "an")
    assert "loss" in task.metrics
    assert hasattr(config.data, task.data)
    assert ("none" in task.trains) == task.scores  # what trains nothing is there to score
    assert 0 < task.tokens(config.data, VOLUMES) <= task.limit(config.data)
    assert task.looks(VOLUMES) > 0
    assert bool(task.tested(VOLUMES)) == task.scores
    assert {metric for metric, _ in task.shown} <= set(task.metrics)
    assert bool(task.shown) == task.scores == (task.card is not None)
    assert task.chosen == ("quality" in task.metrics)
    masks = task.masks(config.data)
    assert masks is None or 0 < masks < task.limit(config.data)


@ENTRIES
def test_each_entrys_stages_are_accepted_with_what_it_trains_and_priced(task: tasks.Task):
    config = config_for(task.name)
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
        config = config_for(task.name).model_dump(by_alias=True)
        stage = next(one for one in config["stages"] if one["task"] == task.name)
        stage |= {"train": train, "keep": None}
        if train == "none":
            stage |= {"epochs": None, "learning_rate": None}
        with pytest.raises(NasdError) as caught:
            parse(config, "config.toml")
        assert f'train = "{train}" stands only on' in str(caught.value)
        assert all(one.stage in str(caught.value) for one in tasks.allowing(train))


# --- the worker's entries -------------------------------------------------------------------

WORKERS = pytest.mark.parametrize("name", registry.TASKS)
STEPS = [(name, train) for name, one in tasks.TASKS.items() for train in one.trains]
TRAINING = pytest.mark.parametrize(("name", "train"), [one for one in STEPS if one[1] != "none"])
# The loss of the demo's first four examples under its seed's weights, before loss and outputs were
# told apart.
LOSSES = {"mlm": 6.352739, "qa": 16.213848}


@pytest.fixture(scope="module")
def shops(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Workshop]:
    """A workshop for each task, made when it is asked for."""

    @cache
    def made(task: str) -> Workshop:
        folder = tmp_path_factory.mktemp("workshop")
        if task not in LABELLED:
            return make_workshop(folder)
        write(folder, task)
        return make_workshop(folder, search_config(task))

    return lambda name: made(name if name in LABELLED else "")


@pytest.fixture
def shop(shops: Callable[[str], Workshop], name: str) -> Workshop:
    return shops(name)


def spec_of(shop: Workshop, name: str, train: str, **changes: Any) -> Spec:
    """An attempt at a stage of the task; where new modules train, of a child with one."""
    stage = next(one for one in config_for(name).stages if one.task == name and one.train != "none")
    settings: dict[str, Any] = {"train": train, "epochs": 0.2, "batch": 8, "evaluations": 2}
    if train == "none":
        settings |= {"epochs": None, "learning_rate": None}
    if train == "head":
        settings |= {"who": "baseline", "keep": None}
    if train == "new":
        lowest, *others = unchanged(shop.baseline)
        fresh = BlockLineage.of(0, True, tuple("kept" for _ in lowest.ffns))
        changes |= shop.child(shop.baseline, (fresh, *others))
    return shop.spec(stage.model_copy(update=settings), **changes)


def begun(spec: Spec, ranks: Ranks) -> Task:
    assert spec.stage is not None
    return registry.begin(spec, spec.stage, ranks)


def loss_of(task: Task, indices: list[int], seed: int = 7) -> torch.Tensor:
    batch = task.batch(np.array(indices), seed)
    return task.loss(task.outputs(task.model, batch), batch)


def test_both_planes_know_the_same_tasks():
    assert registry.TASKS.keys() == tasks.TASKS.keys()
    for name, entry in registry.TASKS.items():
        assert (entry.score is not None) == tasks.of(name).scores


@TRAINING
def test_each_task_has_a_finite_loss_that_is_a_sum_over_examples_and_the_same_every_time(
    shop: Workshop, alone: Ranks, name: str, train: str
):
    spec = spec_of(shop, name, train)
    one, two = begun(spec, alone), begun(spec, alone)
    one.model.eval()
    two.model.eval()
    whole = loss_of(one, [0, 1, 2, 3])
    assert whole.shape == ()
    assert torch.isfinite(whole)
    assert torch.equal(whole, loss_of(two, [0, 1, 2, 3]))
    parts = loss_of(one, [0, 3]) + loss_of(one, [2, 1])
    torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_the_losses_are_what_they_were(shop: Workshop, alone: Ranks, name: str):
    task = begun(spec_of(shop, name, "all"), alone)
    task.model.eval()
    assert loss_of(task, [0, 1, 2, 3]).item() == pytest.approx(LOSSES[name], rel=1e-4)


@TRAINING
def test_each_task_trains_what_it_names_and_nothing_else(
    shop: Workshop, alone: Ranks, tmp_path: Path, name: str, train: str
):
    spec = spec_of(shop, name, train)
    task = begun(spec, alone)
    names = task.trainable()
    before = {key: p.detach().clone() for key, p in task.model.named_parameters()}
    assert names
    assert names <= before.keys()
    assert (names == before.keys()) == (train == "all")
    assert spec.stage is not None
    result = run_training(task, spec.stage, alone, run_of(tmp_path, Notes()))
    moved = {key for key, p in task.model.named_parameters() if not torch.equal(p, before[key])}
    assert moved
    assert moved <= names
    assert math.isfinite(result.metrics["loss"])


@WORKERS
def test_each_task_evaluates_to_the_metrics_that_the_control_plane_knows(
    shop: Workshop, alone: Ranks, name: str
):
    task, known = begun(spec_of(shop, name, "all"), alone), tasks.of(name)
    task.model.eval()
    found = task.evaluate(alone, 8, quiet)
    assert found == task.evaluate(alone, 8, quiet)
    assert {"loss"} <= found.keys() <= set(known.metrics)
    volumes = Volumes(**{one.name: getattr(shop.prepared, one.name) for one in counted()})
    assert task.train_size == known.examples(volumes)
    assert task.longest <= known.limit(shop.data)
    assert (task.lengths is not None) == known.varies
    assert task.uniform != known.varies
    masks = known.masks(shop.data)
    outputs = task.outputs(task.model, task.batch(np.arange(2), 7))
    assert all(len(one) == 2 for one in outputs)
    assert masks is None or outputs[0].shape[1] == masks


@WORKERS
def test_a_task_that_scores_leaves_all_its_metrics_and_the_same_every_time(
    shop: Workshop, alone: Ranks, tmp_path: Path, name: str
):
    score = registry.TASKS[name].score
    if score is None:
        assert "none" not in tasks.of(name).trains
        return
    weights = tmp_path / "weights"
    phenotype.save(begun(spec_of(shop, name, "all"), alone).model, weights)
    spec = spec_of(shop, name, "none", weights=weights)
    assert spec.stage is not None
    found = [score(spec, spec.stage, tmp_path / one, alone, 8, quiet) for one in ("a", "b")]
    assert found[0] == found[1]
    assert found[0].keys() == set(tasks.of(name).metrics)
    assert all(map(math.isfinite, found[0].values()))
    assert any((tmp_path / "a").iterdir())


def counted() -> list[Any]:
    return [one for one in fields(Volumes) if one.name not in ("qa_tokens", "by_task")]


def apart(task: Task, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """A teacher's outputs from a student's."""
    if task.compared == "values":
        return (one - other).square().sum()
    return (
        F.kl_div(one.log_softmax(-1), other.softmax(-1), reduction="sum") * len(one) / one.numel()
    )


class Distilled:
    """Another task, whose outputs are to be a teacher's as well: `share` of the loss is the
    divergence from those.  All else it leaves to the task that it is wrapped around."""

    def __init__(self, task: Task, teacher: torch.nn.Module, share: float) -> None:
        self._task, self._teacher, self._share = task, teacher, share

    def __getattr__(self, name: str) -> Any:
        return getattr(self._task, name)

    def outputs(self, model: torch.nn.Module, batch: Batch) -> Outputs:
        with torch.no_grad():
            said = self._task.outputs(self._teacher, batch)
        return (*self._task.outputs(model, batch), *said)

    def loss(self, outputs: Outputs, batch: Batch) -> torch.Tensor:
        mine, theirs = outputs[: len(outputs) // 2], outputs[len(outputs) // 2 :]
        between = sum(
            apart(self._task, one, other) for one, other in zip(mine, theirs, strict=True)
        )
        return (1 - self._share) * self._task.loss(mine, batch) + self._share * between


@WORKERS
def test_a_task_that_distils_can_wrap_any_other(
    shop: Workshop, alone: Ranks, tmp_path: Path, name: str
):
    spec = spec_of(shop, name, "all")
    plain, student = begun(spec, alone), begun(spec, alone)
    teacher = begun(spec, alone).model.eval()
    with torch.no_grad():
        for parameter in student.model.parameters():
            parameter.mul_(0.9)
        if name in LABELLED:  # a fresh head says next to nothing, as its teacher's does
            for parameter in student.model.get_submodule(student.model.head_name).parameters():
                parameter.mul_(10)
    taught: Task = Distilled(student, teacher, 1.0)
    half: Task = Distilled(student, teacher, 0.5)
    own: Task = Distilled(student, teacher, 0.0)
    for task in (plain, student):
        task.model.eval()
    alike = loss_of(Distilled(plain, teacher, 1.0), [0, 1, 2])
    torch.testing.assert_close(alike, torch.zeros(()), rtol=0, atol=1e-4)
    assert torch.equal(loss_of(own, [0, 1, 2]), loss_of(student, [0, 1, 2]))
    mean = (loss_of(own, [0, 1, 2]) + loss_of(taught, [0, 1, 2])) / 2
    torch.testing.assert_close(loss_of(half, [0, 1, 2]), mean)
    shown = [0, 1, 2] if name not in LABELLED else list(range(48))
    before = loss_of(taught, shown)
    assert before > 0
    assert spec.stage is not None
    stage = spec.stage.model_copy(update={"epochs": 1}) if name in LABELLED else spec.stage
    run_training(taught, stage, alone, run_of(tmp_path, Notes()))
    student.model.eval()
    assert loss_of(taught, shown) < before  # it has come closer to its teacher
