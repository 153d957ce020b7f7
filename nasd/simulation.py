"""A search without training: what it would find (made up), and how long it would take (worked out).

Four parts: a surrogate for what training gives, a cost model for the time it takes, a launcher
whose workers are nothing but the files that real ones would write, and a loop that takes virtual
time from one event to the next. All else is the real thing: tick, policy, store, protocol. So a
search of weeks passes in seconds, and every fault can be had at will.

The surrogate is no prediction: it is as plausible as needed for a search to take its usual course.
The cost model is meant to be believed, as far as its inputs are right; nasd.forecast rests on it.
"""

import contextlib
import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, lru_cache
from itertools import pairwise
from pathlib import Path
from statistics import mean
from typing import Any, Literal

from nasd.config import MlmData, Stage
from nasd.errors import NasdError
from nasd.genotype import (
    Backbone,
    BlockLineage,
    FeedForward,
    Genotype,
    Lineage,
    distance,
    new_modules,
    parameters,
)
from nasd.lifecycle import AttemptState, State
from nasd.policy import BACKOFF_SECONDS
from nasd.protocol import (
    AttemptFolder,
    Heartbeat,
    Outcome,
    Prepared,
    Spec,
    read,
    read_metrics,
    sync_folder,
    write,
    write_atomically,
)
from nasd.snapshot import Snapshot
from nasd.streams import stream
from nasd.tick import Tick

# -- the surrogate: what training would give -----------------------------------------------------

# Masked-LM perplexities of BERT with 768 wide blocks, by number of blocks: 5.84 with 3, 4.68 with
# 6, 3.99 with 12 (Devlin et al. 2019, Table 6). Through their logarithms goes
# loss = 0.98 + 0.56 x (parameters of the blocks / those of 6 blocks) ^ -0.48.
BASELINE_LOSS = 1.543
CAPACITY_LOSS, CAPACITY_EXPONENT = 0.561, -0.48
BEYOND = 0.5  # what is above the baseline's capacity would want a longer training than a ladder's
HEADS_LOSS = 0.0565  # for half as many heads (there: 5.24 with 3 heads, 4.68 with 12)
LUCK = 0.025  # an architecture's own, one standard deviation
# New modules in a trained network. Invented, so that 4 + 8 epochs do not suffice (thesis 6.1).
FRESH_LOSS = 2.0  # above the asymptote where all modules are new, before they have trained
FROZEN_LOSS = 0.25  # of it stays until the others may train, too
DECAY_STEPS, DECAY_EXPONENT = 100.0, -0.35
HEAD_LOSS, HEAD_STEPS = 8.0, 20.0  # a fresh head: near ln(30522) at first, and quickly trained
EVALUATION_NOISE = 0.004  # 4096 sequences tell a loss to about this
STEP_NOISE = 0.02
# Question answering. The baseline's score is the thesis's (5.1: EM 62.0, F1 75.9); the slope is
# invented; the spread is set so that loss and score of random candidates correlate by about -0.8
# (thesis 6.3: -0.77 and -0.79).
BASELINE_QUALITY, BASELINE_GAP = 68.95, 13.9
QUALITY_SLOPE, QUALITY_SPREAD = 0.58, 0.021  # relative: 40 points a nat, and 1.4 points
ANSWER_LOSS = 1.2  # of the baseline
ANSWER_START, ANSWER_STEPS = 5.9, 30.0


@dataclass(frozen=True)
class Trained:
    """How many steps a model has trained on its way: its head, its new modules, and all of it."""

    head: int = 0
    new: int = 0
    all: int = 0

    def after(self, train: str, steps: int) -> "Trained":
        return replace(self, **{train: getattr(self, train) + steps}) if train != "none" else self


