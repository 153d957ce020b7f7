"""config.toml as typed, frozen values. Every user's mistake in it becomes one sentence.

Paths in the file are relative to the file. Nothing here touches the disk but `load`.
"""

import json
import math
import re
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, TypeAlias

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)
from pydantic_core import PydanticCustomError

from nasd.contract import genotype, mistakes, rungs, seeds, tasks, toml, words
from nasd.contract.errors import NasdError
from nasd.contract.genotype import Activation
from nasd.contract.limits import Limit
from nasd.contract.objectives import DEFAULT, FEWEST, LATENCY, MEASURED, MOST, OBJECTIVES
from nasd.contract.readable import shown
from nasd.contract.slots import Slot, on_gpus


def _plain(value: str) -> str:
    if (found := words.fault(value)) is not None:
        raise ValueError(f"the text {found}")
    return value


def _odd(value: int) -> int:
    if value % 2 == 0:
        raise ValueError(f"take an odd number, which has a middle, not {value}")
    return value


# Strict: "8" and true are no numbers, whatever Python thinks.
Whole = Annotated[int, Field(strict=True)]
Real = Annotated[float, Field(strict=True, allow_inf_nan=False)]
# Every number has a last one: beyond these nothing means anything, and what takes them on their way
# (SQLite, timers, arrays) would break there.
Seed = Annotated[Whole, Field(ge=-(2**63), le=2**63 - 1)]  # what SQLite can hold
Count = Annotated[Whole, Field(ge=1, le=10**6)]
Rows = Annotated[Whole, Field(ge=1, le=10**12)]  # of data
Places = Annotated[Whole, Field(ge=1, le=4096)]
Hours = Annotated[Real, Field(gt=0, le=10**9)]
Seconds = Annotated[Real, Field(gt=0, le=86_400)]  # a day
Minutes = Annotated[Real, Field(gt=0, le=525_600)]  # a year
Gigabytes = Annotated[Real, Field(ge=0, le=10**9)]
Size = Annotated[Whole, Field(ge=1, le=genotype.LARGEST)]
Blocks = Annotated[Whole, Field(ge=1, le=genotype.MOST_BLOCKS)]
Steps = Annotated[Whole, Field(ge=1, le=100)]
Layers = Annotated[Whole, Field(ge=2, le=genotype.MOST_LAYERS)]
Plain = Annotated[str, AfterValidator(_plain)]  # of one line, without what acts on a terminal
Share = Annotated[Real, Field(gt=0.0, le=1.0)]
Kernel = Annotated[Whole, Field(ge=3, le=genotype.LONGEST_KERNEL), AfterValidator(_odd)]
Probability = Annotated[Real, Field(ge=0.0, le=1.0)]


def _task(value: Any) -> Any:
    """Checked as one: a task's name, or that of one which reads data by a name of its own."""
    if not isinstance(value, str) or not tasks.known(value):
        known = ", ".join(map(repr, tasks.TASKS))
        raise ValueError(f"input should be {known}, or the name of a [data.NAME] with a kind")
    return value


Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
if TYPE_CHECKING:  # which there are is said in nasd.contract.tasks
    TaskName: TypeAlias = str
    Heritage: TypeAlias = str
    Ranking: TypeAlias = str
else:
    TaskName = Annotated[str, BeforeValidator(_task)]
    Ranking = Literal[tuple(one.name for one in tasks.ranking())]
    Heritage = Literal[(*(one.name for one in tasks.ranking()), tasks.SCORED)]


def _devices(value: Any) -> Any:
    """Checked as one, because a union's own errors name none of the keys in the file."""
    names = value if isinstance(value, list | tuple) else ()
    if value != "auto" and not (
        names and all(isinstance(name, str) and _is_slot(name) for name in names)
    ):
        raise ValueError(
            'take "auto", or a list such as ["cuda:0", "cuda:1"] or ["cpu:0"], not'
            f" {_as_json(value)}"
        )
    return value


def _is_slot(name: str) -> bool:
    try:
        return Slot.parse(name).device == name
    except ValueError:
        return False


LAUNCHERS = ("local", "slurm")  # as nasd.launch.launchers has them


def _launcher(value: Any) -> Any:
    if value not in LAUNCHERS:
        named = ", ".join(f'"{name}"' for name in LAUNCHERS)
        raise ValueError(f"there is no launcher {_as_json(value)}; take one of {named}")
    return value


def _objectives(value: Any) -> Any:
    """Checked as one, so that the sentence names the key and not a place in it."""
    names = value if isinstance(value, list | tuple) else ()
    if not FEWEST <= len(names) <= MOST or not all(isinstance(name, str) for name in names):
        raise ValueError(
            f"take a list of {FEWEST} to {MOST} of {', '.join(OBJECTIVES)}, not {_as_json(value)}"
        )
    for name in names:
        if name not in OBJECTIVES:
            raise ValueError(f"there is no {shown(name)}; take of {', '.join(OBJECTIVES)}")
        if names.count(name) > 1:
            raise ValueError(f"{name} stands there twice; give each once")
    return value


def _quality(value: Any) -> Any:
    known = (tasks.MEAN, tasks.WORST, *(one.name for one in tasks.scoring()))
    own = isinstance(value, str) and tasks.known(value) and tasks.of(value).scores
    if value not in known and not own:
        named = ", ".join(f'"{name}"' for name in known)
        raise ValueError(f"take one of {named}, not {_as_json(value)}")
    return value


def _limit(value: str) -> str:
    Limit.parse(value)
    return value


def _auto_or_bool(value: Any) -> Any:
    if value != "auto" and not isinstance(value, bool):
        raise ValueError(f'take "auto", true or false, not {_as_json(value)}')
    return value


def _kind(section: Any) -> str:
    """Of a table of [data] by a name of its own; "" of any other."""
    found = section.get("kind") if isinstance(section, dict) else getattr(section, "kind", "")
    return found if isinstance(found, str) else ""


def _as_json(value: Any) -> str:
    return shown(value, 60, lambda known: json.dumps(known, default=str))


class Section(BaseModel):
    # The texts below the keys are what docs/config.md says of them (nasd.cli.config_reference).
    # Deferred: most commands only ask a config that was checked before.
    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)


class Experiment(Section):
    name: Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_plain)]
    """What it is called in every view."""
    seed: Seed = 0
    """What all random choices follow from."""
    state: Plain = "state"
    """Folder for database, weights, curves and cache."""
    generations: Annotated[Whole, Field(ge=0, le=10**6)]
    """How many follow the initial population."""
    budget_gpu_hours: Hours | None = None
    """When so many are spent, running attempts stop at a checkpoint and the search halts."""
    objectives: Annotated[tuple[str, ...], BeforeValidator(_objectives)] = DEFAULT
    """What candidates are selected by, two to five of `quality` (of their answers), `compression`
    (the baseline's parameters over theirs), `flop` (operations of a forward pass), `bytes` and
    `bytes_int8` (of the exported weights), `latency_ms` (of a forward pass, told from a table of
    measured modules, and measured where a stage does that), and `peak_memory_mb` and `energy_j`,
    which a stage has to measure."""

    quality: Annotated[str, BeforeValidator(_quality)] = tasks.MEAN
    """In a search of several tasks, what `quality` is: the `mean` of theirs, the `worst` of them,
    or that of one, by its name."""

    limits: tuple[Annotated[str, AfterValidator(_limit)], ...] = ()
    """What a candidate has to hold to, as `"quality >= 60"` or `"quality >= 90 % of the baseline"`:
    whoever does is selected before all who do not."""


