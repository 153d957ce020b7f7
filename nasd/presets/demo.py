"""A tiny made-up world for the demonstration search.

The world is a set of towns.  In each town people keep, mend or sell coloured
things in various places.  The same kind of facts makes both data sets:

* ``corpus.txt``: plain text for masked language modelling, one paragraph per
  line and a blank line between documents.  Most facts of a paragraph are told
  twice (again in other words, or as a question with its answer), so that a
  masked word can be found by looking for the other telling.
* ``squad.json``: questions in the form of SQuAD v1.1, one article per town.

Every context tells at least ``MIN_FACTS`` facts, and one person, and one kind
of thing, occur in two of them, so a question has at least five distinct spans
of the right kind to choose from.  A guess among those is right for less than
one question in five.

Everything is drawn from one seed, with the standard library only.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from string import Formatter
from typing import Any

from nasd.contract.errors import NasdError

PEOPLE = (
    "Mara", "Tom", "Ines", "Otto", "Lena", "Hugo", "Nora", "Felix", "Ada", "Boris",
    "Clara", "David", "Edith", "Frank", "Greta", "Henry", "Iris", "Jonas", "Karin",
    "Leo", "Mina", "Oscar", "Paula", "Ruben",
)  # fmt: skip
COLOURS = (
    "red", "blue", "green", "yellow", "white", "black", "brown", "grey", "orange", "purple",
)  # fmt: skip
THINGS = (
    "kite", "drum", "lamp", "chair", "boat", "coat", "clock", "bell", "basket", "flute",
    "teapot", "ladder", "mirror", "cart", "hat", "notebook", "blanket", "barrel", "violin",
    "saddle", "wheel", "table", "bottle", "scarf",
)  # fmt: skip
PLACES = (
    "old mill", "long barn", "stone tower", "empty church", "little shop", "dark cellar",
    "warm kitchen", "quiet library", "north station", "royal garden", "market hall",
    "river cabin", "farmhouse", "boathouse", "lighthouse", "windmill",
)  # fmt: skip
# Base form, third person, participle.
VERBS = (
    ("keep", "keeps", "kept"),
    ("mend", "mends", "mended"),
    ("hide", "hides", "hidden"),
    ("sell", "sells", "sold"),
    ("paint", "paints", "painted"),
    ("clean", "cleans", "cleaned"),
)
TOWN_HEADS = ("Ash", "Birch", "Elm", "Fox", "Hart", "Marsh", "Oak", "Raven", "Stone", "Wolf")
TOWN_TAILS = ("bridge", "field", "ford", "ham", "wick")

MIN_FACTS = 6
LONG_FACTS = 10

_STATEMENTS = (
    "{Person} {verbs} {a} {colour} {thing} in {place}.",
    "{A} {colour} {thing} is {participle} by {person} in {place}.",
)
# Kind of question -> (wordings, wording of the answer in running text).  The
# answer itself is the slot, or the slots, that the second wording names.
_QUESTIONS: dict[str, tuple[tuple[str, ...], str]] = {
    "who": (
        (
            "Who {verbs} the {colour} {thing}?",
            "Who {verbs} the {thing} in {place}?",
        ),
        "{person}",
    ),
    "where": (
        (
            "Where does {person} {verb} the {thing}?",
            "Where is the {colour} {thing}?",
        ),
        "{place}",
    ),
    "what": (
        (
            "What does {person} {verb} in {place}?",
            "What is {participle} by {person} in {place}?",
        ),
        "{colour} {thing}",
    ),
    "colour": (
        (
            "Which colour is the {thing} that {person} {verbs}?",
            "Which colour is the {thing} in {place}?",
        ),
        "{colour}",
    ),
}
_OPENINGS = (
    "{town} is a small town.",
    "It is a busy day in {town}.",
    "The people of {town} work hard.",
    "",
)


@dataclass(frozen=True)
class Fact:
    """One person doing something with one coloured thing in one place."""

    person: str
    verb: tuple[str, str, str]
    colour: str
    thing: str
    place: str

    def slots(self) -> dict[str, str]:
        """The words that the sentence patterns may name."""
        article = "an" if self.colour[0] in "aeiou" else "a"
        return {
            "person": self.person,
            "Person": self.person,
            "verb": self.verb[0],
            "verbs": self.verb[1],
            "participle": self.verb[2],
            "a": article,
            "A": article.capitalize(),
            "colour": self.colour,
            "thing": self.thing,
            "place": f"the {self.place}",
        }


def write_demo_data(folder: Path, seed: int = 0) -> None:
    """Write ``corpus.txt`` and ``squad.json`` into ``folder``.

    Raises NasdError where files of these names hold anything else.
    """
    texts = {"corpus.txt": corpus_text(seed=seed), "squad.json": squad_text(seed=seed)}
    for name, text in texts.items():
        path = folder / name
        if os.path.lexists(path) and not (path.is_file() and path.read_bytes() == text.encode()):
            raise NasdError(f"{path} is not the demo's own: choose another folder, or move it away")
    folder.mkdir(parents=True, exist_ok=True)
    write_corpus(folder / "corpus.txt", seed=seed)
    write_squad(folder / "squad.json", seed=seed)


def write_corpus(path: Path, *, seed: int = 0, documents: int = 150) -> None:
    """Write the plain-text corpus."""
    _write(path, corpus_text(seed=seed, documents=documents))


def write_squad(path: Path, *, seed: int = 0, articles: int = 30) -> None:
    """Write the question-answering set as SQuAD v1.1 JSON."""
    _write(path, squad_text(seed=seed, articles=articles))


def squad_text(*, seed: int = 0, articles: int = 30) -> str:
    """The question-answering set as SQuAD v1.1 JSON."""
    return json.dumps(squad_data(seed=seed, articles=articles), indent=1) + "\n"


def corpus_text(*, seed: int = 0, documents: int = 150) -> str:
    """Documents of a few paragraphs, each told about one town."""
    rng = random.Random(f"corpus-{seed}")
    towns = town_names()
    return "\n".join(
        "".join(f"{line}\n" for line in _document(rng, rng.choice(towns))) for _ in range(documents)
    )


def squad_data(
    *, seed: int = 0, articles: int = 30, paragraphs: int = 5, questions: int = 8
) -> dict[str, Any]:
    """Articles (one per town) of contexts with ``questions`` questions each.

    The last context of every article is longer than the others, too long for
    one short window, so that overlapping windows are needed to read it.
    """
    rng = random.Random(f"squad-{seed}")
    data = []
    for number, town in enumerate(rng.sample(town_names(), articles)):
        entries = []
        for index in range(paragraphs):
            count = LONG_FACTS if index == paragraphs - 1 else MIN_FACTS
            context, qas = _context(rng, town, count, questions)
            for position, question in enumerate(qas):
                question["id"] = f"demo-{number:02d}-{index}-{position}"
            entries.append({"context": context, "qas": qas})
        data.append({"title": town, "paragraphs": entries})
    return {"version": "1.1", "data": data}


def town_names() -> list[str]:
    """Every town of the world."""
    return [head + tail for head in TOWN_HEADS for tail in TOWN_TAILS]


def _facts(rng: random.Random, count: int) -> list[Fact]:
    """Facts with distinct colours and places, so that every pair is unique.

    From five facts on, one person and one kind of thing occur twice: a
    question is then not always settled by a single word.
    """
    people = rng.sample(PEOPLE, count)
    things = rng.sample(THINGS, count)
    if count >= 5:
        people[1] = people[0]
        things[3] = things[2]
    facts = [
        Fact(person, rng.choice(VERBS), colour, thing, place)
        for person, colour, thing, place in zip(
            people, rng.sample(COLOURS, count), things, rng.sample(PLACES, count), strict=True
        )
    ]
    rng.shuffle(facts)
    return facts


def _context(
    rng: random.Random, town: str, count: int, questions: int
) -> tuple[str, list[dict[str, Any]]]:
    """One context and its questions, each with its answer's offset."""
    facts = _facts(rng, count)
    opening = rng.choice(_OPENINGS).format(town=town)
    context = f"{opening} " if opening else ""
    asked = []
    for fact in facts:
        sentence, starts = _render(rng.choice(_STATEMENTS), fact.slots())
        for wordings, answer in _QUESTIONS.values():
            question, _ = _render(rng.choice(wordings), fact.slots())
            text, slots = _render(answer, fact.slots())
            start = len(context) + starts[min(slots, key=slots.__getitem__)]
            asked.append(
                {"id": "", "question": question, "answers": [{"text": text, "answer_start": start}]}
            )
        context += f"{sentence} "
    return context.rstrip(), rng.sample(asked, questions)


