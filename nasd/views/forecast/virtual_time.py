"""Drives a search on the simulated launcher: virtual time goes from one event to the next."""

import math
from collections.abc import Callable

from nasd.control.tick import Tick
from nasd.launch.simulated import SimulatedLauncher
from nasd.policy.endings import BACKOFF_SECONDS
from nasd.policy.scheduling import WIDEN_SECONDS, budget
from nasd.record.lifecycle import AttemptState, State
from nasd.record.state import Snapshot

IDLE_TURNS = 1000


class VirtualClock:
    """Time that passes only when told to, in seconds, in whole steps of 1/1024: so differences of
    instants are exact, and nothing ends a rounding error after it has ended."""

    def __init__(self, now: float = 1e6) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def advance_to(self, time: float) -> None:
        assert time >= self.now, f"time does not run backwards, from {self.now} to {time}"
        self.now = math.ceil(time * 1024) / 1024


def run(
    tick: Tick,
    clock: VirtualClock,
    launcher: SimulatedLauncher,
    *,
    until: Callable[[Snapshot], bool] = lambda snapshot: False,
    progress: Callable[[Snapshot, float], None] | None = None,
    longest_hours: float = 24.0,
) -> Snapshot:
    """Turns until the experiment is complete or halted, or `until` holds; the snapshot then.

    Between two turns the clock goes to the next thing that can happen: an attempt ends, a back-off
    is over, the budget is spent; or `longest_hours` have passed. While an attempt is stalled, turns
    come as often as it takes for that to be noticed. Raises AssertionError if nothing changes for
    a thousand turns.
    `until` and `progress` are shown what is in play.
    """
    idle, before = 0, None
    while True:
        launcher.look()  # so that every file is of this instant, whatever the tick reads first
        tick()
        snapshot = tick.store.in_play()
        if progress is not None:
            progress(snapshot, clock())
        if not snapshot.experiment.runs or until(snapshot):
            return tick.store.read()
        then = _next(tick, snapshot, launcher, clock())
        idle, before = idle + 1 if snapshot is before else 0, snapshot
        assert idle < IDLE_TURNS, "nothing ends, and nothing is decided"
        clock.advance_to(min(then, clock() + 3600 * longest_hours))


def _next(tick: Tick, snapshot: Snapshot, launcher: SimulatedLauncher, now: float) -> float:
    """When something can happen next. What is recorded speaks of the wall's clock."""
    daemon, wall = tick.config.daemon, tick.clock()
    times = [then for then in (launcher.next_event(),) if then is not None]
    if launcher.stalls():  # a daemon that looks less often takes the silence for its own absence
        times.append(now + 15 * min(daemon.start_minutes, daemon.stall_minutes))
    pending = {one.id for one in snapshot.candidates.values() if one.state is State.PENDING}
    last = {attempt.candidate: attempt for attempt in snapshot.attempts}
    for candidate in pending & last.keys():
        attempt = last[candidate]
        if attempt.ended_at is not None and attempt.state is not AttemptState.SUCCEEDED:
            since = now + attempt.ended_at - wall
            times += [since + seconds for seconds in BACKOFF_SECONDS]
    hours = budget(snapshot, tick.config)
    busy = sum(attempt.worth for attempt in snapshot.live_attempts)
    if hours is not None and busy:
        times.append(now + 3600 * (hours - snapshot.gpu_hours(wall)) / busy)
    if tick.config.slots.widen:
        times += [one.started_at + now - wall + WIDEN_SECONDS for one in snapshot.live_attempts]
    if launcher.running < len(snapshot.live_attempts):  # it has just been asked to stop
        times.append(now + daemon.tick_seconds)
    # What lies behind has been seen to in this turn, or waits for something else.
    return min((time for time in times if time > now), default=now + daemon.tick_seconds)
