"""What turns token ids into states.

It travels with exported models. Needs only torch. Shapes: b = examples, l = tokens of an example,
k = chosen tokens of an example, e = the embeddings' width, w = the backbone's.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .architecture import Architecture, norm_of
from .layers import Dropout


class Embeddings(nn.Module):
    """Word plus learned position embeddings, normalised: [b, l] token ids to [b, l, w].

    With a rank r the words' table is [vocab_size, r], and `widen` maps what stands there to the
    embeddings' width e; where that is not w, `project` maps what is normalised to w. Of that table
    the f frequent words are left out, which have a table [f, e] of their own (adaptive inputs,
    Baevski and Auli 2019); `row` [vocab_size] is where each word stands: below f there, else f
    further down in the other. With a separator, `second` [e] is added to the words of a second
    text; it never trains.
    """

    second: Tensor
    row: Tensor

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        inner = arch.embedding_width or arch.width
        columns = arch.rank or inner
        rare = arch.vocab_size - arch.frequent
        padding = None if arch.frequent else arch.pad_token_id
        self.word = nn.Embedding(rare, columns, padding_idx=padding)
        self.widen = None if arch.rank is None else nn.Linear(columns, inner, bias=False)
        self.frequent: nn.Embedding | None = None
        if arch.frequent:
            self.frequent = nn.Embedding(arch.frequent, inner)
            self.register_buffer("row", torch.arange(arch.vocab_size, dtype=torch.int32))
        self.position = None if arch.theta is not None else nn.Embedding(arch.positions, inner)
        self.separator = arch.separator
        if arch.separator is not None:
            self.register_buffer("second", torch.zeros(inner))
        self.norm = norm_of(inner, arch)
        self.project: nn.Linear | None = None
        if arch.embedding_width is not None:
            self.project = nn.Linear(inner, arch.width, bias=arch.biases)
        self.dropout = Dropout(arch.dropout)

    def forward(
        self, input_ids: Tensor, places: Tensor | None = None, behind: Tensor | None = None
    ) -> Tensor:
        """places: where in its example each token stands, if not one behind another from 0 on;
        behind: what `behind` gives for it then."""
        normed: Tensor = self.dropout(self.norm(self.summed(input_ids, places, behind)))
        return normed if self.project is None else self.project(normed)

    def behind(self, input_ids: Tensor) -> Tensor | None:
        """[b, l] whether a token is of the second text; None where that makes no difference."""
        if self.separator is None:
            return None
        ends = (input_ids == self.separator).long()
        return ends.cumsum(1) > ends

    def summed(
        self, input_ids: Tensor, places: Tensor | None = None, behind: Tensor | None = None
    ) -> Tensor:
        """The same before the norm, [b, l, e]."""
        words = self.words(input_ids)
        if behind is None:
            behind = self.behind(input_ids)
        if behind is not None:
            words = words + behind[..., None].to(words.dtype) * self.second
        if self.position is None:
            return words
        if places is None:
            where = self.position.weight[: input_ids.shape[1]]
        else:
            where = self.position(places)
        return words + where

    def words(self, input_ids: Tensor) -> Tensor:
        """What stands for each word, [b, l, e]."""
        if self.frequent is None:
            found: Tensor = self.word(input_ids)
            return found if self.widen is None else self.widen(found)
        assert self.widen is not None, "frequent words stand beside a product"
        row, own = self.row[input_ids], self.frequent.num_embeddings
        rare = self.widen(self.word((row - own).clamp(min=0)))
        often = self.frequent(row.clamp(max=own - 1))
        return torch.where((row < own)[..., None], often, rare.to(often.dtype))

    def finished(self, summed: Tensor) -> Tensor:
        """What is made of the sum, without dropout."""
        normed: Tensor = self.norm(summed)
        return normed if self.project is None else self.project(normed)

    def logits(self, states: Tensor, bias: Tensor) -> Tensor:
        """States [b, k, e] times the embedding of each word, [b, k, vocab_size]."""
        if self.widen is None:
            return F.linear(states, self.word.weight, bias)
        found = F.linear(states @ self.widen.weight, self.word.weight)
        if self.frequent is not None:
            often = F.linear(states, self.frequent.weight)
            found = torch.cat([often, found], -1)[..., self.row]
        return found + bias
