"""Commands that show what a search does and did: status, show, log, events, report, tensorboard,
serve, metrics."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from nasd.cli.command import Command
from nasd.cli.completion import CandidateArgument, candidates
from nasd.cli.numbers import MOST_ID, real, whole
from nasd.cli.options import LOOK, ConfigOption, StateOption, app, show, state_folder
from nasd.contract.errors import NasdError
from nasd.contract.strangers import harmless


@app.command(cls=Command, rich_help_panel=LOOK)
def status(
    config: ConfigOption = Path("config.toml"),
    state: StateOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Everything, as JSON.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Keep showing it.")] = False,
    interval: Annotated[
        float,
        typer.Option(help="Seconds between two looks.", parser=real("--interval", 0.1, 86_400)),
    ] = 1.0,
) -> None:
    """Show what the search is doing. Works with the daemon down.

    With --watch it takes keys: ? shows which.

    Example: nasd status --watch
    """
    folder = state_folder(config, state)
    if as_json and watch:
        raise NasdError("--json tells once what is: leave --watch out")
    if as_json:
        from nasd.contract.bulk import kept

        with kept():
            from nasd.views.status import as_json as view
            from nasd.views.status.facts import read

            for piece in view.pieces(read(folder, whole=True)):
                typer.echo(piece, nl=False)
            typer.echo()
        return
    from nasd.cli.details import details
    from nasd.views.status.watch import show
    from nasd.views.status.watch import watch as keep_watching

    if watch:
        try:
            keep_watching(folder, interval, details=details)
        except KeyboardInterrupt:
            return
    show(folder)


@app.command(cls=Command, name="show", rich_help_panel=LOOK)
def show_candidate(
    candidate: CandidateArgument,
    config: ConfigOption = Path("config.toml"),
    state: StateOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Everything, as JSON.")] = False,
) -> None:
    """Show all about one candidate: how it came about, what it did, what it cost.

    Architecture and ancestry, why it is in its state, stages with their learning
    curves, decisions about it, attempts, offspring, and where its weights lie.
    Works with the daemon down.

    Example: nasd show 7
    """
    from nasd.views import dossier

    found = dossier.compile_dossier(state_folder(config, state), candidate)
    if as_json:
        print(json.dumps(found.to_json(), indent=1))
        return
    from nasd.views.dossier_view import render

    show(render(found))


@app.command(cls=Command, rich_help_panel=LOOK)
def log(
    candidate: CandidateArgument,
    config: ConfigOption = Path("config.toml"),
    state: StateOption = None,
    stage: Annotated[str | None, typer.Option(help="The newest attempt at this stage.")] = None,
    attempt: Annotated[
        int | None,
        typer.Option(
            help="Not the newest attempt at the stage, but this one; `nasd show` numbers them.",
            parser=whole("--attempt", 1, MOST_ID),
        ),
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what comes.")] = False,
    lines: Annotated[
        int,
        typer.Option(
            "--lines",
            "-n",
            parser=whole("--lines", 0, 10**9),
            help="How many of the last lines; 0: all.",
        ),
    ] = 100,
) -> None:
    """Print what the worker of a candidate's newest attempt wrote to its log.

    With --follow also what it writes from now on, and then what the candidate's
    next attempts write, until it is final or you press Ctrl-C. Whose log it is,
    standard error says. Of a line of more than 16 KiB only the beginning is
    shown.

    Example: nasd log 7 --stage finetune --follow
    """
    from nasd.record.state import Attempt
    from nasd.views import worker_log

    folder = state_folder(config, state)
    wanted = worker_log.find(folder, candidate, stage, attempt)

    def say(which: Attempt | None) -> None:
        """On standard error, so that what is piped is the log alone."""
        what = f"candidate {wanted.candidate} waits for its first attempt"
        if which is not None:
            where = f"attempt {which.number} at {which.stage} on {' '.join(which.slots)}"
            what = f"candidate {which.candidate}, {where} (attempts/{which.id}/worker.log)"
        print(f"-- {what}", file=sys.stderr, flush=True)

    if follow:
        try:
            for text in worker_log.follow(folder, wanted, lines, say):
                _write(text)
        except KeyboardInterrupt:
            return
    else:
        which = worker_log.attempt(folder, wanted)
        say(which)
        for text in worker_log.tail(folder, which, lines):
            _write(text)


def _write(text: bytes) -> None:
    sys.stdout.buffer.write(harmless(text) if sys.stdout.isatty() else text)
    sys.stdout.buffer.flush()


@app.command(cls=Command, rich_help_panel=LOOK)
def events(
    candidate: Annotated[
        str | None,
        typer.Argument(
            help="Its number, or baseline, or best; without one, the events of all.",
            show_default=False,
            autocompletion=candidates,
        ),
    ] = None,
    config: ConfigOption = Path("config.toml"),
    state: StateOption = None,
    last: Annotated[
        int,
        typer.Option("--last", "-n", parser=whole("--last", 1, 10**9), help="How many at most."),
    ] = 50,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Show what has happened to the search, or to one candidate, as recorded.

    The oldest comes first. Works with the daemon down.

    Example: nasd events 7 --last 20
    """
    from nasd.views import history

    found = history.read(state_folder(config, state), candidate, last)
    if as_json:
        print(json.dumps(history.to_json(found), indent=1))
    else:
        show(history.render(found))
        if len(found) == last:
            print(f"the newest {last:,}; --last takes another number", file=sys.stderr)


