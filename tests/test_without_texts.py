"""A ladder without masked language modelling needs no texts, from its config to its report."""

from pathlib import Path
from typing import Any

import pytest

from nasd.contract.config import Config, parse
from nasd.contract.errors import NasdError
from nasd.contract.protocol import Verdict
from nasd.record.folders import StateFolder
from nasd.views.forecast.as_json import forecast
from nasd.views.report import write as report
from nasd.views.status import facts
from nasd.worker import data_check
from tests.conftest import drive, make_tick, small_dict, to_toml, without_summaries
from tests.test_task_lineage import task_dict
from tests.training import demo_config, make_workshop, work


def textless_dict(**changes: Any) -> dict[str, Any]:
    data = task_dict(**changes)
    del data["data"]["mlm"]
    return data


def textless_config() -> Config:
    return parse(textless_dict(), "config.toml")


def test_a_stage_that_reads_texts_is_refused_where_there_are_none() -> None:
    data = small_dict(data__mlm=None)
    with pytest.raises(NasdError) as caught:
        parse(data, "c.toml")
    assert str(caught.value) == (
        "c.toml: stages.pretrain_head: an MLM stage reads data.mlm, which is missing: give it, or"
        " take the stage out"
    )


def test_a_search_without_texts_goes_to_its_end_and_is_reported(tmp_path: Path) -> None:
    config = textless_config()
    with without_summaries():
        tick = make_tick(StateFolder(tmp_path / "state"), config)
        found = drive(tick)
    assert found.experiment.state == "complete"
    assert facts.read(tmp_path / "state").snapshot.experiment.state == "complete"
    report.write(report.read(tmp_path / "state"), tmp_path / "report")
    assert (tmp_path / "report" / "index.html").exists()


def test_a_search_without_texts_is_forecast_and_takes_no_sequences(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    data = textless_dict(seed_model__source="distilbert-base-uncased")
    data["search_space"] |= {"heads": [8, 12], "sizes": [1536, 3072], "blocks": [4, 6]}
    path.write_text(to_toml(data))
    config = parse(data, "c")
    told = forecast(config, path, qa_questions=200, runs=1)
    assert told["runs"][0]["gpu_hours"] > 0
    with pytest.raises(NasdError, match=r"--mlm-sequences: the config has no data\.mlm: leave it"):
        forecast(config, path, qa_questions=200, mlm_sequences=10, runs=1)


def test_a_worker_prepares_questions_alone(tmp_path: Path) -> None:
    shop = make_workshop(tmp_path / "shop")
    data = demo_config().data.model_copy(update={"mlm": None})
    spec = shop.spec(None, data=data, cache=str(tmp_path / "cache"), mlm_cache="", qa_cache="")
    (tmp_path / "cache").mkdir()
    folder, outcome = work(spec, tmp_path / "prepare")
    assert outcome is not None, folder.log.read_text()
    assert outcome.verdict is Verdict.SUCCEEDED
    assert outcome.prepared is not None
    assert outcome.prepared.mlm_cache == ""
    assert outcome.prepared.mlm_train_sequences == outcome.prepared.mlm_evaluation_sequences == 0
    assert outcome.prepared.qa_cache == shop.prepared.qa_cache.replace(
        str(shop.folder / "cache"), str(tmp_path / "cache")
    )


def test_a_look_at_the_data_tells_of_questions_alone(tmp_path: Path) -> None:
    from nasd.worker.model.seed import load_tokenizer

    shop = make_workshop(tmp_path)
    config = demo_config()
    data = config.data.model_copy(update={"mlm": None})
    tokenizer = load_tokenizer("package:nasd/demo_seed", shop.folder)
    found = data_check.look(data, shop.folder, tokenizer, 5, config.stages[-2:])
    assert "mlm_unknown" not in found and found["qa_test_questions"] > 0
