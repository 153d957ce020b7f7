"""Who is born into a generation, and who is tried untrained before, as a pure function of a
snapshot: mutants, by screening the best of many, what people have injected, and the control."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from nasd.contract.config import SCREEN, Config
from nasd.contract.errors import NasdError
from nasd.contract.genotype import unchanged
from nasd.contract.protocol import IGNORANCE, PARENT
from nasd.policy.gains import shares_of
from nasd.policy.ladder import begins_at
from nasd.record.lifecycle import DecisionKind, State
from nasd.record.state import Breed, Mutant, Snapshot
from nasd.search.objectives import known, unscored
from nasd.search.pareto import Point, ranks, survivors
from nasd.search.variation.breeding import (
    Bred,
    Parent,
    adopted,
    diversity,
    initial_population,
    offspring,
)
from nasd.search.variation.keeping import informed
from nasd.search.variation.operators import TRAIN_ON
from nasd.search.variation.screening import Tried, best, kept

MOST_TRIED = 48  # mutants in an attempt: a minute or two on a core, beside a start of ten seconds


@dataclass(frozen=True)
class Screen:
    """by: who tries them, each by the parent of whose mutants it has its part."""

    generation: int
    mutants: tuple[Bred, ...]
    by: tuple[int, ...]
    payload: dict[str, object]


def next_births(snapshot: Snapshot, config: Config, generation: int) -> Screen | Breed | None:
    """Who is born; where mutants are screened before, who is tried, and None until they are. In the
    generations that finish the search, the front itself, to be trained on.

    Raises NasdError where there is nobody to be born: the search space gives no more mutants, or
    none of them could be tried.
    """
    if config.finishes(generation) and (front := _front(snapshot, config, generation)):
        goes_on = [
            Bred(one.candidate, one.genotype, unchanged(one.genotype), operators=(TRAIN_ON,))
            for one in front
        ]
        return _breed(snapshot, config, generation, goes_on, _rests_on(snapshot, front))
    if config.population.screened == 1:
        births, payload = _draw(snapshot, config, generation)
        return _breed(snapshot, config, generation, births, payload)
    screen = snapshot.decided(generation, DecisionKind.SCREEN)
    if screen is None:
        mutants, payload = _draw(snapshot, config, generation)
        return Screen(generation, mutants, _tried_by(mutants), payload)
    screenings = snapshot.screenings_of(generation)
    if not all(one.final for one in screenings):
        return None
    told = _told(snapshot, generation)
    if not told:
        last = screenings[-1]
        raise NasdError(
            f"none of generation {generation}'s mutants could be tried ({last.reason}): mend what"
            f" is behind it and have them tried again with `nasd retry {last.id}` and so on"
        )
    places = config.population.lambda_ if generation else config.population.mu
    baseline = snapshot.baseline
    names, least = snapshot.experiment.objectives, config.population.least_kept
    tried = [
        _tried(one, told, known(names, one, baseline), snapshot.missed_at_birth(one))
        for one in snapshot.mutants
    ]
    parents = [
        Tried(said[PARENT], 1.0, known(names, snapshot.candidates[parent], baseline))
        for parent, said in told.items()
    ]
    ends = config.finishes(generation + 1)
    born = best(tried, places, parents, least=least, last=ends)
    chosen = [snapshot.mutants[index] for index in born]
    found = _breed(snapshot, config, generation, [_bred(one) for one in chosen], screen.payload)
    losses = {
        mutant.id: one.loss
        for mutant, one in zip(snapshot.mutants, tried, strict=True)
        if one.loss is not None
    }
    return replace(found, losses=losses, chosen=tuple(one.id for one in chosen))


def _tried_by(mutants: Sequence[Bred]) -> tuple[int, ...]:
    """Each parent's are one attempt's, which loads it once; where they are many, as of the baseline
    in the first generation, they are several attempts', side by side, whatever slots there are."""
    counts = Counter(one.parent for one in mutants)
    return tuple(
        parent
        for parent, count in sorted(counts.items())
        for _ in range(math.ceil(count / MOST_TRIED))
    )


