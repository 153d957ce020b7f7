"""A stage that measures: it has the device to itself, and what cannot be measured is never 0."""

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nasd.contract.config import Measure, parse
from nasd.contract.errors import NasdError
from nasd.control import preflight
from nasd.record.folders import StateFolder
from nasd.record.state import Snapshot
from nasd.views.doctor import sources
from nasd.views.doctor.case import Case
from nasd.worker import stage as worker
from nasd.worker.measure import energy, quiet, stage
from nasd.worker.model.architecture import Architecture
from nasd.worker.model.phenotype import QuestionAnswering, save
from nasd.worker.training.progress import quiet as silent
from tests.conftest import drive, make_tick, small_config, small_dict, without_summaries

FIVE = ["quality", "compression", "latency_ms", "peak_memory_mb", "energy_j"]


def measuring(**changes: Any) -> dict[str, Any]:
    return {
        "experiment__objectives": FIVE,
        "experiment__generations": 1,
        "stages__evaluate__measure": True,
        **changes,
    }


def searched(folder: Path, **changes: Any) -> tuple[Snapshot, list[int]]:
    """And how many ranks each attempt at evaluate was started with."""
    tick = make_tick(StateFolder(folder), small_config(**measuring(**changes)))
    ranks, start = list[int](), tick.launcher.start

    def starting(attempt: Any, slots: Any, token: str) -> Any:
        if Path(attempt.path) and "evaluate" in attempt.spec.read_text():
            ranks.append(len(slots))
        return start(attempt, slots, token)

    tick.launcher.start = starting  # type: ignore[method-assign]
    with without_summaries():
        drive(tick)
    return tick.store.read(), ranks


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_nothing_else_runs_while_a_model_is_measured_on_the_processor(
    tmp_path: Path, device: str
) -> None:
    found, ranks = searched(tmp_path, measure={"device": device})
    assert found.experiment.state == "complete"
    measured = [one for one in found.attempts if one.stage == "evaluate"]
    assert measured and set(ranks) == {1}
    overlapping = [
        (one, other)
        for one in measured
        for other in found.attempts
        if one.id != other.id
        and one.started_at < other.ended_at
        and other.started_at < one.ended_at
    ]
    slots = {slot for one in found.attempts for slot in one.slots}
    if device == "cpu":
        assert not overlapping
        assert all(set(one.slots) == slots for one in measured)
    else:  # a GPU is leased to one attempt anyway
        assert overlapping
        assert not any(set(one.slots) & set(other.slots) for one, other in overlapping)


def test_measured_values_take_the_place_of_what_was_told_before(tmp_path: Path) -> None:
    found, _ = searched(tmp_path)
    names = found.experiment.objectives
    for one in found.individuals:
        scores = found.scores(one.id)
        if scores is None:
            continue
        assert found.value(one.id, "latency_ms") == scores["latency_ms"]
        assert one.figures["latency_ms"] != scores["latency_ms"]
        point = found.point(one.id)
        assert point is not None and len(point) == len(names) == 5
        assert found.value(one.id, "energy_j") == -point[4]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"stages__evaluate__measure": False}, "stages.evaluate.measure: peak_memory_mb has to be"),
        ({"stages__finetune__measure": True}, "measure = true stands only on a stage with train"),
    ],
)
def test_a_config_that_could_not_measure_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(NasdError, match=r"^my\.toml: ") as caught:
        parse(small_dict(**measuring(**changes)), "my.toml")
    assert words in str(caught.value) and "\n" not in str(caught.value)


# -- what cannot be measured --------------------------------------------------------------------


@pytest.fixture
def no_counter(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(*given: Any, **more: Any) -> dict[str, Any]:
        return {"unmeasured": {"energy_j": "there is no RAPL counter"}}

    monkeypatch.setattr(preflight.child, "ask", answer)


@pytest.mark.usefixtures("no_counter")
def test_a_search_by_what_cannot_be_measured_does_not_begin() -> None:
    with pytest.raises(NasdError, match="energy_j cannot be measured here: there is no RAPL"):
        preflight._check_measure(small_config(**measuring()), "my.toml")
    beside = small_config(**measuring(experiment__objectives=FIVE[:4]))
    preflight._check_measure(beside, "my.toml")


@pytest.mark.usefixtures("no_counter")
def test_doctor_says_what_stays_unmeasured() -> None:
    for names, mark in ((FIVE, "bad"), (FIVE[:4], "note")):
        config = small_config(**measuring(experiment__objectives=names))
        (one,) = sources.measure(Case(Path("my.toml"), config))
        assert (one.mark, one.text) == (mark, "energy_j stays unmeasured: there is no RAPL counter")
    assert not list(sources.measure(Case(Path("my.toml"), small_config())))


def package(folder: Path, joules: float) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "energy_uj").write_text(str(int(joules * 1e6)))
    (folder / "max_energy_range_uj").write_text("10000000")
    return folder


def test_all_packages_count_and_a_counter_that_runs_over_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(energy, "RAPL", tmp_path)
    assert "no RAPL counter" in str(energy.counter("cpu"))
    one, other = package(tmp_path / "intel-rapl:0", 9.0), package(tmp_path / "intel-rapl:1", 1.0)
    package(tmp_path / "intel-rapl:0:0", 5.0)  # a part of the first
    joules = energy.counter("cpu")
    assert not isinstance(joules, str)
    before = joules()
    package(one, 2.0)
    package(other, 4.0)
    assert joules() - before == pytest.approx(3.0 + 3.0)


