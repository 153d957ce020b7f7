"""Attempts beside any daemon, by the same workers: the baseline that all peers start from, and the
models of peers that need no search. And the judge, who tells how good a model is.

What a peer is charged are seconds of the processor's, of the worker's first rank, from its first
work on to its outcome: what a worker says itself in its log. Neither a busy machine nor the start
of an interpreter changes them.
"""

import math
import re
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from nasd.contract import digests
from nasd.contract.config import Config, QaData, Stage
from nasd.contract.errors import NasdError
from nasd.contract.genotype import Backbone, Genotype, Lineage, parameters, unchanged
from nasd.contract.protocol import AttemptFolder, Outcome, Spec, Verdict, read, write
from nasd.contract.schedule import EVALUATION_BATCH, Schedule
from nasd.contract.squad import Question, answered, read_squad, score
from nasd.contract.tasks import questions
from nasd.launch.local import LocalLauncher
from nasd.record.store import BASELINE
from nasd.worker.devices import has_bfloat16
from nasd.worker.model import phenotype, seed
from nasd.worker.model.phenotype import QuestionAnswering
from nasd.worker.tasks.passages import build_features
from nasd.worker.tasks.qa import QaTask
from nasd.worker.tasks.task import Ranks, autocast
from nasd.worker.training.progress import quiet
from nasd.worker.training.train import Run, train
from tests.bench.standing import Model, share_of_blocks
from tests.bench.worlds import KEPT, OURS, RANDOM, THESIS, World, config_of

ALONE = Ranks(0, 1, torch.device("cpu"))
WORKED = re.compile(r"^\w+ after [\d.]+ s, ([\d.]+) s of the processor's$", re.MULTILINE)
PILOT_STEPS, WARM_STEPS = 24, 8
NEVER = 1e9  # seconds


class Never:
    asked = False


def worked(log: Path) -> float:
    """Seconds of the processor's that the attempt of this log has taken; 0 where it does not say,
    as of one that was killed."""
    try:
        return sum(map(float, WORKED.findall(log.read_text(errors="replace"))))
    except FileNotFoundError:
        return 0.0


class Diverged(NasdError):
    """seconds: of the processor's, that it took all the same."""

    def __init__(self, message: str, seconds: float) -> None:
        super().__init__(f"the training diverged: {message}")
        self.seconds = seconds


@dataclass(frozen=True)
class Done:
    """An attempt that has succeeded. result: what it left. seconds: of the processor's."""

    outcome: Outcome
    result: Path
    seconds: float

    @property
    def quality(self) -> float:
        return (self.outcome.metrics["exact_match"] + self.outcome.metrics["f1"]) / 2


