"""What training leaves out changes nothing: sparse steps are the dense ones."""

import random
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from nasd.contract.config import Mutation, SearchSpace
from nasd.contract.genotype import Block as BlockGenes
from nasd.contract.genotype import BlockLineage, FeedForward, Genotype, Lineage
from nasd.contract.schedule import Schedule
from nasd.contract.squad import Question
from nasd.contract.streams import stream_seed
from nasd.search.variation.breeding import mutate
from nasd.worker.model import phenotype
from nasd.worker.model.encoder import Block
from nasd.worker.model.inherit import inherit, new_parameters
from nasd.worker.model.phenotype import MaskedLM, QuestionAnswering
from nasd.worker.tasks.corpus import MlmCorpus, SpecialTokens
from nasd.worker.tasks.mlm import MlmTask
from nasd.worker.tasks.passages import QaFeatures
from nasd.worker.tasks.qa import QaTask
from nasd.worker.tasks.task import Ranks, Task, autocast
from nasd.worker.training import checkpoint
from nasd.worker.training.progress import quiet
from nasd.worker.training.train import Order, train
from tests.test_phenotype import ARCH, BLOCKS, built, generator
from tests.training import Notes, demo_config, run_of, stage

VOCABULARY, LENGTH, MASKS = 31, 11, 3
STILL = ARCH.with_dropout(0.0)
PHASE_0 = stage(demo_config(), "pretrain_0", epochs=1, batch=4, learning_rate=1e-4, evaluations=1)


def masked_batch(examples: int, seed: int) -> dict[str, Tensor]:
    random = generator(seed)
    scores = torch.rand((examples, LENGTH - 2), generator=random)
    return {
        "input_ids": torch.randint(1, VOCABULARY, (examples, LENGTH), generator=random),
        "positions": scores.topk(MASKS).indices + 1,
        "targets": torch.randint(VOCABULARY, (examples, MASKS), generator=random),
    }


