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
    regret: Annotated[
        bool,
        typer.Option(
            "--regret",
            help="Train those whom the last cutoff stopped to the end first, to see what it"
            " missed; its price is shown before.",
        ),
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Pay that price unasked.")] = False,
) -> None:
    """Write a report: a page with all figures and tables, and the same as files.

    Works at any time, with the daemon running or down. Replaces the report that was there.

    Example: nasd report --out search-report
    """
    from nasd.report import words
    from nasd.report.write import default_folder, read, write

    folder = state_folder(config, state)
    if regret and not _trained_on(folder, config if state is None else None, yes):
        return
    facts = read(folder)
    page = write(facts, out or default_folder(folder, facts))
    print("\n".join(words.answer(facts)))
    print(f"\nwrote {page}")


def _trained_on(folder: Path, config: Path | None, yes: bool) -> bool:
    """Has the cut candidates trained to the end, by the daemon that serves the folder or by this
    process, if a person agrees to the price; whether that is done. config: None if it is not known.
    """
    import sys
    import time

    from nasd import asking, daemon_lock, slots
    from nasd import config as config_module
    from nasd.cli.searching import say_why, serve
    from nasd.errors import NasdError
    from nasd.folders import StateFolder
    from nasd.report.regret import offer
    from nasd.report.write import read

    facts = read(folder)
    served = daemon_lock.held(StateFolder(folder).lock)
    if served or config is None:
        settings = config_module.parse(facts.config, str(folder))
    else:
        settings = config_module.load(config)
    if not served and config is None:
        raise NasdError(
            f"no daemon serves {folder}, so this command would be one: name the experiment by its"
            " config, with --config, and not by --state"
        )
    asking.check(folder, "regret", settings)
    found = slots.devices(settings.slots, begun=True)
    print(offer(facts.snapshot, settings, len(found), facts.unit, time.time()))
    if not yes:
        if not sys.stdin.isatty():
            raise NasdError("nobody can be asked whether that is worth it: say so with --yes")
        if not typer.confirm("Train them?"):
            return False
    told = asking.ask(folder, "regret", settings=settings)
    if served:
        print(told)
        print("once they are through, `nasd report` shows what the cutoff missed")
        return False
    assert config is not None
    print("this process trains them; Ctrl-C stops it at a checkpoint", flush=True)
    if not serve(settings, config):
        say_why(folder)
        print("stopped: `nasd run` goes on with it, and then `nasd report` shows what it missed")
        return False
    return True
