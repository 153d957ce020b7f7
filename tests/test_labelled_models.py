"""Models of labels: as seeds, as exports, asked, and taught, on the sentences of the demo."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
)

from nasd.contract import tasks
from nasd.contract.config import Stage, Teacher
from nasd.contract.digests import Damaged
from nasd.contract.errors import NasdError
from nasd.contract.labelled import Labels
from nasd.contract.protocol import Spec, Teaching
from nasd.export import answer as oracle
from nasd.worker import answer, export, prepare
from nasd.worker.model import outside, phenotype, seed, seed_heads
from nasd.worker.tasks import labelled, notes, registry, teachers
from nasd.worker.tasks.by_text import check_same
from nasd.worker.tasks.examples import read
from nasd.worker.tasks.task import Ranks
from nasd.worker.training.progress import quiet
from nasd.worker.training.train import train
from tests.labelled import LABELLED, rows, search_config, write
from tests.test_seed import CLOSE, examples, random_model
from tests.training import SOURCE, Notes, Workshop, make_workshop, run_of

Shops = Callable[[str], Workshop]
EACH = pytest.mark.parametrize("name", LABELLED)
AUTO: dict[str, Any] = {
    tasks.CLASSIFY.name: AutoModelForSequenceClassification,
    tasks.REGRESS.name: AutoModelForSequenceClassification,
    tasks.TAG.name: AutoModelForTokenClassification,
}


@pytest.fixture(scope="module")
def shops(tmp_path_factory: pytest.TempPathFactory) -> Shops:
    @cache
    def made(task: str) -> Workshop:
        folder = tmp_path_factory.mktemp("workshop")
        write(folder, task)
        return make_workshop(folder, search_config(task))

    return made


def stage_of(name: str, train: str, **changes: Any) -> Stage:
    found = next(
        one for one in search_config(name).stages if (one.train == "none") == (train == "none")
    )
    return found.model_copy(update=changes)


@pytest.fixture(scope="module")
def trained(shops: Shops, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a model that was fine-tuned for a task, for a few seconds."""

    @cache
    def made(name: str) -> Path:
        folder = tmp_path_factory.mktemp(name)
        stage = stage_of(name, "all", epochs=6, batch=16, learning_rate=1e-3)
        task = registry.begin(shops(name).spec(stage), stage, ALONE)
        train(task, stage, ALONE, run_of(folder, Notes()))
        phenotype.save(task.model, folder / "model")
        return folder / "model"

    return made


ALONE = Ranks(0, 1, torch.device("cpu"))


def scored(shop: Workshop, name: str, weights: Path, result: Path) -> dict[str, float]:
    stage = stage_of(name, "none")
    score = registry.TASKS[name].score
    assert score is not None
    return score(shop.spec(stage, weights), stage, result, ALONE, 8, quiet)


@EACH
def test_training_tells_more_than_chance_and_packing_changes_no_score(
    shops: Shops, trained: Callable[[str], Path], tmp_path: Path, name: str
) -> None:
    shop, weights = shops(name), trained(name)
    found = scored(shop, name, weights, tmp_path / "packed")
    assert found["quality"] == found[tasks.labelled(shop.data).quality]
    assert found["quality"] > 45
    stage = stage_of(name, "none")
    spec = shop.spec(stage, weights, packing=False)
    score = registry.TASKS[name].score
    assert score is not None
    padded = score(spec, stage, tmp_path / "padded", ALONE, 5, quiet)
    assert padded == pytest.approx(found, abs=1e-2)


