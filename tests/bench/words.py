"""`bin/bench words`: what a fine-tuned model loses, untrained, where its word embeddings become
smaller: a product of two factors of some rank, or one of a lower rank beside which some frequent
words keep all that they have, both with as many parameters.

Quality is (EM + F1) / 2 on the questions of articles that nobody trains on.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from nasd.contract.errors import NasdError
from nasd.contract.genotype import Backbone, Genotype, unchanged, weights_of_words
from nasd.worker.model.inherit import born
from tests.bench.recipe import SEED, Bench
from tests.bench.search import say

RANKS, FREQUENT = (192, 128, 96, 64), (500, 1000, 2000)


@dataclass(frozen=True)
class Row:
    """weights: entries of the word embeddings."""

    rank: int | None
    frequent: int
    weights: int
    quality: float


def shapes(
    model: Genotype, backbone: Backbone, ranks: list[int], frequent: list[int]
) -> Iterator[Genotype]:
    """As it is; of each rank; and with so many frequent words, of the highest rank at which the
    embeddings are no larger."""
    yield model
    for rank in ranks:
        alone = replace(model, rank=rank, frequent=0)
        yield alone
        size = weights_of_words(alone, backbone)
        for words in frequent:
            lower = (replace(model, rank=one, frequent=words) for one in range(rank, 0, -1))
            yield from islice((one for one in lower if weights_of_words(one, backbone) <= size), 1)


def measured(bench: Bench) -> list[Row]:
    given, parent, rows = bench.options, bench.model(), []
    if bench.baseline.rank is not None:
        raise NasdError(f"--model {given.model}: its word embeddings are a product already")
    for shape in shapes(bench.baseline, bench.backbone, given.ranks, given.frequent):
        still = torch.Generator().manual_seed(SEED)
        child = born(shape, unchanged(bench.baseline), [parent], still, bench.windows)
        weights = weights_of_words(shape, bench.backbone)
        rows.append(Row(shape.rank, shape.frequent, weights, bench.quality(child)))
        say(f"  rank {shape.rank}, {shape.frequent} words in full: {rows[-1].quality:.1f}")
    return rows


def table(rows: list[Row]) -> Table:
    made = Table(title="word embeddings made smaller, untrained")
    for name in ("rank", "words in full", "weights", "of them", "quality", "lost"):
        made.add_column(name, justify="right")
    whole = rows[0]
    for row in rows:
        made.add_row(
            "full" if row.rank is None else str(row.rank),
            str(row.frequent) if row.frequent else "",
            f"{row.weights / 1e6:.2f} M",
            f"{row.weights / whole.weights:.2f}",
            f"{row.quality:.1f}",
            f"{row.quality - whole.quality:+.1f}",
        )
    return made


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="bin/bench words", description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="a fine-tuned model's folder")
    parser.add_argument("--questions", type=Path, required=True, help="a file as SQuAD's")
    parser.add_argument("--ranks", type=int, nargs="+", default=RANKS)
    parser.add_argument("--frequent", type=int, nargs="+", default=FREQUENT)
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory(prefix="nasd-bench-") as folder:
        try:
            rows = measured(Bench(options, Path(folder)))
        except NasdError as error:
            sys.exit(f"bin/bench words: {error}")
    Console(width=None if sys.stdout.isatty() else 100).print(table(rows))
