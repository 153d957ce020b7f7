"""Asks an exported model: a child process loads it, because that takes torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nasd.contract import strangers
from nasd.contract.errors import NasdError
from nasd.export.export import INT8, ONNX, check_onnx
from nasd.launch import child

ANSWERS = "QuestionAnswering"
PREDICTS = ("SequenceClassification", "TokenClassification")


@dataclass(frozen=True)
class Answer:
    """As it stands in the context, from character `start` to before `end`. score: from 0 to 1."""

    answer: str
    score: float
    start: int
    end: int


def file_of(onnx: bool, int8: bool) -> str | None:
    """The file for ONNX Runtime that is to answer; None: the model itself. Raises NasdError."""
    if onnx and int8:
        raise NasdError("--onnx and --int8 are two files: take one of them")
    if onnx or int8:
        check_onnx("--int8" if int8 else "--onnx")
    return INT8 if int8 else ONNX if onnx else None


def answer(folder: Path, question: str, context: str, file: str | None = None) -> Answer:
    """The best answer of the model in `folder`, or of a file for ONNX Runtime beside it; raises
    NasdError where there is none to be had."""
    kind_of(folder, (ANSWERS,), "nasd predict")
    for name, text in (("question", question), ("context", context)):
        if not text.strip():
            raise NasdError(f"the {name} is empty: give it some words")
    asked = {"folder": str(folder.resolve()), "question": question, "context": context}
    if file is not None:
        asked["file"] = file
    try:
        return Answer(**child.ask("nasd.worker.answer", asked, child.BESIDE_A_SEARCH))
    except child.NoAnswer as error:
        raise NasdError(f"the model in {folder} cannot be asked: {error}") from None


@dataclass(frozen=True)
class Told:
    """Of a text, or of a word of it: a label and how sure the model is of it, from 0 to 1; or ""
    and the number that it tells."""

    label: str
    score: float


def predict(
    folder: Path, lines: Sequence[str], file: str | None = None
) -> list[Told | list[tuple[str, Told]]]:
    """What the model in `folder`, or a file for ONNX Runtime beside it, tells of each line: a text,
    or two with a tab between them. Of one that labels words, each word with its label. Raises
    NasdError."""
    kind = kind_of(folder, PREDICTS, "nasd answer")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            raise NasdError(f"text {number} is empty: give it some words")
    by_word = kind == PREDICTS[1]
    words = [line.split() for line in lines]
    halves = [line.partition("\t") for line in lines]
    paired = {bool(tab) for _, tab, _ in halves}
    if not by_word and len(paired) > 1:
        raise NasdError("some texts are pairs, with a tab between the two, and some are not")
    asked = {
        "folder": str(folder.resolve()),
        "kind": kind,
        "texts": words if by_word else [first for first, _, _ in halves],
        "pairs": [last for _, _, last in halves] if not by_word and paired == {True} else None,
        **({} if file is None else {"file": file}),
    }
    try:
        told = child.ask("nasd.worker.answer", asked, child.BESIDE_A_SEARCH)["told"]
    except child.NoAnswer as error:
        raise NasdError(f"the model in {folder} cannot be asked: {error}") from None
    if not by_word:
        return [Told(*one) for one in told]
    return [
        [(word, Told(*one)) for word, one in zip(text, each, strict=True)]
        for text, each in zip(words, told, strict=True)
    ]


def kind_of(folder: Path, wanted: Sequence[str], other: str) -> str:
    """Which of these kinds of models `folder` holds; raises NasdError where it is no exported
    model, or one for the other command."""
    try:
        kinds = strangers.json_object(folder / "config.json")["architectures"]
        found = [one for one in (ANSWERS, *PREDICTS) if f"NasdFor{one}" in kinds]
        whole = bool(found) and (folder / "tokenizer.json").is_file()
    except (NasdError, KeyError, TypeError):
        whole = False
    if not whole:
        raise NasdError(
            f"{folder} is no exported model: make one with `nasd export CANDIDATE {folder}`"
        )
    if found[0] not in wanted:
        what = "answers questions" if found[0] == ANSWERS else "labels texts"
        raise NasdError(f"the model in {folder} {what}: ask it by `{other}`")
    return found[0]
