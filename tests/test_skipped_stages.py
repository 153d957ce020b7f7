"""Stages that only children with new modules climb: MLM behind fine-tuned parents."""

from collections.abc import Mapping
from copy import deepcopy
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from nasd.contract.config import Config, parse
from nasd.contract.errors import NasdError
from nasd.contract.genotype import (
    new_modules,
)
from nasd.contract.protocol import Spec
from nasd.control.tick import Tick
from nasd.estimate.pace import Effort
from nasd.policy import ladder
from nasd.record import snapshot as reading
from nasd.record.folders import StateFolder
from nasd.record.lifecycle import CandidateKind, State
from nasd.record.state import Snapshot
from nasd.views import dossier, dossier_view
from tests.conftest import (
    drive,
    make_tick,
    of_tuned_parents,
    open_quickly,
    small_dict,
    without_summaries,
)
from tests.test_retention import drive_within_bounds, search

STEPS = {"narrow": 2, "widen": 2, "factorise": 1, "drop_block": 3, "add_block": 1, "cross": 1}
LANGUAGE = {"who": "new", "keep": None, "slots": 1}


def new_dict(**changes: Any) -> dict[str, Any]:
    """Children of fine-tuned parents, whose new modules are trained by MLM first."""
    plain = small_dict(population__control=True, **changes)
    first = next(one for one in plain["stages"] if one["name"] == "pretrain_0")
    data = of_tuned_parents(deepcopy(plain), STEPS)
    data["variation"]["steps"] = [1, 1]
    data["search_space"] |= {"ranks": [4, 8], "frequent_words": 5}
    data["stages"].insert(0, {**first, **LANGUAGE})
    return data


def new_config(**changes: Any) -> Config:
    return parse(new_dict(**changes), "new.toml")


def born(found: Snapshot) -> list[Any]:
    return [one for one in found.candidates.values() if one.generation is not None]


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Tick:
    config = new_config(population__mu=5, population__lambda=6, experiment__generations=1)
    with without_summaries():
        tick = make_tick(StateFolder(tmp_path_factory.mktemp("new") / "state"), config)
        drive(tick)
    return tick


def test_children_in_which_nothing_is_new_go_past_the_stage_and_all_others_climb_it(
    ended: Tick,
) -> None:
    found, config = ended.store.read(), ended.config
    assert found.experiment.state == "complete"
    kinds: set[tuple[bool, CandidateKind]] = set()
    for one in born(found):
        kinds.add((bool(new_modules(one.lineage)), one.kind))
        climbed = [stage for owner, stage in found.results if owner == one.id]
        language = ["pretrain_0"] if new_modules(one.lineage) else []
        assert climbed == [*language, "finetune", "evaluate"]
        assert ladder.skipped(config, one) == (() if language else ("pretrain_0",))
    plain = CandidateKind.CANDIDATE
    assert kinds == {(True, plain), (False, plain), (False, CandidateKind.CONTROL)}
    attempts = {one.candidate for one in found.attempts if one.stage == "pretrain_0"}
    assert attempts == {one.id for one in born(found) if new_modules(one.lineage)}


def test_each_stage_starts_from_the_parents_model_under_the_head_of_its_own_task(
    ended: Tick,
) -> None:
    found = ended.store.read()
    specs: Mapping[tuple[int, str], Spec] = {
        (spec.candidate, spec.stage.name): spec
        for spec in ended.launcher.specs  # type: ignore[attr-defined]
        if spec.stage is not None
    }

    def folder(candidate: int, stage: str) -> str:
        return str(ended.state.result(candidate, stage))

    for one in born(found):
        first, tunes = specs.get((one.id, "pretrain_0")), specs[one.id, "finetune"]
        parent = folder(one.parent, "finetune")
        if first is None:
            assert (tunes.weights, tunes.inherits, tunes.head_weights) == (parent, True, None)
            continue
        assert (first.weights, first.inherits) == (parent, True)
        assert first.head_weights == folder(found.baseline.id, "prepare")
        assert (tunes.weights, tunes.inherits) == (folder(one.id, "pretrain_0"), False)
        assert tunes.head_weights == parent
        if one.second is not None:
            assert first.second_weights == folder(one.second, "finetune")
        assert specs[one.id, "evaluate"].head_weights is None


