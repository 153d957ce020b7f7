"""The attempt directory: all that the control plane and a worker say to each other.

    attempts/<id>/  spec.json      written before the worker starts, read once
                    heartbeat      where the worker is just now, rewritten at least every second
                    checked        there once what is read of earlier steps was found whole
                    metrics.jsonl  one line per log step and per evaluation
                    worker.log     standard output and error of the worker
                    checkpoints/   whole directories, see nasd.worker.training.checkpoint
                    result/        what the stage leaves behind: the model, or the predictions
                    outcome.json   the verdict: written last, whole or not at all

A worker knows its directory and nothing of the database, so any launcher that shares a file
system can run it.
"""

import contextlib
import os
import re
from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import from_json

from nasd.contract.config import Data, Measure, Part, SearchSpace, Stage, Teacher
from nasd.contract.errors import NasdError

# `python -m nasd.worker` leaves with one of these; the launcher only learns "zero or not", so the
# verdict itself is always read from outcome.json.
EXIT_DONE = 0
EXIT_NO_OUTCOME = 1


class Message(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)


# What a screening's metrics say beside the losses of the mutants.
PARENT, IGNORANCE = "parent", "ignorance"


class Untried(Message):
    """A mutant that a screening is to try."""

    id: int
    genotype: dict[str, Any]
    lineage: list[dict[str, Any]]
    second_weights: str | None = None


class Teaching(Message):
    """Whom an attempt learns from. weights: the teacher's folder; name: what people call it."""

    weights: str
    name: str
    settings: Teacher


class Spec(Message):
    """All a worker needs for one attempt. Paths are absolute."""

    version: Literal[1] = 1
    attempt: int
    candidate: int
    generation: int | None
    stage: Part | Stage | None  # None: prepare, or a screening
    seed: int  # of the experiment
    dropout: float | None
    source: str  # the seed model
    vocabulary: int | None = None  # tokens of it that are kept; None: all
    keeps_qa_head: bool = False  # of the seed's, as no stage stands between it and fine-tuning
    scores_seed: bool = False  # as it is: without its head there is no baseline
    data: Data
    config_folder: str  # relative data paths start here
    genotype: dict[str, Any]
    lineage: list[dict[str, Any]]
    weights: str | None  # the folder to start from; None: the seed itself
    inherits: bool  # `weights` are the parent's: build by lineage instead of loading
    second_weights: str | None = None  # those of the second parent of a crossover
    head_weights: str | None = None  # of another model: the head, where `weights` have none
    teacher: Teaching | None = None
    cache: str  # root of the cache; prepare writes there, and whoever computes activations
    mlm_cache: str  # as prepare found or made them; empty for prepare itself, and without texts
    qa_cache: str
    labelled_cache: str = ""  # of texts with labels
    labelled_caches: dict[str, str] = {}  # of each task that has such, where they are several
    tensorboard: str  # the run that the curves go to
    precision: Literal["float32", "bfloat16"]
    threads: int
    share: int = 1  # attempts that each of its devices, and the memory there, is for
    checkpoint_minutes: float
    log_steps: int
    stall_minutes: float  # silence after which the attempt is taken for stalled
    compile: Literal["auto"] | bool = "auto"
    packing: Literal["auto"] | bool = "auto"  # of questions
    fixed_masks: bool = False  # the same ones for a sequence every time
    activation_cache_gb: float = 0.0
    halvings: int = 0  # how often the micro-batch is halved, because memory ran out
    rounds: int = (
        0  # of the stage's steps that its ancestors went through, whose examples it follows
    )
    first_step: int = 0  # where the curves begin, behind those of the stages before
    shared_curve: str = ""  # the tag of its generation's evaluation losses, where it is among them
    measure: Measure = Measure()
    goes_by: tuple[str, ...] = ()  # the objectives, and what is limited
    profiled: SearchSpace | None = None  # by prepare: a latency table is made of it
    mutants: tuple[Untried, ...] = ()  # of a screening
    refits: bool = True  # what a child's ranked modules give to what the parent's gave
    holds_out: bool = False  # keep the windows that screenings go by out of training
    resume: tuple[str, ...] = ()  # checkpoint folders of earlier attempts, newest first
    digest: str = ""  # of all the rest, see nasd.contract.digests


class Prepared(Message):
    """What prepare found: counts for a person to read, and the cache folders."""

    mlm_cache: str  # empty where there are no texts
    qa_cache: str = ""  # and where there are no questions
    labelled_cache: str = ""  # and no texts with labels
    has_mlm_head: bool
    keeps_qa_head: bool = False  # the baseline starts from the seed's own
    parameters: int
    seed_parameters: int | None = None  # of the seed's encoder with all of its vocabulary
    words_lost: float | None = None  # share of the training texts' that a smaller one cuts finer
    fixed_masks: bool = False  # where only new modules train
    mlm_train_sequences: int
    mlm_evaluation_sequences: int
    qa_train_questions: int = 0
    qa_test_questions: int = 0
    qa_train_features: int = 0
    qa_test_features: int = 0
    labelled_train: int = 0  # texts with labels
    labelled_test: int = 0
    labelled_tokens: float = 0.0  # of one, on average
    labels: tuple[str, ...] = ()  # in the order of the head's outputs
    labelled_tasks: dict[str, dict[str, Any]] = {}  # the same of each task, where they are several
    mlm_unknown: float | None = None  # share of [UNK] in the corpora, and in the windows below
    qa_unknown: float | None = None
    labelled_unknown: float | None = None
    qa_skipped: int = 0  # faulty questions that were left out
    latency: dict[str, Any] = {}  # the table, see nasd.contract.latency; empty where none is asked
    teacher: str = ""  # the cache folder of a teacher that is no model of the search


