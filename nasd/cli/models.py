"""Commands that take a model home and ask it: export, answer, predict, score."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from nasd.cli.command import Command
from nasd.cli.completion import scored_candidates
from nasd.cli.options import MODELS, ConfigOption, StateOption, app, state_folder
from nasd.contract.errors import NasdError


@app.command(cls=Command, rich_help_panel=MODELS)
def export(
    candidate: Annotated[
        str,
        typer.Argument(
            help="Its number, or baseline, or best (the best quality, maybe the baseline's).",
            show_default=False,
            autocompletion=scored_candidates,
        ),
    ],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder to make.")],
    config: ConfigOption = Path("config.toml"),
    state: StateOption = None,
    onnx: Annotated[
        bool, typer.Option("--onnx", help="Also as model.onnx; needs the extra onnx.")
    ] = False,
    int8: Annotated[
        bool,
        typer.Option(
            "--int8", help="And as model-int8.onnx, both scored on the test data: minutes."
        ),
    ] = False,
    native: Annotated[
        bool,
        typer.Option("--native", help="And as a class of transformers' own, without other code."),
    ] = False,
    task: Annotated[
        str | None,
        typer.Option(
            help="Of a search of several tasks: the one to have the model of.", show_default=False
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace an exported model that stands there.")
    ] = False,
    smallest_within: Annotated[
        float | None,
        typer.Option(
            metavar="POINTS",
            help="Of best: the fewest parameters at most so many points of quality below it.",
            min=0,
            max=100,
            show_default=False,
        ),
    ] = None,
    max_parameters: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            help="Of best: at most so many percent of the baseline's parameters.",
            min=0,
            max=10_000,
            show_default=False,
        ),
    ] = None,
) -> None:
    """Take a scored candidate home: a folder that transformers loads without nasd.

    It holds weights, tokenizer, modelling code and a model card. The daemon may
    be running or down.

    Example: nasd export best my-model --smallest-within 1
    """
    from nasd.contract.readable import of_baseline, parameters
    from nasd.export import export as door
    from nasd.record.lookup import Wish

    wish = Wish(smallest_within, max_parameters)
    place = state_folder(config, state)
    scores = ", and scoring it, which takes minutes" if int8 else ""
    print(f"writing and checking the model{scores} ...", file=sys.stderr, flush=True)
    done = door.export(place, candidate, folder, onnx, force, wish, int8, task, native)
    print(
        f"{_named(done.candidate)} (quality {done.quality:.2f}, {of_baseline(done.size)} of the"
        f" baseline's parameters) stands in"
        f" {folder}: {done.files.weights_bytes / 1e6:.1f} MB; its README.md says what it is"
    )
    if done.files.onnx_difference is not None:
        print(f"model.onnx is beside it; its logits differ by {done.files.onnx_difference:.0e}")
    if (own := done.files.native) is not None:
        print(
            f"native/ holds it as a {own.auto}, of {parameters(own.parameters)} parameters with"
            f" the zeros that fill it up; its logits differ by {own.difference:.0e}"
        )
    if done.files.int8 is not None:
        print("model-int8.onnx is beside it, too; on the test data:")
        for row in (("", "float32", "int8"), *done.files.int8.rows()):
            print("  {:28}{:>10}{:>10}".format(*row))


def _named(candidate: int) -> str:
    return f"candidate {candidate}" if candidate else "the baseline"


@app.command(cls=Command, rich_help_panel=MODELS)
def answer(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="An exported model.")],
    question: Annotated[str, typer.Option("--question", "-q", help="What to look for.")],
    context: Annotated[
        str, typer.Option("--context", help="The text to look in; - reads standard input.")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="With its place, as JSON.")] = False,
    onnx: Annotated[bool, typer.Option("--onnx", help="By its model.onnx.")] = False,
    int8: Annotated[bool, typer.Option("--int8", help="By its model-int8.onnx.")] = False,
) -> None:
    """Ask an exported model: the answer as it stands in the text, and its score from 0 to 1.

    Example: nasd answer my-model -q "Who has it?" --context "Ines has it."
    """
    from dataclasses import asdict

    from nasd.export import answer as oracle

    if context == "-":
        try:
            context = sys.stdin.buffer.read().decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise NasdError(f"standard input is not UTF-8 text ({error.reason})") from error
    found = oracle.answer(folder, question, context, oracle.file_of(onnx, int8))
    if as_json:
        print(json.dumps(asdict(found)))
    else:
        print(f"{found.answer}  ({found.score:.2f})")


@app.command(cls=Command, rich_help_panel=MODELS)
def predict(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="An exported model.")],
    texts: Annotated[
        list[str] | None,
        typer.Argument(metavar="TEXT", help="What to label; of a pair both, a tab between them."),
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option("--file", help="Texts, one a line; - reads standard input.", allow_dash=True),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="A JSON value a text.")] = False,
    onnx: Annotated[bool, typer.Option("--onnx", help="By its model.onnx.")] = False,
    int8: Annotated[bool, typer.Option("--int8", help="By its model-int8.onnx.")] = False,
) -> None:
    """Ask an exported model for the labels, or numbers, of texts: one line each.

    A label comes with its score from 0 to 1. Of a model that labels words, each
    word stands with its label behind it.

    Example: nasd predict my-model "The plot is thin, and I loved it."
    """
    from dataclasses import asdict

    from nasd.export import answer as oracle

    lines = list(texts or ())
    if bool(lines) == (file is not None):
        raise NasdError("give either texts or --file")
    if file is not None:
        lines = _lines(file)
    for found in oracle.predict(folder, lines, oracle.file_of(onnx, int8)):
        if isinstance(found, oracle.Told):
            shown = f"{found.label}  ({found.score:.2f})" if found.label else f"{found.score:.4g}"
            print(json.dumps(asdict(found)) if as_json else shown)
        elif as_json:
            print(json.dumps([{"word": word, **asdict(told)} for word, told in found]))
        else:
            print("  ".join(f"{word}/{told.label or '?'}" for word, told in found))


def _lines(file: Path) -> list[str]:
    """The texts in a file that are not blank; raises NasdError where there are none."""
    try:
        content = sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
        lines = [line for line in content.decode("utf-8-sig").splitlines() if line.strip()]
    except OSError as error:
        raise NasdError(f"--file: {file} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise NasdError(f"--file: {file} is not UTF-8 text ({error.reason})") from error
    if not lines:
        raise NasdError(f"--file: {file} has no texts: give one a line")
    return lines


@app.command(cls=Command, rich_help_panel=MODELS)
def score(
    predictions: Annotated[Path, typer.Argument(help='JSON: {"question id": "answer", …}.')],
    dataset: Annotated[Path, typer.Argument(help="Questions in SQuAD v1.1's JSON form.")],
) -> None:
    """Score predictions as SQuAD's official v1.1 evaluation does.

    Example: nasd score predictions.json dev-v1.1.json
    """
    from nasd.contract import squad

    print(json.dumps(squad.score(squad.read_predictions(predictions), squad.read_squad(dataset))))
