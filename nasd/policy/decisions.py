"""What is to be done next, as a pure function of a snapshot. No I/O, no clock, no own memory.

`next_decision` gives at most one decision; the tick applies it and asks again. A decision only
rests on what is recorded, and every random choice on a stream named by (seed, generation,
purpose, index), so the order in which attempts happen to end changes nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from nasd.contract.config import Config, Stage
from nasd.contract.errors import NasdError
from nasd.policy.births import Screen, next_births
from nasd.policy.endings import all_failed, epidemic, worn_out
from nasd.policy.gains import credits_behind
from nasd.policy.ladder import (
    begins_at,
    cutoffs,
    seed_weights_stand,
    teacher_is_known,
    turn,
    under_way,
)
from nasd.policy.predictors import losses_of, metric_of, pairs_behind
from nasd.policy.scheduling import budget, budget_spent
from nasd.record.lifecycle import DecisionKind, Phase, State
from nasd.record.state import Breed, Candidate, Snapshot
from nasd.search.fidelity import RULES, promote
from nasd.search.fidelity.promotion import Budget, Promotion, Rung
from nasd.search.objectives import OBJECTIVES, known
from nasd.search.pareto import Point, crowding, hypervolume, ranks, survivors

# -- decisions -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class OpenGeneration:
    """late: who is selected from with it, though born in the generation before."""

    number: int
    parents: tuple[int, ...]
    late: tuple[int, ...] = ()


@dataclass(frozen=True)
class Cutoff:
    generation: int
    stage: str
    next_stage: str
    promotion: Promotion
    nth: int = 0  # of the cutoffs after that stage: an asynchronous rule makes several


@dataclass(frozen=True)
class StartSelecting:
    """late: who is still under way, where the next generation is not to wait for them."""

    generation: int
    late: tuple[int, ...] = ()


@dataclass(frozen=True)
class Repeat:
    """finalists: who goes on, at that stage, to be trained under further seeds."""

    generation: int
    finalists: tuple[int, ...]
    stage: str
    payload: dict[str, object]
    nth: int = 0  # of those of the generation: new means may bring new finalists


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


Decision = (
    OpenGeneration | Screen | Breed | Cutoff | StartSelecting | Repeat | Select | Complete | Halt
)


def next_decision(snapshot: Snapshot, config: Config, idle: bool = False) -> Decision | None:
    """The next step of the search, or None while attempts have to end first. idle: whether there
    are slots that nobody is left for (nasd.policy.scheduling); what is decided for it is the one
    thing that rests on when attempts end, and is recorded before anything follows from it."""
    if not snapshot.experiment.runs:
        return None
    decision = _search(snapshot, config, idle)
    # With nothing running, what is spent does not depend on the time.
    if decision is None and not snapshot.live_attempts and budget_spent(snapshot, config, now=0.0):
        return Halt(
            f"the budget of {budget(snapshot, config)} {snapshot.hours_unit} is spent: raise it"
            " with `nasd budget` or as experiment.budget_gpu_hours, and start nasd again"
        )
    return decision


def _search(snapshot: Snapshot, config: Config, idle: bool) -> Decision | None:
    baseline = snapshot.baseline
    if baseline.state is State.FAILED:
        return Halt(f"the baseline failed at {baseline.stage}: {baseline.reason}")
    for candidate in snapshot.candidates.values():
        if (reason := worn_out(snapshot, candidate, config)) is not None:
            return Halt(reason)
    if (reason := epidemic(snapshot, config)) is not None:
        return Halt(reason)
    generation = snapshot.generation
    if generation is None:
        return OpenGeneration(0, ()) if seed_weights_stand(snapshot, config) else None
    match generation.phase:
        case Phase.BREEDING:
            try:
                return next_births(snapshot, config, generation.number)
            except NasdError as error:  # there is nobody to be born: nor will there be next time
                return Halt(str(error))
        case Phase.CLIMBING:
            return _climb(snapshot, config, generation.number, idle)
        case Phase.SELECTING:
            counts = config.variation.adaptive or config.experiment.limits or _by_baseline(snapshot)
            if counts and not baseline.final:
                return None  # gains, limits and some objectives are counted from it
            born = snapshot.born_in(generation.number)
            if config.further and not all(
                one.final for one in (*born, *snapshot.repeated_controls(generation.number))
            ):
                return None  # finalists, under another seed
            again = _repeat(snapshot, config, generation.number)
            return _select(snapshot, config, generation.number) if again is None else again
        case Phase.COMPLETE:
            late = snapshot.late(generation.number)
            if not all(one.final or one.id in late for one in snapshot.born_in(generation.number)):
                return None  # cut ones that are trained on: what they come to changes nothing
            if not all(one.final for one in snapshot.controls):
                return None  # the next one goes on from it
            if generation.number < config.experiment.generations:
                if not teacher_is_known(snapshot, config):
                    return None
                survivors = snapshot.survivors(generation.number)
                return OpenGeneration(generation.number + 1, tuple(survivors), late)
            return Complete() if baseline.final else None


def _by_baseline(snapshot: Snapshot) -> bool:
    """Whether an objective's reference is counted from the baseline."""
    return any(OBJECTIVES[name].relative for name in snapshot.experiment.objectives)


