"""`bin/bench memory`: what it saves and costs that a CPU worker keeps few of oneDNN's programs.

Two workers fine-tune alike, by turns, each in a process of its own: one with as many programs as
nasd lets oneDNN and torch keep, one with as many as they keep by themselves. Memory is the most
that a process held. A ratio is few over many: of memory less is better, of seconds a step too, and
there the median of the turns' ratios. Questions have SQuAD's lengths, so that nearly every step
meets new shapes.
"""

import argparse
import json
import os
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

from rich.console import Console
from rich.table import Table

from nasd.contract.protocol import write_atomically
from nasd.worker.training import allocator
from tests.bench.cases import SHAPES, Job, Shape, Side
from tests.bench.training import WARMUP, Figure, Worker, in_a_child, machine, prepare

KEPT = {"few": allocator.FEW, "many": dict.fromkeys(allocator.FEW, "1024")}  # their own number


def measure(shape: Shape, side: Side, threads: int, repeats: int, steps: int) -> dict[str, Any]:
    """Bytes at most, and seconds of a step in each turn, of each that KEPT names."""
    total = WARMUP + repeats * steps + 1
    seconds: dict[str, list[float]] = {name: [] for name in KEPT}
    with tempfile.TemporaryDirectory(prefix="nasd-bench-") as made, ExitStack() as stack:
        workers: dict[str, Worker] = {}
        for name, numbers in KEPT.items():
            folder = Path(made) / name
            folder.mkdir()
            in_a_child(prepare, folder, shape, total, "cpu")
            job = Job(folder, shape, "finetune", side, "cpu", threads, WARMUP, total, log_steps=10)
            with mock.patch.dict(os.environ, {} if name == "few" else numbers):
                workers[name] = Worker(job)
            stack.callback(workers[name].close)
        for worker in workers.values():
            worker.hear()
        for _ in range(repeats):
            for name, worker in workers.items():
                seconds[name].append(worker.turn(steps)[side].seconds / steps)
        peaks = {name: worker.end().peak for name, worker in workers.items()}
    return {"peak_bytes": peaks, "seconds_a_step": seconds}


def table(found: dict[str, Any], title: str) -> Table:
    made = Table(title=title, title_justify="left")
    made.add_column("programs kept")
    for column in ("memory at most", "seconds a step"):
        made.add_column(column, justify="right")
    for name, numbers in KEPT.items():
        peak, spent = found["peak_bytes"][name], Figure.of(found["seconds_a_step"][name])
        programs, pace = " and ".join(numbers.values()), f"{spent.median:.3f} ±{spent.spread:.3f}"
        made.add_row(programs, f"{peak / 1e9:.2f} GB", pace)
    made.add_section()
    made.add_row("ratio", *(f"{one:.3f}" for one in ratios(found)))
    return made


def ratios(found: dict[str, Any]) -> tuple[float, float]:
    """Of memory, and of seconds a step."""
    peaks, seconds = found["peak_bytes"], found["seconds_a_step"]
    each: Sequence[float] = [
        few / many for few, many in zip(seconds["few"], seconds["many"], strict=True)
    ]
    return peaks["few"] / peaks["many"], Figure.of(each).median


def main(arguments: list[str]) -> None:
    made = argparse.ArgumentParser(prog="bin/bench memory", description=__doc__)
    made.add_argument("--shape", choices=tuple(SHAPES), default="minilm", help="(%(default)s)")
    made.add_argument("--precision", choices=("bfloat16", "float32"), default="bfloat16")
    made.add_argument("--threads", type=int, default=1, help="of a worker (%(default)s)")
    made.add_argument("--repeats", type=int, default=10, help="turns of each (%(default)s)")
    made.add_argument("--steps", type=int, default=15, help="of a turn (%(default)s)")
    made.add_argument("--json", type=Path, help="also write the figures here")
    given = made.parse_args(arguments)
    side = Side("nasd", given.precision)
    shape = SHAPES[given.shape]
    found = measure(shape, side, given.threads, given.repeats, given.steps)
    steps = WARMUP + given.repeats * given.steps
    title = f"{machine()}, {shape.name}, {side.precision}, {given.threads} threads, {steps} steps"
    Console().print(table(found, title))
    if given.json is not None:
        content = {"machine": machine(), "shape": shape.name, "steps": steps, **found}
        write_atomically(given.json, json.dumps(content, indent=1).encode())
