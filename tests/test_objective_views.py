"""What people see of a search by other objectives than the thesis's two."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nasd.contract import tasks
from nasd.record.folders import StateFolder
from nasd.record.state import Snapshot
from nasd.search.objectives import OBJECTIVES
from nasd.views import board, card
from nasd.views.report import objectives as figures
from nasd.views.report import page
from nasd.views.report.drawing import styled
from nasd.views.report.figures import _chosen
from nasd.views.report.findings import Findings
from nasd.views.status import blocks
from nasd.views.status.facts import read
from nasd.views.status.table import candidates
from tests.conftest import drive, make_tick, small_config, without_summaries

OTHERS = ["latency_ms", "peak_memory_mb", "energy_j"]


@pytest.fixture(scope="module", params=[1, 3], ids=["three", "five"])
def searched(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Snapshot]:
    config = small_config(
        experiment__objectives=["quality", "compression", *OTHERS[: request.param]],
        experiment__generations=1,
        stages__evaluate__measure=True,
    )
    folder = tmp_path_factory.mktemp("searched")
    tick = make_tick(StateFolder(folder), config)
    with without_summaries():
        drive(tick)
    found = tick.store.read()
    tick.store.close()
    return folder, found


def of(snapshot: Snapshot) -> list[str]:
    return [name for name in snapshot.experiment.objectives if name in OTHERS]


def test_a_report_draws_all_objectives_at_once_and_each_pair(
    searched: tuple[Path, Snapshot],
) -> None:
    _, snapshot = searched
    findings = Findings(snapshot, now=1e9)
    drawn = [draw for draw in _chosen(findings) if draw in (figures.parallel, figures.pairs)]
    assert drawn == [figures.parallel, figures.pairs]
    count = len(snapshot.experiment.objectives)
    front = [row for row in findings.candidates if row.front and not row.is_baseline]
    for draw in drawn:
        with styled(draw.__name__):
            found = draw(findings)
        assert found.figure is not None and found.caption and found.alternative
        for row in front:
            tips = [tip for tip in found.tips.values() if f"candidate {row.id} " in tip]
            assert tips
            for name in of(snapshot):
                value = snapshot.value(row.id, name)
                assert value is not None and f"{name} {OBJECTIVES[name].shown(value)}" in tips[0]
    assert len(found.figure.axes) == count * (count - 1) // 2  # of the pairs
    table = page._best_ever(findings)
    titles = [OBJECTIVES[name].title for name in of(snapshot)]
    assert [one for one in table.heads if one in titles] == titles


def test_a_search_by_the_thesis_s_two_has_no_such_figures(tmp_path: Path) -> None:
    tick = make_tick(StateFolder(tmp_path), small_config(experiment__generations=0))
    with without_summaries():
        drive(tick)
    chosen = _chosen(Findings(tick.store.read(), now=1e9))
    assert figures.parallel not in chosen and figures.pairs not in chosen


@pytest.mark.parametrize("width", [80, 120, 200])
def test_status_has_a_column_for_as_many_as_there_is_room_for(
    searched: tuple[Path, Snapshot], width: int
) -> None:
    folder, snapshot = searched
    facts = read(folder)
    rows = [one.plain for one in candidates(facts, width, None)]
    assert all(len(row) <= width for row in rows)
    names = of(snapshot)[: 3 if width > 80 else 1]
    scored = [one for one in facts.born if snapshot.point(one.id)]
    for one in scored:
        (row,) = [row for row in rows if row.split()[0] == str(one.id)]
        for name in names:
            value = snapshot.value(one.id, name)
            assert value is not None and OBJECTIVES[name].shown(value) in row
    assert all(OBJECTIVES[name].unit in rows[0] for name in names)
    if width == 200:
        front = [one.plain for one in blocks.ahead(facts, width, 20)]
        assert all(OBJECTIVES[name].unit in front[0] for name in of(snapshot))


def test_tensorboard_and_cards_have_every_objective(searched: tuple[Path, Snapshot]) -> None:
    _, snapshot = searched
    best = max(snapshot.individuals, key=lambda one: snapshot.quality(one.id) or -1.0)
    told = board.metrics(snapshot, best)
    scores = card._scores(snapshot, best, tasks.QA)
    for name in of(snapshot):
        value = snapshot.value(best.id, name)
        assert value is not None and told[f"results/{name}"] == value
        (row,) = [line for line in scores.splitlines() if line.startswith(f"| {name},")]
        assert OBJECTIVES[name].shown(value) in row
    measured: Any = SimpleNamespace(measure=small_config().measure)
    assert "1 example of 128 tokens by torch" in card._measured(measured, of(snapshot))[0]
    assert card._measured(measured, ["quality", "compression"]) == []
