"""A task that is learned from a teacher as well (distillation), around any other.

A share of the loss is how far the student is from its teacher, the rest is the other task's own.
Evaluations and scores stay the other task's, so curves and cutoffs mean what they mean without a
teacher; the loss of a training step is the sum of both.

What a teacher says of examples that are the same every time is computed once for all attempts
(nasd.worker.tasks.notes). Masks are drawn anew whenever a sequence is seen, so there it is computed
along with each batch; and so are hidden states and relations, which would take far more room than
they take time.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nasd.contract.config import Teacher
from nasd.contract.protocol import Teaching
from nasd.worker.model.outside import Outside
from nasd.worker.tasks import teachers
from nasd.worker.tasks.task import Batch, Outputs, Ranks, Task
from nasd.worker.training import distance

RELATED = ("q", "k", "v")


class Tells(Protocol):
    """What a teacher says of a batch. size: of what computes it, for who asks how much memory is
    taken; "" where it is only looked up."""

    size: str

    def beside(self, indices: NDArray[np.int64], batch: Batch) -> Batch:
        """What goes with a batch of these examples, still on the CPU."""

    def outputs(self, task: Task, batch: Batch) -> Outputs:
        """The teacher's outputs, as the task's own, and what `Watched` sees of it."""


class Taught:
    """Another task, and a teacher; all else it leaves to the task that it is wrapped around.

    watches: what beside logits is compared, of `hidden` and `relations`.
    """

    def __init__(self, task: Task, settings: Teacher, teacher: Tells) -> None:
        self._task = task
        self._settings = settings
        self._teacher = teacher
        self.watches = watched(settings)
        self.alongside = teacher.size

    def __getattr__(self, name: str) -> Any:
        return getattr(self._task, name)

    def batch(self, indices: NDArray[np.int64], seed: int) -> Batch:
        batch = self._task.batch(indices, seed)
        return batch | self._teacher.beside(indices, batch)

    def outputs(self, model: nn.Module, batch: Batch) -> Outputs:
        """The student's outputs and what is watched of it, then likewise the teacher's."""
        with watching(self._task.model, self.watches) as seen:
            mine = self._task.outputs(model, batch)
        with torch.no_grad():
            theirs = self._teacher.outputs(self._task, batch)
        return (*mine, *(spread(one, batch) for one in seen), *theirs)

    def loss(self, outputs: Outputs, batch: Batch) -> Tensor:
        half = len(outputs) // 2
        mine, theirs = outputs[:half], outputs[half:]
        said = half - states_of(self.watches)
        own = self._task.loss(mine[:said], batch)
        share = self._settings.share
        return (1 - share) * own + share * self.apart(mine, theirs, said, batch)

    def apart(self, mine: Outputs, theirs: Outputs, said: int, batch: Batch) -> Tensor:
        """How far the student is from its teacher. said: of the outputs, how many are the task's;
        behind them stand hidden states, and queries, keys and values."""
        mask = batch.get("attention_mask")
        padding = None if mask is None else mask == 0
        pairs = list(zip(mine, theirs, strict=True))
        parts = []
        if "logits" in self._settings.match:
            each = [
                distance.OF_OUTPUTS[self._task.compared](
                    one, other, self._settings.temperature, padding
                )
                for one, other in pairs[:said]
            ]
            parts.append(torch.stack(each).mean())
        pairs = pairs[said:]
        if "hidden" in self.watches:
            parts.append(distance.of_states(*pairs[0], padding))
            pairs = pairs[1:]
        if "relations" in self.watches:
            heads = distance.relation_heads(self._settings, *(one.shape[-1] for one in pairs[0]))
            each = [distance.of_relations(*pair, heads, padding) for pair in pairs]
            parts.append(torch.stack(each).mean())
        return torch.stack(parts).mean()


class Along:
    """A teacher that is computed with each batch. The model is on its device, and never trains."""

    def __init__(self, model: nn.Module, watches: tuple[str, ...]) -> None:
        self._model = model.eval().requires_grad_(False)
        self._watches = watches
        millions = round(sum(p.numel() for p in model.parameters()) / 1e6)
        self.size = f"{millions} M, {', '.join(('logits', *watches))}"

    def beside(self, indices: NDArray[np.int64], batch: Batch) -> Batch:
        return {}

    def outputs(self, task: Task, batch: Batch) -> Outputs:
        # What frozen layers make of an example is the student's own.
        shown = {name: one for name, one in batch.items() if name != "known"}
        with watching(self._model, self._watches) as seen:
            said = task.outputs(self._model, shown)
        return (*said, *(spread(one, batch) for one in seen))


def begun(task: Task, teaching: Teaching, ranks: Ranks, told: Tells | None) -> Taught:
    """The task around another, on its rank. told: what the teacher has said of its examples; None
    where it is computed along."""
    settings = teaching.settings
    if told is None:
        teacher = teachers.load(teaching, type(task.model))
        distance.check_widths(settings, task.model.architecture.width, teacher.architecture.width)
        told = Along(teacher.to(ranks.device), watched(settings))
    if ranks.first:
        matched = " and ".join(settings.match)
        print(
            f"learns from {teaching.name}: {100 * settings.share:g} % of the loss is how far they"
            f" are apart, by {matched}",
            flush=True,
        )
    return Taught(task, settings, told)


def watched(settings: Teacher) -> tuple[str, ...]:
    return tuple(one for one in ("hidden", "relations") if one in settings.match)


def states_of(watches: tuple[str, ...]) -> int:
    """How many tensors are seen of a model."""
    return ("hidden" in watches) + len(RELATED) * ("relations" in watches)


@contextmanager
def watching(model: nn.Module, watches: tuple[str, ...]) -> Iterator[list[Tensor]]:
    """What the last block's modules give while the model is run within, in the order in which
    `Taught.apart` takes it; there once it has run."""
    parts = last_block(model) if watches else {}
    wanted = [parts["hidden"]] if "hidden" in watches else []
    wanted += [parts[name] for name in RELATED] if "relations" in watches else []
    seen: dict[int, Tensor] = {}
    found: list[Tensor] = []

    def keep(place: int) -> Any:
        def hook(module: nn.Module, given: Any, result: Any) -> None:
            seen[place] = result[0] if isinstance(result, tuple) else result

        return hook

    hooks = [part.register_forward_hook(keep(place)) for place, part in enumerate(wanted)]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
    found += [seen[place] for place in range(len(wanted))]


def last_block(model: nn.Module) -> dict[str, nn.Module]:
    """The last block, and its attention's queries, keys and values."""
    if isinstance(model, Outside):
        return model.last_block()
    block: Any = model.encoder.blocks[-1]  # type: ignore[union-attr, index]
    return {"hidden": block, **{name: getattr(block.attention, name) for name in RELATED}}


def spread(states: Tensor, batch: Batch) -> Tensor:
    """Packed states [1, tokens, w] as those of a batch, [b, n, w]; 0 in the padding."""
    if "places" not in batch or len(states) != 1:
        return states
    examples, longest = batch["input_ids"].shape
    flat = states.new_zeros(examples * longest, states.shape[-1])
    return flat.index_copy(0, batch["places"], states[0]).view(examples, longest, -1)
