"""Learning from a teacher: what it is compared by, what is computed once, and real attempts."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from nasd.contract.config import Teacher
from nasd.contract.protocol import Outcome, Spec, Teaching, Verdict
from nasd.worker import caches
from nasd.worker.model import phenotype
from nasd.worker.model.phenotype import MaskedLM, QuestionAnswering
from nasd.worker.tasks import notes, qa, registry, taught
from nasd.worker.tasks.passages import QaFeatures
from nasd.worker.tasks.task import Ranks, Task
from nasd.worker.training import distance
from nasd.worker.training.progress import quiet
from nasd.worker.training.train import train as run_training
from tests.damage import flip_a_bit
from tests.training import (
    Notes,
    Workshop,
    demo_config,
    launched,
    losses,
    make_workshop,
    run_of,
    stage,
    weights,
    work,
)

MATCHES = [("logits",), ("hidden",), ("relations",), ("logits", "hidden", "relations")]
MATCHING = pytest.mark.parametrize("match", MATCHES, ids="-".join)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return make_workshop(tmp_path_factory.mktemp("workshop"))


@pytest.fixture(scope="module")
def tuned(shop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What fine-tuning has left of the baseline: a teacher."""
    spec = shop.spec(stage(demo_config(), "finetune", epochs=0.5))
    folder, outcome = work(spec, tmp_path_factory.mktemp("tuned") / "1")
    assert outcome is not None, folder.log.read_text()
    return folder.result


def settings(**changes: Any) -> Teacher:
    return Teacher(**{"source": "baseline", **changes})


def lesson(
    shop: Workshop, teacher: Path, name: str = "finetune", more: dict[str, Any] | None = None,
    **changes: Any,
) -> Spec:  # fmt: skip
    """An attempt at the stage that learns from what lies in a folder."""
    teaching = Teaching(weights=str(teacher), name="the baseline", settings=settings(**changes))
    chosen = stage(demo_config(), name, **{"epochs": 0.2, **(more or {})})
    return shop.spec(chosen, teacher=teaching)


def begun(spec: Spec, ranks: Ranks) -> Task:
    assert spec.stage is not None
    registry.ask(spec, spec.stage, ranks, quiet)
    return registry.begin(spec, spec.stage, ranks)


def loss_of(task: Task, indices: list[int], seed: int = 7) -> torch.Tensor:
    batch = task.batch(np.array(indices), seed)
    return task.loss(task.outputs(task.model, batch), batch)


# -- how far they are apart ----------------------------------------------------------------------


def test_logits_of_positions_are_compared_by_kl_divergence_and_padding_does_not_count() -> None:
    mine = torch.tensor([[1.0, -2.0, 0.5, 9.0], [0.3, 0.2, 0.1, 0.0]], requires_grad=True)
    theirs = torch.tensor([[0.0, 1.0, 2.0, -7.0], [3.0, 1.0, -1.0, 2.0]])
    padding = torch.tensor([[False, False, False, True], [False] * 4])
    apart = distance.of_logits(mine, theirs, 2.0, padding)
    by_hand = torch.zeros(())
    for row, length in ((0, 3), (1, 4)):
        p = (theirs[row, :length] / 2).softmax(-1)
        by_hand = by_hand + 4 * (p * (p.log() - (mine[row, :length] / 2).log_softmax(-1))).sum()
    torch.testing.assert_close(apart, by_hand)
    apart.backward()
    assert mine.grad is not None
    assert torch.isfinite(mine.grad).all()
    assert mine.grad[0, 3] == 0


def test_logits_over_words_are_a_mean_over_the_masks_of_each_example() -> None:
    mine, theirs = torch.randn(2, 3, 5), torch.randn(2, 3, 5)
    apart = distance.of_logits(mine, theirs, 1.0, None)
    by_hand = F.kl_div(mine.log_softmax(-1), theirs.softmax(-1), reduction="sum") / 3
    torch.testing.assert_close(apart, by_hand)


def test_states_and_relations_do_not_see_padding_and_relations_take_any_widths() -> None:
    mine, theirs = torch.randn(2, 4, 8), torch.randn(2, 4, 8)
    padding = torch.tensor([[False, False, True, True], [False] * 4])
    short = (mine[0, :2] - theirs[0, :2]).square().mean() + (mine[1] - theirs[1]).square().mean()
    torch.testing.assert_close(distance.of_states(mine, theirs, padding), short)
    wide = torch.randn(2, 4, 16)
    apart = distance.of_relations(mine, wide, 2, padding)
    cut = distance.of_relations(mine[:1, :2], wide[:1, :2], 2, None)
    torch.testing.assert_close(apart, cut + distance.of_relations(mine[1:], wide[1:], 2, None))
    assert distance.of_relations(wide, wide, 4, padding).abs() < 1e-5


