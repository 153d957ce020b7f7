"""Extractive question answering (thesis 5.2.2): the loss of a span's two ends, and the answers."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from nasd.contract import squad, tasks
from nasd.contract.config import QaData, Stage
from nasd.contract.protocol import Spec, write_atomically
from nasd.contract.squad import Judged, Question
from nasd.worker.model import phenotype
from nasd.worker.model.phenotype import AnyModel, QuestionAnswering
from nasd.worker.prepare import TUNE, questions_of, test_questions, train_questions
from nasd.worker.tasks import metrics, notes, packing
from nasd.worker.tasks.beginning import born, continued, drawing, loaded
from nasd.worker.tasks.by_character import AskedByCharacter, ByCharacter, fits
from nasd.worker.tasks.passages import QaFeatures, judge
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


class QaTask(VariedTask[QaFeatures]):
    """Fine-tuning: the mean of the cross entropies of the start and the end position.

    packs: nothing is computed for padding; else it is masked out. rows: of the training features,
    those that are trained on; None: all.
    """

    compared: Compared = "places"

    @classmethod
    def load(
        cls,
        model: QuestionAnswering,
        cache: Path,
        packs: bool = False,
        without: NDArray[np.int64] | None = None,
    ) -> "QaTask":
        """without: training features that are held out."""
        train, test = QaFeatures.load(cache / "train"), QaFeatures.load(cache / "test")
        return cls(model, train, test, packs, rows_of(train, without))

    def _ignorance(self) -> float:
        return float(np.log(self._test.lengths).mean())

    def outputs(self, model: nn.Module, batch: Batch) -> Outputs:
        """The logits of the answer's start and of its end, [b, length] each."""
        start, end = model(batch["input_ids"], batch["attention_mask"], packing.read(batch))
        return start, end

    def loss(self, outputs: Outputs, batch: Batch) -> Tensor:
        start, end = outputs
        # An answer never stands in the padding; counted in, the loss would depend on who shares
        # the batch, and so on the number of ranks.
        padding = batch["attention_mask"] == 0
        start = start.float().masked_fill(padding, -torch.inf)
        end = end.float().masked_fill(padding, -torch.inf)
        return (
            F.cross_entropy(start, batch["start"], reduction="sum")
            + F.cross_entropy(end, batch["end"], reduction="sum")
        ) / 2

    def predict(
        self, questions: list[Question], data: QaData, ranks: Ranks, batch: int, progress: Progress
    ) -> dict[str, Judged]:
        """The answer to each test question: the best of the n-best spans over its windows; and by
        how much it is surer that there is none.

        Every rank takes its share of the windows, `batch` at once; the first gets all the answers,
        others none.
        """
        found = self.all_said(ranks, batch, progress, "answering")
        if found is None:
            return {}
        return judge(
            self._test,
            questions,
            [rows[:, 0] for rows in found],
            [rows[:, 1] for rows in found],
            data.n_best,
            data.max_answer_tokens,
            progress,
        )

    def rows(self, outputs: Outputs, lengths: NDArray[np.int64]) -> Iterator[NDArray[np.float32]]:
        start, end = (one.float().cpu().numpy() for one in outputs)
        for one, other, length in zip(start, end, lengths, strict=True):
            yield np.stack([one[:length], other[:length]], 1)

    @classmethod
    def asked(
        cls, spec: Spec, model: QuestionAnswering | ByCharacter, progress: Progress
    ) -> "QaTask | AskedByCharacter":
        """What a teacher is asked by about all training windows; padded, as windows of one length
        come together."""
        train = QaFeatures.load(Path(spec.qa_cache) / "train")
        if isinstance(model, ByCharacter):
            questions = train_questions(spec, progress)
            fits(train, questions, Path(spec.qa_cache))
            return AskedByCharacter(model, train, questions)
        return cls(model, train, train)

    @property
    def bounds(self) -> NDArray[np.int64]:
        return self._test.bounds

    @property
    def columns(self) -> int:
        return 2  # start and end

    @staticmethod
    def arranged(rows: NDArray[np.float32], batch: Batch) -> Outputs:
        """Rows of logits, of the windows of a batch end to end, as `outputs` gives them: 0 in the
        padding."""
        mask = batch["attention_mask"].bool()
        found = []
        for row in rows.T:
            found.append(torch.zeros(mask.shape))
            found[-1][mask] = torch.from_numpy(row.copy())
        return tuple(found)


