"""Our side: a worker's attempt as the daemon would start it, held up between segments.

`nasd.worker.stage.run` does it all, from the spec to the outcome: what it chooses by itself (the
kernels, the micro-batch, the cache) and what it does beside training (heartbeat, metrics,
TensorBoard) is what a search gets. Only its heartbeat is another: it waits at the pacer.
"""

import os
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any
from unittest import mock

import numpy as np
import torch

from nasd.contract.config import Corpus, Data, MlmData, QaData, Stage
from nasd.contract.errors import NasdError
from nasd.contract.genotype import BlockLineage, Genotype, Lineage, unchanged
from nasd.contract.protocol import AttemptFolder, Spec
from nasd.contract.schedule import Schedule
from nasd.worker import stage
from nasd.worker.devices import has_bfloat16
from nasd.worker.model import phenotype
from nasd.worker.model.phenotype import MaskedLM
from nasd.worker.speed import Never
from nasd.worker.tasks.corpus import MlmCorpus
from nasd.worker.tasks.mlm import MlmTask
from nasd.worker.tasks.passages import QaFeatures
from nasd.worker.tasks.task import autocast, to_device
from nasd.worker.training import train
from nasd.worker.training.progress import Pulse
from nasd.worker.training.stop import Stopped
from nasd.worker.training.train import Order
from tests.bench.cases import CASES, FFN_BLOCK, MASK_SHARE, Job
from tests.bench.pace import Finished, Pacer

SEED = 5
EPOCHS = 10_000  # what pays in a long attempt pays here
CACHE_GB = 1000.0
LEARNING_RATE, WEIGHT_DECAY, NORM = 5e-5, 0.01, 1.0
BARE_BATCHES = 8


def run(job: Job, pacer: Pacer, device: Any) -> None:
    folder = AttemptFolder(job.folder / f"attempt-{job.case}-{job.side}")
    folder.path.mkdir()
    spec = spec_of(job, folder)
    assert spec.stage is not None
    evaluates = spec.stage.train == "none"
    watch = _at_answers(job, pacer) if evaluates else _at_steps(job, pacer, spec.stage)
    os.environ |= {"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0"}
    ranks = stage.join(spec)

    def receive(model: MaskedLM, its_stage: Stage) -> torch.optim.Optimizer:
        optimizer = make_optimizer(model, its_stage)
        pacer.guest = bare_steps(job, (model, optimizer), device)
        return optimizer

    make_optimizer = train._optimizer
    hosts = mock.patch.object(train, "_optimizer", receive) if job.guest else nullcontext()
    if spec.precision == "bfloat16" and not has_bfloat16(device):
        raise NasdError("there is no bfloat16 on this device: give --precision float32")
    with hosts, mock.patch.object(stage, "Pulse", partial(Gate, watch)):
        while not pacer.finished:
            outcome = stage.run(spec, folder, ranks, Never())  # type: ignore[arg-type]
            if outcome.verdict != "stopped":
                raise RuntimeError(f"the attempt {outcome.verdict}: {outcome.message}")


Watch = Callable[[str, int], None]
Trained = tuple[MaskedLM, torch.optim.Optimizer]


