"""Whoever is to be selected is trained for its score under several seeds: their mean counts."""

import math
from collections import Counter
from statistics import mean, stdev
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nasd.contract import seeds
from nasd.contract.config import parse
from nasd.contract.errors import NasdError
from nasd.contract.genotype import Genotype
from nasd.contract.protocol import Outcome, Spec, Verdict
from nasd.control.tick import Tick
from nasd.record.folders import StateFolder
from nasd.record.lifecycle import DecisionKind, State
from nasd.record.state import Snapshot
from nasd.record.store import BASELINE
from nasd.search import noise
from nasd.views.dossier import compile_dossier
from nasd.views.dossier_view import render
from nasd.views.history import read as read_history
from nasd.views.history import render as render_history
from nasd.views.report.findings import Findings
from nasd.views.status import as_json, facts
from tests.conftest import (
    drive,
    make_tick,
    of_tuned_parents,
    small_config,
    small_dict,
    story,
    succeeded,
    without_summaries,
)
from tests.faults import (
    begin_in,
    live_again_and_again,
    story_in,
    weights_on_disk,
)

THREE = small_config(select__seeds=3)
ERROR = 2.0  # of each evaluation, in percent


@pytest.fixture(autouse=True)
def _quick():
    with without_summaries():
        yield


def lucky(spec: Spec, before: int) -> tuple[float, Outcome | None]:
    """Each seed's score is another one, by genotype and stage."""
    outcome = succeeded(spec)
    if spec.stage is None or spec.stage.train != "none" or spec.mutants:
        return 30.0, outcome
    luck = int(Genotype.from_json(spec.genotype).hash[8:12], 16)
    off = ((luck * 7 ** seeds.nth_of(spec.stage.name)) % 13 - 6) / 2
    metrics = {name: value + off for name, value in outcome.metrics.items() if name != "loss"}
    told = {**outcome.metrics, **metrics, noise.ERROR: ERROR}
    return 30.0, outcome.model_copy(update={"metrics": told})


def searched(state: StateFolder, script: Any = lucky, config: Any = THREE) -> Tick:
    tick = make_tick(state, config, script)
    assert drive(tick).experiment.state == "complete"
    return tick


def own_scores(found: Snapshot, candidate: int) -> list[float]:
    """By seed, from the results that each has left."""
    first = found.results[candidate, "evaluate"].metrics
    values = [(first["exact_match"] + first["f1"]) / 2]
    for nth in (2, 3):
        if (candidate, f"evaluate~{nth}") in found.results:
            values.append(found.results[candidate, f"evaluate~{nth}"].metrics[noise.OF_SEED])
    return values


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Tick:
    with without_summaries(), pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda descriptor: None)
        return searched(StateFolder(tmp_path_factory.mktemp("three") / "state"))


def test_all_who_are_selected_have_the_mean_of_their_seeds_for_a_score(three: Tick) -> None:
    found = three.store.read()
    chosen = {one.candidate for one in found.members if one.survives}
    assert chosen
    for number in chosen:
        values = own_scores(found, number)
        assert len(values) == found.seeds(number) == 3
        assert found.quality(number) == pytest.approx(mean(values))
        of_seeds = stdev(values) ** 2 / 3
        assert found.quality_error(number) == pytest.approx(math.sqrt(ERROR**2 + of_seeds))
    once = [one for one in found.individuals if one.id not in chosen and one.generation]
    assert any(found.seeds(one.id) == 1 for one in once)  # who is far from it costs no more


def test_a_selection_is_by_the_means_and_all_its_offspring_were_decided_on_before(three) -> None:
    found = three.store.read()
    for generation in found.generations:
        made = [
            one
            for one in found.decisions
            if (one.generation, one.kind) == (generation.number, DecisionKind.REPEAT)
        ]
        asked = [one for decision in made for one in decision.payload["finalists"]]
        assert max(Counter(asked).values()) == 1
        selected = found.decided(generation.number, DecisionKind.SELECT)
        assert selected is not None
        own = {one.id for one in found.born_in(generation.number)}
        assert {*selected.payload["survivors"]} & own <= {*asked} <= own
        for number in asked:
            quality = selected.points[number]["quality"]
            assert quality == pytest.approx(mean(own_scores(found, number)))


