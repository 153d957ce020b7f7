"""The forecast of a config: what it rests on, its figures, and how it is shown."""

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from nasd import cli
from nasd.contract.config import load
from nasd.contract.errors import NasdError
from nasd.estimate.cost import CPU_THREAD
from nasd.record.folders import StateFolder
from nasd.views.forecast import view
from nasd.views.forecast.as_json import forecast
from nasd.views.forecast.premises import gather
from nasd.views.forecast.virtual_time import run
from tests.conftest import BASELINE, ROOT, small_config, thesis_config, to_toml
from tests.test_simulation import SMALL_VOLUMES, simulated

PROBE = """
import json, sys
sys.argv = ["nasd", *json.loads(sys.argv[1])]
from nasd.cli import main
main()
"""


def few(**changes: Any) -> dict[str, Any]:
    """The thesis's config with a small population, as TOML would give it."""
    data = thesis_config(population={"mu": 2, "lambda": 2}, experiment={"generations": 1})
    dumped = data.model_dump(mode="json", by_alias=True, exclude_none=True)
    for key, value in changes.items():
        section, _, name = key.partition("__")
        dumped[section][name] = value
    return dumped


def written(folder: Path, data: Mapping[str, Any]) -> Path:
    path = folder / "config.toml"
    path.write_text(to_toml(data))
    return path


def simulate(path: Path, *arguments: str) -> dict[str, Any]:
    done = CliRunner().invoke(
        cli.app, ["simulate", "--config", str(path), "--json", *arguments], catch_exceptions=False
    )
    data: dict[str, Any] = json.loads(done.stdout)
    return data


