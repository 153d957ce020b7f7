"""`nasd tensorboard`: it serves a search, or says in a sentence why it cannot."""

import json
import re
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from urllib.parse import unquote
from urllib.request import urlopen

import pytest

from nasd.contract.errors import NasdError
from nasd.control.tick import Tick
from nasd.launch.launcher import wait_until
from nasd.record.folders import StateFolder
from nasd.views import board_server
from tests.conftest import drive, make_tick, small_config
from tests.faults import begin_in


@pytest.fixture(scope="module")
def tick(tmp_path_factory: pytest.TempPathFactory) -> Tick:
    """A search on its way."""
    tick = make_tick(StateFolder(tmp_path_factory.mktemp("served") / "state"), small_config())
    drive(tick, lambda snapshot: bool(snapshot.born_in(1)))
    return tick


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("localhost", 0))
        return int(one.getsockname()[1])


def test_nasd_tensorboard_serves_the_runs(tick: Tick):
    port = free_port()
    words = ["tensorboard", "--state", str(tick.state.path), "--port", str(port)]
    with subprocess.Popen(
        [sys.executable, "-m", "nasd", *words], stderr=subprocess.PIPE, text=True
    ) as process:
        runs: list[str] = []

        def serves() -> bool:
            with suppress(OSError):
                runs[:] = json.load(urlopen(f"http://localhost:{port}/data/runs"))
            return bool(runs) or process.poll() is not None

        try:
            assert wait_until(serves, 60)
        finally:
            process.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):  # else the test would wait for it for good
                process.wait(30)
            process.kill()
        assert process.stderr is not None
        assert {"search", "baseline", "gen00/c0001"} <= {*runs}, process.stderr.read()


def test_links_lead_to_the_newest_generation(tick: Tick, tmp_path: Path):
    (alone,) = board_server.links(tick.state.path, "localhost", 6006)  # no curve: no empty chart
    assert "/#text&" in alone  # but cards, which a ladder without MLM has as well
    assert re.search(unquote(alone).split("regexInput=")[1], "gen01/c0004")
    for run in ("gen00/c0001/mlm", "gen01/c0004/mlm"):
        folder = tick.state.tensorboard / run
        folder.mkdir(parents=True)
        (folder / "events.out.tfevents.1").touch()
    curves, cards = (
        re.compile(unquote(link).split("regexInput=")[1])
        for link in board_server.links(tick.state.path, "localhost", 6006)
    )
    assert all(curves.search(run) for run in ("search", "gen01/cutoff", "gen01/c0004/mlm"))
    assert all(cards.search(run) for run in ("gen01/c0004", "gen01/selection"))
    others = ("baseline", "gen00/c0001/mlm", "gen01/c0004/qa")
    assert not any(one.search(run) for one in (curves, cards) for run in others)
    state = StateFolder(tmp_path / "state")
    begin_in(state, small_config())
    assert board_server.links(state.path, "localhost", 6006) == []


def test_a_port_in_use_is_told_in_a_sentence(tick: Tick):
    with socket.socket() as taken:
        taken.bind(("localhost", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(NasdError, match=rf"port {port} of localhost is in use.*--port"):
            board_server.command(tick.state.path, "localhost", port)


@pytest.mark.parametrize("host", ["no.such.host.invalid", "192.0.2.1"])
def test_an_address_of_another_machine_is_told_in_a_sentence(tick: Tick, host: str):
    with pytest.raises(NasdError, match=host):
        board_server.command(tick.state.path, host, free_port())


def test_a_folder_with_nothing_to_show_is_told_in_a_sentence(tmp_path: Path, state: StateFolder):
    with pytest.raises(NasdError, match="holds no experiment yet"):
        board_server.command(tmp_path, "localhost", free_port())
    begin_in(state, small_config())
    with pytest.raises(NasdError, match="nothing to show yet"):
        board_server.command(state.path, "localhost", free_port())
