"""A config that leaves population, generations and rungs to its budget."""

import json
from pathlib import Path

import pytest
import tomlkit
from typer.testing import CliRunner

from nasd.cli import app
from nasd.contract import config as config_module
from nasd.contract.errors import NasdError
from nasd.contract.genotype import Backbone, Block, FeedForward, Genotype
from nasd.presets import preset_text
from nasd.presets.demo import write_demo_data
from nasd.record.store import Store
from nasd.views.forecast import planning
from nasd.views.forecast.fitting import KEY

LEFT_OUT = ("mu", "lambda", "tournament", "finishing")


def open_config(folder: Path, budget: float | None, name: str = "demo", **given: object) -> Path:
    """A preset without what a budget decides, but for what is given: keys with __ for dots."""
    document = tomlkit.parse(preset_text(name))
    for key in LEFT_OUT:
        document["population"].pop(key, None)
    del document["experiment"]["generations"]
    if budget is not None:
        document["experiment"]["budget_gpu_hours"] = budget
    for key, value in given.items():
        section, _, last = key.partition("__")
        document[section][last] = value
    folder.mkdir(exist_ok=True)
    path = folder / "config.toml"
    path.write_text(tomlkit.dumps(document))
    if name == "demo":
        write_demo_data(folder / "demo-data")
    return path


def thesis(folder: Path, budget: float, **given: object) -> Path:
    """The thesis's ladder without its cutoff, on its own box: its seed and data are known."""
    path = open_config(folder, budget, "thesis", **given)
    path.write_text(path.read_text().replace("keep = 0.5", "# keep = 0.5"))
    return path


def test_a_budget_alone_gives_population_generations_and_rungs(tmp_path: Path) -> None:
    made = planning.plan(thesis(tmp_path, 400.0))
    config = made.config
    assert config.population.mu >= 2 and config.population.lambda_ >= 4
    assert config.experiment.generations >= 1
    assert config.promotion.rule == "halving"
    (cut,) = (stage for stage in config.stages if stage.rungs)
    assert cut.who == "candidates" and all(rung.keep == 0.5 for rung in cut.rungs)
    told = "\n".join(made.told)
    for key in made.keys:
        assert f"{key} = " in told
    assert "the next larger search (" in told and "simulated: " in told
    assert float(told.partition("simulated: ")[2].split()[0].replace(",", "")) <= 400


def test_what_the_config_gives_itself_wins(tmp_path: Path) -> None:
    path = thesis(tmp_path, 400.0, population__mu=3, experiment__generations=2)
    made = planning.plan(path)
    assert (made.config.population.mu, made.config.experiment.generations) == (3, 2)
    assert not {"population.mu", "experiment.generations"} & made.keys.keys()
    kept = open_config(tmp_path / "kept", 400.0, "thesis")  # with the thesis's cutoff
    cuts = planning.plan(kept).config
    assert cuts.promotion.rule == "share" and not any(stage.rungs for stage in cuts.stages)


def test_more_hours_never_pay_for_fewer_candidates(tmp_path: Path) -> None:
    def bred(budget: float) -> int:
        config = planning.plan(thesis(tmp_path, budget)).config
        return config.population.mu + config.population.lambda_ * config.experiment.generations

    counts = [bred(budget) for budget in (20.0, 100.0, 2000.0)]
    assert counts == sorted(counts) and counts[0] < counts[-1]


def test_a_config_that_says_all_is_taken_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(preset_text("thesis"))
    assert planning.plan(path) == planning.Plan(config_module.load(path), {}, ())


def test_without_a_budget_the_missing_key_is_named_with_what_it_would_follow_from(tmp_path):
    with pytest.raises(NasdError, match=rf"the key population\.mu is missing: .*{KEY}"):
        planning.load(open_config(tmp_path, None, "thesis"))


def test_another_mistake_is_told_before_what_is_left_open(tmp_path: Path) -> None:
    path = open_config(tmp_path, 10.0, "thesis", population__lamda=3)
    with pytest.raises(NasdError, match=r"unknown key population\.lamda; did you mean lambda"):
        planning.load(path)


@pytest.mark.parametrize("budget", [1e-4, 1e-2])
def test_a_budget_below_one_candidate_is_refused_by_its_key(tmp_path: Path, budget: float):
    with pytest.raises(NasdError, match=rf"config\.toml: {KEY}: .*do not pay the smallest search"):
        planning.load(thesis(tmp_path, budget))
    whole = tmp_path / "whole.toml"
    document = tomlkit.parse(preset_text("thesis"))
    document["experiment"]["budget_gpu_hours"] = budget
    whole.write_text(tomlkit.dumps(document))
    done = CliRunner().invoke(app, ["plan", "--config", str(whole)])
    assert isinstance(done.exception, NasdError)
    assert f"{KEY}: {budget:g} GPU-hours do not pay one candidate" in str(done.exception)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.toml", "whole.toml"]


def test_a_search_that_has_begun_keeps_what_was_planned(tmp_path: Path) -> None:
    path = thesis(tmp_path, 400.0)
    config = planning.load(path)
    with_more = {**config.model_dump(mode="json", by_alias=True)}
    with_more["population"]["mu"] += 1  # nothing would plan this
    store = Store(tmp_path / "state" / "nasd.db")
    backbone = Backbone(vocab_size=9, positions=8, width=8)
    baseline = Genotype((Block(2, (FeedForward("gelu", (8,)),)),))
    store.create_experiment("x", 1, with_more, backbone, baseline, "prepare", 0.0)
    store.close()
    path.write_text(path.read_text().replace("budget_gpu_hours = 400.0", "budget_gpu_hours = 20.0"))
    again = planning.plan(path)
    assert again.begun
    assert again.config.population.mu == config.population.mu + 1
    assert again.config.experiment.generations == config.experiment.generations
    assert [one.rungs for one in again.config.stages] == [one.rungs for one in config.stages]
    assert planning.load(path, fresh=True).population.mu != again.config.population.mu


def test_plan_writes_what_it_shows_and_leaves_the_rest(tmp_path: Path) -> None:
    path = thesis(tmp_path, 400.0)
    before = path.read_text()
    done = CliRunner().invoke(app, ["plan", "--config", str(path), "--write", "--json"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    written = config_module.load(path)
    assert written == planning.plan(path).config
    for key, value in told["chosen"].items():
        assert planning._at(tomlkit.parse(path.read_text()).unwrap(), key) == value
    assert told["forecast"]["budget_gpu_hours"] == 400.0
    comments = [line for line in before.splitlines() if line.startswith("#")]
    assert all(line in path.read_text() for line in comments)


def test_rungs_that_would_cost_more_to_start_than_to_train_are_not_chosen(tmp_path: Path) -> None:
    made = planning.plan(open_config(tmp_path, 0.5))  # the demo: ten seconds a stage
    assert not any(stage.rungs for stage in made.config.stages)
    assert any(line.startswith("no rungs: finetune takes ") for line in made.told)
    assert "promotion.rule" not in made.keys
