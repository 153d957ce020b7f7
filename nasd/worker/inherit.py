"""An offspring's weights: the parent's wherever they fit, fresh ones in new modules (thesis 4.2.1).

The layer norms belong to the block, not to the module before them: an altered module is drawn
afresh while the norm at its place stays. Embeddings and the MLM head are always kept.
"""

from collections.abc import Iterator
from pathlib import Path

import torch

from nasd.genotype import Genotype, Lineage
from nasd.worker import phenotype
from nasd.worker.phenotype import Architecture, MaskedLM


def inherit(
    child: Genotype,
    lineage: Lineage,
    folder: Path,
    generator: torch.Generator,
    dropout: float | None = None,
) -> MaskedLM:
    """The child's model on the CPU, from the parent's MaskedLM in `folder`.

    Only altered and added modules draw from `generator`, from the embeddings upwards. dropout:
    overrides the parent's. Raises ValueError where the lineage does not lead from the parent's
    architecture to the child's.
    """
    parent = phenotype.load(MaskedLM, folder, dropout)
    arch = parent.architecture.with_blocks(child.to_json()["blocks"])
    _check(arch, lineage, parent.architecture)
    model = phenotype.empty(MaskedLM, arch)
    for name, source in _modules(lineage):
        module = model.get_submodule(name)
        if source is None:
            phenotype.initialise(module, generator, arch.initializer_range)
        else:
            module.load_state_dict(parent.get_submodule(source).state_dict())
    return model


def new_parameters(model: MaskedLM, lineage: Lineage) -> set[str]:
    """Names of the parameters, in `model`, of the modules that are not yet trained."""
    return {
        f"{module}.{name}"
        for module, source in _modules(lineage)
        if source is None
        for name, _ in model.get_submodule(module).named_parameters()
    }


def _modules(lineage: Lineage) -> Iterator[tuple[str, str | None]]:
    """Every module of the child, and the one of the parent that it continues."""
    yield "encoder.embeddings", "encoder.embeddings"
    yield "head", "head"
    for index, block in enumerate(lineage):
        child = f"encoder.blocks.{index}"
        parent = None if block.source is None else f"encoder.blocks.{block.source}"
        yield f"{child}.attention", None if block.attention.new else _below(parent, "attention")
        yield f"{child}.attention_norm", _below(parent, "attention_norm")
        for number, ffn in enumerate(block.ffns):
            stood = parent if ffn.place is not None else None
            kept = None if ffn.new else stood
            yield f"{child}.ffns.{number}", _below(kept, f"ffns.{ffn.place}")
            yield f"{child}.ffn_norms.{number}", _below(stood, f"ffn_norms.{ffn.place}")


def _below(parent: str | None, name: str) -> str | None:
    return None if parent is None else f"{parent}.{name}"


def _check(child: Architecture, lineage: Lineage, parent: Architecture) -> None:
    """A module may only be kept where it is the same: heads and activations leave no trace in the
    weights, so a wrong lineage would otherwise go unseen."""
    if len(lineage) != len(child.blocks):
        raise ValueError(f"a lineage of {len(lineage)} blocks for {len(child.blocks)}")
    for index, (block, shape) in enumerate(zip(lineage, child.blocks, strict=True)):
        if len(block.ffns) != len(shape.ffns):
            raise ValueError(f"block {index}: its lineage has another number of FFNs")
        if block.source is None:
            continue
        if not 0 <= block.source < len(parent.blocks):
            raise ValueError(f"block {index}: the parent has no block {block.source}")
        source = parent.blocks[block.source]
        if not block.attention_new and shape.heads != source.heads:
            raise ValueError(f"block {index}: its attention is not block {block.source}'s")
        for ffn, made in zip(shape.ffns, block.ffns, strict=True):
            if made.place is None:
                continue
            if not 0 <= made.place < len(source.ffns):
                raise ValueError(f"block {index}: block {block.source} has no FFN {made.place}")
            if not made.new and ffn != source.ffns[made.place]:
                raise ValueError(f"block {index}: an FFN is not block {block.source}'s")
