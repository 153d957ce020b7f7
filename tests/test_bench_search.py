"""bin/bench search: how peers are told apart, that what is pruned is what was asked for, and that
all of it runs."""

import json
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nasd.contract.config import Config, SearchSpace, parse
from nasd.contract.genotype import Backbone, Block, FeedForward, Genotype, parameters, unchanged
from nasd.record.folders import StateFolder
from nasd.record.lifecycle import State
from nasd.record.state import Snapshot
from nasd.search.variation.breeding import check_genotype, initial_population
from nasd.worker.model.architecture import Architecture
from nasd.worker.model.inherit import born
from nasd.worker.model.phenotype import QuestionAnswering
from tests.bench import ablation, child, search, standing
from tests.bench.following import Follower
from tests.bench.laboratory import Laboratory, Pace, worked
from tests.bench.peers import PEERS
from tests.bench.pruned import narrowed, pruned, without_top
from tests.bench.standing import Model, Standing, best_within, front, reached, told, volume
from tests.bench.worlds import (
    ABSENT,
    KEPT,
    OURS,
    PARTS,
    RANDOM,
    SEEN,
    THESIS,
    WORLDS,
    config_of,
    known,
    unknown,
)
from tests.conftest import drive, make_tick, without_summaries
from tests.test_task_lineage import task_dict
from tests.training import demo_config, stage

BACKBONE = Backbone(vocab_size=50, positions=32, width=16)
BASELINE = Genotype((Block(4, (FeedForward("gelu", (32,)),)),) * 3)


def model(name: str, share: float, at: float, seen: float, quality: float | None = None) -> Model:
    return Model(name, share, 1 / share, at, seen, seen if quality is None else quality)


# --- who is chosen, and how they stand ------------------------------------------------------


def test_the_best_within_a_share_is_chosen_by_what_was_seen_and_told_by_what_was_not() -> None:
    lucky = model("lucky", 0.8, 10, seen=90, quality=70)
    sound = model("sound", 0.8, 20, seen=85, quality=84)
    large = model("large", 1.0, 5, seen=95, quality=94)
    assert best_within([lucky, sound, large], 0.9) == lucky
    found = told(Standing("ours", (lucky, sound, large), 30.0), 30.0, None)
    assert found["quality"] == {"1.0": 94, "0.9": 70, "0.75": None, "0.5": None}


def test_of_equals_the_smaller_is_chosen_and_the_share_itself_fits() -> None:
    one, other = model("one", 0.75, 1, 80), model("other", 0.5, 2, 80)
    assert best_within([one, other], 0.75) == other
    assert best_within([one], 0.75) == one
    assert best_within([one], 0.74) is None


def test_the_hypervolume_is_that_of_the_front_above_no_quality_and_twice_the_size() -> None:
    assert volume([]) == 0.0
    whole = model("whole", 1.0, 1, 80)
    assert volume([whole]) == pytest.approx(80 * (1.0 - 0.5))
    half = model("half", 0.5, 2, 60)
    assert volume([whole, half]) == pytest.approx(80 * 0.5 + 60 * (2.0 - 1.0))
    behind = model("behind", 0.9, 3, 50)  # nobody would take it, whatever it is worth
    assert volume([whole, half, replace(behind, quality=99.0)]) == volume([whole, half])


def test_what_was_not_done_in_time_does_not_count() -> None:
    one = Standing("ours", (model("a", 1.0, 10, 80), model("b", 0.5, 30, 60)), 40.0)
    assert told(one, 20.0, None)["hypervolume"] == pytest.approx(
        {"0.25": 0, "0.5": 40, "0.75": 40, "1.0": 40}
    )
    assert told(one, 40.0, None)["hypervolume"]["1.0"] == pytest.approx(100)
    assert reached(one, 90) == 30
    assert reached(one, 101) is None
    assert told(one, 40.0, thesis=40.0)["seconds_to_thesis"] == 10


@given(
    st.lists(
        st.builds(
            model,
            st.just("m"),
            st.floats(0.1, 2.0),
            st.floats(0, 100),
            st.floats(0, 100),
            st.floats(0, 100),
        ),
        max_size=8,
    )
)
def test_nobody_on_the_front_is_beaten_by_what_was_seen(models: list[Model]) -> None:
    found = front(models)
    assert bool(found) == bool(models)
    for one in found:
        for other in models:
            better = other.seen >= one.seen and other.compression >= one.compression
            assert not better or (other.seen, other.compression) == (one.seen, one.compression)


