"""What is to be done next, as a pure function of a snapshot. No I/O, no clock, no own memory.

`next_decision` gives at most one decision; the tick applies it and asks again. A decision only
rests on what is recorded, and every random choice on a stream named by (seed, generation,
purpose, index), so the order in which attempts happen to end changes nothing.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from nasd.config import PREPARE, Config, Stage
from nasd.cost import Volumes, work
from nasd.errors import NasdError
from nasd.lifecycle import AttemptState, Event, Phase, State
from nasd.pareto import Point, crowding, hypervolume, ranks, survivors
from nasd.protocol import Heartbeat, Outcome
from nasd.snapshot import Attempt, Candidate, Snapshot
from nasd.variation import Bred, Parent, adopted, diversity, initial_population, offspring

ERROR_RETRIES = 1  # an error of unknown cause gets one more chance
MEMORY_RETRIES = 1  # as does one that ran out of memory, at half the micro-batch
SUSPICIOUS = 3  # attempts lost in a row on one GPU
INTERRUPTED = "interrupted"  # verdict on an attempt that the daemon's own end took with it
BACKOFF_SECONDS = (5.0, 30.0, 120.0, 600.0)  # before the next attempt after lost ones
WIDEN_SECONDS = 600.0  # that an attempt has behind it and before it, to be stopped for more slots
WIDER = 1.5  # times as many slots, at the least
CLOCK_SLACK_SECONDS = 10.0  # by which a clock may run apart from the time that passed
REFERENCE: Point = (0.0, 0.0)  # of the hypervolume: no quality, no size


# -- decisions -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class OpenGeneration:
    number: int
    parents: tuple[int, ...]


@dataclass(frozen=True)
class Breed:
    generation: int
    births: tuple[Bred, ...]
    first_stage: str
    payload: dict[str, object]
    injections: Mapping[int, int | None] = field(default_factory=dict)  # to its place among births


@dataclass(frozen=True)
class Cutoff:
    generation: int
    stage: str
    next_stage: str
    kept: tuple[int, ...]
    cut: Mapping[int, str]
    payload: dict[str, object]


@dataclass(frozen=True)
class StartSelecting:
    generation: int


@dataclass(frozen=True)
class Select:
    generation: int
    members: Mapping[int, tuple[bool, int, float]]
    payload: dict[str, object]


@dataclass(frozen=True)
class Complete:
    pass


@dataclass(frozen=True)
class Halt:
    reason: str


Decision = OpenGeneration | Breed | Cutoff | StartSelecting | Select | Complete | Halt


def next_decision(snapshot: Snapshot, config: Config) -> Decision | None:
    """The next step of the search, or None while attempts have to end first."""
    if snapshot.experiment.state != "running":
        return None
    decision = _search(snapshot, config)
    # With nothing running, what is spent does not depend on the time.
    if decision is None and not snapshot.live_attempts and budget_spent(snapshot, config, now=0.0):
        return Halt(
            f"the budget of {budget(snapshot, config)} GPU-hours is spent: raise it with"
            " `nasd budget` or as experiment.budget_gpu_hours, and start nasd again"
        )
    return decision


def _search(snapshot: Snapshot, config: Config) -> Decision | None:
    baseline = snapshot.baseline
    if baseline.state is State.FAILED:
        return Halt(f"the baseline failed at {baseline.stage}: {baseline.reason}")
    for candidate in snapshot.candidates.values():
        if (reason := _worn_out(snapshot, candidate, config)) is not None:
            return Halt(reason)
    generation = snapshot.generation
    if generation is None:
        return OpenGeneration(0, ()) if _seed_weights_stand(snapshot, config) else None
    match generation.phase:
        case Phase.BREEDING:
            try:
                return _adopt(snapshot, _breed(snapshot, config, generation.number))
            except NasdError as error:  # the search space is exhausted: so it is next time
                return Halt(str(error))
        case Phase.CLIMBING:
            return _climb(snapshot, config, generation.number)
        case Phase.SELECTING:
            return _select(snapshot, config, generation.number)
        case Phase.COMPLETE:
            if not all(one.final for one in snapshot.born_in(generation.number)):
                return None  # cut ones that are trained on: what they come to changes nothing
            if generation.number < config.experiment.generations:
                survivors = snapshot.survivors(generation.number)
                return OpenGeneration(generation.number + 1, tuple(survivors))
            return Complete() if baseline.final else None


# -- the ladder ----------------------------------------------------------------------------------


def ladder(snapshot: Snapshot, config: Config, candidate: Candidate) -> tuple[str, ...]:
    """Names of the stages that this candidate climbs, in order."""
    if not candidate.is_baseline:
        return tuple(stage.name for stage in config.ladder("candidates"))
    prepared = snapshot.experiment.prepared
    stages = config.ladder("baseline")
    if prepared is not None and prepared["has_mlm_head"]:
        stages = tuple(stage for stage in stages if stage.train != "head")
    return (PREPARE, *(stage.name for stage in stages))


def stage_named(config: Config, name: str) -> Stage | None:
    """The stage's settings; None for prepare, which has none."""
    return next((stage for stage in config.stages if stage.name == name), None)


