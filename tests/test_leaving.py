"""A search is asked to leave: by one signal, by two, and before it has begun anything."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from nasd.contract.protocol import Outcome, Spec
from nasd.control import daemon, leaving
from nasd.control.leaving import Leaving
from nasd.launch import interpreter
from nasd.launch.launcher import wait_until
from nasd.presets import write_preset
from nasd.record.lifecycle import Event
from tests.conftest import all_succeed, drive, make_tick, small_config, story
from tests.test_end_to_end import TINY, read, workers

PATIENCE = 60.0
BOTH = [signal.SIGTERM, signal.SIGINT]


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in BOTH}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def start(config: Path, *more: str, **variables: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [str(Path(sys.executable).with_name("nasd")), "run", "--config", str(config), *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | variables,
    )


def last_lines(text: str, count: int) -> list[str]:
    return [line for line in text.splitlines() if line.startswith(("nasd: ", "stopped"))][-count:]


@pytest.mark.parametrize("watched", [(), ("--watch",)], ids=["log", "watch"])
def test_a_search_says_what_it_does_when_told_to_stop_and_what_to_type_to_go_on(
    tmp_path: Path, watched: tuple[str, ...]
) -> None:
    config = write_preset("demo-thesis", tmp_path, TINY, force=False)
    running = start(config, *watched)

    def runs() -> bool:
        found = read(tmp_path / "state")
        return bool(found and any(one.process for one in found.live_attempts))

    assert wait_until(lambda: runs() or running.poll() is not None, PATIENCE)
    running.send_signal(signal.SIGINT)
    out, _ = running.communicate(timeout=PATIENCE)
    assert running.returncode == 0, out
    assert last_lines(out, 2) == [
        "nasd: stopping, writing checkpoints, up to 120 s; again to abort",
        f"stopped; to go on: {interpreter.nasd()} run --config {config}",
    ]
    assert "Traceback" not in out
    assert not workers(tmp_path / "state")
    found = read(tmp_path / "state")
    assert found is not None and found.live_attempts == ()


@pytest.mark.parametrize("number", BOTH)
def test_a_search_that_is_told_to_stop_before_it_began_leaves_nothing_and_no_child(
    tmp_path: Path, number: int
) -> None:
    config = write_preset("demo-thesis", tmp_path, TINY, force=False)
    before = sorted(tmp_path.rglob("*"))
    running = start(config)
    process = psutil.Process(running.pid)
    assert wait_until(lambda: bool(process.children()), PATIENCE)  # who looks at the seed
    children = process.children(recursive=True)
    running.send_signal(number)
    out, _ = running.communicate(timeout=PATIENCE)
    assert running.returncode == 0
    assert out.splitlines()[-1].startswith("nasd: stopped before anything was started; to go on: ")
    assert "Traceback" not in out
    assert sorted(tmp_path.rglob("*")) == before
    assert wait_until(lambda: not any(one.is_running() for one in children), PATIENCE)


def test_a_child_that_is_asked_something_does_not_outlive_a_killed_asker(tmp_path: Path) -> None:
    running = start(write_preset("demo-thesis", tmp_path, TINY, force=False))
    process = psutil.Process(running.pid)
    assert wait_until(lambda: bool(process.children()), PATIENCE)
    children = process.children(recursive=True)
    running.kill()
    running.communicate(timeout=PATIENCE)
    assert wait_until(lambda: not any(one.is_running() for one in children), PATIENCE)


@pytest.mark.parametrize("number", BOTH)
@pytest.mark.parametrize("where", ["in a turn", "while it waits for checkpoints"])
def test_a_second_signal_ends_it_at_once_with_its_code_and_what_was_recorded_stands(
    state: Any, monkeypatch: pytest.MonkeyPatch, number: int, where: str
) -> None:
    told: list[str] = []

    def asked_twice() -> None:
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)
        time.sleep(0)  # where Python hears of it

    def script(spec: Spec, before: int) -> tuple[float, Outcome | None]:
        if spec.attempt == 5 and where == "in a turn":
            asked_twice()
        elif spec.attempt == 5:
            os.kill(os.getpid(), number)
        return (1e9 if spec.attempt >= 5 else 0.0), all_succeed(spec, before)[1]

    tick = make_tick(state, small_config(daemon__tick_seconds=0.01), script)
    if where != "in a turn":
        monkeypatch.setattr(tick, "stop", lambda: os.kill(os.getpid(), number))
    asked = Leaving(Path("my config.toml"), told.append)
    with pytest.raises(SystemExit) as left, asked:
        daemon._serve(tick, asked)
    assert left.value.code == 128 + number
    assert [text.split(":")[0].split(",")[0] for text in told] == ["stopping", "aborted"]
    assert told[-1].endswith("run --config 'my config.toml'")
    before = story(tick.store)["events"]
    tick.store.close()
    again = make_tick(state, small_config())
    again.begin()
    assert drive(again).experiment.state == "complete"
    after = story(again.store)["events"]
    for candidate, events in before.items():  # whoever was on its way is so again
        done = [one for one in events if one[0] != Event.START]
        assert [one for one in after[candidate] if one[0] != Event.START][: len(done)] == done
    again.store.close()


def test_the_line_is_written_whatever_the_stream_is_doing(
    capfd: pytest.CaptureFixture[str],
) -> None:
    leaving.on_stderr("a word \udcff")
    assert capfd.readouterr().err == "nasd: a word \\udcff\n"