class SeedModel(Section):
    source: Annotated[str, Field(min_length=1), AfterValidator(_plain)]
    """A folder, `package:NAME/FOLDER` of an installed package, or a model of the hub."""
    dropout: Probability | None = None
    """Of every candidate; else as the seed's own config says."""
    vocabulary: Count | None = None
    """So many tokens of the seed's are kept, for all models of the search: special ones, single
    characters, and the most frequent in the training texts and questions; else all of them."""


class Slots(Section):
    launcher: Annotated[str, BeforeValidator(_launcher)] = "local"
    """What starts attempts and ends them: `local`, on this machine; `slurm`, as jobs of a cluster,
    see [slurm]."""
    devices: Annotated[Literal["auto"] | tuple[str, ...], BeforeValidator(_devices)] = "auto"
    """One slot each: GPUs as `"cuda:0"`, CPU shares as `"cpu:0"`; `"auto"` takes all GPUs, or the
    whole CPU where there is none, and of a cluster as many as `slurm.slots`."""
    share: Annotated[Whole, Field(ge=1, le=64)] = 1
    """So many attempts share each GPU, which then is as many slots, with an equal part of its
    memory each: for small models, whose steps wait for Python and not for the GPU."""
    threads: Places = 1
    """Threads of each slot's process."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """What is computed in; weights and optimizer stay float32, and so does all on a device that
    would only emulate it."""
    compile: Annotated[Literal["auto"] | bool, BeforeValidator(_auto_or_bool)] = "auto"
    """Compile the blocks; `"auto"`: where that is likely to pay for itself."""
    packing: Annotated[Literal["auto"] | bool, BeforeValidator(_auto_or_bool)] = "auto"
    """Compute nothing for questions' padding; `"auto"`: wherever the device is fast at that."""
    widen: Annotated[bool, Field(strict=True)] = False
    """Give slots that would idle to attempts that run, at a checkpoint of theirs."""

    @model_validator(mode="after")
    def _shares(self) -> Self:
        if self.share == 1:
            return self
        if self.launcher != "local":
            raise ValueError(
                f"share: {self.launcher} deals out GPUs itself (its gres can name parts of them):"
                " leave it out"
            )
        if self.devices != "auto" and not on_gpus(self.devices):
            raise ValueError(
                "share: only GPUs are shared; list more CPU shares as slots.devices instead"
            )
        if self.widen:
            raise ValueError(
                "share: slots.widen gives several GPUs to one attempt, and this one GPU to several:"
                " take one of them"
            )
        return self


class Job(Section):
    partition: Plain | None = None
    """What the job is submitted to; without it, the cluster's default. So it is with all of these
    that are not given."""
    account: Plain | None = None
    """Whom it is charged to."""
    qos: Plain | None = None
    """Its quality of service."""
    constraint: Plain | None = None
    """Features that its node has to have."""
    gres: Plain | None = None
    """What it needs of its node, `{slots}` standing for the number of its slots; without it
    `gpu:{slots}` where the slots are GPUs, and nothing where they are CPU shares."""
    time_minutes: Annotated[Whole, Field(ge=1, le=525_600)] | None = None
    """Its time limit. An attempt that comes to it writes a checkpoint, and goes on in another
    job."""
    memory_gb: Annotated[Real, Field(gt=0, le=10**6)] | None = None
    """Of the node's memory, for each slot."""
    nodes: Places | None = None
    """Over how many nodes an attempt's slots spread, as many on each: over fewer where they do not
    come out even. Without it, all are on one. `gres` and `{slots}` are each node's."""
    extra: tuple[Plain, ...] = ()
    """Further options of sbatch's, as `["--nice=100", "--exclusive"]`."""


class Slurm(Job):
    slots: Places = 1
    """How many slots its jobs may hold together, where `slots.devices` is `"auto"`: GPUs, or with
    `gres = ""` CPU shares of `slots.threads` cores."""
    signal_minutes: Annotated[Real, Field(gt=0, le=1000)] = 5.0
    """So long before its time limit an attempt is asked for its checkpoint; Slurm may do so up to a
    minute earlier."""
    poll_seconds: Seconds = 10.0
    """Between two looks at the queue, of one squeue for all jobs."""
    python: Plain = ""
    """The interpreter of nasd's environment on the nodes; without it, the daemon's own."""
    setup: tuple[Plain, ...] = ()
    """Lines of the job's script, ahead of the worker, as `["module load cuda"]`."""
    stages: dict[str, Job] = {}
    """What a job asks for at one stage, where that is another: `[slurm.stages.finetune]` with keys
    from `partition` to `extra`; also of `prepare` and `screen`."""

    def of(self, stage: str) -> Job:
        """What a job of the stage asks for."""
        told = self.stages.get(stage)
        own = {} if told is None else told.model_dump(exclude_none=True, exclude_defaults=True)
        shared = {name: getattr(self, name) for name in Job.model_fields}
        return Job(**(shared | own))


