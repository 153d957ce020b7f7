"""The latency table: what it says of any genotype, how it is measured, and searches by it."""

import itertools
import json
import math
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nasd.contract import latency
from nasd.contract.config import Measure, SearchSpace, check_against_seed
from nasd.contract.errors import NasdError
from nasd.contract.footprint import exported_bytes, int8_bytes
from nasd.contract.genotype import Backbone, Block, FeedForward, Genotype
from nasd.contract.latency import Table, fitted
from nasd.control import preflight
from nasd.record.folders import StateFolder
from nasd.search.variation.breeding import check_genotype
from nasd.views import profiling
from nasd.worker import profile
from nasd.worker.measure import engines, table, timing
from nasd.worker.measure.engines import ENGINES
from nasd.worker.measure.timing import Timing, by_turns
from nasd.worker.model.architecture import Architecture
from nasd.worker.model.phenotype import QuestionAnswering
from nasd.worker.training.progress import quiet
from tests.conftest import ROOT, drive, make_tick, small_config, without_summaries

SPACE = SearchSpace(
    blocks=(1, 3),
    heads=(1, 2, 4),
    ffns=2,
    layers=(2, 3),
    sizes=(16, 32),
    activations=("relu",),
    ranks=(4, 8),
)
ARCH = Architecture(64, 32, 16, ())


def told(space: SearchSpace = SPACE) -> Table:
    """One in which a head takes 1 ms, and each hidden unit 0.1 ms a layer."""
    parts = {
        name: (what.rank or 0) / 100
        if isinstance(what, latency.Words)
        else float(what)
        if isinstance(what, int)
        else 0.1 * what.sizes[0] * len(what.sizes)
        for name, what in latency.measured(space).items()
    }
    return Table(parts, overhead=0.5, scale=2.0, about={}, unsure={})


# -- what it says -------------------------------------------------------------------------------


def test_a_model_takes_the_sum_of_its_parts_and_what_every_call_takes() -> None:
    block = Block(4, (FeedForward("relu", (16,)), FeedForward("relu", (32, 32))))
    assert told().predict(Genotype((block,))) == pytest.approx(0.5 + 2 * (4 + 1.6 + 6.4))
    assert told().predict(Genotype((block,), 8)) == told().predict(Genotype((block,))) + 2 * 0.08
    assert told().predict(Genotype((block, block))) == pytest.approx(0.5 + 4 * (4 + 1.6 + 6.4))


def test_a_layer_between_two_sizes_takes_the_mean_of_what_it_takes_between_equal_ones() -> None:
    mixed = Genotype((Block(1, (FeedForward("relu", (16, 32)),)),))
    ends, between = (1.6 + 3.2) / 2, math.sqrt(1.6 * 3.2)
    assert told().predict(mixed) == pytest.approx(0.5 + 2 * (1 + ends + between))


def test_what_was_not_measured_lies_on_the_line_through_its_neighbours() -> None:
    odd = Genotype((Block(3, (FeedForward("relu", (24,)),)),))
    assert told().predict(odd) == pytest.approx(0.5 + 2 * (3 + 2.4))
    beyond = Genotype((Block(8, (FeedForward("relu", (64,)),)),))
    assert told().predict(beyond) == pytest.approx(0.5 + 2 * (8 + 6.4))


@given(st.integers(0, 10**6))
def test_every_genotype_of_the_space_is_told_and_larger_ones_never_take_less(seed: int) -> None:
    one = latency.drawn(SPACE, random.Random(seed))
    check_genotype(one, SPACE, 16)
    value = told().predict(one)
    assert math.isfinite(value) and value > 0
    assert told().predict(Genotype((*one.blocks, one.blocks[0]), one.rank)) > value
    assert Table.from_json(json.loads(json.dumps(told().to_json()))).predict(one) == value


@given(st.floats(0, 10), st.floats(0.5, 2), st.lists(st.floats(1, 100), min_size=3, unique=True))
def test_the_fit_finds_what_the_times_were_made_of(
    overhead: float, scale: float, sums: list[float]
) -> None:
    times = [overhead + scale * one for one in sums]
    found = fitted(sums, times)
    for one, time in zip(sums, times, strict=True):
        assert found[0] + found[1] * one == pytest.approx(time, rel=1e-3)
    assert min(found) >= 0


# -- how it is measured -------------------------------------------------------------------------


@given(st.lists(st.floats(0.1, 10), min_size=timing.LEAST, max_size=80))
def test_the_interval_holds_the_median_and_lies_among_the_samples(samples: list[float]) -> None:
    found = Timing.of(samples)
    low, high = found.interval
    assert min(samples) <= low <= found.median <= high <= max(samples)
    assert found.calls == len(samples) and found.error >= 0 and found.spread >= 0