@EACH
def test_an_export_loads_by_its_auto_class_and_tells_what_was_scored(
    shops: Shops, trained: Callable[[str], Path], tmp_path: Path, name: str
) -> None:
    shop, weights = shops(name), trained(name)
    folder = tmp_path / "export"
    folder.mkdir()
    home = Path(seed.resolve(SOURCE, shop.folder))
    tokens = tasks.labelled(shop.data).tokens
    export.write(weights, home, folder, {"longest": tokens}, name)
    theirs: Any = AUTO[name].from_pretrained(folder, trust_remote_code=True).eval()
    ours = phenotype.load(seed_heads.KINDS[name], weights).eval()
    input_ids, mask = examples(vocab_size=60)
    with torch.no_grad():
        said = theirs(input_ids=input_ids, attention_mask=mask).logits
        torch.testing.assert_close(ours(input_ids, mask), said)
    labels = ours.architecture.labels
    assert theirs.config.id2label == dict(enumerate(labels))
    scored(shop, name, weights, tmp_path / "scored")
    predictions = json.loads((tmp_path / "scored" / "predictions.json").read_text())
    texts, pairs = of_the_test_part(shop, name)
    asked = {"folder": str(folder), "kind": seed_heads.KINDS[name].__name__}
    told = answer.answer_to({**asked, "texts": texts, "pairs": pairs})["told"]
    if name == tasks.CLASSIFY.name:
        assert [label for label, _ in told] == predictions
        assert all(1 / len(labels) <= score <= 1 for _, score in told)
    elif name == tasks.REGRESS.name:
        assert [score for _, score in told] == pytest.approx(predictions, abs=1e-3)
    else:
        assert [[label for label, _ in words] for words in told] == predictions


def test_a_regressor_of_large_numbers_is_exported_as_any_other(
    shops: Shops, trained: Callable[[str], Path], tmp_path: Path
) -> None:
    pytest.importorskip("onnxscript", reason="the extra onnx is not installed: bin/setup onnx")
    name = tasks.REGRESS.name
    model = phenotype.load(seed_heads.KINDS[name], trained(name))
    with torch.no_grad():
        for part in ("weight", "bias"):
            model.get_parameter(f"{seed_heads.KINDS[name].head_name}.out.{part}").mul_(1e5)
    phenotype.save(model, tmp_path / "large")
    folder = tmp_path / "export"
    folder.mkdir()
    home = Path(seed.resolve(SOURCE, shops(name).folder))
    export.write(tmp_path / "large", home, folder, {"longest": 48}, name)
    assert export.write_onnx(folder, name) > export.ONNX_TOLERANCE


@pytest.mark.parametrize("name", [tasks.CLASSIFY.name, tasks.TAG.name])
def test_in_int8_it_is_scored_and_asked_as_in_float32(
    shops: Shops, trained: Callable[[str], Path], tmp_path: Path, name: str
) -> None:
    pytest.importorskip("onnxscript", reason="the extra onnx is not installed: bin/setup onnx")
    shop, weights = shops(name), trained(name)
    folder = tmp_path / "export"
    folder.mkdir()
    home = Path(seed.resolve(SOURCE, shop.folder))
    export.write(weights, home, folder, {"longest": 48}, name)
    assert export.write_onnx(folder, name) <= export.ONNX_TOLERANCE
    spec = shop.spec(stage_of(name, "none"), weights, packing=False)
    found = export.write_int8(folder, spec.model_dump(mode="json", by_alias=True))
    whole = scored(shop, name, weights, tmp_path / "scored")
    assert found["float32"] == pytest.approx(whole, abs=1e-2)
    assert found["int8"].keys() == whole.keys()
    assert found["int8"]["quality"] == pytest.approx(whole["quality"], abs=15)
    texts, pairs = of_the_test_part(shop, name)
    asked = {
        "folder": str(folder), "kind": seed_heads.KINDS[name].__name__,
        "texts": texts[:8], "pairs": pairs and pairs[:8],
    }  # fmt: skip
    plain, quick, small = (
        answer.answer_to({**asked, **more})["told"]
        for more in ({}, {"file": "model.onnx"}, {"file": "model-int8.onnx"})
    )
    assert labels_in(quick) == labels_in(plain)
    assert len(small) == len(plain)
    assert small != plain  # it is another file that answers


def labels_in(told: list[Any]) -> list[Any]:
    """Of texts, or of their words; of numbers two digits."""
    if told and not isinstance(told[0][0], str):
        return [labels_in(words) for words in told]
    return [label or round(score, 2) for label, score in told]


def of_the_test_part(shop: Workshop, name: str) -> tuple[list[Any], list[str] | None]:
    """The test examples as they were before they were tokenised."""
    test = read(tasks.labelled(shop.data), shop.folder, 5, quiet).test
    texts = [one.text if isinstance(one.text, str) else list(one.text) for one in test]
    pairs = [one.pair for one in test if one.pair is not None]
    return texts, pairs or None


