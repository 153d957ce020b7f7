"""What the tasks have in common that learn labels: of a text, of its words, or a number.

Each of them says how its loss is worked out, and how what the model says of the test part is
scored.
"""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nasd.contract import tasks
from nasd.contract.config import Stage
from nasd.contract.protocol import Spec
from nasd.worker.model import phenotype
from nasd.worker.model.phenotype import AnyModel
from nasd.worker.tasks import packing
from nasd.worker.tasks.beginning import born, continued, drawing, loaded
from nasd.worker.tasks.by_text import AskedByText, ByText, check_same
from nasd.worker.tasks.examples import Examples, manifest, read
from nasd.worker.tasks.task import (
    Batch,
    Compared,
    Outputs,
    Ranks,
    autocast,
)
from nasd.worker.tasks.varied import VariedTask, rows_of
from nasd.worker.training.divergence import Diverged
from nasd.worker.training.progress import LONG, Progress

if TYPE_CHECKING:
    from nasd.worker.model.inherit import Windows

Floats = NDArray[np.float32]
Rows = NDArray[np.int64]
# What is told of the test examples goes into a folder; the metrics of some of them, by their rows.
Scoring = Callable[[Spec, Path, list[Floats]], Callable[[Rows], dict[str, float]]]
SAMPLES = 200  # of the test examples, by which a standard error is told (bootstrap)


class LabelledTask(VariedTask[Examples]):
    """A model of logits, and the examples that it is trained on and evaluated by.

    packs: nothing is computed for padding; else it is masked out. rows: of the training examples,
    those that are trained on; None: all.
    """

    kind: ClassVar[Any]
    compared: Compared = "classes"

    @classmethod
    def begin(cls, spec: Spec, stage: Stage, ranks: Ranks) -> "LabelledTask":
        """The task of an attempt's stage, with the model that it starts from."""
        fresh = drawing(spec, stage)
        if spec.inherits:
            model = born(spec, cls.kind, fresh, lambda: windows(spec))
        else:
            labels = manifest(Path(spec.labelled_cache))["labels"]
            model = continued(spec, cls.kind, fresh, labels)
        train, test = parts(spec)
        packs = packing.of(spec, model.architecture, ranks)
        return cls(model, train, test, packs, rows_of(train, held_out_of(spec)))

    @classmethod
    def unseen(cls, spec: Spec, model: AnyModel, ranks: Ranks) -> "LabelledTask":
        """A task whose evaluations are of the examples that nobody trains on."""
        train, _ = parts(spec)
        held = held_out_of(spec)
        assert held is not None, "nothing is held out"
        packs = packing.of(spec, model.architecture, ranks)
        return cls(model, train, train.take(held), packs)

    @classmethod
    def asked(cls, spec: Spec, model: Any, progress: Progress) -> "LabelledTask | AskedByText":
        """What a teacher is asked by about all training examples; padded, as examples of one length
        come together."""
        train, _ = parts(spec)
        if isinstance(model, ByText):
            cache, base = Path(spec.labelled_cache), Path(spec.config_folder)
            texts = read(tasks.labelled(spec.data), base, spec.seed, progress).train
            check_same(texts, len(train), cache)
            return AskedByText(model, texts, len(manifest(cache)["labels"]))
        return cls(model, train, train)

    def outputs(self, model: nn.Module, batch: Batch) -> Outputs:
        """The logits."""
        logits: Tensor = model(batch["input_ids"], batch["attention_mask"], packing.read(batch))
        return (logits,)

    def _ignorance(self) -> float:
        """The loss of a model that takes all labels for equally likely."""
        return math.log(max(2, len(self.model.architecture.labels)))

    @property
    def bounds(self) -> NDArray[np.int64]:
        """[F + 1] of the rows of logits that the test examples have: one, or one a token."""
        return self._test.bounds if self._test.by_token else np.arange(len(self._test) + 1)

    @property
    def columns(self) -> int:
        return len(self.model.architecture.labels)

    def rows(self, outputs: Outputs, lengths: NDArray[np.int64]) -> Iterator[Floats]:
        for one, length in zip(outputs[0].float().cpu().numpy(), lengths, strict=True):
            yield one[:length] if self._test.by_token else one[None]

    @staticmethod
    def arranged(rows: Floats, batch: Batch) -> Outputs:
        """Rows of logits, of the examples of a batch end to end, as `outputs` gives them."""
        return (torch.from_numpy(rows),)


def parts(spec: Spec) -> tuple[Examples, Examples]:
    """Train and test."""
    cache = Path(spec.labelled_cache)
    return Examples.load(cache / "train"), Examples.load(cache / "test")


def windows(spec: Spec) -> "Windows":
    """What children are refitted by."""
    from nasd.worker.tasks.windows import of_batches

    train, _ = parts(spec)
    return of_batches(train, spec.seed, held_out_of(spec))


def held_out_of(spec: Spec) -> NDArray[np.int64] | None:
    """Of the training examples, those that screenings go by; None where there are none."""
    from nasd.worker.tasks.windows import held_out

    return held_out(len(parts(spec)[0]), spec.seed) if spec.holds_out else None


def score(
    task_of: type[LabelledTask],
    scoring: Scoring,
    spec: Spec,
    stage: Stage,
    result: Path,
    ranks: Ranks,
    batch: int,
    progress: Progress,
) -> dict[str, float]:
    """What the model that the attempt starts from says of the test examples goes into `result`; the
    metrics are the first rank's, and `quality` is that of them which the config names, beside its
    standard error."""
    model = loaded(spec, lambda folder: phenotype.load(task_of.kind, folder, spec.dropout))
    model.to(ranks.device).eval()
    task = task_of(model, *parts(spec), packing.of(spec, model.architecture, ranks))
    with autocast(spec.precision, ranks.device):
        loss = task.evaluate(ranks, batch, progress)["loss"]
        said = task.all_said(ranks, batch, progress, "predicting")
    if not math.isfinite(loss):
        raise Diverged(f"the evaluation loss is {loss}")
    if said is None:
        return {}
    result.mkdir(exist_ok=True)
    progress("scoring", patience=LONG)
    of, name = scoring(spec, result, said), tasks.labelled(spec.data).quality
    metrics = {name: 100 * one for name, one in of(np.arange(len(said))).items()}
    return {
        "loss": loss,
        **metrics,
        "quality": metrics[name],
        "quality_error": 100 * error(len(said), lambda rows: of(rows)[name]),
    }


def error(examples: int, quality: Callable[[Rows], float]) -> float:
    """The standard error of what `quality` tells of so many examples, which are a sample: its
    spread over samples of them, drawn with replacement; the same ones for all models."""
    rng = np.random.default_rng(0)
    drawn = (rng.integers(0, examples, examples) for _ in range(SAMPLES))
    return float(np.std([quality(rows) for rows in drawn], ddof=1))
