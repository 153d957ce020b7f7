"""`nasd compress`: from a model and data to a search for a smaller one, and its best."""

import math
import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nasd.cli.command import Command
from nasd.cli.numbers import whole
from nasd.cli.options import SEARCH, SpeedOption, app
from nasd.contract.errors import NasdError

if TYPE_CHECKING:
    from nasd.contract.config import Config
    from nasd.control.preflight import Seed
    from nasd.record.state import Snapshot

PRESET = "compress"
TOKENS, STRIDE = 384, 128  # of a window, where the model has so many positions
THREADS = 16  # of a GPU's process, at most
ARTICLES = 5  # with fewer, questions are split one by one


@dataclass(frozen=True)
class Asked:
    """What a person wants. source, files: as the config will name them. task: that gives the score,
    by name. settings: of its section. target: share of the parameters. devices: of slots.devices,
    or "auto". vocabulary: tokens that are kept; None: all."""

    source: str
    files: tuple[str, ...]
    target: float
    path: Path
    state: str
    devices: str
    budget: float | None
    task: str
    settings: dict[str, Any]
    vocabulary: int | None

    @property
    def section(self) -> str:
        """Of the config."""
        from nasd.contract import tasks

        return f"data.{tasks.of(self.task).data}"


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
    budget: Annotated[
        float | None,
        typer.Option("--budget-gpu-hours", help="Fit the search to so many (on CPUs slot-hours)."),
    ] = None,
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

    files = _files(task, questions or [], data or [], more or [])
    asked = _asked(
        *(model, files, target, config, state, devices, budget, task),
        *(_from_here(_settings(set_ or [])), vocabulary),
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
        _set_budget(asked, there)
    else:
        _write(asked, tflops)
    on = f"--config {asked.path}"
    if write_only:
        print(f"to begin: {interpreter.nasd()} run {on}")
        return
    print(f"to look at it: {interpreter.nasd()} status --watch {on}", flush=True)
    from nasd.cli.searching import say_why, serve

    settings = load(asked.path)
    home = asked.path.resolve().parent / settings.experiment.state
    over = serve(settings, asked.path)
    try:
        share = _tell_best(asked, home)
    except NasdError:
        if over:
            raise
    else:  # before the end there may be none
        _take_home(asked, home, share, out if over or _is_spent(home, settings) else None, force)
    if not over:
        say_why(home)
        print("stopped; to go on: the same command again", file=sys.stderr)


def _from_here(settings: dict[str, Any]) -> dict[str, Any]:
    """Files by their full names, as those of --data: the config may lie elsewhere."""
    names = settings.get("test_files")
    if not isinstance(names, list) or not all(isinstance(one, str) for one in names):
        return settings
    return settings | {"test_files": [str(Path(one).expanduser().resolve()) for one in names]}


def _asked(
    model: str,
    files: list[Path],
    target: float,
    config: Path | None,
    state: Path | None,
    devices: str,
    budget: float | None,
    task: str | None,
    settings: dict[str, Any],
    vocabulary: int | None,
) -> Asked:
    from nasd.contract import tasks

    if not 0 < target < 1:
        raise NasdError(
            f"--target {target:g}: give a share of the model's parameters between 0 and 1, as in"
            " --target 0.5"
        )
    named = tasks.QA.name if task is None else task
    files = [one.expanduser() for one in files]
    check_data(named, files, settings)
    folder = Path(model).expanduser()
    path = config
    if path is None:
        name = "".join(c if c.isalnum() or c in ".-_" else "-" for c in folder.name) or "model"
        path = Path(f"compress-{name}", "config.toml")
    return Asked(
        source=str(folder.resolve()) if folder.is_dir() else model,
        files=tuple(str(one.resolve()) for one in files),
        target=target,
        path=path,
        state="state" if state is None else str(state.expanduser().resolve()),
        devices=devices,
        budget=budget,
        task=named,
        settings=settings,
        vocabulary=vocabulary,
    )


def _files(
    task: str | None, questions: list[Path], data: list[Path], more: list[Path]
) -> list[Path]:
    """Those of the option that the task has, and what stands behind it."""
    from nasd.contract import tasks

    known = [one.name for one in tasks.scoring()]
    if task is not None and task not in known:
        raise NasdError(f"--task {task}: there is no such task; take one of {', '.join(known)}")
    if task in (None, tasks.QA.name):
        if data:
            raise NasdError("--data: name the task that these texts with labels are for by --task")
        found = [*questions, *more]
        if not found:
            raise NasdError("--questions is missing: name a file of questions with their answers")
        return found
    if questions:
        raise NasdError(f"--questions: {task} has no use for them; name its texts by --data")
    found = [*data, *more]
    if not found:
        raise NasdError("--data is missing: name a file of texts with their labels")
    return found


def _settings(given: list[str]) -> dict[str, Any]:
    """KEY=VALUE each; a bare word is a text."""
    import tomllib

    found: dict[str, Any] = {}
    for one in given:
        key, sign, value = one.partition("=")
        if not sign or not key.strip().isidentifier():
            raise NasdError(f"--set {one}: write KEY=VALUE, as in --set label=stars")
        try:
            found[key.strip()] = tomllib.loads(f"value = {value.strip()}")["value"]
        except tomllib.TOMLDecodeError:
            found[key.strip()] = value.strip()
    return found


def check_data(
    task: str, files: list[Path], settings: dict[str, Any], option: str = "--questions"
) -> None:
    """Raises NasdError where the files are not what the task trains on. option: that names them,
    where they are questions."""
    from pydantic import ValidationError

    from nasd.contract import labelled, mistakes, tasks
    from nasd.contract.config import Data
    from nasd.contract.squad import read_all

    if task == tasks.QA.name:
        if settings:
            raise NasdError("--set is of the section of --task's data: leave it out for questions")
        try:
            read_all(files)
        except NasdError as error:
            raise NasdError(f"{option}: {error}") from None
        return
    section = {tasks.of(task).data: {"files": [str(one) for one in files], **settings}}
    try:
        data = Data.model_validate(section)
    except ValidationError as error:
        raise NasdError(f"--set: {mistakes.sentence(error, section, Data)}") from None
    labelled.of_files(tasks.labelled(data), Path(), 0)


def _look(source: str, folder: Path) -> "Seed":
    from nasd.control.preflight import look_at_seed

    try:
        return look_at_seed(source, folder)
    except NasdError as error:
        raise NasdError(str(error).removeprefix("seed_model.source: ")) from None


def _check_same(asked: Asked, there: "Config") -> float:
    """The target, as `_kept` has it. Raises NasdError unless the config that stands there is of the
    same wish, and can meet it."""
    from nasd.contract.genotype import parameters
    from nasd.presets import smaller

    kept = there.seed_model.vocabulary
    for key, have, want in (
        ("seed_model.source", there.seed_model.source, asked.source),
        (f"{asked.section}.files", _files_of(there, asked), asked.files),
        ("seed_model.vocabulary", kept, asked.vocabulary or kept),
    ):
        if have != want:
            raise NasdError(
                f"{asked.path} is of another search, as its {key} says: name another place with"
                " --config, or go on with that one by `nasd run`"
            )
    seed, target = _kept(replace(asked, vocabulary=kept), _look(asked.source, asked.path.parent))
    smallest = smaller.smallest_of(there.search_space, seed.baseline, seed.backbone)
    smaller.check_target(target, parameters(seed.baseline, seed.backbone), smallest)
    return target


def _kept(asked: Asked, seed: "Seed") -> tuple["Seed", float]:
    """The seed with the tokens that are kept, and the target as a share of what they leave: so the
    search counts. Raises NasdError where nothing else would have to become smaller."""
    from nasd.contract.genotype import parameters

    if asked.vocabulary is None or asked.vocabulary >= seed.backbone.vocab_size:
        return seed, asked.target
    backbone = replace(seed.backbone, vocab_size=asked.vocabulary)
    whole, left = (parameters(seed.baseline, one) for one in (seed.backbone, backbone))
    if asked.target * whole >= left:
        raise NasdError(
            f"--vocabulary {asked.vocabulary}: with so few tokens the model has"
            f" {100 * left / whole:.0f} % of its parameters, and --target {asked.target:g} asks for"
            " no less: give a lower target, or more tokens"
        )
    return replace(seed, backbone=backbone), asked.target * whole / left


def _other_target(asked: Asked, there: "Config", target: float) -> str:
    """What is to be said where its limit is of another target. target: as `_kept` has it."""
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


def _set_budget(asked: Asked, there: "Config") -> None:
    """Of a search that has begun as `nasd budget` does; raises NasdError where another was planned
    for, and nothing has begun."""
    from nasd.cli.asking import ask
    from nasd.policy.scheduling import budget
    from nasd.record import snapshot

    if asked.budget is None:
        return
    if not 0 < asked.budget < math.inf:
        raise NasdError(f"--budget-gpu-hours: {asked.budget:g} makes no sense, it must be above 0")
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


def _write(asked: Asked, tflops: float | None) -> None:
    """Writes the config, once nothing is wrong with it, and says what it chose. tflops: that a slot
    sustains; None: one is tried out."""
    import tomllib

    from nasd.contract import config as config_module
    from nasd.contract.protocol import write_atomically
    from nasd.control import preflight
    from nasd.presets import rewritten, smaller
    from nasd.views.forecast.fitting import WORKING, fit, hours_of
    from nasd.views.forecast.premises import gather

    if os.path.lexists(asked.path):
        raise NasdError(f"{asked.path} is no file: name another place with --config")
    base = asked.path.resolve().parent
    if (base / asked.state / "nasd.db").exists():
        raise NasdError(
            f"{asked.state} holds a search already, and {asked.path} is not there: name another"
            " --state, or the config of that search with --config"
        )
    whole = _look(asked.source, base)
    seed, target = _kept(asked, whole)
    values = {
        "experiment.name": f"compress {Path(asked.source).name}"[:200],
        "experiment.state": asked.state,
        "seed_model.source": asked.source,
        **({} if seed is whole else {"seed_model.vocabulary": asked.vocabulary}),
        **_slots(asked.devices),
        **{
            f"search_space.{key}": value
            for key, value in smaller.space(seed.baseline, seed.backbone, target).items()
        },
        "stages.finetune.learning_rate": smaller.learning_rate(seed.backbone),
        **_data(asked, seed),
    }
    head = (
        f"# Written by `nasd compress`, to at most {100 * asked.target:g} % of the model's"
        " parameters; docs/config.md knows\n# every key. `nasd run` goes on with it as well.\n"
    )
    text = rewritten(PRESET, head, values)

    def checked(text: str) -> "Config":
        return config_module.parse(tomllib.loads(text), str(asked.path))

    config = checked(text)
    try:
        looked = preflight.check(config, base, str(asked.path))
    except NasdError as error:  # the file is not there yet
        raise NasdError(str(error).removeprefix(f"{asked.path}: ")) from None
    if asked.task in looked.heads and not looked.fault:
        values["stages.finetune.who"] = "candidates"  # the model is scored as it is
        text = rewritten(PRESET, head, values)
        config = checked(text)
    told: list[str] = []
    if asked.budget is not None:
        print(WORKING, file=sys.stderr, flush=True)
        needed = _needed(config, seed, target)
        try:
            keys, told = fit(config, asked.path, frozenset(), asked.budget, seed, tflops=tflops)
            taken = _taken(checked(rewritten(PRESET, head, {**values, **keys})))
        except NasdError:  # not even few of them are paid
            taken = 0
        if taken < needed:
            values |= smaller.straight(target, needed, config.experiment.limits)
            config = checked(rewritten(PRESET, head, values))
            once = frozenset({"experiment.generations"})
            keys, told = fit(config, asked.path, once, asked.budget, seed, tflops=tflops)
        text = rewritten(PRESET, head, {**values, **keys})
        config = checked(text)
    else:
        print("trying out how fast a slot is ...", file=sys.stderr, flush=True)
        subject = gather(config, asked.path, tflops, seed=seed, tries=True)
        told = [
            f"about {hours_of(config, subject):.3g} {_unit(subject.slots)}, if nothing is small",
            *(f"rests on: {one}" for one in subject.assumptions[:3]),
        ]
    try:
        asked.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(asked.path, text.encode())
    except OSError as error:
        raise NasdError(f"{asked.path} cannot be written: {error.strerror}") from error
    for line in (*_told(asked, whole, config), *told):
        print(f"  {line}")
    print(f"wrote {asked.path}", flush=True)


def _needed(config: "Config", seed: "Seed", target: float) -> int:
    """Steps to the target."""
    from nasd.search.variation.reach import steps_to

    about = seed.baseline, seed.backbone, config.search_space, config.variation
    return steps_to(target, *about)


def _taken(config: "Config") -> int:
    """Steps of the longest line of children that the search can have."""
    bred = 1 + config.experiment.generations - config.population.finishing
    return bred * config.variation.steps[1]


def _unit(slots: tuple[str, ...]) -> str:
    from nasd.contract.slots import unit

    return unit(slots)


def _slots(devices: str) -> dict[str, Any]:
    """The slots by name, so that what a budget pays is worked out for them."""
    from pydantic import ValidationError

    from nasd.contract.config import Slots
    from nasd.contract.slots import on_gpus
    from nasd.launch.devices import found

    try:
        wanted = Slots(devices="auto" if devices == "auto" else tuple(devices.split(",")))
    except ValidationError:
        raise NasdError(
            f"--devices {devices}: take auto, or a list such as cuda:0,cuda:1 or cpu:0"
        ) from None
    names = [str(one) for one in found(wanted, begun=False)]
    cores = len(os.sched_getaffinity(0))
    threads = min(THREADS, max(1, cores // len(names))) if on_gpus(names) else 1
    return {"slots.devices": names, "slots.threads": threads}


def _files_of(config: "Config", asked: Asked) -> tuple[str, ...] | None:
    section = getattr(config.data, asked.section.removeprefix("data."))
    return None if section is None else tuple(section.files)


def _data(asked: Asked, seed: "Seed") -> dict[str, Any]:
    """The section of the task, in the place of the preset's, and the task of its stages."""
    from nasd.contract import tasks
    from nasd.contract.config import LabelledData

    if asked.task == tasks.QA.name:
        return _questions(asked, seed)
    usual = LabelledData.model_fields["tokens"].default
    tokens = min(usual, seed.backbone.positions)
    return {
        "data.qa": None,
        f"{asked.section}.files": list(asked.files),
        f"{asked.section}.tokens": tokens,
        **{f"{asked.section}.{key}": value for key, value in asked.settings.items()},
        "stages.finetune.task": asked.task,
        "stages.evaluate.task": asked.task,
    }


def _questions(asked: Asked, seed: "Seed") -> dict[str, Any]:
    from nasd.contract.squad import read_all

    tokens = min(TOKENS, seed.backbone.positions)
    titles = {one.title for one in read_all([Path(name) for name in asked.files]).sound}
    return {
        "data.qa.hub": None,
        "data.qa.files": list(asked.files),
        "data.qa.tokens": tokens,
        "data.qa.stride": min(STRIDE, tokens // 3),
        "data.qa.split_by": "article" if len(titles) >= ARTICLES else "record",
    }


def _told(asked: Asked, seed: "Seed", config: "Config") -> list[str]:
    from nasd.contract import seed_head, tasks
    from nasd.contract.genotype import parameters
    from nasd.contract.readable import counted
    from nasd.presets.smaller import embeddings

    space, size = config.search_space, parameters(seed.baseline, seed.backbone)
    left, target = _kept(asked, seed)
    whole = embeddings(left.baseline, left.backbone)
    fixed = embeddings(left.baseline, left.backbone, space.ranks)
    room = min(1.0, (target - fixed) / (1 - whole))
    population = config.population
    behind = config.experiment.generations
    count = population.mu + population.lambda_ * behind
    task = tasks.of(asked.task)
    return [
        f"the model: {seed.baseline}, {size / 1e6:.1f} M parameters;"
        f" {seed_head.about(task, task.name in seed.heads, kept=True)}",
        *_told_tokens(seed, left),
        f"of them {100 * whole:.0f} % are embeddings, {100 * fixed:.0f} % at their narrowest:"
        f" at most {100 * target:.3g} % in all leave the blocks {100 * room:.0f} % of theirs",
        f"the space: {space.blocks[0]} to {space.blocks[1]} blocks, sizes"
        f" {', '.join(map(str, space.sizes))}, heads {', '.join(map(str, space.heads))}",
        _told_split(config),
        *_told_steps(config, target),
        f"the search: {counted(count, 'candidate')},"
        f" {counted(behind, 'generation')} behind the first,"
        f" on {counted(len(config.slots.devices), 'slot')}",
    ]


def _told_tokens(seed: "Seed", left: "Seed") -> list[str]:
    if left is seed:
        return []
    from nasd.contract.genotype import parameters

    of_all = parameters(left.baseline, left.backbone) / parameters(seed.baseline, seed.backbone)
    return [
        f"of its {seed.backbone.vocab_size:,} tokens {left.backbone.vocab_size:,} are kept, the"
        f" most frequent in the data: {100 * of_all:.0f} % of the parameters are left"
    ]


def _told_steps(config: "Config", target: float) -> list[str]:
    if config.experiment.generations:
        return []
    least, most = config.variation.steps
    return [
        f"the steps: {least} to {most} at once, to at most {100 * target:.3g} %, as the budget does"
        " not pay enough generations of small ones"
    ]


def _told_split(config: "Config") -> str:
    from nasd.contract import tasks

    if (qa := config.data.qa) is not None:
        how = f"questions: {100 * qa.train_share:g} % train, split by {qa.split_by}"
    else:
        how = f"examples: {100 * tasks.labelled(config.data).train_share:g} % train"
    return f"{how}; the others score: if the model was trained on those too, all scores flatter it"


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


def _tell_best(asked: Asked, state: Path) -> str:
    """The best that is small enough; raises NasdError if there is none. Returns `_share`."""
    from nasd.contract.readable import of_baseline
    from nasd.record import lookup, snapshot

    with snapshot.opened(state) as connection:
        snap = snapshot.read(connection)
    share = _share(asked, snap)
    try:
        best = lookup.find(snap, lookup.BEST, lookup.Wish(max_parameters=float(share)))
    except NasdError as error:
        raise NasdError(
            f"the search is complete, but {error}; a higher experiment.generations in {asked.path}"
            " and the same command let it go on"
        ) from None
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
