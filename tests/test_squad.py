"""SQuAD v1.1: the official score, strict reading, and the split."""

import json
import random
import re
import string
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nasd.contract import squad
from nasd.contract.errors import NasdError
from nasd.contract.squad import Question

# --- the official score ---------------------------------------------------------------------


def question(key: str, *answers: str) -> Question:
    return Question(key, "title", "context", "question?", tuple((text, 0) for text in answers))


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The Cat", "cat"),
        ("a an the", ""),
        ("theatre and another", "theatre and another"),
        ("THE THE cat", "cat"),
        ("U.S.A.", "usa"),  # punctuation goes before articles
        ("a.m.", "am"),
        ("the-cat", "thecat"),
        ("$1,000.50", "100050"),
        ("  two \t\n words\u00a0here ", "two words here"),
        ("Café Ünal", "café ünal"),
        ("“quoted” – dash", "“quoted” – dash"),  # only ASCII punctuation goes
        ("“the cat”", "“ cat”"),
        ("", ""),
        ("...", ""),
    ],
)
def test_answers_are_normalised_as_the_official_script_does(text: str, normal: str) -> None:
    assert squad.normalise_answer(text) == normal


@pytest.mark.parametrize(
    ("prediction", "answer", "exact", "overlap"),
    [
        ("the cat", "Cat!", True, 1.0),
        ("big cat", "cat", False, 2 / 3),  # precision 1/2, recall 1
        ("cat", "the big fat cat", False, 1 / 2),  # precision 1, recall 1/3
        ("cat cat dog", "cat dog dog", False, 2 / 3),  # bags: two in common of three
        ("dog", "cat", False, 0.0),
        ("", "cat", False, 0.0),
        ("the", "", True, 0.0),  # both empty: exact, yet F1 0 in v1.1
    ],
)
def test_one_prediction_scores_as_computed_by_hand(
    prediction: str, answer: str, exact: bool, overlap: float
) -> None:
    assert squad.exact_match(prediction, answer) is exact
    assert squad.f1(prediction, answer) == pytest.approx(overlap)


def test_the_best_gold_answer_counts_for_each_measure() -> None:
    questions = [question("1", "red", "dark red", "very dark red")]
    assert squad.score({"1": "a dark red"}, questions) == {
        "exact_match": 100.0,
        "f1": 100.0,
        "total": 1,
    }


def test_a_missing_prediction_scores_nothing_even_where_an_empty_one_would() -> None:
    questions = [question("1", "the"), question("2", "cat")]
    assert squad.score({"2": "cat"}, questions)["exact_match"] == 50.0
    assert squad.score({"1": "", "2": "cat"}, questions)["exact_match"] == 100.0


def test_predictions_of_unknown_questions_are_ignored() -> None:
    assert squad.score({"1": "cat", "9": "dog"}, [question("1", "cat")])["total"] == 1


def test_no_questions_have_no_score() -> None:
    with pytest.raises(ValueError, match="no questions"):
        squad.score({}, [])


def official(predictions: dict[str, str], questions: list[Question]) -> dict[str, float]:
    """evaluate-v1.1.py, told again step by step."""

    def words(text: str) -> list[str]:
        kept = "".join(sign for sign in text.lower() if sign not in set(string.punctuation))
        return re.sub(r"\b(a|an|the)\b", " ", kept).split()

    def overlap(predicted: list[str], gold: list[str]) -> float:
        common = sum((Counter(predicted) & Counter(gold)).values())
        if common == 0:
            return 0
        precision, recall = common / len(predicted), common / len(gold)
        return (2 * precision * recall) / (precision + recall)

    exact = f1 = 0.0
    for one in questions:
        if one.id in predictions:
            predicted = words(predictions[one.id])
            golds = [words(text) for text, _ in one.answers]
            exact += max(" ".join(predicted) == " ".join(gold) for gold in golds)
            f1 += max(overlap(predicted, gold) for gold in golds)
    count = len(questions)
    return {"exact_match": 100.0 * exact / count, "f1": 100.0 * f1 / count, "total": count}


WORDS = st.sampled_from(["the", "a", "An", "cat", "Cat.", "dog", "'s", "–", "é", "U.S.", "\u00a0"])
TEXTS = st.lists(WORDS, max_size=5).map(" ".join) | st.text("aA .-é\u00a0\u2003\u0130ß", max_size=6)


@given(
    st.lists(st.lists(TEXTS, min_size=1, max_size=3), min_size=1, max_size=5),
    st.dictionaries(st.integers(0, 5).map(str), TEXTS),
)
def test_the_score_equals_the_official_one(
    golds: list[list[str]], predictions: dict[str, str]
) -> None:
    questions = [question(str(i), *answers) for i, answers in enumerate(golds)]
    assert squad.score(predictions, questions) == official(predictions, questions)


# --- reading --------------------------------------------------------------------------------


def data_set() -> dict[str, Any]:
    cat = {"text": "cat", "answer_start": 4}
    return {
        "version": "1.1",
        "data": [
            {
                "title": "Animals",
                "paragraphs": [
                    {
                        "context": "the cat sat",
                        "qas": [
                            {"id": "1", "question": "Who sat?", "answers": [cat, cat]},
                            {"id": "2", "question": "Who?", "answers": [dict(cat)], "more": 0},
                        ],
                    }
                ],
            }
        ],
    }


