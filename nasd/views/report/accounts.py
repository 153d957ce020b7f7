"""What was spent, on which attempts, stages and fates: pure functions of a snapshot."""

from collections.abc import Iterator, Sequence, Set
from statistics import median

from nasd.contract.config import PREPARE, SCREEN
from nasd.record.lifecycle import AttemptState, State
from nasd.record.state import Attempt, Snapshot
from nasd.views.report.rows import BASELINE, CONTROL, AttemptRow, CandidateRow, CostRow, FateRow


def attempts(snapshot: Snapshot, now: float) -> tuple[AttemptRow, ...]:
    lost = dict(_lost(snapshot, now))
    return tuple(
        AttemptRow(
            id=one.id,
            candidate=one.candidate,
            stage=one.stage,
            number=one.number,
            state=str(one.state),
            verdict=one.verdict,
            message=one.message,
            slots=" ".join(one.slots),
            started_at=one.started_at,
            ended_at=one.ended_at,
            reached=one.reached,
            gpu_hours=_held(one, now) / 3600,
            lost_gpu_hours=lost.get(one.id, 0.0) / 3600,
        )
        for one in snapshot.attempts
    )


def _held(attempt: Attempt, now: float) -> float:
    """Slot-seconds."""
    end = now if attempt.ended_at is None else attempt.ended_at
    return attempt.worth * max(0.0, end - attempt.started_at)


def _lost(snapshot: Snapshot, now: float) -> Iterator[tuple[int, float]]:
    """(attempt, slot-seconds) of those that ended before their stage's end: what they held,
    less what their newest checkpoint saved, at the pace of those that got to the end."""
    paces: dict[str, list[float]] = {}
    own: dict[tuple[int, str], float] = {}
    for key, tried in snapshot.attempts_at.items():
        result, last = snapshot.results.get(key), tried[-1]
        first = max((one.reached for one in tried[:-1]), default=0)
        if result is not None and result.steps > first:
            own[key] = _held(last, now) / (result.steps - first)
            paces.setdefault(key[1], []).append(own[key])
    usual = {stage: median(found) for stage, found in paces.items()}
    for key, tried in snapshot.attempts_at.items():
        pace = own.get(key, usual.get(key[1], 0.0))
        furthest = 0
        for one in tried:
            if not one.live and one.state is not AttemptState.SUCCEEDED:
                saved = pace * max(0, one.reached - furthest)
                yield one.id, max(0.0, _held(one, now) - saved)
            furthest = max(furthest, one.reached)


def costs(
    stages: Sequence[str],
    baseline: int,
    attempts: Sequence[AttemptRow],
    controls: Set[int] = frozenset(),
) -> tuple[CostRow, ...]:
    """A row a stage and who climbed it, in the order of the ladder."""
    groups: dict[tuple[str, str], list[AttemptRow]] = {}
    for one in attempts:
        who = BASELINE if one.candidate == baseline else "candidates"
        if one.candidate in controls:
            who = CONTROL
        if one.stage == SCREEN:
            who = PARENTS
        groups.setdefault((one.stage, who), []).append(one)
    broken = (AttemptState.LOST, AttemptState.PREEMPTED)
    return tuple(
        CostRow(
            stage=stage,
            who=who,
            candidates=len({one.candidate for one in tried}),
            attempts=len(tried),
            succeeded=sum(one.state == AttemptState.SUCCEEDED for one in tried),
            interrupted=sum(one.state in broken for one in tried),
            failed=sum(one.state == AttemptState.FAILED for one in tried),
            gpu_hours=sum(one.gpu_hours for one in tried),
            lost_gpu_hours=sum(one.lost_gpu_hours for one in tried),
        )
        for stage in (PREPARE, SCREEN, *stages)
        for who in (BASELINE, CONTROL, PARENTS, "candidates")
        if (tried := groups.get((stage, who)))
    )


PARENTS = "parents, for their mutants"


def beside(
    controls: Set[int], screenings: Set[int], attempts: Sequence[AttemptRow]
) -> tuple[FateRow, ...]:
    """What was spent on those that are no candidates."""
    return tuple(
        FateRow(name, len(who), sum(one.gpu_hours for one in attempts if one.candidate in who))
        for name, who in (("controls", controls), ("screening of mutants", screenings))
        if who
    )


def fates(candidates: Sequence[CandidateRow], final: Set[int]) -> tuple[FateRow, ...]:
    groups: dict[str, list[CandidateRow]] = {}
    for row in candidates:
        groups.setdefault(_fate(row, final), []).append(row)
    order = (BASELINE, "in the last population", "scored, not in it", "cut", "failed")
    return tuple(
        FateRow(fate, len(rows), sum(row.gpu_hours for row in rows))
        for fate in (*order, "under way")
        if (rows := groups.get(fate))
    )


def _fate(row: CandidateRow, final: Set[int]) -> str:
    if row.is_baseline:
        return BASELINE
    if row.id in final:
        return "in the last population"
    if row.quality is not None:
        return "scored, not in it"
    return row.state if row.state in (State.CUT, State.FAILED) else "under way"
