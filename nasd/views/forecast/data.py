"""How much there is to train on and to test: as given, as prepared, or as known of the sources."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

from pydantic import ValidationError

from nasd.contract import formats, labelled, readable, tasks
from nasd.contract.config import Config, Data, MlmData, QaData
from nasd.contract.errors import NasdError
from nasd.contract.squad import read_all
from nasd.contract.volumes import LABELLED, Volumes
from nasd.record.state import Snapshot

# Bytes of text on the hub, and bytes a token of the uncased English vocabulary (books have
# shorter words; Wikipedia lies between a clean sample's 5.0 and the 4.4 of names and numbers).
KNOWN_CORPORA = {
    "wikimedia/wikipedia": ("English Wikipedia", 20.2e9, 4.7),
    "bookcorpus/bookcorpus": ("BookCorpus", 4.85e9, 4.2),
}
FILE_BYTES_PER_TOKEN = 4.5
PACKED_BYTES_PER_TOKEN = 1.5  # gzip makes a third of English text
WORD_TOKENS, SPECIAL = 1.3, 3.0  # of a word of English text, signs and all; around a text
KNOWN_QUESTIONS = {"rajpurkar/squad": 87_599, "squad": 87_599}
FEATURES_PER_QUESTION = 88_524 / 87_599  # SQuAD v1.1 at 384 tokens, stride 128


def prepared(config: Config, measured: Snapshot | None) -> Mapping[str, Any] | None:
    """The experiment's counts of data, if it has the data of this config."""
    if measured is None or measured.experiment.prepared is None:
        return None
    try:  # a key that came later has its default
        same = Data.model_validate(measured.experiment.config["data"]) == config.data
    except ValidationError:  # of another nasd's
        same = False
    return measured.experiment.prepared if same else None


def volumes(
    config: Config,
    folder: Path,
    prepared: Mapping[str, Any] | None,
    mlm_sequences: int | None,
    qa_questions: int | None,
) -> tuple[Volumes, str]:
    mlm, qa = config.data.mlm, config.data.qa
    if mlm is None:
        if mlm_sequences is not None:
            raise NasdError("--mlm-sequences: the config has no data.mlm: leave it out")
        sequences, how = 0, ""
    elif mlm_sequences is not None:
        sequences, how = mlm_sequences, "as given"
    elif prepared is not None:
        sequences, how = prepared["mlm_train_sequences"], "as prepared"
    else:
        sequences, how = _sequences(mlm, folder)
    if qa is None and qa_questions is not None:
        raise NasdError("--qa-questions: the config has no data.qa: leave it out")
    volumes, said = Volumes(), []
    if qa is not None:
        volumes, told = _asked(qa, folder, prepared, qa_questions)
        said.append(told)
    by_task = {}
    for task in config.scoring:
        if task is not tasks.QA:
            texts, told = _labelled(config, task, folder, prepared)
            counts = {name: getattr(texts, name) for name in LABELLED}
            by_task[task.name] = replace(volumes, **counts)
            said.append(told)
    if by_task:
        counts = {name: getattr(next(iter(by_task.values())), name) for name in LABELLED}
        volumes = replace(volumes, **counts, by_task=by_task if len(by_task) > 1 else {})
    held_out = 0 if mlm is None else mlm.evaluation_sequences
    volumes = replace(volumes, mlm_train_sequences=sequences, mlm_evaluation_sequences=held_out)
    for stage in config.stages:
        examples = tasks.of(stage.task).examples(volumes)
        if stage.train != "none" and min(stage.batch, examples) < stage.slots:
            raise NasdError(
                f"stages.{stage.name}: {examples} training examples cannot be dealt out to"
                f" {stage.slots} slots"
            )
    read = "" if mlm is None else f"{_many(sequences)} sequences of {mlm.tokens} tokens ({how}); "
    return volumes, f"{read}{'; '.join(said)}."