def slots_needed(config: Config, name: str, fit: int) -> int:
    """How many slots the stage leases, of `fit` that can be used: fewer than it asks for where
    there are no more. Steps and batches stay what they are; only the ranks share them otherwise."""
    stage = stage_named(config, name)
    return 1 if stage is None else min(stage.slots, max(1, fit))


def after(
    snapshot: Snapshot, config: Config, candidate: Candidate, has_mlm_head: bool | None = None
) -> tuple[Event, str | None]:
    """Where a candidate goes that has finished its stage: the event, and the stage to go on to.

    Generation 0 climbs without cutoffs: its individuals need scores before they can be parents.
    has_mlm_head: what prepare has just found, before it is recorded.
    """
    steps = ladder(snapshot, config, candidate)
    if has_mlm_head and candidate.stage == PREPARE:
        heads = {stage.name for stage in config.stages if stage.train == "head"}
        steps = tuple(step for step in steps if step not in heads)
    position = steps.index(candidate.stage)
    if position == len(steps) - 1:
        return Event.SCORE, None
    if _is_cut_after(snapshot, config, candidate, candidate.stage):
        return Event.HOLD, None
    return Event.ADVANCE, steps[position + 1]


def _is_cut_after(snapshot: Snapshot, config: Config, candidate: Candidate, name: str) -> bool:
    stage = stage_named(config, name)
    if stage is None or not stage.cuts or not candidate.generation:
        return False
    # In a complete generation all cutoffs have been: who still climbs was cut, and is trained on.
    return any(
        one.number == candidate.generation and one.phase is not Phase.COMPLETE
        for one in snapshot.generations
    )


def way(snapshot: Snapshot, config: Config, candidate: Candidate) -> tuple[Stage, ...]:
    """The stages that a candidate has before it, from its own up to the next cutoff, or to its
    score: up to there it waits for nobody."""
    steps = ladder(snapshot, config, candidate)
    ahead = []
    for name in steps[steps.index(candidate.stage) :]:
        if (stage := stage_named(config, name)) is not None:
            ahead.append(stage)
        if _is_cut_after(snapshot, config, candidate, name):
            break
    return tuple(ahead)


def work_ahead(snapshot: Snapshot, config: Config, candidate: Candidate) -> float:
    """Floating-point operations on its way, as nasd.cost expects them; 0 before prepare has counted
    the data."""
    if snapshot.experiment.prepared is None:
        return 0.0
    volumes = Volumes.of(snapshot.experiment.prepared, config.data.qa)
    backbone, mlm = snapshot.experiment.backbone, config.data.mlm
    return sum(
        work(stage, candidate.genotype, candidate.lineage, backbone, mlm, volumes).flop
        for stage in way(snapshot, config, candidate)
    )


