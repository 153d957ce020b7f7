"""`bin/bench ablation`: what each part of the search is worth, on the demo's world: ours, and ours
with one part left out at a time, for the same seconds of training (as `bin/bench search` has them).
"""

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from nasd.contract.errors import NasdError
from tests.bench.contest import Contest
from tests.bench.following import searched
from tests.bench.laboratory import Judge, Laboratory
from tests.bench.search import say, shown
from tests.bench.standing import QUARTERS, SHARES, told
from tests.bench.worlds import ABSENT, OURS, PARTS, WORLDS, Way, known

WHOLE = "whole"
END = str(QUARTERS[-1])


def there(changes: Mapping[str, Any], way: Way = OURS) -> bool:
    """Whether the part can be left out: a config knows its keys, and ours has it."""
    return all(
        known(key) and (value is not ABSENT or key in way.keys) for key, value in changes.items()
    )


def ways(parts: Sequence[str]) -> dict[str, Way]:
    """Ours, and ours without each of these parts, as far as it can be left out."""
    found = {WHOLE: OURS}
    for part in parts:
        if there(PARTS[part]):
            found[f"without {part}"] = OURS.without(PARTS[part])
    return found


def table(runs: Sequence[Mapping[str, dict[str, Any]]], title: str) -> Table:
    """A run a seed: figures by the name of the way."""
    made = Table(title=title)
    for name in ("", "volume", "less than whole", "in seeds", *(f"at most {s:g}" for s in SHARES)):
        made.add_column(name, justify="right" if name else "left")
    for name in runs[0]:
        volumes = [run[name]["hypervolume"][END] for run in runs]
        losses = [
            run[WHOLE]["hypervolume"][END] - one for run, one in zip(runs, volumes, strict=True)
        ]
        less = "" if name == WHOLE else f"{statistics.mean(losses):+.2f}"
        seeds = "" if name == WHOLE else f"{sum(one > 0 for one in losses)} of {len(runs)}"
        made.add_row(
            name,
            f"{statistics.mean(volumes):.2f}",
            less,
            seeds,
            *(_mean([run[name]["quality"][str(share)] for run in runs]) for share in SHARES),
        )
    return made


def _mean(values: Sequence[float | None]) -> str:
    found = [one for one in values if one is not None]
    return shown(statistics.mean(found) if len(found) == len(values) else None, 1)


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="bin/bench ablation", description=__doc__)
    parser.add_argument("--seconds", type=float, default=150.0, help="of training, for each")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--parts", nargs="+", choices=tuple(PARTS), default=list(PARTS))
    parser.add_argument("--folder", type=Path, help="where all of it is kept; else it is removed")
    parser.add_argument("--charge-scoring", action="store_true", help="count scoring as training")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args(arguments)
    runs: list[dict[str, dict[str, Any]]] = []
    with ExitStack() as stack:
        folder = options.folder or Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="nasd-bench-"))
        )
        try:
            for number in options.seeds:
                lab = Laboratory(WORLDS["demo"], number, folder / f"seed-{number}", None)
                one = Contest(lab, Judge(lab), options.seconds, say, options.charge_scoring)
                runs.append({})
                for name, way in ways(options.parts).items():
                    say(f"seed {number}: {name}")
                    standing = searched(one, name.replace(" ", "-"), way)
                    runs[-1][name] = told(standing, options.seconds, None)
                if options.json:
                    options.json.write_text(json.dumps(runs, indent=1))
        except NasdError as error:
            sys.exit(f"bin/bench ablation: {error}")
    title = f"demo, {options.seconds:g} s of training each, {len(runs)} seeds"
    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(table(runs, title))
    for part in options.parts:
        if not there(PARTS[part]):
            console.print(f"{part}: not there yet, so not left out")