def made_up(steps: Iterator[float]) -> tuple[Callable[[], float], Callable[[], object]]:
    """A clock, and a call that takes the next of these steps by it."""
    now = [0.0]

    def call() -> None:
        now[0] += next(steps)

    return lambda: now[0], call


def test_who_is_known_well_enough_sits_out_and_who_is_not_goes_on_to_the_most() -> None:
    clock, call = made_up(itertools.repeat(0.002))
    found = by_turns({"steady": call}, clock, seconds=60)
    assert found["steady"].calls == timing.LEAST and found["steady"].median == pytest.approx(2.0)
    rng = random.Random(0)
    clock, call = made_up(iter(lambda: rng.choice([0.001, 0.01]), None))
    found = by_turns({"wild": call}, clock, seconds=60)
    assert found["wild"].calls == timing.MOST and found["wild"].error > timing.WITHIN
    clock, call = made_up(iter(lambda: rng.choice([0.001, 0.01]), None))
    assert by_turns({"late": call}, clock, seconds=0)["late"].calls == timing.LEAST


def test_the_processors_clock_is_taken_only_where_one_thread_does_all() -> None:
    assert timing.clock_of("cpu", 1)[1] == "processor"
    assert timing.clock_of("cpu", 2)[1] == timing.clock_of("cuda", 1)[1] == "wall"


def test_a_config_may_name_exactly_the_engines_that_there_are() -> None:
    assert set(get_args(Measure.model_fields["engine"].annotation)) == set(ENGINES)


def model_of(seed: int) -> QuestionAnswering:
    torch.manual_seed(0)
    drawn = latency.drawn(SPACE.model_copy(update={"blocks": (1, 1)}), random.Random(seed))
    model = QuestionAnswering(ARCH.with_genotype(drawn.to_json())).eval()
    for weight in model.parameters():  # norms that are alike would be one in a graph
        if weight.dim() == 1:
            torch.nn.init.normal_(weight)
    return model


@pytest.fixture(scope="module")
def exported() -> bytes:
    """Of a model over 12 tokens; takes seconds."""
    pytest.importorskip("onnxscript", reason="the extra onnx is not installed: bin/setup onnx")
    return engines.graph(model_of(2), windows(1, 12))


