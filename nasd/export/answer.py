"""Asks an exported model: a child process loads it, because that takes torch."""

from dataclasses import dataclass
from pathlib import Path

from nasd.contract import strangers
from nasd.contract.errors import NasdError
from nasd.export.export import INT8, ONNX, check_onnx
from nasd.launch import child

KIND = "NasdForQuestionAnswering"


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
    check_model(folder)
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


def check_model(folder: Path) -> None:
    """Raises NasdError unless `folder` looks like an exported model."""
    try:
        kinds = strangers.json_object(folder / "config.json")["architectures"]
        whole = KIND in kinds and (folder / "tokenizer.json").is_file()
    except (NasdError, KeyError, TypeError):
        whole = False
    if not whole:
        raise NasdError(
            f"{folder} is no exported model: make one with `nasd export CANDIDATE {folder}`"
        )
