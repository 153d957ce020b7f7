"""Commands that show what a search does and did: status, report, tensorboard."""

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
    from nasd import status as view

    folder = state_folder(config, state)
    if as_json:
        print(json.dumps(view.report(folder), indent=1))
        return
    from rich.console import Console

    if watch:
        try:
            view.watch(folder, interval)
        except KeyboardInterrupt:
            return
    console = Console()
    data = view.report(folder, whole=False)
    if data["experiment"]["state"] == "complete":
        console.print(view.summary(data, folder, console.width))
    else:
        console.print(view.render(data, console.width))


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


@app.command(rich_help_panel=LOOK)
def tensorboard(
    config: ConfigOption = Path("config.toml"),
    state: StateOption = None,
    port: Annotated[int, typer.Option(help="The port to listen on.", min=1, max=65535)] = 6006,
    host: Annotated[
        str, typer.Option(help="The address to listen on; 0.0.0.0 lets other machines in.")
    ] = "localhost",
) -> None:
    """Start TensorBoard on a search: learning curves, cutoffs, features against scores.

    Works with the daemon running or down, and shows what is new as it comes. Ctrl-C ends it.

    Example: nasd tensorboard --port 6007
    """
    from nasd import board_server

    board_server.serve(state_folder(config, state), host, port)
