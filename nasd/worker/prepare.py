"""The first thing an experiment does: the caches, and the baseline from the seed.

A cache folder is named by all that made it: the contents of the source files (or the names of the
hub's data sets), the tokenizer, the lengths, the split.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from nasd.contract import digests, seed_head, tasks
from nasd.contract import labelled as contract_labelled
from nasd.contract.config import Data, LabelledData, QaData
from nasd.contract.digests import Damaged
from nasd.contract.errors import NasdError
from nasd.contract.labelled import NO_LABELS, Labels
from nasd.contract.protocol import Spec
from nasd.contract.squad import Question, Questions, from_records, read_all, split
from nasd.contract.streams import stream_seed
from nasd.worker.caches import Kind, key_of, make, sync_tree
from nasd.worker.model import phenotype, seed_heads
from nasd.worker.model.seed import describe, load_seed, load_with_head
from nasd.worker.model.vocabulary import trimmed_model
from nasd.worker.tasks import corpus, examples, hub
from nasd.worker.tasks.passages import QaFeatures, build_features
from nasd.worker.training.progress import DOWNLOAD, LONG, Progress

SHOWN = 20  # faulty questions that the log names
BLOCK = 1 << 22  # bytes hashed between two signs of life


def caches(
    data: Data, base: Path, tokenizer: Any, root: Path, seed: int, progress: Progress
) -> "Found":
    """The cache folders of all data that there is; made where they are missing."""

    def digest(path: Path) -> str:
        return digest_of(path, progress)

    tokens = hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()
    mlm = None
    if (texts := data.mlm) is not None:
        mlm_key = key_of(
            {
                "tokenizer": tokens,
                "seed": seed,
                "data": texts.model_dump(exclude={"corpora", "mask_share", "fixed_masks"}),
                "corpora": corpus.describe_sources(texts.corpora, base, digest),
            }
        )
        mlm_seed = stream_seed(seed, 0, "corpora")
        mlm = make(
            CORPORA,
            root / f"mlm-{mlm_key}",
            lambda folder: corpus.build(texts, base, tokenizer, folder, mlm_seed, progress),
            progress,
        )
    qa = None
    if (asked := data.qa) is not None:
        sources = question_sources(asked, base, progress)
        qa_key = key_of(
            {
                "tokenizer": tokens,
                "seed": seed,
                "sources": sources,
                "data": asked.model_dump(include={"tokens", "stride", "train_share", "split_by"}),
                # Only where it is set, so that caches from before there was such a key still count.
                **({"skip_faulty": True} if asked.skip_faulty else {}),
                **({"no_answer": True} if asked.no_answer else {}),
            }
        )
        qa = make(
            QUESTIONS,
            root / f"qa-{qa_key}",
            lambda folder: _build_qa(asked, base, tokenizer, folder, seed, progress),
            progress,
        )
    labelled = {}
    for task in labelled_tasks(data):
        texts_with = getattr(data, task.data)
        key = key_of(
            {
                "tokenizer": tokens,
                "seed": seed,
                "kind": contract_labelled.kind_of(texts_with),
                "sources": [
                    [digest(base / name) for name in names]
                    for names in (texts_with.files, texts_with.test_files)
                ],
                # How they are scored makes no other examples of them.
                "data": texts_with.model_dump(
                    exclude={"files", "test_files", "quality", "positive"}
                ),
            }
        )
        labelled[task.name] = make(
            LABELLED,
            root / f"labelled-{key}",
            partial(_build_labelled, texts_with, base, tokenizer, seed, progress),
            progress,
        )
    return Found(mlm, qa, labelled)


def _build_labelled(
    data: LabelledData, base: Path, tokenizer: Any, seed: int, progress: Progress, folder: Path
) -> None:
    examples.build(data, base, tokenizer, folder, seed, progress)


class Found(NamedTuple):
    """The cache folders; None of what the config has no section of. labelled: of each task that
    learns labels, by its name."""

    mlm: Path | None
    qa: Path | None
    labelled: Mapping[str, Path]

    def __contains__(self, folder: object) -> bool:
        return folder in (self.mlm, self.qa, *self.labelled.values())


def labelled_tasks(data: Data) -> tuple[tasks.Task, ...]:
    """Those of the data's that learn labels."""
    return tuple(one for one in tasks.all_scored(data) if one is not tasks.QA)


def sources(data: Data, base: Path, progress: Progress) -> dict[str, Any]:
    """What the key is made of, of whatever is counted in the training texts beside corpora."""
    if len(found := tasks.all_scored(data)) > 1:
        return {one.name: sources(tasks.focused(data, one.name), base, progress) for one in found}
    if (asked := data.qa) is not None:
        return {
            "questions": question_sources(asked, base, progress),
            "data": asked.model_dump(include={"train_share", "split_by", "skip_faulty"})
            | ({"no_answer": True} if asked.no_answer else {}),
        }
    texts = tasks.labelled(data)
    return {
        "labelled": [
            [digest_of(base / name, progress) for name in names]
            for names in (texts.files, texts.test_files)
        ],
        "data": texts.model_dump(exclude={"files", "test_files", "quality", "positive", "tokens"}),
    }


