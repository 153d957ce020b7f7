"""`python -m nasd.worker.speed`: how fast a slot trains the seed's shape.

Random weights and made-up examples through the very loop that attempts go through, for some
seconds: what a step's operations take, and all that comes with them. Reads one JSON object,
{"source": the seed, "folder": where its relative path starts, "vocabulary": tokens that are kept,
or null, "dropout": in place of the seed's, or null, "device": cuda or cpu, "slots": that work side
by side, "threads", "precision", "packing": [slots] of a config, "asked": [{"task", "batch":
examples of a step on a slot, "micro_batch", "tokens": of an example on average, "longest": of one,
"mask_share": of MLM}], "keep": a file for the answer, or null}, with the slot's GPU visible alone,
or none. Prints one JSON line: {"device": in words, "precision": that it computes in,
"tokens_per_second": [a slot's, for each that is asked]}, or {"error": one sentence}.
"""

import json
import multiprocessing
import os
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import fmean, median
from typing import Any, Literal

import numpy as np
import torch

from nasd.contract import tasks
from nasd.contract.config import Stage
from nasd.contract.errors import NasdError
from nasd.contract.protocol import write_atomically
from nasd.worker.devices import has_bfloat16
from nasd.worker.measure.table import device_name
from nasd.worker.model import phenotype
from nasd.worker.model.architecture import Architecture
from nasd.worker.model.phenotype import MaskedLM, QuestionAnswering, initialise
from nasd.worker.model.spans import NO_CHARACTERS
from nasd.worker.stage import device_for
from nasd.worker.tasks.corpus import MlmCorpus, SpecialTokens
from nasd.worker.tasks.mlm import MlmTask
from nasd.worker.tasks.packing import choose
from nasd.worker.tasks.passages import QaFeatures
from nasd.worker.tasks.qa import QaTask
from nasd.worker.tasks.task import Ranks, Task
from nasd.worker.training.micro_batch import Memory, TrialGpu, Trials
from nasd.worker.training.progress import quiet
from nasd.worker.training.recording import NoMetrics
from nasd.worker.training.train import Run, train

SECONDS = 8.0  # of steps that count
CPU_BATCH = 16  # at most: a step's length goes with it there
GPU_LINE = 10  # steps between two looks at the clock, each of which waits for the GPU
UNCOUNTED, LEAST, MOST = 1, 2, 12  # lines: to warm up, and that count
EXAMPLES, TESTED = 64, 4  # steps' worth to train on, and how many to evaluate by
MOST_AT_ONCE = 8  # slots that are tried side by side: each holds a model and its optimizer
SPREAD = 0.5  # of the average length: how much longer or shorter examples are


class Enough(Exception):
    """The speed is known."""


class Clock(NoMetrics):
    """Hears the speed of each line, until enough of them have come."""

    def __init__(self) -> None:
        self.speeds: list[float] = []
        self._lines = 0
        self._began = time.monotonic()

    def line(self, **values: Any) -> None:
        if values["kind"] != "train":
            return
        self._lines += 1
        if self._lines <= UNCOUNTED:
            self._began = time.monotonic()
            return
        self.speeds.append(values["tokens_per_second"])
        counted, spent = len(self.speeds), time.monotonic() - self._began
        if counted >= MOST or (counted >= LEAST and spent >= SECONDS):
            raise Enough


class Never:
    """A stop request that does not come."""

    asked = False


def main() -> None:
    question = json.load(sys.stdin)
    keep, slots = question.pop("keep"), question.pop("slots")
    try:
        answer = json.dumps(_together(question, min(slots, MOST_AT_ONCE)))
        if keep is not None:
            Path(keep).parent.mkdir(exist_ok=True)
            write_atomically(Path(keep), answer.encode())
        print(answer)
    except NasdError as error:
        print(json.dumps({"error": str(error)}))


def _together(question: dict[str, Any], slots: int) -> dict[str, Any]:
    """The answer of each of so many that work side by side: cores share their memory's speed."""
    if slots == 1:
        return _answer(**question)
    with multiprocessing.get_context("spawn").Pool(slots) as pool:
        started = [pool.apply_async(_answer, kwds=question) for _ in range(slots)]
        found = [one.get() for one in started]
    speeds = [fmean(one) for one in zip(*(one["tokens_per_second"] for one in found), strict=True)]
    return {**found[0], "tokens_per_second": speeds}


