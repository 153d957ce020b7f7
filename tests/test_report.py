"""The report: what it finds in a search, how sure it is, and that its page needs nothing else."""

import json
import math
import random
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pyarrow.csv
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from typer.testing import CliRunner

from nasd import cli
from nasd.contract import config as config_module
from nasd.contract import readable
from nasd.contract.errors import NasdError
from nasd.contract.genotype import BlockLineage, unchanged
from nasd.control.tick import Tick
from nasd.record import snapshot
from nasd.record.folders import StateFolder
from nasd.record.lifecycle import AttemptState, State
from nasd.record.state import Attempt, Snapshot, StageResult
from nasd.record.store import Store
from nasd.search.variation.breeding import mutate
from nasd.views.report import statistics, words, write
from nasd.views.report.descent import family, framed, tree_places
from nasd.views.report.drawing import COLOURS, apart, lay_out, outer_labels, panels_on, some_of
from nasd.views.report.figures import drawings
from nasd.views.report.findings import TABLES, Findings
from nasd.views.report.losses import missed
from nasd.views.report.mutations import MUTATIONS, between, in_words
from nasd.views.report.page import _tables, render, toml
from nasd.views.report.regret import price, stopped
from tests.bench.control import fill
from tests.conftest import BASELINE, START, drive, make_tick, small_config
from tests.test_status import WHEN, one_diverges

# -- searches --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def searches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Tick]]:
    """Searches at several points of their lives, the last of them complete."""
    ticks = {}
    for name, until in WHEN.items():
        state = StateFolder(tmp_path_factory.mktemp("report") / "state")
        ticks[name] = make_tick(state, small_config(), one_diverges)
        if until:
            drive(ticks[name], until)
    yield ticks
    for tick in ticks.values():
        tick.store.close()


def facts_of(tick: Tick) -> Findings:
    return write.read(tick.state.path, tick.clock())


@pytest.fixture(scope="module")
def complete(searches: dict[str, Tick]) -> Findings:
    return facts_of(searches["complete"])


