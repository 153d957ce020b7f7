"""Texts with labels: found columns, labels and parts, and each mistake in one sentence."""

import csv
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nasd.contract import labelled
from nasd.contract.config import ClassifyData, RegressData, TagData
from nasd.contract.errors import NasdError
from nasd.contract.labelled import Example, Labelled, Labels

TEXTS = ["one red kite", "two red kites", "three", "four", "five", "six", "seven", "eight"]
KINDS = {"classify": ClassifyData, "regress": RegressData, "tag": TagData}


def put(path: Path, rows: Sequence[dict[str, Any]]) -> str:
    """Rows as a file of the form that its name says."""
    if path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path.name


def read(folder: Path, task: str = "classify", **settings: Any) -> Labelled:
    return labelled.of_files(KINDS[task](**settings), folder, 1)


def small(texts: Sequence[str] = TEXTS, **columns: Any) -> list[dict[str, Any]]:
    """A row a text; the columns are functions of its place."""
    return [
        {"text": text, **{name: column(place) for name, column in columns.items()}}
        for place, text in enumerate(texts)
    ]


def alternate(place: int) -> str:
    return "ab"[place % 2]


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
def test_the_same_examples_are_read_of_every_form(tmp_path: Path, form: str) -> None:
    name = put(tmp_path / f"rows.{form}", small(label=alternate))
    found = read(tmp_path, files=(name,))
    assert found.labels == Labels(("a", "b"), ordered=False)
    assert {one.text: one.label for one in (*found.train, *found.test)} == {
        text: alternate(place) for place, text in enumerate(TEXTS)
    }
    assert found.train and found.test


@pytest.mark.parametrize(
    ("columns", "settings", "text", "pair"),
    [
        (("sentence", "label"), {}, "sentence", None),
        (("premise", "hypothesis", "label"), {}, "premise", "hypothesis"),
        (("sentence1", "sentence2", "class"), {}, "sentence1", "sentence2"),
        (("question", "sentence", "label"), {}, "question", "sentence"),
        (("text", "text_pair", "label"), {"pair": ""}, "text", None),
        (("title", "body", "stars"), {"text": "title", "label": "stars"}, "title", None),
        (
            ("title", "body", "stars"),
            {"text": "title", "pair": "body", "label": "stars"},
            "title",
            "body",
        ),
    ],
)
def test_columns_are_found_by_their_names_or_named(
    tmp_path: Path, columns: tuple[str, ...], settings: dict[str, str], text: str, pair: str | None
) -> None:
    rows = [{name: f"{name} {place}" for name in columns} for place in range(8)]
    for place, row in enumerate(rows):
        row[columns[-1]] = alternate(place)
    found = read(tmp_path, files=(put(tmp_path / "rows.jsonl", rows),), **settings)
    example = found.train[0]
    assert str(example.text).startswith(f"{text} ")
    assert example.pair is None if pair is None else str(example.pair).startswith(f"{pair} ")


def test_labels_that_are_numbers_stand_by_size_and_others_by_letter(tmp_path: Path) -> None:
    numbers = put(tmp_path / "n.csv", small(label=lambda place: [10, 9, 2][place % 3]))
    assert read(tmp_path, files=(numbers,)).labels == Labels(("2", "9", "10"))
    holes = put(tmp_path / "h.csv", small(label=lambda place: [10.0, 9.0, 2.0][place % 3]))
    assert "10.0" in (tmp_path / "h.csv").read_text()
    assert read(tmp_path, files=(holes,)).labels == Labels(("2", "9", "10"))
    words = put(tmp_path / "w.csv", small(label=lambda place: "zya"[place % 3]))
    assert read(tmp_path, files=(words,)).labels == Labels(("a", "y", "z"), ordered=False)


def test_a_data_set_that_names_its_labels_has_them_in_its_order() -> None:
    rows = small(label=lambda place: place % 2)
    source = labelled.Rows("set", "data.classify.hub", rows, {"label": ("world", "arts")})
    found = labelled.parts(ClassifyData(hub="set"), [source], [], 1)
    assert found.labels == Labels(("world", "arts"))
    assert {one.label for one in found.train} == {"world", "arts"}
    unlabelled = labelled.Rows(
        "set", "data.classify.hub", [{"text": "x", "label": -1}], source.names
    )
    with pytest.raises(NasdError, match="row 1: it has no label: take a split that has labels"):
        labelled.parts(ClassifyData(hub="set"), [source], [unlabelled], 1)


