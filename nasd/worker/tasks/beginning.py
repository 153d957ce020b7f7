"""The model that an attempt begins with: what an earlier step left, or a child of its parents."""

import errno
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError

from nasd.contract.config import Stage
from nasd.contract.digests import Damaged
from nasd.contract.genotype import BlockLineage, Genotype, Lineage, ranks_any
from nasd.contract.protocol import Spec
from nasd.contract.streams import stream_seed
from nasd.worker.model import phenotype

if TYPE_CHECKING:
    from nasd.worker.model.inherit import Windows


@contextmanager
def reading(weights: Path) -> Iterator[None]:
    """What is wrong with a model that is read within is the machine's fault, and names its folder:
    where there are no digests, damage shows only here."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        if isinstance(error, OSError) and error.errno == errno.ENOMEM:
            raise
        raise Damaged(weights, f"is not the model that was written there ({error})") from error


def lineage_of(spec: Spec) -> Lineage:
    return tuple(BlockLineage.from_json(block) for block in spec.lineage)


def drawing(spec: Spec, stage: Stage) -> torch.Generator:
    """What fresh weights are drawn from, named by the architecture's place in the search, so that
    a retry draws the same ones."""
    return torch.Generator().manual_seed(
        stream_seed(spec.seed, spec.candidate, f"initialise/{stage.whole}")
    )


def continued(
    spec: Spec, kind: type[phenotype.Model], fresh: torch.Generator, labels: Iterable[str] = ()
) -> phenotype.Model:
    """What an earlier stage of the same candidate left, as a `kind`: under its head, or where it
    has none of the task, the one that the spec names, or else one drawn from `fresh`. labels: a
    classifier's."""
    head = head_of(spec)
    if head is None:
        return loaded(
            spec,
            lambda folder: phenotype.load_under_head(kind, folder, fresh, spec.dropout, labels),
        )
    with reading(head):
        return loaded(spec, lambda folder: phenotype.load(kind, folder, spec.dropout, head))


def head_of(spec: Spec) -> Path | None:
    """The folder whose head stands on what the attempt starts from."""
    return None if spec.head_weights is None else Path(spec.head_weights)


def loaded(spec: Spec, load: Callable[[Path], phenotype.Model]) -> phenotype.Model:
    """What `load` makes of the folder that the attempt starts from."""
    assert spec.weights is not None
    folder = Path(spec.weights)
    with reading(folder):
        return load(folder)


def born(
    spec: Spec,
    kind: type[phenotype.Model],
    fresh: torch.Generator,
    windows: "Callable[[], Windows]",
) -> phenotype.Model:
    """The child, from its parents' weights; what does not go as one would wish is said.

    windows: what modules are ranked and refitted by; asked for only where there are such.
    """
    from nasd.worker.model.inherit import born as made

    lineage = lineage_of(spec)
    folders = [Path(one) for one in (spec.weights, spec.second_weights) if one is not None]
    parents = []
    for folder in folders:
        with reading(folder):
            parents.append(phenotype.load(kind, folder, spec.dropout, head_of(spec)))
    child = Genotype.from_json(spec.genotype)
    fits = ranks_any(lineage) or child.rank != parents[0].architecture.rank
    seen = windows() if spec.refits and fits else None
    began = time.monotonic()
    model = made(child, lineage, parents, fresh, seen, print)
    if seen is not None:
        tokens = int(seen.attention_mask.sum())
        taken = time.monotonic() - began
        print(f"born of {len(parents)}, refitted by {tokens} tokens, in {taken:.1f} s", flush=True)
    return model
