"""Convolutions within attentions and beside them: what they compute, weigh and cost."""

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from nasd.contract import latency
from nasd.contract.config import Measure, SearchSpace, parse
from nasd.contract.errors import NasdError
from nasd.contract.footprint import flop, int8_bytes
from nasd.contract.genotype import (
    Block,
    Genotype,
    ModuleLineage,
    changes,
    text_of,
    unchanged,
)
from nasd.estimate.latency import supposed
from nasd.record.folders import StateFolder
from nasd.record.lifecycle import State
from nasd.search.variation.keeping import informed
from nasd.worker.measure import table
from nasd.worker.model import phenotype
from nasd.worker.model.architecture import CONFIG, Architecture
from nasd.worker.model.attention import nearby
from nasd.worker.model.inherit import born
from nasd.worker.model.layers import Depthwise
from nasd.worker.model.phenotype import QuestionAnswering
from nasd.worker.training.progress import quiet
from tests.conftest import drive, make_tick, without_summaries
from tests.genes import (
    BACKBONE,
    FFN,
    check_examples_stay_apart,
    check_taken_home,
    check_weighs_as_told,
)
from tests.test_task_lineage import task_dict
from tests.test_transfers import FAMILIES, generator, model_of, outputs, windows

CONVOLVED = Genotype(
    (
        Block(4, FFN, convolution=3),
        Block(6, FFN, branch=5),
        Block(2, FFN, convolution=5, branch=3),
    )
)
PLAIN = Genotype(tuple(replace(one, convolution=None, branch=None) for one in CONVOLVED.blocks))


# -- the genotype --------------------------------------------------------------------------------


def test_only_what_has_convolutions_says_so_and_so_all_others_keep_their_hash() -> None:
    data = PLAIN.to_json()
    assert all(block.keys() == {"heads", "ffns"} for block in data["blocks"])
    assert PLAIN.hash == "5944719df9ea1964"
    told = json.loads(json.dumps(CONVOLVED.to_json()))
    assert Genotype.from_json(told) == CONVOLVED
    assert CONVOLVED.hash != PLAIN.hash
    assert str(CONVOLVED) == "[4h c3 g32] [6h b5 g32] [2h c5 b3 g32]" == text_of(told)


@pytest.mark.parametrize("kernel", [0, 1, 2, 4, 101, True, "3", 3.0])
@pytest.mark.parametrize("where", ["convolution", "branch"])
def test_a_kernel_without_a_middle_is_refused(where: str, kernel: Any) -> None:
    data = PLAIN.to_json()
    data["blocks"][0][where] = kernel
    with pytest.raises(NasdError, match="this is not a genotype"):
        Genotype.from_json(data)


def test_what_was_changed_is_said() -> None:
    lines = list(unchanged(PLAIN))
    lines[2] = replace(lines[2], attention=ModuleLineage("identity", 0, 2))
    child = Genotype((*PLAIN.blocks[:2], CONVOLVED.blocks[2]))
    said = "block 3: 2 heads, convolved over 5, with a branch over 3 instead of 2"
    assert changes(child, tuple(lines), PLAIN) == [said]


# -- what they compute ---------------------------------------------------------------------------


def test_each_channel_sees_its_neighbours_as_torch_convolves_them() -> None:
    kernel = Depthwise(6, 5)
    nn.init.normal_(kernel.weight)
    theirs = nn.Conv1d(6, 6, 5, padding=2, groups=6, bias=False)
    states = torch.randn(3, 9, 6)
    with torch.no_grad():
        theirs.weight.copy_(kernel.weight.T[:, None])
        wanted = theirs(states.transpose(1, 2)).transpose(1, 2)
        torch.testing.assert_close(kernel(states, None), wanted)


@pytest.mark.parametrize("family", FAMILIES)
def test_no_example_sees_its_padding_or_whoever_it_is_packed_with(family: str) -> None:
    check_examples_stay_apart(CONVOLVED, family)


@pytest.mark.parametrize("where", ["convolution", "branch"])
def test_one_that_is_new_changes_nothing_and_learns(where: str) -> None:
    change: dict[str, Any] = {where: 5}
    child = Genotype((replace(PLAIN.blocks[0], **change), *PLAIN.blocks[1:]))
    lines = list(unchanged(PLAIN))
    lines[0] = replace(lines[0], attention=ModuleLineage("fresh", 0, 0))
    lineage = informed(child, tuple(lines), [PLAIN])
    assert lineage[0].attention.transfer == "identity"
    parent = model_of(PLAIN)
    model = born(child, lineage, [parent], generator(), windows())
    torch.testing.assert_close(outputs(model, windows()), outputs(parent, windows()))
    seen = windows()
    start, _ = model(seen.input_ids, seen.attention_mask)
    start.square().sum().backward()
    attention = model.encoder.blocks[0].attention
    new = (
        attention.convolutions["k"].weight
        if where == "convolution"
        else attention.branch.out.weight
    )
    assert float(new.grad.abs().max()) > 0


@pytest.mark.parametrize("heads", [2, 4, 12])
def test_what_loses_its_convolutions_is_refitted_to_what_it_gave(heads: int) -> None:
    parent = model_of(CONVOLVED)
    child = Genotype((Block(heads, FFN), *CONVOLVED.blocks[1:]))
    lines = list(unchanged(CONVOLVED))
    lines[0] = replace(lines[0], attention=ModuleLineage("ranked", 0, 0))
    text = windows(48)
    wanted = outputs(parent, text)
    found = []
    for how in ("ranked", "fresh"):
        lines[0] = replace(lines[0], attention=ModuleLineage(how, 0, 0))  # type: ignore[arg-type]
        model = born(child, tuple(lines), [parent], generator(), text)
        found.append(float((outputs(model, text) - wanted).square().mean()))
    assert found[0] < found[1]


