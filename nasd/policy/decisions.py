"""What is to be done next, as a pure function of a snapshot. No I/O, no clock, no own memory.

`next_decision` gives at most one decision; the tick applies it and asks again. A decision only
rests on what is recorded, and every random choice on a stream named by (seed, generation,
purpose, index), so the order in which attempts happen to end changes nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

from nasd.contract.config import SCREEN, Config
from nasd.contract.errors import NasdError
from nasd.contract.genotype import unchanged
from nasd.contract.protocol import IGNORANCE, PARENT
from nasd.policy.endings import all_failed, epidemic, worn_out
from nasd.policy.ladder import seed_weights_stand, teacher_is_known
from nasd.policy.scheduling import budget, budget_spent
from nasd.record.lifecycle import DecisionKind, Phase, State
from nasd.record.state import Candidate, Mutant, Recorded, Snapshot
from nasd.search.fidelity import RULES, promote
from nasd.search.fidelity.promotion import Budget, Promotion, Rung
from nasd.search.objectives import known, reference, unscored
from nasd.search.pareto import Point, crowding, hypervolume, ranks, survivors
from nasd.search.variation.breeding import (
    Bred,
    Parent,
    adopted,
    diversity,
    initial_population,
    offspring,
)
from nasd.search.variation.credit import Credit, credited, gain, shares
from nasd.search.variation.screening import Tried, best, kept

PROMOTION = "share"  # the rule of every cutoff


# -- decisions -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class OpenGeneration:
    number: int
    parents: tuple[int, ...]


@dataclass(frozen=True)
class Screen:
    generation: int
    mutants: tuple[Bred, ...]
    payload: dict[str, object]


@dataclass(frozen=True)
class Breed:
    generation: int
    births: tuple[Bred, ...]
    first_stage: str
    payload: dict[str, object]
    injections: Mapping[int, int | None] = field(default_factory=dict)  # to its place among births
    control: Bred | None = None
    losses: Mapping[int, float] = field(default_factory=dict)  # of the mutants that were screened
    chosen: tuple[int, ...] = ()  # of these mutants, who the first births are


@dataclass(frozen=True)
class Cutoff:
    generation: int
    stage: str
    next_stage: str
    promotion: Promotion


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


Decision = OpenGeneration | Screen | Breed | Cutoff | StartSelecting | Select | Complete | Halt


def next_decision(snapshot: Snapshot, config: Config) -> Decision | None:
    """The next step of the search, or None while attempts have to end first."""
    if not snapshot.experiment.runs:
        return None
    decision = _search(snapshot, config)
    # With nothing running, what is spent does not depend on the time.
    if decision is None and not snapshot.live_attempts and budget_spent(snapshot, config, now=0.0):
        return Halt(
            f"the budget of {budget(snapshot, config)} {snapshot.hours_unit} is spent: raise it"
            " with `nasd budget` or as experiment.budget_gpu_hours, and start nasd again"
        )
    return decision


def _search(snapshot: Snapshot, config: Config) -> Decision | None:
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
                return _next_births(snapshot, config, generation.number)
            except NasdError as error:  # the search space is exhausted: so it is next time
                return Halt(str(error))
        case Phase.CLIMBING:
            return _climb(snapshot, config, generation.number)
        case Phase.SELECTING:
            counts = config.variation.adaptive or config.experiment.limits
            if counts and not baseline.final:
                return None  # gains and limits are counted from it
            return _select(snapshot, config, generation.number)
        case Phase.COMPLETE:
            if not all(one.final for one in snapshot.born_in(generation.number)):
                return None  # cut ones that are trained on: what they come to changes nothing
            if not all(one.final for one in snapshot.controls):
                return None  # the next one goes on from it
            if generation.number < config.experiment.generations:
                if not teacher_is_known(snapshot, config):
                    return None
                survivors = snapshot.survivors(generation.number)
                return OpenGeneration(generation.number + 1, tuple(survivors))
            return Complete() if baseline.final else None


# -- the generation ------------------------------------------------------------------------------


def points(snapshot: Snapshot, candidates: Sequence[int]) -> list[Point]:
    """Of scored candidates, by the objectives of the experiment, all to be maximised."""
    found = []
    for candidate in candidates:
        point = snapshot.point(candidate)
        assert point is not None, f"candidate {candidate} has no score"
        found.append(point)
    return found


def _next_births(
    snapshot: Snapshot, config: Config, generation: int
) -> Screen | Breed | Halt | None:
    """Who is born; where mutants are screened before, who is tried, and None until they are."""
    if config.population.screened == 1:
        births, payload = _draw(snapshot, config, generation)
        return _breed(snapshot, config, generation, births, payload)
    screen = _decided(snapshot, generation, DecisionKind.SCREEN)
    if screen is None:
        mutants, payload = _draw(snapshot, config, generation)
        return Screen(generation, mutants, payload)
    screenings = snapshot.screenings_of(generation)
    if not all(one.final for one in screenings):
        return None
    told = _told(snapshot, generation)
    if not told:
        last = screenings[-1]
        return Halt(
            f"none of generation {generation}'s mutants could be tried ({last.reason}): mend what"
            f" is behind it and have them tried again with `nasd retry {last.id}` and so on"
        )
    places = config.population.lambda_ if generation else config.population.mu
    baseline = snapshot.baseline
    names = snapshot.experiment.objectives
    tried = [_tried(one, told, known(names, one, baseline)) for one in snapshot.mutants]
    chosen = [snapshot.mutants[index] for index in best(tried, places)]
    found = _breed(snapshot, config, generation, [_bred(one) for one in chosen], screen.payload)
    losses = {
        mutant.id: one.loss
        for mutant, one in zip(snapshot.mutants, tried, strict=True)
        if one.loss is not None
    }
    return replace(found, losses=losses, chosen=tuple(one.id for one in chosen))


def _bred(one: Mutant) -> Bred:
    return Bred(one.parent, one.genotype, one.lineage, one.second, one.operators)


def _told(snapshot: Snapshot, generation: int) -> dict[int, Mapping[str, float]]:
    """What the screenings of a generation say, by the parent whose mutants they tried."""
    return {
        one.parent: result.metrics
        for one in snapshot.screenings_of(generation)
        if one.parent is not None and (result := snapshot.results.get((one.id, SCREEN))) is not None
    }


def _tried(one: Mutant, told: Mapping[int, Mapping[str, float]], at: Point) -> Tried:
    said = told.get(one.parent, {})
    loss = said.get(str(one.id))
    share = 0.0 if loss is None else kept(loss, said[PARENT], said[IGNORANCE])
    return Tried(loss, share, at)


def _decided(snapshot: Snapshot, generation: int, kind: DecisionKind) -> Recorded | None:
    found = (one for one in snapshot.decisions if (one.generation, one.kind) == (generation, kind))
    return next(found, None)


def _draw(
    snapshot: Snapshot, config: Config, generation: int
) -> tuple[tuple[Bred, ...], dict[str, object]]:
    """Mutants for a generation, `population.screened` for each of its places, and what they rest
    on."""
    baseline = snapshot.baseline
    seed = snapshot.experiment.seed
    times = config.population.screened
    if generation == 0:
        mutants = initial_population(
            baseline.genotype,
            config.search_space,
            config.variation,
            config.population.mu,
            seed,
            times,
        )
        drawn = [
            Bred(baseline.id, one.genotype, one.lineage, operators=one.operators) for one in mutants
        ]
        return tuple(drawn), {}
    parents = [
        Parent(member.candidate, one.genotype, point, one.ancestry, snapshot.missed(one.id))
        for member in snapshot.members
        if member.generation == generation and member.role == "parent"
        for one in [snapshot.candidates[member.candidate]]
        for point in points(snapshot, [member.candidate])
    ]
    if not parents:  # nobody of the last generation was scored: begin again from the baseline
        point = unscored(snapshot.experiment.objectives, baseline, baseline)
        parents = [Parent(baseline.id, baseline.genotype, point, baseline.ancestry)]
    rates = _shares(snapshot, config, generation)
    bred = offspring(
        parents,
        baseline.genotype,
        config.search_space,
        config.variation,
        objectives=snapshot.experiment.objectives,
        lambda_=config.population.lambda_,
        tournament_size=config.population.tournament,
        taken=set(snapshot.taken),
        seed=seed,
        generation=generation,
        shares=rates,
        times=times,
    )
    told: dict[str, object] = {
        "objectives": snapshot.experiment.objectives,
        "parents": [{"candidate": parent.candidate, "point": parent.point} for parent in parents],
    }
    return tuple(bred), told if rates is None else {**told, "shares": rates}


def _breed(
    snapshot: Snapshot,
    config: Config,
    generation: int,
    births: Sequence[Bred],
    payload: Mapping[str, object],
) -> Breed:
    """With these births, the control's, and what people have injected."""
    told = dict(payload)
    if generation == 0:
        measure = diversity([one.genotype for one in births], snapshot.experiment.backbone)
        told["diversity"] = measure
    else:
        told["picked"] = [one.parent for one in births]
    control = None
    if config.population.control:
        trained = [one.id for one in snapshot.controls if one.state is State.SCORED]
        baseline = snapshot.baseline
        before = trained[-1] if trained else baseline.id
        control = Bred(before, baseline.genotype, unchanged(baseline.genotype))
    first_stage = config.ladder("candidates")[0].name
    breed = Breed(generation, tuple(births), first_stage, told, control=control)
    return _adopt(snapshot, breed)


