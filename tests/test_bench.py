"""bin/bench training: what it counts, that both sides do the same work, and that it runs."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from nasd.contract.errors import NasdError
from nasd.contract.genotype import Genotype
from nasd.contract.protocol import AttemptFolder, Heartbeat, read
from nasd.launch.local import carrying
from nasd.worker.model import phenotype
from nasd.worker.model.inherit import new_parameters
from nasd.worker.model.phenotype import MaskedLM, QuestionAnswering
from nasd.worker.tasks.corpus import MlmCorpus
from nasd.worker.tasks.mlm import MlmTask
from nasd.worker.tasks.passages import QaFeatures
from nasd.worker.tasks.qa import QaTask
from nasd.worker.tasks.task import Task
from nasd.worker.training.train import freeze
from tests.bench import flops, memory, startup, training
from tests.bench.cases import CASES, MASK_SHARE, ROWS, SHAPES, SQUAD_LENGTHS, Job, Shape, Side
from tests.bench.pace import Finished, Segment
from tests.bench.training import Figure, Measured, compare, flops_a_token

BASE, TINY = SHAPES["base"], SHAPES["tiny"]
STEPS = 3

# --- the FLOP limit -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("case", "sparse", "known", "mflop"),
    [
        ("pretrain_1", False, False, 427),
        ("pretrain_1", True, False, 271),
        ("ffn", True, False, 134),
        ("ffn", True, True, 80),
        # 71.2 M products forward; backward the head's 24.0, two blocks' 17.3 and the FFN's 7.1
        ("ffn", False, False, 239),
        # 45.1 M forward; backward the weights of the head's first layer, the inputs of its second
        ("head", True, False, 97),
        # 45.1 M forward; backward the head's 3.6 and the last block's 3.1, without its input's
        ("last_block", True, False, 104),
    ],
)
def test_operations_a_token_are_those_counted_by_hand(
    case: str, sparse: bool, known: bool, mflop: int
) -> None:
    """In MFLOP, for DistilBERT at 512 tokens with 15 % of them masked."""
    found = flops.mlm(BASE, CASES[case].new, sparse, known, share=MASK_SHARE) / 1e6
    assert found == pytest.approx(mflop, abs=0.7)


def test_logits_of_the_masks_alone_are_the_first_saving() -> None:
    work = flops.products(BASE, 512, "mlm", head_share=MASK_SHARE, last=1.0)
    assert flops.a_token(work, flops.beginning([""])) / 1e6 == pytest.approx(305, abs=0.5)


def test_padding_costs_what_its_tokens_would() -> None:
    lengths = (10, 20, 30, 40)
    most = flops.qa(BASE, [(1.0, 40)], fmean(lengths), trains=True)
    none = flops.qa(BASE, flops.exact(lengths), fmean(lengths), trains=True)
    assert 40 / 25 < most / none < 1.1 * 40 / 25  # of attention, a little more than linear
    # The longest of two draws: 10 in 1 of 16 cases, 20 in 3, 30 in 5, 40 in 7.
    expected = [(1 / 16, 10), (3 / 16, 20), (5 / 16, 30), (7 / 16, 40)]
    np.testing.assert_allclose(flops.longest(lengths, 2), expected)
    assert none < flops.qa(BASE, flops.longest(lengths, 2), fmean(lengths), trains=True) < most
    evaluated = flops.qa(BASE, flops.exact(lengths), fmean(lengths), trains=False)
    assert none == pytest.approx(3 * evaluated)


def test_the_lengths_are_squads() -> None:
    assert fmean(SQUAD_LENGTHS) == pytest.approx(177, abs=1)
    assert list(SQUAD_LENGTHS) == sorted(SQUAD_LENGTHS)


# --- the figures ----------------------------------------------------------------------------


def test_a_ratio_is_the_median_of_the_rounds_ratios() -> None:
    row = next(row for row in ROWS if row.case == "ffn" and row.asked == 2.2)
    slow = [1.0, 1.0, 4.0]  # the machine's pace in each of three rounds
    measured = {
        row.ours: Measured([Segment(1.0 * pace, 600.0) for pace in slow], peak=10),
        row.theirs: Measured([Segment(2.0 * pace, 600.0) for pace in slow], peak=20),
    }
    result = compare(row, BASE, measured, gpu=False, rate=None)
    assert result.ratio == Figure(2.0, 0.0)
    assert result.ours.median == 600.0
    assert result.ours.spread > 0
    assert result.met is False
    assert result.limit == pytest.approx(239 / 134, rel=0.01)
    gpu = compare(row, BASE, measured, gpu=True, rate=1e12)
    assert gpu.asked is None
    assert gpu.mfu is None  # of bfloat16's rate, in bfloat16 alone


def test_matrix_products_a_second_are_told_as_a_share_of_the_measured_rate() -> None:
    row = next(row for row in ROWS if row.case == "pretrain_1" and row.asked_gpu is not None)
    measured = {side: Measured([Segment(1.0, 1e6)]) for side in (row.ours, row.theirs)}
    result = compare(row, BASE, measured, gpu=True, rate=1e15)
    assert result.mfu == pytest.approx(1e6 * flops_a_token("pretrain_1", BASE, row.ours) / 1e15)
    console = Console(width=200, record=True)
    console.print(training.table([result], "one GPU"))
    assert "27 % (asked 45 %)" in console.export_text()


def test_every_demand_has_a_row() -> None:
    asked = {(row.case, row.ours.precision, row.theirs.padded): row.asked for row in ROWS}
    assert asked["pretrain_1", "float32", "most"] == 1.7
    assert {row.asked for row in ROWS if row.case == "ffn"} == {2.2, 2.8, 4.5, None}
    assert asked["finetune", "float32", "most"] == 2.9
    assert asked["finetune", "float32", "longest"] == 1.5
    assert asked["overhead", "float32", "most"] == 0.97
    against_trainer = [row for row in ROWS if row.asked and row.theirs.who == "trainer"]
    assert {row.theirs.precision for row in against_trainer} == {"float32"}


# --- both sides do the same work ------------------------------------------------------------


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What both sides start from, of a tiny model without dropout."""
    from tests.bench import material

    folder = tmp_path_factory.mktemp("material")
    material.make(folder, TINY, STEPS, dropout=0.0)
    return folder


