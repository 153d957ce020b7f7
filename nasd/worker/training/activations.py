"""What the frozen prefix makes of the corpus: computed once, and shared by candidates that have it.

In phase 0 nothing below the lowest new module changes, so where the masks are fixed
(data.mlm.fixed_masks) its results are the same in every epoch, and in every sibling with the same
prefix. They are kept, as far as daemon.activation_cache_gb reaches, in

    cache/activations-<key>.bin          [sequences, tokens, width], float32
    cache/activations-<key>.bin.digest   of that file; one that is damaged is computed again

where the key names all that they follow from. The results of a stage do not depend on the cache,
but for rounding: where it cannot be had, a line in the log says why, and training computes them.
"""

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from nasd.contract import digests
from nasd.contract.digests import Damaged
from nasd.worker.model.architecture import BlockShape
from nasd.worker.tasks.task import Ranks, Task, autocast, to_device
from nasd.worker.training.progress import LONG, Progress
from nasd.worker.training.stop import Stopped, StopRequest

FORMAT = 2
CHUNK = 32  # sequences at once; always as many, for the same last bits
GB = 1e9
HALF = ".tmp"  # behind a hidden name: of an attempt that makes it
ABANDONED_SECONDS = 3600.0  # without a write, and nobody is making it any more


@dataclass(frozen=True)
class Shelf:
    """Where activations are kept, how many bytes in all, and who writes there now."""

    folder: Path
    room: float
    attempt: int


def known(
    task: Task,
    corpus: str,
    epochs: float,
    precision: str,
    shelf: Shelf,
    ranks: Ranks,
    stop: StopRequest,
    progress: Progress,
    say: Callable[[str], None],
) -> Tensor | None:
    """[train_size, tokens, width], mapped from a file, or None where training has to compute them.

    The task's model is on its device, and what does not train is frozen. corpus: names it. Says
    in one line what was chosen.
    """
    encoder = task.model.encoder
    layers = encoder.frozen_prefix()
    if task.fixed is None or len(layers) < 2:  # embeddings alone are computed as fast as read
        return None
    tokens = task.fixed.narrow if encoder.narrows(len(layers)) else task.fixed.length
    shape = (task.train_size, tokens, task.model.architecture.width)
    size = size_of(*shape)
    path = shelf.folder / f"activations-{_key(task, corpus, precision, ranks)}.bin"

    def tell(choice: str) -> None:
        if ranks.first:
            say(f"activations of {len(layers)} frozen layers, {size / GB:.2f} GB: {choice}")

    if size > shelf.room:
        tell("not cached, as daemon.activation_cache_gb is smaller")
        return None
    try:
        if not _agreed(_is_whole(path, size, ranks, progress, tell), ranks):
            if epochs <= 1:
                tell("not cached, as each sequence is seen but once")
                return None
            _make(task, path, size, precision, shelf, ranks, stop, progress)
            tell(f"computed and cached in {path.name}")
        else:
            tell(f"taken from {path.name}")
        if ranks.first:
            with contextlib.suppress(OSError):
                os.utime(path)  # the one that was not used for longest is the first to go
        return torch.from_numpy(np.memmap(path, np.float32, mode="c", shape=shape))
    except OSError as error:
        tell(f"not cached: {error}")
        return None


def size_of(sequences: int, tokens: int, width: int) -> int:
    """Bytes of the activations of so many sequences."""
    return 4 * sequences * tokens * width


def _key(task: Task, corpus: str, precision: str, ranks: Ranks) -> str:
    """Names all that the activations follow from: weights, shape, corpus, masks and arithmetic."""
    encoder = task.model.encoder
    layers = encoder.frozen_prefix()
    assert task.fixed is not None
    arch = task.model.architecture.with_dropout(0.0)
    what = {
        "format": FORMAT,
        "architecture": asdict(replace(arch, blocks=_lowest(arch.blocks, len(layers) - 1))),
        "narrow": encoder.narrows(len(layers)),
        "corpus": corpus,
        "masks": list(task.fixed.draw),
        "arithmetic": [precision, ranks.device.type],
    }
    digest = hashlib.sha256(json.dumps(what, sort_keys=True).encode())
    for part in chain.from_iterable(layers):
        for tensor in part.state_dict().values():
            digest.update(tensor.detach().cpu().contiguous().numpy())
    return digest.hexdigest()[:16]