def dense_loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Logits of all tokens, then the loss on the masked ones, as anyone would write it."""
    logits = model(batch["input_ids"])
    labels = torch.full(batch["input_ids"].shape, -100)
    labels.scatter_(1, batch["positions"], batch["targets"])
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten())


def sparse_loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    logits = model(batch["input_ids"], positions=batch["positions"])
    return F.cross_entropy(logits.flatten(0, 1), batch["targets"].flatten())


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def assert_equal_gradients(
    got: dict[str, Tensor], wanted: dict[str, Tensor], terms: float = 0.0
) -> None:
    """To 1e-5 of each, and to 1e-6 of all together or of the `terms` they are summed of: some are
    nothing but rounding (a key's bias has no effect on the attention, the last norm's none on where
    an answer begins)."""
    assert got.keys() == wanted.keys()
    whole = max(terms, float(torch.stack([one.norm() for one in wanted.values()]).norm()))
    for name, tensor in wanted.items():
        assert (got[name] - tensor).norm() <= 1e-5 * tensor.norm() + 1e-6 * whole, name


# Derandomised: once in many thousands, rounding takes a relu to the other side of its kink.
@given(st.lists(BLOCKS, min_size=1, max_size=4), st.integers(1, 3), st.integers(0, 99))
@settings(max_examples=60, derandomize=True)
def test_a_sparse_step_is_the_dense_one(
    blocks: list[dict[str, Any]], examples: int, seed: int
) -> None:
    model = built(MaskedLM, seed, STILL.with_blocks(blocks)).train()
    batch = masked_batch(examples, seed)
    dense, sparse = dense_loss(model, batch), sparse_loss(model, batch)
    torch.testing.assert_close(sparse, dense, rtol=1e-5, atol=0.0)
    wanted = gradients(model, dense)
    assert wanted.keys() == {name for name, _ in model.named_parameters()}
    assert_equal_gradients(gradients(model, sparse), wanted)


def test_the_last_block_and_the_head_compute_nothing_but_the_masked_positions() -> None:
    model = built(MaskedLM, arch=STILL)
    seen: dict[str, int] = {}

    def note(name: str) -> Any:
        def hook(module: nn.Module, given: tuple[Tensor, ...], result: Tensor) -> None:
            seen[name] = result.shape[1]

        return hook

    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.LayerNorm):
            module.register_forward_hook(note(name))
    sparse_loss(model, masked_batch(2, 0))
    last = f"encoder.blocks.{len(model.encoder.blocks) - 1}."
    assert isinstance(model.get_submodule(last[:-1]), Block)
    everywhere = {f"{last}attention.k", f"{last}attention.v"}
    for name, tokens in seen.items():
        masked_only = name.startswith((last, "head.")) and name not in everywhere
        assert tokens == (MASKS if masked_only else LENGTH), name


# --- phase 0: what does not train costs nothing ---------------------------------------------


def corpus(sequences: int = 20) -> MlmCorpus:
    pieces = np.random.default_rng(0).integers(5, VOCABULARY, (sequences + 4, LENGTH - 2))
    special = SpecialTokens(2, 3, 4, 0, VOCABULARY, (0, 1, 2, 3, 4))
    indices = np.arange(len(pieces))
    return MlmCorpus(pieces.astype(np.uint16), indices[4:], indices[:4], special)


def names_below(model: nn.Module, modules: list[str]) -> set[str]:
    below = tuple(f"{module}." for module in modules)
    return {name for name, _ in model.named_parameters() if name.startswith(below)}


FOUR = STILL.with_blocks([*ARCH.to_json()["blocks"]] * 2)
NEW_MODULES = [
    ["encoder.blocks.0"],
    ["encoder.blocks.1.ffns.1"],
    ["encoder.blocks.2.attention", "encoder.blocks.3.ffns.0"],
    ["encoder.blocks.3.ffns.1", "encoder.blocks.3.ffn_norms.1"],
    ["head"],
]
LAYERS = [  # from below
    "encoder.embeddings",
    *(
        f"encoder.blocks.{index}.{part}"
        for index, block in enumerate(FOUR.blocks)
        for part in ("attention", *(f"ffns.{number}" for number in range(len(block.ffns))))
    ),
]


@pytest.mark.parametrize("modules", NEW_MODULES, ids=str)
def test_training_a_part_is_dense_training_of_which_only_the_part_is_applied(
    modules: list[str], tmp_path: Path, alone: Ranks
) -> None:
    """The reference takes every gradient there is, of all logits, and moves a part by it."""
    start = built(MaskedLM, arch=FOUR)
    ours, theirs = deepcopy(start), deepcopy(start).train()
    names = names_below(start, modules)
    task = MlmTask(ours, corpus(), 0.15, names)
    notes = Notes()
    train(task, PHASE_0, alone, run_of(tmp_path, notes))

    schedule = Schedule.of(PHASE_0, task.train_size)
    order = Order(schedule, 5, PHASE_0.name)
    moved = {name: p for name, p in theirs.named_parameters() if name in names}
    decay = {True: PHASE_0.weight_decay, False: 0.0}
    optimizer = torch.optim.AdamW(
        [{"params": [p], "weight_decay": decay[p.ndim > 1]} for p in moved.values()]
    )
    losses = []
    for step in range(schedule.steps):
        for group in optimizer.param_groups:
            group["lr"] = schedule.learning_rate(step)
        batch = task.batch(order.batch(step), stream_seed(5, step, f"batch/{PHASE_0.name}"))
        theirs.zero_grad()
        loss = dense_loss(theirs, batch)
        loss.backward()
        assert all(p.grad is not None for p in theirs.parameters())
        nn.utils.clip_grad_norm_(list(moved.values()), PHASE_0.max_grad_norm)
        optimizer.step()
        losses.append(float(loss.detach()))

    assert len(losses) == 5
    got = [line["loss"] for line in notes.lines if line["kind"] == "train"]
    np.testing.assert_allclose(got, losses, rtol=1e-5)
    before, after, wanted = start.state_dict(), ours.state_dict(), theirs.state_dict()
    for name, tensor in before.items():
        if name not in names:
            assert torch.equal(after[name], tensor), name
        elif not name.endswith("attention.k.bias"):  # its gradient is but rounding
            way = wanted[name] - tensor
            assert way.norm() > 0, name
            assert (after[name] - wanted[name]).norm() <= 1e-2 * way.norm(), name  # AdamW magnifies


class Watch:
    """What a model's forward passes in training did, module by module."""

    def __init__(self, model: MaskedLM) -> None:
        self.graph: dict[str, bool] = {}  # whether a result has one
        self.training: dict[str, bool] = {}
        self.kept: dict[str, int] = {}  # how many tensors autograd keeps when the module is done
        self._kept = 0
        model.register_forward_pre_hook(self._begin)
        for name, module in model.named_modules():
            module.register_forward_hook(self._note(name))

    def _begin(self, module: nn.Module, given: tuple[Tensor, ...]) -> None:
        self._kept = 0

    def _note(self, name: str) -> Any:
        def hook(module: nn.Module, given: tuple[Tensor, ...], result: Tensor) -> None:
            if torch.is_grad_enabled():  # not in evaluations
                self.graph[name] = result.requires_grad
                self.training[name] = module.training
                self.kept[name] = self._kept

        return hook

    @contextmanager
    def counting(self) -> Iterator[None]:
        def pack(tensor: Tensor) -> Tensor:
            self._kept += 1
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            yield


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("modules", "layers", "first"),
    [
        (NEW_MODULES[0], 1, "encoder.blocks.0.attention.q"),
        (NEW_MODULES[1], 5, "encoder.blocks.1.ffns.1.linears.0"),
        (NEW_MODULES[2], 6, "encoder.blocks.2.attention.q"),
        (NEW_MODULES[3], 10, "encoder.blocks.3.ffns.1.linears.0"),
        (NEW_MODULES[4], 11, "head.transform"),
    ],
    ids=str,
)
def test_below_the_lowest_module_that_trains_there_is_no_graph_and_no_dropout(
    modules: list[str], layers: int, first: str, precision: str, tmp_path: Path, alone: Ranks
) -> None:
    model = built(MaskedLM, arch=FOUR.with_dropout(0.1))
    below = LAYERS[:layers]
    norms = [
        name.replace("attention", "attention_norm").replace("ffns", "ffn_norms") for name in below
    ]
    watch = Watch(model)
    names = names_below(model, modules)
    short = PHASE_0.model_copy(update={"epochs": 0.4, "evaluations": 2})
    task = MlmTask(model, corpus(), 0.15, names)
    with watch.counting():
        train(task, short, alone, run_of(tmp_path, Notes(), precision=precision))
    seen = list(watch.graph)  # in the order in which the modules were done
    assert first in seen
    for name in seen[: seen.index(first)]:
        assert not watch.graph[name], name
    assert watch.graph[first]
    assert watch.graph["head"]
    for name, training in watch.training.items():
        prefix = any(name == layer or name.startswith(f"{layer}.") for layer in (*below, *norms))
        assert training is not prefix, name
    assert watch.kept[below[-1]] == 0 < watch.kept["head"]


