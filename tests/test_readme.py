"""The README says what is so."""

import re
from pathlib import Path

from typer.main import get_command

from nasd.cli import app
from nasd.lifecycle import diagram

README = (Path(__file__).parents[1] / "README.md").read_text()


def test_the_lifecycle_diagram_is_the_table() -> None:
    shown = re.search(r"```mermaid\n(.*?)\n```", README, re.DOTALL)
    assert shown is not None
    assert shown.group(1) == diagram()


def test_every_command_is_documented() -> None:
    for name in get_command(app).commands:  # type: ignore[attr-defined]
        assert f"| `nasd {name}`" in README, name


def test_every_file_it_names_exists() -> None:
    root = Path(__file__).parents[1]
    for name in re.findall(r"`(nasd/[\w/]+\.py|bin/[\w-]+|\.ci/run)", README):
        assert (root / name).exists(), name
