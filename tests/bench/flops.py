"""Floating-point operations of a training step, counted from the shapes; pure functions.

Only matrix products count, each multiplication with its addition as two operations. Forward, a
product costs once its size; backward, once more for its weights' gradient if they train, and once
for its input's if something below trains; the two products inside the attention, without weights,
have two inputs' gradients. What lies below the lowest module that trains has no backward pass.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import count

from tests.bench.cases import BLOCKS, Shape

Trains = Callable[[str], bool]


@dataclass(frozen=True)
class Product:
    """macs: multiplications per token of the input. level: what depends on it has a higher one."""

    name: str
    level: int
    macs: float
    weights: bool = True


def products(shape: Shape, tokens: int, head: str, head_share: float, last: float) -> list[Product]:
    """From the embeddings upwards, by our names.

    head: mlm or qa. head_share: of the tokens the head is computed for; last: of those for which
    the last block's queries, output and feed-forward network are.
    """
    width, hidden = shape.width, shape.hidden
    levels = count(1)
    found = []
    for index in range(BLOCKS):
        share = last if index == BLOCKS - 1 else 1.0
        block = f"encoder.blocks.{index}."
        level = next(levels)
        found += [
            Product(f"{block}attention.q", level, share * width**2),
            Product(f"{block}attention.kv", level, 2 * width**2),
            Product(f"{block}attention", next(levels), share * 2 * tokens * width, weights=False),
            Product(f"{block}attention.out", next(levels), share * width**2),
            Product(f"{block}ffns.0.linears.0", next(levels), share * width * hidden),
            Product(f"{block}ffns.0.linears.1", next(levels), share * hidden * width),
        ]
    if head == "mlm":
        words = head_share * width * shape.vocabulary  # the embeddings once more
        found += [
            Product("head.transform", next(levels), head_share * width**2),
            Product("encoder.embeddings.word", next(levels), words),
        ]
    else:
        found.append(Product("qa_outputs", next(levels), head_share * 2 * width))
    return found


def a_token(work: Sequence[Product], trains: Trains, known: bool = False) -> float:
    """Operations of a training step per token of its input.

    trains: by name. known: what lies below the lowest module that trains costs nothing at all.
    """
    levels = [p.level for p in work if p.weights and trains(p.name)]
    # The word embeddings stand below everything, too.
    lowest = 0 if trains("encoder.embeddings.word") else min(levels, default=math.inf)
    total = 0.0
    for product in work:
        forward = 0 if known and product.level < lowest else 1
        own = 1 if product.weights and trains(product.name) else 0
        inputs = (1 if product.weights else 2) if product.level > lowest else 0
        total += 2 * product.macs * (forward + own + inputs)
    return total


def beginning(names: Iterable[str]) -> Trains:
    """Trains what begins like one of these; "" is everything."""
    chosen = tuple(names)
    return lambda name: name.startswith(chosen)


def mlm(
    shape: Shape, new: Iterable[str], sparse: bool, known: bool = False, share: float | None = None
) -> float:
    """Per token of masked language modelling. sparse: only what a loss asks for is computed.

    share: of the tokens that are masked, the shape's own by default.
    """
    masked = shape.masks / shape.tokens if share is None else share
    some = masked if sparse else 1.0
    return a_token(products(shape, shape.tokens, "mlm", some, some), beginning(new), known)


def qa(shape: Shape, widths: Iterable[tuple[float, int]], real: float, trains: bool) -> float:
    """Per real token of question answering.

    widths: (share of the features, tokens each is padded to); real: tokens of a feature without
    padding, in the mean. Where nothing trains, it is evaluated.
    """
    names = beginning([""] if trains else [])
    work = (
        share * width * a_token(products(shape, width, "qa", 1.0, 1.0), names)
        for share, width in widths
    )
    return sum(work) / real


def exact(lengths: Sequence[int]) -> list[tuple[float, int]]:
    """Widths without any padding."""
    return [(1 / len(lengths), length) for length in lengths]


def longest(lengths: Sequence[int], batch: int) -> list[tuple[float, int]]:
    """Widths where `batch` features drawn at random are padded to their longest.

    The longest of b draws is the i-th of n with probability (i / n)^b - ((i - 1) / n)^b.
    """
    n = len(lengths)
    return [
        ((i / n) ** batch - ((i - 1) / n) ** batch, length)
        for i, length in enumerate(sorted(lengths), 1)
    ]
