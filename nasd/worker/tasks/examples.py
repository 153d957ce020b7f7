"""Texts with labels, tokenised once: what the tasks that learn labels train on and are scored by.

    cache/labelled-<key>/  train/, test/   an array a file, see `Examples`
                           manifest.json   counts, labels
                           words.json      of the test part, where each word has a label: [[the
                                           labels], [which of the words are shown]] an example

F: examples, T: tokens of all of them together, B: examples of a batch, L: tokens of the longest.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from nasd.contract import labelled
from nasd.contract.config import LabelledData
from nasd.contract.digests import Damaged
from nasd.contract.labelled import Example, Labelled, Rows
from nasd.contract.streams import stream_seed
from nasd.worker.tasks import hub
from nasd.worker.tasks.ragged import Ragged
from nasd.worker.training.progress import LONG, Progress

CHUNK = 1000  # examples tokenised at once: bounds the memory
NOTHING = -100  # the target of a token that has none
PARTS = ("train", "test")
WORDS = "words.json"
MANIFEST = "manifest.json"


@dataclass(frozen=True, eq=False)
class Examples(Ragged):
    """All examples of a part."""

    targets: NDArray[Any]  # [F] index of the label, or the number; or [T], of each token

    @property
    def by_token(self) -> bool:
        return len(self.targets) != len(self)

    def take(self, indices: NDArray[np.int64]) -> Self:
        """Some of the examples, in memory."""
        places = self.places(indices)
        return type(self)(
            tokens=self.tokens[places],
            bounds=self.bounds_of(indices),
            targets=self.targets[places if self.by_token else indices],
        )

    def batch(self, indices: Sequence[int] | NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        """Beside its tokens targets, [B], or [B, L] with NOTHING in the padding."""
        chosen = np.asarray(indices, dtype=np.int64)
        found = super().batch(chosen)
        if not self.by_token:
            return {**found, "targets": self.targets[chosen]}
        targets = self.spread(self.targets, chosen, self.mask(chosen), NOTHING)
        return {**found, "targets": targets}

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Memory maps what `save` wrote; raises Damaged if it is not whole."""
        try:
            found = cls(*(np.load(folder / name, mmap_mode="r") for name in cls.files()))
        except (OSError, ValueError, EOFError) as error:
            raise Damaged(folder, f"is missing or damaged ({error})") from error
        total = len(found.tokens)
        if found.bounds[-1] != total or len(found.targets) not in (len(found), total):
            raise Damaged(folder, "is damaged (its arrays do not fit together)")
        return found


def read(data: LabelledData, base: Path, seed: int, progress: Progress) -> Labelled:
    """Both parts, of the files or of the hub's data set; raises NasdError. seed: the search's."""
    drawn = stream_seed(seed, 0, "examples")
    if data.files:
        return labelled.of_files(data, base, drawn)
    key = f"{labelled.section(data)}.hub"
    train = _of_hub(data, key, base, data.split, progress)
    test = data.test_split and _of_hub(data, key, base, data.test_split, progress)
    return labelled.parts(data, [train], [test] if test else [], drawn)


def texts(data: LabelledData, base: Path, seed: int, progress: Progress) -> list[str]:
    """Of the training part, one after the other."""
    found = read(data, base, seed, progress).train
    whole = [one.text if isinstance(one.text, str) else " ".join(one.text) for one in found]
    return [*whole, *(one.pair for one in found if one.pair is not None)]


def _of_hub(data: LabelledData, key: str, base: Path, split: str, progress: Progress) -> Rows:
    rows = hub.load(data, key, base, progress, split)
    names = {}
    for column, feature in rows.features.items():
        one = getattr(feature, "feature", feature)  # of a list, its elements'
        if (found := getattr(one, "names", None)) is not None:
            names[column] = tuple(found)
    return Rows(f"{data.hub}, {split}", key, rows, names)