@dataclass(frozen=True)
class Surrogate:
    """What the training of a candidate would give: a pure function of the architecture, the
    backbone, the baseline, the experiment's seed, the stage, and the steps trained.

    With r for the capacity relative to the baseline's, u for the share of modules that are not the
    baseline's, d(s) = (1 + s / 100) ^ -0.35, and n and a for the steps that new modules and that
    all of the model have trained:

        asymptote = 1.543 + 0.561 (r ^ -0.48 - 1)  [half of the second term where r > 1]
                    + 0.0565 x mean over the blocks of log2(baseline's heads / heads)+ + luck
        MLM loss  = asymptote + u (2 d(n + a) + 0.25 d(a)) + noise
        quality   = 68.95 exp(-0.58 (MLM loss - 1.543)) (1 + spread)
        F1 - EM   = 13.9 x quality (100 - quality) / (its value at 68.95)

    luck, noise and spread are normal, and drawn from streams named by the architecture's hash.
    diverging: the share of candidates whose training goes wrong, whenever it is tried.
    """

    backbone: Backbone
    baseline: Genotype
    seed: int
    diverging: float = 0.0

    def asymptote(self, genotype: Genotype) -> float:
        """The MLM loss that a candidate would reach with all the training in the world."""
        return _traits(self, genotype).asymptote

    def novelty(self, genotype: Genotype) -> float:
        """The share of its modules that are not the baseline's, from 0 to 1."""
        return _traits(self, genotype).novelty

    def mlm_loss(self, genotype: Genotype, trained: Trained, fresh_head: bool = False) -> float:
        """The evaluation loss without its noise. fresh_head: the seed came without an MLM head."""
        both, whole = _decay(trained.new + trained.all), _decay(trained.all)
        excess = self.novelty(genotype) * (FRESH_LOSS * both + FROZEN_LOSS * whole)
        if fresh_head:
            excess += HEAD_LOSS / (1 + (trained.head + trained.all) / HEAD_STEPS)
        return self.asymptote(genotype) + excess

    def evaluation_loss(
        self, genotype: Genotype, stage: str, step: int, trained: Trained, fresh_head: bool = False
    ) -> float:
        """The loss that the evaluation after `step` of `stage` shows."""
        noise = self._normal(genotype, f"evaluation/{stage}", step, EVALUATION_NOISE)
        return max(0.01, self.mlm_loss(genotype, trained, fresh_head) + noise)

    def step_loss(
        self, genotype: Genotype, stage: str, step: int, trained: Trained, fresh_head: bool = False
    ) -> float:
        """The training loss around `step` of `stage`."""
        noise = self._normal(genotype, f"step/{stage}", step, STEP_NOISE)
        return max(0.01, self.mlm_loss(genotype, trained, fresh_head) + noise)

    def quality(self, genotype: Genotype, trained: Trained) -> float:
        """(F1 + EM) / 2 in percent, of a model fine-tuned after so much training."""
        worse = self.mlm_loss(genotype, trained) - BASELINE_LOSS
        spread = self._normal(genotype, "quality", 0, QUALITY_SPREAD)
        return min(99.0, max(1.0, BASELINE_QUALITY * math.exp(-QUALITY_SLOPE * worse + spread)))

    def answer_loss(
        self, genotype: Genotype, stage: str, step: int | None, trained: Trained
    ) -> float:
        """The loss of question answering after `step` of fine-tuning; None: at its end."""
        final = ANSWER_LOSS * (100 - self.quality(genotype, trained)) / (100 - BASELINE_QUALITY)
        if step is None:
            return final
        left = max(0.0, ANSWER_START - final) / (1 + step / ANSWER_STEPS)
        return max(0.01, final + left + self._normal(genotype, f"answer/{stage}", step, STEP_NOISE))

    def scores(self, genotype: Genotype, trained: Trained) -> dict[str, float]:
        """exact_match and f1 in percent."""
        quality = self.quality(genotype, trained)
        usual = BASELINE_QUALITY * (100 - BASELINE_QUALITY)
        gap = BASELINE_GAP * quality * (100 - quality) / usual
        return {"exact_match": quality - gap / 2, "f1": quality + gap / 2}

    def diverges(self, genotype: Genotype) -> float | None:
        """Where in its first training a candidate goes wrong for good, as a share of the steps;
        None if it does not. By nature: a retry ends no better."""
        if genotype == self.baseline:
            return None
        draw = stream(self.seed, 0, f"surrogate/{genotype.hash}/diverges")
        return draw.uniform(0.05, 0.95) if draw.random() < self.diverging else None

    def _normal(self, genotype: Genotype, purpose: str, index: int, deviation: float) -> float:
        if genotype == self.baseline and purpose == "quality":
            return 0.0  # the baseline is what all others are measured by
        name = f"surrogate/{_traits(self, genotype).hash}/{purpose}"
        return stream(self.seed, 0, name, index).gauss(0.0, deviation)


@dataclass(frozen=True)
class _Traits:
    hash: str
    asymptote: float
    novelty: float


@lru_cache(maxsize=1024)
def _traits(surrogate: Surrogate, genotype: Genotype) -> _Traits:
    """What all of a candidate's curves have in common."""
    baseline, name = surrogate.baseline, genotype.hash
    ratio = _capacity(genotype, surrogate.backbone) / _capacity(baseline, surrogate.backbone)
    short = CAPACITY_LOSS * (ratio**CAPACITY_EXPONENT - 1)
    usual = mean(block.heads for block in baseline.blocks)
    fewer = mean(max(0.0, math.log2(usual / block.heads)) for block in genotype.blocks)
    luck = stream(surrogate.seed, 0, f"surrogate/{name}/luck").gauss(0.0, LUCK)
    return _Traits(
        hash=name,
        asymptote=BASELINE_LOSS
        + (short if ratio < 1 else BEYOND * short)
        + HEADS_LOSS * fewer
        + (0.0 if genotype == baseline else luck),
        novelty=min(1.0, distance(genotype, baseline) / _modules(genotype)),
    )


