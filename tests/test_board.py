"""What the daemon shows in TensorBoard: after whole searches, whatever was killed in between."""

import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorboard.plugins.custom_scalar import metadata as scalars_plugin
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams import metadata as hparams_plugin
from tensorboard.plugins.hparams.api_pb2 import STATUS_FAILURE, STATUS_SUCCESS

from nasd.contract.protocol import Spec
from nasd.contract.protocol import read as read_message
from nasd.control.tick import Tick
from nasd.record.folders import StateFolder
from nasd.record.lifecycle import State
from nasd.record.snapshot import opened
from nasd.record.snapshot import read as read_snapshot
from nasd.record.state import Snapshot
from nasd.views import board
from nasd.views.board import Board, Ledger
from tests.boards import Reader, Run, read_board, read_run, steps
from tests.conftest import Clock, drive, make_tick, small_config
from tests.faults import (
    PATIENT,
    Fuse,
    Killed,
    begin_in,
    live_until_killed,
    small_search,
    some_diverge,
)

Folder = Callable[[], StateFolder]
# What a lost attempt adds to.
COSTS = {"search/gpu_hours", "search/hours", "search/slot_use"}


@pytest.fixture(scope="module")
def tick(tmp_path_factory: pytest.TempPathFactory) -> Tick:
    """The small search at its end; some of its candidates have diverged."""
    return small_search(StateFolder(tmp_path_factory.mktemp("board") / "state"), some_diverge)


@pytest.fixture(scope="module")
def found(tick: Tick) -> Snapshot:
    return tick.store.read()


@pytest.fixture(scope="module")
def shown(tick: Tick) -> dict[str, Run]:
    return read_board(tick.state.tensorboard)


def card(run: Run, tag: str = "card") -> str:
    ((step, text),) = run[tag]
    assert step == 0
    return str(text)


# -- runs ----------------------------------------------------------------------------------------


def test_runs_are_named_by_generation_and_candidate(found: Snapshot, shown: dict[str, Run]):
    born = {
        f"gen{c.generation:02d}/c{c.id:04d}"
        for c in found.candidates.values()
        if c.parent is not None
    }
    cutoffs = {f"gen{n:02d}/cutoff" for n in (1, 2)}
    selections = {f"gen{n:02d}/selection" for n in (0, 1, 2)}
    assert {*shown} == {"search", "baseline"} | born | cutoffs | selections


def test_a_worker_is_told_where_its_curves_go_and_where_they_begin(tick: Tick, found: Snapshot):
    for attempt in found.attempts:
        spec = read_message(Spec, tick.state.attempt(attempt.id).spec)
        run = str(Path(spec.tensorboard).relative_to(tick.state.tensorboard))
        candidate = found.candidates[attempt.candidate]
        if candidate.is_baseline:
            assert run.startswith("baseline/")
            assert spec.shared_curve == ""
            continue
        name = f"gen{candidate.generation:02d}"
        task = "mlm" if attempt.stage.startswith("pretrain") else "qa"
        assert run == f"{name}/c{candidate.id:04d}/{task}"
        assert spec.shared_curve == (f"learning_curves/{name}" if task == "mlm" else "")
        # Each stage of a FakeLauncher has 10 steps.
        assert spec.first_step == {"pretrain_1": 10, "evaluate": 10}.get(attempt.stage, 0)


# -- the search ----------------------------------------------------------------------------------


def test_the_search_has_a_point_for_each_generation(found: Snapshot, shown: dict[str, Run]):
    search = shown["search"]
    chosen = [one.payload for one in found.decisions if one.kind == "select"]
    assert len(chosen) == 3
    for tag in board.ABOUT:
        assert steps(search, tag) == [0, 1, 2], tag
    volumes = [value for _, value in search["search/hypervolume"]]
    assert volumes == pytest.approx([one["hypervolume"] for one in chosen])
    best = [value for _, value in search["search/best_quality"]]
    assert best == pytest.approx([max(p[0] for p in one["points"].values()) for one in chosen])
    base = found.quality(found.baseline.id)
    assert [value for _, value in search["search/baseline_quality"]] == pytest.approx([base] * 3)


