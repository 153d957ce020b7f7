"""How commands read their arguments and show their options."""

import fcntl
import os
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from nasd.cli import app
from nasd.contract.errors import NasdError
from tests.conftest import ROOT


@pytest.mark.parametrize("number", ["-5", "-0.5", "-.5"])
def test_a_negative_budget_is_refused_in_a_sentence(number: str) -> None:
    result = CliRunner().invoke(app, ["budget", number])
    assert isinstance(result.exception, NasdError)
    assert str(result.exception).endswith(f", or none, and not {number}")


def test_a_misspelt_option_is_told_with_what_it_is_like() -> None:
    result = CliRunner().invoke(app, ["budget", "--statt", "x", "5"], env={"COLUMNS": "100"})
    assert result.exit_code == 2
    assert "--state" in result.output


def test_a_switch_is_shown_without_a_value() -> None:
    for command in ("status", "run", "init", "log", "report", "export", "pause"):
        result = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "120"})
        assert result.exit_code == 0
        assert "<bool>" not in result.output, command


def test_a_second_setup_waits_for_the_first_and_says_so(tmp_path: Path) -> None:
    """On a copy whose .venv stands, as the first one leaves it."""
    (tmp_path / "bin").mkdir()
    for name in ("bin/setup", "pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text("#!/bin/sh\n")  # for pip, which has nothing to do
    python.chmod(0o755)
    command = ["bash", str(tmp_path / "bin" / "setup")]
    with (tmp_path / "bin" / "setup").open("rb") as first:
        fcntl.flock(first, fcntl.LOCK_EX)
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as second:
            assert second.stderr is not None
            assert "waiting for it" in second.stderr.readline()
            assert not (tmp_path / ".venv" / ".nasd-setup").exists()
            fcntl.flock(first, fcntl.LOCK_UN)
            second.stderr.read()
    assert second.returncode == 0
    assert (tmp_path / ".venv" / ".nasd-setup").exists()
    assert sorted(os.listdir(tmp_path / "bin")) == ["setup"]  # it leaves no lock behind