def write(folder: Path, content: Any) -> Path:
    path = folder / "squad.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def test_the_official_form_is_read_with_its_unknown_keys_ignored(tmp_path: Path) -> None:
    first, second = squad.read_squad(write(tmp_path, data_set()))
    answers = (("cat", 4), ("cat", 4))
    assert first == Question("1", "Animals", "the cat sat", "Who sat?", answers)
    assert second.id == "2"


def test_characters_beyond_the_basic_plane_count_as_one(tmp_path: Path) -> None:
    content = data_set()
    content["data"][0]["paragraphs"][0]["context"] = "🐈🐈🐈 cat"
    assert squad.read_squad(write(tmp_path, content))[0].answers[0] == ("cat", 4)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ((), [], "the top level must be an object, not []"),
        (("data",), None, "data is missing"),
        (("data",), {}, "data must be a list, not {}"),
        (("data",), [], "has no questions"),
        (("data", 0), 7, "data[0] must be an object, not 7"),
        (("data", 0, "title"), 7, "data[0].title must be a string, not 7"),
        (("data", 0, "paragraphs"), None, "data[0].paragraphs is missing"),
        (("data", 0, "paragraphs", 0), "x", 'data[0].paragraphs[0] must be an object, not "x"'),
        (("data", 0, "paragraphs", 0, "context"), None, "data[0].paragraphs[0].context is missing"),
        (("data", 0, "paragraphs", 0, "qas"), None, "data[0].paragraphs[0].qas is missing"),
    ],
)
def test_a_malformed_file_is_refused_with_its_place(
    tmp_path: Path, place: tuple[str | int, ...], value: Any, message: str
) -> None:
    refused(tmp_path, place, value, message)


ENTRY = ("data", 0, "paragraphs", 0, "qas", 1)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ((), 7, " must be an object, not 7"),
        (("id",), None, ".id is missing"),
        (("id",), True, ".id must be a string, not true"),
        (("id",), "", ".id is empty"),
        (("id",), "1", ": the id '1' is taken by data[0].paragraphs[0].qas[0]"),
        (("question",), None, ".question is missing"),
        (("question",), "\ud800", ".question is no valid Unicode text"),
        (("answers",), None, ".answers is missing"),
        (("answers",), [], ".answers is empty"),
        (("answers", 0), "cat", '.answers[0] must be an object, not "cat"'),
        (("answers", 0, "text"), None, ".answers[0].text is missing"),
        (("answers", 0, "text"), " ", ".answers[0].text is empty"),
        (("answers", 0, "text"), "dog", '.answers[0]: the answer "dog" does not stand at'),
        (("answers", 0, "answer_start"), None, ".answers[0].answer_start is missing"),
        (("answers", 0, "answer_start"), "4", ".answers[0].answer_start must be a whole number"),
        (("answers", 0, "answer_start"), True, ".answers[0].answer_start must be a whole number"),
        (("answers", 0, "answer_start"), 5, ".answers[0]: the answer"),
        (("answers", 0, "answer_start"), -7, ".answers[0]: the answer"),
        (("answers", 0, "answer_start"), 99, ".answers[0]: the answer"),
    ],
)
def test_a_malformed_question_is_refused_with_its_place(
    tmp_path: Path, place: tuple[str | int, ...], value: Any, message: str
) -> None:
    refused(tmp_path, ENTRY + place, value, f"data[0].paragraphs[0].qas[1]{message}")


def refused(folder: Path, place: tuple[str | int, ...], value: Any, message: str) -> None:
    """Puts `value` (None: nothing) at `place` of a good file, and expects the message."""
    content: Any = {"root": data_set()}
    parent, key = content, "root"
    for part in place:
        parent, key = parent[key], part  # type: ignore[assignment]
    if value is None:
        del parent[key]
    else:
        parent[key] = value
    path = write(folder, content["root"])
    with pytest.raises(NasdError) as caught:
        squad.read_squad(path)
    assert str(caught.value).startswith(str(path))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("read", [squad.read_squad, squad.read_predictions])
@pytest.mark.parametrize("content", [b"{", b"", b"\xff\xfe\xff", b'"\xe9"', b"[" * 100_000])
def test_what_is_not_json_is_refused(tmp_path: Path, content: bytes, read: Any) -> None:
    path = tmp_path / "file.json"
    path.write_bytes(content)
    with pytest.raises(NasdError, match=r"file\.json is (not valid JSON|not UTF-8 text|empty)"):
        read(path)


@pytest.mark.parametrize("read", [squad.read_squad, squad.read_predictions])
def test_a_file_that_is_not_there_is_named(tmp_path: Path, read: Any) -> None:
    with pytest.raises(NasdError, match=r"there is no file .*nowhere\.json"):
        read(tmp_path / "nowhere.json")
    with pytest.raises(NasdError, match="cannot be read"):
        read(tmp_path)


