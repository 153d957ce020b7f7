"""`bin/bench rules`: rules of promotion in whole searches of the preset demo, in virtual time, on
four slots: all of nasd but its workers, whose losses and scores are recorded ones (tests/data,
`bin/record-curves`), or those of the recorded candidates most like one (nasd.estimate.recorded).
Rungs are at 1/8, 1/4 and 1/2 where nothing else is said, and half goes on.

Against `no cutoff`, of the same seed: `hours`, all slot-hours by the cost model; `volume`, the
hypervolume in the end, of all that were ever scored, by quality and compression above no quality
and none; `as soon`, the same against what `no cutoff` has after as many slot-hours; `regained`, the
slot-hours until it is what `no cutoff` ends with, a seed that never comes to it counts as infinite;
`time`, from the first birth to the end; `use`, the share of the slots' time then that is held.
The recorded candidates are few, so what is bred late is told by some that are rather like it.
"""

import argparse
import json
import math
import statistics
import sys
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table as Shown

from nasd.contract.config import Config, parse
from nasd.contract.volumes import Volumes
from nasd.control.preflight import Seed
from nasd.estimate.cost import Machine
from nasd.estimate.recorded import Table
from nasd.presets import preset_text
from nasd.search.pareto import hypervolume
from nasd.views.forecast.premises import Subject
from nasd.views.forecast.search import Run, simulate
from tests.bench.fidelity import EARLY, TABLE
from tests.bench.replayed import ABOVE, SLOTS

DEVICES = [f"cpu:{number}" for number in range(SLOTS)]
# So that only rungs differ: each generation is bred anew, by losses that nobody has been tried by.
POPULATION = {"mu": 8, "lambda": 16, "screened": 1, "control": False, "finishing": 0}
# So slow that what an attempt takes to start, again behind each rung, is little beside an hour.
SLOW = Machine(tflops=3e-6, step_seconds=0.0, start_seconds=30.0)
NONE = "no cutoff"
# (the rule, its rungs) by what they are called.
RULES: Mapping[str, tuple[str, Sequence[tuple[float, float]]]] = {
    NONE: (NONE, ()),
    **{rule: (rule, EARLY) for rule in ("share", "halving", "hyperband", "asha", "curve")},
    "asha at 1/8": ("asha", EARLY[:1]),
}
OVERLAPPING = ", overlapping"  # population.overlap
WAYS = (*(f"{name}{more}" for name in RULES for more in ("", OVERLAPPING)),)


def config(way: str, generations: int) -> Config:
    name = way.removesuffix(OVERLAPPING)
    rule, rungs = RULES[name]
    data: dict[str, Any] = tomllib.loads(preset_text("demo"))
    data["experiment"] |= {"generations": generations, "limits": []}
    data["slots"]["devices"] = DEVICES
    data["population"] |= {**POPULATION, "overlap": way != name}
    data.pop("teacher")
    (stage,) = [one for one in data["stages"] if one["name"] == "finetune"]
    stage["evaluations"] = 8  # an epoch: as often as was recorded
    if rule != NONE:
        data["promotion"] = {"rule": rule}
        stage["rungs"] = [{"at": at, "keep": keep} for at, keep in rungs]
    return parse(data, f"rules/{name}")


def subject(curves: Table) -> Subject:
    seed = Seed(curves.backbone, curves.baseline, has_mlm_head=False)
    # 144 recorded steps of 16 windows are two epochs.
    volumes = Volumes(0, 0, 1152, curves.tested, 1152, curves.tested)
    return Subject(seed, volumes, tuple(DEVICES), SLOW, ())


def volumes(run: Run) -> list[tuple[float, float]]:
    """(slot-hours so far, hypervolume) behind each score."""
    found = run.snapshot
    ends = {(one.candidate, one.stage): one.ended_at for one in found.attempts if one.ended_at}
    scored = sorted(
        (ends[one.id, one.stage], one.id)
        for one in found.individuals
        if found.quality(one.id) is not None and (one.id, one.stage) in ends
    )
    whole = found.baseline.parameters
    points, told = list[tuple[float, float]](), list[tuple[float, float]]()
    for at, number in scored:
        quality = found.quality(number)
        assert quality is not None
        points.append((quality, whole / found.candidates[number].parameters))
        told.append((_hours(run, at), hypervolume(points, ABOVE)))
    return told


def _hours(run: Run, at: float) -> float:
    held = (
        one.worth * max(0.0, min(at, one.ended_at or at) - one.started_at)
        for one in run.snapshot.attempts
    )
    return sum(held) / 3600


def figures(
    table: Path, seeds: int, generations: int, say: Any = lambda text: None
) -> dict[str, dict[str, float]]:
    curves = Table.read(table)
    told: dict[str, list[Mapping[str, float]]] = {}
    for seed in range(1, seeds + 1):
        runs = {}
        for way in WAYS:
            say(f"seed {seed}, {way}")
            settings = config(way, generations)
            run = simulate(settings, subject(curves), seed, lambda text: None, curves)
            began = run.snapshot.generations[0].opened_at
            before = _hours(run, began)
            time = (run.ended - began) / 3600
            runs[way] = volumes(run), run.snapshot.gpu_hours(run.ended), before, time
        (first, whole, _, longest) = runs[NONE]
        aim, reference = first[-1][1], next(at for at, one in first if one >= first[-1][1])
        for way, (made, hours, before, time) in runs.items():
            reached = next((at for at, one in made if one >= aim), math.inf)
            told.setdefault(way, []).append(
                {
                    "hours": hours / whole,
                    "volume": made[-1][1] / aim,
                    "as soon": made[-1][1]
                    / max((one for at, one in first if at <= hours), default=math.inf),
                    "regained": reached / reference,
                    "time": time / longest,
                    "use": (hours - before) / (SLOTS * time),
                }
            )
    return {way: _summed(rows) for way, rows in told.items()}


def _summed(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {
        "hours": statistics.mean(one["hours"] for one in rows),
        "volume": statistics.mean(one["volume"] for one in rows),
        "as soon": statistics.mean(one["as soon"] for one in rows),
        "regained": statistics.median(one["regained"] for one in rows),
        "never": sum(math.isinf(one["regained"]) for one in rows),
        "time": statistics.mean(one["time"] for one in rows),
        "use": statistics.mean(one["use"] for one in rows),
    }


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="bin/bench rules", description=__doc__)
    parser.add_argument("--table", type=Path, default=TABLE)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--generations", type=int, default=8)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args(arguments)
    told = lambda text: print(text, file=sys.stderr, flush=True)  # noqa: E731
    found = figures(options.table, options.seeds, options.generations, told)
    made = Shown(title=f"{options.generations} generations, {options.seeds} seeds")
    for name in ("", "hours", "volume", "as soon", "regained", "never", "time", "use"):
        made.add_column(name, justify="right" if name else "left")
    for way, row in found.items():
        made.add_row(
            way,
            f"{row['hours']:.2f}",
            f"{row['volume']:.3f}",
            f"{row['as soon']:.3f}",
            f"{row['regained']:.2f}",
            f"{row['never']:.0f}",
            f"{row['time']:.2f}",
            f"{100 * row['use']:.1f} %",
        )
    Console(width=None if sys.stdout.isatty() else 100).print(made)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))
