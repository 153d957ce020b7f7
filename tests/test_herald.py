"""What the daemon tells people without being asked: once each, whatever is killed meanwhile."""

import json
import logging
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from nasd.contract.config import Notify
from nasd.contract.errors import NasdError
from nasd.contract.sections import machine
from nasd.control import herald
from nasd.control.herald import KINDS, Herald
from nasd.launch import tell
from nasd.launch.launcher import wait_until
from nasd.record.folders import StateFolder
from nasd.record.store import Store
from tests.conftest import drive, make_tick, small_config

PATIENCE = 30.0


@pytest.fixture
def heard(tmp_path: Path) -> Path:
    """Where WRITES keeps what it is told."""
    return tmp_path / "heard"


def writes(heard: Path) -> tuple[str, ...]:
    code = "import sys; open(sys.argv[1], 'a').write(sys.stdin.read() + chr(10))"
    return (sys.executable, "-c", code, str(heard))


def told(heard: Path, count: int) -> list[dict[str, Any]]:
    def there() -> bool:
        return heard.exists() and len(heard.read_text().splitlines()) >= count

    assert wait_until(there, PATIENCE)
    return [json.loads(line) for line in heard.read_text().splitlines()]


def test_what_a_config_can_name_is_what_can_be_told():
    assert KINDS.keys() == {*machine.NOTICES}


def test_generations_and_the_end_are_told_once_with_what_came_of_them(
    state: StateFolder, heard: Path, no_summaries: None
):
    tick = make_tick(state, small_config())
    one = Herald(tick.store, Notify(command=writes(heard)), state)

    def turned(snapshot: Any) -> bool:
        one()
        return False

    drive(tick, turned)
    one()
    found = told(heard, 4)
    assert sorted(each["event"] for each in found) == ["end"] + 3 * ["generation"]
    by_detail = {each["detail"]: each for each in found}
    second = by_detail["generation 1: complete"]
    assert second["experiment"] == "small"
    assert second["text"].startswith("small has selected: generation 1: complete, ")
    assert second["hours"] > 0
    one()
    Herald(tick.store, Notify(command=writes(heard)), state)()
    assert len(told(heard, 4)) == 4


def test_a_halt_that_a_killed_daemon_did_not_tell_is_told_by_the_next(
    store: Store, state: StateFolder, heard: Path
):
    Herald(store, Notify(command=writes(heard)), state)
    store.halt("a person has to look", 5.0)  # and the daemon is killed
    Herald(store, Notify(command=writes(heard)), state)()
    (found,) = told(heard, 1)
    assert found["event"] == "halt"
    assert found["text"] == "small has halted: a person has to look"


def test_only_what_was_asked_for_is_told(store: Store, state: StateFolder, heard: Path):
    one = Herald(store, Notify(command=writes(heard), on=("hold",)), state)
    store.halt("a reason", 5.0)
    store.hold("the disk is full", 6.0)
    one()
    (found,) = told(heard, 1)
    assert found["text"] == "small is on hold: the disk is full"


def test_nobody_is_told_and_nothing_written_where_nobody_asked(store: Store, state: StateFolder):
    one = Herald(store, Notify(), state)
    store.halt("a reason", 5.0)
    one()
    assert not (state.path / "told").exists()


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (("/nowhere/at/all",), "notify.command: /nowhere/at/all cannot be run (No such file"),
        (("sh", "-c", "echo wrong >&2; exit 3"), "notify.command: sh left with 3 (wrong)"),
    ],
)
def test_a_command_that_fails_is_told_in_the_log_and_in_nobody_s_way(
    store: Store,
    state: StateFolder,
    caplog: pytest.LogCaptureFixture,
    command: tuple[str, ...],
    words: str,
):
    one = Herald(store, Notify(command=command), state)
    store.halt("a reason", 5.0)
    one()

    def warned() -> bool:
        one()
        return any(words in record.getMessage() for record in caplog.records)

    with caplog.at_level(logging.WARNING, "nasd"):
        assert wait_until(warned, PATIENCE)


def test_a_flood_of_old_events_is_cut(store: Store, state: StateFolder, heard: Path):
    one = Herald(store, Notify(command=writes(heard)), state)
    for number in range(herald.MOST + 5):
        store.hold(f"reason {number}", 5.0)
    one()
    found = told(heard, herald.MOST)
    assert len(found) == herald.MOST
    assert any(f"reason {herald.MOST + 4}" in each["detail"] for each in found)


# -- the webhook ---------------------------------------------------------------------------------


@pytest.fixture
def hook() -> Iterator[tuple[str, list[dict[str, Any]], list[int]]]:
    """An address, what was posted to it, and the codes that it answers, 200 behind the last."""
    posted: list[dict[str, Any]] = []
    codes: list[int] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            posted.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(codes.pop(0) if codes else 200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/secret", posted, codes
        server.shutdown()


def test_a_webhook_gets_the_message_as_json(
    store: Store, state: StateFolder, hook: tuple[str, list[dict[str, Any]], list[int]]
):
    address, posted, _ = hook
    one = Herald(store, Notify(webhook=address), state)
    store.halt("a reason", 5.0)
    one()
    assert wait_until(lambda: bool(posted), PATIENCE)
    assert posted[0]["text"] == "small has halted: a reason"


def test_a_webhook_that_is_away_is_tried_again_and_one_that_refuses_is_not(
    hook: tuple[str, list[dict[str, Any]], list[int]], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(tell, "PAUSES", (0.0, 0.0, 0.0))
    address, posted, codes = hook
    codes += [503, 429]
    assert tell.by_webhook(address, {"text": "x"}) == ""
    assert len(posted) == 3
    codes += [404]
    said = tell.by_webhook(address, {"text": "x"})
    assert said == "notify.webhook: it was answered 404 Not Found"
    assert len(posted) == 4


def test_a_webhook_s_address_may_stand_in_the_environment_and_is_never_told(
    hook: tuple[str, list[dict[str, Any]], list[int]], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(tell, "PAUSES", (0.0,))
    address, posted, _ = hook
    monkeypatch.setenv("OUR_HOOK", address)
    assert tell.by_webhook("$OUR_HOOK", {"text": "x"}) == ""
    assert posted
    assert tell.by_webhook("$NO_HOOK", {}) == "notify.webhook: the environment has no NO_HOOK"
    said = tell.by_webhook("http://127.0.0.1:9/secret", {})
    assert said.startswith("notify.webhook: it cannot be reached")
    assert "secret" not in said


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"notify__on": ["halts"]}, r"notify\.on: take of halt, generation, end, hold, each once"),
        ({"notify__webhook": "ftp://x"}, r"notify\.webhook: take an address that begins with"),
        ({"notify__command": "mail"}, r"notify\.command: "),
        ({"notify__hook": "x"}, r"unknown key notify\.hook"),
    ],
)
def test_what_nobody_can_be_told_by_is_refused_in_one_sentence(
    changes: dict[str, Any], sentence: str
):
    with pytest.raises(NasdError, match=sentence) as caught:
        small_config(**changes)
    assert "\n" not in str(caught.value)