class Laboratory:
    """A world with a seed, its caches, and the fine-tuned baseline."""

    def __init__(self, world: World, number: int, folder: Path, data: Path | None) -> None:
        self.world, self.number, self.folder = world, number, folder
        folder.mkdir(parents=True)
        world.lay(folder, data, number)
        self.config: Config = config_of(world, RANDOM, number)
        every = (*config_of(world, THESIS, number).stages, *self.config.stages)
        self._stages = {one.name: one for one in every}
        source = self.config.seed_model.source
        described = seed.describe(source, folder)
        self.baseline: Genotype = described.baseline
        self.backbone: Backbone = described.backbone
        # What our search keeps out of all training, to screen by, nobody trains on.
        screens = getattr(config_of(world, OURS, number).population, "screened", 1) > 1
        self._like_ours: dict[str, Any] = {"holds_out": True} if screens else {}
        self.cache = folder / "cache"
        self.cache.mkdir()
        self._launcher = LocalLauncher(self.config.slots.threads)
        self._attempts = 0
        prepared = self.attempt(None)
        assert prepared.outcome.prepared is not None
        self.prepared = prepared.outcome.prepared
        self.seed_weights = prepared.result
        self.begin = self.attempt(self.stage("start"), weights=prepared.result)
        self.scored = self.attempt(self.stage("evaluate"), weights=self.begin.result)

    def stage(self, name: str) -> Stage:
        return self._stages[name]

    @property
    def examples(self) -> int:
        """That an epoch of training goes through, in whole batches."""
        stage = self.stage("start")
        assert stage.epochs is not None
        return round(self.begin.outcome.steps / stage.epochs) * stage.batch

    def attempt(
        self,
        stage: Stage | None,
        weights: Path | None = None,
        genotype: Genotype | None = None,
        lineage: Lineage | None = None,
        candidate: int = BASELINE,
        fixed_masks: bool = False,
    ) -> Done:
        """Runs an attempt to its end; raises NasdError where it does not succeed.

        lineage: of a child of whom the weights are; without one the weights are its own.
        """
        self._attempts += 1
        folder = AttemptFolder(self.folder / "attempts" / str(self._attempts))
        folder.path.mkdir(parents=True)
        model = genotype or self.baseline
        prepared = getattr(self, "prepared", None)
        slots, daemon = self.config.slots, self.config.daemon
        spec = Spec(
            attempt=self._attempts,
            candidate=candidate,
            generation=None,
            stage=stage,
            seed=self.number,
            dropout=self.config.seed_model.dropout,
            source=self.config.seed_model.source,
            data=self.config.data,
            config_folder=str(self.folder),
            genotype=model.to_json(),
            lineage=[one.to_json() for one in lineage or unchanged(model)],
            weights=None if weights is None else str(weights),
            inherits=lineage is not None,
            cache=str(self.cache),
            mlm_cache="" if prepared is None else prepared.mlm_cache,
            qa_cache="" if prepared is None else prepared.qa_cache,
            tensorboard=str(folder.path / "tensorboard"),
            precision=slots.precision,
            threads=slots.threads,
            checkpoint_minutes=daemon.checkpoint_minutes,
            log_steps=daemon.log_steps,
            stall_minutes=daemon.stall_minutes,
            compile=slots.compile,
            packing=slots.packing,
            fixed_masks=fixed_masks,
            activation_cache_gb=daemon.activation_cache_gb,
            **self._like_ours,
        )
        write(digests.signed(spec), folder.spec)
        token = secrets.token_hex(16)
        process = self._launcher.start(folder, ("cpu:0",), token)
        try:
            while self._launcher.alive(process):
                time.sleep(0.1)
        finally:
            self._launcher.clear(token)
        if not folder.outcome.exists():
            raise NasdError(f"an attempt left no outcome: see {folder.log}")
        outcome = read(Outcome, folder.outcome)
        if outcome.verdict is Verdict.DIVERGED:
            raise Diverged(outcome.message, worked(folder.log))
        if outcome.verdict is not Verdict.SUCCEEDED:
            raise NasdError(f"an attempt {outcome.verdict} ({outcome.message}): see {folder.log}")
        return Done(outcome, folder.result, worked(folder.log))

    def model(
        self, name: str, genotype: Genotype, at: float, seen: float, told: float | None = None
    ) -> Model:
        share = share_of_blocks(genotype, self.baseline, self.backbone)
        whole, own = (parameters(one, self.backbone) for one in (self.baseline, genotype))
        return Model(name, share, whole / own, at, seen, told)

    def answering(self) -> QuestionAnswering:
        """The fine-tuned baseline."""
        dropout = self.config.seed_model.dropout
        return phenotype.load(QuestionAnswering, self.begin.result, dropout)

    @property
    def precision(self) -> str:
        """What workers compute in here."""
        wanted = self.config.slots.precision
        return wanted if has_bfloat16(torch.device("cpu")) else "float32"


