"""Commands that begin a search, or say how one would go: init, run, simulate, doctor."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nasd.cli.options import SEARCH, ConfigOption, app
from nasd.errors import NasdError

if TYPE_CHECKING:
    from nasd.config import Config


@app.command(rich_help_panel=SEARCH)
def init(
    folder: Annotated[Path, typer.Argument(help="Where to write config.toml.")] = Path(),
    preset: Annotated[str, typer.Option(help="thesis, minilm or demo.")] = "thesis",
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="KEY=VALUE in TOML, may be repeated.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Write over a config.toml.")] = False,
) -> None:
    """Write a config.toml to begin with.

    Example: nasd init --preset minilm --set experiment.seed=3 my-search
    """
    from nasd.presets import write_preset

    path = write_preset(preset, folder, set_ or [], force)
    print(f"wrote {path}; check it, then: nasd run --config {path}")


@app.command(rich_help_panel=SEARCH)
def run(
    config: ConfigOption = Path("config.toml"),
    watch: Annotated[bool, typer.Option("--watch", help="Show the live view meanwhile.")] = False,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Set an experiment that is there aside, begin anew.")
    ] = False,
) -> None:
    """Begin the search of a config, or go on with it.

    Example: nasd run --config config.toml
    """
    from nasd.config import load

    settings = load(config)
    state = config.resolve().parent / settings.experiment.state
    if fresh or not (state / "nasd.db").exists():
        print("checking the seed and the data ...", file=sys.stderr, flush=True)
    if watch:
        from nasd.watching import run_watched

        complete = run_watched(settings, config, state, fresh)
    else:
        complete = serve(settings, config, fresh)
    if complete:
        _print_summary(state)
        return
    say_why(state)


def serve(settings: "Config", config: Path, fresh: bool = False) -> bool:
    """As nasd.daemon.run, with its log on standard error."""
    import logging

    from nasd import daemon

    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr
    )
    logging.getLogger("apscheduler").setLevel(logging.WARNING)
    return daemon.run(settings, config, fresh)


def say_why(state: Path) -> None:
    """Raises NasdError if the search has halted, and not just been stopped."""
    from nasd import status as view

    data = view.report(state, whole=False)
    if data["experiment"]["state"] == "halted":
        raise NasdError(f"halted: {data['experiment']['reason']}")


@app.command(rich_help_panel=SEARCH)
def simulate(
    config: ConfigOption = Path("config.toml"),
    tflops: Annotated[
        float | None,
        typer.Option(help="TFLOP/s that a slot sustains; else as measured, or an A100's 75."),
    ] = None,
    slots: Annotated[int | None, typer.Option(help="How many, if not the config's.")] = None,
    mlm_sequences: Annotated[
        int | None, typer.Option(help="Sequences to train on, if not what is prepared or known.")
    ] = None,
    qa_questions: Annotated[
        int | None, typer.Option(help="Questions in all, if not what is prepared or known.")
    ] = None,
    runs: Annotated[int, typer.Option(help="How many searches, each with another seed.")] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="Everything, as JSON.")] = False,
) -> None:
    """Forecast wall-clock, GPU-hours and slot use of a config, without training.

    Example: nasd simulate --tflops 60 --slots 8
    """
    from rich.console import Console

    from nasd import forecast as view
    from nasd.config import load

    settings = load(config)
    # Shown only on a terminal, and never within the output.
    with Console(stderr=True).status("simulating") as shown:
        data = view.forecast(
            settings,
            config,
            tflops=tflops,
            slots=slots,
            mlm_sequences=mlm_sequences,
            qa_questions=qa_questions,
            runs=runs,
            progress=shown.update,
        )
    if as_json:
        print(json.dumps(data, indent=1))
    else:
        Console().print(view.render(data))


@app.command(rich_help_panel=SEARCH)
def doctor(config: ConfigOption = Path("config.toml")) -> None:
    """Check whether this machine can carry the search of a config through.

    Looks at the config, the devices, the state folder and its lock, the seed and the data or the
    database, and the disk against the most that weights and checkpoints can take. Exit code 1 if
    something has to be mended.

    Example: nasd doctor --config config.toml
    """
    from rich.console import Console

    from nasd import doctor as practice

    findings = list(practice.examine(config))
    console = Console()
    console.print(practice.render(findings))
    console.print(practice.verdict(findings))
    if any(one.mark == "bad" for one in findings):
        raise typer.Exit(1)


def _print_summary(state: Path) -> None:
    from rich.console import Console

    from nasd import status as view

    console = Console()
    console.print(view.summary(view.report(state, whole=False), state, console.width))