def test_the_optimizer_knows_nothing_but_what_trains(tmp_path: Path, alone: Ranks) -> None:
    model = built(MaskedLM, arch=FOUR)
    names = names_below(model, NEW_MODULES[1])
    task = MlmTask(model, corpus(), 0.15, names)
    train(task, PHASE_0, alone, run_of(tmp_path, Notes(), checkpoint_seconds=0.0))
    found = checkpoint.newest([tmp_path / "checkpoints"])
    assert found is not None
    assert found.model.keys() == names
    assert len(found.optimizer["state"]) == len(names)


# --- fine-tuning without padding ------------------------------------------------------------


@given(st.lists(BLOCKS, min_size=1, max_size=3), st.integers(1, 6), st.integers(0, 99))
@settings(max_examples=30, derandomize=True)
def test_packed_questions_give_the_padded_ones_loss_and_gradients(
    blocks: list[dict[str, Any]], examples: int, seed: int
) -> None:
    model = built(QuestionAnswering, seed, STILL.with_blocks(blocks)).train()
    indices = np.random.default_rng(seed).permutation(6)[:examples]
    losses, found = [], []
    for packs in (False, True):
        task = QaTask(model, features(), features(), packs)
        batch = task.batch(indices, 0)
        assert ("places" in batch) is packs
        loss = task.loss(task.outputs(model, batch), batch)
        losses.append(loss)
        found.append(gradients(model, loss))
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-5, atol=0.0)
    assert_equal_gradients(found[1], found[0], terms=1.0)