class Verdict(StrEnum):
    SUCCEEDED = "succeeded"
    STOPPED = "stopped"  # at a checkpoint, when it was asked to
    DIVERGED = "diverged"
    OUT_OF_MEMORY = "out_of_memory"
    INVALID = "invalid"  # what the user gave is at fault, and so it will be next time
    MACHINE = "machine"  # something that an earlier step left is missing or damaged; it is named
    ERROR = "error"  # of unknown cause


class Outcome(Message):
    """How an attempt ended, in the worker's own words.

    token: the attempt's own. A folder may hold what another attempt of the same number left, where
    the database was taken back to a backup. curve: (step, evaluation loss) in order. metrics: e.g.
    loss, exact_match, f1.
    """

    version: Literal[1] = 1
    token: str = ""
    verdict: Verdict
    message: str = ""
    metrics: dict[str, float] = {}
    curve: list[tuple[int, float]] = []
    steps: int = 0
    seconds: float = 0.0
    has_result: bool = False
    prepared: Prepared | None = None
    digest: str = ""  # of all the rest, see nasd.contract.digests


class AttemptFolder:
    """Names of the files of one attempt; each is made when it is asked for, as a turn makes a
    folder of every attempt that is under way, and asks for two of them."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def spec(self) -> Path:
        return self.path / "spec.json"

    @property
    def heartbeat(self) -> Path:
        return self.path / "heartbeat"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def log(self) -> Path:
        return self.path / "worker.log"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def result(self) -> Path:
        return self.path / "result"

    @property
    def outcome(self) -> Path:
        return self.path / "outcome.json"

    @property
    def checked(self) -> Path:
        return self.path / "checked"

    def newest_step(self) -> int:
        """The step of the newest checkpoint, 0 if there is none; whole or not."""
        newest = checkpoints_below([self.checkpoints])[:1]
        return int(newest[0].name.removeprefix("step-")) if newest else 0


def checkpoints_below(folders: Iterable[Path]) -> list[Path]:
    """The checkpoints in any of the folders, whole or not, the newest first; what else people put
    there, as a copy, is none."""
    found = [path for folder in folders if folder.is_dir() for path in folder.glob("step-*")]
    ours = [path for path in found if re.fullmatch("step-[0-9]{9,}", path.name)]
    return sorted(ours, key=lambda path: path.name, reverse=True)


M = TypeVar("M", bound=Message)


def read(kind: type[M], path: Path) -> M:
    """Reads a message; raises NasdError naming the file if it is damaged or of another version."""
    try:
        return kind.model_validate_json(path.read_bytes())
    except OSError as error:
        raise NasdError(f"{path} is missing or damaged: {error.strerror}") from error
    except ValidationError:  # which quotes what the file holds, whoever put it there
        raise NasdError(
            f"{path} is missing or damaged: it holds no {kind.__name__.lower()} of this version"
        ) from None


class Heartbeat(Message):
    """Where a worker is just now.

    at: seconds since the epoch. age: seconds since the attempt was launched, whatever happened to
    the wall's clock meanwhile; 0 where that is not known. patience: seconds for which it may be
    silent from here on, where that is longer than usual, as in a download.
    """

    doing: str
    step: int = 0
    steps: int = 0
    at: float
    age: float = 0.0
    patience: float = 0.0


def write(message: Message, path: Path) -> None:
    """Writes a message whole or not at all."""
    write_atomically(path, message.model_dump_json(indent=1).encode())


def write_atomically(path: Path, content: bytes) -> None:
    """Temporary name, fsync, rename, fsync of the folder: a reader sees all of it or nothing."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Makes renames inside a folder durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_metrics(path: Path, after: int = 0) -> tuple[list[dict[str, Any]], int]:
    """The lines of metrics.jsonl from byte `after` on, and the byte to go on from next time.

    A last line without its end is being written just now (or was cut off by a kill): left out, as
    is one that a kill or a full disk has damaged.
    """
    try:
        with path.open("rb") as file:
            file.seek(after)
            content = file.read()
    except FileNotFoundError:
        return [], after
    whole = content[: content.rfind(b"\n") + 1]
    lines = []
    for line in whole.splitlines():
        with contextlib.suppress(ValueError):
            lines.append(from_json(line))  # a curve has tens of thousands: a quarter of json's time
    return lines, after + len(whole)
