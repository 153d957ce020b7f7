"""SQuAD v1.1's score as a metric of Hugging Face's `evaluate`, with the features of its "squad".

`evaluate` copies this file elsewhere and looks its imports up line by line: one import a line,
and none of them relative.
"""

from typing import Any

import datasets
import evaluate

from nasd.contract.squad import Question, score

DESCRIPTION = "Exact match and F1 of SQuAD v1.1, as its official evaluation script has them."
INPUTS = """
predictions: dicts with the keys id and prediction_text
references: dicts with the keys id and answers, itself {"text": [...], "answer_start": [...]}
"""
CITATION = "Rajpurkar et al. 2016: SQuAD: 100,000+ Questions for Machine Comprehension of Text"


class SquadMetric(evaluate.Metric):  # type: ignore[misc]
    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        answers = {"text": text, "answer_start": datasets.Value("int32")}
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description=INPUTS,
            features=datasets.Features(
                {
                    "predictions": {"id": text, "prediction_text": text},
                    "references": {"id": text, "answers": datasets.Sequence(answers)},
                }
            ),
        )

    def _compute(
        self, predictions: list[dict[str, Any]], references: list[dict[str, Any]]
    ) -> dict[str, float]:
        questions = [
            Question(
                id=reference["id"],
                title="",
                context="",
                question="",
                answers=tuple(
                    zip(
                        reference["answers"]["text"],
                        reference["answers"]["answer_start"],
                        strict=True,
                    )
                ),
            )
            for reference in references
        ]
        scores = score({item["id"]: item["prediction_text"] for item in predictions}, questions)
        return {"exact_match": scores["exact_match"], "f1": scores["f1"]}