def windows(examples: int, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.arange(examples * tokens).view(examples, tokens) % ARCH.vocab_size
    return ids, torch.ones_like(ids)


@pytest.mark.parametrize("name", list(ENGINES))
def test_every_engine_runs_a_model_and_gives_what_torch_gives(
    name: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    measure = Measure(engine=name, tokens=12)  # type: ignore[arg-type]
    if ENGINES[name].missing(measure):
        pytest.skip(ENGINES[name].missing(measure))
    if name == "onnxruntime":
        written = request.getfixturevalue("exported")
        monkeypatch.setattr(engines, "graph", lambda module, given: written)
    assert ENGINES[name].version()
    given = windows(1, 12)
    with torch.no_grad():
        expected = model_of(2)(*given)
    for load in (ENGINES[name].load, ENGINES[name].part):
        found: Any = load(model_of(2), given, measure)()
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(torch.as_tensor(one), other, atol=1e-4, rtol=1e-4)


def test_graphs_take_any_number_of_examples_and_tokens(exported: bytes) -> None:
    import onnxruntime

    given = windows(3, 5)
    with torch.no_grad():
        expected = model_of(2)(*given)[0].numpy()
    for written in (exported, engines.traced(model_of(2), windows(1, 12))):
        session = onnxruntime.InferenceSession(written, providers=["CPUExecutionProvider"])
        feed = {
            one.name: there.numpy() for one, there in zip(session.get_inputs(), given, strict=True)
        }
        assert session.run(None, feed)[0] == pytest.approx(expected, abs=1e-4)


def test_the_bytes_of_an_export_in_int8_are_its_files_but_for_the_graph(
    exported: bytes, tmp_path: Path
) -> None:
    import onnx

    from nasd.worker import int8

    (tmp_path / "plain.onnx").write_bytes(exported)
    int8.quantise(tmp_path / "plain.onnx", tmp_path / "int8.onnx")
    weights = onnx.load(tmp_path / "int8.onnx").graph.initializer
    held = sum(onnx.numpy_helper.to_array(one).nbytes for one in weights)
    drawn = latency.drawn(SPACE.model_copy(update={"blocks": (1, 1)}), random.Random(2))
    backbone = Backbone(ARCH.vocab_size, ARCH.positions, ARCH.width)
    assert int8_bytes(drawn, backbone) == pytest.approx(held, abs=150)  # of shapes and such
    assert int8_bytes(drawn, backbone) < 0.7 * exported_bytes(drawn, backbone)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"engine": "onnxruntime", "device": "cuda"}, 'take measure.device = "cpu"'),
        ({"engine": "onnxruntime", "precision": "bfloat16"}, "runs float32"),
        ({"device": "cuda"}, "torch finds none here"),
    ],
)
def test_what_cannot_be_measured_here_is_refused_in_a_sentence(
    settings: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(NasdError) as caught:
        table.check(Measure(**settings))
    assert words in str(caught.value) and str(caught.value).startswith("measure.")


def test_a_table_is_made_once_and_again_only_when_asked_or_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    monkeypatch.setattr(table, "make", lambda *given: made.append(given) or told())
    measure = Measure(tokens=16)

    def known(space: SearchSpace = SPACE, again: bool = False, threads: int = 1) -> Table:
        of = measure.model_copy(update={"threads": threads})
        return table.known(ARCH, space, of, tmp_path, quiet, again)

    assert known() == known() == told()
    assert len(made) == 1
    known(again=True)
    known(threads=2)
    known(space=SPACE.model_copy(update={"heads": (1, 2)}))
    assert len(made) == 4
    for file in tmp_path.iterdir():
        file.write_text("{}")
    known()
    assert len(made) == 5


def test_a_profile_tells_each_part_of_the_space_and_how_right_it_is(tmp_path: Path) -> None:
    found = profile._answer(
        {
            "measure": Measure(tokens=32).model_dump(),
            "space": SPACE.model_dump(),
            "source": str(ROOT / "nasd" / "demo_seed"),
            "folder": str(tmp_path),
            "cache": str(tmp_path / "cache"),
            "again": False,
            "check": 4,
        }
    )
    parts = found["table"]["parts"]
    assert parts.keys() == latency.measured(SPACE).keys()
    assert all(value >= 0 for value in parts.values())
    assert parts["ffn relu 32-32"] > 0 and parts["attention 4"] > 0
    assert len(found["checked"]) == 4
    assert all(one["predicted"] > 0 < one["measured"] for one in found["checked"])
    shown = profiling.to_json(found)
    assert shown["median_error"] >= 0 and -1 <= shown["rank_correlation"] <= 1


def test_the_positions_bound_what_is_measured() -> None:
    config = small_config(experiment__objectives=["quality", "latency_ms"])
    check_against_seed(config, Backbone(225, 128, 24), "my.toml")
    with pytest.raises(NasdError, match=r"my.toml: measure.tokens: 128 tokens are more than"):
        check_against_seed(config, Backbone(225, 127, 24), "my.toml")
    with pytest.raises(NasdError, match=r"data\."):  # nobody asks for it
        check_against_seed(small_config(), Backbone(225, 1, 24), "my.toml")


def test_a_search_that_cannot_be_measured_here_does_not_begin(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        preflight.child, "ask", lambda module, question, **_: profile._answer(question)
    )
    config = small_config(
        experiment__limits=["latency_ms <= 20"],
        measure={"engine": "onnxruntime", "precision": "bfloat16"},
    )
    with pytest.raises(NasdError, match=r"^my.toml: measure.engine: .* runs float32"):
        preflight._check_measure(config, "my.toml")


# -- a search by it ------------------------------------------------------------------------------


def test_every_candidate_of_a_search_has_its_latency_from_birth(tmp_path: Path) -> None:
    config = small_config(
        experiment__objectives=["quality", "latency_ms", "bytes"],
        experiment__limits=["latency_ms <= 95 % of the baseline"],
        experiment__generations=2,
    )
    tick = make_tick(StateFolder(tmp_path), config)
    with without_summaries():
        assert not tick.store.read().baseline.figures.get("latency_ms")
        drive(tick)
    found = tick.store.read()
    assert found.experiment.state == "complete" and found.experiment.prepared is not None
    made = Table.from_json(found.experiment.prepared["latency"])
    assert made.parts.keys() == latency.measured(config.search_space).keys()
    for one in found.candidates.values():
        assert one.figures["latency_ms"] == pytest.approx(made.predict(one.genotype))
        assert found.value(one.id, "latency_ms") == one.figures["latency_ms"]
    most = 0.95 * found.baseline.figures["latency_ms"]
    scored = [one for one in found.individuals if found.point(one.id) and one.generation == 2]
    assert scored
    for one in scored:
        assert (found.missed(one.id) > 0) == (one.figures["latency_ms"] > most)


def test_a_search_that_goes_by_no_latency_makes_no_table(tmp_path: Path) -> None:
    tick = make_tick(StateFolder(tmp_path), small_config(experiment__generations=0))
    with without_summaries():
        drive(tick)
    found = tick.store.read()
    assert found.experiment.prepared is not None and found.experiment.prepared["latency"] == {}
    assert all("latency_ms" not in one.figures for one in found.candidates.values())