def weights_of(
    snapshot: Snapshot, config: Config, candidate: Candidate
) -> tuple[tuple[int, str] | None, bool]:
    """The (candidate, stage) whose weights this candidate's stage starts from, and whether they
    are the parent's, to be inherited by lineage.

    Within a ladder a stage starts where the one before it ended. The first stage inherits from
    the parent's last MLM stage: the head that fine-tuning trained is no use to MLM.
    """
    steps = ladder(snapshot, config, candidate)
    position = steps.index(candidate.stage)
    if position > 0:
        return (candidate.id, steps[position - 1]), False
    if candidate.parent is None:
        return None, False
    parent = snapshot.candidates[candidate.parent]
    return (parent.id, _mlm_stages(snapshot, config, parent)[-1]), True


def _mlm_stages(snapshot: Snapshot, config: Config, candidate: Candidate) -> list[str]:
    """The stages that leave a model with an MLM head; prepare does."""
    names = []
    for name in ladder(snapshot, config, candidate):
        stage = stage_named(config, name)
        if stage is None or stage.task == "mlm":
            names.append(name)
    return names


def _seed_weights_stand(snapshot: Snapshot, config: Config) -> bool:
    """Whether the baseline has climbed past everything that generation 0 starts from."""
    if snapshot.experiment.prepared is None:
        return False
    steps = ladder(snapshot, config, snapshot.baseline)
    last = steps.index(_mlm_stages(snapshot, config, snapshot.baseline)[-1])
    return snapshot.baseline.final or steps.index(snapshot.baseline.stage) > last


# -- the generation ------------------------------------------------------------------------------


def points(snapshot: Snapshot, candidates: Sequence[int]) -> list[Point]:
    """(quality, size) of scored candidates, both to be maximised."""
    found = []
    for candidate in candidates:
        quality = snapshot.quality(candidate)
        assert quality is not None, f"candidate {candidate} has no score"
        found.append((quality, snapshot.size(candidate)))
    return found


def _breed(snapshot: Snapshot, config: Config, generation: int) -> Breed:
    baseline = snapshot.baseline
    seed = snapshot.experiment.seed
    first_stage = config.ladder("candidates")[0].name
    if generation == 0:
        mutants = initial_population(
            baseline.genotype, config.search_space, config.variation, config.population.mu, seed
        )
        measure = diversity([one.genotype for one in mutants], snapshot.experiment.backbone)
        births = tuple(Bred(baseline.id, one.genotype, one.lineage) for one in mutants)
        return Breed(0, births, first_stage, {"diversity": measure})
    parents = [
        Parent(member.candidate, snapshot.candidates[member.candidate].genotype, point)
        for member in snapshot.members
        if member.generation == generation and member.role == "parent"
        for point in points(snapshot, [member.candidate])
    ]
    if not parents:  # nobody of the last generation was scored: begin again from the baseline
        parents = [Parent(baseline.id, baseline.genotype, (0.0, 1.0))]
    bred = offspring(
        parents,
        baseline.genotype,
        config.search_space,
        config.variation,
        lambda_=config.population.lambda_,
        tournament_size=config.population.tournament,
        taken=set(snapshot.taken),
        seed=seed,
        generation=generation,
    )
    return Breed(
        generation,
        tuple(bred),
        first_stage,
        {
            "parents": [
                {"candidate": parent.candidate, "point": parent.point} for parent in parents
            ],
            "picked": [one.parent for one in bred],
        },
    )


def _adopt(snapshot: Snapshot, breed: Breed) -> Breed:
    """With what people have injected, behind all others: those are what they are without."""
    waiting = [one for one in snapshot.injections if one.generation is None]
    if not waiting:
        return breed
    parents = {snapshot.baseline.id: snapshot.baseline.genotype} | {
        member.candidate: snapshot.candidates[member.candidate].genotype
        for member in snapshot.members
        if member.generation == breed.generation and member.role == "parent"
    }
    births, places = list(breed.births), dict[int, int | None]()
    taken = snapshot.taken | {one.genotype.hash for one in births}
    for one in waiting:
        places[one.id] = None
        if one.hash not in taken:
            places[one.id] = len(births)
            births.append(adopted(one.genotype, parents, snapshot.experiment.backbone.width))
    told = [
        {
            "hash": one.hash,
            "parent": None if (place := places[one.id]) is None else births[place].parent,
        }
        for one in waiting
    ]
    payload = {**breed.payload, "injected": told}
    return replace(breed, births=tuple(births), payload=payload, injections=places)


