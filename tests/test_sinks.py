"""Trackers of others get what TensorBoard shows: each step once, whatever is killed meanwhile, and
the daemon neither waits for them nor ends by them."""

import json
import logging
import os
import re
import signal
import struct
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from nasd.contract.errors import NasdError
from nasd.contract.summaries import Summaries, write_run
from nasd.contract.summaries import scalars as scalars_event
from nasd.control import mirrors
from nasd.control.mirrors import Mirrors
from nasd.control.tick import Tick
from nasd.launch import interpreter
from nasd.launch.launcher import wait_until
from nasd.record.folders import StateFolder
from nasd.record.state import Snapshot
from nasd.record.store import Store
from nasd.views.doctor import trackers
from nasd.views.doctor.case import Case
from nasd.views.sinks import mirror, runs, sink
from nasd.views.sinks.mirror import Mirror, Order
from nasd.views.sinks.runs import Run
from tests.boards import Run as Shown
from tests.boards import read_board
from tests.conftest import small_config
from tests.faults import small_search, some_diverge

PATIENCE = 240.0


def needs(name: str) -> pytest.MarkDecorator:
    entry = sink.SINKS[name]
    there = find_spec(entry.package) is not None
    return pytest.mark.skipif(not there, reason=f"needs {entry.title}: bin/setup {entry.extra}")


@pytest.fixture(scope="module")
def tick(tmp_path_factory: pytest.TempPathFactory) -> Tick:
    """The small search at its end, some of whose candidates have diverged; with curves of two."""
    found = small_search(StateFolder(tmp_path_factory.mktemp("sinks") / "state"), some_diverge)
    for name in ("gen01/c0005/mlm", "gen01/c0006/mlm"):
        train(found.state.run(name), range(0, 50, 10))
    return found


def train(run: Path, steps: Sequence[int], forget_from: int = 0, worse: float = 0.0) -> None:
    """A worker's curve."""
    with Summaries(run, forget_from) as file:
        for step in steps:
            file.scalars({"mlm/loss": 2.0 - step / 100 + worse, "mlm/rate": 0.5}, step)


def order(state: StateFolder, name: str, **settings: Any) -> Order:
    found = getattr(small_config(**{f"{name}__{key}": one for key, one in settings.items()}), name)
    return Order(str(state.path), name, found.model_dump(mode="json"), "small", 1234.5, 0.1)


# -- what there is to tell -----------------------------------------------------------------------


def test_a_run_has_each_step_once_however_often_its_worker_began_again(tmp_path: Path):
    train(tmp_path / "gen01/c0005/mlm", [0, 10, 20, 30])
    train(tmp_path / "gen01/c0005/mlm", [20, 30, 40], forget_from=11, worse=1.0)
    (name,) = runs.names(tmp_path)
    curve = runs.read(tmp_path, name).curves["mlm"]["mlm/loss"]
    assert {step: point.value for step, point in curve.items()} == pytest.approx(
        {0: 2.0, 10: 1.9, 20: 2.8, 30: 2.7, 40: 2.6}
    )


def test_of_what_the_daemon_says_the_last_word_counts(tmp_path: Path):
    folder = tmp_path / "gen01/c0005"
    for at, value in ((1.0, 0.25), (2.0, 0.75)):
        write_run(folder, [scalars_event({"results/quality": value}, 1, at)], 0.0)
    found = runs.read(tmp_path, "gen01/c0005")
    assert found.results == {"results/quality": runs.Point(0.75, 2.0)}


