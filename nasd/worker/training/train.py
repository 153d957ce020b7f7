"""The training loop: steps, ranks, optimizer, checkpoints, and nothing of any task.

Dropout draws from a generator seeded by (experiment seed, candidate, stage, step, rank), masks
follow from (experiment seed, stage, step, example), and the order of an epoch from (experiment
seed, stage, epoch). So a resumed run needs no saved random state, and neither the masks nor the
order depend on the number of ranks.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from nasd.contract.config import Stage
from nasd.contract.errors import NasdError
from nasd.contract.schedule import EVALUATION_BATCH, Schedule, halved, share_of
from nasd.contract.streams import stream_seed
from nasd.worker.model.phenotype import AnyModel
from nasd.worker.tasks.task import (
    Batch,
    Ranks,
    Task,
    ahead,
    autocast,
    pinned,
    to_device,
)
from nasd.worker.training import checkpoint
from nasd.worker.training.compilation import Compilation, eagerly
from nasd.worker.training.divergence import Diverged, DivergenceMonitor
from nasd.worker.training.micro_batch import Trials
from nasd.worker.training.progress import LONG, Progress
from nasd.worker.training.recording import Recorder
from nasd.worker.training.stop import Stopped, StopRequest

# Of the checkpoint interval: so much must have passed for an epoch's end to get a checkpoint.
EPOCH_END_SHARE = 0.25
SOUP = "soup/"  # ahead of a weight's name, in a checkpoint: its sum over the trainings before


class Order:
    """Which examples make up a step's global batch: a new permutation every epoch.

    Drawn without regard to length: batches of examples alike make a worse model than random ones
    (figures in docs/decisions.md), so that padding is avoided inside of a batch, or nowhere.

    rounds: how often the stage's steps have been gone through before, by those whose weights these
    are; the examples go on behind theirs. Who always began with the first would never train on what
    comes behind a stage of less than an epoch.
    """

    def __init__(self, schedule: Schedule, seed: int, stage: str, rounds: int = 0) -> None:
        self._schedule, self._seed, self._stage = schedule, seed, stage
        self._before = rounds * schedule.whole
        self._epoch = -1
        self._batches: NDArray[np.int64] = np.empty((0, 0), dtype=np.int64)

    def batch(self, step: int) -> NDArray[np.int64]:
        epoch, position = divmod(self._before + step, self._schedule.steps_per_epoch)
        if epoch != self._epoch:
            self._batches, self._epoch = self._deal(epoch), epoch
        batch: NDArray[np.int64] = self._batches[position]
        return batch

    def _deal(self, epoch: int) -> NDArray[np.int64]:
        """[steps of the epoch, batch] indices."""
        size, steps = self._schedule.batch, self._schedule.steps_per_epoch
        random = np.random.default_rng(stream_seed(self._seed, epoch, f"order/{self._stage}"))
        return random.permutation(self._schedule.examples)[: steps * size].reshape(steps, size)


@dataclass
class Run:
    """The settings of one attempt's training that are not the stage's own.

    halvings: how often the micro-batch is halved, because memory ran out. rounds: of Order. trials:
    where a stage does not say how many examples are taken at once, this tries; None takes a rank's
    share whole.
    compilation: compiles the model once that pays; None leaves it alone. paused: what the part of
    the stage before this one has left, where there is one.
    """

    seed: int
    candidate: int
    precision: str
    checkpoint_seconds: float
    log_steps: int
    checkpoints: Path
    resume: tuple[Path, ...]
    open_recorder: Callable[[int], Recorder]
    stop: StopRequest
    progress: Progress
    halvings: int = 0
    rounds: int = 0
    trials: Trials | None = None
    compilation: Compilation | None = None
    paused: Path | None = None
    say: Callable[[str], None] = field(default=lambda text: print(text, flush=True))


@dataclass(frozen=True)
class Result:
    """paused: what the next part of the stage goes on with, besides the weights; None where nothing
    trained."""

    steps: int
    metrics: dict[str, float]
    curve: list[tuple[int, float]]
    paused: checkpoint.Paused | None = field(default=None, compare=False)


def train(task: Task, stage: Stage, ranks: Ranks, run: Run) -> Result:
    """Trains `task.model` in place through `stage`.

    A checkpoint is due `run.checkpoint_seconds` after the last one, at the end of an epoch after a
    quarter of that. Raises Diverged, or Stopped once everything is in a checkpoint.
    """
    run.progress("loading", patience=LONG)
    task.model.to(ranks.device)
    freeze(task)  # before wrapping: DDP looks at requires_grad once, when it is built
    if not task.trainable():
        run.say("nothing to train in this stage: the model is only evaluated")
        return _evaluate_only(task, ranks, run)
    return Training(task, stage, ranks, run).through()


@dataclass(frozen=True)
class Due:
    """What follows a step; the same on every rank. stops: only behind what it saves."""

    logs: bool
    evaluates: bool
    saves: bool
    stops: bool


class Training:
    """A task's way through a stage: what is known between two steps, and what is done with it.

    Steps are those of the part, where it is one of a stage with rungs. The model is on its device,
    and what does not train is frozen. Where a method takes `done`, that is how many steps have been
    made.
    """

    def __init__(self, task: Task, stage: Stage, ranks: Ranks, run: Run) -> None:
        self.task, self.stage, self.ranks, self.run = task, stage, ranks, run
        self.model = task.model
        self.schedule = Schedule.of(stage, task.train_size)
        if self.schedule.batch < ranks.world:
            raise NasdError(
                f"stages.{stage.name}: {self.schedule.batch} training examples cannot be dealt out"
                f" to {ranks.world} slots: give more data, or fewer slots"
            )
        _training_mode(self.model)
        self.micro = _micro_batch(task, stage, ranks, run)
        self.optimizer = _optimizer(self.model, stage)
        self.monitor = DivergenceMonitor()
        # Each that trains, as the stage found it: on the CPU, so that a GPU holds no more for it.
        self.before = [
            (one, one.detach().cpu().clone())
            for one in self.model.parameters()
            if (stage.average or stage.soup > 1) and one.requires_grad
        ]
        self.soup: dict[str, Tensor] = {}  # the sum of what trainings before this one came to
        self.curve: list[tuple[int, float]] = []  # steps made and the loss there
        self.metrics: dict[str, float] = {}  # of the last evaluation
        # Losses and norms of the steps since the last line, as far as they have been fetched; of
        # the others the numbers, and losses and then norms on the device.
        self.unlogged: list[tuple[float, float]] = []
        self.waiting: list[int] = []
        self.pending = torch.zeros(2 * run.log_steps, device=ranks.device)
        self.tokens = 0  # of this rank, since they were last fetched
        self.speed = self.left = 0.0  # tokens a second then, and seconds that were still to go

    def through(self) -> Result:
        start = self.resume()
        self.recorder = self.run.open_recorder(start)
        self.wrapped = _wrapped(self.model, self.ranks)
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        self.logged = self.saved = time.monotonic()
        self.run.say(
            f"{self.stage.name}: {self.schedule.steps} steps of {self.schedule.batch}, "
            f"{sum(p.numel() for p in self.trained) / 1e6:.2f} M of "
            f"{sum(p.numel() for p in self.model.parameters()) / 1e6:.2f} M parameters train"
        )
        self.run.progress("training", start, self.schedule.steps, patience=LONG)
        for step, parts in enumerate(self.batches(start), start):
            self.step(step, parts)
            done = step + 1
            due = self.due(done)
            if due.logs or due.saves:
                self.log(done, due)
            if done == self.schedule.steps:
                self.average()
            if due.evaluates:
                self.evaluate(done)
            if self.schedule.begins_again_after(done):
                self.begin_again()
            if due.saves:
                self.save(done)
            if due.stops:
                raise Stopped(f"asked to stop after step {done} of {self.schedule.steps}")
            self.compile()
        if not self.schedule.steps:  # of a part that is shorter than a step
            self.evaluate(0)
        return self.finish()

    def resume(self) -> int:
        """Takes up the newest checkpoint, where there is one; returns the steps made up to it."""
        start = 0
        found = checkpoint.newest((self.run.checkpoints, *self.run.resume))
        if found is not None:
            self.soup = checkpoint.taken_out(found.model, SOUP)
            self.model.load_state_dict(found.model, strict=False)
            self.optimizer.load_state_dict(found.optimizer)
            self.monitor.restore(found.progress["monitor"])
            self.curve = [(step, loss) for step, loss in found.progress["curve"]]
            self.metrics = found.progress["metrics"]
            self.unlogged = [(loss, norm) for loss, norm in found.progress.get("unlogged", [])]
            start = found.step
            self.run.say(f"resumed at step {start} of {self.schedule.steps}")
        elif self.run.paused is not None:
            paused = checkpoint.paused(self.run.paused)
            self.optimizer.load_state_dict(paused.optimizer)
            self.monitor.restore(paused.monitor)
            self.run.say(f"goes on behind step {self.schedule.before} of {self.stage.whole}")
        _check_equal(start, self.ranks)
        return start

    def batches(self, start: int) -> Iterator[list[Batch]]:
        return _batches(
            self.task, self.stage, self.schedule, self.micro, self.ranks, self.run, start
        )

    def step(self, step: int, parts: list[Batch]) -> None:
        rate = self.schedule.learning_rate(step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        name = f"step/{self.run.candidate}/{self.stage.whole}"
        at = self.schedule.before + step
        torch.manual_seed(stream_seed(self.run.seed, at, name, self.ranks.rank))
        loss, tokens = _step_backward(
            self.task, self.wrapped, parts, self.schedule.batch, self.ranks, self.run.precision
        )
        self.tokens += tokens
        norm = nn.utils.clip_grad_norm_(self.trained, self.stage.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.pending[len(self.waiting)] = loss
        self.pending[self.run.log_steps + len(self.waiting)] = norm
        self.waiting.append(step)
        self.run.progress("training", step + 1, self.schedule.steps)

    def due(self, done: int) -> Due:
        last = done == self.schedule.steps
        evaluates = self.schedule.evaluates_after(done - 1, self.stage.evaluations)
        epoch_ends = self.schedule.epoch_ends_after(done)
        interval = self.run.checkpoint_seconds * (EPOCH_END_SHARE if epoch_ends else 1.0)
        late = time.monotonic() - self.saved >= interval
        stop, late = _any((self.run.stop.asked, late), self.ranks)
        return Due(
            # Whenever a checkpoint comes between, the same steps get a line.
            logs=done % self.run.log_steps == 0 or evaluates,
            evaluates=evaluates,
            saves=(stop or late) and not last,
            stops=stop and not last,
        )

    def log(self, done: int, due: Due) -> None:
        """Fetches what is waiting, records it in a line where one is due, and looks whether it has
        gone wrong."""
        losses, norms = _agree(self.pending, len(self.waiting), self.run.log_steps, self.ranks)
        now = time.monotonic()
        self.speed = self.tokens * self.ranks.world / max(now - self.logged, 1e-9)
        self.unlogged += zip(losses, norms, strict=True)
        if due.logs:
            mean_loss, mean_norm = np.mean(self.unlogged, axis=0).tolist()
            self.recorder.line(
                kind="train",
                step=done,
                loss=mean_loss,
                gradient_norm=mean_norm,
                learning_rate=self.schedule.learning_rate(done - 1),
                tokens_per_second=self.speed,
                at=time.time(),
            )
            self.unlogged = []
        for step, loss, norm in zip(self.waiting, losses, norms, strict=True):
            if (reason := self.monitor.look(step + 1, loss, norm)) is not None:
                raise Diverged(reason)
        self.left = (self.schedule.steps - done) * (now - self.logged) / len(self.waiting)
        self.waiting, self.tokens, self.logged = [], 0, time.monotonic()

    @torch.no_grad()
    def average(self) -> None:
        """Puts the mean of all trainings in the place of the last one's weights, and takes them
        back by the stage's share to what it found (both Wortsman et al. 2022)."""
        self.add_up()
        for name, summed in self.soup.items():
            self.model.get_parameter(name).copy_(summed / self.stage.soup)
        for parameter, before in self.before if self.stage.average else ():
            parameter.lerp_(before.to(parameter.device), self.stage.average)

    @torch.no_grad()
    def begin_again(self) -> None:
        """With what the stage found; what this training has come to is kept for the mean."""
        self.add_up()
        for parameter, before in self.before:
            parameter.copy_(before)
        self.optimizer = _optimizer(self.model, self.stage)
        self.monitor = DivergenceMonitor()

    def add_up(self) -> None:
        if self.stage.soup == 1:
            return
        for name, weights in _trained_state(self.model).items():
            self.soup[name] = self.soup[name] + weights if name in self.soup else weights.clone()

    def evaluate(self, done: int) -> None:
        self.metrics = _evaluate(self.task, self.ranks, self.run)
        _training_mode(self.model)
        loss = self.metrics["loss"]
        if not math.isfinite(loss):
            raise Diverged(f"the evaluation loss is {loss} at step {done}")
        self.curve.append((done, loss))
        self.recorder.line(kind="evaluation", step=done, **self.metrics, at=time.time())
        self.logged = time.monotonic()  # tokens/s speaks of training alone

    def save(self, done: int) -> None:
        if self.ranks.first:
            self.run.progress("saving", done, self.schedule.steps, patience=LONG)
            self.recorder.sync()
            checkpoint.save(
                self.run.checkpoints,
                done,
                _trained_state(self.model) | checkpoint.put_in(self.soup, SOUP),
                self.optimizer.state_dict(),
                {
                    "monitor": self.monitor.state(),
                    "curve": self.curve,
                    "metrics": self.metrics,
                    "unlogged": self.unlogged,
                },
            )
            self.run.progress("training", done, self.schedule.steps)
        if self.ranks.world > 1:
            dist.barrier()
        self.saved = self.logged = time.monotonic()

    def compile(self) -> None:
        """Last of all behind a step: the patience that it asks for is to hold while the next step
        compiles. Only where all has been fetched, so that the speed is this step's."""
        if self.run.compilation is not None and not self.waiting:
            self.run.compilation.consider(
                self.speed, self.left, self.ranks, self.run.progress, self.run.say
            )

    def finish(self) -> Result:
        self.recorder.close()
        paused = checkpoint.Paused(self.optimizer.state_dict(), self.monitor.state())
        return Result(self.schedule.steps, self.metrics, self.curve, paused)


