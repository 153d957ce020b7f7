"""What the devices of the slots do just now: a GPU by its driver, a CPU share by its processes.

It is sampled in a thread of its own, beside whoever looks: a driver may hang, and so may a /proc.
"""

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import psutil

from nasd.contract.slots import Slot, devices, is_gpu
from nasd.launch.gpus import Gpu, GpuProcess, GpuWatch, foreign
from nasd.record.state import Attempt

INTERVAL_SECONDS = 2.0
SHARE_OF_A_CORE = 0.03  # that asking for GPUs may take while somebody looks on
PATIENCE_SECONDS = 2.0  # of a single look, for a driver's answer


@dataclass(frozen=True, slots=True)
class Device:
    """None: not known. use: percent, of a GPU or of the CPU threads of a slot. memory, total: in
    bytes; of a CPU share, what its processes hold. temperature: degrees Celsius. foreign: processes
    on it that belong to no attempt. fault: the driver's word for it, "" if it is in order."""

    use: float | None = None
    memory: int | None = None
    total: int | None = None
    temperature: int | None = None
    foreign: tuple[GpuProcess, ...] = ()
    fault: str = ""


@dataclass(frozen=True)
class Question:
    """The slots to look at, and what runs on them. threads: of a CPU slot."""

    slots: tuple[str, ...] = ()
    attempts: tuple[Attempt, ...] = ()
    threads: int = 1


class Devices:
    """`look` never waits: it gives the newest sample, and says what the next one is to be of."""

    def __init__(self) -> None:
        self._question = Question()
        self._seen: Mapping[str, Device] = {}
        self._before: dict[int, tuple[float, float]] = {}  # pid: (when, CPU seconds up to then)
        self._gpus: tuple[tuple[str, ...], GpuWatch] | None = None
        self._asked = threading.Event()
        self._ended = threading.Event()

    def look(self, question: Question) -> Mapping[str, Device]:
        self._question = question
        self._asked.set()
        return self._seen

    @contextmanager
    def sampled(self) -> Iterator["Devices"]:
        """Within it, a thread samples every INTERVAL_SECONDS."""
        thread = threading.Thread(target=self._sample_on, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._ended.set()
            self._asked.set()
            thread.join(timeout=1.0)

    def once(self, question: Question) -> Mapping[str, Device]:
        """A single sample; waits for PATIENCE_SECONDS at most."""
        with self.sampled():
            self.look(question)
            deadline = time.monotonic() + PATIENCE_SECONDS
            while time.monotonic() < deadline and not all(s in self._seen for s in question.slots):
                time.sleep(0.01)
        return self._seen

    # -- in the thread -------------------------------------------------------------------------

    def _sample_on(self) -> None:
        self._asked.wait()
        try:
            while not self._ended.is_set():
                self._seen = self._sample(self._question)
                waits = self._gpus is not None and self._gpus[1].look() is None
                self._ended.wait(0.02 if waits else INTERVAL_SECONDS)
        finally:
            if self._gpus is not None:
                self._gpus[1].close()

    def _sample(self, question: Question) -> dict[str, Device]:
        trees = {one.id: _processes(one.process or {}) for one in question.attempts}
        holder = {slot: one.id for one in question.attempts for slot in one.slots}
        found = {}
        if gpus := tuple(slot for slot in question.slots if is_gpu(slot)):
            ours = {process.pid for tree in trees.values() for process in tree}
            answer, leased = self._ask(devices(gpus)) or {}, set(devices(holder))
            for slot in gpus:  # of a share it is told what its GPU does
                if (device := Slot.parse(slot).device) in answer:
                    found[slot] = _of_gpu(answer[device], ours, device in leased)
        used = {
            one.id: self._cpu_share(trees[one.id], len(one.slots), question.threads)
            for one in question.attempts
        }
        for slot in question.slots:
            if slot not in gpus:
                found[slot] = used[holder[slot]] if slot in holder else Device(use=0.0)
        alive = {process.pid for tree in trees.values() for process in tree}
        self._before = {pid: one for pid, one in self._before.items() if pid in alive}
        return found

    def _ask(self, slots: tuple[str, ...]) -> Mapping[str, Gpu] | None:
        if self._gpus is None or self._gpus[0] != slots:
            if self._gpus is not None:
                self._gpus[1].close()
            self._gpus = slots, GpuWatch(slots, INTERVAL_SECONDS, share=SHARE_OF_A_CORE)
        return self._gpus[1].look()

    def _cpu_share(self, tree: Sequence[psutil.Process], slots: int, threads: int) -> Device:
        """Of each slot, since the last sample or since a process began."""
        share, memory = 0.0, 0
        for process in tree:
            with suppress(psutil.Error):
                times, now = process.cpu_times(), time.time()
                seconds = times.user + times.system
                then, before = self._before.get(process.pid, (process.create_time(), 0.0))
                self._before[process.pid] = now, seconds
                share += (seconds - before) / max(now - then, 0.01)
                memory += process.memory_info().rss
        if not tree:
            return Device()
        return Device(use=min(100.0, 100 * share / slots / threads), memory=memory // slots)


def _of_gpu(gpu: Gpu, ours: set[int], leased: bool) -> Device:
    if gpu.fault:  # where the driver was not even asked, this may be another machine
        return Device(fault=gpu.fault if gpu.asked else "")

    def is_ours(pid: int) -> bool | None:
        return True if pid in ours else False if psutil.pid_exists(pid) else None

    return Device(
        use=gpu.utilisation,
        memory=gpu.used or None,
        total=gpu.memory or None,
        temperature=gpu.temperature,
        foreign=foreign(gpu, is_ours, leased),
    )


def _processes(note: Mapping[str, Any]) -> list[psutil.Process]:
    """The processes of an attempt, by its launcher's note; none where it is not of this machine."""
    with suppress(psutil.Error, KeyError):
        first = psutil.Process(note["pid"])
        if abs(first.create_time() - note["started"]) < 1:
            return [first, *first.children(recursive=True)]
    return []
