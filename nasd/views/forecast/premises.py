"""What a forecast rests on: seed, data, slots and rate, each with a word on where it is from."""

from dataclasses import dataclass, replace
from pathlib import Path

from nasd.contract import tasks
from nasd.contract.config import Config, check_against_slots
from nasd.contract.errors import NasdError
from nasd.contract.genotype import Backbone, Block, FeedForward, Genotype, parameters
from nasd.contract.readable import counted
from nasd.contract.slots import Slot, divided
from nasd.contract.volumes import Volumes
from nasd.control import preflight
from nasd.control.preflight import Seed
from nasd.estimate.cost import Machine
from nasd.launch import simulated
from nasd.record import snapshot
from nasd.record.state import Snapshot
from nasd.views.forecast import data, rates
from nasd.views.forecast import speed as speeds
from nasd.views.forecast.speed import Speed

DISTILBERT = Seed(
    Backbone(vocab_size=30522, positions=512, width=768),
    Genotype((Block(12, (FeedForward("gelu", (3072,)),)),) * 6),
    has_mlm_head=True,
)
ANSWERING = replace(DISTILBERT, has_mlm_head=False, heads=(tasks.QA.name,))
KNOWN_SEEDS = {
    f"{owner}{name}": seed
    for owner in ("", "distilbert/")
    for name, seed in (
        ("distilbert-base-uncased", DISTILBERT),
        ("distilbert-base-uncased-distilled-squad", ANSWERING),
    )
}
_LUCK = (
    "nothing fails and nobody diverges. Which candidates are bred follows from made-up losses and"
    " scores; their sizes, and the hours with them, differ from one search seed to another."
)


@dataclass(frozen=True)
class Subject:
    """What is simulated. speed: as a slot was tried, where it was. assumptions: what it rests on, a
    sentence each."""

    seed: Seed
    volumes: Volumes
    slots: tuple[str, ...]
    machine: Machine
    assumptions: tuple[str, ...]
    speed: Speed | None = None


def gather(
    config: Config,
    config_path: Path,
    tflops: float | None = None,
    slots: int | None = None,
    mlm_sequences: int | None = None,
    qa_questions: int | None = None,
    seed: Seed | None = None,
    measured: Path | None = None,
    speed: Speed | None = None,
    tries: bool = False,
    keep: bool = False,
) -> Subject:
    """Seed, data, slots and rate: as given, as measured, as known, or as can be looked up.

    seed: where who asks has looked at it. measured: the state folder of another experiment, by
    which slots are as fast as they were in it. speed: as a slot was tried; else as kept, if it was.
    tries: one is tried out where nothing else tells; keep: and what it shows is kept in the state
    folder.
    """
    folder, origin = config_path.resolve().parent, str(config_path)
    names, about_slots = _slots(config, slots, origin)
    own = _experiment(folder / config.experiment.state)
    seed, about_seed = _seed(config, folder, own, seed)
    preflight.check_seed(config, seed, origin)
    prepared = data.prepared(config, own)
    volumes, about_data = data.volumes(config, folder, prepared, mlm_sequences, qa_questions)
    theirs = own if measured is None else _experiment(measured)
    if theirs is None and measured is not None:
        raise NasdError(f"{measured} holds no experiment: name the state folder of one")
    about = config, config_path, seed, volumes, names
    speed = speed or speeds.known(*about)
    machine, about_rate = rates.machine(config, names, tflops, theirs, speed)
    if tries and tflops is None and not machine.rates:
        speed = speeds.tried(*about, keep=keep)
        machine, about_rate = rates.machine(config, names, tflops, theirs, speed)
    told = (about_seed, about_data, about_slots + about_rate, _LUCK)
    return Subject(seed, volumes, names, machine, told, speed)


def _slots(config: Config, count: int | None, origin: str) -> tuple[tuple[str, ...], str]:
    listed = config.slots.devices
    if count is None and listed != "auto":
        check_against_slots(config, len(listed), origin)
        names = divided(listed, config.slots.share)
        return names, f"{counted(len(names), 'slot')} as listed, {_shared(config)}"
    found = simulated.devices(config, begun=False)
    number = count or len({one.device for one in found})
    for stage in config.stages:
        if stage.slots > number:
            raise NasdError(
                f"--slots: stages.{stage.name} asks for {stage.slots} slots, more than {number}"
            )
    check_against_slots(config, number, origin)
    devices = [str(Slot.of(found[0].kind, index)) for index in range(number)]
    names = divided(devices, config.slots.share)
    guessed = "" if count else " (slots.devices is auto: a guess)"
    return names, f"{counted(len(names), 'slot')}{guessed}, {_shared(config)}"


def _shared(config: Config) -> str:
    share = config.slots.share
    return "" if share == 1 else f"{share} on each GPU, "


def _experiment(state: Path) -> Snapshot | None:
    try:
        with snapshot.opened(state) as connection:
            return snapshot.read(connection)
    except snapshot.NoExperiment:
        return None


def _seed(
    config: Config, folder: Path, measured: Snapshot | None, given: Seed | None
) -> tuple[Seed, str]:
    source = config.seed_model.source
    has_head_stage = any(stage.train == "head" for stage in config.stages)
    if given is not None:
        seed, how = given, "looked at"
    elif source in KNOWN_SEEDS:
        seed, how = KNOWN_SEEDS[source], "its shape is known"
    elif measured is not None and measured.experiment.config["seed_model"]["source"] == source:
        prepared = measured.experiment.prepared
        head = not has_head_stage if prepared is None else bool(prepared["has_mlm_head"])
        seed = Seed(measured.experiment.backbone, measured.baseline.genotype, head)
        how = "its shape as in the experiment"
    else:
        seed, how = preflight.look_at_seed(source, folder), "looked at"
    if config.seed_model.vocabulary is not None:
        kept = min(config.seed_model.vocabulary, seed.backbone.vocab_size)
        seed = replace(seed, backbone=replace(seed.backbone, vocab_size=kept))
    size = parameters(seed.baseline, seed.backbone) / 1e6
    without = "" if seed.has_mlm_head else " without an MLM head"
    return seed, f"seed {source}{without}: {size:.1f} M parameters ({how})."
