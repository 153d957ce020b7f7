"""The forecast of a config as plain JSON values: `nasd simulate --json`."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

from nasd.contract.config import Config
from nasd.contract.errors import NasdError
from nasd.contract.slots import on_gpus
from nasd.views.forecast import figures
from nasd.views.forecast.premises import Subject, gather
from nasd.views.forecast.search import Progress, Run, simulate


def forecast(
    config: Config,
    config_path: Path,
    *,
    tflops: float | None = None,
    slots: int | None = None,
    mlm_sequences: int | None = None,
    qa_questions: int | None = None,
    runs: int = 3,
    progress: Progress = lambda text: None,
    measured: Path | None = None,
) -> dict[str, Any]:
    """The forecast as plain JSON values; raises NasdError for what makes no sense.

    tflops: that a slot sustains. slots: instead of the config's. mlm_sequences: to train on.
    qa_questions: in all, before they are split. runs: search seeds, from the config's on.
    measured: a state folder that tells how fast slots are, if not the config's own.
    """
    for option, value in (
        ("--tflops", tflops),
        ("--slots", slots),
        ("--mlm-sequences", mlm_sequences),
        ("--qa-questions", qa_questions),
        ("--runs", runs),
    ):
        if value is not None and not 0 < value < math.inf:
            raise NasdError(f"{option}: {value} makes no sense, it must be above 0")
    subject = gather(
        config, config_path, tflops, slots, mlm_sequences, qa_questions, measured=measured
    )

    def one(number: int) -> Run:
        def say(text: str) -> None:
            progress(f"run {number + 1} of {runs}: {text}")

        return simulate(config, subject, config.experiment.seed + number, say)

    found = [one(number) for number in range(runs)]
    return _report(config, config_path, subject, found)


def _report(
    config: Config, config_path: Path, subject: Subject, runs: Sequence[Run]
) -> dict[str, Any]:
    told = [figures.told(config, subject, one) for one in runs]
    stages = figures.stages_of(config)
    total = median(one["gpu_hours"] for one in told)
    return {
        "config": str(config_path),
        "name": config.experiment.name,
        "slots": len(subject.slots),
        "on_gpus": on_gpus(subject.slots),
        "budget_gpu_hours": config.experiment.budget_gpu_hours,
        "inputs": {
            "tflops": subject.machine.tflops,
            "rates": dict(subject.machine.rates),
            "volumes": asdict(subject.volumes),
            "backbone": asdict(subject.seed.backbone),
            "baseline": subject.seed.baseline.to_json(),
        },
        "assumptions": list(subject.assumptions),
        **{
            name: _range([one[name] for one in told])
            for name in (
                *("wall_hours", "gpu_hours", "slot_use"),
                *("work_hours", "chain_hours", "over_bound"),
            )
        },
        "stages": [
            {
                "stage": name,
                "slots": median(one["stages"][name]["slots"] for one in told),
                "attempts": median(one["stages"][name]["attempts"] for one in told),
                "hours": median(one["stages"][name]["hours"] for one in told),
                "gpu_hours": (hours := median(one["stages"][name]["gpu_hours"] for one in told)),
                "share": hours / total,
            }
            for name in stages
            if any(one["stages"][name]["attempts"] for one in told)
        ],
        "generations": [
            {
                "generation": number,
                "wall_hours": _range([one["generations"][number]["wall_hours"] for one in told]),
                "gpu_hours": _range([one["generations"][number]["gpu_hours"] for one in told]),
            }
            for number in range(config.experiment.generations + 1)
        ],
        "runs": told,
    }


def _range(values: Sequence[float]) -> dict[str, float]:
    return {"median": median(values), "least": min(values), "most": max(values)}
