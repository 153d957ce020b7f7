"""A child's weights, from its parents' by its lineage, module by module from below.

What each kind of transfer does with a module is nasd.worker.model.transfers' matter; here is the
order, what the child computes so far, and what its parents computed at the same place. The layer
norms belong to the block, not to the module before them: a module is exchanged while the norm at
its place stays. The head is the first parent's, and so are the embeddings, whose factors are
nasd.worker.model.factors' matter, and a norm behind all blocks.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from nasd.contract.genotype import BlockLineage, Genotype, Lineage, ModuleLineage
from nasd.worker.model import factors, phenotype, transfers
from nasd.worker.model.architecture import Architecture
from nasd.worker.model.attention import Attention
from nasd.worker.model.encoder import Block, Encoder
from nasd.worker.model.phenotype import MaskedLM, Model
from nasd.worker.model.site import Part, Site


@dataclass(frozen=True)
class Windows:
    """Unlabelled text, of the training part, by which modules are ranked and refitted.

    input_ids, attention_mask: [n, l]; the mask is 0 where a token is padding. counts: how often
    each token stands in that part, [vocabulary, or as far as they occur].
    """

    input_ids: Tensor
    attention_mask: Tensor
    counts: Callable[[], Tensor] | None = None

    def within(self, tokens: int) -> "Windows":
        """Every second one, third, or so forth, such that they have about so many tokens."""
        step = math.ceil(int(self.attention_mask.sum()) / tokens)
        return replace(
            self, input_ids=self.input_ids[::step], attention_mask=self.attention_mask[::step]
        )


def inherit(
    child: Genotype,
    lineage: Lineage,
    folder: Path,
    generator: torch.Generator,
    dropout: float | None = None,
) -> MaskedLM:
    """The child's model on the CPU, from the parent's MaskedLM in `folder`.

    dropout: overrides the parent's. Otherwise as `born`.
    """
    parent = phenotype.load(MaskedLM, folder, dropout)
    return born(child, lineage, [parent], generator)


@torch.no_grad()
def born(
    child: Genotype,
    lineage: Lineage,
    parents: Sequence[Model],
    generator: torch.Generator,
    windows: Windows | None = None,
    say: Callable[[str], None] = lambda _: None,
    traces: "Sequence[Trace] | None" = None,
) -> Model:
    """The child's model on the CPU; `lineage` says which of the parents' modules it continues.

    Only what is drawn anew draws from `generator`, from the embeddings upwards. Without windows,
    `ranked` goes by the weights alone. say: takes what did not go as one would wish. traces: of the
    parents on the windows, where several children are made of the same. Raises
    ValueError where the lineage does not lead from the parents' architectures to the child's.
    """
    first = parents[0]
    arch = first.architecture.with_genotype(child.to_json())
    _check(arch, lineage, [parent.architecture for parent in parents])
    model = phenotype.empty(type(first), arch)
    counts = None if windows is None or windows.counts is None else windows.counts()
    factors.fill(model.encoder.embeddings, first.encoder.embeddings, generator, counts)
    model.encoder.final_norm.load_state_dict(first.encoder.final_norm.state_dict())
    model.get_submodule(first.head_name).load_state_dict(
        first.get_submodule(first.head_name).state_dict()
    )
    model.eval()
    if traces is None:
        traces = [Trace(parent.eval().encoder, windows) for parent in parents]
    mine = Trace(model.encoder, windows)
    if arch.words == first.architecture.words:
        mine.begins_as(traces[0], shared(lineage, first.architecture))
    for index, block in enumerate(lineage):
        for note in _fill(index, block, mine, traces, generator, arch.initializer_range):
            say(f"block {index + 1}: {note}")
    return model


def shared(lineage: Lineage, parent: Architecture) -> int:
    """How many of the lowest blocks are the first parent's as they are, and give the same."""
    for index, (line, shape) in enumerate(zip(lineage, parent.blocks, strict=False)):
        modules = [(line.attention, None), *((ffn, place) for place, ffn in enumerate(line.ffns))]
        same = len(line.ffns) == len(shape.ffns) and all(
            (one.transfer, one.parent, one.block, one.place) == ("kept", 0, index, place)
            for one, place in modules
        )
        if not same:
            # A block that is added takes the norm below it for its own.
            return max(0, index - 1) if line.source is None else index
    count = min(len(lineage), len(parent.blocks))
    return max(0, count - 1) if any(line.source is None for line in lineage[count:]) else count


