"""What goes wrong with files: while a daemon runs, or between two of them."""

import contextlib
import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nasd.contract import digests
from nasd.contract.errors import NasdError
from nasd.contract.protocol import Heartbeat, Outcome, read, write_atomically
from nasd.record.folders import StateFolder
from nasd.record.lifecycle import State
from nasd.record.state import Snapshot

# Each of these is given the wall clock's time, and returns what it would do in words, and the deed:
# so that the words can be written down first, whoever is killed between. None: there is nothing to
# do it to.
Plan = tuple[dict[str, Any], Callable[[], None]] | None


def whole(checkpoint: Path) -> bool:
    """Whether its files are those that its manifest names."""
    try:
        manifest = json.loads((checkpoint / "manifest.json").read_text())
        digests.vouch(checkpoint, manifest, ["progress.json"])
    except (OSError, ValueError, NasdError):
        return False
    return True


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-"))


def checkpoint_damaged(
    state: StateFolder, found: Snapshot, draw: random.Random, now: float
) -> Plan:
    """The newest checkpoint of a stage on its way loses half a file, or has a bit flipped; if the
    one before it is whole, so that two intervals are the most that this costs."""
    goals = []
    for one in found.candidates.values():
        if one.state in (State.PENDING, State.RUNNING):
            there = [
                path
                for attempt in found.attempts
                if (attempt.candidate, attempt.stage) == (one.id, one.stage)
                for path in state.attempt(attempt.id).checkpoints.glob("step-*")
            ]
            newest = sorted(there, key=lambda path: path.name)[-2:]
            if len(newest) == 2 and all(map(whole, newest)):
                goals.append((one, *newest))
    if not goals:
        return None
    candidate, before, path = draw.choice(goals)
    try:
        file = draw.choice(sorted(path.iterdir()))
        content = bytearray(file.read_bytes())
        cut, at, bit = draw.random() < 0.5, draw.randrange(len(content)), draw.randrange(8)
    except (OSError, IndexError, ValueError):  # its worker replaces it just now
        return None

    def damage() -> None:
        with contextlib.suppress(OSError):
            if cut:
                os.truncate(file, len(content) // 2)
            else:
                content[at] ^= 1 << bit
                file.write_bytes(content)

    return {
        "candidate": candidate.id,
        "stage": candidate.stage,
        "step": step_of(path),
        "before": step_of(before),
        "file": file.name,
    }, damage


def outcome_torn(state: StateFolder, found: Snapshot, draw: random.Random, now: float) -> Plan:
    return _outcome(state, found, draw, now, torn=True)


def outcome_of_another(
    state: StateFolder, found: Snapshot, draw: random.Random, now: float
) -> Plan:
    return _outcome(state, found, draw, now, torn=False)


def _outcome(
    state: StateFolder, found: Snapshot, draw: random.Random, now: float, torn: bool
) -> Plan:
    """A running attempt finds an outcome in its folder that is not its own, or not whole."""
    live = [one for one in found.live_attempts if state.attempt(one.id).path.is_dir()]
    if not live:
        return None
    attempt = draw.choice(live)
    token = attempt.token if torn else "0" * 32
    path = state.attempt(attempt.id).outcome
    text = Outcome(verdict="diverged", token=token, message="of another attempt").model_dump_json()
    with contextlib.suppress(NasdError):  # as old as the last sign of life
        now = min(now, read(Heartbeat, state.attempt(attempt.id).heartbeat).at)

    def leave() -> None:
        write_atomically(path, text[: len(text) // 2 if torn else None].encode())
        os.utime(path, (now, now))

    return {"attempt": attempt.id}, leave


def files_left(state: StateFolder, found: Snapshot, draw: random.Random, now: float) -> Plan:
    """What a kill leaves of a file or folder that was being written or removed."""
    attempt = draw.choice(found.attempts) if found.attempts else None
    places = [state.backups / ".nasd-20200101-000000.db.tmp", state.path / ".nasd.db.tmp"]
    if attempt is not None:
        folder = state.attempt(attempt.id)
        home = state.candidate(attempt.candidate)
        places += [
            folder.path / ".outcome.json.4242.tmp",
            folder.path / ".spec.json.4242.tmp",
            folder.path / ".heartbeat.tmp",
            home / ".genotype.json.4242.tmp",
            home / f".{attempt.stage}.gone" / "model.json",
        ]
        if attempt.live:
            places.append(folder.checkpoints / ".step-000000001.tmp" / "progress.json")
    path = draw.choice(places)

    def leave() -> None:
        with contextlib.suppress(FileNotFoundError):  # its folder goes just now
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b'{"half of')

    return {"path": str(path.relative_to(state.path))}, leave


ALL = (checkpoint_damaged, outcome_torn, outcome_of_another, files_left)
