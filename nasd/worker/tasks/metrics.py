"""The score of questions through Hugging Face's `evaluate`, but never through the network.

Once in a search: a process that imports `evaluate` spends 5 s on it, as it brings transformers'
pipelines.
"""

import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from nasd.contract.squad import Question

METRIC = Path(__file__).parent / "squad_metric"


def confirm(
    scores: Mapping[str, float], predictions: Mapping[str, str], questions: Sequence[Question]
) -> None:
    """`evaluate` comes to the same scores."""
    theirs = squad_scores(predictions, questions)
    assert theirs == {key: scores[key] for key in theirs}, f"evaluate says {theirs}, not {scores}"


def squad_scores(predictions: Mapping[str, str], questions: Sequence[Question]) -> dict[str, float]:
    """{"exact_match": %, "f1": %}, equal to nasd.contract.squad.score.

    evaluate wants one row of predictions per question. An empty id, which no question has, marks
    the row of one that was left out: it then scores 0, whatever its gold answers.
    """
    rows = [
        {"id": question.id, "prediction_text": predictions[question.id]}
        if question.id in predictions
        else {"id": "", "prediction_text": ""}
        for question in questions
    ]
    references = [
        {
            "id": question.id,
            "answers": {
                "text": [text for text, _ in question.answers],
                "answer_start": [start for _, start in question.answers],
            },
        }
        for question in questions
    ]
    scores = _metric().compute(predictions=rows, references=references)
    return {key: float(value) for key, value in scores.items()}


@cache
def _metric() -> Any:
    """The metric module, loaded once in a process.

    evaluate copies the script into a cache and imports the copy. A folder of our own, gone after
    the load, keeps processes out of each other's way and the user's home clean; the rows
    themselves stay in memory.
    """
    os.environ.setdefault("HF_EVALUATE_OFFLINE", "1")
    import evaluate

    usual = evaluate.config.HF_MODULES_CACHE
    with tempfile.TemporaryDirectory(prefix="nasd-metric-") as folder:
        evaluate.config.HF_MODULES_CACHE = folder
        try:
            return evaluate.load(
                str(METRIC),
                keep_in_memory=True,
                cache_dir=folder,
                experiment_id=f"nasd-{os.getpid()}",
            )
        finally:
            evaluate.config.HF_MODULES_CACHE = usual
            if folder in sys.path:  # evaluate put it there
                sys.path.remove(folder)
