"""Exported models in ONNX Runtime, in float32 and in int8: what they give, what is refused."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nasd.contract.errors import NasdError
from nasd.worker import answer, export, int8, runtime
from nasd.worker.model import phenotype
from nasd.worker.model.phenotype import QuestionAnswering
from nasd.worker.tasks import registry
from nasd.worker.tasks.task import Ranks
from nasd.worker.training.progress import quiet
from tests.training import ANSWERING, Workshop, demo_config, make_workshop, stage

onnx = pytest.importorskip("onnx", reason="the extra onnx is not installed: bin/setup onnx")
pytest.importorskip("onnxruntime", reason="the extra onnx is not installed: bin/setup onnx")
pytest.importorskip("onnxscript", reason="the extra onnx is not installed: bin/setup onnx")


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return make_workshop(tmp_path_factory.mktemp("workshop"))


@pytest.fixture(
    scope="module", params=[(None, 0), (8, 0), (8, 30)], ids=["full", "factorised", "frequent"]
)
def home(shop: Workshop, request: pytest.FixtureRequest) -> Path:
    """An untrained model as a folder, with both files; its word embeddings in full, or a product of
    two matrices, with or without frequent words beside it."""
    rank, frequent = request.param
    seed_s = phenotype.load_architecture(shop.seed_weights)
    arch = replace(seed_s, rank=rank, frequent=frequent)
    model = phenotype.empty(QuestionAnswering, arch)
    phenotype.initialise(model, torch.Generator().manual_seed(3), 0.2)
    weights = shop.folder / f"model-{rank}-{frequent}"
    phenotype.save(model, weights)
    from nasd.worker.model import seed

    tokenizer = Path(seed.resolve("package:nasd/demo_seed", shop.folder))
    folder = shop.folder / f"home-{rank}-{frequent}"
    folder.mkdir()
    export.write(weights, tokenizer, folder, {"answering": ANSWERING})
    export.write_onnx(folder)
    int8.quantise(folder / runtime.FLOAT, folder / runtime.INT8)
    return folder


def padded(arch: Any, examples: int, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and a mask; each example a little shorter, and of three or more the last empty."""
    ids = torch.arange(examples * tokens).view(examples, tokens) % arch.vocab_size
    lengths = torch.tensor([max(1, tokens - 3 * one) for one in range(examples)])
    if examples > 2:
        lengths[-1] = 0
    return ids, (torch.arange(tokens) < lengths[:, None]).long()


@pytest.mark.parametrize(("examples", "tokens"), [(1, 1), (1, 2), (2, 1), (3, 40), (7, 96)])
def test_float32_gives_the_models_logits_for_padded_batches_of_any_length(
    home: Path, examples: int, tokens: int
):
    model = phenotype.load(QuestionAnswering, home).eval()
    shown = padded(model.architecture, examples, tokens)
    told = runtime.logits(runtime.session(home / runtime.FLOAT), *shown)
    with torch.no_grad():
        expected = model(*shown)
    assert list(told) == ["start_logits", "end_logits"]
    for one, other in zip(told.values(), expected, strict=True):
        assert (one - other).abs().max() <= 1e-4


def test_int8_is_near_and_holds_a_byte_for_each_entry_of_matrices_and_words(home: Path):
    model = phenotype.load(QuestionAnswering, home).eval()
    shown = padded(model.architecture, 1, 40)
    floats, bytes_ = (
        runtime.logits(runtime.session(home / name), *shown)
        for name in (runtime.FLOAT, runtime.INT8)
    )
    for name, one in floats.items():
        spread = one.std()
        assert 0 < (bytes_[name] - one).abs().max() < spread, name
    entries = sum(
        p.numel() for name, p in model.named_parameters() if p.ndim == 2 and "position" not in name
    )
    graph = onnx.load(home / runtime.INT8).graph
    small = [one for one in graph.initializer if one.data_type == onnx.TensorProto.INT8]
    assert sum(int(np.prod(one.dims)) for one in small if len(one.dims) == 2) == entries
    size = (home / runtime.INT8).stat().st_size
    assert size < 0.5 * (home / runtime.FLOAT).stat().st_size


