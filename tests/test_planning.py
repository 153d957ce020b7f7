"""A config that leaves population, generations and rungs to its budget."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import tomlkit
from typer.testing import CliRunner

from nasd.cli import app
from nasd.contract import config as config_module
from nasd.contract.config import Config
from nasd.contract.errors import NasdError
from nasd.contract.genotype import Backbone, Block, FeedForward, Genotype
from nasd.presets import preset_text
from nasd.record.store import Store
from nasd.views.forecast import planning
from nasd.views.forecast.fitting import KEY, rungs_for
from nasd.views.forecast.premises import Subject, gather


def open_config(folder: Path, budget: float | None, cutoff: bool = False, **given: object) -> Path:
    """The thesis's config, as its seed and data are known and the slots listed, without what a
    budget decides, but for what is given: keys with __ for dots."""
    document = tomlkit.parse(preset_text("thesis"))
    for key in ("mu", "lambda", "tournament"):
        del document["population"][key]
    del document["experiment"]["generations"]
    if budget is not None:
        document["experiment"]["budget_gpu_hours"] = budget
    for key, value in given.items():
        section, _, last = key.partition("__")
        document[section][last] = value
    folder.mkdir(exist_ok=True)
    path = folder / "config.toml"
    text = tomlkit.dumps(document)
    path.write_text(text if cutoff else text.replace("keep = 0.5", "# keep = 0.5"))
    return path


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> planning.Plan:
    return planning.plan(open_config(tmp_path_factory.mktemp("planned"), 30.0))


def bred(config: Config) -> int:
    return config.population.mu + config.population.lambda_ * config.experiment.generations


def test_a_budget_alone_gives_population_generations_and_rungs(planned: planning.Plan) -> None:
    config = planned.config
    assert config.population.mu >= 2 and config.population.lambda_ >= 4
    assert config.experiment.generations >= 1
    assert config.promotion.rule == "asha"
    (cut,) = (stage for stage in config.stages if stage.rungs)
    assert cut.who == "candidates" and [rung.keep for rung in cut.rungs] == [0.5]
    told = "\n".join(planned.told)
    for key in planned.keys:
        assert f"{key} = " in told
    assert "the next larger search (" in told
    assert float(told.partition("simulated: ")[2].split()[0]) <= 30


def test_what_the_config_gives_itself_wins(tmp_path: Path) -> None:
    path = open_config(tmp_path, 8.0, population__mu=3, experiment__generations=2)
    made = planning.plan(path)
    assert (made.config.population.mu, made.config.experiment.generations) == (3, 2)
    assert not {"population.mu", "experiment.generations"} & made.keys.keys()


def test_where_a_cutoff_stands_no_rungs_are_put(tmp_path: Path) -> None:
    made = planning.plan(open_config(tmp_path, 12.0, cutoff=True))
    assert made.config.promotion.rule == "share"
    assert not any(stage.rungs for stage in made.config.stages)
    assert "no rungs: some cutoff stands in the config" in made.told


def test_fewer_hours_pay_for_fewer_candidates(planned: planning.Plan, tmp_path: Path) -> None:
    assert bred(planning.load(open_config(tmp_path, 8.0))) < bred(planned.config)


def test_a_config_that_says_all_is_taken_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(preset_text("thesis"))
    assert planning.plan(path) == planning.Plan(config_module.load(path), {}, ())


def test_without_a_budget_the_missing_key_is_named_with_what_it_would_follow_from(tmp_path):
    with pytest.raises(NasdError, match=rf"the key population\.mu is missing: .*{KEY}"):
        planning.load(open_config(tmp_path, None))


def test_another_mistake_is_told_before_what_is_left_open(tmp_path: Path) -> None:
    path = open_config(tmp_path, 10.0, population__lamda=3)
    with pytest.raises(NasdError, match=r"unknown key population\.lamda; did you mean lambda"):
        planning.load(path)


@pytest.mark.parametrize("budget", [1e-4, 1e-2])
def test_a_budget_below_one_candidate_is_refused_by_its_key(tmp_path: Path, budget: float):
    with pytest.raises(NasdError, match=rf"config\.toml: {KEY}: .*do not pay the smallest search"):
        planning.load(open_config(tmp_path, budget))
    whole = tmp_path / "whole.toml"
    document = tomlkit.parse(preset_text("thesis"))
    document["experiment"]["budget_gpu_hours"] = budget
    whole.write_text(tomlkit.dumps(document))
    done = CliRunner().invoke(app, ["plan", "--config", str(whole)])
    assert isinstance(done.exception, NasdError)
    assert f"{KEY}: {budget:g} GPU-hours do not pay one candidate" in str(done.exception)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.toml", "whole.toml"]


def test_a_search_that_has_begun_keeps_what_was_planned(planned, tmp_path: Path) -> None:
    begun = planned.config.model_dump(mode="json", by_alias=True)
    begun["population"]["mu"] += 1  # nothing would plan this
    store = Store(tmp_path / "state" / "nasd.db")
    backbone = Backbone(vocab_size=9, positions=8, width=8)
    baseline = Genotype((Block(2, (FeedForward("gelu", (8,)),)),))
    store.create_experiment("x", 1, begun, backbone, baseline, "prepare", 0.0)
    store.close()
    path = open_config(tmp_path, 8.0)  # fewer hours than it was planned for
    again = planning.plan(path)
    assert again.begun
    assert again.config.population.mu == planned.config.population.mu + 1
    assert again.config.experiment.generations == planned.config.experiment.generations
    assert [one.rungs for one in again.config.stages] == [
        one.rungs for one in planned.config.stages
    ]
    assert planning.load(path, fresh=True).population.mu < again.config.population.mu


def test_plan_writes_what_it_shows_and_leaves_the_rest(tmp_path: Path) -> None:
    path = open_config(tmp_path, 30.0)
    before = path.read_text()
    done = CliRunner().invoke(app, ["plan", "--config", str(path), "--write", "--json"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    written = config_module.load(path)
    assert any(stage.rungs for stage in written.stages)
    plain = written.model_dump(mode="json", by_alias=True)
    for key, value in told["chosen"].items():
        assert planning._at(plain, key) == value
    assert told["forecast"]["budget_gpu_hours"] == 30.0
    comments = [line for line in before.splitlines() if line.startswith("#")]
    assert all(line in path.read_text() for line in comments)


def rung_at(config: Config, subject: Subject, start: float) -> float | None:
    """Where the rung is if an attempt takes so many seconds to start."""
    slow = replace(subject, machine=replace(subject.machine, start_seconds=start))
    keys, _ = rungs_for(config, slow)
    return next((keys[key][0]["at"] for key in keys if key.endswith(".rungs")), None)


def test_rungs_that_would_cost_more_to_start_than_to_train_are_not_put(planned) -> None:
    stages = [{**one.model_dump(), "rungs": ()} for one in planned.config.stages]
    plain = planned.config.model_dump(by_alias=True) | {"stages": stages, "promotion": {}}
    config = Config.model_validate(plain)
    subject = gather(config, Path("config.toml"))
    keys, why = rungs_for(config, subject)
    assert keys and not why
    found = [rung_at(config, subject, 2.0**doubled) for doubled in range(20)]
    assert sorted({*found} - {None}) == [0.125, 0.25, 0.5]  # as each is twice the one before
    assert found == sorted(found, key=lambda at: at or 1.0)
    slow = replace(subject, machine=replace(subject.machine, start_seconds=36_000.0))
    keys, why = rungs_for(config, slow)
    assert not keys and why.endswith("an attempt 36000 s to start")


@pytest.mark.parametrize(
    ("key", "value", "words"), [("average", 0.5, "has an average"), ("soup", 2, "has a soup")]
)
def test_a_stage_that_cannot_have_rungs_gets_none(planned, key, value, words) -> None:
    stages = [{**one.model_dump(), "rungs": ()} for one in planned.config.stages]
    for one in stages:
        if one["train"] == "all":
            one[key] = value
    plain = planned.config.model_dump(by_alias=True) | {"stages": stages, "promotion": {}}
    config = Config.model_validate(plain)
    keys, why = rungs_for(config, gather(config, Path("config.toml")))
    assert not keys and words in why


def test_a_stage_that_not_all_climb_gets_no_rungs_however_long_it_takes(planned) -> None:
    stages = []
    for one in planned.config.stages:
        told = {**one.model_dump(), "rungs": ()}
        if one.name == "pretrain_0":
            told |= {"who": "new", "keep": None, "epochs": 1000.0}
        if one.name != "pretrain_1":
            stages.append(told)
    plain = planned.config.model_dump(by_alias=True) | {"stages": stages, "promotion": {}}
    plain["variation"]["inherit_from"] = "task"
    config = Config.model_validate(plain)
    keys, why = rungs_for(config, gather(config, Path("config.toml")))
    assert "stages.finetune.rungs" in keys and not why
    assert len([key for key in keys if key.endswith(".rungs")]) == 1
