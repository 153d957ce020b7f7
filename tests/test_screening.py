"""Many mutants for each place, tried untrained; and the control, the baseline trained on."""

import json
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from nasd.contract.config import SCREEN, Config, SearchSpace, Variation, parse
from nasd.contract.errors import NasdError
from nasd.contract.genotype import Block, BlockLineage, FeedForward, Genotype, unchanged
from nasd.contract.protocol import IGNORANCE, PARENT, Outcome, Spec, Untried, Verdict
from nasd.control import retention
from nasd.policy import births, ladder
from nasd.record.folders import StateFolder
from nasd.record.lifecycle import CandidateKind, DecisionKind, State
from nasd.record.snapshot import mutants
from nasd.record.state import Snapshot
from nasd.search.objectives import known
from nasd.search.variation.breeding import Parent, initial_population, offspring
from nasd.search.variation.keeping import informed
from nasd.search.variation.screening import Tried, best, kept
from nasd.views import dossier, dossier_view
from nasd.views.report import write
from nasd.views.status import as_json, blocks, marks, standing
from nasd.views.status.facts import read
from nasd.views.status.view import view
from nasd.worker.tasks.notes import Noted
from nasd.worker.tasks.passages import QaFeatures
from nasd.worker.tasks.qa import QaTask
from nasd.worker.tasks.varied import rows_of
from nasd.worker.tasks.windows import held_out
from tests.conftest import advance, drive, make_tick, story, succeeded, without_summaries
from tests.test_task_lineage import task_dict
from tests.training import Workshop, demo_config, make_workshop, stage, work


def screened_dict(**changes: Any) -> dict[str, Any]:
    data = task_dict(population__mu=3, population__lambda=4, experiment__generations=2)
    data["population"] |= {"screened": 5, "control": True}
    data["variation"]["adaptive"] = True
    for key, value in changes.items():
        section, name = key.split("__")
        data[section][name] = value
    return data


def screened(**changes: Any) -> Config:
    return parse(screened_dict(**changes), "screened.toml")


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Snapshot, list[Any], dict[str, Any]]:
    config = screened()
    with without_summaries():
        tick = make_tick(StateFolder(tmp_path_factory.mktemp("screened") / "state"), config)
        drive(tick)
        tried = mutants(tick.store._db.conn)
        return tick.store.read(), tried, story(tick.store)


def test_the_best_of_the_mutants_of_each_size_are_born_and_the_others_stay_in_the_record(
    done: tuple[Snapshot, list[Any], dict[str, Any]],
) -> None:
    found, tried, _ = done
    assert found.experiment.state == "complete"
    for generation in range(3):
        mine = [one for one in tried if one.generation == generation]
        places = 4 if generation else 3
        assert places < len(mine) <= 5 * places
        names = found.experiment.objectives
        points = [
            Tried(one.loss, kept(one.loss, 1.0, 2.5), known(names, one, found.baseline))
            for one in mine
        ]
        parents = [
            Tried(1.0, 1.0, known(names, found.candidates[one], found.baseline))
            for one in {one.parent for one in mine}
        ]
        born = [mine[index] for index in best(points, places, parents, least=0.5)]
        assert [one.candidate for one in born] == [one.id for one in found.born_in(generation)]
        for one in born:
            child = found.candidates[one.candidate]
            assert child.genotype == one.genotype
            assert (child.parent, child.second) == (one.parent, one.second)
        assert sum(one.candidate is None for one in mine) == len(mine) - places


def test_what_screens_and_what_controls_is_no_member_of_any_population(
    done: tuple[Snapshot, list[Any], dict[str, Any]],
) -> None:
    found, _, _ = done
    aside = {one.id for one in found.candidates.values() if one.kind is not CandidateKind.CANDIDATE}
    assert aside
    assert not aside & {member.candidate for member in found.members}
    assert not aside & {one.id for one in found.individuals}
    for made in found.decisions:
        if made.kind is DecisionKind.SELECT:
            assert not aside & {int(one) for one in made.payload["points"]}


def test_each_control_is_the_baseline_and_goes_on_from_the_one_before(
    done: tuple[Snapshot, list[Any], dict[str, Any]],
) -> None:
    found, _, _ = done
    assert [one.generation for one in found.controls] == [0, 1, 2]
    before = found.baseline.id
    for one in found.controls:
        assert one.genotype == found.baseline.genotype
        assert one.lineage == unchanged(one.genotype)
        assert (one.parent, one.state) == (before, State.SCORED)
        stages = [name for candidate, name in found.results if candidate == one.id]
        assert stages == ["finetune", "evaluate"]
        before = one.id