def freeze(task: Task) -> None:
    """Leaves gradients to what this stage trains."""
    names = task.trainable()
    for name, parameter in task.model.named_parameters():
        parameter.requires_grad_(name in names)


def _micro_batch(task: Task, stage: Stage, ranks: Ranks, run: Run) -> int:
    if run.trials is None or stage.micro_batch is not None:
        return halved(share_of(stage, ranks.world), run.halvings)
    return run.trials.find(task, stage, ranks, run.precision, run.halvings, run.progress, run.say)


def _batches(
    task: Task, stage: Stage, schedule: Schedule, size: int, ranks: Ranks, run: Run, start: int
) -> Iterator[list[Batch]]:
    """This rank's share of each step's batch from step `start` on, in parts of `size` examples.

    Where examples differ in length, ranks get about as many tokens each, and so much as a part has
    to be padded, its examples are alike.
    """
    order = Order(schedule, run.seed, stage.whole, run.rounds)

    def build(step: int) -> list[Batch]:
        at = schedule.before + step
        batch = order.batch(at)
        if task.lengths is not None:
            batch = batch[np.argsort(task.lengths[batch], kind="stable")]
        mine = ranks.deal(batch)
        seed = stream_seed(run.seed, at, f"batch/{stage.whole}")
        return [
            pinned(task.batch(mine[first : first + size], seed), ranks.device)
            for first in range(0, len(mine), size)
        ]

    return ahead(build, range(start, schedule.steps))


