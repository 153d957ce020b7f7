"""How many examples a GPU takes at once: found by trying, and remembered.

Larger micro-batches keep a device busier until it is as busy as it gets, or its memory is full;
where that is depends on the device and on the size of what trains. So the first attempt of a kind
tries, a few steps each, and leaves the answer in

    cache/micro-batch-<key>.json

for all that follow. Gradients do not depend on it but for rounding. On a CPU there is nothing to be
gained, and a share is taken whole.
"""

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed as dist

from nasd.contract import digests
from nasd.contract.config import Stage
from nasd.contract.protocol import write_atomically
from nasd.contract.schedule import halved, share_of
from nasd.contract.slots import part_of
from nasd.worker.tasks.task import Ranks, Task, autocast, to_device
from nasd.worker.training.progress import LONG, Progress

SMALLEST = 4  # the first that is tried; smaller ones only where this does not fit
STEPS = 3  # that are timed of each, of which the quickest counts
VAIN = 2  # sizes in a row that gain nothing
WORTH = 1.03  # so many times as fast must the next one be
ROOM = 0.9  # of the memory may be taken: candidates of a class differ a little
CLASS = 1.1  # sizes within such a factor of each other are one class
# What a lack of memory is called where torch does not call it OutOfMemoryError.
NO_MEMORY = ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")


def no_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or any(
        part in str(error) for part in NO_MEMORY
    )


class Device(Protocol):
    """What a trial asks of a device; times in seconds, memory in bytes."""

    name: str
    room: float  # that training may take

    def run(self, act: Callable[[], None]) -> tuple[float, float]:
        """How long it took, and the most memory that was taken meanwhile.

        Raises what `no_memory` is true of where it did not fit.
        """

    def clear(self) -> None:
        """Gives back what is held for the next of the same size."""


class TrialGpu:
    """The GPU that an attempt's trials run on. share: how many attempts it is for."""

    def __init__(self, device: Any, share: int = 1) -> None:
        self._device = device
        free, total = torch.cuda.mem_get_info(device)
        self.name = f"{torch.cuda.get_device_name(device)}, {total >> 30} GiB"
        # What others hold is theirs.
        self.room = ROOM * (free + torch.cuda.memory_reserved(device))
        if share > 1:  # the others come and go, and this one's part stays what it is
            self.name += f", shared by {share}"
            self.room = ROOM * part_of(total, share)

    def run(self, act: Callable[[], None]) -> tuple[float, float]:
        torch.cuda.reset_peak_memory_stats(self._device)
        torch.cuda.synchronize(self._device)
        began = time.perf_counter()
        act()
        torch.cuda.synchronize(self._device)
        seconds = time.perf_counter() - began
        return seconds, float(torch.cuda.max_memory_allocated(self._device))

    def clear(self) -> None:
        torch.cuda.empty_cache()


@dataclass(frozen=True)
class Known:
    """What was found best when it was tried, and how often training ran out of memory with it all
    the same."""

    tried: int
    halvings: int = 0


@dataclass(frozen=True)
class Memory:
    """What was found, in files of a folder."""

    folder: Path

    def recall(self, key: str) -> Known | None:
        """What was found for the key; None where nothing was, or nothing that makes sense."""
        try:
            note = json.loads(self._path(key).read_text(encoding="utf-8"))
            found = note["micro_batch"], note.get("halvings", 0)
            damaged = "digest" in note and note.pop("digest") != digests.of_json(note)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None
        if damaged:  # an earlier nasd's has no digest
            return None
        if not all(isinstance(number, int) for number in found) or found[0] < 1 or found[1] < 0:
            return None
        return Known(*found)

    def keep(
        self, key: str, known: Known, seconds: dict[int, float], say: Callable[[str], None]
    ) -> None:
        """Where it cannot be written, the next attempt tries again: a line says why."""
        note = {"micro_batch": known.tried, "halvings": known.halvings}
        times = {str(size): taken for size, taken in seconds.items()}
        what: dict[str, Any] = {**json.loads(key), **note, "seconds_an_example": times}
        what["digest"] = digests.of_json(what)
        try:
            write_atomically(self._path(key), json.dumps(what, indent=1).encode())
        except OSError as error:
            say(f"the micro-batch is not remembered: {error}")

    def _path(self, key: str) -> Path:
        name = hashlib.sha256(key.encode()).hexdigest()[:16]
        return self.folder / f"micro-batch-{name}.json"


def sizes(share: int) -> Iterator[int]:
    """What is worth trying where a rank has `share` examples: doubled up to the share itself."""
    size = min(SMALLEST, share)
    while size < share:
        yield size
        size *= 2
    yield share


