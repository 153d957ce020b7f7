"""The README says what is so."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
from pydantic import BaseModel
from typer.main import get_command

from nasd.cli import app
from nasd.contract.config import Config, Section
from nasd.contract.config_reference import BEGIN, markdown, up_to_date
from nasd.contract.errors import NasdError
from nasd.record.lifecycle import diagram

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


# -- the keys of the config ----------------------------------------------------------------------


def sections(model: type[BaseModel] = Config) -> Iterator[type[BaseModel]]:
    yield model
    for field in model.model_fields.values():
        for kind in (field.annotation, *get_args(field.annotation)):
            if isinstance(kind, type) and issubclass(kind, Section):
                yield from sections(kind)


def test_the_config_is_documented_as_its_models_have_it() -> None:
    assert up_to_date(README) == README, "run: python -m nasd.contract.config_reference README.md"


def test_every_key_says_what_it_means() -> None:
    text = markdown()
    for model in sections():
        for name, field in model.model_fields.items():
            if name == "data":  # only a name for two sections
                continue
            assert field.description, f"{model.__name__}.{name} has no docstring"
            assert re.search(rf"[`.\[]{field.alias or name}[`\]]", text), name


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
        '| `activations` | list of `"relu"` or `"gelu"` | `["relu", "gelu"]` |',
        "| `mask_share` | number > 0, < 1 | `0.15` |",
        "| `attention` | number from 0 to 1 | *needed* |",
        "| `dropout` | number from 0 to 1 |  |",
        "| `keep` | number > 0, ≤ 1 |  |",
        "| `lambda` | whole number from 1 to 1,000,000 | *needed* |",
    ):
        assert any(row.startswith(start) for row in rows), start


def test_a_file_without_marks_is_not_touched() -> None:
    for text in ("", BEGIN):
        with pytest.raises(NasdError, match="there is no line"):
            up_to_date(text)