def test_another_seed_starts_from_what_the_first_one_started_from(three: Tick) -> None:
    by_stage = {
        (spec.candidate, spec.stage.name): spec
        for spec in three.launcher.specs
        if spec.stage is not None
    }
    again = [key for key in by_stage if key[1] == "finetune~2"]
    assert again
    for number, _ in again:
        first, second = by_stage[number, "finetune"], by_stage[number, "finetune~2"]
        assert (second.weights, second.inherits) == (first.weights, first.inherits)
        assert second.stage.whole == "finetune~2" != first.stage.whole  # its order, its dropout
        assert (second.stage.epochs, second.stage.batch) == (first.stage.epochs, first.stage.batch)
        assert by_stage[number, "evaluate~2"].weights.endswith(f"{number}/finetune~2")


def test_children_of_fine_tuned_parents_start_from_the_first_seed(state: StateFolder) -> None:
    data = of_tuned_parents(small_dict(select__seeds=2, data__mlm=None), {"narrow": 1, "widen": 1})
    tick = searched(state, config=parse(data, "alone.toml"))
    found = tick.store.read()
    starts = [
        (spec.candidate, spec.stage.name, spec.weights, spec.inherits)
        for spec in tick.launcher.specs
        if spec.stage is not None and spec.stage.train == "all" and spec.candidate != BASELINE
    ]
    again = {one[0]: one for one in starts if one[1] == "finetune~2"}
    assert again
    for number, name, weights, inherits in starts:
        assert inherits
        parent = found.candidates[number].parent
        stage = "finetune_baseline" if parent == BASELINE else "finetune"
        assert weights.endswith(f"{parent}/{stage}") or parent == BASELINE
        if name == "finetune~2":
            assert weights == next(w for n, s, w, _ in starts if (n, s) == (number, "finetune"))


def test_weights_of_further_seeds_go_and_those_of_the_first_stay(three: Tick) -> None:
    left = weights_on_disk(three.state)
    found = three.store.read()
    assert {(number, "finetune") for number in found.survivors(2)} <= left
    again = {number for number, stage in left if stage.startswith("finetune~")}
    # They go when the next generation opens; the last one's stand at the end.
    assert {found.candidates[number].generation for number in again} <= {2}


def test_who_fails_under_another_seed_keeps_the_score_of_those_before(state: StateFolder) -> None:
    def script(spec: Spec, before: int) -> tuple[float, Outcome | None]:
        if spec.stage is not None and spec.stage.name == "finetune~3":
            return 30.0, Outcome(verdict=Verdict.DIVERGED, message="the loss is nan at step 3")
        return lucky(spec, before)

    found = searched(state, script).store.read()
    chosen = {one.candidate for one in found.members if one.survives}
    for number in chosen:
        assert found.candidates[number].state is State.SCORED
        assert found.seeds(number) == 2
        assert found.quality(number) == pytest.approx(mean(own_scores(found, number)))
    with pytest.raises(KeyError):
        found.results[next(iter(chosen)), "evaluate~3"]


@pytest.mark.parametrize("inherit_from", ["mlm", "task"])
def test_the_control_has_the_mean_of_as_many_seeds_as_whom_it_is_held_against(
    state: StateFolder, inherit_from: str
) -> None:
    began: dict[tuple[int, str], str] = {}

    def script(spec: Spec, before: int) -> tuple[float, Outcome | None]:
        if spec.stage is not None and spec.weights is not None:
            began[spec.candidate, spec.stage.name] = spec.weights
        return lucky(spec, before)

    data = small_dict(select__seeds=3, population__control=True)
    if inherit_from == "task":
        del data["data"]["mlm"]
        data = of_tuned_parents(data, {"narrow": 1, "widen": 1})
    found = searched(state, script, parse(data, "c.toml")).store.read()
    assert [one.generation for one in found.controls] == [0, 1, 2]
    for one in found.controls:
        values = own_scores(found, one.id)
        assert len(values) == found.seeds(one.id) == 3
        assert found.quality(one.id) == pytest.approx(mean(values))
        first = began[one.id, "finetune"]
        assert began[one.id, "finetune~2"] == began[one.id, "finetune~3"] == first
        made = [
            decision
            for decision in found.decisions
            if (decision.generation, decision.kind) == (one.generation, DecisionKind.REPEAT)
        ]
        assert sum(one.id in decision.payload["finalists"] for decision in made) == 1
    survive = {one.candidate for one in found.members if one.survives}
    assert all(found.seeds(number) == 3 for number in survive)