def _wrapped(model: nn.Module, ranks: Ranks) -> nn.Module:
    """What takes the mean of the ranks' gradients; a rank alone goes without."""
    if ranks.world == 1:
        return model
    device_ids = [ranks.device.index] if ranks.device.type == "cuda" else None
    return DistributedDataParallel(model, device_ids=device_ids, gradient_as_bucket_view=True)


def _step_backward(
    task: Task,
    model: nn.Module,
    parts: list[Batch],
    examples: int,
    ranks: Ranks,
    precision: str,
) -> tuple[Tensor, int]:
    """Gradients of the mean loss over a global batch of `examples`, whatever the number of ranks.

    parts: this rank's share of it. Returns this rank's part of that mean, and how many tokens it
    saw. DDP takes the mean of the ranks' gradients, so each contributes `world x its sum / batch`.
    """
    total = torch.zeros((), device=ranks.device)
    tokens = 0
    for number, part in enumerate(parts, 1):
        micro = to_device(part, ranks.device)
        # The context has to enclose the forward pass, too.
        sync: AbstractContextManager[None] = nullcontext()
        if number < len(parts) and isinstance(model, DistributedDataParallel):
            sync = model.no_sync()
        with sync:
            with autocast(precision, ranks.device):
                loss = task.loss(task.outputs(model, micro), micro) / examples
            (loss * ranks.world).backward()  # type: ignore[no-untyped-call]
        total += loss.detach()
        tokens += micro["input_ids"].numel()
    return total, tokens


