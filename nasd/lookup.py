"""Finds the candidate that a person means: by its number, or as `baseline`, or as `best`."""

from nasd.errors import NasdError
from nasd.lifecycle import State
from nasd.snapshot import Candidate, Snapshot

BASELINE, BEST = "baseline", "best"


def find(snap: Snapshot, name: str) -> Candidate:
    """The candidate of that name; raises NasdError if there is none. snap: the whole search."""
    assert snap.whole
    if name == BASELINE:
        return snap.baseline
    if name == BEST:
        return _best(snap)
    if not (name.isascii() and name.isdigit()):
        raise NasdError(
            f"there is no candidate {name!r}: give its number, or {BASELINE}, or {BEST}"
        )
    candidate = snap.candidates.get(int(name))
    if candidate is None:
        raise NasdError(
            f"there is no candidate {name}: they have the numbers {min(snap.candidates)} to"
            f" {max(snap.candidates)}"
        )
    return candidate


def _best(snap: Snapshot) -> Candidate:
    """The best quality, the baseline's included; of equals the smallest, then the oldest."""
    scored = [one for one in snap.candidates.values() if one.state is State.SCORED]
    if not scored:
        raise NasdError("no candidate has a score yet: `nasd status` shows how far the search is")
    return max(scored, key=lambda one: (snap.quality(one.id) or 0.0, -one.parameters, -one.id))
