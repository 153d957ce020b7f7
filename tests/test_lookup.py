"""Candidates are found by the names that people give them."""

import statistics
from dataclasses import replace

import pytest

from nasd.contract.errors import NasdError
from nasd.record import lookup
from nasd.record.folders import StateFolder
from nasd.record.state import Snapshot
from nasd.record.store import BASELINE
from nasd.views.status import standing
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


def scored(search: Snapshot) -> dict[int, tuple[float, int]]:
    return {
        one.id: (q, one.parameters)
        for one in search.candidates.values()
        if (q := search.quality(one.id)) is not None
    }


def test_the_smallest_within_some_points_of_the_best(search: Snapshot):
    every = scored(search)
    highest = max(quality for quality, _ in every.values())
    for points in (0.0, 1.0, 5.0, 100.0):
        found = lookup.find(search, "best", lookup.Wish(smallest_within=points))
        near = [size for quality, size in every.values() if quality >= highest - points]
        assert found.parameters == min(near)
        assert every[found.id][0] >= highest - points


def test_the_best_with_at_most_a_share_of_the_baselines_parameters(search: Snapshot):
    every, base = scored(search), search.baseline.parameters
    for _, size in every.values():
        found = lookup.find(search, "best", lookup.Wish(max_parameters=100.001 * size / base))
        fitting = [q for q, other in every.values() if other <= 1.00001 * size]
        assert every[found.id][0] == max(fitting)
    with pytest.raises(NasdError, match=r"no scored candidate has 0.1 % .*the smallest has \d"):
        lookup.find(search, "best", lookup.Wish(max_parameters=0.1))


def test_the_best_holds_the_limits_where_anybody_does(search: Snapshot):
    sizes = {one: search.size(one) for one in scored(search)}
    for least in (0.0, statistics.median(sizes.values()), 1e6):
        own = {**search.experiment.config["experiment"], "limits": [f"compression >= {least}"]}
        experiment = replace(
            search.experiment, config={**search.experiment.config, "experiment": own}
        )
        limited = replace(search, experiment=experiment)
        within = [one for one, size in sizes.items() if size >= least] or list(sizes)
        best = max(scored(search)[one][0] for one in within)
        found = lookup.find(limited, "best")
        assert found.id in within and limited.quality(found.id) == best


def test_the_best_is_of_those_that_stand_as_long_as_anybody_does(search: Snapshot):
    best = lookup.find(search, "best").id
    assert lookup.find(search, "best", stands=lambda one: one.id != best).id != best
    assert lookup.find(search, "best", stands=lambda one: False).id == best


def test_a_wish_is_for_the_best_alone(search: Snapshot):
    with pytest.raises(NasdError, match="give best in the place of 3"):
        lookup.find(search, "3", lookup.Wish(smallest_within=1))


def test_nobody_dominates_the_front_of_all_ever_scored_and_it_dominates_all_others(
    search: Snapshot,
):
    every = scored(search)
    front = {one.id for one in standing.ever(search)}
    for one, (quality, size) in every.items():
        better = [
            other
            for other, (q, s) in every.items()
            if q >= quality and s <= size and (q, s) != (quality, size)
        ]
        assert (one in front) == (not better)
