"""The corpora for masked language modelling: tokenised once, packed, then only read.

The records of all corpora stand behind one another, unfiltered (thesis 5.2.1), as one stream of
tokens, cut into pieces of `tokens - 2`; [CLS] and [SEP] are put around a piece when it is read.
Every sequence is full, so nothing is padded and each has the same number of masks. What is left
over at the end of the stream is dropped.

    cache/mlm-<key>/  pieces.npy      [pieces, tokens - 2], uint16 or int32
                      evaluation.npy  indices of the held-out pieces
                      train.npy       indices of the others
                      manifest.json   special token ids, counts
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from nasd.contract import formats
from nasd.contract.config import Corpus, MlmData
from nasd.contract.digests import Damaged
from nasd.contract.errors import NasdError
from nasd.worker.model.vocabulary import numbers
from nasd.worker.tasks import hub
from nasd.worker.training.progress import LONG, Progress

BATCH = 1000  # records tokenised at a time
FILES = ("pieces.npy", "evaluation.npy", "train.npy", "manifest.json")


@dataclass(frozen=True)
class SpecialTokens:
    """Token ids that masking and packing need. ordinary: ids that a mask may be replaced by."""

    cls: int
    sep: int
    mask: int
    pad: int
    vocab_size: int
    special: tuple[int, ...]

    @classmethod
    def of(cls, tokenizer: Any) -> Self:
        return cls(
            cls=tokenizer.cls_token_id,
            sep=tokenizer.sep_token_id,
            mask=tokenizer.mask_token_id,
            pad=tokenizer.pad_token_id,
            vocab_size=numbers(tokenizer),
            special=tuple(sorted(tokenizer.all_special_ids)),
        )


@dataclass(frozen=True)
class MlmCorpus:
    pieces: NDArray[Any]
    train: NDArray[np.int64]
    evaluation: NDArray[np.int64]
    tokens: SpecialTokens

    @property
    def length(self) -> int:
        """Tokens of a sequence, [CLS] and [SEP] included."""
        return int(self.pieces.shape[1]) + 2

    def sequences(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """[len(indices), length] token ids of the pieces `indices`."""
        block = np.empty((len(indices), self.length), dtype=np.int64)
        block[:, 0] = self.tokens.cls
        block[:, 1:-1] = self.pieces[indices]
        block[:, -1] = self.tokens.sep
        return block

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Raises Damaged if what `build` left is not whole."""
        try:
            manifest = json.loads((folder / "manifest.json").read_text())
            special = manifest["tokens"]
            return cls(
                pieces=np.load(folder / "pieces.npy", mmap_mode="r"),
                train=np.load(folder / "train.npy"),
                evaluation=np.load(folder / "evaluation.npy"),
                tokens=SpecialTokens(**{**special, "special": tuple(special["special"])}),
            )
        except (OSError, ValueError, EOFError, KeyError, TypeError) as error:
            raise Damaged(folder, f"is missing or damaged ({error})") from error


def records(corpus: Corpus, base: Path, progress: Progress) -> Iterator[list[str]]:
    """Batches of records of a corpus, blank ones left out: of exactly the files that it names, or,
    through `datasets`, of its data set."""
    if corpus.files:
        for name in corpus.files:
            with _of_the_corpora():
                found = (text for text in formats.texts(base / name, corpus.column) if text.strip())
                while texts := list(islice(found, BATCH)):
                    yield texts
        return
    rows = hub.load(corpus, "data.mlm.corpora", base, progress)
    if rows.column_names and corpus.column not in rows.column_names:
        raise NasdError(
            f"data.mlm.corpora: {corpus.hub} has no column {corpus.column!r}, only"
            f" {', '.join(rows.column_names)}; set column"
        )
    for batch in rows.iter(batch_size=BATCH):
        texts = [text for text in batch[corpus.column] if text and not text.isspace()]
        if texts:
            yield texts


@contextmanager
def _of_the_corpora() -> Iterator[None]:
    try:
        yield
    except NasdError as error:
        raise NasdError(f"data.mlm.corpora: {error}") from error


def build(
    data: MlmData, base: Path, tokenizer: Any, folder: Path, seed: int, progress: Progress
) -> tuple[int, int]:
    """Fills `folder`; returns how many sequences are for training and for evaluation."""
    special = SpecialTokens.of(tokenizer)
    kind = np.uint16 if special.vocab_size <= np.iinfo(np.uint16).max + 1 else np.int32
    width = data.tokens - 2
    stream = folder / "stream.bin"
    count = unknown = 0
    with stream.open("wb") as file:
        for corpus in data.corpora:
            for texts in records(corpus, base, progress):
                flat = encode(tokenizer, texts).astype(kind)
                flat.tofile(file)
                count += len(flat)
                unknown += int((flat == tokenizer.unk_token_id).sum())
                progress("tokenising", count)
    total = count // width
    held_out = data.evaluation_sequences
    check_enough(data, total)
    progress("packing", count, count, patience=LONG)
    tokens = np.memmap(stream, dtype=kind, mode="r", shape=(total, width))
    np.save(folder / "pieces.npy", tokens)
    del tokens
    stream.unlink()
    order = np.random.default_rng(seed).permutation(total)
    train = order[held_out:]
    if data.max_sequences is not None:
        train = train[: data.max_sequences]
    np.save(folder / "evaluation.npy", np.sort(order[:held_out]))
    np.save(folder / "train.npy", np.sort(train))
    (folder / "manifest.json").write_text(
        json.dumps(
            {
                "tokens": special.__dict__,
                "train": len(train),
                "evaluation": held_out,
                "unknown": unknown / count,
            }
        )
    )
    print(f"corpora: {len(train)} training and {held_out} evaluation sequences", flush=True)
    return len(train), held_out


def encode(tokenizer: Any, texts: Sequence[str]) -> NDArray[np.int64]:
    """The tokens of all texts, one after the other, without special ones."""
    encoded = tokenizer(
        texts,
        add_special_tokens=False,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )["input_ids"]
    return np.fromiter((token for text in encoded for token in text), dtype=np.int64)


def check_enough(data: MlmData, total: int) -> None:
    """Raises NasdError where so many sequences in all are too few."""
    held_out = data.evaluation_sequences
    if total < 2 * held_out:
        raise NasdError(
            f"data.mlm.corpora: the corpora give {total} sequences of {data.tokens} tokens, too"
            f" few for data.mlm.evaluation_sequences = {held_out} and as many to train on: give"
            " more text, or hold out less"
        )


def describe_sources(corpora: Sequence[Corpus], base: Path, digest: Callable[[Path], str]) -> Any:
    """What the cache key of the corpora is made of: contents of files, names of hub data sets.

    read: how files are read. Before 2 a file's name was a pattern, so that a cache of that time may
    hold another file's text; those of the hub's data sets never did, and still count.
    """
    return [
        {
            "files": [
                [formats.look(base / name).form, digest(base / name)] for name in corpus.files
            ],
            "column": corpus.column,
            "read": 2,
        }
        if corpus.files
        else corpus.model_dump(exclude={"files"})
        for corpus in corpora
    ]
