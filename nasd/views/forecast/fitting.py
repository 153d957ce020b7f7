"""A search that a budget pays for: which population, ladder and data, with a word on each.

`choose` is pure: of the sizes in SIZES it takes the largest that leaves each candidate enough steps
of MLM, and then as many sequences as the budget pays. `fit` has its choice simulated, and makes it
again for less where the simulated search takes more than the budget.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from nasd.contract import readable, tasks
from nasd.contract import slots as slots_module
from nasd.contract.config import Config
from nasd.contract.errors import NasdError
from nasd.contract.genotype import Block, BlockLineage
from nasd.control.preflight import Seed
from nasd.estimate.cost import attempt_seconds, prepare_seconds
from nasd.views.forecast.premises import Subject, gather
from nasd.views.forecast.search import simulate

KEY = "experiment.budget_gpu_hours"
# (mu, lambda, generations), the largest first.
SIZES = ((8, 12, 3), (8, 12, 2), (6, 8, 2), (4, 6, 2), (4, 4, 1), (2, 2, 1), (1, 1, 1))
# Without MLM a candidate is cheap, and what counts is how many small steps there are.
MANY_SIZES = ((24, 32, 40), (24, 32, 20), (16, 24, 16), (12, 16, 12), (8, 12, 8), (6, 8, 6))
FINETUNE = (1.0, 0.5, 0.25, 0.1)  # of the ladder's epochs of questions
FEW = 2  # of these shares: where there is nothing else to train, the others come last
ENOUGH = 200  # steps of MLM in a stage, else a smaller population is taken
AIM = (0.9, 0.8, 0.7, 0.55, 0.4)  # of the budget: what is done again needs some, and luck differs


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


def wishes_of(config: Config) -> tuple[Wish, ...]:
    """What is wanted of a plan for the config, the best first."""
    if tasks.reading(config.stages, tasks.MLM.data):
        return WISHES
    sizes = (*MANY_SIZES, *SIZES)
    return tuple(
        wish
        for shares in (FINETUNE[:FEW], FINETUNE[FEW:])
        for wish in itertools.product(sizes, shares)
    )


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


def applied(config: Config, keys: dict[str, Any]) -> Config:
    data = config.model_dump(by_alias=True)
    for key, value in keys.items():
        *above, last = key.split(".")
        place: Any = data
        for part in above:
            if isinstance(place, list | tuple):
                place = next(one for one in place if one["name"] == part)
            else:
                place = place[part]
        place[last] = value
    return Config.model_validate(data)


def _all_added(block: Block) -> tuple[Literal["added"], ...]:
    return tuple("added" for _ in block.ffns)


def hours_of(config: Config, subject: Subject) -> float:
    """Slot-hours of the whole search, if every candidate were of the baseline's size and had all
    its modules new."""
    baseline, volumes = subject.seed.baseline, subject.volumes
    if config.data.mlm is not None and config.data.mlm.max_sequences is not None:
        volumes = replace(volumes, mlm_train_sequences=config.data.mlm.max_sequences)
    lineage = tuple(BlockLineage.of(None, True, _all_added(one)) for one in baseline.blocks)
    population = config.population
    total = prepare_seconds(subject.machine, config.data.mlm, volumes)
    founders, bred = float(population.mu), float(population.lambda_ * config.experiment.generations)
    for stage in config.parts:
        there = {"candidates": founders + bred, "all": founders + bred + 1, "baseline": 1.0}
        if stage.who == "baseline" and subject.seed.has_mlm_head and stage.train == "head":
            continue
        seconds = attempt_seconds(
            stage,
            baseline,
            lineage,
            subject.seed.backbone,
            config.data,
            volumes,
            subject.machine,
            config.daemon.checkpoint_minutes,
            config.taught_along(stage, baseline=stage.who == "baseline"),
        )
        total += there[stage.who] * stage.slots * seconds
        if stage.keep is not None:
            bred *= stage.keep
    return total / 3600


def fit(
    config: Config,
    config_path: Path,
    fixed: frozenset[str],
    budget: float,
    seed: Seed | None = None,
) -> tuple[dict[str, Any], list[str]]:
    """The keys to set and their values, and a line on each choice; raises NasdError where the
    budget does not pay the smallest search. fixed: keys that the person has set. seed: where it
    was looked at already."""
    if not 0 < budget < math.inf:
        raise NasdError(
            f"experiment.budget_gpu_hours: {budget:g} makes no sense, it must be above 0"
        )
    subject = gather(config, config_path, seed=seed)
    unit = slots_module.unit(subject.slots)
    trained = [one for one in config.stages if tasks.of(one.task).ranks and one.epochs is not None]
    climbed = [one for one in trained if one.who != "baseline"]
    batch = max((one.batch for one in trained), default=1)
    slots = max((one.slots for one in config.stages), default=1)
    epochs = min((one.epochs or 1.0 for one in climbed), default=1.0)
    most = subject.volumes.mlm_train_sequences
    enough, least = max(1, round(ENOUGH * batch / epochs)), max(batch, slots)

    def price(plan: Plan) -> float:
        return hours_of(applied(config, changed(config, plan, fixed)), subject)

    spent = 0.0
    smallest = Plan(*SIZES[-1], min(most, least), FINETUNE[-1])
    for aim in AIM:
        plan = choose(aim * budget, most, enough, least, price, wishes_of(config)) or smallest
        keys = changed(config, plan, fixed)
        tried = applied(config, keys)
        found = simulate(
            tried, gather(tried, config_path, seed=seed), tried.experiment.seed, lambda text: None
        )
        spent = found.snapshot.gpu_hours(found.ended)
        if spent <= budget:
            capped = {} if KEY in fixed else {KEY: budget}
            return keys | capped, _told(tried, subject, keys, fixed, budget, spent, unit)
        if plan == smallest:
            break
    raise NasdError(
        f"{KEY}: {budget:g} {unit} do not pay the smallest search of this config, which takes about"
        f" {readable.hours(spent)}: give more (--budget-gpu-hours), or fix less (--set)"
    )


def _told(
    config: Config,
    subject: Subject,
    keys: dict[str, Any],
    fixed: frozenset[str],
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
    }
    lines = [f"{key} = {value}: {why.get(key, 'of questions')}" for key, value in keys.items()]
    lines += [f"{one} as set" for one in sorted(fixed)]
    lines.append(f"simulated: {readable.hours(spent)} {unit}, within {KEY} = {budget:g}")
    return lines + [f"rests on: {one}" for one in subject.assumptions[:3]]
