"""A checkpoint is whole and verified, or it does not count."""

import json
import os
import pickle
from pathlib import Path

import pytest
import torch

from nasd.worker import checkpoint


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


def test_the_newest_of_several_attempts_counts(tmp_path: Path) -> None:
    write(tmp_path / "a", 7)
    write(tmp_path / "b", 3)
    found = checkpoint.newest([tmp_path / "b", tmp_path / "a", tmp_path / "none"])
    assert found is not None
    assert found.step == 7


def test_an_unfinished_one_does_not_count(tmp_path: Path) -> None:
    write(tmp_path, 4).rename(tmp_path / ".step-000000004.tmp")
    assert checkpoint.newest([tmp_path]) is None


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("exploded",)


def test_a_pickle_in_a_checkpoint_is_never_executed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path / "c", 2)
    torch.save({"state": Bomb()}, path / "optimizer.pt")
    manifest = {p.name: checkpoint._digest(p) for p in path.iterdir() if p.name != "manifest.json"}
    (path / "manifest.json").write_text(json.dumps(manifest))
    assert pickle.dumps(Bomb())  # it would go off if it were loaded
    assert checkpoint.newest([tmp_path / "c"]) is None
    assert not (tmp_path / "exploded").exists()
