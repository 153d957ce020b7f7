"""How long training takes, worked out: from tokens, FLOP a token, and the rate of a slot.

Meant to be believed, as far as its inputs are right; nasd.views.forecast rests on it, and the order
in which nasd.policy.scheduling starts attempts.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from nasd.contract import tasks
from nasd.contract.config import Data, MlmData, Stage
from nasd.contract.footprint import convolutions_flop
from nasd.contract.genotype import (
    Backbone,
    Genotype,
    Lineage,
    new_modules,
    parameters,
    unchanged,
    weights_of_attention,
    weights_of_ffn,
    weights_of_words,
)
from nasd.contract.schedule import Schedule, halved, share_of
from nasd.contract.volumes import Volumes

# 312 TFLOP/s are the peak of an A100 in bfloat16; a good harness sustains about 24 % of it with
# Hugging Face's BERT-base, which has the blocks of DistilBERT.
A100_TFLOPS = 75.0
# Of the seconds of a step that are not its operations (Python's, and starting kernels), the share
# in which the GPU is taken all the same. A step of a small model takes 16 ms on an H100 by itself,
# 31 where eight attempts share it and 38 to 50 where eleven do: 4 ms of the GPU for each step of
# each (docs/measured.md). A model that keeps the GPU busy gains nothing by sharing it.
DEVICE_SHARE = 31 / 8 / 16
# A thread on a server core with AVX-512; half as fast again in bfloat16 (both measured).
CPU_THREAD_TFLOPS, CPU_BFLOAT16 = 0.05, 1.5
FLOAT_STEP = 1e-6  # of a step: what differences of instants are off by


@dataclass(frozen=True)
class Machine:
    """What attempts run on.

    tflops          10^12 floating-point operations that a slot sustains in a second
    rates           the same as measured, by the stage's name, with all that a step takes in it
    scaling         what four slots together give of four times one slot's rate
    step_seconds    of every step, whatever its size: kernel launches, all-reduce, optimizer
    prepare_tokens  tokenised in a second (measured on two cores)
    memory_gb       of a slot; None: enough for all
    """

    tflops: float = A100_TFLOPS
    rates: Mapping[str, float] = field(default_factory=dict)
    scaling: float = 0.95
    start_seconds: float = 45.0
    step_seconds: float = 0.03
    checkpoint_seconds: float = 5.0
    prepare_tokens: float = 1e6
    memory_gb: float | None = None

    def flops(self, stage: str, slots: int) -> float:
        """Floating-point operations that so many slots together do in a second."""
        return 1e12 * self.rates.get(stage, self.tflops) * self.together(slots)

    def beside(self, stage: str) -> float:
        """Seconds of a step that come on top of its operations."""
        return 0.0 if stage in self.rates else self.step_seconds

    def shared(self, seconds: float, flop: float, slots: int, share: int) -> float:
        """How long what takes so many seconds alone, for so many operations, takes where each of
        its devices is shared by `share` attempts that are all as busy: as long as it would alone,
        or until the GPU has served all of them."""
        if share == 1:
            return seconds
        return max(seconds, share * self._served(seconds, flop, slots))

    def alone(self, seconds: float, flop: float, slots: int, share: int) -> float:
        """What `shared` is of, by what it came to."""
        if share == 1:
            return seconds
        served, least = seconds / share, min(seconds / share, self._operations(flop, slots))
        return min(seconds, max(served, (served - least) / DEVICE_SHARE + least))

    def _served(self, seconds: float, flop: float, slots: int) -> float:
        """For how long of them the GPU is taken."""
        busy = min(seconds, self._operations(flop, slots))
        return busy + DEVICE_SHARE * (seconds - busy)

    def _operations(self, flop: float, slots: int) -> float:
        return flop / (1e12 * self.tflops * self.together(slots))

    def together(self, slots: int) -> float:
        """How many times one slot's rate so many slots give: rises with each, to `scaling` x 4."""
        return slots / (1 + (1 / self.scaling - 1) / 3 * (slots - 1))


A100 = Machine()
CPU_THREAD = Machine(
    CPU_THREAD_TFLOPS, start_seconds=8.0, step_seconds=0.005, checkpoint_seconds=1.0
)


SCREENED_WINDOWS = 512  # that trying a mutant comes to, the refit with it


@dataclass(frozen=True)
class Work:
    """What a stage asks of a machine: `steps` of training with evaluations behind some of them, or
    without training one pass of `evaluation_flop`. tokens: that a step sees. before: steps of the
    stage that lie before this part of it."""

    steps: int
    step_flop: float
    evaluation_flop: float
    evaluations: tuple[int, ...]
    tokens: float
    before: int = 0

    @property
    def flop(self) -> float:
        """All of its operations."""
        return self.steps * self.step_flop + max(1, len(self.evaluations)) * self.evaluation_flop


