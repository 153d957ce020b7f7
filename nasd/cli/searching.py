"""Commands that begin a search, or say how one would go: init, run, simulate, doctor."""

import json
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nasd.cli.command import Command
from nasd.cli.numbers import whole
from nasd.cli.options import SEARCH, BudgetOption, ConfigOption, SpeedOption, app, show
from nasd.contract.errors import NasdError
from nasd.record.lifecycle import ExperimentState

if TYPE_CHECKING:
    from nasd.contract.config import Config


@app.command(cls=Command, rich_help_panel=SEARCH)
def init(
    folder: Annotated[Path, typer.Argument(help="Where to write config.toml.")] = Path(),
    preset: Annotated[
        str, typer.Option(help="thesis, compress, minilm, demo, minilm-thesis or demo-thesis.")
    ] = "thesis",
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="KEY=VALUE in TOML, may be repeated.")
    ] = None,
    task: Annotated[
        list[str] | None,
        typer.Option(
            help="What it is for: qa (questions, as without it), classify, regress or tag. Several,"
            " each with its own --task, give a search of several tasks."
        ),
    ] = None,
    data: Annotated[
        list[Path] | None,
        typer.Option("--data", help="Files of the task's data: CSV, JSON lines, Parquet, SQuAD."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Write over a config.toml.")] = False,
    budget: BudgetOption = None,
    tflops: SpeedOption = None,
) -> None:
    """Write a config.toml to begin with.

    Example: nasd init --preset minilm --set experiment.seed=3 my-search
    Or of labels: nasd init --preset minilm --task classify my-search
    """
    from nasd.contract import tasks
    from nasd.control.leaving import go_on
    from nasd.presets import write_preset

    fit = None
    if budget is not None:
        from nasd.views.forecast.fitting import WORKING
        from nasd.views.forecast.fitting import fit as fitted

        print(WORKING, file=sys.stderr, flush=True)
        fit = partial(fitted, budget=budget, tflops=tflops)
    task = task or ([tasks.QA.name] if data else [])
    files = _data_of(task, data or [])
    path = write_preset(preset, folder, set_ or [], force, fit, print, task or (), files)
    print(f"wrote {path}; check it, then: {go_on(path)}")


def _data_of(task: list[str], data: list[Path]) -> list[str]:
    """The files in full, once they are found to hold what the task trains on."""
    if not data:
        return []
    from nasd.cli.wish import check_data

    files = [one.expanduser() for one in data]
    if len(task) == 1:
        check_data(task[0], files, {}, "--data")
    return [str(one.resolve()) for one in files]


@app.command(cls=Command, rich_help_panel=SEARCH)
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
    from nasd.views.forecast.planning import plan as made_whole

    planned = made_whole(config, fresh, progress=partial(print, file=sys.stderr, flush=True))
    for line in planned.told:
        print(line, file=sys.stderr, flush=True)
    settings = planned.config
    state = config.resolve().parent / settings.experiment.state
    if fresh or not (state / "nasd.db").exists():
        print("checking the seed and the data ...", file=sys.stderr, flush=True)
    if watch:
        from nasd.cli.watching import run_watched

        complete = run_watched(settings, config, state, fresh)
    else:
        complete = serve(settings, config, fresh)
    if complete:
        from nasd.views.status.watch import show as show_end

        show_end(state)
        return
    say_why(state)
    from nasd.control.leaving import go_on

    print(f"stopped; to go on: {go_on(config)}", file=sys.stderr)


def serve(settings: "Config", config: Path, fresh: bool = False) -> bool:
    """As nasd.control.daemon.run, with its log on standard error."""
    import logging

    from nasd.control import daemon
    from nasd.views.board import Board
    from nasd.views.forecast.planning import check_budget

    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr
    )
    logging.getLogger("apscheduler").setLevel(logging.WARNING)
    return daemon.run(settings, config, fresh, artist=Board, check=check_budget)


def say_why(state: Path) -> None:
    """Raises NasdError if the search has halted, and not just been stopped."""
    from nasd.views.status import facts

    experiment = facts.read(state).snapshot.experiment
    if experiment.state is ExperimentState.HALTED:
        raise NasdError(f"halted: {experiment.reason}")


