"""Compiling changes speed and nothing else, and only where it pays."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch._inductor.config

from nasd.worker.model.phenotype import MaskedLM
from nasd.worker.tasks.mlm import MlmTask
from nasd.worker.tasks.task import Ranks
from nasd.worker.training import compilation
from nasd.worker.training.compilation import COST, GAIN, THREADS, Compilation, pays
from nasd.worker.training.progress import quiet
from nasd.worker.training.train import train
from tests.test_phenotype import built
from tests.test_sparse import STILL, corpus
from tests.training import Notes, demo_config, run_of, stage

ONE = Ranks(0, 1, torch.device("cpu"))
LONG_ENOUGH = 2 * COST / GAIN
BRIEF = 0.5 * COST / GAIN


@pytest.fixture(autouse=True)
def _as_before(monkeypatch: pytest.MonkeyPatch):
    for name in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"):
        monkeypatch.setenv(name, "")  # so that it is put back
        monkeypatch.delenv(name)
    threads = torch._inductor.config.compile_threads
    yield
    torch._inductor.config.compile_threads = threads
    torch.compiler.set_stance("default")


def of(folder: Path, forced: bool = False) -> Compilation:
    return Compilation(built(MaskedLM, arch=STILL).encoder, folder, forced)


def consider(one: Compilation, speed: float, left: float) -> list[str]:
    said: list[str] = []
    one.consider(speed, left, ONE, quiet, said.append)
    return said


def test_it_pays_where_more_is_saved_than_compiling_takes() -> None:
    assert pays(LONG_ENOUGH)
    assert not pays(BRIEF)


def test_nothing_is_compiled_in_the_first_window_or_where_little_is_left(tmp_path: Path) -> None:
    one = of(tmp_path)
    assert consider(one, 1.0, LONG_ENOUGH) == []
    for _ in range(3):
        assert consider(one, 1.0, BRIEF) == []
        assert not one.active
    assert consider(one, 1.0, LONG_ENOUGH) == ["compiling the blocks, as 40 min are left"]
    assert one.active


@pytest.mark.parametrize(
    ("speed", "forced", "stays"), [(1.3, False, True), (1.0, False, False), (0.5, True, True)]
)
def test_it_is_taken_back_where_it_gains_nothing(
    tmp_path: Path, speed: float, forced: bool, stays: bool
) -> None:
    one = of(tmp_path, forced)
    consider(one, 9.0, LONG_ENOUGH)
    consider(one, 1.0, LONG_ENOUGH)
    assert one.active
    assert consider(one, 0.01, LONG_ENOUGH) == []  # the window in which it is compiled
    (said,) = consider(one, speed, LONG_ENOUGH)
    assert f"{speed:.2f} times as fast" in said
    assert ("taken back" in said) is not stays
    assert one.active is stays
    assert consider(one, 1.0, LONG_ENOUGH) == []  # decided once


def test_a_cache_that_has_grown_too_large_is_begun_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tmp_path / "compiled" / "a" / "kernel.py"
    kept.parent.mkdir(parents=True)
    kept.write_text("x" * 100)
    for room, stands in ((100.0, True), (99.0, False)):
        monkeypatch.setattr(compilation, "ROOM", room)
        one = of(tmp_path, forced=True)
        consider(one, 1.0, 1.0)
        consider(one, 1.0, 1.0)
        assert kept.exists() is stands


@pytest.mark.parametrize("given", [None, "2"])
def test_all_that_compiling_writes_goes_to_the_cache_and_few_threads_write_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str | None
) -> None:
    from torch._inductor.runtime.cache_dir_utils import cache_dir, triton_cache_dir

    torch._inductor.config.compile_threads = 32  # as read from the environment when imported
    monkeypatch.delenv("TORCHINDUCTOR_COMPILE_THREADS", raising=False)
    if given is not None:
        monkeypatch.setenv("TORCHINDUCTOR_COMPILE_THREADS", given)
    one = of(tmp_path, forced=True)
    consider(one, 1.0, 1.0)
    consider(one, 1.0, 1.0)
    assert one.active
    assert cache_dir() == str(tmp_path / "compiled")
    assert Path(os.environ["TRITON_CACHE_DIR"]).parent == tmp_path / "compiled"
    assert triton_cache_dir(0) == os.environ["TRITON_CACHE_DIR"]
    expected = THREADS if given is None else 32
    assert torch._inductor.config.compile_threads == expected


@pytest.mark.parametrize("forced", [True, False])
def test_a_cache_that_cannot_be_written_is_said_once_and_nothing_is_compiled(
    tmp_path: Path, forced: bool
) -> None:
    (tmp_path / "compiled").write_text("a file where the folder should be")
    one = of(tmp_path, forced)
    assert consider(one, 1.0, LONG_ENOUGH) == []
    (said,) = consider(one, 1.0, LONG_ENOUGH)
    assert "not compiled, as its cache cannot be written" in said
    assert str(tmp_path / "compiled") in said
    assert not one.active
    assert consider(one, 1.0, LONG_ENOUGH) == []


def test_the_patience_asked_for_compiling_holds_until_the_next_step_is_done(
    tmp_path: Path, alone: Ranks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where an evaluation and a checkpoint come between, too."""
    monkeypatch.setattr(Compilation, "_compile", lambda self: None)
    beats: list[tuple[str, bool]] = []

    def progress(doing: str, step: int = 0, steps: int = 0, *, patience: float = 0.0) -> None:
        beats.append((doing, patience > 0))

    short = stage(demo_config(), "pretrain_1", epochs=1, batch=4, evaluations=5)
    model = built(MaskedLM, arch=STILL)
    task = MlmTask(model, corpus(), 0.15, {n for n, _ in model.named_parameters()})
    one = Compilation(model.encoder, tmp_path, forced=True)
    settings = run_of(tmp_path, Notes(), compilation=one, progress=progress, checkpoint_seconds=0.0)
    train(task, short, alone, settings)
    at = beats.index(("compiling", True))
    assert [doing for doing, _ in beats[at - 4 : at]] == [
        "training",
        "evaluating",
        "saving",
        "training",
    ]
    assert beats[at + 1] == ("training", False)
    assert beats[at + 2][0] == "evaluating"


@pytest.mark.heavy
def test_compiled_training_follows_the_curve_of_the_other(tmp_path: Path, alone: Ranks) -> None:
    """Really compiled, for the CPU; evaluations in between are not."""
    short = stage(demo_config(), "pretrain_1", epochs=2, batch=4, evaluations=2)
    curves = []
    for name in ("eager", "compiled"):
        model = built(MaskedLM, arch=STILL)
        notes = Notes()
        one = Compilation(model.encoder, tmp_path, forced=True) if name == "compiled" else None
        task = MlmTask(model, corpus(), 0.15, {n for n, _ in model.named_parameters()})
        train(task, short, alone, run_of(tmp_path / name, notes, compilation=one))
        curves.append([line["loss"] for line in notes.lines])
        if one is not None:
            assert one.active
            assert any((tmp_path / "compiled").rglob("*.cpp"))
    np.testing.assert_allclose(curves[1], curves[0], rtol=1e-4)
