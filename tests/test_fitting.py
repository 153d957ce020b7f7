"""A search that is fitted to a budget."""

import tomllib
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nasd.contract.config import load, parse
from nasd.contract.errors import NasdError
from nasd.presets import preset_text, write_preset
from nasd.views.forecast.fitting import Plan, applied, changed, choose, fit, hours_of, wishes_of
from nasd.views.forecast.premises import gather
from nasd.views.forecast.search import simulate


def price(plan: Plan) -> float:
    heads = 1 + plan.mu + plan.lambda_ * plan.generations
    return heads * (plan.sequences / 1e4 + plan.finetune)


@given(st.floats(0.1, 1e5), st.integers(100, 10**7))
def test_what_is_chosen_is_paid_and_the_data_that_the_rest_pays_is_taken(hours, most) -> None:
    plan = choose(hours, most, 5_000, 100, price)
    if plan is None:
        assert price(Plan(1, 1, 1, 100, 0.1)) > hours
        return
    assert price(plan) <= hours
    assert 100 <= plan.sequences <= most
    more = Plan(
        plan.mu, plan.lambda_, plan.generations, int(1.05 * plan.sequences) + 3, plan.finetune
    )
    assert plan.sequences == most or price(more) > hours


def test_a_budget_writes_a_config_whose_simulation_keeps_within_it(tmp_path: Path) -> None:
    told: list[str] = []
    set_ = ["population.mu=3", "population.tournament=2"]
    path = write_preset("thesis", tmp_path, set_, False, partial(fit, budget=24), told.append)
    config = load(path)
    assert config.experiment.budget_gpu_hours == 24
    assert config.population.mu == 3
    assert "population.mu=3 as set" in told or "population.mu as set" in told
    spent = next(one for one in told if one.startswith("simulated: "))
    assert float(spent.split()[1]) <= 24
    data = tomllib.loads(path.read_text())
    assert any(str(data["data"]["mlm"]["max_sequences"]) in one for one in told)


def test_the_demos_data_are_made_before_a_budget_is_fitted_to_them(tmp_path: Path) -> None:
    told: list[str] = []
    fitted = partial(fit, budget=0.2, tflops=0.005)  # as a core's, which is not tried then
    path = write_preset("demo", tmp_path / "new", [], False, fitted, told.append)
    assert (path.parent / "demo-data" / "squad.json").is_file()
    assert load(path).experiment.budget_gpu_hours == 0.2
    spent = next(one for one in told if one.startswith("simulated: "))
    (dearer,) = [one for one in told if one.startswith("the next larger search")]
    assert float(spent.split()[1]) <= 0.9 * 0.2 < float(dearer.split()[-2])
    with pytest.raises(NasdError, match=r"experiment\.budget_gpu_hours"):
        write_preset("demo", tmp_path / "poor", [], False, partial(fitted, budget=1e-4))
    assert not (tmp_path / "poor").exists()


def test_what_is_screened_and_the_controls_are_in_the_price(tmp_path: Path) -> None:
    config = load(write_preset("demo", tmp_path, [], False))
    subject = gather(config, tmp_path / "config.toml")
    run = simulate(config, subject, 1, lambda text: None)
    spent = run.snapshot.gpu_hours(run.ended)
    # All are taken for as large as the baseline, and half of a front for what is trained on.
    assert spent < hours_of(config, subject) < 1.6 * spent
    for key, value in {"population.screened": 1, "population.control": False}.items():
        assert hours_of(applied(config, {key: value}), subject) < hours_of(config, subject)


@pytest.mark.parametrize("budget", [0.01, 0, -1, float("nan")])
def test_a_budget_below_the_smallest_search_is_refused_by_its_key(tmp_path, budget) -> None:
    with pytest.raises(NasdError, match=r"experiment\.budget_gpu_hours"):
        write_preset("thesis", tmp_path / "new", [], False, partial(fit, budget=budget))
    assert not (tmp_path / "new").exists()


def test_what_the_smallest_search_is_said_to_take_is_more_than_was_given_and_enough(
    tmp_path: Path,
) -> None:
    def fitted(budget: float) -> None:
        write_preset("thesis", tmp_path, [], True, partial(fit, budget=budget), lambda line: None)

    with pytest.raises(NasdError) as caught:
        fitted(1e-3)
    needed = float(caught.value.args[0].split("takes about ")[1].split(":")[0])
    for share in (0.5, 0.9):
        with pytest.raises(NasdError, match=f"takes about {needed:g}"):
            fitted(share * needed)
    fitted(1.05 * needed)  # as it is rounded


def test_each_choice_is_told_by_what_it_is(tmp_path: Path) -> None:
    told: list[str] = []
    fitted = partial(fit, budget=0.5)
    set_ = ["slots.devices=['cuda:0']"]
    write_preset("compress", tmp_path, set_, False, fitted, told.append)
    assert "population.finishing = 1: of them train the front on" in "\n".join(told)
    epochs = [line for line in told if line.endswith(": of questions")]
    assert all(line.lstrip().startswith("stages.") for line in epochs), told


def test_without_mlm_many_small_generations_come_before_whole_epochs() -> None:
    config = parse(tomllib.loads(preset_text("compress")), "compress")
    wishes = wishes_of(config)
    assert wishes[0] == ((24, 32, 40), 1.0)
    shares = [share for _, share in wishes]
    assert set(shares[: len(shares) // 2]) == {1.0, 0.5}

    def counted(plan: Plan) -> float:
        return (plan.mu + plan.lambda_ * plan.generations) * plan.finetune

    plan = choose(300, 0, 0, 0, counted, wishes)
    assert plan == Plan(16, 24, 16, 0, 0.5)
    keys = changed(config, plan, frozenset())
    assert keys["stages.finetune.epochs"] == 1.0  # half of two
    assert "data.mlm.max_sequences" not in keys


def test_where_children_take_many_steps_one_generation_is_trained_long() -> None:
    config = parse(tomllib.loads(preset_text("compress")), "compress")
    variation = config.variation.model_copy(update={"steps": (12, 36)})
    config = config.model_copy(update={"variation": variation})
    wishes = wishes_of(config)
    assert {size[2] for size, _ in wishes} == {0}

    def counted(plan: Plan) -> float:
        return plan.mu * plan.finetune

    plan = choose(10, 0, 0, 0, counted, wishes)
    assert plan == Plan(8, 8, 0, 0, 1.0)
    assert choose(0.5, 0, 0, 0, counted, wishes) == Plan(1, 1, 0, 0, 0.5)
    keys = changed(config, plan, frozenset())
    assert (keys["experiment.generations"], keys["population.finishing"]) == (0, 0)
    assert keys["stages.finetune.epochs"] == 2.0
    # Whoever wants the front trained on has generations.
    assert all(size[2] >= 2 for size, _ in wishes_of(config, frozenset({"population.finishing"})))