HEADS = [
    ("DistilBertForSequenceClassification", tasks.CLASSIFY.name, 3),
    ("BertForSequenceClassification", tasks.CLASSIFY.name, 3),
    ("BertForSequenceClassification", tasks.REGRESS.name, 1),
    ("DistilBertForTokenClassification", tasks.TAG.name, 3),
    ("BertForTokenClassification", tasks.TAG.name, 3),
]


@pytest.mark.parametrize(("kind", "name", "count"), HEADS)
def test_a_fine_tuned_checkpoint_tells_the_same_its_labels_in_our_order(
    kind: str, name: str, count: int, tmp_path: Path
) -> None:
    names = ["Zebra", "ant", "Mole"][:count]
    theirs = random_model(kind, id2label=dict(enumerate(names)), num_labels=count)
    theirs.save_pretrained(tmp_path)
    found = seed.describe(str(tmp_path), Path("."))
    assert found.heads == (name,)
    assert found.labels == tuple(names)
    ours = ("ant", "mole", "zebra") if count > 1 else ("score",)
    assert seed_heads.misfit(found.labels, Labels(ours)) == ""
    model = seed.load_with_head(
        seed_heads.KINDS[name], str(tmp_path), Path("."), labels=ours
    ).eval()
    assert model.architecture.labels == ours
    input_ids, mask = examples()
    order = [1, 2, 0] if count > 1 else [0]
    with torch.no_grad():
        wanted = theirs(input_ids=input_ids, attention_mask=mask).logits[..., order]
        torch.testing.assert_close(model(input_ids, mask), wanted, **CLOSE)


def test_a_head_of_other_labels_is_left_and_that_is_said() -> None:
    assert "tells 2 labels and the data has 3" in seed_heads.misfit("ab", Labels(("a", "b", "c")))
    assert "other ones" in seed_heads.misfit(("bad", "good"), Labels(("no", "yes")))


def test_a_head_of_unnamed_labels_is_kept_where_the_data_has_an_order_of_its_own() -> None:
    unnamed = ("LABEL_0", "LABEL_1")
    assert seed_heads.misfit(unnamed, Labels(("0", "1"))) == ""
    assert seed_heads.misfit(unnamed, Labels(("no", "yes"))) == ""  # a data set that names them
    by_letter = seed_heads.misfit(unnamed, Labels(("ham", "spam"), ordered=False))
    assert "have no names" in by_letter and "id2label" in by_letter
    assert seed_heads.misfit(("spam", "ham"), Labels(("ham", "spam"), ordered=False)) == ""


@pytest.mark.parametrize(
    ("theirs", "ours", "wanted"),
    [
        (("spam", "Ham"), ("ham", "spam"), [1, 0]),
        (("pos", "Pos"), ("Pos", "pos"), [1, 0]),
        (("Pos", "neg"), ("Pos", "pos"), None),
        (("LABEL_1", "LABEL_0"), ("LABEL_0", "LABEL_1"), [1, 0]),
        (("one",), ("score",), [0]),
    ],
)
def test_labels_are_found_by_their_names_and_by_their_case_where_that_tells_them_apart(
    theirs: tuple[str, ...], ours: tuple[str, ...], wanted: list[int] | None
) -> None:
    assert seed_heads.places(theirs, ours) == wanted


@EACH
def test_what_a_teacher_has_said_of_the_examples_is_what_it_says(
    shops: Shops, trained: Callable[[str], Path], name: str
) -> None:
    shop, weights = shops(name), trained(name)
    settings = Teacher(source="baseline", share=1.0)
    teaching = Teaching(weights=str(weights), name="the baseline", settings=settings)
    stage = stage_of(name, "all")
    spec: Spec = shop.spec(stage, weights, teacher=teaching, holds_out=True, packing=True)
    registry.ask(spec, stage, ALONE, quiet)
    book = registry.TASKS[name].book
    assert book is not None
    assert notes.place(book, spec).is_dir()
    task = registry.begin(spec, stage, ALONE)
    task.model.eval()
    batch = task.batch(np.arange(6), 3)
    mine, theirs = task.outputs(task.model, batch)
    mask = batch["attention_mask"].bool() if mine.dim() == 3 else slice(None)
    torch.testing.assert_close(mine[mask], theirs[mask], atol=2e-2, rtol=2e-2)
    held = labelled.held_out_of(spec)
    assert held is not None
    assert task.train_size == shop.prepared.labelled_train - len(held)
    apart = task.loss((mine, theirs), batch)
    assert 0 <= float(apart.detach()) < 1e-2
    far = task.loss((mine + torch.arange(mine.shape[-1]) + 1.0, theirs), batch)
    assert float(far.detach()) > float(apart.detach())


