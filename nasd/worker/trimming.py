"""The seed's vocabulary as a search has it: all of it, or the tokens that its config asks for.

How often each token stands in the training texts is counted once,

    cache/words-<key>/  counts.npy  [sources, tokens] of the seed's vocabulary
                        sources.json  their names

of the corpora and the training questions with their contexts, never of a test question's. Which
tokens stay follows from that (nasd.worker.model.vocabulary), so whoever needs the tokenizer later
makes the same one again.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nasd.contract import tasks
from nasd.contract.config import Data
from nasd.contract.digests import Damaged
from nasd.contract.protocol import Spec
from nasd.worker import caches, prepare
from nasd.worker.caches import Kind
from nasd.worker.model import seed, vocabulary
from nasd.worker.tasks import corpus
from nasd.worker.training.progress import DOWNLOAD, LONG, Progress, quiet

QUESTIONS = "the questions"
GLANCE = 10  # batches of texts of a file, where only a look is asked for


class Words(NamedTuple):
    """tokenizer: the search's. known: rows of the seed's word embeddings. kept: those that stay,
    None where they are all. lost: the share of the training texts' words that fall apart into more
    pieces than before."""

    tokenizer: Any
    known: int
    kept: NDArray[np.int64] | None = None
    lost: float | None = None


def words(spec: Spec, progress: Progress) -> Words:
    """Raises NasdError where the seed has no tokenizer, or cannot keep so few tokens."""
    base = Path(spec.config_folder)
    progress("downloading", patience=DOWNLOAD)
    tokenizer = seed.load_tokenizer(spec.source, base)
    known = seed.describe(spec.source, base).backbone.vocab_size
    if spec.vocabulary is None:
        return Words(tokenizer, known)
    vocabulary.check(tokenizer, spec.vocabulary)
    counts = _counted(spec, tokenizer, progress)
    kept = vocabulary.chosen(tokenizer, spec.vocabulary, counts)
    lost = vocabulary.lost(tokenizer, kept, counts)
    print(
        f"vocabulary: {len(kept):,} of {known:,} tokens stay, and {100 * lost:.2f} % of the"
        " training texts' words fall apart into more pieces than before",
        flush=True,
    )
    return Words(vocabulary.trimmed_tokenizer(tokenizer, kept), known, kept, lost)


def glance(data: Data, base: Path, tokenizer: Any, seed: int, count: int) -> Any:
    """The tokenizer as it would come out by the beginnings of texts, and the questions, in files:
    before anything is written. Raises NasdError as `words` does."""
    counts = dict(_counts(data, base, tokenizer, seed, quiet, GLANCE))
    return vocabulary.trimmed_tokenizer(tokenizer, vocabulary.chosen(tokenizer, count, counts))


def _counted(spec: Spec, tokenizer: Any, progress: Progress) -> dict[str, NDArray[np.int64]]:
    base, texts = Path(spec.config_folder), spec.data.corpora

    def digest(path: Path) -> str:
        return prepare.digest_of(path, progress)

    key = caches.key_of(
        {
            "tokenizer": hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest(),
            "seed": spec.seed,
            "corpora": corpus.describe_sources(texts, base, digest),
            **prepare.sources(spec.data, base, progress),
        }
    )

    def build(folder: Path) -> None:
        found = dict(_counts(spec.data, base, tokenizer, spec.seed, progress))
        np.save(folder / "counts.npy", np.stack(list(found.values())))
        (folder / "sources.json").write_text(json.dumps(list(found)), encoding="utf-8")

    return _read(caches.make(COUNTS, Path(spec.cache) / f"words-{key}", build, progress))


def _read(folder: Path) -> dict[str, NDArray[np.int64]]:
    try:
        names = json.loads((folder / "sources.json").read_text(encoding="utf-8"))
        return dict(zip(names, np.load(folder / "counts.npy"), strict=True))
    except (OSError, ValueError, EOFError) as error:
        raise Damaged(folder, f"is missing or damaged ({error})") from error


COUNTS = Kind(("counts.npy", "sources.json"), _read)


def _counts(
    data: Data, base: Path, tokenizer: Any, seed: int, progress: Progress, most: int | None = None
) -> Iterator[tuple[str, NDArray[np.int64]]]:
    """How often each token stands in each source. most: batches of a corpus, of files alone."""
    for number, one in enumerate(data.corpora):
        if most is None or one.files:
            files = [one.model_copy(update={"files": (name,)}) for name in one.files] or [one]
            batches = chain.from_iterable(
                islice(corpus.records(file, base, progress), most) for file in files
            )
            name = f"data.mlm.corpora[{number}]"
            yield name, _count(batches, tokenizer, progress, name)
    scored = tasks.all_scored(data)
    read = [one.name for one in scored if most is None or getattr(data, one.data).files]
    if read:
        each = (tasks.focused(data, name) for name in read)
        texts = [text for one in each for text in prepare.training_texts(one, base, seed, progress)]
        parts = (texts[at : at + corpus.BATCH] for at in range(0, len(texts), corpus.BATCH))
        yield QUESTIONS, _count(parts, tokenizer, progress, QUESTIONS)


def _count(
    batches: Iterable[Sequence[str]], tokenizer: Any, progress: Progress, name: str
) -> NDArray[np.int64]:
    counts = np.zeros(vocabulary.numbers(tokenizer), dtype=np.int64)
    for texts in batches:
        counts += np.bincount(corpus.encode(tokenizer, texts), minlength=len(counts))
        progress(f"counting the words of {name}", int(counts.sum()), patience=LONG)
    return counts