# -- the generation ------------------------------------------------------------------------------


def points(snapshot: Snapshot, candidates: Sequence[int]) -> list[Point]:
    """Of scored candidates, by the objectives of the experiment, all to be maximised."""
    found = []
    for candidate in candidates:
        point = snapshot.point(candidate)
        assert point is not None, f"candidate {candidate} has no score"
        found.append(point)
    return found


def _climb(
    snapshot: Snapshot, config: Config, generation: int, idle: bool
) -> Cutoff | StartSelecting | Halt | None:
    born = snapshot.born_in(generation)
    joining = snapshot.joining(generation)
    if all(candidate.final for candidate in (*born, *joining)):
        if (reason := all_failed(snapshot, generation)) is not None:
            return Halt(reason)
        return StartSelecting(generation)
    if generation > 0:
        for stage, after in pairwise(config.ladder("candidates")):
            if (found := _promotion(snapshot, config, born, stage.name)) is not None:
                nth = len(_made(snapshot, generation, stage.name))
                return Cutoff(generation, stage.name, after.name, found, nth)
    if idle and all(one.final for one in joining) and _may_overlap(snapshot, config, generation):
        return StartSelecting(generation, tuple(one.id for one in born if not one.final))
    return None


def _may_overlap(snapshot: Snapshot, config: Config, generation: int) -> bool:
    """Whether the generation can be selected from, and the next one opened, while the last of it
    are trained: no cutoff waits for those, and there are as many scores as survivors. Not before
    generations that breed nobody: they train a whole front on."""
    if not config.population.overlap or generation >= config.experiment.generations:
        return False
    beside = (snapshot.baseline, *snapshot.controls)
    if config.finishes(generation + 1) or not all(one.final for one in beside):
        return False
    steps = [one.name for one in config.ladder("candidates")]
    last = max((steps.index(name) for name in cutoffs(config, generation)), default=-1)
    late = [one for one in snapshot.born_in(generation) if not one.final]
    apart = all(one.state is State.RUNNING and steps.index(one.stage) > last for one in late)
    return apart and len(_pool(snapshot, generation)) >= config.population.mu


def _promotion(
    snapshot: Snapshot, config: Config, born: Sequence[Candidate], stage: str
) -> Promotion | None:
    """What becomes of those that wait behind the stage; None while somebody is waited for."""
    ladder = config.ladder("candidates")
    steps = [one.name for one in ladder]
    position = steps.index(stage)
    waiting = [one.id for one in born if one.state is State.WAITING and one.stage == stage]
    keep, rule = ladder[position].keep, RULES[config.promotion.rule]
    if keep is None or not waiting:
        return None
    generation = born[0].generation
    assert generation is not None
    went_on = _went_on(snapshot, generation, stage)
    rungs = [
        Rung(
            name,
            reached=sum(steps.index(one.stage) >= place for one in born),
            under_way=len(under_way(config, born, name)),
            share=ladder[place].span[1],
        )
        for place, name in enumerate(steps[: position + 1])
    ]
    if rule.asynchronous:
        arrived = _arrived(snapshot, config, born, position)
        rungs[-1] = replace(rungs[-1], arrived=arrived, promoted=went_on)
    curves = {one: _curve(snapshot, ladder[: position + 1], one) for one in (*went_on, *waiting)}
    names, baseline = snapshot.experiment.objectives, snapshot.baseline
    beside = {one: known(names, snapshot.candidates[one], baseline) for one in curves}
    among = Budget(keep, beside, config.promotion.probability)
    losses = losses_of(snapshot, config, ladder[: position + 1], curves)
    metric = metric_of(snapshot, config, generation, losses, stage)
    if metric is None:
        return promote(rule, curves, rungs, among)
    judged = {
        one: (*curve[:-1], (curve[-1][0], losses[one][metric.name]))
        for one, curve in curves.items()
    }
    found = promote(rule, judged, [*rungs[:-1], replace(rungs[-1], stage=metric.name)], among)
    if found is None:
        return None
    return replace(
        found,
        rule=f"{found.rule}, {metric.words}",
        metric=metric.name,
        curves={one: curves[one] for one in found.curves},
    )


def _made(snapshot: Snapshot, generation: int, stage: str) -> list[Promotion]:
    """The cutoffs after the stage, in the order in which they were made."""
    return [
        one.promotion
        for one in snapshot.cutoffs
        if (one.generation, one.stage) == (generation, stage)
    ]


def _went_on(snapshot: Snapshot, generation: int, stage: str) -> tuple[int, ...]:
    """Who has been promoted from there, in the order of promotions."""
    return tuple(one for made in _made(snapshot, generation, stage) for one in made.kept)


