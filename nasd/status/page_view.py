"""A page of the live view as lines, for a terminal of any width and height."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.text import Text

from nasd import dossier, dossier_view, worker_log
from nasd.errors import NasdError
from nasd.status import blocks
from nasd.status.facts import Facts
from nasd.status.pages import BACK, HELP, KEYS, Page
from nasd.status.text import fitting, line, wrapped
from nasd.status.view import view

LOG_LINES = 500


def opened(
    state: Path, facts: Facts, page: Page, width: int, height: int, keys: bool
) -> tuple[list[Text], int]:
    """The lines, at most `height`, and by how many the page can be scrolled. keys: whether the last
    line tells them."""
    if page.name == "status":
        if not keys or height < 3:
            return view(facts, width, height), 0
        shown = view(replace(facts, chosen=page.chosen), width, height - 1)
        shown += [line("")] * (height - 1 - len(shown))
        return [*shown, fitting(width, line((KEYS, "dim")))], 0
    room = max(1, height - 2)
    title, content = _content(state, facts, page, width, room)
    most = max(0, len(content) - room)
    at = min(page.at, most)
    first = most - at if page.name == "log" else at
    shown = [fitting(width, one) for one in content[first : first + room]]
    shown += [line("")] * (room - len(shown))
    ends = [fitting(width, line((title, "bold"))), fitting(width, line((BACK, "dim")))]
    return [ends[0], *shown, ends[1]][:height], most


def _content(
    state: Path, facts: Facts, page: Page, width: int, room: int
) -> tuple[str, Sequence[Text]]:
    if page.name == "help":
        return "keys", [line(one) for one in HELP]
    if page.name == "front":
        return "the front", blocks.front(facts, width, room)
    title = f"{'log of ' if page.name == 'log' else ''}candidate {page.chosen}"
    try:
        if page.name == "show":
            return title, _lines(
                dossier_view.render(dossier.compile_dossier(state, str(page.chosen))), width
            )
        which = worker_log.attempt(state, worker_log.Wanted(page.chosen or 0))
        text = b"".join(worker_log.tail(state, which, LOG_LINES)).decode("utf-8", "replace")
    except NasdError as error:
        return title, [line(one) for one in wrapped(str(error), width, room)]
    printable = ("".join(c if c.isprintable() else " " for c in one) for one in text.splitlines())
    return f"{title}: attempt {which.number} at {which.stage}", [line(one) for one in printable]


def _lines(renderable: object, width: int) -> list[Text]:
    """As a console of that width prints it."""
    console = Console(width=width, force_terminal=True, color_system="standard")
    with console.capture() as captured:
        console.print(renderable)
    return [Text.from_ansi(one, end="") for one in captured.get().splitlines()]
