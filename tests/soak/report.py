"""What must hold at the end, read from what a search has left; and the table that says so."""

import hashlib
import math
import sqlite3
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from nasd.contract import variables
from nasd.contract.config import Config
from nasd.control import backups, retention
from nasd.record import snapshot
from nasd.record.folders import StateFolder
from nasd.record.lifecycle import ATTEMPT_TRANSITIONS, LIVE_ATTEMPT, TRANSITIONS, Event
from nasd.record.state import Snapshot

SECONDS_OFF = 1e-3  # that a sum of floats may be off by
SURE = 10.0  # slot-seconds to which it is known what was held, or it counts as not sure


@dataclass
class Part:
    """One half of the report. numbers: in the order in which they are shown."""

    name: str
    numbers: dict[str, Any] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)

    def check(self, name: str, found: Collection[str]) -> None:
        """A number that has to be 0, and what it counts."""
        self.numbers[name] = len(found)
        self.violations += found


# -- who held what, and when -----------------------------------------------------------------------


@dataclass(frozen=True)
class Span:
    """An attempt from begin to end: numbers of events, or seconds."""

    attempt: int
    candidate: int
    slots: tuple[str, ...]
    begin: float
    end: float = math.inf


def spans_by_event(connection: sqlite3.Connection, found: Snapshot) -> list[Span]:
    """By the numbers of the events that began and ended them: no clock has a part in it."""
    seen: dict[int, list[int]] = {}
    for number, attempt in connection.execute(
        "SELECT id, attempt FROM event WHERE attempt IS NOT NULL ORDER BY id"
    ):
        seen.setdefault(attempt, []).append(number)
    return [
        Span(one.id, one.candidate, one.slots, *map(float, seen.get(one.id, [])[:2]))
        for one in found.attempts
        if seen.get(one.id)
    ]


def spans_by_time(found: Snapshot) -> list[Span]:
    """By the times in the rows of attempts, where the clock was right."""
    return [
        Span(a.id, a.candidate, a.slots, a.started_at, math.inf if a.live else a.ended_at or 0.0)
        for a in found.attempts
    ]


def at_once(spans: Iterable[Span], slack: float = 0.0) -> tuple[list[str], list[str]]:
    """Two attempts on one slot at once, and two of one candidate at once."""
    by_slot: dict[str, list[Span]] = {}
    by_candidate: dict[int, list[Span]] = {}
    for one in spans:
        by_candidate.setdefault(one.candidate, []).append(one)
        for slot in one.slots:
            by_slot.setdefault(slot, []).append(one)

    def overlaps(what: str, ones: list[Span]) -> list[str]:
        ones.sort(key=lambda one: (one.begin, one.attempt))
        found = []
        last = ones[0]
        for one in ones[1:]:
            if one.begin + slack < last.end:
                found.append(f"attempts {last.attempt} and {one.attempt} had {what} at once")
            last = max(last, one, key=lambda one: one.end)
        return found

    doubles = [text for slot, ones in by_slot.items() for text in overlaps(slot, ones)]
    twice = [text for who, ones in by_candidate.items() for text in overlaps(f"{who}", ones)]
    return doubles, [text.replace(" had ", " were of candidate ") for text in twice]


def leases_wrong(found: Snapshot) -> list[str]:
    """At one instant: every slot of a live attempt is leased to it, and no other is leased."""
    held = {slot: one.id for one in found.live_attempts for slot in one.slots}
    slots = sum(len(one.slots) for one in found.live_attempts)
    if held == found.leases and len(held) == slots:
        return []
    live = {one.id: one.slots for one in found.live_attempts}
    return [f"live attempts {live}, leases {found.leases}"]


# -- the history -----------------------------------------------------------------------------------


def impossible(connection: sqlite3.Connection, found: Snapshot) -> list[str]:
    """Events of candidates that are not in the table, or do not follow one another; attempts that
    did not begin and end once each."""
    table = {(edge.source, edge.event, edge.target) for edge in TRANSITIONS}
    at: dict[int, str | None] = {}
    told: Counter[tuple[int, bool]] = Counter()
    wrong = []
    for number, candidate, attempt, event, source, target in connection.execute(
        "SELECT id, candidate, attempt, event, source, target FROM event"
        " WHERE candidate IS NOT NULL ORDER BY id"
    ):
        if (source, event, target) not in table:
            wrong.append(f"event {number}: no {event} from {source} to {target}")
        if at.get(candidate) != source:
            wrong.append(f"event {number}: {event} from {source}, not {at.get(candidate)}")
        at[candidate] = target
        if attempt is not None:
            told[attempt, event == Event.START] += 1
    for one in found.candidates.values():
        if at.get(one.id) != one.state:
            wrong.append(f"candidate {one.id} is {one.state}, its events end at {at.get(one.id)}")
    ends = {end for _, end in ATTEMPT_TRANSITIONS}
    for attempt in found.attempts:
        once = (told[attempt.id, True], told[attempt.id, False])
        if once != (1, int(not attempt.live)) or attempt.state not in ends | LIVE_ATTEMPT:
            wrong.append(f"attempt {attempt.id}, {attempt.state}, began and ended {once} times")
    return wrong