def test_who_goes_past_a_stage_and_why_is_told(ended: Tick) -> None:
    found = ended.store.read()
    past = next(one for one in born(found) if not new_modules(one.lineage))
    told = dossier.compile_dossier(ended.state.path, str(past.id), ended.clock())
    assert (told.stages[0].stage, told.stages[0].state) == ("pretrain_0", "skipped")
    console = Console(file=StringIO(), width=160, color_system=None)
    console.print(dossier_view.render(told))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "nothing in it is new, so it goes past pretrain_0" in text
    with reading.opened(ended.state.path) as connection:
        (detail,) = connection.execute(
            "SELECT detail FROM event WHERE candidate = ? AND event = 'born'", (past.id,)
        ).fetchone()
    assert detail.endswith("; nothing in it is new, so it begins at finetune")


def test_the_stage_costs_nothing_where_it_is_not_climbed(ended: Tick) -> None:
    found = ended.store.read()
    effort = Effort(found, ended.config)
    for one in born(found):
        asked = effort.operations(one, "pretrain_0")
        assert (asked > 0) == bool(new_modules(one.lineage))


@pytest.mark.parametrize("seeds", [1, 2])
def test_nothing_is_collected_that_a_head_or_another_seed_is_to_be_taken_from(
    tmp_path: Path, seeds: int
) -> None:
    config = new_config(
        experiment__generations=3,
        daemon__infrastructure_retries=10_000,
        select={"seeds": seeds},
    )
    with without_summaries():
        tick = search(StateFolder(tmp_path / "state"), config)
        drive_within_bounds(tick, collect=True)
    assert any(one.stage == "pretrain_0" for one in tick.store.read().attempts)


def test_mutants_are_screened_by_the_task_that_all_of_them_climb(tmp_path: Path) -> None:
    config = new_config(population__screened=2, experiment__generations=1)
    with without_summaries():
        tick = make_tick(StateFolder(tmp_path / "state"), config)
        found = drive(tick)
    assert found.experiment.state == "complete"
    told = [spec for spec in tick.launcher.specs if spec.mutants]  # type: ignore[attr-defined]
    assert {spec.stage.task for spec in told} == {"qa"}
    assert all(Path(spec.weights).name == "finetune" for spec in told)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"variation__inherit_from": "mlm"}, 'set variation.inherit_from = "task"'),
        ({"stages__finetune__who": "new"}, "stands only on an MLM stage"),
        (
            {"stages__pretrain_0__keep": 0.5},
            "not everybody can be compared there: leave keep and rungs out",
        ),
    ],
)
def test_a_stage_for_new_modules_stands_only_where_it_means_something(
    changes: dict[str, Any], words: str
) -> None:
    data = new_dict()
    for key, value in changes.items():
        section, *names = key.split("__")
        place = data[section]
        for name in names[:-1]:
            place = next(one for one in place if one["name"] == name)
        place[names[-1]] = value
    with pytest.raises(NasdError) as caught:
        parse(data, "c.toml")
    assert words in str(caught.value)


def test_a_stage_for_new_modules_stands_ahead_of_the_task() -> None:
    data = new_dict()
    data["stages"] = [*data["stages"][1:2], data["stages"][0], *data["stages"][2:]]
    with pytest.raises(NasdError, match="put the stage ahead of those of the task"):
        parse(data, "c.toml")


def test_a_state_opens_whose_ladder_has_such_a_stage(ended: Tick) -> None:
    store = open_quickly(ended.state.database)
    again = store.read()
    store.close()
    assert {one.state for one in again.candidates.values()} == {State.SCORED}
