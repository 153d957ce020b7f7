"""A teacher from outside: what may be one, what it is shown, and attempts that learn from it."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nasd.contract.config import Teacher, check_against_seed
from nasd.contract.digests import Damaged
from nasd.contract.errors import NasdError
from nasd.contract.protocol import Spec, Teaching, Verdict
from nasd.control import preflight
from nasd.control.specs import spec as spec_for
from nasd.record.folders import StateFolder
from nasd.record.lifecycle import Phase
from nasd.worker import inputs
from nasd.worker.model import outside, phenotype
from nasd.worker.model.outside import Outside
from nasd.worker.model.phenotype import QuestionAnswering
from nasd.worker.model.seed import describe, load_tokenizer
from nasd.worker.tasks import registry, teachers
from nasd.worker.tasks.task import Ranks
from nasd.worker.training.progress import quiet
from tests.conftest import drive, make_tick, small_config
from tests.damage import flip_a_bit
from tests.snapshots import phase_of
from tests.training import SOURCE, Workshop, demo_config, exported, make_workshop, stage, work

WIDTH, TOKENS = 96, demo_config().data.qa.tokens


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return make_workshop(tmp_path_factory.mktemp("workshop"))


@pytest.fixture(scope="module")
def tokenizer(shop: Workshop) -> Any:
    return load_tokenizer(SOURCE, shop.folder)


@pytest.fixture(scope="module")
def bert(shop: Workshop, tokenizer: Any) -> Path:
    """A BERT that answers questions, wider than the seed, of its vocabulary; drawn at random."""
    from transformers import BertConfig, BertForQuestionAnswering

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer) + 3,  # as where a table is padded
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=TOKENS,
        initializer_range=0.5,
    )
    folder = shop.folder / "bert"
    BertForQuestionAnswering(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def lesson(shop: Workshop, source: str, **changes: Any) -> Spec:
    """An attempt to fine-tune that learns from a copy of the model, once prepare has made it."""
    settings = Teacher(source=source, **changes)
    teaching = Teaching(weights="", name=source, settings=settings)
    spec = shop.spec(stage(demo_config(), "finetune", epochs=0.2), teacher=teaching)
    copy = teachers.fetch(spec, load_tokenizer(SOURCE, shop.folder), quiet)
    return spec.model_copy(update={"teacher": teaching.model_copy(update={"weights": str(copy)})})


def test_a_bert_is_shown_which_tokens_are_the_question_and_says_what_it_says_by_itself(
    shop: Workshop, bert: Path, tokenizer: Any
) -> None:
    from transformers import BertForQuestionAnswering

    spec = lesson(shop, "bert")
    assert spec.teacher is not None
    teacher = teachers.load(spec.teacher, QuestionAnswering).eval()
    assert isinstance(teacher, Outside)
    pair = tokenizer("who is it?", "it is a small fox", return_tensors="pt")
    own = BertForQuestionAnswering.from_pretrained(bert).eval()
    with torch.no_grad():
        theirs = own(**pair)
        start, end = teacher(pair["input_ids"], pair["attention_mask"])
    types = pair.get("token_type_ids")
    if types is None:  # a tokenizer of DistilBERT's says none
        separators = (pair["input_ids"] == tokenizer.sep_token_id).long()
        types = (separators.cumsum(1) > separators).long()
        with torch.no_grad():
            theirs = own(**pair, token_type_ids=types)
    assert types.sum() > 0
    torch.testing.assert_close(start, theirs.start_logits)
    torch.testing.assert_close(end, theirs.end_logits)


@pytest.mark.parametrize("match", [("logits",), ("relations",), ("logits", "relations")])
def test_a_worker_learns_from_a_wider_bert_and_comes_nearer_to_it(
    shop: Workshop, bert: Path, alone: Ranks, tmp_path: Path, match: tuple[str, ...]
) -> None:
    spec = lesson(shop, "bert", share=1.0, match=match)
    assert spec.stage is not None
    folder, outcome = work(spec, tmp_path / "taught")
    assert outcome is not None, folder.log.read_text()
    assert outcome.verdict is Verdict.SUCCEEDED, folder.log.read_text()
    registry.ask(spec, spec.stage, alone, quiet)
    apart = []
    for weights in (None, folder.result):
        task = registry.begin(spec, spec.stage, alone)
        if weights is not None:
            trained = phenotype.load(QuestionAnswering, weights)
            task.model.load_state_dict(trained.state_dict())
        task.model.eval()
        batch = task.batch(np.arange(16), 7)
        apart.append(task.loss(task.outputs(task.model, batch), batch).item())
    assert apart[1] < apart[0]


def test_a_model_that_another_search_has_made_can_teach(
    shop: Workshop, tokenizer: Any, tmp_path: Path
) -> None:
    ours = phenotype.load_for_answering(shop.seed_weights, torch.Generator().manual_seed(1))
    phenotype.save(ours, shop.folder / "ours")
    tokenizer.save_pretrained(shop.folder / "ours")
    spec = lesson(shop, "ours", match=("logits", "hidden", "relations"))
    folder, outcome = work(spec, tmp_path / "taught")
    assert outcome is not None, folder.log.read_text()
    assert outcome.verdict is Verdict.SUCCEEDED


def test_prepare_copies_the_teacher_and_tells_where_it_is(
    shop: Workshop, bert: Path, tmp_path: Path
) -> None:
    teaching = Teaching(weights="", name="bert", settings=Teacher(source="bert"))
    folder, outcome = work(shop.spec(None, teacher=teaching), tmp_path / "prepare")
    assert outcome is not None, folder.log.read_text()
    assert outcome.prepared is not None, outcome.message
    copy = Path(outcome.prepared.teacher)
    assert copy.parent == shop.folder / "cache"
    assert isinstance(outside.load(copy), Outside)
    missing = Teaching(weights="", name="gone", settings=Teacher(source="no/such/folder"))
    folder, outcome = work(shop.spec(None, teacher=missing), tmp_path / "missing")
    assert outcome is not None, folder.log.read_text()
    assert outcome.prepared is None
    assert outcome.message.startswith("teacher.source: 'no/such/folder': ")


def test_a_damaged_copy_is_made_again_unless_the_teacher_has_changed(
    shop: Workshop, bert: Path, tmp_path: Path
) -> None:
    shutil.copytree(bert, shop.folder / "other")
    spec = lesson(shop, "other")
    assert spec.teacher is not None
    copy = Path(spec.teacher.weights)
    before = (copy / "model.safetensors").read_bytes()
    flip_a_bit(copy / "model.safetensors")
    inputs.check(spec, quiet)
    assert (copy / "model.safetensors").read_bytes() == before
    flip_a_bit(copy / "model.safetensors")
    shutil.rmtree(shop.folder / "other")
    with pytest.raises(Damaged, match=r"cannot be made again: teacher\.source: 'other'"):
        inputs.check(spec, quiet)


# -- what may not be one -------------------------------------------------------------------------


def looked(shop: Workshop, source: str, tokens: int = TOKENS, **changes: Any) -> None:
    seed, tokenizer = describe(SOURCE, shop.folder), load_tokenizer(SOURCE, shop.folder)
    settings = Teacher(source=source, **changes)
    outside.look(settings, shop.folder, tokenizer, tokens, seed.architecture.width)


def refused(shop: Workshop, source: str, **changes: Any) -> str:
    with pytest.raises(NasdError) as caught:
        looked(shop, source, **changes)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_teacher_is_looked_at_before_anything_is_written(shop: Workshop, bert: Path) -> None:
    before = sorted(shop.folder.rglob("*"))
    looked(shop, "bert")
    looked(shop, "bert", match=("logits", "relations"))
    told = refused(shop, "bert", match=("hidden",))
    assert 'teacher.match: "hidden" compares states of one width' in told
    told = refused(shop, "bert", match=("relations",), relation_heads=7)
    assert "teacher.relation_heads: 7 heads do not divide both widths" in told
    assert sorted(shop.folder.rglob("*")) == before


def test_a_teacher_that_cannot_be_one_is_refused_by_its_name_and_the_reason(
    shop: Workshop, bert: Path, tokenizer: Any
) -> None:
    from transformers import BertConfig, BertModel

    assert refused(shop, "no/such/folder").startswith("teacher.source: 'no/such/folder': there is")
    (shop.folder / "empty").mkdir()
    assert "there is no config.json" in refused(shop, "empty")

    headless = shop.folder / "headless"
    config = BertConfig.from_pretrained(bert)
    BertModel(config, add_pooling_layer=False).save_pretrained(headless)
    tokenizer.save_pretrained(headless)
    told = refused(shop, "headless")
    assert told.startswith("teacher.source: 'headless': it was not trained to answer questions")

    foreign = shop.folder / "foreign"
    shutil.copytree(bert, foreign)
    words = json.loads((foreign / "tokenizer.json").read_text())
    vocabulary = words["model"]["vocab"]
    one, other = list(vocabulary)[-2:]
    vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]
    (foreign / "tokenizer.json").write_text(json.dumps(words))
    told = refused(shop, "foreign", match=("relations",))
    assert told.startswith("teacher.source: 'foreign': its vocabulary is another one")
    assert 'take teacher.match = ["logits"]' in told

    damaged = shop.folder / "damaged"
    shutil.copytree(bert, damaged)
    (damaged / "model.safetensors").write_bytes(b"no weights")
    assert "transformers cannot load it" in refused(shop, "damaged")
    assert f"it has {TOKENS} positions, and data.qa.tokens asks for 4096" in refused(
        shop, "bert", tokens=4096
    )


def test_a_search_with_a_teacher_that_cannot_be_one_is_refused_before_it_begins(
    shop: Workshop,
) -> None:
    settings = Teacher(source="no/such/folder")
    with pytest.raises(NasdError, match=r"^teacher\.source: 'no/such/folder': there is no folder"):
        preflight.look_at_seed(SOURCE, shop.folder, {}, None, settings, TOKENS)


def test_heads_of_relations_must_divide_the_seeds_width() -> None:
    config = small_config(teacher={"match": ["relations"], "relation_heads": 7})
    with pytest.raises(NasdError, match=r"c\.toml: teacher\.relation_heads: 7 heads do not"):
        check_against_seed(config, 64, 512, "c.toml")


# -- a search ------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_summaries")
def test_prepare_brings_the_teacher_and_whoever_learns_to_answer_is_told_where_it_is(
    tmp_path: Path,
) -> None:
    config = small_config(teacher={"source": "bert"})
    state = StateFolder(tmp_path / "state")
    tick = make_tick(state, config)
    found = drive(tick, phase_of(0, Phase.CLIMBING))
    told = [
        spec_for(found, config, tmp_path, state, one, 1, 1) for one in found.candidates.values()
    ]
    assert told[1].teacher is None  # at an MLM stage
    first = found.attempts[0]
    spec = json.loads(state.attempt(first.id).spec.read_text())
    assert (first.stage, spec["teacher"]["name"]) == ("prepare", "bert")
    tuned = next(one for one in found.attempts if one.stage == "finetune")
    assert json.loads(state.attempt(tuned.id).spec.read_text())["teacher"]["name"] == "bert"
    tick.store.close()
    assert outside.SOURCE == "teacher.source"


@pytest.mark.parametrize("kind", ["bert", "ours"])
def test_a_teacher_of_a_search_with_fewer_words_has_those_too_and_says_the_same(
    shop: Workshop, bert: Path, tokenizer: Any, kind: str
) -> None:
    from nasd.worker import trimming

    source = str(bert) if kind == "bert" else str(exported(shop, 0.1, shop.folder / "own"))
    settings = Teacher(source=source)
    teaching = Teaching(weights="", name=source, settings=settings)
    plain = shop.spec(None, teacher=teaching)
    spec = plain.model_copy(update={"vocabulary": 150})
    words = trimming.words(spec, quiet)
    copies = [
        teachers.fetch(plain, tokenizer, quiet),
        teachers.fetch(spec, words.tokenizer, quiet),
    ]
    assert copies[0] != copies[1]
    whole, small = (outside.load(copy).eval() for copy in copies)
    assert words.kept is not None
    ids = torch.arange(4, 100).view(2, 48)
    theirs = torch.from_numpy(words.kept)[ids]
    mask = torch.ones_like(ids)
    with torch.no_grad():
        for one, other in zip(small(ids, mask), whole(theirs, mask), strict=True):
            assert (one - other).abs().max() < 1e-6
