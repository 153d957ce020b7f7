"""Candidates are found by the names that people give them."""

import pytest

from nasd import lookup
from nasd.errors import NasdError
from nasd.folders import StateFolder
from nasd.snapshot import Snapshot
from nasd.store import BASELINE
from tests.conftest import drive, make_tick, small_config


@pytest.fixture(scope="module")
def search(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    tick = make_tick(StateFolder(tmp_path_factory.mktemp("lookup") / "state"), small_config())
    found = drive(tick)
    tick.store.close()
    return found


def test_a_number_and_the_baseline_are_names(search: Snapshot):
    assert lookup.find(search, "3").id == 3
    assert lookup.find(search, "03").id == 3
    assert lookup.find(search, "baseline").id == BASELINE


def test_the_best_has_the_highest_quality(search: Snapshot):
    qualities = {one: q for one in search.candidates if (q := search.quality(one)) is not None}
    assert qualities[lookup.find(search, "best").id] == max(qualities.values())


@pytest.mark.parametrize("name", ["99999999999999999999", "-1", "³", "1.5", "", "Baseline"])
def test_what_is_no_name_is_refused_with_those_that_are(search: Snapshot, name: str):
    with pytest.raises(NasdError, match=r"there is no candidate .*(number|baseline)"):
        lookup.find(search, name)


def test_there_is_no_best_before_somebody_is_scored(state: StateFolder):
    tick = make_tick(state, small_config())
    with pytest.raises(NasdError, match="no candidate has a score yet"):
        lookup.find(tick.store.read(), "best")
    tick.store.close()