def test_relations_are_as_worked_out_by_hand() -> None:
    mine, theirs = torch.randn(1, 3, 4), torch.randn(1, 3, 4)
    by_hand = torch.zeros(())
    for head in range(2):
        part = slice(2 * head, 2 * head + 2)
        p, q = (
            (one[0, :, part] @ one[0, :, part].T / 2**0.5).softmax(-1) for one in (theirs, mine)
        )
        by_hand = by_hand + (p * (p / q).log()).sum(-1).mean() / 2
    torch.testing.assert_close(distance.of_relations(mine, theirs, 2, None), by_hand)


# -- the task around another ---------------------------------------------------------------------


@MATCHING
def test_without_a_share_the_loss_and_its_gradients_are_the_plain_tasks(
    shop: Workshop, tuned: Path, alone: Ranks, match: tuple[str, ...]
) -> None:
    spec = lesson(shop, tuned, share=0.0, match=match)
    plain, task = begun(spec.model_copy(update={"teacher": None}), alone), begun(spec, alone)
    gradients = []
    for one in (plain, task):
        one.model.eval()
        loss = loss_of(one, [0, 1, 2, 3])
        loss.backward()
        gradients.append((loss.detach(), [p.grad for p in one.model.parameters()]))
    assert torch.equal(gradients[0][0], gradients[1][0])
    for one, other in zip(gradients[0][1], gradients[1][1], strict=True):
        assert one is not None
        assert other is not None
        assert torch.equal(one, other)


@pytest.mark.parametrize("packing", [True, False], ids=["packed", "padded"])
@MATCHING
def test_how_a_batch_is_dealt_out_and_packed_changes_no_loss(
    shop: Workshop, tuned: Path, alone: Ranks, match: tuple[str, ...], packing: bool
) -> None:
    spec = lesson(shop, tuned, share=0.7, match=match).model_copy(update={"packing": packing})
    task = begun(spec, alone)
    task.model.eval()
    lengths = task.lengths
    assert lengths is not None
    shown = [int(lengths.argmin()), int(lengths.argmax()), 0, 1]
    whole = loss_of(task, shown)
    parts = loss_of(task, shown[:1]) + loss_of(task, shown[1:3]) + loss_of(task, shown[3:])
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-4)
    other = begun(spec.model_copy(update={"packing": not packing}), alone)
    other.model.eval()
    torch.testing.assert_close(loss_of(other, shown), whole, rtol=1e-4, atol=1e-4)


@MATCHING
def test_in_bfloat16_the_loss_is_the_same_but_for_rounding(
    shop: Workshop, tuned: Path, alone: Ranks, match: tuple[str, ...]
) -> None:
    task = begun(lesson(shop, tuned, share=0.7, match=match), alone)
    task.model.eval()
    exact = loss_of(task, [0, 1, 2, 3])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = loss_of(task, [0, 1, 2, 3])
    rounded.backward()
    torch.testing.assert_close(rounded.detach(), exact.detach(), rtol=0.05, atol=0.05)
    assert all(torch.isfinite(p.grad).all() for p in task.model.parameters() if p.grad is not None)


def test_what_takes_memory_beside_the_student_is_told_to_who_tries_micro_batches(
    shop: Workshop, tuned: Path, alone: Ranks
) -> None:
    plain = begun(shop.spec(stage(demo_config(), "finetune")), alone)
    noted = begun(lesson(shop, tuned), alone)
    along = begun(lesson(shop, tuned, match=("logits", "hidden")), alone)
    assert plain.alongside == noted.alongside == ""
    assert along.alongside.endswith("logits, hidden")


def test_what_is_noted_is_what_the_teacher_says(shop: Workshop, tuned: Path, alone: Ranks) -> None:
    """The loss by what is kept in half the bits is that by the teacher computed along."""
    spec = lesson(shop, tuned, share=1.0)
    assert spec.stage is not None
    assert spec.teacher is not None
    task = begun(spec, alone)
    task.model.eval()
    teacher = phenotype.load(QuestionAnswering, tuned, 0.0)
    plain = registry.begin(spec.model_copy(update={"teacher": None}), spec.stage, alone)
    plain.model.eval()
    along = taught.Taught(plain, spec.teacher.settings, taught.Along(teacher, ()))
    torch.testing.assert_close(
        loss_of(task, [5, 3, 8]), loss_of(along, [5, 3, 8]), rtol=2e-3, atol=2e-3
    )


