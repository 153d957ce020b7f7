"""What the keys of the live view do: the page that is open, and its candidate and place."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

PageName = Literal["status", "show", "log", "front", "help"]
PAGES: dict[str, PageName] = {"enter": "show", "l": "log", "f": "front", "?": "help"}
STEPS = {"up": -1, "down": 1, "page up": -10, "page down": 10}
KEYS = "↑↓ choose  Enter show  l log  f front  ? help  q leave"
BACK = "↑↓ scroll  q back"
HELP = (
    "↑ ↓              choose a candidate; on another page, scroll",
    "Page Up, Down    the same, ten at once",
    "Enter            all about the candidate: nasd show",
    "l                the end of its log: nasd log",
    "f                the front, quality against parameters",
    "?                this help",
    "q, Esc, ←        back; from the status, leave",
    "Ctrl-C           leave",
)


@dataclass(frozen=True)
class Page:
    """chosen: a candidate. at: the first line that is shown, from below for a log."""

    name: PageName = "status"
    chosen: int | None = None
    at: int = 0


def turned(page: Page, key: str, ids: Sequence[int], lines: int) -> Page | None:
    """The page after the key; None to leave. ids: candidates from the first to the last that can
    be chosen. lines: by how many the page can be scrolled."""
    if key in ("q", "back"):
        return Page(chosen=page.chosen) if page.name != "status" else None if key == "q" else page
    if key in PAGES:
        name = PAGES[key]
        chosen = page.chosen if page.chosen in ids or name not in ("show", "log") else None
        if chosen is None and name in ("show", "log"):
            if not ids:
                return page
            chosen = ids[0]
        return Page(name, chosen)
    if key not in STEPS:
        return page
    if page.name == "status":
        if not ids:
            return page
        if page.chosen not in ids:
            return replace(page, chosen=ids[0 if STEPS[key] > 0 else -1])
        to = ids.index(page.chosen) + STEPS[key]
        return replace(page, chosen=ids[max(0, min(len(ids) - 1, to))])
    by = -STEPS[key] if page.name == "log" else STEPS[key]
    return replace(page, at=max(0, min(lines, page.at + by)))
