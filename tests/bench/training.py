"""nasd's training step against what a user would otherwise run: transformers' Trainer.

Both sides have the same weights, data, batch size and number of threads, each in a process of its
own that holds its model and does so many steps when asked: by turns, so that a machine that slows
down slows them all. A ratio is the median of the rounds' ratios; what stands behind a ± is half
the distance between the quartiles. Weights and tokens are random, the lengths of questions are
SQuAD's, and padding does not count as tokens. Memory is the most that a process held, torch and
files that it maps included; on a GPU, the most that was allocated there. The asked ratios are for
two CPU threads, or for one GPU. The FLOP limit is the ratio of the matrix products that the two
sides need.
"""

import argparse
import importlib.util
import json
import multiprocessing
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from nasd.contract.errors import NasdError
from nasd.contract.protocol import write_atomically
from tests.bench import flops, pace
from tests.bench.cases import CASES, ROWS, SHAPES, Job, Row, Shape, Side
from tests.bench.pace import Done, Failed, Order, Ready, Segment

WIDTH = 150  # columns where nobody says how many there are
GPU_BATCHES = 16  # times as large a batch on a GPU, which a small one leaves idle
# On a GPU the first steps try micro-batches and compile: twice two windows of the log.
WARMUP, GPU_WARMUP = 2, 50
LOG_STEPS = 10  # as config.toml has it; fewer where a segment is shorter, so that each has a line


# --- figures ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Figure:
    """A median, and half the distance between the quartiles."""

    median: float
    spread: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Figure":
        if len(values) < 2:
            return cls(values[0], 0.0)
        low, _, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(statistics.median(values), (high - low) / 2)


@dataclass
class Measured:
    """What one side did: its turns, in order, and the most memory that it held."""

    segments: list[Segment] = field(default_factory=list)
    peak: int = 0

    @property
    def speeds(self) -> list[float]:
        """Tokens per second."""
        return [segment.tokens / segment.seconds for segment in self.segments]


@dataclass(frozen=True)
class Result:
    """A row with its figures; None is what says nothing.

    mfu: the matrix products that our side needs, as a share of what the GPU was measured to do.
    """

    row: Row
    shape: Shape
    ours: Figure
    theirs: Figure
    ratio: Figure
    our_peak: int
    their_peak: int
    asked: float | None
    limit: float | None
    mfu: float | None

    @property
    def met(self) -> bool | None:
        return None if self.asked is None else self.ratio.median >= self.asked

    def to_json(self) -> dict[str, Any]:
        return {
            "shape": asdict(self.shape),
            "case": self.row.case,
            "row": self.row.label,
            "ours": {**asdict(self.row.ours), "tokens_per_second": asdict(self.ours)},
            "theirs": {**asdict(self.row.theirs), "tokens_per_second": asdict(self.theirs)},
            "peak_bytes": {"ours": self.our_peak, "theirs": self.their_peak},
            "ratio": asdict(self.ratio),
            "asked": self.asked,
            "met": self.met,
            "flop_limit": self.limit,
            "mfu": self.mfu,
            "asked_mfu": self.row.asked_share if self.mfu is not None else None,
        }


def compare(
    row: Row, shape: Shape, measured: dict[Side, Measured], gpu: bool, rate: float | None
) -> Result:
    """rate: the device's bfloat16 matrix products, in FLOP/s."""
    ours, theirs = measured[row.ours], measured[row.theirs]
    pairs = zip(ours.speeds, theirs.speeds, strict=True)
    work = {side: flops_a_token(row.case, shape, side) for side in (row.ours, row.theirs)}
    speed = Figure.of(ours.speeds)
    same = row.ours.precision == row.theirs.precision
    return Result(
        row,
        shape,
        speed,
        Figure.of(theirs.speeds),
        Figure.of([one / other for one, other in pairs]),
        ours.peak,
        theirs.peak,
        asked=None if shape.name == "tiny" else row.asked_gpu if gpu else row.asked,
        limit=work[row.theirs] / work[row.ours] if same else None,
        mfu=speed.median * work[row.ours] / rate
        if rate and row.ours.precision == "bfloat16"
        else None,
    )