@pytest.fixture(scope="module")
def written(complete: Findings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(write, "PNG_DPI", 30)
        return write.write(complete, tmp_path_factory.mktemp("out") / "report", png=True).parent


def with_regret(facts: Findings) -> tuple[Findings, list[int]]:
    """As if the cut candidates of the newest generation had been trained to the end, to a quality
    of 90 % and more."""
    snap = facts.snapshot
    ids = [one.id for one in stopped(snap)]
    candidates, results = dict(snap.candidates), dict(snap.results)
    for place, number in enumerate(ids):
        candidates[number] = replace(snap.candidates[number], state=State.SCORED, stage="evaluate")
        results[number, "pretrain_1"] = StageResult(
            number, "pretrain_1", '{"loss": 2.5}', "[[5, 3.0], [10, 2.5]]", 10, 9.0
        )
        scores = json.dumps({"exact_match": 90.0 + place, "f1": 90.0 + place})
        results[number, "evaluate"] = StageResult(number, "evaluate", scores, "[]", 0, 9.0)
    return Findings(replace(snap, candidates=candidates, results=results), facts.now), ids


# -- estimates -------------------------------------------------------------------------------------


def pairs(r: float, n: int) -> tuple[list[float], list[float]]:
    """x and y that correlate by exactly r."""
    rng = np.random.default_rng(n)
    x = rng.normal(size=n)
    x -= x.mean()
    rest = rng.normal(size=n)
    rest -= rest.mean()
    rest -= x * (rest @ x) / (x @ x)
    y = r * x / np.linalg.norm(x) + math.sqrt(1 - r * r) * rest / np.linalg.norm(rest)
    return x.tolist(), y.tolist()


def test_the_interval_of_pearson_is_fishers():
    """Worked by hand: z = 0.549 with a standard error of 1 / sqrt(25) gives 0.156 to 0.736."""
    found = statistics.pearson(*pairs(0.5, 28))
    assert found is not None
    assert (found.value, found.n) == (pytest.approx(0.5), 28)
    assert (found.low, found.high) == pytest.approx((0.1562, 0.7361), abs=1e-3)


def test_the_interval_of_spearman_is_the_wider_one_of_bonett_and_wright():
    x = [float(value) for value in range(1, 11)]
    y = [2.0, 1.0, 4.0, 3.0, 6.0, 5.0, 8.0, 7.0, 10.0, 9.0]
    found = statistics.spearman(x, y)
    assert found is not None
    r = 1 - 6 * 10 / (10 * 99)
    half = 1.959964 * math.sqrt((1 + r * r / 2) / 7)
    assert found.value == pytest.approx(r)
    assert found.low == pytest.approx(math.tanh(math.atanh(r) - half))
    assert found.high == pytest.approx(math.tanh(math.atanh(r) + half))
    fisher = statistics.pearson(x, y)
    assert fisher is not None and found.low < fisher.low


@given(st.lists(st.tuples(st.integers(-50, 50), st.integers(-50, 50)), min_size=4, max_size=30))
def test_spearman_goes_by_ranks_alone(points: list[tuple[int, int]]):
    x, y = [float(a) for a, _ in points], [float(b) for _, b in points]
    one = statistics.spearman(x, y)
    other = statistics.spearman([value**3 for value in x], [math.exp(value / 9) for value in y])
    assert (one is None) == (other is None)
    if one is not None and other is not None:
        assert one.value == pytest.approx(other.value)
        assert -1 <= one.low <= one.value <= one.high <= 1


@given(st.lists(st.tuples(*[st.integers(0, 9).map(float)] * 2), min_size=4, max_size=30))
@settings(deadline=None)
def test_estimates_are_those_of_scipy(pairs: list[tuple[float, float]]):
    x, y = [one for one, _ in pairs], [one for _, one in pairs]
    for ours, theirs in (
        (statistics.pearson(x, y), stats.pearsonr),
        (statistics.spearman(x, y), stats.spearmanr),
    ):
        if ours is not None:
            assert ours.value == pytest.approx(float(theirs(x, y).statistic), abs=1e-12)
    mean = statistics.mean(x)
    assert mean is not None
    if len(set(x)) > 1:
        interval = stats.t.interval(0.95, len(x) - 1, np.mean(x), stats.sem(x))
        assert (mean.low, mean.high) == pytest.approx(tuple(map(float, interval)))
    found = sum(one > 4 for one in x)
    wilson = stats.binomtest(found, len(x)).proportion_ci(0.95, method="wilson")
    share = statistics.share(found, len(x))
    assert share is not None
    assert (share.low, share.high) == pytest.approx((float(wilson.low), float(wilson.high)))


@given(st.integers(1, 3000))
@settings(deadline=None)
def test_students_quantile_is_that_of_scipy(n: int):
    assert statistics.student(n) == pytest.approx(float(stats.t.ppf(0.975, n)), rel=1e-10)


@pytest.mark.parametrize("correlate", [statistics.pearson, statistics.spearman])
def test_too_few_points_or_a_constant_have_no_correlation(correlate: Any):
    assert correlate([1.0, 2.0, 3.0], [3.0, 1.0, 2.0]) is None
    assert correlate([1.0, 2.0, 3.0, 4.0], [5.0] * 4) is None
    assert correlate([], []) is None


def test_a_perfect_correlation_has_no_interval_that_could_be_told():
    found = statistics.pearson([1.0, 2.0, 3.0, 4.0], [2.0, 4.0, 6.0, 8.0])
    assert found is not None and found.low == found.value == found.high == pytest.approx(1)


def test_the_interval_of_a_mean_is_students():
    found = statistics.mean([1.0, 2.0, 3.0, 4.0, 5.0])
    assert found is not None
    assert (found.value, found.n) == (3.0, 5)
    assert found.high - 3 == pytest.approx(2.7764 * math.sqrt(2.5 / 5), abs=1e-4)
    assert 3 - found.low == pytest.approx(found.high - 3)
    assert statistics.mean([1.0]) is None


def test_the_interval_of_a_share_is_wilsons():
    found = statistics.share(8, 10)
    assert found is not None
    assert (found.value, found.low, found.high) == (
        0.8,
        pytest.approx(0.4902, abs=1e-4),
        pytest.approx(0.9433, abs=1e-4),
    )
    assert statistics.share(0, 0) is None


def test_least_squares_tells_effects_apart_that_always_come_together_with_others():
    rng = random.Random(1)
    rows = [[float(rng.randrange(3)), float(rng.randrange(3))] for _ in range(40)]
    noise = [rng.gauss(0, 0.1) for _ in rows]
    y = [5 - 2 * a + 1 * b + e for (a, b), e in zip(rows, noise, strict=True)]
    found = statistics.least_squares(rows, y)
    assert found is not None
    for estimate, true in zip(found, (-2.0, 1.0), strict=True):
        assert estimate.low < true < estimate.high
        assert estimate.high - estimate.low < 0.2


def test_least_squares_is_silent_where_data_says_nothing():
    assert statistics.least_squares([], []) is None
    assert statistics.least_squares([[1.0]] * 9, [1.0] * 9) is None  # too few
    both = [[float(n % 3), float(n % 3)] for n in range(30)]  # the same column twice
    assert statistics.least_squares(both, [1.0] * 30) is None


# -- mutations -------------------------------------------------------------------------------------


def test_each_kind_of_mutation_is_counted_once():
    lineage = (
        BlockLineage.of(0, True, ("kept", "added")),
        BlockLineage.of(None, True, ("added",)),  # a new block's parts are part of it
        BlockLineage.of(2, False, ("altered",)),
    )
    assert between(lineage, BASELINE) == {
        "block added": 1,
        "block removed": 1,
        "FFN added": 1,
        "FFN altered": 1,
        "attention altered": 1,
    }
    assert between(unchanged(BASELINE), BASELINE) == {}


@given(st.integers(0, 10**6))
def test_the_kinds_of_mutation_account_for_every_difference(seed: int):
    config = small_config()
    rates = config.variation.offspring
    child, lineage = mutate(BASELINE, BASELINE, config.search_space, rates, random.Random(seed))
    found = between(lineage, BASELINE)
    assert set(found) <= set(MUTATIONS)
    assert found["block added"] - found["block removed"] == len(child.blocks) - len(BASELINE.blocks)
    assert bool(found) == (lineage != unchanged(BASELINE))
    assert bool(in_words(found)) == bool(found)


def test_mutations_are_held_against_the_parents_and_the_selection(complete: Findings):
    snap = complete.snapshot
    for row in complete.mutations[:-1]:
        born = [
            one
            for one in snap.candidates.values()
            if one.parent is not None
            and between(one.lineage, snap.candidates[one.parent].genotype)[row.mutation]
        ]
        assert row.candidates == len(born)
        changes = [
            here - there
            for one in born
            if (here := snap.quality(one.id)) is not None
            and (there := snap.quality(one.parent or 0)) is not None
        ]
        assert row.quality_n == len(changes)
        if len(changes) > 1:
            assert row.quality == pytest.approx(sum(changes) / len(changes))
            assert row.quality_low <= row.quality <= row.quality_high
        ways = [100 * (o.parameters / snap.candidates[o.parent or 0].parameters - 1) for o in born]
        if len(ways) > 1:
            assert row.parameters_percent == pytest.approx(sum(ways) / len(ways))
        lasting = [one.id in snap.survivors(one.generation or 0) for one in born]
        assert row.survived_n == len(born)
        assert not born or row.survived == pytest.approx(sum(lasting) / len(born))
    assert complete.mutations[-1].candidates == len(snap.candidates) - 1


# -- what is spent and lost ------------------------------------------------------------------------


@pytest.mark.parametrize("name", WHEN)
def test_every_sum_of_hours_is_the_ledger(searches: dict[str, Tick], name: str):
    facts = facts_of(searches[name])
    ledger = facts.snapshot.gpu_hours(facts.now)
    for rows in (facts.candidates, facts.costs, facts.fates, facts.attempts):
        assert sum(row.gpu_hours for row in rows) == pytest.approx(ledger)
    assert facts.spent_by(facts.now) == pytest.approx(ledger)
    for row in facts.attempts:
        assert 0 <= row.lost_gpu_hours <= row.gpu_hours


def attempt(number: int, state: AttemptState, start: float, end: float, reached: int) -> Attempt:
    slots = ("cuda:0", "cuda:1")
    args = (number, 1, "pretrain_0", number, state, slots, str(number), None, "", "")
    return Attempt(*args, start, end, reached)


def with_attempts(facts: Findings, attempts: tuple[Attempt, ...], steps: int = 0) -> Findings:
    results = {}
    if steps:
        results[1, "pretrain_0"] = StageResult(
            1, "pretrain_0", "{}", json.dumps([(steps, 2.0)]), steps, 50.0
        )
    everyone = facts.snapshot.candidates.items()
    snap = replace(
        facts.snapshot,
        attempts=attempts,
        results=results,
        candidates={number: replace(one, state=State.PENDING) for number, one in everyone},
    )
    return Findings(snap, facts.now)


def test_what_a_checkpoint_saved_is_not_lost(complete: Findings):
    """It ran 100 s to step 40 and left a checkpoint of step 30; another 60 s took it from there to
    60. At 2 s a step, 60 of the 100 s were saved; on two slots."""
    broken = attempt(1, AttemptState.LOST, 0, 100, 30)
    good = attempt(2, AttemptState.SUCCEEDED, 100, 160, 60)
    facts = with_attempts(complete, (broken, good), steps=60)
    assert [row.lost_gpu_hours * 3600 for row in facts.attempts] == [pytest.approx(80), 0]


def test_an_attempt_without_a_checkpoint_is_lost_as_a_whole(complete: Findings):
    broken = attempt(1, AttemptState.LOST, 0, 100, 0)
    again = attempt(2, AttemptState.PREEMPTED, 100, 150, 0)
    facts = with_attempts(complete, (broken, again))
    assert [row.lost_gpu_hours * 3600 for row in facts.attempts] == [200, 100]


# -- generations, losses, cutoffs ------------------------------------------------------------------


def test_hypervolume_is_as_recorded_and_never_falls_among_all_scored(complete: Findings):
    recorded = [d.payload["hypervolume"] for d in complete.snapshot.decisions if d.kind == "select"]
    assert [row.hypervolume for row in complete.generations] == recorded
    volumes = [row.hypervolume for row in complete.progress]
    assert volumes == sorted(volumes)
    assert volumes[-1] >= max(recorded) - 1e-9
    scored = [row for row in complete.candidates if row.quality is not None and not row.is_baseline]
    assert {row.candidate for row in complete.progress} == {row.id for row in scored}


def test_the_front_of_all_ever_scored_holds_whom_nobody_dominates(complete: Findings):
    (table,) = _tables(complete)["pareto"]
    scored = [r for r in complete.candidates if r.quality is not None and not r.is_baseline]
    best = {
        row.name
        for row in scored
        if not any(
            (other.size >= row.size and (other.quality or 0) >= (row.quality or 0))
            and (other.size, other.quality) != (row.size, row.quality)
            for other in scored
        )
    }
    assert {line[0] for line in table.rows} == best | {"baseline"}


def test_generations_account_for_everybody_born(complete: Findings):
    for row in complete.generations:
        assert row.born == row.scored + row.cut + row.failed
    assert sum(row.failed for row in complete.generations) == 1


def test_curves_go_on_from_stage_to_stage(complete: Findings):
    kept = next(row.candidate for row in complete.cutoffs if row.kept)
    steps = [(row.stage, row.step) for row in complete.curves if row.candidate == kept]
    assert steps == [("pretrain_0", 5), ("pretrain_0", 10), ("pretrain_1", 15), ("pretrain_1", 20)]


def test_a_candidate_with_nothing_new_to_train_has_its_one_point_at_the_cutoff(complete: Findings):
    snap = complete.snapshot
    one = next(row.candidate for row in complete.cutoffs)
    results = dict(snap.results)
    results[one, "pretrain_0"] = replace(
        results[one, "pretrain_0"], curve_json="[[0, 2.0]]", steps=0
    )
    facts = Findings(replace(snap, results=results), complete.now)
    (point,) = [r for r in facts.curves if (r.candidate, r.stage) == (one, "pretrain_0")]
    assert point.step == facts.stage_end("pretrain_0") == 10


def test_correlations_tell_generations_without_a_cutoff_apart(complete: Findings):
    groups = {row.among: row.n for row in complete.correlations if row.stage == "pretrain_0"}
    scored = [row for row in complete.candidates if row.quality is not None and not row.is_baseline]
    assert groups["all scored"] == len(scored)
    assert groups["generations without a cutoff"] == sum(row.generation == 0 for row in scored)
    assert groups["generation 2"] == sum(row.generation == 2 for row in scored)
    few = [row for row in complete.correlations if row.n < 4]
    assert few and all(row.value is None for row in few)


def test_what_a_cutoff_missed_is_told_once_it_is_known(complete: Findings):
    assert complete.missed == ()
    facts, ids = with_regret(complete)
    assert sorted(row.candidate for row in facts.missed) == ids
    best = max(facts.missed, key=lambda row: row.quality)
    assert best.quality_place == 1 and best.would_survive
    for row in facts.missed:
        kept = [one for one in facts.cutoffs if one.kept and one.generation == row.generation]
        assert row.loss >= max(one.loss for one in kept)
        assert row.loss_place > sum(one.quality is not None for one in kept)
        assert facts.by_id[row.candidate].cut
    assert missed(facts).figure is not None


# -- the price of regret ---------------------------------------------------------------------------


def slower(snap: Snapshot, factor: float) -> Snapshot:
    return replace(
        snap,
        attempts=tuple(
            replace(one, ended_at=one.started_at + factor * (one.ended_at - one.started_at))
            for one in snap.attempts
            if one.ended_at is not None
        ),
    )


def test_the_price_of_regret_is_what_the_missing_stages_took_others(complete: Findings):
    snap, config = complete.snapshot, small_config()
    cut = stopped(snap)
    assert cut and {one.generation for one in cut} == {2}
    asked = price(snap, config, cut)
    assert list(asked.stages) == ["pretrain_1", "finetune", "evaluate"]
    assert asked.candidates == tuple(one.id for one in cut)
    assert sum(asked.stages.values()) == pytest.approx(asked.gpu_hours)
    assert 0 < asked.low <= asked.gpu_hours <= asked.high
    # Every attempt took 30 s, on 2, 2 and 1 slots, however large the candidate.
    assert asked.gpu_hours == pytest.approx(len(cut) * 150 / 3600, rel=0.8)
    alone = [price(snap, config, [one]).gpu_hours for one in cut]
    assert sum(alone) == pytest.approx(asked.gpu_hours)


def test_the_price_of_regret_follows_the_measured_pace(complete: Findings):
    snap, config = complete.snapshot, small_config()
    one, other = (price(of, config, stopped(snap)) for of in (snap, slower(snap, 3.0)))
    assert other.gpu_hours == pytest.approx(3 * one.gpu_hours)
    assert (other.low, other.high) == (pytest.approx(3 * one.low), pytest.approx(3 * one.high))


def test_a_pace_that_nobody_measured_has_no_price(complete: Findings):
    snap = complete.snapshot
    results = {key: one for key, one in snap.results.items() if key[1] != "finetune"}
    with pytest.raises(NasdError, match="nobody has finished finetune yet"):
        price(replace(snap, results=results), small_config(), stopped(snap))


# -- words -----------------------------------------------------------------------------------------


def test_small_differences_keep_three_digits():
    assert words.significant(-0.0001234) == "−0.000123"
    assert words.significant(0.0) == "0.00"
    assert words.significant(None) == "–"


def test_an_interval_of_two_does_not_hide_the_others():
    usual = [(0.0, -1.0, 1.0), (2.0, 1.0, 3.0), (-1.0, -2.0, 0.0)]
    assert framed(usual) is None
    assert framed([]) is None
    low, high = framed([*usual, (0.5, -60.0, 61.0)])
    assert -5 < low < -2 and 3 < high < 6
    low, high = framed([*usual, (80.0, 20.0, 140.0)])  # the value itself stays in sight
    assert low < -2 and 80 < high < 95


def with_scores(
    facts: Findings, baseline: float, sizes: dict[int, float], quality: float
) -> Findings:
    """The baseline at one quality, all others at another and of given sizes."""
    snap = facts.snapshot
    results = dict(snap.results)
    candidates = dict(snap.candidates)
    for (number, stage), result in snap.results.items():
        if stage == "evaluate":
            value = baseline if number == 0 else quality
            results[number, stage] = replace(
                result, metrics_json=json.dumps({"exact_match": value, "f1": value})
            )
    for number, size in sizes.items():
        parameters = round(snap.baseline.parameters / size)
        candidates[number] = replace(snap.candidates[number], parameters=parameters)
    return Findings(replace(snap, results=results, candidates=candidates), facts.now)


def test_the_answer_says_whether_the_baseline_was_beaten(complete: Findings):
    everyone = {row.id: 0.8 for row in complete.candidates if not row.is_baseline}
    scored = [row.id for row in complete.candidates if row.quality is not None][1:]
    cases = {
        "is smaller than the baseline and at least as good": (80.0, {**everyone, scored[0]: 1.25}),
        "smallest within 1 point of it": (80.5, {**everyone, scored[0]: 1.25}),
        "the closest: candidate": (90.0, {**everyone, scored[0]: 1.25}),
        "No scored candidate is smaller": (80.0, everyone),
    }
    for sentence, (baseline, sizes) in cases.items():
        told = " ".join(words.answer(with_scores(complete, baseline, sizes, 80.0)))
        assert sentence in told
        assert sum(one in told for one in cases) == 1
        assert "Best quality: candidate" in told


def test_the_answer_tells_cost_and_time_and_what_chance_does(complete: Findings):
    told = " ".join(words.answer(complete))
    assert "The search is complete" in told
    assert f"{readable.hours(complete.gpu_hours)} slot-hours" in told
    assert "test questions alone moves an EM" in told
    assert words.instant(START) in told


def test_the_answer_tells_what_the_data_is_worth(complete: Findings):
    snap = complete.snapshot
    assert snap.experiment.prepared is not None
    poor = {**snap.experiment.prepared, "qa_unknown": 0.2, "qa_test_questions": 60}
    experiment = replace(snap.experiment, prepared=poor)
    told = words.answer(Findings(replace(snap, experiment=experiment), complete.now))
    assert any(one.startswith("20.0 % of the tokens in the contexts are [UNK]") for one in told)
    assert any(one.startswith("60 test questions are too few to tell") for one in told)
    assert not any("[UNK]" in one or "too few to tell" in one for one in words.answer(complete))


@pytest.mark.parametrize("name", WHEN)
def test_there_is_an_answer_at_every_point_of_a_search(searches: dict[str, Tick], name: str):
    told = words.answer(facts_of(searches[name]))
    assert all(sentence.endswith((".", ")")) for sentence in told)
    assert ("under way" in " ".join(told)) == (name != "complete")


# -- layout ----------------------------------------------------------------------------------------


@given(st.lists(st.floats(-10, 10), max_size=20), st.floats(0.01, 3))
def test_labels_are_pushed_apart_and_keep_their_order(values: list[float], gap: float):
    values.sort()
    placed = apart(values, gap)
    assert len(placed) == len(values)
    assert all(b - a >= gap - 1e-6 for a, b in pairwise(placed))
    assert sum(placed) == pytest.approx(sum(values), abs=1e-6)
    if all(b - a >= gap for a, b in pairwise(values)):
        assert placed == pytest.approx(values)
    raised = apart(values, gap, -2.0)
    assert all(value >= -2 for value in raised)
    assert all(b - a >= gap - 1e-6 for a, b in pairwise(raised))


@given(st.lists(st.integers(0, 10**6), max_size=40))
def test_no_two_branches_of_the_family_tree_cross(draws: list[int]):
    children: dict[int, list[int]] = {}
    for node, draw in enumerate(draws, 1):
        children.setdefault(draw % node, []).append(node)
    places = tree_places(0, children)
    assert set(places) == set(range(len(draws) + 1))

    def rows(node: int) -> set[float]:
        own = children.get(node, [])
        return {places[node]} if not own else set().union(*(rows(child) for child in own))

    for node in places:
        leaves = sorted(rows(node))
        assert leaves == [leaves[0] + step for step in range(len(leaves))]
        assert leaves[0] <= places[node] <= leaves[-1]


@given(st.integers(1, 100))
def test_a_choice_of_panels_holds_the_first_and_the_last(n: int):
    chosen = some_of(range(n), 12)
    assert chosen[0] == 0 and chosen[-1] == n - 1
    assert chosen == sorted(set(chosen)) and len(chosen) == min(n, 12)


@pytest.mark.parametrize("panels", [1, 3, 5, 10, 12])
def test_panels_stand_in_rows_and_columns_without_covering_each_other(panels: int):
    columns = min(panels, 4)
    figure, grid = panels_on(math.ceil(panels / columns), columns, height=2.0, share=True)
    for place, axes in enumerate(grid[:panels]):
        axes.plot([0, 1e6], [0, 10**place])
        axes.set_title(f"generation {place}")
    outer_labels(grid[:panels], columns, "steps", "loss")
    lay_out(figure)
    at = [axes.get_position() for axes in grid[:panels]]
    for place, box in enumerate(at):
        assert (box.x0, box.x1) == pytest.approx((at[place % columns].x0, at[place % columns].x1))
        first = at[place - place % columns]
        assert (box.y0, box.y1) == pytest.approx((first.y0, first.y1))
    taken = [axes.get_tightbbox() for axes in grid[:panels]]
    for one, other in combinations(taken, 2):
        assert not one.overlaps(other)


def test_names_in_a_long_family_lie_on_no_other_and_the_axis_can_be_read(tmp_path: Path):
    fill(StateFolder(tmp_path), 600)
    figure = family(write.read(tmp_path)).figure
    assert figure is not None
    lay_out(figure)
    (axes,) = figure.axes
    names = [one.get_window_extent() for one in axes.texts]
    numbers = [one.get_window_extent() for one in axes.get_xticklabels()]
    assert len(names) > 8 and len(numbers) > 8
    for shown in (names, numbers):
        for one, other in combinations(shown, 2):
            assert not one.overlaps(other)


# -- the page --------------------------------------------------------------------------------------

VOID = {"meta", "input", "br", "link", "img"}


class Page(HTMLParser):
    """What a page refers to, its ids, and its figures."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.references: list[str] = []
        self.ids: list[str] = []
        self.figures: list[str] = []  # the alternative of each, or what it says is missing
        self.tags: list[str] = []
        self.open: list[str] = []
        self._missing = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        given = dict(attrs)
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "action", "data", "poster", "srcset"):
                self.references.append(value or "")
            self.references += re.findall(r"url\(([^)]*)\)", value or "")
        if given.get("id"):
            self.ids.append(given["id"] or "")
        if tag == "figure":
            self.figures.append("")
        if tag == "svg":
            assert given.get("role") == "img"
            self.figures[-1] += given.get("aria-label") or ""
        self._missing = given.get("class") == "missing"

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "style":
            assert "@import" not in data and "url(" not in data
        if self._missing and self.figures:
            self.figures[-1] += data
            self._missing = False


def test_the_page_refers_to_nothing_outside_of_its_folder(written: Path):
    text = (written / "index.html").read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == []
    for reference in page.references:
        if reference.startswith("#"):
            assert reference[1:] in page.ids, reference
        else:
            assert (written / reference).is_file(), reference
    assert "://" not in re.sub(r"<pre>.*?</pre>", "", text, flags=re.DOTALL)
    assert not {"script", "link", "img", "iframe", "object", "embed"} & set(page.tags)


def test_no_two_parts_of_the_page_have_the_same_id(written: Path):
    ids = Page((written / "index.html").read_text(encoding="utf-8")).ids
    assert len(ids) == len(set(ids))


def test_the_colours_of_every_figure_follow_light_and_dark(written: Path):
    text = (written / "index.html").read_text(encoding="utf-8")
    figures = "".join(re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL))
    assert set(re.findall(r"var\(--([\w-]+)\)", figures)) <= set(COLOURS)
    assert re.findall(r"#[0-9a-f]{6}\b", figures) == []
    assert len({light for light, _ in COLOURS.values()}) == len(COLOURS)
    for role, (light, dark) in COLOURS.items():
        assert f"--{role}: light-dark({light}, {dark});" in text


@pytest.mark.parametrize("name", WHEN)
def test_each_figure_has_a_text_or_says_what_is_missing(searches: dict[str, Tick], name: str):
    facts = facts_of(searches[name])
    drawn = list(drawings(facts))
    for one in drawn:
        assert bool(one.missing) != bool(one.figure)
        assert one.missing or (one.alternative and one.caption)
    page = Page(render(facts, drawn, write.notes(facts)))
    assert len(page.figures) == len(drawn)
    assert all(text.strip() for text in page.figures)
    if name == "complete":
        assert [one.name for one in drawn if one.missing] == ["missed"]
    if name == "just begun":
        assert all(one.missing for one in drawn)


def test_names_from_outside_are_text_and_nothing_else(complete: Findings):
    experiment = replace(complete.snapshot.experiment, name='<script>alert("&")</script>')
    facts = Findings(replace(complete.snapshot, experiment=experiment), complete.now)
    page = render(facts, [], {})
    assert "<script" not in page
    assert "&lt;script&gt;alert(" in page


def test_the_page_holds_population_seed_and_config(complete: Findings, written: Path):
    text = (written / "index.html").read_text(encoding="utf-8")
    assert len(complete.final_population) == 3
    for row in (complete.baseline, *complete.final_population):
        assert row.genotype in text and row.hash in text
    assert f"the seed {complete.snapshot.experiment.seed}" in text


def test_the_config_of_the_page_is_the_experiments(complete: Findings):
    again = config_module.parse(tomllib.loads(toml(complete.config)), "page")
    assert again == small_config()


# -- the files -------------------------------------------------------------------------------------


def test_a_report_holds_every_table_and_figure(complete: Findings, written: Path):
    for name in TABLES:
        rows = getattr(complete, name)
        table = pyarrow.parquet.read_table(written / "tables" / f"{name}.parquet")
        assert table.num_rows == len(rows)
        lines = (written / "tables" / f"{name}.csv").read_text(encoding="utf-8").splitlines()
        assert [part.strip('"') for part in lines[0].split(",")] == table.column_names
        if rows:
            told = [
                name
                for column in get_type_hints(type(rows[0]))
                for name in (("exact_match", "f1") if column == "scores" else (column,))
            ]
            if "size" in told and "parameters_percent" not in told:  # what people are shown of it
                told.insert(told.index("size") + 1, "parameters_percent")
            assert table.column_names == told
    candidates = pyarrow.csv.read_csv(written / "tables" / "candidates.csv").to_pylist()
    qualities = [row["quality"] for row in candidates]
    assert qualities == [row.quality for row in complete.candidates]
    for row in candidates:
        share = 100 * row["parameters"] / complete.snapshot.baseline.parameters
        assert row["parameters_percent"] == pytest.approx(share)
    about = json.loads((written / "report.json").read_text())
    for name, said in about["figures"].items():
        there = {path.suffix for path in (written / "figures").glob(f"{name}.*")}
        assert there == (set() if name == "missed" else {".svg", ".png"}), said


def test_figures_are_drawn_as_png_only_where_that_is_asked_for(
    complete: Findings, written: Path, tmp_path: Path
):
    page = write.write(complete, tmp_path / "plain")
    assert {path.suffix for path in (page.parent / "figures").iterdir()} == {".svg"}
    plain, asked = page.read_text(), (written / "index.html").read_text()
    assert ".png" not in plain
    assert re.sub(r' <a href="figures/[\w-]+\.png">PNG</a>', "", asked) == plain


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([1, None, -(2**63), 2**63 - 1], pyarrow.int64()),
        ([0.1, None, math.inf, -0.0, 1e-320], pyarrow.float64()),
        ([True, None, False] * 5, pyarrow.bool_()),
        (["", None, 'Ä\n"', "x" * 1000], pyarrow.string()),
        *[([], kind) for kind in (pyarrow.int64(), pyarrow.bool_(), pyarrow.string())],
    ],
)
def test_a_column_is_what_pyarrow_would_make_of_it(values: list[Any], kind: pyarrow.DataType):
    found = write._array(values, kind)
    found.validate(full=True)
    assert found.equals(pyarrow.array(values, kind))


def test_text_in_svg_files_is_text(written: Path):
    svg = (written / "figures" / "pareto.svg").read_text()
    assert "<text" in svg and "generation 0</text>" in svg


def contents(folder: Path) -> dict[str, bytes]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_the_same_experiment_gives_the_same_bytes(
    complete: Findings, written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(write, "PNG_DPI", 30)
    again = Findings(complete.snapshot, complete.now)
    made = write.write(again, tmp_path / "again", png=True)
    assert contents(made.parent) == contents(written)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports without figures, where those are not what is tested."""
    monkeypatch.setattr(write, "drawings", lambda facts: iter(()))


@pytest.mark.usefixtures("quick")
def test_a_new_report_takes_the_place_of_the_old_one(complete: Findings, tmp_path: Path):
    page = write.write(complete, tmp_path / "report")
    page.write_text("damaged")
    with pytest.raises(NasdError, match=r"holds index.html, which was changed since nasd wrote it"):
        write.write(complete, tmp_path / "report")
    page.unlink()
    (page.parent / "report.json").unlink()
    assert write.write(complete, tmp_path / "report") == page
    assert [path.name for path in tmp_path.iterdir()] == ["report"]


@pytest.mark.usefixtures("quick")
def test_a_report_of_an_earlier_version_is_moved_aside_whole(complete: Findings, tmp_path: Path):
    old = tmp_path / "reports" / "search"
    old.mkdir(parents=True)
    (old / "report.json").write_text("{}")
    (old / "index.html").write_text("old")
    write.write(complete, old)
    assert (old / "index.html").read_text() != "old"
    before = tmp_path / "reports" / "search.before"
    assert contents(before) == {"report.json": b"{}", "index.html": b"old"}


@pytest.mark.usefixtures("quick")
def test_a_folder_that_holds_something_else_is_never_replaced(complete: Findings, tmp_path: Path):
    (tmp_path / "precious.txt").write_text("mine")
    (tmp_path / "report.json").write_text("mine as well")
    with pytest.raises(NasdError, match=r"has no list of .*: name another folder with --out"):
        write.write(complete, tmp_path)
    with pytest.raises(NasdError, match="is no folder"):
        write.write(complete, tmp_path / "precious.txt")
    assert contents(tmp_path) == {"precious.txt": b"mine", "report.json": b"mine as well"}
    (tmp_path / "empty").mkdir()
    assert write.write(complete, tmp_path / "empty").is_file()


@pytest.mark.usefixtures("quick")
def test_a_report_that_fails_midway_leaves_the_old_one(
    complete: Findings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    write.write(complete, tmp_path / "report")
    before = contents(tmp_path)

    def full(*arguments: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(write, "render", full)
    with pytest.raises(NasdError, match=r"cannot be written to .*: No space left on device"):
        write.write(complete, tmp_path / "report")
    assert contents(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == ["report"]


def test_the_folders_name_is_the_experiments_where_that_can_be_a_name(complete: Findings):
    def named(name: str) -> str:
        experiment = replace(complete.snapshot.experiment, name=name)
        facts = Findings(replace(complete.snapshot, experiment=experiment), complete.now)
        return str(write.default_folder(Path("/state"), facts))

    assert named("small") == "/state/reports/small"
    assert named("../two words") == "/state/reports/two-words"
    assert named("..") == "/state/reports/report"


def test_reading_writes_nothing_and_does_not_wait_for_a_writer(searches: dict[str, Tick]):
    tick = searches["running"]
    writer = Store(tick.state.database)
    writer._db.conn.execute("BEGIN IMMEDIATE")
    with snapshot.opened(tick.state.path) as connection:
        before = connection.execute("PRAGMA data_version").fetchone()
        assert facts_of(tick).candidates
        assert connection.execute("PRAGMA data_version").fetchone() == before
    writer._db.conn.execute("ROLLBACK")
    writer.close()


# -- the command -----------------------------------------------------------------------------------


@pytest.mark.usefixtures("quick")
def test_the_command_prints_the_answer_and_where_the_page_is(
    searches: dict[str, Tick], tmp_path: Path
):
    state = searches["complete"].state.path
    out = tmp_path / "out"
    done = CliRunner().invoke(cli.app, ["report", "--state", str(state), "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert f"wrote {out}/index.html" in done.output
    assert "Best quality: candidate" in done.output
    done = CliRunner().invoke(cli.app, ["report", "--state", str(state)])
    assert f"wrote {state}/reports/small/index.html" in done.output


def test_a_folder_without_an_experiment_is_one_sentence(tmp_path: Path):
    with pytest.raises(NasdError, match="holds no experiment yet: start one with `nasd run`"):
        write.read(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_report_needs_no_training_libraries():
    probe = "import sys, nasd.views.report.write; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", probe], check=False).returncode == 0