def test_gpu_hours_and_slot_use_are_those_of_the_ledger(found: Snapshot, shown: dict[str, Run]):
    hours = [value for _, value in shown["search"]["search/gpu_hours"]]
    use = [value for _, value in shown["search"]["search/slot_use"]]
    assert hours[-1] == pytest.approx(found.gpu_hours(1e12))
    assert hours == sorted(hours)
    for generation, hour, share in zip(found.generations, hours, use, strict=True):
        begin, end = generation.opened_at, generation.completed_at
        assert end is not None
        spent = [
            (one.slots, max(0.0, min(one.ended_at or end, end) - max(one.started_at, begin)))
            for one in found.attempts
        ]
        slots = {slot for names, seconds in spent if seconds for slot in names}
        held = sum(len(names) * seconds for names, seconds in spent)
        assert share == pytest.approx(held / (len(slots) * (end - begin)))
        assert 0 < share <= 1
        before = [one for one in found.attempts if (one.ended_at or 1e12) <= end]
        least = sum(len(one.slots) * ((one.ended_at or 0) - one.started_at) for one in before)
        assert hour >= least / 3600 * 0.999


instants = st.integers(0, 40).map(float)
A, B = "cuda:0", "cuda:1.2/4"
PARTS = {A: 1.0, B: 0.25}


@given(
    st.lists(
        st.tuples(st.sampled_from([(A, B), (A,), (B,)]), instants, instants | st.just(math.inf))
    ),
    st.lists(st.tuples(instants, instants), min_size=1),
)
@settings(deadline=None)
def test_the_ledger_says_of_any_stretch_what_its_attempts_held(held, stretches):
    holdings: dict[tuple[str, ...], list[tuple[float, float]]] = {}
    for slots, begin, end in held:
        holdings.setdefault(slots, []).append((begin, end))
    begins, ends = np.array(stretches).T
    for (begin, end), got in zip(stretches, Ledger(holdings).use(begins, ends), strict=True):

        def within(since: float, until: float = end) -> dict[str, float]:
            found: dict[str, float] = {}
            for slots, a, b in held:
                for slot in slots:
                    met = max(0.0, min(b, until) - max(a, since))
                    found[slot] = found.get(slot, 0.0) + PARTS[slot] * met
            return {slot: seconds for slot, seconds in found.items() if seconds}

        assert got["search/gpu_hours"] == pytest.approx(sum(within(-1.0).values()) / 3600)
        assert got["search/hours"] == (end - begin) / 3600
        used = within(begin)
        whole = sum(PARTS[slot] for slot in used)
        share = sum(used.values()) / (whole * (end - begin)) if used else None
        assert got.get("search/slot_use") == (None if share is None else pytest.approx(share))


def test_custom_scalars_have_a_chart_for_each_generation(tick: Tick, shown: dict[str, Run]):
    ((_, content),) = shown["search"][scalars_plugin.CONFIG_SUMMARY_TAG]
    data = content if isinstance(content, bytes) else content.encode()
    curves, search = Layout.FromString(data).category
    assert [one.title.split(":")[0] for one in curves.chart] == [
        "generation 2", "generation 1", "generation 0",
    ]  # fmt: skip
    tags = {tag for run in shown.values() for tag in run} | {"learning_curves/gen00"}
    for chart in (*curves.chart, *search.chart):
        for pattern in chart.multiline.tag:
            matched = {tag for tag in tags if re.search(pattern, tag)}
            assert 1 <= len(matched) <= 2, pattern
    (pattern,) = curves.chart[0].multiline.tag
    assert [tag for tag in tags if re.search(pattern, tag)] == ["learning_curves/gen02"]


# -- candidates ----------------------------------------------------------------------------------


def session(tick: Tick, run: str) -> tuple[Any, Any] | None:
    content = Reader(tick.state.run(run)).plugin("hparams")
    if not content:
        return None
    start = content[hparams_plugin.SESSION_START_INFO_TAG]
    end = content[hparams_plugin.SESSION_END_INFO_TAG]
    return (
        hparams_plugin.parse_session_start_info_plugin_data(start),
        hparams_plugin.parse_session_end_info_plugin_data(end),
    )


def names(found: Snapshot) -> dict[str, int]:
    return {board._name(found, one): one for one in found.candidates}


