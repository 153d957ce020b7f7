"""The frozen prefix's activations: whether they are kept changes speed, and nothing else."""

import errno
import os
import tempfile
from copy import deepcopy
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nasd.contract import digests
from nasd.contract.genotype import Genotype, Lineage
from nasd.worker.model import phenotype
from nasd.worker.model.inherit import inherit, new_parameters
from nasd.worker.model.phenotype import MaskedLM
from nasd.worker.tasks.mlm import MlmTask
from nasd.worker.tasks.task import Ranks
from nasd.worker.training import activations
from nasd.worker.training.activations import GB, Shelf
from nasd.worker.training.progress import quiet
from nasd.worker.training.stop import Stopped
from nasd.worker.training.train import freeze, train
from tests.damage import flip_a_bit
from tests.test_phenotype import built, generator
from tests.test_sparse import (
    FOUR,
    LENGTH,
    NEW_MODULES,
    PHASE_0,
    candidates,
    corpus,
    extremes,
    names_below,
)
from tests.test_training import altered
from tests.training import (
    Never,
    Notes,
    Workshop,
    demo_config,
    losses,
    make_workshop,
    run_of,
    stage,
    weights,
    work,
)

TWO_EPOCHS = PHASE_0.model_copy(update={"epochs": 2})
TRAINS = 20
STATES = 4 * TRAINS * LENGTH * 12  # bytes of a prefix's activations


def task_of(modules: list[str], mask_seed: int | None = 3, model: Any = None) -> MlmTask:
    model = built(MaskedLM, arch=FOUR.with_dropout(0.1)) if model is None else deepcopy(model)
    task = MlmTask(model, corpus(TRAINS), 0.15, names_below(model, modules), mask_seed)
    freeze(task)
    return task


def known(task: MlmTask, folder: Path, said: list[str], **changes: Any) -> Any:
    return activations.known(
        task,
        **{
            "corpus": "mlm-1",
            "epochs": 2,
            "precision": "float32",
            "shelf": Shelf(folder, GB, 1),
            "ranks": Ranks(0, 1, torch.device("cpu")),
            "stop": Never(),
            "progress": quiet,
            "say": said.append,
            **changes,
        },
    )


def files(folder: Path) -> list[str]:
    """Of activations, each of which has its digest beside it."""
    names = sorted(path.name for path in folder.iterdir())
    kept = [name for name in names if not name.endswith(".digest")]
    notes = [f"{name}.digest" for name in kept if name.endswith(".bin")]
    assert [name for name in names if name.endswith(".digest")] == notes
    return kept


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("modules", NEW_MODULES[1:], ids=str)
def test_training_goes_the_same_way_with_and_without_them(
    modules: list[str], precision: str, tmp_path: Path, alone: Ranks
) -> None:
    ways, ends = [], []
    for cached in (False, True):
        task, said, notes = task_of(modules), [], Notes()
        if cached:
            task.known = known(task, tmp_path, said, precision=precision)
            assert "computed and cached" in said[0]
            below = task.model.encoder.frozen_prefix()
            for part in chain.from_iterable(below):
                part.register_forward_hook(no_training)
        train(task, TWO_EPOCHS, alone, run_of(tmp_path / str(cached), notes, precision=precision))
        ways.append([line["loss"] for line in notes.lines])
        ends.append({n: task.model.state_dict()[n] for n in task.trainable()})
    np.testing.assert_allclose(ways[1], ways[0], rtol=1e-5 if precision == "float32" else 1e-3)
    if precision == "float32":
        for name, tensor in ends[0].items():
            if not name.endswith("attention.k.bias"):  # its gradient is but rounding
                torch.testing.assert_close(ends[1][name], tensor, rtol=0.0, atol=1e-5)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@given(candidate=st.one_of(st.sampled_from(list(extremes())), candidates()))
@settings(max_examples=15)
def test_every_candidate_trains_on_what_is_kept_where_a_layer_of_a_block_is_frozen(
    precision: str, parent: Path, alone: Ranks, candidate: tuple[Genotype, Lineage]
) -> None:
    genotype, lineage = candidate
    model = inherit(genotype, lineage, parent, generator(), dropout=0.1)
    names = new_parameters(model, lineage)
    task = MlmTask(model, corpus(TRAINS), 0.15, names, mask_seed=3)
    freeze(task)
    said: list[str] = []
    with tempfile.TemporaryDirectory() as name:
        task.known = known(task, Path(name), said, precision=precision)
        assert (task.known is not None) == (len(model.encoder.frozen_prefix()) > 1)
        two_steps = PHASE_0.model_copy(update={"epochs": 2 * 4 / TRAINS, "batch": 4})
        notes = Notes()
        result = train(task, two_steps, alone, run_of(Path(name), notes, precision=precision))
    assert result.steps == (2 if names else 0)
    assert all(np.isfinite(line["loss"]) for line in notes.lines)


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parent")
    phenotype.save(built(MaskedLM), folder)
    return folder


