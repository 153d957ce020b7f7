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
from nasd.worker.model.phenotype import MaskedLM, QuestionAnswering
from nasd.worker.tasks import mlm, notes, qa, taught
from nasd.worker.tasks.task import Ranks, Task
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
    ask     computes what the attempt's teacher says of all training examples, unless somebody has.
            None: the examples are other ones every time.
    told    what a teacher has said so
    """

    kind: Kind
    cache: Callable[[Spec], Path]
    begin: Callable[[Spec, Stage, Ranks], Task]
    model: type[Any]
    windows: Callable[[Spec], Windows]
    unseen: Callable[[Spec, MaskedLM | QuestionAnswering, Ranks], Task]
    score: Callable[[Spec, Stage, Path, Ranks, int, Progress], dict[str, float]] | None = None
    ask: Callable[[Spec, Ranks, Progress], object] | None = None
    told: Callable[[Spec], taught.Tells] | None = None


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
        ask=notes.ask,
        told=notes.Noted.of,
    ),
}


def of(stage: Stage) -> Entry:
    return TASKS[stage.task]


def begin(spec: Spec, stage: Stage, ranks: Ranks) -> Task:
    """The stage's task, ready to train or to be evaluated; its model is on the CPU."""
    task = of(stage).begin(spec, stage, ranks)
    return task if spec.teacher is None else taught.begun(task, spec.teacher, ranks, _told(spec))


def ask(spec: Spec, stage: Stage, ranks: Ranks, progress: Progress) -> None:
    """What has to be known of a teacher before the first rank begins; for the first rank alone."""
    if spec.teacher is not None and not spec.teacher.settings.runs_along(stage.task):
        ask = of(stage).ask
        assert ask is not None, "a steady task has notes"
        ask(spec, ranks, progress)


def _told(spec: Spec) -> taught.Tells | None:
    """What its teacher has said before; None where that is computed along."""
    assert spec.stage is not None and spec.teacher is not None
    told = of(spec.stage).told
    if told is None or spec.teacher.settings.runs_along(spec.stage.task):
        return None
    return told(spec)
