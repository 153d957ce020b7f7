"""What the tasks have in common that learn labels: of a text, of its words, or a number.

Each of them says how its loss is worked out, and how what the model says of the test part is
scored.
"""

import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn

from nasd.contract import tasks
from nasd.contract.config import Stage
from nasd.contract.protocol import Spec
from nasd.worker.model import phenotype
from nasd.worker.model.phenotype import AnyModel
from nasd.worker.tasks import packing
from nasd.worker.tasks.beginning import born, drawing, loaded
from nasd.worker.tasks.examples import Examples
from nasd.worker.tasks.task import (
    Batch,
    Compared,
    Fixed,
    Outputs,
    Ranks,
    autocast,
    portions,
    to_device,
)
from nasd.worker.training.divergence import Diverged
from nasd.worker.training.progress import LONG, Progress

if TYPE_CHECKING:
    from nasd.worker.model.inherit import Windows

Floats = NDArray[np.float32]
Scoring = Callable[[Spec, Path, list[Floats]], dict[str, float]]


class LabelledTask:
    """A model of logits, and the examples that it is trained on and evaluated by.

    packs: nothing is computed for padding; else it is masked out. rows: of the training examples,
    those that are trained on; None: all.
    """

    kind: ClassVar[Any]
    compared: Compared = "classes"

    def __init__(
        self,
        model: AnyModel,
        train: Examples,
        test: Examples,
        packs: bool = False,
        rows: NDArray[np.int64] | None = None,
    ) -> None:
        self.model = model
        self.packs = packs
        self.uniform = False  # there is packing against that
        self.fixed: Fixed | None = None
        self.known: Tensor | None = None
        self.alongside = ""
        self._rows = np.arange(len(train)) if rows is None else rows
        lengths = train.lengths[self._rows]
        self.train_size = len(lengths)
        self.lengths: NDArray[np.int64] | None = lengths
        self.longest = int(lengths.max())
        self._train = train
        self._test = test
        self.ignorance = self._ignorance()

    @classmethod
    def begin(cls, spec: Spec, stage: Stage, ranks: Ranks) -> "LabelledTask":
        """The task of an attempt's stage, with the model that it starts from."""
        fresh = drawing(spec, stage)
        if spec.inherits:
            model = born(spec, cls.kind, fresh, lambda: windows(spec))
        else:
            model = loaded(
                spec,
                lambda folder: phenotype.load_under_head(cls.kind, folder, fresh, spec.dropout),
            )
        train, test = parts(spec)
        packs = packing.of(spec, model.architecture, ranks)
        return cls(model, train, test, packs, rows_of(train, held_out_of(spec)))

    @classmethod
    def unseen(cls, spec: Spec, model: AnyModel, ranks: Ranks) -> "LabelledTask":
        """A task whose evaluations are of the examples that nobody trains on."""
        train, _ = parts(spec)
        held = held_out_of(spec)
        assert held is not None, "nothing is held out"
        packs = packing.of(spec, model.architecture, ranks)
        return cls(model, train, train.take(held), packs)

    @classmethod
    def asked(cls, spec: Spec, model: Any, progress: Progress) -> "LabelledTask":
        """A task by which a teacher is asked about all training examples; padded, as examples of
        one length come together."""
        train, _ = parts(spec)
        return cls(model, train, train)

    # -- of training -----------------------------------------------------------------------------

    def trainable(self) -> set[str]:
        return {name for name, _ in self.model.named_parameters()}

    def know(self, states: Tensor | None) -> None:
        assert states is None, "everything trains: there is no frozen layer"

    def batch(self, indices: NDArray[np.int64], seed: int) -> Batch:
        return self._tensors(self._train, self._rows[indices])

    def outputs(self, model: nn.Module, batch: Batch) -> Outputs:
        """The logits."""
        logits: Tensor = model(batch["input_ids"], batch["attention_mask"], packing.read(batch))
        return (logits,)

    def loss(self, outputs: Outputs, batch: Batch) -> Tensor:
        raise NotImplementedError

    def _ignorance(self) -> float:
        """The loss of a model that takes all labels for equally likely."""
        return math.log(max(2, len(self.model.architecture.labels)))

    @torch.no_grad()
    def evaluate(self, ranks: Ranks, batch: int, progress: Progress) -> dict[str, float]:
        """Mean loss on an even sample of the test examples: for the curve, not for the score."""
        count = tasks.sampled(len(self._test))
        sample = np.linspace(0, len(self._test) - 1, count).astype(np.int64)
        mine = ranks.deal(sample)
        total = torch.zeros((), dtype=torch.float64, device=ranks.device)
        for start, shown in portions(mine, batch, self._tested, ranks.device):
            progress("evaluating", start, len(mine))
            there = to_device(shown, ranks.device)
            total += self.loss(self.outputs(self.model, there), there).double()
        total = total.cpu()
        if ranks.world > 1:
            dist.all_reduce(total)
        return {"loss": float(total) / count}

    # -- of what the model says ------------------------------------------------------------------

    @property
    def bounds(self) -> NDArray[np.int64]:
        """[F + 1] of the rows of logits that the test examples have: one, or one a token."""
        return self._test.bounds if self._test.by_token else np.arange(len(self._test) + 1)

    @property
    def columns(self) -> int:
        return len(self.model.architecture.labels)

    @torch.no_grad()
    def said(
        self,
        examples: NDArray[np.int64],
        batch: int,
        device: torch.device,
        progress: Callable[[int, int], None],
    ) -> Iterator[tuple[int, Floats]]:
        """Each of these test examples, and its logits [rows, labels]; `batch` at once. The model is
        on the device, and is evaluated."""
        for position, shown in portions(examples, batch, self._tested, device):
            progress(position, len(examples))
            indices = examples[position : position + batch]
            (logits,) = self.outputs(self.model, to_device(shown, device))
            for index, one in zip(indices, logits.float().cpu().numpy(), strict=True):
                rows = one[: self._test.lengths[index]] if self._test.by_token else one[None]
                yield int(index), rows

    @staticmethod
    def arranged(rows: Floats, batch: Batch) -> Outputs:
        """Rows of logits, of the examples of a batch end to end, as `outputs` gives them."""
        return (torch.from_numpy(rows),)

    def predict(self, ranks: Ranks, batch: int, progress: Progress) -> list[Floats]:
        """What the model says of each test example; all of it on rank 0, elsewhere nothing."""
        order = np.argsort(self._test.lengths, kind="stable")
        told = partial(progress, "predicting")
        found = dict(self.said(ranks.deal(order), batch, ranks.device, told))
        if ranks.world > 1:
            self._gather(found, order, ranks)
        return [found[index] for index in range(len(self._test))] if ranks.first else []

    def _gather(self, found: dict[int, Floats], order: NDArray[np.int64], ranks: Ranks) -> None:
        """Brings all that was found to rank 0, as bare numbers, of which it knows what they are."""
        if not ranks.first:
            if mine := [found[int(index)].ravel() for index in ranks.deal(order)]:
                dist.send(torch.from_numpy(np.concatenate(mine)), 0)
            return
        for peer in range(1, ranks.world):
            theirs = Ranks(peer, ranks.world, ranks.device).deal(order)
            rows = np.diff(self.bounds)[theirs]
            sent = torch.empty(int(rows.sum()) * self.columns)
            if len(theirs):
                dist.recv(sent, peer)
            parts = np.split(sent.numpy().reshape(-1, self.columns), np.cumsum(rows)[:-1])
            found.update(zip(map(int, theirs), parts, strict=False))

    def _tested(self, indices: NDArray[np.int64]) -> Batch:
        return self._tensors(self._test, indices)

    def _tensors(self, examples: Examples, indices: NDArray[np.int64]) -> Batch:
        """input_ids and attention_mask [b, longest], targets, and where it packs, the two of a
        packing."""
        batch = {name: torch.from_numpy(array) for name, array in examples.batch(indices).items()}
        return packing.added(batch) if self.packs else batch


