"""Clocks that jump and turns that hang do not stop the search."""

import os
import subprocess
import sys
import threading
import time
from datetime import datetime, timedelta, tzinfo
from pathlib import Path

import apscheduler.schedulers.base
import pytest

from nasd.control import daemon, leaving
from nasd.control.daemon import goes_on
from nasd.control.watchdog import Watchdog
from nasd.launch.launcher import wait_until
from nasd.record.folders import StateFolder
from tests.conftest import ROOT, make_tick, small_config

PATIENCE = 60.0


def test_a_turn_that_hangs_brings_the_restart_and_one_that_ends_does_not():
    restarted, woken = threading.Event(), threading.Event()
    with Watchdog(1000, 0.2, woken.set, restarted.set) as watchdog:
        for _ in range(20):
            with watchdog.turn():
                pass
        assert not restarted.is_set()
        with watchdog.turn():
            assert restarted.wait(PATIENCE)
    assert not woken.is_set()


def test_a_turn_that_fails_does_not_count_as_hanging():
    restarted = threading.Event()
    with Watchdog(1000, 0.1, lambda: None, restarted.set) as watchdog:
        with pytest.raises(OSError, match="full"), watchdog.turn():
            raise OSError("full")
        assert not restarted.wait(0.5)


def test_where_no_turn_begins_the_scheduler_is_woken_once_at_a_time():
    calls: list[float] = []
    hold = threading.Event()

    def wake() -> None:
        calls.append(time.monotonic())
        hold.wait(PATIENCE)  # as if the scheduler's lock were taken

    with Watchdog(0.1, 1000, wake, lambda: None):
        assert wait_until(lambda: bool(calls), PATIENCE)
        time.sleep(0.5)
        assert len(calls) == 1
        hold.set()
        assert wait_until(lambda: len(calls) > 1, PATIENCE)


class SetClock(datetime):
    """The wall's clock, as somebody sets it."""

    offset = timedelta(0)

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
        return datetime.now(tz) + cls.offset


@pytest.mark.parametrize("hours", [-1, 5])
def test_a_clock_that_jumps_does_not_keep_the_daemon_from_turning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hours: int
):
    for module in (apscheduler.schedulers.base, daemon):
        monkeypatch.setattr(module, "datetime", SetClock)
    monkeypatch.setattr(SetClock, "offset", timedelta(0))
    monkeypatch.setattr(daemon, "OVERDUE_SECONDS", 0.2)
    monkeypatch.setattr(leaving.signal, "signal", lambda number, handler: None)
    tick = make_tick(StateFolder(tmp_path), small_config(daemon__tick_seconds=0.02))
    turns = 0
    clock = tick.clock

    def turning() -> float:
        nonlocal turns
        turns += 1
        if turns == 40:
            SetClock.offset = timedelta(hours=hours)
        clock.now += 1.0  # type: ignore[attr-defined]
        return clock()

    tick.clock = turning
    tick.monotonic = clock
    assert daemon._serve(tick)  # it comes to its end
    assert SetClock.offset == timedelta(hours=hours)


HANGING = """
import sys, time
from pathlib import Path
from nasd.control import daemon
from nasd.record.folders import StateFolder
from tests.conftest import Clock, make_tick, small_config

folder = Path(sys.argv[1])
daemon.HANG_SECONDS = 1.0
clock = Clock()
state = StateFolder(folder / "state")
tick = make_tick(state, small_config(daemon__tick_seconds=0.01), clock=clock)
marker = folder / "hung"
look = tick.look

def looking():
    clock.now += 5
    if len(tick.store.read().attempts) > 4 and not marker.exists():
        marker.write_text("")
        time.sleep(3600)  # a disk that does not answer
    look()

tick.look = looking
clock.now = 2000.0 if not marker.exists() else 9000.0
import os
print(os.getpid(), flush=True)
sys.exit(0 if daemon._serve(tick) else 3)
"""


def test_a_turn_that_hangs_makes_the_daemon_begin_anew_in_place_and_the_search_ends(tmp_path: Path):
    script = tmp_path / "hanging.py"
    script.write_text(HANGING)
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.split()
    assert first == second  # the same process
    assert "a turn hangs" in done.stderr


def test_a_daemon_that_restarts_itself_goes_on_with_its_search_and_sets_none_aside():
    began = ["-P", "/env/bin/nasd", "run", "--fresh", "--config", "config.toml"]
    assert goes_on(began) == ["-P", "/env/bin/nasd", "run", "--config", "config.toml"]