def test_over_seeds_a_mean_needs_every_seed() -> None:
    runs = [told(Standing("ours", (model("a", s, 1, 80),), 9.0), 10.0, None) for s in (0.5, 0.9)]
    found = standing.over_seeds(runs)
    assert found["quality"] == {"1.0": 80, "0.9": 80, "0.75": None, "0.5": None}
    assert standing.above(runs, list(reversed(runs))) == 1


def test_a_worker_s_log_says_what_it_took(tmp_path: Path) -> None:
    log = tmp_path / "worker.log"
    assert worked(log) == 0.0
    log.write_text("stopped after 3.0 s, 2.50 s of the processor's\nx\n")
    with log.open("a") as file:
        file.write("succeeded after 10.1 s, 4.25 s of the processor's\n")
    assert worked(log) == 6.75


def test_a_plan_takes_as_long_as_it_may() -> None:
    tuned = stage(demo_config(), "finetune", batch=10, evaluations=1)
    pace = Pace(step=0.5, evaluation=2.0)
    epochs = pace.epochs(100.0, tuned, examples=100)
    assert epochs * (10 * 0.5 + 2.0) + 2.0 == pytest.approx(100.0)
    assert pace.epochs(0.0, tuned, examples=100) == pytest.approx(0.1)  # a step at least


# --- what a search is charged ---------------------------------------------------------------


@dataclass
class Rivals:
    """As much of a contest as a follower asks for, with a judge who likes all alike."""

    found: Snapshot
    charges_scoring: bool = False
    seconds: float = 1e9
    scored_alike: bool = True

    @property
    def lab(self) -> Any:
        one = self.found.baseline
        seen = self.found.quality(one.id) if self.scored_alike else -1.0
        lab = SimpleNamespace(baseline=one.genotype, backbone=self.found.experiment.backbone)
        lab.model = partial(Laboratory.model, lab)
        lab.scored = SimpleNamespace(quality=seen)
        return lab

    def baseline(self) -> Model:
        return model("baseline", 1.0, 0.0, seen=0.0, quality=40.0)

    def judge(self, folder: Path) -> float:
        assert folder.is_dir()
        return 50.0

    def say(self, text: str) -> None:
        pass


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> tuple[StateFolder, Snapshot, Config]:
    """A search whose every attempt has taken two seconds of the processor's."""
    state = StateFolder(tmp_path_factory.mktemp("searched") / "state")
    config = parse(task_dict(population__mu=3, population__lambda=4), "task.toml")
    with without_summaries():
        tick = make_tick(state, config)
        drive(tick)
    found = tick.store.read()
    for attempt in found.attempts:
        line = "succeeded after 9.0 s, 2.00 s of the processor's\n"
        state.attempt(attempt.id).log.write_text(line)
    return state, found, config


Searched = tuple[StateFolder, Snapshot, Config]


def followed(searched: Searched, **changes: Any) -> tuple[Standing, Snapshot]:
    state, found, config = searched
    follower = Follower(Rivals(found, **changes), config, state)  # type: ignore[arg-type]
    for _ in range(2):  # what was seen once is not counted again
        follower.look()
    return follower.standing("ours", ()), found


def test_a_search_is_charged_all_training_and_scoring_where_it_is_asked(searched: Searched) -> None:
    one, found = followed(searched)
    trained = sum(attempt.stage == "finetune" for attempt in found.attempts)
    scored = sum(attempt.stage == "evaluate" for attempt in found.attempts)
    assert trained
    assert (one.seconds, one.scoring) == (2 * trained, 2 * scored)
    assert followed(searched, charges_scoring=True)[0].seconds == 2 * (trained + scored)


def test_models_stand_when_they_are_scored_and_only_those_of_a_front_are_judged(
    searched: Searched,
) -> None:
    one, found = followed(searched)
    assert {row.name for row in one.models} == {"baseline"} | {
        str(candidate.id)
        for candidate in found.candidates.values()
        if not candidate.is_baseline and candidate.state is State.SCORED
    }
    moments = [row.at for row in one.models]
    assert moments == sorted(moments)
    assert moments[0] == 2.0
    assert moments[-1] == one.seconds
    for place, row in enumerate(one.models):
        assert (row.quality is not None) == (row in front(one.models[: place + 1]))
    assert 1 < one.depth <= 1 + max(row.number for row in found.generations)