def _optimizer(model: nn.Module, stage: Stage) -> torch.optim.Optimizer:
    """AdamW over what trains; biases and norms are not decayed."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": stage.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    assert stage.learning_rate is not None
    return torch.optim.AdamW(
        [group for group in groups if group["params"]], lr=stage.learning_rate, fused=True
    )


def _trained_state(model: nn.Module) -> dict[str, Tensor]:
    """The weights that this stage changes, tied ones once; the others are the stage's input."""
    return {name: p.detach().cpu() for name, p in model.named_parameters() if p.requires_grad}


def _training_mode(model: AnyModel) -> None:
    """Dropout acts from the lowest module that trains upwards; what lies below is evaluated."""
    model.train()
    for layer in model.encoder.frozen_prefix():
        for part in layer:
            part.eval()


def _evaluate(task: Task, ranks: Ranks, run: Run) -> dict[str, float]:
    task.model.eval()
    compiled = run.compilation is not None and run.compilation.active
    with torch.no_grad(), autocast(run.precision, ranks.device), eagerly(compiled):
        return task.evaluate(ranks, halved(EVALUATION_BATCH, run.halvings), run.progress)


def _evaluate_only(task: Task, ranks: Ranks, run: Run) -> Result:
    recorder = run.open_recorder(0)
    metrics = _evaluate(task, ranks, run)
    if not math.isfinite(metrics["loss"]):
        raise Diverged(f"the evaluation loss is {metrics['loss']} before any training")
    recorder.line(kind="evaluation", step=0, **metrics, at=time.time())
    recorder.close()
    return Result(0, metrics, [(0, metrics["loss"])])