class SearchSpace(Section):
    blocks: tuple[Blocks, Blocks]
    """The fewest and the most encoder blocks."""
    heads: Annotated[tuple[Size, ...], Field(min_length=1)]
    """An attention's numbers of heads; divisors of the seed's width."""
    remaining_heads: tuple[Size, ...] = ()
    """How many of these may remain, besides all: an attention that loses heads becomes narrower, as
    the others stay as wide as they are (as AutoTinyBERT's). The operators `drop_heads` and
    `restore_heads` go from one to the next."""
    ffns: Annotated[Whole, Field(ge=1, le=genotype.MOST_FFNS)]
    """The most feed-forward networks of a block."""
    layers: Annotated[tuple[Layers, ...], Field(min_length=1)]
    """A network's numbers of linear layers."""
    sizes: Annotated[tuple[Size, ...], Field(min_length=1)]
    """The sizes between these layers."""
    activations: Annotated[tuple[Activation, ...], Field(min_length=1)] = ("relu", "gelu")
    """Between these layers; a `"geglu"` is gated, and has two of them."""
    ranks: tuple[Size, ...] = ()
    """What the word embeddings' rank may be, besides full; the operators `factorise` and
    `unfactorise` go from one to the next. Smaller than the seed's width."""

    convolutions: tuple[Kernel, ...] = ()
    """Tokens that depthwise convolutions of an attention's queries, keys and values may reach over,
    besides none (Primer's); odd numbers. The operators `convolve` and `unconvolve` go from one to
    the next."""
    branches: tuple[Kernel, ...] = ()
    """Likewise of a convolution beside an attention (AutoBERT-Zero's); `branch` and `unbranch`."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.blocks[0] > self.blocks[1]:
            raise ValueError("blocks must be [fewest, most], with fewest <= most")
        return self


class Mutation(Section):
    encoder: Probability
    """Probability that a block is added or removed."""
    encoder_add: Probability
    """The share of additions in that."""
    ffn: Probability
    """Probability, for each block, that a feed-forward network is added or altered."""
    ffn_add: Probability
    """The share of additions in that."""
    attention: Probability
    """Probability, for each block, that the attention is altered."""


OPERATORS = (
    "widen", "narrow", "deepen", "flatten", "switch", "add_ffn", "drop_ffn",
    "more_heads", "fewer_heads", "drop_heads", "restore_heads", "add_block", "drop_block", "cross",
    "factorise", "unfactorise",
    "convolve", "unconvolve", "branch", "unbranch",
)  # fmt: skip


class Variation(Section):
    transfers: Literal["fresh", "informed"] = "fresh"
    """How modules begin that are not their parent's: `fresh`, drawn anew; `informed`, so that what
    is added changes nothing at first, what is larger computes what stood there, and what is smaller
    is its most telling part, refitted."""
    refit: Annotated[bool, Field(strict=True)] = True
    """Whether what shrinks is fitted anew, on texts of the training part, to what its parent
    computed; of `informed` transfers."""
    inherit_from: Heritage = tasks.MLM.name
    """Where a child's weights come from: its parent's last MLM stage, or its fine-tuned weights,
    head and all."""
    operators: dict[str, Annotated[Real, Field(ge=0, le=1e6)]] | None = None
    """The share of each small step in the space by which children differ from their parents, as
    `{ narrow = 2, fewer_heads = 1 }`; without it they mutate as `initial` and `offspring` say."""
    steps: tuple[Steps, Steps] = (1, 2)
    """The fewest and the most of these small steps for a child."""
    adaptive: Annotated[bool, Field(strict=True)] = False
    """Let the shares of the operators follow what their children have gained."""
    initial: Mutation | None = None
    """Of the baseline, into the initial population."""
    offspring: Mutation | None = None
    """Of a parent, into a candidate of a later generation."""
    min_distance: Count = 1
    """In so many modules at least do two of the initial population differ, and each from the
    baseline."""

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.operators is None and (self.initial is None or self.offspring is None):
            missing = "initial" if self.initial is None else "offspring"
            raise ValueError(f"{missing} is missing: give it, or the shares of operators")
        for name in self.operators or {}:
            if name not in OPERATORS:
                raise ValueError(f"operators: there is no {name}; take of {', '.join(OPERATORS)}")
        if self.adaptive and self.operators is None:
            raise ValueError("adaptive: there are no shares to follow; give operators theirs")
        if self.operators is not None and not any(self.operators.values()):
            raise ValueError("operators: give at least one of them a share above 0")
        if self.steps[0] > self.steps[1]:
            raise ValueError("steps must be [fewest, most], with fewest <= most")
        return self


class Population(Section):
    mu: Count
    """How many survive a generation, and are in the initial population."""
    lambda_: Count = Field(alias="lambda")
    """How many offspring a generation has."""
    tournament: Count
    """How many are drawn for a tournament, whose winner is a parent."""
    screened: Annotated[Whole, Field(ge=1, le=1000)] = 1
    """How many mutants there are for each place in a generation; where several, they are tried
    untrained on windows that nobody trains on, and the best of each size are born."""
    control: Annotated[bool, Field(strict=True)] = False
    """Train the unmodified baseline on with each generation, as its candidates are trained; only
    who is better than it is called better than the baseline."""
    finishing: Annotated[Whole, Field(ge=0, le=10_000)] = 0
    """In so many of the last generations nobody new is bred: the front goes on being trained, as
    the control does."""


MATCHES = ("logits", "hidden", "relations")
OURS = ("baseline", "best")  # teachers that the search has itself


def _match(value: Any) -> Any:
    """Checked as one, so that the sentence names the key and not a place in it."""
    names = value if isinstance(value, list | tuple) else ()
    known = all(name in MATCHES for name in names)
    if not names or not known or len(set(names)) < len(names):
        raise ValueError(
            f"take one or more of {', '.join(MATCHES)}, each once, not {_as_json(value)}"
        )
    return value


class Teacher(Section):
    """A model whose outputs candidates learn from, besides the data (distillation)."""

    source: Annotated[str, Field(min_length=1), AfterValidator(_plain)] = "baseline"
    """`baseline`, fine-tuned; `best`, of a generation's parents the one that answers best, or the
    baseline where it is better; or another model of the task: a folder, `package:NAME/FOLDER`, or
    one of the hub. It has to know the data's labels; where they are of words, with the seed's
    vocabulary."""
    task: Ranking | None = None
    """`mlm`, where a model from outside is to teach in MLM stages: one of a family that can be a
    seed, with an MLM head and the seed's vocabulary, however large. Without it, such a model
    teaches the task that gives the score. Models of the search teach both."""
    share: Probability = 0.5
    """The share of the loss that is the teacher's; the rest is the data's own."""
    temperature: Annotated[Real, Field(gt=0, le=100)] = 2.0
    """Flattens both models' logits before they are compared."""
    match: Annotated[tuple[str, ...], BeforeValidator(_match)] = ("logits",)
    """What is compared: `logits`; `hidden`, the last hidden states, where the widths are one;
    `relations`, among the last attention's queries, keys and values. They share alike."""
    relation_heads: Count | None = None
    """Heads that `relations` are of, a divisor of both widths; else they are 16 wide, or less."""

    @property
    def outside(self) -> bool:
        """Whether it is no model of the search itself."""
        return self.source not in OURS

    def of(self, data: "Data") -> tasks.Task:
        """What a model from outside is a model of."""
        return tasks.scored(data) if self.task is None else tasks.of(self.task)

    def runs_along(self, task: str) -> bool:
        """Whether it is computed with each batch; else what it says of each example is computed
        once, and kept."""
        return self.match != ("logits",) or not tasks.of(task).steady