def _decay(steps: int) -> float:
    """What is left, after so many steps, of what training can take away."""
    return float((1 + steps / DECAY_STEPS) ** DECAY_EXPONENT)


def _modules(genotype: Genotype) -> int:
    return sum(1 + len(block.ffns) for block in genotype.blocks)


def _capacity(genotype: Genotype, backbone: Backbone) -> float:
    """Weights of the blocks; a block's second and third feed-forward network count half: width
    and depth inside one block give less than more blocks."""
    total = 0.0
    for block in genotype.blocks:
        sizes = sorted((_weights(ffn, backbone.width) for ffn in block.ffns), reverse=True)
        total += 4 * backbone.width**2 + sizes[0] + sum(sizes[1:]) / 2
    return total


def _weights(ffn: FeedForward, width: int) -> int:
    return sum(into * out for into, out in pairwise((width, *ffn.sizes, width)))


# -- the cost model: how long training would take ------------------------------------------------

# 312 TFLOP/s are the peak of an A100 in bfloat16; a good harness sustains about 24 % of it with
# Hugging Face's BERT-base, which has the blocks of DistilBERT.
A100_TFLOPS = 75.0
# A thread on a server core with AVX-512; half as fast again in bfloat16 (both measured).
CPU_THREAD_TFLOPS, CPU_BFLOAT16 = 0.05, 1.5
LOSS_FEATURES = 512  # of the test part, at each evaluation of fine-tuning
FLOAT_STEP = 1e-6  # of a step: what differences of instants are off by
FEATURE_TOKENS = 180.0  # SQuAD's features are 176 long on average; a little padding is left


@dataclass(frozen=True)
class Volumes:
    """How much data there is. qa_tokens: of a feature as it is computed, on average."""

    mlm_train_sequences: int
    mlm_evaluation_sequences: int
    qa_train_questions: int
    qa_test_questions: int
    qa_train_features: int
    qa_test_features: int
    qa_tokens: float = FEATURE_TOKENS


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

    def together(self, slots: int) -> float:
        """How many times one slot's rate so many slots give: rises with each, to `scaling` x 4."""
        return slots / (1 + (1 / self.scaling - 1) / 3 * (slots - 1))


A100 = Machine()
CPU_THREAD = Machine(
    CPU_THREAD_TFLOPS, start_seconds=8.0, step_seconds=0.005, checkpoint_seconds=1.0
)


@dataclass(frozen=True)
class Work:
    """What a stage asks of a machine: `steps` of training with evaluations behind some of them, or
    without training one pass of `evaluation_flop`. tokens: that a step sees."""

    steps: int
    step_flop: float
    evaluation_flop: float
    evaluations: tuple[int, ...]
    tokens: float


def work(
    stage: Stage,
    genotype: Genotype,
    lineage: Lineage,
    backbone: Backbone,
    mlm: MlmData,
    volumes: Volumes,
) -> Work:
    """What the stage asks for this candidate, by the operations that nasd.worker does."""
    is_mlm = stage.task == "mlm"
    tokens = float(mlm.tokens) if is_mlm else volumes.qa_tokens
    masks = max(1, round(mlm.mask_share * (mlm.tokens - 2))) if is_mlm else None
    examples = volumes.mlm_train_sequences if is_mlm else volumes.qa_train_features
    looks = (
        volumes.mlm_evaluation_sequences if is_mlm else min(LOSS_FEATURES, volumes.qa_test_features)
    )
    forward = example_flop(genotype, lineage, backbone, tokens, masks, "none")
    if stage.train == "none":
        return Work(0, 0.0, (volumes.qa_test_features + looks) * forward, (), 0.0)
    if stage.train == "new" and not new_modules(lineage):  # it is only evaluated
        return Work(0, 0.0, looks * forward, (), 0.0)
    batch, per_epoch, steps = schedule(stage, examples)
    flop = example_flop(genotype, lineage, backbone, tokens, masks, stage.train)
    return Work(
        steps,
        batch * flop,
        looks * forward,
        evaluation_steps(stage, per_epoch, steps),
        batch * tokens,
    )


