"""What befalls a worker: kills, a full disk, hung peers, too little memory, a damaged spec.

Real processes and real files, but for what can be seen in one process.
"""

import ast
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
import torch
import torch.distributed as dist

import nasd.worker
from nasd.contract import digests, leash
from nasd.contract.protocol import AttemptFolder, Heartbeat, Outcome, Spec, read
from nasd.contract.schedule import Schedule, halved, share_of
from nasd.worker import stage as stage_module
from nasd.worker.__main__ import _machine_failed
from nasd.worker.model import phenotype
from nasd.worker.stage import run as run_stage
from nasd.worker.tasks.corpus import MlmCorpus
from nasd.worker.tasks.mlm import MlmTask
from nasd.worker.tasks.qa import QaTask
from nasd.worker.tasks.task import Batch, Outputs, Ranks
from nasd.worker.training import checkpoint
from nasd.worker.training import train as train_module
from nasd.worker.training.progress import DOWNLOAD, Pulse
from nasd.worker.training.recording import Curves, MetricsFile
from nasd.worker.training.train import Order, train
from tests.boards import read_run, steps
from tests.training import (
    Launched,
    Never,
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

CONFIG = demo_config()
EVERY_STEP = {"checkpoint_minutes": 1e-6}
ROOM = 100_000  # bytes a file may have: more than metrics and logs take, less than a checkpoint


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return make_workshop(tmp_path_factory.mktemp("workshop"))


# --- attempts that end before they are done, and those that go on for them ------------------


def task_of(shop: Workshop, **changes: Any) -> Spec:
    """A little more than an epoch, with evaluations on the way."""
    return shop.spec(stage(CONFIG, "pretrain_1", epochs=1.2, evaluations=4), **changes)


@dataclass
class End:
    folder: AttemptFolder
    outcome: Outcome | None

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        return weights(self.folder.result)


def finish(spec: Spec, path: Path, ranks: int = 1) -> End:
    return End(*work(spec, path, ranks))


@pytest.fixture(scope="module")
def undisturbed(shop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> End:
    return finish(task_of(shop), tmp_path_factory.mktemp("undisturbed"))


@contextmanager
def under_way(shop: Workshop, path: Path, ranks: int = 1) -> Iterator[Launched]:
    """An attempt that has left a checkpoint, and leaves one at every step."""
    with launched(task_of(shop, **EVERY_STEP), path, ranks) as attempt:
        attempt.until(lambda: bool(attempt.checkpoints()))
        yield attempt


@pytest.fixture(scope="module")
def killed(shop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> AttemptFolder:
    with under_way(shop, tmp_path_factory.mktemp("killed")) as attempt:
        for rank in attempt.ranks():
            rank.kill()
        attempt.ends()
    return attempt.folder


@pytest.fixture(scope="module")
def filled(shop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> AttemptFolder:
    """The disk fills up behind the first checkpoints."""
    with under_way(shop, tmp_path_factory.mktemp("filled")) as attempt:
        for rank in attempt.ranks():
            rank.rlimit(psutil.RLIMIT_FSIZE, (ROOM, ROOM))
        attempt.ends()
    return attempt.folder


@pytest.fixture(scope="module")
def half_hung(shop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launched]:
    """Of two ranks the second hangs, which silences the first; then it is killed."""
    with under_way(shop, tmp_path_factory.mktemp("half-hung"), ranks=2) as attempt:
        first, second = attempt.ranks()

        def silent() -> bool:
            before = attempt.folder.heartbeat.read_bytes()
            time.sleep(2)
            return attempt.folder.heartbeat.read_bytes() == before

        second.suspend()
        attempt.until(silent)
        last = read(Heartbeat, attempt.folder.heartbeat)
        assert last.patience == 0, "it must not hold on for a peer that hangs"
        assert first.is_running()
        second.resume()
        attempt.until(lambda: read(Heartbeat, attempt.folder.heartbeat).step > last.step)
        second.kill()
        attempt.ends()
        yield attempt


@pytest.mark.parametrize("fault", ["killed", "filled"])
def test_an_attempt_resumed_after_a_fault_ends_bit_for_bit_as_one_undisturbed(
    shop: Workshop, tmp_path: Path, undisturbed: End, fault: str, request: pytest.FixtureRequest
) -> None:
    before: AttemptFolder = request.getfixturevalue(fault)
    found = checkpoint.newest([before.checkpoints])
    assert found is not None
    end = finish(task_of(shop, resume=(str(before.checkpoints),)), tmp_path / "resumed")
    assert f"resumed at step {found.step} of" in end.folder.log.read_text()
    assert end.outcome is not None and undisturbed.outcome is not None
    assert end.outcome.curve == undisturbed.outcome.curve
    assert end.outcome.metrics == undisturbed.outcome.metrics
    assert end.outcome.steps == undisturbed.outcome.steps
    for kind in ("train", "evaluation"):
        rest = losses(end.folder, kind)
        assert rest == losses(undisturbed.folder, kind)[-len(rest) :]
    expected = undisturbed.weights
    assert end.weights.keys() == expected.keys()
    assert all(torch.equal(end.weights[name], expected[name]) for name in expected)


@pytest.mark.parametrize("fault", ["killed", "filled"])
def test_the_curves_of_a_resumed_attempt_are_those_of_one_undisturbed(
    shop: Workshop, tmp_path: Path, undisturbed: End, fault: str, request: pytest.FixtureRequest
) -> None:
    before: AttemptFolder = request.getfixturevalue(fault)
    run = shutil.copytree(before.path / "tensorboard", tmp_path / "run")
    (file,) = run.iterdir()
    with file.open("ab") as half:  # as of a kill half-way through a record
        half.write(file.read_bytes()[:11])
    spec = task_of(shop, resume=(str(before.checkpoints),), tensorboard=str(run))
    finish(spec, tmp_path / "resumed")
    expected, found = read_run(undisturbed.folder.path / "tensorboard"), read_run(run)
    assert len(steps(read_run(before.path / "tensorboard"), "mlm/loss")) >= 1
    assert found.keys() == expected.keys()
    for tag in expected:
        assert steps(found, tag) == steps(expected, tag), tag
        if tag != "mlm/tokens_per_second":
            assert found[tag] == expected[tag], tag


def test_a_killed_worker_leaves_no_outcome(killed: AttemptFolder) -> None:
    assert not killed.outcome.exists()


def test_a_full_disk_leaves_no_outcome_and_the_checkpoints_before_it(filled: AttemptFolder) -> None:
    assert not filled.outcome.exists(), filled.log.read_text()
    assert checkpoint.newest([filled.checkpoints]) is not None
    assert all(path.name.startswith("step-") for path in filled.checkpoints.iterdir())


def test_a_hung_peer_silences_the_heartbeat_and_a_killed_one_leaves_nothing(
    half_hung: Launched,
) -> None:
    """The silence is waited for where the attempt is made: others go on from what it leaves."""
    assert half_hung.outcome is None, half_hung.log
    half_hung.launcher.clear(str(half_hung.folder.path))
    assert half_hung.ranks() == []


@pytest.mark.parametrize(("fault", "ranks"), [("killed", 2), ("half_hung", 1)])
def test_an_attempt_resumed_on_another_number_of_ranks_follows_the_same_curve(
    shop: Workshop,
    tmp_path: Path,
    undisturbed: End,
    fault: str,
    ranks: int,
    request: pytest.FixtureRequest,
) -> None:
    before = request.getfixturevalue(fault)
    folder = before.folder if isinstance(before, Launched) else before
    spec = task_of(shop, resume=(str(folder.checkpoints),))
    end = finish(spec, tmp_path / "resumed", ranks)
    assert "resumed at step" in end.folder.log.read_text()
    assert end.outcome is not None and undisturbed.outcome is not None
    np.testing.assert_allclose(end.outcome.curve, undisturbed.outcome.curve, atol=1e-4)
    rest = losses(end.folder, "train")
    expected = losses(undisturbed.folder, "train")[-len(rest) :]
    np.testing.assert_allclose(rest, expected, atol=1e-4)


def test_ranks_share_out_the_same_batches_however_many_they_are() -> None:
    schedule = Schedule.of(stage(CONFIG, "finetune", epochs=2, batch=9), 300)
    order, again = (Order(schedule, 1, "finetune") for _ in range(2))
    for step in range(schedule.steps):
        batch = order.batch(step)
        for world in (1, 2, 4):
            shares = [Ranks(rank, world, None).deal(again.batch(step)) for rank in range(world)]
            assert sorted(np.concatenate(shares)) == sorted(batch)
            assert np.ptp([len(share) for share in shares]) <= 1


@pytest.mark.parametrize("damage", ["truncated", "missing", "of another version", "a digit"])
def test_a_damaged_spec_is_told_in_one_sentence(
    shop: Workshop, tmp_path: Path, damage: str
) -> None:
    folder = AttemptFolder(tmp_path)
    text = task_of(shop).model_dump_json()
    if damage == "truncated":
        folder.spec.write_text(text[: len(text) // 2])
    elif damage == "of another version":
        folder.spec.write_text(text.replace('"version":1', '"version":2'))
    elif damage == "a digit":
        text = digests.signed(task_of(shop)).model_dump_json()
        folder.spec.write_text(text.replace('"seed":5', '"seed":6'))
    command = [sys.executable, "-m", "nasd.worker", str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"RANK": "0"})
    assert ended.returncode == 1
    [sentence] = ended.stderr.splitlines()
    assert str(folder.spec) in sentence
    assert not folder.outcome.exists()


def test_ranks_that_found_different_checkpoints_do_not_train(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def all_reduce(steps: torch.Tensor, op: object) -> None:
        steps.copy_(torch.maximum(steps, torch.tensor([30, -30])))  # the peer's

    monkeypatch.setattr(train_module.dist, "all_reduce", all_reduce)
    ranks = Ranks(0, 2, torch.device("cpu"))
    train_module._check_equal(30, ranks)
    for other in (0, 20, 40):
        with pytest.raises(dist.DistError):
            train_module._check_equal(other, ranks)


# --- in one process -------------------------------------------------------------------------


class Watched(QaTask):
    """Notes how many examples each forward pass has."""

    sizes: list[int]

    def outputs(self, model: torch.nn.Module, batch: Batch) -> Outputs:
        self.sizes.append(len(batch["input_ids"]))
        return super().outputs(model, batch)


def test_a_halved_micro_batch_gives_the_same_losses_and_gradients(
    shop: Workshop, tmp_path: Path, alone: Ranks
) -> None:
    short = stage(CONFIG, "finetune", epochs=0.1, evaluations=20)
    runs = []
    for halvings, largest, in_evaluation in ((0, 16, 32), (1, 8, 16), (9, 1, 1)):
        notes = Notes()
        fresh = torch.Generator().manual_seed(1)
        model = phenotype.load_for_answering(shop.seed_weights, fresh, 0.0)
        task = Watched.load(model, Path(shop.prepared.qa_cache))
        assert isinstance(task, Watched)
        task.sizes = []
        train(task, short, alone, run_of(tmp_path / str(halvings), notes, halvings=halvings))
        assert max(task.sizes[: 16 // largest]) == largest
        assert max(task.sizes) == in_evaluation
        runs.append([(line["loss"], line.get("gradient_norm", 0.0)) for line in notes.lines])
    for other in runs[1:]:
        np.testing.assert_allclose(other, runs[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("batch", "given", "world", "halvings", "expected"),
    [
        (32, None, 1, 0, 32), (32, None, 4, 0, 8), (33, None, 4, 0, 9), (32, 6, 4, 0, 6),
        (32, None, 4, 1, 4), (32, None, 4, 3, 1), (32, None, 4, 50, 1), (32, 6, 1, 1, 3),
        (32, 64, 4, 1, 4),  # more than there is
    ],
)  # fmt: skip
def test_the_micro_batch_is_halved_from_what_a_rank_has_and_never_below_one(
    batch: int, given: int | None, world: int, halvings: int, expected: int
) -> None:
    one = stage(CONFIG, "finetune", batch=batch, micro_batch=given)
    assert halved(share_of(one, world), halvings) == expected


@pytest.mark.parametrize(
    ("name", "where", "error", "said"),
    [
        ("finetune", "loss", torch.OutOfMemoryError("CUDA out of memory."), "micro-batch of 8 "),
        ("finetune", "evaluate", torch.OutOfMemoryError("CUDA out of memory."), "evaluations 16)"),
        ("finetune", "to", torch.OutOfMemoryError("CUDA out of memory."), "micro-batch of 8 "),
        ("evaluate", "to", torch.OutOfMemoryError("CUDA out of memory."), "at a batch of 16"),
        ("finetune", "loss", RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when"), "CUBLAS"),
    ],
)
def test_an_out_of_memory_is_a_verdict_that_names_the_micro_batch(
    shop: Workshop,
    tmp_path: Path,
    alone: Ranks,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    where: str,
    error: Exception,
    said: str,
) -> None:
    def full(*arguments: object) -> object:
        raise error

    weights_ = shop.seed_weights
    if name == "evaluate":
        fresh = torch.Generator().manual_seed(1)
        weights_ = tmp_path / "tuned"
        phenotype.save(phenotype.load_for_answering(shop.seed_weights, fresh), weights_)
    monkeypatch.setattr(phenotype.QuestionAnswering if where == "to" else QaTask, where, full)
    spec = shop.spec(stage(CONFIG, name), weights_, tensorboard=str(tmp_path / "tb"), halvings=1)
    outcome = run_stage(spec, AttemptFolder(tmp_path), alone, Never())  # type: ignore[arg-type]
    assert outcome.verdict == "out_of_memory"
    assert said in outcome.message


def test_a_lack_of_the_hosts_memory_is_no_verdict(
    shop: Workshop, tmp_path: Path, alone: Ranks, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> object:
        raise MemoryError

    monkeypatch.setattr(QaTask, "loss", full)
    spec = shop.spec(stage(CONFIG, "finetune"), tensorboard=str(tmp_path / "tb"))
    with pytest.raises(MemoryError) as caught:
        run_stage(spec, AttemptFolder(tmp_path), alone, Never())  # type: ignore[arg-type]
    assert _machine_failed(caught.value)


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (1000, []),  # not even a quarter has passed at the end of an epoch
        (20, [5, 10]),
        (28, [10]),  # a quarter is 7 steps: the first epoch is too short
        (4, [4, 5, 9, 10, 14]),
    ],
)
def test_checkpoints_come_by_time_and_at_the_ends_of_epochs_that_are_long_enough(
    shop: Workshop,
    tmp_path: Path,
    alone: Ranks,
    monkeypatch: pytest.MonkeyPatch,
    seconds: float,
    expected: list[int],
) -> None:
    """A step takes one second here, and an epoch five."""
    now = 0.0

    def progress(doing: str, step: int = 0, steps: int = 0, *, patience: float = 0.0) -> None:
        nonlocal now
        now = float(step) if doing == "training" else now

    saved: list[int] = []
    monkeypatch.setattr(
        train_module, "time", SimpleNamespace(monotonic=lambda: now, time=time.time)
    )
    monkeypatch.setattr(checkpoint, "save", lambda folder, step, *state: saved.append(step))
    corpus = MlmCorpus.load(Path(shop.prepared.mlm_cache))
    corpus = replace(corpus, train=corpus.train[:20])
    model = phenotype.load(phenotype.MaskedLM, shop.seed_weights, 0.0)
    task = MlmTask(model, corpus, 0.15, {"head.bias"})
    three = stage(CONFIG, "pretrain_1", epochs=3, batch=4, evaluations=1)
    train(
        task,
        three,
        alone,
        run_of(tmp_path, Notes(), checkpoint_seconds=seconds, progress=progress),
    )
    assert saved == expected


def error_of(act: Callable[[], object]) -> Exception | None:
    try:
        act()
    except Exception as error:
        return error
    return None


@contextmanager
def little_room(room: int) -> Iterator[None]:
    """Where no file of this process may grow beyond so many bytes. Python ignores SIGXFSZ."""
    assert signal.getsignal(signal.SIGXFSZ) == signal.SIG_IGN
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("full", ["metrics", "tensorboard"])
def test_a_disk_too_full_for_curves_is_the_machines_fault(tmp_path: Path, full: str) -> None:
    metrics = tmp_path / "metrics.jsonl"
    if full == "metrics":
        metrics.write_bytes(b" " * 3000 + b"\n")
    else:
        metrics = Path("/dev/null")  # no limit holds there
    recorder = MetricsFile(metrics, Curves(tmp_path / "tb", "mlm"), 0)

    def record() -> None:
        for step in range(1000):
            recorder.line(kind="train", step=step, loss=1.0, gradient_norm=1.0)

    with little_room(3000), pytest.raises(OSError, match="File too large") as caught:
        record()
    assert _machine_failed(caught.value)


def test_a_checkpoint_that_the_disk_has_no_room_for_fails_as_the_machines_wherever_it_does(
    tmp_path: Path,
) -> None:
    def save(step: int) -> Path:
        sizes = (64, 4096, 9000, 3)
        state = {n: {"exp_avg": torch.randn(size)} for n, size in enumerate(sizes)}
        return checkpoint.save(tmp_path, step, {"a": torch.randn(5000)}, {"state": state}, {})

    most = max(path.stat().st_size for path in save(1).iterdir())
    for room in range(100, most, 311):
        with little_room(room):
            error = error_of(lambda: save(2))
        assert error is not None and _machine_failed(error), (room, error)
        assert [path.name for path in tmp_path.iterdir()] == ["step-000000001"]


@pytest.mark.parametrize("write", ["safetensors", "numpy", "text"])
def test_a_full_disk_is_known_by_whatever_met_it(tmp_path: Path, write: str) -> None:
    from safetensors.torch import save_file

    tensor = torch.zeros(10_000)
    writers = {
        "safetensors": lambda path: save_file({"a": tensor}, path),
        "numpy": lambda path: np.save(path, tensor.numpy()),
        "text": lambda path: path.write_text("a" * 40_000),
    }
    with little_room(5000):
        error = error_of(lambda: writers[write](tmp_path / "file.npy"))
    assert error is not None and _machine_failed(error)


class TestHeartbeat:
    def test_patience_is_written_at_once_and_taken_back_at_once(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from nasd.worker.training import progress

        monkeypatch.setattr(progress, "_age_of_parent", lambda: 7.0)
        monkeypatch.setattr(
            progress, "time", SimpleNamespace(monotonic=lambda: 100.0, time=time.time)
        )
        path = tmp_path / "heartbeat"
        pulse = Pulse(path, first=True, leave=None)

        def said() -> tuple[str, int, float]:
            beat = read(Heartbeat, path)
            return beat.doing, beat.step, beat.patience

        pulse("training", 1, 9)
        assert said() == ("training", 1, 0)
        pulse("training", 2, 9)  # too soon to be worth a write
        assert said() == ("training", 1, 0)
        pulse("training", 3, 9, patience=60)
        assert said() == ("training", 3, 60)
        pulse("training", 4, 9, patience=60)
        assert said() == ("training", 4, 60)
        pulse("training", 5, 9)
        assert said() == ("training", 5, 0)
        pulse("evaluating", 6, 9)
        assert said() == ("evaluating", 6, 0)

    def test_only_the_first_rank_speaks(self, tmp_path: Path) -> None:
        Pulse(tmp_path / "heartbeat", first=False, leave=None)("training")
        assert not (tmp_path / "heartbeat").exists()

    def test_preparing_asks_for_patience_and_gives_it_back_and_leaves_all_durable(
        self, shop: Workshop, tmp_path: Path, alone: Ranks, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        beats: list[tuple[str, float]] = []

        def progress(doing: str, step: int = 0, steps: int = 0, *, patience: float = 0.0) -> None:
            beats.append((doing, patience))

        synced: set[str] = set()
        sync = os.fsync

        def fsync(descriptor: int) -> None:
            synced.add(os.readlink(f"/proc/self/fd/{descriptor}"))
            sync(descriptor)

        monkeypatch.setattr(stage_module, "Pulse", lambda *arguments: progress)
        monkeypatch.setattr(os, "fsync", fsync)
        folder = AttemptFolder(tmp_path / "attempt")
        folder.path.mkdir()
        spec = shop.spec(None, cache=str(tmp_path / "cache"))
        outcome = run_stage(spec, folder, alone, Never())  # type: ignore[arg-type]
        assert outcome.verdict == "succeeded"
        assert beats[:2] == [("starting", 0.0), ("downloading", DOWNLOAD)]
        for doing in ("hashing", "tokenising"):
            assert (doing, 0.0) in beats
        asked = [number for number, (_, patience) in enumerate(beats) if patience]
        back = [number for number, (_, patience) in enumerate(beats) if not patience]
        in_caches = [n for n in asked if beats[n][0] == "packing"]
        assert in_caches
        assert all(any(later > number for later in back) for number in in_caches)
        assert (folder.result / "tokenizer.json").exists()
        assert {str(path) for path in folder.result.iterdir()} <= synced
        assert str(folder.result) in synced

    def test_a_stage_asks_for_patience_before_its_first_step_and_its_checkpoints(
        self, shop: Workshop, tmp_path: Path, alone: Ranks
    ) -> None:
        beats: list[tuple[str, int, bool]] = []

        def progress(doing: str, step: int = 0, steps: int = 0, *, patience: float = 0.0) -> None:
            beats.append((doing, step, patience > 0))

        fresh = torch.Generator().manual_seed(1)
        model = phenotype.load_for_answering(shop.seed_weights, fresh, 0.0)
        task = QaTask.load(model, Path(shop.prepared.qa_cache))
        short = stage(CONFIG, "finetune", epochs=2 / 72, evaluations=1)
        train(
            task, short, alone, run_of(tmp_path, Notes(), progress=progress, checkpoint_seconds=0)
        )
        evaluating = [beat for beat in beats if beat[0] == "evaluating"]
        assert len(evaluating) == 9
        assert [beat for beat in beats if beat[0] != "evaluating"] == [
            ("loading", 0, True),
            ("training", 0, True),
            ("training", 1, False),
            ("saving", 1, True),
            ("training", 1, False),
            ("training", 2, False),
        ]


def test_a_leashed_process_offers_itself_to_the_out_of_memory_killer() -> None:
    command = ["-m", "nasd.contract.leash", str(os.getpid()), "cat", "/proc/self/oom_score_adj"]
    ended = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == leash._OOM_SCORE


def calls(tree: ast.AST, name: str) -> list[ast.Call]:
    """Every call of something.name, where something is torch or np."""
    return [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == name
    ]


@pytest.mark.parametrize("path", sorted(Path(nasd.worker.__path__[0]).rglob("*.py")), ids=str)
def test_no_file_that_a_worker_loads_can_run_code(path: Path) -> None:
    tree = ast.parse(path.read_text())
    for call in calls(tree, "torch.load"):
        said = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        assert said.get("weights_only") == "True", path
    for call in calls(tree, "np.load"):
        assert "allow_pickle" not in {keyword.arg for keyword in call.keywords}, path
    for node in ast.walk(tree):
        names = {alias.name for alias in node.names} if isinstance(node, ast.Import) else set()
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            of_pickle = node.module == "pickle"
            if of_pickle:
                assert {alias.name for alias in node.names} == {"UnpicklingError"}, path
            names = set() if of_pickle else {node.module}
        assert not {name.split(".")[0] for name in names} & {
            "pickle", "joblib", "dill", "cloudpickle", "marshal", "shelve",
        }  # fmt: skip
        if isinstance(node, ast.keyword) and node.arg == "trust_remote_code":
            assert ast.unparse(node.value) == "False", path
