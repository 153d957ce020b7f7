"""Blocks, and the encoder that they make: the part that evolves.

It travels with exported models. Needs only torch. Shapes: b = examples, l = tokens of an example,
k = chosen tokens of an example, w = the backbone's width.
"""

from itertools import takewhile
from typing import cast

from torch import Tensor, nn

from .architecture import Architecture, BlockShape, norm_of
from .attention import Attention
from .embeddings import Embeddings
from .feedforward import FeedForward
from .layers import Packing, Spans, at_places


class Block(nn.Module):
    """An encoder block with DistilBERT's residuals, each normalised after the sum; with `pre_norm`
    what a module reads is normalised, and the sums are not.

    The norms belong to the block: a feed-forward network or an attention can be exchanged while
    the norm at its place stays.
    """

    def __init__(self, shape: BlockShape, arch: Architecture) -> None:
        super().__init__()
        self.pre_norm = arch.pre_norm
        self.attention = Attention(
            shape.heads, arch, shape.role, shape.convolution, shape.branch, shape.remaining
        )
        self.attention_norm = nn.Identity() if shape.bare else norm_of(arch.width, arch)
        self.ffns = nn.ModuleList(FeedForward(ffn, arch) for ffn in shape.ffns)
        self.ffn_norms = nn.ModuleList(norm_of(arch.width, arch) for _ in shape.ffns)

    def layers(self) -> list[tuple[nn.Module, ...]]:
        """From below: the attention and each feed-forward network, with the norm behind it, or with
        `pre_norm` the one before it."""
        return [
            (self.attention, self.attention_norm),
            *zip(self.ffns, self.ffn_norms, strict=True),
        ]

    def forward(
        self,
        states: Tensor,
        mask: Tensor | Spans | None,
        positions: Tensor | None = None,
        first: int = 0,
        last: int | None = None,
    ) -> Tensor:
        """[b, l, w] to [b, l, w], or to [b, k, w] where only `positions` [b, k] are wanted.

        first, last: computes only these of its layers, layers()[first:last]; behind the attention,
        `states` are those at the positions already.
        """
        chosen: Tensor = states
        if first == 0:
            read: Tensor = self.attention_norm(states) if self.pre_norm else states
            asking = read
            if positions is not None:
                chosen, asking = at_places(states, positions), at_places(read, positions)
            chosen = self.attention(asking, read, mask, positions) + chosen
            if not self.pre_norm:
                chosen = self.attention_norm(chosen)
        for ffn, norm in self.layers()[max(first, 1) : last]:
            chosen = ffn(norm(chosen)) + chosen if self.pre_norm else norm(ffn(chosen) + chosen)
        return chosen


class Encoder(nn.Module):
    """Embeddings and blocks: the part that evolves. With `pre_norm` a norm stands behind them."""

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        self.embeddings = Embeddings(arch)
        self.blocks = nn.ModuleList(Block(block, arch) for block in arch.blocks)
        self.final_norm = norm_of(arch.width, arch) if arch.pre_norm else nn.Identity()

    @property
    def _blocks(self) -> list[Block]:
        return cast("list[Block]", self.blocks)

    def layers(self) -> list[tuple[nn.Module, ...]]:
        """From below: the embeddings, and those of each block."""
        return [(self.embeddings,), *(layer for block in self._blocks for layer in block.layers())]

    def frozen_prefix(self) -> list[tuple[nn.Module, ...]]:
        """The layers below the lowest module that trains."""

        def frozen(layer: tuple[nn.Module, ...]) -> bool:
            return not any(weight.requires_grad for part in layer for weight in part.parameters())

        return list(takewhile(frozen, self.layers()))

    def narrows(self, layers: int) -> bool:
        """Whether the lowest `layers` give states at the wanted positions alone, as all do that
        hold the last block's attention."""
        return layers > len(self.layers()) - len(self._blocks[-1].layers())

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        positions: Tensor | None = None,
        known: Tensor | None = None,
    ) -> Tensor:
        """Token ids [b, l] to states [b, l, w], or [b, k, w] at `positions` [b, k] alone.

        attention_mask [b, l] is 0 where a token is padding; None means that there is none, which
        is faster. Where only some positions are wanted, the last block computes no others. known:
        what `below` gives for this input and these positions, which is then not computed again.
        """
        done = 0 if known is None else len(self.frozen_prefix())
        states = input_ids if known is None else known
        given = self._through(range(done, len(self.layers())), states, attention_mask, positions)
        finished: Tensor = self.final_norm(given)
        return finished

    def below(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """What the frozen prefix makes of token ids [b, l]: states [b, l, w], or [b, k, w] at
        `positions` [b, k] where it narrows."""
        layers = range(len(self.frozen_prefix()))
        return self._through(layers, input_ids, attention_mask, positions)

    def packed(self, input_ids: Tensor, packing: Packing) -> Tensor:
        """Token ids [b, l] to states [b, l, w], 0 in the padding, for which nothing is computed."""
        examples, longest = input_ids.shape
        kept = input_ids.flatten()[packing.places][None]
        behind = self.embeddings.behind(input_ids)
        if behind is not None:
            behind = behind.flatten()[packing.places][None]
        states: Tensor = self.embeddings(kept, packing.places[None] % longest, behind)
        for block in self.blocks:
            states = block(states, Spans(packing.offsets, longest))
        states = self.final_norm(states)
        spread = states.new_zeros(examples * longest, states.shape[-1])
        return spread.index_copy(0, packing.places, states[0]).view(examples, longest, -1)

    def _through(
        self, layers: range, states: Tensor, attention_mask: Tensor | None, positions: Tensor | None
    ) -> Tensor:
        """Through a range of the layers, of which the first takes token ids."""
        mask = None if attention_mask is None else attention_mask.bool()[:, None, None, :]
        if 0 in layers:
            states = self.embeddings(states)
        begin = 1  # of the block's own layers
        for block in self._blocks:
            end = begin + len(block.layers())
            first, last = max(layers.start, begin), min(layers.stop, end)
            if first < last:
                wanted = positions if block is self._blocks[-1] else None
                part = (first - begin, None if last == end else last - begin)
                states = block(states, mask, wanted, *part)
            begin = end
        return states
