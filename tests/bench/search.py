"""`bin/bench search`: whether the search finds models worth having.

Peers get the same seconds of training, one thread each, from the same fine-tuned baseline, and
their models are told by the same questions, of articles that nobody trained on or chose by.

Seconds are the processor's, of the workers (tests.bench.laboratory): of all that trains, screens,
or is done for that, such as refits; what scoring took stands beside them, and counts with
--charge-scoring. What is trained follows from the seed alone; how much of it fits into the time,
from the machine.
"""

import argparse
import json
import platform
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from nasd.contract.errors import NasdError
from tests.bench.contest import Contest
from tests.bench.laboratory import Judge, Laboratory
from tests.bench.peers import PEERS
from tests.bench.standing import QUARTERS, SHARES, Standing, above, over_seeds, told, volume
from tests.bench.worlds import WORLDS

SECONDS = {"demo": 300.0, "minilm": 5400.0}


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def contest(
    options: argparse.Namespace, number: int, folder: Path, peers: Sequence[str]
) -> list[Standing]:
    """Every peer's standing with one seed, in the order of PEERS: the control has to know ours."""
    say(f"seed {number}: the baseline")
    lab = Laboratory(WORLDS[options.world], number, folder, options.data)
    judge = Judge(lab)
    one = Contest(lab, judge, options.seconds, say, options.charge_scoring)
    begun = one.baseline()
    say(
        f"  {one.start:6.0f} s: sees {begun.seen:.1f}, is worth {begun.quality:.1f}"
        f" on {len(judge.questions)} questions"
    )
    found = []
    for name in (name for name in PEERS if name in peers):
        say(f"seed {number}: {name}, {PEERS[name][0]}")
        found.append(PEERS[name][1](one))
    return found


def figures(standings: Sequence[Standing], seconds: float) -> list[dict[str, Any]]:
    by_name = {one.peer: one for one in standings}
    thesis = by_name.get("thesis")
    wanted = None if thesis is None else volume(thesis.by(seconds))
    return [told(one, seconds, wanted) for one in standings]


def table(rows: Sequence[dict[str, Any]], title: str) -> Table:
    made = Table(title=title)
    made.add_column("peer")
    for share in SHARES:
        made.add_column(f"at most {share:g}", justify="right")
    for part in QUARTERS:
        made.add_column(f"volume at {part:g}", justify="right")
    for name in ("s to thesis's", "models", "s charged", "s scoring"):
        made.add_column(name, justify="right")
    for row in rows:
        made.add_row(
            row["peer"],
            *(shown(row["quality"][str(share)], 1) for share in SHARES),
            *(shown(row["hypervolume"][str(part)], 1) for part in QUARTERS),
            *(shown(row[key], 0) for key in ("seconds_to_thesis", "models", "seconds", "scoring")),
        )
    return made


def shown(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="bin/bench search", description=__doc__)
    made.add_argument("--world", choices=tuple(WORLDS), default="demo")
    made.add_argument("--seconds", type=float, help="of training, for each peer")
    made.add_argument("--seeds", type=int, nargs="+", default=[0])
    made.add_argument("--peers", nargs="+", choices=tuple(PEERS), default=list(PEERS))
    made.add_argument(
        "--data", type=Path, help="a folder with questions (.json) and corpus/, for minilm"
    )
    made.add_argument("--folder", type=Path, help="where all of it is kept; else it is removed")
    made.add_argument("--charge-scoring", action="store_true", help="count scoring as training")
    made.add_argument("--json", type=Path, help="also write the figures here")
    return made


def main(arguments: list[str]) -> None:
    options = parser().parse_args(arguments)
    options.seconds = options.seconds or SECONDS[options.world]
    console = Console(width=None if sys.stdout.isatty() else 180)
    runs: list[list[dict[str, Any]]] = []
    record: list[dict[str, Any]] = []
    with ExitStack() as stack:
        folder = options.folder or Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="nasd-bench-"))
        )
        try:
            for number in options.seeds:
                place = folder / f"seed-{number}"
                standings = contest(options, number, place, options.peers)
                runs.append(figures(standings, options.seconds))
                record.append({"seed": number, "peers": runs[-1], "models": models(standings)})
                title = f"{options.world}, {options.seconds:g} s of training each, seed {number}"
                console.print(table(runs[-1], title))
                if options.json:
                    write(options, record)
        except NasdError as error:
            sys.exit(f"bin/bench search: {error}")
    for name, row in ((row["peer"], row) for row in runs[-1]):
        for text in row["notes"]:
            console.print(f"{name}: {text}", highlight=False)
    if len(runs) > 1:
        rows = [over_seeds(list(seeds)) for seeds in zip(*runs, strict=True)]
        console.print(table(rows, f"{options.world}, mean of {len(runs)} seeds"))
    if {"ours", "random"} <= set(options.peers):
        one, other = ([row for run in runs for row in run if row["peer"] == name]
                      for name in ("ours", "random"))  # fmt: skip
        console.print(
            f"ours has the larger volume than random in {above(one, other)} of {len(runs)}"
        )


def models(standings: Sequence[Standing]) -> dict[str, Any]:
    return {one.peer: [asdict(model) for model in one.models] for one in standings}


def write(options: argparse.Namespace, record: Sequence[dict[str, Any]]) -> None:
    what = {
        "machine": f"{platform.processor() or platform.machine()}",
        "world": options.world,
        "seconds": options.seconds,
        "charges_scoring": options.charge_scoring,
        "seeds": record,
    }
    options.json.write_text(json.dumps(what, indent=1))
