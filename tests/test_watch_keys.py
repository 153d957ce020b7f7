"""The live view's keys: what each does, and a terminal that is given back however it is left."""

import os
import signal
import subprocess
import sys
import termios

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nasd.cli.details import details
from nasd.views.status.facts import read
from nasd.views.status.keys import names
from nasd.views.status.page_view import opened
from nasd.views.status.pages import PAGES, STEPS, Page, turned
from tests.conftest import ROOT
from tests.test_status_view import searches_on_disk  # noqa: F401

IDS = [4, 5, 6, 1]
KEYS = [*STEPS, *PAGES, "q", "back", "x"]


def test_keys_are_named_and_what_no_key_means_is_left_out() -> None:
    assert names(b"\x1b[A\x1bOB\x1b[15~l\r?\x1b") == ["up", "down", "l", "enter", "?", "back"]


def test_arrows_choose_and_letters_open_and_q_leads_back_and_then_out() -> None:
    page = turned(Page(), "down", IDS, 0)
    assert page == Page(chosen=4)
    page = turned(page, "down", IDS, 0)
    assert page == Page(chosen=5)
    page = turned(page, "enter", IDS, 0)
    assert page == Page("show", 5)
    page = turned(page, "down", IDS, 3)
    assert page == Page("show", 5, 1)
    page = turned(page, "q", IDS, 3)
    assert page == Page(chosen=5)
    assert turned(page, "q", IDS, 0) is None


@given(st.lists(st.sampled_from(KEYS)), st.sampled_from([[], IDS]), st.integers(0, 50))
def test_no_keys_lead_beyond_the_candidates_or_the_lines(keys, ids, lines) -> None:
    page = Page()
    for key in keys:
        following = turned(page, key, ids, lines)
        if following is None:
            assert key == "q" and page.name == "status"
            return
        page = following
        assert page.chosen is None or page.chosen in ids
        assert 0 <= page.at <= lines
        assert page.name not in ("show", "log") or page.chosen is not None


@pytest.mark.parametrize(("width", "height"), [(80, 24), (170, 45), (20, 5)])
def test_each_page_fits_the_terminal(searches_on_disk, width, height) -> None:  # noqa: F811
    facts = read(searches_on_disk)
    for name in ("status", *PAGES.values()):
        lines, _ = opened(searches_on_disk, facts, Page(name, 1), width, height, details)
        assert len(lines) == height
        assert all(one.cell_len <= width for one in lines), name
        if width >= 80:
            assert "q " in lines[-1].plain


@pytest.mark.parametrize(
    ("last", "code"), [(b"q", 0), (signal.SIGINT, 0), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_the_terminal_is_given_back(searches_on_disk, last, code) -> None:  # noqa: F811
    keyboard, screen = os.openpty()
    termios.tcsetwinsize(screen, (24, 80))
    before = termios.tcgetattr(screen)
    command = [sys.executable, "-m", "nasd", "status", "--watch", "--interval", "0.1"]
    environment = {**os.environ, "TERM": "xterm-256color", "PYTHONPATH": str(ROOT)}
    environment = {k: v for k, v in environment.items() if k not in ("COLUMNS", "LINES")}
    with subprocess.Popen(
        [*command, "--state", str(searches_on_disk)],
        stdin=screen,
        stdout=screen,
        stderr=screen,
        env=environment,
        start_new_session=True,
    ) as child:
        text = b""
        while text.count(b"\x1b[H") < 2:
            text += os.read(keyboard, 65536)
        os.write(keyboard, b"?")
        while b"nasd log" not in text:
            text += os.read(keyboard, 65536)
        os.write(keyboard, b"q\x1b[B\r")
        while b"Architecture" not in text:
            text += os.read(keyboard, 65536)
        if isinstance(last, bytes):
            os.write(keyboard, b"q" + last)
        else:
            child.send_signal(last)
        while b"\x1b[?1049l" not in text:
            text += os.read(keyboard, 65536)
    assert child.returncode == code
    assert termios.tcgetattr(screen) == before
    assert b"Traceback" not in text
    os.close(screen)
    os.close(keyboard)
