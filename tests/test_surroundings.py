"""What nasd finds around it: an umask, a home that cannot be used, Python's own variables."""

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nasd.launch import child, home
from nasd.launch.launcher import wait_until
from nasd.record import privacy
from nasd.record.folders import StateFolder
from tests.test_end_to_end import TINY, read, start


@pytest.fixture(params=[0o000, 0o002, 0o022, 0o077], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# -- a state folder is its owner's ----------------------------------------------------------------


def test_a_new_state_folder_is_private_whatever_the_umask_and_its_parents_are_not(
    tmp_path: Path, umask: int
) -> None:
    state = tmp_path / "searches" / "state"
    privacy.make(state)
    assert mode(state) == 0o700
    assert mode(state.parent) == 0o777 & ~umask
    with privacy.kept(state) as opened:
        assert opened == ""
        (state / "file").touch()
    assert mode(state / "file") & 0o077 == 0
    (tmp_path / "after").touch()
    assert mode(tmp_path / "after") == 0o666 & ~umask


@pytest.mark.parametrize("there", [[], [".gitkeep"], ["daemon.lock", "cache"]])
def test_an_empty_folder_becomes_private_as_a_new_one_does(
    tmp_path: Path, there: list[str]
) -> None:
    for name in there:
        (tmp_path / name).touch()
    tmp_path.chmod(0o775)
    privacy.make(tmp_path)
    assert mode(tmp_path) == 0o700


@pytest.mark.parametrize(("before", "may"), [(0o755, "look into"), (0o770, "change")])
def test_a_folder_of_before_keeps_its_mode_and_that_it_is_open_is_told(
    tmp_path: Path, before: int, may: str, umask: int
) -> None:
    (tmp_path / "nasd.db").touch()
    tmp_path.chmod(before)
    privacy.make(tmp_path)
    assert mode(tmp_path) == before
    with privacy.kept(tmp_path) as opened:
        assert f"others on this machine may {may} {tmp_path} (mode {before:o})" in opened
        (tmp_path / "file").touch()
    assert mode(tmp_path / "file") == 0o666 & ~umask


def test_a_search_writes_nothing_that_others_can_read_and_needs_no_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nasd.presets import write_preset

    for name in ("HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/dev/null/nobody")
    config = write_preset("demo-thesis", tmp_path, TINY, force=False)
    state = StateFolder(tmp_path / "state")
    before = os.umask(0)
    try:
        running = start(config)
    finally:
        os.umask(before)

    def trained() -> bool:
        found = read(state.path)
        return bool(found and any(one.stage == "pretrain_0" for one in found.attempts))

    wait_until(lambda: trained() or running.poll() is not None, 120)
    reached = trained()
    running.terminate()
    out, _ = running.communicate(timeout=120)
    assert reached, out
    assert running.returncode == 0, out
    assert mode(state.database) == 0o600
    opened = [path for path in (state.path, *state.path.rglob("*")) if mode(path) & 0o077]
    assert opened == []


# -- a home that cannot be used --------------------------------------------------------------------


@pytest.mark.parametrize("where", ["/dev/null/nobody", "relative"])
def test_a_home_that_cannot_be_written_is_lent_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    monkeypatch.delenv("HF_HOME", raising=False)
    monkeypatch.setenv("HOME", where)
    assert not home.usable()
    home.lend(tmp_path / "cache" / "home")
    assert os.environ["HOME"] == str(tmp_path / "cache" / "home")
    assert home.usable()
    assert list(tmp_path.iterdir()) == []
    assert "HF_HOME" not in os.environ


def test_the_hubs_cache_below_a_home_that_is_only_read_is_still_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".cache/huggingface").mkdir(parents=True)
    monkeypatch.delenv("HF_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(home, "usable", lambda: False)
    home.lend(tmp_path / "lent")
    assert os.environ["HF_HOME"] == str(tmp_path / ".cache/huggingface")


def test_a_home_that_can_be_used_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    home.lend(tmp_path / "lent")
    assert os.environ["HOME"] == str(tmp_path)


def test_a_question_to_a_child_takes_no_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/dev/null/nobody")
    (tmp_path / "told_home.py").write_text(
        "import json, os\n"
        "home = os.path.expanduser('~')\n"
        "print(json.dumps({'home': home, 'there': os.access(home, os.W_OK)}))\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    told = child.ask("told_home", {})
    assert told["there"]
    assert not Path(told["home"]).exists()  # gone with the child


# -- Python's own variables ------------------------------------------------------------------------


def nasd(*arguments: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "nasd", *arguments],
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize("level", ["1", "2"])
def test_pythonoptimize_takes_neither_asserts_nor_the_help(level: str) -> None:
    plain, optimized = nasd("run", "--help"), nasd("run", "--help", PYTHONOPTIMIZE=level)
    assert optimized.returncode == 0
    assert optimized.stdout == plain.stdout
    assert "Begin the search of a config" in plain.stdout


def test_python_without_asserts_is_refused_in_one_sentence() -> None:
    command = [sys.executable, "-O", "-m", "nasd", "status"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("nasd: python -O switches off what nasd checks itself by: call ")
