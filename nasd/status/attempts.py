"""Where live attempts are: what their workers write, read on from where the last look ended."""

import itertools
import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from statistics import median

from nasd.errors import NasdError
from nasd.folders import StateFolder
from nasd.protocol import Heartbeat, read, read_metrics
from nasd.snapshot import Attempt, Snapshot

LATEST = 6  # lines of a learning curve that tell how fast it goes


@dataclass(frozen=True, slots=True)
class Where:
    """beat: None before the first sign of life. losses: of training, through the whole stage, also
    in earlier attempts at it. steps_per_second: None before two lines are logged."""

    attempt: Attempt
    beat: Heartbeat | None
    losses: Sequence[float] = ()
    steps_per_second: float | None = None

    @property
    def share(self) -> float | None:
        """Of the stage's steps, from 0 to 1; None where it has none, or does not count them yet."""
        return self.beat.step / self.beat.steps if self.beat and self.beat.steps else None


@dataclass
class _Log:
    upto: int = 0
    steps: list[int] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    latest: list[tuple[int, float]] = field(default_factory=list)  # (step, when)


class Listener:
    """curves: whether learning curves are read as well."""

    def __init__(self, folder: StateFolder, curves: bool = True) -> None:
        self._folder = folder
        self._curves = curves
        self._logs: dict[int, _Log] = {}

    def look(self, snapshot: Snapshot) -> Mapping[int, Where]:
        """By candidate."""
        live = snapshot.live_attempts
        stages = {(one.candidate, one.stage) for one in live}
        of_stage: dict[int, list[int]] = {}
        for one in snapshot.attempts:
            if (one.candidate, one.stage) in stages:
                of_stage.setdefault(one.candidate, []).append(one.id)
        wanted = {attempt for attempts in of_stage.values() for attempt in attempts}
        self._logs = {attempt: log for attempt, log in self._logs.items() if attempt in wanted}
        return {one.candidate: self._where(one, of_stage[one.candidate]) for one in live}

    def _where(self, attempt: Attempt, attempts: Sequence[int]) -> Where:
        beat = None
        with suppress(NasdError):
            beat = read(Heartbeat, self._folder.attempt(attempt.id).heartbeat)
        if not self._curves:
            return Where(attempt, beat)
        losses: list[float] = []
        first = math.inf
        for number in reversed(attempts):  # what a later one did again counts
            log = self._log(number, number == attempt.id)
            kept = bisect_left(log.steps, first)
            losses = [*log.losses[:kept], *losses] if losses else log.losses[:kept]
            first = min(first, log.steps[0] if log.steps else first)
        latest = self._logs[attempt.id].latest
        gaps = [
            (after - before) / (later - earlier)
            for (before, earlier), (after, later) in itertools.pairwise(latest)
            if later > earlier
        ]
        return Where(attempt, beat, losses, median(gaps) if gaps else None)

    def _log(self, attempt: int, live: bool) -> _Log:
        new = attempt not in self._logs
        log = self._logs.setdefault(attempt, _Log())
        if not live and not new:
            return log
        with suppress(OSError):
            lines, log.upto = read_metrics(self._folder.attempt(attempt).metrics, log.upto)
            for line in lines:
                match line:
                    case {"kind": "train", "step": int(step), "loss": float(loss), "at": float(at)}:
                        log.latest.append((step, at))
                        if math.isfinite(loss):
                            log.steps.append(step)
                            log.losses.append(loss)
            log.latest = log.latest[-LATEST:]
        return log
