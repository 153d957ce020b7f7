"""`nasd compress`: from a model and data to a search for a smaller one, and its best."""

import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nasd.cli.command import Command
from nasd.cli.compress_config import write_config
from nasd.cli.numbers import whole
from nasd.cli.options import SEARCH, BudgetOption, SpeedOption, app
from nasd.cli.wish import (
    USUAL_STATE,
    Asked,
    asked_of,
    files_of,
    from_here,
    in_config,
    kept_by,
    look,
    settings_of,
)
from nasd.contract.errors import NasdError

if TYPE_CHECKING:
    from nasd.contract.config import Config
    from nasd.record.state import Snapshot


@app.command(cls=Command, rich_help_panel=SEARCH)
def compress(
    model: Annotated[
        str, typer.Argument(help="A folder with a model of transformers or nasd's, or of the hub.")
    ],
    more: Annotated[
        list[Path] | None,
        typer.Argument(metavar="FILE", help="More files of questions.", show_default=False),
    ] = None,
    questions: Annotated[
        list[Path] | None,
        typer.Option("--questions", help="What it is for: SQuAD's JSON, JSON lines or Parquet."),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(help="What it is for, where not questions: classify, regress or tag."),
    ] = None,
    data: Annotated[
        list[Path] | None,
        typer.Option("--data", help="Texts with labels for it: CSV, JSON lines or Parquet."),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help='Of the data\'s section, as label="stars".'
        ),
    ] = None,
    target: Annotated[
        float, typer.Option(metavar="SHARE", help="Of the model's parameters, embeddings and all.")
    ] = 0.5,
    vocabulary: Annotated[
        int | None,
        typer.Option(
            metavar="TOKENS",
            help="Keep so many of the model's tokens, the most frequent in the data; else all.",
            parser=whole("--vocabulary", 1, 10**9),
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option("--config", "-c", help="The config to write; else compress-NAME/config.toml."),
    ] = None,
    state: Annotated[
        Path | None, typer.Option("--state", help="The state folder; else beside the config.")
    ] = None,
    budget: BudgetOption = None,
    tflops: SpeedOption = None,
    devices: Annotated[
        str, typer.Option(help="As cuda:0,cuda:1 or cpu:0; auto takes all GPUs, or the CPU.")
    ] = "auto",
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Export the best there at the end.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace the exported model that stands there.")
    ] = False,
    write_only: Annotated[
        bool, typer.Option("--write-only", help="Write the config, and do not run it.")
    ] = False,
) -> None:
    """Search for a smaller model as good as yours, from your own checkpoint.

    Writes a config (the preset compress, with a search space from the model's
    own shape down) and runs it as `nasd run` does; called again, it goes on. At
    the end it names the best model of at most SHARE of the parameters.

    Example: nasd compress my-model --questions squad.json --target 0.5
    Or of labels: nasd compress my-model --task classify --data reviews.csv
    """
    from nasd.contract.config import load
    from nasd.launch import interpreter

    files = files_of(task, questions or [], data or [], more or [])
    asked = asked_of(
        *(model, files, target, config, state, devices, budget, task),
        *(from_here(settings_of(set_ or [])), vocabulary),
    )
    if out is not None:
        from nasd.export.export import check_place

        check_place(out.expanduser(), force)
    print("looking at the model and the data ...", file=sys.stderr, flush=True)
    if asked.path.exists():
        there = load(asked.path)
        target = _check_same(asked, there)
        told = _other_target(asked, there, target)
        print(f"going on with {asked.path}, as it stands there{told}")
        _tell_changed(asked, there)
        _set_budget(asked, there)
    else:
        write_config(asked, tflops)
    on = f"--config {asked.path}"
    if write_only:
        print(f"to begin: {interpreter.nasd()} run {on}")
        return
    print(f"to look at it: {interpreter.nasd()} status --watch {on}", flush=True)
    from nasd.cli.searching import say_why, serve

    settings = load(asked.path)
    home = asked.path.resolve().parent / settings.experiment.state
    over = serve(settings, asked.path)
    spent = _is_spent(home, settings)
    try:
        share = _tell_best(asked, home, spent)
    except NasdError:
        if over or spent:
            raise
    else:  # before the end there may be none
        _take_home(asked, home, share, out if over or spent else None, force)
    if not over:
        say_why(home)
        print("stopped; to go on: the same command again", file=sys.stderr)