def work(
    stage: Stage,
    genotype: Genotype,
    lineage: Lineage,
    backbone: Backbone,
    data: Data,
    volumes: Volumes,
    along: bool = False,
) -> Work:
    """What the stage asks for this candidate, by the operations that nasd.worker does. along: a
    teacher is computed with each batch, and taken for as large; one that has been asked before
    costs nothing here."""
    task = tasks.of(stage.task)
    tokens, masks = task.tokens(data, volumes), task.masks(data)
    looks = task.looks(volumes)
    forward = example_flop(task, genotype, lineage, backbone, tokens, masks, "none")
    if stage.train == "none":
        return Work(0, 0.0, (task.tested(volumes) + looks) * forward, (), 0.0)
    if stage.who == "new" and not new_modules(lineage):  # it goes past the stage
        return Work(0, 0.0, 0.0, (), 0.0)
    if stage.train == "new" and not new_modules(lineage):  # it is only evaluated
        return Work(0, 0.0, looks * forward, (), 0.0)
    schedule = Schedule.of(stage, task.examples(volumes))
    flop = example_flop(task, genotype, lineage, backbone, tokens, masks, stage.train)
    flop += along * forward
    return Work(
        schedule.steps,
        schedule.batch * flop,
        looks * forward,
        schedule.evaluation_steps(stage.evaluations),
        schedule.batch * tokens,
        schedule.before,
    )


def screening(
    stage: Stage, mutants: Sequence[Genotype], backbone: Backbone, data: Data, volumes: Volumes
) -> Work:
    """What trying mutants untrained asks for, by the task of the stage that they would climb first:
    a pass over held-out windows each, and a few over those by which it is refitted."""
    task = tasks.of(stage.task)
    tokens, masks = task.tokens(data, volumes), task.masks(data)
    flop = sum(
        example_flop(task, one, unchanged(one), backbone, tokens, masks, "none") for one in mutants
    )
    return Work(0, 0.0, SCREENED_WINDOWS * flop, (), 0.0)


@lru_cache(maxsize=8192)  # asked for again at each turn, of all who wait
def example_flop(
    task: tasks.Task,
    genotype: Genotype,
    lineage: Lineage,
    backbone: Backbone,
    tokens: float,
    masks: int | None,
    train: tasks.Trains,
) -> float:
    """Operations for one example: forward, and backward through what `train` asks for.

    A matrix product costs two operations a weight and token; its backward pass costs the same
    again for the gradient of the input, and once more for that of the weights. With `masks`, the
    head and the last block's queries, outputs and feed-forward networks see those tokens alone.
    Where only new modules train, the backward pass ends at the lowest of them, and only they have
    gradients of weights.
    """
    width = backbone.width
    modules: list[tuple[float, bool]] = []  # (forward, new), from the embeddings upwards
    for index, (block, origin) in enumerate(zip(genotype.blocks, lineage, strict=True)):
        last = index == len(genotype.blocks) - 1
        seen = masks if last and masks is not None else tokens
        inner = block.inner(width)
        attention = 4 * width * inner * tokens + (4 * width * inner + 4 * inner * tokens) * seen
        attention += convolutions_flop(block, width) * tokens
        modules.append((attention, origin.attention_new))
        modules += [
            (2 * weights_of_ffn(ffn, width) * seen, made.new)
            for ffn, made in zip(block.ffns, origin.ffns, strict=True)
        ]
    # As many full rows as the words' factors have entries: the head multiplies with those.
    rows = weights_of_words(genotype, backbone) / width
    head = task.head(width, rows, tokens if masks is None else masks)
    widened = 0 if genotype.rank is None else 2 * genotype.rank * width * tokens
    forward = widened + sum(cost for cost, _ in modules) + head
    match train:
        case "all":
            return 3 * forward
        case "head":
            return forward + 2 * head
        case "none":
            return forward
    lowest = next((index for index, (_, new) in enumerate(modules) if new), len(modules))
    inputs = sum(cost for cost, _ in modules[lowest:]) + head
    return forward + inputs + sum(cost for cost, new in modules if new)


def attempt_seconds(
    stage: Stage,
    genotype: Genotype,
    lineage: Lineage,
    backbone: Backbone,
    data: Data,
    volumes: Volumes,
    machine: Machine,
    checkpoint_minutes: float = 15.0,
    along: bool = False,
    share: int = 1,
) -> float:
    """How long an attempt at the stage takes on the slots that the stage asks for, undisturbed.
    share: how many attempts share each GPU, all of which are busy."""
    asked = work(stage, genotype, lineage, backbone, data, volumes, along)
    return Timeline.of(asked, machine, stage.name, stage.slots, checkpoint_minutes, share=share).end


