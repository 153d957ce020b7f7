"""`python -m nasd.worker.answer`: a question to an exported model.

Reads one JSON object from standard input: {"folder", "question", "context"}, or of a classifier
{"folder", "kind", "texts": texts, or lists of words, "pairs": the second of each, or null}; with a
"file" for ONNX Runtime that is to answer, or without one. Prints one JSON line: {"answer", "score",
"start", "end"}, or {"told": [label, score] of each text, or a list of these, one a word}; or
{"error": one sentence}. The code that answers is the one that travels with the model, but nasd's
own copy of it: none from the folder is run.
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
    kind = asked.get("kind", "QuestionAnswering")
    _check(folder, kind)
    from nasd.worker.model import pretrained

    try:
        ours = getattr(pretrained, f"NasdFor{kind}")
        model: Any = ours.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # of many kinds: files missing, cut off
        raise _damaged(folder, error) from error
    if "file" in asked:
        _leave_to_runtime(model, folder / asked["file"])
    try:
        if "texts" in asked:
            pairs = () if asked["pairs"] is None else (asked["pairs"],)
            return {"told": model.predict(asked["texts"], *pairs)}
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


def _check(folder: Path, kind: str) -> None:
    """That the weights are those of a model like its config.json, before room is made for either.
    What is missing transformers would draw at random."""
    from nasd.worker.model import header, phenotype

    try:
        wanted = header.wanted(getattr(phenotype, kind), phenotype.load_architecture(folder))
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
