"""The live page: what its server says, whom it obeys, and how it looks in a real browser."""

import json
import re
import shutil
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from nasd.contract.errors import NasdError
from nasd.control.tick import Tick
from nasd.record import snapshot
from nasd.record.folders import StateFolder
from nasd.views.live import server as serving
from nasd.views.live.server import Live, Server
from nasd.views.live.table import Table, losses
from nasd.views.status import standing
from tests.conftest import advance, drive, make_tick, small_config

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.fixture
def tick(state: StateFolder, no_summaries: None) -> Iterator[Tick]:
    """Of a search on its way."""
    made = make_tick(state, small_config())
    drive(made, lambda found: len(found.generations) == 2 and bool(found.live_attempts))
    yield made
    made.store.close()


@contextmanager
def served(state: StateFolder, asks: Any = lambda *_: "done") -> Iterator[tuple[str, Live]]:
    live = Live(state.path, asks)
    with Server(live, "127.0.0.1", 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.port}", live
        server.shutdown()


def got(address: str, **headers: str) -> Any:
    asked = urllib.request.Request(address, headers=headers)
    with urllib.request.urlopen(asked, timeout=30) as answer:
        return json.loads(answer.read())


def refused(address: str, data: bytes | None = None, **headers: str) -> tuple[int, str]:
    """The status and the words of an answer that is a refusal."""
    asked = urllib.request.Request(address, data=data, headers=headers)
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(asked, timeout=30)
    with caught.value as error:
        return error.code, error.read().decode()


# -- what it says --------------------------------------------------------------------------------


def test_a_table_that_is_kept_up_to_date_is_the_one_that_is_read_anew(tick: Tick):
    kept = Table(tick.state.path)
    first = kept.since(0)
    assert first["whole"]
    copy = {row[0]: row for row in first["rows"]}
    seen = first["event"]
    for _ in range(12):
        advance(tick)
        tick()
        news = kept.since(seen)
        assert not news["whole"]
        assert len(news["rows"]) < len(copy)
        copy |= {row[0]: row for row in news["rows"]}
        seen = news["event"]
        anew = Table(tick.state.path).since(0)
        assert sorted(copy.values(), key=lambda row: row[0]) == anew["rows"]
        assert sorted(news["front"]) == sorted(anew["front"])
    assert kept.since(seen)["rows"] == []


def test_the_front_is_the_one_that_status_tells(tick: Tick):
    drive(tick)
    told = Table(tick.state.path).since(0)
    with snapshot.opened(tick.state.path) as connection:
        found = snapshot.read(connection)
    assert set(told["front"]) == {one.id for one in standing.ever(found)}
    by_id = {row[0]: row for row in told["rows"]}
    for one in found.individuals:
        quality = found.quality(one.id)
        values = by_id[one.id][7]
        assert (values is None) == (quality is None)
        if quality is not None:
            assert values[0] == pytest.approx(quality, rel=1e-5)


def test_a_search_that_is_taken_back_to_a_backup_is_read_anew(tick: Tick):
    kept = Table(tick.state.path)
    seen = kept.since(0)["event"]
    with tick.store._transaction():
        tick.store._db.execute("DELETE FROM event WHERE id > ?", (seen // 2,))
    assert kept.since(seen)["whole"]


def test_losses_of_a_generation_go_on_from_stage_to_stage(tick: Tick):
    drive(tick)
    found = losses(tick.state.path, 0)["curves"]
    assert found
    for line in found.values():
        # Two points of each of the two MLM stages, of 10 steps each; fine-tuning is another loss.
        assert [step for step, _ in line] == [5, 10, 15, 20]
    assert losses(tick.state.path, 99)["curves"] == {}


def test_the_pages_are_served_with_headers_that_let_nothing_else_in(tick: Tick):
    with served(tick.state) as (address, _):
        for path in ("/", "/page.js", "/page.css"):
            with urllib.request.urlopen(address + path, timeout=30) as answer:
                assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
                assert answer.headers["X-Content-Type-Options"] == "nosniff"
                assert answer.read()
        now = got(f"{address}/api/now")
        assert now["experiment"]["name"] == "small"
        assert now["running"]
        assert got(f"{address}/api/candidate?id=1")["id"] == 1
        assert "no candidate" in refused(f"{address}/api/candidate?id=77")[1]
        assert refused(f"{address}/api/curves?generation=x")[1] == (
            '{"error":"generation is a whole number"}'
        )
        for path in ("/etc/passwd", "/../config.toml", "/api/nothing"):
            assert refused(address + path)[0] == 404


def test_an_infinity_is_no_number_of_json(tick: Tick):
    with served(tick.state) as (address, live):
        live.answers = lambda path, asked: {"x": float("inf")}  # type: ignore[method-assign]
        assert got(f"{address}/api/now") == {"x": None}


# -- whom it obeys -------------------------------------------------------------------------------


def test_only_with_the_token_is_anything_asked_of_the_daemon(tick: Tick):
    asked: list[Any] = []

    def asks(*about: Any) -> str:
        asked.append(about)
        return "so be it"

    body = b'{"action": "cut", "candidate": 3}'
    with served(tick.state, asks) as (address, live):
        for headers in ({}, {"X-Nasd-Token": "guessed"}):
            code, words = refused(f"{address}/api/ask", body, **headers)
            assert (code, "token" in words) == (403, True)
        assert not asked
        given = urllib.request.Request(
            f"{address}/api/ask", data=body, headers={"X-Nasd-Token": live.token}
        )
        with urllib.request.urlopen(given, timeout=30) as answer:
            assert json.loads(answer.read()) == {"answer": "so be it"}
    assert asked == [("cut", 3, "from the live page")]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b'{"action": "stop"}', "the page may ask for pause, drain, resume, cut, retry"),
        (b'{"action": "cut"}', "cut takes a candidate's number"),
        (b'{"action": "pause", "candidate": 3}', "pause takes a candidate's number where"),
        (b"[]", "the page may ask for"),
        (b"nonsense", "what is asked is JSON"),
    ],
)
def test_what_may_not_be_asked_is_refused_in_one_sentence(tick: Tick, body: bytes, words: str):
    with served(tick.state) as (address, live):
        headers = {"X-Nasd-Token": live.token}
        code, said = refused(f"{address}/api/ask", body, **headers)
        assert code == 400
        assert words in json.loads(said)["error"]


