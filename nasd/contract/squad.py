"""SQuAD v1.1 and 2.0: reading them, splitting them, and their official scores.

Sources: Rajpurkar et al. 2016 (exact match and F1 in section 6.1) and 2018 (questions without an
answer), their scripts evaluate-v1.1.py and evaluate-v2.0.py, and the thesis, 5.2.2. Standard
library only: the control plane scores predictions without torch.
"""

import json
import math
import random
import re
import string
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple

from nasd.contract import formats
from nasd.contract.errors import NasdError
from nasd.contract.readable import shown

PUNCTUATION = dict.fromkeys(map(ord, string.punctuation))
ARTICLES = re.compile(r"\b(a|an|the)\b")


@dataclass(frozen=True, slots=True)
class Question:
    """One question about one context. answers: (text, its first character in the context); none of
    a question that has no answer."""

    id: str
    title: str
    context: str
    question: str
    answers: tuple[tuple[str, int], ...]


# --- the official score ---------------------------------------------------------------------


def normalise_answer(text: str) -> str:
    """Lower case, then without ASCII punctuation, articles and superfluous white space."""
    return " ".join(ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split())


def exact_match(prediction: str, answer: str) -> bool:
    return normalise_answer(prediction) == normalise_answer(answer)


def f1(prediction: str, answer: str) -> float:
    """Harmonic mean of precision and recall over the words of both, as bags, from 0 to 1."""
    predicted = normalise_answer(prediction).split()
    gold = normalise_answer(answer).split()
    same = (Counter(predicted) & Counter(gold)).total()
    if not same:
        return 0.0  # also where both are empty: so does the official script of v1.1
    precision, recall = same / len(predicted), same / len(gold)
    return 2 * precision * recall / (precision + recall)


def score(predictions: Mapping[str, str], questions: Iterable[Question]) -> dict[str, float]:
    """{"exact_match": %, "f1": %, "total": number of questions}, as evaluate-v1.1.py has it, or
    evaluate-v2.0.py where there are questions without an answer.

    For each question the best over its gold answers counts; one without a prediction scores 0.
    """
    total, exact, overlap = 0, 0, 0.0
    for one, other in each(predictions, list(questions)):
        total += 1
        exact += one
        overlap += other
    if not total:
        raise ValueError("there are no questions to score")
    return {"exact_match": 100.0 * exact / total, "f1": 100.0 * overlap / total, "total": total}


def each(
    predictions: Mapping[str, str], questions: Sequence[Question]
) -> Iterator[tuple[bool, float]]:
    """Exact match and F1 of each question, as `score` takes their means."""
    unanswerable = any(not question.answers for question in questions)
    for question in questions:
        prediction = predictions.get(question.id)
        if prediction is None:
            yield False, 0.0
        elif unanswerable:
            yield marks(prediction, question)
        else:
            yield (
                max(exact_match(prediction, answer) for answer, _ in question.answers),
                max(f1(prediction, answer) for answer, _ in question.answers),
            )


def error(predictions: Mapping[str, str], questions: Sequence[Question]) -> float:
    """The standard error of the mean of both marks, in percent: questions are a sample, and those
    about one context are sampled together."""
    marked = [(one + other) / 2 for one, other in each(predictions, questions)]
    mean = math.fsum(marked) / len(marked)
    about: dict[str, float] = {}
    for question, mark in zip(questions, marked, strict=True):
        about[question.context] = about.get(question.context, 0.0) + mark - mean
    contexts = len(about)
    if contexts < 2:
        return 100.0 * math.sqrt(mean * (1 - mean) / len(marked))
    spread = math.fsum(one**2 for one in about.values()) * contexts / (contexts - 1)
    return 100.0 * math.sqrt(spread) / len(marked)


def marks(prediction: str, question: Question) -> tuple[bool, float]:
    """Exact match and F1 of one prediction as evaluate-v2.0.py has them: where the question has no
    answer, or none but of signs and articles, to give none is right, and all else is wrong."""
    gold = [answer for answer, _ in question.answers if normalise_answer(answer)] or [""]
    overlaps = [
        f1(prediction, answer)
        if normalise_answer(answer) and normalise_answer(prediction)
        else float(normalise_answer(answer) == normalise_answer(prediction))
        for answer in gold
    ]
    return max(exact_match(prediction, answer) for answer in gold), max(overlaps)


