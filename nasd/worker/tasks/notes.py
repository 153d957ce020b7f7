"""What a teacher says of all training examples, computed once for all attempts that learn of it.

    cache/teacher-<key>/logits.npy    [C, R], float16, an example after the other
                        manifest.json

The key is of what made it: the teacher's weights, the cache of examples, and the precision. Old
ones go when a new one is made; whoever still reads one has it mapped.

C: logits of a row, as of a start and an end, or of each label. R: rows of all training examples
together, one or one a token.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from nasd.contract import digests
from nasd.contract.digests import Damaged
from nasd.contract.protocol import Spec
from nasd.contract.schedule import halved
from nasd.worker import caches
from nasd.worker.caches import Kind
from nasd.worker.tasks import teachers
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
TAUGHT = "taught_{}"  # of a batch
KEPT = 2  # notes of the newest teachers
LARGEST = 6e4  # that float16 holds, and far more than a logit


class Asked(Protocol):
    """A task by which a teacher is asked about all training examples.

    bounds: [F + 1] of the rows of logits that the examples have. columns: logits of a row.
    """

    @property
    def bounds(self) -> NDArray[np.int64]: ...

    @property
    def columns(self) -> int: ...

    def said(
        self,
        examples: NDArray[np.int64],
        batch: int,
        device: torch.device,
        progress: Callable[[int, int], None],
    ) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Each of these examples, and its rows of logits."""


@dataclass(frozen=True)
class Notebook:
    """Of a task. kind: of its models. cache: of its examples. asked: the task with a teacher.
    lengths: tokens of each training example. rows: the examples that an attempt trains on.
    arranged: rows of logits as a task's outputs for a batch."""

    kind: type[Any]
    cache: Callable[[Spec], Path]
    asked: Callable[[Spec, Any, Progress], Asked]
    lengths: Callable[[Spec], NDArray[np.int64]]
    by_token: bool
    rows: Callable[[Spec], NDArray[np.int64]]
    arranged: Callable[[NDArray[np.float32], Batch], Outputs]

    def bounds(self, spec: Spec) -> NDArray[np.int64]:
        lengths = self.lengths(spec)
        counts = lengths if self.by_token else np.ones_like(lengths)
        return np.concatenate([[0], np.cumsum(counts)])


def load(folder: Path) -> NDArray[np.float16]:
    """Maps the logits of a cache; raises Damaged."""
    try:
        found: NDArray[np.float16] = np.load(folder / LOGITS, mmap_mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise Damaged(folder / LOGITS, f"is missing or damaged ({error})") from error
    return found


NOTES = Kind((LOGITS, MANIFEST), load)


def place(book: Notebook, spec: Spec) -> Path:
    """Where the notes of an attempt's teacher are, or will be."""
    assert spec.teacher is not None
    weights = Path(spec.teacher.weights)
    files = digests.noted(weights) if digests.sealed(weights) else digests.of_files(weights)
    key = caches.key_of(
        {"teacher": files, "questions": book.cache(spec).name, "precision": spec.precision}
    )
    return Path(spec.cache) / f"teacher-{key}"


def ask(book: Notebook, spec: Spec, ranks: Ranks, progress: Progress) -> Path:
    """The folder of the notes, which are made if nobody has made them before."""
    write = partial(_write, book, spec, ranks, progress)
    return caches.make(NOTES, place(book, spec), write, progress)


@torch.no_grad()
def _write(book: Notebook, spec: Spec, ranks: Ranks, progress: Progress, folder: Path) -> None:
    assert spec.teacher is not None
    progress("loading the teacher", patience=LONG)
    model = teachers.load(spec.teacher, book.kind).to(ranks.device).eval()
    task = book.asked(spec, model, progress)
    lengths, bounds = book.lengths(spec), task.bounds
    said = np.zeros((task.columns, int(bounds[-1])), dtype=np.float16)
    print(f"{spec.teacher.name} is asked about {len(lengths):,} examples", flush=True)
    with autocast(spec.precision, ranks.device):
        found = task.said(
            np.argsort(lengths, kind="stable"),
            halved(EVALUATION_BATCH, spec.halvings),
            ranks.device,
            partial(progress, "asking the teacher"),
        )
        for index, rows in found:
            low, high = bounds[index : index + 2]
            said[:, low:high] = np.clip(rows.T, -LARGEST, LARGEST)
    np.save(folder / LOGITS, said, allow_pickle=False)
    manifest = {"teacher": spec.teacher.name, "examples": len(lengths), "rows": said.shape[1]}
    (folder / MANIFEST).write_text(json.dumps(manifest))
    _forget(folder.parent)


def _forget(root: Path) -> None:
    """Removes the notes of all but the newest teachers, and one more that is being made."""
    found = [path for path in root.glob("teacher-*") if (path / LOGITS).is_file()]
    newest = sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)
    for path in newest[KEPT - 1 :]:
        shutil.rmtree(path, ignore_errors=True)


class Noted:
    """A teacher whose logits have been written down. rows: the examples that the task counts, as
    others are held out."""

    size = ""

    def __init__(
        self,
        logits: NDArray[np.float16],
        bounds: NDArray[np.int64],
        rows: NDArray[np.int64],
        arranged: Callable[[NDArray[np.float32], Batch], Outputs],
    ) -> None:
        self._logits = logits
        self._lows, self._highs = bounds[rows], bounds[rows + 1]
        self._arranged = arranged

    @classmethod
    def of(cls, book: Notebook, spec: Spec) -> "Noted":
        folder = place(book, spec)
        logits, bounds = load(folder), book.bounds(spec)
        if logits.ndim != 2 or logits.shape[1] != int(bounds[-1]):
            raise Damaged(folder / LOGITS, "is not of these examples")
        return cls(logits, bounds, book.rows(spec), book.arranged)

    def beside(self, indices: NDArray[np.int64], batch: Batch) -> Batch:
        """The teacher's logits, as the task's outputs would be."""
        spans = zip(self._lows[indices], self._highs[indices], strict=True)
        rows = np.concatenate([self._logits[:, low:high].T for low, high in spans])
        said = self._arranged(rows.astype(np.float32), batch)
        return {TAUGHT.format(place): one for place, one in enumerate(said)}

    def outputs(self, task: Task, batch: Batch) -> Outputs:
        names = sorted(name for name in batch if name.startswith(TAUGHT.format("")))
        return tuple(batch[name] for name in names)