def ledger(
    connection: sqlite3.Connection, found: Snapshot, held: Mapping[int, tuple[float, float]]
) -> tuple[dict[str, Any], list[str]]:
    """The experiment's total against the sum over its attempts, and that against what was seen.

    held: slot-seconds of an attempt as somebody else has seen them, and how exactly."""
    total = connection.execute("SELECT slot_seconds FROM experiment").fetchone()[0]
    of = {one.id: len(one.slots) * (one.ended_at - one.started_at)
          for one in found.attempts if one.ended_at is not None}  # fmt: skip
    wrong = []
    if abs(total - sum(of.values())) > SECONDS_OFF * max(1, len(of)):
        wrong.append(f"the ledger says {total:.3f} slot-seconds, its attempts {sum(of.values())}")
    wrong += [
        f"attempt {one} is charged {of[one]:.3f} slot-seconds, seen were {seconds:.3f}"
        for one, (seconds, exact) in held.items()
        if abs(of[one] - seconds) > exact
    ]
    off: dict[bool, float] = {True: 0.0, False: 0.0}
    for one, (seconds, exact) in held.items():
        off[exact < SURE] += of[one] - seconds
    return {
        "GPU-hours in the ledger": round(total / 3600, 3),
        "... less the sum over attempts, s": round(total - sum(of.values()), 6),
        "... less what was seen, s": round(off[True], 3),
        "... and where that is not sure, s": round(off[False], 3),
    }, wrong


# -- steps done again ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Progress:
    """How far an attempt came. first: the step it began at; done: the last one done; kept: of its
    newest checkpoint. rate: checkpoint intervals to a step."""

    attempt: int
    candidate: int
    stage: str
    first: int
    done: int
    kept: int
    rate: float


# Where checkpoints were damaged, by candidate and stage: their steps, and of each the step of the
# one before it, which was whole.
Damaged = Mapping[tuple[int, str], Mapping[int, int]]


def damage(told: Iterable[Mapping[str, Any]]) -> Damaged:
    """From what mischief.checkpoint_damaged has told."""
    found: dict[tuple[int, str], dict[int, int]] = {}
    for one in told:
        found.setdefault((one["candidate"], one["stage"]), {})[one["step"]] = one["before"]
    return found


def done_again(
    progress: Iterable[Progress], damaged: Damaged, slack: float = 0.0
) -> tuple[dict[str, Any], list[str]]:
    """What each attempt did again of what the one before it at its stage had done: at most one
    interval; two where a checkpoint was damaged. slack: in intervals, on top of that."""
    row: dict[tuple[int, str], list[Progress]] = {}
    for one in progress:
        row.setdefault((one.candidate, one.stage), []).append(one)
    steps, reruns, wrong = 0, 0, []
    most = {False: 0.0, True: 0.0}
    for where, ones in row.items():
        hurt = damaged.get(where, {})
        for number, one in enumerate(ones[1:], 1):
            earlier = ones[:number]
            lost = max(0, earlier[-1].done - one.first)
            steps += lost
            reruns += one.first == 0 and any(before.done > 0 for before in earlier)
            intervals = lost * earlier[-1].rate
            most[bool(hurt)] = max(most[bool(hurt)], intervals)
            name = f"attempt {one.attempt} (candidate {where[0]} at {where[1]})"
            if intervals > 1 + bool(hurt) + slack:
                wrong.append(f"{name} did {lost} steps again: {intervals:.2f} intervals")
            kept = max(hurt.get(before.kept, before.kept) for before in earlier)
            if one.first < kept:
                wrong.append(f"{name} began at step {one.first}, a checkpoint stood at {kept}")
    return {
        "stages begun anew": reruns,
        "steps done again": steps,
        "... the most at once, in intervals": round(most[False], 2),
        "... where a checkpoint was damaged": round(most[True], 2),
    }, wrong


# -- processes and files ---------------------------------------------------------------------------


def carrying(variable: str, values: Collection[str]) -> list[tuple[psutil.Process, str, list[str]]]:
    """The processes with one of these values in their environment, and their commands."""
    found = []
    for process in psutil.process_iter():
        try:
            value = process.environ().get(variable)
            if value in values and process.status() != psutil.STATUS_ZOMBIE:
                found.append((process, value, process.cmdline()))
        except psutil.Error:
            continue
    return found


