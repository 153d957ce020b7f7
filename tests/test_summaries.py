"""Event files: what TensorBoard reads of runs whose writers were killed, resumed, or wrote anew."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from nasd.contract.summaries import Summaries, scalars, text, write_run
from nasd.worker.training.recording import Curves, MetricsFile
from tests.boards import Reader, read_run, steps
from tests.conftest import ROOT


def record(run: Path, numbers: range, forget_from: int, value: float = 1.0) -> None:
    with Summaries(run, forget_from) as summaries:
        for step in numbers:
            summaries.scalars({"loss": value}, step)


def test_a_resumed_run_has_each_step_once_from_whoever_wrote_it_last(tmp_path: Path):
    record(tmp_path, range(1, 8), 0, 1.0)
    record(tmp_path, range(5, 11), 5, 2.0)
    assert read_run(tmp_path)["loss"] == [(s, 1.0 if s < 5 else 2.0) for s in range(1, 11)]


def test_one_who_watches_all_along_sees_the_same(tmp_path: Path):
    record(tmp_path, range(1, 8), 0)
    watcher = Reader(tmp_path)
    assert steps(watcher.read(), "loss") == [*range(1, 8)]
    record(tmp_path, range(5, 6), 5)
    assert steps(watcher.read(), "loss") == [*range(1, 6)]
    record(tmp_path, range(6, 9), 6)
    assert watcher.read() == read_run(tmp_path)
    assert steps(watcher.read(), "loss") == [*range(1, 9)]


@pytest.mark.parametrize("left", [1, 8, 11, 13, 30])
def test_half_a_record_of_a_kill_hides_nothing(tmp_path: Path, left: int):
    record(tmp_path, range(1, 8), 0)
    (file,) = tmp_path.iterdir()
    whole = file.stat().st_size
    record(tmp_path, range(8, 9), 0)
    (_, longer) = sorted(tmp_path.iterdir())
    with file.open("ab") as half:
        half.write(longer.read_bytes()[:left])
    longer.unlink()
    assert file.stat().st_size == whole + left
    record(tmp_path, range(6, 10), 6)
    assert steps(read_run(tmp_path), "loss") == [*range(1, 10)]


def test_the_order_of_files_does_not_depend_on_the_clock(tmp_path: Path):
    # As TensorBoard's own writer calls them, and then a clock that was set back.
    (tmp_path / "events.out.tfevents.1795534180.box.9219.0").write_bytes(b"")
    for _ in range(3):
        record(tmp_path, range(1), 0)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert [name.split(".")[3] for name in names] == [str(1795534180 + n) for n in range(4)]


def test_a_rewritten_run_says_what_it_says_last(tmp_path: Path):
    watcher = Reader(tmp_path)
    assert write_run(tmp_path, [text("card", "one", 5.0), scalars({"a": 1.0}, 3, 5.0)], 1.0)
    assert watcher.read() == {"card": [(0, "one")], "a": [(3, 1.0)]}
    told = [text("card", "two", 6.0), scalars({"a": 2.0, "b": 2.0}, 3, 6.0)]
    assert write_run(tmp_path, told, 1.0)
    assert watcher.read() == {"card": [(0, "two")], "a": [(3, 2.0)], "b": [(3, 2.0)]}
    assert read_run(tmp_path) == watcher.read()
    files = sorted(tmp_path.iterdir())
    assert not write_run(tmp_path, told, 1.0)
    assert sorted(tmp_path.iterdir()) == files


def test_a_run_that_cannot_be_written_stays_as_it_was(tmp_path: Path, monkeypatch):
    write_run(tmp_path, [text("card", "one", 5.0)], 1.0)

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", full)
        with pytest.raises(OSError, match="No space left"):
            write_run(tmp_path, [text("card", "two", 5.0)], 1.0)
    assert read_run(tmp_path) == {"card": [(0, "one")]}
    assert write_run(tmp_path, [text("card", "three", 5.0)], 1.0)
    assert read_run(tmp_path) == {"card": [(0, "three")]}


# -- a worker's curves ---------------------------------------------------------------------------


def lines(curves: Curves, done: int, last: int, folder: Path) -> None:
    recorder = MetricsFile(folder / "metrics.jsonl", curves, done)
    for step in range(done + 1, last + 1):
        recorder.line(kind="train", step=step, loss=3.0, at=1.0)
        if step % 5 == 0:
            recorder.line(kind="evaluation", step=step, loss=2.0, at=1.0)
    recorder.sync()
    recorder.close()


def test_stages_of_one_task_make_one_curve_and_the_points_at_checkpoints_stay(tmp_path: Path):
    run = tmp_path / "mlm"
    first = Curves(run, "mlm", shared="learning_curves/gen01")
    second = Curves(run, "mlm", 20, "learning_curves/gen01")
    lines(first, 0, 12, tmp_path)
    lines(first, 10, 17, tmp_path)  # resumed at the checkpoint of step 10
    lines(first, 15, 20, tmp_path)
    lines(second, 0, 3, tmp_path)
    lines(second, 0, 8, tmp_path)  # anew: there was no checkpoint yet
    lines(second, 5, 10, tmp_path)
    found = read_run(run)
    assert steps(found, "mlm/loss") == [*range(1, 31)]
    assert steps(found, "mlm/evaluation_loss") == [5, 10, 15, 20, 25, 30]
    assert found["learning_curves/gen01"] == found["mlm/evaluation_loss"]


def test_one_who_is_only_evaluated_and_again_has_one_point(tmp_path: Path):
    for _ in range(2):
        recorder = MetricsFile(tmp_path / "metrics.jsonl", Curves(tmp_path / "mlm", "mlm"), 0)
        recorder.line(kind="evaluation", step=0, loss=2.0, at=1.0)
        recorder.close()
    assert read_run(tmp_path / "mlm") == {"mlm/evaluation_loss": [(0, 2.0)]}


# -- weight --------------------------------------------------------------------------------------

PROBE = """
import sys
from nasd.views import board, board_server
from nasd.control import tick
from nasd.contract.summaries import Summaries, text, write_run
from pathlib import Path
write_run(Path(sys.argv[1]), [text("card", "one", 1.0)], 1.0)
with Summaries(Path(sys.argv[1]), 0) as summaries:
    summaries.scalars({"a": 1.0}, 1)
heavy = {"tensorflow", "torch", "grpc", "tensorboard.main", "pandas", "matplotlib"}
assert not heavy & {*sys.modules}, heavy & {*sys.modules}
"""


def test_whoever_has_tensorflow_too_does_not_get_it_into_the_daemon(tmp_path: Path):
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "tensorflow.py").write_text("raise SystemExit('tensorflow is imported')")
    done = subprocess.run(
        [sys.executable, "-c", PROBE, str(tmp_path / "run")],
        env={**os.environ, "PYTHONPATH": f"{tmp_path / 'lib'}:{ROOT}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
