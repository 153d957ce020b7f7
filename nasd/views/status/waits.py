"""Why a candidate waits, in a few words, by what nasd.policy.scheduling and nasd.policy.decisions
go by."""

from collections.abc import Mapping

from nasd.contract import rungs
from nasd.contract.config import Config
from nasd.contract.readable import about, counted
from nasd.policy import endings, ladder, scheduling
from nasd.record.lifecycle import State
from nasd.record.state import PAUSED, Candidate, Snapshot


def waits(snapshot: Snapshot, config: Config | None, slots: int, now: float) -> Mapping[int, str]:
    """By candidate, of all that are pending or waiting. slots: that can be used."""
    tried = {(one.candidate, one.stage) for one in snapshot.attempts}
    held = _nothing_starts(snapshot, config, now)
    found = {}
    for one in snapshot.candidates.values():
        if one.state is State.PENDING:
            found[one.id] = held or (
                _pending(snapshot, config, one, (one.id, one.stage) in tried, slots, now)
            )
    return found | _for_cutoffs(snapshot, config)


def _nothing_starts(snapshot: Snapshot, config: Config | None, now: float) -> str:
    if not snapshot.experiment.runs:
        return snapshot.experiment.state
    if snapshot.experiment.pause:
        return PAUSED[snapshot.experiment.pause]
    if snapshot.experiment.hold:
        return "on hold"
    if config is not None and scheduling.budget_spent(snapshot, config, now):
        return "the budget is spent"
    return ""


def _pending(
    snapshot: Snapshot, config: Config | None, one: Candidate, tried: bool, slots: int, now: float
) -> str:
    if config is None:
        return "waits for slots"
    if tried and (seconds := endings.backs_off(snapshot, one, now)):
        times = counted(len(endings.setbacks(snapshot, one)), "time")
        return f"lost {times}, {about(seconds)} more"
    return f"waits for {counted(ladder.slots_needed(config, one.stage, slots), 'slot')}"


def _for_cutoffs(snapshot: Snapshot, config: Config | None) -> dict[int, str]:
    waiting = [one for one in snapshot.candidates.values() if one.state is State.WAITING]
    if not waiting:
        return {}
    if config is None or snapshot.generation is None:
        return dict.fromkeys((one.id for one in waiting), "waits for the cutoff")
    born = snapshot.born_in(snapshot.generation.number)
    why = {}
    for stage in {one.stage for one in waiting}:
        left = len(ladder.under_way(config, born, stage))
        paused = "paused, " if rungs.SIGN in stage else ""
        why[stage] = f"{paused}cutoff waits for {left} of {len(born)}"
    return {one.id: why[one.stage] for one in waiting}
