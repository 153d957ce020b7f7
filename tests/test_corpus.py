"""The corpora are packed whole, cached by what made them, and masked as the recipe says."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from nasd.contract.config import Corpus, MlmData
from nasd.contract.errors import NasdError
from nasd.worker import prepare
from nasd.worker.model import seed
from nasd.worker.tasks import corpus
from nasd.worker.tasks.corpus import MlmCorpus
from nasd.worker.tasks.mlm import GOLDEN, MlmTask, _mix, noise
from nasd.worker.training.progress import DOWNLOAD, Progress, quiet
from tests.training import SOURCE, demo_config

TEXT = "\n".join(f"mara keeps a red kite in the old mill {n}." for n in range(2000)) + "\n\n"


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return seed.load_tokenizer(SOURCE, Path())


def data(*files: str, **changes: Any) -> MlmData:
    base: dict[str, Any] = {"tokens": 32, "evaluation_sequences": 16}
    if files:
        base["corpora"] = (Corpus(files=files),)
    return MlmData(**{**base, **changes})


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    (tmp_path / "one.txt").write_text(TEXT)
    (tmp_path / "two.txt").write_text("\n\n" + TEXT.upper())
    return tmp_path


def built(
    texts: Path,
    tokenizer: Any,
    settings: MlmData,
    name: str = "cache",
    progress: Progress = quiet,
) -> MlmCorpus:
    folder = texts / name
    folder.mkdir()
    corpus.build(settings, texts, tokenizer, folder, 1, progress)
    return MlmCorpus.load(folder)


def test_no_token_is_lost_but_the_tail(texts: Path, tokenizer: Any) -> None:
    made = built(texts, tokenizer, data("one.txt", "two.txt"))
    lines = [line for line in (TEXT + TEXT.upper()).splitlines() if line]
    expected = [t for ids in tokenizer(lines, add_special_tokens=False)["input_ids"] for t in ids]
    flat = made.pieces.reshape(-1).tolist()
    assert flat == expected[: len(flat)]
    assert len(expected) - len(flat) < 30


def test_sequences_stand_between_cls_and_sep_and_the_parts_are_disjoint(
    texts: Path, tokenizer: Any
) -> None:
    made = built(texts, tokenizer, data("one.txt"))
    block = made.sequences(made.train[:5])
    assert block.shape == (5, 32)
    assert (block[:, 0] == tokenizer.cls_token_id).all()
    assert (block[:, -1] == tokenizer.sep_token_id).all()
    assert len(made.evaluation) == 16
    both = np.concatenate([made.train, made.evaluation])
    assert sorted(both) == list(range(len(made.pieces)))


def test_max_sequences_takes_a_sample_of_the_training_part(texts: Path, tokenizer: Any) -> None:
    made = built(texts, tokenizer, data("one.txt", max_sequences=50))
    assert len(made.train) == 50
    assert np.ptp(made.train) > 100


def test_a_hub_data_set_is_read_by_its_column(texts: Path, tokenizer: Any) -> None:
    """The hub's own code path, on a data set that stands in a folder."""
    import datasets

    lines = [line for line in TEXT.splitlines() if line]
    (texts / "hub").mkdir()
    datasets.Dataset.from_dict({"article": lines}).to_parquet(texts / "hub" / "train.parquet")
    source = Corpus(hub=str(texts / "hub"), column="article")
    beats: list[tuple[str, int, float]] = []

    def progress(doing: str, step: int = 0, steps: int = 0, *, patience: float = 0.0) -> None:
        beats.append((doing, step, patience))

    made = built(texts, tokenizer, data(corpora=(source,)), "from-hub", progress)
    assert beats[0] == ("downloading", 0, DOWNLOAD)
    batches = [step for doing, step, patience in beats if doing == "tokenising" and not patience]
    assert len(batches) == len(lines) / corpus.BATCH
    assert 0 < batches[0] < batches[1]
    assert np.array_equal(made.pieces, built(texts, tokenizer, data("one.txt"), "files").pieces)
    with pytest.raises(NasdError, match="no column 'text', only article"):
        built(texts, tokenizer, data(corpora=(Corpus(hub=str(texts / "hub")),)), "wrong")


