"""`bin/soak`: searches under kills and faults, held against undisturbed ones. See --help."""

import argparse
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console

from tests.soak import simulated
from tests.soak.report import as_json, show


def main() -> int:
    parser = argparse.ArgumentParser(prog="bin/soak", description=__doc__.split(":")[1].strip())
    parser.add_argument("--kills", type=int, default=30, help="of the daemon, in virtual time")
    parser.add_argument("--real-kills", type=int, default=3, help="with real training")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", choices=("simulated", "real"))
    parser.add_argument(
        "--asynchronous",
        action="store_true",
        help="the search in virtual time with rungs, the asynchronous rule, the best predictor,"
        " and finalists under two seeds",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="the report once more")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="work there, and keep it")
    options = parser.parse_args()
    began = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - began:6.0f} s  {text}", file=sys.stderr, flush=True)

    folder = options.keep or Path(tempfile.mkdtemp(prefix="nasd-soak-"))
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        sys.exit(f"{folder} is not empty: name another folder")
    parts = []
    if options.only != "real":
        home = folder / "simulated"
        home.mkdir()
        config = simulated.asynchronous() if options.asynchronous else None
        told = lambda text: say(f"sim: {text}")  # noqa: E731
        parts.append(simulated.soak(home, options.kills, options.seed, told, config))
    if options.only != "simulated":
        from tests.soak import real

        home = folder / "real"
        home.mkdir()
        parts.append(real.soak(home, options.real_kills, options.seed, lambda t: say(f"real: {t}")))
    show(parts, Console(width=max(100, Console().width)))
    report = as_json(parts, seed=options.seed, seconds=round(time.monotonic() - began))
    if options.json:
        options.json.write_text(json.dumps(report, indent=1))
    if not report["holds"]:
        print(f"see {folder}")
        return 1
    if options.keep is None:
        shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
