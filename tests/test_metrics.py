"""A search in Prometheus's format."""

import re
import threading
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from typer.testing import CliRunner

from nasd import cli
from nasd.contract.errors import NasdError
from nasd.record.folders import StateFolder
from nasd.views import metrics
from nasd.views.live.server import Live, Server
from tests.conftest import drive, make_tick, small_config

LINE = re.compile(r'^nasd_[a-z_]+\{(?:[a-z]+="(?:[^"\\\n]|\\.)*",?)+\} -?[0-9.e+]+$')


@pytest.fixture
def ended(state: StateFolder, no_summaries: None) -> StateFolder:
    """A search that is complete."""
    tick = make_tick(state, small_config())
    drive(tick)
    tick.store.close()
    return state


def values(text: str) -> dict[str, float]:
    """By name and labels."""
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines}


def test_every_line_is_as_prometheus_reads_it_and_each_metric_is_told_of_once(ended: StateFolder):
    text = metrics.text(ended.path)
    assert text.endswith("\n")
    for line in text.splitlines():
        assert line.startswith(("# HELP nasd_", "# TYPE nasd_")) or LINE.match(line), line
    kinds = re.findall(r"^# TYPE (\w+) ", text, re.MULTILINE)
    assert len(kinds) == len(set(kinds))


def test_the_figures_are_those_of_the_search(ended: StateFolder):
    found = values(metrics.text(ended.path))
    name = 'experiment="small"'
    assert found[f'nasd_state{{{name},state="complete"}}'] == 1
    assert found[f"nasd_up{{{name}}}"] == 0
    assert found[f"nasd_generation{{{name}}}"] == 2
    states = [value for key, value in found.items() if key.startswith("nasd_candidates{")]
    assert sum(states) == 1 + 3 + 4 + 4  # the baseline, mu, and lambda twice
    assert found[f'nasd_best{{{name},objective="quality"}}'] > 0
    assert found[f'nasd_baseline{{{name},objective="compression"}}'] == 1
    assert found[f"nasd_slot_hours_total{{{name}}}"] > 0
    assert f"nasd_hypervolume{{{name}}}" in found


def test_a_name_with_quotes_and_backslashes_stays_one_label():
    told = metrics.Metric("up", "gauge", "x", [({}, 1.0)])
    line = metrics._lines(told, {"experiment": 'a "b" \\ c'}).splitlines()[-1]
    assert line == 'nasd_up{experiment="a \\"b\\" \\\\ c"} 1.0'
    assert LINE.match(line)


def test_a_file_is_written_whole_again_and_again(
    ended: StateFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    file = tmp_path / "nasd.prom"
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(metrics.time, "sleep", sleep)
    with pytest.raises(KeyboardInterrupt):
        metrics.keep(ended.path, file, 7.0)
    assert slept == [7.0, 7.0, 7.0]
    assert values(file.read_text())
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".tmp"] == []
    with pytest.raises(NasdError, match="cannot be written"):
        metrics.keep(ended.path, tmp_path / "nowhere" / "nasd.prom", 1.0)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--file", "x.txt"], "has to end in .prom"),
        (["--file", "x.prom", "--port", "1"], "take --port or --file, not both"),
        (["--port", "70000"], "--port: take a whole number from 0 to 65,535"),
        (["--interval", "0.1", "--file", "x.prom"], "--interval: take a number from 1"),
    ],
)
def test_what_cannot_be_served_is_told_in_one_sentence(
    ended: StateFolder, words: list[str], sentence: str
):
    done = CliRunner().invoke(cli.app, ["metrics", "--state", str(ended.path), *words])
    assert done.exit_code != 0
    assert isinstance(done.exception, NasdError)
    assert sentence in str(done.exception)


def test_prometheus_is_served_its_metrics_and_nothing_else(ended: StateFolder):
    with Server(Live(ended.path, lambda *_: ""), "127.0.0.1", 0, only_metrics=True) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        base = f"http://127.0.0.1:{server.port}"
        with urllib.request.urlopen(f"{base}/metrics", timeout=10) as answer:
            assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
            assert values(answer.read().decode())
        for path in ("/", "/api/now", "/page.js"):
            with pytest.raises(urllib.error.HTTPError, match="404"):
                urllib.request.urlopen(base + path, timeout=10)
        server.shutdown()


def test_where_no_search_has_begun_there_are_no_metrics(tmp_path: Path):
    with pytest.raises(NasdError, match="no experiment"):
        metrics.text(tmp_path)
