"""What holds for every objective, and that nothing but the registry knows how many there are."""

import json
import math
import re
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nasd.contract import objectives as contract
from nasd.contract.config import parse
from nasd.contract.errors import NasdError
from nasd.contract.sections import search as sections
from nasd.control.tick import Tick
from nasd.record import lookup, snapshot, state
from nasd.record.folders import StateFolder
from nasd.search import objectives
from nasd.search.objectives import OBJECTIVES, Objective
from nasd.search.pareto import crowding, hypervolume, ranks, survivors
from nasd.views.report.findings import Findings
from nasd.views.status import standing
from tests.conftest import ROOT, drive, make_tick, small_config, small_dict, without_summaries

EVERY = list(OBJECTIVES.values())


@dataclass(frozen=True)
class Model:
    parameters: int
    figures: dict[str, float] = field(default_factory=dict)


figured = st.fixed_dictionaries(
    {name: st.floats(1e-3, 1e15) for name in ("flop", "bytes", "bytes_int8", "latency_ms")}
)
models = st.builds(Model, st.integers(1, 10**12), figured)
ON_A_DEVICE = ("peak_memory_mb", "energy_j")
measured = st.fixed_dictionaries(
    {"f1": st.floats(0, 100), "exact_match": st.floats(0, 100)}
    | {name: st.floats(1e-3, 1e9) for name in ON_A_DEVICE}
)


# -- the contract of every entry ----------------------------------------------------------------


def test_a_config_may_name_exactly_what_is_in_the_registry() -> None:
    assert tuple(OBJECTIVES) == contract.OBJECTIVES
    assert set(contract.DEFAULT) <= set(OBJECTIVES)
    assert contract.FEWEST <= len(contract.DEFAULT) <= contract.MOST


@pytest.mark.parametrize("one", EVERY, ids=lambda one: one.name)
def test_an_objective_says_what_it_is(one: Objective) -> None:
    assert OBJECTIVES[one.name] is one
    assert re.fullmatch(r"[a-z][a-z0-9_]*", one.name)
    assert one.direction in ("highest", "lowest")
    assert one.unit and one.words and one.title
    assert one.label == f"{one.name}, {one.words} in {one.unit}"
    assert math.isfinite(one.reference)


@pytest.mark.parametrize("one", EVERY, ids=lambda one: one.name)
@given(model=models, baseline=models, metrics=measured)
def test_its_values_are_finite_and_none_is_worse_than_a_reference_of_its_own(
    one: Objective, model: Model, baseline: Model, metrics: dict[str, float]
) -> None:
    value = one.value(model, metrics, baseline)
    assert value is not None and math.isfinite(value)
    theirs = one.value(baseline, metrics, baseline)
    bound = one.bound(theirs)
    assert bound is not None and math.isfinite(bound)
    assert theirs is not None and one.upwards(theirs) >= one.upwards(bound)  # it always adds
    assert one.relative or one.upwards(value) >= one.upwards(bound)
    assert one.upwards(one.upwards(value)) == value
    assert (one.upwards(value) == value) == (one.direction == "highest" or not value)
    assert one.shown(value).strip() and "nan" not in one.shown(value)


@pytest.mark.parametrize("one", EVERY, ids=lambda one: one.name)
@given(model=models, baseline=models, metrics=measured)
def test_what_is_not_measured_has_no_value_and_what_needs_no_measuring_always_has_its_own(
    one: Objective, model: Model, baseline: Model, metrics: dict[str, float]
) -> None:
    assert one.value(model, {}, baseline) in (None, one.value(model, metrics, baseline))


some_of_them = st.permutations(list(OBJECTIVES)).map(lambda names: names[: contract.MOST])


@given(models, models, measured, some_of_them)
def test_a_point_comes_back_from_json_as_it_was(
    model: Model, baseline: Model, metrics: dict[str, float], names: list[str]
) -> None:
    point = objectives.point(names, model, metrics, baseline)
    assert point is not None
    assert tuple(json.loads(json.dumps(point))) == point
    assert objectives.told(names, point) == {
        name: OBJECTIVES[name].value(model, metrics, baseline) for name in names
    }
    above = objectives.reference(names, baseline, metrics)
    assert above is not None and len(above) == len(point)
    assert hypervolume([point], above) == pytest.approx(
        math.prod(max(0.0, b - a) for a, b in zip(above, point, strict=True)), rel=1e-9, abs=1e-12
    )


def test_quality_is_said_once_in_the_whole_code() -> None:
    formula = re.compile(
        r"F1 ?\+ ?EM|EM ?\+ ?F1|(f1|exact_match)[^\n]{0,25}\+[^\n]{0,40}(f1|exact_match)"
    )
    found = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "nasd").rglob("*")
        if path.suffix in (".py", ".toml") and formula.search(path.read_text(encoding="utf-8"))
    }
    assert found == {"nasd/search/objectives/quality.py"}


# -- a config names them ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (
            ["quality", "qualty"],
            "there is no 'qualty'; take of quality, compression, flop, ",
        ),
        (["quality", "quality"], "quality stands there twice"),
        (["quality"], "take a list of 2 to 5 of quality, compression, flop, "),
        (["quality"] * 6, "take a list of 2 to 5"),
        ("quality", "take a list of 2 to 5"),
        (["quality", 7], "take a list of 2 to 5"),
        ({"quality": 1, "compression": 2}, "take a list of 2 to 5"),
    ],
)
def test_a_wrong_list_is_refused_in_a_sentence_that_names_the_key(value: Any, words: str) -> None:
    with pytest.raises(NasdError) as caught:
        parse(small_dict(experiment__objectives=value), "my/config.toml")
    assert str(caught.value).startswith("my/config.toml: experiment.objectives: ")
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_a_config_that_names_none_goes_by_the_two_of_the_thesis() -> None:
    assert small_config().experiment.objectives == ("quality", "compression")