class Judged(NamedTuple):
    """Of a question: the best answer, and by how much it is less sure than that there is none."""

    answer: str
    doubt: float


def threshold(judged: Mapping[str, Judged], questions: Sequence[Question]) -> float:
    """The doubt up to which an answer is given, such that the mean F1 of these questions is as high
    as can be: evaluate-v2.0.py's find_best_thresh, of doubts in the place of probabilities."""
    ordered = sorted(questions, key=lambda one: judged[one.id].doubt)
    score = best = float(sum(not one.answers for one in questions))
    found = judged[ordered[0].id].doubt - 1.0  # nothing is answered
    for question in ordered:
        answer, doubt = judged[question.id]
        score += marks(answer, question)[1] if question.answers else -1.0 * bool(answer)
        if score > best:
            best, found = score, doubt
    return found


def answered(judged: Mapping[str, Judged], most: float) -> dict[str, str]:
    """An answer to each question; "" where the doubt is above the threshold."""
    return {name: "" if one.doubt > most else one.answer for name, one in judged.items()}


# --- reading --------------------------------------------------------------------------------


LISTED = 3  # of the faults of a data set
OR_SKIP = "; in a search data.qa.skip_faulty = true leaves {} out"


class Questions(NamedTuple):
    """Those that are sound, in their order, and what is wrong with each of the others."""

    sound: list[Question]
    faults: list[str]


def read_squad(path: Path) -> list[Question]:
    """Reads a data set in the official JSON form, or with a question a row as `from_records` has
    it; raises NasdError naming the file and the place.

    Keys that v1.1 does not know are ignored, as the official script ignores them.
    """
    return read_all([path]).sound


def read_all(
    paths: Sequence[Path], skip_faulty: bool = False, no_answer: bool = False
) -> Questions:
    """The questions of several such files together, in which each id stands once. no_answer: those
    that have none are no faults.

    Raises NasdError that counts the faulty ones and names the first, unless they are skipped.
    """
    return _sound([(str(path), _entries(path)) for path in paths], skip_faulty, no_answer)


def from_records(
    records: Iterable[Mapping[str, Any]],
    origin: str,
    skip_faulty: bool = False,
    no_answer: bool = False,
) -> Questions:
    """The same from flat records as the Hugging Face hub has them: one a question, with its title
    and context, and answers as {"text": [...], "answer_start": [...]}."""
    return _sound([(origin, _flat(records, origin))], skip_faulty, no_answer)


# The place of a question in its file, and what reads it, or raises NasdError.
Entries = Iterator[tuple[str, Callable[[], Question]]]


def _entries(path: Path) -> Entries:
    seen = formats.look(path)
    match seen.form:
        case "JSON lines" | "Parquet":
            rows = list(formats.rows(path, seen))
            if len(rows) == 1 and "question" not in rows[0]:  # the official form, on one line
                yield from _document(rows[0], str(path))
            else:
                yield from _flat(rows, str(path))
        case "CSV":
            raise NasdError(
                f"{path} is CSV, which has no place for the answers of SQuAD v1.1: give JSON, JSON"
                " lines or Parquet"
            )
        case _:
            yield from _document(_json(path), str(path))


def _document(root: Any, origin: str) -> Entries:
    """The official form; or a list with a question a row, by itself or as `data`."""
    rows = root if isinstance(root, list) else root.get("data") if isinstance(root, dict) else None
    if isinstance(rows, list) and rows and isinstance(rows[0], dict) and "question" in rows[0]:
        return _flat(rows, origin)
    return _nested(root, origin)


