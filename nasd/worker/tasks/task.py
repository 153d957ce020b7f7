"""The seam between the training loop and what is trained for.

A task knows its data, its model and head, its loss and its metric. The loop
(nasd.worker.training.train) knows steps, ranks, the optimizer and checkpoints. A new task is one
file that fits this protocol and one entry in nasd.worker.tasks.registry, beside the one that the
control plane has of it in nasd.contract.tasks.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nasd.worker.model.phenotype import AnyModel
from nasd.worker.training.progress import Progress

Batch = dict[str, Tensor]
Outputs = tuple[Tensor, ...]  # each with the example as its first dimension
Made = TypeVar("Made")
# How one model's outputs are compared with another's: each is a distribution over an example's
# tokens [b, n], or over classes [b, classes] or [b, n, classes], or over a vocabulary at masks
# [b, n, vocabulary], or is values themselves.
Compared = Literal["places", "classes", "words", "values"]


def ahead(build: Callable[[int], Made], numbers: Iterable[int]) -> Iterator[Made]:
    """What `build` makes of each number: a thread makes the next one while one is used, so that no
    device waits for its data."""
    with ThreadPoolExecutor(1, "batches") as thread:
        upcoming: Future[Made] | None = None
        for number in numbers:
            following = thread.submit(build, number)
            if upcoming is not None:
                yield upcoming.result()
            upcoming = following
        if upcoming is not None:
            yield upcoming.result()


def portions(
    examples: NDArray[np.int64], size: int, build: Callable[[NDArray[np.int64]], Batch], device: Any
) -> Iterator[tuple[int, Batch]]:
    """What `build` makes of `size` examples after the other, made ahead, and how many came before;
    still on the CPU."""
    starts = range(0, len(examples), size)
    made = ahead(lambda start: pinned(build(examples[start : start + size]), device), starts)
    return zip(starts, made, strict=True)


def pinned(batch: Batch, device: Any) -> Batch:
    """The batch where its way to a GPU goes on in the background; any thread may ask for it."""
    if device.type != "cuda":
        return batch
    torch.cuda.set_device(device)  # each thread has its own
    return {name: tensor.pin_memory() for name, tensor in batch.items()}


def to_device(batch: Batch, device: Any) -> Batch:
    """The batch on the device. What lies in pinned memory is not waited for."""
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}


def autocast(precision: str, device: Any) -> AbstractContextManager[Any]:
    if precision == "bfloat16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()


@dataclass(frozen=True)
class Fixed:
    """Of a task that shows an example the same way every time it is seen.

    draw: names how, beside the data. narrow: positions of an example that a narrowed layer keeps.
    length: tokens of every example.
    """

    draw: tuple[int, ...]
    narrow: int
    length: int


class Task(Protocol):
    model: AnyModel
    compared: Compared
    train_size: int
    lengths: NDArray[np.int64] | None  # of the training examples, where they differ
    longest: int  # tokens of any of them
    ignorance: float  # the evaluation loss of a model that takes all answers for equally likely
    uniform: bool  # whether all batches have one shape, so that compiling pays for itself
    fixed: Fixed | None  # where so, what frozen layers make of an example can be kept
    known: Tensor | None  # what they make of each, once that is kept; batches bring it along
    alongside: (
        str  # what else is computed with each batch, that takes memory: a teacher; "" for none
    )

    def trainable(self) -> set[str]:
        """Names of the parameters that this stage trains."""

    def batch(self, indices: NDArray[np.int64], seed: int) -> Batch:
        """The training examples `indices` as CPU tensors whose first dimension is the example.

        What is random about an example (its masks) follows from `seed` and the example alone, so
        it does not depend on how a batch is dealt out. Called from a thread of its own.
        """

    def know(self, states: Tensor | None) -> None:
        """Takes what frozen layers make of the training examples, [train_size, tokens, width]."""

    def outputs(self, model: nn.Module, batch: Batch) -> Outputs:
        """What the model, or what is wrapped around it, makes of a batch on its device."""

    def loss(self, outputs: Outputs, batch: Batch) -> Tensor:
        """The sum over the examples of each example's mean loss, of what `outputs` gave.

        Apart from `outputs`, so that a task around another can ask more of the same outputs, as
        that they be a teacher's.
        """

    def evaluate(self, ranks: "Ranks", batch: int, progress: Progress) -> dict[str, float]:
        """Metrics on the held-out part, the same on every rank; `loss` is among them.

        batch: how many examples a rank takes at once.
        """


@dataclass(frozen=True)
class Ranks:
    """This process among its attempt's ranks."""

    rank: int
    world: int
    device: Any  # torch.device

    def deal(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """This rank's share of a global batch."""
        return indices[self.rank :: self.world]

    @property
    def first(self) -> bool:
        return self.rank == 0