# -- whole searches ------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _quick() -> Iterator[None]:
    with without_summaries():
        yield


def searched(folder: Path, *names: str) -> Tick:
    config = small_config(experiment__objectives=list(names), experiment__generations=2)
    tick = make_tick(StateFolder(folder), config)
    drive(tick)
    return tick


def selections(tick: Tick) -> list[state.Recorded]:
    return [one for one in tick.store.read().decisions if one.kind == "select"]


def test_the_order_of_the_objectives_changes_points_and_nothing_else(tmp_path: Path) -> None:
    usual = searched(tmp_path / "usual", "quality", "compression")
    turned = searched(tmp_path / "turned", "compression", "quality")
    one, other = usual.store.read(), turned.store.read()
    assert one.members == other.members
    assert [c.hash for c in one.candidates.values()] == [c.hash for c in other.candidates.values()]
    for a, b in zip(selections(usual), selections(turned), strict=True):
        assert a.payload["points"] == {n: p[::-1] for n, p in b.payload["points"].items()}
        assert a.points == b.points and b.objectives == ("compression", "quality")
        assert a.payload["hypervolume"] == pytest.approx(b.payload["hypervolume"])
    best = [found.best_quality for found in usual.store.selected()]
    assert [found.best_quality for found in turned.store.selected()] == best
    assert best and None not in best
    assert standing.ever(one) and [c.id for c in standing.ever(one)] == [
        c.id for c in standing.ever(other)
    ]


def test_a_search_of_before_the_objectives_had_names_is_read_as_it_was(tmp_path: Path) -> None:
    tick = searched(tmp_path, "quality", "compression")
    whole, chosen = tick.store.read(), tick.store.selected()
    points = [one.points for one in selections(tick)]
    tick.store.close()
    with sqlite3.connect(tick.state.database) as connection:
        connection.execute("UPDATE experiment SET config = json_remove(config, ?)",
            ("$.experiment.objectives",))  # fmt: skip
        connection.execute("UPDATE decision SET payload = json_remove(payload, '$.objectives')")
    connection.close()
    with snapshot.opened(tick.state.path) as connection:
        found = snapshot.read(connection)
        assert snapshot.selected(connection) == chosen
        assert [quality for _, _, quality in snapshot.selections(connection)] == [
            one.best_quality for one in chosen
        ]
        names = lookup.names(connection, scored=True)
    assert found.experiment.objectives == ("quality", "compression")
    assert [one.points for one in found.decisions if one.kind == "select"] == points
    assert [found.point(one) for one in found.candidates] == [
        whole.point(one) for one in whole.candidates
    ]
    best = max(q for one in whole.candidates if (q := whole.quality(one)) is not None)
    assert names[-1] == ("best", f"quality {best:.2f}")


EXACT = Objective(
    "exact", "%", "highest", 0.0, "exact matches", "exact",
    lambda model, metrics, baseline: metrics.get("exact_match"), lambda value: f"{value:.1f}",
)  # fmt: skip
MILLIONS = Objective(
    "millions", "M", "lowest", 1000.0, "parameters in millions", "M",
    lambda model, metrics, baseline: model.parameters / 1e6, lambda value: f"{value:.3f} M",
)  # fmt: skip


@pytest.mark.parametrize("names", [
    ("quality", "compression", "exact"), ("millions", "exact", "quality", "compression"),
    ("exact", "millions"), ("quality", "flop", "bytes"), ("flop", "exact"),
])  # fmt: skip
def test_a_search_by_any_number_of_objectives_runs_and_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...]
) -> None:
    from nasd.views import board

    for one in (EXACT, MILLIONS):
        monkeypatch.setitem(OBJECTIVES, one.name, one)  # type: ignore[arg-type]
    monkeypatch.setattr(sections, "OBJECTIVES", tuple(OBJECTIVES))
    tick = searched(tmp_path, *names)
    found = tick.store.read()
    assert found.experiment.state == "complete"
    above = found.reference
    assert above is not None
    for one in selections(tick):
        pool = [int(number) for number in one.payload["points"]]
        at = [point for number in pool if (point := found.point(number)) is not None]
        assert [tuple(point) for point in one.payload["points"].values()] == at
        assert {len(point) for point in at} == {len(names)}
        assert one.payload["hypervolume"] == pytest.approx(hypervolume(at, above))
        best = sorted(pool[index] for index in survivors(at, 3))
        assert one.payload["survivors"] == best
        held = [m for m in found.members if m.generation == one.generation and m.rank is not None]
        assert [(m.rank, m.crowding) for m in held] == list(
            zip(ranks(at), crowding(at, ranks(at)), strict=True)
        )
        (shown,) = board._selection(found, one).summary.value
        text = shown.tensor.string_val[0].decode()
        assert all(OBJECTIVES[name].title in text for name in names)
    for chosen in tick.store.selected():
        assert (chosen.best_quality is not None) == ("quality" in names)
    assert standing.ever(found)
    facts = Findings(found, now=1e9)
    assert facts.generations[-1].hypervolume == selections(tick)[-1].payload["hypervolume"]
    assert facts.baseline_hypervolume is not None
    front = {row.id for row in facts.candidates if row.front}
    assert front == {one.id for one in standing.ever(found)}
