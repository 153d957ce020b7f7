"""Which texts modules are ranked and refitted by: a few dozen, of the training part alone.

They follow from the experiment's seed, so every child of a search sees the same ones, and a retry
makes the same weights.
"""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from nasd.contract.streams import stream_seed
from nasd.worker.model.inherit import Windows
from nasd.worker.tasks.corpus import MlmCorpus
from nasd.worker.tasks.examples import Examples
from nasd.worker.tasks.passages import QaFeatures

TOKENS = 4096  # at most, so that a refit takes seconds
COUNTED = 10_000  # sequences of a corpus, of which its words are counted
HELD_OUT = 64  # windows by which mutants are screened, where there are ten times as many


def held_out(count: int, seed: int) -> NDArray[np.int64]:
    """Of so many training features, those that are kept for screening: one at least, and a tenth at
    most. In no epoch does anybody train on them, nor is anything refitted by them."""
    order = np.random.default_rng(stream_seed(seed, 0, "held out")).permutation(count)
    return np.sort(order[: min(HELD_OUT, max(1, count // 10))])


def of_batches(
    train: QaFeatures | Examples, seed: int, without: NDArray[np.int64] | None = None
) -> Windows:
    """Of training questions, each with its context, or of texts with labels. without: those that
    are held out."""
    rows = np.arange(len(train))
    if without is not None:
        rows = np.setdiff1d(rows, without)
    batch = train.batch(rows[_drawn(train.lengths[rows], seed)])

    def counts() -> torch.Tensor:
        found = np.bincount(train.tokens)
        if without is not None:
            found -= np.bincount(train.take(without).tokens, minlength=len(found))
        return torch.from_numpy(found)

    ids, mask = (torch.from_numpy(batch[name]) for name in ("input_ids", "attention_mask"))
    return Windows(ids, mask, counts)


def for_language(cache: Path, seed: int) -> Windows:
    """Of the training sequences of a corpus, unmasked."""
    corpus = MlmCorpus.load(cache)
    chosen = _drawn(np.full(len(corpus.train), corpus.length), seed)
    ids = torch.from_numpy(corpus.sequences(corpus.train[chosen]))

    def counts() -> torch.Tensor:
        return torch.from_numpy(np.bincount(corpus.pieces[corpus.train[:COUNTED]].ravel()))

    return Windows(ids, torch.ones_like(ids), counts)


def _drawn(lengths: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """So many examples in random order as TOKENS hold, and one at least. Of the shorter half, as
    shown together all of them are as long as the longest."""
    order = np.random.default_rng(stream_seed(seed, 0, "windows")).permutation(len(lengths))
    order = order[lengths[order] <= np.median(lengths)]
    held = np.cumsum(lengths[order]) <= TOKENS
    return np.sort(order[: max(1, int(held.sum()))])