def _shares(snapshot: Snapshot, config: Config, generation: int) -> dict[str, float] | None:
    """Of the operators, by what they have gained so far; None where they stay as they are."""
    if not config.variation.adaptive:
        return None
    assert config.variation.operators is not None
    return shares(config.variation.operators, _credits(snapshot, generation - 1))


def _credits(snapshot: Snapshot, generation: int) -> dict[str, Credit]:
    """As a generation's selection has left them."""
    selected = _decided(snapshot, generation, DecisionKind.SELECT)
    found = {} if selected is None else selected.payload.get("credits", {})
    return {name: Credit(*told) for name, told in found.items()}


def _credited(snapshot: Snapshot, generation: int) -> dict[str, Credit]:
    """The credits behind this generation."""
    names, baseline = snapshot.experiment.objectives, snapshot.baseline
    children = []
    for one in snapshot.born_in(generation):
        origins = [snapshot.candidates[parent] for parent in one.parents]
        before = [
            snapshot.point(parent.id) or unscored(names, parent, baseline) for parent in origins
        ]
        gained = gain(snapshot.point(one.id), before, reference(names))
        children.append((one.operators, gained))
    return credited(_credits(snapshot, generation - 1), children)


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


def _climb(
    snapshot: Snapshot, config: Config, generation: int
) -> Cutoff | StartSelecting | Halt | None:
    born = snapshot.born_in(generation)
    if all(candidate.final for candidate in born):
        if (reason := all_failed(snapshot, generation)) is not None:
            return Halt(reason)
        return StartSelecting(generation)
    if generation > 0:
        for stage, after in pairwise(config.ladder("candidates")):
            if (found := _promotion(snapshot, config, born, stage.name)) is not None:
                return Cutoff(generation, stage.name, after.name, found)
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


