"""Asks the driver how its GPUs are, in a process of its own: NVML can hang.

    python -m nasd.launch.gpus [SLOT ...]      a line of JSON for each GPU, {"end": ...} behind them

Each question is a new child. One that stayed would keep the devices open, so that nobody could
reset a GPU, and it would not see one that came back: that takes a new nvmlInit.
"""

import contextlib
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from nasd.contract.slots import Slot, SlotKind, devices, on_gpus
from nasd.launch import interpreter

TIMEOUT_SECONDS = 20.0
MOST_TIMEOUTS = 16  # however much a child says: a box has about so many GPUs
MOST_OF_A_CORE = 0.003  # that the daemon's questions may take
LONGEST_SECONDS = 600.0  # between two of them, whatever they cost
CLOSE_SECONDS = 1.0
SMALL_BYTES = 256 << 20
NOT_FOUND = "not found by the driver"


@dataclass(frozen=True, slots=True)
class GpuProcess:
    """A process that holds something on a GPU; `memory` in bytes, 0 if the driver does not say."""

    pid: int
    memory: int


@dataclass(frozen=True, slots=True)
class Gpu:
    """What the driver says of one GPU just now. None: a quantity that it does not tell.

    slot         "cuda:<index>", counted in PCI order as NVML does
    fault        "" if it answers; else the driver's own words, e.g. "GPU is lost"
    asked        whether the driver answered at all: if not, the fault may not be the GPU's
    memory, used bytes; 0 where the GPU shares the machine's memory
    utilisation  percent
    temperature  degrees Celsius
    power        watts
    processes    with compute or graphics on it, by pid
    """

    slot: str
    name: str = ""
    fault: str = ""
    memory: int = 0
    used: int = 0
    utilisation: int | None = None
    temperature: int | None = None
    power: float | None = None
    processes: tuple[GpuProcess, ...] = ()
    asked: bool = True


# By slot; None while it is not known.
Health = Callable[[], Mapping[str, Gpu] | None]


def foreign(
    gpu: Gpu, is_ours: Callable[[int], bool | None], leased: bool
) -> tuple[GpuProcess, ...]:
    """The processes on it that are not ours, small ones apart: a display server is in nobody's way.

    is_ours(pid) is None where no such process can be seen from here, as in a container: the driver
    may count in another pid namespace. On a leased slot it may then well be our own.
    """
    return tuple(
        one
        for one in gpu.processes
        if one.memory == 0 or one.memory >= SMALL_BYTES  # 0: the driver does not say
        if (ours := is_ours(one.pid)) is False or (ours is None and not leased)
    )


def list_gpus() -> list[dict[str, Any]]:
    """The GPUs that answer; none where there is no driver, or where it does not answer in time."""
    return [
        {"index": Slot.parse(gpu.slot).number, "name": gpu.name, "memory": gpu.memory}
        for gpu in now(()).values()
        if not gpu.fault
    ]


def now(slots: Collection[str]) -> Mapping[str, Gpu]:
    """How these GPUs are, or all of them, by slot; those that the driver does not know are left
    out, and all of them where there is no driver or it does not answer in time."""
    question = _Question(slots, TIMEOUT_SECONDS, time.monotonic())
    try:
        while not question.ended():
            if question.late(time.monotonic()):
                return {}
            time.sleep(0.01)
        answer = question.answer()
    finally:
        question.close()
    return {} if answer.error else answer.gpus


def visible(slots: Iterable[str]) -> dict[str, str]:
    """The variables by which a child sees these GPUs alone, in their order, and else none."""
    found = [Slot.parse(slot) for slot in slots]
    return {
        "CUDA_VISIBLE_DEVICES": ",".join(str(s.number) for s in found if s.kind is SlotKind.CUDA),
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",  # as NVML counts them
    }