def test_what_is_told_is_what_tensorboard_shows(tick: Tick):
    board = tick.state.tensorboard
    shown: dict[str, Shown] = read_board(board)
    names = [*runs.names(board)]
    assert {*names} == {name.removesuffix("/mlm") for name in shown}
    for name in names:
        found = runs.read(board, name)
        told = {
            f"{name}/{task}" if task == "mlm" else name: {
                tag: [(step, point.value) for step, point in curve.items()]
                for tag, curve in curves.items()
            }
            for task, curves in found.curves.items()
        }
        if found.results:
            told.setdefault(name, {}).update(
                {tag: [(None, point.value)] for tag, point in found.results.items()}
            )
        for run, curves in told.items():
            numbers = {tag for tag, p in shown[run].items() if isinstance(p[0][1], float)}
            assert {*curves} == numbers
            for tag, points in curves.items():
                assert [value for _, value in points] == [value for _, value in shown[run][tag]]
        texts = [text for tag, ((_, text),) in cards(shown[name]).items()]
        assert found.card == "\n\n".join(texts)


def cards(run: Shown) -> Shown:
    return {tag: points for tag, points in run.items() if "card" in tag or tag in DECIDED}


DECIDED = ("selection", "cutoff_after_pretrain_0")


def test_a_candidate_is_told_with_its_features_and_its_fate(tick: Tick):
    found: Snapshot = tick.store.read()
    ended = [one for one in found.candidates.values() if one.final and not one.is_baseline]
    assert {str(one.state) for one in ended} == {"scored", "cut", "failed"}
    for one in ended:
        run = runs.read(tick.state.tensorboard, f"gen{one.generation:02d}/c{one.id:04d}")
        assert run.kind == "candidate" and run.group == f"gen{one.generation:02d}"
        assert run.features["fate"] == str(one.state)
        assert run.features["blocks"] == len(one.genotype.blocks)
        assert run.failed == (one.state == "failed")
        assert run.ended is not None and run.began <= run.ended


# -- the daemon's side ---------------------------------------------------------------------------


@pytest.fixture
def watched(store: Store, state: StateFolder) -> Iterator[Callable[..., Mirrors]]:
    """Mirrors of the small search; what they started is ended."""
    made: list[Mirrors] = []

    def make(*command: str, **settings: Any) -> Mirrors:
        experiment = store.in_play().experiment
        config = small_config(**settings)
        made.append(Mirrors(config, state, experiment, command or mirrors.MIRROR))
        return made[-1]

    yield make
    for one in made:
        for started in one._sinks.values():
            if started.process is not None:
                started.process.kill()
                started.process.wait()


def test_nothing_is_started_where_no_section_asks_for_it(watched: Callable[..., Mirrors]):
    one = watched()
    one()
    assert not one._sinks


def test_a_sink_that_fails_is_a_warning_once_and_tried_again_later(
    watched: Callable[..., Mirrors], caplog: pytest.LogCaptureFixture
):
    one = watched("nasd.no.such.module", wandb__mode="offline")
    one()
    found = one._sinks["wandb"]
    assert found.process is not None
    found.process.wait(PATIENCE)
    with caplog.at_level(logging.WARNING):
        one()
        assert found.process is None and found.due > time.monotonic()
        one()
        assert found.process is None
        found.due = 0.0
        one()
        assert found.process is not None
        found.process.wait(PATIENCE)
        one()
    (said,) = caplog.messages
    assert said.startswith("wandb is not kept up, and will be: ") and "nasd.no" in said
    assert found.pause == 2 * mirrors.SHORTEST


def test_a_sink_that_hangs_is_neither_waited_for_nor_ended(watched: Callable[..., Mirrors]):
    with watched(
        "timeit", "-n1", "-r1", "import time; time.sleep(600)", mlflow__every_minutes=1
    ) as one:
        one()
        found = one._sinks["mlflow"].process
        assert found is not None
        one()
    assert found.poll() is None


def test_a_mirror_ends_by_itself_with_whoever_started_it(
    watched: Callable[..., Mirrors], state: StateFolder
):
    with watched(wandb__every_minutes=1) as one:
        one()
        found = one._sinks["wandb"].process
    assert found is not None
    found.wait(PATIENCE)


# -- the mirror ----------------------------------------------------------------------------------


