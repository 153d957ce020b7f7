"""Classification: the cross entropy of a text's label, scored as GLUE's tasks are."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from nasd.contract import tasks
from nasd.contract.config import ClassifyData
from nasd.contract.protocol import Spec, write_atomically
from nasd.worker.model.phenotype import SequenceClassification
from nasd.worker.tasks import labelled, scores
from nasd.worker.tasks.examples import manifest
from nasd.worker.tasks.labelled import Floats, LabelledTask, Rows
from nasd.worker.tasks.task import Batch, Outputs


class ClassifyTask(LabelledTask):
    kind = SequenceClassification

    def loss(self, outputs: Outputs, batch: Batch) -> Tensor:
        return F.cross_entropy(outputs[0].float(), batch["targets"], reduction="sum")


def scored(spec: Spec, result: Path, said: list[Floats]) -> Callable[[Rows], dict[str, float]]:
    """Of the test examples' logits; the labels that they tell go into a file."""
    _, test = labelled.parts(spec)
    labels: list[str] = manifest(Path(spec.labelled_cache))["labels"]
    told = np.array([int(one[0].argmax()) for one in said])
    names = [labels[one] for one in told]
    write_atomically(result / "predictions.json", json.dumps(names, indent=0).encode())
    data = tasks.labelled(spec.data)
    assert isinstance(data, ClassifyData)
    positive = data.positive
    wanted = np.asarray(test.targets)
    place = None if positive is None else labels.index(positive)
    return lambda rows: scores.of_labels(wanted[rows], told[rows], place)


score = partial(labelled.score, ClassifyTask, scored)
