"""What an attempt's end means for its candidate, for the next attempt and for the slots it had, as
pure functions of a snapshot. No I/O, no clock.

`ending` reads one verdict; `setbacks` are those in a row, on which back-offs and halts rest.
"""

import math
import re
from collections.abc import Sequence

from nasd.contract import seeds
from nasd.contract.config import PREPARE, Config
from nasd.contract.protocol import Outcome, Verdict
from nasd.contract.schedule import smallest
from nasd.contract.slots import devices, is_gpu
from nasd.policy.ladder import after, stage_named
from nasd.record.lifecycle import AttemptState, AttemptVerdict, Event, State
from nasd.record.state import Attempt, Because, Candidate, Ending, Snapshot, Word

ERROR_RETRIES = 1  # an error of unknown cause gets one more chance
MACHINE_RETRIES = 1  # as does a file that was missing or damaged: it may have been the reading
RETRIES = {
    AttemptVerdict.ERROR: ERROR_RETRIES,
    AttemptVerdict.MACHINE: MACHINE_RETRIES,
    AttemptVerdict.INVALID: 0,
}
ALIKE = 3  # candidates in a row with the same error at a stage: that is none of theirs
SUSPICIOUS = 3  # attempts lost in a row on one GPU
BACKOFF_SECONDS = (5.0, 30.0, 120.0, 600.0)  # before the next attempt after lost ones
CLOCK_SLACK_SECONDS = 10.0  # by which a clock may run apart from the time that passed


def attempts_at(snapshot: Snapshot, candidate: int, stage: str) -> list[Attempt]:
    return snapshot.attempts_at.get((candidate, stage), [])


def halvings(snapshot: Snapshot, config: Config, candidate: Candidate, slots: int) -> int:
    """How often the micro-batch is halved on so many slots: once for each time that memory ran out,
    and so that each rank has no more to hold than on as many slots as the stage asks for."""
    stage = stage_named(config, candidate.stage)
    fewer = 0
    if stage is not None and stage.micro_batch is None:
        fewer = math.ceil(math.log2(max(1.0, stage.slots / slots)))
    return fewer + _shortages(snapshot, candidate)


def _shortages(snapshot: Snapshot, candidate: Candidate) -> int:
    ended = attempts_at(snapshot, candidate.id, candidate.stage)
    return sum(
        attempt.verdict is AttemptVerdict.OUT_OF_MEMORY and attempt.id > candidate.retried_after
        for attempt in ended
    )


def _at_its_smallest(snapshot: Snapshot, config: Config, attempt: Attempt) -> bool:
    """Whether the attempt had as little to hold at a time as can be."""
    candidate, slots = snapshot.candidates[attempt.candidate], len(attempt.slots)
    times = halvings(snapshot, config, candidate, slots)
    if candidate.stage == PREPARE:  # of which nothing is halved
        return times > 0
    return smallest(stage_named(config, candidate.stage), slots, times)


def setbacks(snapshot: Snapshot, candidate: Candidate) -> list[Attempt]:
    """The attempts in a row, up to now, that ended without getting on with this stage.

    One that wrote a checkpoint beyond those before it got on: a row begins anew with it. One that
    the daemon's own end took with it says nothing of the machine, and breaks no row; nor does one
    that is live, or that ran out of memory. What a person has seen counts no more.
    """
    row: list[Attempt] = []
    furthest = 0
    seen = max(snapshot.experiment.resumed_after, candidate.retried_after)
    for attempt in attempts_at(snapshot, candidate.id, candidate.stage):
        got_on, furthest = attempt.reached > furthest, max(furthest, attempt.reached)
        if got_on:
            row = []
        if attempt.live or attempt.verdict in (
            AttemptVerdict.INTERRUPTED,
            AttemptVerdict.OUT_OF_MEMORY,
        ):
            continue
        if attempt.state not in (AttemptState.LOST, AttemptState.FAILED):
            row = []
        elif attempt.id > seen:
            row = [*row, attempt]
    return row


def backs_off(snapshot: Snapshot, candidate: Candidate, now: float) -> float:
    """Seconds for which it still waits, because its last attempts were lost; 0 if it does not."""
    row = setbacks(snapshot, candidate)
    if not row:
        return 0.0
    ended = row[-1].ended_at
    assert ended is not None
    if now < ended - CLOCK_SLACK_SECONDS:  # the clock was set back: nobody is made to wait for that
        return 0.0
    wait = BACKOFF_SECONDS[min(len(row), len(BACKOFF_SECONDS)) - 1]
    return max(0.0, ended + wait - now)