def _answer(
    source: str,
    folder: str,
    vocabulary: int | None,
    dropout: float | None,
    device: str,
    threads: int,
    precision: str,
    packing: Literal["auto"] | bool,
    asked: list[dict[str, Any]],
) -> dict[str, Any]:
    from nasd.worker.model import seed

    os.environ.setdefault("LOCAL_RANK", "0")
    torch.set_num_threads(threads)
    arch = seed.describe(source, Path(folder)).architecture.with_dropout(dropout)
    arch = replace(arch, vocab_size=min(vocabulary or arch.vocab_size, arch.vocab_size))
    found = []
    for one in asked:
        place = device_for(precision, tasks.of(one["task"]).varies)
        if precision == "bfloat16" and not has_bfloat16(place):
            precision = "float32"
        packs, _ = choose(packing, precision, arch, place)
        stage = _stage(one, place)
        found.append(_speed(_task(stage, arch, packs, one), stage, precision, place))
    return {"device": device_name(device), "precision": precision, "tokens_per_second": found}


def _stage(asked: dict[str, Any], device: torch.device) -> Stage:
    """Of more steps than are made, and with a rate that moves nothing."""
    batch, micro = asked["batch"], asked["micro_batch"]
    if device.type == "cpu":
        batch = min(batch, CPU_BATCH)
    return Stage(
        name="speed",
        task=asked["task"],
        train="all",
        slots=1,
        batch=batch,
        micro_batch=None if micro is None else min(micro, batch),
        epochs=1e4,
        learning_rate=1e-7,
    )


def _speed(task: Task, stage: Stage, precision: str, device: torch.device) -> float:
    """Tokens a second, without padding."""
    clock, on_gpu = Clock(), device.type == "cuda"
    with tempfile.TemporaryDirectory(prefix="nasd-speed-") as place:
        settings = Run(
            seed=0,
            candidate=0,
            precision=precision,
            checkpoint_seconds=1e9,
            log_steps=GPU_LINE if on_gpu else 1,
            checkpoints=Path(place),
            resume=(),
            open_recorder=lambda step: clock,
            stop=Never(),  # type: ignore[arg-type]
            progress=quiet,
            trials=Trials(TrialGpu(device, 1), Memory(Path(place))) if on_gpu else None,
            say=lambda text: None,
        )
        try:
            train(task, stage, Ranks(0, 1, device), settings)
        except Enough:
            return median(clock.speeds)
    raise AssertionError("there are more steps than are made")


def _task(stage: Stage, arch: Architecture, packs: bool, asked: dict[str, Any]) -> Task:
    """The stage's task on random weights and examples. Of those whose examples differ in length the
    questions stand for all: their heads are of no weight beside the encoder."""
    draw, count = np.random.default_rng(0), EXAMPLES * stage.batch
    if not tasks.of(stage.task).varies:
        model = _random(MaskedLM, arch)
        names = {name for name, _ in model.named_parameters()}
        corpus = _corpus(arch, count, int(asked["tokens"]), draw)
        return MlmTask(model, corpus, asked["mask_share"], names)
    lengths = (asked["tokens"] * draw.uniform(1 - SPREAD, 1 + SPREAD, count)).round()
    lengths = lengths.clip(4, asked["longest"]).astype(np.int64)
    features = _features(arch, lengths, draw)
    test = features.take(np.arange(min(TESTED, count)))
    return QaTask(_random(QuestionAnswering, arch), features, test, packs)


def _random(kind: Any, arch: Architecture) -> Any:
    model = phenotype.empty(kind, arch)
    with torch.no_grad():
        initialise(model, torch.Generator().manual_seed(0))
    return model


def _corpus(arch: Architecture, count: int, tokens: int, draw: np.random.Generator) -> MlmCorpus:
    every = np.arange(count + TESTED)
    return MlmCorpus(
        pieces=draw.integers(0, arch.vocab_size, (len(every), tokens - 2)),
        train=every[:count],
        evaluation=every[count:],
        tokens=SpecialTokens(0, 0, 0, 0, arch.vocab_size, (0,)),
    )


def _features(arch: Architecture, lengths: Any, draw: np.random.Generator) -> QaFeatures:
    """Each with an answer of a token in its middle."""
    total = int(lengths.sum())
    return QaFeatures(
        tokens=draw.integers(0, arch.vocab_size, total),
        bounds=np.concatenate([[0], np.cumsum(lengths)]),
        characters=np.full((total, 2), NO_CHARACTERS, dtype=np.int32),
        start=(lengths // 2).astype(np.int32),
        end=(lengths // 2).astype(np.int32),
        question=np.arange(len(lengths), dtype=np.int32),
    )


if __name__ == "__main__":
    main()