def flops_a_token(case: str, shape: Shape, side: Side) -> float:
    """Of a training step, or of an evaluation's, per token without padding."""
    what = CASES[case]
    if what.task == "mlm":
        return flops.mlm(shape, what.new, sparse=side.who != "trainer", known=side.cached)
    lengths = shape.qa_lengths
    widths = flops.exact(lengths)
    if side.who == "trainer":
        batched = side.padded == "longest"
        widths = flops.longest(lengths, shape.qa_batch) if batched else [(1.0, shape.qa_tokens)]
    return flops.qa(shape, widths, statistics.fmean(lengths), trains=what.train != "none")


# --- the processes ----------------------------------------------------------------------------

SPAWN = multiprocessing.get_context("spawn")  # nothing of a side comes from here, nor of another's


class Worker:
    """The process of one side."""

    def __init__(self, job: Job) -> None:
        self.side, self.guest = job.side, job.guest
        self._log = job.folder / f"{job.case}-{job.side}.log"
        self._pipe, far = SPAWN.Pipe()
        self._process = SPAWN.Process(target=pace.work, args=(far, job, self._log), daemon=True)
        self._process.start()
        far.close()

    def hear(self) -> Any:
        """What it says next; raises NasdError where it cannot go on."""
        try:
            said = self._pipe.recv()
        except EOFError:
            said = Failed("its process is gone; was there enough memory?")
        if isinstance(said, Failed):
            *_, last = ["", *_tail(self._log)]
            raise NasdError(f"{self._log.stem} does not run: {said.why}\n{last}".strip())
        return said

    def turn(self, number: int) -> dict[Side, Segment]:
        """So many steps; before them as many of the guest's."""
        found = {} if self.guest is None else {self.guest: self._steps(Order(number, guest=True))}
        return found | {self.side: self._steps(Order(number))}

    def _steps(self, order: Order) -> Segment:
        self._pipe.send(order)
        return self.hear()  # type: ignore[no-any-return]

    def end(self) -> Done:
        self._pipe.send(Order(0))
        return self.hear()  # type: ignore[no-any-return]

    def close(self) -> None:
        self._pipe.close()
        self._process.kill()
        self._process.join()


def _tail(log: Path) -> list[str]:
    return log.read_text(errors="replace").splitlines()[-1:] if log.exists() else []


@contextmanager
def workers(jobs: Sequence[Job]) -> Iterator[tuple[list[Worker], list[Ready]]]:
    """All ready, and all gone afterwards. Each begins when the one before it is ready: on a GPU,
    what a side tries in its first steps would measure the others."""
    found: list[Worker] = []
    ready: list[Ready] = []
    try:
        for job in jobs:
            found.append(Worker(job))
            ready.append(found[-1].hear())
        yield found, ready
    finally:
        for worker in found:
            worker.close()


def measure(jobs: Sequence[Job], repeats: int, steps: int) -> tuple[dict[Side, Measured], Ready]:
    """Turn by turn, `repeats` times."""
    measured = {side: Measured() for job in jobs for side in (job.side, job.guest) if side}
    with workers(jobs) as (sides, ready):
        for _ in range(repeats):
            for side in sides:
                for who, segment in side.turn(steps).items():
                    measured[who].segments.append(segment)
        for side in sides:
            peak = side.end().peak
            for who in (side.side, side.guest):
                if who is not None:
                    measured[who].peak = peak
    return measured, ready[0]


def in_a_child(target: Any, *arguments: Any) -> Any:
    """What `target`, given a pipe's end and the arguments, sends; raises NasdError if it fails."""
    near, far = SPAWN.Pipe()
    process = SPAWN.Process(target=target, args=(far, *arguments), daemon=True)
    process.start()
    far.close()
    try:
        said = near.recv()
    except EOFError:
        said = Failed("the process that prepares is gone")
    finally:
        process.join()
    if isinstance(said, Failed):
        raise NasdError(said.why)
    return said


def prepare(pipe: Connection, folder: Path, shape: Shape, steps: int, device: str) -> None:
    """Makes what both sides start from; sends the rate of the GPU's matrix products, or None."""
    try:
        found = pace.enter(folder / "prepare.log", device, os.cpu_count() or 1)
        from tests.bench import material

        material.make(folder, shape, steps)
        pipe.send(matrix_rate(found) if found.type == "cuda" else None)
    except NasdError as error:
        pipe.send(Failed(str(error)))
    except BaseException as error:
        pipe.send(Failed(f"{type(error).__name__}: {error}"))