def no_training(module: Any, given: Any, result: Any) -> None:
    assert not torch.is_grad_enabled(), "computed in training"


def test_a_retry_and_a_sibling_with_the_same_prefix_take_what_is_there(tmp_path: Path) -> None:
    said: list[str] = []
    model = built(MaskedLM, arch=FOUR)
    first = known(task_of(["encoder.blocks.2.ffns.0"], model=model), tmp_path, said)
    again = known(task_of(["encoder.blocks.2.ffns.0"], model=model), tmp_path, said, epochs=0.1)
    # Another sibling's new module is of another shape; that, and all above, is not of the prefix.
    ffns = [{"activation": "relu", "sizes": [8]}]
    blocks = FOUR.to_json()["blocks"]
    blocks[2] |= {"ffns": ffns}
    new = ["encoder.blocks.2.ffns.0", "encoder.blocks.3"]
    other = built(MaskedLM, arch=FOUR.with_blocks(blocks))
    sibling = known(task_of(new, model=other), tmp_path, said)
    assert torch.equal(first, again)
    assert torch.equal(first, sibling)
    assert ["taken" in line for line in said] == [False, True, True]
    assert len(files(tmp_path)) == 1


def test_they_are_those_of_these_weights_masks_corpus_and_arithmetic(tmp_path: Path) -> None:
    said: list[str] = []
    new = ["encoder.blocks.2.ffns.0"]
    model = built(MaskedLM, arch=FOUR)
    known(task_of(new, model=model), tmp_path, said)
    known(task_of(new, mask_seed=4, model=model), tmp_path, said)
    known(task_of(new, model=model), tmp_path, said, corpus="mlm-2")
    known(task_of(new, model=model), tmp_path, said, precision="bfloat16")
    known(task_of(["encoder.blocks.1.ffns.0"], model=model), tmp_path, said)
    known(task_of(["encoder.blocks.2.attention"], model=model), tmp_path, said)
    for index in (0, 2):
        model.encoder.blocks[index].attention.heads = 6  # leaves no trace in the weights
        blocks = model.architecture.to_json()["blocks"]
        blocks[index]["heads"] = 6
        model.architecture = model.architecture.with_blocks(blocks)
        known(task_of(new, model=model), tmp_path, said)
    with torch.no_grad():
        model.encoder.embeddings.norm.bias[0] += 1e-6
    known(task_of(new, model=model), tmp_path, said)
    assert len(files(tmp_path)) == len(said) == 9
    assert all("computed" in line for line in said)


@pytest.mark.parametrize("modules", [["encoder"], ["encoder.blocks.0"]], ids=str)
def test_without_a_frozen_layer_of_a_block_there_is_nothing_to_keep(
    modules: list[str], tmp_path: Path
) -> None:
    said: list[str] = []
    assert known(task_of(modules), tmp_path, said) is None
    assert known(task_of(["head"], mask_seed=None), tmp_path, said) is None
    assert said == files(tmp_path) == []


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"shelf": Shelf(Path("/"), STATES - 1, 1)}, "daemon.activation_cache_gb is smaller"),
        ({"epochs": 1}, "seen but once"),
        ({"shelf": Shelf(Path(__file__), GB, 1)}, "Not a directory"),
    ],
)
def test_why_they_are_not_kept_is_said_in_one_line(
    changes: dict[str, Any], why: str, tmp_path: Path
) -> None:
    said: list[str] = []
    assert known(task_of(["encoder.blocks.3"]), tmp_path, said, **changes) is None
    [line] = said
    assert why in line
    assert "not cached" in line


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    said: list[str] = []
    assert known(task_of(["encoder.blocks.3"]), tmp_path, said) is None
    assert said[0].endswith("No space left on device")
    assert files(tmp_path) == []


def test_no_room_means_that_none_are_used_either(tmp_path: Path) -> None:
    said: list[str] = []
    known(task_of(["encoder.blocks.3"]), tmp_path, said)
    none = Shelf(tmp_path, 0.0, 1)
    assert known(task_of(["encoder.blocks.3"]), tmp_path, said, shelf=none) is None


def test_a_truncated_file_is_made_anew(tmp_path: Path) -> None:
    said: list[str] = []
    task = task_of(["encoder.blocks.3"])
    whole = known(task, tmp_path, said).clone()
    [name] = files(tmp_path)
    os.truncate(tmp_path / name, STATES - 4)
    assert torch.equal(known(task, tmp_path, said), whole)
    assert "computed" in said[1]


