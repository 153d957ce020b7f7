"""What the database says, as values: an experiment, its candidates, attempts, decisions.

Standard library alone, and no I/O: nasd.record.snapshot reads them, and whatever decides or shows
takes them as they are.

A snapshot holds the whole search, or what is in play: the baseline, and the newest generation's
parents and offspring. Decisions need no more, and so take no longer in a search of thousands.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

from nasd.contract import rungs, seeds, slots, tasks
from nasd.contract.genotype import Backbone, BlockLineage, Genotype, Lineage, text_of
from nasd.contract.limits import Limit
from nasd.contract.objectives import DEFAULT
from nasd.record.lifecycle import (
    FINAL,
    LIVE_ATTEMPT,
    AttemptState,
    AttemptVerdict,
    CandidateKind,
    DecisionKind,
    Event,
    ExperimentState,
    Phase,
    QuarantineKind,
    State,
)
from nasd.search import noise, objectives
from nasd.search.fidelity.promotion import Promotion
from nasd.search.objectives import COMPRESSION, OBJECTIVES, QUALITY
from nasd.search.pareto import Point

if TYPE_CHECKING:
    from nasd.search.variation.breeding import Bred

PAUSED = {"pause": "paused", "drain": "draining"}  # Experiment.pause, in words


@dataclass(frozen=True, slots=True)
class Experiment:
    name: str
    seed: int
    config: dict[str, Any]
    backbone: Backbone
    prepared: dict[str, Any] | None
    state: ExperimentState
    reason: str
    created_at: float
    completed_at: float | None
    resumed_after: int  # the newest attempt at the last resumption after a halt; 0 without one
    hold: str  # why nothing starts just now, "" if nothing is in the way
    pause: str  # "pause": nothing runs; "drain": nothing new starts; "": neither
    pause_note: str  # by whom, and why
    budget_set: str | None  # by request: GPU-hours or null, as JSON; None: it is the config's

    @property
    def runs(self) -> bool:
        return self.state is ExperimentState.RUNNING

    @property
    def stages(self) -> list[dict[str, Any]]:
        """As they are climbed: of one with rungs, its parts; and those of further seeds."""
        count = self.config.get("select", {}).get("seeds", 1)
        return [
            *rungs.climbed(self.config["stages"]),
            *seeds.further(self.config["stages"], count),
        ]

    @property
    def objectives(self) -> tuple[str, ...]:
        """The axes of its points, by name, in order."""
        return tuple(self.config["experiment"].get("objectives", DEFAULT))

    @property
    def limits(self) -> tuple[Limit, ...]:
        return tuple(Limit.parse(one) for one in self.config["experiment"].get("limits", ()))

    def budget(self, configured: float | None) -> float | None:
        """GPU-hours that the search may take, None without a limit; configured: as the config
        says, which holds until a request sets another, and again from its own next change on."""
        return configured if self.budget_set is None else json.loads(self.budget_set)


@dataclass(frozen=True, slots=True)
class Generation:
    number: int
    phase: Phase
    opened_at: float
    completed_at: float | None


@dataclass(frozen=True)
class Candidate:
    id: int
    generation: int | None  # None: the baseline
    parent: int | None
    genotype_json: str
    hash: str
    lineage_json: str
    parameters: int
    stage: str
    state: State
    reason: str
    retried_after: int = 0  # the newest attempt when a person had it tried again
    second: int | None = None  # of a crossover: the parent whom its lineage calls 1
    ancestry_json: str = "[]"
    operators: tuple[str, ...] = ()  # by which it was made, where they have names
    kind: CandidateKind = CandidateKind.CANDIDATE
    untrained: float | None = None  # the loss by which it was born, where mutants were screened
    figures_json: str = "{}"

    @property
    def figures(self) -> dict[str, float]:
        """What its genotype gives by itself, see nasd.search.objectives.figures."""
        found: dict[str, float] = decoded(self.figures_json)
        return found

    @property
    def parents(self) -> tuple[int, ...]:
        """None for the baseline, two for a child of a crossover."""
        return tuple(one for one in (self.parent, self.second) if one is not None)

    @cached_property
    def genotype(self) -> Genotype:
        return _genotype(self.genotype_json)

    @property
    def genotype_text(self) -> str:
        """In a line, as people see it."""
        return _genotype_text(self.genotype_json)

    @cached_property
    def lineage(self) -> Lineage:
        return _lineage(self.lineage_json)

    @cached_property
    def ancestry(self) -> tuple[str, ...]:
        """The line of descent of each of its blocks."""
        return tuple(json.loads(self.ancestry_json))

    @property
    def is_baseline(self) -> bool:
        return self.generation is None

    @property
    def final(self) -> bool:
        return self.state in FINAL

    @property
    def called(self) -> str:
        """Whoever is no candidate by its part, all others by their number."""
        match self.kind:
            case CandidateKind.CONTROL:
                return "control"
            case CandidateKind.SCREENING:
                return f"the screening of {self.parent}'s mutants"
        return "baseline" if self.is_baseline else f"candidate {self.id}"


@dataclass(frozen=True)
class Mutant:
    """One that is tried untrained, of a generation that is screened. loss: on held-out windows;
    None before it is tried, and where there was none. candidate: what it was born as, None for one
    that was screened out."""

    id: int
    generation: int
    parent: int
    second: int | None
    genotype_json: str
    lineage_json: str
    operators: tuple[str, ...]
    parameters: int
    loss: float | None
    candidate: int | None
    figures_json: str = "{}"

    @property
    def figures(self) -> dict[str, float]:
        found: dict[str, float] = decoded(self.figures_json)
        return found

    @cached_property
    def genotype(self) -> Genotype:
        return Genotype.from_json(json.loads(self.genotype_json))

    @cached_property
    def lineage(self) -> Lineage:
        return tuple(BlockLineage.from_json(block) for block in json.loads(self.lineage_json))


@dataclass(frozen=True, slots=True)
class Attempt:
    id: int
    candidate: int
    stage: str
    number: int
    state: AttemptState
    slots: tuple[str, ...]
    token: str
    process: dict[str, Any] | None
    verdict: AttemptVerdict
    message: str
    started_at: float
    ended_at: float | None
    reached: int  # step of its newest checkpoint when it ended

    @property
    def live(self) -> bool:
        return self.state in LIVE_ATTEMPT

    @property
    def worth(self) -> float:
        """How many whole slots it holds, or held: of a share of a GPU its part."""
        return slots.worth(self.slots)


@dataclass(frozen=True)
class Breed:
    """Who is born into a generation.

    first_stage: that they climb first. payload: what the decision rests on. injections: to their
    places among the births, None for one that is not born. control: is born behind the others, and
    is no member. losses: of the mutants that were screened; chosen: of these, who the first births
    are, in order.
    """

    generation: int
    births: tuple["Bred", ...]
    first_stage: str
    payload: Mapping[str, object]
    injections: Mapping[int, int | None] = field(default_factory=dict)
    control: "Bred | None" = None
    losses: Mapping[int, float] = field(default_factory=dict)
    chosen: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Ending:
    """What an attempt's end means for it and for its candidate. next_stage: where that goes on."""

    state: AttemptState
    event: Event
    next_stage: str | None = None
    message: str = ""
    verdict: AttemptVerdict = AttemptVerdict.NONE