def test_each_token_has_a_scale_of_its_own_so_one_large_entry_spoils_no_other(tmp_path: Path):
    from onnx import TensorProto, helper, numpy_helper

    table = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    table[0, 0], table[1] = 1e4, 0.0
    tokens = helper.make_tensor_value_info("tokens", TensorProto.INT64, ["n"])
    rows = helper.make_tensor_value_info("rows", TensorProto.FLOAT, ["n", 4])
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "tokens"], ["rows"])],
        *("g", [tokens], [rows], [numpy_helper.from_array(table, "table")]),
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    int8.rows(model)
    onnx.checker.check_model(model)
    onnx.save(model, tmp_path / runtime.FLOAT)
    (found,) = runtime.session(tmp_path / runtime.FLOAT).run(None, {"tokens": np.arange(5)})
    half = np.abs(table).max(1, keepdims=True) / 127 / 2
    assert (np.abs(found - table) <= half + 1e-6).all()
    assert not found[1].any()
    assert not [one for one in model.graph.initializer if one.name == "table"]


def scoring(shop: Workshop, home: Path, **changes: Any) -> dict[str, Any]:
    spec = shop.spec(stage(demo_config(), "evaluate"), home, packing=False, **changes)
    return spec.model_dump(mode="json", by_alias=True)


def test_both_files_are_scored_by_the_tasks_own_scorer(
    shop: Workshop, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(int8, "TURNS", 3)
    found = int8.compared(home, scoring(shop, home))
    spec = shop.spec(stage(demo_config(), "evaluate"), home)
    assert spec.stage is not None
    score = registry.of(spec.stage).score
    assert score is not None
    alone = Ranks(0, 1, torch.device("cpu"))
    expected = score(spec, spec.stage, tmp_path / "result", alone, 8, quiet)
    assert found["float32"] == pytest.approx(expected, rel=1e-4)
    assert found["int8"].keys() == expected.keys()
    assert found["int8"]["loss"] == pytest.approx(expected["loss"], rel=0.1)
    assert found["int8"]["loss"] != found["float32"]["loss"]
    assert found["speed"] > 0
    assert found["tokens"] == phenotype.load_architecture(home).positions
    # The class is what it was.
    shown = padded(phenotype.load_architecture(home), 1, 5)
    assert phenotype.load(QuestionAnswering, home)(*shown)[0].grad_fn is not None


def test_without_the_test_data_it_says_so(shop: Workshop, home: Path):
    with pytest.raises(NasdError, match=r"^int8 cannot be scored, as the test data in /nowhere"):
        int8.compared(home, scoring(shop, home, qa_cache="/nowhere"))


def test_the_files_answer_questions(home: Path):
    asked = {
        "folder": str(home),
        "question": "Who keeps the red kite?",
        "context": "Mara keeps a red kite in the old mill. " * 20,  # several windows
    }
    plain = answer.answer_to(asked)
    exact = answer.answer_to(asked | {"file": runtime.FLOAT})
    assert exact == plain | {"score": pytest.approx(plain["score"], rel=1e-3)}
    assert answer.answer_to(asked | {"file": runtime.INT8})["answer"] in asked["context"]


def refused(what: str) -> Any:
    return pytest.raises(NasdError, match=what)


def test_what_is_quantised_already_is_refused(home: Path, tmp_path: Path):
    with refused("model-int8.onnx is quantised already: take the file in float32"):
        int8.quantise(home / runtime.INT8, tmp_path / "twice.onnx")
    assert not list(tmp_path.iterdir())


def test_an_opset_without_dynamic_quantisation_is_refused(home: Path, tmp_path: Path):
    model = onnx.load(home / runtime.FLOAT)
    model.opset_import[0].version = 10
    onnx.save(model, tmp_path / runtime.FLOAT)
    with refused("is of opset 10, and int8 takes 11 at least"):
        int8.quantise(tmp_path / runtime.FLOAT, tmp_path / runtime.INT8)


def test_a_file_that_is_missing_damaged_or_newer_than_the_runtime_is_named(
    home: Path, tmp_path: Path
):
    with refused(r"has no model-int8\.onnx: export it again with --int8"):
        runtime.session(tmp_path / runtime.INT8)
    (tmp_path / runtime.INT8).write_bytes(b"none")
    with refused(r"^onnxruntime \S+ cannot run \S+model-int8\.onnx \(.*\): upgrade it, or export"):
        runtime.session(tmp_path / runtime.INT8)
    model = onnx.load(home / runtime.FLOAT)
    model.opset_import[0].version = 10_000
    onnx.save(model, tmp_path / runtime.FLOAT)
    with refused(r"cannot run \S+model\.onnx"):
        runtime.session(tmp_path / runtime.FLOAT)