class Kept:
    """A sink that keeps the runs that it is given."""

    def __init__(self) -> None:
        self.written: list[Run] = []
        self.flushed = 0

    def write(self, run: Run) -> None:
        self.written.append(run)

    def flush(self) -> None:
        self.flushed += 1

    def names(self) -> list[str]:
        found, self.written = [one.name for one in self.written], []
        return found


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> Kept:
    found = Kept()
    monkeypatch.setattr(sink, "opened", lambda *given: found)
    return found


def mirrored(state: StateFolder, **settings: Any) -> Mirror:
    found = order(state, "mlflow", **{"every_minutes": 10.0} | settings)
    folder = state.sinks / "mlflow"
    folder.mkdir(parents=True, exist_ok=True)
    return Mirror(found, folder)


def test_each_run_is_handed_over_once_also_by_the_next_mirror(state: StateFolder, kept: Kept):
    train(state.run("gen00/c0001/mlm"), [0, 10])
    train(state.run("gen00/c0002/mlm"), [0, 10])
    one = mirrored(state)
    one.look()
    assert kept.names() == ["gen00/c0001", "gen00/c0002"]
    one.look()
    mirrored(state).look()
    assert kept.names() == []
    mirrored(state, experiment="elsewhere").look()
    assert kept.names() == ["gen00/c0001", "gen00/c0002"]


def test_a_run_that_grows_is_told_now_and_then_and_at_once_when_something_is_said_of_it(
    state: StateFolder, kept: Kept
):
    train(state.run("gen00/c0001/mlm"), [0, 10])
    one = mirrored(state)
    one.look()
    train(state.run("gen00/c0001/mlm"), [20], forget_from=11)
    kept.names()
    one.look()
    assert kept.names() == []
    write_run(state.run("gen00/c0001"), [scalars_event({"results/size": 1.0}, 0, 1.0)], 0.0)
    one.look()
    assert kept.names() == ["gen00/c0001"]
    train(state.run("gen00/c0001/mlm"), [30], forget_from=21)
    one.look(all_=True)
    assert kept.names() == ["gen00/c0001"]


def test_a_search_that_took_the_folder_is_not_taken_for_this_one(state: StateFolder, kept: Kept):
    train(state.run("gen00/c0001/mlm"), [0, 10])
    one = mirrored(state)
    (state.path / "old").mkdir()
    state.sinks.rename(state.path / "old/sinks")
    mirrored(state)
    with pytest.raises(NasdError, match="no longer of this search"):
        one.look()
    assert kept.names() == []