def task_of(folder: Path, case: str) -> Task:
    if CASES[case].task == "qa":
        features = QaFeatures.load(folder / "qa" / "train")
        return QaTask(phenotype.load(QuestionAnswering, folder / "weights-qa"), features, features)
    model = phenotype.load(MaskedLM, folder / "weights-mlm")
    names = {name for name, _ in model.named_parameters() if name.startswith(CASES[case].new)}
    return MlmTask(model, MlmCorpus.load(folder / "mlm"), MASK_SHARE, names)


def norms(model: nn.Module) -> list[float]:
    """Of every gradient there is; the two sides name and order the parameters differently."""
    found = [p.grad.norm() for p in model.parameters() if p.requires_grad and p.grad is not None]
    return sorted(torch.stack(found).tolist(), reverse=True)


@pytest.mark.parametrize("case", ["pretrain_1", "ffn", "last_block", "head", "finetune"])
def test_both_sides_have_the_same_loss_and_gradients_on_the_same_batch(
    case: str, material: Path
) -> None:
    from tests.bench import trainer

    task = task_of(material, case)
    freeze(task)
    theirs = trainer.model(material, CASES[case])
    # Of questions one, without padding: theirs takes its softmax over that, too.
    examples = np.arange(4 if CASES[case].task == "mlm" else 1)
    batch = task.batch(examples, seed=1)
    loss = task.loss(task.outputs(task.model, batch), batch) / len(examples)
    loss.backward()  # type: ignore[no-untyped-call]
    wanted: Tensor = theirs(**trainer.dense(batch)).loss
    wanted.backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(loss, wanted, rtol=1e-5, atol=0.0)
    trained = [
        sum(p.numel() for p in model.parameters() if p.requires_grad)
        for model in (task.model, theirs)
    ]
    assert trained[0] == trained[1] > 0
    np.testing.assert_allclose(norms(task.model), norms(theirs), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("case", ["ffn", "last_block"])
def test_what_is_new_in_the_lineage_is_what_the_case_says(case: str, material: Path) -> None:
    from tests.bench import ours

    model = phenotype.load(MaskedLM, material / "weights-mlm")
    genotype = Genotype.from_json(model.architecture.to_json())
    names = {name for name, _ in model.named_parameters() if name.startswith(CASES[case].new)}
    assert new_parameters(model, ours.lineage_of(case, genotype)) == names


def job(folder: Path, case: str, side: Side, shape: Shape = TINY) -> Job:
    return Job(folder, shape, case, side, "cpu", 1, warmup=1, steps=STEPS, log_steps=1)


def test_the_spec_is_one_that_a_worker_reads(material: Path, tmp_path: Path) -> None:
    from nasd.contract.protocol import Spec, read, write
    from tests.bench import ours

    for case in CASES:
        spec = ours.spec_of(
            job(material, case, Side("nasd", cached=case == "ffn")), AttemptFolder(tmp_path)
        )
        write(spec, tmp_path / "spec.json")
        assert read(Spec, tmp_path / "spec.json") == spec


def test_tokens_of_a_question_batch_are_those_without_padding(material: Path) -> None:
    from tests.bench import ours

    one = job(material, "finetune", Side("nasd"))
    tokens = ours.tokens_by_step(one, ours.stage_of(one))
    lengths = QaFeatures.load(material / "qa" / "train").lengths
    epoch = len(lengths) // TINY.qa_batch
    assert sum(tokens(step) for step in range(epoch)) == lengths.sum()


class Pace:
    """A pacer that only counts, and ends after so many steps."""

    def __init__(self, steps: int = STEPS) -> None:
        self.steps, self.tokens, self.finished = steps, list[float](), False

    def begin(self) -> None: ...

    def step(self, tokens: float) -> None:
        self.tokens.append(tokens)
        if len(self.tokens) == self.steps:
            self.finished = True
            raise Finished


@pytest.mark.parametrize(
    ("case", "cached", "tokens"),
    [
        ("pretrain_1", False, TINY.batch * TINY.tokens),
        ("ffn", True, TINY.batch * TINY.tokens),
        ("head", False, TINY.batch * TINY.tokens),
        ("evaluate", False, None),
    ],
)
def test_our_side_is_a_worker_s_attempt_that_waits_between_steps(
    case: str,
    cached: bool,
    tokens: float | None,
    material: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from tests.bench import ours

    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK"):
        monkeypatch.setenv(name, "")
    pace: Any = Pace(2)
    one = job(material, case, Side("nasd", cached=cached))
    ours.run(one, pace, torch.device("cpu"))
    if tokens is None:  # whole passes over the test part
        tokens = float(QaFeatures.load(material / "qa" / "test").lengths.sum())
    assert pace.tokens == [tokens, tokens]
    folder = AttemptFolder(material / f"attempt-{case}-{one.side}")
    beat = json.loads(folder.heartbeat.read_text())
    assert beat["doing"] == ("decoding" if case == "evaluate" else "training")
    assert ("computed and cached" in capsys.readouterr().out) is cached
    if case != "evaluate":
        assert folder.metrics.read_text().count('"train"') == 1  # it stopped before the second


def test_the_bare_step_trains_the_attempt_s_own_model_between_its_steps(
    material: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.bench import ours

    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK"):
        monkeypatch.setenv(name, "")
    made: dict[str, Any] = {}
    bare_steps = ours.bare_steps

    def remember(one: Job, trained: Any, device: Any) -> Any:
        made["model"], made["steps"] = trained[0], bare_steps(one, trained, device)
        return made["steps"]

    class Host(Pace):
        def step(self, tokens: float) -> None:
            before = {n: p.detach().clone() for n, p in made["model"].named_parameters()}
            assert made["steps"](3) == 3 * TINY.batch * TINY.tokens
            assert all((before[n] != p).any() for n, p in made["model"].named_parameters())
            super().step(tokens)

    monkeypatch.setattr(ours, "bare_steps", remember)
    pace: Any = Host(2)
    one = replace(job(material, "overhead", Side("nasd")), guest=Side("bare"))
    ours.run(one, pace, torch.device("cpu"))
    assert pace.tokens == [TINY.batch * TINY.tokens] * 2


def test_the_trainer_pads_to_the_most_tokens_or_to_the_longest_of_a_batch(material: Path) -> None:
    from tests.bench import trainer

    longest = int(QaFeatures.load(material / "qa" / "train").lengths[:2].max())
    for padded, width in (("most", TINY.qa_tokens), ("longest", longest)):
        rows, collate = trainer.data_of(material, CASES["finetune"], TINY, padded)
        batch = collate([rows[0], rows[1]])
        assert batch["input_ids"].shape == (2, width)
        assert batch["attention_mask"].sum() < 2 * width


def test_the_trainer_trains_the_examples_that_we_train(material: Path) -> None:
    from tests.bench import trainer

    rows, _ = trainer.data_of(material, CASES["pretrain_1"], TINY, "most")
    corpus = MlmCorpus.load(material / "mlm")
    np.testing.assert_array_equal(np.array(rows["input_ids"]), corpus.sequences(corpus.train))


@pytest.mark.parametrize("case", ["ffn", "finetune", "evaluate"])
def test_the_trainer_waits_between_steps(case: str, material: Path) -> None:
    pytest.importorskip("accelerate", reason="the Trainer needs it: bin/setup bench")
    from tests.bench import trainer

    pace: Any = Pace(2)
    with pytest.raises(Finished):
        trainer.run(job(material, case, Side("trainer")), pace, torch.device("cpu"))
    tokens = float(TINY.batch * TINY.tokens)
    if case != "ffn":
        lengths = QaFeatures.load(
            material / "qa" / ("train" if case == "finetune" else "test")
        ).lengths
        tokens = lengths.sum()
        if case == "finetune":
            tokens *= TINY.qa_batch / len(lengths)  # the mean of a batch's
    assert pace.tokens == pytest.approx([tokens] * 2)


def test_the_trainer_itself_computes_our_loss(material: Path) -> None:
    pytest.importorskip("accelerate", reason="the Trainer needs it: bin/setup bench")
    from tests.bench import trainer

    task = task_of(material, "ffn")
    batch = task.batch(np.arange(4), seed=1)
    made, _ = trainer.build(job(material, "ffn", Side("trainer")), torch.device("cpu"))
    found = made.compute_loss(made.model, trainer.dense(batch), num_items_in_batch=4)
    torch.testing.assert_close(
        found, task.loss(task.outputs(task.model, batch), batch) / 4, rtol=1e-5, atol=0.0
    )


# --- the command ----------------------------------------------------------------------------


def run(tmp_path: Path, *options: str) -> list[dict[str, Any]]:
    figures = tmp_path / "figures.json"
    training.main(["--quick", "--threads", "1", "--json", str(figures), *options])
    found: dict[str, Any] = json.loads(figures.read_text())
    assert found["device"] == "cpu"
    assert found["torch"] == torch.__version__
    for row in found["rows"]:
        assert row["ratio"]["median"] > 0
        assert min(row["peak_bytes"].values()) > 1e6
    rows: list[dict[str, Any]] = found["rows"]
    return rows


@pytest.mark.heavy
def test_a_quick_run_makes_a_table_and_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (row,) = run(tmp_path, "--rows", "overhead", "--precision", "float32")
    assert (row["case"], row["theirs"]["who"]) == ("overhead", "bare")
    shown = capsys.readouterr().out
    assert "bare float32" in shown and "1 threads, torch" in shown


@pytest.mark.heavy
def test_a_quick_run_puts_us_beside_the_trainer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("accelerate", reason="the Trainer needs it: bin/setup bench")
    rows = run(tmp_path, "--rows", "ffn", "--precision", "float32")
    assert [row["ours"]["cached"] for row in rows] == [False, True]
    assert rows[0]["theirs"] == rows[1]["theirs"]  # measured once
    assert capsys.readouterr().out.count("trainer float32") == 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--device", "gpu"], "take cpu, cuda or cuda:N"),
        (["--tokens", "600"], "take 8 to 512"),
        (["--json", "/nowhere/at/all.json"], "/nowhere/at is no folder"),
        (["--steps", "0"], "not at least 1"),
        (["--rows", "sideways"], "invalid choice"),
    ],
)
def test_wrong_options_are_told_in_a_sentence(
    options: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        training.main(options)
    assert words in capsys.readouterr().err


def test_a_missing_gpu_is_told_in_a_sentence() -> None:
    if torch.cuda.is_available():
        pytest.skip("asks what happens without a GPU, and this machine has one")
    with pytest.raises(SystemExit, match=r"--device cuda: .* finds no such GPU here"):
        training.main(["--quick", "--rows", "overhead", "--device", "cuda"])


# --- bin/bench startup ----------------------------------------------------------------------


def test_a_launched_worker_is_timed_to_its_first_step_and_leaves(material: Path) -> None:
    seconds = startup.first_step("pretrain_1", TINY, material, 1, threads=1)
    assert 0 < seconds < startup.PATIENCE_SECONDS
    home = AttemptFolder(material / "attempt-pretrain_1-1")
    assert read(Heartbeat, home.heartbeat).step > 0
    assert not list(carrying(str(home.path)))


def test_a_worker_that_does_not_start_is_an_error_with_its_last_words(
    material: Path, tmp_path: Path
) -> None:
    damaged = shutil.copytree(material, tmp_path / "material")
    (damaged / "weights-qa" / "model.safetensors").write_bytes(b"")
    with pytest.raises(NasdError, match=r"finetune does not come to a step: .+"):
        startup.first_step("finetune", TINY, damaged, 1, threads=1)


# --- bin/bench memory -----------------------------------------------------------------------


@pytest.mark.heavy
def test_workers_with_few_and_many_programs_do_the_same_steps(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = tmp_path / "figures.json"
    quick = ["--shape", "tiny", "--precision", "float32", "--repeats", "2", "--steps", "2"]
    memory.main([*quick, "--json", str(figures)])
    found = json.loads(figures.read_text())
    assert all(len(found["seconds_a_step"][name]) == 2 for name in memory.KEPT)
    assert min(found["peak_bytes"].values()) > 1e8
    assert "ratio" in capsys.readouterr().out