def prepare_seconds(machine: Machine, mlm: MlmData | None, volumes: Volumes) -> float:
    sequences = volumes.mlm_train_sequences + volumes.mlm_evaluation_sequences
    length = 0 if mlm is None else mlm.tokens
    features = volumes.qa_train_features + volumes.qa_test_features
    tokens = sequences * length + features * volumes.qa_tokens
    for one in volumes.by_task.values() or (volumes,):
        tokens += (one.labelled_train + one.labelled_test) * one.labelled_tokens
    return machine.start_seconds + tokens / machine.prepare_tokens


def memory_gb(
    stage: Stage,
    genotype: Genotype,
    lineage: Lineage,
    backbone: Backbone,
    tokens: int,
    slots: int,
    precision: str,
    halvings: int = 0,
) -> float:
    """Roughly what a slot's memory has to hold: 4 bytes a weight, 4 + 8 for the gradient and
    AdamW's two moments of each that trains, and what the backward pass of a micro-batch needs."""
    weights = parameters(genotype, backbone)
    width = backbone.width
    micro = halved(share_of(stage, slots), halvings)
    kept = 0  # numbers a token leaves behind in all blocks
    new = 0
    for block, origin in zip(genotype.blocks, lineage, strict=True):
        kept += (
            6 * width
            + 4 * block.inner(width)
            + sum(2 * sum(ffn.sizes) + 4 * width for ffn in block.ffns)
        )
        new += weights_of_attention(block, width) * origin.attention_new
        new += sum(
            weights_of_ffn(ffn, width)
            for ffn, made in zip(block.ffns, origin.ffns, strict=True)
            if made.new
        )
    trained = {"all": weights, "new": new, "head": width**2, "none": 0}[stage.train]
    backward = 0.0 if stage.train == "none" else float(micro * tokens * kept)
    return (4 * weights + 12 * trained + backward * (2 if precision == "bfloat16" else 4)) / 1e9


@dataclass(frozen=True)
class Timeline:
    """When an attempt is where, in seconds since it began. first: the step it resumes at."""

    start: float
    per_step: float
    first: int
    steps: int
    tail: float  # of a stage without steps: all of its work
    every: float  # seconds of work between checkpoints
    pause: float  # for a checkpoint

    @classmethod
    def of(
        cls,
        asked: Work,
        machine: Machine,
        stage: str,
        slots: int,
        checkpoint_minutes: float,
        first: int = 0,
        share: int = 1,
    ) -> "Timeline":
        """share: how many attempts share each of the slots' devices, all of which are busy."""
        flops = machine.flops(stage, slots)
        evaluation = machine.shared(
            *(asked.evaluation_flop / flops, asked.evaluation_flop, slots, share)
        )
        per_step = 0.0
        if asked.steps:
            looks = len(asked.evaluations) * evaluation / asked.steps
            step = asked.step_flop / flops + machine.beside(stage)
            per_step = machine.shared(step, asked.step_flop, slots, share) + looks
        return cls(
            start=machine.start_seconds,
            per_step=per_step,
            first=min(first, asked.steps),
            steps=asked.steps,
            tail=0.0 if asked.steps else evaluation,
            every=60 * checkpoint_minutes,
            pause=machine.checkpoint_seconds,
        )

    @property
    def end(self) -> float:
        return self.when(self.steps) + self.tail

    def when(self, step: int) -> float:
        """The time at which so many steps are done, the pauses for checkpoints included."""
        busy = max(0, step - self.first) * self.per_step
        return self.start + busy + max(0, math.ceil(busy / self.every) - 1) * self.pause

    def done(self, elapsed: float) -> int:
        """How many steps are done after so many seconds."""
        if not self.steps or elapsed <= self.start:
            return self.first
        cycles, rest = divmod(elapsed - self.start, self.every + self.pause)
        busy = cycles * self.every + min(rest, self.every)
        return min(self.steps, self.first + int(busy / self.per_step + FLOAT_STEP))

    def checkpoints(self, elapsed: float) -> list[int]:
        """The steps of the newest two checkpoints that are whole after so many seconds."""
        if not self.steps or elapsed <= self.start:
            return []
        whole = int((elapsed - self.start) / (self.every + self.pause) + FLOAT_STEP)
        most = math.ceil((self.steps - self.first) * self.per_step / self.every) - 1
        numbers = range(max(1, min(whole, most) - 1), min(whole, most) + 1)
        steps = {self.first + int(n * self.every / self.per_step + FLOAT_STEP) for n in numbers}
        return sorted(step for step in steps if step > self.first)