def begin(spec: Spec, stage: Stage, ranks: Ranks) -> QaTask:
    """The task of an attempt's stage, with the model that it starts from."""
    fresh = drawing(spec, stage)
    if spec.inherits:
        model = born(spec, QuestionAnswering, fresh, lambda: windows(spec))
    else:
        model = continued(spec, QuestionAnswering, fresh)
    cache = Path(spec.qa_cache)
    return QaTask.load(model, cache, packing.of(spec, model.architecture, ranks), held_out_of(spec))


def windows(spec: Spec) -> "Windows":
    """What children are refitted by."""
    from nasd.worker.tasks.windows import of_batches

    train = QaFeatures.load(Path(spec.qa_cache) / "train")
    return of_batches(train, spec.seed, held_out_of(spec))


def held_out_of(spec: Spec) -> NDArray[np.int64] | None:
    """Of the training features, those that screenings go by; None where there are none."""
    from nasd.worker.tasks.windows import held_out

    if not spec.holds_out:
        return None
    return held_out(len(QaFeatures.load(Path(spec.qa_cache) / "train")), spec.seed)


def _trained(spec: Spec) -> QaFeatures:
    return QaFeatures.load(Path(spec.qa_cache) / "train")


NOTEBOOK = notes.Notebook(
    kind=QuestionAnswering,
    cache=lambda spec: Path(spec.qa_cache),
    asked=QaTask.asked,
    lengths=lambda spec: _trained(spec).lengths,
    by_token=True,
    rows=lambda spec: rows_of(_trained(spec), held_out_of(spec)),
    arranged=QaTask.arranged,
)


def unseen(spec: Spec, model: AnyModel, ranks: Ranks) -> QaTask:
    """A task whose evaluations are of the windows that nobody trains on."""
    assert isinstance(model, QuestionAnswering)
    train = QaFeatures.load(Path(spec.qa_cache) / "train")
    held = held_out_of(spec)
    assert held is not None, "nothing is held out"
    packs = packing.of(spec, model.architecture, ranks)
    return QaTask(model, train, train.take(held), packs)


def score(
    spec: Spec, stage: Stage, result: Path, ranks: Ranks, batch: int, progress: Progress
) -> dict[str, float]:
    """Answers all test questions with the model that the attempt starts from, whose head has been
    trained: their answers go into `result`, and the metrics are the first rank's."""
    model = loaded(spec, lambda folder: phenotype.load(QuestionAnswering, folder, spec.dropout))
    model.to(ranks.device).eval()
    task = QaTask.load(model, Path(spec.qa_cache), packing.of(spec, model.architecture, ranks))
    questions, data = test_questions(Path(spec.qa_cache)), tasks.questions(spec.data)
    with autocast(spec.precision, ranks.device):
        # In this order: the other ranks do not wait while the first one decodes.
        loss = task.evaluate(ranks, batch, progress)["loss"]
        judged = task.predict(questions, data, ranks, batch, progress)
        most = _threshold(task, spec, ranks, batch, progress) if data.no_answer else math.inf
    if not math.isfinite(loss):
        raise Diverged(f"the evaluation loss is {loss}")
    if not ranks.first:
        return {}
    answers = squad.answered(judged, most)
    result.mkdir(exist_ok=True)
    write_atomically(result / "predictions.json", json.dumps(answers, indent=0).encode())
    progress("scoring", patience=LONG)  # nothing is to be heard of it
    scores = squad.score(answers, questions)
    if spec.generation is None and not data.no_answer:  # the baseline, all others' yardstick
        metrics.confirm(scores, answers, questions)
    found = {
        "loss": loss,
        "exact_match": scores["exact_match"],
        "f1": scores["f1"],
        "quality_error": squad.error(answers, questions),
    }
    return {**found, "threshold": most} if data.no_answer else found


def _threshold(task: QaTask, spec: Spec, ranks: Ranks, batch: int, progress: Progress) -> float:
    """From which doubt on there is no answer, by questions that nobody trained on; on rank 0."""
    cache = Path(spec.qa_cache)
    held, questions = QaFeatures.load(cache / TUNE), questions_of(cache, TUNE)
    assert isinstance(task.model, QuestionAnswering)
    beside = QaTask(task.model, held, held, task.packs)
    judged = beside.predict(questions, tasks.questions(spec.data), ranks, batch, progress)
    if not ranks.first:
        return 0.0
    found = squad.threshold(judged, questions)
    print(f"no answer from a doubt of {found:.3f} on, by {len(questions):,} questions", flush=True)
    return found