def test_a_student_of_itself_has_nothing_to_learn_but_from_the_data(
    shop: Workshop, tuned: Path, alone: Ranks
) -> None:
    for match in MATCHES:
        spec = lesson(shop, tuned, share=1.0, match=match)
        task = begun(spec.model_copy(update={"weights": str(tuned)}), alone)
        task.model.load_state_dict(phenotype.load(QuestionAnswering, tuned, 0.0).state_dict())
        task.model.eval()
        assert loss_of(task, [0, 4, 2]).abs() < 1e-3


@pytest.mark.parametrize("match", MATCHES, ids="-".join)
def test_masked_language_modelling_has_a_teacher_computed_along(
    shop: Workshop, alone: Ranks, match: tuple[str, ...], tmp_path: Path
) -> None:
    kept = teacher_caches(shop)
    spec = lesson(shop, shop.seed_weights, "pretrain_1", share=1.0, match=match)
    assert spec.stage is not None
    assert spec.teacher is not None
    task = begun(spec, alone)
    task.model.eval()
    assert isinstance(task.model, MaskedLM)
    assert loss_of(task, [0, 1]).abs() < 1e-4
    with torch.no_grad():
        for parameter in task.model.parameters():
            parameter.mul_(0.9)
    apart = loss_of(task, [0, 1, 2, 3])
    parts = loss_of(task, [0, 1]) + loss_of(task, [2, 3])
    torch.testing.assert_close(parts, apart, rtol=1e-4, atol=1e-4)
    run_training(task, spec.stage, alone, run_of(tmp_path, Notes()))
    task.model.eval()
    assert loss_of(task, [0, 1, 2, 3]) < apart
    assert teacher_caches(shop) == kept  # masks are drawn anew: there is nothing to keep


# -- what is computed once -----------------------------------------------------------------------


def teacher_caches(shop: Workshop) -> list[Path]:
    return sorted((shop.folder / "cache").glob("teacher-*"))


def test_a_teacher_is_asked_once_and_again_where_its_notes_are_damaged(
    shop: Workshop, tuned: Path, alone: Ranks, capsys: pytest.CaptureFixture[str]
) -> None:
    for old in (shop.folder / "cache").glob("*teacher-*"):
        shutil.rmtree(old)
    spec = lesson(shop, tuned)
    assert spec.stage is not None
    asked = "the baseline is asked about"
    registry.ask(spec, spec.stage, alone, quiet)
    (made,) = teacher_caches(shop)
    first = (made / notes.LOGITS).read_bytes()
    assert capsys.readouterr().out.count(asked) == 1
    registry.ask(spec, spec.stage, alone, quiet)
    assert asked not in capsys.readouterr().out
    flip_a_bit(made / notes.LOGITS)
    shutil.rmtree(made.with_name(f".{made.name}.parts"))
    registry.ask(spec, spec.stage, alone, quiet)
    assert capsys.readouterr().out.count(asked) == 1
    assert (made / notes.LOGITS).read_bytes() == first
    windows = QaFeatures.load(Path(shop.prepared.qa_cache) / "train")
    assert notes.load(made).shape == (2, len(windows.tokens))


def test_attempts_that_want_a_teacher_at_once_ask_about_a_part_each(
    shop: Workshop, tuned: Path, alone: Ranks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notes, "LEAST", 8)
    for old in (shop.folder / "cache").glob("*teacher-*"):
        shutil.rmtree(old)
    spec = lesson(shop, tuned)
    assert spec.stage is not None
    registry.ask(spec, spec.stage, alone, quiet)
    (made,) = teacher_caches(shop)
    by_one = (made / notes.LOGITS).read_bytes()
    parts = made.with_name(f".{made.name}.parts")
    assert len([*parts.iterdir()]) == notes.PARTS

    shutil.rmtree(made)
    flip_a_bit(parts / "3" / "said" / notes.LOGITS)  # asked again, as if nobody had
    for part in (0, 7):
        shutil.rmtree(parts / str(part) / "said")
    other = caches.alone(parts / "7", quiet)  # at work on it
    other.__enter__()
    said = list[str]()

    def progress(doing: str, *counts: int, **more: float) -> None:
        said.append(doing)
        if said.count(waits) == 3 and doing == waits:
            assert {path.name for path in parts.iterdir() if not (path / "said").is_dir()} == {"7"}
            other.__exit__(None, None, None)  # killed, say

    waits = "waiting for who asks the teacher"
    registry.ask(spec, spec.stage, alone, progress)
    assert said.count(waits) == 3
    assert (made / notes.LOGITS).read_bytes() == by_one