def test_predictions_are_read_as_the_official_script_reads_them(tmp_path: Path) -> None:
    assert squad.read_predictions(write(tmp_path, {"1": "cat", "2": ""})) == {"1": "cat", "2": ""}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"1": "cat", "2": None}, ": 2 must be a string, not null"),
        ({"1": ["cat"]}, ": 1 must be a string"),
        (["cat"], ": the top level must be an object"),
    ],
)
def test_malformed_predictions_are_refused(tmp_path: Path, content: Any, message: str) -> None:
    path = write(tmp_path, content)
    with pytest.raises(NasdError, match=re.escape(f"{path}{message}")):
        squad.read_predictions(path)


def record(**changes: Any) -> dict[str, Any]:
    answers = {"text": ["cat"], "answer_start": [4]}
    given = {"id": "1", "title": "T", "context": "the cat", "question": "Who?", "answers": answers}
    return given | changes


def test_records_of_the_hub_are_read_alike() -> None:
    assert squad.from_records([record()], "hub").sound == [
        Question("1", "T", "the cat", "Who?", (("cat", 4),))
    ]


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([], "hub has no questions"),
        ([record(), record()], "hub: [1]: the id '1' is taken by [0]"),
        ([record(context="a cat")], "hub: [0].answers[0]: the answer"),
        ([record(answers="cat")], "hub: [0].answers must be an object"),
        ([record(answers=[])], "hub: [0].answers is empty"),
        ([record(answers={"text": ["cat"]})], "hub: [0].answers.answer_start is missing"),
        ([record(answers={"text": ["cat"], "answer_start": []})], "as many texts as starts"),
    ],
)
def test_malformed_records_are_refused(records: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(NasdError, match=re.escape(message)):
        squad.from_records(records, "hub")


# --- splitting ------------------------------------------------------------------------------

# Titles and contexts are drawn independently, so that many titles share a context.
PLACES = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 40)), min_size=2, max_size=60)
SHARES = st.floats(0.01, 0.99)


def made_of(places: list[tuple[int, int]]) -> list[Question]:
    return [
        Question(f"q{i:02}", f"t{title}", f"c{context}", "?", (("c", 0),))
        for i, (title, context) in enumerate(places)
    ]


@given(PLACES, SHARES, st.sampled_from(["article", "record"]), st.integers(0, 9))
def test_a_split_deals_out_every_question_once_whatever_their_order(
    places: list[tuple[int, int]], share: float, by: Any, seed: int
) -> None:
    questions = made_of(places)
    try:
        train, test = squad.split(questions, share, by, seed)
    except NasdError:
        assert by == "article"
        return
    assert train
    assert test
    assert sorted(train + test, key=lambda one: one.id) == questions
    shuffled = random.Random(seed).sample(questions, len(questions))
    assert squad.split(shuffled, share, by, seed) == (train, test)
    if by == "article":
        assert not {one.title for one in train} & {one.title for one in test}
        assert not {one.context for one in train} & {one.context for one in test}
    else:
        goal = min(max(share * len(questions), 1), len(questions) - 1)
        assert abs(len(train) - goal) <= 0.5


@given(st.lists(st.integers(1, 9), min_size=2, max_size=20), SHARES, st.integers(0, 9))
def test_a_split_by_article_misses_its_share_by_half_an_article_at_most(
    sizes: list[int], share: float, seed: int
) -> None:
    questions = made_of([(t, t) for t, size in enumerate(sizes) for _ in range(size)])
    train, test = squad.split(questions, share, "article", seed)
    if len({one.title for one in train}) > 1 and len({one.title for one in test}) > 1:
        assert abs(len(train) - share * len(questions)) <= max(sizes) / 2


def test_seeds_give_different_splits() -> None:
    questions = made_of([(i, i) for i in range(20)])
    splits = {squad.split(questions, 0.5, "article", seed)[0][0].id for seed in range(20)}
    assert len(splits) > 1


@pytest.mark.parametrize(
    ("places", "by"),
    [
        ([(0, 0), (0, 1)], "article"),
        ([(0, 0), (1, 0)], "article"),  # two articles, but one context
        ([(0, 0), (1, 1), (0, 1)], "article"),
        ([(0, 0)], "record"),
        ([], "record"),
        ([], "article"),
    ],
)
def test_what_cannot_be_split_is_refused(places: list[tuple[int, int]], by: Any) -> None:
    with pytest.raises(NasdError, match=f"cannot be split by {by}"):
        squad.split(made_of(places), 0.8, by, 0)


def test_an_id_of_two_files_is_refused() -> None:
    questions = made_of([(0, 0), (1, 1)])
    with pytest.raises(NasdError, match="'q00' stands twice"):
        squad.split([*questions, questions[0]], 0.5, "record", 0)


def test_without_titles_a_split_by_article_goes_by_contexts() -> None:
    records = [record(id=str(n), context=f"the cat {n // 2}") for n in range(6)]
    for one in records:
        del one["title"]
    found = squad.from_records(records, "hub").sound
    assert {one.title for one in found} == {""}
    train, test = squad.split(found, 0.67, "article", 1)
    assert len(train) == 4 and len(test) == 2
    assert not {one.context for one in train} & {one.context for one in test}