class GpuWatch:
    """Asks the driver for some slots every `interval` seconds, in a child with a deadline.

    Nothing here waits for the driver. The kernel ends the child when the thread that started it
    ends, so look from the daemon's main thread. `timeout`: without a sign of life, that is from
    one GPU to the next; a GPU that nobody holds open may take seconds to wake up. `share` of a
    core that the questions may take: where they would cost more, they are asked less often.
    """

    def __init__(
        self,
        expected: Collection[str],
        interval: float = 30.0,
        timeout: float = TIMEOUT_SECONDS,
        monotonic: Callable[[], float] = time.monotonic,
        share: float | None = None,
    ) -> None:
        self._share = share
        self._expected = tuple(expected)
        self._interval = interval
        self._timeout = timeout
        self._monotonic = monotonic
        self._question: _Question | None = None
        self._next = monotonic()
        self._seen: dict[str, Gpu] | None = None

    def look(self) -> Mapping[str, Gpu] | None:
        """The newest answer, with each expected slot in it; None before the first one.

        A slot that is not in order has a fault, and so have all of them where the driver does not
        answer at all. A new answer is a new mapping.
        """
        now = self._monotonic()
        if self._question is not None:
            self._follow(self._question, now)
        if self._question is None and now >= self._next:
            self._ask(now)
        return self._seen

    def close(self) -> None:
        """Ends a child that still runs."""
        if self._question is not None:
            self._question.close()
            self._question = None

    def _ask(self, now: float) -> None:
        self._next = now + self._interval
        try:
            self._question = _Question(self._expected, self._timeout, now)
        except OSError as error:  # no process to be had
            self._all_have(f"the driver could not be asked: {error.strerror or error}")

    def _follow(self, question: "_Question", now: float) -> None:
        if question.ended():
            self._next = question.began + max(
                self._interval, min(question.cpu / (self._share or MOST_OF_A_CORE), LONGEST_SECONDS)
            )
            if not question.killed:
                self._take(question.answer())
            question.close()
            self._question = None
        elif not question.killed and question.late(now):
            # One that sleeps in the driver may not die of it: then it stays the only one.
            question.kill()
            self._all_have(f"the driver did not answer within {self._timeout:g} s")

    def _take(self, answer: "_Answer") -> None:
        if answer.error:
            self._all_have(f"the driver could not be asked: {answer.error}")
        else:
            self._seen = {
                slot: answer.gpus.get(slot) or Gpu(slot, fault=NOT_FOUND) for slot in self._expected
            }

    def _all_have(self, fault: str) -> None:
        self._seen = {slot: Gpu(slot, fault=fault, asked=False) for slot in self._expected}


@contextmanager
def watched(slots: Sequence[str]) -> Iterator[Health]:
    """Within it, how the GPUs that some slots are of are; of shares of the cores nothing is
    told."""
    if not on_gpus(slots):
        yield dict
        return
    watch = GpuWatch(devices(slots))
    try:
        yield watch.look
    finally:
        watch.close()


@dataclass(frozen=True, slots=True)
class _Answer:
    gpus: dict[str, Gpu]
    error: str = ""


class _Question:
    """A child that asks the driver for some slots, or for all GPUs.

    It answers into a file in memory: no pipe to block at, no disk to be full.
    """

    def __init__(self, slots: Collection[str], timeout: float, now: float) -> None:
        self.began = now
        self.killed = False
        self.cpu = 0.0  # seconds, once it has ended
        self._timeout = timeout
        self._deadline = now + timeout
        self._last_deadline = now + timeout * MOST_TIMEOUTS
        self._said = 0
        self._file = os.memfd_create("nasd-gpus")
        try:
            self._process = subprocess.Popen(
                [
                    *interpreter.command("nasd.contract.leash", str(os.getpid())),
                    *interpreter.command("nasd.launch.gpus", *slots),
                ],
                env=interpreter.environment(),
                stdin=subprocess.DEVNULL,
                stdout=self._file,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a Ctrl-C is the daemon's to handle
            )
        except OSError:
            os.close(self._file)
            raise

    def ended(self) -> bool:
        before = _seconds_of_children()
        ended = self._process.poll() is not None
        self.cpu += _seconds_of_children() - before  # counted when it is waited for
        return ended

    def late(self, now: float) -> bool:
        """Whether nothing was heard of it for so long that it must hang."""
        said = os.fstat(self._file).st_size
        if said > self._said:
            self._said, self._deadline = said, now + self._timeout
        return now > min(self._deadline, self._last_deadline)

    def kill(self) -> None:
        self.killed = True
        self._process.kill()

    def close(self) -> None:
        """Ends it if it still runs, and leaves it behind if it does not die."""
        if not self.ended():
            self.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(CLOSE_SECONDS)
        os.close(self._file)

    def answer(self) -> _Answer:
        """What a child that has ended said. Libraries may have put in a word of their own."""
        text = os.pread(self._file, os.fstat(self._file).st_size, 0).decode(errors="replace")
        gpus: dict[str, Gpu] = {}
        last = ""
        for line in text.splitlines():
            try:
                said = json.loads(line)
                if "end" in said:
                    return _Answer(gpus, **said["end"])
                processes = tuple(GpuProcess(**one) for one in said["processes"])
                gpus[said["slot"]] = Gpu(**said | {"processes": processes})
            except (ValueError, TypeError, KeyError):
                last = line.strip() or last
        code = self._process.returncode
        how = f"its child ended with {f'signal {-code}' if code < 0 else code}"
        return _Answer({}, f"{how}: {last[:200]}" if last else how)


