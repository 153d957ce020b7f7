"""What `bin/bench mended` tells of searches that were made."""

import random
from pathlib import Path

import pytest

from nasd.record.folders import StateFolder
from tests.bench import mended
from tests.bench.mended import Child, fit
from tests.conftest import drive, make_tick, without_summaries
from tests.test_screening import screened


def made(count: int, of_parent: float, of_damage: float) -> list[Child]:
    """Children of two generations, of which the second is trained half a nat further."""
    rng = random.Random(3)
    found = []
    for number in range(count):
        late, parent, damage = number % 2, rng.uniform(1.0, 2.0), rng.uniform(0.0, 1.0)
        scored = 0.7 - 0.5 * late + of_parent * parent + of_damage * damage
        found.append(Child(f"generation {late}", number, parent, damage, scored))
    return found


def test_what_is_left_of_each_is_found_beside_what_a_whole_generation_gained() -> None:
    told = fit(made(12, 1.0, 0.1))
    assert told is not None
    assert told.parent == pytest.approx((1.0, 0.0), abs=1e-6)
    assert told.damage == pytest.approx((0.1, 0.0), abs=1e-6)


@pytest.mark.parametrize("count", [0, 1, 4])
def test_of_too_few_children_nothing_is_told(count: int) -> None:
    assert fit(made(count, 1.0, 0.1)) is None


def test_children_of_one_parent_tell_nothing_of_what_parents_lack() -> None:
    alike = [Child("generation 0", number, 1.5, 0.1 * number, 2.0) for number in range(9)]
    assert fit(alike) is None


def test_every_child_of_a_search_is_told_with_its_parents_loss(tmp_path: Path) -> None:
    folder = StateFolder(tmp_path / "state")
    with without_summaries():
        tick = make_tick(folder, screened())
        found = drive(tick)
        tick.store.close()
    told = mended.children(folder.path)
    assert [one.number for one in told] == sorted(
        one.id for generation in range(3) for one in found.born_in(generation)
    )
    untrained = {one.id: one.untrained for one in found.candidates.values()}
    assert all(one.parent + one.damage == untrained[one.number] for one in told)
