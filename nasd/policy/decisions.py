"""What is to be done next, as a pure function of a snapshot. No I/O, no clock, no own memory.

`next_decision` gives at most one decision; the tick applies it and asks again. A decision only
rests on what is recorded, and every random choice on a stream named by (seed, generation,
purpose, index), so the order in which attempts happen to end changes nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

from nasd.contract.config import Config
from nasd.contract.errors import NasdError
from nasd.policy.endings import all_failed, epidemic, worn_out
from nasd.policy.ladder import seed_weights_stand, teacher_is_known
from nasd.policy.scheduling import budget, budget_spent
from nasd.record.lifecycle import Phase, State
from nasd.record.state import Candidate, Snapshot
from nasd.search.fidelity import RULES, promote
from nasd.search.fidelity.promotion import Budget, Promotion, Rung
from nasd.search.objectives import reference, unscored
from nasd.search.pareto import Point, crowding, hypervolume, ranks, survivors
from nasd.search.variation.breeding import (
    Bred,
    Parent,
    adopted,
    diversity,
    initial_population,
    offspring,
)

PROMOTION = "share"  # the rule of every cutoff


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


Decision = OpenGeneration | Breed | Cutoff | StartSelecting | Select | Complete | Halt


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


def _breed(snapshot: Snapshot, config: Config, generation: int) -> Breed:
    baseline = snapshot.baseline
    seed = snapshot.experiment.seed
    first_stage = config.ladder("candidates")[0].name
    if generation == 0:
        mutants = initial_population(
            baseline.genotype, config.search_space, config.variation, config.population.mu, seed
        )
        measure = diversity([one.genotype for one in mutants], snapshot.experiment.backbone)
        births = tuple(
            Bred(baseline.id, one.genotype, one.lineage, operators=one.operators) for one in mutants
        )
        return Breed(0, births, first_stage, {"diversity": measure})
    parents = [
        Parent(member.candidate, one.genotype, point, one.ancestry)
        for member in snapshot.members
        if member.generation == generation and member.role == "parent"
        for one in [snapshot.candidates[member.candidate]]
        for point in points(snapshot, [member.candidate])
    ]
    if not parents:  # nobody of the last generation was scored: begin again from the baseline
        point = unscored(snapshot.experiment.objectives, baseline, baseline)
        parents = [Parent(baseline.id, baseline.genotype, point, baseline.ancestry)]
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
    )
    return Breed(
        generation,
        tuple(bred),
        first_stage,
        {
            "objectives": snapshot.experiment.objectives,
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
            "objectives": names,
            "points": {str(candidate): at[index] for index, candidate in enumerate(pool)},
            "ranks": {str(candidate): rank[index] for index, candidate in enumerate(pool)},
            "survivors": sorted(chosen),
            "hypervolume": hypervolume(at, reference(names)),
        },
    )
