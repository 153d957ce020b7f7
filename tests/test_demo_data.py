"""The demonstration data is well formed, repeatable and hard to guess."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from nasd.presets import demo

# What a guesser who understands the question's first word would choose among.
CANDIDATES = {
    "Who": "|".join(demo.PEOPLE),
    "Where": "|".join(f"the {place}" for place in demo.PLACES),
    "What": rf"(?:{'|'.join(demo.COLOURS)}) (?:{'|'.join(demo.THINGS)})",
    "Which": "|".join(demo.COLOURS),
}


@pytest.fixture(scope="module")
def squad(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("demo")
    demo.write_demo_data(folder)
    data: dict[str, Any] = json.loads((folder / "squad.json").read_text(encoding="utf-8"))
    return data


def questions(squad: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Every (context, question) pair."""
    return [
        (paragraph["context"], question)
        for article in squad["data"]
        for paragraph in article["paragraphs"]
        for question in paragraph["qas"]
    ]


def overlap(guess: str, answer: str) -> float:
    """SQuAD's F1 of two short answers (no punctuation occurs in them)."""
    ours, theirs = (
        [word for word in text.lower().split() if word != "the"] for text in (guess, answer)
    )
    common = sum((Counter(ours) & Counter(theirs)).values())
    return 2 * common / (len(ours) + len(theirs))


def spans(context: str, question: str) -> list[str]:
    """The distinct spans of the kind that the question asks for."""
    pattern = CANDIDATES[question.split()[0]]
    return sorted(set(re.findall(rf"\b(?:{pattern})\b", context)))


def test_size(squad: dict[str, Any]) -> None:
    titles = [article["title"] for article in squad["data"]]
    assert len(set(titles)) == len(titles) >= 20
    assert all(article["paragraphs"] for article in squad["data"])
    assert all(p["qas"] for article in squad["data"] for p in article["paragraphs"])
    assert 800 <= len(questions(squad)) <= 1500


def test_ids_are_unique(squad: dict[str, Any]) -> None:
    ids = [question["id"] for _, question in questions(squad)]
    assert len(set(ids)) == len(ids)


def test_answers_stand_where_they_are_said_to(squad: dict[str, Any]) -> None:
    for context, question in questions(squad):
        (answer,) = question["answers"]
        start = answer["answer_start"]
        assert context[start : start + len(answer["text"])] == answer["text"]
        assert 1 <= len(answer["text"].split()) <= 3


def test_only_one_sentence_answers_a_question(squad: dict[str, Any]) -> None:
    names = (*demo.PEOPLE, *demo.COLOURS, *demo.THINGS, *demo.PLACES)
    for context, question in questions(squad):
        asked = {name for name in names if re.search(rf"\b{name}\b", question["question"])}
        assert len(asked) == 2
        telling = [
            sentence
            for sentence in context.split(".")
            if all(re.search(rf"\b{name}\b", sentence) for name in asked)
        ]
        (sentence,) = telling
        start = question["answers"][0]["answer_start"]
        assert 0 <= start - context.index(sentence) < len(sentence)


def test_a_guess_is_seldom_right(squad: dict[str, Any]) -> None:
    exact, f1 = [], []
    for context, question in questions(squad):
        answer = question["answers"][0]["text"]
        choices = spans(context, question["question"])
        assert len(choices) >= 5
        assert answer in choices
        exact.append(1 / len(choices))
        f1.append(sum(overlap(choice, answer) for choice in choices) / len(choices))
    assert sum(exact) / len(exact) < 0.20
    assert sum(f1) / len(f1) < 0.25


def test_one_place_in_the_context_is_not_favoured(squad: dict[str, Any]) -> None:
    tenths = Counter(
        10 * question["answers"][0]["answer_start"] // len(context)
        for context, question in questions(squad)
    )
    assert max(tenths.values()) < 0.2 * tenths.total()


def test_corpus_is_paragraphs_in_documents() -> None:
    text = demo.corpus_text()
    assert 100_000 <= len(text) <= 300_000
    assert not text.startswith("\n") and text.endswith(".\n")
    documents = text.split("\n\n")
    assert len(documents) == 150
    assert all(line.strip() == line and line for line in text.strip().split("\n") if line)
    assert all(3 <= len(document.strip().split("\n")) <= 6 for document in documents)


def test_same_seed_same_bytes(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        demo.write_demo_data(tmp_path / name, seed=seed)
        assert sorted(p.name for p in (tmp_path / name).iterdir()) == ["corpus.txt", "squad.json"]
    for name in ("corpus.txt", "squad.json"):
        first, again, other = ((tmp_path / x / name).read_bytes() for x in "abc")
        assert first == again != other