def test_what_goes_wrong_is_told_without_what_the_environment_keeps(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setenv("WANDB_API_KEY", "s3cret-of-mine")
    said = mirror.sentence(ValueError("401 for s3cret-of-mine\n at  the server"))
    assert said == "ValueError: 401 for ... at the server"


def test_a_password_in_an_address_is_refused():
    with pytest.raises(NasdError, match=r"mlflow\.tracking: take the name and password out"):
        small_config(mlflow__tracking="https://me:secret@example.org/mlflow")
    assert small_config(mlflow__tracking="https://example.org/a@b").mlflow is not None


def test_a_package_that_is_missing_is_told_by_the_key_that_asks_for_it(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(sink, "find_spec", lambda name: None)
    said = r"^\[wandb\] asks for the package wandb, .*bin/setup wandb"
    with pytest.raises(NasdError, match=said):
        sink.opened("wandb", {}, sink.Search("small", "0"), Path())
    (found,) = trackers.sinks(Case(Path("config.toml"), small_config(wandb__mode="offline")))
    assert found.mark == "bad" and re.match(said, found.text)
    assert not [*trackers.sinks(Case(Path("config.toml"), small_config()))]


# -- the real ones -------------------------------------------------------------------------------


def copied(tick: Tick, tmp_path: Path) -> StateFolder:
    """A state folder with TensorBoard's files of a few runs."""
    state = StateFolder(tmp_path / "state")
    for name in ("search", "gen01/c0005", "gen01/selection"):
        there = state.run(name)
        there.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(["cp", "-r", str(tick.state.run(name)), str(there)], check=True)
    return state


def start(given: Order) -> subprocess.Popen[bytes]:
    """The process that a daemon starts."""
    process = subprocess.Popen(
        interpreter.command("nasd.views.sinks.mirror"),
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=interpreter.environment({"WANDB_API_KEY": SECRET, "MLFLOW_TRACKING_TOKEN": SECRET}),
    )
    assert process.stdin is not None
    process.stdin.write(json.dumps(vars(given)).encode() + b"\n")
    process.stdin.flush()
    return process


SECRET = "s3cret0123456789012345678901234567890123"


def finish(process: subprocess.Popen[bytes]) -> None:
    """As when its daemon is gone."""
    _, said = process.communicate(timeout=PATIENCE)
    assert (process.returncode, said) == (0, b"")


def check_no_secret(folder: Path) -> None:
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files and not any(SECRET.encode() in path.read_bytes() for path in files)


def curves_of(state: StateFolder, name: str) -> dict[str, list[tuple[int, float]]]:
    found = runs.read(state.tensorboard, name)
    return {
        tag: [(step, curve[step].value) for step in sorted(curve)]
        for curves in found.curves.values()
        for tag, curve in curves.items()
    }


HALF_MADE = {
    "an experiment": "meta.yaml",
    "a run": "*/meta.yaml",
    "a run's tags": "*/tags/mlflow.runName",
    "a metric": "*/metrics/mlm/loss",
    "a parameter": "*/params/blocks",
}


@needs("mlflow")
@pytest.mark.parametrize("what", HALF_MADE)
def test_what_a_kill_left_half_made_in_mlflows_files_is_made_again(
    tick: Tick, tmp_path: Path, what: str
):
    state = copied(tick, tmp_path)
    given = order(state, "mlflow", experiment="a search")
    finish(start(given))
    folder = state.sinks / "mlflow"
    made = next(one for one in (folder / "runs").glob("*/") if [*one.glob("*/metrics")])
    there = next(made.glob(HALF_MADE[what]))
    there.write_bytes(b"")  # it was opened, and not yet written to
    (folder / "handed-over.json").unlink()
    finish(start(given))
    names = sorted(one.read_text() for one in (folder / "runs").glob("*/*/tags/nasd.run"))
    assert names == ["gen01/c0005", "gen01/selection", "search"]
    files = [one for one in (folder / "runs").rglob("*") if one.is_file()]
    assert all(one.read_bytes() for one in files if one.parent.name != "tags")  # a tag may be ""
    assert len([*(folder / "runs").glob("*/*/metrics/mlm/loss")]) == 1


@needs("mlflow")
def test_mlflow_has_each_step_once_whatever_was_killed(tick: Tick, tmp_path: Path):
    state = copied(tick, tmp_path)
    given = order(state, "mlflow", experiment="a search")
    killed = start(given)
    metric = Path("metrics/mlm/loss")
    runs_folder = state.sinks / "mlflow/runs"
    assert wait_until(lambda: [*runs_folder.glob(f"*/*/{metric}")] != [], PATIENCE)
    killed.send_signal(signal.SIGKILL)  # while it hands over; nothing is noted
    killed.wait()
    train(state.run("gen01/c0005/mlm"), [30, 40, 50], forget_from=21, worse=1.0)
    finish(start(given))
    (state.sinks / "mlflow/handed-over.json").unlink()  # as after a folder that was copied back
    Mirror(given, state.sinks / "mlflow").look()
    os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
    from mlflow.tracking import MlflowClient

    client = MlflowClient(runs_folder.as_uri())
    experiment = client.get_experiment_by_name("a search")
    found = {one.info.run_name: one for one in client.search_runs([experiment.experiment_id])}
    assert {*found} == {"search", "gen01/c0005", "gen01/selection"}

    def points(name: str, tag: str) -> list[tuple[int, float]]:
        history = client.get_metric_history(found[name].info.run_id, tag)
        return sorted((one.step, one.value) for one in history)

    for tag, curve in curves_of(state, "search").items():
        assert points("search", tag) == curve, tag
    # What was told first stands, and each step once.
    shown = curves_of(state, "gen01/c0005")["mlm/loss"]
    assert [step for step, _ in points("gen01/c0005", "mlm/loss")] == [step for step, _ in shown]
    one = found["gen01/c0005"]
    told = runs.read(state.tensorboard, "gen01/c0005")
    for tag, point in told.results.items():
        assert [value for _, value in points("gen01/c0005", tag)] == [point.value]
    assert one.data.tags["fate"] == told.features["fate"]
    assert float(one.data.params["blocks"]) == told.features["blocks"]
    assert one.data.tags["mlflow.note.content"] == told.card
    assert one.info.status == ("FAILED" if told.failed else "FINISHED")
    assert "survives" in found["gen01/selection"].data.tags["mlflow.note.content"]
    check_no_secret(state.sinks)


@needs("wandb")
def test_weights_and_biases_has_one_whole_run_each_whatever_was_killed(tick: Tick, tmp_path: Path):
    state = copied(tick, tmp_path)
    given = order(state, "wandb", project="a-search")
    folder = state.sinks / "wandb"
    killed = start(given)
    assert wait_until(lambda: [*folder.glob("offline-run-*")] != [], PATIENCE)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    train(state.run("gen01/c0005/mlm"), [30, 40, 50], forget_from=21, worse=1.0)
    finish(start(given))
    (folder / "handed-over.json").unlink()
    Mirror(given, folder).look()
    written = [read_offline(path) for path in folder.glob("offline-run-*/*.wandb")]
    assert not (folder / ".new").exists()
    found = {one["run"].display_name: one for one in written}
    assert len(written) == len(found)
    assert {*found} == {"search", "gen01/c0005", "gen01/selection"}
    for name in ("search", "gen01/c0005"):
        told, one = runs.read(state.tensorboard, name), found[name]
        (task,) = told.curves
        for tag, curve in curves_of(state, name).items():
            points = [(row[f"{task}/step"], row[tag]) for row in one["history"] if tag in row]
            assert points == curve, tag
        assert one["exit"].exit_code == int(told.failed)
    one, told = found["gen01/c0005"], runs.read(state.tensorboard, "gen01/c0005")
    assert one["run"].project == "a-search" and one["run"].run_group == "gen01"
    assert one["run"].notes == told.card
    config = {item.key: json.loads(item.value_json) for item in one["run"].config.update}
    assert told.features.items() <= config.items()
    assert told.results and {tag: p.value for tag, p in told.results.items()}.items() <= (
        one["summary"].items()
    )
    assert "survives" in found["gen01/selection"]["run"].notes
    check_no_secret(folder)


ITEMS = {"history": "item", "summary": "update"}


def read_offline(path: Path) -> dict[str, Any]:
    """What wandb left for `wandb sync`: a log in LevelDB's format, of its own messages."""
    from wandb.proto import wandb_internal_pb2

    found: dict[str, Any] = {"history": [], "summary": {}}
    data, at, part = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if (left := 32768 - at % 32768) < 7:  # of a block, too few for a header
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        if not kind:
            break
        part, at = part + data[at + 7 : at + 7 + length], at + 7 + length
        if kind not in (1, 4):  # the whole of a message, or its last part
            continue
        record, part = wandb_internal_pb2.Record.FromString(part), b""
        name = record.WhichOneof("record_type")
        said = getattr(record, name)
        items = getattr(said, ITEMS[name]) if name in ITEMS else ()
        values = {one.key or "/".join(one.nested_key): json.loads(one.value_json) for one in items}
        if name == "history":
            found["history"].append(values)
        elif name == "summary":
            found["summary"] |= values
        elif name in ("run", "exit"):
            found[name] = said
    return found