def test_questions_of_the_hub_are_those_of_the_file(texts: Path) -> None:
    import datasets

    from nasd.contract.config import QaData
    from nasd.contract.squad import read_squad
    from nasd.presets.demo import write_demo_data

    write_demo_data(texts)
    questions = read_squad(texts / "squad.json")
    (texts / "hub").mkdir()
    datasets.Dataset.from_list(
        [
            {
                "id": q.id,
                "title": q.title,
                "context": q.context,
                "question": q.question,
                "answers": {
                    "text": [text for text, _ in q.answers],
                    "answer_start": [start for _, start in q.answers],
                },
            }
            for q in questions
        ]
    ).to_parquet(texts / "hub" / "train.parquet")
    settings = QaData(hub=str(texts / "hub"), tokens=96, stride=32)
    assert prepare.read_questions(settings, texts, quiet) == (questions, [])


def test_too_little_text_is_refused_by_name(texts: Path, tokenizer: Any) -> None:
    (texts / "short.txt").write_text("mara keeps a kite.\n")
    with pytest.raises(NasdError, match="evaluation_sequences = 16"):
        built(texts, tokenizer, data("short.txt"))


def test_a_cache_is_found_again_until_what_made_it_changes(
    texts: Path, tokenizer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    from nasd.presets.demo import write_demo_data

    write_demo_data(texts / "demo-data")
    settings = demo_config().data
    first = prepare.caches(settings, texts, tokenizer, texts / "c", 1, quiet)
    assert capsys.readouterr().out.count(" made") == 2
    assert prepare.caches(settings, texts, tokenizer, texts / "c", 1, quiet) == first
    assert capsys.readouterr().out.count(" is there") == 2
    with (texts / "demo-data" / "corpus.txt").open("a") as file:
        file.write("one more line\n")
    third = prepare.caches(settings, texts, tokenizer, texts / "c", 1, quiet)
    assert third[0] != first[0]
    assert third[1] == first[1]
    assert not list((texts / "c").glob(".*"))


def test_a_column_that_the_hubs_data_set_lacks_is_told_before_anything_is_fetched(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import datasets

    from nasd.worker import check

    info = datasets.DatasetInfo(features=datasets.Features({"body": datasets.Value("string")}))
    builder = SimpleNamespace(info=info)
    monkeypatch.setattr(datasets, "load_dataset_builder", lambda *_, **__: builder)
    check._check_hub("data.mlm.corpora[0].hub", "some/texts", None, None, "body")
    with pytest.raises(NasdError, match=r"corpora\[0\]\.hub: .* no column 'text', only body"):
        check._check_hub("data.mlm.corpora[0].hub", "some/texts", None, None, "text")


def test_the_text_that_is_trained_on_is_that_of_the_named_file(texts: Path, tokenizer: Any) -> None:
    """`a[1].txt` as a pattern is the name of `a1.txt`."""
    (texts / "a[1].txt").write_text(TEXT)
    (texts / "a1.txt").write_text(TEXT.upper() + "another text\n" * 99)
    made = built(texts, tokenizer, data("a[1].txt"), "pattern")
    plain = built(texts, tokenizer, data("one.txt"), "plain")
    assert np.array_equal(made.pieces, plain.pieces)


def test_json_lines_give_their_column_and_never_their_braces(texts: Path, tokenizer: Any) -> None:
    rows = [json.dumps({"body": line, "id": n}) for n, line in enumerate(TEXT.splitlines())]
    (texts / "rows.txt").write_text("\n".join(rows))
    with pytest.raises(
        NasdError, match=r"data\.mlm\.corpora: .*rows\.txt is JSON lines, and has no"
    ):
        built(texts, tokenizer, data("rows.txt"), "refused")
    settings = data(corpora=(Corpus(files=("rows.txt",), column="body"),))
    made = built(texts, tokenizer, settings, "rows")
    assert np.array_equal(made.pieces, built(texts, tokenizer, data("one.txt"), "plain").pieces)


def test_caches_of_files_from_before_names_were_names_count_no_more_and_all_others_do(
    texts: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nasd.presets.demo import write_demo_data

    keys: list[dict[str, Any]] = []
    key_of = prepare.key_of
    monkeypatch.setattr(prepare, "key_of", lambda parts: keys.append(parts) or key_of(parts))
    write_demo_data(texts / "demo-data")
    settings = demo_config().data
    prepare.caches(settings, texts, tokenizer, texts / "c", 1, quiet)
    mlm, qa = keys
    assert mlm["corpora"][0]["read"] == 2  # there was no such part
    assert set(qa) == {"tokenizer", "seed", "sources", "data"}  # as there was
    assert set(qa["data"]) == {"tokens", "stride", "train_share", "split_by"}
    hub = Corpus(hub="some/texts", split="validation")
    assert corpus.describe_sources([hub], texts, str) == [
        {
            "hub": "some/texts",
            "config": None,
            "revision": None,
            "split": "validation",
            "column": "text",
        }
    ]


def test_a_failed_build_leaves_nothing_behind(texts: Path, tokenizer: Any) -> None:
    from nasd.presets.demo import write_demo_data

    write_demo_data(texts / "demo-data")
    (texts / "demo-data" / "squad.json").write_text("{}")
    with pytest.raises(NasdError, match=r"squad\.json"):
        prepare.caches(demo_config().data, texts, tokenizer, texts / "c", 1, quiet)
    assert not [p for p in (texts / "c").iterdir() if not p.name.startswith("mlm-")]


class TestMasks:
    @pytest.fixture
    def task(self, texts: Path, tokenizer: Any) -> MlmTask:
        return MlmTask(torch.nn.Linear(1, 1), built(texts, tokenizer, data("one.txt")), 0.15, set())

    def test_each_sequence_has_as_many_and_never_a_special_token(self, task: MlmTask) -> None:
        batch = task.batch(np.arange(200), seed=3)
        assert batch["positions"].shape == (200, round(0.15 * 30))
        assert batch["positions"].min() >= 1
        assert batch["positions"].max() <= 30
        for row in batch["positions"]:
            assert len(set(row.tolist())) == len(row)

    def test_shares_are_80_10_10(self, task: MlmTask, tokenizer: Any) -> None:
        batch = task.batch(np.arange(300), seed=3)
        shown = batch["input_ids"].gather(1, batch["positions"])
        masked = (shown == tokenizer.mask_token_id).float().mean().item()
        kept = (shown == batch["targets"]).float().mean().item()
        assert masked == pytest.approx(0.8, abs=0.04)
        assert kept == pytest.approx(0.1, abs=0.03)

    def test_another_step_hides_other_tokens_and_the_same_step_the_same(
        self, task: MlmTask
    ) -> None:
        one, two = task.batch(np.arange(8), seed=1), task.batch(np.arange(8), seed=2)
        assert not torch.equal(one["positions"], two["positions"])
        again = task.batch(np.arange(8), seed=1)
        assert all(torch.equal(one[name], again[name]) for name in one)

    def test_targets_are_the_hidden_tokens(self, task: MlmTask) -> None:
        batch = task.batch(np.arange(8), seed=1)
        original = torch.from_numpy(task.corpus.sequences(task.corpus.train[np.arange(8)]))
        assert torch.equal(original.gather(1, batch["positions"]), batch["targets"])

    def test_an_examples_masks_do_not_depend_on_who_shares_its_batch(self, task: MlmTask) -> None:
        whole = task.batch(np.arange(8), seed=1)
        for part in (np.array([5]), np.array([6, 2, 3])):
            got = task.batch(part, seed=1)
            assert all(torch.equal(got[name], whole[name][part]) for name in whole)


def test_noise_is_uniform_and_its_rows_have_nothing_in_common() -> None:
    for key in (0, 1, 2**63 - 1):
        drawn = noise(key, np.arange(1000), 300)
        assert ((drawn >= 0.0) & (drawn < 1.0)).all()
        assert len(np.unique(drawn)) == drawn.size
        counts, _ = np.histogram(drawn, bins=100, range=(0.0, 1.0))
        # Chi-squared with 99 degrees of freedom: mean 99, standard deviation 14.
        assert 50 < ((counts - 3000) ** 2 / 3000).sum() < 160
        for one, other in ((drawn[:-1], drawn[1:]), (drawn[:, :-1], drawn[:, 1:])):
            assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 0.01
    assert not np.isin(noise(1, np.arange(9), 9), noise(2, np.arange(9), 9)).any()


def test_noise_is_splitmix64s() -> None:
    """The first outputs of the published generator for the state 1234567."""
    mixed = _mix(np.uint64(1234567) + np.arange(1, 4, dtype=np.uint64) * GOLDEN)
    assert mixed.tolist() == [6457827717110365317, 3203168211198807973, 9817491932198370423]