def build(
    data: LabelledData, base: Path, tokenizer: Any, folder: Path, seed: int, progress: Progress
) -> None:
    """Fills the folder of a cache."""
    progress("reading", patience=LONG)
    found = read(data, base, seed, progress)
    names = found.labels.names
    places = {label: place for place, label in enumerate(names)}
    sizes: dict[str, Any] = {"labels": names, "ordered": found.labels.ordered}
    unknown = tokens = 0
    for part, examples in zip(PARTS, (found.train, found.test), strict=True):
        made, shown = tokenised(examples, tokenizer, data.tokens, places, progress)
        made.save(folder / part)
        sizes[part] = len(made)
        tokens += len(made.tokens)
        unknown += int((made.tokens == tokenizer.unk_token_id).sum())
        if part == "test" and made.by_token:
            tags = [[places[label] for label in _tags(one)] for one in examples]
            pairs = list(zip(tags, shown, strict=True))
            (folder / WORDS).write_text(json.dumps(pairs), encoding="utf-8")
    sizes["tokens"] = tokens / (sizes["train"] + sizes["test"])
    (folder / MANIFEST).write_text(json.dumps({**sizes, "unknown": unknown / tokens}))
    print(
        f"examples: {sizes['train']:,} for train, {sizes['test']:,} for test, of"
        f" {len(names)} labels",
        flush=True,
    )


def _tags(example: Example) -> tuple[str, ...]:
    assert isinstance(example.label, tuple)
    return example.label


def tokenised(
    examples: Sequence[Example],
    tokenizer: Any,
    tokens: int,
    places: dict[str, int],
    progress: Progress,
) -> tuple[Examples, list[list[int]]]:
    """The examples with the tokenizer's own special tokens, cut to so many; and of each, where its
    words have labels, which of them are shown: a word's label is its first token's."""
    ids: list[NDArray[np.int32]] = []
    targets: list[Any] = []
    shown: list[list[int]] = []
    for first in range(0, len(examples), CHUNK):
        progress("tokenising", first, len(examples))
        part = examples[first : first + CHUNK]
        encoded = encode(tokenizer, [one.text for one in part], [one.pair for one in part], tokens)
        ids += [np.array(one, dtype=np.int32) for one in encoded["input_ids"]]
        for place, example in enumerate(part):
            if not isinstance(example.label, tuple):
                label = example.label
                targets.append(label if isinstance(label, float) else places[label])
                continue
            words = encoded.word_ids(place)
            heads = [at for at, word in enumerate(words) if word not in (None, *words[at - 1 : at])]
            row = np.full(len(words), NOTHING, dtype=np.int64)
            row[heads] = [places[example.label[words[at]]] for at in heads]
            targets.append(row)
            shown.append([words[at] for at in heads])
    bounds = np.concatenate([[0], np.cumsum([len(one) for one in ids])]).astype(np.int64)
    if shown:
        all_targets = np.concatenate(targets)
    else:
        numbers = isinstance(targets[0], float)
        all_targets = np.array(targets, dtype=np.float32 if numbers else np.int64)
    return Examples(np.concatenate(ids), bounds, all_targets), shown


def encode(tokenizer: Any, texts: Sequence[Any], pairs: Sequence[str | None], tokens: int) -> Any:
    """A text, or a pair of them, as the tokenizer puts them together; of words one by one."""
    in_words = bool(texts) and not isinstance(texts[0], str)
    paired = pairs[0] is not None
    return tokenizer(
        [list(text) for text in texts] if in_words else list(texts),
        list(pairs) if paired else None,
        is_split_into_words=in_words,
        truncation="longest_first",
        max_length=tokens,
        padding=False,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )


def manifest(cache: Path) -> dict[str, Any]:
    """The counts and the labels."""
    found: dict[str, Any] = json.loads((cache / MANIFEST).read_text())
    return found


def check(cache: Path) -> None:
    """Raises Damaged unless it can be read."""
    for part in PARTS:
        found = Examples.load(cache / part)
    if found.by_token:
        test_words(cache)


def test_words(cache: Path) -> list[tuple[list[int], list[int]]]:
    """Of each test example the labels of its words, and which of these are shown; or Damaged."""
    path = cache / WORDS
    try:
        return [(tags, shown) for tags, shown in json.loads(path.read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError) as error:
        raise Damaged(path, f"is missing or damaged ({error})") from error