def _document(rng: random.Random, town: str) -> Iterator[str]:
    """Three to six paragraphs about one town."""
    for _ in range(rng.randint(3, 6)):
        yield _paragraph(rng, town)


def _paragraph(rng: random.Random, town: str) -> str:
    """Some facts, then most of them again, in other words or as a question."""
    facts = _facts(rng, rng.randint(2, 6))
    told = [_render(rng.choice(_STATEMENTS), fact.slots())[0] for fact in facts]
    opening = rng.choice(_OPENINGS).format(town=town)
    again = []
    for fact in rng.sample(facts, min(len(facts), 3)):
        if rng.random() < 0.3:
            again.append(_render(rng.choice(_STATEMENTS), fact.slots())[0])
        else:
            again.append(_asked_and_answered(rng, fact))
    # The questions stand before or after the facts: as in the fine-tuning
    # input the question comes first, and as in a reading exercise, last.
    parts = [opening, *told, *again] if rng.random() < 0.5 else [*again, opening, *told]
    return " ".join(part for part in parts if part)


def _asked_and_answered(rng: random.Random, fact: Fact) -> str:
    wordings, answer = _QUESTIONS[rng.choice(tuple(_QUESTIONS))]
    question, _ = _render(rng.choice(wordings), fact.slots())
    text, _ = _render(answer, fact.slots())
    return f"{question} {text[0].upper()}{text[1:]}."


def _render(pattern: str, slots: dict[str, str]) -> tuple[str, dict[str, int]]:
    """Fill a pattern, and tell where each slot begins (by lower-case name)."""
    text = ""
    starts: dict[str, int] = {}
    for literal, name, _, _ in Formatter().parse(pattern):
        text += literal
        if name:
            starts[name.lower()] = len(text)
            text += slots[name]
    return text, starts


def _write(path: Path, text: str) -> None:
    """Write under another name, then rename, so that no half file is seen."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
