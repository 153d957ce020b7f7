"""The first thing an experiment does: the caches, and the baseline from the seed.

A cache folder is named by all that made it: the contents of the source files (or the names of the
hub's data sets), the tokenizer, the lengths, the split.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from nasd.contract import digests, seed_head
from nasd.contract.config import Data, QaData
from nasd.contract.digests import Damaged
from nasd.contract.errors import NasdError
from nasd.contract.protocol import Spec
from nasd.contract.squad import Question, Questions, from_records, read_all, split
from nasd.contract.streams import stream_seed
from nasd.worker.caches import Kind, key_of, make, sync_tree
from nasd.worker.model import phenotype
from nasd.worker.model.seed import describe, load_answering, load_seed
from nasd.worker.model.vocabulary import trimmed_model
from nasd.worker.tasks import corpus, hub
from nasd.worker.tasks.passages import QaFeatures, build_features
from nasd.worker.training.progress import DOWNLOAD, LONG, Progress

SHOWN = 20  # faulty questions that the log names
BLOCK = 1 << 22  # bytes hashed between two signs of life


def caches(
    data: Data, base: Path, tokenizer: Any, root: Path, seed: int, progress: Progress
) -> tuple[Path | None, Path]:
    """The cache folders of the corpora, if there are any, and of the questions; made where they are
    missing."""

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
    sources = question_sources(data.qa, base, progress)
    qa_key = key_of(
        {
            "tokenizer": tokens,
            "seed": seed,
            "sources": sources,
            "data": data.qa.model_dump(include={"tokens", "stride", "train_share", "split_by"}),
            # Only where it is set, so that caches from before there was such a key still count.
            **({"skip_faulty": True} if data.qa.skip_faulty else {}),
        }
    )
    qa = make(
        QUESTIONS,
        root / f"qa-{qa_key}",
        lambda folder: _build_qa(data.qa, base, tokenizer, folder, seed, progress),
        progress,
    )
    return mlm, qa


def question_sources(data: QaData, base: Path, progress: Progress) -> list[str | None]:
    """What the key of a cache of the questions is made of."""
    return [digest_of(base / name, progress) for name in data.files] or [data.hub, data.revision]


def test_questions(cache: Path) -> list[Question]:
    """The questions of the test part, in the order of its features; raises Damaged."""
    path = cache / "test_questions.json"
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
CORPORA = Kind(corpus.FILES, corpus.MlmCorpus.load)
QUESTIONS = Kind(
    (
        *(f"{part}/{name}" for part in PARTS for name in QaFeatures.files()),
        "test_questions.json",
        "manifest.json",
    ),
    _read_questions,
)


def counts(mlm: Path | None, qa: Path) -> dict[str, Any]:
    """How much data there is, for a person to read; None for what an older cache does not tell, and
    for what there is none of."""
    texts: dict[str, Any] = {}
    train = evaluation = 0
    if mlm is not None:
        texts = json.loads((mlm / "manifest.json").read_text())
        train = len(np.load(mlm / "train.npy", mmap_mode="r"))
        evaluation = len(np.load(mlm / "evaluation.npy", mmap_mode="r"))
    questions = json.loads((qa / "manifest.json").read_text())
    return {
        "mlm_train_sequences": train,
        "mlm_evaluation_sequences": evaluation,
        "qa_train_questions": questions["train_questions"],
        "qa_test_questions": questions["test_questions"],
        "qa_train_features": questions["train_features"],
        "qa_test_features": questions["test_features"],
        "mlm_unknown": texts.get("unknown"),
        "qa_unknown": questions.get("unknown"),
        "qa_skipped": questions.get("skipped", 0),
    }


def convert_seed(
    spec: Spec,
    tokenizer: Any,
    folder: Path,
    progress: Progress,
    kept: NDArray[np.int64] | None = None,
) -> tuple[phenotype.MaskedLM | phenotype.QuestionAnswering, bool]:
    """Writes the seed's model and tokenizer, sealed; returns it, and whether the seed has an MLM
    head. The model has the seed's head for questions where the spec says that it is kept.

    kept: the seed's ids of the tokenizer's tokens, where those are not all that the seed knows."""
    progress("downloading", patience=DOWNLOAD)
    base = Path(spec.config_folder)
    found = describe(spec.source, base)
    model: phenotype.MaskedLM | phenotype.QuestionAnswering
    if spec.keeps_qa_head and found.has_qa_head:
        model, has_head = load_answering(spec.source, base, spec.dropout), found.has_mlm_head
    else:
        model, has_head = load_seed(spec.source, base, spec.dropout)
    if kept is not None:
        model = trimmed_model(cast("phenotype.MaskedLM", model), kept)
    print(f"seed: {seed_head.about(found.has_qa_head, spec.keeps_qa_head)}", flush=True)
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


def _build_qa(
    data: QaData, base: Path, tokenizer: Any, folder: Path, seed: int, progress: Progress
) -> None:
    questions, faults = read_questions(data, base, progress)
    for fault in faults[:SHOWN]:
        print(f"left out: {fault}", flush=True)
    if len(faults) > SHOWN:
        print(f"left out: {len(faults) - SHOWN:,} more", flush=True)
    train, test = parted(questions, data, seed)
    sizes: dict[str, float] = {
        "train_questions": len(train),
        "test_questions": len(test),
        "skipped": len(faults),
    }
    unknown = tokens = 0
    for name, part in (("train", train), ("test", test)):
        features: QaFeatures = build_features(
            part, tokenizer, data.tokens, data.stride, progress=progress
        )
        progress("saving", patience=LONG)
        features.save(folder / name)
        sizes[f"{name}_features"] = len(features)
        tokens += len(features.tokens)
        unknown += int((features.tokens == tokenizer.unk_token_id).sum())
        print(f"questions: {len(part)} for {name}, {len(features)} features", flush=True)
    (folder / "test_questions.json").write_text(
        json.dumps([asdict(question) for question in test]), encoding="utf-8"
    )
    (folder / "manifest.json").write_text(json.dumps({**sizes, "unknown": unknown / tokens}))


def read_questions(data: QaData, base: Path, progress: Progress) -> Questions:
    """Of the config's files, or its data set; raises NasdError naming the key."""
    if data.files:
        try:
            return read_all([base / name for name in data.files], data.skip_faulty)
        except NasdError as error:
            raise NasdError(f"data.qa.files: {error}") from error
    rows = hub.load(data, "data.qa.hub", base, progress)
    progress("reading")
    return from_records(rows, f"data.qa.hub: {data.hub}", data.skip_faulty)


def train_questions(spec: Spec, progress: Progress) -> list[Question]:
    """Those of the training part, in the order of its features."""
    questions, _ = read_questions(spec.data.qa, Path(spec.config_folder), progress)
    return parted(questions, spec.data.qa, spec.seed)[0]


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