def test_what_the_daemon_refuses_is_told(tick: Tick):
    def asks(*_: Any) -> str:
        raise NasdError("candidate 3 is scored: there is nothing to cut")

    with served(tick.state, asks) as (address, live):
        body = b'{"action": "cut", "candidate": 3}'
        headers = {"X-Nasd-Token": live.token}
        assert "nothing to cut" in refused(f"{address}/api/ask", body, **headers)[1]


def test_a_page_of_another_site_reads_nothing_through_a_name_of_its_own(tick: Tick):
    with served(tick.state) as (address, _):
        assert refused(f"{address}/api/now", Host="evil.example")[0] == 403
        port = address.rpartition(":")[2]
        assert got(f"{address}/api/now", Host=f"localhost:{port}")


def test_a_port_in_use_and_a_search_that_is_not_there_are_told(tick: Tick, tmp_path: Path):
    with (
        served(tick.state) as (address, live),
        pytest.raises(NasdError, match="is in use: give another one with --port"),
    ):
        Server(live, "127.0.0.1", int(address.rpartition(":")[2]))
    with pytest.raises(NasdError, match="no address of this machine"):
        Server(Live(tick.state.path, lambda *_: ""), "no.such.host.invalid", 0)
    with pytest.raises(NasdError, match="no experiment"):
        serving.serve(tmp_path / "nothing", "127.0.0.1", 0, lambda *_: "", print)


# -- in a browser --------------------------------------------------------------------------------


@pytest.fixture
def shown(tmp_path: Path) -> Callable[[str, int], str]:
    """The page as a browser of so many pixels has made it of an address."""
    if CHROMIUM is None:
        pytest.skip("there is no Chromium to look at the page with: install one")

    def show(address: str, width: int) -> str:
        done = subprocess.run(
            [
                *(CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"),
                *("--disable-background-networking", f"--user-data-dir={tmp_path / str(width)}"),
                *(f"--window-size={width},900", "--virtual-time-budget=5000", "--dump-dom"),
                address,
            ],
            capture_output=True,
            text=True,
            timeout=120,
        )
        return done.stdout

    return show


def test_a_browser_shows_the_search_and_steers_only_by_the_address_with_the_token(
    tick: Tick, shown: Callable[[str, int], str]
):
    drive(tick)
    with served(tick.state) as (address, live):
        page = shown(f"{address}/", 1200)
        assert re.search(r'<h1 id="name">small</h1>', page)
        assert "complete" in page
        assert '<nav id="steer" hidden=""' in page
        seen = re.search(r'data-seen="(\d+)"', page)
        assert seen is not None
        assert int(seen[1]) == live.table.seen
        newest = [row for row in live.table.rows.values() if row[1] == 2]
        assert all(f'data-id="{row[0]}"' in page for row in newest)
        with_token = shown(f"{address}/#{live.token}", 390)
        assert '<nav id="steer" aria-label="Steering">' in with_token