def best(share: int, attempt: Callable[[int], float | None]) -> tuple[int, dict[int, float]]:
    """The size from which on larger ones gain nothing, or do not fit, and what each was worth.

    attempt: the seconds an example takes in a micro-batch of that size, None where it does not fit.
    Where not even the smallest does, 1: should that be too much, training says so. One size that
    gains nothing may have been held up by somebody else; after two nothing more is to be had.
    """
    found, seconds, vain = 1, dict[int, float](), 0
    for size in sizes(share):
        taken = attempt(size)
        if taken is None:
            break
        seconds[size] = taken
        if seconds.get(found, math.inf) < WORTH * taken:
            vain += 1
            if vain == VAIN:
                break
        else:
            found, vain = size, 0
    return found, seconds


@dataclass
class Trials:
    """Finds a stage's micro-batch on a device, once for all attempts of its kind."""

    device: Device
    memory: Memory
    key: str = ""  # of what was asked for last
    halvings: int = 0  # of what was found then

    def find(
        self,
        task: Task,
        stage: Stage,
        ranks: Ranks,
        precision: str,
        halvings: int,
        progress: Progress,
        say: Callable[[str], None],
    ) -> int:
        """How many examples each rank takes at once; says in a line what was chosen.

        halvings: how often this candidate has run out of memory; what others of its kind have
        left word of is not halved again. The task's model is on its device and in training mode,
        and what does not train is frozen. Weights stay as they are, gradients are gone.
        """
        found = self.halvings = halvings
        self.key = key_of(task, stage, ranks, precision, self.device)
        if ranks.first:
            share = share_of(stage, ranks.world)
            known = self.memory.recall(self.key)
            if known is None:
                size, seconds = _measure(task, share, ranks, precision, self.device, progress)
                known = Known(size)
                self.memory.keep(self.key, known, seconds, say)
                tried = ", ".join(f"{size}: {1 / one:.0f}/s" for size, one in seconds.items())
                how = f"as tried ({tried or 'no room'})"
            else:
                how = "as tried before"
            self.halvings = max(halvings, known.halvings)
            found = halved(min(known.tried, share), self.halvings)
            short = f", halved {self.halvings} x for want of memory" if self.halvings else ""
            say(f"micro-batch: {found} of {share} examples, {how}{short}")
        agreed = torch.tensor([found, self.halvings])
        if ranks.world > 1:
            dist.broadcast(agreed, 0)
        self.halvings = int(agreed[1])
        return int(agreed[0])

    def too_large(self, say: Callable[[str], None]) -> None:
        """Memory ran out all the same, on whichever rank: who comes next takes half."""
        known = self.memory.recall(self.key)
        if known is not None and known.halvings <= self.halvings:  # no peer was faster
            self.memory.keep(self.key, replace(known, halvings=self.halvings + 1), {}, say)


def key_of(task: Task, stage: Stage, ranks: Ranks, precision: str, device: Device) -> str:
    """Names all that the answer follows from; sizes by their class."""
    trained = [p.numel() for p in task.model.parameters() if p.requires_grad]
    return json.dumps(
        {
            "device": device.name,
            "torch": torch.__version__,
            "precision": precision,
            "task": [stage.task, stage.train, int(task.longest)],
            "share": share_of(stage, ranks.world),
            "cached": task.known is not None,
            # Only where there is one, so that what was tried before there were any still counts.
            **({"taught": task.alongside} if task.alongside else {}),
            "width": task.model.architecture.width,
            "size": [_class(sum(p.numel() for p in task.model.parameters())), _class(sum(trained))],
        }
    )


def _class(size: int) -> int:
    return round(math.log(max(1, size)) / math.log(CLASS))


def _measure(
    task: Task, share: int, ranks: Ranks, precision: str, device: Device, progress: Progress
) -> tuple[int, dict[int, float]]:
    model = task.model
    trained = [p for p in model.parameters() if p.requires_grad]
    # Not there yet: AdamW's two moments, and another buffer of gradients where ranks share them.
    reserve = (3 if ranks.world > 1 else 2) * sum(p.numel() * p.element_size() for p in trained)
    longest = _longest_first(task)

    def attempt(size: int) -> float | None:
        progress("trying micro-batches", size, share, patience=LONG)

        def step() -> None:
            with autocast(precision, ranks.device):
                loss = task.loss(task.outputs(model, batch), batch)
            loss.backward()  # type: ignore[no-untyped-call]

        try:
            batch = to_device(task.batch(longest[:size], 0), ranks.device)
            device.run(step)  # what is slow only once
            each = [device.run(step) for _ in range(STEPS)]
        except RuntimeError as error:
            if not no_memory(error):
                raise
            return None
        finally:
            for parameter in trained:
                parameter.grad = None
            device.clear()
        seconds, taken = min(each)[0], max(memory for _, memory in each)
        return seconds / size if taken + reserve <= device.room else None

    return best(min(share, len(longest)), attempt)


def _longest_first(task: Task) -> Any:
    if task.lengths is None:
        return np.arange(task.train_size)
    return np.argsort(-task.lengths, kind="stable")