def test_a_counter_that_may_not_be_read_is_told_with_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(energy, "RAPL", tmp_path)
    (tmp_path / "intel-rapl:0").mkdir()
    told = energy.counter("cpu")
    assert isinstance(told, str) and "intel-rapl:0/energy_uj may not be read" in told


# -- waiting for the processor ------------------------------------------------------------------


def stat(*cores: tuple[int, int]) -> str:
    """(busy, idle) of each core."""
    lines = [f"cpu{core} {busy} 0 0 {idle} 0 0 0 0" for core, (busy, idle) in enumerate(cores)]
    return "\n".join(["cpu 1 2 3 4 5 6 7 8", *lines, "intr 5"])


def test_it_waits_until_there_are_cores_to_spare_and_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(quiet.os, "sched_getaffinity", lambda _: {0, 1})
    looks = iter(
        [
            stat((0, 0), (0, 0)), stat((90, 10), (80, 20)),  # both are busy
            stat((90, 10), (80, 20)), stat((180, 20), (80, 120)),  # the second is not
        ]
    )  # fmt: skip
    said, slept = list[str](), list[float]()
    assert quiet.cores(1, said.append, look=lambda: next(looks), sleep=slept.append) == [1]
    assert said == ["waiting: others use 2 of 2 cores"] and len(slept) == 2


def test_it_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quiet.os, "sched_getaffinity", lambda _: {0, 1, 2})
    ticks = iter(range(10**6))

    def busy() -> str:
        now = 100 * next(ticks)
        return stat((now, 0), (now, 0), (now, 0))

    said, slept = list[str](), list[float]()
    assert quiet.cores(2, said.append, 5.0, busy, slept.append) == [0, 1]
    assert sum(slept) == 5.0 and len(said) == 4


# -- the measuring itself -----------------------------------------------------------------------


def test_a_trained_model_is_measured_in_a_process_of_its_own(tmp_path: Path) -> None:
    blocks = [{"heads": 2, "ffns": [{"activation": "gelu", "sizes": [64]}]}]
    arch = Architecture(60_000, 32, 64, ()).with_blocks(blocks)
    save(QuestionAnswering(arch), tmp_path)
    measure = Measure(tokens=16)
    core = min(os.sched_getaffinity(0))
    question = {"weights": str(tmp_path), "measure": measure.model_dump(), "cores": [core]}
    told = stage._ask(question, 1, silent)
    metrics, about = told["metrics"], told["about"]
    assert metrics["latency_ms"] > 0 and metrics["latency_calls"] >= 15
    weights = (tmp_path / "model.safetensors").stat().st_size / 1e6
    assert 0.8 * weights < metrics["peak_memory_mb"] < 20 * weights
    assert ("energy_j" in metrics) != ("energy_j" in told["unmeasured"])
    assert about["tokens"] == 16 and about["threads"] == 1 and about["name"] not in ("", "cpu")


TOLD = {
    "metrics": {
        "latency_ms": 2.0,
        "latency_error": 0.04,
        "latency_spread": 0.1,
        "latency_calls": 15.0,
        "peak_memory_mb": 9.0,
    },
    "about": {},
    "unmeasured": {"energy_j": "there is no RAPL counter"},
}


def evaluated(
    folder: Path, goes_by: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, told: dict[str, Any]
) -> dict[str, float]:
    """The metrics of a stage that evaluates, and measures what is told."""
    config = small_config(**measuring())
    spec: Any = SimpleNamespace(
        weights=str(folder), measure=config.measure, goes_by=goes_by, halvings=0
    )
    task = SimpleNamespace(score=lambda *given: {"f1": 60.0, "exact_match": 50.0})
    monkeypatch.setattr(worker.registry, "of", lambda stage: task)
    monkeypatch.setattr(quiet, "cores", lambda threads, say: [0])
    monkeypatch.setattr(stage, "_ask", lambda question, threads, progress: told)
    one: Any = SimpleNamespace(first=True)
    pulse: Any = silent
    outcome = worker._evaluate(spec, config.ladder("candidates")[-1], folder / "r", one, pulse)
    return outcome.metrics


def test_scores_and_measurements_are_one_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = evaluated(tmp_path, ("quality", "peak_memory_mb"), monkeypatch, TOLD)
    assert found == {"f1": 60.0, "exact_match": 50.0, **TOLD["metrics"]}
    assert json.loads((tmp_path / "r" / stage.FILE).read_text()) == TOLD
    said = capsys.readouterr().out
    assert "energy_j is not measured: there is no RAPL counter" in said
    assert "only known within 4.0%" in said


def test_what_the_search_goes_by_and_is_not_measured_is_no_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(NasdError, match="energy_j cannot be measured: there is no RAPL counter"):
        evaluated(tmp_path, ("quality", "energy_j"), monkeypatch, TOLD)
    with pytest.raises(NasdError, match="no such engine"):
        evaluated(tmp_path, (), monkeypatch, {"error": "no such engine"})
