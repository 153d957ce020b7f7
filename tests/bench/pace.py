"""The seam between the process that counts and those that work: so many steps, then wait.

A side's process sends `Ready` once its first, slow steps are done, then a `Segment` for each number
of steps it is asked for, and `Done` when it is asked for no more; or `Failed`, whenever it cannot.
"""

import contextlib
import os
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from nasd.contract.errors import NasdError
from nasd.contract.leash import die_with_parent
from tests.bench.cases import Job


@dataclass(frozen=True)
class Ready:
    device: str
    torch: str


@dataclass(frozen=True)
class Order:
    """No steps: enough is measured. guest: they are the guest's."""

    steps: int
    guest: bool = False


@dataclass(frozen=True)
class Segment:
    """tokens: without padding."""

    seconds: float
    tokens: float


@dataclass(frozen=True)
class Done:
    """peak: the most memory held, in bytes: the GPU's, or else the whole process's."""

    peak: int


@dataclass(frozen=True)
class Failed:
    why: str


class Finished(Exception):
    """No more steps are wanted."""


class Pacer:
    """Called after each step; between segments it waits for the next order."""

    def __init__(self, pipe: Connection, device: Any, warmup: int) -> None:
        self._pipe, self._device = pipe, device
        self._left, self._tokens = warmup, 0.0
        self._ready = self.finished = False
        self.guest: Callable[[int], float] | None = None  # does so many steps, returns the tokens
        self._began = time.perf_counter()

    def begin(self) -> None:
        """The clock starts here, where what came before belongs to no step."""
        self._began = time.perf_counter()

    def step(self, tokens: float) -> None:
        """Raises Finished where no more are wanted."""
        import torch

        self._left -= 1
        self._tokens += tokens
        if self._left > 0:
            return
        if self._ready:
            self._send(self._tokens)
        else:
            if self._device.type == "cuda":  # what was tried in the first steps does not count
                torch.cuda.reset_peak_memory_stats(self._device)
            self._pipe.send(Ready(_name(self._device), torch.__version__))
            self._ready = True
        while (order := self._pipe.recv()).guest:
            assert self.guest is not None
            self._began = time.perf_counter()
            self._send(self.guest(order.steps))
        self._left, self._tokens = order.steps, 0.0
        if self._left == 0:
            self.finished = True
            raise Finished
        self._began = time.perf_counter()

    def _send(self, tokens: float) -> None:
        import torch

        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        self._pipe.send(Segment(time.perf_counter() - self._began, tokens))


def _name(device: Any) -> str:
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def _peak(device: Any) -> int:
    import torch

    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def enter(log: Path, device: str, threads: int) -> Any:
    """Begins a child process: what it prints goes to `log`, and it ends with its parent.

    Returns the torch.device; raises NasdError where there is none.
    """
    die_with_parent(os.getppid(), may_be_init=True)
    with log.open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    kind, _, number = device.partition(":")
    os.environ["CUDA_VISIBLE_DEVICES"] = (number or "0") if kind == "cuda" else ""
    os.environ["OMP_NUM_THREADS"] = str(threads)
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch

    if kind == "cuda" and not torch.cuda.is_available():
        raise NasdError(f"--device {device}: torch {torch.__version__} finds no such GPU here")
    torch.set_num_threads(threads)
    return torch.device(kind)


def work(pipe: Connection, job: Job, log: Path) -> None:
    """The process of one side, from its start to its end."""
    try:
        device = enter(log, job.device, job.threads)
        pacer = Pacer(pipe, device, job.warmup)
        with contextlib.suppress(Finished):
            _side(job)(job, pacer, device)
        pipe.send(Done(_peak(device)))
    except BaseException as error:
        traceback.print_exc()
        known = isinstance(error, NasdError)
        why = str(error) if known else f"{type(error).__name__}: {error}"
        pipe.send(Failed(why))


def _side(job: Job) -> Callable[[Job, Pacer, Any], None]:
    if job.side.who == "trainer":
        from tests.bench import trainer

        return trainer.run
    from tests.bench import ours

    return ours.run
