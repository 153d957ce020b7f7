"""Lines for a terminal: made to fit, set side by side. A line is a rich Text without its end."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderResult
from rich.segment import Segment
from rich.text import Text

from nasd.views.status import marks

GAP = 2


def line(*parts: str | tuple[str, str] | Text) -> Text:
    return Text.assemble(*parts, no_wrap=True, overflow="ellipsis", end="")


def fit(text: Text, width: int, right: bool = False) -> Text:
    """Exactly so wide: cut with an ellipsis, or filled up."""
    if right and text.cell_len < width:
        return line(" " * (width - text.cell_len), text)
    text = text.copy()
    text.truncate(width, overflow="ellipsis", pad=True)
    return text


def fitting(width: int, *choices: Text) -> Text:
    """The first that fits; else the last one, cut."""
    for text in choices:
        if text.cell_len <= width:
            return text
    last = choices[-1].copy()
    last.truncate(width, overflow="ellipsis")
    return last


def beside(left: Sequence[Text], right: Sequence[Text], width: int) -> list[Text]:
    """Two columns, the left one so wide."""
    rows = max(len(left), len(right))
    empty = line("")
    found = []
    for index in range(rows):
        one = left[index] if index < len(left) else empty
        other = right[index] if index < len(right) else empty
        found.append(line(fit(one, width), " " * GAP, other) if other.plain else one)
    return found


def wrapped(text: str, width: int, most: int) -> list[str]:
    """In at most so many lines; what is left over is cut with an ellipsis."""
    lines = textwrap.wrap(
        text, max(1, width), max_lines=most, placeholder="…", break_on_hyphens=False
    )
    return lines or [""]


@dataclass
class Lines:
    """As a console can show them: in a pipe, or where it knows no such marks, in plain ASCII."""

    lines: Sequence[Text]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        fancy = console.is_terminal and console.encoding.startswith("utf")
        for one in self.lines:
            if fancy:
                yield from one.render(console)
            else:
                yield Segment(_plain(one.plain, console.encoding))
            yield Segment.line()


def _plain(text: str, encoding: str) -> str:
    ascii_text = text.translate(marks.PLAIN).rstrip()
    return ascii_text.encode(encoding, "replace").decode(encoding)
