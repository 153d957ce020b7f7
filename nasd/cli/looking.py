"""Commands that show what a search does and did: status, report."""

import json
from pathlib import Path
from typing import Annotated

import typer

from nasd.cli.options import LOOK, ConfigOption, StateOption, app, state_folder


@app.command(rich_help_panel=LOOK)
def status(
    config: ConfigOption = Path("config.toml"),
    state: StateOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Everything, as JSON.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Keep showing it.")] = False,
    interval: Annotated[float, typer.Option(help="Seconds between two looks.", min=0.1)] = 1.0,
) -> None:
    """Show what the search is doing. Works with the daemon down.

    Example: nasd status --watch
    """
    folder = state_folder(config, state)
    if as_json:
        from nasd.status import as_json as view

        print(json.dumps(view.report(folder), indent=1))
        return
    from nasd.status.watch import show
    from nasd.status.watch import watch as keep_watching

    if watch:
        try:
            keep_watching(folder, interval)
        except KeyboardInterrupt:
            return
    show(folder)


@app.command(rich_help_panel=LOOK)
def report(
    config: ConfigOption = Path("config.toml"),
    state: StateOption = None,
    out: Annotated[
        Path | None, typer.Option(help="The folder to write, if not state/reports/<name>.")
    ] = None,
) -> None:
    """Write a report: a page with all figures and tables, and the same as files.

    Works at any time, with the daemon running or down. Replaces the report that was there.

    Example: nasd report --out search-report
    """
    from nasd.report import words
    from nasd.report.write import default_folder, read, write

    folder = state_folder(config, state)
    facts = read(folder)
    page = write(facts, out or default_folder(folder, facts))
    print("\n".join(words.answer(facts)))
    print(f"\nwrote {page}")
