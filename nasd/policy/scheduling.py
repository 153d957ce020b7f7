"""Which attempts start, on which slots, and which one is stopped to get more of them, as pure
functions of a snapshot, the slots and the time. No I/O, no clock of its own.

`starts` gives idle slots away and `widening` stops one that should have them; neither does
anything once the budget is spent.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nasd.contract import tasks
from nasd.contract.config import Config
from nasd.contract.protocol import Heartbeat
from nasd.contract.slots import Slot, free
from nasd.contract.volumes import Volumes
from nasd.policy.endings import attempts_at, backs_off, setbacks
from nasd.policy.ladder import (
    alone,
    slots_needed,
    stage_named,
    steps_of,
    turn,
    undivided,
    way,
)
from nasd.record.lifecycle import State
from nasd.record.state import Attempt, Snapshot

WIDEN_SECONDS = 600.0  # that an attempt has behind it and before it, to be stopped for more slots
WIDER = 1.5  # times as many slots, at the least


@dataclass(frozen=True)
class Start:
    candidate: int
    stage: str
    slots: tuple[str, ...]


def starts(snapshot: Snapshot, config: Config, slots: Sequence[str], now: float) -> list[Start]:
    """Which attempts to start on the free ones of `slots`: what is furthest up the ladder first,
    of one stage the baseline, then as nasd.policy.ladder.turn has it.

    Who does not fit lets smaller ones pass, and a candidate whose last attempts were lost waits for
    its back-off. Where nobody is left to wait, `slots.widen` gives away what would be idle.
    """
    if not _may_start(snapshot, config, now):
        return []
    fit = [slot for slot in slots if not snapshot.left_alone(slot)]
    left = _spread(free(fit, snapshot.leases))
    pending = [c for c in snapshot.candidates.values() if c.state is State.PENDING]
    pending.sort(
        key=lambda c: (
            -steps_of(snapshot, config, c).index(c.stage),
            not c.is_baseline,
            *turn(snapshot, config, c),
        )
    )
    found: dict[int, tuple[str, ...]] = {}
    for candidate in pending:
        if not left:
            break
        need = slots_needed(config, candidate.stage, len(fit))
        if need <= len(left) and not backs_off(snapshot, candidate, now):
            taken = _take(config, candidate.stage, left, need)
            if taken is not None:
                found[candidate.id], left = taken
    if config.slots.widen and len(found) == len(pending):
        held = {one.candidate: len(one.slots) for one in snapshot.live_attempts}
        held |= {number: len(its) for number, its in found.items()}
        for number, its in found.items():
            held[number] = _width(snapshot, config, number, held, len(left), len(fit))
            more = held[number] - len(its)
            found[number], left = (*its, *left[:more]), left[more:]
    return [Start(number, snapshot.candidates[number].stage, its) for number, its in found.items()]


def idle(snapshot: Snapshot, config: Config, slots: Sequence[str]) -> bool:
    """Whether there are free slots, enough for a candidate's first stage, and nobody to have
    them."""
    experiment = snapshot.experiment
    if not experiment.runs or experiment.hold or experiment.pause:
        return False
    if any(one.state is State.PENDING for one in snapshot.candidates.values()):
        return False
    fit = [slot for slot in slots if not snapshot.left_alone(slot)]
    need = slots_needed(config, config.entry.name, len(fit))
    return len(free(fit, snapshot.leases)) >= need


def _spread(left: Sequence[str]) -> list[str]:
    """Free slots in the order in which they are given away: of devices that are shared, those come
    first on which the fewest others will run."""
    counts = Counter(Slot.parse(slot).device for slot in left)
    busy = {}
    for slot in left:
        one = Slot.parse(slot)
        busy[slot] = one.shares - counts[one.device]
        counts[one.device] -= 1
    return sorted(left, key=lambda slot: busy[slot])


def _take(
    config: Config, name: str, left: list[str], need: int
) -> tuple[tuple[str, ...], list[str]] | None:
    """As many of the free slots as a stage needs, and the others; None where they do not fit. Those
    of one attempt are of different devices, where it does not need all of one."""
    if alone(config, name):
        return tuple(left[:need]), left[need:]
    if undivided(config, name):
        counts = Counter(Slot.parse(slot).device for slot in left)
        whole = [device for device, count in counts.items() if count == need]
        own = [slot for slot in left if Slot.parse(slot).device in whole[:1]]
        return (tuple(own), [slot for slot in left if slot not in own]) if own else None
    its: dict[str, str] = {}
    passed = []
    for at, slot in enumerate(left, 1):
        device = Slot.parse(slot).device
        if device in its:
            passed.append(slot)
        else:
            its[device] = slot
        if len(its) == need:
            return tuple(its.values()), passed + left[at:]
    return None


def widening(
    snapshot: Snapshot,
    config: Config,
    slots: Sequence[str],
    now: float,
    beats: Mapping[int, Heartbeat],
) -> Attempt | None:
    """The attempt to stop at a checkpoint, because `starts` would then give it idle slots as well;
    of several the one with longest to go. beats: the newest of each live attempt.

    Nobody is stopped while a candidate is pending, nor before it has run for WIDEN_SECONDS, nor
    with less than that to go: a stop and a start cost a minute or so.
    """
    pending = any(c.state is State.PENDING for c in snapshot.candidates.values())
    if pending or not config.slots.widen or not _may_start(snapshot, config, now):
        return None
    fit = [slot for slot in slots if not snapshot.left_alone(slot)]
    held = {one.candidate: len(one.slots) for one in snapshot.live_attempts}
    found = []
    for attempt in snapshot.live_attempts:
        to_go = _seconds_to_go(snapshot, attempt, beats.get(attempt.id))
        if to_go < WIDEN_SECONDS:
            continue
        own = len(attempt.slots)
        taken = snapshot.leases.keys() - set(attempt.slots)
        idle = sum(slot not in taken for slot in fit) - own
        if _width(snapshot, config, attempt.candidate, held, idle, len(fit)) > own:
            found.append((to_go, -attempt.id, attempt))
    return max(found)[-1] if found else None


def _seconds_to_go(snapshot: Snapshot, attempt: Attempt, beat: Heartbeat | None) -> float:
    """Until the attempt's last step, if it gets on as it did so far; 0 where that is not known, or
    not yet for sure."""
    earlier = attempts_at(snapshot, attempt.candidate, attempt.stage)
    first = max((one.reached for one in earlier if not one.live), default=0)
    if beat is None or beat.step <= first or beat.age < WIDEN_SECONDS:
        return 0.0
    return (beat.steps - beat.step) * beat.age / (beat.step - first)


def _width(
    snapshot: Snapshot, config: Config, number: int, held: Mapping[int, int], idle: int, fit: int
) -> int:
    """How many slots the attempt of candidate `number` may have, in place of those in `held`.

    Of the idle ones it gets those that nobody under way will ask for, as a stage further up may
    want more than are held now; up to an equal share of the `fit` that can be used, and to one an
    example of a batch. Less than half as many again are not worth a stop.
    held: by each candidate that runs or starts.
    """
    candidate, own = snapshot.candidates[number], held[number]
    stage = stage_named(config, candidate.stage)
    if stage is None or stage.train == "none":  # without checkpoints it would begin anew
        return own
    if candidate.is_baseline and snapshot.generation is not None:
        return own  # no cutoff waits for it: many may come to be pending while it runs
    if setbacks(snapshot, candidate):  # what it is lost of may be the many slots
        return own
    for other, its in held.items():
        if other != number:
            ahead = way(snapshot, config, snapshot.candidates[other])
            wanted = [slots_needed(config, later.name, fit) - its for later in ahead]
            idle -= max([0, *wanted])
    volumes = Volumes.of(snapshot.experiment.prepared or {}, config.data)
    examples = tasks.of(stage.task).examples(volumes)
    wide = min(own + idle, fit // len(held), stage.batch, examples)
    need = slots_needed(config, stage.name, fit)  # with fewer it would not start again
    return wide if wide >= max(need, WIDER * own) else own


def _may_start(snapshot: Snapshot, config: Config, now: float) -> bool:
    experiment = snapshot.experiment
    running = experiment.runs and not experiment.hold and not experiment.pause
    return running and not budget_spent(snapshot, config, now)


def budget(snapshot: Snapshot, config: Config) -> float | None:
    """GPU-hours that the search may take; None without a limit."""
    return snapshot.experiment.budget(config.experiment.budget_gpu_hours)


def budget_spent(snapshot: Snapshot, config: Config, now: float) -> bool:
    hours = budget(snapshot, config)
    return hours is not None and snapshot.gpu_hours(now) >= hours
