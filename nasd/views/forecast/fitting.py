"""A search that a budget pays for: which population, ladder and data, with a word on each.

`choose` is pure: of the sizes in SIZES it takes the largest that leaves each candidate enough steps
of MLM, and then as many sequences as the budget pays. Without MLM there are two ways: many
generations of small steps, or, where children take many steps at once, one that is trained long.
A rung, where one is asked for, follows from how long a training takes (`rungs_for`). `fit` has its
choice simulated, and makes it again for less where that search takes more than the budget.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from nasd.contract import readable, tasks, toml
from nasd.contract import slots as slots_module
from nasd.contract.config import SCREEN, Config, Stage
from nasd.contract.errors import NasdError
from nasd.contract.genotype import Block, BlockLineage, Genotype, Lineage, unchanged
from nasd.contract.volumes import Volumes
from nasd.control.preflight import Seed
from nasd.estimate.cost import Timeline, Work, prepare_seconds, screening, work
from nasd.policy.births import MOST_TRIED
from nasd.policy.ladder import undivided
from nasd.search.fidelity.promotion import Budget
from nasd.views.forecast.premises import Subject, gather
from nasd.views.forecast.search import simulate

KEY = "experiment.budget_gpu_hours"
WORKING = (
    "trying out how fast a slot is, and working out what the budget pays for, which takes a minute"
    " or two ..."
)
# (mu, lambda, generations), the largest first.
SIZES = ((8, 12, 3), (8, 12, 2), (6, 8, 2), (4, 6, 2), (4, 4, 1), (2, 2, 1), (1, 1, 1))
# Without MLM a candidate is cheap, and what counts is how many small steps there are.
MANY_SIZES = ((24, 32, 40), (24, 32, 20), (16, 24, 16), (12, 16, 12), (8, 12, 8), (6, 8, 6))
# Where a child takes many steps at once there is nothing to go on to, and few are trained long.
ONE_GENERATION = tuple((count, count, 0) for count in (48, 32, 24, 16, 12, 8, 6, 4, 3, 2, 1))
MANY_STEPS = 12
FINETUNE = (1.0, 0.5, 0.25, 0.1)  # of the ladder's epochs of questions
FEW = 2  # of these shares: where there is nothing else to train, the others come last
ENOUGH = 200  # steps of MLM in a stage, else a smaller population is taken
AIM = (0.9, 0.8, 0.7, 0.55, 0.4)  # of the budget, by the price of a plan
WITHIN = 0.9  # of it a simulated search may take: what is done again needs some, and luck differs
USED = 0.7  # of it is enough; for one that takes less a larger one is looked for
LOOKS = 7  # simulations at most
FRONT = 0.5  # of a generation's places, where a front is trained on
# The one rung where half goes on is at the first of these shares that is worth it. Further rungs
# save hours, and miss more than as many hours of further generations find (`bin/bench rules`).
RUNGS = (0.125, 0.25, 0.5)
KEEP = 0.5
RULE = "asha"
FEWEST_STEPS = 25  # up to a rung: behind fewer, losses tell of the warm-up
FEWEST_OFFSPRING = 4  # that leave somebody to choose
Made = Callable[[Genotype], Lineage]  # how a candidate has come by its modules


@dataclass(frozen=True)
class Plan:
    """sequences: of MLM to train on. finetune: share of the ladder's epochs of questions."""

    mu: int
    lambda_: int
    generations: int
    sequences: int
    finetune: float


Wish = tuple[tuple[int, int, int], float]  # one of the sizes, and a share of FINETUNE
WISHES: tuple[Wish, ...] = tuple(itertools.product(SIZES, FINETUNE))


def wishes_of(config: Config, fixed: frozenset[str] = frozenset()) -> tuple[Wish, ...]:
    """What is wanted of a plan for the config, the best first."""
    least = config.population.finishing if "population.finishing" in fixed else 0
    if tasks.reading(config.stages, tasks.MLM.data):
        found = WISHES
    elif _trains_once(config, fixed) and not least:
        found = tuple((size, share) for share in FINETUNE for size in ONE_GENERATION)
    else:
        sizes = (*MANY_SIZES, *SIZES)
        found = tuple(
            wish
            for shares in (FINETUNE[:FEW], FINETUNE[FEW:])
            for wish in itertools.product(sizes, shares)
        )
    return tuple(wish for wish in found if wish[0][2] >= least)


def _trains_once(config: Config, fixed: frozenset[str]) -> bool:
    """Whether there is one generation, as set or as children take many steps at once."""
    once = "experiment.generations" in fixed and not config.experiment.generations
    return once or config.variation.steps[1] >= MANY_STEPS