class Corpus(Section):
    """One text corpus: local text files, or a data set of the hub."""

    files: tuple[Plain, ...] = ()
    """UTF-8 text, a paragraph a line; or JSON lines, CSV or Parquet; gzipped or not."""
    hub: Plain | None = None
    """Or a data set of the hub."""
    config: str | None = None
    """The data set's configuration, where it has several."""
    revision: str | None = None
    """The data set's branch, tag or commit."""
    split: str = "train"
    """The data set's split."""
    column: str = "text"
    """The column with the text, of a data set, and of JSON lines, CSV and Parquet."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if bool(self.files) == bool(self.hub):
            raise ValueError("give either files or hub")
        return self


class MlmData(Section):
    corpora: Annotated[tuple[Corpus, ...], Field(min_length=1)]
    """What is read, one after the other, and then shuffled."""
    tokens: Annotated[Whole, Field(ge=8, le=10**6)]
    """In a sequence; longer texts are split."""
    mask_share: Annotated[Real, Field(gt=0.0, lt=1.0)] = 0.15
    """Of the tokens: 80 % of these are masked, 10 % replaced, 10 % left."""
    fixed_masks: Annotated[Literal["auto"] | bool, BeforeValidator(_auto_or_bool)] = "auto"
    """While only new modules train: draw the masks of a sequence once, so that what frozen layers
    make of it can be kept; `"auto"`: where all of it fits into the cache."""
    evaluation_sequences: Rows
    """Held out, for the loss that the cutoff goes by."""
    max_sequences: Rows | None = None
    """Train on no more than so many."""


class QaData(Section):
    files: tuple[Plain, ...] = ()
    """In SQuAD v1.1's JSON form, or with a question a row as on the hub, as JSON lines or Parquet;
    gzipped or not."""
    hub: Plain | None = None
    """Or a data set of the hub."""
    revision: str | None = None
    """The data set's branch, tag or commit."""
    tokens: Annotated[Whole, Field(ge=16, le=10**6)]
    """In a window of question and context."""
    stride: Count
    """Tokens that two windows of a long context share."""
    train_share: Annotated[Real, Field(gt=0.0, lt=1.0)] = 0.8
    """Of the questions; the others give the score."""
    split_by: Literal["article", "record"] = "article"
    """`article`: no article is on both sides; `record`: questions are split one by one."""
    skip_faulty: Annotated[bool, Field(strict=True)] = False
    """Leave out faulty questions, as those that SQuAD 2.0 has no answer to, instead of refusing the
    data."""
    no_answer: Annotated[bool, Field(strict=True)] = False
    """Take questions without an answer, as SQuAD 2.0 has them: models say so where none is sure
    enough, by a threshold that is found on a tenth of the training questions, and scores are those
    of 2.0."""
    max_answer_tokens: Count = 30
    """In the longest answer."""
    n_best: Annotated[Whole, Field(ge=1, le=10_000)] = 20
    """Starts and ends that are combined to answers."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if bool(self.files) == bool(self.hub):
            raise ValueError("give either files or hub")
        if self.stride >= self.tokens:
            raise ValueError("stride must be smaller than tokens")
        return self


class LabelledData(Section):
    """Texts with labels: local files, or a data set of the hub."""

    files: tuple[Plain, ...] = ()
    """CSV (or TSV), JSON lines or Parquet, gzipped or not."""
    test_files: tuple[Plain, ...] = ()
    """Likewise, of the test part; without them a part of `files` is held out."""
    hub: Plain | None = None
    """Or a data set of the hub."""
    config: str | None = None
    """The data set's configuration, where it has several."""
    revision: str | None = None
    """The data set's branch, tag or commit."""
    split: str = "train"
    """The data set's split to train on."""
    test_split: str | None = None
    """The data set's split that gives the score; without it a part of `split` is held out."""
    label: Plain | None = None
    """The column with the labels; else found by its name."""
    tokens: Annotated[Whole, Field(ge=8, le=10**6)] = 128
    """Of an example, at most; what is longer is cut off at its end."""
    train_share: Annotated[Real, Field(gt=0.0, lt=1.0)] = 0.8
    """Of the examples, where the test part is held out from them; no text is on both sides."""
    quality: str
    """Which of the metrics is the quality."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if bool(self.files) == bool(self.hub):
            raise ValueError("give either files or hub")
        if self.hub and self.test_files:
            raise ValueError("test_files stand beside files alone: name a test_split of the hub's")
        if self.files and self.test_split:
            raise ValueError("a test_split is of a data set of the hub: name test_files")
        return self


class TextData(LabelledData):
    text: Plain | None = None
    """The column with the text, or with the first of a pair; else found by its name."""
    pair: str | None = None
    """The column with the second text of a pair; `""`: there is none; else found by its name."""


class ClassifyData(TextData):
    quality: Literal["accuracy", "f1", "matthews"] = "accuracy"
    """Which of the metrics is the quality, in percent."""
    positive: Plain | None = None
    """The label that F1 is of (binary); without it F1 is the mean over all labels (macro)."""


class RegressData(TextData):
    quality: Literal["spearman", "pearson"] = "spearman"
    """Which of the metrics is the quality, in percent."""


class TagData(LabelledData):
    words: Plain | None = None
    """The column with the words of each text, a list; else found by its name."""
    quality: Literal["f1", "precision", "recall"] = "f1"
    """Which of the metrics, of whole entities, is the quality, in percent."""


class NamedClassifyData(ClassifyData):
    kind: Literal["classify"]
    named: str


class NamedRegressData(RegressData):
    kind: Literal["regress"]
    named: str


class NamedTagData(TagData):
    kind: Literal["tag"]
    named: str


def _has_kind(value: Any) -> Any:
    """A table of a name of its own says its kind; any other key is one that there is not."""
    if isinstance(value, Section) or value is None:
        return value
    if not isinstance(value, dict) or "kind" not in value:
        raise PydanticCustomError("extra_forbidden", "there is no such key")
    if value["kind"] not in tasks.NAMEABLE:
        kinds = ", ".join(f'"{one}"' for one in tasks.NAMEABLE)
        raise ValueError(f"kind: take one of {kinds}, not {_as_json(value['kind'])}")
    if re.fullmatch("[a-z][a-z0-9_]*", str(value["named"])) is None:
        raise ValueError("call it by lower-case letters, digits and _ alone, a letter first")
    return value


NamedData = Annotated[
    Annotated[NamedClassifyData | NamedRegressData | NamedTagData, Field(discriminator="kind")]
    | None,
    BeforeValidator(_has_kind),
]


class Data(Section):
    """Each kind of labels may be there several times: `[data.NAME]` with `kind = "classify"`,
    `"regress"` or `"tag"` and the keys of that section is what a stage of `task = "NAME"` reads."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, NamedData]

    @model_validator(mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        """Each table knows what it is called, for who finds a fault in it."""
        if not isinstance(value, dict):
            return value
        return {
            name: {**one, "named": name} if name not in cls.model_fields and _kind(one) else one
            for name, one in value.items()
        }

    mlm: MlmData | None = None
    """Texts for masked language modelling; needed where a stage of `task = "mlm"` stands."""
    qa: QaData | None = None
    """Questions with contexts and answers; like the sections below, needed where a stage of its
    task stands. Where there are several of these, models are trained for each task by itself, all
    from the same architecture."""
    classify: ClassifyData | None = None
    """Texts, or pairs of them, each with a label (`task = "classify"`). There may be several such
    data sets in a search, and likewise of the two sections below: `[data.NAME]` with
    `kind = "classify"` and the same keys is what stages of `task = "NAME"` read."""
    regress: RegressData | None = None
    """Texts, or pairs of them, each with a number (`task = "regress"`)."""
    tag: TagData | None = None
    """Texts as lists of words, each word with a label in BIO form (`task = "tag"`)."""

    @property
    def corpora(self) -> tuple[Corpus, ...]:
        """Of texts; none where no stage reads any."""
        return () if self.mlm is None else self.mlm.corpora


class Rung(Section):
    at: Annotated[Real, Field(gt=0.0, lt=1.0)]
    """The share of the stage's steps after which it stands."""
    keep: Share
    """The share of a generation, from the first on, that goes on from it."""


class Stage(Section):
    """A step of the ladder. `train` says which weights move; none of them means: only score."""

    name: Name
    """What it is called in every view, and in `candidates/<id>/`."""
    task: TaskName
    """Masked language modelling (`mlm`), question answering (`qa`), classification (`classify`),
    regression (`regress`), or token classification (`tag`); or the name of a table `[data.NAME]`
    with a kind."""
    train: tasks.Trains
    """Which weights move: of new modules, all, the MLM head's, or none (only score)."""
    who: Literal["candidates", "new", "baseline", "all"] = "candidates"
    """Who climbs it. `new`: the candidates in which some module is new (not kept from a parent as
    it was); all others go past it. Only of MLM stages ahead of those of the task, where
    `variation.inherit_from = "task"`: new modules learn between what a parent has fine-tuned, under
    the baseline's MLM head, and the parent's own head is put back behind it."""
    slots: Places
    """How many an attempt leases; fewer where there are no more."""
    epochs: Annotated[Real, Field(gt=0, le=10**6)] | None = None
    """Over the training data."""
    batch: Count
    """Examples in a step, over all slots."""
    micro_batch: Count | None = None
    """Of them at once on a slot; else found by trying on a GPU, and all of them on a CPU."""
    learning_rate: Annotated[Real, Field(gt=0, le=1000)] | None = None
    """Its highest, for AdamW."""
    warmup: Probability = 0.0
    """The share of the steps in which it rises; then it falls to 0."""
    weight_decay: Annotated[Real, Field(ge=0, le=1000)] = 0.0
    """AdamW's."""
    max_grad_norm: Annotated[Real, Field(gt=0, le=1e30)] = 1.0
    """Gradients are clipped to it."""
    evaluations: Count = 1
    """Points of the learning curve in an epoch."""
    measure: Annotated[bool, Field(strict=True)] = False
    """Measure the model as well, as [measure] says, with the device to itself: nothing else of the
    search runs meanwhile on a CPU, nor on that GPU. Only where nothing trains."""
    keep: Share | None = None
    """A cutoff behind the stage: the share of a generation, from the first on, that goes on. Only
    for MLM."""
    rungs: tuple[Rung, ...] = ()
    """Cutoffs within the stage, as `[{ at = 0.25, keep = 0.5 }]`: there candidates are evaluated,
    and pause at a checkpoint until it is decided who goes on."""

    @property
    def cuts(self) -> bool:
        return self.keep is not None

    @property
    def whole(self) -> str:
        """The stage that it is, or is a part of."""
        return self.name

    @property
    def span(self) -> tuple[float, float]:
        """From which share of the whole stage's steps to which it goes."""
        return 0.0, 1.0

    @property
    def share(self) -> float:
        """Of the whole stage's steps."""
        begin, until = self.span
        return until - begin

    @property
    def parts(self) -> "tuple[Stage, ...]":
        """One up to each rung, and one from the last of them on, which has the stage's name: each
        goes on where the one before it paused, so that together they are the stage."""
        return _parts(self) if self.rungs else (self,)

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.train == "none":
            if self.epochs is not None or self.learning_rate is not None:
                raise ValueError('epochs and learning_rate have no meaning where train = "none"')
        elif self.epochs is None or self.learning_rate is None:
            raise ValueError("epochs and learning_rate are missing")
        if self.measure and self.train != "none":
            raise ValueError('measure = true stands only on a stage with train = "none"')
        if self.rungs and self.train in ("none", "head"):
            raise ValueError(
                f'rungs stand only where candidates train, not on train = "{self.train}"'
            )
        for before, rung in pairwise(self.rungs):
            if rung.at <= before.at:
                raise ValueError(f"rungs must rise: {rung.at:g} does not lie behind {before.at:g}")
        task = tasks.of(self.task)
        if self.keep is not None and not (task.ranks and self.train != "none"):
            stages = _stages(tasks.ranking())
            raise ValueError(f"keep stands only on {stages} that trains: it reads its losses")
        allowed = self.train in task.trains
        stages = _stages(tasks.allowing(self.train))
        if self.train == "head" and not (allowed and self.who == "baseline"):
            raise ValueError(
                f'train = "head" stands only on {stages} with who = "baseline": it gives a seed'
                " without an MLM head its head"
            )
        if not allowed:
            raise ValueError(f'train = "{self.train}" stands only on {stages}')
        return self


class Part(Stage):
    """What lies between two rungs of a stage, or before the first, or behind the last; or a stage
    under a further seed. Never in a config: a stage with rungs is climbed as its parts."""

    name: str  # as nasd.contract.rungs makes it, or nasd.contract.seeds
    of: str
    begin: Probability
    until: Probability

    @property
    def whole(self) -> str:
        return self.of

    @property
    def span(self) -> tuple[float, float]:
        return self.begin, self.until

    @model_validator(mode="after")
    def _complete(self) -> Self:
        return self  # the stage was checked


@lru_cache(maxsize=256)
def _parts(stage: Stage) -> tuple[Stage, ...]:
    return tuple(Part.model_construct(**part) for part in rungs.parts(stage.model_dump()))


@lru_cache(maxsize=16)
def _further(stages: tuple[Stage, ...], count: int) -> tuple[Stage, ...]:
    written = [stage.model_dump() for stage in stages]
    return tuple(Part.model_construct(**one) for one in seeds.further(written, count))


def _stages(found: Sequence[tasks.Task]) -> str:
    return " or ".join(one.stage for one in found)


RULES = ("share", "halving", "hyperband", "asha", "curve")  # as nasd.search.fidelity has them
CURVE_POINTS = 2  # of a learning curve, that one is extrapolated from


class Promotion(Section):
    """Who goes on from a rung, and behind a stage with a cutoff."""

    rule: Literal["share", "halving", "hyperband", "asha", "curve"] = "share"
    """`share`, whoever has the lowest losses; `halving`, by non-dominated rank of loss and size,
    and in one rank spread over sizes; `hyperband`, the same, but each generation goes past one more
    of the first rungs than the one before, until one meets none, and it begins anew; `asha`,
    halving of those that have come so far, while the others wait for their turn or the end;
    `curve`, losses extrapolated to the end of the stage, and whoever is no smaller than another and
    surely worse is cut as well. Each keeps to `keep`."""
    probability: Annotated[Real, Field(gt=0.5, lt=1.0)] = 0.95
    """How sure `curve` has to be."""
    metric: Literal["loss", "untrained", "best"] = "loss"
    """What a rule takes for the loss: `loss`, the last one; `untrained`, that by which mutants are
    screened; `best`, of all that are known at the rung the one whose ranks agree most with quality
    among those scored so far in this search."""


class Select(Section):
    seeds: Annotated[Whole, Field(ge=1, le=100)] = 1
    """Under how many seeds whoever is to be selected is trained for its score: selection goes by
    the mean of the scores, and their standard error tells of the seeds as well. Weights, and what
    is measured, are those of the first."""


class Measure(Section):
    device: Literal["cpu", "cuda"] = "cpu"
    """What models are to be fast on: the processor, or a GPU."""
    engine: Literal["torch", "onnxruntime"] = "torch"
    """What runs them there."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """What is computed in."""
    threads: Places = 1
    """Of the processor."""
    batch: Count = 1
    """Examples in a forward pass."""
    tokens: Annotated[Whole, Field(ge=1, le=10**6)] = 128
    """In each of them."""


class Daemon(Section):
    tick_seconds: Seconds = 5.0
    """How often the daemon looks."""
    checkpoint_minutes: Minutes = 15.0
    """At most so much work is lost when a worker is killed."""
    log_steps: Rows = 50
    """Between two points of the training curves."""
    infrastructure_retries: Annotated[Whole, Field(ge=0, le=10**6)] = 5
    """In a row, before the search halts and asks for a person."""
    stop_grace_seconds: Seconds = 120.0
    """For checkpoints, when the daemon is told to stop."""
    start_minutes: Minutes = 10.0
    """From launch to a worker's first sign of life."""
    stall_minutes: Minutes = 10.0
    """Of silence, until a worker is ended and the attempt tried again."""
    disk_reserve_gb: Gigabytes = 10.0
    """With less free nothing starts, and what runs writes a checkpoint and waits."""
    activation_cache_gb: Gigabytes = 8.0
    """For activations of frozen layers, in `state/cache`; 0 keeps none."""
    backup_hours: Annotated[Real, Field(gt=0, le=8760)] = 6.0
    """Between two backups of the database."""


NOTICES = ("halt", "generation", "end", "hold")


def _notices(value: Any) -> Any:
    """Checked as one, so that the sentence names the key and not a place in it."""
    names = value if isinstance(value, list | tuple) else (value,)
    if not all(name in NOTICES for name in names) or len(set(names)) < len(names):
        raise ValueError(f"take of {', '.join(NOTICES)}, each once, not {_as_json(value)}")
    return value


def _webhook(value: str) -> str:
    if value and not value.startswith(("https://", "http://", "$")):
        raise ValueError("take an address that begins with https://, or $NAME of the environment")
    return value


class Notify(Section):
    """Whom the daemon tells what they would else have to look for."""

    command: tuple[Plain, ...] = ()
    """A program with its arguments, which finds the message as JSON on its standard input, and
    `NASD_TEXT` and `NASD_EVENT` in its environment."""
    webhook: Annotated[Plain, AfterValidator(_webhook)] = ""
    """An address that the message is posted to as JSON, its `text` a sentence; `"$NAME"` takes the
    address from the environment."""
    on: Annotated[tuple[str, ...], BeforeValidator(_notices)] = NOTICES
    """What is told: a `halt`, each `generation` that is selected, the `end`, a `hold` for a disk
    that is full."""


def _without_password(value: str) -> str:
    if "://" in value and "@" in value.partition("://")[2].partition("/")[0]:
        raise ValueError(
            "take the name and password out of the address, and put them into the environment, as"
            " MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
        )
    return value


class WandB(Section):
    """Weights & Biases gets what TensorBoard shows, a run for each candidate."""

    mode: Literal["offline", "online"] = "offline"
    """`offline` leaves runs in `sinks/wandb` of the state folder, for `wandb sync`; `online` calls
    that itself. The key is wandb's own affair: `wandb login`, or `WANDB_API_KEY`."""
    project: Plain = ""
    """Without it, the experiment's name."""
    entity: Plain = ""
    """Whose project it is; without it, the account's own."""
    every_minutes: Minutes = 10.0
    """How often a run is told again while it grows."""


class MLflow(Section):
    """MLflow gets what TensorBoard shows, a run for each candidate."""

    tracking: Annotated[Plain, AfterValidator(_without_password)] = ""
    """The address of a tracking server, or of a folder (`file:///...`); without it,
    `sinks/mlflow/runs` in the state folder."""
    experiment: Plain = ""
    """Without it, the experiment's name."""
    every_minutes: Minutes = 10.0
    """How often a run is told again while it grows."""


class Config(Section):
    experiment: Experiment
    """The search as a whole."""
    seed_model: SeedModel
    """The model whose encoder is searched."""
    slots: Slots = Field(default_factory=Slots)
    """What attempts run on."""
    slurm: Slurm = Field(default_factory=Slurm)
    """What jobs ask for, and how they are watched, where `slots.launcher` is `"slurm"`; each key of
    a job may be another one for a stage."""
    population: Population
    """How many are kept, bred, and compared."""
    variation: Variation
    """How candidates differ from what they come from."""
    search_space: SearchSpace
    """What new modules are drawn from; it must hold the seed's own."""
    promotion: Promotion = Field(default_factory=Promotion)
    """Who goes on from a rung, or from a cutoff behind a stage."""
    select: Select = Field(default_factory=Select)
    """How sure selection is of whom it selects."""
    teacher: Teacher | None = None
    """Whom candidates learn from as well; without it, from the data alone."""
    data: Data
    measure: Measure = Field(default_factory=Measure)
    """What models are measured at, and worked out for."""
    stages: Annotated[tuple[Stage, ...], Field(min_length=1)]
    """The ladder, one table a stage, climbed in this order."""
    daemon: Daemon = Field(default_factory=Daemon)
    """The daemon's rhythm and patience."""
    notify: Notify = Field(default_factory=Notify)
    """Whom it tells of a halt, a generation, the end."""
    wandb: WandB | None = None
    """Weights & Biases gets what TensorBoard shows; without this section, nothing."""
    mlflow: MLflow | None = None
    """MLflow gets what TensorBoard shows; without this section, nothing."""

    @property
    def parts(self) -> tuple[Stage, ...]:
        """The stages as they are climbed: of one with rungs, its parts; behind them, those that
        finalists climb under further seeds."""
        return *self._climbed, *self.further

    @property
    def _climbed(self) -> tuple[Stage, ...]:
        return tuple(part for stage in self.stages for part in stage.parts)

    @property
    def further(self) -> tuple[Stage, ...]:
        """The stages that finalists climb under further seeds, in order."""
        return _further(self.stages, self.select.seeds) if self.select.seeds > 1 else ()

    @model_validator(mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        """Tasks that go by the name of a table of [data], with their kind in their names."""
        sections = value.get("data") if isinstance(value, dict) else None
        if not isinstance(sections, dict):
            return value
        found = {name: kind for name, one in sections.items() if (kind := _kind(one))}
        if not found:
            return value

        def told(section: Any, key: str) -> Any:
            name = section.get(key) if isinstance(section, dict) else None
            if not isinstance(name, str) or name not in found:
                return section
            return {**section, key: tasks.named(found[name], name)}

        made = dict(value)
        if isinstance(stages := value.get("stages"), list | tuple):
            made["stages"] = [told(one, "task") for one in stages]
        if "experiment" in value:
            made["experiment"] = told(value["experiment"], "quality")
        return made

    def ladder(self, who: Literal["candidates", "baseline"]) -> tuple[Stage, ...]:
        """The parts of stages that candidates, or the baseline, climb, in order."""
        climbs = {who, "all", "new" if who == "candidates" else who}
        return tuple(stage for stage in self._climbed if stage.who in climbs)

    @property
    def entry(self) -> Stage:
        """The first stage that every candidate climbs: of its task are the losses of mutants that
        are tried untrained."""
        return next(stage for stage in self.ladder("candidates") if stage.who != "new")

    def goes_by(self, objective: str) -> bool:
        """Whether candidates are selected by it, or have to hold a limit of it."""
        experiment = self.experiment
        limited = {Limit.parse(one).objective for one in experiment.limits}
        return objective in experiment.objectives or objective in limited

    def taught(self, stage: Stage, baseline: bool) -> bool:
        """Whether the baseline, or a candidate, learns from a teacher in the stage, whoever that
        is. The baseline is not taught by models of the search; a candidate of its architecture is,
        but where only some candidates climb: their teachers may have climbed no such stage.
        A teacher from outside knows one task, and no other."""
        if self.teacher is None or not self.teacher.share or stage.train in ("none", "head"):
            return False
        if self.teacher.outside:
            return self.teacher.of(self.data) is tasks.of(stage.task)
        return not baseline and stage.who != "new"

    def taught_along(self, stage: Stage, baseline: bool) -> bool:
        """Whether a teacher is computed with each batch of it."""
        return (
            self.teacher is not None
            and self.taught(stage, baseline)
            and self.teacher.runs_along(stage.task)
        )

    @property
    def scoring(self) -> tuple[tasks.Task, ...]:
        """The tasks that give scores, in the order in which they stand in nasd.contract.tasks."""
        return tasks.scored_by(self.stages)

    def focused(self, task: str) -> "Config":
        """The config without the data and the stages of other tasks that give scores."""
        kept = (one for one in self.stages if one.task == task or not tasks.of(one.task).scores)
        data = tasks.focused(self.data, task)
        return self.model_copy(update={"data": data, "stages": tuple(kept)})

    def finishes(self, generation: int) -> bool:
        """Whether nobody new is bred into it."""
        return generation > self.experiment.generations - self.population.finishing

    @model_validator(mode="after")
    def _jobs(self) -> Self:
        known = [PREPARE, *(one.name for one in self.stages), SCREEN]
        for name in self.slurm.stages:
            if name not in known:
                raise ValueError(
                    f"slurm.stages.{name}: there is no such stage; take of {', '.join(known)}"
                )
        if self.slots.launcher != "slurm":
            return self
        least = self.slurm.signal_minutes + self.daemon.checkpoint_minutes
        for name in known:
            limit = self.slurm.of(name).time_minutes
            if limit is not None and limit <= least:
                own = name in self.slurm.stages and self.slurm.stages[name].time_minutes
                where = f"slurm.stages.{name}.time_minutes" if own else "slurm.time_minutes"
                raise ValueError(
                    f"{where}: {limit} minutes are over before a checkpoint need be written"
                    f" (daemon.checkpoint_minutes = {self.daemon.checkpoint_minutes:g}, and"
                    f" slurm.signal_minutes = {self.slurm.signal_minutes:g} of them are for the"
                    f" last one): take more than {least:g}"
                )
        return self

    @model_validator(mode="after")
    def _promotes(self) -> Self:
        rule = self.promotion.rule
        cuts = [one for one in self.ladder("candidates") if one.cuts]
        if rule != "share" and not cuts:
            raise ValueError(
                f'promotion.rule: "{rule}" has nothing to decide, as no stage has rungs or keep:'
                " give one of them some, or leave it out"
            )
        metric = self.promotion.metric
        if metric != "loss" and rule == "curve":
            raise ValueError(
                f'promotion.metric: "{metric}" is one number, and promotion.rule = "curve"'
                " extrapolates the curve of the stage itself: leave one of them out"
            )
        if metric == "untrained" and self.population.screened == 1:
            raise ValueError(
                'promotion.metric: "untrained" is the loss by which mutants are screened, and none'
                " are: raise population.screened, or leave it out"
            )
        for one in cuts if rule == "curve" else ():
            assert one.epochs is not None
            points = math.ceil(one.evaluations * one.epochs * one.span[1])  # the last at its end
            if points < CURVE_POINTS:
                raise ValueError(
                    f'promotion.rule: "curve" extrapolates learning curves of {CURVE_POINTS} points'
                    f" or more, and up to {one.name} there are {points}: raise"
                    f" stages.{one.whole}.evaluations"
                )
        return self

    @model_validator(mode="after")
    def _finishing(self) -> Self:
        count, most = self.population.finishing, self.experiment.generations
        if count > most:
            raise ValueError(
                f"population.finishing: {count} generations are more than the {most} that come"
                " after the first (experiment.generations)"
            )
        if count and self.variation.inherit_from != tasks.SCORED:
            raise ValueError(
                "population.finishing: whoever is trained on goes on from its fine-tuned weights;"
                f' set variation.inherit_from = "{tasks.SCORED}", or leave it out'
            )
        return self

    @model_validator(mode="after")
    def _ladder(self) -> Self:
        names = [stage.name for stage in self.stages]
        for name in names:
            screens = self.population.screened > 1 and name == SCREEN
            if names.count(name) > 1 or name == PREPARE or screens:
                raise ValueError(f"stages: the name {name!r} is taken")
        self._check_new()
        whos: tuple[Literal["candidates", "baseline"], ...] = ("candidates", "baseline")
        for who in whos:
            ladder = self.ladder(who)
            if not ladder or not (tasks.of(ladder[-1].task).scores and ladder[-1].train == "none"):
                named = tasks.one_of(tasks.scoring())
                raise ValueError(
                    f"stages: the ladder of the {who} must end with a stage of"
                    f' task = {named}, train = "none", which gives the score'
                )
            for name in MEASURED:
                if name != LATENCY and self.goes_by(name) and not ladder[-1].measure:
                    raise ValueError(
                        f"stages.{ladder[-1].name}.measure: {name} has to be measured: set it to"
                        " true, or leave that objective out"
                    )
            for task in self.scoring:
                own = [one for one in ladder if one.task == task.name]
                if not any(one.train == "all" for one in own):
                    raise ValueError(f"stages: nothing trains the {who} for {task.words}")
                if own[-1].train != "none":
                    raise ValueError(
                        f"stages.{own[-1].name}: nothing scores the {who} for {task.words} behind"
                        f' it: add a stage of task = "{task.name}", train = "none"'
                    )
        for one in self.stages:
            if tasks.section(self.data, section := tasks.of(one.task).data) is None:
                raise ValueError(
                    f"stages.{one.name}: {tasks.of(one.task).stage} reads data.{section}, which is"
                    " missing: give it, or take the stage out"
                )
        self._check_tasks()
        inherits = self.variation.inherit_from
        if inherits != tasks.SCORED:
            if not any(one.task == inherits and one.train != "head" for one in self.stages):
                kind = tasks.of(inherits).stage.partition(" ")[2]
                raise ValueError(f"stages: at least one {kind} must train the candidates")
            return self
        for one in self.stages:
            if tasks.of(one.task).ranks and one.train != "head" and one.who != "new":
                kind = tasks.of(one.task).stage.partition(" ")[2]
                raise ValueError(
                    f"stages.{one.name}: children that start from their parents' fine-tuned"
                    f' weights climb no {kind} but where they are new: set who = "new", take it'
                    f' out, or variation.inherit_from = "{one.task}"'
                )
        return self

    def _check_teacher(self) -> None:
        """Whether there is something that a teacher for MLM could teach."""
        if self.teacher is None or self.teacher.task is None:
            return
        if not self.teacher.outside:
            raise ValueError(
                f"teacher.task: {self.teacher.source} teaches in all stages: leave it out, or name"
                " a model from outside as teacher.source"
            )
        wanted = self.teacher.task
        if not any(one.task == wanted and one.train in ("new", "all") for one in self.stages):
            raise ValueError(
                f"teacher.task: candidates learn in {tasks.of(wanted).stage} alone from such a"
                " teacher, and there is none: add one, or leave it out"
            )

    def _check_new(self) -> None:
        """Whether stages that only some candidates climb stand where they can."""
        begun = False
        for one in self.stages:
            begun |= one.who != "baseline" and tasks.of(one.task).scores
            if one.who != "new":
                continue
            if self.variation.inherit_from != tasks.SCORED:
                reason = (
                    f"its children begin from what the others lack: set variation.inherit_from ="
                    f' "{tasks.SCORED}", or who = "candidates"'
                )
            elif not tasks.of(one.task).ranks:
                reason = f"it stands only on {_stages(tasks.ranking())}"
            elif one.cuts or one.rungs:
                reason = "not everybody can be compared there: leave keep and rungs out"
            elif len(self.scoring) > 1:
                reason = "it trains one encoder, and each task has its own: leave the stage out"
            elif begun:
                reason = "put the stage ahead of those of the task"
            else:
                continue
            raise ValueError(f'stages.{one.name}.who: "new": {reason}')

    def _check_tasks(self) -> None:
        """Whether the tasks that give scores fit together, and with what names one of them."""
        found = self.scoring
        for task in tasks.all_scored(self.data):
            if task not in found:
                raise ValueError(
                    f"data.{task.data}: no stage is of the task: add some of task ="
                    f' "{task.data}", or take the section out'
                )
        by = self.experiment.quality
        if by not in (tasks.MEAN, tasks.WORST) and tasks.of(by) not in found:
            raise ValueError(
                f'experiment.quality: no stage is of task = "{by}": take one of'
                f" {tasks.one_of(found)}, or leave it out"
            )
        self._check_teacher()
        outside = self.teacher is not None and self.teacher.outside and self.teacher.task is None
        if outside and len(found) > 1:
            raise ValueError(
                "teacher.source: a teacher from outside knows one task, and the search has"
                f' {len(found)}: take "baseline" or "best"'
            )
        if len(found) > 1:
            scores = [tasks.of(one.task).scores for one in self.stages]
            for one in self.stages[scores.index(True) :]:
                if not tasks.of(one.task).scores:
                    raise ValueError(
                        f"stages.{one.name}: all tasks build on it: put it before"
                        f" stages.{self.stages[scores.index(True)].name}"
                    )


PREPARE = "prepare"
SCREEN = "screen"  # a parent's mutants are tried untrained


def load(path: Path) -> Config:
    """Reads and checks a config file; raises NasdError naming the file and the key."""
    return parse(read(path), str(path))


def read(path: Path) -> dict[str, Any]:
    """A config file as it is written, not checked yet; raises NasdError naming the file."""
    try:
        text = path.read_text(encoding="utf-8-sig")  # editors put a mark before the first line
    except FileNotFoundError:
        raise NasdError(
            f"there is no config file {path}: write one with `nasd init`, or name one with --config"
            " or NASD_CONFIG"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise NasdError(f"{path} cannot be read: {error}") from error
    return toml.parse(text, str(path))


def parse(data: dict[str, Any], origin: str) -> Config:
    """Checks a parsed config; raises NasdError with the first problem, `origin` in front."""
    try:
        return Config.model_validate(data)
    except ValidationError as error:
        raise NasdError(f"{origin}: {mistakes.sentence(error, data, Config)}") from None


def check_against_seed(
    config: Config, width: int, positions: int, origin: str, rotary: bool = False
) -> None:
    """What can only be checked once the seed's shape is known; raises NasdError."""
    for heads in config.search_space.heads:
        if rotary and width % (2 * heads):
            raise NasdError(
                f"{origin}: search_space.heads: {heads} heads are not of an even width each, which"
                f" the seed's rotary positions ask for; take divisors of {width // 2}"
            )
        if width % heads:
            raise NasdError(
                f"{origin}: search_space.heads: {heads} heads do not divide the seed's width"
                f" {width}; take divisors of {width}"
            )
    for rank in config.search_space.ranks:
        if rank >= width:
            raise NasdError(
                f"{origin}: search_space.ranks: a rank of {rank} saves nothing at the seed's width"
                f" {width}; take smaller ones"
            )
    relations = None if config.teacher is None else config.teacher.relation_heads
    if relations is not None and width % relations:
        raise NasdError(
            f"{origin}: teacher.relation_heads: {relations} heads do not divide the seed's width"
            f" {width}; take a divisor of {width}"
        )
    if relations is not None:
        _check_relations(config.search_space, width, relations, origin)
    if config.goes_by(LATENCY) and config.measure.tokens > positions:
        raise NasdError(
            f"{origin}: measure.tokens: {config.measure.tokens} tokens are more than the seed's"
            f" {positions} positions"
        )
    for task in (tasks.MLM, *tasks.all_scored(config.data)):
        if tasks.section(config.data, task.data) is None:
            continue
        if (tokens := task.limit(config.data)) > positions:
            raise NasdError(
                f"{origin}: data.{task.data}.tokens: {tokens} tokens are more than the"
                f" seed's {positions} positions"
            )


def check_against_slots(config: Config, devices: int, origin: str) -> None:
    """Raises NasdError if a stage asks for more slots than there are devices: those of one attempt
    are of different ones."""
    for stage in config.stages:
        if stage.slots > devices:
            raise NasdError(
                f"{origin}: stages.{stage.name}.slots: {stage.slots} slots are asked for, but"
                f" slots.devices has {devices}"
            )
        if stage.train != "none" and stage.batch < stage.slots:
            raise NasdError(
                f"{origin}: stages.{stage.name}.batch: a batch of {stage.batch} cannot be dealt"
                f" out to {stage.slots} slots"
            )


def _check_relations(space: SearchSpace, width: int, relations: int, origin: str) -> None:
    """Raises NasdError where so many heads could remain that they cannot be divided so."""
    for heads in space.heads:
        for remaining in space.remaining_heads:
            inner = width // heads * remaining
            if remaining < heads and inner % relations:
                raise NasdError(
                    f"{origin}: teacher.relation_heads: {relations} heads do not divide {inner},"
                    f" the width of {remaining} of {heads} heads: leave it out, or take other"
                    " search_space.remaining_heads"
                )