def _sound(sources: Sequence[tuple[str, Entries]], skip_faulty: bool, no_answer: bool) -> Questions:
    taken: dict[str, tuple[str, str]] = {}  # of an id: the data set, and the place in it
    found = Questions([], [])
    for origin, entries in sources:
        before = len(found.sound) + len(found.faults)
        for place, read in entries:
            try:
                question = read()
                if not question.answers and not no_answer:
                    raise NasdError(
                        f"{origin}: {place}.answers is empty; each question of SQuAD v1.1 has an"
                        " answer (2.0 also has unanswerable ones: leave those out, or take them by"
                        " data.qa.no_answer = true)"
                    )
                if question.id in taken:
                    there, by = taken[question.id]
                    raise NasdError(
                        f"{origin}: {place}: the id {shown(question.id)} is taken by"
                        f" {by if there == origin else f'{there}: {by}'}; give each question an id"
                        " of its own"
                    )
            except NasdError as error:
                found.faults.append(str(error))
            else:
                taken[question.id] = (origin, place)
                found.sound.append(question)
        if len(found.sound) + len(found.faults) == before:
            raise NasdError(f"{origin} has no questions; give SQuAD v1.1 data that has some")
    faults = len(found.faults)
    if faults and (not skip_faulty or not found.sound):
        if faults == 1 and found.sound:
            raise NasdError(f"{found.faults[0]}{OR_SKIP.format('it')}")
        listed = "; ".join(f"({n}) {text}" for n, text in enumerate(found.faults[:LISTED], 1))
        more = f"; and {faults - LISTED:,} more" if faults > LISTED else ""
        raise NasdError(
            f"{faults:,} of {faults + len(found.sound):,} questions are faulty: {listed}{more}"
            + ("" if skip_faulty else OR_SKIP.format("them"))
        )
    return found


def _nested(root: Any, origin: str) -> Entries:
    articles = _list(_object(root, f"{origin}: the top level"), "data", f"{origin}: ")
    for i, one in enumerate(articles):
        at = f"{origin}: data[{i}]"
        title = _title(_object(one, at), f"{at}.")
        for j, paragraph in enumerate(_list(one, "paragraphs", f"{at}.")):
            at = f"{origin}: data[{i}].paragraphs[{j}]"
            context = _text(_object(paragraph, at), "context", f"{at}.")
            for k, entry in enumerate(_list(paragraph, "qas", f"{at}.")):
                place = f"data[{i}].paragraphs[{j}].qas[{k}]"
                where = f"{origin}: {place}"
                yield place, partial(_asked, entry, title, context, where)


def _asked(entry: Any, title: str, context: str, where: str) -> Question:
    return _question(_object(entry, where), title, context, where)


def _flat(records: Iterable[Any], origin: str) -> Entries:
    for i, record in enumerate(records):
        yield f"[{i}]", partial(_of_record, record, f"{origin}: [{i}]")


def _of_record(record: Any, where: str) -> Question:
    entry = dict(record) if isinstance(record, Mapping) else _object(record, where)
    if not isinstance(entry.get("answers"), list):  # as they stand in the official form
        entry["answers"] = _paired(entry, where)
    context = _text(entry, "context", f"{where}.")
    return _question(entry, _title(entry, f"{where}."), context, where)


def _paired(entry: dict[str, Any], where: str) -> list[dict[str, Any]]:
    """Answers from the list of their texts and that of their starts."""
    answers = _object(_need(entry, "answers", f"{where}."), f"{where}.answers")
    texts, starts = (_list(answers, key, f"{where}.answers.") for key in ("text", "answer_start"))
    if len(texts) != len(starts):
        raise NasdError(f"{where}.answers must have as many texts as starts; correct it")
    return [
        {"text": text, "answer_start": start} for text, start in zip(texts, starts, strict=True)
    ]


def _title(entry: dict[str, Any], prefix: str) -> str:
    """Empty where there is none, which only a split by article asks for."""
    return _text(entry, "title", prefix) if entry.get("title") is not None else ""


def read_predictions(path: Path) -> dict[str, str]:
    """Reads {question id: answer}, the official form of predictions; raises NasdError."""
    predictions = _object(_json(path), f"{path}: the top level")
    for key in predictions:
        _text(predictions, key, f"{path}: ")
    return predictions


