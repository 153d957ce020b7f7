"""What a teacher says of all training questions, computed once for all attempts that learn of it.

    cache/teacher-<key>/logits.npy    [2, T] of starts and ends, float16, a window after the other
                        manifest.json

The key is of what made it: the teacher's weights, the cache of questions, and the precision. Old
ones go when a new one is made; whoever still reads one has it mapped.

T: tokens of all training windows together.
"""

import json
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from nasd.contract import digests
from nasd.contract.digests import Damaged
from nasd.contract.protocol import Spec
from nasd.contract.schedule import halved
from nasd.worker import caches, prepare
from nasd.worker.caches import Kind
from nasd.worker.model.phenotype import QuestionAnswering
from nasd.worker.tasks import by_character, teachers
from nasd.worker.tasks.by_character import ByCharacter
from nasd.worker.tasks.passages import QaFeatures
from nasd.worker.tasks.qa import QaTask, held_out_of, rows_of
from nasd.worker.tasks.task import (
    EVALUATION_BATCH,
    Batch,
    Outputs,
    Ranks,
    Task,
    autocast,
)
from nasd.worker.training.progress import LONG, Progress

LOGITS = "logits.npy"
MANIFEST = "manifest.json"
ENDS = ("taught_start", "taught_end")  # of a batch
KEPT = 2  # notes of the newest teachers
LARGEST = 6e4  # that float16 holds, and far more than a logit


def load(folder: Path) -> NDArray[np.float16]:
    """Maps the logits of a cache; raises Damaged."""
    try:
        found: NDArray[np.float16] = np.load(folder / LOGITS, mmap_mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise Damaged(folder / LOGITS, f"is missing or damaged ({error})") from error
    return found


NOTES = Kind((LOGITS, MANIFEST), load)


def place(spec: Spec) -> Path:
    """Where the notes of an attempt's teacher are, or will be."""
    assert spec.teacher is not None
    weights = Path(spec.teacher.weights)
    files = digests.noted(weights) if digests.sealed(weights) else digests.of_files(weights)
    key = caches.key_of(
        {"teacher": files, "questions": Path(spec.qa_cache).name, "precision": spec.precision}
    )
    return Path(spec.cache) / f"teacher-{key}"


def ask(spec: Spec, ranks: Ranks, progress: Progress) -> Path:
    """The folder of the notes, which are made if nobody has made them before."""
    return caches.make(NOTES, place(spec), partial(_write, spec, ranks, progress), progress)


@torch.no_grad()
def _write(spec: Spec, ranks: Ranks, progress: Progress, folder: Path) -> None:
    assert spec.teacher is not None
    progress("loading the teacher", patience=LONG)
    model = teachers.load(spec.teacher, QuestionAnswering).to(ranks.device).eval()
    train = QaFeatures.load(Path(spec.qa_cache) / "train")
    said = np.zeros((len(ENDS), len(train.tokens)), dtype=np.float16)
    print(f"{spec.teacher.name} is asked about {len(train):,} windows", flush=True)
    with autocast(spec.precision, ranks.device):
        batch = halved(EVALUATION_BATCH, spec.halvings)
        asking = partial(progress, "asking the teacher")
        if isinstance(model, ByCharacter):
            questions = prepare.train_questions(spec, progress)
            by_character.fits(train, questions, Path(spec.qa_cache))
            found = model.said(train, questions, batch, ranks.device, asking)
        else:
            task = QaTask(model, train, train)  # padded: windows of one length come together
            order = np.argsort(train.lengths, kind="stable")
            found = task.said(order, batch, ranks.device, asking)
        for index, *ends in found:
            low, high = train.bounds[index : index + 2]
            said[:, low:high] = np.clip(ends, -LARGEST, LARGEST)
    np.save(folder / LOGITS, said, allow_pickle=False)
    manifest = {"teacher": spec.teacher.name, "windows": len(train), "tokens": len(train.tokens)}
    (folder / MANIFEST).write_text(json.dumps(manifest))
    _forget(folder.parent)


def _forget(root: Path) -> None:
    """Removes the notes of all but the newest teachers, and one more that is being made."""
    found = [path for path in root.glob("teacher-*") if (path / LOGITS).is_file()]
    newest = sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)
    for path in newest[KEPT - 1 :]:
        shutil.rmtree(path, ignore_errors=True)


class Noted:
    """A teacher whose logits have been written down. rows: the windows that the task counts, as
    others are held out."""

    size = ""

    def __init__(
        self, logits: NDArray[np.float16], bounds: NDArray[np.int64], rows: NDArray[np.int64]
    ) -> None:
        self._logits = logits
        self._lows, self._highs = bounds[rows], bounds[rows + 1]

    @classmethod
    def of(cls, spec: Spec) -> "Noted":
        folder = place(spec)
        logits, train = load(folder), QaFeatures.load(Path(spec.qa_cache) / "train")
        bounds = train.bounds
        if logits.shape != (len(ENDS), int(bounds[-1])):
            raise Damaged(folder / LOGITS, "is not of these questions")
        return cls(logits, bounds, rows_of(train, held_out_of(spec)))

    def beside(self, indices: NDArray[np.int64], batch: Batch) -> Batch:
        """The teacher's logits [b, length] of the starts and of the ends, 0 in the padding."""
        spans = zip(self._lows[indices], self._highs[indices], strict=True)
        rows = np.concatenate([self._logits[:, low:high] for low, high in spans], axis=1)
        mask = batch["attention_mask"].bool()
        found = {}
        for name, row in zip(ENDS, rows, strict=True):
            found[name] = torch.zeros(mask.shape)
            found[name][mask] = torch.from_numpy(row.astype(np.float32))
        return found

    def outputs(self, task: Task, batch: Batch) -> Outputs:
        return tuple(batch[name] for name in ENDS)
