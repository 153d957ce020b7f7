"""How long a forward pass takes, told from a table: each kind of module was measured once, and a
model takes the sum of its own, on top of what every call takes. So a latency is known before a
model is built, and costs nothing.

A table is of one search space, device, engine, batch, length and number of threads.
"""

import math
import random
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Self

from nasd.contract.genotype import Block, FeedForward, Genotype

if TYPE_CHECKING:  # a look at a search checks no config
    from nasd.contract.config import SearchSpace

EMBEDDINGS = "embeddings"


@dataclass(frozen=True, slots=True)
class Words:
    """Embeddings; rank, frequent: as in a genotype."""

    rank: int | None
    frequent: int = 0


@dataclass(frozen=True, slots=True)
class Local:
    """An attention that looks at neighbours alone."""

    heads: int


@dataclass(frozen=True, slots=True)
class Fewer:
    """An attention of whose heads so many remain."""

    heads: int
    remaining: int


@dataclass(frozen=True, slots=True)
class Convolutions:
    """What queries, keys and values of one attention go through."""

    kernel: int


@dataclass(frozen=True, slots=True)
class Beside:
    """The convolution beside an attention."""

    kernel: int


Part = int | FeedForward | Words | Local | Fewer | Convolutions | Beside
LOCAL, CONVOLUTION, BRANCH = "local attention", "convolution", "branch"
FEWER = "fewest heads"  # of one number


def attention(heads: int) -> str:
    return f"attention {heads}"


def network(ffn: FeedForward) -> str:
    return f"ffn {ffn.in_words}"


def measured(space: "SearchSpace", local: bool = False) -> dict[str, Part]:
    """What a table of the space holds, by name: a number of heads, a feed-forward network,
    embeddings, or convolutions. Of deep networks only those whose layers are of one size: what one
    layer more takes follows from them; and of attentions that lose heads those that lose most.
    local: whether blocks may look at neighbours alone."""
    found: dict[str, Part] = {EMBEDDINGS: Words(None)}
    often = space.frequent_words
    found |= {f"{EMBEDDINGS} {rank}": Words(rank, often) for rank in sorted(space.ranks)}
    found |= {attention(heads): heads for heads in sorted(space.heads)}
    if (least := fewest(space)) is not None:
        lose = [heads for heads in sorted(space.heads) if heads > least]
        found |= {f"{FEWER} {heads}": Fewer(heads, least) for heads in lose}
    if local:
        found |= {f"{LOCAL} {heads}": Local(heads) for heads in sorted(space.heads)}
    found |= {f"{CONVOLUTION} {one}": Convolutions(one) for one in sorted(space.convolutions)}
    found |= {f"{BRANCH} {one}": Beside(one) for one in sorted(space.branches)}
    deepest = max(space.layers)
    for activation in space.activations:
        for size in sorted(space.sizes):
            for layers in (2, *([3] if deepest > 2 else [])):
                ffn = FeedForward(activation, (size,) * (layers - 1))
                found[network(ffn)] = ffn
    return found


def fewest(space: "SearchSpace") -> int | None:
    """Heads that remain where most are lost; None where none may be."""
    return min(space.remaining_heads, default=None)


def drawn(space: "SearchSpace", rng: random.Random) -> Genotype:
    """A genotype of the space, every choice alike."""
    blocks = []
    for _ in range(rng.randint(*space.blocks)):
        ffns = [
            FeedForward(
                rng.choice(space.activations),
                tuple(rng.choice(space.sizes) for _ in range(rng.choice(space.layers) - 1)),
            )
            for _ in range(rng.randint(1, space.ffns))
        ]
        block = Block(rng.choice(space.heads), tuple(ffns))
        convolution, branch = (_one_of(one, rng) for one in (space.convolutions, space.branches))
        fewer = [one for one in space.remaining_heads if one < block.heads]
        remaining = _one_of(fewer, rng)
        made = replace(block, convolution=convolution, branch=branch, remaining=remaining)
        blocks.append(made)
    rank = rng.choice((None, *space.ranks))
    return Genotype(tuple(blocks), rank, 0 if rank is None else space.frequent_words)


def _one_of(values: Sequence[int], rng: random.Random) -> int | None:
    """Or none of them; nothing is drawn where there are none."""
    return rng.choice((None, *values)) if values else None