@app.command(cls=Command, rich_help_panel=SEARCH)
def simulate(
    config: ConfigOption = Path("config.toml"),
    tflops: SpeedOption = None,
    slots: Annotated[
        int | None,
        typer.Option(help="How many, if not the config's.", parser=whole("--slots", 1, 4096)),
    ] = None,
    mlm_sequences: Annotated[
        int | None,
        typer.Option(
            help="Sequences to train on, if not what is prepared or known.",
            parser=whole("--mlm-sequences", 1, 10**12),
        ),
    ] = None,
    qa_questions: Annotated[
        int | None,
        typer.Option(
            help="Questions in all, if not what is prepared or known.",
            parser=whole("--qa-questions", 1, 10**12),
        ),
    ] = None,
    runs: Annotated[
        int,
        typer.Option(
            help="How many searches, each with another seed.", parser=whole("--runs", 1, 1000)
        ),
    ] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="Everything, as JSON.")] = False,
) -> None:
    """Forecast wall-clock, slot-hours (of GPUs: GPU-hours) and slot use, without training.

    Example: nasd simulate --tflops 60 --slots 8
    """
    from rich.console import Console

    from nasd.views.forecast.as_json import forecast
    from nasd.views.forecast.planning import load
    from nasd.views.forecast.view import render

    settings = load(config)
    # Shown only on a terminal, and never within the output.
    with Console(stderr=True).status("simulating") as shown:
        data = forecast(
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
        Console().print(render(data))


@app.command(cls=Command, rich_help_panel=SEARCH)
def plan(
    config: ConfigOption = Path("config.toml"),
    measured: Annotated[
        Path | None,
        typer.Option(
            help="The state folder of a search on the same slots, which are as fast as it found"
            " them; else as the config's own found them, or as one shows when it is tried out."
        ),
    ] = None,
    tflops: SpeedOption = None,
    write: Annotated[
        bool, typer.Option("--write", help="Put what is chosen into the config.")
    ] = False,
    runs: Annotated[
        int,
        typer.Option(
            help="How many searches are simulated, each with another seed.",
            parser=whole("--runs", 1, 1000),
        ),
    ] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Everything, as JSON.")] = False,
) -> None:
    """Show which search a budget pays for, why, and what it will take.

    With experiment.budget_gpu_hours, a config may leave out the population, the
    generations and the rungs: they follow from it, and from how fast the slots
    are. `nasd run` chooses the same, once, when the search begins.

    Example: nasd plan --measured old-search/state --write
    """
    from rich.console import Console

    from nasd.views.forecast.planning import described

    with Console(stderr=True).status("planning") as shown:
        found = described(config, measured, runs, shown.update, tflops)
    if as_json:
        print(json.dumps(found, indent=1))
    else:
        from nasd.views.forecast.view import render

        for line in found["told"]:
            print(line)
        print()
        Console().print(render(found["forecast"], "what is known of such slots"))
    if write:
        from nasd.presets import put_into

        put_into(config, found["chosen"])
        print(f"wrote {config}", file=sys.stderr)


@app.command(cls=Command, rich_help_panel=SEARCH)
def doctor(
    config: ConfigOption = Path("config.toml"),
    as_json: Annotated[bool, typer.Option("--json", help="Everything, as JSON.")] = False,
) -> None:
    """Check whether this machine can carry the search of a config through.

    Looks at GPUs, driver and torch, cores and memory, state folder and database,
    hub, seed and data, disk, clock, service and TensorBoard. The last line says
    what to do first. The exit code is 1 if something has to be mended.

    Example: nasd doctor --config config.toml
    """
    from rich.console import Console

    from nasd.views import doctor as practice

    with Console(stderr=True).status("looking"):
        findings = list(practice.examine(config))
    if as_json:
        print(json.dumps(practice.to_json(findings), indent=1))
    else:
        show(practice.render(findings))
        print(practice.verdict(findings))
    if not practice.ready(findings):
        raise typer.Exit(1)
