"""Checkpoints: a directory each, whole and verified by checksum, or it does not count.

    checkpoints/step-00001200/  model.safetensors  optimizer.pt  progress.json  manifest.json

The manifest holds the digests of the other three; those of an earlier nasd count as well.
Everything is written under a temporary name, synced, and renamed. The random state is not saved:
every step seeds its own generators from its number (see nasd.worker.training.train).
"""

import json
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from nasd.contract import digests
from nasd.contract.protocol import checkpoints_below, sync_folder

KEPT = 2
FILES = {"model.safetensors", "optimizer.pt", "progress.json"}
PAUSED = ("optimizer.pt", "monitor.json")  # beside the model that a part of a stage leaves


@dataclass(frozen=True)
class Checkpoint:
    step: int
    model: dict[str, Tensor]
    optimizer: dict[str, Any]
    progress: dict[str, Any]


@dataclass(frozen=True)
class Paused:
    """What a part of a stage leaves to the next one, besides the weights."""

    optimizer: dict[str, Any]
    monitor: dict[str, Any]


def save(
    folder: Path,
    step: int,
    model: dict[str, Tensor],
    optimizer: dict[str, Any],
    progress: dict[str, Any],
) -> Path:
    """Writes checkpoint `step` below `folder`, and forgets all but the newest two.

    Where that fails, those before it stand as they did and nothing of it is left.
    """
    final = folder / f"step-{step:09d}"
    temporary = folder / f".step-{step:09d}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        save_file(
            {name: t.detach().contiguous() for name, t in model.items()},
            temporary / "model.safetensors",
        )
        with (temporary / "optimizer.pt").open("wb") as file:  # of a path, errors name no cause
            torch.save(optimizer, file)
        (temporary / "progress.json").write_text(json.dumps({"step": step, **progress}))
        manifest = digests.of_files(temporary)
        (temporary / "manifest.json").write_text(json.dumps(manifest))
        for path in temporary.iterdir():
            _sync_file(path)
        sync_folder(temporary)
        if final.exists():
            shutil.rmtree(final)
        temporary.rename(final)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)  # on a full disk, its space is needed
        raise
    sync_folder(folder)
    for old in checkpoints_below([folder])[KEPT:]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def put_in(weights: dict[str, Tensor], sign: str) -> dict[str, Tensor]:
    """To stand beside a model's, in one checkpoint."""
    return {f"{sign}{name}": one for name, one in weights.items()}


def taken_out(model: dict[str, Tensor], sign: str) -> dict[str, Tensor]:
    """The weights that `put_in` has put there."""
    names = [name for name in model if name.startswith(sign)]
    return {name.removeprefix(sign): model.pop(name) for name in names}


def newest(folders: Iterable[Path]) -> Checkpoint | None:
    """The newest whole checkpoint below any of `folders`; damaged ones are passed over."""
    for path in checkpoints_below(folders):
        if (checkpoint := _load(path)) is not None:
            return checkpoint
    return None


def pause(folder: Path, paused: Paused) -> None:
    """Written into the folder of a part's result, which is sealed as a whole."""
    optimizer, monitor = (folder / name for name in PAUSED)
    with optimizer.open("wb") as file:  # of a path, errors name no cause
        torch.save(paused.optimizer, file)
    monitor.write_text(json.dumps(paused.monitor))
    for path in (optimizer, monitor):
        _sync_file(path)


def paused(folder: Path) -> Paused:
    optimizer, monitor = (folder / name for name in PAUSED)
    return Paused(
        # weights_only: a pickle in a checkpoint is never executed.
        torch.load(optimizer, weights_only=True, map_location="cpu"),
        json.loads(monitor.read_text()),
    )


def _load(path: Path) -> Checkpoint | None:
    try:
        manifest = json.loads((path / "manifest.json").read_text())
        digests.vouch(path, manifest, FILES)
        progress = json.loads((path / "progress.json").read_text())
        return Checkpoint(
            step=progress.pop("step"),
            model=load_file(path / "model.safetensors"),
            # weights_only: a pickle in a checkpoint is never executed.
            optimizer=torch.load(path / "optimizer.pt", weights_only=True, map_location="cpu"),
            progress=progress,
        )
    except MemoryError:  # that says nothing of the checkpoint
        raise
    except Exception as error:  # whatever is wrong with it, it does not count
        print(f"checkpoint {path} is damaged and passed over: {error!r}", flush=True)
        return None


def _sync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
