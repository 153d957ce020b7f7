"""Why a candidate is in its state, in a sentence: what `nasd show` says of it first."""

from dataclasses import dataclass
from functools import cached_property

from nasd.contract import rungs
from nasd.contract.config import Config
from nasd.contract.errors import NasdError
from nasd.contract.protocol import Heartbeat, read
from nasd.contract.slots import devices, divided
from nasd.policy import ladder, scheduling
from nasd.record import daemon_lock
from nasd.record.folders import StateFolder
from nasd.record.lifecycle import CandidateKind, ExperimentState, State
from nasd.record.state import PAUSED, Attempt, Candidate, Member, Snapshot


@dataclass(frozen=True)
class Subject:
    """Of whom it is told. snapshot: of the whole search, which lies in `folder`."""

    snapshot: Snapshot
    folder: StateFolder
    config: Config
    candidate: Candidate
    now: float

    @cached_property
    def attempts(self) -> list[Attempt]:
        return [one for one in self.snapshot.attempts if one.candidate == self.candidate.id]

    @property
    def live(self) -> Attempt | None:
        return next((one for one in self.attempts if one.live), None)

    @cached_property
    def ladder(self) -> tuple[str, ...]:
        return ladder.steps_of(self.snapshot, self.config, self.candidate)

    @cached_property
    def memberships(self) -> list[Member]:
        return [one for one in self.snapshot.members if one.candidate == self.candidate.id]


def why(subject: Subject) -> str:
    """Why it is in its state, as a sentence without a full stop."""
    one = subject.candidate
    match one.state:
        case State.RUNNING:
            return _running(subject)
        case State.WAITING:
            return _waiting(subject)
        case State.SCORED:
            return _fate(subject)
        case State.PENDING:
            return _pending(subject)
    return one.reason


def _running(subject: Subject) -> str:
    live = subject.live
    if live is None:
        return "its attempt has just ended"
    if not daemon_lock.held(subject.folder.lock):
        return (
            f"no daemon serves the search: with `nasd run` it goes on from attempt {live.id}'s"
            " newest checkpoint"
        )
    where = f"attempt {live.id} runs on {' '.join(live.slots)}"
    try:
        beat = read(Heartbeat, subject.folder.attempt(live.id).heartbeat)
    except NasdError:  # not yet
        if live.message:  # of an attempt that lives: what it waits for
            return f"attempt {live.id} has not begun: {live.message}"
        return f"{where}, starting"
    steps = f", step {beat.step:,} of {beat.steps:,}" if beat.steps else ""
    return f"{where}: {beat.doing}{steps}"


def _waiting(subject: Subject) -> str:
    one = subject.candidate
    assert one.generation is not None
    born = subject.snapshot.born_in(one.generation)
    behind = [other.id for other in ladder.under_way(subject.config, born, one.stage)]
    paused = "paused at a checkpoint: " if rungs.SIGN in one.stage else ""
    return (
        f"{paused}the cutoff behind {one.stage} waits for {_numbers(behind)} of its generation"
        if behind
        else f"{paused}the cutoff behind {one.stage} is due"
    )


def _pending(subject: Subject) -> str:
    """What is in its way, the most general first."""
    experiment, one = subject.snapshot.experiment, subject.candidate
    if experiment.state is ExperimentState.HALTED:
        return f"the search has halted: {experiment.reason}"
    if not daemon_lock.held(subject.folder.lock):
        return "no daemon serves the search: go on with `nasd run`"
    if experiment.pause:
        return f"the search is {PAUSED[experiment.pause]} {experiment.pause_note}"
    if experiment.hold:
        return f"the search is on hold: {experiment.hold}"
    if scheduling.budget_spent(subject.snapshot, subject.config, subject.now):
        return "the budget is spent: raise it with `nasd budget`"
    ended = [tried for tried in subject.attempts if tried.stage == one.stage]
    last = f"; its last attempt ended so: {ended[-1].message}" if one.reason and ended else ""
    need = ladder.slots_needed(subject.config, one.stage, len(_slots(subject)))
    return f"waits for {need} free slot{'s' * (need > 1)}{last}"


def _slots(subject: Subject) -> tuple[str, ...]:
    listed, share = subject.config.slots.devices, subject.config.slots.share
    used = (slot for tried in subject.snapshot.attempts for slot in tried.slots)
    return divided(devices(used) if listed == "auto" else listed, share)


def _fate(subject: Subject) -> str:
    selected = [m for m in subject.memberships if m.survives is not None]
    if not selected:
        tries = subject.candidate.kind is CandidateKind.SCREENING
        return "has tried all mutants" if tries else "has climbed the whole ladder"
    last = selected[-1]
    newest = subject.snapshot.generation
    assert newest is not None
    if not last.survives:
        return f"has climbed the whole ladder; not selected in generation {last.generation}"
    if any(m.generation == newest.number for m in subject.memberships):
        return f"has climbed the whole ladder; among the survivors of generation {last.generation}"
    return f"has climbed the whole ladder; survived generation {last.generation}"


def _numbers(candidates: list[int]) -> str:
    """`candidate 3`, `candidates 3 and 5`, `candidates 3, 5 and 7`."""
    *others, last = map(str, candidates)
    return f"candidates {', '.join(others)} and {last}" if others else f"candidate {last}"