class Because(StrEnum):
    """Why an attempt's launcher let it end, or ended it."""

    INTERRUPTED = "interrupted"  # somebody else was to have its slots: it goes on elsewhere
    LIMIT = "limit"  # its time was up: it goes on, where it got on at all
    CANCELLED = "cancelled"  # by a person: it is not for nasd to start it again
    LOST = "lost"  # what it ran on failed
    REFUSED = "refused"  # so it cannot be run: a person has to mend it first


@dataclass(frozen=True, slots=True)
class Word:
    """What a launcher says of an attempt's end. text: a sentence without its full stop."""

    because: Because
    text: str


# When attempts held some slots together: from, and until; infinite where they still do.
Holdings = Mapping[tuple[str, ...], Sequence[tuple[float, float]]]


@dataclass(frozen=True, slots=True)
class Selected:
    """A generation that was selected. best_quality: of parents and offspring, None if nobody of
    them was scored."""

    number: int
    opened_at: float
    completed_at: float
    hypervolume: float
    best_quality: float | None


@dataclass(frozen=True, slots=True)
class Scored:
    """As much of a scored candidate as objectives are worked out from."""

    id: int
    parameters: int
    metrics: Mapping[str, float]
    figures: Mapping[str, float]


@dataclass(frozen=True)
class StageResult:
    """metrics: as the worker measured them; curve: (step, evaluation loss). Both are read when they
    are asked for: of most results of a long search they never are."""

    candidate: int
    stage: str
    metrics_json: str
    curve_json: str
    steps: int
    seconds: float

    @cached_property
    def metrics(self) -> dict[str, float]:
        found: dict[str, float] = decoded(self.metrics_json)
        return found

    @cached_property
    def curve(self) -> list[tuple[int, float]]:
        return _curve(self.curve_json)

    @property
    def last_loss(self) -> float | None:
        """Of its curve; None without one."""
        # A list of pairs, [[50, 5.9], [100, 5.8]], of which a whole search has very many.
        last = self.curve_json.rfind(",")
        return None if last < 0 else float(self.curve_json[last + 1 : -2])


