"""Where live attempts are: what their workers write, read on from where the last look ended."""

import itertools
import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from statistics import median

from nasd.contract.errors import NasdError
from nasd.contract.protocol import Heartbeat, read, read_metrics
from nasd.record.folders import StateFolder
from nasd.record.state import Attempt, Snapshot

COUNTING = ("training", "saving")  # what a worker does while it tells its stage's steps
LATEST = 6  # lines of a learning curve that tell how fast it goes


@dataclass(frozen=True, slots=True)
class Where:
    """beat: None before the first sign of life. counted: the newest that tells of the stage's own
    steps, and not of those of an evaluation, say. losses: of training, through the whole stage,
    also in earlier attempts at it. steps_per_second: None before two lines are logged."""

    attempt: Attempt
    beat: Heartbeat | None
    counted: Heartbeat | None = None
    losses: Sequence[float] = ()
    steps_per_second: float | None = None

    @property
    def share(self) -> float | None:
        """Of the stage's steps, from 0 to 1; None where it has none, or does not count them yet."""
        return None if self.counted is None else self.counted.step / self.counted.steps


@dataclass
class _Log:
    upto: int = 0
    counted: Heartbeat | None = None
    steps: list[int] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    latest: list[tuple[int, float]] = field(default_factory=list)  # (step, when)


class Listener:
    def __init__(self, folder: StateFolder) -> None:
        self._folder = folder
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
        if beat is not None and beat.steps and beat.doing in COUNTING:
            self._logs.setdefault(attempt.id, _Log()).counted = beat
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
        counted = self._logs[attempt.id].counted
        return Where(attempt, beat, counted, losses, median(gaps) if gaps else None)

    def _log(self, attempt: int, live: bool) -> _Log:
        log = self._logs.setdefault(attempt, _Log())
        if not live and log.upto:
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