class Judge:
    """How good a model is by the questions that no peer has seen: (EM + F1) / 2, in percent."""

    def __init__(self, lab: Laboratory) -> None:
        torch.set_num_threads(1)
        qa = lab.config.data.qa
        tokenizer = seed.load_tokenizer(lab.config.seed_model.source, lab.folder)
        self._lab = lab
        self.questions = read_squad(lab.folder / KEPT)
        self._features = build_features(self.questions, tokenizer, qa.tokens, qa.stride)

    def __call__(self, folder: Path) -> float:
        model = phenotype.load(QuestionAnswering, folder, 0.0).eval()
        task = QaTask(model, self._features, self._features, packs=True)
        asked, data = self.questions, questions(self._lab.config.data)
        return quality(task, asked, data, ALONE, self._lab.precision)


def quality(
    task: QaTask, asked: list[Question], data: QaData, ranks: Ranks, precision: str
) -> float:
    """(EM + F1) / 2 of the task's model, in percent; it is on the ranks' device, and evaluates."""
    with torch.no_grad(), autocast(precision, ranks.device):
        judged = task.predict(asked, data, ranks, EVALUATION_BATCH, quiet)
    found: Mapping[str, float] = score(answered(judged, math.inf), asked)
    return (found["exact_match"] + found["f1"]) / 2


# -- how long a model takes ----------------------------------------------------------------------


class Clock:
    """A recorder that notes when each line came, by this process's own seconds."""

    def __init__(self) -> None:
        self.steps: list[float] = []
        self.evaluated: list[float] = []

    def line(self, **values: Any) -> None:
        (self.steps if values["kind"] == "train" else self.evaluated).append(time.process_time())

    def sync(self) -> None: ...

    def close(self) -> None: ...


def in_this_process(folder: Path, recorder: Any, **settings: Any) -> Run:
    """Settings of a training here: nobody hears of it but the recorder, or asks it to stop, and it
    leaves no checkpoints. settings: seed and precision, and what else is to differ."""
    base: dict[str, Any] = {
        "candidate": BASELINE,
        "checkpoint_seconds": NEVER,
        "log_steps": 1,
        "checkpoints": folder / "none",
        "resume": (),
        "open_recorder": lambda step: recorder,
        "stop": Never(),
        "progress": quiet,
        "say": lambda text: None,
    }
    return Run(**{**base, **settings})


@dataclass(frozen=True)
class Pace:
    """Seconds of the processor's, of a step and of an evaluation on the way."""

    step: float
    evaluation: float

    def epochs(self, seconds: float, stage: Stage, examples: int) -> float:
        """How many of them take so long."""
        steps = Schedule.of(stage, examples).steps_per_epoch
        evaluations = min(stage.evaluations, steps)
        one = steps * self.step + evaluations * self.evaluation
        return max(1.0 / steps, (seconds - self.evaluation) / one)


def pace_of(lab: Laboratory, model: QuestionAnswering, stage: Stage) -> Pace:
    """Found by a few steps here; the model is another one behind them."""
    torch.set_num_threads(lab.config.slots.threads)
    task = QaTask.load(model, Path(lab.prepared.qa_cache), packs=True)
    share = PILOT_STEPS / Schedule.of(stage, task.train_size).steps_per_epoch
    clock = Clock()
    run = in_this_process(lab.folder, clock, seed=lab.number, precision=lab.precision)
    train(task, stage.model_copy(update={"epochs": share, "evaluations": 1}), ALONE, run)
    measured = clock.steps[min(WARM_STEPS, len(clock.steps) - 2) :]
    return Pace(
        (measured[-1] - measured[0]) / (len(measured) - 1), clock.evaluated[-1] - clock.steps[-1]
    )


def overhead(lab: Laboratory) -> float:
    """Seconds of the processor's that an attempt takes beside its steps and evaluations."""
    stage = lab.stage("start")
    pace = pace_of(lab, lab.answering(), stage)
    schedule = Schedule.of(stage, lab.examples)
    evaluations = len(schedule.evaluation_steps(stage.evaluations))
    return max(0.0, lab.begin.seconds - schedule.steps * pace.step - evaluations * pace.evaluation)
