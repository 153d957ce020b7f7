"""What can be told of data before anything is written: whether it is enough, and how much of it the
tokenizer does not know. Only as much is tokenised as that takes.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

from nasd.contract import tasks
from nasd.contract.config import Data, MlmData, Stage
from nasd.contract.errors import NasdError
from nasd.contract.labelled import NO_LABELS, Labels
from nasd.contract.squad import Question, read_all, split
from nasd.contract.streams import stream_seed
from nasd.worker.model import spans
from nasd.worker.tasks import corpus, examples
from nasd.worker.tasks.passages import build_features
from nasd.worker.training.progress import quiet

CONTEXTS = 1000  # that are tokenised to see how much of them is unknown


def look(
    data: Data, base: Path, tokenizer: Any, seed: int, stages: Sequence[Stage]
) -> dict[str, float]:
    """The shares of unknown tokens, and the number of test questions and of those left out, as far
    as files tell them; raises NasdError where the data is not enough for the ladder."""
    texts = {} if data.mlm is None else _mlm(data.mlm, base, tokenizer, stages)
    each = []
    for task in tasks.all_scored(data):
        scored = _qa if task is tasks.QA else _labelled
        own = tasks.reading(stages, task.data)
        each.append(scored(tasks.focused(data, task.name), base, tokenizer, seed, own))
    # Of several that learn labels, that with the fewest is told of.
    each.sort(key=lambda one: -one.get("labelled_test", math.inf))
    return {**texts, **dict(chain.from_iterable(one.items() for one in each))}


def _mlm(data: MlmData, base: Path, tokenizer: Any, stages: Sequence[Stage]) -> dict[str, float]:
    """Reads the files until they are known to be enough, but of each a batch of texts at least."""
    least = max(stage.slots for stage in stages)
    needed = (data.evaluation_sequences + max(data.evaluation_sequences, least)) * (data.tokens - 2)
    count = unknown = 0
    for one in data.corpora:
        for name in one.files:
            alone = one.model_copy(update={"files": (name,)})
            for place, texts in enumerate(corpus.records(alone, base, quiet)):
                if place and count >= needed:
                    break
                ids = corpus.encode(tokenizer, texts)
                count += len(ids)
                unknown += int((ids == tokenizer.unk_token_id).sum())
    if all(one.files for one in data.corpora):
        total = count // (data.tokens - 2)
        corpus.check_enough(data, total)
        train = min(total - data.evaluation_sequences, data.max_sequences or total)
        for stage in tasks.reading(stages, tasks.MLM.data):
            if stage.train != "none":
                _check_dealt(stage, train)
    return {"mlm_unknown": unknown / count} if count else {}


def _qa(
    data: Data, base: Path, tokenizer: Any, seed: int, stages: Sequence[Stage]
) -> dict[str, float]:
    qa = tasks.questions(data)
    if not qa.files:
        return {}
    found = read_all([base / name for name in qa.files], qa.skip_faulty, qa.no_answer)
    train, test = split(found.sound, qa.train_share, qa.split_by, stream_seed(seed, 0, "questions"))
    for stage in tasks.reading(stages, tasks.QA.data):
        if stage.train != "none" and len(train) < stage.slots:
            _check_dealt(stage, len(build_features(train, tokenizer, qa.tokens, qa.stride)))
    return {
        "qa_test_questions": len(test),
        "qa_skipped": len(found.faults),
        **_unknown(found.sound, tokenizer),
    }


def _labelled(
    data: Data, base: Path, tokenizer: Any, seed: int, stages: Sequence[Stage]
) -> dict[str, float]:
    texts = tasks.labelled(data)
    if not texts.files:
        return {}
    found = examples.read(texts, base, seed, quiet)
    for stage in stages:
        if stage.train != "none" and tasks.of(stage.task).scores:
            _check_dealt(stage, len(found.train))
    places = {label: place for place, label in enumerate(found.labels.names)}
    some, _ = examples.tokenised(found.train[:CONTEXTS], tokenizer, texts.tokens, places, quiet)
    unknown = float((some.tokens == tokenizer.unk_token_id).mean())
    return {"labelled_test": len(found.test), "labelled_unknown": unknown}


def labels(data: Data, base: Path, seed: int) -> Labels:
    """Of texts with labels in files, in the order of a head's outputs; else none."""
    if tasks.scored(data) is tasks.QA or not (texts := tasks.labelled(data)).files:
        return NO_LABELS
    return examples.read(texts, base, seed, quiet).labels


def _unknown(questions: Sequence[Question], tokenizer: Any) -> Mapping[str, float]:
    contexts = list(islice(dict.fromkeys(question.context for question in questions), CONTEXTS))
    ids = [encoded.ids for encoded in spans.encode(tokenizer, contexts).values()]
    count = sum(map(len, ids))
    unknown = sum(int((one == tokenizer.unk_token_id).sum()) for one in ids)
    return {"qa_unknown": unknown / count} if count else {}


def _check_dealt(stage: Stage, examples: int) -> None:
    if min(stage.batch, examples) < stage.slots:
        raise NasdError(
            f"stages.{stage.name}: {examples} training examples cannot be dealt out to"
            f" {stage.slots} slots: give more data, or fewer slots"
        )
