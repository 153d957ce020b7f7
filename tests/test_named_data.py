"""Several data sets of one kind in a search: tables of [data] by names of their own."""

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch

from nasd.contract import tasks
from nasd.contract.config import Config, Data, parse
from nasd.contract.errors import NasdError
from nasd.contract.genotype import Genotype
from nasd.contract.protocol import Outcome, Spec
from nasd.contract.volumes import Volumes
from nasd.export.export import _task
from nasd.record.folders import StateFolder
from nasd.record.lifecycle import State
from nasd.worker import prepare
from nasd.worker.model import phenotype, seed
from nasd.worker.tasks import registry
from nasd.worker.tasks.task import Ranks
from nasd.worker.training.progress import quiet
from tests.conftest import drive, make_tick, small_dict, succeeded, without_summaries
from tests.labelled import FILES, write
from tests.training import SOURCE

NAMED = {"mood": "classify", "topic": "classify", "people": "tag"}
METRICS = {"classify": "accuracy", "tag": "f1"}
TASKS = [f"{kind}-{name}" for name, kind in NAMED.items()]


def named_dict(**changes: Any) -> dict[str, Any]:
    """Questions, two data sets of labels of texts, and one of labels of words."""
    data = small_dict(**changes)
    for name, kind in NAMED.items():
        data["data"][name] = {"kind": kind, "files": [f"{name}.jsonl"], "tokens": 48}
        for one in ("finetune", "evaluate"):
            like = next(stage for stage in data["stages"] if stage["name"] == one)
            data["stages"].append({**like, "name": f"{one}_{name}", "task": name})
    return data


def named_config(**changes: Any) -> Config:
    return parse(named_dict(**changes), "named.toml")


def test_a_table_with_a_kind_is_a_task_of_its_own_and_comes_back_from_what_is_written() -> None:
    config = named_config(experiment__quality="topic")
    assert [one.name for one in config.scoring] == ["qa", *TASKS]
    assert [one.name for one in tasks.all_scored(config.data)] == ["qa", *TASKS]
    assert config.experiment.quality == "classify-topic"
    written = config.model_dump(mode="json", by_alias=True)
    assert parse(written, "again") == config
    assert Data.model_validate_json(config.data.model_dump_json()) == config.data
    scoring = tasks.Scoring.of(written["data"], "classify-topic")
    assert [one.name for one in scoring.tasks] == ["qa", *TASKS]
    assert scoring.titles == ("qa", *NAMED)
    assert scoring.quality == "of classification (topic)"


def test_one_table_by_its_name_is_a_search_of_one_task() -> None:
    data = named_dict()
    kept = {"mlm", "mood"}
    data["data"] = {name: one for name, one in data["data"].items() if name in kept}
    data["stages"] = [one for one in data["stages"] if one["task"] in kept]
    config = parse(data, "one.toml")
    assert [one.name for one in config.scoring] == ["classify-mood"]
    scoring = tasks.Scoring.of(config.model_dump(mode="json")["data"])
    assert (scoring.task.kind, scoring.quality) == ("classify", "accuracy")


def test_the_data_of_one_task_is_without_that_of_others_of_its_kind() -> None:
    data = named_config().data
    for name, kind in NAMED.items():
        focused = tasks.focused(data, f"{kind}-{name}")
        assert [one.name for one in tasks.all_scored(focused)] == [f"{kind}-{name}"]
        assert tasks.labelled(focused).files == (f"{name}.jsonl",)
        assert Data.model_validate_json(focused.model_dump_json()) == focused


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: d["data"]["topic"].pop("files"), "data.topic: give either files or hub"),
        (lambda d: d["data"]["topic"].update(kind="qa"), "data.topic: kind: take one of"),
        (lambda d: d["data"]["topic"].update(word=1), "unknown key data.topic.word"),
        (lambda d: d["data"]["topic"].update(tokens=3), "data.topic.tokens: input should be"),
        (lambda d: d["data"].update(clasify={}), "unknown key data.clasify; did you mean classify"),
        (lambda d: d["data"].update(Two={"kind": "tag"}), "data.Two: call it by lower-case"),
        (lambda d: d["data"].pop("topic"), "stages.finetune_topic.task: input should be"),
        (lambda d: d["experiment"].update(quality="worse"), "experiment.quality: take one of"),
        (
            lambda d: d["data"].update(more={"kind": "tag", "files": ["a"]}),
            'data.more: no stage is of the task: add some of task = "more"',
        ),
        (
            lambda d: d["stages"][-1].update(task="tag-others"),
            "nothing trains the candidates for token classification (others)",
        ),
    ],
)
def test_a_table_that_cannot_be_is_refused_by_its_key(
    change: Callable[[dict[str, Any]], Any], said: str
) -> None:
    data = deepcopy(named_dict())
    change(data)
    with pytest.raises(NasdError) as refused:
        parse(data, "c.toml")
    assert said in str(refused.value)