def suspects(snapshot: Snapshot, slots: Sequence[str], after: int = 0) -> dict[str, str]:
    """GPUs to leave alone, each with the reason: the last attempts on it were all lost, by more
    than one candidate, while others got on elsewhere. The driver does not show every fault.

    after: the attempt behind which they count.
    """
    fit = [one for one in devices(slots) if is_gpu(one) and not snapshot.left_alone(one)]
    found = {}
    good = set()
    for slot in fit:
        ended = [
            a
            for a in snapshot.attempts
            if slot in devices(a.slots)
            and not a.live
            and a.verdict is not AttemptVerdict.INTERRUPTED
            if a.id > after
        ]
        last = ended[-SUSPICIOUS:]
        lost = [a for a in last if a.state is AttemptState.LOST and not a.reached]
        if len(lost) == SUSPICIOUS and len({a.candidate for a in lost}) > 1:
            found[slot] = (
                f"the last {SUSPICIOUS} attempts on it were lost (see"
                f" attempts/{lost[-1].id}/worker.log); starting nasd again tries it again"
            )
        elif last and not lost:
            good.add(slot)
    return found if good else {}


def worn_out(snapshot: Snapshot, candidate: Candidate, config: Config) -> str | None:
    """Why the search cannot go on with this candidate until a person has looked, or None."""
    if candidate.state is not State.PENDING:
        return None
    row = setbacks(snapshot, candidate)
    where = f"candidate {candidate.id} at {candidate.stage}"
    for verdict, retries in RETRIES.items():
        told = [attempt for attempt in row if attempt.verdict == verdict]
        if len(told) > retries:
            return f"{where}: {told[-1].message} (see attempts/{told[-1].id}/worker.log)"
    lost = [attempt for attempt in row if attempt.verdict not in RETRIES]
    if len(lost) > config.daemon.infrastructure_retries:
        return (
            f"{where} lost {len(lost)} attempts in a row without a fault of its own"
            f" ({row[-1].message}): see attempts/{row[-1].id}/worker.log, mend the machine, and"
            " start nasd again"
        )
    return None


def alike(snapshot: Snapshot, stage: str, message: str = "") -> list[Attempt]:
    """The attempts that ended last at a stage, as far back as they failed with the same error: one
    of each candidate, oldest first. What a person has seen counts no more.

    message: of the error, if not of the last one of them. Numbers in it may differ.
    """
    ended = [one for one in snapshot.attempts if one.stage == stage and one.ended_at is not None]
    ended.sort(key=lambda one: (one.ended_at, one.id))
    kind = _kind(message)
    row: dict[int, Attempt] = {}
    for one in reversed(ended):
        if (
            one.state in (AttemptState.LOST, AttemptState.PREEMPTED)
            or one.verdict is AttemptVerdict.MACHINE
        ):
            continue  # that says nothing of any candidate
        kind = kind or _kind(one.message)
        seen = one.id <= snapshot.experiment.resumed_after
        if seen or one.verdict is not AttemptVerdict.ERROR or _kind(one.message) != kind:
            break
        row.setdefault(one.candidate, one)
    return list(reversed(row.values()))


def _kind(message: str) -> str:
    return re.sub(r"\d+", "#", message.removeprefix("error: "))


def epidemic(snapshot: Snapshot, config: Config) -> str | None:
    """Why the search cannot go on, as candidates fail one after the other of the same error; or
    None. It is hardly theirs, and a person has to see whose."""
    if not any(one.verdict is AttemptVerdict.ERROR for one in snapshot.attempts):
        return None
    for stage in config.parts:
        row = alike(snapshot, stage.name)
        if len(row) >= ALIKE:
            failed = [
                one.candidate
                for one in row
                if snapshot.candidates[one.candidate].state is State.FAILED
            ]
            again = "".join(f", `nasd retry {one}`" for one in failed)
            return (
                f"{len(row)} candidates in a row failed at {stage.name} with the same error:"
                f" {row[-1].message} (see attempts/{row[-1].id}/worker.log); mend what is behind"
                f" it, then `nasd run`{again}"
            )
    return None


def all_failed(snapshot: Snapshot, generation: int) -> str | None:
    """Why a generation of which nobody is left is not selected from: all its candidates failed of
    errors, none of how it trained. None also where a person has seen it, and started nasd again."""
    born = snapshot.born_in(generation)
    numbers = {one.id for one in born}
    unseen = any(
        one.candidate in numbers and one.id > snapshot.experiment.resumed_after
        for one in snapshot.attempts
    )
    if not born or not unseen or not all(one.state is State.FAILED for one in born):
        return None
    if not all(one.reason.startswith(("error: ", "invalid: ")) for one in born):
        return None
    return (
        f"all {len(born)} candidates of generation {generation} failed, the last one at"
        f" {born[-1].stage} ({born[-1].reason}): mend what is behind it and have them tried again"
        f" with `nasd retry {born[-1].id}` and so on, or go on without them with `nasd run`"
    )


