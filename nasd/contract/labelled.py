"""Texts with labels: reading them, finding their columns and labels, and splitting them.

An example is a text, or a pair of texts, with one label; or with a number, which it is to be told
by; or words with a label each. Standard library only, so that the control plane can look at all of
it before a search begins.
"""

import math
import random
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

from nasd.contract import formats, tasks
from nasd.contract.config import LabelledData, TagData, TextData
from nasd.contract.errors import NasdError
from nasd.contract.readable import shown

Kind = Literal["label", "number", "tags"]  # what an example has
Value = str | float | tuple[str, ...]
# Names of columns, as data sets of these kinds have them; the first that are there are taken.
PAIRS = (
    ("sentence1", "sentence2"), ("premise", "hypothesis"), ("question1", "question2"),
    ("text", "text_pair"), ("text1", "text2"), ("question", "sentence"),
)  # fmt: skip
TEXTS = ("text", "sentence", "sentence1", "content", "review", "comment")
WORDS = ("tokens", "words")
LABELS: Mapping[Kind, tuple[str, ...]] = {
    "label": ("label", "labels", "class", "category", "target"),
    "number": ("score", "label", "similarity_score", "similarity", "stars", "target"),
    "tags": ("ner_tags", "tags", "labels", "pos_tags", "chunk_tags"),
}
LISTED = 8  # labels in a message
UNLABELLED = -1  # of the hub's data sets, where a test part is without labels
OUTSIDE = "O"  # a word of no entity
KINDS: Mapping[str, Kind] = {
    tasks.CLASSIFY.name: "label",
    tasks.REGRESS.name: "number",
    tasks.TAG.name: "tags",
}


class Example(NamedTuple):
    """text: the words, where each has a label of its own."""

    text: str | tuple[str, ...]
    pair: str | None
    label: Value


