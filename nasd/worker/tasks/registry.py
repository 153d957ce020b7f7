"""What the worker knows of each task: an entry each, under its name in nasd.contract.tasks."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nasd.contract import tasks
from nasd.contract.config import Stage
from nasd.contract.protocol import Spec
from nasd.worker import prepare
from nasd.worker.caches import Kind
from nasd.worker.model.inherit import Windows
from nasd.worker.model.phenotype import AnyModel, MaskedLM, QuestionAnswering
from nasd.worker.tasks import classify, labelled, mlm, notes, qa, regress, tag, taught
from nasd.worker.tasks.task import Ranks, Task
from nasd.worker.tasks.varied import rows_of
from nasd.worker.training.progress import Progress


@dataclass(frozen=True)
class Entry:
    """
    kind    of cache that it reads, as nasd.worker.caches checks it
    cache   where a spec says it is
    begin   the task with its data, and the model that the attempt starts from: what its spec
            names, or the child of what its spec names
    model   what it works with
    windows text that a child's modules are ranked and refitted by
    unseen  the task with a model, such that its evaluations are of what nobody trains on
    score   all of an attempt that trains nothing: fills the folder of its result, and returns the
            metrics, on the first rank; examples a rank takes at once are given. None: the task
            gives no score. Raises Diverged where the loss is not finite.
    book    how it is written down what a teacher says of all training examples. None: the examples
            are other ones every time.
    """

    kind: Kind
    cache: Callable[[Spec], Path]
    begin: Callable[[Spec, Stage, Ranks], Task]
    model: type[Any]
    windows: Callable[[Spec], Windows]
    unseen: Callable[[Spec, AnyModel, Ranks], Task]
    score: Callable[[Spec, Stage, Path, Ranks, int, Progress], dict[str, float]] | None = None
    book: notes.Notebook | None = None


def _labelled(
    task: type[labelled.LabelledTask],
    score: Callable[[Spec, Stage, Path, Ranks, int, Progress], dict[str, float]],
    by_token: bool = False,
) -> Entry:
    """Of a task that learns labels."""
    book = notes.Notebook(
        kind=task.kind,
        cache=lambda spec: Path(spec.labelled_cache),
        asked=task.asked,
        lengths=lambda spec: labelled.parts(spec)[0].lengths,
        by_token=by_token,
        rows=lambda spec: rows_of(labelled.parts(spec)[0], labelled.held_out_of(spec)),
        arranged=task.arranged,
    )
    return Entry(
        kind=prepare.LABELLED,
        cache=book.cache,
        begin=task.begin,
        model=task.kind,
        windows=labelled.windows,
        unseen=task.unseen,
        score=score,
        book=book,
    )


TASKS = {
    tasks.MLM.name: Entry(
        kind=prepare.CORPORA,
        cache=lambda spec: Path(spec.mlm_cache),
        begin=mlm.begin,
        model=MaskedLM,
        windows=mlm.windows,
        unseen=mlm.unseen,
    ),
    tasks.QA.name: Entry(
        kind=prepare.QUESTIONS,
        cache=lambda spec: Path(spec.qa_cache),
        begin=qa.begin,
        model=QuestionAnswering,
        windows=qa.windows,
        unseen=qa.unseen,
        score=qa.score,
        book=qa.NOTEBOOK,
    ),
    tasks.CLASSIFY.name: _labelled(classify.ClassifyTask, classify.score),
    tasks.REGRESS.name: _labelled(regress.RegressTask, regress.score),
    tasks.TAG.name: _labelled(tag.TagTask, tag.score, by_token=True),
}


def of(stage: Stage) -> Entry:
    return TASKS[tasks.kind_of(stage.task)]


def begin(spec: Spec, stage: Stage, ranks: Ranks) -> Task:
    """The stage's task, ready to train or to be evaluated; its model is on the CPU."""
    task = of(stage).begin(spec, stage, ranks)
    return task if spec.teacher is None else taught.begun(task, spec.teacher, ranks, _told(spec))


def ask(spec: Spec, stage: Stage, ranks: Ranks, progress: Progress) -> None:
    """What has to be known of a teacher before the first rank begins; for the first rank alone."""
    if spec.teacher is not None and not spec.teacher.settings.runs_along(stage.task):
        book = of(stage).book
        assert book is not None, "a steady task has notes"
        notes.ask(book, spec, ranks, progress)


def _told(spec: Spec) -> taught.Tells | None:
    """What its teacher has said before; None where that is computed along."""
    assert spec.stage is not None and spec.teacher is not None
    book = of(spec.stage).book
    if book is None or spec.teacher.settings.runs_along(spec.stage.task):
        return None
    return notes.Noted.of(book, spec)
