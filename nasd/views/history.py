"""What has happened, as it was recorded: the events of a search, or of one candidate."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from nasd.contract.readable import moment
from nasd.record import lookup, snapshot
from nasd.record.state import LoggedEvent


def read(state: Path, name: str | None, last: int) -> list[LoggedEvent]:
    """The newest events, oldest first, of all or of the candidate of that name; raises NasdError
    if there is none."""
    with snapshot.opened(state) as connection:
        if name is None:
            return snapshot.events(connection, last)
        candidate = lookup.find(snapshot.read(connection), name)
        return snapshot.events(connection, last, candidate.id)


def to_json(events: Iterable[LoggedEvent]) -> list[dict[str, Any]]:
    return [{name: getattr(one, name) for name in one.__slots__} for one in events]


def render(events: Iterable[LoggedEvent]) -> Any:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("when", "who", "event", "stage", "state", "attempt"):
        table.add_column(name, no_wrap=True, justify="right" if name == "attempt" else "left")
    table.add_column("", overflow="fold")
    for one in events:
        table.add_row(
            moment(one.at),
            "" if one.candidate is None else str(one.candidate),
            one.event,
            one.stage or "",
            one.target or "",
            "" if one.attempt is None else str(one.attempt),
            Text(one.detail),
        )
    return table