@pytest.mark.parametrize("where", ["in the file", "in its digest"])
def test_one_flipped_bit_is_noticed_and_the_file_made_anew(tmp_path: Path, where: str) -> None:
    said: list[str] = []
    task = task_of(["encoder.blocks.3"])
    whole = known(task, tmp_path, said).clone()
    [name] = files(tmp_path)
    flip_a_bit(tmp_path / (name if where == "in the file" else f"{name}.digest"))
    assert torch.equal(known(task, tmp_path, said), whole)
    assert "is damaged" in said[1]
    assert "computed" in said[2]
    known(task, tmp_path, said)
    assert "taken from" in said[3]
    assert files(tmp_path) == [name]


def test_one_of_an_earlier_nasd_is_taken_as_it_is_once_and_gets_a_digest(tmp_path: Path) -> None:
    said: list[str] = []
    task = task_of(["encoder.blocks.3"])
    known(task, tmp_path, said)
    [name] = files(tmp_path)
    (tmp_path / f"{name}.digest").unlink()
    known(task, tmp_path, said)
    assert "taken from" in said[1]
    flip_a_bit(tmp_path / name)
    known(task, tmp_path, said)
    assert "is damaged" in said[2]


def test_those_not_used_for_longest_make_room(tmp_path: Path) -> None:
    said: list[str] = []
    tasks = [task_of(["encoder.blocks.3"], mask_seed=seed) for seed in range(3)]
    shelf = Shelf(tmp_path, 2.5 * STATES, 1)
    (tmp_path / ".activations-0.bin.7.tmp").write_bytes(b"left by a kill")
    os.utime(tmp_path / ".activations-0.bin.7.tmp", (1, 1))
    (tmp_path / "mlm-1").mkdir()
    for age, task in ((300, tasks[0]), (200, tasks[1])):
        known(task, tmp_path, said, shelf=shelf)
        newest = tmp_path / said[-1].split()[-1]
        os.utime(newest, (newest.stat().st_mtime - age,) * 2)
    known(tasks[0], tmp_path, said, shelf=shelf)  # used: the other one goes
    known(tasks[2], tmp_path, said, shelf=shelf)
    kept = {said[index].split()[-1] for index in (0, 3)}
    assert set(files(tmp_path)) == {*kept, "mlm-1"}


def test_what_another_attempt_is_making_stays_and_takes_room(tmp_path: Path) -> None:
    said: list[str] = []
    task = task_of(["encoder.blocks.3"])
    theirs = tmp_path / ".activations-0.bin.7.tmp"
    theirs.touch()
    os.truncate(theirs, STATES)
    small, large = Shelf(tmp_path, 1.5 * STATES, 1), Shelf(tmp_path, 2.5 * STATES, 1)
    assert known(task, tmp_path, said, shelf=small) is None
    assert said[-1].endswith("the room is taken by what other attempts make just now")
    assert files(tmp_path) == [theirs.name]
    assert known(task, tmp_path, said, shelf=large) is not None
    assert theirs.exists()


def test_a_file_that_goes_while_it_is_made_means_that_none_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    seal = digests.seal_file

    def gone(path: Path, *more: Any, **named: Any) -> None:
        path.unlink()
        seal(path, *more, **named)

    monkeypatch.setattr(digests, "seal_file", gone)
    assert known(task_of(["encoder.blocks.3"]), tmp_path, said) is None
    assert "not cached" in said[-1]
    assert files(tmp_path) == []


def test_asked_to_stop_it_stops_and_leaves_no_half_a_file(tmp_path: Path) -> None:
    class Now:
        asked = True

    with pytest.raises(Stopped):
        known(task_of(["encoder.blocks.3"]), tmp_path, [], stop=Now())
    assert files(tmp_path) == []


# --- in real workers ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return make_workshop(tmp_path_factory.mktemp("workshop"))


def test_ranks_fill_it_together_and_siblings_share_it(shop: Workshop, tmp_path: Path) -> None:
    genotype, lineage = altered(shop)
    config = demo_config()
    (tmp_path / "cache").mkdir()
    spec = shop.spec(
        stage(config, "pretrain_0", epochs=1.1, evaluations=2),
        **shop.child(genotype, lineage),
        fixed_masks=True,
        cache=str(tmp_path / "cache"),
    )
    ends = []
    for name, ranks, room in (("none", 1, 0.0), ("two", 2, 1.0), ("one", 1, 1.0)):
        changed = spec.model_copy(update={"activation_cache_gb": room})
        folder, outcome = work(changed, tmp_path / name, ranks)
        assert outcome is not None, folder.log.read_text()
        ends.append(folder)
    logs = [folder.log.read_text() for folder in ends]
    for log, choice in zip(logs, ("not cached", "computed and cached", "taken from"), strict=True):
        assert log.count("activations of ") == 1
        assert choice in log
    assert len(files(tmp_path / "cache")) == 1
    for folder in ends[1:]:
        for kind in ("train", "evaluation"):
            np.testing.assert_allclose(losses(folder, kind), losses(ends[0], kind), atol=1e-4)
    assert weights(ends[1].result).keys() == weights(ends[2].result).keys()