@dataclass(frozen=True, slots=True)
class Member:
    """A candidate's part in a generation. survives, rank, crowding: None until it is selected."""

    generation: int
    candidate: int
    role: str
    survives: bool | None
    rank: int | None
    crowding: float | None


@dataclass(frozen=True, slots=True)
class Quarantine:
    """A slot on which nothing new starts; of a GPU that attempts share all of it, by its own
    name."""

    slot: str
    kind: QuarantineKind
    reason: str
    since: float


@dataclass(frozen=True)
class Recorded:
    """A decision that was made, which never changes. payload: what it rests on, and why."""

    generation: int
    kind: DecisionKind
    stage: str
    payload_json: str

    @cached_property
    def payload(self) -> dict[str, Any]:
        found: dict[str, Any] = decoded(self.payload_json)
        return found

    @cached_property
    def promotion(self) -> Promotion:
        """Of a cutoff: what it came to."""
        assert self.kind is DecisionKind.CUTOFF
        return _promotion(self.payload_json)

    @property
    def objectives(self) -> tuple[str, ...]:
        """Of a selection: the axes of its points, by name. Earlier versions knew only two."""
        return tuple(self.payload.get("objectives", DEFAULT))

    @cached_property
    def points(self) -> dict[int, dict[str, float]]:
        """Of a selection: each candidate's values, in their units, by the objectives' names."""
        return {
            int(candidate): objectives.told(self.objectives, point)
            for candidate, point in self.payload["points"].items()
        }


@dataclass(frozen=True)
class Injection:
    """A genotype that a person made. generation: that it was bred with, None while it waits;
    candidate: None too if it was not born, because its genotype had been by then."""

    id: int
    genotype_json: str
    hash: str
    generation: int | None
    candidate: int | None

    @property
    def genotype(self) -> Genotype:
        return Genotype.from_json(json.loads(self.genotype_json))


@dataclass(frozen=True, slots=True)
class Granted:
    """A request that was accepted, and what was answered."""

    at: float
    action: str
    who: str
    why: str
    answer: str


@dataclass(frozen=True, slots=True)
class LoggedEvent:
    at: float
    candidate: int | None
    attempt: int | None
    event: str
    source: str | None
    target: str | None
    stage: str | None
    detail: str