def test_the_rival_is_the_best_of_the_baseline_and_its_controls(
    done: tuple[Snapshot, list[Any], dict[str, Any]],
) -> None:
    found, _, _ = done
    known_to = [found.quality(one.id) or 0.0 for one in (found.baseline, *found.controls)]
    assert found.quality(found.rival.id) == max(known_to)
    front = standing.ever(found)
    assert not any(one is found.baseline for one in front) or found.rival is found.baseline


def test_show_says_of_a_screening_and_of_a_control_what_they_are_for(tmp_path: Path) -> None:
    state = StateFolder(tmp_path / "state")
    with without_summaries():
        tick = make_tick(state, screened(experiment__generations=0))
        drive(tick)
        found, now = tick.store.read(), tick.clock()
        tick.store.close()
    (screening,), (control,) = found.screenings_of(0), found.controls_of(0)
    for one, words in (
        (screening, ("has tried all mutants", "tries mutants of the baseline untrained")),
        (control, ("has climbed the whole", "the baseline, trained on as generation 0 is")),
    ):
        console = Console(width=200, file=StringIO())
        console.print(dossier_view.render(dossier.compile_dossier(state.path, str(one.id), now)))
        told = console.file.getvalue()  # type: ignore[attr-defined]
        assert all(word in told for word in words), told
        assert "drawn as a mutant" not in told


def test_the_status_chart_has_the_control_beside_the_baseline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = StateFolder(tmp_path / "state")
    with without_summaries():
        tick = make_tick(state, screened(experiment__generations=0))
        drive(tick)
        facts = read(state.path, tick.clock())
        tick.store.close()
    (control,) = facts.snapshot.controls
    for rival, seen in ((facts.snapshot.baseline, False), (control, True)):
        monkeypatch.setattr(Snapshot, "rival", rival)
        drawn = [str(one) for one in blocks.front(facts, 80, 12)]
        assert drawn[0].endswith(f" {marks.CONTROL} control") is seen
        assert any(marks.CONTROL in one for one in drawn[1:]) is seen
        assert any("the control" in str(one) for one in blocks.ahead(facts, 100, 6)) is seen


def test_killed_between_any_two_turns_a_screened_search_tells_the_same_story(
    done: tuple[Snapshot, list[Any], dict[str, Any]], tmp_path: Path
) -> None:
    config = screened()
    with without_summaries():
        tick = make_tick(StateFolder(tmp_path / "state"), config)
        for turn in range(400):
            tick()
            if tick.store.read().experiment.state != "running":
                break
            advance(tick)
            if turn % 3 == 0:  # another daemon begins anew what ran
                tick = make_tick(tick.state, config, clock=tick.clock, store=tick.store)  # type: ignore[arg-type]
                tick.begin()
        assert tick.store.read().experiment.state == "complete"
        assert story(tick.store) == done[2]


