"""What a teacher says of all training examples, computed once for all attempts that learn of it.

    cache/teacher-<key>/logits.npy    [C, R], float16, an example after the other
                        manifest.json
    cache/.teacher-<key>.parts/<number>/said/logits.npy

The key is of what made it: the teacher's weights, the cache of examples, and the precision. The
attempts that want it at once, as all of a generation do, ask about a part each until all are asked;
which parts there are follows from the examples alone, and so does every number. Old ones go when a
new one is made; whoever still reads one has it mapped.

C: logits of a row, as of a start and an end, or of each label. R: rows of all training examples
together, one or one a token.
"""

import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from nasd.contract import digests
from nasd.contract.digests import Damaged
from nasd.contract.protocol import Spec
from nasd.contract.schedule import EVALUATION_BATCH, halved
from nasd.worker import caches
from nasd.worker.caches import Kind
from nasd.worker.tasks import teachers
from nasd.worker.tasks.task import (
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
ASKED = ".parts"  # behind a hidden name
DAY = 86_400.0
KEPT = 2  # notes of the newest teachers, for each set of examples: a search may have several tasks
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
PART = Kind((LOGITS,), load)
PARTS, LEAST = 16, 256  # at most, and of so many examples at least


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
    folder, asking = place(book, spec), _Asking(book, spec, ranks, progress)
    while not caches.stands(NOTES, folder, progress) and (left := asking.left(folder)):
        if not any(asking.made(folder, part) for part in left):
            progress("waiting for who asks the teacher")
            time.sleep(caches.LOOK_SECONDS)
    return caches.make(NOTES, folder, asking.write, progress)


@dataclass(frozen=True)
class _Asking:
    """The teacher is loaded once a part is to be asked about."""

    book: Notebook
    spec: Spec
    ranks: Ranks
    progress: Progress
    whole: set[int] = field(default_factory=set)  # parts that were looked at, and need not be again

    @cached_property
    def parts(self) -> list[NDArray[np.int64]]:
        """The examples of each, from short to long."""
        order = np.argsort(self.book.lengths(self.spec), kind="stable")
        count = max(1, min(PARTS, len(order) // LEAST))
        return [order[part::count] for part in range(count)]

    def left(self, folder: Path) -> list[int]:
        """Parts that nobody has asked about yet."""
        unknown = [part for part in range(len(self.parts)) if part not in self.whole]
        left = [
            part for part in unknown if not caches.stands(PART, _part(folder, part), self.progress)
        ]
        self.whole.update({*unknown} - {*left})
        return left

    def made(self, folder: Path, part: int) -> bool:
        """Whether it was this attempt that has."""
        build = partial(self._ask, part)
        return caches.made(PART, _part(folder, part), build, self.progress)

    @cached_property
    def _task(self) -> Asked:
        teacher = self.spec.teacher
        assert teacher is not None
        self.progress("loading the teacher", patience=LONG)
        model = teachers.load(teacher, self.book.kind).to(self.ranks.device).eval()
        examples = sum(map(len, self.parts))
        print(f"{teacher.name} is asked about {examples:,} examples", flush=True)
        return self.book.asked(self.spec, model, self.progress)

    @torch.no_grad()
    def _ask(self, part: int, folder: Path) -> None:
        task, examples, of = self._task, self.parts[part], len(self.parts)

        def told(step: int, steps: int) -> None:
            self.progress("asking the teacher", part * steps + step, of * steps)

        with autocast(self.spec.precision, self.ranks.device):
            found = task.said(
                examples, halved(EVALUATION_BATCH, self.spec.halvings), self.ranks.device, told
            )
            said = {index: np.clip(rows.T, -LARGEST, LARGEST) for index, rows in found}
        joined = np.concatenate([said[index] for index in examples.tolist()], axis=1)
        np.save(folder / LOGITS, joined.astype(np.float16), allow_pickle=False)

    def write(self, folder: Path) -> None:
        """The notes, from their parts."""
        teacher, bounds = self.spec.teacher, self.book.bounds(self.spec)
        assert teacher is not None
        # The folder that is filled stands, under another name, beside the one that it will be.
        its = place(self.book, self.spec)
        said: NDArray[np.float16] | None = None
        for part, examples in enumerate(self.parts):
            logits = load(_part(its, part))
            if said is None:
                said = np.zeros((len(logits), int(bounds[-1])), dtype=np.float16)
            at = 0
            for index in examples.tolist():
                low, high = bounds[index : index + 2]
                said[:, low:high] = logits[:, at : at + high - low]
                at += high - low
        assert said is not None
        np.save(folder / LOGITS, said, allow_pickle=False)
        of = self.book.cache(self.spec).name
        manifest = {"teacher": teacher.name, "examples": len(bounds) - 1, "rows": said.shape[1]}
        (folder / MANIFEST).write_text(json.dumps({**manifest, "of": of}))
        _forget(its, of)


def _part(folder: Path, part: int) -> Path:
    return folder.with_name(f".{folder.name}{ASKED}") / str(part) / "said"


def _forget(made: Path, of: str) -> None:
    """Removes the notes about these examples of all but the newest teachers, and one more that is
    being made; and parts that are put together, or that nobody has touched for a day."""
    root = made.parent
    found = [path for path in root.glob("teacher-*") if (path / LOGITS).is_file()]
    found = [path for path in found if _about(path) in (of, None)]
    newest = sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)
    for path in newest[KEPT - 1 :]:
        shutil.rmtree(path, ignore_errors=True)
    for parts in root.glob(f".teacher-*{ASKED}"):
        done = (root / parts.name[1 : -len(ASKED)]).is_dir()
        if parts != _part(made, 0).parent.parent and (done or _idle(parts)):
            shutil.rmtree(parts, ignore_errors=True)


def _about(notes: Path) -> str | None:
    """The cache of the examples; None of a version before, and where it cannot be read."""
    try:
        found = json.loads((notes / MANIFEST).read_text()).get("of")
    except (OSError, ValueError):
        return None
    return None if found is None else str(found)


def _idle(parts: Path) -> bool:
    with suppress(OSError):  # it goes just now
        return time.time() - parts.stat().st_mtime > DAY
    return False


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
