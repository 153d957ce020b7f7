"""The status on a terminal: once, or again and again until the search ends."""

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.text import Text

from nasd.contract.errors import NasdError
from nasd.record import snapshot
from nasd.record.lifecycle import ExperimentState
from nasd.views.status import table
from nasd.views.status.devices import Devices
from nasd.views.status.events import event
from nasd.views.status.facts import Reader, read
from nasd.views.status.keys import pressed
from nasd.views.status.page_view import Details, opened
from nasd.views.status.pages import Page, turned
from nasd.views.status.summary import summary
from nasd.views.status.text import Lines, line, wrapped
from nasd.views.status.view import view


def show(state: Path, console: Console | None = None) -> None:
    """Prints it once; of a search that is complete, its end."""
    console = console or Console()
    facts = read(state)
    if facts.state is ExperimentState.COMPLETE:
        console.print(Lines(summary(facts, state, console.width)), soft_wrap=True)
        return
    facts = replace(facts, devices=Devices().once(facts.question))
    console.print(Lines(view(facts, console.width)), soft_wrap=True)


def watch(
    state: Path,
    interval: float = 1.0,
    stop: Callable[[], bool] = lambda: False,
    details: Details | None = None,
) -> None:
    """The live view until the search ends, or `stop()`; without a terminal, events as they come.

    details: of a candidate, for its pages; with them keys are taken, where standard input is a
    terminal (only in the main thread), and a page that is open stays open behind the end.
    """
    console = Console()
    if not console.is_terminal or console.is_dumb_terminal:
        follow(state, interval, stop)
        return
    with (
        pressed() if details else nullcontext() as keys,
        Devices().sampled() as devices,
        Live(console=console, screen=True, auto_refresh=False) as live,
    ):
        reader = Reader(state, devices)
        page: Page | None = Page()
        ended, facts, due = False, None, 0.0
        lines: list[Text] = []
        while page is not None and not (ended and page.name == "status"):
            ended = ended or stop()
            if time.monotonic() >= due:
                due = time.monotonic() + interval
                try:
                    facts = reader.read()
                except NasdError as error:
                    facts = None
                    told = wrapped(f"waiting: {error}", console.width, console.height)
                    lines = [line(one) for one in told]
                else:
                    ended = ended or facts.state is not ExperimentState.RUNNING
            most = 0
            if facts is not None:
                size = console.width, console.height
                lines, most = opened(state, facts, page, *size, details if keys else None)
            live.update(Lines(lines), refresh=True)
            if ended and page.name == "status":
                break
            if keys is None:
                time.sleep(interval)
                continue
            for key in keys.wait(max(0.0, due - time.monotonic())):
                ids = [] if facts is None else [one.id for one in table.everyone(facts)]
                page = turned(page, key, ids, most)
                if page is None:
                    break


def follow(state: Path, interval: float, stop: Callable[[], bool]) -> None:
    """A line for each event, as it comes."""
    seen = 0.0
    while True:
        ended = stop()
        try:
            with snapshot.opened(state) as connection:
                events = snapshot.events(connection, 200)
                ended = ended or not snapshot.read(connection, False).experiment.runs
        except NasdError:
            events = []
        for one in events:
            if one.at > seen:
                print(event(one), flush=True)
        seen = max([seen, *(one.at for one in events)])
        if ended:
            return
        time.sleep(interval)