def test_many_mutants_of_one_parent_are_tried_side_by_side_and_the_same_ones_are_born(
    done: tuple[Snapshot, list[Any], dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(births, "MOST_TRIED", 4)
    with without_summaries():
        tick = make_tick(StateFolder(tmp_path / "state"), screened())
        found = drive(tick)
        tried = mutants(tick.store._db.conn)
    whole, before, _ = done
    asked = {
        one.candidate: [mutant.id for mutant in one.mutants]
        for one in tick.launcher.specs
        if one.mutants
    }
    for generation in range(3):
        mine = [one for one in tried if one.generation == generation]
        its = found.screenings_of(generation)
        dealt = [number for one in its for number in asked[one.id]]
        assert sorted(dealt) == [one.id for one in mine]
        assert max(len(asked[one.id]) for one in its) <= 4
        assert len(its) > len(whole.screenings_of(generation))
    was = [(one.generation, one.genotype, one.loss, one.candidate is None) for one in before]
    now = [(one.generation, one.genotype, one.loss, one.candidate is None) for one in tried]
    assert now == was


def test_a_control_is_never_cut(tmp_path: Path) -> None:
    from tests.conftest import small_dict

    data = small_dict(experiment__generations=1)
    data["population"]["control"] = True
    config = parse(data, "small.toml")
    assert any(one.cuts for one in config.stages)
    with without_summaries():
        tick = make_tick(StateFolder(tmp_path / "state"), config)
        drive(tick)
        found = tick.store.read()
    assert found.cutoffs
    control = found.controls[-1]
    assert control.state is State.SCORED
    assert not any(control.id in made.promotion.losses for made in found.cutoffs)


def test_the_weights_of_the_newest_control_stay_and_those_before_go(tmp_path: Path) -> None:
    config = screened()
    with without_summaries():
        tick = make_tick(StateFolder(tmp_path / "state"), config)
        drive(tick)
        wanted = retention.needed(tick.store.in_play(), config, tick.store.scored())
        controls = tick.store.read().controls
    assert (controls[-1].id, "finetune") in wanted
    assert not any((one.id, "finetune") in wanted for one in controls[:-1])


def test_a_screening_that_fails_halts_with_what_to_do_and_goes_on_once_retried(
    tmp_path: Path,
) -> None:
    broken = True

    def script(spec: Spec, before: int) -> tuple[float, Outcome | None]:
        if spec.mutants and broken:
            return 5.0, Outcome(verdict=Verdict.ERROR, message="RuntimeError: no")
        return 30.0, succeeded(spec)

    config = screened()
    with without_summaries():
        tick = make_tick(StateFolder(tmp_path / "state"), config, script)
        found = drive(tick, lambda snapshot: snapshot.experiment.state == "halted")
        (job,) = found.screenings_of(0)
        assert f"nasd retry {job.id}" in found.experiment.reason
        assert "none of generation 0's mutants could be tried" in found.experiment.reason
        broken = False
        tick.store.retry(job.id, "", 0.0)
        tick.store.resume(0.0)
        assert drive(tick).experiment.state == "complete"


def test_a_screening_starts_from_the_weights_that_the_parent_leaves(
    done: tuple[Snapshot, list[Any], dict[str, Any]],
) -> None:
    found, _, _ = done
    config = screened()
    for generation in range(3):
        jobs = found.screenings_of(generation)
        assert len({one.parent for one in jobs}) == len(jobs)
        for one in jobs:
            assert one.stage == SCREEN
            assert ladder.weights_of(found, config, one) == ((one.parent, "finetune"), False)


def test_every_view_draws_a_search_that_screens_at_every_point_of_it(tmp_path: Path) -> None:
    config = screened()
    state = StateFolder(tmp_path / "state")
    with without_summaries():
        tick = make_tick(state, config)
        for _ in range(400):
            tick()
            facts = read(state.path, tick.clock())
            for width in (80, 170):
                assert all(line.cell_len <= width for line in view(facts, width, 40))
            found = tick.store.read()
            if found.experiment.state != "running":
                break
            advance(tick)
    assert found.experiment.state == "complete"
    assert len(as_json.report(state.path, tick.clock())["controls"]) == 3
    for one in found.candidates.values():
        told = dossier.compile_dossier(state.path, str(one.id), tick.clock())
        console = Console(width=100, file=StringIO())
        console.print(dossier_view.render(told))
    made = write.write(write.read(state.path, tick.clock()), tmp_path / "report")
    page = made.read_text(encoding="utf-8")
    assert "against control" in page or found.rival is found.baseline
    assert "screening of mutants" in page


def test_a_stage_of_the_name_of_screening_is_refused_where_there_is_one() -> None:
    data = screened_dict()
    data["stages"][0]["name"] = SCREEN
    with pytest.raises(NasdError, match="the name 'screen' is taken"):
        parse(data, "c.toml")


# -- what is held out ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return make_workshop(tmp_path_factory.mktemp("workshop"))


def test_what_is_held_out_is_never_trained_on_and_is_all_that_a_screening_sees(
    shop: Workshop,
) -> None:
    cache = Path(shop.prepared.qa_cache)
    train = QaFeatures.load(cache / "train")
    held = held_out(len(train), 5)
    assert 0 < len(held) <= len(train) / 10
    assert (held == held_out(len(train), 5)).all()

    def windows(task: QaTask) -> set[bytes]:
        shown = task.batch(np.arange(task.train_size), 0)
        rows = zip(shown["input_ids"], shown["attention_mask"], strict=True)
        return {ids[mask.bool()].numpy().tobytes() for ids, mask in rows}

    without = windows(QaTask.load(None, cache, without=held))  # type: ignore[arg-type]
    kept = train.take(held)
    for index in range(len(kept)):
        window = kept.tokens[kept.bounds[index] : kept.bounds[index + 1]].astype(np.int64)
        whole = [train.tokens[a:b] for a, b in zip(train.bounds, train.bounds[1:], strict=False)]
        twins = sum(np.array_equal(one, window) for one in whole)
        assert twins > 1 or window.tobytes() not in without


def test_what_a_teacher_has_said_is_of_the_windows_that_are_trained_on(shop: Workshop) -> None:
    cache = Path(shop.prepared.qa_cache)
    train = QaFeatures.load(cache / "train")
    held = held_out(len(train), 5)
    said = np.stack([train.tokens, train.tokens]).astype(np.float16)  # as if it echoed each token
    noted = Noted(said, train.bounds, rows_of(train, held), QaTask.arranged)
    task = QaTask.load(None, cache, without=held)  # type: ignore[arg-type]
    indices = np.arange(0, task.train_size, 7)
    batch = task.batch(indices, 0)
    for told in noted.beside(indices, batch).values():
        assert (told == batch["input_ids"]).all()


def test_a_worker_tries_mutants_and_the_more_a_mutant_loses_the_higher_its_loss(
    shop: Workshop, tmp_path: Path
) -> None:
    config = demo_config()
    tuned, outcome = work(shop.spec(stage(config, "finetune", epochs=2)), tmp_path / "tuned")
    assert outcome is not None, tuned.log.read_text()

    def mutant(number: int, *sizes: int) -> Untried:
        blocks = [replace(one, ffns=(FeedForward("gelu", sizes),)) for one in shop.baseline.blocks]
        child = Genotype(tuple(blocks))
        drawn = [BlockLineage.of(i, False, ["altered"]) for i in range(len(blocks))]
        lineage = informed(child, tuple(drawn), [shop.baseline])
        told = [one.to_json() for one in lineage]
        return Untried(id=number, genotype=child.to_json(), lineage=told)

    spec = shop.spec(
        stage(config, "finetune"),
        weights=tuned.result,
        mutants=(mutant(7, 512), mutant(8, 192), mutant(9, 4)),
        holds_out=True,
    )
    folder, outcome = work(spec, tmp_path / "screen")
    assert outcome is not None, folder.log.read_text()
    assert outcome.verdict is Verdict.SUCCEEDED
    assert not outcome.has_result
    losses = outcome.metrics
    assert set(losses) == {"7", "8", "9", PARENT, IGNORANCE}
    itself = losses[PARENT]
    assert itself < losses[IGNORANCE] < np.log(96)  # of the longest window
    assert losses["7"] == pytest.approx(itself, abs=1e-3)  # growth changes nothing
    assert losses["7"] <= losses["8"] + 1e-3 < losses["9"]
    assert json.loads((folder.path / "heartbeat").read_text())


# -- who is born, as a pure function ---------------------------------------------------------------


def test_of_equal_losses_the_smaller_is_born_and_of_equal_sizes_the_better() -> None:
    told = [(2.0, 1.0), (2.0, 1.5), (1.9, 1.0), (3.0, 1.5)]
    tried = [Tried(loss, 1.0, (size,)) for loss, size in told]
    assert best(tried, 2, least=0.5) == [1, 2]


def test_a_space_with_fewer_mutants_than_are_asked_for_still_fills_every_place() -> None:
    space = SearchSpace(blocks=(1, 1), heads=(1, 2, 3), ffns=1, layers=(2,), sizes=(8, 16))
    baseline = Genotype((Block(1, (FeedForward("gelu", (16,)),)),))
    variation = Variation(transfers="informed", operators={"narrow": 1, "more_heads": 1})
    drawn = initial_population(baseline, space, variation, mu=2, seed=1, times=50)
    hashes = {one.genotype.hash for one in drawn}
    assert 2 <= len(drawn) == len(hashes) < 100
    parents = [Parent(0, baseline, (50.0, 1.0))]
    born = offspring(
        parents,
        baseline,
        space,
        variation,
        objectives=("quality", "compression"),
        lambda_=2,
        tournament_size=1,
        taken={baseline.hash},
        seed=1,
        generation=1,
        times=50,
    )
    assert 2 <= len(born) < 100
    with pytest.raises(NasdError, match="gave none that lies"):
        initial_population(baseline, space, variation, mu=50, seed=1, times=2)


def test_a_mutant_that_is_as_good_as_larger_ones_is_born_before_their_spread() -> None:
    told = [(2.94, 1.34), (2.71, 1.31), (2.34, 1.24), (2.15, 1.20), (2.11, 1.09), (2.10, 1.06)]
    tried = [Tried(loss, 0.8, (size,)) for loss, size in told]
    assert best(tried, 4, [Tried(2.08, 1.0, (1.0,))], least=0.5) == [1, 2, 3, 4]


def test_those_without_a_loss_only_fill_up() -> None:
    tried = [Tried(None, 0.0, (9.0,)), Tried(2.0, 1.0, (1.0,)), Tried(None, 0.0, (9.0,))]
    assert best(tried, 1, least=0.5) == [1]
    assert best(tried, 2, least=0.5) == [0, 1]


def test_who_has_lost_most_of_what_its_parent_knows_is_born_last_however_small() -> None:
    tried = [Tried(3.5, 0.2, (9.0,)), Tried(2.0, 0.9, (1.0,)), Tried(2.4, 0.8, (1.2,))]
    assert best(tried, 2, least=0.5) == [1, 2]
    assert best(tried, 3, least=0.5) == [0, 1, 2]
    assert best(tried, 2, least=0.1) == [0, 2]  # an end of the front, where it is asked for
    assert kept(3.0, 2.0, 4.0) == 0.5
    assert kept(9.0, 5.0, 4.0) == 1.0  # of nothing all is left


def test_mutants_that_break_a_limit_by_what_is_known_of_them_are_born_behind_all_others() -> None:
    light, heavy = Tried(2.0, 0.9, (1.5, 1.0)), Tried(1.0, 1.0, (1.0, 1.0), missed=0.2)
    lost = Tried(0.5, 0.1, (9.0, 1.0))
    assert best([heavy, light, lost], 1, least=0.5) == [1]
    assert best([heavy, light, lost], 2, least=0.5) == [0, 1]


def test_in_the_last_generation_a_limit_comes_before_what_a_mutant_knows() -> None:
    heavy, little = Tried(1.0, 1.0, (1.9,), missed=0.01), Tried(4.0, 0.1, (2.1,))
    less = Tried(4.5, 0.05, (2.4,))
    assert best([heavy, little, less], 2, least=0.5) == [0, 1]
    assert best([heavy, little, less], 2, least=0.5, last=True) == [1, 2]
    assert best([heavy, little, less], 1, least=0.5, last=True) == [1]


def test_a_limit_on_operations_is_held_from_the_screening_on(tmp_path: Path) -> None:
    config = screened(
        experiment__limits=["flop <= 90 % of the baseline"],
        experiment__generations=1,
    )
    with without_summaries():
        tick = make_tick(StateFolder(tmp_path), config)
        drive(tick)
        found, tried = tick.store.read(), mutants(tick.store._db.conn)
    most = 0.9 * found.baseline.figures["flop"]
    light = [one for one in tried if one.generation == 0 and one.figures["flop"] <= most]
    born = found.born_in(0)
    assert 0 < len(light) < sum(one.generation == 0 for one in tried)
    assert sum(one.figures["flop"] <= most for one in born) == min(len(light), len(born))


@pytest.mark.parametrize(
    "objectives",
    [
        ["quality", "peak_memory_mb"],
        ["compression", "flop", "bytes", "bytes_int8", "latency_ms"],
    ],
)
def test_mutants_are_tried_by_however_many_objectives_are_known_from_birth(
    tmp_path: Path, objectives: list[str]
) -> None:
    data = screened_dict(experiment__objectives=objectives, experiment__generations=1)
    data["stages"][-1]["measure"] = True
    config = parse(data, "screened.toml")
    state = StateFolder(tmp_path / "state")
    with without_summaries():
        tick = make_tick(state, config)
        drive(tick)
        assert tick.store.read().experiment.state == "complete"
    assert view(read(state.path, tick.clock()), 80, 40)
    assert as_json.report(state.path, tick.clock())
    assert write.write(write.read(state.path, tick.clock()), tmp_path / "report").exists()