@app.command(cls=Command, rich_help_panel=LOOK)
def report(
    config: ConfigOption = Path("config.toml"),
    state: StateOption = None,
    out: Annotated[
        Path | None, typer.Option(help="The folder to write, if not state/reports/<name>.")
    ] = None,
    png: Annotated[bool, typer.Option("--png", help="Each figure as PNG too.")] = False,
    regret: Annotated[
        bool,
        typer.Option(
            "--regret",
            help="Train those whom the last cutoff stopped to the end first, to see what it"
            " missed; its price is shown before.",
        ),
    ] = False,
    sample: Annotated[
        int | None,
        typer.Option(
            help="With --regret, not all of those, but so many, drawn among them: what they come to"
            " speaks for the others.",
            parser=whole("--sample", 1, 10**6),
        ),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Pay that price unasked.")] = False,
) -> None:
    """Write a report: a page with all figures and tables, and the same as files.

    Works at any time, with the daemon running or down. Replaces the report that
    was there.

    Example: nasd report --out search-report
    """
    from nasd.contract.bulk import kept
    from nasd.contract.errors import NasdError

    folder = state_folder(config, state)
    if sample is not None and not regret:
        raise NasdError("--sample says for how many of those who were cut: give --regret as well")
    if regret and not _trained_on(folder, config if state is None else None, yes, sample):
        return
    with kept():
        from nasd.views.report import words
        from nasd.views.report.write import default_folder, read, write

        facts = read(folder)
        page = write(facts, out or default_folder(folder, facts), png)
        print("\n".join(words.answer(facts)))
    print(f"\nwrote {page}")


@app.command(cls=Command, rich_help_panel=LOOK)
def tensorboard(
    config: ConfigOption = Path("config.toml"),
    state: StateOption = None,
    port: Annotated[
        int, typer.Option(help="The port to listen on.", parser=whole("--port", 1, 65_535))
    ] = 6006,
    host: Annotated[
        str, typer.Option(help="The address to listen on; 0.0.0.0 lets other machines in.")
    ] = "localhost",
) -> None:
    """Start TensorBoard on a search: learning curves, cutoffs, features against scores.

    Works with the daemon running or down, and shows what is new as it comes.
    Ctrl-C ends it.

    Example: nasd tensorboard --port 6007
    """
    from nasd.views import board_server

    board_server.serve(state_folder(config, state), host, port)


@app.command(cls=Command, rich_help_panel=LOOK)
def serve(
    config: ConfigOption = Path("config.toml"),
    state: StateOption = None,
    port: Annotated[
        int, typer.Option(help="The port to listen on.", parser=whole("--port", 0, 65_535))
    ] = 6007,
    host: Annotated[
        str, typer.Option(help="The address to listen on; 0.0.0.0 lets other machines in.")
    ] = "127.0.0.1",
) -> None:
    """Serve a live page of a search: front, losses, slots, events, candidates.

    Works with the daemon running or down. It reads alone; by the second address
    that is printed, which holds a token, it can also pause, drain and resume the
    search, and cut or retry a candidate. Ctrl-C ends it.

    Example: nasd serve --port 8080
    """
    from nasd.cli import asking
    from nasd.views.live import server

    folder = state_folder(config, state)

    def asks(action: str, candidate: int | None, why: str) -> str:
        about = {} if candidate is None else {"candidate": candidate}
        return asking.ask(folder, action, why, **about)  # type: ignore[arg-type]

    server.serve(folder, host, port, asks, lambda line: print(line, flush=True))


@app.command(cls=Command, rich_help_panel=LOOK)
def metrics(
    config: ConfigOption = Path("config.toml"),
    state: StateOption = None,
    port: Annotated[
        int | None,
        typer.Option(
            help="Serve them at /metrics of this port, for Prometheus to ask.",
            parser=whole("--port", 0, 65_535),
        ),
    ] = None,
    host: Annotated[str, typer.Option(help="With --port, the address to listen on.")] = "127.0.0.1",
    file: Annotated[
        Path | None,
        typer.Option(
            help="Keep them in this file, which ends in .prom, for node_exporter's textfile"
            " collector."
        ),
    ] = None,
    interval: Annotated[
        float,
        typer.Option(
            help="With --file, seconds between two writings.", parser=real("--interval", 1, 86_400)
        ),
    ] = 15.0,
) -> None:
    """Print how a search is, in Prometheus's text format; or serve that, or keep it in a file.

    Works with the daemon running or down. Ctrl-C ends --port and --file.

    Example: nasd metrics --file /var/lib/node_exporter/nasd.prom
    """
    from contextlib import suppress

    from nasd.contract.errors import NasdError
    from nasd.views import metrics as told
    from nasd.views.live import server

    folder = state_folder(config, state)
    if port is not None and file is not None:
        raise NasdError("take --port or --file, not both")
    if port is not None:
        server.serve_metrics(folder, host, port, lambda line: print(line, flush=True))
    elif file is not None:
        if file.suffix != ".prom":
            raise NasdError(f"--file: {file} has to end in .prom, or node_exporter passes it over")
        with suppress(KeyboardInterrupt):
            told.keep(folder, file, interval)
    else:
        print(told.text(folder), end="")


def _trained_on(folder: Path, config: Path | None, yes: bool, sample: int | None) -> bool:
    """Has the cut candidates, or so many of them, trained to the end, by the daemon that serves the
    folder or by this process, if a person agrees to the price; whether that is done. config: None
    if it is not known."""
    import sys
    import time

    from nasd.cli import asking
    from nasd.cli.searching import say_why, serve
    from nasd.contract import config as config_module
    from nasd.contract.errors import NasdError
    from nasd.launch import launchers
    from nasd.record import daemon_lock
    from nasd.record.folders import StateFolder
    from nasd.views.forecast import planning
    from nasd.views.report.regret import offer
    from nasd.views.report.write import read

    facts = read(folder)
    served = daemon_lock.held(StateFolder(folder).lock)
    if served or config is None:
        settings = config_module.parse(facts.config, str(folder))
    else:
        settings = planning.load(config)
    if not served and config is None:
        raise NasdError(
            f"no daemon serves {folder}, so this command would be one: name the experiment by its"
            " config, with --config, and not by --state"
        )
    asking.check(folder, "regret", settings, sample=sample)
    found = launchers.of(settings.slots).devices(settings, True)
    print(offer(facts.snapshot, settings, len(found), facts.unit, time.time(), sample))
    if not yes:
        if not sys.stdin.isatty():
            raise NasdError("nobody can be asked whether that is worth it: say so with --yes")
        if not typer.confirm("Train them?"):
            return False
    told = asking.ask(folder, "regret", settings=settings, sample=sample)
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
