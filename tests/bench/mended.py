"""`bin/bench mended STATE ...`: how much of what a mutant lacks its training mends, in searches
that were made. Mutants are born by the loss that they have untrained, beside those of other
parents; this tells how far that goes. Fits, over all children that were tried, trained and scored,

    loss scored = a + b * loss of the parent + c * (loss untrained - loss of the parent)

with an `a` for each generation of each search, as those are trained alike. The parent's loss and
the untrained one are of the windows that nobody trains on, the last one of the questions that
score.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

from nasd.contract.config import SCREEN
from nasd.contract.errors import NasdError
from nasd.contract.protocol import PARENT
from nasd.record import snapshot


@dataclass(frozen=True)
class Child:
    """trained_with: who are to be compared with it. damage: what its mutation added to the parent's
    loss. scored: its loss in the end."""

    trained_with: str
    number: int
    parent: float
    damage: float
    scored: float


class Fit(NamedTuple):
    """Each with its standard error."""

    parent: tuple[float, float]
    damage: tuple[float, float]


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="bin/bench mended", description=__doc__)
    parser.add_argument("states", nargs="+", type=Path, metavar="STATE", help="a state folder")
    states = parser.parse_args(arguments).states
    try:
        found = [one for state in states for one in children(state)]
    except NasdError as error:
        parser.error(str(error))
    rows = ("child", "loss of its parent", "added untrained", "loss in the end")
    table = Table(*rows, title="Children that were tried untrained")
    for one in found:
        name = f"{one.trained_with}, {one.number}"
        table.add_row(name, *(f"{loss:.3f}" for loss in (one.parent, one.damage, one.scored)))
    console = Console()
    console.print(table)
    if (told := fit(found)) is None:
        console.print("too few of them, or too much alike, to tell")
        return
    for what, (share, error) in zip(("what the parent lacks", "what was added"), told, strict=True):
        console.print(f"of {what}, {share:.2f} +- {error:.2f} is there in the end")


def children(folder: Path) -> list[Child]:
    """Of the search in this folder, in the order of their numbers; raises NasdError for none."""
    with snapshot.opened(folder) as connection:
        found = snapshot.read(connection)
    parents = {
        (one.generation, one.parent): result.metrics[PARENT]
        for one in found.candidates.values()
        if (result := found.results.get((one.id, SCREEN))) is not None
    }
    told = []
    for one in found.individuals:
        before = parents.get((one.generation, one.parent))
        scored = (found.scores(one.id) or {}).get("loss")  # several tasks have none
        if one.untrained is None or before is None or scored is None:
            continue
        group = f"{folder} generation {one.generation}"
        told.append(Child(group, one.id, before, one.untrained - before, scored))
    return told


def fit(found: Sequence[Child]) -> Fit | None:
    """By least squares; None where these are too few, or do not tell the two apart."""
    groups = sorted({one.trained_with for one in found})
    known = np.array(
        [[one.parent, one.damage, *(one.trained_with == name for name in groups)] for one in found],
        dtype=float,
    ).reshape(len(found), 2 + len(groups))
    free = len(found) - known.shape[1]
    if free < 1 or np.linalg.matrix_rank(known) < known.shape[1]:
        return None
    ends = np.array([one.scored for one in found])
    shares = np.linalg.lstsq(known, ends, rcond=None)[0]
    spread = ((ends - known @ shares) ** 2).sum() / free
    errors = np.sqrt(spread * np.diag(np.linalg.inv(known.T @ known)))
    (parent, damage), (of_parent, of_damage) = shares[:2].tolist(), errors[:2].tolist()
    return Fit((parent, of_parent), (damage, of_damage))