def _lowest(blocks: tuple[BlockShape, ...], layers: int) -> tuple[BlockShape, ...]:
    """The blocks as far as they belong to the lowest `layers`, embeddings not counted."""
    found = []
    for block in blocks:
        if layers > 0:
            found.append(replace(block, ffns=block.ffns[: layers - 1]))
        layers -= 1 + len(block.ffns)
    return tuple(found)


def _is_whole(
    path: Path, size: int, ranks: Ranks, progress: Progress, tell: Callable[[str], None]
) -> bool:
    """Whether the file may be read. The first rank looks for damage, which takes reading it all."""
    try:
        if path.stat().st_size != size:
            return False
        if ranks.first:
            digests.check_file(path, lambda: progress("checking"))
    except OSError:
        return False
    except Damaged as damage:
        tell(f"not taken: {damage}")
        return False
    return True


def _make(
    task: Task,
    path: Path,
    size: int,
    precision: str,
    shelf: Shelf,
    ranks: Ranks,
    stop: StopRequest,
    progress: Progress,
) -> None:
    """Fills the file, each rank its share of it; raises OSError on every rank if one cannot."""
    temporary = path.with_name(f".{path.name}.{shelf.attempt}{HALF}")

    def allocate() -> None:
        _make_room(shelf, size)
        with temporary.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, size)  # a full disk is noticed here

    def fill() -> None:
        with temporary.open("r+b") as file:
            everything = np.arange(task.train_size)
            for begin in ranks.deal(everything[::CHUNK]).tolist():
                progress("caching", begin, task.train_size)
                if stop.asked:
                    raise Stopped("asked to stop before the first step")
                states = _below(task, everything[begin : begin + CHUNK], precision, ranks)
                file.seek(begin * (size // task.train_size))
                file.write(states.numpy().tobytes())
            progress("caching", task.train_size, task.train_size, patience=LONG)
            file.flush()
            os.fsync(file.fileno())

    def publish() -> None:
        path.unlink(missing_ok=True)  # a damaged one
        digests.seal_file(temporary, lambda: progress("checking"), final=path)
        temporary.replace(path)

    try:
        _together(allocate, ranks.first, ranks)
        _together(fill, True, ranks)
        _together(publish, ranks.first, ranks)
    finally:
        if ranks.first:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


@torch.no_grad()
def _below(task: Task, indices: NDArray[np.int64], precision: str, ranks: Ranks) -> Tensor:
    """[sequences, tokens, width] on the CPU."""
    task.model.eval()
    batch = to_device(task.batch(indices, seed=0), ranks.device)  # the masks have their own seed
    with autocast(precision, ranks.device):
        states = task.model.encoder.below(batch["input_ids"], positions=batch.get("positions"))
    return states.float().cpu().contiguous()


def _make_room(shelf: Shelf, size: int) -> None:
    """Removes what was not used for longest, until `size` more bytes are within the bounds; raises
    OSError where they never are, as other attempts make theirs.

    A file that another attempt has mapped stays with it until it is done.
    """
    found = []
    for path in shelf.folder.glob("*activations-*"):
        with contextlib.suppress(FileNotFoundError):  # it goes just now
            if path.suffix != digests.SUFFIX:
                found.append((path, path.stat()))
    taken = sum(stat.st_size for _, stat in found)
    for path, stat in sorted(found, key=lambda one: one[1].st_mtime):
        if taken + size <= shelf.room:
            return
        if path.suffix == HALF and time.time() - stat.st_mtime < ABANDONED_SECONDS:
            continue
        path.unlink(missing_ok=True)
        digests.note_of(path).unlink(missing_ok=True)
        taken -= stat.st_size
    if taken + size > shelf.room:
        raise OSError("the room is taken by what other attempts make just now")


def _together(act: Callable[[], None], mine: bool, ranks: Ranks) -> None:
    """Acts, on the ranks whose business it is; an OSError of one is raised by all, and so is that
    what it wrote is gone."""
    fault: OSError | None = None
    try:
        if mine:
            act()
    except OSError as error:
        fault = error
    except Damaged as error:
        fault = OSError(str(error))
    if not _agreed(fault is None, ranks):
        raise fault or OSError("another rank could not write it")


def _agreed(good: bool, ranks: Ranks) -> bool:
    """Whether it is so on every rank."""
    votes = torch.tensor([good], dtype=torch.uint8)
    if ranks.world > 1:
        dist.all_reduce(votes, op=dist.ReduceOp.MIN)
    return bool(votes)
