"""nasd profile: how long models of the search space take on this machine."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from nasd.cli.command import Command
from nasd.cli.numbers import whole
from nasd.cli.options import SEARCH, ConfigOption, app, show


@app.command(cls=Command, rich_help_panel=SEARCH)
def profile(
    config: ConfigOption = Path("config.toml"),
    check: Annotated[
        int,
        typer.Option(
            parser=whole("--check", 0, 1000),
            help="Measure so many random models whole, and say how right the table is.",
        ),
    ] = 0,
    again: Annotated[
        bool, typer.Option("--again", help="Measure anew what was measured before.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Measure what each kind of module of the search space takes, as the section measure says.

    From that table the latency of any candidate is known when it is born. It is
    kept in the state folder; a search that goes by latency makes it by itself, or
    takes this one. Takes minutes, best with nothing else on the machine.

    Example: nasd profile --check 30
    """
    from nasd.record import privacy
    from nasd.views import profiling
    from nasd.views.forecast.planning import load

    settings = load(config)
    privacy.make(config.resolve().parent / settings.experiment.state)
    print("measuring, which takes minutes", file=sys.stderr, flush=True)
    found = profiling.read(settings, config, check, again)
    if as_json:
        print(json.dumps(profiling.to_json(found), indent=1))
        return
    show(profiling.render(found))