def test_each_that_has_ended_is_a_session_with_its_features(tick: Tick, found: Snapshot):
    states = set()
    for run, number in names(found).items():
        both = session(tick, run)
        assert both is not None
        start, end = both
        one = found.candidates[number]
        states.add(one.state)
        values = {
            name: value.string_value if name in board.TEXTS else value.number_value
            for name, value in start.hparams.items()
        }
        assert values == board.features(found, one)
        assert {*values} == {*board.FEATURES}
        assert values["blocks"] == len(one.genotype.blocks)
        assert values["heads_least"] <= values["heads_mean"] <= values["heads_most"]
        assert 0 <= values["gelu_share"] <= 1
        assert values["fate"] == one.state
        assert start.group_name == run
        failed = one.state is State.FAILED
        assert end.status == (STATUS_FAILURE if failed else STATUS_SUCCESS)
        assert end.end_time_secs > start.start_time_secs
    assert states == {State.SCORED, State.CUT, State.FAILED}


def test_the_columns_are_those_that_sessions_have(tick: Tick, found: Snapshot, shown):
    content = Reader(tick.state.run("search")).plugin("hparams")[hparams_plugin.EXPERIMENT_TAG]
    columns = hparams_plugin.parse_experiment_plugin_data(content)
    assert [one.name for one in columns.hparam_infos] == [*board.FEATURES]
    tags = [one.name.tag for one in columns.metric_infos]
    for run, number in names(found).items():
        assert {tag for tag in shown[run] if tag.startswith("results/")} <= {*tags}
        if found.candidates[number].state is State.SCORED and number:
            assert {*tags} <= {*shown[run]}


def test_results_are_those_of_the_database(found: Snapshot, shown: dict[str, Run]):
    for run, number in names(found).items():
        one = found.candidates[number]
        values = {
            tag.removeprefix("results/"): value
            for tag, points in shown[run].items()
            if tag.startswith("results/")
            for step, value in points
            if step == (one.generation or 0)
        }
        size = values.pop("size")
        assert size == pytest.approx(found.size(number))
        assert values.pop("parameters_percent") == pytest.approx(100 / size)
        if (scores := found.scores(number)) is not None:
            assert values.pop("exact_match") == pytest.approx(scores["exact_match"])
            assert values.pop("f1") == pytest.approx(scores["f1"])
            assert values.pop("quality") == pytest.approx(found.quality(number))
        assert values == {
            f"loss_after_{stage}": pytest.approx(result.curve[-1][1])
            for (owner, stage), result in found.results.items()
            if owner == number and stage in ("pretrain_0", "pretrain_1")
        }


def test_a_card_tells_genotype_ancestry_and_decisions(found: Snapshot, shown: dict[str, Run]):
    by_state: dict[State, str] = {}
    for run, number in names(found).items():
        one, text = found.candidates[number], card(shown[run])
        assert str(one.genotype) in text and one.hash in text
        if one.is_baseline:
            assert "Ancestry" not in text
            continue
        by_state[one.state] = text
        line, at = [], one
        while at.parent is not None:
            at = found.candidates[at.parent]
            line.append(board._name(found, at.id))
        ancestry = text.split("#### Ancestry")[1].split("#### Decisions")[0]
        assert [row.split(" | ")[0][2:] for row in ancestry.strip().splitlines()[2:]] == [
            *reversed(line), run,
        ]  # fmt: skip
        assert f"bred from {line[0]}" in text
        survived = [m.generation for m in found.members if m.candidate == number and m.survives]
        for generation in survived:
            assert re.search(rf"\| {generation} \| selection, as \w+ \| survives, rank", text)
    assert "Scored: quality" in by_state[State.SCORED]
    assert "cut: loss" in by_state[State.CUT]
    assert "the loss is NaN at step 3" in by_state[State.FAILED]


def test_one_on_its_way_has_a_card_and_no_session(folder: Folder):
    tick = make_tick(folder(), PATIENT)
    drive(tick, lambda snapshot: bool(snapshot.born_in(1)))
    run = board._name(tick.store.read(), tick.store.read().born_in(1)[0].id)
    assert "On its way" in card(read_run(tick.state.run(run)))
    assert session(tick, run) is None


# -- generations ---------------------------------------------------------------------------------


def test_a_cutoff_is_a_level_line_and_a_card(found: Snapshot, shown: dict[str, Run]):
    for one in found.decisions:
        if one.kind != "cutoff":
            continue
        run = shown[f"gen{one.generation:02d}/cutoff"]
        kept = [one.payload["losses"][str(number)] for number in one.payload["kept"]]
        line = run[f"learning_curves/gen{one.generation:02d}"]
        assert line == [(0, pytest.approx(max(kept))), (10, pytest.approx(max(kept)))]
        text = card(run, "cutoff_after_pretrain_0")
        assert text.count("| kept |") == len(kept)
        assert text.count("| cut |") == len(one.payload["cut"])


