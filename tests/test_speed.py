"""How fast a slot trains, where nothing has been measured yet: it is tried out."""

import json
import tomllib
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from nasd.contract.config import SCREEN, Config, load, parse
from nasd.control.preflight import look_at_seed
from nasd.launch import child, gpus
from nasd.launch.gpus import Gpu, GpuProcess
from nasd.presets import preset_text, write_preset
from nasd.views.forecast import planning
from nasd.views.forecast import speed as speeds
from nasd.views.forecast.fitting import fit
from nasd.views.forecast.premises import Subject, gather
from nasd.views.forecast.speed import Speed


@pytest.fixture
def demo(tmp_path: Path) -> tuple[Config, Path]:
    """A search with stages of both kinds of training, on shares of the CPU."""
    set_ = ["slots.devices=['cpu:0', 'cpu:1']"]
    path = write_preset("demo-thesis", tmp_path / "demo", set_, False)
    return load(path), path


def answering(monkeypatch: pytest.MonkeyPatch, *tokens: float) -> list[dict[str, Any]]:
    """A worker that answers so; what it was asked, with what is visible to it."""
    asked: list[dict[str, Any]] = []
    really = child.ask

    def ask(module: str, question: Mapping[str, Any], *more: Any, **named: Any) -> Any:
        if module != "nasd.worker.speed":  # the seed's shape is looked at
            return really(module, question, *more, **named)
        asked.append({**question, **more[0]})
        answer = {"device": "a stub", "precision": "float32", "tokens_per_second": list(tokens)}
        if question["keep"] is not None:
            Path(question["keep"]).parent.mkdir(exist_ok=True)
            Path(question["keep"]).write_text(json.dumps(answer))
        return answer

    monkeypatch.setattr(child, "ask", ask)
    speeds._answer.cache_clear()
    return asked


def test_a_worker_tells_tokens_a_second_of_each_kind_of_training(demo) -> None:
    config, path = demo
    found = gather(config, path, tries=True)
    rates = found.machine.rates
    assert set(rates) == {stage.name for stage in config.parts} | {SCREEN}
    assert all(0 < rate < 100 for rate in rates.values())
    mlm, qa = (
        {rates[stage.name] for stage in config.stages if stage.task == task}
        for task in ("mlm", "qa")
    )
    assert len(mlm) == len(qa) == 1
    assert "TFLOP/s each as tried on" in found.assumptions[2]
    assert not (path.parent / config.experiment.state).exists()


def test_what_was_tried_is_kept_where_it_is_to_be_and_tried_once(demo, monkeypatch) -> None:
    config, path = demo
    asked = answering(monkeypatch, 100.0, 1000.0)
    before = gather(config, path)
    assert not before.machine.rates and not asked
    again_of = partial(gather, seed=before.seed)  # which is not looked at each time
    first = again_of(config, path, tries=True, keep=True)
    (question,) = asked
    assert (question["CUDA_VISIBLE_DEVICES"], question["slots"]) == ("", 2)
    tasks = [one["task"] for one in question["asked"]]
    tokens = dict(zip(tasks, (100.0, 1000.0), strict=True))
    assert set(tasks) == {"mlm", "qa"}
    # Who forecasts without trying, as `nasd simulate` does, has the benefit of it.
    again = again_of(config, path)
    assert again.machine == first.machine and len(asked) == 1
    assert again.assumptions == first.assumptions
    assert question["dropout"] == config.seed_model.dropout
    dropping = config.seed_model.model_copy(update={"dropout": 0.25})
    for key, one in (("slots", more_threads(config)), ("seed_model", dropping)):
        assert not again_of(config.model_copy(update={key: one}), path).machine.rates
    by_task = {stage.task: again.machine.rates[stage.name] for stage in config.stages}
    assert (by_task["mlm"] < by_task["qa"]) == (tokens["mlm"] < tokens["qa"])


def more_threads(config: Config) -> Any:
    return config.slots.model_copy(update={"threads": 1 + config.slots.threads})


def test_what_is_given_or_measured_counts_for_more_than_a_trial(demo, monkeypatch) -> None:
    config, path = demo
    asked = answering(monkeypatch, 100.0, 1000.0)
    given = gather(config, path, 0.25, tries=True)
    assert given.machine.tflops == 0.25 and not given.machine.rates and not asked


def test_what_was_kept_and_is_damaged_is_as_if_it_were_not_there(demo, monkeypatch) -> None:
    config, path = demo
    answering(monkeypatch, 100.0, 1000.0)
    seed = gather(config, path, tries=True, keep=True).seed
    (kept,) = (path.parent / config.experiment.state / "cache").iterdir()
    whole = kept.read_text()
    for damaged in ("", "{", "[]", "{}", whole.replace("100.0, ", "")):
        kept.write_text(damaged)
        assert not gather(config, path, seed=seed).machine.rates


