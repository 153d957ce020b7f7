"""The micro-batch of a GPU is found by trying; here on a device that is made up."""

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nasd.worker.model import phenotype
from nasd.worker.tasks.qa import QaTask
from nasd.worker.tasks.task import Ranks
from nasd.worker.training import micro_batch
from nasd.worker.training.micro_batch import STEPS, WORTH, Memory, Trials, best, key_of, sizes
from nasd.worker.training.progress import quiet
from nasd.worker.training.train import freeze, train
from tests.test_phenotype import built
from tests.test_sparse import features
from tests.training import Notes, demo_config, run_of, stage

FINETUNE = stage(demo_config(), "finetune", epochs=1, batch=6, evaluations=1)


@given(st.integers(1, 5000))
def test_sizes_double_up_to_the_share_of_a_rank(share: int) -> None:
    tried = list(sizes(share))
    assert tried[-1] == share
    assert tried == sorted(set(tried))
    assert all(after <= 2 * before for before, after in pairwise(tried))


@given(st.integers(1, 3000), st.integers(0, 3000), st.integers(1, 3000))
def test_the_best_is_the_smallest_that_fills_the_device_and_fits(
    share: int, fits: int, full: int
) -> None:
    """On a device that takes as long for fewer than `full` examples as for these."""
    found, seconds = best(share, lambda size: None if size > fits else max(1.0, full / size))
    assert 1 <= found <= share
    assert found <= max(1, fits)
    larger = [size for size in sizes(share) if found < size <= fits]
    if larger and found in seconds:
        assert seconds[found] < WORTH * max(1.0, full / larger[0])
    for size in seconds:
        if size < found:
            assert seconds[size] >= WORTH * seconds[found]