def _check_same(asked: Asked, there: "Config") -> float:
    """The target, as `kept_by` has it. Raises NasdError unless the config that stands there is of
    the same wish, and can meet it."""
    from nasd.contract.genotype import parameters
    from nasd.presets import smaller

    kept, data = there.seed_model.vocabulary, in_config(there, asked)
    home = asked.path.resolve().parent
    state = there.experiment.state if asked.state == USUAL_STATE else asked.state
    for key, have, want in (
        ("seed_model.source", there.seed_model.source, asked.source),
        (f"{asked.section}.files", getattr(data, "files", None), asked.files),
        *(
            (f"{asked.section}.{key}", _plain(getattr(data, key, None)), _plain(value))
            for key, value in asked.settings.items()
        ),
        ("experiment.state", home / there.experiment.state, home / state),
    ):
        if have != want:
            raise _other(asked, key)
    model = look(asked.source, Path.cwd())
    if asked.vocabulary is not None:  # as many as the model has, or more, are all
        whole = kept_by(asked, model)[0] is model
        if kept != (None if whole else asked.vocabulary):
            raise _other(asked, "seed_model.vocabulary")
    if asked.devices != "auto" and tuple(asked.devices.split(",")) != there.slots.devices:
        raise NasdError(
            f"--devices {asked.devices}: {asked.path} names other slots; change slots.devices"
            " there, or leave the option out"
        )
    seed, target = kept_by(replace(asked, vocabulary=kept), model)
    smallest = smaller.smallest_of(there.search_space, seed.baseline, seed.backbone)
    smaller.check_target(target, parameters(seed.baseline, seed.backbone), smallest)
    return target


def _other(asked: Asked, key: str) -> NasdError:
    return NasdError(
        f"{asked.path} is of another search, as its {key} says: name another place with --config,"
        " or go on with that one by `nasd run`"
    )


def _plain(value: Any) -> Any:
    """As a config holds what was typed."""
    return tuple(value) if isinstance(value, list) else value


def _other_target(asked: Asked, there: "Config", target: float) -> str:
    """What is to be said where its limit is of another target. target: as `kept_by` has it."""
    from nasd.contract.limits import Limit
    from nasd.presets.smaller import STEP

    for text in there.experiment.limits:
        one, asks = Limit.parse(text), 1 / target
        if (one.objective, one.sign) == ("compression", ">=") and abs(one.bound - asks) > STEP:
            return (
                f": its limit {text} is of another --target than {asked.target:g}, by which the"
                " best is looked for all the same"
            )
    return ""


def _tell_changed(asked: Asked, there: "Config") -> None:
    """What has been written anew since the search began, which goes on with what it was."""
    from nasd.record import snapshot

    home = asked.path.resolve().parent / there.experiment.state
    try:
        with snapshot.opened(home) as connection:
            began = snapshot.read(connection, whole=False).experiment.created_at
    except snapshot.NoExperiment:
        return
    source = Path(asked.source)
    paths = [Path(one) for one in asked.files] + (list(source.iterdir()) if source.is_dir() else [])
    for path in paths:
        if path.is_file() and path.stat().st_mtime > began:
            print(
                f"{path} has changed since the search began, which goes on with what it was: for a"
                " search of what it is now name another place with --config"
            )