class Gate(Pulse):
    """The heartbeat; then `watch` hears what the worker does, and at which step."""

    def __init__(self, watch: Watch, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._watch = watch

    def __call__(self, doing: str, step: int = 0, *more: Any, **named: Any) -> None:
        super().__call__(doing, step, *more, **named)
        try:
            self._watch(doing, step)
        except Finished:
            raise Stopped("enough is measured") from None


def _at_steps(job: Job, pacer: Pacer, stage: Stage) -> Watch:
    """Waits after each step of training."""
    tokens = tokens_by_step(job, stage)

    def watch(doing: str, step: int) -> None:
        if doing == "training" and step == 0:
            _check_cached(job)
        elif doing == "training":
            pacer.step(tokens(step - 1))

    return watch


def _check_cached(job: Job) -> None:
    """Training goes on without a cache; a row that says it has one must not."""
    if job.side.cached and not any((job.folder / "cache").glob("activations-*.bin")):
        raise NasdError(
            f"the activations are not cached, see {job.folder} for why: is there room in it?"
        )


def _at_answers(job: Job, pacer: Pacer) -> Watch:
    """Waits after each pass over the test part, and ends the attempt where it would decode: the
    Trainer decodes nothing, either."""
    tokens = float(QaFeatures.load(job.folder / "qa" / "test").lengths.sum())

    def watch(doing: str, step: int) -> None:
        if doing == "answering" and step == 0:
            pacer.begin()
        elif doing == "decoding":
            pacer.step(tokens)
            raise Stopped("one pass is done")

    return watch


def tokens_by_step(job: Job, stage: Stage) -> Callable[[int], float]:
    """Tokens, without padding, of a step's batch."""
    if stage.task == "mlm":
        return lambda step: float(job.shape.batch * job.shape.tokens)
    lengths = QaFeatures.load(job.folder / "qa" / "train").lengths
    order = Order(Schedule.of(stage, len(lengths)), SEED, stage.name)
    return lambda step: float(lengths[order.batch(step)].sum())


def spec_of(job: Job, folder: AttemptFolder) -> Spec:
    case = CASES[job.case]
    weights = job.folder / f"weights-{case.task}"
    genotype = Genotype.from_json(phenotype.load_architecture(weights).to_json())
    shape, side = job.shape, job.side
    return Spec(
        attempt=1,
        candidate=1,
        generation=0,
        stage=stage_of(job),
        seed=SEED,
        dropout=None,
        source="theirs-mlm",
        data=Data(
            mlm=MlmData(
                corpora=(Corpus(files=("random",)),),
                tokens=shape.tokens,
                mask_share=MASK_SHARE,
                evaluation_sequences=1,
            ),
            qa=QaData(files=("random",), tokens=shape.qa_tokens, stride=shape.qa_tokens // 3),
        ),
        config_folder=str(job.folder),
        genotype=genotype.to_json(),
        lineage=[block.to_json() for block in lineage_of(job.case, genotype)],
        weights=str(weights),
        inherits=False,  # a new module has the weights that it has on the other side
        cache=str(job.folder / "cache"),
        mlm_cache=str(job.folder / "mlm"),
        qa_cache=str(job.folder / "qa"),
        tensorboard=str(folder.path / "tensorboard"),
        precision=side.precision,  # type: ignore[arg-type]
        threads=job.threads,
        checkpoint_minutes=1e6,  # there is none while it measures
        log_steps=job.log_steps,
        stall_minutes=10,
        compile=False if _is_plain(job) else "auto",
        fixed_masks=side.cached,
        activation_cache_gb=CACHE_GB,
    )


def stage_of(job: Job) -> Stage:
    case = CASES[job.case]
    trains = case.train != "none"
    return Stage(
        name=job.case,
        task=case.task,  # type: ignore[arg-type]
        train=case.train,  # type: ignore[arg-type]
        who="baseline" if case.train == "head" else "candidates",
        slots=1,
        batch=job.shape.batch if case.task == "mlm" else job.shape.qa_batch,
        epochs=EPOCHS if trains else None,
        learning_rate=LEARNING_RATE if trains else None,
        weight_decay=WEIGHT_DECAY,
        max_grad_norm=NORM,
        # Else it may be tried out on a GPU; the bare step takes the batch whole.
        micro_batch=job.shape.batch if _is_plain(job) else None,
    )


def _is_plain(job: Job) -> bool:
    """Whether nothing is to be chosen that the bare step does not have."""
    return job.case == "overhead"


def lineage_of(case: str, genotype: Genotype) -> Lineage:
    """Which of the modules are new."""
    blocks = list(unchanged(genotype))
    if case == "ffn":
        blocks[FFN_BLOCK] = BlockLineage.of(FFN_BLOCK, False, ("altered",))
    elif case == "last_block":
        blocks[-1] = BlockLineage.of(None, True, ("added",))
    return tuple(blocks)


def bare_steps(job: Job, trained: Trained, device: Any) -> Callable[[int], float]:
    """The step and nothing around it: forward, backward, clipping, the optimizer, on batches that
    lie on the device already. It trains the attempt's own model."""
    model, optimizer = trained
    parameters = list(model.parameters())
    task = MlmTask(model, MlmCorpus.load(job.folder / "mlm"), MASK_SHARE, set())
    batch = job.shape.batch
    batches = [
        to_device(task.batch(np.arange(n * batch, (n + 1) * batch), n), device)
        for n in range(min(BARE_BATCHES, job.steps))
    ]

    def take(steps: int) -> float:
        for step in range(steps):
            with autocast(job.side.precision, device):
                shown = batches[step % len(batches)]
                loss = task.loss(task.outputs(model, shown), shown) / batch
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, NORM)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return float(steps * batch * job.shape.tokens)

    return take
