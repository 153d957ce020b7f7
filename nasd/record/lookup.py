"""Finds the candidate that a person means: by its number, or as `baseline`, or as `best`."""

import sqlite3
from collections.abc import Callable
from dataclasses import dataclass

from nasd.contract.errors import NasdError
from nasd.contract.readable import of_baseline, shown
from nasd.record.lifecycle import State
from nasd.record.snapshot import scored as all_scored
from nasd.record.state import Candidate, Scored, Snapshot
from nasd.search.objectives import QUALITY

BASELINE, BEST = "baseline", "best"


@dataclass(frozen=True, slots=True)
class Wish:
    """What `best` is to mean. smallest_within: not the best quality, but the fewest parameters of
    those at most so many points below it. max_parameters: share of the baseline's, in percent."""

    smallest_within: float | None = None
    max_parameters: float | None = None

    @property
    def any(self) -> bool:
        return self.smallest_within is not None or self.max_parameters is not None


ANY = Wish()


def find(
    snap: Snapshot,
    name: str,
    wish: Wish = ANY,
    stands: Callable[[Candidate], bool] = lambda _: True,
) -> Candidate:
    """The candidate of that name; raises NasdError if there is none. snap: the whole search.
    stands: of whom `best` may be, as long as it is so of anybody."""
    if wish.any and name != BEST:
        raise NasdError(
            f"--smallest-within and --max-parameters choose what {BEST} is: give {BEST} in the"
            f" place of {name}"
        )
    assert snap.whole
    if name == BASELINE:
        return snap.baseline
    if name == BEST:
        return _best(snap, wish, stands)
    if not (name.isascii() and name.isdigit()):
        raise NasdError(
            f"there is no candidate {shown(name)}: give its number, or {BASELINE}, or {BEST}"
        )
    candidate = snap.candidates.get(int(name)) if len(name) < 20 else None  # of 64 bits
    if candidate is None:
        told = name if len(name) < 20 else shown(name)
        raise NasdError(
            f"there is no candidate {told}: they have the numbers"
            f" {min(snap.candidates)} to {max(snap.candidates)}"
        )
    return candidate


def _best(snap: Snapshot, wish: Wish, stands: Callable[[Candidate], bool]) -> Candidate:
    """The best quality, the baseline's included; of equals the smallest, then the oldest. With a
    wish: of those small enough, and of these the smallest that is within so many points. Whoever
    breaks the experiment's limits is only taken where nobody holds them."""
    scored = [one for one in snap.individuals if one.state is State.SCORED]
    if not scored:
        raise NasdError("no candidate has a score yet: `nasd status` shows how far the search is")
    scored = [one for one in scored if stands(one)] or scored
    if wish.max_parameters is not None:
        most = wish.max_parameters * snap.baseline.parameters / 100
        least = min(one.parameters for one in scored)
        scored = [one for one in scored if one.parameters <= most]
        if not scored:
            raise NasdError(
                f"no scored candidate has {wish.max_parameters:g} % of the baseline's parameters or"
                f" fewer: the smallest has {of_baseline(snap.baseline.parameters / least)}, so give"
                " --max-parameters more"
            )
    scored = [one for one in scored if not snap.missed(one.id)] or scored
    if wish.smallest_within is not None:
        highest = max(snap.quality(one.id) or 0.0 for one in scored)
        near = [
            one for one in scored if (snap.quality(one.id) or 0.0) >= highest - wish.smallest_within
        ]
        return min(near, key=lambda one: (one.parameters, -(snap.quality(one.id) or 0.0), one.id))
    return max(scored, key=lambda one: (snap.quality(one.id) or 0.0, -one.parameters, -one.id))


def names(connection: sqlite3.Connection, scored: bool = False) -> list[tuple[str, str]]:
    """Every name that `find` knows, or those of scored candidates, each with what it stands for."""
    rows = connection.execute(
        "SELECT id, generation, state, stage, parameters FROM candidate ORDER BY id"
    ).fetchall()
    baseline = next((Scored(row[0], row[-1], {}, {}) for row in rows if row[1] is None), None)
    if baseline is None:
        return []
    qualities = {
        one.id: QUALITY.value(one, one.metrics, baseline) for one in all_scored(connection)
    }
    found = [
        (
            BASELINE if generation is None else str(number),
            _what(generation, state, stage, qualities.get(number)),
        )
        for number, generation, state, stage, _ in rows
        if number in qualities or not scored
    ]
    best = max((quality for quality in qualities.values() if quality is not None), default=None)
    return found if best is None else [*found, (BEST, f"quality {best:.2f}")]


def _what(generation: int | None, state: str, stage: str, quality: float | None) -> str:
    whence = "" if generation is None else f"generation {generation}, "
    return f"{whence}{state}, " + (f"at {stage}" if quality is None else f"quality {quality:.2f}")