def _set_budget(asked: Asked, there: "Config") -> None:
    """Of a search that has begun as `nasd budget` does; raises NasdError where another was planned
    for, and nothing has begun."""
    from nasd.cli.asking import ask
    from nasd.policy.scheduling import budget
    from nasd.record import snapshot

    if asked.budget is None:
        return
    home = asked.path.resolve().parent / there.experiment.state
    planned = there.experiment.budget_gpu_hours
    try:
        with snapshot.opened(home) as connection:
            found = snapshot.read(connection, whole=False)
    except snapshot.NoExperiment:
        if planned != asked.budget:
            was = "without a budget" if planned is None else f"for a budget of {planned:g}"
            raise NasdError(
                f"{asked.path} was written {was}: remove it to have a search planned for"
                f" {asked.budget:g}, or leave --budget-gpu-hours out"
            ) from None
        return
    if budget(found, there) != asked.budget:
        ask(home, "budget", settings=there, gpu_hours=asked.budget)
        print(f"its budget is {asked.budget:g} {found.hours_unit} in all from here on")


def _is_spent(state: Path, config: "Config") -> bool:
    """Whether the budget is what has ended the search."""
    import time

    from nasd.policy.scheduling import budget_spent
    from nasd.record import snapshot

    with snapshot.opened(state) as connection:
        return budget_spent(snapshot.read(connection), config, time.time())


def _tokens_left(snap: "Snapshot") -> float:
    """The search's baseline as a share of the model, which may have more tokens."""
    known = snap.experiment.prepared or {}
    whole, left = known.get("seed_parameters"), known.get("parameters")
    return left / whole if whole and left else 1.0


def _share(asked: Asked, snap: "Snapshot") -> str:
    """Of the search's baseline, in percent."""
    return f"{math.ceil(1e4 * asked.target / _tokens_left(snap) - 1e-6) / 100:g}"


def _none_small_enough(asked: Asked, snap: "Snapshot", spent: bool) -> NasdError:
    """Who has come nearest, and how to go on."""
    from nasd.contract.readable import of_baseline
    from nasd.record.lifecycle import State

    found = "no candidate is scored"
    scored = [one for one in snap.individuals if one.state is State.SCORED and not one.is_baseline]
    if scored:
        least = min(scored, key=lambda one: one.parameters)
        part = of_baseline(snap.size(least.id) / _tokens_left(snap))
        found = (
            f"no candidate has at most {100 * asked.target:g} % of the model's parameters: the"
            f" smallest, candidate {least.id}, has {part} and quality {snap.quality(least.id):.2f}"
        )
    ended, mend = "the budget is spent", "a higher --budget-gpu-hours"
    if not spent:
        ended = "the search is complete"
        mend = f"a higher experiment.generations in {asked.path}, or a higher --target"
    return NasdError(f"{ended}, and {found}; to go on: the same command, with {mend}")


def _tell_best(asked: Asked, state: Path, spent: bool) -> str:
    """The best that is small enough; raises NasdError if there is none. Returns `_share`."""
    from nasd.contract.readable import of_baseline
    from nasd.record import lookup, snapshot

    with snapshot.opened(state) as connection:
        snap = snapshot.read(connection)
    share = _share(asked, snap)
    try:
        best = lookup.find(snap, lookup.BEST, lookup.Wish(max_parameters=float(share)))
    except NasdError:
        raise _none_small_enough(asked, snap, spent) from None
    size = of_baseline(snap.size(best.id) / _tokens_left(snap))
    beside = f"the baseline: {snap.quality(snap.baseline.id):.2f}"
    if not (rival := snap.rival).is_baseline:
        beside += f", trained on as the control: {snap.quality(rival.id):.2f}"
    print(
        f"the best with at most {100 * asked.target:g} % of the model's parameters: candidate"
        f" {best.id}, quality {snap.quality(best.id):.2f}, {size} of them ({beside})"
    )
    return share


def _take_home(asked: Asked, state: Path, share: str, out: Path | None, force: bool) -> None:
    """Exports that, or says how to. share: as `_share` has it."""
    import shlex

    from nasd.export import export
    from nasd.launch import interpreter
    from nasd.record import lookup

    config = shlex.quote(str(asked.path))
    wish = lookup.Wish(max_parameters=float(share))
    if out is None:
        print(
            f"to take it home: {interpreter.nasd()} export best my-model --max-parameters {share}"
            f" --config {config}"
        )
        return
    done = export.export(state, lookup.BEST, out, force=force, wish=wish)
    print(f"it stands in {done.folder}; its README.md says what it is")
