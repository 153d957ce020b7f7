"""Token classification: the cross entropy of each word's label at its first token, scored by whole
entities as `seqeval` scores them."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from nasd.contract.labelled import OUTSIDE
from nasd.contract.protocol import Spec, write_atomically
from nasd.worker.model.phenotype import TokenClassification
from nasd.worker.tasks import labelled, scores
from nasd.worker.tasks.examples import NOTHING, manifest, test_words
from nasd.worker.tasks.labelled import Floats, LabelledTask, Rows
from nasd.worker.tasks.task import Batch, Outputs


class TagTask(LabelledTask):
    kind = TokenClassification

    def loss(self, outputs: Outputs, batch: Batch) -> Tensor:
        logits, targets = outputs[0].float(), batch["targets"]
        each = F.cross_entropy(
            logits.transpose(1, 2), targets, ignore_index=NOTHING, reduction="none"
        )
        counted = (
            (targets != NOTHING).sum(1).clamp_min(1)
        )  # one may be all of signs without a token
        return (each.sum(1) / counted).sum()

    @staticmethod
    def arranged(rows: Floats, batch: Batch) -> Outputs:
        mask = batch["attention_mask"].bool()
        found = torch.zeros((*mask.shape, rows.shape[1]))
        found[mask] = torch.from_numpy(rows)
        return (found,)


def scored(spec: Spec, result: Path, said: list[Floats]) -> Callable[[Rows], dict[str, float]]:
    """Of the test words' labels, which go into a file. A word that the model was not shown, as the
    text is too long or the word of no token, is told to be of no entity."""
    cache = Path(spec.labelled_cache)
    labels: list[str] = manifest(cache)["labels"]
    _, test = labelled.parts(spec)
    wanted, told = [], []
    for index, (tags, shown) in enumerate(test_words(cache)):
        low, high = test.bounds[index : index + 2]
        heads = test.targets[low:high] != NOTHING
        names = [OUTSIDE] * len(tags)
        for word, one in zip(shown, said[index][heads].argmax(1), strict=True):
            names[word] = labels[int(one)]
        wanted.append([labels[tag] for tag in tags])
        told.append(names)
    write_atomically(result / "predictions.json", json.dumps(told, indent=0).encode())
    counts = scores.counts_of_entities(wanted, told)
    return lambda rows: scores.of_counts(*counts[rows].sum(0).tolist())


score = partial(labelled.score, TagTask, scored)
