"""A config that leaves to its budget how many candidates there are, made whole.

Whoever gives `experiment.budget_gpu_hours` may leave out the keys of NEEDED. They follow then, by
nasd.views.forecast.fitting, and with them rungs and the share of the texts, where these are not
given either. Once the search has begun they are what it was begun with: a plan is made once.
"""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nasd.contract import config as config_module
from nasd.contract import toml
from nasd.contract.config import Config
from nasd.contract.errors import NasdError
from nasd.contract.slots import unit
from nasd.control.preflight import Seed
from nasd.launch import launchers
from nasd.record import snapshot
from nasd.views.forecast import fitting
from nasd.views.forecast.as_json import forecast
from nasd.views.forecast.premises import gather
from nasd.views.forecast.search import Progress

# What a config cannot do without, and stands-in until it is planned.
NEEDED: Mapping[str, Any] = {
    "population.mu": 1,
    "population.lambda": 1,
    "population.tournament": 2,
    "experiment.generations": 0,
}
ALSO = ("data.mlm.max_sequences", "promotion.rule")  # and rungs: planned where they are not given


@dataclass(frozen=True)
class Plan:
    """config: whole. keys: what the file leaves open, and what was chosen for it. told: why, a line
    each. begun: these are of the search that has begun."""

    config: Config
    keys: Mapping[str, Any]
    told: tuple[str, ...]
    begun: bool = False


def load(path: Path, fresh: bool = False) -> Config:
    """As nasd.contract.config.load, of a config that may leave something to its budget. fresh: what
    a search of it has begun with does not count."""
    return plan(path, fresh).config


def plan(
    path: Path,
    fresh: bool = False,
    measured: Path | None = None,
    progress: Progress = lambda text: None,
    tflops: float | None = None,
) -> Plan:
    """measured: the state folder of an experiment that tells how fast slots are. tflops: that each
    sustains. Where neither tells, one is tried out, once. Raises NasdError for a config that is
    none, and for a budget that does not pay the smallest search."""
    data, origin = config_module.read(path), str(path)
    missing = [key for key in NEEDED if _at(data, key) is None]
    if not missing:
        return Plan(config_module.parse(data, origin), {}, ())
    started = _stood_in(data, missing)
    if started is None:  # something else is wrong with it, and that is said
        return Plan(config_module.parse(data, origin), {}, ())
    config = config_module.parse(started, origin)
    budget = config.experiment.budget_gpu_hours
    if budget is None:
        raise NasdError(
            f"{origin}: the key {missing[0]} is missing: give it, or {fitting.KEY}, from which it"
            " follows"
        )
    began = None if fresh else _began_with(path, config)
    if began is not None:
        keys = {key: value for key in _open(data, config) if (value := _at(began, key)) is not None}
        told: list[str] = []
    else:
        fixed = frozenset(key for key in _written(data) if key not in missing)
        there = config.model_copy(update={"slots": _named(config)})
        progress(fitting.WORKING)
        try:
            about = there, path, fixed, budget
            keys, told = fitting.fit(
                *about, rungs=True, measured=measured, tflops=tflops, keep=True
            )
        except NasdError as error:
            raise NasdError(f"{origin}: {str(error).removeprefix(f'{origin}: ')}") from None
        for key in missing:
            if key not in keys:
                keys[key] = NEEDED[key]
                told.insert(len(keys) - 1, f"{key} = {keys[key]}: as is usual")
    whole = copy.deepcopy(data)
    fitting.put(whole, keys)
    return Plan(config_module.parse(whole, origin), keys, tuple(told), began is not None)


def described(
    path: Path,
    measured: Path | None = None,
    runs: int = 1,
    progress: Progress = lambda text: None,
    tflops: float | None = None,
) -> dict[str, Any]:
    """What is chosen and why, and the forecast of that, as plain JSON values: `nasd plan --json`.
    Raises NasdError, besides as `plan` does, where a budget does not come to one candidate."""
    found = plan(path, measured=measured, progress=progress, tflops=tflops)
    config = found.config.model_copy(update={"slots": _named(found.config)})
    if not found.keys:
        progress("trying out how fast a slot is")
        gather(config, path, tflops, measured=measured, tries=True, keep=True)
        check_budget(config, path, measured=measured, tflops=tflops)
    return {
        "budget_gpu_hours": config.experiment.budget_gpu_hours,
        "begun": found.begun,
        "chosen": dict(found.keys),
        # What it rests on is said by the forecast.
        "told": [one for one in found.told if not one.startswith("rests on: ")]
        or [_nothing_to_choose(found)],
        "forecast": forecast(
            config, path, tflops=tflops, runs=runs, progress=progress, measured=measured
        ),
    }