def choose(
    hours: float,
    most: int,
    enough: int,
    least: int,
    price: Callable[[Plan], float],
    wishes: Sequence[Wish] = WISHES,
) -> Plan | None:
    """The plan that so many hours pay for; None where not even the smallest is paid.

    most, enough, least: sequences that there are, that are wanted for each candidate, and that the
    smallest search needs. price: of a plan, in hours; more sequences never cost less.
    """
    for floor in sorted({min(most, enough), min(most, least)}, reverse=True):
        for size, share in wishes:
            low, high = floor, most
            if price(Plan(*size, low, share)) > hours:
                continue
            while high - low > max(1, low // 100):
                middle = (low + high) // 2
                paid = price(Plan(*size, middle, share)) <= hours
                low, high = (middle, high) if paid else (low, middle)
            whole = price(Plan(*size, most, share)) <= hours
            return Plan(*size, most if whole else low, share)
    return None


def changed(config: Config, plan: Plan, fixed: frozenset[str]) -> dict[str, Any]:
    """The keys of the config that the plan sets, but for those that are fixed."""
    found: dict[str, Any] = {
        "population.mu": plan.mu,
        "population.lambda": plan.lambda_,
        "experiment.generations": plan.generations,
    }
    if config.population.finishing > plan.generations:
        found["population.finishing"] = plan.generations
    if config.data.mlm is not None:
        found["data.mlm.max_sequences"] = plan.sequences
    for stage in config.stages:
        if tasks.of(stage.task).scores and stage.epochs is not None:
            found[f"stages.{stage.name}.epochs"] = round(stage.epochs * plan.finetune, 3)
    return {key: value for key, value in found.items() if key not in fixed}


def rungs_for(config: Config, subject: Subject) -> tuple[dict[str, Any], str]:
    """A rung within the stage in which a candidate takes longest, and a rule, as keys of the
    config; where there is none, why not."""
    climbed = [
        one
        for one in config.ladder("candidates")
        if one.train in ("new", "all") and one.who != "new"
    ]
    if any(one.cuts for one in climbed):
        return {}, "some cutoff stands in the config"
    stage = max(climbed, key=lambda one: _seconds(config, subject, one))
    if stage.average or stage.soup > 1:
        key = "a soup" if stage.soup > 1 else "an average"
        return {}, f"{stage.name} has {key}, which stands on no stage with rungs"
    steps, start = _work(config, subject, stage).steps, subject.machine.start_seconds
    if config.population.lambda_ < FEWEST_OFFSPRING:
        return {}, f"of {config.population.lambda_} offspring there is little to choose"
    busy = _seconds(config, subject, stage) - start
    worth = [at for at in RUNGS if at * steps >= FEWEST_STEPS and at * busy >= start]
    if not worth:
        return {}, (
            f"{stage.name} takes {steps} steps in {readable.duration(busy)}, and an attempt"
            f" {start:.0f} s to start"
        )
    rungs = [{"at": worth[0], "keep": KEEP}]
    return {f"stages.{stage.name}.rungs": rungs, "promotion.rule": RULE}, ""


def applied(config: Config, keys: Mapping[str, Any]) -> Config:
    data = config.model_dump(by_alias=True)
    put(data, keys)
    return Config.model_validate(data)


def put(data: dict[str, Any], keys: Mapping[str, Any]) -> None:
    """Into a config as it is written down; a stage goes by its name."""
    for key, value in keys.items():
        *above, last = key.split(".")
        place: Any = data
        for part in above:
            if isinstance(place, list | tuple):
                place = next(one for one in place if one["name"] == part)
            else:
                place = place.setdefault(part, {})
        place[last] = value


def _all_added(block: Block) -> tuple[Literal["added"], ...]:
    return tuple("added" for _ in block.ffns)


def _all_new(genotype: Genotype) -> Lineage:
    return tuple(BlockLineage.of(None, True, _all_added(one)) for one in genotype.blocks)


def hours_of(config: Config, subject: Subject, made: Made = _all_new) -> float:
    """Slot-hours of the whole search, if every candidate were of the baseline's size, and made so:
    all of its modules new, if nothing else is said. With its controls, and what is screened."""
    population, generations = config.population, config.experiment.generations
    total = prepare_seconds(subject.machine, config.data.mlm, _volumes(config, subject))
    total /= config.slots.share
    breeding = generations - population.finishing
    founders = float(population.mu)
    bred = population.lambda_ * (breeding + FRONT * population.finishing)
    controls = (1 + generations) * population.control
    if population.screened > 1:
        total += _screened(config, subject, population.mu, 1)
        total += breeding * _screened(config, subject, population.lambda_, population.mu)
    for stage in config.parts:
        there = {"candidates": founders + bred + controls, "baseline": 1.0}
        there |= {"all": there["candidates"] + 1, "new": founders + bred}
        if stage.who == "baseline" and subject.seed.has_mlm_head and stage.train == "head":
            continue
        held = stage.slots / _share(config, stage)
        total += there[stage.who] * held * _seconds(config, subject, stage, made)
        if stage.keep is not None:
            bred *= stage.keep
    return total / 3600


def _volumes(config: Config, subject: Subject) -> Volumes:
    mlm, found = config.data.mlm, subject.volumes
    most = None if mlm is None else mlm.max_sequences
    return found if most is None else replace(found, mlm_train_sequences=most)


def _work(config: Config, subject: Subject, stage: Stage, made: Made = _all_new) -> Work:
    """Of the stage, for a candidate of the baseline's size."""
    baseline = subject.seed.baseline
    lineage, backbone = made(baseline), subject.seed.backbone
    along = config.taught_along(stage, baseline=stage.who == "baseline")
    volumes = _volumes(config, subject)
    return work(stage, baseline, lineage, backbone, config.data, volumes, along)


def _seconds(config: Config, subject: Subject, stage: Stage, made: Made = _all_new) -> float:
    asked, every = _work(config, subject, stage, made), config.daemon.checkpoint_minutes
    about = (asked, subject.machine, stage.name, stage.slots, every)
    return Timeline.of(*about, share=_share(config, stage)).end


def _screened(config: Config, subject: Subject, places: int, parents: int) -> float:
    """Slot-seconds in which the mutants for so many places are tried, of so many parents."""
    mutants = places * config.population.screened
    attempts = max(min(parents, places), math.ceil(mutants / MOST_TRIED))
    each = [subject.seed.baseline] * math.ceil(mutants / attempts)
    volumes, share = _volumes(config, subject), config.slots.share
    asked = screening(config.entry, each, subject.seed.backbone, config.data, volumes)
    about = (asked, subject.machine, SCREEN, 1, config.daemon.checkpoint_minutes)
    return attempts * Timeline.of(*about, share=share).end / share


def _share(config: Config, stage: Stage) -> int:
    """How many attempts share each GPU that one at the stage has."""
    return 1 if undivided(config, stage.name) else config.slots.share


def one_candidate(config: Config, subject: Subject) -> float:
    """Slot-hours without which nothing is found: what has to be prepared, the baseline, and one
    candidate that has no new modules to train first."""
    single = {"population.mu": 1, "experiment.generations": 0, "population.finishing": 0}
    return hours_of(applied(config, single), subject, unchanged)


def fit(
    config: Config,
    config_path: Path,
    fixed: frozenset[str],
    budget: float,
    seed: Seed | None = None,
    rungs: bool = False,
    measured: Path | None = None,
    tflops: float | None = None,
    keep: bool = False,
) -> tuple[dict[str, Any], list[str]]:
    """The keys to set and their values, and a line on each choice; raises NasdError where the
    budget does not pay the smallest search. fixed: keys that the person has set. seed: where it
    was looked at already. rungs: whether there may be some, where nothing cuts yet. measured: a
    state folder that tells how fast slots are, if not the config's own. tflops: that a slot
    sustains. Where neither tells, one is tried out; keep: and what it shows is kept in the state
    folder."""
    if not 0 < budget < math.inf:
        raise NasdError(
            f"experiment.budget_gpu_hours: {budget:g} makes no sense, it must be above 0"
        )
    about = partial(gather, config_path=config_path, tflops=tflops, measured=measured)
    subject = about(config, seed=seed, tries=True, keep=keep)
    about = partial(about, seed=seed or subject.seed, speed=subject.speed)
    unit = slots_module.unit(subject.slots)
    trained = [one for one in config.stages if tasks.of(one.task).ranks and one.epochs is not None]
    climbed = [one for one in trained if one.who != "baseline"]
    batch = max((one.batch for one in trained), default=1)
    slots = max((one.slots for one in config.stages), default=1)
    epochs = min((one.epochs or 1.0 for one in climbed), default=1.0)
    most = subject.volumes.mlm_train_sequences
    enough, least = max(1, round(ENOUGH * batch / epochs)), max(batch, slots)

    wishes = wishes_of(config, fixed)

    def keys_of(plan: Plan) -> dict[str, Any]:
        keys = changed(config, plan, fixed)
        more = rungs_for(applied(config, keys), subject)[0] if rungs else {}
        return keys | {key: value for key, value in more.items() if key not in fixed}

    def price(plan: Plan) -> float:
        return hours_of(applied(config, keys_of(plan)), subject)

    smallest = Plan(*wishes[-1][0], min(most, least), FINETUNE[-1])
    found, scale, aims = None, 1.0, iter(AIM)
    aim, spent = next(aims), 0.0
    simulated: dict[Plan, float] = {}  # slot-hours
    for _ in range(LOOKS):
        plan = choose(aim * budget / scale, most, enough, least, price, wishes) or smallest
        if found is not None and plan == found.plan:
            break
        planned = applied(config, keys_of(plan))
        run = simulate(planned, about(planned), planned.experiment.seed, lambda text: None)
        spent = simulated[plan] = run.snapshot.gpu_hours(run.ended)
        if spent <= WITHIN * budget:
            found, scale = _Fitted(plan, planned, spent), spent / price(plan)
            if spent >= USED * budget:
                break
        elif (found is None and plan == smallest) or (aim := next(aims, 0.0)) == 0.0:
            break
    if found is None:
        raise NasdError(
            f"{KEY}: {budget:g} {unit} do not pay the smallest search of this config, which takes"
            f" about {readable.hours(spent / WITHIN)}: give more, or fix fewer of the keys that"
            " follow from it"
        )
    keys = keys_of(found.plan)
    told = _told(found.config, subject, keys, budget, found.spent, unit)
    if rungs and not any(one.rungs for one in found.config.stages):
        told.insert(len(keys), f"no rungs: {rungs_for(found.config, subject)[1]}")
    capped = {} if KEY in fixed else {KEY: budget}

    def hours(plan: Plan) -> float:
        return simulated[plan] if plan in simulated else scale * price(plan)

    return keys | capped, told + _dearer(config, found.plan, fixed, wishes, hours, unit)


@dataclass(frozen=True)
class _Fitted:
    """spent: slot-hours, simulated."""

    plan: Plan
    config: Config
    spent: float


def _dearer(
    config: Config,
    plan: Plan,
    fixed: frozenset[str],
    wishes: Sequence[Wish],
    price: Callable[[Plan], float],
    unit: str,
) -> list[str]:
    """Why it is no larger: a line on the next size, if any."""
    own, paid = changed(config, plan, fixed), price(plan)
    place = wishes.index(((plan.mu, plan.lambda_, plan.generations), plan.finetune))
    for (mu, lambda_, generations), _ in reversed(wishes[:place]):
        larger = replace(plan, mu=mu, lambda_=lambda_, generations=generations)
        keys = changed(config, larger, fixed)
        more = ", ".join(f"{key} = {value}" for key, value in keys.items() if own[key] != value)
        if more and (hours := price(larger)) > paid:
            return [f"the next larger search ({more}) takes about {readable.hours(hours)} {unit}"]
    return []


def _told(
    config: Config,
    subject: Subject,
    keys: dict[str, Any],
    budget: float,
    spent: float,
    unit: str,
) -> list[str]:
    most = subject.volumes.mlm_train_sequences
    why = {
        "population.mu": "candidates that are parents",
        "population.lambda": "offspring of each generation",
        "experiment.generations": "behind the initial population",
        "population.finishing": "of them train the front on, and breed nobody",
        "data.mlm.max_sequences": f"to train on, of {most:,} that there are",
        "promotion.rule": "goes by loss and size",
    }
    for one in config.stages:
        questions = one.task == tasks.QA.name
        why[f"stages.{one.name}.epochs"] = "of questions" if questions else "of examples"
        if one.rungs:
            why[f"stages.{one.name}.rungs"] = _left_at(config, one)
    if not config.experiment.generations:
        why["population.lambda"] = "offspring of a generation, where some are added"
    lines = [f"{key} = {toml.written(value)}: {why[key]}" for key, value in keys.items()]
    lines.append(f"simulated: {readable.hours(spent)} {unit}, within {KEY} = {budget:g}")
    return lines + [f"rests on: {one}" for one in subject.assumptions[:3]]


def _left_at(config: Config, stage: Stage) -> str:
    left, found = config.population.lambda_, []
    for rung in stage.rungs:
        left = Budget(rung.keep).places(left)
        found.append(str(left))
    return f"of {config.population.lambda_} offspring {', then '.join(found)} go on"
