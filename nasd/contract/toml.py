"""TOML that a person wrote, as Python's own parser reads it, with every mistake one sentence."""

import json
import tomllib
from collections.abc import Mapping
from typing import Any

from nasd.contract.errors import NasdError


def parse(text: str, origin: str) -> dict[str, Any]:
    """The tables of a TOML text; raises NasdError, `origin` in front."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise NasdError(f"{origin} is not valid TOML: {error}") from error
    except RecursionError:
        raise NasdError(f"{origin} is not valid TOML: it is nested too deeply") from None
    except ValueError:  # Python's own limit, with advice that is none to a user of nasd
        lines = text.splitlines()
        line = max(range(len(lines)), key=lambda at: sum(map(str.isdigit, lines[at])))
        raise NasdError(
            f"{origin}: line {line + 1}: a number of thousands of digits is out of every key's"
            " range; docs/config.md shows the ranges"
        ) from None


def written(value: Any) -> str:
    """A value as it is written in TOML, of one line."""
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(written, value))}]"
    if isinstance(value, Mapping):
        return f"{{ {', '.join(f'{key} = {written(one)}' for key, one in value.items())} }}"
    return json.dumps(value, ensure_ascii=False)