def scripted(spec: Spec, before: int) -> tuple[float, Outcome | None]:
    outcome = succeeded(spec)
    if outcome.prepared is not None:
        counts = {"labelled_train": 100, "labelled_test": 40, "labelled_tokens": 12.0}
        each = {name: {**counts, "labelled_cache": f"/cache/{name}"} for name in TASKS}
        found = outcome.prepared.model_copy(update={**counts, "labelled_tasks": each})
        return 30.0, outcome.model_copy(update={"prepared": found})
    if spec.stage is not None and spec.stage.train == "none" and spec.stage.task != "qa":
        luck = int(Genotype.from_json(spec.genotype).hash[:8], 16)
        score = float(luck // 7 ** TASKS.index(spec.stage.task) % 97)
        shown = {name: score for name, _ in tasks.of(spec.stage.task).shown}
        outcome = outcome.model_copy(update={"metrics": {"loss": 1.0, **shown, "quality": score}})
    return 30.0, outcome


def test_each_data_set_gives_a_score_of_its_own_and_is_read_from_its_own_cache(
    tmp_path: Path,
) -> None:
    config = named_config(experiment__quality="worst", experiment__generations=1)
    with without_summaries():
        tick = make_tick(StateFolder(tmp_path / "state"), config, scripted)
        found = drive(tick)
    assert found.experiment.state == "complete"
    for one in found.candidates.values():
        if one.state is not State.SCORED:
            continue
        scores = found.scores(one.id)
        assert scores is not None
        own = {
            f"{kind}-{name}": found.results[one.id, f"evaluate_{name}"].metrics[METRICS[kind]]
            for name, kind in NAMED.items()
        }
        assert {name: scores[tasks.own_quality(name)] for name in own} == own
        assert found.quality(one.id) == min([*own.values(), scores["qa_quality"]])
        for name, score in own.items():
            told = found.task_scores(one.id, name)
            assert told is not None and told["quality"] == score
    for spec in tick.launcher.specs:  # type: ignore[attr-defined]
        if spec.stage is not None and spec.stage.task in TASKS:
            assert Path(spec.labelled_cache).name == spec.stage.task
    volumes = Volumes.of(found.experiment.prepared or {}, config.data)
    assert tasks.of("tag-people").examples(volumes) == 100
    tick.store.close()


def test_a_model_to_take_home_is_named_by_its_data() -> None:
    config = named_config()
    assert _task(config, "topic") == "classify-topic"
    with pytest.raises(NasdError, match="only qa, mood, topic, people"):
        _task(config, "classify")


def test_models_of_two_data_sets_have_the_labels_of_their_own(tmp_path: Path) -> None:
    write(tmp_path, "classify")
    rows = (tmp_path / FILES["classify"]).read_text()
    for old, new in (("bright", "loud"), ("dull", "quiet"), ("other", "between")):
        rows = rows.replace(f'"{old}"', f'"{new}"')
    (tmp_path / "sound.jsonl").write_text(rows)
    written = {
        "light": {"kind": "classify", "files": [FILES["classify"]], "tokens": 48},
        "sound": {"kind": "classify", "files": ["sound.jsonl"], "tokens": 48},
    }
    data = Data.model_validate(written)
    tokenizer = seed.load_tokenizer(SOURCE, tmp_path)
    made = prepare.caches(data, tmp_path, tokenizer, tmp_path / "cache", 5, quiet)
    counts = prepare.counts(*made)
    assert counts["labelled_tasks"].keys() == {"classify-light", "classify-sound"}
    model, _ = seed.load_seed(SOURCE, tmp_path, 0.0)
    phenotype.save(model, tmp_path / "seed")
    labels = {"light": {"bright", "dull", "other"}, "sound": {"loud", "quiet", "between"}}
    one = next(one for one in named_config().stages if one.name == "finetune_mood")
    for name, wanted in labels.items():
        of = f"classify-{name}"
        told = counts["labelled_tasks"][of]
        assert set(told["labels"]) == wanted
        spec = Spec(
            attempt=1, candidate=0, generation=None, seed=5, dropout=0.0, source=SOURCE,
            stage=one.model_copy(update={"task": of}), data=tasks.focused(data, of),
            config_folder=str(tmp_path), genotype={}, lineage=[], inherits=False,
            weights=str(tmp_path / "seed"), cache=str(tmp_path / "cache"), mlm_cache="",
            qa_cache="", labelled_cache=told["labelled_cache"], tensorboard="",
            precision="float32", threads=1, checkpoint_minutes=60, log_steps=1, stall_minutes=10,
        )  # fmt: skip
        assert spec.stage is not None
        task = registry.begin(spec, spec.stage, Ranks(0, 1, torch.device("cpu")))
        assert set(task.model.architecture.labels) == wanted
        assert isinstance(task.model, phenotype.SequenceClassification)
