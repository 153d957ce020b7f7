"""Weights & Biases, by files that `wandb sync` uploads.

Its offline runs cannot be resumed: of two with one id the later takes the earlier one's place. So a
run is written anew as a whole, beside those that stand, and then takes its own earlier one's place.
What is uploaded again replaces what was uploaded.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from nasd.contract.errors import NasdError
from nasd.launch import interpreter
from nasd.views.sinks.runs import Run
from nasd.views.sinks.sink import Search

# wandb's own reports of its errors go elsewhere.
os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
os.environ.setdefault("WANDB_SILENT", "true")
import wandb

UPLOAD_SECONDS = 600.0
AT_ONCE = 100  # runs that one command uploads


class WeightsAndBiases:
    """folder: the finished runs stand there, as `offline-run-TIME-ID`, whole or not at all."""

    def __init__(self, project: str, entity: str, upload: bool, key: str, folder: Path) -> None:
        self._project, self._entity, self._upload, self._key = project, entity, upload, key
        self._folder = folder
        self._new = folder / ".new"
        shutil.rmtree(self._new, ignore_errors=True)  # of one that was killed
        self._owed = self._standing("*")  # those that were uploaded, wandb itself passes over

    def write(self, run: Run) -> None:
        number = f"{self._key}-{run.name.replace('/', '-')}"
        self._new.mkdir(parents=True, exist_ok=True)
        self._write(run, number)
        (made,) = (self._new / "wandb").glob(f"offline-run-*-{number}")
        for old in self._standing(number):
            shutil.rmtree(old)
        made.rename(self._folder / made.name)
        self._owed = [*self._standing(number), *(one for one in self._owed if one.is_dir())]
        shutil.rmtree(self._new)

    def flush(self) -> None:
        """Raises NasdError where they could not be uploaded."""
        while self._upload and self._owed:
            some = self._owed[:AT_ONCE]
            self._sync(some)
            self._owed = self._owed[len(some) :]

    def _standing(self, number: str) -> list[Path]:
        return sorted(self._folder.glob(f"offline-run-*-{number}"))

    def _write(self, run: Run, number: str) -> None:
        with wandb.init(
            mode="offline",
            dir=self._new,
            id=number,
            project=self._project,
            entity=self._entity or None,
            name=run.name,
            group=run.group,
            job_type=run.kind,
            notes=run.card,
            config=run.features,
            settings=wandb.Settings(
                silent=True,
                console="off",
                disable_git=True,
                disable_code=True,
                x_disable_meta=True,
                x_disable_stats=True,
                x_disable_machine_info=True,
                x_save_requirements=False,
                x_start_time=run.began,
            ),
        ) as one:
            for task, curves in run.curves.items():
                step = f"{task}/step"
                one.define_metric(step, hidden=True)
                for tag in curves:
                    one.define_metric(tag, step_metric=step)
            for row in rows(run):
                one.log(row)
            one.summary.update({tag: point.value for tag, point in run.results.items()})
            one.finish(exit_code=int(run.failed))

    def _sync(self, folders: list[Path]) -> None:
        self._new.mkdir(parents=True, exist_ok=True)  # wandb puts a log where it runs
        words = ["sync", "--yes", *(str(folder.resolve()) for folder in folders)]
        try:
            done = subprocess.run(
                interpreter.command("wandb", *words),
                cwd=self._new,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=UPLOAD_SECONDS,
            )
        except subprocess.TimeoutExpired:
            raise NasdError(
                f"wandb.mode: `wandb sync` has not ended within {UPLOAD_SECONDS:g} s: is its server"
                " within reach?"
            ) from None
        if done.returncode:
            said = (done.stderr.strip().splitlines() or ["no word of why"])[-1]
            raise NasdError(f"wandb.mode: `wandb sync` failed ({said[:200]})")


def rows(run: Run) -> Iterator[dict[str, float]]:
    """As its history has them, each step of a task once. Their own axis is the task's: theirs of
    W&B only counts them."""
    for task, curves in run.curves.items():
        steps = sorted({step for curve in curves.values() for step in curve})
        for step in steps:
            here = {tag: curve[step] for tag, curve in curves.items() if step in curve}
            at = max(point.at for point in here.values())
            values = {tag: point.value for tag, point in here.items()}
            yield {**values, f"{task}/step": step, "_timestamp": at}


def open(settings: Mapping[str, Any], search: Search, folder: Path) -> WeightsAndBiases:
    return WeightsAndBiases(
        settings["project"] or search.name,
        settings["entity"],
        settings["mode"] == "online",
        search.key,
        folder,
    )