def test_a_control_bred_by_a_version_before_is_trained_once(state: StateFolder) -> None:
    """What its further seeds would start from may be gone."""
    config = small_config(select__seeds=2, population__control=True)
    tick = make_tick(state, config, lucky)
    drive(tick, lambda found: found.generation is not None and bool(found.controls))
    with tick.store._transaction():
        changed = tick.store._db.execute(
            "UPDATE decision SET payload = json_remove(payload, '$.repeats_control')"
            " WHERE kind = 'breed' AND json_extract(payload, '$.repeats_control')"
        ).rowcount
    assert changed == 1
    found = drive(tick)
    assert found.experiment.state == "complete"
    assert [found.seeds(one.id) for one in tick.store.read().controls] == [1, 2, 2]


PATIENT = small_config(
    select__seeds=2, population__control=True, daemon__infrastructure_retries=10_000
)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    state = StateFolder(tmp_path_factory.mktemp("undisturbed") / "state")
    with without_summaries():
        return story(searched(state, config=PATIENT).store)


@settings(max_examples=6)
@given(st.lists(st.integers(1, 700), min_size=1, max_size=15))
def test_a_daemon_killed_anywhere_ends_the_same(folder, undisturbed, lives) -> None:
    state = folder()
    begin_in(state, PATIENT)
    live_again_and_again(state, PATIENT, lucky, lives)
    assert story_in(state) == undisturbed


@given(
    st.lists(st.tuples(st.floats(0, 100), st.floats(0, 5)), min_size=2, max_size=6),
)
def test_scores_come_together_one_by_one_as_they_would_at_once(told) -> None:
    found: dict[str, float] = {"quality": told[0][0], noise.ERROR: told[0][1]}
    for quality, error in told[1:]:
        metrics = {"quality": quality, noise.ERROR: error}
        found = noise.with_another_seed(found, metrics, found["quality"], quality)
    qualities, errors = zip(*told, strict=True)
    assert found["quality"] == pytest.approx(mean(qualities), abs=1e-9)
    assert found[noise.SEEDS] == len(told)
    assert found[noise.DEVIATION] == pytest.approx(stdev(qualities), abs=1e-6)
    expected = mean(one**2 for one in errors) + stdev(qualities) ** 2 / len(told)
    assert found[noise.ERROR] == pytest.approx(math.sqrt(expected), abs=1e-5)


def test_a_setting_of_the_weights_that_are_kept_is_the_first_seeds() -> None:
    first = {"quality": 60.0, "loss": 1.0, "threshold": 1.0}
    told = noise.with_another_seed(first, {"loss": 3.0, "threshold": 5.0}, 60.0, 62.0)
    assert (told["loss"], told["threshold"]) == (2.0, 1.0)


def test_one_seed_is_what_a_search_was_before(state: StateFolder, folder) -> None:
    one, other = small_config(select__seeds=1), small_config()
    assert one == other and not one.further
    assert story(searched(state, config=one).store) == story(searched(folder(), config=other).store)


def test_no_seed_at_all_is_refused_with_its_key() -> None:
    with pytest.raises(NasdError, match=r"select\.seeds: .*\(it is 0\); the range is"):
        parse(small_dict(select={"seeds": 0}), "c.toml")


def test_views_tell_of_seeds(three: Tick) -> None:
    found = three.store.read()
    best = max(found.survivors(2), key=lambda one: found.quality(one) or 0.0)
    told = compile_dossier(three.state.path, str(best))
    assert told.seeds == 3
    assert any("trained under 3 seeds in all first" in one.text for one in told.decisions)
    from rich.console import Console

    console = Console(width=200)
    with console.capture() as captured:
        console.print(render(told))
    assert "(mean of 3 seeds)" in captured.get()
    rows = {row.id: row for row in Findings(found, now=1e9).candidates}
    assert rows[best].seeds == 3
    candidates = as_json.report(three.state.path)["candidates"]
    assert {one["seeds"] for one in candidates if one["id"] == best} == {3}
    with console.capture() as captured:
        console.print(render_history(read_history(three.state.path, str(best), 50)))
    assert "finetune~2" in captured.get()
    facts.read(three.state.path)