def _promotion(
    snapshot: Snapshot, config: Config, born: Sequence[Candidate], stage: str
) -> Promotion | None:
    """What becomes of those that wait behind the stage; None while somebody is waited for."""
    ladder = config.ladder("candidates")
    steps = [one.name for one in ladder]
    position = steps.index(stage)
    curves = {
        one.id: snapshot.results[one.id, stage].curve
        for one in born
        if one.state is State.WAITING and one.stage == stage
    }
    keep = ladder[position].keep
    if keep is None or not curves:
        return None
    rungs = [
        Rung(
            name,
            reached=sum(steps.index(one.stage) >= place for one in born),
            under_way=len(under_way(config, born, name)),
        )
        for place, name in enumerate(steps[: position + 1])
    ]
    return promote(RULES[PROMOTION], curves, rungs, Budget(keep))


def _select(snapshot: Snapshot, config: Config, generation: int) -> Select:
    """Plus-selection: the best mu of parents and scored offspring together (thesis 4.2.6)."""
    pool = sorted(
        member.candidate
        for member in snapshot.members
        if member.generation == generation
        and snapshot.candidates[member.candidate].state is State.SCORED
    )
    names = snapshot.experiment.objectives
    at = points(snapshot, pool)
    beyond = [snapshot.missed(candidate) for candidate in pool]
    rank = ranks(at, beyond)
    distance = crowding(at, rank)
    adapts = config.variation.adaptive
    credits = _credited(snapshot, generation) if adapts else {}
    chosen = {pool[index] for index in survivors(at, config.population.mu, beyond)}
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
            "hypervolume": hypervolume(at, reference(names)),
            **({"missed": dict(zip(pool, beyond, strict=True))} if any(beyond) else {}),
            **({"credits": {n: (c.tried, c.gained) for n, c in credits.items()}} if adapts else {}),
        },
    )