def orphans(found: Snapshot) -> list[str]:
    """Processes of this search's attempts."""
    tokens = {one.token: one.id for one in found.attempts}
    return [
        f"process {process.pid} of attempt {tokens[token]} is left: {' '.join(command)[:100]}"
        for process, token, command in carrying(variables.TOKEN, tokens)
    ]


def disk(state: StateFolder, config: Config) -> list[str]:
    """What stands below candidates/ and attempts/ and should be gone.

    Weights: what is needed now, was needed at one of the last two backups (a collection follows a
    backup, and a kill may come between them), or came after that.
    """
    wanted: set[tuple[int, str]] = set()
    known: set[tuple[int, str]] = set()
    last = sorted(state.backups.glob("nasd-*.db"))[-2:]
    for path in (state.database, *last):
        with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as connection:
            found = snapshot.read(connection)
            play = snapshot.read(connection, whole=False)
            scored = snapshot.scored(connection)
        connection.close()
        wanted |= retention.needed(play, config, scored)
        known = set(found.results)
    wrong = []
    for path in sorted(state.path.glob("candidates/*/*")):
        if path.is_dir() and not path.name.startswith("."):
            place = (int(path.parent.name), path.name)
            evaluated = any(one.name == path.name and one.train == "none" for one in config.parts)
            if place not in wanted and place in known and not evaluated:
                wrong.append(f"{path.relative_to(state.path)} is needed by nobody")
    for name in ("checkpoints", "result"):
        left = sorted(state.path.glob(f"attempts/*/{name}"))
        wrong += [f"{path.relative_to(state.path)} is left" for path in left]
    if len(list(state.backups.glob("nasd-*.db"))) > backups.KEPT:
        wrong.append(f"more than {backups.KEPT} backups are left")
    return wrong


def unequal(one: StateFolder, other: StateFolder) -> tuple[int, list[str]]:
    """How many models stand in both, and which of them differ."""
    both, wrong = 0, []
    for path in sorted(one.path.glob("candidates/*/*/model.*")):
        twin = other.path / path.relative_to(one.path)
        if twin.exists():
            both += 1
            if _digest(path) != _digest(twin):
                wrong.append(f"{path.relative_to(one.path)} differs")
    return both, wrong


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def differences(expected: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """Where two stories part."""
    wrong = []
    for key in expected:
        here, there = expected[key], found[key]
        if here == there:
            continue
        detail = f"{here!r} and {there!r}"
        if isinstance(here, dict):
            names = [n for n in {**here, **there} if here.get(n) != there.get(n)]
            pairs = [f"{n}: {here.get(n)!r} and {there.get(n)!r}" for n in names]
            detail = "; ".join(pairs[:3])
        wrong.append(f"the story differs in {key}: {detail[:600]}")
    return wrong


def look_back(
    part: Part,
    state: StateFolder,
    config: Config,
    held: Mapping[int, tuple[float, float]],
    spans: Iterable[tuple[list[Span], float]],
    polled: Collection[str],
) -> None:
    """Adds to the report what the database and the disk say. spans: more of them, with slack."""
    with snapshot.opened(state.path) as connection:
        found = snapshot.read(connection)
        states = Counter(str(one.state) for one in found.attempts)
        part.numbers["attempts"] = f"{len(found.attempts)}: " + ", ".join(
            f"{count} {name}" for name, count in sorted(states.items())
        )
        doubles, twice = at_once(spans_by_event(connection, found))
        for more, slack in spans:
            also = at_once(more, slack)
            doubles, twice = doubles + also[0], twice + also[1]
        part.check("double leases", [*doubles, *polled, *leases_wrong(found)])
        part.check("candidates with two attempts at once", twice)
        part.check("impossible events", impossible(connection, found))
        numbers, wrong = ledger(connection, found, held)
        part.numbers |= numbers
        part.check("ledger errors", wrong)
    part.check("orphans at the end", orphans(found))
    part.check("files that should be gone", disk(state, config))


# -- the table -------------------------------------------------------------------------------------


def show(parts: list[Part], console: Console) -> None:
    table = Table("", *(part.name for part in parts), title="soak")
    for name in {name: None for part in parts for name in part.numbers}:
        table.add_row(name, *(str(part.numbers.get(name, "")) for part in parts))
    verdicts = ["all of it held" if not part.violations else "VIOLATED" for part in parts]
    table.add_section()
    table.add_row("verdict", *verdicts)
    console.print(table)
    for part in parts:
        for text in part.violations:
            console.print(f"{part.name}: {text}", markup=False, highlight=False)


def as_json(parts: list[Part], **more: Any) -> dict[str, Any]:
    holds = not any(part.violations for part in parts)
    return {**more, "holds": holds, "parts": [asdict(part) for part in parts]}