def parts(spec: Spec) -> tuple[Examples, Examples]:
    """Train and test."""
    cache = Path(spec.labelled_cache)
    return Examples.load(cache / "train"), Examples.load(cache / "test")


def windows(spec: Spec) -> "Windows":
    """What children are refitted by."""
    from nasd.worker.tasks.windows import of_batches

    train, _ = parts(spec)
    return of_batches(train, spec.seed, held_out_of(spec))


def rows_of(train: Examples, without: NDArray[np.int64] | None) -> NDArray[np.int64]:
    """The training examples that are trained on, in the order in which a task counts them."""
    rows = np.arange(len(train))
    return rows if without is None else np.setdiff1d(rows, without)


def held_out_of(spec: Spec) -> NDArray[np.int64] | None:
    """Of the training examples, those that screenings go by; None where there are none."""
    from nasd.worker.tasks.windows import held_out

    return held_out(len(parts(spec)[0]), spec.seed) if spec.holds_out else None


def score(
    task_of: type[LabelledTask],
    scoring: Scoring,
    spec: Spec,
    stage: Stage,
    result: Path,
    ranks: Ranks,
    batch: int,
    progress: Progress,
) -> dict[str, float]:
    """What the model that the attempt starts from says of the test examples goes into `result`; the
    metrics are the first rank's, and `quality` is that of them which the config names."""
    model = loaded(spec, lambda folder: phenotype.load(task_of.kind, folder, spec.dropout))
    model.to(ranks.device).eval()
    task = task_of(model, *parts(spec), packing.of(spec, model.architecture, ranks))
    with autocast(spec.precision, ranks.device):
        loss = task.evaluate(ranks, batch, progress)["loss"]
        said = task.predict(ranks, batch, progress)
    if not math.isfinite(loss):
        raise Diverged(f"the evaluation loss is {loss}")
    if not ranks.first:
        return {}
    result.mkdir(exist_ok=True)
    progress("scoring", patience=LONG)
    metrics = {name: 100 * one for name, one in scoring(spec, result, said).items()}
    return {"loss": loss, **metrics, "quality": metrics[tasks.labelled(spec.data).quality]}
