"""A page of the live view as lines, for a terminal of any width and height."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from rich.text import Text

from nasd.contract.errors import NasdError
from nasd.views.status import blocks
from nasd.views.status.facts import Facts
from nasd.views.status.pages import BACK, HELP, KEYS, Page
from nasd.views.status.text import fitting, line, wrapped
from nasd.views.status.view import view

# Of the state, the page's name, the candidate and the width: a title, and lines.
Details = Callable[[Path, str, int, int], tuple[str, list[Text]]]


def opened(
    state: Path, facts: Facts, page: Page, width: int, height: int, details: Details | None
) -> tuple[list[Text], int]:
    """The lines, at most `height`, and by how many the page can be scrolled. details: of a
    candidate; None: no keys are told."""
    if page.name == "status":
        if details is None or height < 3:
            return view(facts, width, height), 0
        shown = view(replace(facts, chosen=page.chosen), width, height - 1)
        shown += [line("")] * (height - 1 - len(shown))
        return [*shown, fitting(width, line((KEYS, "dim")))], 0
    assert details is not None  # only keys open other pages
    room = max(1, height - 2)
    title, content = _content(state, facts, page, width, room, details)
    most = max(0, len(content) - room)
    at = min(page.at, most)
    first = most - at if page.name == "log" else at
    shown = [fitting(width, one) for one in content[first : first + room]]
    shown += [line("")] * (room - len(shown))
    ends = [fitting(width, line((title, "bold"))), fitting(width, line((BACK, "dim")))]
    return [ends[0], *shown, ends[1]][:height], most


def _content(
    state: Path, facts: Facts, page: Page, width: int, room: int, details: Details
) -> tuple[str, Sequence[Text]]:
    if page.name == "help":
        return "keys", [line(one) for one in HELP]
    if page.name == "front":
        return "the front", blocks.front(facts, width, room)
    try:
        return details(state, page.name, page.chosen or 0, width)
    except NasdError as error:
        return f"candidate {page.chosen}", [line(one) for one in wrapped(str(error), width, room)]