@dataclass(frozen=True)
class Rows:
    """Of one file, or a split of the hub. names: of labels that are written as numbers, by the name
    of their column; key: of the config, for messages."""

    origin: str
    key: str
    rows: Iterable[Mapping[str, Any]]
    names: Mapping[str, Sequence[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Labels:
    """All there are, in the order of a head's outputs; the name of the number, where examples have
    numbers. ordered: whether the data has such an order of its own, as numbers have, or a data set
    that names them; others stand by letter here, as nobody who trains on them need have them."""

    names: tuple[str, ...] = ()
    ordered: bool = True


NO_LABELS = Labels()  # of questions, and where they are not known yet


@dataclass(frozen=True)
class Labelled:
    """The two parts."""

    train: list[Example]
    test: list[Example]
    labels: Labels


def kind_of(data: LabelledData) -> Kind:
    if isinstance(data, TagData):
        return "tags"
    return "label" if hasattr(data, "positive") else "number"


def section(data: LabelledData) -> str:
    """Of the config."""
    kind = kind_of(data)
    name = next(name for name, one in KINDS.items() if one == kind)
    return f"data.{getattr(data, 'named', tasks.of(name).data)}"


def of_files(data: LabelledData, base: Path, seed: int) -> Labelled:
    """What the files hold; raises NasdError, with the key of the config. seed: of the split."""
    where = section(data)

    def rows(names: Sequence[str], key: str) -> Iterator[Rows]:
        for name in names:
            yield Rows(str(base / name), f"{where}.{key}", _rows(base / name, f"{where}.{key}"))

    tested = list(rows(data.test_files, "test_files"))
    return parts(data, list(rows(data.files, "files")), tested, seed)


def _rows(path: Path, key: str) -> Iterator[Mapping[str, Any]]:
    try:
        seen = formats.look(path)
        if seen.form in ("text", "JSON"):
            what = "plain text" if seen.form == "text" else "a JSON document"
            raise NasdError(
                f"{path} is {what}, which has no columns: give CSV, JSON lines or Parquet"
            )
        yield from formats.rows(path, seen)
    except NasdError as error:
        raise NasdError(f"{key}: {error}") from None


def parts(data: LabelledData, train: Sequence[Rows], test: Sequence[Rows], seed: int) -> Labelled:
    """The examples of these sources, checked; without a test part, one is held out."""
    kind = kind_of(data)
    found = [example for rows in train for example in _examples(data, kind, rows)]
    tested = [example for rows in test for example in _examples(data, kind, rows)]
    where = train[0].key
    given = next((names for rows in train for names in rows.names.values() if names), ())
    labels = _labels(kind, found, tuple(given), where)
    names, positive = labels.names, getattr(data, "positive", None)
    if isinstance(positive, str) and positive not in names:
        raise NasdError(
            f"{section(data)}.positive: there is no label {shown(positive)}, only {_listed(names)}"
        )
    if not test:
        found, tested = split(found, data.train_share, seed, where)
    elif kind != "number":
        new = sorted({one for example in tested for one in _labels_of(example)} - _seen(found))
        if new:
            raise NasdError(
                f"{test[0].key}: {_listed(new)} {'stand' if len(new) > 1 else 'stands'} in the test"
                " part alone, so nobody can learn of it: leave these examples out, or train on some"
            )
    if kind == "number" and len({example.label for example in tested}) < 2:
        raise NasdError(
            f"{where}: all {len(tested)} test examples have the same number, so nothing correlates"
            " with it: give more of them"
        )
    return Labelled(found, tested, labels)


def _examples(data: LabelledData, kind: Kind, source: Rows) -> Iterator[Example]:
    read: Callable[[Mapping[str, Any], str], Example] | None = None
    for number, row in enumerate(source.rows, start=1):
        if read is None:
            read = _reader(data, kind, source, row)
        yield read(row, f"{source.key}: {source.origin}: row {number}")
    if read is None:
        raise NasdError(f"{source.key}: {source.origin} has no rows: give examples")


def _reader(
    data: LabelledData, kind: Kind, source: Rows, first: Mapping[str, Any]
) -> Callable[[Mapping[str, Any], str], Example]:
    """What makes an example of a row. first: the first row, whose columns are all there are."""
    there = [str(name) for name in first if name is not None]
    where = section(data)

    def column(key: str, wanted: str | None, usual: Sequence[str]) -> str:
        found = wanted if wanted is not None else next((n for n in usual if n in there), None)
        if found is None or found not in there:
            what = f"column {shown(found)}" if found else f"column of the {key}s that is known"
            raise NasdError(
                f"{source.key}: {source.origin} has no {what}, only"
                f" {shown(', '.join(there), 200, str)}: set {where}.{key}"
            )
        return found

    label = column("label", data.label, LABELS[kind])
    names = source.names.get(label, ())
    if isinstance(data, TagData):
        words = column("words", data.words, WORDS)
        return lambda row, at: _tagged(row, words, label, names, at)
    assert isinstance(data, TextData)
    text, pair = data.text, data.pair
    if text is None and pair is None:
        text, pair = next((two for two in PAIRS if set(two) <= set(there)), (None, None))
    text = column("text", text, [one for one in TEXTS if one != label])
    if pair is None:
        pair = next((b for a, b in PAIRS if a == text and b in there), None)
    second = column("pair", pair, ()) if pair else None
    if text in (label, second):
        raise NasdError(f"{where}: the column {shown(text)} is named twice: name each once")
    value = _number if kind == "number" else _label

    def read(row: Mapping[str, Any], at: str) -> Example:
        return Example(
            _text(row, text, at),
            None if second is None else _text(row, second, at),
            value(row.get(label), label, names, at),
        )

    return read


def _text(row: Mapping[str, Any], column: str, at: str) -> str:
    value = row.get(column)
    if value is not None and not isinstance(value, str):
        raise NasdError(
            f"{at}: {column!r} holds {shown(value)}, which is no text: name another column"
        )
    if value is None or not value.strip():
        raise NasdError(f"{at}: the text in {column!r} is empty: fill it, or leave the row out")
    try:
        value.encode()
    except UnicodeEncodeError:  # JSON can spell half a surrogate pair; no tokenizer takes one
        raise NasdError(
            f"{at}: {column!r} is no valid Unicode text; mend its \\u escapes"
        ) from None
    return value


def _label(value: Any, column: str, names: Sequence[str], at: str) -> str:
    if names and isinstance(value, int) and not isinstance(value, bool):
        if value == UNLABELLED:
            raise NasdError(f"{at}: it has no label: take a split that has labels")
        if 0 <= value < len(names):
            return names[value]
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # a table's column of whole numbers, some of which were missing
    if isinstance(value, bool | int):
        return str(value)
    if not isinstance(value, str) or not value.strip():
        raise NasdError(
            f"{at}: {column!r} holds {shown(value)}, which is no label: fill it, or leave the row"
            " out"
        )
    # As such a column is written to CSV.
    return re.sub(r"^(-?\d+)\.0$", r"\1", value.strip())


def _number(value: Any, column: str, names: Sequence[str], at: str) -> float:
    try:
        if isinstance(value, bool):
            raise ValueError
        number = float(value)
        if not math.isfinite(number):
            raise ValueError
    except (TypeError, ValueError):
        raise NasdError(
            f"{at}: {column!r} holds {shown(value)}, which is no number: mend it, or leave the row"
            " out"
        ) from None
    return number


def _tagged(
    row: Mapping[str, Any], words: str, tags: str, names: Sequence[str], at: str
) -> Example:
    lists = [row.get(words), row.get(tags)]
    for column, value in zip((words, tags), lists, strict=True):
        if not isinstance(value, list | tuple):
            raise NasdError(
                f"{at}: {column!r} holds {shown(value)}, which is no list: give JSON lines or"
                " Parquet with a list of words and one of labels"
            )
    texts, labels = lists
    assert texts is not None and labels is not None
    if len(texts) != len(labels):
        raise NasdError(
            f"{at}: {len(texts)} words have {len(labels)} labels: give each word its label"
        )
    if not texts:
        raise NasdError(f"{at}: the text in {words!r} is empty: fill it, or leave the row out")
    for word in texts:
        if not isinstance(word, str) or not word.strip():
            raise NasdError(
                f"{at}: a word in {words!r} is {shown(word)}: give words of some letters"
            )
    return Example(tuple(texts), None, tuple(_label(label, tags, names, at) for label in labels))


# --- labels ---------------------------------------------------------------------------------


def _labels_of(example: Example) -> tuple[str, ...]:
    label = example.label
    assert not isinstance(label, float)
    return (label,) if isinstance(label, str) else label


def _seen(examples: Sequence[Example]) -> set[str]:
    return {label for example in examples for label in _labels_of(example)}


def _labels(kind: Kind, examples: Sequence[Example], given: tuple[str, ...], where: str) -> Labels:
    """In the order of a data set that names them; else numbers by size, and others by letter."""
    if kind == "number":
        return Labels(("score",))
    there = _seen(examples)
    if len(there) < 2:
        raise NasdError(
            f"{where}: all {len(examples):,} examples have the label {_listed(sorted(there))}, and"
            " a search needs two labels at least: give examples of another one"
        )
    if given and there <= set(given):
        return Labels(given)
    if all(_whole(one) for one in there):
        return Labels(tuple(sorted(there, key=int)))
    return Labels(tuple(sorted(there)), ordered=False)


def _whole(text: str) -> bool:
    return text.removeprefix("-").isdecimal() and text.isascii()


def _listed(labels: Sequence[str]) -> str:
    named = ", ".join(shown(one) for one in islice(labels, LISTED))
    return named + (f" and {len(labels) - LISTED:,} more" if len(labels) > LISTED else "")


# --- splitting ------------------------------------------------------------------------------


def split(
    examples: Sequence[Example], share: float, seed: int, where: str
) -> tuple[list[Example], list[Example]]:
    """(train, test), train having `share` of each label's examples as nearly as can be.

    No text is on both sides, and of each label one is in train. Which one goes where, and the order
    on each side, does not depend on the order given. Raises NasdError where one part stays empty.
    """
    groups: dict[tuple[Any, str | None], list[Example]] = {}
    for example in sorted(examples, key=_order):
        groups.setdefault((example.text, example.pair), []).append(example)
    by_label: dict[str, list[list[Example]]] = {}
    for group in groups.values():
        by_label.setdefault(_stratum(group[0]), []).append(group)
    train: list[list[Example]] = []
    test: list[list[Example]] = []
    drawn = random.Random(seed)
    for label in sorted(by_label):
        alike = by_label[label]
        drawn.shuffle(alike)
        kept = max(1, round(share * len(alike)))
        train += alike[:kept]
        test += alike[kept:]
    # Of words, or of a text that stands there twice, a label may be in the test part alone.
    if not isinstance(examples[0].label, float):
        learned = _seen([example for group in train for example in group])
        for group in list(test):
            if not (labels := _seen(group)) <= learned:
                learned |= labels
                train.append(group)
                test.remove(group)
    if not test:
        raise NasdError(
            f"{where}: {len(examples):,} examples are too few to hold out a test part of"
            f" {100 * (1 - share):g} %: give more of each label, or a test part of their own"
        )
    found = [[example for group in part for example in group] for part in (train, test)]
    return sorted(found[0], key=_order), sorted(found[1], key=_order)


def _order(example: Example) -> tuple[str, str, str]:
    text = example.text if isinstance(example.text, str) else "\n".join(example.text)
    return text, example.pair or "", str(example.label)


def _stratum(example: Example) -> str:
    return example.label if isinstance(example.label, str) else ""