def _climb(snapshot: Snapshot, config: Config, generation: int) -> Cutoff | StartSelecting | None:
    born = snapshot.born_in(generation)
    if all(candidate.final for candidate in born):
        return StartSelecting(generation)
    steps = [stage.name for stage in config.ladder("candidates")]
    for position, stage in enumerate(config.ladder("candidates")):
        if stage.keep is None or generation == 0:
            continue
        waiting = [c for c in born if c.state is State.WAITING and c.stage == stage.name]
        if waiting and not under_way(config, born, stage.name):
            reached = [c for c in born if steps.index(c.stage) >= position]
            return _cutoff(snapshot, generation, stage, steps[position + 1], waiting, len(reached))
    return None


def under_way(config: Config, born: Sequence[Candidate], stage: str) -> list[Candidate]:
    """Those of a generation that the cutoff after the stage waits for: they have yet to finish it,
    or a stage before it."""
    steps = [one.name for one in config.ladder("candidates")]
    position = steps.index(stage)
    return [
        c
        for c in born
        if not c.final and steps.index(c.stage) <= position
        if not (c.state is State.WAITING and c.stage == stage)
    ]


def _cutoff(
    snapshot: Snapshot,
    generation: int,
    stage: Stage,
    next_stage: str,
    waiting: Sequence[Candidate],
    reached: int,
) -> Cutoff:
    """The `keep` share with the lowest evaluation loss at the end of `stage` (thesis 4.2.4).

    The share is of all that reached the stage, so a candidate that diverged in it frees no place
    for more than were meant to go on. Ties go to the lower id.
    """
    assert stage.keep is not None
    curves = {c.id: snapshot.results[c.id, stage.name].curve for c in waiting}
    finals = {candidate: curve[-1][1] for candidate, curve in curves.items()}
    order = sorted(finals, key=lambda candidate: (finals[candidate], candidate))
    places = max(1, math.ceil(stage.keep * reached))
    kept, cut = order[:places], order[places:]
    threshold = finals[kept[-1]]
    return Cutoff(
        generation,
        stage.name,
        next_stage,
        tuple(sorted(kept)),
        {
            candidate: f"{stage.name} loss {finals[candidate]:.4f} is not among the lowest"
            f" {places} of {reached} (the last one kept has {threshold:.4f})"
            for candidate in sorted(cut)
        },
        {
            "rule": f"the lowest {places} of {reached} by the last evaluation loss",
            "keep": stage.keep,
            "places": places,
            "reached": reached,
            "losses": {str(candidate): finals[candidate] for candidate in order},
            "curves": {str(candidate): curves[candidate] for candidate in order},
            "kept": kept,
            "cut": cut,
        },
    )


def _select(snapshot: Snapshot, config: Config, generation: int) -> Select:
    """Plus-selection: the best mu of parents and scored offspring together (thesis 4.2.6)."""
    pool = sorted(
        member.candidate
        for member in snapshot.members
        if member.generation == generation
        and snapshot.candidates[member.candidate].state is State.SCORED
    )
    at = points(snapshot, pool)
    rank = ranks(at)
    distance = crowding(at, rank)
    chosen = {pool[index] for index in survivors(at, config.population.mu)}
    return Select(
        generation,
        {
            candidate: (candidate in chosen, rank[index], distance[index])
            for index, candidate in enumerate(pool)
        },
        {
            "points": {str(candidate): at[index] for index, candidate in enumerate(pool)},
            "ranks": {str(candidate): rank[index] for index, candidate in enumerate(pool)},
            "survivors": sorted(chosen),
            "hypervolume": hypervolume(at, REFERENCE),
        },
    )


# -- attempts ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Start:
    candidate: int
    stage: str
    slots: tuple[str, ...]