def matrix_rate(device: Any, size: int = 8192, times: int = 20) -> float:
    """FLOP/s of bfloat16 matrix products, the median of some."""
    import torch

    one = torch.randn(size, size, device=device, dtype=torch.bfloat16)
    rates = []
    for number in range(2 * times):
        torch.cuda.synchronize(device)
        began = time.perf_counter()
        one @ one
        torch.cuda.synchronize(device)
        if number >= times:
            rates.append(2 * size**3 / (time.perf_counter() - began))
    return statistics.median(rates)


# --- the table --------------------------------------------------------------------------------


def table(results: Sequence[Result], title: str) -> Table:
    made = Table(title=title, title_justify="left", header_style="bold", pad_edge=False)
    for name in ("row", "nasd", "against"):
        made.add_column(name, no_wrap=True)
    numbers = ("tokens/s", "theirs", "ratio", "asked", "FLOP limit", "memory", "theirs")
    with_mfu = any(result.mfu is not None for result in results)
    for name in (*numbers, *(["of matmul rate"] if with_mfu else [])):
        made.add_column(name, justify="right", no_wrap=True)
    shape = None
    for result in results:
        if result.shape != shape:
            shape = result.shape
            made.add_section()
            made.add_row(f"[bold]{shape}[/bold]")
        style = {None: "", True: "green", False: "red"}[result.met]
        ratio = f"{result.ratio.median:.2f} ±{result.ratio.spread:.2f}"
        cells = [
            result.row.label,
            result.row.ours.precision,
            f"{result.row.theirs.who} {result.row.theirs.precision}",
            _speed(result.ours),
            _speed(result.theirs),
            f"[{style}]{ratio}[/{style}]" if style else ratio,
            "" if result.asked is None else f"{result.asked:.2f}",
            "" if result.limit is None else f"{result.limit:.2f}",
            _memory(result.our_peak),
            _memory(result.their_peak),
        ]
        made.add_row(*cells, *([_share(result)] if with_mfu else []))
    return made


def _speed(figure: Figure) -> str:
    return f"{figure.median:,.0f} ±{100 * figure.spread / figure.median:.0f} %"


def _share(result: Result) -> str:
    if result.mfu is None:
        return ""
    asked = result.row.asked_share
    return f"{100 * result.mfu:.0f} %" + (f" (asked {100 * asked:.0f} %)" if asked else "")


def _memory(size: int) -> str:
    return f"{size / 1e9:.2f} GB"


# --- the command ------------------------------------------------------------------------------


def jobs_of(rows: Sequence[Row], case: str, base: Job) -> list[Job]:
    """One for each side that the case's rows speak of, theirs first; the bare step is a guest."""
    mine = [row for row in rows if row.case == case]
    guests = {row.ours: row.theirs for row in mine if row.theirs.who == "bare"}
    sides = dict.fromkeys([*(row.theirs for row in mine), *(row.ours for row in mine)])
    return [
        replace(base, case=case, side=side, guest=guests.get(side))
        for side in sides
        if side.who != "bare"
    ]


def bench(
    shape: Shape, rows: Sequence[Row], given: argparse.Namespace, folder: Path
) -> Iterator[tuple[list[Result], dict[str, Any]]]:
    """The rows of each case of a shape, and what they were measured on."""
    gpu = given.device.startswith("cuda")
    warmup = GPU_WARMUP if gpu else WARMUP
    steps = warmup + given.repeats * given.steps + 1
    rate = in_a_child(prepare, folder, shape, steps, given.device)
    base = Job(
        folder,
        shape,
        case="",
        side=Side("nasd"),
        device=given.device,
        threads=given.threads,
        warmup=warmup,
        steps=steps,
        log_steps=min(LOG_STEPS, given.steps),
    )
    for case in dict.fromkeys(row.case for row in rows):
        jobs = jobs_of(rows, case, base)
        print(f"{shape.name} {case}: {len(jobs)} sides by turns ...", file=sys.stderr, flush=True)
        if CASES[case].train == "none":  # a step is a whole pass
            measured, ready = measure([replace(j, warmup=1) for j in jobs], given.repeats, 1)
        else:
            measured, ready = measure(jobs, given.repeats, given.steps)
        found = [compare(row, shape, measured, gpu, rate) for row in rows if row.case == case]
        yield found, {**asdict(ready), "matrix_rate": rate}


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="bin/bench training",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )

    def some(name: str, choices: Sequence[str], default: Sequence[str]) -> None:
        words = f"of {', '.join(choices)}; {' '.join(default)} by default"
        metavar = name.upper()
        made.add_argument(
            f"--{name}", nargs="+", choices=choices, default=default, metavar=metavar, help=words
        )

    precisions = ("float32", "bfloat16")
    some("shape", tuple(SHAPES), ("base", "minilm"))
    some("rows", tuple(CASES), tuple(CASES))
    some("precision", precisions, precisions)
    made.add_argument(
        "--threads", type=_count, default=2, help="of each side, on a CPU (%(default)s)"
    )
    made.add_argument("--repeats", type=_count, default=5, help="turns of each side (%(default)s)")
    made.add_argument("--steps", type=_count, default=4, help="of a turn (%(default)s)")
    made.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    made.add_argument("--batch", type=_count, help="sequences, and questions, of a step")
    made.add_argument("--tokens", type=_count, help="of a sequence")
    made.add_argument(
        "--quick", action="store_true", help="a tiny shape, few steps: shows only that it runs"
    )
    made.add_argument("--json", type=Path, help="also write the figures here")
    return made


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return value