def test_a_faster_slot_has_a_larger_search_paid(tmp_path: Path, monkeypatch) -> None:
    seed = look_at_seed("package:nasd/demo_seed", tmp_path)

    def planned(rate: float) -> float:
        """Epochs of all that are trained."""
        names = ("finetune_baseline", "finetune", "evaluate", SCREEN)
        speed = Speed(dict.fromkeys(names, rate), "on a stub, in float32")
        monkeypatch.setattr(speeds, "tried", lambda *about, keep: speed)
        told: list[str] = []
        path = write_preset(
            *("demo", tmp_path / str(rate), [], False),
            *(partial(fit, budget=0.2, seed=seed), told.append),
        )
        assert any(f"TFLOP/s each as tried on a stub, in float32: {rate:g}," in x for x in told)
        config = load(path)
        (stage,) = (one for one in config.stages if one.name == "finetune")
        population, behind = config.population, config.experiment.generations
        return (stage.epochs or 0.0) * (population.mu + population.lambda_ * behind)

    assert planned(0.001) < planned(0.004) < planned(0.016)


def of_gpus(monkeypatch: pytest.MonkeyPatch, *found: Gpu) -> None:
    monkeypatch.setattr(gpus, "now", lambda slots: {one.slot: one for one in found})


BUSY = (GpuProcess(7, 8 << 30),)
DISPLAY = (GpuProcess(9, 64 << 20),)


@pytest.mark.parametrize(
    ("found", "visible", "why"),
    [
        ((Gpu("cuda:0"), Gpu("cuda:1")), "0", ""),
        ((Gpu("cuda:0", processes=BUSY), Gpu("cuda:1", processes=DISPLAY)), "1", ""),
        (
            (Gpu("cuda:0", processes=BUSY), Gpu("cuda:1", fault="is lost")),
            None,
            "none of cuda:0, cuda:1 is free and in order",
        ),
        ((), None, "none of cuda:0, cuda:1 is on this machine"),
    ],
)
def test_a_gpu_is_tried_that_nobody_is_on_or_none_and_the_reason_is_told(
    tmp_path: Path, monkeypatch, found: tuple[Gpu, ...], visible: str | None, why: str
) -> None:
    config = on(tmp_path, devices=["cuda:0", "cuda:1"])
    of_gpus(monkeypatch, *found)
    asked = answering(monkeypatch, 1e5, 1e5)
    subject = tried(config, tmp_path)
    assert [one["CUDA_VISIBLE_DEVICES"] for one in asked] == ([visible] if visible else [])
    if why:
        assert f"24 % of an A100's peak in bfloat16; not tried, as {why}" in subject.assumptions[2]
        assert not subject.machine.rates


def test_a_cluster_is_not_tried_from_here(tmp_path: Path, monkeypatch) -> None:
    config = on(tmp_path, devices=["cuda:0"], launcher="slurm")
    asked = answering(monkeypatch, 1e5, 1e5)
    subject = tried(config, tmp_path)
    assert "not tried, as slots.launcher is slurm" in subject.assumptions[2] and not asked


def test_a_trial_that_fails_is_told_and_the_forecast_goes_on(tmp_path: Path, monkeypatch) -> None:
    config = on(tmp_path, devices=["cpu:0", "cpu:1"])

    def fails(*about: Any) -> Any:
        raise child.NoAnswer("Killed")

    monkeypatch.setattr(child, "ask", fails)
    speeds._answer.cache_clear()
    subject = tried(config, tmp_path)
    assert subject.machine.tflops > 0 and "not tried, as Killed" in subject.assumptions[2]


def on(folder: Path, **slots: Any) -> Config:
    document = tomllib.loads(preset_text("thesis"))
    document["slots"] |= slots
    if slots.get("launcher") == "slurm":
        document["slots"]["devices"] = "auto"
    return parse(document, str(folder / "config.toml"))


def tried(config: Config, folder: Path) -> Subject:
    return gather(config, folder / "config.toml", tries=True)


def test_a_plan_is_made_by_what_was_tried_once_for_it(tmp_path: Path, monkeypatch) -> None:
    set_ = ["experiment.budget_gpu_hours=0.5", "slots.devices=['cpu:0', 'cpu:1']"]
    path = write_preset("demo", tmp_path / "demo", set_, False)
    text = path.read_text()
    for key in ("mu", "lambda"):
        text = "\n".join(one for one in text.splitlines() if not one.startswith(f"{key} ="))
    path.write_text(text)
    asked = answering(monkeypatch, 5000.0)
    first = planning.described(path)
    assert len(asked) == 1 and first["chosen"]
    assert "as tried on a stub" in first["forecast"]["assumptions"][2]
    speeds._answer.cache_clear()  # as of another process
    again = planning.plan(path)
    assert again.keys == first["chosen"] and len(asked) == 1
    state = path.parent / load_state(path)
    assert (state.stat().st_mode & 0o777) == 0o700


def load_state(path: Path) -> str:
    return str(tomllib.loads(path.read_text())["experiment"].get("state", "state"))
