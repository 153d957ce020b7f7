"""What only a GPU shows: left out where there is none.

bin/test tests/test_on_gpu.py
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from nasd.contract import variables
from nasd.contract.config import Measure
from nasd.contract.protocol import Verdict
from nasd.contract.slots import divided
from nasd.launch import gpus
from nasd.presets import write_preset
from nasd.record import snapshot
from nasd.worker.measure import energy
from nasd.worker.measure.engines import ENGINES
from nasd.worker.model import phenotype
from nasd.worker.model.phenotype import QuestionAnswering
from nasd.worker.stage import _meet
from nasd.worker.tasks.qa import QaTask
from nasd.worker.tasks.task import Ranks, autocast
from tests.test_end_to_end import TINY
from tests.test_phenotype import built
from tests.test_sparse import features
from tests.training import Workshop, demo_config, launched, losses, make_workshop, stage, work

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
CONFIG = demo_config()
GPU = torch.device("cuda", 0)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return make_workshop(tmp_path_factory.mktemp("workshop"))


def outputs(
    model: QuestionAnswering, device: torch.device, packs: bool, precision: str
) -> list[Tensor]:
    task = QaTask(model.to(device).eval(), features(), features(), packs=packs)
    batch = task.batch(np.arange(6), 0)
    moved = {name: one.to(device) for name, one in batch.items()}
    with torch.no_grad(), autocast(precision, device):
        found = task.outputs(model, moved)
    known = batch["attention_mask"] == 1
    return [one.float().cpu()[known] for one in found]


@pytest.mark.parametrize("packs", [False, True])
def test_a_gpu_computes_what_the_cpu_does(packs: bool) -> None:
    model = built(QuestionAnswering)
    wanted = outputs(model, torch.device("cpu"), False, "float32")
    for one, other in zip(outputs(model, GPU, packs, "float32"), wanted, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_packed_questions_give_in_bfloat16_what_padded_ones_give(shop: Workshop) -> None:
    model = phenotype.load(QuestionAnswering, tuned(shop), 0.0)
    padded = outputs(model, GPU, False, "bfloat16")
    for one, other in zip(outputs(model, GPU, True, "bfloat16"), padded, strict=True):
        torch.testing.assert_close(one, other, atol=0.1, rtol=0.1)


def tuned(shop: Workshop) -> Path:
    """The weights of a short fine-tuning on the GPU, made once."""
    path = shop.folder / "tuned"
    if not path.exists():
        spec = shop.spec(stage(CONFIG, "finetune", epochs=0.2), precision="bfloat16")
        folder, outcome = work(spec, path, kind="cuda")
        assert outcome is not None, folder.log.read_text()
        assert outcome.verdict is Verdict.SUCCEEDED, folder.log.read_text()
    return path / "result"


@pytest.mark.parametrize("name", ["pretrain_1", "finetune"])
def test_training_on_a_gpu_follows_the_cpus_loss_curve(
    shop: Workshop, tmp_path: Path, name: str
) -> None:
    spec = shop.spec(stage(CONFIG, name, epochs=0.2, evaluations=8))
    one, first = work(spec, tmp_path / "cpu")
    two, second = work(spec, tmp_path / "cuda", kind="cuda")
    assert first is not None, one.log.read_text()
    assert second is not None, two.log.read_text()
    assert second.verdict is Verdict.SUCCEEDED, two.log.read_text()
    for kind in ("train", "evaluation"):
        np.testing.assert_allclose(losses(one, kind), losses(two, kind), rtol=5e-3)


def test_questions_are_packed_in_bfloat16_and_scored(shop: Workshop, tmp_path: Path) -> None:
    weights = tuned(shop)
    assert "questions are packed" in (weights.parent / "worker.log").read_text()
    spec = shop.spec(stage(CONFIG, "evaluate"), weights=weights, precision="bfloat16")
    folder, outcome = work(spec, tmp_path / "scored", kind="cuda")
    assert outcome is not None, folder.log.read_text()
    assert outcome.metrics["f1"] >= 0
    answers = json.loads((folder.result / "predictions.json").read_text())
    assert len(answers) > 10


def test_compiled_blocks_give_the_eager_losses(shop: Workshop, tmp_path: Path) -> None:
    short = stage(CONFIG, "pretrain_1", epochs=0.5, evaluations=4)
    found = {}
    for compiled in (False, True):
        spec = shop.spec(short, compile=compiled, precision="bfloat16", log_steps=3)
        folder, outcome = work(spec, tmp_path / str(compiled), kind="cuda")
        assert outcome is not None, folder.log.read_text()
        assert ("compiling the blocks" in folder.log.read_text()) is compiled
        found[compiled] = losses(folder, "train")
    np.testing.assert_allclose(found[True], found[False], rtol=2e-2)


def test_a_killed_attempt_goes_on_from_its_checkpoint(shop: Workshop, tmp_path: Path) -> None:
    long = stage(CONFIG, "pretrain_1", epochs=1.0, evaluations=4)
    straight, _ = work(shop.spec(long), tmp_path / "straight", kind="cuda")
    spec = shop.spec(long, checkpoint_minutes=1e-3)
    with launched(spec, tmp_path / "killed", kind="cuda") as attempt:
        attempt.until(lambda: len(attempt.checkpoints()) > 0)
        attempt.ranks()[0].kill()
        attempt.ends()
    again = spec.model_copy(update={"resume": (str(tmp_path / "killed" / "checkpoints"),)})
    folder, outcome = work(again, tmp_path / "again", kind="cuda")
    assert outcome is not None, folder.log.read_text()
    assert "step" in folder.log.read_text()
    ends = [losses(one, "evaluation")[-1] for one in (folder, straight)]
    np.testing.assert_allclose(*ends, rtol=1e-2)


def test_the_driver_tells_the_gpu_and_who_is_on_it(shop: Workshop, tmp_path: Path) -> None:
    known = gpus.list_gpus()
    assert known and known[0]["memory"] > 1 << 30
    spec = shop.spec(stage(CONFIG, "pretrain_1", epochs=3.0), precision="bfloat16")
    with launched(spec, tmp_path / "attempt", kind="cuda") as attempt:
        attempt.until(lambda: attempt.folder.metrics.exists())
        watch = gpus.GpuWatch(["cuda:0"], interval=0.1)
        told = None
        try:
            while told is None or not told["cuda:0"].processes:
                told = watch.look()
                assert attempt.alive, attempt.log
        finally:
            watch.close()
        gpu = told["cuda:0"]
        assert gpu.fault == ""
        assert gpu.power is not None and gpu.temperature is not None
        seen = [attempt.launcher.owns(one.pid) for one in gpu.processes]
        assert any(seen) or None in seen  # in a container the driver counts by other numbers


def test_a_gpu_that_somebody_else_has_filled_ends_in_a_verdict(
    shop: Workshop, tmp_path: Path
) -> None:
    free, _ = torch.cuda.mem_get_info(GPU)
    held = torch.empty(max(0, free - (600 << 20)), dtype=torch.uint8, device=GPU)
    try:
        spec = shop.spec(stage(CONFIG, "finetune", epochs=0.1, batch=4096), precision="float32")
        folder, outcome = work(spec, tmp_path / "attempt", kind="cuda")
    finally:
        del held
        torch.cuda.empty_cache()
    assert outcome is not None, folder.log.read_text()
    assert outcome.verdict in (Verdict.OUT_OF_MEMORY, Verdict.SUCCEEDED)


def test_latency_and_energy_are_measured(shop: Workshop) -> None:
    counter = energy.counter("cuda")
    assert callable(counter), counter
    before = counter()
    measure = Measure(device="cuda", precision="bfloat16")
    model = phenotype.load(QuestionAnswering, tuned(shop), 0.0)
    ids = torch.randint(5, 50, (8, 64))
    call = ENGINES["torch"].load(model, [ids, torch.ones_like(ids)], measure)
    for _ in range(2000):
        call()
    assert counter() > before


@pytest.fixture
def group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ranks]:
    monkeypatch.setenv(variables.RENDEZVOUS, str(tmp_path / "store"))
    ranks = Ranks(0, 1, GPU)
    _meet(ranks, timedelta(minutes=1))
    yield ranks
    dist.destroy_process_group()


def test_gradients_go_through_nccl_and_flags_through_gloo(group: Ranks) -> None:
    """A group of one: the paths of a larger one, without its transport."""
    model = built(QuestionAnswering).to(GPU)
    wrapped = DistributedDataParallel(model, device_ids=[0], gradient_as_bucket_view=True)
    task = QaTask(model, features(), features(), packs=False)
    batch = {name: one.to(GPU) for name, one in task.batch(np.arange(4), 0).items()}
    task.loss(task.outputs(wrapped, batch), batch).backward()
    assert all(p.grad is not None for p in model.encoder.parameters())
    flags, numbers = torch.tensor([1], dtype=torch.uint8), torch.ones(3, device=GPU)
    dist.all_reduce(flags, op=dist.ReduceOp.MAX)
    dist.all_reduce(numbers)
    assert flags.item() == 1 and numbers.sum().item() == 3


# -- sharing ---------------------------------------------------------------------------------------


def test_attempts_that_share_a_gpu_train_as_one_alone_does(shop: Workshop, tmp_path: Path) -> None:
    spec = shop.spec(stage(CONFIG, "finetune", epochs=0.2, evaluations=4))
    alone, _ = work(spec, tmp_path / "alone", kind="cuda")
    shared = spec.model_copy(update={"share": 3})
    with ExitStack() as stack:
        attempts = [
            stack.enter_context(launched(shared, tmp_path / str(number), kind="cuda"))
            for number in range(3)
        ]
        for one in attempts:
            one.ends()
    for one in attempts:
        assert one.outcome is not None, one.log
        assert one.outcome.verdict is Verdict.SUCCEEDED, one.log
        np.testing.assert_allclose(
            losses(one.folder, "evaluation"), losses(alone, "evaluation"), rtol=5e-3
        )


KEPT = """
import torch
from nasd.contract.slots import part_of
from nasd.worker.training.allocator import keep_to_share
device = torch.device("cuda", 0)
share = 16
keep_to_share(device, share)
part = part_of(torch.cuda.get_device_properties(device).total_memory, share)
half = torch.empty(part // 2, dtype=torch.uint8, device=device)
try:
    torch.empty(part, dtype=torch.uint8, device=device)
except torch.OutOfMemoryError:
    print("out of memory")
"""


def test_who_takes_more_than_its_part_is_out_of_memory_though_there_is_some() -> None:
    free, total = torch.cuda.mem_get_info(GPU)
    if free < total / 2:
        pytest.skip("somebody else has taken most of the GPU's memory")
    done = subprocess.run([sys.executable, "-c", KEPT], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "out of memory"


def test_a_search_runs_on_the_shares_of_a_gpu(tmp_path: Path) -> None:
    sharing = ('slots.devices=["cuda:0"]', "slots.share=3", "population.lambda=3")
    config = write_preset("demo-thesis", tmp_path / "search", (*TINY, *sharing), force=False)
    command = [sys.executable, "-m", "nasd", "run", "--config", str(config)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    with snapshot.opened(config.parent / "state") as connection:
        found = snapshot.read(connection)
    assert found.experiment.state == "complete"
    assert not found.quarantine  # our own are nobody else's
    trained = [one for one in found.attempts if one.ended_at is not None and one.stage != "prepare"]
    assert {name for one in trained for name in one.slots} == set(divided(("cuda:0",), 3))
    together = [
        (one.id, other.id)
        for one in trained
        for other in trained
        if one.id < other.id
        and one.started_at < (other.ended_at or 0)
        and other.started_at < (one.ended_at or 0)
    ]
    assert together
    spent = sum((one.ended_at or 0) - one.started_at for one in found.attempts) / 3 / 3600
    assert found.gpu_hours(0.0) == pytest.approx(spent)
