"""What a shell offers, asked as the shells ask."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nasd.control.tick import Tick
from nasd.record.folders import StateFolder
from nasd.record.lifecycle import State
from tests.conftest import ROOT, drive, make_tick, small_config, small_dict, to_toml

NASD = Path(sys.executable).with_name("nasd")


@pytest.fixture(scope="module")
def search(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tick]:
    """A whole search, with its config.toml beside its state folder."""
    home = tmp_path_factory.mktemp("completion")
    (home / "config.toml").write_text(to_toml(small_dict()))
    tick = make_tick(StateFolder(home / "state"), small_config())
    drive(tick)
    yield tick
    tick.store.close()


def ask(folder: Path, **variables: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "nasd"],
        cwd=folder,
        env={"PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"], **variables},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stderr == ""
    return done.stdout


def bash(folder: Path, line: str, **variables: str) -> list[str]:
    """What bash is offered for the last word of a line."""
    words = line.split(" ")
    return ask(
        folder,
        _NASD_COMPLETE="complete_bash",
        COMP_WORDS="\n".join(words),
        COMP_CWORD=str(len(words) - 1),
        **variables,
    ).split()


def zsh(folder: Path, line: str) -> str:
    return ask(folder, _NASD_COMPLETE="complete_zsh", _TYPER_COMPLETE_ARGS=line)


@pytest.mark.parametrize("command", ["show", "log", "events"])
def test_every_candidate_is_offered_with_the_other_names(search: Tick, command: str):
    numbers = [str(one) for one in search.store.read().candidates if one]
    found = bash(search.state.path.parent, f"nasd {command} ")
    assert found == ["baseline", *numbers, "best"]


def test_to_export_only_who_has_a_score_is_offered(search: Tick):
    snap = search.store.read()
    scored = {str(one.id) for one in snap.candidates.values() if one.state is State.SCORED}
    found = bash(search.state.path.parent, "nasd export ")
    assert set(found) == (scored - {"0"}) | {"baseline", "best"}


def test_what_is_typed_already_narrows_it(search: Tick):
    folder = search.state.path.parent
    assert bash(folder, "nasd show b") == ["baseline", "best"]
    assert all(one.startswith("1") for one in bash(folder, "nasd show 1"))
    assert bash(folder, "nasd show x") == []


def test_zsh_is_told_what_each_of_them_is(search: Tick):
    snap = search.store.read()
    text = zsh(search.state.path.parent, "nasd show ")
    assert '"baseline":"scored, quality ' in text
    cut = next(one for one in snap.candidates.values() if one.state is State.CUT)
    assert f'"{cut.id}":"generation {cut.generation}, cut, at {cut.stage}"' in text


def test_the_state_folder_is_the_one_that_the_line_names(search: Tick, tmp_path: Path):
    assert bash(tmp_path, f"nasd show --state {search.state.path} b") == ["baseline", "best"]
    config = search.state.path.parent / "config.toml"
    assert bash(tmp_path, f"nasd show --config {config} b") == ["baseline", "best"]
    assert bash(tmp_path, "nasd show b", NASD_CONFIG=str(config)) == ["baseline", "best"]


def test_where_there_is_no_search_nothing_is_offered_and_nothing_said(tmp_path: Path):
    assert bash(tmp_path, "nasd show ") == []
    (tmp_path / "config.toml").write_text("[experiment\n")
    assert bash(tmp_path, "nasd show ") == []
    (tmp_path / "config.toml").write_text(to_toml(small_dict()))
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "nasd.db").write_text("no database " * 1000)
    assert bash(tmp_path, "nasd show ") == []


@pytest.mark.skipif(
    shutil.which("bash") is None or not NASD.exists(),
    reason="there is no bash, or no nasd installed beside this Python, to complete with",
)
@pytest.mark.parametrize("given", [str(NASD), "nasd"])
def test_bash_itself_completes_with_what_it_is_told_to_install(search, tmp_path, given):
    environment = {
        "HOME": str(tmp_path),
        "PATH": f"{NASD.parent}:/usr/bin:/bin",
        "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1",
    }
    subprocess.run(
        [NASD, "--install-completion", "bash"], env=environment, check=True, capture_output=True
    )
    script = f"""
        source ~/.bashrc
        complete -p nasd
        COMP_WORDS=({given} show b) COMP_CWORD=2
        _nasd_completion {given}
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(
        ["bash", "--norc", "-c", script],
        cwd=search.state.path.parent,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == [
        "complete -o default -F _nasd_completion nasd",
        "baseline",
        "best",
    ]


def test_it_calls_itself_nasd_however_it_is_started():
    done = subprocess.run(
        [sys.executable, "-m", "nasd", "show", "--help"], cwd=ROOT, capture_output=True, text=True
    )
    assert "Usage: nasd show " in done.stdout