def bert_of(shop: Workshop, name: str, folder: Path, labels: list[str]) -> Any:
    """One of transformers', drawn at random, wider than the seed and of its vocabulary."""
    kind = f"BertFor{seed_heads.KINDS[name].__name__}"
    model = random_model(
        kind,
        id2label=dict(enumerate(labels)),
        num_labels=len(labels),
        vocab_size=len(tokenizer_of(shop)) + 3,
        max_position_embeddings=64,
    )
    model.save_pretrained(folder)
    tokenizer_of(shop).save_pretrained(folder)
    return model.eval()


def tokenizer_of(shop: Workshop) -> Any:
    return seed.load_tokenizer(SOURCE, shop.folder)


def fetched(shop: Workshop, name: str, source: Path | str) -> Spec:
    """An attempt that learns from a copy of the model, once prepare has made it."""
    settings = Teacher(source=str(source), share=1.0)
    teaching = Teaching(weights="", name=str(source), settings=settings)
    spec: Spec = shop.spec(stage_of(name, "all"), teacher=teaching)
    copy = teachers.fetch(spec, tokenizer_of(shop), quiet, prepare.labels_of(spec))
    told = teaching.model_copy(update={"weights": str(copy)})
    return spec.model_copy(update={"teacher": told})


@EACH
def test_a_teacher_from_outside_tells_the_labels_in_our_order(
    shops: Shops, tmp_path: Path, name: str
) -> None:
    shop = shops(name)
    ours = prepare.labels_of(shop.spec(None)).names
    theirs = [one.upper() for one in reversed(ours)]
    bert = bert_of(shop, name, tmp_path / "bert", theirs)
    spec = fetched(shop, name, tmp_path / "bert")
    assert spec.stage is not None and spec.teacher is not None
    teacher = teachers.load(spec.teacher, seed_heads.KINDS[name]).eval()
    task = registry.begin(spec.model_copy(update={"teacher": None}), spec.stage, ALONE)
    batch = task.batch(np.arange(4), 1)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    ends = (ids == tokenizer_of(shop).sep_token_id).long()
    types = ((ends.cumsum(1) > ends) & mask.bool()).long()
    with torch.no_grad():
        wanted = bert(input_ids=ids, attention_mask=mask, token_type_ids=types).logits
        (said,) = task.outputs(teacher, batch)
    torch.testing.assert_close(said, wanted.flip(-1))
    registry.ask(spec, spec.stage, ALONE, quiet)
    task = registry.begin(spec, spec.stage, ALONE)
    task.model.eval()
    _, noted = task.outputs(task.model, task.batch(np.arange(4), 1))
    shown = mask.bool() if wanted.dim() == 3 else slice(None)
    torch.testing.assert_close(noted[shown], said[shown], atol=2e-2, rtol=2e-2)


def test_a_search_s_own_model_teaches_another_whose_labels_stand_otherwise(
    shops: Shops, trained: Callable[[str], Path], tmp_path: Path
) -> None:
    name = tasks.CLASSIFY.name
    shop, kind = shops(name), seed_heads.KINDS[name]
    model = phenotype.load(kind, trained(name))
    ours = model.architecture.labels
    phenotype.save(
        outside._reordered("x", model, outside.Wanted(tasks.of(name), Labels(ours[::-1]))), tmp_path
    )
    tokenizer_of(shop).save_pretrained(tmp_path)
    assert phenotype.load_architecture(tmp_path).labels == ours[::-1]
    spec = fetched(shop, name, tmp_path)
    assert spec.teacher is not None
    teacher = teachers.load(spec.teacher, kind).eval()
    input_ids, mask = examples(vocab_size=60)
    with torch.no_grad():
        torch.testing.assert_close(teacher(input_ids, mask), model.eval()(input_ids, mask))


