"""The command line. Each command imports what it needs when it is called."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from nasd import __version__
from nasd.errors import NasdError

app = typer.Typer(
    name="nasd",
    help="Searches transformer encoder architectures on your own GPUs.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

ConfigOption = Annotated[
    Path, typer.Option("--config", "-c", help="The config file.", show_default=True)
]
StateOption = Annotated[
    Path | None,
    typer.Option("--state", help="The state folder, if not the one that the config names."),
]


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        print(f"nasd {__version__}")
        raise typer.Exit


@app.command()
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
    import logging

    from nasd.config import load

    settings = load(config)
    state = config.resolve().parent / settings.experiment.state
    if fresh or not (state / "nasd.db").exists():
        print("checking the seed and the data ...", file=sys.stderr, flush=True)
    if watch:
        from nasd.watching import run_watched

        complete = run_watched(settings, config, state, fresh)
    else:
        from nasd import daemon

        logging.basicConfig(
            level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr
        )
        logging.getLogger("apscheduler").setLevel(logging.WARNING)
        complete = daemon.run(settings, config, fresh)
    if complete:
        _print_summary(state)
        return
    from nasd import status as view

    data = view.report(state, whole=False)
    if data["experiment"]["state"] == "halted":
        raise NasdError(f"halted: {data['experiment']['reason']}")


@app.command()
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

    folder = _state(config, state)
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


@app.command()
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

    folder = _state(config, state)
    facts = read(folder)
    page = write(facts, out or default_folder(folder, facts))
    print("\n".join(words.answer(facts)))
    print(f"\nwrote {page}")


@app.command()
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


@app.command()
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


@app.command()
def export(
    candidate: Annotated[
        str,
        typer.Argument(
            help="Its number, or baseline, or best (the best quality, which may be the baseline's)."
        ),
    ],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder to make.")],
    config: ConfigOption = Path("config.toml"),
    state: StateOption = None,
    onnx: Annotated[
        bool, typer.Option("--onnx", help="Also as model.onnx; needs the extra onnx.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Replace an exported model that stands there.")
    ] = False,
) -> None:
    """Take a scored candidate home: a folder that transformers loads without nasd.

    It holds weights, tokenizer, modelling code and a model card. The daemon may be
    running or down.

    Example: nasd export best my-model
    """
    from nasd import export as door

    done = door.export(_state(config, state), candidate, folder, onnx, force)
    print(
        f"candidate {done.candidate} (quality {done.quality:.2f}, size {done.size:.3f}) stands in"
        f" {folder}: {done.files.weights_bytes / 1e6:.1f} MB; its README.md says what it is"
    )
    if done.files.onnx_difference is not None:
        print(f"model.onnx is beside it; its logits differ by {done.files.onnx_difference:.0e}")


@app.command()
def answer(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="An exported model.")],
    question: Annotated[str, typer.Option("--question", "-q", help="What to look for.")],
    context: Annotated[
        str, typer.Option("--context", help="The text to look in; - reads standard input.")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="With its place, as JSON.")] = False,
) -> None:
    """Ask an exported model: the answer as it stands in the text, and its score from 0 to 1.

    Example: nasd answer my-model -q "Who has it?" --context "Ines has it."
    """
    from dataclasses import asdict

    from nasd import answer as oracle

    if context == "-":
        try:
            context = sys.stdin.read()
        except UnicodeDecodeError as error:
            raise NasdError(f"standard input is not UTF-8 text ({error.reason})") from error
    found = oracle.answer(folder, question, context)
    if as_json:
        print(json.dumps(asdict(found)))
    else:
        print(f"{found.answer}  ({found.score:.2f})")


@app.command()
def score(
    predictions: Annotated[Path, typer.Argument(help='JSON: {"question id": "answer", …}.')],
    dataset: Annotated[Path, typer.Argument(help="Questions in SQuAD v1.1's JSON form.")],
) -> None:
    """Score predictions as SQuAD's official v1.1 evaluation does.

    Example: nasd score predictions.json dev-v1.1.json
    """
    from nasd import squad

    print(json.dumps(squad.score(squad.read_predictions(predictions), squad.read_squad(dataset))))


@app.command()
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


def _state(config: Path, state: Path | None) -> Path:
    """The state folder, read from the config without checking all of it: looking must be quick."""
    if state is not None:
        return state
    import tomllib

    try:
        settings = tomllib.loads(config.read_text(encoding="utf-8"))
        name = settings["experiment"].get("state", "state")
    except FileNotFoundError:
        raise NasdError(
            f"there is no config file {config}: name one with --config, or a state folder with"
            " --state"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise NasdError(f"{config} cannot be read: {error}") from error
    except (KeyError, TypeError, AttributeError, tomllib.TOMLDecodeError) as error:
        raise NasdError(f"{config} is not a config of nasd's: {error}") from error
    return config.resolve().parent / str(name)


def _print_summary(state: Path) -> None:
    from rich.console import Console

    from nasd import status as view

    console = Console()
    console.print(view.summary(view.report(state, whole=False), state, console.width))


def main() -> None:
    try:
        app(standalone_mode=True)
    except NasdError as error:
        print(f"nasd: {error}", file=sys.stderr)
        sys.exit(2)
