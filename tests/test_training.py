"""Workers train: real processes, real gloo, real files."""

import json
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from nasd.contract import squad
from nasd.contract.errors import NasdError
from nasd.contract.genotype import BlockLineage, FeedForward, Genotype, unchanged
from nasd.contract.protocol import AttemptFolder, Outcome, write
from nasd.contract.schedule import Schedule
from nasd.worker.model import phenotype
from nasd.worker.prepare import test_questions as questions_of
from nasd.worker.stage import run as run_stage
from nasd.worker.tasks import metrics, packing
from nasd.worker.tasks.corpus import MlmCorpus
from nasd.worker.tasks.mlm import MlmTask
from nasd.worker.tasks.qa import QaTask
from nasd.worker.tasks.task import Ranks, ahead
from nasd.worker.training.stop import Stopped
from nasd.worker.training.train import Order, Run, _batches, train
from tests.test_phenotype import built
from tests.test_sparse import features
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

CONFIG = demo_config()
QUICK = {"epochs": 0.3, "evaluations": 12}


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return make_workshop(tmp_path_factory.mktemp("workshop"))


def altered(shop: Workshop) -> tuple[Genotype, tuple[BlockLineage, ...]]:
    """The baseline with a new FFN in block 1."""
    blocks = list(shop.baseline.blocks)
    lineage = list(unchanged(shop.baseline))
    blocks[1] = replace(blocks[1], ffns=(FeedForward("relu", (96,)),))
    lineage[1] = BlockLineage.of(1, False, ("altered",))
    return Genotype(tuple(blocks)), tuple(lineage)


@pytest.mark.parametrize("native", [True, False])
def test_a_precision_that_the_device_lacks_is_replaced_with_a_line_that_says_so(
    shop: Workshop,
    tmp_path: Path,
    alone: Ranks,
    native: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "amx_bf16": native})
    outcomes = []
    for precision in ("float32", "bfloat16"):
        spec = shop.spec(stage(CONFIG, "finetune", epochs=0.05, evaluations=1))
        spec = spec.model_copy(update={"precision": precision, "tensorboard": str(tmp_path)})
        folder = AttemptFolder(tmp_path / precision)
        folder.path.mkdir()
        outcomes.append(run_stage(spec, folder, alone, Never()))  # type: ignore[arg-type]
    assert (outcomes[0].curve == outcomes[1].curve) is not native
    assert ("only be emulated on this cpu" in capsys.readouterr().out) is not native


