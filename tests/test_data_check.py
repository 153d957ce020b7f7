"""What is wrong with data by itself is told before anything is written, and what it is worth."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from nasd.cli import app
from nasd.contract.config import Config, load
from nasd.contract.errors import NasdError
from nasd.contract.squad import read_squad
from nasd.control import preflight
from nasd.presets import write_preset
from nasd.presets.demo import write_demo_data
from nasd.views import caveats, doctor
from nasd.worker import data_check, prepare
from nasd.worker.model import seed
from nasd.worker.training.progress import quiet
from tests.training import SOURCE, demo_config

WORLD = "mara keeps a red kite in the old mill of the town by the sea .\n"


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return seed.load_tokenizer(SOURCE, Path())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_demo_data(tmp_path / "demo-data")
    return tmp_path


def look(folder: Path, tokenizer: Any, config: Config | None = None) -> dict[str, float]:
    config = config or demo_config()
    return data_check.look(config.data, folder, tokenizer, 1, config.stages)


def articles(folder: Path) -> list[dict[str, Any]]:
    content = json.loads((folder / "demo-data" / "squad.json").read_text())
    return list(content["data"])


def one_question(article: dict[str, Any]) -> dict[str, Any]:
    paragraph = article["paragraphs"][0]
    return {**article, "paragraphs": [{**paragraph, "qas": paragraph["qas"][:1]}]}


def test_the_demos_data_is_enough_and_all_of_it_is_known(folder: Path, tokenizer: Any):
    found = look(folder, tokenizer)
    assert found["mlm_unknown"] == found["qa_unknown"] == found["qa_skipped"] == 0
    assert found["qa_test_questions"] > 50


@pytest.mark.parametrize("text", ["word\n", WORLD, "mara" * 1000, WORLD * 3])
def test_a_corpus_of_a_word_or_a_line_is_too_little(folder: Path, tokenizer: Any, text: str):
    (folder / "demo-data" / "corpus.txt").write_text(text)
    with pytest.raises(NasdError, match=r"data\.mlm\.corpora: the corpora give \d+ sequences of"):
        look(folder, tokenizer)


@pytest.mark.parametrize(
    ("keep", "words"),
    [
        (lambda found: found[:1], "cannot be split by article"),
        (lambda found: [one_question(found[0])], "cannot be split by article"),
    ],
)
def test_one_article_or_one_question_cannot_be_split(folder, tokenizer, keep, words):
    content = {"data": keep(articles(folder))}
    (folder / "demo-data" / "squad.json").write_text(json.dumps(content))
    with pytest.raises(NasdError, match=words):
        look(folder, tokenizer)
    config = demo_config()
    with pytest.raises(NasdError, match=rf"c\.toml: data\.qa\.files: .*{words}"):
        preflight._check_questions(config, folder, "c.toml")


def test_fewer_examples_than_slots_are_told_as_training_would_tell_it(folder, tokenizer):
    content = {"data": [one_question(one) for one in articles(folder)[:2]]}
    (folder / "demo-data" / "squad.json").write_text(json.dumps(content))
    config = demo_config()
    wide = [
        stage.model_copy(update={"slots": 2}) if stage.train != "none" else stage
        for stage in config.stages
    ]
    look(folder, tokenizer)  # on one slot each
    with pytest.raises(
        NasdError, match=r"stages\.finetune: 1 training examples cannot be dealt out"
    ):
        data_check.look(config.data, folder, tokenizer, 1, wide)


def test_doctor_and_run_say_the_same_before_anything_is_written(tmp_path: Path):
    path = write_preset("demo-thesis", tmp_path, [], force=False)
    (tmp_path / "demo-data" / "corpus.txt").write_text(WORLD)
    (bad,) = [one for one in doctor.examine(path) if one.mark == "bad"]
    assert bad.about == "seed"
    assert "data.mlm.corpora: the corpora give 0 sequences" in bad.text
    done = CliRunner().invoke(app, ["run", "--config", str(path)])
    assert str(done.exception) == bad.text
    assert not (tmp_path / load(path).experiment.state).exists()


# -- what it is worth ----------------------------------------------------------------------------


def test_much_that_the_vocabulary_does_not_know_is_told_before_and_after(folder, tokenizer):
    corpus = folder / "demo-data" / "corpus.txt"
    lines = corpus.read_text().splitlines()
    corpus.write_text("\n".join(f"{line} 漢字 漢字" for line in lines))
    config = demo_config()
    found = look(folder, tokenizer, config)
    assert 0.02 < found["mlm_unknown"] < 0.5
    counts = prepare.counts(*prepare.caches(config.data, folder, tokenizer, folder / "c", 1, quiet))
    assert counts["mlm_unknown"] == pytest.approx(found["mlm_unknown"], abs=0.02)
    assert counts["qa_unknown"] == 0
    told = [text for text in caveats.of(counts) if "[UNK]" in text]
    assert len(told) == 1 and "% of the tokens in the corpora are [UNK]" in told[0]
    assert "in the beginnings of the corpora are" in next(caveats.of(found, sampled=True))


def test_faulty_questions_are_left_out_where_the_config_says_so(folder, tokenizer, capsys):
    path = folder / "demo-data" / "squad.json"
    whole = read_squad(path)
    content = {"data": articles(folder)}
    content["data"][0]["paragraphs"][0]["qas"][0]["answers"] = []
    path.write_text(json.dumps(content))
    config = demo_config()
    with pytest.raises(NasdError, match=r"answers is empty; .*data\.qa\.skip_faulty = true"):
        prepare.caches(config.data, folder, tokenizer, folder / "c", 1, quiet)
    qa = config.data.qa.model_copy(update={"skip_faulty": True})
    data = config.data.model_copy(update={"qa": qa})
    counts = prepare.counts(*prepare.caches(data, folder, tokenizer, folder / "c", 1, quiet))
    assert counts["qa_skipped"] == 1
    assert counts["qa_train_questions"] + counts["qa_test_questions"] == len(whole) - 1
    assert "left out: " in capsys.readouterr().out
    assert "1 faulty question is left out, as data.qa.skip_faulty says" in list(caveats.of(counts))


@pytest.mark.parametrize(("tests", "points"), [(1, "98"), (60, "13"), (384, "5"), (385, None)])
def test_a_test_set_too_small_to_tell_is_told_with_what_chance_does(tests, points):
    told = list(caveats.of({"qa_test_questions": tests}))
    assert bool(told) == (points is not None)
    if points:
        assert told[0].endswith(f"moves an EM of 50 % by ± {points} points")


def test_what_an_older_nasd_has_prepared_has_no_caveats_but_what_it_knows():
    assert list(caveats.of({})) == []
    assert list(caveats.of({"qa_test_questions": 2000, "mlm_unknown": None})) == []