def starts(snapshot: Snapshot, config: Config, slots: Sequence[str], now: float) -> list[Start]:
    """Which attempts to start on the free ones of `slots`: what is furthest up the ladder first,
    of one stage the baseline, then who has most work ahead, so that the long ones do not end last
    and alone; of equals the older.

    Who does not fit lets smaller ones pass, and a candidate whose last attempts were lost waits for
    its back-off. Where nobody is left to wait, `slots.widen` gives away what would be idle.
    """
    if not _may_start(snapshot, config, now):
        return []
    fit = [slot for slot in slots if slot not in snapshot.quarantine]
    left = [slot for slot in fit if slot not in snapshot.leases]
    pending = [c for c in snapshot.candidates.values() if c.state is State.PENDING]
    pending.sort(
        key=lambda c: (
            -ladder(snapshot, config, c).index(c.stage),
            not c.is_baseline,
            -work_ahead(snapshot, config, c),
            c.id,
        )
    )
    found: dict[int, tuple[str, ...]] = {}
    for candidate in pending:
        need = slots_needed(config, candidate.stage, len(fit))
        if need <= len(left) and not backs_off(snapshot, candidate, now):
            found[candidate.id], left = tuple(left[:need]), left[need:]
    if config.slots.widen and len(found) == len(pending):
        held = {one.candidate: len(one.slots) for one in snapshot.live_attempts}
        held |= {number: len(its) for number, its in found.items()}
        for number, its in found.items():
            held[number] = _width(snapshot, config, number, held, len(left), len(fit))
            more = held[number] - len(its)
            found[number], left = (*its, *left[:more]), left[more:]
    return [Start(number, snapshot.candidates[number].stage, its) for number, its in found.items()]


def widening(
    snapshot: Snapshot,
    config: Config,
    slots: Sequence[str],
    now: float,
    beats: Mapping[int, Heartbeat],
) -> Attempt | None:
    """The attempt to stop at a checkpoint, because `starts` would then give it idle slots as well;
    of several the one with longest to go. beats: the newest of each live attempt.

    Nobody is stopped while a candidate is pending, nor before it has run for WIDEN_SECONDS, nor
    with less than that to go: a stop and a start cost a minute or so.
    """
    pending = any(c.state is State.PENDING for c in snapshot.candidates.values())
    if pending or not config.slots.widen or not _may_start(snapshot, config, now):
        return None
    fit = [slot for slot in slots if slot not in snapshot.quarantine]
    held = {one.candidate: len(one.slots) for one in snapshot.live_attempts}
    found = []
    for attempt in snapshot.live_attempts:
        to_go = _seconds_to_go(snapshot, attempt, beats.get(attempt.id))
        if to_go < WIDEN_SECONDS:
            continue
        own = len(attempt.slots)
        taken = snapshot.leases.keys() - set(attempt.slots)
        idle = sum(slot not in taken for slot in fit) - own
        if _width(snapshot, config, attempt.candidate, held, idle, len(fit)) > own:
            found.append((to_go, -attempt.id, attempt))
    return max(found)[-1] if found else None


def _seconds_to_go(snapshot: Snapshot, attempt: Attempt, beat: Heartbeat | None) -> float:
    """Until the attempt's last step, if it gets on as it did so far; 0 where that is not known, or
    not yet for sure."""
    earlier = attempts_at(snapshot, attempt.candidate, attempt.stage)
    first = max((one.reached for one in earlier if not one.live), default=0)
    if beat is None or beat.step <= first or beat.age < WIDEN_SECONDS:
        return 0.0
    return (beat.steps - beat.step) * beat.age / (beat.step - first)


