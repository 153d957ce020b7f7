"""What tasks have in common whose examples differ in length and are the same every time they are
seen: questions on texts, and texts with labels.

Each of them says what its model gives, how its loss is worked out, and how what the model says of
the test part is scored.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Generic, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn

from nasd.contract import tasks
from nasd.worker.model.phenotype import AnyModel
from nasd.worker.tasks import packing
from nasd.worker.tasks.ragged import Longs, Ragged
from nasd.worker.tasks.task import Batch, Fixed, Outputs, Ranks, portions, to_device
from nasd.worker.training.progress import Progress

Floats = NDArray[np.float32]
Examples = TypeVar("Examples", bound=Ragged)


class VariedTask(Generic[Examples]):
    """A model, and the examples that it is trained on and evaluated by. Everything trains.

    packs: nothing is computed for padding; else it is masked out. rows: of the training examples,
    those that are trained on; None: all.
    """

    def __init__(
        self,
        model: AnyModel,
        train: Examples,
        test: Examples,
        packs: bool = False,
        rows: Longs | None = None,
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
        self.lengths: Longs | None = lengths
        self.longest = int(lengths.max())
        self._train = train
        self._test = test
        self.ignorance = self._ignorance()

    def _ignorance(self) -> float:
        """The loss of a model that takes all answers for equally likely."""
        raise NotImplementedError

    # -- of training -----------------------------------------------------------------------------

    def trainable(self) -> set[str]:
        return {name for name, _ in self.model.named_parameters()}

    def know(self, states: Tensor | None) -> None:
        assert states is None, "everything trains: there is no frozen layer"

    def batch(self, indices: Longs, seed: int) -> Batch:
        return self._tensors(self._train, self._rows[indices])

    def outputs(self, model: nn.Module, batch: Batch) -> Outputs:
        raise NotImplementedError

    def loss(self, outputs: Outputs, batch: Batch) -> Tensor:
        raise NotImplementedError

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
    def bounds(self) -> Longs:
        """[F + 1] of the rows of logits that the test examples have: one, or one a token."""
        raise NotImplementedError

    @property
    def columns(self) -> int:
        """Of each of these rows."""
        raise NotImplementedError

    def rows(self, outputs: Outputs, lengths: Longs) -> Iterator[Floats]:
        """Of the outputs, each example's rows of logits. lengths: tokens of each."""
        raise NotImplementedError

    def said(
        self,
        examples: Longs,
        batch: int,
        device: torch.device,
        progress: Callable[[int, int], None],
    ) -> Iterator[tuple[int, Floats]]:
        """Each of these test examples, and its logits [rows, columns]; `batch` at once. The model
        is on the device, and is evaluated."""
        for position, shown in portions(examples, batch, self._tested, device):
            progress(position, len(examples))
            indices = examples[position : position + batch]
            outputs = self.outputs(self.model, to_device(shown, device))
            found = self.rows(outputs, self._test.lengths[indices])
            yield from zip(map(int, indices), found, strict=True)

    @torch.no_grad()
    def all_said(
        self, ranks: Ranks, batch: int, progress: Progress, doing: str
    ) -> list[Floats] | None:
        """The logits of each test example; None on all ranks but the first.

        Every rank takes its share, `batch` at once.
        """
        order = np.argsort(self._test.lengths, kind="stable")
        told = partial(progress, doing)
        found = dict(self.said(ranks.deal(order), batch, ranks.device, told))
        if ranks.world > 1:
            self._gather(found, order, ranks)
        return [found[index] for index in range(len(self._test))] if ranks.first else None

    def _gather(self, found: dict[int, Floats], order: Longs, ranks: Ranks) -> None:
        """Brings all that was found to the first rank. As bare numbers, of which it knows how many
        come and what they are of: objects would have to be unpickled."""
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
                found.update(zip(map(int, theirs), parts, strict=True))

    def _tested(self, indices: Longs) -> Batch:
        return self._tensors(self._test, indices)

    def _tensors(self, examples: Examples, indices: Longs) -> Batch:
        """What the examples have as tensors, and where it packs, the two of a packing."""
        batch = {name: torch.from_numpy(array) for name, array in examples.batch(indices).items()}
        return packing.added(batch) if self.packs else batch


def rows_of(train: Ragged, without: Longs | None) -> Longs:
    """The training examples that are trained on, in the order in which a task counts them."""
    rows = np.arange(len(train))
    return rows if without is None else np.setdiff1d(rows, without)
