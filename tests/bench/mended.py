"""`bin/bench mended STATE ...`: how much of what a mutant lacks its training mends, in searches
that were made. Mutants are born by the loss that they have untrained, beside those of other
parents; this tells how far that goes. Fits, over all children that were tried, trained and scored,

    loss scored = a + b * loss of the parent + c * (loss untrained - loss of the parent)

with an `a` for each generation of each search, as those are trained alike. The parent's loss and
the untrained one are of the windows that nobody trains on, the last one of the questions that
score.
"""

import argparse
import json
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

from nasd.contract.config import SCREEN
from nasd.contract.protocol import PARENT
from nasd.record.folders import StateFolder
from nasd.record.lifecycle import State


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
    found = [one for state in parser.parse_args(arguments).states for one in children(state)]
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
    """Of the search in this folder, in the order of their numbers."""
    database = f"file:{StateFolder(folder).database}?mode=ro"
    with closing(sqlite3.connect(database, uri=True)) as connection:
        told = connection.execute(
            "SELECT candidate.id, generation, parent, result.stage, metrics, state FROM result"
            " JOIN candidate ON candidate.id = result.candidate ORDER BY at"
        ).fetchall()
        born = connection.execute(
            "SELECT candidate, generation, parent, loss FROM mutant"
            " WHERE candidate IS NOT NULL AND loss IS NOT NULL ORDER BY candidate"
        ).fetchall()
    parents, scored = {}, {}
    for number, generation, parent, stage, metrics, state in told:
        said = json.loads(metrics)
        if stage == SCREEN:
            parents[generation, parent] = said[PARENT]
        elif state == State.SCORED and "loss" in said:
            scored[number] = said["loss"]  # of the last stage that has one
    return [
        Child(f"{folder} generation {generation}", number, before, loss - before, scored[number])
        for number, generation, parent, loss in born
        if number in scored and (before := parents.get((generation, parent))) is not None
    ]


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
