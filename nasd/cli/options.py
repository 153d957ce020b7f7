"""The application, and what several commands take."""

from pathlib import Path
from typing import Annotated, Any

import typer

from nasd import __version__
from nasd.cli.numbers import above_zero, real
from nasd.contract.errors import NasdError

WIDE = 1000  # columns of what is piped
NARROW = 72  # columns below which the terminal breaks the lines of a table
MOST_HOURS = 10**9  # as of experiment.budget_gpu_hours
# The panels of `nasd --help`.
SEARCH, LOOK, STEER, MODELS = "The search", "Looking at it", "Steering", "Models"

app = typer.Typer(
    name="nasd",
    help="Searches transformer encoder architectures on your own GPUs.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

ConfigOption = Annotated[
    Path,
    typer.Option(
        "--config", "-c", help="The config file.", show_default=True, envvar="NASD_CONFIG"
    ),
]
StateOption = Annotated[
    Path | None,
    typer.Option("--state", help="The state folder, if not the one that the config names."),
]
BudgetOption = Annotated[
    float | None,
    typer.Option(
        "--budget-gpu-hours",
        metavar="HOURS",
        help="Fit the search to so many GPU-hours (on CPUs slot-hours), by simulating it.",
        parser=above_zero("--budget-gpu-hours", MOST_HOURS),
    ),
]
SpeedOption = Annotated[
    float | None,
    typer.Option(
        "--tflops",
        help="TFLOP/s that a slot sustains; else as was measured or tried, or known of its kind.",
        parser=real("--tflops", 0.001, 10**6),
    ),
]


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        print(f"nasd {__version__}")
        raise typer.Exit


def state_folder(config: Path, state: Path | None) -> Path:
    """The state folder, read from the config without checking all of it: looking must be quick."""
    if state is not None:
        if not state.is_dir():
            raise NasdError(f"there is no folder {state}: name a state folder with --state")
        beside = state / "state"  # the folder of a config was meant
        return beside if not (state / "nasd.db").exists() and beside.is_dir() else state
    from nasd.contract import toml

    try:
        settings = toml.parse(config.read_text(encoding="utf-8-sig"), str(config))
        name = settings["experiment"].get("state", "state")
    except FileNotFoundError:
        raise NasdError(
            f"there is no config file {config}: name one with --config or NASD_CONFIG, or a state"
            " folder with --state"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise NasdError(f"{config} cannot be read: {error}") from error
    except (KeyError, TypeError, AttributeError, NasdError) as error:
        raise NasdError(f"{config} is not a config of nasd's: {error}") from error
    return config.resolve().parent / str(name)


def show(renderable: Any) -> None:
    """Prints to the terminal's width, if that is not too narrow for a table; piped, a line of a
    table stays a line, without colours."""
    from rich.console import Console

    terminal = Console()
    if terminal.is_terminal:
        Console(width=max(terminal.width, NARROW)).print(renderable)
        return
    console = Console(width=WIDE)
    with console.capture() as captured:
        console.print(renderable)
    print("\n".join(line.rstrip() for line in captured.get().splitlines()))
