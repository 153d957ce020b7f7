"""Where the numbers of a training go: metrics.jsonl, and TensorBoard."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from nasd.contract.summaries import Summaries


class Recorder(Protocol):
    def line(self, **values: Any) -> None: ...

    def sync(self) -> None: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Curves:
    """Where TensorBoard finds what is recorded. task: its curves share no chart with another
    task's. first_step: where the stage begins in them. shared: a tag that the evaluation losses go
    to as well, "" for none."""

    run: Path
    task: str
    first_step: int = 0
    shared: str = ""


class MetricsFile:
    """metrics.jsonl, and the same numbers to TensorBoard; only rank 0 has one.

    done: steps of this stage that an earlier attempt has recorded, and whose points stay.
    """

    def __init__(self, path: Path, curves: Curves, done: int) -> None:
        self._curves = curves
        self._file = path.open("a", encoding="utf-8")
        known = curves.first_step + done
        self._summaries = Summaries(curves.run, known + 1 if known else 0)

    def line(self, **values: Any) -> None:
        self._file.write(json.dumps(values) + "\n")
        self._file.flush()
        evaluation = values["kind"] == "evaluation"
        scalars = {
            f"{self._curves.task}/{'evaluation_' if evaluation else ''}{name}": value
            for name, value in values.items()
            if name not in ("kind", "step", "at") and isinstance(value, float)
        }
        if evaluation and self._curves.shared:
            scalars[self._curves.shared] = values["loss"]
        self._summaries.scalars(scalars, self._curves.first_step + values["step"])

    def sync(self) -> None:
        """A checkpoint that stands must not know of more than the curves show."""
        self._summaries.sync()

    def close(self) -> None:
        self._file.close()
        self._summaries.close()


class NoMetrics:
    def line(self, **values: Any) -> None:
        pass

    def sync(self) -> None:
        pass

    def close(self) -> None:
        pass
