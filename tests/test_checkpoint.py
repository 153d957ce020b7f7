"""A checkpoint is whole and verified, or it does not count."""

import hashlib
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from nasd.contract import digests
from nasd.worker.training import checkpoint


def write(folder: Path, step: int) -> Path:
    return checkpoint.save(
        folder,
        step,
        {"weight": torch.full((2, 3), float(step))},
        {"state": {0: {"step": torch.tensor(float(step))}}, "param_groups": [{"lr": 0.1}]},
        {"curve": [[step, 1.0]]},
    )


def test_what_was_saved_is_what_is_found(tmp_path: Path) -> None:
    write(tmp_path, 10)
    found = checkpoint.newest([tmp_path])
    assert found is not None
    assert (found.step, found.progress) == (10, {"curve": [[10, 1.0]]})
    assert torch.equal(found.model["weight"], torch.full((2, 3), 10.0))
    assert found.optimizer["state"][0]["step"] == 10.0


def test_the_last_two_are_kept(tmp_path: Path) -> None:
    for step in (5, 10, 15, 20):
        write(tmp_path, step)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000000015", "step-000000020"]


@pytest.mark.parametrize(
    "name", ["model.safetensors", "optimizer.pt", "progress.json", "manifest.json"]
)
@pytest.mark.parametrize("damage", ["truncate", "flip", "remove"])
def test_a_damaged_one_falls_back_to_the_one_before(tmp_path: Path, name: str, damage: str) -> None:
    write(tmp_path, 1)
    path = write(tmp_path, 2) / name
    content = path.read_bytes()
    match damage:
        case "truncate":
            path.write_bytes(content[: len(content) // 2])
        case "flip":
            middle = len(content) // 2
            path.write_bytes(
                content[:middle] + bytes([content[middle] ^ 0xFF]) + content[middle + 1 :]
            )
        case _:
            path.unlink()
    found = checkpoint.newest([tmp_path])
    assert found is not None
    assert found.step == 1


@pytest.mark.parametrize("names", [[], ["progress.json"], ["model.safetensors", "progress.json"]])
def test_one_whose_manifest_does_not_vouch_for_every_file_does_not_count(
    tmp_path: Path, names: list[str]
) -> None:
    write(tmp_path, 1)
    manifest = write(tmp_path, 2) / "manifest.json"
    known = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({name: known[name] for name in names}))
    found = checkpoint.newest([tmp_path])
    assert found is not None
    assert found.step == 1


def test_one_of_an_earlier_nasd_with_sha_256_in_its_manifest_counts(tmp_path: Path) -> None:
    folder = write(tmp_path, 1)
    files = [path for path in folder.iterdir() if path.name != "manifest.json"]
    sums = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    (folder / "manifest.json").write_text(json.dumps(sums))
    found = checkpoint.newest([tmp_path])
    assert found is not None
    assert found.step == 1
    (folder / "manifest.json").write_text(json.dumps({**sums, "optimizer.pt": "0" * 64}))
    assert checkpoint.newest([tmp_path]) is None


def test_the_newest_of_several_attempts_counts(tmp_path: Path) -> None:
    write(tmp_path / "a", 7)
    write(tmp_path / "b", 3)
    found = checkpoint.newest([tmp_path / "b", tmp_path / "a", tmp_path / "none"])
    assert found is not None
    assert found.step == 7


def test_an_unfinished_one_does_not_count(tmp_path: Path) -> None:
    write(tmp_path, 4).rename(tmp_path / ".step-000000004.tmp")
    assert checkpoint.newest([tmp_path]) is None


def whole(step: int, found: checkpoint.Checkpoint | None) -> bool:
    return (
        found is not None
        and found.step == step
        and torch.equal(found.model["weight"], torch.full((2, 3), float(step)))
        and found.optimizer["state"][0]["step"] == float(step)
        and found.progress == {"curve": [[step, 1.0]]}
    )


class Killed(BaseException):
    """In the place of SIGKILL: from here on nothing of the process reaches the disk."""


def halve(file: Any) -> None:
    """file: a path, or open for writing."""
    if isinstance(file, Path):
        os.truncate(file, file.stat().st_size // 2)
    else:
        file.truncate(file.tell() // 2)


class Reaper:
    """Kills at the call of that number of those that change the disk; one that writes a file is
    killed half-way."""

    ON_DISK = ("mkdir", "open", "fsync", "rename", "unlink", "rmdir")

    def __init__(self, patch: pytest.MonkeyPatch, at: int) -> None:
        self._calls = 0
        self._at = at
        for name in self.ON_DISK:
            patch.setattr(os, name, self._watched(getattr(os, name)))
        patch.setattr(checkpoint, "save_file", self._watched(checkpoint.save_file, 1))
        patch.setattr(torch, "save", self._watched(torch.save, 1))
        patch.setattr(Path, "write_text", self._watched(Path.write_text, 0))

    def _watched(self, act: Callable[..., Any], written: int | None = None) -> Callable[..., Any]:
        """written: which argument is the path of the file that it writes, if it does."""

        def watched(*arguments: Any, **options: Any) -> Any:
            self._calls += 1
            if self._calls == self._at and written is not None:
                act(*arguments, **options)
                halve(arguments[written])
            if self._calls >= self._at:
                raise Killed
            return act(*arguments, **options)

        return watched


def test_a_kill_at_any_call_leaves_the_one_before_or_the_new_one_and_saving_goes_on(
    tmp_path: Path,
) -> None:
    found_steps = []
    for at in range(1, 1000):
        folder = tmp_path / str(at)
        for step in (1, 2):
            write(folder, step)
        with pytest.MonkeyPatch.context() as patch:
            Reaper(patch, at)
            try:
                write(folder, 3)
                break
            except Killed:
                pass
        found = checkpoint.newest([folder])
        assert found is not None
        assert whole(found.step, found), at
        found_steps.append(found.step)
        write(folder, 3)  # by an attempt that resumes at 2
        assert whole(3, checkpoint.newest([folder]))
        assert {path.name for path in folder.iterdir()} == {"step-000000002", "step-000000003"}
    assert set(found_steps) == {2, 3}
    assert found_steps == sorted(found_steps)
    assert found_steps.count(2) > 10  # before the rename: files made, written, synced
    assert found_steps.count(3) > 3  # behind it: the oldest is being forgotten


@pytest.mark.parametrize("writer", ["save_file", "save", "of_file", "_sync_file"])
def test_one_that_fails_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writer: str
) -> None:
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    write(tmp_path, 1)
    with monkeypatch.context() as patch:
        module = {"save": torch, "of_file": digests}.get(writer, checkpoint)
        patch.setattr(module, writer, full)
        with pytest.raises(OSError, match="No space left"):
            write(tmp_path, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000001"]
    assert whole(1, checkpoint.newest([tmp_path]))


def test_a_lack_of_memory_does_not_count_as_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object, **options: object) -> None:
        raise MemoryError

    write(tmp_path, 1)
    monkeypatch.setattr(checkpoint, "load_file", full)
    with pytest.raises(MemoryError):
        checkpoint.newest([tmp_path])


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("exploded",)


def test_a_pickle_in_a_checkpoint_is_never_executed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path / "c", 2)
    torch.save({"state": Bomb()}, path / "optimizer.pt")
    (path / "manifest.json").unlink()
    manifest = digests.of_files(path)
    (path / "manifest.json").write_text(json.dumps(manifest))
    assert pickle.dumps(Bomb())  # it would go off if it were loaded
    assert checkpoint.newest([tmp_path / "c"]) is None
    assert not (tmp_path / "exploded").exists()
