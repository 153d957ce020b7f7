"""Rules of promotion on learning curves that were recorded: every candidate comes to an end of its
own, and what the bench tells of it is so."""

import random

import pytest

from nasd.search.pareto import ranks
from tests.bench.fidelity import TABLE, WAYS, Known, Replay, Way, figures, missed, read

KNOWN = read(TABLE)


def pool_of(seed: int, count: int = 20) -> dict[int, Known]:
    return dict(enumerate(random.Random(seed).sample(KNOWN, count)))


def test_the_table_holds_whole_curves_of_different_candidates():
    assert len(KNOWN) > 150
    assert len({one.curve for one in KNOWN}) == len(KNOWN)
    for one in KNOWN:
        assert one.curve[-1][0] == one.steps
        assert len(one.curve) >= 12
        assert one.seconds > 0
        assert 0 <= one.quality <= 100


@pytest.mark.parametrize("name", WAYS)
def test_everybody_is_cut_or_comes_to_the_end_and_nobody_does_both(name):
    way = WAYS[name]
    for seed in range(5):
        pool = pool_of(seed)
        run = Replay(way, pool).run()
        ended = [one for _, one in run.ended]
        assert len(ended) == len({*ended})
        assert {*ended} | run.cut == {*pool}
        assert not {*ended} & run.cut
        assert ended
        paid = sum(one.seconds for one in pool.values())
        assert sum(pool[one].seconds for one in ended) <= run.busy + 1e-9 <= paid + 2e-9
        assert run.busy <= 4 * run.now + 1e-9
        again = Replay(way, pool).run()
        assert (again.ended, again.cut, again.busy) == (run.ended, run.cut, run.busy)


def test_a_rule_of_several_objectives_misses_less_than_one_by_losses():
    by_losses, by_both = (Way(rule, ((0.25, 0.5), (0.5, 0.5))) for rule in ("share", "halving"))
    lost = {"losses": 0.0, "both": 0.0}
    for seed in range(5):
        pool = pool_of(seed, 40)
        rank = ranks([one.point for one in pool.values()])
        front = [one for one, place in zip(pool, rank, strict=True) if place == 0]
        lost["losses"] += missed(Replay(by_losses, pool).run(), front)
        lost["both"] += missed(Replay(by_both, pool).run(), front)
    assert lost["both"] < lost["losses"]


def test_what_the_bench_tells_of_no_cutoff_is_all_of_it():
    found = figures(KNOWN, 24, 2)
    assert found.keys() == WAYS.keys()
    assert found["no cutoff"]["cut"] == found["no cutoff"]["missed"] == 0
    assert found["no cutoff"]["volume"] == max(one["volume"] for one in found.values())
    assert 0 < found["share, half at 1/2"]["regained"] <= 1.0
    assert found["share, half at 1/2"]["hours"] == 1.0
