"""A parent's mutants, tried untrained: their losses on windows that nobody trains on.

All in one attempt, which loads the parent once and looks once at what it computes; a mutant is then
a matter of seconds (DESIGN 8).
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from nasd.contract.config import Stage
from nasd.contract.genotype import BlockLineage, Genotype, Lineage
from nasd.contract.protocol import IGNORANCE, PARENT, Spec, Untried
from nasd.contract.schedule import EVALUATION_BATCH, halved
from nasd.contract.streams import stream_seed
from nasd.worker.model import phenotype
from nasd.worker.model.encoder import Block
from nasd.worker.model.inherit import Trace, Windows, born, shared
from nasd.worker.model.phenotype import AnyModel
from nasd.worker.tasks import registry
from nasd.worker.tasks.beginning import reading
from nasd.worker.tasks.task import Ranks, autocast
from nasd.worker.training.progress import Progress

# By which a mutant is refitted, half of those by which it is born: it takes a third less, and ranks
# mutants as well (docs/decisions.md).
TOKENS = 2048


def losses(spec: Spec, stage: Stage, ranks: Ranks, progress: Progress) -> dict[str, float]:
    """The loss of each of the spec's mutants, by its id; one whose loss is no number is left out.
    Beside them the parent's own, and that of a model that knows nothing (nasd.contract.protocol).

    stage: the first that those who are born will climb, of whose task the losses are.
    """
    assert spec.weights is not None
    began = time.monotonic()
    entry = registry.of(stage)
    windows = entry.windows(spec).within(TOKENS) if spec.refits else None
    parent = _Parent(spec, entry.model, Path(spec.weights), windows)
    task = entry.unseen(spec, parent.model, ranks)
    batch = halved(EVALUATION_BATCH, spec.halvings)

    def loss() -> float:
        task.model.to(ranks.device).eval()
        # One each: it keeps casts of weights (findings/torch-autocast-keeps-swapped-weights.sh).
        with autocast(spec.precision, ranks.device):
            return task.evaluate(ranks, batch, _unheard)["loss"]

    with remembering(parent.model) as seen:
        found = {PARENT: loss(), IGNORANCE: task.ignorance}
    print(f"the parent itself: loss {found[PARENT]:.4f}", flush=True)
    parent.model.cpu()
    for number, mutant in enumerate(spec.mutants):
        progress("screening", number, len(spec.mutants))
        task.model = _made(spec, mutant, parent, entry.model, windows)
        recall(task.model, seen, _same(mutant, parent.model))
        if math.isfinite(untrained := loss()):
            found[str(mutant.id)] = untrained
        print(f"mutant {mutant.id}: loss {untrained:.4f}", flush=True)
    taken = time.monotonic() - began
    print(f"{len(spec.mutants)} mutants tried in {taken:.1f} s", flush=True)
    return found


def _unheard(doing: str, step: int = 0, steps: int = 0, *, patience: float = 0.0) -> None:
    """A mutant is a second or so: what is told is how many are done."""


class _Parent:
    """With what it computes on the windows, once for all its mutants."""

    def __init__(self, spec: Spec, kind: type[Any], folder: Path, windows: Windows | None) -> None:
        with reading(folder):
            self.model: AnyModel = phenotype.load(kind, folder, spec.dropout)
        self.trace = Trace(self.model.eval().encoder, windows)


def _lineage(mutant: Untried) -> Lineage:
    return tuple(BlockLineage.from_json(block) for block in mutant.lineage)


def _same(mutant: Untried, parent: AnyModel) -> int:
    """How many of its lowest blocks give what the parent's give. Not the last of either model: it
    may give less than is asked of another."""
    words = mutant.genotype.get("rank"), mutant.genotype.get("frequent", 0)
    if words != parent.architecture.words:
        return 0
    count = shared(_lineage(mutant), parent.architecture)
    return min(count, len(mutant.lineage) - 1, len(parent.architecture.blocks) - 1)


@contextmanager
def remembering(model: AnyModel) -> Iterator[list[list[Tensor]]]:
    """What each block gives within, call by call: [blocks][calls]."""
    blocks = list(model.encoder.blocks)
    seen: list[list[Tensor]] = [[] for _ in blocks]

    def keep(place: int) -> Callable[[nn.Module, object, Tensor], None]:
        return lambda block, given, states: seen[place].append(states)

    hooks = [one.register_forward_hook(keep(place)) for place, one in enumerate(blocks)]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def recall(model: AnyModel, seen: Sequence[Sequence[Tensor]], blocks: int) -> None:
    """Puts what was seen in the place of so many of the lowest blocks, for one round of calls."""
    for place in range(blocks):
        last = seen[place] if place == blocks - 1 else None
        model.encoder.blocks[place] = Recalled(cast("Block", model.encoder.blocks[place]), last)


class Recalled(nn.Module):
    """In the place of a block: gives what was seen, call by call, or with None what it is given."""

    def __init__(self, block: Block, seen: Sequence[Tensor] | None) -> None:
        super().__init__()
        self.count = len(block.layers())
        self.calls = None if seen is None else iter(seen)

    def layers(self) -> list[None]:
        return [None] * self.count

    def forward(self, states: Tensor, *_: object) -> Tensor:
        return states if self.calls is None else next(self.calls)


def _made(
    spec: Spec, mutant: Untried, parent: _Parent, kind: type[Any], windows: Windows | None
) -> AnyModel:
    parents = [parent]
    if mutant.second_weights is not None:
        parents.append(_Parent(spec, kind, Path(mutant.second_weights), windows))
    child: AnyModel = born(
        Genotype.from_json(mutant.genotype),
        _lineage(mutant),
        list[Any](one.model for one in parents),
        torch.Generator().manual_seed(stream_seed(spec.seed, mutant.id, "screening")),
        windows,
        traces=[one.trace for one in parents],
    )
    return child
