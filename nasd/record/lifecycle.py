"""The whole life of a candidate, an attempt and a generation, as data.

A candidate's stage is a column of its own and never part of a state's name: `pending` at
pretrain_0 and `pending` at finetune are the same state. `store.advance` is the only function
that moves a candidate along an edge of `TRANSITIONS`.
"""

from dataclasses import dataclass
from enum import StrEnum


class ExperimentState(StrEnum):
    RUNNING = "running"
    COMPLETE = "complete"  # all generations are through
    HALTED = "halted"  # a person has to mend the cause


class State(StrEnum):
    """Of a candidate."""

    PENDING = "pending"  # at its stage, waits for slots
    RUNNING = "running"  # an attempt at its stage is live
    WAITING = "waiting"  # has finished its stage, waits for the generation's cutoff
    SCORED = "scored"  # has climbed the whole ladder
    CUT = "cut"  # stopped by a cutoff, or by a person
    FAILED = "failed"  # stopped by a fault of its own


# Unless a person asks otherwise, or it is to be trained under another seed.
FINAL = frozenset({State.SCORED, State.CUT, State.FAILED})


class CandidateKind(StrEnum):
    """What a row of candidates is: whatever climbs stages, and is tried again when a machine fails,
    is one."""

    CANDIDATE = "candidate"  # of the population, or the baseline
    CONTROL = "control"  # the baseline, trained on as a generation's candidates are
    SCREENING = "screening"  # a parent, whose mutants are tried untrained


class Event(StrEnum):
    BORN = "born"
    START = "start"
    INTERRUPT = "interrupt"
    ADVANCE = "advance"
    HOLD = "hold"
    SCORE = "score"
    KEEP = "keep"
    CUT = "cut"
    FAIL = "fail"
    RETRY = "retry"
    REVIVE = "revive"
    REPEAT = "repeat"


@dataclass(frozen=True, slots=True)
class Transition:
    source: State | None
    event: Event
    target: State
    why: str


TRANSITIONS = (
    Transition(None, Event.BORN, State.PENDING, "bred, or taken from the seed as the baseline"),
    Transition(State.PENDING, Event.START, State.RUNNING, "slots are free: an attempt starts"),
    Transition(State.RUNNING, Event.INTERRUPT, State.PENDING, "the attempt ended, not the stage"),
    Transition(State.RUNNING, Event.ADVANCE, State.PENDING, "stage done, on to the next one"),
    Transition(State.RUNNING, Event.HOLD, State.WAITING, "stage done, a cutoff stands behind it"),
    Transition(State.RUNNING, Event.SCORE, State.SCORED, "last stage done, scores recorded"),
    Transition(State.RUNNING, Event.FAIL, State.FAILED, "diverged, or a fault of its own"),
    Transition(State.WAITING, Event.KEEP, State.PENDING, "among the best share at the cutoff"),
    Transition(State.WAITING, Event.CUT, State.CUT, "not among them, or taken out by request"),
    Transition(State.PENDING, Event.CUT, State.CUT, "taken out by request"),
    Transition(State.RUNNING, Event.CUT, State.CUT, "taken out by request, its attempt ended"),
    Transition(State.FAILED, Event.RETRY, State.PENDING, "by request, at its stage again"),
    Transition(State.SCORED, Event.REPEAT, State.PENDING, "to be selected: another seed first"),
    Transition(State.CUT, Event.REVIVE, State.PENDING, "by request: what did the cutoff miss?"),
)

_TARGETS = {(edge.source, edge.event): edge.target for edge in TRANSITIONS}


def target(source: State | None, event: Event) -> State:
    """Where `event` leads from `source`; raises ImpossibleTransition if nowhere."""
    try:
        return _TARGETS[source, event]
    except KeyError:
        raise ImpossibleTransition(source, event) from None


class ImpossibleTransition(AssertionError):
    """An invariant is broken: the table has no such edge, or another state was found."""

    def __init__(self, source: State | None, event: Event) -> None:
        super().__init__(f"no transition {event} from {source}")


class AttemptState(StrEnum):
    STARTING = "starting"  # the row exists, the process may not
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"  # the candidate's own fault, or an error that will not pass
    LOST = "lost"  # gone without an outcome: killed, crashed, machine down
    PREEMPTED = "preempted"  # stopped by the daemon at a checkpoint


LIVE_ATTEMPT = frozenset({AttemptState.STARTING, AttemptState.RUNNING})

ATTEMPT_TRANSITIONS = frozenset(
    {(AttemptState.STARTING, AttemptState.RUNNING)}
    | {(source, end) for source in LIVE_ATTEMPT for end in AttemptState if end not in LIVE_ATTEMPT}
)


class AttemptVerdict(StrEnum):
    """What an attempt that has ended is said to have come to: the worker's own verdict (those of
    nasd.contract.protocol), or that of the daemon."""

    NONE = ""  # it lives, or went without an outcome
    SUCCEEDED = "succeeded"
    STOPPED = "stopped"
    DIVERGED = "diverged"
    OUT_OF_MEMORY = "out_of_memory"
    INVALID = "invalid"
    MACHINE = "machine"
    ERROR = "error"
    INTERRUPTED = "interrupted"  # the daemon's own end took it along
    CUT = "cut"  # its candidate was cut by request


class QuarantineKind(StrEnum):
    """Why nothing new starts on a slot."""

    LOST = "lost"  # its GPU: what runs on it is ended
    UNKNOWN = "unknown"  # the driver does not answer
    FOREIGN = "foreign"  # somebody else is on it
    SUSPECT = "suspect"  # too many attempts in a row were lost on it


class DecisionKind(StrEnum):
    """Of what was decided about a generation."""

    SCREEN = "screen"
    BREED = "breed"
    CUTOFF = "cutoff"
    REPEAT = "repeat"
    SELECT = "select"


class Phase(StrEnum):
    """Of a generation."""

    BREEDING = "breeding"
    CLIMBING = "climbing"
    SELECTING = "selecting"
    COMPLETE = "complete"


NEXT_PHASE = {
    Phase.BREEDING: Phase.CLIMBING,
    Phase.CLIMBING: Phase.SELECTING,
    Phase.SELECTING: Phase.COMPLETE,
}


def diagram() -> str:
    """The transition table as a Mermaid state diagram; docs/architecture.md shows exactly this."""
    lines = ["stateDiagram-v2"]
    for edge in TRANSITIONS:
        source = edge.source or "[*]"
        lines.append(f"    {source} --> {edge.target}: {edge.event} ({edge.why})")
    lines += [f"    {state} --> [*]" for state in State if state in FINAL]
    return "\n".join(lines)
