"""How fast a slot trains, tried out on one of them, for a forecast that has nothing better."""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from nasd.contract import tasks
from nasd.contract.config import SCREEN, Config, Stage
from nasd.contract.errors import NasdError
from nasd.contract.genotype import unchanged
from nasd.contract.slots import Slot, devices, is_gpu
from nasd.contract.volumes import Volumes
from nasd.control.preflight import Seed
from nasd.estimate.cost import example_flop
from nasd.launch import child, gpus
from nasd.record import privacy
from nasd.record.folders import StateFolder

TIMEOUT_SECONDS = 300.0


@dataclass(frozen=True)
class Speed:
    """rates: 10^12 operations a second by the stage's name, with all that a step takes in it; of
    no stage where none could be tried. told: on what, or why not."""

    rates: Mapping[str, float]
    told: str


@dataclass(frozen=True)
class _Asked:
    """question: of nasd.worker.speed, but for where its answer is kept. kinds: of training that the
    search has, and flop: operations of a token of each, in the order of the question's. kept: where
    an answer is."""

    config: Config
    question: dict[str, Any]
    kinds: tuple[bool, ...]
    flop: tuple[float, ...]
    kept: Path

    @classmethod
    def of(
        cls, config: Config, path: Path, seed: Seed, volumes: Volumes, slots: tuple[str, ...]
    ) -> "_Asked":
        folder = path.resolve().parent
        stages = {_kind(one): one for one in reversed(config.stages) if one.train != "none"}
        found = [_training(one, config, seed, volumes) for one in stages.values()]
        question = {
            "source": config.seed_model.source,
            "folder": str(folder),
            "vocabulary": config.seed_model.vocabulary,
            "dropout": config.seed_model.dropout,
            "device": Slot.parse(slots[0]).kind.value,
            "slots": 1 if is_gpu(slots[0]) else len(slots),
            "threads": config.slots.threads,
            "precision": config.slots.precision,
            "packing": config.slots.packing,
            "asked": [asked for asked, _ in found],
        }
        key = hashlib.sha256(json.dumps(question, sort_keys=True).encode()).hexdigest()
        kept = StateFolder(folder / config.experiment.state).cache / f"speed-{key[:16]}.json"
        return cls(config, question, tuple(stages), tuple(flop for _, flop in found), kept)

    def speed(self, answer: Mapping[str, Any]) -> Speed:
        """Each stage is as fast as that of its kind; what only scores, as what trains."""
        speeds = zip(self.kinds, answer["tokens_per_second"], self.flop, strict=True)
        of_kind = {kind: tokens * flop / 1e12 for kind, tokens, flop in speeds}
        stages = {one.name: one for one in self.config.parts} | {SCREEN: self.config.entry}
        rates = {name: of_kind[_kind(one)] for name, one in stages.items() if _kind(one) in of_kind}
        return Speed(rates, f"on {answer['device']}, in {answer['precision']}")


def known(
    config: Config, path: Path, seed: Seed, volumes: Volumes, slots: tuple[str, ...]
) -> Speed | None:
    """What was tried before and kept; None for nothing."""
    asked = _Asked.of(config, path, seed, volumes, slots)
    try:
        return asked.speed(json.loads(asked.kept.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def tried(
    config: Config,
    path: Path,
    seed: Seed,
    volumes: Volumes,
    slots: tuple[str, ...],
    keep: bool = False,
) -> Speed:
    """What a slot of this machine that nobody is on shows now. keep: in the state folder, so that
    it is tried once."""
    asked = _Asked.of(config, path, seed, volumes, slots)
    try:
        slot = _free(config, slots)
        if keep:
            privacy.make(path.resolve().parent / config.experiment.state)
        question = asked.question | {"keep": str(asked.kept) if keep else None}
        return asked.speed(_answer(json.dumps(question), slot))
    except (NasdError, child.NoAnswer) as error:
        return Speed({}, f"not tried, as {error}")
    except OSError as error:  # of the folder
        return Speed({}, f"not tried, as {error.filename} cannot be made: {error.strerror}")


@cache  # `nasd compress` plans twice
def _answer(question: str, slot: str) -> dict[str, Any]:
    about = json.loads(question), gpus.visible([slot])
    return child.ask("nasd.worker.speed", *about, TIMEOUT_SECONDS)


def _kind(stage: Stage) -> bool:
    """Two are as fast: whose examples differ in length, and those of full texts with a head as wide
    as the vocabulary."""
    return tasks.of(stage.task).varies


def _training(
    stage: Stage, config: Config, seed: Seed, volumes: Volumes
) -> tuple[dict[str, Any], float]:
    """What is asked about the stage, and operations of a token."""
    task = tasks.of(stage.task)
    tokens, masks = task.tokens(config.data, volumes), task.masks(config.data)
    genotype, backbone = seed.baseline, seed.backbone
    flop = example_flop(task, genotype, unchanged(genotype), backbone, tokens, masks, "all")
    asked = {
        "task": stage.task,
        "batch": math.ceil(stage.batch / stage.slots),
        "micro_batch": stage.micro_batch,
        "tokens": tokens,
        "longest": task.limit(config.data),
        "mask_share": None if config.data.mlm is None else config.data.mlm.mask_share,
    }
    return asked, flop / tokens


def _free(config: Config, slots: tuple[str, ...]) -> str:
    """A device of the slots that is here and that nobody is on; raises NasdError for none."""
    if config.slots.launcher != "local":
        raise NasdError(f"slots.launcher is {config.slots.launcher}")
    names = devices(slots)
    if not is_gpu(names[0]):
        return names[0]
    there = gpus.now(names)
    for name in names:
        gpu = there.get(name)
        if gpu is not None and not gpu.fault and not gpus.foreign(gpu, lambda pid: False, False):
            return name
    absent = all(name not in there for name in names)
    raise NasdError(
        f"none of {', '.join(names)} {'is on this machine' if absent else 'is free and in order'}"
    )