def _question(entry: dict[str, Any], title: str, context: str, where: str) -> Question:
    """`where` is the file and the place of the entry in it."""
    number = entry.get("id")
    whole = isinstance(number, int) and not isinstance(number, bool)
    key = str(number) if whole else _text(entry, "id", f"{where}.")
    if not key:
        raise NasdError(f"{where}.id is empty; give each question an id of its own")
    answers = []
    for n, item in enumerate(_list(entry, "answers", f"{where}.")):
        at = f"{where}.answers[{n}]"
        text = _text(_object(item, at), "text", f"{at}.")
        start = _need(item, "answer_start", f"{at}.")
        if not isinstance(start, int) or isinstance(start, bool):
            raise NasdError(f"{at}.answer_start must be a whole number, not {_shown(start)}")
        if not text.strip():
            raise NasdError(f"{at}.text is empty; give an answer that stands in the context")
        if start < 0 or not context.startswith(text, start):
            raise NasdError(
                f"{at}: the answer {_shown(text)} does not stand at character {start} of the"
                " context; correct answer_start, which counts Unicode characters from 0"
            )
        answers.append((text, start))
    return Question(key, title, context, _text(entry, "question", f"{where}."), tuple(answers))


def _json(path: Path) -> Any:
    try:
        return json.loads(formats.content(path, formats.look(path)))
    except (ValueError, RecursionError) as error:
        said = str(error).partition(";")[0]  # what follows is advice to programmers
        raise NasdError(f"{path} is not valid JSON ({said}); mend the file") from None


def _need(parent: dict[str, Any], key: str, prefix: str) -> Any:
    if key not in parent:
        raise NasdError(f"{prefix}{key} is missing; give a file in the form of SQuAD v1.1")
    return parent[key]


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise NasdError(f"{where} must be an object, not {_shown(value)}")
    return value


def _list(parent: dict[str, Any], key: str, prefix: str) -> list[Any]:
    value = _need(parent, key, prefix)
    if not isinstance(value, list):
        raise NasdError(f"{prefix}{key} must be a list, not {_shown(value)}")
    return value


def _text(parent: dict[str, Any], key: str, prefix: str) -> str:
    value = _need(parent, key, prefix)
    if not isinstance(value, str):
        raise NasdError(f"{prefix}{key} must be a string, not {_shown(value)}")
    try:
        value.encode()
    except UnicodeEncodeError:  # JSON can spell half a surrogate pair; no tokenizer takes one
        raise NasdError(f"{prefix}{key} is no valid Unicode text; mend its \\u escapes") from None
    return value


def _shown(value: Any) -> str:
    return shown(value, 40, lambda known: json.dumps(known, default=repr))


# --- splitting ------------------------------------------------------------------------------


def split(
    questions: Iterable[Question], share: float, by: Literal["article", "record"], seed: int
) -> tuple[list[Question], list[Question]]:
    """(train, test), train having `share` of the questions as nearly as can be, neither empty.

    By article no title, and no context that two titles share, stands on both sides. Which question
    goes where, and the order on each side (by id), does not depend on the order given.
    """
    ordered = sorted(questions, key=lambda question: question.id)
    for one, other in pairwise(ordered):
        if one.id == other.id:
            raise NasdError(
                f"the question {one.id!r} stands twice in the data; leave one of the two out"
            )
    groups = _articles(ordered) if by == "article" else [[question] for question in ordered]
    if len(groups) < 2:
        wanted = "articles without a context in common" if by == "article" else "questions"
        raise NasdError(
            f"the data cannot be split by {by} into a train and a test part: that takes at least"
            f" two {wanted}, and there are fewer; give more data"
        )
    random.Random(seed).shuffle(groups)
    sums = list(accumulate(map(len, groups)))
    goal = share * len(ordered)
    cut = min(range(1, len(groups)), key=lambda n: abs(sums[n - 1] - goal))
    train = {question.id for group in groups[:cut] for question in group}
    return (
        [question for question in ordered if question.id in train],
        [question for question in ordered if question.id not in train],
    )


def article(question: Question) -> str:
    """The title, or the context itself where it has none."""
    return question.title or question.context


def _articles(questions: Sequence[Question]) -> list[list[Question]]:
    """The questions of each article; articles with a context in common count as one."""
    leader: dict[str, str] = {}  # of a title: another title of its group, or itself

    def find(title: str) -> str:
        while leader[title] != title:
            title = leader[title]
        return title

    first: dict[str, str] = {}  # of a context: the first title it stands under
    for question in questions:
        title = article(question)
        leader.setdefault(title, title)
        leader[find(title)] = find(first.setdefault(question.context, title))
    groups: defaultdict[str, list[Question]] = defaultdict(list)
    for question in questions:
        groups[find(article(question))].append(question)
    return list(groups.values())  # in the order of their smallest ids
