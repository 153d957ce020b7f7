"""README.md and docs/ say what is so."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
from pydantic import BaseModel
from typer.main import get_command

from nasd.cli import app
from nasd.cli.config_reference import markdown, texts
from nasd.cli.documents import PARTS, up_to_date
from nasd.contract.config import Config, Section
from nasd.contract.errors import NasdError

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md")), ROOT / "AGENTS.md"]


def test_the_readme_is_read_in_ten_minutes() -> None:
    assert len(README.read_text().splitlines()) <= 150


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_is_made_from_the_code_is_as_the_code_is(page: Path) -> None:
    text = page.read_text()
    assert up_to_date(text) == text, "run: .venv/bin/python -m nasd.cli.documents"


def test_each_part_that_can_be_made_stands_in_some_page() -> None:
    text = "".join(page.read_text() for page in PAGES)
    for name in PARTS:
        assert f"<!-- generated: {name} -->" in text


def test_a_part_of_no_name_is_refused() -> None:
    with pytest.raises(NasdError, match="no generated part 'nothing'"):
        up_to_date("<!-- generated: nothing -->\n<!-- end of what is generated -->")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_and_page_it_names_exists(page: Path) -> None:
    text = page.read_text()
    for name in re.findall(r"`(nasd/[\w/]+(?:\.\w+|/)|bin/[\w-]+|tests/\w+\.py|\.ci/run)", text):
        assert (ROOT / name).exists(), name
    for name in re.findall(r"\]\(([^):#]+)\)", text):
        assert (page.parent / name).exists(), name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_it_names_is_one(page: Path) -> None:
    known = get_command(app).commands  # type: ignore[attr-defined]
    for name in re.findall(r"`(?:bin/)?nasd ([a-z]+)", page.read_text()):
        assert name in known, name


# -- the keys of the config ----------------------------------------------------------------------


def sections(model: type[BaseModel] = Config) -> Iterator[type[BaseModel]]:
    yield model
    for field in model.model_fields.values():
        for kind in (field.annotation, *get_args(field.annotation)):
            if isinstance(kind, type) and issubclass(kind, Section):
                yield from sections(kind)


def test_every_key_says_what_it_means() -> None:
    text = markdown()
    for model in sections():
        said = texts(model)
        for name, field in model.model_fields.items():
            if name == "data":  # only a name for two sections
                continue
            key = field.alias or name
            assert said.get(key), f"{model.__name__}.{name} has no docstring"
            assert re.search(rf"[`.\[]{key}[`\]]", text), name


def test_types_defaults_and_limits_are_told() -> None:
    rows = markdown().splitlines()
    for start in (
        "| `name` | text | *needed* |",
        "| `seed` | whole number from -2^63 to 2^63 - 1 | `0` |",
        "| `budget_gpu_hours` | number > 0, ≤ 1,000,000,000 |  |",
        '| `devices` | `"auto"` or list of texts | `"auto"` |',
        '| `compile` | `"auto"`, `true` or `false` | `"auto"` |',
        "| `blocks` | two whole numbers from 1 to 1,000 | *needed* |",
        "| `layers` | list of whole numbers from 2 to 64 | *needed* |",
        '| `activations` | list of `"relu"`, `"gelu"`, `"relu2"` or `"geglu"` | ',
        "| `mask_share` | number > 0, < 1 | `0.15` |",
        "| `attention` | number from 0 to 1 | *needed* |",
        "| `dropout` | number from 0 to 1 |  |",
        "| `keep` | number > 0, ≤ 1 |  |",
        "| `lambda` | whole number from 1 to 1,000,000 | *needed* |",
    ):
        assert any(row.startswith(start) for row in rows), start
