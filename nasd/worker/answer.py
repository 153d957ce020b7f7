"""`python -m nasd.worker.answer`: a question to an exported model.

Reads one JSON object from standard input, {"folder", "question", "context"}, with a "file" for ONNX
Runtime that is to answer or without one, and prints one JSON line: {"answer", "score", "start",
"end"}, or {"error": one sentence}. The code that answers is the one that travels with the model,
but nasd's own copy of it: none from the folder is run.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

from nasd.contract.errors import NasdError
from nasd.contract.leash import die_with_parent


def main() -> None:
    die_with_parent(os.getppid())
    asked = json.load(sys.stdin)
    try:
        print(json.dumps(answer_to(asked)))
    except NasdError as error:
        print(json.dumps({"error": str(error)}))


def answer_to(asked: dict[str, Any]) -> dict[str, Any]:
    folder = Path(asked["folder"])
    _check(folder)
    from nasd.worker.model.pretrained import NasdForQuestionAnswering

    try:
        model: Any = NasdForQuestionAnswering.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # of many kinds: files missing, cut off
        raise _damaged(folder, error) from error
    if "file" in asked:
        _leave_to_runtime(model, folder / asked["file"])
    try:
        found = model.answer(asked["question"], asked["context"])
    except ValueError as error:  # it is of the tokenizer
        raise NasdError(str(error)) from error
    return {
        "answer": found.text,
        "score": found.score,
        "start": found.start,
        "end": found.end,
    }


def _leave_to_runtime(model: Any, path: Path) -> None:
    """Has ONNX Runtime compute the model's logits from a file."""
    from types import SimpleNamespace

    from nasd.worker import runtime

    found = runtime.session(path)
    model.forward = lambda ids, mask: SimpleNamespace(**runtime.logits(found, ids, mask))


def _check(folder: Path) -> None:
    """That the weights are those of a model like its config.json, before room is made for either.
    What is missing transformers would draw at random."""
    from nasd.worker.model import header, phenotype

    try:
        wanted = header.wanted(phenotype.QuestionAnswering, phenotype.load_architecture(folder))
        there = header.shapes(folder / phenotype.WEIGHTS)
    except Exception as error:  # of many kinds, as no key, no file, or no safetensors
        raise _damaged(folder, error) from error
    for name, asked in wanted.items():
        if wrong := header.misfit(there, name, asked):
            raise NasdError(f"the model in {folder} {wrong}: export it again")


def _damaged(folder: Path, error: Exception) -> NasdError:
    first = (str(error).splitlines() or [repr(error)])[0]
    return NasdError(f"the model in {folder} is damaged ({first}): export it again")


if __name__ == "__main__":
    main()