def _agree(
    pending: Tensor, count: int, log_steps: int, ranks: Ranks
) -> tuple[list[float], list[float]]:
    """The steps' losses (summed over ranks) and gradient norms, the same on every rank."""
    losses = pending[:count].clone()
    norms = pending[log_steps : log_steps + count].clone()
    if ranks.world > 1:
        dist.all_reduce(losses)
        # Equal already, unless a rank's last bits differ: then the verdict must not.
        dist.all_reduce(norms, op=dist.ReduceOp.MAX)
    return losses.tolist(), norms.tolist()


def _check_equal(start: int, ranks: Ranks) -> None:
    """Ranks that found different checkpoints would train on different batches, unseen."""
    if ranks.world > 1:
        steps = torch.tensor([start, -start])
        dist.all_reduce(steps, op=dist.ReduceOp.MAX)
        if steps.sum() != 0:
            raise dist.DistError(f"a peer does not start at step {start}, as this rank does")


def _any(flags: tuple[bool, bool], ranks: Ranks) -> Iterator[bool]:
    """Each flag, set if any rank has set it; through the CPU, so that no GPU is waited for."""
    votes = torch.tensor(flags, dtype=torch.uint8)
    if ranks.world > 1:
        dist.all_reduce(votes, op=dist.ReduceOp.MAX)
    return (bool(vote) for vote in votes)
