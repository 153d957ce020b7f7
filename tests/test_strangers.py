"""Whatever lies among the requests: it is set aside, tells nothing, and is in nobody's way."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from nasd.contract import readable, strangers
from nasd.contract.errors import NasdError
from nasd.control.tick import Tick
from nasd.record import requests
from nasd.record.folders import StateFolder
from nasd.record.snapshot import events, opened
from tests.conftest import make_tick, small_config, without_summaries

SECRET = "my secret words"


@pytest.fixture
def tick(tmp_path: Path) -> Any:
    with without_summaries():
        made = make_tick(StateFolder(tmp_path / "state"), small_config())
        made.begin()
        yield made


def lay(folder: Path, secret: Path) -> list[bytes]:
    """All that is no request, and no harm: the names of what was laid."""
    top = os.fsencode(folder)
    names = [b"20-pipe.json", b"21-link.json", b"22-folder.json", b"23-sparse.json"]
    os.mkfifo(os.path.join(top, names[0]))
    os.symlink(secret, os.path.join(top, names[1]))
    os.mkdir(os.path.join(top, names[2]))
    with open(os.path.join(top, names[3]), "wb") as file:
        file.truncate(1 << 40)
    texts = {
        b"24-bytes.json": b"\xff\xfe" + SECRET.encode(),
        b"25-\xff-name.json": b"{}",
        b"26-line\nbreak.json": b"{}",
        b"27-deep.json": b"[" * 50_000,
        b"28-deep.json": b'{"genotype": ' * 5_000,
        b"29-text.json": SECRET.encode(),
        b"30-key.json": json.dumps({SECRET: 1}).encode(),
        b"31-id.json": request("31-id", candidate=2**70, action="cut"),
        b"32-who.json": request("32-who", who="\x1b[31m"),
        b"33-who.json": request("33-who", who="\\ud800").replace(b"\\\\", b"\\"),
        b"34-budget.json": request("34-budget", action="budget", gpu_hours=1e308),
        b"35-name.json": request("36-other"),
        b"-" * 200 + b".json": b"",
    }
    for name, text in texts.items():
        Path(os.fsdecode(os.path.join(top, name))).write_bytes(text)
    return [*names, *texts]


def request(id: str, **changes: Any) -> bytes:
    return json.dumps({"id": id, "action": "pause", "who": "me", "at": 1.0, **changes}).encode()


def test_each_is_answered_once_and_the_real_request_among_them_is_done(
    tick: Tick, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    secret = tmp_path / "secret.json"
    secret.write_bytes(request("21-link", why=SECRET))
    laid = lay(tick.state.requests, secret)
    asked = requests.file(tick.state.requests, requests.new("drain", "real"))
    tick()
    assert tick.store.read().experiment.pause == "drain"
    assert not asked.exists()
    with opened(tick.state.path) as database:
        first = [one for one in events(database, 1000) if one.event == "request"]
    assert len(first) == len(laid) + 1
    tick()
    with opened(tick.state.path) as database:
        assert [one for one in events(database, 1000) if one.event == "request"] == first
    told = caplog.text + "".join(one.detail for one in first)
    assert SECRET not in told
    assert all(one.isprintable() or one == "\n" for one in told)
    assert secret.exists()


def test_a_file_is_read_only_if_it_is_one_and_not_too_large(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"12345")
    assert strangers.content(tmp_path / "a", 5) == b"12345"
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    for name, words in (
        ("pipe", "pipe is no file"),
        ("link", "link cannot be opened"),
        ("none", "none cannot be opened: No such file"),
        (".", "is no file"),
    ):
        with pytest.raises(NasdError, match=words):
            strangers.content(tmp_path / name, 5)
    with pytest.raises(NasdError, match="a is larger than 4 bytes"):
        strangers.content(tmp_path / "a", 4)
    with pytest.raises(NasdError, match="is no file"):
        strangers.content(Path("/dev/null"), 5)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("plain-1.json", "plain-1.json"),
        ("a\nb\x1b[31m", "a\\nb\\x1b[31m"),
        ("a\udcffb", "a\\udcffb"),
        ("x" * 100, "x" * 79 + "…"),
    ],
)
def test_a_strangers_name_is_one_short_line_of_plain_text(name: str, expected: str) -> None:
    assert readable.named(name) == expected


def test_who_is_told_to_leave_leaves_what_waits_for_the_next_daemon(tick: Tick) -> None:
    for _ in range(5):
        requests.file(tick.state.requests, requests.new("budget", gpu_hours=None))
    calls = iter([False, False, True])
    tick.told = lambda: next(calls)
    tick()
    assert len(requests.waiting(tick.state.requests)) == 3


def test_ten_thousand_are_answered_without_reading_the_search_for_each(
    tick: Tick, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(300):
        (tick.state.requests / f"{number:05d}.json").write_bytes(
            request(f"{number:05d}", action="budget", gpu_hours=number + 1)
        )
    reads = []
    read = tick.store.read
    monkeypatch.setattr(tick.store, "read", lambda: reads.append(1) or read())
    tick()
    assert requests.waiting(tick.state.requests) == []
    assert tick.store.read().experiment.budget_set == "300.0"
    assert len(reads) < 10


def test_a_log_cannot_act_on_the_terminal_that_shows_it() -> None:
    assert strangers.harmless(b"a\x1b[2Jb\r\nc\td\xc3\xa9") == b"a?[2Jb?\nc\td\xc3\xa9"