def _seconds_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


# -- in the child ----------------------------------------------------------------------------------


def _main(slots: Collection[str]) -> None:
    import pynvml

    error = ""
    try:
        pynvml.nvmlInit()
        count = pynvml.nvmlDeviceGetCount()
        asked = [Slot.parse(slot).number for slot in slots] or range(count)
        for index in asked:
            if index < count:
                _say(asdict(_describe(pynvml, index)))
    except pynvml.NVMLError as failure:
        error = str(failure)
    _say({"end": {"error": error}})


def _say(what: dict[str, Any]) -> None:
    """On a line of its own, whatever a library has written before, and at once."""
    print(f"\n{json.dumps(what)}", flush=True)


def _describe(pynvml: Any, index: int) -> Gpu:
    """One GPU by itself: a lost one must not hide the others."""
    slot, name = str(Slot.of(SlotKind.CUDA, index)), ""
    try:
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        name = _told(pynvml, pynvml.nvmlDeviceGetName, handle) or ""
        try:  # the first version of it counts what the driver keeps for itself as used
            memory = pynvml.nvmlDeviceGetMemoryInfo(handle, pynvml.nvmlMemory_v2)
        except pynvml.NVMLError_NotSupported:
            memory = pynvml.c_nvmlMemory_v2_t()
        rates = _told(pynvml, pynvml.nvmlDeviceGetUtilizationRates, handle)
        sensor = pynvml.NVML_TEMPERATURE_GPU
        milliwatts = _told(pynvml, pynvml.nvmlDeviceGetPowerUsage, handle)
        held: dict[int, int] = {}
        for processes in (
            pynvml.nvmlDeviceGetComputeRunningProcesses,
            pynvml.nvmlDeviceGetGraphicsRunningProcesses,
        ):
            for one in _told(pynvml, processes, handle) or ():  # one may be in both
                held[one.pid] = max(held.get(one.pid, 0), one.usedGpuMemory or 0)
        return Gpu(
            slot,
            name,
            memory=memory.total,
            used=memory.used,
            utilisation=None if rates is None else rates.gpu,
            temperature=_told(pynvml, pynvml.nvmlDeviceGetTemperature, handle, sensor),
            power=None if milliwatts is None else milliwatts / 1000,
            processes=tuple(GpuProcess(pid, memory) for pid, memory in sorted(held.items())),
        )
    except Exception as error:
        return Gpu(slot, name, fault=str(error) or repr(error))


def _told(pynvml: Any, ask: Callable[..., Any], *arguments: Any) -> Any:
    """A quantity, or None: not every device and not every driver tells each of them."""
    try:
        return ask(*arguments)
    except (pynvml.NVMLError_GpuIsLost, pynvml.NVMLError_ResetRequired):
        raise
    except (pynvml.NVMLError, pynvml.NVMLLibraryMismatchError):
        return None


if __name__ == "__main__":
    _main(sys.argv[1:])
