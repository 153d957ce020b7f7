"""A teacher from outside: what may be one, what it is shown, and attempts that learn from it."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nasd.contract import tasks
from nasd.contract.config import Teacher, check_against_seed, parse
from nasd.contract.digests import Damaged
from nasd.contract.errors import NasdError
from nasd.contract.genotype import Backbone
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
from tests.conftest import drive, make_tick, of_tuned_parents, small_config, small_dict
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
    other = shutil.copytree(bert, shop.folder / "other")
    spec = lesson(shop, str(other))  # no name that a hub could be asked for
    assert spec.teacher is not None
    copy = Path(spec.teacher.weights)
    before = (copy / "model.safetensors").read_bytes()
    flip_a_bit(copy / "model.safetensors")
    inputs.check(spec, quiet)
    assert (copy / "model.safetensors").read_bytes() == before
    flip_a_bit(copy / "model.safetensors")
    shutil.rmtree(other)
    with pytest.raises(Damaged, match=r"cannot be made again: teacher\.source: '.*/other'"):
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
        check_against_seed(config, Backbone(225, 512, 64), "c.toml")


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


# -- of MLM --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def speaker(shop: Workshop, tokenizer: Any) -> Path:
    """A BERT that fills masks, wider than the seed, of its vocabulary; drawn at random."""
    from transformers import BertConfig, BertForMaskedLM

    torch.manual_seed(1)
    config = BertConfig(
        vocab_size=len(tokenizer) + 3,  # as where a table is padded
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=TOKENS,
        initializer_range=0.5,
    )
    folder = shop.folder / "speaker"
    BertForMaskedLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def language_lesson(shop: Workshop, **changes: Any) -> Spec:
    """An attempt to learn by MLM from a copy of the model, once prepare has made it."""
    settings = Teacher(source="speaker", task="mlm", **changes)
    teaching = Teaching(weights="", name="speaker", settings=settings)
    spec = shop.spec(stage(demo_config(), "pretrain_1", keep=None), teacher=teaching)
    copy = teachers.fetch(spec, load_tokenizer(SOURCE, shop.folder), quiet)
    return spec.model_copy(update={"teacher": teaching.model_copy(update={"weights": str(copy)})})


@pytest.mark.parametrize("match", [("logits",), ("logits", "relations")])
def test_a_larger_model_says_at_masks_what_it_says_by_itself_and_is_learned_from(
    shop: Workshop, speaker: Path, alone: Ranks, match: tuple[str, ...]
) -> None:
    from transformers import BertForMaskedLM

    spec = language_lesson(shop, match=match, share=1.0)
    assert spec.stage is not None
    task = registry.begin(spec, spec.stage, alone)
    task.model.eval()
    batch = task.batch(np.arange(4), 7)
    outputs = task.outputs(task.model, batch)
    mine, theirs = outputs[0], outputs[len(outputs) // 2]
    assert theirs.shape[-1] == mine.shape[-1] + 3
    own = BertForMaskedLM.from_pretrained(speaker).eval()
    with torch.no_grad():
        said = own(input_ids=batch["input_ids"]).logits
    places = batch["positions"][:, :, None].expand(-1, -1, said.shape[-1])
    torch.testing.assert_close(theirs, said.gather(1, places), atol=1e-3, rtol=1e-3)
    before = task.loss(outputs, batch)
    before.backward()  # type: ignore[no-untyped-call]
    with torch.no_grad():
        for one in task.model.parameters():
            one -= 1e-3 * one.grad
        after = task.loss(task.outputs(task.model, batch), batch)
    assert after < before


def test_a_teacher_of_mlm_is_copied_apart_and_says_the_same_of_fewer_words(
    shop: Workshop, speaker: Path, tokenizer: Any
) -> None:
    from nasd.worker import trimming

    spec = language_lesson(shop)
    assert spec.teacher is not None
    whole = teachers.load(spec.teacher, phenotype.MaskedLM).eval()
    fewer = spec.model_copy(update={"vocabulary": 150})
    words = trimming.words(fewer, quiet)
    copy = teachers.fetch(fewer, words.tokenizer, quiet)
    assert str(copy) != spec.teacher.weights and words.kept is not None
    small = outside.load(copy, phenotype.MaskedLM).eval()
    ids = torch.arange(4, 100).view(2, 48)
    theirs = torch.from_numpy(words.kept)[ids]
    with torch.no_grad():
        said = whole(theirs)[..., torch.from_numpy(words.kept)]
        torch.testing.assert_close(small(ids), said, atol=1e-4, rtol=1e-4)


def test_a_teacher_of_mlm_that_cannot_be_one_is_refused_by_the_reason(
    shop: Workshop, speaker: Path, bert: Path
) -> None:
    wanted = outside.Wanted(tasks.MLM)

    def told(source: str, **changes: Any) -> str:
        settings = Teacher(source=source, task="mlm", **changes)
        words = load_tokenizer(SOURCE, shop.folder)
        with pytest.raises(NasdError) as caught:
            outside.look(settings, shop.folder, words, TOKENS, 64, wanted)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert told("bert").startswith("teacher.source: 'bert': it has no MLM head")
    stranger = shop.folder / "stranger"
    shutil.copytree(speaker, stranger)
    words = json.loads((stranger / "tokenizer.json").read_text())
    vocabulary = words["model"]["vocab"]
    one, other = list(vocabulary)[-2:]
    vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]
    (stranger / "tokenizer.json").write_text(json.dumps(words))
    refused = told("stranger")
    assert refused.startswith("teacher.source: 'stranger': its vocabulary is another one")
    assert "masked language modelling" in refused


def test_who_is_taught_by_a_teacher_of_mlm() -> None:
    config = small_config(teacher={"source": "speaker", "task": "mlm"})
    taught = {one.name for one in config.stages if config.taught(one, baseline=False)}
    assert taught == {"pretrain_0", "pretrain_1"}
    assert all(config.taught_along(stage(config, name), False) for name in taught)


@pytest.mark.parametrize(
    ("teacher", "words"),
    [
        ({"source": "best", "task": "mlm"}, "teacher.task: best teaches in all stages"),
        ({"source": "speaker", "task": "qa"}, "teacher.task"),
    ],
)
def test_a_task_that_no_teacher_can_have_is_refused(teacher: dict[str, str], words: str) -> None:
    with pytest.raises(NasdError) as caught:
        small_config(teacher=teacher)
    assert words in str(caught.value)


def test_a_teacher_of_mlm_needs_a_stage_that_it_can_teach_in() -> None:
    data = of_tuned_parents(small_dict(teacher={"source": "speaker", "task": "mlm"}), {"narrow": 1})
    with pytest.raises(NasdError, match="learn in an MLM stage alone from such a teacher"):
        parse(data, "c.toml")
