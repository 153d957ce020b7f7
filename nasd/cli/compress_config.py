"""The config that `nasd compress` writes, and what it says of its choices."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nasd.cli.wish import STRIDE, TOKENS, Asked, kept_by, look
from nasd.contract.errors import NasdError

if TYPE_CHECKING:
    from nasd.contract.config import Config
    from nasd.control.preflight import Seed

PRESET = "compress"
THREADS = 16  # of a GPU's process, at most
ARTICLES = 5  # with fewer, questions are split one by one


def write_config(asked: Asked, tflops: float | None) -> None:
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
    whole = look(asked.source, Path.cwd())  # where it was typed
    seed, target = kept_by(asked, whole)
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
    for line in (*_told(asked, whole, seed, target, config, looked.fault), *told):
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
    from nasd.contract.squad import article, read_all

    faults = [asked.settings.get(key, False) for key in ("skip_faulty", "no_answer")]
    found = read_all([Path(name) for name in asked.files], *faults)
    tokens = asked.settings.get("tokens", min(TOKENS, seed.backbone.positions))
    articles = len({article(one) for one in found.sound})
    return {
        "data.qa.hub": None,
        "data.qa.files": list(asked.files),
        "data.qa.tokens": tokens,
        "data.qa.stride": min(STRIDE, tokens // 3),
        "data.qa.split_by": "article" if articles >= ARTICLES else "record",
        **{f"data.qa.{key}": value for key, value in asked.settings.items()},
    }


def _told(
    asked: Asked, seed: "Seed", left: "Seed", target: float, config: "Config", fault: str
) -> list[str]:
    """left, target: as `kept_by` has them. fault: why the model's head cannot be kept; or ""."""
    from nasd.contract import seed_head, tasks
    from nasd.contract.genotype import parameters
    from nasd.contract.readable import counted
    from nasd.presets.smaller import embeddings

    space, size = config.search_space, parameters(seed.baseline, seed.backbone)
    whole = embeddings(left.baseline, left.backbone)
    fixed = embeddings(left.baseline, left.backbone, space.ranks, space.frequent_words)
    room = min(1.0, (target - fixed) / (1 - whole))
    population = config.population
    behind = config.experiment.generations
    count = population.mu + population.lambda_ * behind
    task = tasks.of(asked.task)
    return [
        f"the model: {seed.baseline}, {size / 1e6:.1f} M parameters;"
        f" {seed_head.about(task, task.name in seed.heads, True, fault)}",
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
