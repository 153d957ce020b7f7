"""`python -m nasd.worker.answer`: a question to an exported model.

Reads one JSON object from standard input, {"folder", "question", "context"}, and prints one JSON
line: {"answer", "score", "start", "end"}, or {"error": one sentence}. The code that answers is the
one that travels with the model, but nasd's own copy of it: none from the folder is run.
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
    from nasd.worker.model.pretrained import NasdForQuestionAnswering

    folder = Path(asked["folder"])
    try:
        loaded: Any = NasdForQuestionAnswering.from_pretrained(
            folder, local_files_only=True, output_loading_info=True
        )
    except Exception as error:  # of many kinds: files missing, cut off, of another shape
        first = (str(error).splitlines() or [repr(error)])[0]
        raise NasdError(f"the model in {folder} is damaged ({first}): export it again") from error
    model, loading = loaded
    if loading["missing_keys"]:  # transformers would draw them at random
        missing = sorted(loading["missing_keys"])[0]
        raise NasdError(f"the model in {folder} lacks the weights {missing}: export it again")
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


if __name__ == "__main__":
    main()
