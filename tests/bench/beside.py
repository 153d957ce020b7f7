"""Another checkout, with its own environment, beside this one, in turns: seconds of CPU, which a
busy machine tells better than the clock.

Each fills a database of its own schema with its own bench, so how its modules lie does not matter.
"""

import json
import os
import statistics
import subprocess
import tempfile
from pathlib import Path

COMMANDS = {
    "nasd status --json": (["status", "--json"], "large"),
    "nasd report": (["report"], "small"),
}
# In a checkout: large and small searches, filled; then the turns of the large one, in CPU seconds.
FILL = """
import sys
from pathlib import Path
from tests.bench import control
folder = Path(sys.argv[1])
control.fill(control.StateFolder(folder / "large"), int(sys.argv[2]))
control.fill(control.StateFolder(folder / "small"), int(sys.argv[3]))
"""
TURNS = """
import json, sys, time
from pathlib import Path
from tests.bench import control
time.perf_counter = time.process_time
print(json.dumps(control.ticks(control.StateFolder(Path(sys.argv[1])), int(sys.argv[2]))))
"""


def _run(checkout: Path, words: list[str]) -> tuple[float, str]:
    """Seconds of CPU, and what was printed."""
    before = os.times()
    done = subprocess.run(
        [str(checkout / ".venv" / "bin" / "python"), *words],
        cwd=checkout,
        env=os.environ | {"PYTHONPATH": str(checkout)},
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    after = os.times()
    spent = after.children_user + after.children_system
    return spent - before.children_user - before.children_system, done.stdout


def beside(other: Path, here: Path, candidates: int, report: int, generations: int) -> None:
    checkouts = {"there": other.resolve(), "here": here}
    found: dict[str, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory(prefix="nasd-bench-") as folder:
        at = {name: Path(folder) / name for name in checkouts}
        for name, checkout in checkouts.items():
            print(f"{name}: {checkout}", flush=True)
            _run(checkout, ["-m", "compileall", "-q", "nasd", "tests"])  # as installed code is
            _run(checkout, ["-c", FILL, str(at[name]), str(candidates), str(report)])
        for _ in range(3):
            for command, (words, size) in COMMANDS.items():
                for name, checkout in checkouts.items():
                    asked = [*words, "--state", str(at[name] / size)]
                    seconds, _printed = _run(checkout, ["-P", "-m", "nasd", *asked])
                    found.setdefault(command, {}).setdefault(name, []).append(seconds)
        for name, checkout in checkouts.items():
            _, printed = _run(checkout, ["-c", TURNS, str(at[name] / "large"), str(generations)])
            for kind, values in json.loads(printed).items():
                found.setdefault(f"a turn that {kind}", {})[name] = values
    print(f"{'CPU, median':58}{'there':>10}{'here':>10}")
    for what, by in found.items():
        shown = [f"{1e3 * statistics.median(by[n]):7.0f} ms" if n in by else "" for n in checkouts]
        print(f"{what:58}" + "".join(f"{one:>10}" for one in shown))
