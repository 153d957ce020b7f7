"""The model that a teacher is: the search's own, or one from outside that knows the task.

What comes from outside is copied into the cache when an experiment begins,

    cache/teacher-model-<key>/

named by what it was made of, so that it stays what it was; a damaged copy is made again.
"""

from pathlib import Path
from typing import Any

from nasd.contract import digests
from nasd.contract.digests import Damaged
from nasd.contract.errors import NasdError
from nasd.contract.labelled import NO_LABELS, Labels
from nasd.contract.protocol import Spec, Teaching
from nasd.worker import caches
from nasd.worker.caches import Kind
from nasd.worker.model import phenotype
from nasd.worker.model.architecture import CONFIG
from nasd.worker.tasks.beginning import reading
from nasd.worker.tasks.by_character import ByCharacter
from nasd.worker.tasks.by_text import ByText
from nasd.worker.training.progress import DOWNLOAD, LONG, Progress

COPY = Kind((CONFIG, phenotype.WEIGHTS), digests.unproven)


def load(teaching: Teaching, kind: Any) -> Any:
    """The teacher, on the CPU, as a `kind` of ours or what answers as one does."""
    folder = Path(teaching.weights)
    with reading(folder):
        if teaching.settings.outside:
            from nasd.worker.model import outside

            found = outside.load(folder, kind)
            if isinstance(found, outside.Reader) and kind is not phenotype.QuestionAnswering:
                return ByText(found)
            if isinstance(found, outside.Reader):
                return ByCharacter(found.answers, found.model, found.tokenizer, found.longest)
            return found
        return phenotype.load(kind, folder, 0.0)


def fetch(spec: Spec, tokenizer: Any, progress: Progress, labels: Labels = NO_LABELS) -> Path:
    """The copy of a teacher from outside, made where it is missing or damaged. tokenizer: the
    seed's; labels: of the data. Raises NasdError where the model cannot be the teacher."""
    from nasd.worker.model import outside

    assert spec.teacher is not None
    settings, base = spec.teacher.settings, Path(spec.config_folder)
    source = settings.source
    wanted = outside.Wanted.of(settings, spec.data, labels)
    tokens = wanted.task.limit(spec.data)
    progress("downloading the teacher", patience=DOWNLOAD)
    made_of = [
        digests.of_file(path, lambda: progress("hashing")) for path in outside.files(source, base)
    ]

    def build(folder: Path) -> None:
        progress("loading the teacher", patience=LONG)
        trims = spec.vocabulary is not None
        outside.save(settings, base, tokenizer, tokens, folder, trims, wanted)

    # Only where it is set, so that copies from before there was such a key still count.
    cut: dict[str, Any] = (
        {} if spec.vocabulary is None else {"words": tokenizer.backend_tokenizer.to_str()}
    )
    theirs = outside.vocabulary(source, base)
    if theirs != tokenizer.get_vocab():
        cut["vocabulary"] = digests.of_json(sorted(theirs.items()))
    if names := wanted.labels.names:
        cut["labels"] = [wanted.task.name, *names]
    if settings.task is not None:
        cut["task"] = settings.task
    key = caches.key_of({"teacher": made_of, "tokens": tokens, **cut})
    return caches.make(COPY, Path(spec.cache) / f"teacher-model-{key}", build, progress)


def check(spec: Spec, progress: Progress) -> None:
    """Raises Damaged unless the copy is what it was, or can be made again."""
    from nasd.worker import prepare, trimming

    assert spec.teacher is not None
    copy = Path(spec.teacher.weights)
    try:
        caches.check(COPY, copy, progress)
    except Damaged as damage:
        print(f"{damage}; it is made again", flush=True)
        try:
            tokenizer = trimming.words(spec, progress).tokenizer
            made = fetch(spec, tokenizer, progress, prepare.labels_of(spec))
            fault = "" if made == copy else "what it was made of has changed since"
        except NasdError as error:
            fault = str(error)
        if fault:
            what = f"{damage.what}, and cannot be made again: {fault}"
            raise Damaged(damage.path, what) from damage