class Trace:
    """What an encoder computes on the windows, layer by layer, as far as it is asked for.

    Layer 0 is the embeddings; behind it come, for each block, its attention and its FFNs, each with
    its norm. A layer carries on what the one above it adds to: its sum behind its norm, or with
    `pre_norm`, where norms stand before the modules, the sum itself.
    """

    def __init__(self, encoder: Encoder, windows: Windows | None) -> None:
        self.encoder = encoder
        self.windows = windows
        self.pre_norm = cast("Block", encoder.blocks[0]).pre_norm
        self._sums: dict[int, Tensor] = {}
        self._below: tuple[Trace, int] | None = None

    def begins_as(self, other: "Trace", blocks: int) -> None:
        """Its lowest blocks are another's, so what those compute is not computed again."""
        self._below = other, self.layer(blocks) - 1

    @property
    def layers(self) -> list[tuple[nn.Module, nn.LayerNorm]]:
        embeddings = self.encoder.embeddings
        found: list[tuple[nn.Module, nn.LayerNorm]] = [(embeddings, embeddings.norm)]
        for block in self.encoder.blocks:
            found += cast("list[tuple[nn.Module, nn.LayerNorm]]", cast("Block", block).layers())
        return found

    def layer(self, block: int, place: int | None = None) -> int:
        """The number of a block's attention, or of its FFN at this place."""
        below = sum(len(cast("Block", one).layers()) for one in self.encoder.blocks[:block])
        return 1 + below + (0 if place is None else 1 + place)

    def sum(self, layer: int) -> Tensor:
        """What the layer and what goes past it give together, before any norm, [n, l, w]."""
        assert self.windows is not None
        if self._below is not None and layer <= self._below[1]:
            return self._below[0].sum(layer)
        first = 0 if self._below is None else self._below[1] + 1
        for number in range(first, layer + 1):
            if number in self._sums:
                continue
            if number == 0:
                embeddings, ids = self.encoder.embeddings, self.windows.input_ids
                states = embeddings.summed(ids)
            else:
                read, module = self.read(number), self.layers[number][0]
                mask = self.windows.attention_mask.bool()[:, None, None, :]
                attends = isinstance(module, Attention)
                added = module(read, read, mask) if attends else module(read)
                states = self.carried(number - 1) + added
            self._sums[number] = states
        return self._sums[layer]

    def carried(self, layer: int) -> Tensor:
        """What the next layer adds to, by the norms as they are just now, [n, l, w]."""
        if layer == 0:
            return self.encoder.embeddings.finished(self.sum(0))
        if self.pre_norm:
            return self.sum(layer)
        states: Tensor = self.layers[layer][1](self.sum(layer))
        return states

    def read(self, layer: int) -> Tensor:
        """What the layer's module is given, [n, l, w]."""
        carried = self.carried(layer - 1)
        if not self.pre_norm:
            return carried
        states: Tensor = self.layers[layer][1](carried)
        return states

    def below(self, layer: int) -> nn.LayerNorm | None:
        """The norm that the layer stands on; None where what it stands on is not normalised."""
        if layer == 1 and self.encoder.embeddings.project is not None:
            return None
        return self.layers[layer - 1][1]