def _arrived(
    snapshot: Snapshot, config: Config, born: Sequence[Candidate], position: int
) -> tuple[int, ...]:
    """Those that have finished the stage or failed in it, in the order in which they are started
    where nothing is in the way (see nasd.policy.scheduling), or in that of their promotions from
    the rung before, up to the first who has yet to: no clock is in that order."""
    ladder = config.ladder("candidates")
    steps = [one.name for one in ladder]
    stage, generation = steps[position], born[0].generation
    before = next((one.name for one in reversed(ladder[:position]) if one.cuts), None)
    if before is None:
        fresh = (replace(one, stage=begins_at(config, one)) for one in born)
        order = [one for _, one in sorted(turn(snapshot, config, one) for one in fresh)]
    else:
        assert generation is not None
        order = [*_went_on(snapshot, generation, before)]
    found = []
    for number in order:
        one = snapshot.candidates[number]
        if (number, stage) in snapshot.results or (one.final and one.stage == stage):
            found.append(number)
        elif not one.final:  # who has failed before it never comes
            break
    return tuple(found)


def _curve(
    snapshot: Snapshot, climbed: Sequence[Stage], candidate: int
) -> tuple[tuple[int, float], ...]:
    """Evaluations of the last of these stages; of a part of one, with those before it."""
    found: list[tuple[int, float]] = []
    before = 0
    for stage in climbed:
        if stage.whole == climbed[-1].whole:
            result = snapshot.results[candidate, stage.name]
            found += [(before + step, loss) for step, loss in result.curve]
            before += result.steps
    return tuple(found)


def _pool(snapshot: Snapshot, generation: int) -> list[int]:
    """Whom a generation is selected from: its parents, and those that were scored of its offspring
    and of who was late in the generation before."""
    return sorted(
        member.candidate
        for member in snapshot.members
        if member.generation == generation
        and snapshot.candidates[member.candidate].state is State.SCORED
    )


def _repeat(snapshot: Snapshot, config: Config, generation: int) -> Repeat | None:
    """The finalists: of the generation's offspring those that would be selected now, and have not
    been trained under further seeds yet. Parents have been, when they were offspring. With them
    the control, as a mean is held against a mean. None once the scores of all of these are such."""
    if not config.further:
        return None
    made = [
        one
        for one in snapshot.decisions
        if (one.generation, one.kind) == (generation, DecisionKind.REPEAT)
    ]
    had = {one for decision in made for one in decision.payload["finalists"]}
    pool = _pool(snapshot, generation)
    at, beyond = points(snapshot, pool), [snapshot.missed(candidate) for candidate in pool]
    chosen = {pool[index] for index in survivors(at, config.population.mu, beyond)}
    found = [one for one in chosen if snapshot.candidates[one].generation == generation]
    controls = snapshot.repeated_controls(generation)
    found += [one.id for one in controls if one.state is State.SCORED]
    found = sorted({*found} - had)
    if not found:
        return None
    payload = {
        "finalists": found,
        "seeds": config.select.seeds,
        "objectives": snapshot.experiment.objectives,
        "points": {str(candidate): at[index] for index, candidate in enumerate(pool)},
    }
    return Repeat(generation, tuple(found), config.further[0].name, payload, len(made))


def _select(snapshot: Snapshot, config: Config, generation: int) -> Select:
    """Plus-selection: the best mu of parents and scored offspring together (thesis 4.2.6)."""
    pool = _pool(snapshot, generation)
    names, above = snapshot.experiment.objectives, snapshot.reference
    assert above is not None, "a selection that goes by the baseline waits for it"
    at = points(snapshot, pool)
    beyond = [snapshot.missed(candidate) for candidate in pool]
    rank = ranks(at, beyond)
    distance = crowding(at, rank)
    adapts = config.variation.adaptive
    credits = credits_behind(snapshot, generation) if adapts else {}
    chosen = {pool[index] for index in survivors(at, config.population.mu, beyond)}
    late = [one.id for one in snapshot.born_in(generation) if not one.final]
    return Select(
        generation,
        {
            candidate: (candidate in chosen, rank[index], distance[index])
            for index, candidate in enumerate(pool)
        },
        {
            "objectives": names,
            "points": {str(candidate): at[index] for index, candidate in enumerate(pool)},
            "ranks": {str(candidate): rank[index] for index, candidate in enumerate(pool)},
            "survivors": sorted(chosen),
            "hypervolume": hypervolume(at, above),
            **({"missed": dict(zip(pool, beyond, strict=True))} if any(beyond) else {}),
            **({"late": late} if late else {}),
            **(
                {"predictors": pairs_behind(snapshot, config, generation)}
                if config.promotion.metric == "best"
                else {}
            ),
            **({"credits": {n: (c.tried, c.gained) for n, c in credits.items()}} if adapts else {}),
        },
    )