def test_a_test_part_of_its_own_is_taken_whole(tmp_path: Path) -> None:
    train = put(tmp_path / "train.csv", small(label=alternate))
    test = put(tmp_path / "test.csv", small(TEXTS[:3], label=alternate))
    found = read(tmp_path, files=(train,), test_files=(test,))
    assert [one.text for one in found.test] == TEXTS[:3]
    assert len(found.train) == len(TEXTS)


pairs = st.tuples(st.sampled_from([f"text {n}" for n in range(12)]), st.sampled_from("abc"))


@given(st.lists(pairs, min_size=4, max_size=60), st.integers(0, 5))
def test_no_text_is_on_both_sides_each_label_is_in_train_and_order_does_not_matter(
    rows: list[tuple[str, str]], seed: int
) -> None:
    examples = [Example(text, None, label) for text, label in rows]
    try:
        train, test = labelled.split(examples, 0.7, seed, "here")
    except NasdError:
        assert len({text for text, _ in rows}) < 10  # too few of a label to hold one out
        return
    assert not {one.text for one in train} & {one.text for one in test}
    assert {one.label for one in test} <= {one.label for one in train}
    assert Counter(map(tuple, [*train, *test])) == Counter(map(tuple, examples))
    assert labelled.split(examples[::-1], 0.7, seed, "here") == (train, test)


BAD = [
    ("classify", small(label=lambda place: "a"), {}, "all 8 examples have the label 'a'"),
    (
        "classify",
        small(stars=alternate),
        {},
        "no column of the labels that is known, only text, stars",
    ),
    ("classify", small(label=alternate), {"label": "star"}, "no column 'star', only text, label"),
    ("classify", small(label=alternate), {"text": "body"}, "has no column 'body'"),
    ("classify", small(label=alternate), {"text": "label"}, "is named twice"),
    ("classify", small(["one", " "], label=alternate), {}, "row 2: the text in 'text' is empty"),
    ("classify", small(label=lambda place: None), {}, "row 1: 'label' holds None, which is no lab"),
    ("classify", small(["one", "two"], label=alternate), {}, "too few to hold out a test part"),
    ("classify", small(label=alternate), {"positive": "c"}, "there is no label 'c', only 'a', 'b'"),
    ("classify", [{"text": 3, "label": "a"}], {}, "row 1: 'text' holds 3, which is no text"),
    ("regress", small(score=lambda place: "high"), {}, "'score' holds 'high', which is no number"),
    ("regress", small(score=lambda place: float("nan")), {}, "holds nan, which is no number"),
    ("regress", small(score=lambda place: 2.5), {}, "the same number, so nothing correlates"),
    ("tag", [{"tokens": "one two", "tags": ["O", "O"]}], {}, "holds 'one two', which is no list"),
    ("tag", [{"tokens": ["one"], "tags": ["O", "O"]}], {}, "1 words have 2 labels"),
    ("tag", [{"tokens": [], "tags": []}], {}, "row 1: the text in 'tokens' is empty"),
    ("tag", [{"tokens": ["one"], "tags": ["O"]}] * 4, {}, "examples have the label 'O'"),
]


@pytest.mark.parametrize(("task", "rows", "settings", "words"), BAD, ids=[one[3] for one in BAD])
def test_a_mistake_in_the_data_is_one_sentence_that_names_key_and_place(
    tmp_path: Path, task: str, rows: list[dict[str, Any]], settings: dict[str, str], words: str
) -> None:
    with pytest.raises(NasdError) as caught:
        read(tmp_path, task, files=(put(tmp_path / "rows.jsonl", rows),), **settings)
    said = str(caught.value)
    assert words in said
    assert said.startswith(f"data.{task}")
    assert "\n" not in said


def test_a_label_of_the_test_part_alone_is_refused(tmp_path: Path) -> None:
    train = put(tmp_path / "train.csv", small(label=alternate))
    test = put(tmp_path / "test.csv", small(label=lambda place: "abcd"[place % 4]))
    with pytest.raises(NasdError, match=r"data\.classify\.test_files: 'c', 'd' stand in the test"):
        read(tmp_path, files=(train,), test_files=(test,))


@pytest.mark.parametrize("content", ["just\nlines\n", '[{"text": "one"}]', ""])
def test_what_has_no_columns_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "rows.txt").write_text(content)
    with pytest.raises(NasdError, match=r"^data\.classify\.files: .*rows\.txt"):
        read(tmp_path, files=("rows.txt",))
    with pytest.raises(NasdError, match=r"^data\.classify\.files: there is no file"):
        read(tmp_path, files=("gone.csv",))
