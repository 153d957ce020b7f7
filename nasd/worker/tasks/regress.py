"""Regression: the squared error of a text's number, scored by correlation as STS-B is."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from nasd.contract.protocol import Spec, write_atomically
from nasd.worker.model.phenotype import SequenceClassification
from nasd.worker.tasks import labelled, scores
from nasd.worker.tasks.labelled import Floats, LabelledTask, Rows
from nasd.worker.tasks.task import Batch, Outputs


class RegressTask(LabelledTask):
    kind = SequenceClassification
    compared = "values"

    def loss(self, outputs: Outputs, batch: Batch) -> Tensor:
        return F.mse_loss(outputs[0][:, 0].float(), batch["targets"], reduction="sum")

    def _ignorance(self) -> float:
        """The loss of a model that always says the mean."""
        return float(np.var(self._test.targets))


def scored(spec: Spec, result: Path, said: list[Floats]) -> Callable[[Rows], dict[str, float]]:
    """Of the test examples' numbers, which go into a file."""
    _, test = labelled.parts(spec)
    told = np.array([float(one[0, 0]) for one in said])
    write_atomically(result / "predictions.json", json.dumps(told.tolist(), indent=0).encode())
    wanted = np.asarray(test.targets, dtype=np.float64)
    return lambda rows: {
        "spearman": scores.spearman(wanted[rows], told[rows]),
        "pearson": scores.pearson(wanted[rows], told[rows]),
    }


score = partial(labelled.score, RegressTask, scored)