def test_a_baseline_that_is_another_one_is_judged_for_itself_and_told(searched: Searched) -> None:
    assert followed(searched)[0].models[0].quality == 40.0
    one, _ = followed(searched, scored_alike=False)
    assert one.models[0].quality == 50.0
    assert any("its baseline is another one" in text for text in one.notes)


# --- models that nobody searched ------------------------------------------------------------


@pytest.mark.parametrize("share", [0.9, 0.75, 0.6])
def test_narrowed_ffns_are_as_wide_as_the_share_allows(share: float) -> None:
    found = narrowed(BASELINE, BACKBONE, share)
    assert found is not None
    assert Genotype.from_json(found.to_json()) == found
    here = standing.share_of_blocks(found, BASELINE, BACKBONE)
    assert here <= share
    width = found.blocks[0].ffns[0].sizes[0]
    assert {ffn.sizes for block in found.blocks for ffn in block.ffns} == {(width,)}
    wider = tuple(replace(one, ffns=(FeedForward("gelu", (width + 1,)),)) for one in found.blocks)
    assert standing.share_of_blocks(Genotype(wider), BASELINE, BACKBONE) > share
    assert [one.heads for one in found.blocks] == [one.heads for one in BASELINE.blocks]


def test_ffns_alone_cannot_be_narrower_than_nothing() -> None:
    assert narrowed(BASELINE, BACKBONE, 0.3) is None


def test_blocks_are_dropped_from_the_top() -> None:
    mixed = Genotype((*BASELINE.blocks, Block(2, (FeedForward("relu", (8,)),))))
    sizes = [parameters(without_top(mixed, left), BACKBONE) for left in (1, 2, 3, 4)]
    assert sizes == sorted(set(sizes))
    assert without_top(mixed, 4) == mixed
    assert without_top(mixed, 3) == BASELINE


@pytest.fixture
def answering() -> QuestionAnswering:
    blocks = Architecture.from_json(
        {"vocab_size": 50, "positions": 32, "width": 16, **BASELINE.to_json()}
    )
    torch.manual_seed(3)
    made = QuestionAnswering(blocks).eval()
    assert made.architecture.blocks
    return made


def test_of_each_ffn_the_units_with_the_largest_weights_stay(answering: QuestionAnswering) -> None:
    thin = narrowed(BASELINE, BACKBONE, 0.75)
    assert thin is not None
    width = thin.blocks[0].ffns[0].sizes[0]
    with torch.no_grad():
        for block in answering.encoder.blocks:
            into, out = block.ffns[0].linears  # type: ignore[union-attr]
            for linear, index in (
                (into, slice(width, None)),
                (out, (slice(None), slice(width, None))),
            ):
                linear.weight[index] = 0.0  # the units behind the first ones say nothing
            into.bias[width:] = 0.0
    ids = torch.arange(2, 12)[None]
    found = pruned(answering, thin).eval()
    for one, other in zip(found(ids), answering(ids), strict=True):
        torch.testing.assert_close(one, other)


def test_what_is_left_of_dropped_blocks_is_what_it_was(answering: QuestionAnswering) -> None:
    found = pruned(answering, without_top(BASELINE, 2))
    lineage = unchanged(BASELINE)[:2]
    same = born(without_top(BASELINE, 2), lineage, [answering], torch.Generator())
    ids = torch.arange(2, 12)[None]
    for one, other in zip(found.eval()(ids), same.eval()(ids), strict=True):
        torch.testing.assert_close(one, other)


# --- worlds and ways ------------------------------------------------------------------------


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("way", [OURS, RANDOM, THESIS], ids=["ours", "random", "thesis"])
def test_every_way_has_a_config_in_every_world(world: str, way: object) -> None:
    config = config_of(WORLDS[world], way, seed=3)  # type: ignore[arg-type]
    assert config.experiment.seed == 3
    assert config.slots.devices == ("cpu:0",)
    assert config.slots.threads == 1


@pytest.mark.parametrize("world", WORLDS)
def test_all_ways_fine_tune_the_same_baseline_and_the_thesis_s_is_as_it_was(world: str) -> None:
    one, other, thesis = (config_of(WORLDS[world], way, 0) for way in (OURS, RANDOM, THESIS))
    starts = [next(s for s in c.stages if s.name == "start") for c in (one, other, thesis)]
    assert starts[0] == starts[1] == starts[2]
    assert one.data == other.data == thesis.data
    assert (thesis.variation.transfers, thesis.variation.inherit_from) == ("fresh", "mlm")
    assert thesis.variation.operators is None
    same = [s for s in one.stages if s.name == "train_on"]
    assert same == [s for s in other.stages if s.name == "train_on"]
    assert one.variation.transfers == other.variation.transfers == "informed"