# -- what they weigh and cost --------------------------------------------------------------------


def test_parameters_bytes_and_operations_are_those_of_the_model(tmp_path: Path) -> None:
    more = int8_bytes(CONVOLVED, BACKBONE) - int8_bytes(PLAIN, BACKBONE)
    depthwise = 4 * 24 * (3 * (3 + 5) + 5 + 3)
    assert more == depthwise + 2 * (24 * 24 + 24 * 5 + 4 * 24)
    check_weighs_as_told(CONVOLVED, tmp_path, uncounted=2 * 12 * depthwise // 2)


def test_a_local_attention_counts_the_tokens_that_it_looks_at() -> None:
    local = Genotype(tuple(replace(one, role="local") for one in PLAIN.blocks))
    for window in (1, 2, 5, 11, 40):
        pairs = nearby(torch.arange(12), 12, window).sum()
        known = replace(BACKBONE, window=window)
        less = flop(PLAIN, known, 3, 12) - flop(local, known, 3, 12)
        assert less == 3 * 3 * 4 * 24 * (12 * 12 - int(pairs))
    assert flop(local, BACKBONE, 3, 12) == flop(PLAIN, BACKBONE, 3, 12)  # it is not known of


SPACE = SearchSpace(
    blocks=(1, 3), heads=(2, 4), ffns=1, layers=(2,), sizes=(16, 32), activations=("gelu",),
    convolutions=(3, 5), branches=(3,),
)  # fmt: skip


def test_a_latency_table_has_convolutions_and_local_attentions_by_themselves() -> None:
    modern = replace(BACKBONE, window=2)
    made = supposed(SPACE, modern, Measure(tokens=12))
    assert {"convolution 3", "convolution 5", "branch 3", "local attention 2"} <= made.parts.keys()
    plain = Genotype((Block(2, FFN),))
    for more in ({"convolution": 3}, {"convolution": 5}, {"branch": 3}):
        child = Genotype((replace(plain.blocks[0], **more),))  # type: ignore[arg-type]
        (name,) = (f"{kind} {kernel}" for kind, kernel in more.items())
        assert made.predict(child) - made.predict(plain) == pytest.approx(made.parts[name])
    near = Genotype((Block(2, FFN, "local"),))
    assert made.predict(near) < made.predict(plain)
    before = replace(made, parts={k: v for k, v in made.parts.items() if "local" not in k})
    assert before.predict(near) == before.predict(plain)  # a table of an earlier nasd


def test_each_of_these_parts_can_be_measured() -> None:
    arch = Architecture(50, 12, 24, (), **FAMILIES["modernbert"])
    calls, _ = table._parts(arch, SPACE, Measure(tokens=12), quiet)
    assert calls.keys() - {table.NOTHING} == latency.measured(SPACE, local=True).keys()
    for call in calls.values():
        call()
    drawn = [latency.drawn(SPACE, random.Random(n)) for n in range(20)]
    assert any(block.branch for one in drawn for block in one.blocks)
    table.whole(next(one for one in drawn if one.blocks[0].convolution), arch, Measure(tokens=12))()


# -- taken home ----------------------------------------------------------------------------------


def test_an_exported_model_has_them_in_transformers_and_in_onnx(tmp_path: Path) -> None:
    check_taken_home(Genotype(CONVOLVED.blocks[2:]), tmp_path)


@pytest.mark.parametrize("kernel", [2, 101, "x"])
def test_a_folder_with_an_impossible_kernel_is_refused(tmp_path: Path, kernel: Any) -> None:
    phenotype.save(model_of(CONVOLVED), tmp_path)
    path = tmp_path / CONFIG
    told = json.loads(path.read_text())
    told["blocks"][0]["convolution"] = kernel
    path.write_text(json.dumps(told))
    with pytest.raises(ValueError, match=r"convolution in config\.json"):
        phenotype.load(QuestionAnswering, tmp_path)


# -- a search ------------------------------------------------------------------------------------


def test_a_search_finds_them_where_its_space_has_them(tmp_path: Path) -> None:
    data = task_dict(population__mu=4, population__lambda=6, experiment__generations=3)
    data["variation"]["operators"] = {"convolve": 2, "unconvolve": 1, "branch": 2, "cross": 1}
    data["search_space"] |= {"convolutions": [3, 5], "branches": [3]}
    config = parse(data, "convolved.toml")
    with without_summaries():
        tick = make_tick(StateFolder(tmp_path / "state"), config)
        drive(tick)
        found = tick.store.read()
        tick.store.close()
    assert found.experiment.state == "complete"
    scored = [one for one in found.individuals if one.state is State.SCORED]
    blocks = [block for one in scored for block in one.genotype.blocks]
    assert {block.convolution for block in blocks} == {None, 3, 5}
    assert {block.branch for block in blocks} == {None, 3}
    more = [one for one in scored if one.operators == ("convolve",) and one.second is None]
    assert more
    assert all(
        line.attention.transfer in ("kept", "identity") for one in more for line in one.lineage
    )