@dataclass(frozen=True)
class Snapshot:
    """whole: everything is in it, not only what is in play and the two newest generations. taken:
    the genotype hashes that are not free any more; read while a generation breeds. injections: all,
    or those that wait. mutants: of the newest generation, while it breeds.
    ended_slot_seconds: of all attempts ever.
    """

    whole: bool
    experiment: Experiment
    generations: tuple[Generation, ...]
    candidates: dict[int, Candidate]
    attempts: tuple[Attempt, ...]
    leases: dict[str, int]
    results: dict[tuple[int, str], StageResult]
    decisions: tuple[Recorded, ...]
    members: tuple[Member, ...]
    quarantine: dict[str, Quarantine]
    injections: tuple[Injection, ...]
    taken: frozenset[str]
    ended_slot_seconds: float
    mutants: tuple[Mutant, ...] = ()

    @property
    def hours_unit(self) -> str:
        """Of the ledger: by the slots that the config lists, or that attempts have held."""
        listed = self.experiment.config["slots"]["devices"]
        held = (slot for attempt in self.attempts for slot in attempt.slots)
        return slots.unit(held if listed == "auto" else listed)

    @property
    def config_stages(self) -> list[dict[str, Any]]:
        """As they are written down."""
        found: list[dict[str, Any]] = self.experiment.config["stages"]
        return found

    @cached_property
    def attempts_at(self) -> dict[tuple[int, str], list[Attempt]]:
        """By candidate and stage, in the order in which they started."""
        found: dict[tuple[int, str], list[Attempt]] = {}
        for one in self.attempts:
            found.setdefault((one.candidate, one.stage), []).append(one)
        return found

    @cached_property
    def scoring(self) -> tasks.Scoring:
        """The tasks that give the score, and what of them is shown."""
        config = self.experiment.config
        by = config["experiment"].get("quality", tasks.MEAN)
        return tasks.Scoring.of(config.get("data", {}), by)

    @property
    def quality_words(self) -> str:
        return self.scoring.quality or QUALITY.words

    @property
    def generation(self) -> Generation | None:
        """The newest one."""
        return self.generations[-1] if self.generations else None

    @cached_property
    def baseline(self) -> Candidate:
        return next(one for one in self.candidates.values() if one.is_baseline)

    def left_alone(self, slot: str) -> Quarantine | None:
        """Why nothing starts on a slot: on its device; None where something may."""
        return self.quarantine.get(slots.Slot.parse(slot).device)

    @property
    def live_attempts(self) -> tuple[Attempt, ...]:
        return tuple(attempt for attempt in self.attempts if attempt.live)

    @property
    def cutoffs(self) -> tuple[Recorded, ...]:
        return tuple(one for one in self.decisions if one.kind is DecisionKind.CUTOFF)

    @cached_property
    def individuals(self) -> list[Candidate]:
        """The baseline, and whoever is or was of a population."""
        return [one for one in self.candidates.values() if one.kind is CandidateKind.CANDIDATE]

    @cached_property
    def controls(self) -> list[Candidate]:
        """The baseline trained on, one a generation, oldest first."""
        return [one for one in self.candidates.values() if one.kind is CandidateKind.CONTROL]

    def controls_of(self, generation: int) -> list[Candidate]:
        """One, or none."""
        return [one for one in self.controls if one.generation == generation]

    def repeated_controls(self, generation: int) -> list[Candidate]:
        """Those that were to be trained under further seeds when the generation was bred. By a
        version that did not say so none was, and nothing was kept for it."""
        bred = self.decided(generation, DecisionKind.BREED)
        said = bred is not None and bred.payload.get("repeats_control", False)
        return self.controls_of(generation) if said else []

    def born_in(self, generation: int) -> list[Candidate]:
        return [one for one in self.individuals if one.generation == generation]

    def screenings_of(self, generation: int) -> list[Candidate]:
        """A parent each, of whose mutants for the generation all or a part are tried untrained."""
        return [
            one
            for one in self.candidates.values()
            if one.kind is CandidateKind.SCREENING and one.generation == generation
        ]

    @cached_property
    def rival(self) -> Candidate:
        """Whom a candidate has to beat to be better than the baseline: of the baseline and its
        controls the best by quality, the oldest of equals."""
        return max((self.baseline, *self.controls), key=lambda one: self.quality(one.id) or -1.0)

    def decided(self, generation: int, kind: DecisionKind) -> Recorded | None:
        """What was decided about a generation once; None before."""
        found = (one for one in self.decisions if (one.generation, one.kind) == (generation, kind))
        return next(found, None)

    def late(self, generation: int) -> tuple[int, ...]:
        """Who was still under way when the generation was selected from, and is selected from with
        the next one."""
        return self._late.get(generation, ())

    def joining(self, generation: int) -> list[Candidate]:
        """Who was late in the generation before, and is selected from with this one."""
        return [self.candidates[one] for one in self.late(generation - 1)]

    @cached_property
    def _late(self) -> dict[int, tuple[int, ...]]:
        made = (one for one in self.decisions if one.kind is DecisionKind.SELECT)
        return {one.generation: tuple(one.payload.get("late", ())) for one in made}

    def stopped_in(self, generation: int) -> list[Candidate]:
        """Whom cutoffs have stopped, and who have not been trained on since."""
        stages = {
            number: made.stage
            for made in self.cutoffs
            if made.generation == generation
            for number in made.promotion.cut
        }
        return [
            one
            for one in self.born_in(generation)
            if one.state is State.CUT and one.stage == stages.get(one.id)
        ]

    def survivors(self, generation: int) -> list[int]:
        return [m.candidate for m in self.members if m.generation == generation and m.survives]

    def scores(self, candidate: int) -> dict[str, float] | None:
        """The task's metrics in percent, None before the candidate is scored. A screening, which
        gives losses, has none. While it is trained under another seed, those of the seeds so
        far."""
        one = self.candidates[candidate]
        if one.kind is CandidateKind.SCREENING:
            return None
        if one.state is State.SCORED:
            # It stays at the last stage of its ladder, which is the one that scores.
            return self.results[candidate, one.stage].metrics
        nth = seeds.nth_of(one.stage)
        if nth == 1 or one.final:
            return None
        return self.results[candidate, seeds.scoring_stage(self.config_stages, nth - 1)].metrics

    def task_scores(self, candidate: int, task: str) -> dict[str, float] | None:
        """The same of one task, which are all that there are where a search has no other."""
        scores = self.scores(candidate)
        if scores is None or len(self.scoring.tasks) < 2:
            return scores
        ladder = self.experiment.config["stages"]
        last = [one["name"] for one in ladder if (one["task"], one["train"]) == (task, "none")]
        found = [self.results.get((candidate, name)) for name in last]
        metrics = [one.metrics for one in found if one is not None][-1]
        # What the last stage says of these is of all tasks.
        own = {QUALITY.name: tasks.own_quality(task), noise.ERROR: tasks.own_error(task)}
        return {**metrics, **{name: scores[one] for name, one in own.items() if name in metrics}}

    def value(self, candidate: int, objective: str) -> float | None:
        """By one objective, in its unit; None where it takes a score that is not there yet."""
        scores = self.scores(candidate) or {}
        return OBJECTIVES[objective].value(self.candidates[candidate], scores, self.baseline)

    def quality(self, candidate: int) -> float | None:
        """None before the candidate is scored."""
        return self.value(candidate, QUALITY.name)

    def quality_error(self, candidate: int) -> float | None:
        """The standard error of its quality; None where none was recorded."""
        return noise.error_of(self.scores(candidate) or {})

    def seeds(self, candidate: int) -> int:
        """Under how many seeds it was trained for its score, which is their mean."""
        return int((self.scores(candidate) or {}).get(noise.SEEDS, 1))

    def unsure(self, candidate: int, pool: Iterable[int]) -> tuple[int, ...]:
        """Of scored candidates, those on whom this one's rank among them rests by noise alone."""
        names = self.experiment.objectives
        if QUALITY.name not in names:
            return ()
        at = names.index(QUALITY.name)
        known = {}
        for one in pool:
            point, error = self.point(one), self.quality_error(one)
            if point is not None and error is not None:
                known[one] = noise.Measured(point[at], error, (*point[:at], *point[at + 1 :]))
        return noise.unsure(candidate, known) if candidate in known else ()

    def size(self, candidate: int) -> float:
        """Its compression, which is known from its birth."""
        found = COMPRESSION.value(self.candidates[candidate], {}, self.baseline)
        assert found is not None
        return found

    def point(self, candidate: int) -> Point | None:
        """By all objectives of the experiment, to be maximised; None before it is scored."""
        scores = self.scores(candidate)
        if scores is None:
            return None
        names = self.experiment.objectives
        return objectives.point(names, self.candidates[candidate], scores, self.baseline)

    @cached_property
    def reference(self) -> Point | None:
        """Above it the hypervolume is taken; None before the baseline has what it takes."""
        scores = self.scores(self.baseline.id) or {}
        return objectives.reference(self.experiment.objectives, self.baseline, scores)

    def missed(self, candidate: int) -> float:
        """By how much a scored candidate breaks the experiment's limits, in all; 0 if it holds
        them."""
        return self.missed_by(self.candidates[candidate], self.scores(candidate) or {})

    def missed_by(self, model: objectives.Model, metrics: Mapping[str, float]) -> float:
        """The same of a model with these scores, which need not be in play."""
        return sum(
            one.missed(value, self.value(self.baseline.id, one.objective))
            for one in self.experiment.limits
            if (value := OBJECTIVES[one.objective].value(model, metrics, self.baseline)) is not None
        )

    def missed_at_birth(self, model: objectives.Model) -> float:
        """The same by what is known of anybody before it is trained."""

        def value(one: objectives.Model, limit: Limit) -> float | None:
            return OBJECTIVES[limit.objective].value(one, {}, self.baseline)

        return sum(
            limit.missed(found, value(self.baseline, limit))
            for limit in self.experiment.limits
            if (found := value(model, limit)) is not None
        )

    def gpu_hours(self, now: float) -> float:
        """The ledger: slots x hours held, summed over all attempts; live ones up to `now`. A share
        of a GPU counts as its part."""
        live = sum(
            one.worth * max(0.0, now - one.started_at)
            for one in self.live_attempts
            if one.state is AttemptState.RUNNING  # one that waits in a queue holds nothing yet
        )
        return (self.ended_slot_seconds + live) / 3600


@lru_cache(maxsize=2048)
def decoded(text: str) -> Any:
    """From one turn to the next most texts are the same. Nobody changes what a snapshot holds."""
    return json.loads(text)


@lru_cache(maxsize=2048)
def _genotype(text: str) -> Genotype:
    return Genotype.from_json(json.loads(text))


@lru_cache(maxsize=2048)
def _genotype_text(text: str) -> str:
    return text_of(json.loads(text))


@lru_cache(maxsize=2048)
def _lineage(text: str) -> Lineage:
    return tuple(BlockLineage.from_json(block) for block in json.loads(text))


@lru_cache(maxsize=64)
def _promotion(text: str) -> Promotion:
    return Promotion.from_json(json.loads(text))


@lru_cache(maxsize=2048)
def _curve(text: str) -> list[tuple[int, float]]:
    return [(step, loss) for step, loss in json.loads(text)]
