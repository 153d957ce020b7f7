"""Children that start from their parents' fine-tuned weights, by small steps and by crossover."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from nasd.contract import config as config_module
from nasd.contract.config import OPERATORS as NAMES
from nasd.contract.config import Config, parse
from nasd.contract.digests import Damaged
from nasd.contract.errors import NasdError
from nasd.contract.genotype import (
    BlockLineage,
    FeedForward,
    Genotype,
    Lineage,
    Transfer,
    unchanged,
)
from nasd.contract.protocol import Verdict
from nasd.policy import ladder
from nasd.record.folders import StateFolder
from nasd.record.lifecycle import State
from nasd.search.variation.breeding import adopted
from nasd.search.variation.keeping import informed
from nasd.search.variation.operators import OPERATORS
from nasd.worker import inputs
from nasd.worker.model.inherit import new_parameters
from nasd.worker.model.phenotype import MaskedLM, load, load_for_answering, save
from nasd.worker.model.transfers import TRANSFERS
from nasd.worker.tasks import registry
from nasd.worker.tasks.task import Ranks
from nasd.worker.training.progress import quiet
from tests.conftest import (
    drive,
    make_tick,
    of_tuned_parents,
    small_config,
    small_dict,
    without_summaries,
)
from tests.training import Workshop, demo_config, make_workshop, stage, weights, work

STEPS = {"narrow": 2, "widen": 1, "fewer_heads": 1, "more_heads": 1, "drop_block": 1, "cross": 3}


def task_dict(**changes: Any) -> dict[str, Any]:
    return of_tuned_parents(small_dict(**changes), STEPS)


def task_config() -> Config:
    return parse(task_dict(), "task.toml")


def test_what_a_config_can_name_is_what_there_is() -> None:
    assert set(NAMES) == set(OPERATORS)
    assert set(get_args(Transfer)) == set(TRANSFERS)


def test_a_search_by_task_lineage_has_children_of_two_parents_that_start_from_fine_tuned_weights(
    tmp_path: Path,
) -> None:
    data = task_dict(population__mu=4, population__lambda=8, experiment__generations=3)
    config = parse(data, "task.toml")
    with without_summaries():
        tick = make_tick(StateFolder(tmp_path / "state"), config)
        drive(tick)
        found = tick.store.read()
    assert found.experiment.state == "complete"
    born = [one for one in found.candidates.values() if not one.is_baseline]
    assert all(one.operators for one in born)
    crossed = [one for one in born if one.second is not None]
    assert crossed
    for one in born:
        assert len(one.ancestry) == len(one.genotype.blocks)
        assert (one.second is not None) == any(
            module.parent for line in one.lineage for module in (line.attention, *line.ffns)
        )
        first = replace(one, stage="finetune", state=State.PENDING)
        assert ladder.weights_of(found, config, first) == ((one.parent, "finetune"), True)
        second = None if one.second is None else (one.second, "finetune")
        assert ladder.second_weights_of(found, config, first) == second
        assert one.generation is not None
        assert ladder.rounds(config, first) == one.generation + 1  # its examples follow theirs
    assert ladder.rounds(config, replace(found.baseline, stage="finetune")) == 0


def test_in_the_thesis_every_candidate_begins_with_the_same_examples(tmp_path: Path) -> None:
    config = small_config()
    with without_summaries():
        found = drive(
            make_tick(StateFolder(tmp_path / "state"), config),
            lambda snapshot: snapshot.generation is not None and snapshot.generation.number == 1,
        )
    for one in found.candidates.values():
        for stage_of in config.stages:
            assert ladder.rounds(config, replace(one, stage=stage_of.name)) == 0


def test_the_first_generation_waits_for_the_fine_tuned_baseline(tmp_path: Path) -> None:
    config = task_config()
    with without_summaries():
        tick = make_tick(StateFolder(tmp_path / "state"), config)
        found = drive(tick, lambda snapshot: snapshot.generation is not None)
    done = {stage for candidate, stage in found.results if candidate == found.baseline.id}
    assert "finetune" in done


def test_a_seed_that_is_fine_tuned_already_is_scored_as_it_is_and_children_begin_from_it(
    tmp_path: Path,
) -> None:
    data = task_dict(
        stages__finetune__who="candidates", population__control=True, teacher__source="baseline"
    )
    config = parse(data, "task.toml")
    assert config.scores_seed
    with without_summaries():
        tick = make_tick(StateFolder(tmp_path / "state"), config)
        drive(tick)
        found = tick.store.read()
    assert found.experiment.state == "complete"
    baseline = found.baseline
    assert [stage for one, stage in found.results if one == baseline.id] == ["prepare", "evaluate"]
    assert found.quality(baseline.id) is not None
    own = {one.id: one for one in found.candidates.values() if one.parent == baseline.id}
    assert found.controls[0].id in own
    for one in own.values():
        first = replace(one, stage="finetune", state=State.PENDING)
        assert ladder.weights_of(found, config, first) == ((baseline.id, "prepare"), True)
        assert ladder.teacher_of(found, config, first) == (baseline.id, "prepare")
        assert ladder.rounds(config, first) == one.generation  # nobody has gone before
    # What others start from, learn from and are compared with is kept to the end.
    assert tick.state.result(baseline.id, "prepare").is_dir()


def test_a_baseline_that_nothing_trains_is_none_behind_mlm_stages_or_of_several_tasks() -> None:
    with pytest.raises(NasdError, match="nothing trains the baseline"):
        small_config(stages__finetune__who="candidates")


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"operators": {"grow": 1}}, "there is no grow; take of widen, narrow"),
        ({"operators": {"narrow": 0}}, "at least one of them a share above 0"),
        ({"operators": None}, "initial is missing: give it, or the shares of operators"),
        ({"steps": [3, 1]}, "steps must be [fewest, most]"),
        ({"operators": {"narrow": -1}}, "variation.operators.narrow: "),
    ],
)
def test_a_variation_that_cannot_be_is_refused_by_its_key(
    section: dict[str, Any], words: str
) -> None:
    data = task_dict()
    data["variation"] |= section
    with pytest.raises(NasdError) as caught:
        parse(data, "c.toml")
    assert words in str(caught.value)


def test_an_mlm_stage_has_no_place_in_a_ladder_of_fine_tuned_children() -> None:
    data = task_dict()
    data["stages"] = small_dict()["stages"]
    with pytest.raises(NasdError, match=r"stages\.pretrain_\w+: children that start from"):
        parse(data, "c.toml")


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return make_workshop(tmp_path_factory.mktemp("workshop"))


def test_a_worker_builds_the_child_of_a_fine_tuned_parent_and_trains_it(
    shop: Workshop, tmp_path: Path
) -> None:
    config = demo_config()
    tuned, outcome = work(shop.spec(stage(config, "finetune", epochs=0.3)), tmp_path / "tuned")
    assert outcome is not None, tuned.log.read_text()
    blocks = list(shop.baseline.blocks)
    blocks[1] = replace(blocks[1], ffns=(FeedForward("gelu", (64,)),))
    child = Genotype(tuple(blocks))
    drawn = [*unchanged(shop.baseline)]
    drawn[1] = BlockLineage.of(1, False, ["altered"])
    lineage = informed(child, tuple(drawn), [shop.baseline])
    ends = []
    for name in ("one", "again"):
        spec = shop.spec(
            stage(config, "finetune", epochs=0.1),
            weights=tuned.result,
            **shop.child(child, lineage),
        )
        folder, outcome = work(spec, tmp_path / name)
        assert outcome is not None, folder.log.read_text()
        assert outcome.verdict is Verdict.SUCCEEDED
        assert "born of 1, refitted by" in folder.log.read_text()
        ends.append(outcome.metrics)
    assert ends[0] == ends[1]
    made = json.loads((folder.result / "config.json").read_text())
    assert made["blocks"][1]["ffns"][0]["sizes"] == [64]


def with_a_network(shop: Workshop) -> tuple[Genotype, Lineage]:
    blocks = list(shop.baseline.blocks)
    blocks[1] = replace(blocks[1], ffns=(*blocks[1].ffns, FeedForward("gelu", (64,))))
    drawn = [*unchanged(shop.baseline)]
    drawn[1] = BlockLineage.of(1, False, ["kept", "added"])
    child = Genotype(tuple(blocks))
    return child, informed(child, tuple(drawn), [shop.baseline])


def another(shop: Workshop, folder: Path) -> Path:
    """A parent that was fine-tuned: all of its weights are others than the seed's."""
    parent = load_for_answering(shop.seed_weights, torch.Generator().manual_seed(3))
    draws = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for one in parent.parameters():
            one += 0.01 * torch.randn(one.shape, generator=draws)
    save(parent, folder)
    return folder