def example_flop(
    genotype: Genotype,
    lineage: Lineage,
    backbone: Backbone,
    tokens: float,
    masks: int | None,
    train: Literal["new", "all", "head", "none"],
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
        attention = 4 * width**2 * tokens + (4 * width**2 + 4 * width * tokens) * seen
        modules.append((attention, origin.attention_new))
        modules += [
            (2 * _weights(ffn, width) * seen, made != "kept")
            for ffn, made in zip(block.ffns, origin.ffns, strict=True)
        ]
    if masks is None:
        head = 4 * width * tokens
    else:
        head = masks * (2 * width**2 + 2 * width * backbone.vocab_size)
    forward = sum(cost for cost, _ in modules) + head
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


def schedule(stage: Stage, examples: int) -> tuple[int, int, int]:
    """(batch, steps of an epoch, steps), as nasd.worker.train deals them out."""
    assert stage.epochs is not None
    batch = min(stage.batch, examples)
    per_epoch = examples // batch
    return batch, per_epoch, max(1, round(stage.epochs * per_epoch))


def evaluation_steps(stage: Stage, per_epoch: int, steps: int) -> tuple[int, ...]:
    """After how many steps nasd.worker.train evaluates, in order."""
    share = per_epoch / min(stage.evaluations, per_epoch)
    found = []
    for number in range(1, int(steps / share) + 1):
        step = math.ceil(number * share)
        while int(step / share) < number:  # where a float is off by its last bit
            step += 1
        while int((step - 1) / share) >= number:
            step -= 1
        found.append(step)
    return tuple(sorted({*(step for step in found if step <= steps), steps}))


def attempt_seconds(
    stage: Stage,
    genotype: Genotype,
    lineage: Lineage,
    backbone: Backbone,
    mlm: MlmData,
    volumes: Volumes,
    machine: Machine,
    checkpoint_minutes: float = 15.0,
) -> float:
    """How long an attempt at the stage takes on the slots that the stage asks for, undisturbed."""
    asked = work(stage, genotype, lineage, backbone, mlm, volumes)
    return Timeline.of(asked, machine, stage.name, stage.slots, checkpoint_minutes).end


def prepare_seconds(machine: Machine, mlm: MlmData, volumes: Volumes) -> float:
    sequences = volumes.mlm_train_sequences + volumes.mlm_evaluation_sequences
    features = volumes.qa_train_features + volumes.qa_test_features
    tokens = sequences * mlm.tokens + features * volumes.qa_tokens
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
    share = max(1, stage.batch // slots)
    micro = max(1, (min(stage.micro_batch or share, share)) >> halvings)
    kept = 0  # numbers a token leaves behind in all blocks
    new = 0
    for block, origin in zip(genotype.blocks, lineage, strict=True):
        kept += 10 * width + sum(2 * sum(ffn.sizes) + 4 * width for ffn in block.ffns)
        new += 4 * width**2 * origin.attention_new
        new += sum(
            _weights(ffn, width)
            for ffn, made in zip(block.ffns, origin.ffns, strict=True)
            if made != "kept"
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
    ) -> "Timeline":
        flops = machine.flops(stage, slots)
        evaluation = asked.evaluation_flop / flops
        per_step = 0.0
        if asked.steps:
            looks = len(asked.evaluations) * evaluation / asked.steps
            per_step = asked.step_flop / flops + machine.beside(stage) + looks
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


# -- the launcher --------------------------------------------------------------------------------

Kind = Literal["succeed", "lost", "stall", "diverge", "out_of_memory", "error", "machine"]
ECC = "RuntimeError: CUDA error: uncorrectable ECC error encountered"
KEPT_CHECKPOINTS = 2
TRAIN_LINES = 200  # of a stage in metrics.jsonl, at most: less than a real worker writes
MARKER = "simulated.json"  # in an attempt's folder, once it has ended


@dataclass(frozen=True)
class Fate:
    """How an attempt ends, and at which share of its work.

    lost: gone without an outcome. stall: the heartbeat stops, and it never ends by itself.
    machine: lost, with the machine's word for it in worker.log. out_of_memory comes at once.
    """

    kind: Kind = "succeed"
    at: float = 0.5


def all_succeed(spec: Spec, before: int) -> Fate:
    return Fate()


@dataclass
class _Job:
    """One attempt, all of it from its note and its spec. ends: when its fate strikes."""

    note: Mapping[str, Any]
    spec: Spec
    folder: AttemptFolder
    asked: Work
    timeline: Timeline
    surrogate: Surrogate
    ends: float
    logged: int  # the last step that metrics.jsonl tells of

    @property
    def began(self) -> float:
        return float(self.note["began"])

    @property
    def kind(self) -> Kind:
        kind: Kind = self.note["fate"]
        return kind

    @cached_property
    def genotype(self) -> Genotype:
        return Genotype.from_json(self.spec.genotype)

    @property
    def trained(self) -> Trained:
        """Before this stage."""
        return Trained(**self.note["trained"])

    def trained_after(self, steps: int) -> Trained:
        stage = self.spec.stage
        if stage is None or stage.task != "mlm":
            return self.trained
        return self.trained.after(stage.train, steps)


class SimulatedLauncher:
    """A launcher whose workers leave the files of real ones, and take the time of real ones.

    Nothing runs. Whenever somebody looks, what should have happened up to now is written: the
    heartbeat, metrics.jsonl, checkpoints (a directory with a progress.json and a manifest.json of
    checksums), result/ and outcome.json. What will happen follows from the note that `start`
    returns, the files in the attempt's folder, and the clock; so another instance takes over what
    an earlier one has started (a killed daemon's, with a cluster's queue behind it). With
    `leashed`, attempts die with the instance that started them, as they do with nasd.slots' local
    launcher: they leave no outcome, and their progress up to the last look.

    fate: what becomes of an attempt, given its spec and how many came before it at this stage.
    Asked once, when it starts. Candidates that diverge (`diverging`, see Surrogate) or do not fit
    into `machine.memory_gb` do so whatever their fate, whenever they are tried. metrics: whether
    metrics.jsonl is written, which takes half of the time that a simulation takes. wall: what the
    clock on the wall shows, where that is not `clock`: workers write it down, and no more.

    Raises AssertionError where a slot would be used twice at once.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        backbone: Backbone,
        baseline: Genotype,
        volumes: Volumes,
        machine: Machine | None = None,
        fate: Callable[[Spec, int], Fate] = all_succeed,
        *,
        has_mlm_head: bool = True,
        diverging: float = 0.0,
        leashed: bool = False,
        metrics: bool = True,
        wall: Callable[[], float] | None = None,
    ) -> None:
        self.clock = clock
        self._wall = wall or clock
        self.volumes = volumes
        self.machine = machine or Machine()
        self._surrogate = Surrogate(backbone, baseline, 0, diverging)
        self._fate = fate
        self._has_mlm_head = has_mlm_head
        self._leashed = leashed
        self._metrics = metrics
        self._asked: set[str] = set()  # to stop, before their notes were seen
        self._jobs: dict[str, _Job] = {}  # that have not ended, by token

    # -- what every launcher does --------------------------------------------------------------

    def start(self, folder: AttemptFolder, slots: Sequence[str], token: str) -> dict[str, Any]:
        spec = read(Spec, folder.spec)
        now = self.clock()
        trained = self._trained(spec)
        first = newest_checkpoint((folder.checkpoints, *map(Path, spec.resume))) or 0
        note: dict[str, Any] = {
            "token": token,
            "folder": str(folder.path),
            "slots": list(slots),
            "began": now,
            "first": first,
            "trained": asdict(trained),
            "fate": "succeed",
            "strikes": 0.0,
        }
        job = self._job(note)
        kind, strikes = self._strike(job, self._fate(spec, len(spec.resume)))
        note |= {"fate": kind, "strikes": strikes}
        self._hold(self._job(note))
        return note

    def alive(self, process: Mapping[str, Any]) -> bool:
        token = process["token"]
        if token not in self._jobs:
            if self._leashed or self._ended(process):
                return False
            try:
                self._hold(self._job(process))
            except NasdError:  # its folder is gone, and so is all that it was
                return False
            if token in self._asked:
                self.stop(token)
        return token in self._jobs and self._look(self._jobs[token])

    def stop(self, token: str) -> None:
        job = self._jobs.get(token)
        if job is None:
            self._asked.add(token)
            return
        if not self._look(job) or self._stalled(job):
            return
        now = self.clock()
        stage = job.spec.stage
        if stage is None or not job.timeline.steps:
            outcome = Outcome(verdict="stopped", message="asked to stop; this stage begins anew")
        else:
            step = job.timeline.done(now - job.began)
            if step > job.timeline.first:
                save_checkpoint(job.folder.checkpoints, step)
            of = f"after step {step} of {job.timeline.steps}"
            outcome = Outcome(verdict="stopped", message=f"asked to stop {of}")
        self._leave(job, outcome, now)
        self._end(job, now)

    def owns(self, pid: int) -> bool | None:
        return None  # there is no process

    def clear(self, token: str) -> int:
        job = self._jobs.get(token)
        if job is None or not self._look(job):
            return 0
        self._end(job, self.clock())
        return 1

    # -- for the loop --------------------------------------------------------------------------

    def look(self) -> None:
        """Brings about what should have happened up to now."""
        for job in list(self._jobs.values()):
            self._look(job)

    def next_event(self) -> float | None:
        """When the next of the attempts ends or stalls; None: never."""
        ends = [job.ends for job in self._jobs.values() if not self._stalled(job)]
        return min(ends, default=None)

    def stalls(self) -> bool:
        """Whether there is an attempt that has to be noticed as stalled."""
        return any(self._stalled(job) for job in self._jobs.values())

    # -- inside --------------------------------------------------------------------------------

    def _job(self, note: Mapping[str, Any]) -> _Job:
        folder = AttemptFolder(Path(note["folder"]))
        spec = read(Spec, folder.spec)
        surrogate = replace(self._surrogate, seed=spec.seed)
        slots = len(note["slots"])
        if spec.stage is None:
            asked = Work(0, 0.0, 0.0, (), 0.0)
            seconds = prepare_seconds(self.machine, spec.data.mlm, self.volumes)
            start = self.machine.start_seconds
            timeline = Timeline(start, 0.0, 0, 0, max(0.0, seconds - start), 1.0, 0.0)
        else:
            genotype = Genotype.from_json(spec.genotype)
            lineage = tuple(BlockLineage.from_json(block) for block in spec.lineage)
            asked = work(
                spec.stage, genotype, lineage, surrogate.backbone, spec.data.mlm, self.volumes
            )
            timeline = Timeline.of(
                asked,
                self.machine,
                spec.stage.name,
                slots,
                spec.checkpoint_minutes,
                note["first"],
            )
        lines, read_upto = read_metrics(folder.metrics)
        with contextlib.suppress(FileNotFoundError):
            os.truncate(folder.metrics, read_upto)  # half a line, of a kill
        return _Job(
            note=note,
            spec=spec,
            folder=folder,
            asked=asked,
            timeline=timeline,
            surrogate=surrogate,
            ends=note["began"] + note["strikes"],
            logged=max((line["step"] for line in lines), default=timeline.first),
        )

    def _strike(self, job: _Job, fate: Fate) -> tuple[Kind, float]:
        """What ends the attempt, and how many seconds after its beginning."""
        spec, stage, timeline = job.spec, job.spec.stage, job.timeline
        if stage is not None and self.machine.memory_gb is not None:
            lineage = tuple(BlockLineage.from_json(block) for block in spec.lineage)
            need = memory_gb(
                stage,
                job.genotype,
                lineage,
                job.surrogate.backbone,
                spec.data.mlm.tokens if stage.task == "mlm" else spec.data.qa.tokens,
                len(job.note["slots"]),
                spec.precision,
                spec.halvings,
            )
            if need > self.machine.memory_gb:
                fate = Fate("out_of_memory")
        if fate.kind == "succeed" and stage is not None and timeline.steps:
            share = job.surrogate.diverges(job.genotype)
            if share is not None and stage.task == "mlm" and not job.trained.new + job.trained.all:
                step = max(1, round(share * timeline.steps))
                if step > timeline.first:
                    return "diverge", timeline.when(step)
        if fate.kind == "succeed":
            return fate.kind, timeline.end
        share = 0.0 if fate.kind == "out_of_memory" else fate.at
        return fate.kind, timeline.start + share * (timeline.end - timeline.start)

    def _trained(self, spec: Spec) -> Trained:
        """How far the weights that an attempt starts from have trained for this candidate: what
        is inherited from a parent is measured by its distance from the baseline instead."""
        if spec.weights is None or spec.inherits:
            return Trained()
        try:
            said = json.loads((Path(spec.weights) / "model.json").read_text())
            return Trained(**said["trained"])
        except (OSError, ValueError, KeyError, TypeError):
            return Trained()

    def _hold(self, job: _Job) -> None:
        now = self.clock()
        for other in self._jobs.values():
            shared = set(job.note["slots"]) & set(other.note["slots"])
            over = now >= other.ends and other.kind != "stall"
            assert not shared or over, f"{job.folder.path} and {other.folder.path} share {shared}"
        self._jobs[job.note["token"]] = job

    def _stalled(self, job: _Job) -> bool:
        return job.kind == "stall" and self.clock() >= job.ends

    def _look(self, job: _Job) -> bool:
        """Writes what the attempt should have written by now; whether it still runs."""
        now = self.clock()
        at = min(now, job.ends)
        elapsed = at - job.began
        step = job.timeline.done(elapsed)
        for reached in job.timeline.checkpoints(elapsed):
            if not (job.folder.checkpoints / f"step-{reached:09d}").exists():
                save_checkpoint(job.folder.checkpoints, reached)
        self._tell(job, step)
        if elapsed < job.timeline.start:
            doing = "starting"
        elif job.spec.stage is None:
            doing = "tokenising"
        else:
            doing = "training" if job.timeline.steps else "evaluating"
        beat = Heartbeat(doing=doing, step=step, steps=job.timeline.steps, at=self._shown(at))
        temporary = job.folder.heartbeat.with_name(".heartbeat.tmp")
        temporary.write_text(beat.model_dump_json())
        temporary.replace(job.folder.heartbeat)
        if now < job.ends or job.kind == "stall":
            return True
        if job.kind == "machine":
            with job.folder.log.open("a", encoding="utf-8") as log:
                log.write(f"{ECC}\n")
        elif job.kind != "lost":
            self._leave(job, self._outcome(job), job.ends)
        self._end(job, job.ends)
        return False

    def _tell(self, job: _Job, upto: int) -> None:
        """The lines of metrics.jsonl behind the last one written, up to a step."""
        stage = job.spec.stage
        if stage is None or upto <= job.logged or not self._metrics:
            return
        thinned = job.spec.log_steps * math.ceil(
            job.timeline.steps / (job.spec.log_steps * TRAIN_LINES)
        )
        lines: list[tuple[int, str, dict[str, Any]]] = []
        for step in range(job.logged // thinned * thinned + thinned, upto + 1, thinned):
            said = {
                "loss": self._loss(job, stage, step, evaluation=False),
                "gradient_norm": 1.0,
                "learning_rate": stage.learning_rate,
                "tokens_per_second": job.asked.tokens / job.timeline.per_step,
            }
            lines.append((step, "train", said))
        for step in job.asked.evaluations:
            if job.logged < step <= upto:
                loss = self._loss(job, stage, step, evaluation=True)
                lines.append((step, "evaluation", {"loss": loss}))
        lines.sort(key=lambda line: (line[0], line[1] == "evaluation"))
        with job.folder.metrics.open("a", encoding="utf-8") as file:
            for step, kind, said in lines:
                at = self._shown(job.began + job.timeline.when(step))
                file.write(json.dumps({"kind": kind, "step": step, **said, "at": at}) + "\n")
        job.logged = upto

    def _loss(self, job: _Job, stage: Stage, step: int, evaluation: bool) -> float:
        if stage.task == "qa":
            return job.surrogate.answer_loss(job.genotype, stage.name, step, job.trained)
        shown = job.surrogate.evaluation_loss if evaluation else job.surrogate.step_loss
        trained = job.trained_after(step)
        return shown(job.genotype, stage.name, step, trained, stage.train == "head")

    def _outcome(self, job: _Job) -> Outcome:
        stage, steps = job.spec.stage, job.timeline.steps
        match job.kind:
            case "diverge":
                step = job.timeline.done(job.ends - job.began)
                return Outcome(verdict="diverged", message=f"the loss is nan at step {step}")
            case "out_of_memory":
                return Outcome(verdict="out_of_memory", message="CUDA out of memory (simulated)")
            case "error":
                return Outcome(verdict="error", message="RuntimeError: simulated")
        said = {
            "candidate": job.spec.candidate,
            "hash": job.genotype.hash,
            "trained": asdict(job.trained_after(steps)),
        }
        job.folder.result.mkdir(exist_ok=True)
        write_atomically(job.folder.result / "model.json", json.dumps(said).encode())
        if stage is None:
            volumes = asdict(self.volumes)
            del volumes["qa_tokens"]
            prepared = Prepared(
                mlm_cache=str(Path(job.spec.cache) / "mlm-simulated"),
                qa_cache=str(Path(job.spec.cache) / "qa-simulated"),
                has_mlm_head=self._has_mlm_head,
                parameters=parameters(job.genotype, job.surrogate.backbone),
                **volumes,
            )
            return Outcome(verdict="succeeded", has_result=True, prepared=prepared)
        if stage.train == "none":
            loss = job.surrogate.answer_loss(job.genotype, stage.name, None, job.trained)
            scores = job.surrogate.scores(job.genotype, job.trained)
            return Outcome(verdict="succeeded", metrics={"loss": loss, **scores}, has_result=True)
        curve = [
            (step, self._loss(job, stage, step, evaluation=True))
            for step in job.asked.evaluations or (0,)  # nothing to train: evaluated once
        ]
        return Outcome(
            verdict="succeeded",
            metrics={"loss": curve[-1][1]},
            curve=curve,
            steps=steps,
            has_result=True,
        )

    def _leave(self, job: _Job, outcome: Outcome, at: float) -> None:
        """Writes the outcome, as of a virtual instant."""
        seconds = max(0.0, at - job.began - job.timeline.start)  # a worker counts from there on
        outcome = outcome.model_copy(update={"token": job.note["token"], "seconds": seconds})
        write(outcome, job.folder.outcome)
        os.utime(job.folder.outcome, (self._shown(at), self._shown(at)))

    def _shown(self, at: float) -> float:
        """An instant as it is written down."""
        return at + self._wall() - self.clock()

    def _end(self, job: _Job, at: float) -> None:
        said = json.dumps({"token": job.note["token"], "ended": at})
        write_atomically(job.folder.path / MARKER, said.encode())
        del self._jobs[job.note["token"]]

    def _ended(self, process: Mapping[str, Any]) -> bool:
        """Whether the attempt of a note has ended, by this instance's doing or another's."""
        try:
            said = json.loads((Path(process["folder"]) / MARKER).read_text())
            return bool(said["token"] == process["token"])
        except (OSError, ValueError, KeyError, TypeError):
            return False


def save_checkpoint(folder: Path, step: int) -> Path:
    """A checkpoint as nasd.worker.checkpoint lays it out, without any weights; keeps two."""
    final, temporary = folder / f"step-{step:09d}", folder / f".step-{step:09d}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    progress = json.dumps({"step": step}).encode()
    (temporary / "progress.json").write_bytes(progress)
    manifest = {"progress.json": hashlib.sha256(progress).hexdigest()}
    (temporary / "manifest.json").write_text(json.dumps(manifest))
    if final.exists():
        shutil.rmtree(final)
    temporary.rename(final)
    sync_folder(folder)
    for old in _by_step([folder])[KEPT_CHECKPOINTS:]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def newest_checkpoint(folders: Iterable[Path]) -> int | None:
    """The step of the newest whole checkpoint below any of the folders."""
    for path in _by_step(folders):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
            manifest = json.loads((path / "manifest.json").read_text())
            for name, digest in manifest.items():
                if hashlib.sha256((path / name).read_bytes()).hexdigest() != digest:
                    raise ValueError("checksum")
            return int(json.loads((path / "progress.json").read_text())["step"])
    return None


def _by_step(folders: Iterable[Path]) -> list[Path]:
    found = [path for folder in folders if folder.is_dir() for path in folder.glob("step-*")]
    return sorted(found, key=lambda path: path.name, reverse=True)


# -- the loop ------------------------------------------------------------------------------------

IDLE_TURNS = 1000


class VirtualClock:
    """Time that passes only when told to, in seconds, in whole steps of 1/1024: so differences of
    instants are exact, and nothing ends a rounding error after it has ended."""

    def __init__(self, now: float = 1e6) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def advance_to(self, time: float) -> None:
        assert time >= self.now, f"time does not run backwards, from {self.now} to {time}"
        self.now = math.ceil(time * 1024) / 1024


def run(
    tick: Tick,
    clock: VirtualClock,
    launcher: SimulatedLauncher,
    *,
    until: Callable[[Snapshot], bool] = lambda snapshot: False,
    progress: Callable[[Snapshot, float], None] | None = None,
    longest_hours: float = 24.0,
) -> Snapshot:
    """Turns until the experiment is complete or halted, or `until` holds; the snapshot then.

    Between two turns the clock goes to the next thing that can happen: an attempt ends, a back-off
    is over, the budget is spent; or `longest_hours` have passed. While an attempt is stalled, turns
    come as often as it takes for that to be noticed. Raises AssertionError if nothing changes for
    a thousand turns.
    `until` and `progress` are shown what is in play.
    """
    idle, before = 0, None
    while True:
        launcher.look()  # so that every file is of this instant, whatever the tick reads first
        tick()
        snapshot = tick.store.in_play()
        if progress is not None:
            progress(snapshot, clock())
        if snapshot.experiment.state != "running" or until(snapshot):
            return tick.store.read()
        then = _next(tick, snapshot, launcher, clock())
        idle, before = idle + 1 if snapshot is before else 0, snapshot
        assert idle < IDLE_TURNS, "nothing ends, and nothing is decided"
        clock.advance_to(min(then, clock() + 3600 * longest_hours))


def _next(tick: Tick, snapshot: Snapshot, launcher: SimulatedLauncher, now: float) -> float:
    """When something can happen next. What is recorded speaks of the wall's clock."""
    daemon, wall = tick.config.daemon, tick.clock()
    times = [then for then in (launcher.next_event(),) if then is not None]
    if launcher.stalls():  # a daemon that looks less often takes the silence for its own absence
        times.append(now + 15 * min(daemon.start_minutes, daemon.stall_minutes))
    pending = {one.id for one in snapshot.candidates.values() if one.state is State.PENDING}
    last = {attempt.candidate: attempt for attempt in snapshot.attempts}
    for candidate in pending & last.keys():
        attempt = last[candidate]
        if attempt.ended_at is not None and attempt.state is not AttemptState.SUCCEEDED:
            since = now + attempt.ended_at - wall
            times += [since + seconds for seconds in BACKOFF_SECONDS]
    budget = tick.config.experiment.budget_gpu_hours
    busy = sum(len(attempt.slots) for attempt in snapshot.live_attempts)
    if budget is not None and busy:
        times.append(now + 3600 * (budget - snapshot.gpu_hours(wall)) / busy)
    # What lies behind has been seen to in this turn, or waits for something else.
    return min((time for time in times if time > now), default=now + daemon.tick_seconds)