def _asked(
    qa: QaData, folder: Path, prepared: Mapping[str, Any] | None, qa_questions: int | None
) -> tuple[Volumes, str]:
    """The questions, and how their number was arrived at."""
    if qa_questions is None and prepared is not None:
        names = ("train_questions", "test_questions", "train_features", "test_features")
        counts = tuple(int(prepared[f"qa_{name}"]) for name in names)
        asked = "as prepared"
    else:
        if qa_questions is not None:
            total, asked = qa_questions, "as given"
        elif qa.files:
            files = [folder / name for name in qa.files]
            total = len(read_all(files, qa.skip_faulty, qa.no_answer).sound)
            asked = "counted"
        elif qa.hub in KNOWN_QUESTIONS:
            total, asked = KNOWN_QUESTIONS[qa.hub], "SQuAD v1.1"
        else:
            raise NasdError(f"data.qa.hub: nothing is known of {qa.hub}: give --qa-questions")
        train = min(total - 1, max(1, round(qa.train_share * total)))
        if total < 2:
            raise NasdError(f"--qa-questions: {total} cannot be split into train and test")
        features = [round(part * FEATURES_PER_QUESTION) for part in (train, total - train)]
        counts = (train, total - train, features[0], features[1])
    train, test, train_features, test_features = counts
    volumes = Volumes(0, 0, train, test, train_features, test_features)
    volumes = replace(volumes, qa_tokens=min(volumes.qa_tokens, float(qa.tokens)))
    return volumes, f"{counts[0]:,} questions to train on and {counts[1]:,} to test ({asked})"


def _labelled(
    config: Config, task: tasks.Task, folder: Path, prepared: Mapping[str, Any] | None
) -> tuple[Volumes, str]:
    """The same of a task's texts with labels."""
    data = getattr(config.data, task.data)
    if prepared is not None:
        volumes, how = Volumes.of(prepared, config.data).of_task(task.name), "as prepared"
    elif data.files:
        found = labelled.of_files(data, folder, config.experiment.seed)
        words = mean(len(_words(one)) for one in found.train)
        volumes = Volumes(
            labelled_train=len(found.train),
            labelled_test=len(found.test),
            labelled_tokens=min(float(data.tokens), WORD_TOKENS * words + SPECIAL),
        )
        how = "counted"
    else:
        section = labelled.section(data)
        raise NasdError(
            f"{section}.hub: nothing is known of {data.hub} before the search has prepared it:"
            " name its files with files, or begin the search"
        )
    train, test = volumes.labelled_train, volumes.labelled_test
    return volumes, f"{train:,} examples to train on and {test:,} to test ({how})"


def _words(example: labelled.Example) -> Sequence[str]:
    texts = example.text
    return [*(texts.split() if isinstance(texts, str) else texts), *(example.pair or "").split()]


def _sequences(mlm: MlmData, folder: Path) -> tuple[int, str]:
    """How many sequences there are to train on, and how that was arrived at."""
    tokens, parts, known = 0.0, [], True
    for corpus in mlm.corpora:
        if corpus.files:
            try:
                size = float(sum((folder / name).stat().st_size for name in corpus.files))
            except OSError as error:
                raise NasdError(
                    f"data.mlm.corpora: {error.filename} cannot be read: {error.strerror}"
                ) from error
            name, ratio = "files", FILE_BYTES_PER_TOKEN
            seen = [formats.look(folder / one) for one in corpus.files]
            if any(one.zipped or one.form == "Parquet" for one in seen):
                name, ratio = "packed files", PACKED_BYTES_PER_TOKEN
        elif corpus.hub in KNOWN_CORPORA and (corpus.config or ".en").endswith(".en"):
            name, size, ratio = KNOWN_CORPORA[corpus.hub]
        elif mlm.max_sequences is None:
            raise NasdError(
                f"data.mlm.corpora: nothing is known of the size of {corpus.hub}: give"
                " --mlm-sequences"
            )
        else:
            known = False
            continue
        tokens += size / ratio
        parts.append(f"{name} {readable.size(size)} at {ratio:g} bytes a token")
    there = int(tokens / (mlm.tokens - 2))
    if known and there < 2 * mlm.evaluation_sequences:
        raise NasdError(
            f"data.mlm.corpora: about {there} sequences of {mlm.tokens} tokens are too few for"
            f" data.mlm.evaluation_sequences = {mlm.evaluation_sequences}; --mlm-sequences says"
            " how many there are"
        )
    there -= mlm.evaluation_sequences
    if mlm.max_sequences is not None and (not known or mlm.max_sequences <= there):
        return mlm.max_sequences, "data.mlm.max_sequences"
    return there, ", ".join(parts)


def _many(count: int) -> str:
    return f"{count / 1e6:.1f} million" if count >= 10**6 else f"{count:,}"
