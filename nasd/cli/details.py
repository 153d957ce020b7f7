"""What the live view opens of a candidate: all about it, or the end of its log."""

from pathlib import Path

from rich.console import Console
from rich.text import Text

from nasd.views import dossier, dossier_view, worker_log
from nasd.views.status.text import line

LOG_LINES = 500


def details(state: Path, name: str, candidate: int, width: int) -> tuple[str, list[Text]]:
    """A title, and lines; raises NasdError where there is nothing to see yet."""
    if name == "show":
        found = dossier.compile_dossier(state, str(candidate))
        return f"candidate {candidate}", _lines(dossier_view.render(found), width)
    which = worker_log.attempt(state, worker_log.Wanted(candidate))
    text = b"".join(worker_log.tail(state, which, LOG_LINES)).decode("utf-8", "replace")
    printable = ("".join(c if c.isprintable() else " " for c in one) for one in text.splitlines())
    title = f"log of candidate {candidate}: attempt {which.number} at {which.stage}"
    return title, [line(one) for one in printable]


def _lines(renderable: object, width: int) -> list[Text]:
    """As a console of that width prints it."""
    console = Console(width=width, force_terminal=True, color_system="standard")
    with console.capture() as captured:
        console.print(renderable)
    return [Text.from_ansi(one, end="") for one in captured.get().splitlines()]
