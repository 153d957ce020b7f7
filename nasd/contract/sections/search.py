"""What is searched, by what, and from what: the sections that a search keeps for good."""

from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, TypeAlias

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from nasd.contract import genotype, tasks
from nasd.contract.genotype import Activation
from nasd.contract.limits import Limit
from nasd.contract.objectives import DEFAULT, FEWEST, MOST, OBJECTIVES
from nasd.contract.readable import shown
from nasd.contract.sections.data import Data
from nasd.contract.sections.fields import (
    Blocks,
    Count,
    Hours,
    Kernel,
    Layers,
    Plain,
    Probability,
    Real,
    Section,
    Seed,
    Size,
    Steps,
    Whole,
    as_json,
    plain,
)

if TYPE_CHECKING:  # which there are is said in nasd.contract.tasks
    Heritage: TypeAlias = str
    Ranking: TypeAlias = str
else:
    Ranking = Literal[tuple(one.name for one in tasks.ranking())]
    Heritage = Literal[(*(one.name for one in tasks.ranking()), tasks.SCORED)]


def _objectives(value: Any) -> Any:
    """Checked as one, so that the sentence names the key and not a place in it."""
    names = value if isinstance(value, list | tuple) else ()
    if not FEWEST <= len(names) <= MOST or not all(isinstance(name, str) for name in names):
        raise ValueError(
            f"take a list of {FEWEST} to {MOST} of {', '.join(OBJECTIVES)}, not {as_json(value)}"
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
        raise ValueError(f"take one of {named}, not {as_json(value)}")
    return value


def _limit(value: str) -> str:
    Limit.parse(value)
    return value


class Experiment(Section):
    name: Annotated[str, Field(min_length=1, max_length=200), AfterValidator(plain)]
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
    source: Annotated[str, Field(min_length=1), AfterValidator(plain)]
    """A folder, `package:NAME/FOLDER` of an installed package, or a model of the hub."""
    dropout: Probability | None = None
    """Of every candidate; else as the seed's own config says."""
    vocabulary: Count | None = None
    """So many tokens of the seed's are kept, for all models of the search: special ones, single
    characters, and the most frequent in the training texts and questions; else all of them."""


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
    frequent_words: Annotated[Whole, Field(ge=0, le=genotype.LARGEST)] = 0
    """So many of the words that are most frequent in the training texts and questions keep
    embeddings of the full width where the others' are of a rank (adaptive inputs, Baevski and Auli
    2019): untrained, a model of the same size loses half as much (docs/measured.md)."""

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
    least_kept: Annotated[Real, Field(ge=0.0, le=1.0)] = 0.5
    """Which share of what its parent knows, in nats of loss from a model that knows nothing, a
    mutant keeps untrained; who keeps less is born only where nobody else is left. Less of it, and
    no limit of quality, for a front with its smallest ends."""
    control: Annotated[bool, Field(strict=True)] = False
    """Train the unmodified baseline on with each generation, as its candidates are trained; only
    who is better than it is called better than the baseline."""
    finishing: Annotated[Whole, Field(ge=0, le=10_000)] = 0
    """In so many of the last generations nobody new is bred: the front goes on being trained, as
    the control does."""
    overlap: Annotated[bool, Field(strict=True)] = False
    """Where slots would be idle while the last of a generation are trained, select from those that
    are scored, and breed the next; who is under way is selected from with that."""


MATCHES = ("logits", "hidden", "relations")
OURS = ("baseline", "best")  # teachers that the search has itself


def _match(value: Any) -> Any:
    """Checked as one, so that the sentence names the key and not a place in it."""
    names = value if isinstance(value, list | tuple) else ()
    known = all(name in MATCHES for name in names)
    if not names or not known or len(set(names)) < len(names):
        raise ValueError(
            f"take one or more of {', '.join(MATCHES)}, each once, not {as_json(value)}"
        )
    return value


class Teacher(Section):
    """A model whose outputs candidates learn from, besides the data (distillation)."""

    source: Annotated[str, Field(min_length=1), AfterValidator(plain)] = "baseline"
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
    """Under how many seeds whoever is to be selected is trained for its score, and the control with
    them: selection goes by the mean of the scores, and their standard error tells of the seeds as
    well. Weights, and what is measured, are those of the first."""