def test_new_modules_begin_between_what_the_parent_has_fine_tuned_and_its_head_comes_back(
    shop: Workshop, tmp_path: Path
) -> None:
    config, alone = demo_config(), Ranks(0, 1, torch.device("cpu"))
    parent = another(shop, tmp_path / "parent")
    child, lineage = with_a_network(shop)
    told = {**shop.child(child, lineage), "refits": False}
    language = stage(config, "pretrain_0", who="new", keep=None)
    spec = shop.spec(language, parent, head_weights=str(shop.seed_weights), **told)
    task = registry.begin(spec, language, alone)
    assert isinstance(task.model, MaskedLM)
    theirs, seed, made = weights(parent), weights(shop.seed_weights), task.model.state_dict()
    fresh = new_parameters(task.model, lineage)
    assert task.trainable() == fresh != set()
    assert not any(name.startswith("head.") for name in fresh)
    for name, tensor in made.items():
        if name.startswith("head."):
            assert tensor.equal(seed[name])
        elif not name.startswith("encoder.blocks.1."):
            assert tensor.equal(theirs[name])
    save(task.model, tmp_path / "language")
    tunes, told["inherits"] = stage(config, "finetune"), False
    spec = shop.spec(tunes, tmp_path / "language", head_weights=str(parent), **told)
    for name, tensor in registry.begin(spec, tunes, alone).model.state_dict().items():
        assert tensor.equal(theirs[name] if name.startswith("qa_outputs.") else made[name])


