"""The last generations: nobody new is bred, and the front is trained on."""

from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from nasd.contract.errors import NasdError
from nasd.contract.genotype import unchanged
from nasd.control.tick import Tick
from nasd.policy import ladder
from nasd.record.folders import StateFolder
from nasd.record.lifecycle import DecisionKind, State
from nasd.record.state import Snapshot
from nasd.search.pareto import ranks
from nasd.search.variation.operators import TRAIN_ON
from nasd.views import dossier, dossier_view
from tests.conftest import advance, drive, make_tick, story, without_summaries
from tests.test_screening import screened

LAST = 2
CONFIG = screened(population__finishing=1)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tick, Snapshot]:
    with without_summaries():
        tick = make_tick(StateFolder(tmp_path_factory.mktemp("finished") / "state"), CONFIG)
        drive(tick)
        return tick, tick.store.read()


def test_in_a_finishing_generation_the_front_of_its_parents_is_trained_on(
    done: tuple[Tick, Snapshot],
) -> None:
    snap = done[1]
    parents = [m.candidate for m in snap.members if (m.generation, m.role) == (LAST, "parent")]
    points = [point for one in parents if (point := snap.point(one))]
    rank = ranks(points, [snap.missed(one) for one in parents])
    front = [one for one, place in zip(parents, rank, strict=True) if place == 0]
    born = snap.born_in(LAST)
    assert [one.parent for one in born] == front
    for one in born:
        assert one.operators == (TRAIN_ON,)
        assert one.parent is not None
        assert one.genotype == snap.candidates[one.parent].genotype
        assert one.lineage == unchanged(one.genotype)
        assert one.state is State.SCORED
        assert one.hash == f"{one.genotype.hash}.{one.id}"
    assert snap.decided(LAST, DecisionKind.SCREEN) is None, "nobody is left to be tried"
    assert [one.generation for one in snap.controls] == [0, 1, LAST], "the control goes on as well"


def test_who_is_trained_on_begins_where_its_parent_ended(done: tuple[Tick, Snapshot]) -> None:
    snap = done[1]
    for one in snap.born_in(LAST):
        first = ladder.steps_of(snap, CONFIG, one)[0]
        fresh = replace(one, stage=first, state=State.PENDING)
        assert ladder.weights_of(snap, CONFIG, fresh) == ((one.parent, first), True)


def test_killed_between_any_two_turns_a_finishing_search_tells_the_same_story(
    done: tuple[Tick, Snapshot], tmp_path: Path
) -> None:
    with without_summaries():
        tick = make_tick(StateFolder(tmp_path / "state"), CONFIG)
        for turn in range(400):
            tick()
            if tick.store.read().experiment.state != "running":
                break
            advance(tick)
            if turn % 3 == 0:  # another daemon begins anew what ran
                tick = make_tick(tick.state, CONFIG, clock=tick.clock, store=tick.store)  # type: ignore[arg-type]
                tick.begin()
    assert story(tick.store) == story(done[0].store)


def test_a_page_says_who_is_trained_on(done: tuple[Tick, Snapshot]) -> None:
    tick, snap = done
    one = snap.born_in(LAST)[0]
    told = dossier.compile_dossier(tick.state.path, str(one.id), tick.clock())
    console = Console(width=160, file=StringIO())
    console.print(dossier_view.render(told))
    page = console.file.getvalue()  # type: ignore[attr-defined]
    assert f"trained on, as it stood on the front: {one.parent}" in page
    assert "nothing: it is trained on" in page


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"population__finishing": 3}, "population.finishing: 3 generations are more than the 2"),
        (
            {"population__finishing": 1, "variation__inherit_from": "mlm"},
            'set variation.inherit_from = "task"',
        ),
    ],
)
def test_what_cannot_be_finished_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(NasdError, match=said):
        screened(**changes)
