"""config.toml as typed, frozen values. Every user's mistake in it becomes one sentence.

Its sections stand in nasd.contract.sections; here is what holds between them. Paths in the file are
relative to the file. Nothing here touches the disk but `load`.
"""

import math
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from nasd.contract import mistakes, seed_head, tasks, toml
from nasd.contract.errors import NasdError
from nasd.contract.genotype import Backbone
from nasd.contract.limits import Limit
from nasd.contract.objectives import LATENCY, MEASURED
from nasd.contract.sections.data import (
    ClassifyData,
    Corpus,
    Data,
    LabelledData,
    MlmData,
    QaData,
    RegressData,
    TagData,
    TextData,
    kind_of,
)
from nasd.contract.sections.fields import Section
from nasd.contract.sections.machine import Daemon, Measure, MLflow, Notify, Slots, Slurm, WandB
from nasd.contract.sections.search import (
    CURVE_POINTS,
    OPERATORS,
    Experiment,
    Mutation,
    Population,
    Promotion,
    SearchSpace,
    SeedModel,
    Select,
    Teacher,
    Variation,
)
from nasd.contract.sections.stages import Part, Rung, Stage, further_of, stages_of

__all__ = [
    "OPERATORS",
    "PREPARE",
    "SCREEN",
    "ClassifyData",
    "Config",
    "Corpus",
    "Data",
    "LabelledData",
    "Measure",
    "MlmData",
    "Mutation",
    "Notify",
    "Part",
    "QaData",
    "RegressData",
    "Rung",
    "SearchSpace",
    "Section",
    "Slots",
    "Stage",
    "TagData",
    "Teacher",
    "TextData",
    "Variation",
    "check_against_seed",
    "check_against_slots",
    "load",
    "parse",
    "read",
]


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
        return further_of(self.stages, self.select.seeds) if self.select.seeds > 1 else ()

    @model_validator(mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        """Tasks that go by the name of a table of [data], with their kind in their names."""
        sections = value.get("data") if isinstance(value, dict) else None
        if not isinstance(sections, dict):
            return value
        found = {name: kind for name, one in sections.items() if (kind := kind_of(one))}
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

    @property
    def scores_seed(self) -> bool:
        """Whether the baseline is the seed as it is, under its own head: nothing trains it."""
        own = [one for one in self.stages if one.who in ("baseline", "all") and one.train != "none"]
        return not own and seed_head.kept_by(self.stages)

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
        if self.population.overlap and self.select.seeds > 1:
            raise ValueError(
                "population.overlap: finalists under several seeds (select.seeds) are those of a"
                " whole generation; set one of the two"
            )
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
                as_it_is = who == "baseline" and self.scores_seed
                if not any(one.train == "all" for one in own) and not as_it_is:
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
                reason = f"it stands only on {stages_of(tasks.ranking())}"
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


def check_against_seed(config: Config, backbone: Backbone, origin: str) -> None:
    """What can only be checked once the seed's shape is known; raises NasdError."""
    width, positions = backbone.width, backbone.positions
    for heads in config.search_space.heads:
        if backbone.rotary and width % (2 * heads):
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
    frequent = config.search_space.frequent_words
    words = config.seed_model.vocabulary or backbone.vocab_size
    if frequent >= words:
        raise NasdError(
            f"{origin}: search_space.frequent_words: the seed has {words:,} words, and"
            f" {frequent:,} of them are to keep embeddings in full beside a rank; take fewer"
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