class Device:
    """Runs on the CPU, but tells of a device with room for so many examples."""

    name = "made up"
    room = 1e12

    def __init__(self, task: QaTask, fits: int, fault: Exception | None = None) -> None:
        self.tried: list[int] = []
        fault = fault or torch.OutOfMemoryError("made up")
        loss = task.loss

        def watched(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
            if torch.is_grad_enabled():  # not in evaluations
                self.tried.append(len(batch["input_ids"]))
            if self.tried and self.tried[-1] > fits:
                raise fault
            return loss(model, batch)

        task.loss = watched  # type: ignore[method-assign]

    def run(self, act: Callable[[], None]) -> tuple[float, float]:
        act()
        return 1.0, 1e9

    def clear(self) -> None:
        pass


def finetuning() -> QaTask:
    mlm = built(phenotype.MaskedLM)
    model = built(phenotype.QuestionAnswering)
    model.encoder.load_state_dict(mlm.encoder.state_dict())
    return QaTask(model.train(), features(), features())


def found(task: QaTask, device: Device, folder: Path, said: list[str]) -> int:
    freeze(task)
    trials = Trials(device, Memory(folder))
    ranks = Ranks(0, 1, torch.device("cpu"))
    return trials.find(task, FINETUNE, ranks, "float32", 0, quiet, said.append)


def test_it_is_tried_once_and_remembered_for_models_of_about_that_size(tmp_path: Path) -> None:
    said: list[str] = []
    task = finetuning()
    device = Device(task, fits=4)
    assert found(task, device, tmp_path, said) == 4
    assert device.tried == [4] * (1 + STEPS) + [6]  # a device that full is tried no further
    assert said[0].startswith("micro-batch: 4 of 6 examples, as tried (4: ")
    again = finetuning()
    other = Device(again, fits=4)
    assert found(again, other, tmp_path, said) == 4
    assert other.tried == []
    assert said[1] == "micro-batch: 4 of 6 examples, as tried before"


@pytest.mark.parametrize("called", ["CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED"])
def test_whatever_a_lack_of_memory_is_called_a_smaller_size_is_taken(
    tmp_path: Path, called: str
) -> None:
    task = finetuning()
    assert found(task, Device(task, 4, RuntimeError(f"{called} when calling")), tmp_path, []) == 4


def test_a_batch_that_the_device_cannot_even_hold_is_one_that_does_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(batch: dict[str, torch.Tensor], device: Any) -> dict[str, torch.Tensor]:
        if len(batch["input_ids"]) > 4:
            raise torch.OutOfMemoryError("made up")
        return batch

    monkeypatch.setattr(micro_batch, "to_device", full)
    task = finetuning()
    assert found(task, Device(task, fits=6), tmp_path, []) == 4


def test_another_error_is_no_lack_of_memory(tmp_path: Path) -> None:
    task = finetuning()
    with pytest.raises(RuntimeError, match="shapes"):
        found(task, Device(task, 4, RuntimeError("shapes do not fit")), tmp_path, [])


def test_trying_leaves_neither_gradients_nor_other_weights(tmp_path: Path) -> None:
    task = finetuning()
    before = {name: p.detach().clone() for name, p in task.model.named_parameters()}
    found(task, Device(task, fits=6), tmp_path, [])
    for name, parameter in task.model.named_parameters():
        assert parameter.grad is None
        assert torch.equal(parameter, before[name])


def test_the_longest_examples_are_tried(tmp_path: Path) -> None:
    task = finetuning()
    shapes = []
    batch = task.batch
    task.batch = lambda indices, seed: shapes.append(indices) or batch(indices, seed)  # type: ignore[method-assign,func-returns-value]
    found(task, Device(task, fits=6), tmp_path, [])
    assert set(task.lengths[shapes[0]]) == {11, 10, 9}  # type: ignore[index]


def test_who_runs_out_of_memory_all_the_same_leaves_half_to_the_next(tmp_path: Path) -> None:
    task = finetuning()
    trials = Trials(Device(task, fits=6), Memory(tmp_path))
    ranks = Ranks(0, 1, torch.device("cpu"))
    freeze(task)
    said: list[str] = []

    def found(halvings: int) -> int:
        return trials.find(task, FINETUNE, ranks, "float32", halvings, quiet, said.append)

    assert found(0) == 6
    trials.too_large(print)
    assert found(0) == 3  # another candidate of its kind
    assert found(1) == 3  # its own next attempt: half, not a quarter
    assert (
        said[-1] == "micro-batch: 3 of 6 examples, as tried before, halved 1 x for want of memory"
    )
    trials.too_large(print)
    assert found(0) == 1


def test_any_rank_that_runs_out_of_memory_leaves_half_but_all_of_them_no_less(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[torch.Tensor] = []

    def broadcast(agreed: torch.Tensor, source: int) -> None:
        told.append(agreed.clone())
        agreed.copy_(told[0])

    monkeypatch.setattr(micro_batch.dist, "broadcast", broadcast)
    ranks = []
    twelve = FINETUNE.model_copy(update={"batch": 12})
    for rank in range(2):
        task = finetuning()
        freeze(task)
        ranks.append(Trials(Device(task, fits=6), Memory(tmp_path)))
        of = Ranks(rank, 2, torch.device("cpu"))
        assert ranks[-1].find(task, twelve, of, "float32", 0, quiet, print) == 6
    (note,) = tmp_path.glob("micro-batch-*.json")
    for one in (ranks[1], ranks[0]):
        one.too_large(print)
        kept = json.loads(note.read_text())
        assert (kept["micro_batch"], kept["halvings"]) == (6, 1)


@pytest.mark.parametrize(
    "content",
    ["", "[]", '{"micro_batch": 0}', '{"micro_batch": "4"}', '{"micro_batch": 4, "halvings": -1}'],
)
def test_a_damaged_note_is_written_again(tmp_path: Path, content: str) -> None:
    task = finetuning()
    found(task, Device(task, fits=4), tmp_path, [])
    (note,) = tmp_path.glob("micro-batch-*.json")
    note.write_text(content)
    task = finetuning()
    device = Device(task, fits=4)
    assert found(task, device, tmp_path, []) == 4
    assert device.tried
    assert json.loads(note.read_text())["micro_batch"] == 4


def test_a_note_with_another_digit_is_written_again_and_an_earlier_nasds_is_taken(
    tmp_path: Path,
) -> None:
    task = finetuning()
    found(task, Device(task, fits=4), tmp_path, [])
    (note,) = tmp_path.glob("micro-batch-*.json")
    said = json.loads(note.read_text())
    note.write_text(json.dumps({**said, "micro_batch": 2}))
    task = finetuning()
    assert found(task, Device(task, fits=4), tmp_path, []) == 4
    del said["digest"]
    note.write_text(json.dumps({**said, "micro_batch": 2}))
    task = finetuning()
    assert found(task, Device(task, fits=4), tmp_path, []) == 2


def test_what_cannot_be_remembered_is_said_and_used_all_the_same(tmp_path: Path) -> None:
    said: list[str] = []
    task = finetuning()
    assert found(task, Device(task, fits=6), tmp_path / "nowhere", said) == 6
    assert "not remembered" in said[0]


def test_other_precisions_ranks_and_trained_parts_are_tried_for_themselves() -> None:
    task = finetuning()
    freeze(task)
    device, one = Device(task, fits=6), Ranks(0, 1, None)
    keys = {key_of(task, FINETUNE, one, "float32", device)}
    keys.add(key_of(task, FINETUNE, one, "bfloat16", device))
    keys.add(key_of(task, FINETUNE, Ranks(0, 2, None), "float32", device))
    for parameter in task.model.encoder.parameters():
        parameter.requires_grad_(False)
    keys.add(key_of(task, FINETUNE, one, "float32", device))
    assert len(keys) == 4


@pytest.mark.parametrize(
    ("given_", "halvings", "expected"), [(None, 0, 4), (None, 1, 2), (3, 0, 3)]
)
def test_training_takes_what_was_found_unless_the_stage_says_more(
    tmp_path: Path, alone: Ranks, given_: int | None, halvings: int, expected: int
) -> None:
    task = finetuning()
    device = Device(task, fits=4)
    settings = run_of(tmp_path, Notes(), trials=Trials(device, Memory(tmp_path)), halvings=halvings)
    short = FINETUNE.model_copy(update={"micro_batch": given_})
    train(task, short, alone, settings)
    steps = device.tried[1 + STEPS + 1 :] if given_ is None else device.tried
    assert steps[0] == expected


def test_what_was_found_gives_the_losses_of_the_whole_batch(tmp_path: Path, alone: Ranks) -> None:
    curves = []
    for name, fits in (("whole", 6), ("parts", 4)):
        task = finetuning()
        model = phenotype.QuestionAnswering(task.model.architecture.with_dropout(0.0))
        model.load_state_dict(built(phenotype.QuestionAnswering).state_dict())
        task.model = model
        notes = Notes()
        (tmp_path / name).mkdir()
        trials = Trials(Device(task, fits), Memory(tmp_path / name))
        train(task, FINETUNE, alone, run_of(tmp_path / name, notes, trials=trials))
        curves.append([line["loss"] for line in notes.lines])
    np.testing.assert_allclose(curves[1], curves[0], rtol=1e-5)
