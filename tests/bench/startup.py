"""`bin/bench startup`: from a worker's launch to the end of its first step.

Each stage is launched as the daemon does it, with the demo's model; by turns with
a bare interpreter that imports torch, and one that imports what transformers' recipes start with.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from nasd.contract.errors import NasdError
from nasd.contract.protocol import AttemptFolder, Heartbeat, read, write, write_atomically
from nasd.launch.local import LocalLauncher
from tests.bench.cases import CASES, Job, Shape, Side
from tests.bench.training import Figure, in_a_child, machine, prepare

# As the demo's seed, but that it has three blocks more.
DEMO = Shape(
    "demo", 64, 4, 128, 32, 16, vocabulary=225, positions=128, qa_tokens=48, qa_batch=8
)  # fmt: skip
STAGES = ("pretrain_1", "ffn", "finetune", "evaluate")
IMPORTS = {
    "import torch": "import torch",
    "import Trainer and DistilBERT": (
        "from transformers import DistilBertForMaskedLM, Trainer, TrainingArguments"
    ),
}
PATIENCE_SECONDS = 120.0


def first_step(case: str, shape: Shape, folder: Path, number: int, threads: int) -> float:
    """Seconds from a worker's launch until it has done its first step, or begins to answer."""
    from tests.bench.ours import spec_of

    steps = 10**6
    job = Job(folder, shape, case, Side("nasd"), "cpu", threads, 0, steps, log_steps=10)
    home = AttemptFolder(folder / f"attempt-{case}-{number}")
    home.path.mkdir()
    write(spec_of(job, home), home.spec)
    launcher, token = LocalLauncher(threads), f"{home.path}"
    began = time.perf_counter()
    process = launcher.start(home, ("cpu:0",), token)
    try:
        while not _steps(home, CASES[case].train == "none"):
            late = time.perf_counter() - began > PATIENCE_SECONDS
            if late or not launcher.alive(process):
                words = home.log.read_text(errors="replace").strip().splitlines()[-1:]
                raise NasdError(f"{case} does not come to a step: {''.join(words)}")
            time.sleep(0.005)
        return time.perf_counter() - began
    finally:
        launcher.clear(token)


def _steps(home: AttemptFolder, evaluates: bool) -> bool:
    try:
        beat = read(Heartbeat, home.heartbeat)
    except NasdError:
        return False
    return beat.doing == "answering" if evaluates else beat.doing == "training" and beat.step > 0


def imports(code: str) -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    return time.perf_counter() - began


def main(arguments: list[str]) -> None:
    made = argparse.ArgumentParser(prog="bin/bench startup", description=__doc__)
    made.add_argument("--repeats", type=int, default=5, help="launches of each (%(default)s)")
    made.add_argument("--threads", type=int, default=1, help="of a worker (%(default)s)")
    made.add_argument("--json", type=Path, help="also write the figures here")
    given = made.parse_args(arguments)
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="nasd-bench-") as name:
        folder = Path(name)
        in_a_child(prepare, folder, DEMO, 64, "cpu")
        rows: dict[str, Callable[[int], float]] = {
            case: lambda number, case=case: first_step(case, DEMO, folder, number, given.threads)
            for case in STAGES
        } | {what: lambda number, code=code: imports(code) for what, code in IMPORTS.items()}
        for number in range(given.repeats + 1):
            for what, measure in rows.items():
                seconds = measure(number)
                if number:  # the first launch also reads the files from the disk
                    found.setdefault(what, []).append(seconds)
    table = Table(title=f"{machine()}, {given.threads} threads", title_justify="left")
    table.add_column("from launch to")
    for column in ("median", "least", "most"):
        table.add_column(column, justify="right")
    for what, seconds in found.items():
        shown = f"the first step of {what}" if what in STAGES else what
        low, middle, high = min(seconds), Figure.of(seconds).median, max(seconds)
        table.add_row(shown, *(f"{one:.2f} s" for one in (middle, low, high)))
    Console().print(table)
    if given.json is not None:
        content = {
            "machine": machine(),
            "threads": given.threads,
            "model": asdict(DEMO),
            "seconds": found,
        }
        write_atomically(given.json, json.dumps(content, indent=1).encode())