def _fill(
    index: int,
    lineage: BlockLineage,
    mine: Trace,
    traces: Sequence[Trace],
    generator: torch.Generator,
    spread: float,
) -> list[str]:
    """Fills a block of the child's; all below it is filled. Returns what is to be noted."""
    block = cast("Block", mine.encoder.blocks[index])
    if lineage.source is None and lineage.attention.transfer == "identity":
        layers = mine.layers
        own = layers[mine.layer(index) :][: len(block.layers())]
        return transfers.added_block(
            own,
            mine.below(mine.layer(index)),
            _neighbour(mine if index else traces[0], max(0, index - 1)),
            generator,
            spread,
            mine.pre_norm,
        )
    notes: list[str] = []
    modules: list[tuple[int | None, ModuleLineage]] = [(None, lineage.attention)]
    modules += enumerate(lineage.ffns)
    for place, module in modules:
        layer = mine.layer(index, place)
        parent = traces[module.parent]
        source = None
        if module.block is not None and (place is None or module.place is not None):
            source = parent.layer(module.block, module.place)
        part, norm = mine.layers[layer]
        stood = (None, None) if source is None else parent.layers[source]
        site = Site(
            module=cast("Part", part),
            norm=norm,
            below=mine.below(layer),
            source=cast("Part | None", stood[0]),
            source_norm=stood[1],
            generator=generator,
            spread=spread,
            pre_norm=mine.pre_norm,
        )
        if mine.windows is not None and source is not None:
            site.mask = mine.windows.attention_mask
            site.states = lambda layer=layer: mine.read(layer)
            site.past = lambda layer=layer: mine.carried(layer - 1)
            site.target = lambda parent=parent, source=source: parent.sum(source)
        transfers.TRANSFERS[module.transfer](site)
        notes += site.notes
    return notes


def _neighbour(
    trace: Trace, block: int
) -> tuple[list[tuple[nn.Module, nn.LayerNorm]], nn.LayerNorm | None]:
    """The layers of a block, each with its norm, and the norm below the first."""
    first = trace.layer(block)
    count = len(cast("Block", trace.encoder.blocks[block]).layers())
    return trace.layers[first : first + count], trace.below(first)


def new_parameters(model: MaskedLM, lineage: Lineage) -> set[str]:
    """Names of the parameters, in `model`, of the modules that are not yet trained."""
    return {
        f"{module}.{name}"
        for module in _new_modules(lineage)
        for name, _ in model.get_submodule(module).named_parameters()
    }


def _new_modules(lineage: Lineage) -> Iterator[str]:
    """Modules that wait for training, and the norms of places that are new."""
    for index, block in enumerate(lineage):
        here = f"encoder.blocks.{index}"
        if block.attention.new:
            yield f"{here}.attention"
        if block.source is None:
            yield f"{here}.attention_norm"
        for number, ffn in enumerate(block.ffns):
            if ffn.new:
                yield f"{here}.ffns.{number}"
                if ffn.place is None:
                    yield f"{here}.ffn_norms.{number}"


def _check(child: Architecture, lineage: Lineage, parents: Sequence[Architecture]) -> None:
    """A module may only be kept where it is the same: heads and activations leave no trace in the
    weights, so a wrong lineage would otherwise go unseen."""
    if len(lineage) != len(child.blocks):
        raise ValueError(f"a lineage of {len(lineage)} blocks for {len(child.blocks)}")
    for index, (block, shape) in enumerate(zip(lineage, child.blocks, strict=True)):
        if len(block.ffns) != len(shape.ffns):
            raise ValueError(f"block {index}: its lineage has another number of FFNs")
        modules = [block.attention, *block.ffns]
        for place, made in enumerate(modules, -1):
            if made.block is None:
                if made.transfer in ("kept", "ranked"):
                    raise ValueError(f"block {index}: nothing stood where a module is kept")
                continue
            if not 0 <= made.parent < len(parents):
                raise ValueError(f"block {index}: there is no parent {made.parent}")
            if not 0 <= made.block < len(parents[made.parent].blocks):
                raise ValueError(f"block {index}: the parent has no block {made.block}")
            source = parents[made.parent].blocks[made.block]
            if place < 0:
                if not made.new and replace(shape, ffns=()) != replace(source, ffns=()):
                    raise ValueError(f"block {index}: its attention is not block {made.block}'s")
                continue
            if made.place is None:
                continue
            if not 0 <= made.place < len(source.ffns):
                raise ValueError(f"block {index}: block {made.block} has no FFN {made.place}")
            if not made.new and shape.ffns[place] != source.ffns[made.place]:
                raise ValueError(f"block {index}: an FFN is not block {made.block}'s")