def test_other_weights_are_another_teacher_and_old_notes_go(
    shop: Workshop, tuned: Path, alone: Ranks, tmp_path: Path
) -> None:
    elsewhere = shop.folder / "cache" / "teacher-of-another-task"
    elsewhere.mkdir()
    (elsewhere / notes.LOGITS).touch()
    (elsewhere / notes.MANIFEST).write_text('{"of": "labels-1"}')
    made = []
    for number in range(3):
        other = phenotype.load(QuestionAnswering, tuned)
        with torch.no_grad():
            other.qa_outputs.bias.add_(float(number))
        phenotype.save(other, tmp_path / str(number))
        spec = lesson(shop, tmp_path / str(number))
        assert spec.stage is not None
        registry.ask(spec, spec.stage, alone, quiet)
        made.append(notes.place(qa.NOTEBOOK, spec))
    assert len(set(made)) == 3
    assert not made[0].exists()
    assert made[1].exists()
    assert made[2].exists()
    assert elsewhere.exists()
    shutil.rmtree(elsewhere)
    (parts,) = (shop.folder / "cache").glob(".teacher-*.parts")
    assert parts.name == f".{made[2].name}.parts"


# -- real workers --------------------------------------------------------------------------------


def test_a_worker_asks_the_teacher_and_the_student_comes_nearer_to_it(
    shop: Workshop, tuned: Path, alone: Ranks, tmp_path: Path
) -> None:
    spec = lesson(shop, tuned, share=1.0)
    assert spec.stage is not None
    before = begun(spec, alone)
    before.model.eval()
    folder, outcome = work(spec, tmp_path / "taught")
    assert outcome is not None, folder.log.read_text()
    assert outcome.verdict is Verdict.SUCCEEDED
    assert "learns from the baseline" in folder.log.read_text()
    after = begun(spec, alone)
    after.model.load_state_dict(weights(folder.result))
    after.model.eval()
    shown = list(range(16))
    assert loss_of(after, shown) < 0.7 * loss_of(before, shown)
    # What is told of it is the plain task's, so that it compares with everybody else's.
    plain = registry.begin(spec.model_copy(update={"teacher": None}), spec.stage, alone)
    plain.model.load_state_dict(weights(folder.result))
    plain.model.eval()
    assert outcome.metrics["loss"] == pytest.approx(plain.evaluate(alone, 8, quiet)["loss"])


@pytest.mark.parametrize("match", [("logits",), ("relations",)], ids="-".join)
def test_two_ranks_learn_from_a_teacher_what_one_does(
    shop: Workshop, tuned: Path, tmp_path: Path, match: tuple[str, ...]
) -> None:
    spec = lesson(shop, tuned, more={"epochs": 0.05, "soup": 2}, share=0.7, match=match)
    ends = []
    for ranks in (1, 2):
        folder, outcome = work(spec, tmp_path / str(ranks), ranks)
        assert outcome is not None, folder.log.read_text()
        ends.append([*losses(folder, "train"), *losses(folder, "evaluation")])
    assert ends[0] == pytest.approx(ends[1], rel=1e-4)


def test_a_taught_attempt_that_is_killed_ends_with_the_weights_of_one_that_was_not(
    shop: Workshop, tuned: Path, tmp_path: Path
) -> None:
    more = {"epochs": 1.0}
    spec = lesson(shop, tuned, more=more).model_copy(update={"checkpoint_minutes": 0.002})
    whole, outcome = work(spec, tmp_path / "whole")
    assert outcome is not None, whole.log.read_text()
    with launched(spec, tmp_path / "killed") as attempt:
        attempt.until(lambda: len(attempt.checkpoints()) > 0)
        for process in attempt.ranks():
            process.kill()
        attempt.ends()
        assert attempt.outcome is None
        earlier = str(attempt.folder.checkpoints)
    again, ended = work(spec.model_copy(update={"resume": (earlier,)}), tmp_path / "again")
    assert isinstance(ended, Outcome)
    assert "resumed at step" in again.log.read_text()
    one, other = weights(whole.result), weights(again.result)
    assert all(torch.equal(one[name], other[name]) for name in one)
