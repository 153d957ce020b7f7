"""The parts of docs/ that are made from the code, and held to it by a test.

python -m nasd.cli.documents [FOLDER]      brings them up to date (`docs` by default)

A part stands between `<!-- generated: NAME -->` and `<!-- end of what is generated -->`.
"""

import ast
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from typer.main import get_command

from nasd.cli import app, config_reference
from nasd.contract.errors import NasdError
from nasd.record import lifecycle

CODE = Path(__file__).resolve().parents[1]
END = "<!-- end of what is generated -->"
PART = re.compile(r"<!-- generated: (\w+) -->\n(.*?)" + re.escape(END), re.DOTALL)


def commands() -> str:
    """Each command with what its --help says."""
    found: dict[str, Any] = get_command(app).commands  # type: ignore[attr-defined]
    return "\n\n".join(_command(name, one) for name, one in found.items())


def _command(name: str, command: Any) -> str:
    takes = [one for one in command.params if one.name != "help" and not one.hidden]
    arguments = [one for one in takes if one.param_type_name == "argument"]
    words = " ".join(map(_argument, arguments))
    lines = [f"## `nasd {name}{' ' if words else ''}{words}`", "", (command.help or "").strip()]
    if takes:
        lines += ["", "| | |", "|---|---|"]
        for one in takes:
            shown = _argument(one) if one in arguments else ", ".join(_options(one))
            lines.append(f"| `{shown}` | {' '.join((one.help or '').split())} |")
    return "\n".join(lines)


def _argument(argument: Any) -> str:
    name = argument.metavar or argument.name.upper()
    return name if argument.required else f"[{name}]"


def _options(option: Any) -> Iterator[str]:
    yield from option.opts
    yield from option.secondary_opts


def diagram_of_life() -> str:
    return f"```mermaid\n{lifecycle.diagram()}\n```"


def rooms() -> str:
    """Which room imports which; left out is what follows from other arrows."""
    arrows = {(_room(path), other) for path, other in _imports()}
    arrows = {(one, other) for one, other in arrows if one != other and one != "__init__"}
    reached = set(arrows)
    for _ in arrows:
        reached |= {(a, d) for a, b in reached for c, d in arrows if b == c}
    plain = {
        (a, c)
        for a, c in arrows
        if not any((a, b) in arrows and (b, c) in reached for b in _names(arrows))
    }
    lines = [f"    {one} --> {other}" for one, other in sorted(plain)]
    return "\n".join(["```mermaid", "flowchart TD", *lines, "```"])


def _names(arrows: set[tuple[str, str]]) -> set[str]:
    return {name for arrow in arrows for name in arrow}


def _imports() -> Iterator[tuple[Path, str]]:
    for path in sorted(CODE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("nasd."):
                yield path, str(node.module).split(".")[1]


def _room(path: Path) -> str:
    top = path.relative_to(CODE).parts[0]
    return "cli" if top == "__main__.py" else top.removesuffix(".py")


PARTS: dict[str, Callable[[], str]] = {
    "commands": commands,
    "config": config_reference.markdown,
    "lifecycle": diagram_of_life,
    "rooms": rooms,
}


def up_to_date(text: str) -> str:
    """The text of a page with its parts as they are now; raises NasdError for a part of no name."""

    def made(found: re.Match[str]) -> str:
        if found[1] not in PARTS:
            raise NasdError(f"there is no generated part {found[1]!r}: take of {', '.join(PARTS)}")
        return f"<!-- generated: {found[1]} -->\n{PARTS[found[1]]()}\n{END}"

    return PART.sub(made, text)


if __name__ == "__main__":
    for page in sorted(Path(sys.argv[1] if sys.argv[1:] else "docs").glob("*.md")):
        page.write_text(up_to_date(page.read_text(encoding="utf-8")), encoding="utf-8")