def test_the_command_is_plain_and_needs_no_torch(tmp_path: Path):
    probe = PROBE + (
        "print(json.dumps(sorted({n.partition('.')[0] for n in sys.modules})), file=sys.stderr)"
    )
    probe = probe.replace(
        "main()\n", "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code\n"
    )
    written(tmp_path, few())
    done = subprocess.run(
        [sys.executable, "-c", probe, json.dumps(["simulate", "--runs", "1"])],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "COLUMNS": "80"},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    imported = set(json.loads(done.stderr.splitlines()[-1]))
    assert imported & {"torch", "transformers", "datasets", "evaluate"} == set()
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert "\x1b" not in done.stdout
    for word in ("wall-clock", "GPU-hours", "slot use", "pretrain_1", "--tflops", "lower bound"):
        assert word in done.stdout
    assert len(done.stderr.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["config.toml"]


def test_the_json_holds_together(tmp_path: Path):
    data = simulate(written(tmp_path, few()), "--runs", "2")
    assert [one["seed"] for one in data["runs"]] == [42, 43]
    assert sum(one["share"] for one in data["stages"]) == pytest.approx(1.0, abs=0.05)
    for one in data["runs"]:
        stages = one["stages"]
        assert sum(s["gpu_hours"] for s in stages.values()) == pytest.approx(one["gpu_hours"])
        assert one["work_hours"] == pytest.approx(one["gpu_hours"] / 4)
        bound = max(one["work_hours"], one["chain_hours"])
        assert one["over_bound"] == one["wall_hours"] / bound >= 1
        assert one["slot_use"] == pytest.approx(one["work_hours"] / one["wall_hours"])
        assert (one["candidates"], stages["pretrain_1"]["attempts"]) == (4, 3)
        assert stages["pretrain_head"]["attempts"] == 0
    assert data["wall_hours"]["least"] <= data["wall_hours"]["most"]
    assert data["inputs"]["volumes"]["qa_train_questions"] == 70_079


def test_more_and_faster_slots_shorten_the_search(tmp_path: Path):
    path = written(tmp_path, few(population__mu=4))
    usual = simulate(path, "--runs", "1")
    fast = simulate(path, "--runs", "1", "--tflops", "150")
    many = simulate(path, "--runs", "1", "--slots", "8")
    less = simulate(path, "--runs", "1", "--mlm-sequences", "1000000", "--qa-questions", "1000")
    assert 0.45 < fast["gpu_hours"]["median"] / usual["gpu_hours"]["median"] < 0.55
    assert many["wall_hours"]["median"] < usual["wall_hours"]["median"]
    assert many["slots"] == 8
    assert less["gpu_hours"]["median"] < 0.15 * usual["gpu_hours"]["median"]
    assert less["inputs"]["volumes"]["qa_train_questions"] == 800


def test_the_thesis_schedule_on_four_slots_is_all_but_as_short_as_can_be(tmp_path: Path):
    config = thesis_config().model_dump(mode="json", by_alias=True, exclude_none=True)
    data = simulate(written(tmp_path, config), "--runs", "5")
    assert (data["slots"], len(data["runs"])) == (4, 5)
    assert data["over_bound"]["most"] <= 1.05
    assert "x (" in view._bound(data)


def test_the_thesis_schedule_is_shorter_still_where_attempts_may_widen(tmp_path: Path):
    config = thesis_config().model_dump(mode="json", by_alias=True, exclude_none=True)
    plain = simulate(written(tmp_path, config), "--runs", "1")
    config["slots"]["widen"] = True
    wide = simulate(written(tmp_path, config), "--runs", "1")
    assert 1 <= wide["over_bound"]["most"] <= 1.01 < plain["over_bound"]["most"]
    assert wide["work_hours"] == plain["work_hours"]
    assert wide["gpu_hours"]["most"] < 1.01 * plain["gpu_hours"]["most"]
    assert wide["chain_hours"]["most"] < plain["chain_hours"]["most"]


def test_the_budget_is_told(tmp_path: Path):
    usual = simulate(written(tmp_path, few()), "--runs", "1")
    half = usual["gpu_hours"]["median"] / 2
    data = simulate(written(tmp_path, few(experiment__budget_gpu_hours=half)), "--runs", "1")
    assert data["gpu_hours"] == usual["gpu_hours"]  # it tells the whole need all the same
    (spent,) = [one["budget_spent"] for one in data["runs"]]
    assert 0 < spent["after_hours"] < data["wall_hours"]["median"]
    assert spent["generation"] == 0
    assert "is spent in generation 0, after" in view._budget(data)
    plenty = simulate(written(tmp_path, few(experiment__budget_gpu_hours=1e6)), "--runs", "1")
    assert "within the budget" in view._budget(plenty)
    assert "no budget" in view._budget(usual)


@pytest.mark.parametrize("width", [80, 120])
def test_no_line_is_wider_than_the_terminal(tmp_path: Path, width: int, capsys: Any):
    data = simulate(written(tmp_path, few(experiment__budget_gpu_hours=100.0)), "--runs", "2")
    capsys.readouterr()
    Console(width=width, color_system=None).print(view.render(data))
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= width
    assert "…" not in "".join(lines)


def test_an_experiment_that_has_measured_something_is_believed_and_left_alone(tmp_path: Path):
    state = StateFolder(tmp_path / "state")
    config = small_config(experiment__state="state")
    machine = replace(CPU_THREAD, tflops=3e-5, start_seconds=20.0, step_seconds=0.0)
    tick, clock, launcher = simulated(
        state, config=config, machine=machine, metrics=False, has_mlm_head=False
    )
    run(tick, clock, launcher, until=lambda snap: len(snap.results) > 8)
    tick.store.close()
    before = state.database.read_bytes(), sorted((tmp_path / "state").rglob("*.json"))
    path = tmp_path / "config.toml"
    path.write_text(to_toml(config.model_dump(mode="json", by_alias=True, exclude_none=True)))
    subject = gather(config, path)
    assert subject.seed.baseline == BASELINE
    assert not subject.seed.has_mlm_head
    assert replace(subject.volumes, qa_tokens=40.0) == SMALL_VOLUMES
    assert "as prepared" in " ".join(subject.assumptions)
    rates = subject.machine.rates
    assert set(rates) >= {"pretrain_head", "pretrain_0", "pretrain_1", "finetune"}
    for name in ("pretrain_head", "pretrain_0", "pretrain_1"):
        assert rates[name] == pytest.approx(3e-5, rel=0.01)
    assert subject.machine.start_seconds == pytest.approx(20.0, abs=0.01)
    data = forecast(config, path, runs=1)
    assert "as the experiment shows" in data["assumptions"][2]
    assert (state.database.read_bytes(), sorted((tmp_path / "state").rglob("*.json"))) == before
    given_rate = gather(config, path, tflops=5.0).machine
    assert (given_rate.tflops, given_rate.rates) == (5.0, {})
    # Another data section has other counts.
    other = small_config(data__mlm__tokens=16, data__mlm__max_sequences=500)
    (tmp_path / "squad.json").write_text(
        json.dumps({"data": [{"title": "t", "paragraphs": [{"context": "a b", "qas": [
            {"id": str(n), "question": "?", "answers": [{"text": "b", "answer_start": 2}]}
            for n in range(200)
        ]}]}], "version": "1.1"})
    )  # fmt: skip
    (tmp_path / "corpus.txt").write_text("a word and another one\n" * 2000)
    counted = gather(other, path).volumes
    assert (counted.mlm_train_sequences, counted.qa_train_questions) == (500, 160)


@pytest.mark.parametrize(
    ("changes", "arguments", "words"),
    [
        ({}, ["--tflops", "0"], "--tflops: take a number from 0.001 to 1,000,000, not '0'"),
        ({}, ["--tflops", "-3"], "--tflops: take a number from"),
        ({}, ["--tflops", "nan"], "--tflops: take a number from"),
        ({}, ["--tflops", "inf"], "--tflops: take a number from"),
        ({}, ["--runs", "0"], "--runs: take a whole number from 1 to 1,000, not '0'"),
        ({}, ["--slots", "0"], "--slots: take a whole number from"),
        ({}, ["--slots", "1"], "--slots: stages.pretrain_head asks for 2 slots, more than 1"),
        ({}, ["--mlm-sequences", "1"], "cannot be dealt out to 2 slots"),
        ({}, ["--qa-questions", "1"], "cannot be split"),
        ({"slots__devices": ["cuda:0"]}, [], "slots.devices has 1"),
        ({"search_space__blocks": [7, 8]}, [], "does not hold the seed's own architecture"),
        ({"search_space__heads": [7, 12]}, [], "7 heads do not divide"),
        (
            {"data__mlm": {**few()["data"]["mlm"], "corpora": [{"hub": "some/where"}]}},
            [],
            "nothing is known of the size of some/where: give --mlm-sequences",
        ),
        (
            {"data__mlm": {**few()["data"]["mlm"], "corpora": [{"files": ["gone.txt"]}]}},
            [],
            "gone.txt cannot be read",
        ),
        (
            {"data__qa": {**few()["data"]["qa"], "hub": "some/where"}},
            [],
            "nothing is known of some/where: give --qa-questions",
        ),
    ],
)
def test_nonsense_is_refused_in_one_sentence(
    tmp_path: Path, changes: dict[str, Any], arguments: list[str], words: str
):
    path = written(tmp_path, few(**changes))
    with pytest.raises(NasdError) as caught:
        simulate(path, *arguments)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert [one.name for one in tmp_path.iterdir()] == ["config.toml"]


def test_slots_that_are_auto_are_guessed_and_cpu_slots_are_slower(tmp_path: Path):
    path = written(tmp_path, few(slots__devices="auto"))
    config = load(path)
    guessed = gather(config, path)
    assert len(guessed.slots) == 4
    assert "slots.devices is auto" in guessed.assumptions[2]
    path = written(tmp_path, few(slots__devices=["cpu:0", "cpu:1"], slots__threads=2))
    slow = gather(load(path), path, slots=3)
    assert slow.slots == ("cpu:0", "cpu:1", "cpu:2")
    assert slow.machine.tflops == pytest.approx(0.05 * 2 * 1.5)


def test_a_search_that_cannot_end_is_told(tmp_path: Path):
    data = few(
        search_space__sizes=[3072], search_space__heads=[12], search_space__ffns=1,
        search_space__layers=[2], search_space__activations=["gelu"], search_space__blocks=[6, 6],
    )  # fmt: skip
    with pytest.raises(NasdError, match="does not get to its end: 1000 mutations of the baseline"):
        simulate(written(tmp_path, data), "--runs", "1")