def training_texts(data: Data, base: Path, seed: int, progress: Progress) -> list[str]:
    """Each text that the tasks which score train on, of those no test example is made of."""
    if len(found := tasks.all_scored(data)) > 1:
        each = (tasks.focused(data, one.name) for one in found)
        return [text for one in each for text in training_texts(one, base, seed, progress)]
    if (asked := data.qa) is not None:
        train, _ = parted(read_questions(asked, base, progress).sound, asked, seed)
        return [*dict.fromkeys(one.context for one in train), *(one.question for one in train)]
    return examples.texts(tasks.labelled(data), base, seed, progress)


def question_sources(data: QaData, base: Path, progress: Progress) -> list[str | None]:
    """What the key of a cache of the questions is made of."""
    return [digest_of(base / name, progress) for name in data.files] or [data.hub, data.revision]


def test_questions(cache: Path) -> list[Question]:
    """The questions of the test part, in the order of its features; raises Damaged."""
    return questions_of(cache, "test")


def questions_of(cache: Path, part: str) -> list[Question]:
    """The same of another part than training's."""
    path = cache / f"{part}_questions.json"
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        return [
            Question(**{**row, "answers": tuple((text, at) for text, at in row["answers"])})
            for row in rows
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Damaged(path, f"is missing or damaged ({error})") from error


def _read_questions(cache: Path) -> None:
    test_questions(cache)
    for part in PARTS:
        QaFeatures.load(cache / part)


PARTS = ("train", "test")
TUNE, KEPT = "tune", 0.9  # the part by which a threshold is found, and what it leaves
LABELLED = Kind(
    (
        *(f"{part}/{name}" for part in PARTS for name in examples.Examples.files()),
        examples.MANIFEST,
    ),
    examples.check,
)
CORPORA = Kind(corpus.FILES, corpus.MlmCorpus.load)
QUESTIONS = Kind(
    (
        *(f"{part}/{name}" for part in PARTS for name in QaFeatures.files()),
        "test_questions.json",
        "manifest.json",
    ),
    _read_questions,
)


def counts(
    mlm: Path | None, qa: Path | None, labelled: Mapping[str, Path] = MappingProxyType({})
) -> dict[str, Any]:
    """How much data there is, for a person to read; None for what an older cache does not tell, and
    for what there is none of. Of texts with labels those of the first task, and where there are
    several, of each."""
    texts: dict[str, Any] = {}
    train = evaluation = 0
    if mlm is not None:
        texts = json.loads((mlm / "manifest.json").read_text())
        train = len(np.load(mlm / "train.npy", mmap_mode="r"))
        evaluation = len(np.load(mlm / "evaluation.npy", mmap_mode="r"))
    found = {
        "mlm_train_sequences": train,
        "mlm_evaluation_sequences": evaluation,
        "mlm_unknown": texts.get("unknown"),
    }
    each = {task: _labelled_counts(folder) for task, folder in labelled.items()}
    if each:
        found |= next(iter(each.values()))
    if len(each) > 1:
        found["labelled_tasks"] = {
            task: {**told, "labelled_cache": str(labelled[task])} for task, told in each.items()
        }
    if qa is None:
        return found
    questions = json.loads((qa / "manifest.json").read_text())
    return {
        **found,
        "qa_train_questions": questions["train_questions"],
        "qa_test_questions": questions["test_questions"],
        "qa_train_features": questions["train_features"],
        "qa_test_features": questions["test_features"],
        "qa_unknown": questions.get("unknown"),
        "qa_skipped": questions.get("skipped", 0),
    }


def _labelled_counts(folder: Path) -> dict[str, Any]:
    told = examples.manifest(folder)
    return {
        "labelled_train": told["train"],
        "labelled_test": told["test"],
        "labelled_tokens": told["tokens"],
        "labelled_unknown": told["unknown"],
        "labels": tuple(told["labels"]),
    }


def labels_of(spec: Spec) -> Labels:
    """Of the search's examples, of the first task that has such; none before prepare has read them,
    or without any."""
    first = next(iter(spec.labelled_caches.values()), spec.labelled_cache)
    return labels_in(Path(first)) if first else NO_LABELS


def labels_in(cache: Path) -> Labels:
    """Of a cache of texts with labels; those of a version before count as in an order of their
    own, as all did there."""
    told = examples.manifest(cache)
    return Labels(tuple(told["labels"]), told.get("ordered", True))


def convert_seed(
    spec: Spec,
    tokenizer: Any,
    folder: Path,
    progress: Progress,
    kept: NDArray[np.int64] | None = None,
    labels: Labels = NO_LABELS,
) -> tuple[phenotype.AnyModel, bool]:
    """Writes the seed's model and tokenizer, sealed; returns it, and whether the seed has an MLM
    head. The model has the seed's head for the task that scores where the spec says that it is
    kept. labels: of that task.

    kept: the seed's ids of the tokenizer's tokens, where those are not all that the seed knows."""
    progress("downloading", patience=DOWNLOAD)
    base = Path(spec.config_folder)
    found = describe(spec.source, base)
    scored = tasks.all_scored(spec.data)
    task = scored[0]
    has = task.kind in found.heads
    fault = seed_head.among(scored)
    if not fault and has and labels.names:
        fault = seed_heads.misfit(found.labels, labels)
    model: phenotype.AnyModel
    if spec.keeps_qa_head and has and not fault:
        kind = seed_heads.model_of(task.name)
        separator = None
        if "token_type_ids" in tokenizer.model_input_names:
            separator = int(tokenizer.sep_token_id)
            separator = separator if kept is None else int(kept[separator])
        model = load_with_head(kind, spec.source, base, spec.dropout, labels.names, separator)
        has_head = found.has_mlm_head
    elif spec.scores_seed:
        raise NasdError(seed_head.missing(spec.source, task, fault))
    else:
        model, has_head = load_seed(spec.source, base, spec.dropout, labels.names)
    if kept is not None:
        model = trimmed_model(cast("phenotype.MaskedLM", model), kept)
    for one in scored:
        about = seed_head.about(one, one.kind in found.heads, spec.keeps_qa_head, fault)
        print(f"seed: {about}", flush=True)
    progress("saving", patience=LONG)
    phenotype.save(model, folder)
    tokenizer.save_pretrained(folder)
    digests.seal(folder)
    sync_tree(folder)
    return model, has_head


def parted(
    questions: Sequence[Question], data: QaData, seed: int
) -> tuple[list[Question], list[Question]]:
    """Those to train on, and those that give the score."""
    return split(questions, data.train_share, data.split_by, stream_seed(seed, 0, "questions"))


def tuned(train: Sequence[Question], data: QaData, seed: int) -> dict[str, list[Question]]:
    """The training questions but for a tenth, and that, by which the threshold is found from which
    on a question is told to have no answer: nobody trains on it."""
    drawn = stream_seed(seed, 0, "threshold")
    try:
        kept, held = split(train, KEPT, data.split_by, drawn)
    except NasdError:  # of one article, as there are few
        kept, held = split(train, KEPT, "record", drawn)
    return {"train": kept, TUNE: held}


def _build_qa(
    data: QaData, base: Path, tokenizer: Any, folder: Path, seed: int, progress: Progress
) -> None:
    questions, faults = read_questions(data, base, progress)
    for fault in faults[:SHOWN]:
        print(f"left out: {fault}", flush=True)
    if len(faults) > SHOWN:
        print(f"left out: {len(faults) - SHOWN:,} more", flush=True)
    train, test = parted(questions, data, seed)
    parts = {"train": train, "test": test}
    if data.no_answer:
        parts = {**parts, **tuned(train, data, seed)}
    train = parts["train"]
    sizes: dict[str, float] = {
        "train_questions": len(train),
        "test_questions": len(test),
        "skipped": len(faults),
    }
    unknown = tokens = 0
    for name, part in parts.items():
        features: QaFeatures = build_features(
            part, tokenizer, data.tokens, data.stride, progress=progress
        )
        progress("saving", patience=LONG)
        features.save(folder / name)
        sizes[f"{name}_features"] = len(features)
        tokens += len(features.tokens)
        unknown += int((features.tokens == tokenizer.unk_token_id).sum())
        print(f"questions: {len(part)} for {name}, {len(features)} features", flush=True)
    for name in parts.keys() - {"train"}:
        (folder / f"{name}_questions.json").write_text(
            json.dumps([asdict(question) for question in parts[name]]), encoding="utf-8"
        )
    (folder / "manifest.json").write_text(json.dumps({**sizes, "unknown": unknown / tokens}))


def read_questions(data: QaData, base: Path, progress: Progress) -> Questions:
    """Of the config's files, or its data set; raises NasdError naming the key."""
    if data.files:
        try:
            files = [base / name for name in data.files]
            return read_all(files, data.skip_faulty, data.no_answer)
        except NasdError as error:
            raise NasdError(f"data.qa.files: {error}") from error
    rows = hub.load(data, "data.qa.hub", base, progress)
    progress("reading")
    return from_records(rows, f"data.qa.hub: {data.hub}", data.skip_faulty, data.no_answer)


def train_questions(spec: Spec, progress: Progress) -> list[Question]:
    """Those of the training part, in the order of its features."""
    data = tasks.questions(spec.data)
    questions, _ = read_questions(data, Path(spec.config_folder), progress)
    train = parted(questions, data, spec.seed)[0]
    return tuned(train, data, spec.seed)["train"] if data.no_answer else train


def digest_of(path: Path, progress: Progress) -> str:
    """Of a file's content; raises NasdError where it cannot be read."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(BLOCK):
                digest.update(block)
                progress("hashing")
            return digest.hexdigest()
    except OSError as error:
        raise NasdError(f"{path} cannot be read: {error.strerror}") from error