def _nothing_to_choose(found: Plan) -> str:
    if not found.begun:
        return "nothing is left to choose: the config gives population and generations itself"
    chosen = ", ".join(f"{key} = {toml.written(value)}" for key, value in found.keys.items())
    return f"the search has begun, and keeps what was chosen then: {chosen}"


def check_budget(
    config: Config,
    path: Path,
    seed: Seed | None = None,
    measured: Path | None = None,
    tflops: float | None = None,
) -> None:
    """Raises NasdError where the budget, if there is one, does not come to one candidate, as far
    as that can be told. seed: where it was looked at already."""
    budget = config.experiment.budget_gpu_hours
    if budget is None:
        return
    config = config.model_copy(update={"slots": _named(config)})
    try:
        subject = gather(config, path, tflops, seed=seed, measured=measured)
    except NasdError:  # of data that can only be counted once they are prepared
        return
    least = fitting.one_candidate(config, subject)
    if budget < least:
        raise NasdError(
            f"{path}: {fitting.KEY}: {budget:g} {unit(subject.slots)} do not pay one candidate, as"
            f" preparing, the baseline and that one take about {least:.3g}: give more"
        )


def _stood_in(data: dict[str, Any], missing: list[str]) -> dict[str, Any] | None:
    """The config with something in the place of what is missing; None where it has no such
    place. A rule of promotion that waits for rungs to be planned is left out."""
    found = copy.deepcopy(data)
    try:
        fitting.put(found, {key: NEEDED[key] for key in missing})
        stages = found.get("stages", [])
        if not any(one.get("keep") or one.get("rungs") for one in stages):
            found.pop("promotion", None)
        finishing = found["population"].get("finishing", 0)
        if "experiment.generations" in missing and isinstance(finishing, int):
            found["experiment"]["generations"] = max(0, finishing)
    except (AttributeError, TypeError):
        return None
    return found


def _began_with(path: Path, config: Config) -> dict[str, Any] | None:
    """The config of the search that has begun in the config's state folder."""
    try:
        with snapshot.opened(path.resolve().parent / config.experiment.state) as connection:
            return snapshot.read(connection).experiment.config
    except snapshot.NoExperiment:
        return None


def _named(config: Config) -> config_module.Slots:
    """Slots by name, so that what a budget pays is worked out for those that are there; what is
    listed need not be."""
    if config.slots.devices != "auto":
        return config.slots
    names = [str(one) for one in launchers.of(config.slots).devices(config, False)]
    return config.slots.model_copy(update={"devices": tuple(names)})


def _open(data: Mapping[str, Any], config: Config) -> list[str]:
    """The keys that are planned: those that the file does not give."""
    rungs = [f"stages.{stage.name}.rungs" for stage in config.stages]
    return [key for key in (*NEEDED, *ALSO, *rungs) if _at(data, key) is None]


def _at(data: Any, key: str) -> Any:
    """What a config as it is written says of the key; None where that is nothing."""
    for part in key.split("."):
        if isinstance(data, list | tuple):
            named = (one for one in data if isinstance(one, Mapping) and one.get("name") == part)
            data = next(named, None)
        elif isinstance(data, Mapping):
            data = data.get(part)
        else:
            return None
    return data


def _written(data: Any, above: str = "") -> Iterator[str]:
    """All keys that a config as it is written gives."""
    for name, value in data.items():
        key = f"{above}{name}"
        if isinstance(value, Mapping):
            yield from _written(value, f"{key}.")
        elif key == "stages":
            for one in value:
                yield from _written(one, f"{key}.{one['name']}.")
        else:
            yield key
