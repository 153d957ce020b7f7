"""What the workers of a candidate wrote to their logs, and go on to write."""

import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from nasd.contract import config as config_module
from nasd.contract.errors import NasdError
from nasd.policy import ladder
from nasd.record import lookup, snapshot
from nasd.record.folders import StateFolder
from nasd.record.state import Attempt, Candidate

POLL_SECONDS = 0.5
BLOCK = 1 << 16  # bytes that are read at once
LONGEST = 1 << 14  # bytes of a line that are shown


@dataclass(frozen=True)
class Wanted:
    """Whose logs: of the candidate, at one stage or at all, of the attempt of that number or of
    the newest."""

    candidate: int
    stage: str | None = None
    number: int | None = None


def find(state: Path, name: str, stage: str | None, number: int | None) -> Wanted:
    """Raises NasdError where there is no such candidate, or where its ladder lacks the stage."""
    with snapshot.opened(state) as connection:
        snap = snapshot.read(connection)
    candidate = lookup.find(snap, name)
    config = config_module.parse(snap.experiment.config, f"the experiment's config in {state}")
    steps = ladder.steps_of(snap, config, candidate)
    if stage is not None and stage not in steps:
        raise NasdError(
            f"there is no stage {stage!r} on the ladder of candidate {candidate.id}: take one of"
            f" {', '.join(steps)}"
        )
    return Wanted(candidate.id, stage, number)


def attempt(state: Path, wanted: Wanted) -> Attempt:
    """The newest attempt that is wanted; raises NasdError where there is none yet."""
    found, candidate = _attempts(state, wanted)
    if found:
        return _choose(found, wanted)
    where = f" at {wanted.stage}" if wanted.stage else ""
    raise NasdError(
        f"candidate {candidate.id} has had no attempt{where} yet: it is {candidate.state} at"
        f" {candidate.stage}"
    )


def _choose(found: Sequence[Attempt], wanted: Wanted) -> Attempt:
    """found: those at the wanted stage, or all; not empty."""
    newest = found[-1]
    if wanted.number is None:
        return newest
    at = [one for one in found if one.stage == newest.stage]
    for one in at:
        if one.number == wanted.number:
            return one
    raise NasdError(
        f"candidate {newest.candidate} has had no attempt {wanted.number} at {newest.stage}: the"
        f" newest one is {newest.number} (--stage names another stage)"
    )


class Cutting:
    """Passes text on a block at a time, and of a line no more than its first LONGEST bytes, with a
    word on how much was left out."""

    def __init__(self) -> None:
        self._length = 0  # of the line so far

    def __call__(self, block: bytes) -> bytes:
        found = []
        for piece in _lines(block):
            ends = piece.endswith(b"\n")
            text = piece[:-1] if ends else piece
            found.append(text[: max(0, LONGEST - self._length)])
            self._length += len(text)
            if ends:
                found += [self.rest(), b"\n"]
        return b"".join(found)

    def rest(self) -> bytes:
        """The mark of the line that ends here, if it was cut."""
        over, self._length = self._length - LONGEST, 0
        return f" ... [{over:,} bytes more]".encode() if over > 0 else b""


def _lines(block: bytes) -> list[bytes]:
    return [one for one in re.split(rb"(?<=\n)", block) if one]


def tail(state: Path, which: Attempt, lines: int) -> Iterator[bytes]:
    """The last so many lines of an attempt's log, 0 for all of it, a block at a time and long lines
    cut; raises NasdError where the log is gone."""
    cut = Cutting()
    at, end = bounds(state, which, lines)
    yield from map(cut, read(state, which, at, end))
    yield cut.rest()


def bounds(state: Path, which: Attempt, lines: int) -> tuple[int, int]:
    """Where the last so many lines of an attempt's log begin, and where it ends by now; raises
    NasdError where the log is gone."""
    path = StateFolder(state).attempt(which.id).log
    try:
        with path.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            return (_start(file, end, lines) if lines else 0), end
    except FileNotFoundError:
        raise NasdError(
            f"the log of candidate {which.candidate}'s attempt {which.number} at {which.stage} is"
            f" gone: there is no {path}"
        ) from None
    except OSError as error:
        raise NasdError(f"{path} cannot be read: {error.strerror or error}") from error


def _start(file: BinaryIO, end: int, lines: int) -> int:
    """Where the last so many lines begin; a last line without its end is one."""
    at, breaks = end, 0
    while at > 0:
        size = min(BLOCK, at)
        at -= size
        file.seek(at)
        block = file.read(size)
        place = len(block) - 1 if at + size == end else len(block)  # not the last line's own end
        while (place := block.rfind(b"\n", 0, place)) >= 0:
            breaks += 1
            if breaks == lines:
                return at + place + 1
    return 0


def follow(
    state: Path,
    wanted: Wanted,
    lines: int,
    turn: Callable[[Attempt | None], None],
    wait: Callable[[float], None] = time.sleep,
) -> Iterator[bytes]:
    """The newest attempt's log, and what comes, from one attempt to the next, until the candidate
    is final; or at the wanted stage alone, until it has left that; or of the wanted attempt alone,
    until that has ended.

    turn: told of each attempt before its text, and once of None where there is none yet. wait:
    called between two looks.
    """
    current: Attempt | None = None
    at, waits, cut = 0, False, Cutting()
    while True:
        # Before the log is read: what an ended attempt has written is all there by then.
        attempts, candidate = _attempts(state, wanted)
        if current is None and attempts:
            current = _choose(attempts, wanted)
            turn(current)
            at = 0 if _starting(state, current) else bounds(state, current, lines)[0]
        if current is not None:
            for block in read(state, current, at):
                at += len(block)
                yield cut(block)
        behind = 0 if current is None else current.id
        runs = any(one.id == behind and one.live for one in attempts)
        later = [one for one in attempts if one.id > behind and not runs]
        if not runs:
            yield cut.rest()
        left = wanted.stage is not None and candidate.stage != wanted.stage
        if current is not None and not runs and wanted.number is not None:
            return
        if later:
            current, at = later[0], 0
            turn(current)
        elif not runs and (candidate.final or (left and current is not None)):
            return
        else:
            if current is None and not waits:
                waits = True
                turn(None)
            wait(POLL_SECONDS)


def _starting(state: Path, which: Attempt) -> bool:
    """Whether its row is written, and its log not yet."""
    return which.live and not StateFolder(state).attempt(which.id).log.exists()


def read(state: Path, which: Attempt, at: int, end: int | None = None) -> Iterator[bytes]:
    """An attempt's log from byte `at` on, to `end` or as far as it goes; nothing as long as there
    is no file."""
    try:
        with StateFolder(state).attempt(which.id).log.open("rb") as file:
            file.seek(at)
            while block := file.read(BLOCK if end is None else min(BLOCK, end - at)):
                at += len(block)
                yield block
    except FileNotFoundError:
        return


def _attempts(state: Path, wanted: Wanted) -> tuple[list[Attempt], Candidate]:
    """The wanted candidate's attempts, oldest first, and the candidate as it is now."""
    with snapshot.opened(state) as connection:
        candidate, attempts = snapshot.of_candidate(connection, wanted.candidate)
    return [one for one in attempts if wanted.stage in (None, one.stage)], candidate