def _front(snapshot: Snapshot, config: Config, generation: int) -> list[Parent]:
    """Of a generation's parents those that none of them dominates, as many as there are places."""
    parents = _parents(snapshot, generation)
    points, missed = [one.point for one in parents], [one.missed for one in parents]
    best = survivors(points, config.population.lambda_, missed)
    rank = ranks(points, missed)
    return [parents[index] for index in sorted(best) if rank[index] == 0]


def _bred(one: Mutant) -> Bred:
    return Bred(one.parent, one.genotype, one.lineage, one.second, one.operators)


def _told(snapshot: Snapshot, generation: int) -> Mapping[int, Mapping[str, float]]:
    """What the screenings of a generation say, by the parent whose mutants they tried."""
    told: dict[int, dict[str, float]] = {}
    for one in snapshot.screenings_of(generation):
        result = snapshot.results.get((one.id, SCREEN))
        if one.parent is not None and result is not None:
            told.setdefault(one.parent, {}).update(result.metrics)
    return told


def _tried(one: Mutant, told: Mapping[int, Mapping[str, float]], at: Point, missed: float) -> Tried:
    said = told.get(one.parent, {})
    loss = said.get(str(one.id))
    share = 0.0 if loss is None else kept(loss, said[PARENT], said[IGNORANCE])
    return Tried(loss, share, at, missed)


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
    parents = _parents(snapshot, generation)
    if not parents:  # nobody of the last generation was scored: begin again from the baseline
        point = unscored(snapshot.experiment.objectives, baseline, baseline)
        parents = [Parent(baseline.id, baseline.genotype, point, baseline.ancestry)]
    rates = shares_of(snapshot, config, generation)
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
    told = _rests_on(snapshot, parents)
    return tuple(bred), told if rates is None else {**told, "shares": rates}


def _rests_on(snapshot: Snapshot, parents: Sequence[Parent]) -> dict[str, object]:
    return {
        "objectives": snapshot.experiment.objectives,
        "parents": [{"candidate": parent.candidate, "point": parent.point} for parent in parents],
    }


def _parents(snapshot: Snapshot, generation: int) -> list[Parent]:
    return [
        _parent(snapshot, member.candidate)
        for member in snapshot.members
        if member.generation == generation and member.role == "parent"
    ]


def _parent(snapshot: Snapshot, candidate: int) -> Parent:
    one, point = snapshot.candidates[candidate], snapshot.point(candidate)
    assert point is not None, f"parent {candidate} has no score"
    return Parent(one.id, one.genotype, point, one.ancestry, snapshot.missed(one.id))


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
        if config.further:
            told["repeats_control"] = True
    first_stage = config.ladder("candidates")[0].name
    breed = Breed(generation, tuple(births), first_stage, told, control=control)
    return _placed(config, _adopt(snapshot, config, breed))


def _placed(config: Config, breed: Breed) -> Breed:
    """With the stage at which each begins that goes past the first."""

    def placed(one: Bred) -> Bred:
        begins = begins_at(config, one)
        return one if begins == breed.first_stage else replace(one, begins=begins)

    control = None if breed.control is None else placed(breed.control)
    return replace(breed, births=tuple(map(placed, breed.births)), control=control)


def _adopt(snapshot: Snapshot, config: Config, breed: Breed) -> Breed:
    """With what people have injected, behind all others: those are what they are without. It keeps
    of its parent's knowledge what children of the search do."""
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
            child = adopted(one.genotype, parents, snapshot.experiment.backbone.width)
            if config.variation.transfers == "informed":
                lineage = informed(child.genotype, child.lineage, [parents[child.parent]])
                child = replace(child, lineage=lineage)
            births.append(child)
    told = [
        {
            "hash": one.hash,
            "parent": None if (place := places[one.id]) is None else births[place].parent,
        }
        for one in waiting
    ]
    payload = {**breed.payload, "injected": told}
    return replace(breed, births=tuple(births), payload=payload, injections=places)