def test_what_cannot_be_the_teacher_of_labels_is_refused(shops: Shops, tmp_path: Path) -> None:
    name = tasks.CLASSIFY.name
    shop = shops(name)
    bert_of(shop, name, tmp_path / "others", ["good", "bad", "ugly"])
    with pytest.raises(
        NasdError, match="its labels are other ones than the data's: take a teacher"
    ):
        fetched(shop, name, tmp_path / "others")
    bert_of(shop, name, tmp_path / "two", ["good", "bad"])
    with pytest.raises(NasdError, match="it tells 2 labels and the data has 3"):
        fetched(shop, name, tmp_path / "two")
    pooled = random_model("BertForMaskedLM", vocab_size=len(tokenizer_of(shop)) + 3)
    pooled.save_pretrained(tmp_path / "words")
    tokenizer_of(shop).save_pretrained(tmp_path / "words")
    with pytest.raises(NasdError, match="it was not trained for classification, as it lacks"):
        fetched(shop, name, tmp_path / "words")
    other_words(shop, tmp_path / "two")
    tag = shops(tasks.TAG.name)
    labels = list(prepare.labels_of(tag.spec(None)).names)
    bert_of(tag, tasks.TAG.name, tmp_path / "tags", labels)
    other_words(tag, tmp_path / "tags")
    with pytest.raises(NasdError, match="is shown the seed's own tokens: take one with the seed's"):
        fetched(tag, tasks.TAG.name, tmp_path / "tags")


def other_words(shop: Workshop, folder: Path) -> None:
    """Its tokenizer with another vocabulary than the seed's: each number is another word's."""
    path = folder / "tokenizer.json"
    text = json.loads(path.read_text())
    words = text["model"]["vocab"]
    plain = sorted(one for one in words if one.isalpha() and len(one) > 2)
    numbers = [words[one] for one in plain]
    words.update(zip(plain, numbers[1:] + numbers[:1], strict=True))
    path.write_text(json.dumps(text))


@pytest.mark.parametrize("name", [tasks.CLASSIFY.name, tasks.REGRESS.name])
def test_a_teacher_of_another_vocabulary_reads_the_texts_by_itself(
    shops: Shops, tmp_path: Path, name: str
) -> None:
    shop = shops(name)
    ours = prepare.labels_of(shop.spec(None)).names
    bert = bert_of(shop, name, tmp_path / "bert", list(reversed(ours)))
    other_words(shop, tmp_path / "bert")
    spec = fetched(shop, name, tmp_path / "bert")
    assert spec.stage is not None
    registry.ask(spec, spec.stage, ALONE, quiet)
    task = registry.begin(spec, spec.stage, ALONE)
    task.model.eval()
    _, noted = task.outputs(task.model, task.batch(np.arange(6), 1))
    words = AutoTokenizer.from_pretrained(tmp_path / "bert")
    data = tasks.labelled(shop.data)
    texts = read(data, shop.folder, spec.seed, quiet).train[:6]
    pairs = [one.pair for one in texts if one.pair is not None]
    shown = words(
        [str(one.text) for one in texts], pairs or None, padding=True, truncation="longest_first",
        max_length=64, return_tensors="pt",
    )  # fmt: skip
    with torch.no_grad():
        wanted = bert(**shown).logits.flip(-1)
    torch.testing.assert_close(noted, wanted, atol=2e-2, rtol=2e-2)
    with pytest.raises(Damaged, match="is of other texts than the config names now"):
        check_same(texts, 7, tmp_path)


def test_a_model_is_asked_by_the_command_that_is_for_it(
    shops: Shops, trained: Callable[[str], Path], tmp_path: Path
) -> None:
    name = tasks.CLASSIFY.name
    home = Path(seed.resolve(SOURCE, shops(name).folder))
    (tmp_path / "model").mkdir()
    export.write(trained(name), home, tmp_path / "model", {"longest": 48}, name)
    texts = [row["text"] for row in rows(name, 3)]
    told = oracle.predict(tmp_path / "model", texts)
    assert [
        isinstance(one, oracle.Told) and one.label in ("bright", "dull", "other") for one in told
    ]
    with pytest.raises(NasdError, match="labels texts: ask it by `nasd predict`"):
        oracle.answer(tmp_path / "model", "Who?", "Ines.")
    with pytest.raises(NasdError, match="text 2 is empty"):
        oracle.predict(tmp_path / "model", ["one", " "])
    with pytest.raises(NasdError, match="some texts are pairs"):
        oracle.predict(tmp_path / "model", ["one\ttwo", "three"])
    with pytest.raises(NasdError, match="is no exported model"):
        oracle.predict(tmp_path, ["one"])