@dataclass(frozen=True)
class Table:
    """parts: milliseconds of each module by itself, by name. overhead, scale: a model takes the
    overhead, and this times the sum of its parts; fitted to whole models. about: what it was
    measured on and how. unsure: of parts whose median is not known within what was asked for, the
    half of its interval as a share of it. fewest: heads that remain in those that lose most."""

    parts: Mapping[str, float]
    overhead: float
    scale: float
    about: Mapping[str, Any]
    unsure: Mapping[str, float]
    fewest: int | None = None

    def predict(self, genotype: Genotype) -> float:
        """Milliseconds of a forward pass."""
        return self.overhead + self.scale * self.total(genotype)

    def total(self, genotype: Genotype) -> float:
        """The sum of its parts."""
        factorised = self._sizes(EMBEDDINGS)
        found = self.parts[EMBEDDINGS]
        if genotype.rank is not None and factorised:
            found = self._between(factorised, genotype.rank)
        heads, local = self._sizes("attention"), self._sizes(LOCAL)
        fewer = self._sizes(FEWER)
        kernels = self._sizes(CONVOLUTION), self._sizes(BRANCH)
        for block in genotype.blocks:
            # A table of an earlier nasd has no local ones.
            nearby = block.role == "local" and local
            whole = self._between(local if nearby else heads, block.heads)
            found += whole * self._left(block, heads, fewer)
            for known, kernel in zip(kernels, (block.convolution, block.branch), strict=True):
                found += 0.0 if kernel is None else self._between(known, kernel)
            found += sum(self._ffn(ffn) for ffn in block.ffns)
        return found

    def _left(
        self,
        block: Block,
        heads: Sequence[tuple[int, float]],
        fewer: Sequence[tuple[int, float]],
    ) -> float:
        """What share of an attention's time its remaining heads take: on the line between all of
        them and the fewest; in a table without such, as many take as much."""
        gone = block.heads - block.present
        if not gone or self.fewest is None or not fewer or block.heads <= self.fewest:
            return block.present / block.heads
        least = self._between(fewer, block.heads) / self._between(heads, block.heads)
        return 1 - (1 - least) * gone / (block.heads - self.fewest)

    def _ffn(self, ffn: FeedForward) -> float:
        """A layer more between two of one size takes what a third one adds there; between two
        sizes, where the work is their product, the geometric mean of both."""
        plain, deeper = self._networks(ffn.activation)
        ends = (self._between(plain, ffn.sizes[0]) + self._between(plain, ffn.sizes[-1])) / 2
        if len(ffn.sizes) == 1 or not deeper:
            return ends
        more = [
            max(0.0, self._between(deeper, size) - self._between(plain, size)) for size in ffn.sizes
        ]
        return ends + sum(math.sqrt(one * other) for one, other in pairwise(more))

    def _sizes(self, kind: str) -> list[tuple[int, float]]:
        """(heads, or rank, and milliseconds) of those of a kind."""
        return sorted(
            (int(name.removeprefix(f"{kind} ")), value)
            for name, value in self.parts.items()
            if name.startswith(f"{kind} ")
        )

    def _networks(self, activation: str) -> tuple[list[tuple[int, float]], list[tuple[int, float]]]:
        """(size, milliseconds) of those with one hidden layer, and with two."""
        found: tuple[list[tuple[int, float]], list[tuple[int, float]]] = ([], [])
        for name, value in self.parts.items():
            kind, *words = name.split()
            if kind == "ffn" and words[0] == activation:
                sizes = words[1].split("-")
                found[len(sizes) - 1].append((int(sizes[0]), value))
        return sorted(found[0]), sorted(found[1])

    def _between(self, known: Sequence[tuple[int, float]], size: int) -> float:
        """The value at a size; where it was not measured, on the line through its neighbours."""
        assert known, "a table is of a whole search space"
        place = bisect_left(known, (size,))
        if place < len(known) and known[place][0] == size:
            return known[place][1]
        if len(known) == 1:
            return known[0][1]
        low = min(max(place - 1, 0), len(known) - 2)
        (one, here), (other, there) = known[low : low + 2]
        return max(0.0, here + (there - here) * (size - one) / (other - one))

    def to_json(self) -> dict[str, Any]:
        plain = asdict(self)
        if self.fewest is None:  # as it was before heads could be lost
            del plain["fewest"]
        return plain

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Inverse of `to_json`."""
        return cls(**data)


def fitted(sums: Sequence[float], times: Sequence[float]) -> tuple[float, float]:
    """The overhead and the scale with the least squares of relative errors, neither below 0."""
    assert len(sums) == len(times) > 0
    weights = [1 / time**2 for time in times]
    total = sum(weights)
    mean = sum(w * x for w, x in zip(weights, sums, strict=True)) / total
    middle = sum(w * y for w, y in zip(weights, times, strict=True)) / total
    spread = sum(w * (x - mean) ** 2 for w, x in zip(weights, sums, strict=True))
    common = sum(
        w * (x - mean) * (y - middle) for w, x, y in zip(weights, sums, times, strict=True)
    )
    scale = max(0.0, common / spread) if spread else middle / mean
    overhead = middle - scale * mean
    if overhead >= 0:
        return overhead, scale
    # Through the origin instead.
    return 0.0, sum(w * x * y for w, x, y in zip(weights, sums, times, strict=True)) / sum(
        w * x * x for w, x in zip(weights, sums, strict=True)
    )