def heeded(
    snapshot: Snapshot,
    attempt: Attempt,
    outcome: Outcome | None,
    lost: str,
    word: Word,
    reached: int,
) -> tuple[Outcome | None, str]:
    """Outcome and loss of an attempt of whose end its launcher has something to say, too.

    What the worker says of its work stands, whoever ended it then. Where it was made to leave, or
    could say nothing, it was interrupted; where what it ran on failed, or its time was up, only if
    it got on before it left: that would go on for ever. reached: the step of its newest checkpoint.
    """
    if outcome is not None and outcome.verdict != Verdict.STOPPED:
        return outcome, lost
    told = f"{word.text}: {outcome.message}" if outcome is not None else word.text
    stopped = Outcome(verdict=Verdict.STOPPED, message=told)
    earlier = attempts_at(snapshot, attempt.candidate, attempt.stage)
    got_on = reached > max((one.reached for one in earlier), default=0)
    match word.because:
        case Because.LIMIT if not got_on:
            return None, f"{word.text} before it had got on: give it more time"
        case Because.LOST if outcome is None or not got_on:
            return None, told
    return stopped, lost


def ending(
    snapshot: Snapshot,
    config: Config,
    attempt: Attempt,
    outcome: Outcome | None,
    lost: str = "gone without an outcome",
    interrupted: bool = False,
) -> Ending:
    """Reads a worker's verdict; no outcome at all means that the attempt was lost.

    lost: how, in words. interrupted: it went with a daemon that was killed.
    """
    candidate = snapshot.candidates[attempt.candidate]
    if outcome is None:
        verdict = AttemptVerdict.INTERRUPTED if interrupted else AttemptVerdict.NONE
        return Ending(AttemptState.LOST, Event.INTERRUPT, None, lost, verdict)
    told = AttemptVerdict(outcome.verdict)
    match told:
        case AttemptVerdict.SUCCEEDED:
            has_head = outcome.prepared.has_mlm_head if outcome.prepared else None
            event, next_stage = after(snapshot, config, candidate, has_head)
            return Ending(AttemptState.SUCCEEDED, event, next_stage, "", told)
        case AttemptVerdict.STOPPED:
            return Ending(AttemptState.PREEMPTED, Event.INTERRUPT, None, outcome.message, told)
        case AttemptVerdict.OUT_OF_MEMORY if not _at_its_smallest(snapshot, config, attempt):
            message = f"out of memory, tried again at half the micro-batch: {outcome.message}"
            return Ending(AttemptState.FAILED, Event.INTERRUPT, None, message, told)
        case AttemptVerdict.MACHINE:  # never the candidate's: where it stays, see worn_out
            return Ending(AttemptState.FAILED, Event.INTERRUPT, None, outcome.message, told)
        case AttemptVerdict.INVALID if candidate.is_baseline:
            # A person mends the data, see worn_out.
            return Ending(AttemptState.FAILED, Event.INTERRUPT, None, outcome.message, told)
        case AttemptVerdict.ERROR:
            errors = sum(
                one.verdict is AttemptVerdict.ERROR for one in setbacks(snapshot, candidate)
            )
            row = alike(snapshot, attempt.stage, outcome.message)
            others = {one.candidate for one in row} - {candidate.id}
            # Without the baseline there is no search: a person has to look, see worn_out.
            if errors < ERROR_RETRIES or candidate.is_baseline or len(others) + 1 >= ALIKE:
                return Ending(AttemptState.FAILED, Event.INTERRUPT, None, outcome.message, told)
    message = f"{told}: {outcome.message}"
    if (nth := seeds.nth_of(candidate.stage)) > 1:
        # It has a score, and keeps it: that of the seeds before.
        scored = seeds.scoring_stage(snapshot.config_stages, nth - 1)
        return Ending(AttemptState.FAILED, Event.SCORE, scored, message, told)
    return Ending(AttemptState.FAILED, Event.FAIL, None, message, told)


def scores(candidate: Candidate, end: Ending) -> bool:
    """Whether it comes to a score by this end, that of a seed or the last."""
    if end.state is not AttemptState.SUCCEEDED:
        return False
    goes_on = end.next_stage or candidate.stage
    return end.event is Event.SCORE or seeds.nth_of(goes_on) > seeds.nth_of(candidate.stage)