@pytest.mark.parametrize(
    ("device", "precision", "heads", "wish", "packs", "words"),
    [
        ("cuda", "bfloat16", (4, 8, 2), "auto", True, "packed"),  # 16, 8 and 32 wide
        ("cuda", "bfloat16", (4, 16, 2), "auto", False, "padded: there are attention heads 4 wide"),
        ("cuda", "float32", (4, 4), "auto", False, "padded: there is no fast attention without it"),
        ("cpu", "bfloat16", (4, 16), "auto", True, "packed, so that nothing"),
        ("cpu", "float32", (4, 4), False, False, "padded: slots.packing says so"),
        ("cuda", "float32", (4, 4), True, True, "packed, so that nothing"),
        ("cuda", "bfloat16", (4, 8, 2), False, False, "padded: slots.packing says so"),
    ],
)
def test_questions_are_packed_where_the_device_is_fast_at_every_head(
    shop: Workshop,
    device: str,
    precision: str,
    heads: tuple[int, ...],
    wish: bool | str,
    packs: bool,
    words: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arch = phenotype.load_architecture(shop.seed_weights)
    assert arch.width == 64
    arch = arch.with_blocks({"heads": one, "ffns": []} for one in heads)
    update = {"precision": precision, "packing": wish}
    spec = shop.spec(stage(CONFIG, "finetune")).model_copy(update=update)
    for rank in (0, 1):
        assert packing.of(spec, arch, Ranks(rank, 2, torch.device(device))) is packs
    assert capsys.readouterr().out.count(f"questions are {words}") == 1  # by the first rank


@pytest.mark.parametrize(
    ("wanted", "room", "fixed", "why"),
    [
        ("auto", 1.0, True, "fit into daemon.activation_cache_gb, 1 GB"),
        ("auto", 0.0, False, "do not fit into daemon.activation_cache_gb, 0 GB"),
        (True, 0.0, True, "as data.mlm.fixed_masks says"),
        (False, 1.0, False, "as data.mlm.fixed_masks says"),
    ],
)
def test_preparing_decides_whether_masks_are_drawn_once(
    shop: Workshop,
    tmp_path: Path,
    alone: Ranks,
    wanted: bool | str,
    room: float,
    fixed: bool,
    why: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = demo_config(data__mlm__fixed_masks=wanted).data
    spec = shop.spec(None, data=data, activation_cache_gb=room)
    outcome = run_stage(spec, AttemptFolder(tmp_path), alone, Never())  # type: ignore[arg-type]
    assert outcome.prepared is not None
    assert outcome.prepared.fixed_masks is fixed
    said = capsys.readouterr().out
    assert ("drawn once a sequence" if fixed else "drawn anew in every epoch") in said
    assert why in said


@pytest.mark.parametrize("name", ["pretrain_1", "finetune"])
def test_two_ranks_follow_the_loss_curve_of_one(shop: Workshop, tmp_path: Path, name: str) -> None:
    spec = shop.spec(stage(CONFIG, name, **QUICK))
    one, first = work(spec, tmp_path / "one", ranks=1)
    two, second = work(spec, tmp_path / "two", ranks=2)
    assert first is not None, one.log.read_text()
    assert second is not None, two.log.read_text()
    for kind in ("train", "evaluation"):
        assert len(losses(one, kind)) > 2
        np.testing.assert_allclose(losses(one, kind), losses(two, kind), atol=1e-4)


def test_micro_batches_give_the_gradient_of_the_whole_batch(shop: Workshop, tmp_path: Path) -> None:
    whole = shop.spec(stage(CONFIG, "finetune", **QUICK))
    parts = shop.spec(stage(CONFIG, "finetune", **QUICK, micro_batch=5))
    one, _ = work(whole, tmp_path / "whole")
    two, _ = work(parts, tmp_path / "parts", ranks=2)
    np.testing.assert_allclose(losses(one, "train"), losses(two, "train"), atol=1e-4)


def test_phase_0_moves_new_modules_and_nothing_else(shop: Workshop, tmp_path: Path) -> None:
    genotype, lineage = altered(shop)
    spec = shop.spec(stage(CONFIG, "pretrain_0", **QUICK), **shop.child(genotype, lineage))
    folder, outcome = work(spec, tmp_path / "attempt")
    assert outcome is not None, folder.log.read_text()
    assert outcome.verdict == "succeeded"
    before, after = weights(shop.seed_weights), weights(folder.result)
    moved = {n for n in after if n not in before or not torch.equal(before[n], after[n])}
    prefix = "encoder.blocks.1.ffns.0."
    assert moved == {n for n in after if n.startswith(prefix)}
    assert moved


def test_a_stage_with_nothing_new_is_evaluated_only(shop: Workshop, tmp_path: Path) -> None:
    genotype = Genotype(shop.baseline.blocks[:-1])
    spec = shop.spec(stage(CONFIG, "pretrain_0"), **shop.child(genotype, unchanged(genotype)))
    folder, outcome = work(spec, tmp_path / "attempt")
    assert outcome is not None, folder.log.read_text()
    assert (outcome.verdict, outcome.steps, len(outcome.curve)) == ("succeeded", 0, 1)
    assert "nothing to train" in folder.log.read_text()


def test_training_lowers_the_loss_and_leaves_curves(shop: Workshop, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    genotype, lineage = altered(shop)
    spec = shop.spec(
        stage(CONFIG, "pretrain_0", epochs=0.3, evaluations=8), **shop.child(genotype, lineage)
    )
    folder, outcome = work(spec, tmp_path / "attempt")
    assert outcome is not None, folder.log.read_text()
    assert outcome.curve[-1][1] < outcome.curve[0][1]
    events = EventAccumulator(str(folder.path / "tensorboard"))
    events.Reload()
    scalars = set(events.Tags()["scalars"])
    assert {
        "mlm/loss", "mlm/learning_rate", "mlm/gradient_norm", "mlm/tokens_per_second",
        "mlm/evaluation_loss",
    } <= scalars  # fmt: skip
    shown = events.Scalars("mlm/evaluation_loss")
    assert [event.step for event in shown] == [step for step, _ in outcome.curve]
    assert [event.value for event in shown] == pytest.approx([loss for _, loss in outcome.curve])


def test_a_learning_rate_beyond_reason_ends_with_the_verdict_diverged(
    shop: Workshop, tmp_path: Path
) -> None:
    spec = shop.spec(stage(CONFIG, "pretrain_1", epochs=1, learning_rate=1e3))
    folder, outcome = work(spec, tmp_path / "attempt", ranks=2)
    assert outcome is not None, folder.log.read_text()
    assert outcome.verdict == "diverged"
    assert "step" in outcome.message
    assert not folder.result.exists()


def test_the_evaluate_stage_scores_as_nasd_score_does(shop: Workshop, tmp_path: Path) -> None:
    tuned, outcome = work(shop.spec(stage(CONFIG, "finetune", epochs=0.2)), tmp_path / "tuned")
    assert outcome is not None, tuned.log.read_text()
    spec = shop.spec(stage(CONFIG, "evaluate"), weights=tuned.result)
    one, first = work(spec, tmp_path / "one")
    two, second = work(spec, tmp_path / "two", ranks=2)
    assert first is not None, one.log.read_text()
    assert second is not None, two.log.read_text()
    answers = json.loads((one.result / "predictions.json").read_text())
    assert answers == json.loads((two.result / "predictions.json").read_text())
    expected = squad.score(answers, questions_of(Path(shop.prepared.qa_cache)))
    assert first.metrics["f1"] == pytest.approx(expected["f1"])
    assert first.metrics["exact_match"] == pytest.approx(expected["exact_match"])
    assert second.metrics["loss"] == pytest.approx(first.metrics["loss"], abs=1e-5)


def test_the_baselines_score_alone_is_confirmed_by_evaluate(
    shop: Workshop, tmp_path: Path, alone: Ranks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whose import would be half of a small evaluation."""
    confirmed: list[dict[str, float]] = []
    monkeypatch.setattr(metrics, "confirm", lambda scores, *given: confirmed.append(scores))
    asked = phenotype.load_for_answering(shop.seed_weights, torch.Generator().manual_seed(0))
    phenotype.save(asked, tmp_path / "asked")
    for generation in (None, 0):
        spec = shop.spec(
            stage(CONFIG, "evaluate"), weights=tmp_path / "asked", generation=generation
        )
        path = tmp_path / str(generation)
        path.mkdir()
        outcome = run_stage(spec, AttemptFolder(path), alone, Never())
        assert outcome.verdict == "succeeded", outcome
        assert confirmed[0]["f1"] == outcome.metrics["f1"]
    assert len(confirmed) == 1


def test_the_users_mistake_reaches_the_outcome_in_words(shop: Workshop, tmp_path: Path) -> None:
    path = tmp_path / "attempt"
    path.mkdir()
    # Left by another attempt of the same number.
    write(Outcome(token="another", verdict="succeeded"), AttemptFolder(path).outcome)
    spec = shop.spec(None, source="package:nasd/no_such_seed")
    _, outcome = work(spec, path)
    assert outcome is not None
    assert outcome.token == str(path)
    assert outcome.verdict == "invalid"
    assert "seed_model.source" in outcome.message


class AskAfter:
    """A stop request that comes true after so many looks at it."""

    def __init__(self, looks: int) -> None:
        self._left = looks

    @property
    def asked(self) -> bool:
        self._left -= 1
        return self._left < 0


def settings(
    folder: Path, stop_after: int, resume: tuple[Path, ...] = (), notes: Notes | None = None
) -> Run:
    stop = AskAfter(stop_after)
    return run_of(folder, notes or Notes(), log_steps=3, stop=stop, resume=resume)


def mlm_task(shop: Workshop) -> MlmTask:
    model = phenotype.load(phenotype.MaskedLM, shop.seed_weights, 0.1)
    corpus = MlmCorpus.load(Path(shop.prepared.mlm_cache))
    return MlmTask(model, corpus, 0.15, {name for name, _ in model.named_parameters()})


@pytest.mark.parametrize(
    ("stopped_after", "average", "soup"),
    [(1, 0.0, 1), (4, 0.0, 1), (1, 0.5, 1), (4, 0.5, 1), (2, 0.0, 3), (5, 0.5, 3), (11, 0.0, 3)],
)
def test_a_stopped_and_resumed_run_ends_bit_for_bit_as_one_that_was_not(
    shop: Workshop, tmp_path: Path, alone: Ranks, stopped_after: int, average: float, soup: int
) -> None:
    short = stage(CONFIG, "pretrain_1", epochs=0.3, evaluations=8, average=average, soup=soup)
    straight, told = mlm_task(shop), Notes()
    expected = train(straight, short, alone, settings(tmp_path / "a", 10**9, notes=told))
    first, again = mlm_task(shop), Notes()
    with pytest.raises(Stopped):
        train(first, short, alone, settings(tmp_path / "b", stopped_after, notes=again))
    second = mlm_task(shop)
    before = (tmp_path / "b" / "checkpoints",)
    got = train(second, short, alone, settings(tmp_path / "c", 10**9, before, again))
    assert got == expected
    clock = ("at", "tokens_per_second")
    assert [{k: v for k, v in line.items() if k not in clock} for line in again.lines] == [
        {k: v for k, v in line.items() if k not in clock} for line in told.lines
    ]
    for name, tensor in straight.model.state_dict().items():
        assert torch.equal(tensor, second.model.state_dict()[name]), name


def test_a_stage_leaves_the_average_of_what_it_found_and_what_it_made_of_it(
    shop: Workshop, tmp_path: Path, alone: Ranks
) -> None:
    began = mlm_task(shop).model.state_dict()
    left, losses = {}, {}
    for average in (0.0, 0.25):
        task, called = mlm_task(shop), f"{average:g}"
        short = stage(CONFIG, "pretrain_1", epochs=0.3, evaluations=8, average=average)
        done = train(task, short, alone, settings(tmp_path / called, 10**9))
        left[average], losses[average] = task.model.state_dict(), done.curve
        task.model.eval()
        with torch.no_grad():
            told = task.evaluate(alone, 8, lambda *_, **__: None)["loss"]
        assert done.metrics["loss"] == pytest.approx(told, abs=1e-4)
    *before, last = losses[0.25]
    assert before == losses[0.0][:-1]  # nothing else of the training is another one
    assert last != losses[0.0][-1]
    for name, start in began.items():
        wanted = torch.lerp(left[0.0][name], start, 0.25)
        torch.testing.assert_close(left[0.25][name], wanted, rtol=0, atol=1e-6)


def test_a_soup_is_the_mean_of_trainings_from_the_same_start_in_other_orders(
    shop: Workshop, tmp_path: Path, alone: Ranks
) -> None:
    def trained(soup: int, rounds: int = 0) -> tuple[QaTask, list[tuple[int, float]]]:
        model = phenotype.load_for_answering(shop.seed_weights, torch.Generator().manual_seed(0))
        for part in model.modules():
            if isinstance(part, nn.Dropout):
                part.p = 0.0  # drawn by the step; without it a training follows from its order
        task = QaTask.load(model, Path(shop.prepared.qa_cache))
        short = stage(CONFIG, "finetune", epochs=0.3, evaluations=8, soup=soup)
        how = settings(tmp_path / f"{soup}-{rounds}", 10**9)
        return task, train(task, short, alone, replace(how, rounds=rounds)).curve

    (first, curve), (second, _) = trained(1), trained(1, rounds=1)
    soup, both = trained(2)
    assert both[: len(curve)] == curve
    assert len(both) == 2 * len(curve)
    differ = False
    for name, mean in soup.model.state_dict().items():
        one, other = (task.model.state_dict()[name] for task in (first, second))
        torch.testing.assert_close(mean, (one + other) / 2, rtol=0, atol=1e-6)
        differ |= not torch.equal(one, other)
    assert differ


def test_every_epoch_takes_each_example_once_in_an_order_of_its_own() -> None:
    schedule = Schedule.of(stage(CONFIG, "finetune", epochs=2, batch=8), 1000)
    order = Order(schedule, 1, "finetune")
    epochs = [[order.batch(e * 125 + n) for n in range(125)] for e in range(2)]
    for batches in epochs:
        assert sorted(np.concatenate(batches)) == list(range(1000))
    assert not np.array_equal(np.concatenate(epochs[0]), np.concatenate(epochs[1]))
    again = Order(schedule, 1, "finetune")
    assert np.array_equal(again.batch(200), epochs[1][75])


def test_generations_of_less_than_an_epoch_go_through_all_questions_one_after_the_other() -> None:
    """Each of them by the same half would leave the other half to nobody."""
    schedule = Schedule.of(stage(CONFIG, "finetune", epochs=0.25, batch=8), 1000)
    seen: list[int] = []
    for rounds in range(4):
        order = Order(schedule, 1, "finetune", rounds)
        mine = np.concatenate([order.batch(step) for step in range(schedule.steps)])
        assert not set(mine) & set(seen)
        seen += mine.tolist()
    assert len(seen) > 0.98 * 1000


def test_batches_are_of_any_length_but_their_parts_and_ranks_of_one(tmp_path: Path) -> None:
    """Batches by length would train worse; only what is computed at once is sorted."""
    task = QaTask(built(phenotype.QuestionAnswering), features(), features())
    assert task.lengths is not None
    finetune = stage(CONFIG, "finetune", epochs=1, batch=6)
    schedule, run = Schedule.of(finetune, task.train_size), run_of(tmp_path, Notes())

    def lengths(size: int, rank: int, world: int) -> list[int]:
        ranks = Ranks(rank, world, torch.device("cpu"))
        (parts,) = _batches(task, finetune, schedule, size, ranks, run, 0)
        return [part["input_ids"].shape[1] for part in parts]

    assert lengths(6, 0, 1) == [11]
    shapes = [lengths(1, rank, 2) for rank in range(2)]
    assert shapes == [[7, 9, 11], [8, 10, 11]]  # of 7, 8, 9, 10, 11 and 11


def test_the_learning_rate_warms_up_and_falls_to_zero() -> None:
    schedule = Schedule.of(stage(CONFIG, "pretrain_1", epochs=10, batch=10, warmup=0.1), 100)
    rates = [schedule.learning_rate(step) for step in range(schedule.steps)]
    assert rates[10] == max(rates) == schedule.peak
    assert rates[0] < rates[5] < rates[10] > rates[50] > rates[-1] > 0
    evaluations = [s for s in range(schedule.steps) if schedule.evaluates_after(s, 2)]
    assert len(evaluations) == 20
    assert evaluations[-1] == schedule.steps - 1


def caused(error: Exception, by: Exception) -> Exception:
    error.__cause__ = by
    return error


@pytest.mark.parametrize(
    ("error", "of_the_machine"),
    [
        (OSError(28, "No space left on device"), True),
        (OSError(5, "Input/output error"), True),
        (OSError(27, "File too large"), True),
        (OSError("100000 requested and 359 written"), True),  # numpy's
        (RuntimeError("CUDA error: uncorrectable ECC error encountered"), True),
        (RuntimeError("[enforce fail] PytorchStreamWriter failed writing file"), True),
        (torch.AcceleratorError("CUDA error: unspecified launch failure"), True),
        (torch.OutOfMemoryError("CUDA out of memory."), True),  # before there is a model
        (MemoryError(), True),
        (RuntimeError("CUDA error: device-side assert triggered"), False),
        (FileNotFoundError(2, "No such file"), False),
        (caused(NasdError("the corpus cannot be read"), OSError(28, "")), True),
        (caused(NasdError("the corpus cannot be read"), OSError(2, "")), False),
        (ValueError("shapes do not fit"), False),
    ],
)
def test_a_fault_of_the_machine_is_told_from_one_of_the_candidate(
    error: Exception, of_the_machine: bool
) -> None:
    from nasd.worker.__main__ import _machine_failed

    assert _machine_failed(error) is of_the_machine


@pytest.mark.parametrize(
    ("error", "world", "gone"),
    [
        (
            RuntimeError("[/pytorch/third_party/gloo/gloo/pair.cc:547] closed"),
            2,
            True,
        ),
        (
            RuntimeError("[/pytorch/third_party/gloo/gloo/pair.cc:547] closed"),
            1,
            False,
        ),
        (torch.distributed.DistBackendError("NCCL error"), 2, True),
        (NasdError("/home/gloor/squad.json is not there"), 2, False),
        (FileNotFoundError(2, "No such file", "/gloo"), 2, False),
    ],
)
def test_a_peer_is_gone_where_there_was_one_and_not_for_a_path_of_its_name(
    error: Exception, world: int, gone: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nasd.worker.__main__ import _peer_is_gone

    monkeypatch.setenv("WORLD_SIZE", str(world))
    assert _peer_is_gone(error) is gone


def test_a_stage_without_checkpoints_leaves_at_once_when_asked(
    shop: Workshop, tmp_path: Path, alone: Ranks
) -> None:
    spec = shop.spec(stage(CONFIG, "evaluate"))
    outcome = run_stage(spec, AttemptFolder(tmp_path), alone, AskAfter(0))  # type: ignore[arg-type]
    assert outcome.verdict == "stopped"


def test_the_next_batch_is_made_while_one_is_used_and_none_beyond_it() -> None:
    made: list[int] = []
    second = threading.Event()

    def build(number: int) -> int:
        made.append(number)
        if number == 1:
            second.set()
        return 10 * number

    batches = ahead(build, range(4))
    assert next(batches) == 0
    assert second.wait(30)  # without being asked for
    batches.close()  # type: ignore[attr-defined]
    assert made == [0, 1]
    assert list(ahead(build, range(3))) == [0, 10, 20]
    assert list(ahead(build, range(0))) == []


def test_a_batch_that_cannot_be_made_is_an_error_where_it_is_used() -> None:
    def build(number: int) -> int:
        if number == 2:
            raise ValueError("a damaged file")
        return number

    batches = ahead(build, range(5))
    assert [next(batches), next(batches)] == [0, 1]
    with pytest.raises(ValueError, match="damaged"):
        next(batches)