def test_a_damaged_head_is_told_by_its_folder(shop: Workshop, tmp_path: Path) -> None:
    parent = another(shop, tmp_path / "parent")
    child, lineage = with_a_network(shop)
    language = stage(demo_config(), "pretrain_0", who="new", keep=None)
    lacks = str(tmp_path / "gone")
    spec = shop.spec(language, parent, head_weights=lacks, **shop.child(child, lineage))
    with pytest.raises(Damaged, match=lacks):
        inputs.check(spec, quiet)


@pytest.mark.heavy
def test_workers_train_new_modules_by_mlm_and_then_the_whole_child(
    shop: Workshop, tmp_path: Path
) -> None:
    config = demo_config()
    tuned, outcome = work(shop.spec(stage(config, "finetune", epochs=0.1)), tmp_path / "tuned")
    assert outcome is not None, tuned.log.read_text()
    child, lineage = with_a_network(shop)
    told = shop.child(child, lineage)
    language = stage(config, "pretrain_0", who="new", keep=None, epochs=0.05)
    spec = shop.spec(language, tuned.result, head_weights=str(shop.seed_weights), **told)
    first, outcome = work(spec, tmp_path / "language")
    assert outcome is not None and outcome.verdict is Verdict.SUCCEEDED, first.log.read_text()
    parent, made = weights(tuned.result), weights(first.result)
    fresh = new_parameters(load(MaskedLM, first.result), lineage)
    for name, tensor in made.items():
        if name in parent and name not in fresh and not name.startswith("encoder.blocks.1."):
            assert tensor.equal(parent[name])
    told["inherits"] = False
    spec = shop.spec(
        stage(config, "finetune", epochs=0.1),
        first.result,
        head_weights=str(tuned.result),
        **told,
    )
    last, outcome = work(spec, tmp_path / "last")
    assert outcome is not None and outcome.verdict is Verdict.SUCCEEDED, last.log.read_text()
    assert "qa_outputs.weight" in weights(last.result)


def test_the_configs_that_are_shipped_still_mutate_and_draw_as_the_thesis_does() -> None:
    root = Path(__file__).parents[1]
    variation = config_module.load(root / "config.toml").variation
    assert (variation.transfers, variation.inherit_from) == ("fresh", "mlm")
    assert variation.operators is None


def test_an_injected_genotype_keeps_what_its_parent_knows_as_children_do(tmp_path: Path) -> None:
    from tests.test_steering import NARROW, asked, bred

    with without_summaries():
        tick = make_tick(StateFolder(tmp_path / "state"), task_config())
        tick()
        assert asked(tick, "inject", genotype=NARROW.to_json())[0]
        found = drive(tick, bred(0))
    (one,) = [c for c in found.candidates.values() if c.hash == NARROW.hash]
    assert one.parent is not None
    plain = adopted(NARROW, {0: found.baseline.genotype}, found.experiment.backbone.width)
    assert one.lineage == informed(NARROW, plain.lineage, [found.baseline.genotype])
    modules = [module for line in one.lineage for module in (line.attention, *line.ffns)]
    assert "fresh" not in {module.transfer for module in modules}