def test_nothing_is_computed_for_padding_where_questions_are_packed() -> None:
    model = built(QuestionAnswering, arch=STILL)
    tokens = set()
    for module in model.encoder.blocks.modules():
        if isinstance(module, nn.Linear | nn.LayerNorm):
            module.register_forward_hook(
                lambda _, given, result: tokens.add(tuple(result.shape[:-1]))
            )
    task = QaTask(model, features(), features(), packs=True)
    batch = task.batch(np.arange(3), 0)
    task.loss(task.outputs(model, batch), batch)
    assert tokens == {(1, 11 + 8 + 9)}


# --- every candidate trains in every stage --------------------------------------------------

SPACE = SearchSpace(blocks=(1, 4), heads=(1, 3, 12), ffns=3, layers=(2, 3), sizes=(1, 20))
PARENT = Genotype.from_json({"blocks": ARCH.to_json()["blocks"]})
OFTEN = Mutation(encoder=0.5, encoder_add=0.5, ffn=0.7, ffn_add=0.5, attention=0.5)


def extremes() -> Iterator[tuple[Genotype, Lineage]]:
    """The smallest and the largest of the space, wholly new."""
    for blocks, ffns, layers, size in ((1, 1, 2, 1), (4, 3, 3, 20)):
        for heads, activation in ((1, "relu"), (12, "gelu")):
            ffn = FeedForward(activation, (size,) * (layers - 1))
            genotype = Genotype((BlockGenes(heads, (ffn,) * ffns),) * blocks)
            new = BlockLineage.of(None, True, ("added",) * ffns)
            yield genotype, (new,) * blocks


@st.composite
def candidates(draw: st.DrawFn) -> tuple[Genotype, Lineage]:
    return mutate(PARENT, PARENT, SPACE, OFTEN, random.Random(draw(st.integers(0, 10**6))))


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parent")
    phenotype.save(built(MaskedLM), folder)
    return folder


def features() -> QaFeatures:
    lengths = np.array([11, 8, 9, 11, 7, 10])
    bounds = np.concatenate([[0], np.cumsum(lengths)])
    return QaFeatures(
        tokens=np.random.default_rng(0).integers(5, VOCABULARY, bounds[-1]),
        bounds=bounds,
        characters=np.zeros((bounds[-1], 2), dtype=np.int64),
        start=np.array([0, 4, 5, 6, 3, 2]),
        end=np.array([0, 6, 5, 7, 4, 2]),
        question=np.arange(6),
    )


QUESTIONS = [Question(str(n), "", "of no meaning", "which?", (("no", 3),)) for n in range(6)]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("trains", ["new", "all", "head", "qa", "packed"])
@given(candidate=st.one_of(st.sampled_from(list(extremes())), candidates()))
@settings(max_examples=15)
def test_every_candidate_trains_in_every_stage(
    trains: str, precision: str, parent: Path, alone: Ranks, candidate: tuple[Genotype, Lineage]
) -> None:
    genotype, lineage = candidate
    mlm = inherit(genotype, lineage, parent, generator(), dropout=0.1)
    notes = Notes()
    task: Task
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if trains in ("qa", "packed"):
            phenotype.save(mlm, folder / "mlm")
            qa = phenotype.load_for_answering(folder / "mlm", generator())
            task = QaTask(qa, features(), features(), trains == "packed")
            names = {n for n, _ in qa.named_parameters()}
        else:
            names = {
                "new": new_parameters(mlm, lineage),
                "all": {n for n, _ in mlm.named_parameters()},
                "head": names_below(mlm, ["head"]),
            }[trains]
            task = MlmTask(mlm, corpus(), 0.15, names)
        before = {name: p.detach().clone() for name, p in task.model.named_parameters()}
        two_steps = PHASE_0.model_copy(update={"epochs": 2 * 3 / task.train_size, "batch": 3})
        result = train(task, two_steps, alone, run_of(folder, notes, precision=precision))
        if isinstance(task, QaTask):  # what the evaluate stage does
            task.model.eval()
            with autocast(precision, alone.device):
                answers = task.predict(QUESTIONS, demo_config().data.qa, alone, 4, quiet)
            assert answers.keys() == {question.id for question in QUESTIONS}
    assert result.steps == (2 if names else 0)
    assert all(np.isfinite(line["loss"]) for line in notes.lines)
    moved = {n for n, p in task.model.named_parameters() if not torch.equal(p, before[n])}
    assert moved <= names  # not all of them: a relu may be never above zero here
    assert bool(moved) == bool(names)
    assert all(p.requires_grad == (n in names) for n, p in task.model.named_parameters())
