"""The trackers of others that a config names, each kept up by a process of its own, beside the
turns: none waits for it, and no search ends by it.

It ends with this process, however that ends, after what is left to hand over.
"""

import json
import logging
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Self

from nasd.contract.config import Config
from nasd.launch import interpreter
from nasd.record.folders import StateFolder
from nasd.record.state import Experiment

log = logging.getLogger("nasd")

MIRROR = ("nasd.views.sinks.mirror",)
SHORTEST, LONGEST = 60.0, 3600.0  # seconds until one that failed is started again


@dataclass
class Sink:
    order: Mapping[str, Any]
    process: subprocess.Popen[bytes] | None = None
    began: float = 0.0  # monotonic, as is the next
    due: float = 0.0
    pause: float = SHORTEST / 2
    said: str = ""


class Mirrors:
    """Called after each turn. command: module and arguments that are started."""

    def __init__(
        self,
        config: Config,
        state: StateFolder,
        experiment: Experiment,
        command: Sequence[str] = MIRROR,
    ) -> None:
        self._command = command
        sections = {"wandb": config.wandb, "mlflow": config.mlflow}
        self._sinks = {
            name: Sink(
                {
                    "state": str(state.path.resolve()),
                    "sink": name,
                    "settings": section.model_dump(mode="json"),
                    "experiment": experiment.name,
                    "created_at": experiment.created_at,
                }
            )
            for name, section in sections.items()
            if section is not None
        }

    def __call__(self) -> None:
        for name, one in self._sinks.items():
            try:
                self._look(name, one)
            except OSError as error:
                self._rest(name, one, str(error))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        for one in self._sinks.values():
            if one.process is not None:
                _let_go(one.process)

    def _look(self, name: str, one: Sink) -> None:
        if one.process is not None and one.process.poll() is not None:
            assert one.process.stderr is not None
            said = one.process.stderr.read().decode(errors="replace").strip()
            _let_go(one.process)
            one.process = None
            self._rest(name, one, said or "it ended without a word")
        elif one.process is None and time.monotonic() >= one.due:
            one.began = time.monotonic()
            one.process = subprocess.Popen(
                interpreter.command(*self._command),
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                env=interpreter.environment(),
                start_new_session=True,
            )
            assert one.process.stdin is not None
            one.process.stdin.write(json.dumps(one.order).encode() + b"\n")
            one.process.stdin.flush()

    def _rest(self, name: str, one: Sink, said: str) -> None:
        if said != one.said:  # once is enough
            log.warning("%s is not kept up, and will be: %s", name, said.splitlines()[-1])
        one.said, now = said, time.monotonic()
        one.pause = SHORTEST if now - one.began > LONGEST else min(2 * one.pause, LONGEST)
        one.due = now + one.pause


def _let_go(process: subprocess.Popen[bytes]) -> None:
    for stream in (process.stdin, process.stderr):
        assert stream is not None
        with suppress(OSError):
            stream.close()