def shape_of(name: str, given: argparse.Namespace) -> Shape:
    """The shape with what the options say of it."""
    shape = SHAPES[name]
    if given.device.startswith("cuda"):
        sizes = {"batch": GPU_BATCHES * shape.batch, "qa_batch": GPU_BATCHES * shape.qa_batch}
        shape = replace(shape, **sizes)
    if given.batch is not None:
        shape = replace(shape, batch=given.batch, qa_batch=given.batch)
    if given.tokens is not None:
        shape = replace(shape, tokens=given.tokens)
    return shape


def check(made: argparse.ArgumentParser, given: argparse.Namespace) -> None:
    """Ends the process with a sentence where the options cannot be."""
    kind, _, number = given.device.partition(":")
    if kind not in ("cpu", "cuda") or (number and not (kind == "cuda" and number.isdigit())):
        made.error(f"argument --device: take cpu, cuda or cuda:N, not {given.device}")
    longest = min(SHAPES[name].positions for name in given.shape)
    if given.tokens is not None and not 8 <= given.tokens <= longest:
        made.error(f"argument --tokens: take 8 to {longest}, not {given.tokens}")
    if given.json is not None:
        folder = given.json.resolve().parent
        if not os.access(folder, os.W_OK):
            made.error(f"argument --json: {folder} is no folder that can be written to")


def main(arguments: list[str]) -> None:
    made = parser()
    given = made.parse_args(arguments)
    if given.quick:
        given.shape, given.repeats, given.steps = ["tiny"], 2, 2
    check(made, given)
    rows = [row for row in ROWS if row.case in given.rows and row.ours.precision in given.precision]
    if any(row.theirs.who == "trainer" for row in rows) and not _has("accelerate"):
        sys.exit("error: the Trainer needs accelerate: start this as bin/bench, which installs it")
    results: list[Result] = []
    settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(given).items()}
    figures: dict[str, Any] = {"settings": settings, "machine": machine()}
    try:
        for name in given.shape:
            with tempfile.TemporaryDirectory(prefix="nasd-bench-") as folder:
                for found, where in bench(shape_of(name, given), rows, given, Path(folder)):
                    results += found
                    figures |= {**where, "rows": [result.to_json() for result in results]}
                    if given.json:
                        write_atomically(given.json, json.dumps(figures, indent=1).encode())
    except NasdError as error:
        sys.exit(f"error: {error}")
    finally:  # hours of it may stand when it is ended
        if results:
            console = Console(width=None if sys.stdout.isatty() else WIDTH)
            console.print(table(results, _title(figures, given)))


def _has(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def machine() -> str:
    """The processor's name."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _title(figures: dict[str, Any], given: argparse.Namespace) -> str:
    where = figures["device"]
    if where == "cpu":
        where = f"{figures['machine']}, {given.threads} threads"
    if figures["matrix_rate"]:
        where += f" ({figures['matrix_rate'] / 1e12:.0f} TFLOP/s of bfloat16 products)"
    return f"{where}, torch {figures['torch']}, {given.repeats} turns of {given.steps} steps"
