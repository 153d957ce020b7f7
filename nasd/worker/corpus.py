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
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from nasd.config import Corpus, MlmData
from nasd.digests import Damaged
from nasd.errors import NasdError
from nasd.worker.progress import DOWNLOAD, LONG, Progress

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
            vocab_size=len(tokenizer),
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
    """Batches of records of a corpus, through `datasets`; blank ones left out."""
    import datasets

    datasets.disable_progress_bars()
    try:
        if corpus.files:
            # One file at a time and streamed: no second copy of the text in a cache.
            rows = datasets.load_dataset(
                "text",
                data_files=[str(base / name) for name in corpus.files],
                split="train",
                streaming=True,
            )
            column = "text"
        else:
            assert corpus.hub is not None
            progress("downloading", patience=DOWNLOAD)
            rows = datasets.load_dataset(
                corpus.hub, corpus.config, revision=corpus.revision, split=corpus.split
            )
            column = corpus.column
        if rows.column_names and column not in rows.column_names:
            raise NasdError(
                f"data.mlm.corpora: {corpus.hub} has no column {column!r}, only"
                f" {', '.join(rows.column_names)}; set column"
            )
        for batch in rows.iter(batch_size=BATCH):
            texts = [text for text in batch[column] if text and not text.isspace()]
            if texts:
                yield texts
    except NasdError:
        raise
    except Exception as error:
        name = corpus.hub or ", ".join(corpus.files)
        raise NasdError(f"data.mlm.corpora: {name} cannot be read: {error}") from error


def build(
    data: MlmData, base: Path, tokenizer: Any, folder: Path, seed: int, progress: Progress
) -> tuple[int, int]:
    """Fills `folder`; returns how many sequences are for training and for evaluation."""
    special = SpecialTokens.of(tokenizer)
    kind = np.uint16 if special.vocab_size <= np.iinfo(np.uint16).max + 1 else np.int32
    width = data.tokens - 2
    stream = folder / "stream.bin"
    count = 0
    with stream.open("wb") as file:
        for corpus in data.corpora:
            for texts in records(corpus, base, progress):
                encoded = tokenizer(
                    texts,
                    add_special_tokens=False,
                    return_attention_mask=False,
                    return_token_type_ids=False,
                    verbose=False,
                )["input_ids"]
                flat = np.fromiter((token for text in encoded for token in text), dtype=kind)
                flat.tofile(file)
                count += len(flat)
                progress("tokenising", count)
    total = count // width
    held_out = data.evaluation_sequences
    if total < 2 * held_out:
        stream.unlink()
        raise NasdError(
            f"data.mlm.corpora: the corpora give {total} sequences of {data.tokens} tokens, too"
            f" few for data.mlm.evaluation_sequences = {held_out} and as many to train on"
        )
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
        json.dumps({"tokens": special.__dict__, "train": len(train), "evaluation": held_out})
    )
    print(f"corpora: {len(train)} training and {held_out} evaluation sequences", flush=True)
    return len(train), held_out


def describe_sources(corpora: Sequence[Corpus], base: Path, digest: Callable[[Path], str]) -> Any:
    """What the cache key of the corpora is made of: contents of files, names of hub data sets."""
    return [
        {"files": [digest(base / name) for name in corpus.files]}
        if corpus.files
        else corpus.model_dump(exclude={"files"})
        for corpus in corpora
    ]