def _width(
    snapshot: Snapshot, config: Config, number: int, held: Mapping[int, int], idle: int, fit: int
) -> int:
    """How many slots the attempt of candidate `number` may have, in place of those in `held`.

    Of the idle ones it gets those that nobody under way will ask for, as a stage further up may
    want more than are held now; up to an equal share of the `fit` that can be used, and to one an
    example of a batch. Less than half as many again are not worth a stop.
    held: by each candidate that runs or starts.
    """
    candidate, own = snapshot.candidates[number], held[number]
    stage = stage_named(config, candidate.stage)
    if stage is None or stage.train == "none":  # without checkpoints it would begin anew
        return own
    if candidate.is_baseline and snapshot.generation is not None:
        return own  # no cutoff waits for it: many may come to be pending while it runs
    if setbacks(snapshot, candidate):  # what it is lost of may be the many slots
        return own
    for other, its in held.items():
        if other != number:
            ahead = way(snapshot, config, snapshot.candidates[other])
            idle -= max(0, *(slots_needed(config, later.name, fit) - its for later in ahead))
    volumes = Volumes.of(snapshot.experiment.prepared or {}, config.data.qa)
    examples = volumes.mlm_train_sequences if stage.task == "mlm" else volumes.qa_train_features
    wide = min(own + idle, fit // len(held), stage.batch, examples)
    need = slots_needed(config, stage.name, fit)  # with fewer it would not start again
    return wide if wide >= max(need, WIDER * own) else own


def _may_start(snapshot: Snapshot, config: Config, now: float) -> bool:
    experiment = snapshot.experiment
    running = experiment.state == "running" and not experiment.hold and not experiment.pause
    return running and not budget_spent(snapshot, config, now)


def budget(snapshot: Snapshot, config: Config) -> float | None:
    """GPU-hours that the search may take; None without a limit."""
    return snapshot.experiment.budget(config.experiment.budget_gpu_hours)


def budget_spent(snapshot: Snapshot, config: Config, now: float) -> bool:
    hours = budget(snapshot, config)
    return hours is not None and snapshot.gpu_hours(now) >= hours


def attempts_at(snapshot: Snapshot, candidate: int, stage: str) -> list[Attempt]:
    return [a for a in snapshot.attempts if (a.candidate, a.stage) == (candidate, stage)]


def halvings(snapshot: Snapshot, config: Config, candidate: Candidate, slots: int) -> int:
    """How often the micro-batch is halved on so many slots: once for each time that memory ran out,
    and so that each rank has no more to hold than on as many slots as the stage asks for."""
    stage = stage_named(config, candidate.stage)
    fewer = 0
    if stage is not None and stage.micro_batch is None:
        fewer = math.ceil(math.log2(max(1.0, stage.slots / slots)))
    return fewer + _shortages(snapshot, candidate)


def _shortages(snapshot: Snapshot, candidate: Candidate) -> int:
    ended = attempts_at(snapshot, candidate.id, candidate.stage)
    return sum(
        attempt.verdict == "out_of_memory" and attempt.id > candidate.retried_after
        for attempt in ended
    )


def setbacks(snapshot: Snapshot, candidate: Candidate) -> list[Attempt]:
    """The attempts in a row, up to now, that ended without getting on with this stage.

    One that wrote a checkpoint beyond those before it got on: a row begins anew with it. One that
    the daemon's own end took with it says nothing of the machine, and breaks no row; nor does one
    that is live, or that ran out of memory. What a person has seen counts no more.
    """
    row: list[Attempt] = []
    furthest = 0
    seen = max(snapshot.experiment.resumed_after, candidate.retried_after)
    for attempt in attempts_at(snapshot, candidate.id, candidate.stage):
        got_on, furthest = attempt.reached > furthest, max(furthest, attempt.reached)
        if got_on:
            row = []
        if attempt.live or attempt.verdict in (INTERRUPTED, "out_of_memory"):
            continue
        if attempt.state not in (AttemptState.LOST, AttemptState.FAILED):
            row = []
        elif attempt.id > seen:
            row = [*row, attempt]
    return row


def backs_off(snapshot: Snapshot, candidate: Candidate, now: float) -> float:
    """Seconds for which it still waits, because its last attempts were lost; 0 if it does not."""
    row = setbacks(snapshot, candidate)
    if not row:
        return 0.0
    ended = row[-1].ended_at
    assert ended is not None
    if now < ended - CLOCK_SLACK_SECONDS:  # the clock was set back: nobody is made to wait for that
        return 0.0
    wait = BACKOFF_SECONDS[min(len(row), len(BACKOFF_SECONDS)) - 1]
    return max(0.0, ended + wait - now)


def suspects(snapshot: Snapshot, slots: Sequence[str], after: int = 0) -> dict[str, str]:
    """GPUs to leave alone, each with the reason: the last attempts on it were all lost, by more
    than one candidate, while others got on elsewhere. The driver does not show every fault.

    after: the attempt behind which they count.
    """
    fit = [s for s in slots if s.startswith("cuda") and s not in snapshot.quarantine]
    found = {}
    good = set()
    for slot in fit:
        ended = [
            a
            for a in snapshot.attempts
            if slot in a.slots and not a.live and a.verdict != INTERRUPTED
            if a.id > after
        ]
        last = ended[-SUSPICIOUS:]
        lost = [a for a in last if a.state is AttemptState.LOST and not a.reached]
        if len(lost) == SUSPICIOUS and len({a.candidate for a in lost}) > 1:
            found[slot] = (
                f"the last {SUSPICIOUS} attempts on it were lost (see"
                f" attempts/{lost[-1].id}/worker.log); starting nasd again tries it again"
            )
        elif last and not lost:
            good.add(slot)
    return found if good else {}


def _worn_out(snapshot: Snapshot, candidate: Candidate, config: Config) -> str | None:
    """Why the search cannot go on with this candidate until a person has looked, or None."""
    if candidate.state is not State.PENDING:
        return None
    row = setbacks(snapshot, candidate)
    errors = [attempt for attempt in row if attempt.verdict == "error"]
    where = f"candidate {candidate.id} at {candidate.stage}"
    if len(errors) > ERROR_RETRIES:
        return f"{where}: {errors[-1].message} (see attempts/{errors[-1].id}/worker.log)"
    if len(row) - len(errors) > config.daemon.infrastructure_retries:
        return (
            f"{where} lost {len(row) - len(errors)} attempts in a row without a fault of its own"
            f" ({row[-1].message}): see attempts/{row[-1].id}/worker.log, mend the machine, and"
            " start nasd again"
        )
    return None


@dataclass(frozen=True)
class Ending:
    """What an attempt's end means for it and for its candidate."""

    state: AttemptState
    event: Event
    next_stage: str | None
    message: str
    verdict: str


def ending(
    snapshot: Snapshot,
    config: Config,
    attempt: Attempt,
    outcome: Outcome | None,
    lost: str = "gone without an outcome",
    interrupted: bool = False,
) -> Ending:
    """Reads a worker's verdict; no outcome at all means that the attempt was lost.

    lost: how, in words. interrupted: it went with a daemon that was killed.
    """
    candidate = snapshot.candidates[attempt.candidate]
    if outcome is None:
        verdict = INTERRUPTED if interrupted else ""
        return Ending(AttemptState.LOST, Event.INTERRUPT, None, lost, verdict)
    told = outcome.verdict
    match told:
        case "succeeded":
            has_head = outcome.prepared.has_mlm_head if outcome.prepared else None
            event, next_stage = after(snapshot, config, candidate, has_head)
            return Ending(AttemptState.SUCCEEDED, event, next_stage, "", told)
        case "stopped":
            return Ending(AttemptState.PREEMPTED, Event.INTERRUPT, None, outcome.message, told)
        case "out_of_memory" if _shortages(snapshot, candidate) < MEMORY_RETRIES:
            message = f"out of memory, tried again at half the micro-batch: {outcome.message}"
            return Ending(AttemptState.FAILED, Event.INTERRUPT, None, message, told)
        case "error":
            errors = sum(one.verdict == "error" for one in setbacks(snapshot, candidate))
            # Without the baseline there is no search: a person has to look, see _worn_out.
            if errors < ERROR_RETRIES or candidate.is_baseline:
                return Ending(AttemptState.FAILED, Event.INTERRUPT, None, outcome.message, told)
    return Ending(AttemptState.FAILED, Event.FAIL, None, f"{told}: {outcome.message}", told)
