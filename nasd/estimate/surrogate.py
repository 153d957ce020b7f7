"""What training would give, made up: losses and scores as a function of genotype and seed.

No prediction: as plausible as needed for a search to take its usual course.
"""

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from statistics import mean

from nasd.contract import tasks
from nasd.contract.genotype import (
    Backbone,
    Genotype,
    distance,
    weights_of_attention,
    weights_of_ffn,
)
from nasd.contract.streams import stream

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
SEED_SPREAD = 0.006  # relative, of fine-tuning under another seed: 0.4 points
ANSWER_LOSS = 1.2  # of the baseline
# Of 198 recorded curves of the demo (tests/data), which are of fine-tuned parents' children, a fall
# by 1 / (1 + step / 20) leaves 0.13 nats, by 30 steps 0.14; their qualities, 71 on average where
# the formula says 32, it ranks with a correlation of 0.75 (nasd.estimate.recorded replays them).
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
        """The objective, in percent, of a model fine-tuned after so much training."""
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

    def scores(
        self, genotype: Genotype, trained: Trained, task: tasks.Task = tasks.QA, seed: int = 1
    ) -> dict[str, float]:
        """The metrics of the task, in percent. seed: the number of that which it was fine-tuned
        under."""
        quality = self.quality(genotype, trained)
        if seed > 1:
            spread = self._normal(genotype, f"quality/{seed}", 0, SEED_SPREAD)
            quality = min(99.0, max(1.0, quality * math.exp(spread)))
        if task is not tasks.QA:  # of which no more is known
            return dict.fromkeys((*(name for name, _ in task.shown), "quality"), quality)
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
    usual = mean(block.present for block in baseline.blocks)
    fewer = mean(max(0.0, math.log2(usual / block.present)) for block in genotype.blocks)
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
        sizes = sorted((weights_of_ffn(ffn, backbone.width) for ffn in block.ffns), reverse=True)
        total += weights_of_attention(block, backbone.width) + sizes[0] + sum(sizes[1:]) / 2
    return total