def test_keys_that_no_config_knows_yet_are_left_out_and_said() -> None:
    assert known("population.lambda")
    assert known("variation.initial.encoder")
    assert not known("variation.telepathy")
    assert not known("variation.steps.telepathy")
    way = OURS.without({"variation.telepathy": True})
    assert "variation.telepathy" in unknown(way)
    config_of(WORLDS["demo"], way, 0)


def test_what_is_left_out_has_its_default() -> None:
    way = OURS.without({"variation.operators": ABSENT, "variation.steps": [2, 2]})
    assert "variation.operators" not in way.keys
    assert way.keys["variation.steps"] == [2, 2]
    assert OURS.keys["variation.steps"] != [2, 2]


def test_an_ablation_leaves_out_one_part_at_a_time_and_only_what_is_there() -> None:
    found = ablation.ways(list(PARTS))
    assert {"whole", "without transfers", "without crossover"} <= set(found)
    assert not ablation.there({"variation.telepathy": False})
    for name, way in found.items():
        config = config_of(WORLDS["demo"], way, 0)
        whole = config_of(WORLDS["demo"], OURS, 0)
        assert (config == whole) == (name == "whole")


def test_the_questions_that_tell_are_of_no_article_that_a_search_sees(tmp_path: Path) -> None:
    data = tmp_path / "data"
    (data / "corpus").mkdir(parents=True)
    articles = [{"title": str(n), "paragraphs": []} for n in range(10)]
    (data / "all.json").write_text(json.dumps({"data": articles}))
    for name, folder in (("demo", tmp_path / "demo"), ("minilm", tmp_path / "minilm")):
        folder.mkdir()
        WORLDS[name].lay(folder, data, 0)
        seen, kept = (
            {one["title"] for one in json.loads((folder / file).read_text())["data"]}
            for file in (SEEN, KEPT)
        )
        assert seen
        assert kept
        assert not seen & kept


def test_random_search_draws_from_the_space_far_and_near() -> None:
    config = config_of(WORLDS["demo"], RANDOM, 0)
    baseline = Genotype((Block(4, (FeedForward("gelu", (128,)),)),) * 3)
    drawn, more = (
        initial_population(baseline, config.search_space, config.variation, count, 0)
        for count in (8, 24)
    )
    assert more[:8] == drawn  # it draws on where more time is left
    space: SearchSpace = config.search_space
    for one in more:
        check_genotype(one.genotype, space, 64)
    steps = {len(one.operators) for one in more}
    assert min(steps) <= 3
    assert max(steps) >= 9


def test_the_child_has_two_halved_ffns_and_half_the_heads_in_one_block() -> None:
    six = Genotype((Block(12, (FeedForward("gelu", (1536,)),)),) * 6)
    genotype, lineage = child.changed(six)
    sizes = [block.ffns[0].sizes[0] for block in genotype.blocks]
    assert sizes == [1536, 768, 1536, 768, 1536, 1536]
    assert [block.heads for block in genotype.blocks] == [12, 12, 6, 12, 12, 12]
    new = [line.attention_new or line.ffns[0].new for line in lineage]
    assert new == [False, True, True, True, False, False]


# --- all of it ------------------------------------------------------------------------------


@pytest.mark.heavy
@pytest.mark.timeout(900)
def test_all_peers_run_on_the_demo_s_world(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = tmp_path / "figures.json"
    search.main(
        ["--seconds", "16", "--folder", str(tmp_path / "all"), "--json", str(figures)]
    )  # fmt: skip
    out = capsys.readouterr().out
    found = json.loads(figures.read_text())["seeds"][0]
    assert [one["peer"] for one in found["peers"]] == list(PEERS)
    for one in found["peers"]:
        assert one["peer"] in out
        assert one["models"] >= 1
        models = [Model(**row) for row in found["models"][one["peer"]]]
        assert models[0] == replace(Model(**found["models"]["control"][0]), at=models[0].at), (
            "all start from the same baseline"
        )
        assert one["hypervolume"]["1.0"] == pytest.approx(
            volume([row for row in models if row.at <= 16])
        )
    by_name = {one["peer"]: one for one in found["peers"]}
    assert by_name["drop_top"]["quality"]["0.75"] is not None
    assert not (tmp_path / "all" / "seed-0" / "drop_top-1").exists()
