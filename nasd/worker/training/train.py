"""The training loop: steps, ranks, optimizer, checkpoints, and nothing of any task.

Dropout draws from a generator seeded by (experiment seed, candidate, stage, step, rank), masks
follow from (experiment seed, stage, step, example), and the order of an epoch from (experiment
seed, stage, epoch). So a resumed run needs no saved random state, and neither the masks nor the
order depend on the number of ranks.
"""

import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from nasd.contract.config import Stage
from nasd.contract.errors import NasdError
from nasd.contract.schedule import Schedule, halved, share_of
from nasd.contract.streams import stream_seed
from nasd.contract.summaries import Summaries
from nasd.worker.model.phenotype import MaskedLM, QuestionAnswering
from nasd.worker.tasks.task import (
    EVALUATION_BATCH,
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
from nasd.worker.training.stop import Stopped, StopRequest

# Of the checkpoint interval: so much must have passed for an epoch's end to get a checkpoint.
EPOCH_END_SHARE = 0.25


class Order:
    """Which examples make up a step's global batch: a new permutation every epoch.

    Drawn without regard to length: batches of examples alike make a worse model than random ones
    (figures in the README), so that padding is avoided inside of a batch, or nowhere.
    """

    def __init__(self, schedule: Schedule, seed: int, stage: str) -> None:
        self._schedule, self._seed, self._stage = schedule, seed, stage
        self._epoch = -1
        self._batches: NDArray[np.int64] = np.empty((0, 0), dtype=np.int64)

    def batch(self, step: int) -> NDArray[np.int64]:
        epoch, position = divmod(step, self._schedule.steps_per_epoch)
        if epoch != self._epoch:
            self._batches, self._epoch = self._deal(epoch), epoch
        batch: NDArray[np.int64] = self._batches[position]
        return batch

    def _deal(self, epoch: int) -> NDArray[np.int64]:
        """[steps of the epoch, batch] indices."""
        size, steps = self._schedule.batch, self._schedule.steps_per_epoch
        random = np.random.default_rng(stream_seed(self._seed, epoch, f"order/{self._stage}"))
        return random.permutation(self._schedule.examples)[: steps * size].reshape(steps, size)


class Recorder(Protocol):
    def line(self, **values: Any) -> None: ...

    def sync(self) -> None: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Curves:
    """Where TensorBoard finds what is recorded. task: its curves share no chart with another
    task's. first_step: where the stage begins in them. shared: a tag that the evaluation losses go
    to as well, "" for none."""

    run: Path
    task: str
    first_step: int = 0
    shared: str = ""


class MetricsFile:
    """metrics.jsonl, and the same numbers to TensorBoard; only rank 0 has one.

    done: steps of this stage that an earlier attempt has recorded, and whose points stay.
    """

    def __init__(self, path: Path, curves: Curves, done: int) -> None:
        self._curves = curves
        self._file = path.open("a", encoding="utf-8")
        known = curves.first_step + done
        self._summaries = Summaries(curves.run, known + 1 if known else 0)

    def line(self, **values: Any) -> None:
        self._file.write(json.dumps(values) + "\n")
        self._file.flush()
        evaluation = values["kind"] == "evaluation"
        scalars = {
            f"{self._curves.task}/{'evaluation_' if evaluation else ''}{name}": value
            for name, value in values.items()
            if name not in ("kind", "step", "at") and isinstance(value, float)
        }
        if evaluation and self._curves.shared:
            scalars[self._curves.shared] = values["loss"]
        self._summaries.scalars(scalars, self._curves.first_step + values["step"])

    def sync(self) -> None:
        """A checkpoint that stands must not know of more than the curves show."""
        self._summaries.sync()

    def close(self) -> None:
        self._file.close()
        self._summaries.close()


class NoMetrics:
    def line(self, **values: Any) -> None:
        pass

    def sync(self) -> None:
        pass

    def close(self) -> None:
        pass


@dataclass
class Run:
    """The settings of one attempt's training that are not the stage's own.

    halvings: how often the micro-batch is halved, because memory ran out. trials: where a stage
    does not say how many examples are taken at once, this tries; None takes a rank's share whole.
    compilation: compiles the model once that pays; None leaves it alone.
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
    trials: Trials | None = None
    compilation: Compilation | None = None
    say: Callable[[str], None] = field(default=lambda text: print(text, flush=True))


@dataclass(frozen=True)
class Result:
    steps: int
    metrics: dict[str, float]
    curve: list[tuple[int, float]]


def train(task: Task, stage: Stage, ranks: Ranks, run: Run) -> Result:
    """Trains `task.model` in place through `stage`.

    A checkpoint is due `run.checkpoint_seconds` after the last one, at the end of an epoch after a
    quarter of that. Raises Diverged, or Stopped once everything is in a checkpoint.
    """
    run.progress("loading", patience=LONG)
    model = task.model.to(ranks.device)
    freeze(task)  # before wrapping: DDP looks at requires_grad once, when it is built
    if not task.trainable():
        run.say("nothing to train in this stage: the model is only evaluated")
        return _evaluate_only(task, ranks, run)
    schedule = Schedule.of(stage, task.train_size)
    if schedule.batch < ranks.world:
        raise NasdError(
            f"stages.{stage.name}: {schedule.batch} training examples cannot be dealt out to"
            f" {ranks.world} slots: give more data, or fewer slots"
        )
    _training_mode(model)
    micro = _micro_batch(task, stage, ranks, run)
    optimizer = _optimizer(model, stage)
    monitor = DivergenceMonitor()
    curve: list[tuple[int, float]] = []
    metrics: dict[str, float] = {}
    unlogged: list[tuple[float, float]] = []  # losses and norms of the steps since the last line
    start = 0
    if (found := checkpoint.newest((run.checkpoints, *run.resume))) is not None:
        model.load_state_dict(found.model, strict=False)
        optimizer.load_state_dict(found.optimizer)
        monitor.restore(found.progress["monitor"])
        curve = [(step, loss) for step, loss in found.progress["curve"]]
        metrics = found.progress["metrics"]
        unlogged = [(loss, norm) for loss, norm in found.progress.get("unlogged", [])]
        start = found.step
        run.say(f"resumed at step {start} of {schedule.steps}")
    _check_equal(start, ranks)
    recorder = run.open_recorder(start)
    wrapped = _wrapped(model, ranks)
    trained = [p for p in model.parameters() if p.requires_grad]
    pending = torch.zeros(2 * run.log_steps, device=ranks.device)  # losses, then norms
    waiting: list[int] = []
    tokens = 0
    logged = saved = time.monotonic()
    run.say(
        f"{stage.name}: {schedule.steps} steps of {schedule.batch}, "
        f"{sum(p.numel() for p in trained) / 1e6:.2f} M of "
        f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters train"
    )

    def save(step: int) -> None:
        if ranks.first:
            run.progress("saving", step, schedule.steps, patience=LONG)
            recorder.sync()
            checkpoint.save(
                run.checkpoints,
                step,
                _trained_state(model),
                optimizer.state_dict(),
                {
                    "monitor": monitor.state(),
                    "curve": curve,
                    "metrics": metrics,
                    "unlogged": unlogged,
                },
            )
            run.progress("training", step, schedule.steps)
        if ranks.world > 1:
            dist.barrier()

    run.progress("training", start, schedule.steps, patience=LONG)
    batches = _batches(task, stage, schedule, micro, ranks, run, start)
    for step, parts in enumerate(batches, start):
        rate = schedule.learning_rate(step)
        for group in optimizer.param_groups:
            group["lr"] = rate
        step_seed = stream_seed(run.seed, step, f"step/{run.candidate}/{stage.name}", ranks.rank)
        torch.manual_seed(step_seed)
        loss, examples_tokens = _step_backward(
            task, wrapped, parts, schedule.batch, ranks, run.precision
        )
        tokens += examples_tokens
        norm = nn.utils.clip_grad_norm_(trained, stage.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        pending[len(waiting)] = loss
        pending[run.log_steps + len(waiting)] = norm
        waiting.append(step)
        run.progress("training", step + 1, schedule.steps)

        last = step + 1 == schedule.steps
        evaluates = schedule.evaluates_after(step, stage.evaluations)
        epoch_ends = (step + 1) % schedule.steps_per_epoch == 0
        interval = run.checkpoint_seconds * (EPOCH_END_SHARE if epoch_ends else 1.0)
        due = time.monotonic() - saved >= interval
        stop, due = _any((run.stop.asked, due), ranks)
        saves = (stop or due) and not last
        # Whenever a checkpoint comes between, the same steps get a line.
        logs = (step + 1) % run.log_steps == 0 or evaluates
        if logs or saves:
            losses, norms = _agree(pending, len(waiting), run.log_steps, ranks)
            now = time.monotonic()
            speed = tokens * ranks.world / max(now - logged, 1e-9)
            unlogged += zip(losses, norms, strict=True)
            if logs:
                mean_loss, mean_norm = np.mean(unlogged, axis=0).tolist()
                recorder.line(
                    kind="train",
                    step=step + 1,
                    loss=mean_loss,
                    gradient_norm=mean_norm,
                    learning_rate=rate,
                    tokens_per_second=speed,
                    at=time.time(),
                )
                unlogged = []
            for at, one_loss, one_norm in zip(waiting, losses, norms, strict=True):
                if (reason := monitor.look(at + 1, one_loss, one_norm)) is not None:
                    raise Diverged(reason)
            left = (schedule.steps - step - 1) * (now - logged) / len(waiting)
            waiting, tokens, logged = [], 0, time.monotonic()
        if evaluates:
            metrics = _evaluate(task, ranks, run)
            _training_mode(model)
            if not math.isfinite(metrics["loss"]):
                raise Diverged(f"the evaluation loss is {metrics['loss']} at step {step + 1}")
            curve.append((step + 1, metrics["loss"]))
            recorder.line(kind="evaluation", step=step + 1, **metrics, at=time.time())
            logged = time.monotonic()  # tokens/s speaks of training alone
        if saves:
            save(step + 1)
            saved = logged = time.monotonic()
        if stop and not last:
            raise Stopped(f"asked to stop after step {step + 1} of {schedule.steps}")
        if run.compilation is not None and not waiting:
            # Last of all: the patience that it asks for is to hold while the next step compiles.
            run.compilation.consider(speed, left, ranks, run.progress, run.say)
    recorder.close()
    return Result(schedule.steps, metrics, curve)


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
    order = Order(schedule, run.seed, stage.name)

    def build(step: int) -> list[Batch]:
        batch = order.batch(step)
        if task.lengths is not None:
            batch = batch[np.argsort(task.lengths[batch], kind="stable")]
        mine = ranks.deal(batch)
        seed = stream_seed(run.seed, step, f"batch/{stage.name}")
        return [
            pinned(task.batch(mine[at : at + size], seed), ranks.device)
            for at in range(0, len(mine), size)
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


def _training_mode(model: MaskedLM | QuestionAnswering) -> None:
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