def test_a_selection_is_a_card_with_ranks_and_survivors(found: Snapshot, shown: dict[str, Run]):
    for one in found.decisions:
        if one.kind == "select":
            text = card(shown[f"gen{one.generation:02d}/selection"], "selection")
            assert text.count("| survives |") == len(one.payload["survivors"])
            assert len(text.strip().splitlines()) == 2 + 2 + len(one.payload["points"])


# -- again and again -----------------------------------------------------------------------------


def test_what_stands_is_not_written_again(tick: Tick):
    before = {path: path.stat().st_mtime_ns for path in tick.state.tensorboard.rglob("*")}
    found = tick.store.read()
    numbers = [one.number for one in found.generations]
    Board(tick.state, tick.store).show(found.candidates, numbers, search=True)
    assert {path: path.stat().st_mtime_ns for path in tick.state.tensorboard.rglob("*")} == before


def comparable(state: StateFolder) -> dict[str, dict[str, Any]]:
    """Without what lost attempts add to."""
    return {
        name: {
            tag: re.sub(r"\S+ hours of slots", "", points[0][1]) if tag == "card" else points
            for tag, points in run.items()
            if tag not in COSTS
        }
        for name, run in read_board(state.tensorboard).items()
    }


TINY = small_config(
    population__mu=2,
    population__lambda=2,
    experiment__generations=1,
    daemon__infrastructure_retries=10_000,
)


def live(state: StateFolder, fuse: Fuse) -> None:
    """One life of a daemon, which may be killed before and behind each run that it writes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(board, "write_run", fuse.around(board.write_run))
        live_until_killed(state, TINY, some_diverge, Clock(), Fuse())


def test_a_daemon_killed_while_it_draws_leaves_the_same_pictures_in_the_end(folder: Folder):
    calm = folder()
    begin_in(calm, TINY)
    fuse = Fuse()
    live(calm, fuse)
    expected = comparable(calm)
    assert "gen01/selection" in expected
    for point in range(1, fuse.passed, 13):
        state = folder()
        begin_in(state, TINY)
        with pytest.raises(Killed):
            live(state, Fuse(point))
        live(state, Fuse())
        assert comparable(state) == expected, f"killed at point {point}"
        shutil.rmtree(state.path)


def test_what_a_full_disk_kept_from_being_shown_comes_with_the_next(folder: Folder, monkeypatch):
    tick = make_tick(folder(), PATIENT, some_diverge)
    drive(tick, lambda snapshot: bool(snapshot.born_in(1)))
    written = board.write_run

    def full(*arguments: object) -> bool:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(board, "write_run", full)
    drive(tick, lambda snapshot: bool(snapshot.born_in(2)))
    assert not tick.state.run("gen01/cutoff").exists()
    monkeypatch.setattr(board, "write_run", written)
    drive(tick, lambda snapshot: any(one.final for one in snapshot.born_in(2)))
    assert "learning_curves/gen01" in read_run(tick.state.run("gen01/cutoff"))
    assert "selection" in read_run(tick.state.run("gen01/selection"))
    for one in tick.store.read().born_in(1):
        assert "results/size" in read_run(tick.state.run(board._name(tick.store.read(), one.id)))


def test_lines_hold_the_ancestors_and_the_decisions_of_the_generation(tick: Tick, found: Snapshot):
    youngest = max(found.candidates)
    with opened(tick.state.path) as connection:
        got = read_snapshot(connection, lines=[youngest])
    line, at = {youngest, found.baseline.id}, found.candidates[youngest]
    while at.parent is not None:
        at = found.candidates[at.parent]
        line.add(at.id)
    assert {*got.candidates} == line
    born = found.candidates[youngest].generation
    assert got.decisions == tuple(one for one in found.decisions if one.generation == born)
    assert got.generations == found.generations
    assert got.results == {key: one for key, one in found.results.items() if key[0] in line}
    assert got.members == tuple(one for one in found.members if one.candidate == youngest)
    assert got.attempts == tuple(one for one in found.attempts if one.candidate == youngest)
    assert not got.whole
