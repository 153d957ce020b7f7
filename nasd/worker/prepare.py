"""The first thing an experiment does: the caches, and the baseline from the seed.

A cache folder is named by all that made it: the contents of the source files (or the names of the
hub's data sets), the tokenizer, the lengths, the split.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from nasd.contract import digests, seed_head, tasks
from nasd.contract import labelled as contract_labelled
from nasd.contract.config import Data, QaData
from nasd.contract.digests import Damaged
from nasd.contract.errors import NasdError
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
        return Found(mlm, qa, None)
    texts_with = tasks.labelled(data)
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
            "data": texts_with.model_dump(exclude={"files", "test_files", "quality", "positive"}),
        }
    )
    labelled = make(
        LABELLED,
        root / f"labelled-{key}",
        lambda folder: examples.build(texts_with, base, tokenizer, folder, seed, progress),
        progress,
    )
    return Found(mlm, None, labelled)


class Found(NamedTuple):
    """The cache folders; None of what the config has no section of."""

    mlm: Path | None
    qa: Path | None
    labelled: Path | None


def sources(data: Data, base: Path, progress: Progress) -> dict[str, Any]:
    """What the key is made of, of whatever is counted in the training texts beside corpora."""
    if (asked := data.qa) is not None:
        return {
            "questions": question_sources(asked, base, progress),
            "data": asked.model_dump(include={"train_share", "split_by", "skip_faulty"})
            | ({"no_answer": True} if asked.no_answer else {}),
        }
    found = tasks.labelled(data)
    return {
        "labelled": [
            [digest_of(base / name, progress) for name in names]
            for names in (found.files, found.test_files)
        ],
        "data": found.model_dump(exclude={"files", "test_files", "quality", "positive", "tokens"}),
    }


def training_texts(data: Data, base: Path, seed: int, progress: Progress) -> list[str]:
    """Each text that the task which scores trains on, of those no test example is made of."""
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


def counts(mlm: Path | None, qa: Path | None, labelled: Path | None = None) -> dict[str, Any]:
    """How much data there is, for a person to read; None for what an older cache does not tell, and
    for what there is none of."""
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
    if labelled is not None:
        told = examples.manifest(labelled)
        found |= {
            "labelled_train": told["train"],
            "labelled_test": told["test"],
            "labelled_tokens": told["tokens"],
            "labelled_unknown": told["unknown"],
            "labels": tuple(told["labels"]),
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


def labels_of(spec: Spec) -> tuple[str, ...]:
    """Of the examples that an attempt has; none before prepare has read them, or without any."""
    if not spec.labelled_cache:
        return ()
    return tuple(examples.manifest(Path(spec.labelled_cache))["labels"])


def convert_seed(
    spec: Spec,
    tokenizer: Any,
    folder: Path,
    progress: Progress,
    kept: NDArray[np.int64] | None = None,
    labels: Sequence[str] = (),
) -> tuple[phenotype.AnyModel, bool]:
    """Writes the seed's model and tokenizer, sealed; returns it, and whether the seed has an MLM
    head. The model has the seed's head for the task that scores where the spec says that it is
    kept. labels: of that task.

    kept: the seed's ids of the tokenizer's tokens, where those are not all that the seed knows."""
    progress("downloading", patience=DOWNLOAD)
    base = Path(spec.config_folder)
    found = describe(spec.source, base)
    task = tasks.scored(spec.data)
    has = task.name in found.heads
    fault = seed_heads.misfit(found.labels, labels) if has and labels else ""
    model: phenotype.AnyModel
    if spec.keeps_qa_head and has and not fault:
        kind = seed_heads.KINDS[task.name]
        separator = None
        if "token_type_ids" in tokenizer.model_input_names:
            separator = int(tokenizer.sep_token_id)
            separator = separator if kept is None else int(kept[separator])
        model = load_with_head(kind, spec.source, base, spec.dropout, labels, separator)
        has_head = found.has_mlm_head
    else:
        model, has_head = load_seed(spec.source, base, spec.dropout, labels)
    if kept is not None:
        model = trimmed_model(cast("phenotype.MaskedLM", model), kept)
    print(f"seed: {seed_head.about(task, has, spec.keeps_qa_head, fault)}", flush=True)
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
