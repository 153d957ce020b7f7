"""Seeds that are fine-tuned already: their head for questions is kept where no MLM stage stands."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from nasd.contract import seed_head, tasks
from nasd.contract.errors import NasdError
from nasd.contract.protocol import Verdict
from nasd.worker.model import phenotype, seed
from nasd.worker.model.architecture import Architecture
from nasd.worker.model.pretrained import NasdForQuestionAnswering
from tests.test_seed import CLOSE, change, examples, random_model
from tests.training import Workshop, demo_config, exported, make_workshop, stage, work


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return make_workshop(tmp_path_factory.mktemp("workshop"))


@pytest.fixture(scope="module")
def checkpoint(shop: Workshop) -> Path:
    return exported(shop, 0.5, shop.folder / "checkpoint")


@pytest.mark.parametrize("kind", ["DistilBertForQuestionAnswering", "BertForQuestionAnswering"])
def test_a_fine_tuned_checkpoint_gives_the_same_answers(kind: str, tmp_path: Path) -> None:
    theirs = random_model(kind)
    theirs.save_pretrained(tmp_path)
    assert tasks.QA.name in seed.describe(str(tmp_path), Path(".")).heads
    model = seed.load_with_head(phenotype.QuestionAnswering, str(tmp_path), Path(".")).eval()
    input_ids, mask = examples()
    with torch.no_grad():
        for given in (None, mask):
            wanted = theirs(input_ids=input_ids, attention_mask=given)
            start, end = model(input_ids, given)
            torch.testing.assert_close(start, wanted.start_logits, **CLOSE)
            torch.testing.assert_close(end, wanted.end_logits, **CLOSE)


def test_an_export_is_a_seed_with_its_own_blocks_and_head(tmp_path: Path) -> None:
    arch = Architecture(97, 32, 24, ()).with_blocks(
        [
            {"heads": 3, "ffns": [{"activation": "gelu", "sizes": [40]}]},
            {"heads": 2, "ffns": [{"activation": "relu", "sizes": [8, 16]}] * 2},
        ]
    )
    model = phenotype.QuestionAnswering(arch)
    phenotype.save(model, tmp_path)
    found = seed.describe(str(tmp_path), Path("."))
    assert found.architecture == arch
    assert tasks.QA.name in found.heads and not found.has_mlm_head
    again = seed.load_with_head(phenotype.QuestionAnswering, str(tmp_path), Path("."))
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    language, has_head = seed.load_seed(str(tmp_path), Path("."))
    assert not has_head
    for name, tensor in model.encoder.state_dict().items():
        assert torch.equal(language.encoder.state_dict()[name], tensor), name


@pytest.mark.parametrize("kind", ["DistilBertModel", "BertForMaskedLM"])
def test_a_checkpoint_without_a_head_for_questions_is_told_apart(kind: str, tmp_path: Path) -> None:
    random_model(kind).save_pretrained(tmp_path)
    assert tasks.QA.name not in seed.describe(str(tmp_path), Path(".")).heads


@pytest.mark.parametrize("kind", ["gpt2", "t5", None])
def test_a_checkpoint_that_is_no_encoder_is_refused_in_a_sentence(
    kind: str | None, tmp_path: Path
) -> None:
    random_model("DistilBertForQuestionAnswering").save_pretrained(tmp_path)
    change(tmp_path, model_type=kind)
    with pytest.raises(NasdError) as caught:
        seed.describe(str(tmp_path), Path("."))
    assert f"the model type {kind!r} is not supported: take one of" in str(caught.value)


def test_weights_that_are_no_numbers_are_refused_by_name(tmp_path: Path) -> None:
    random_model("DistilBertForQuestionAnswering").save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    state["qa_outputs.weight"][0, 0] = torch.nan
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(NasdError, match=r"the weights qa_outputs\.weight in .* are no finite"):
        seed.load_with_head(phenotype.QuestionAnswering, str(tmp_path), Path("."))


def test_a_head_of_another_shape_is_refused_by_name(tmp_path: Path) -> None:
    random_model("DistilBertForQuestionAnswering").save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    state["qa_outputs.weight"] = torch.zeros(3, 24)
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(NasdError, match=r"has qa_outputs\.weight of the shape \[3, 24\]"):
        seed.load_with_head(phenotype.QuestionAnswering, str(tmp_path), Path("."))


def prepared(shop: Workshop, checkpoint: Path, path: Path, **changes: Any) -> Any:
    data = demo_config().data.model_copy(update={"mlm": None})
    spec = shop.spec(None, data=data, source=str(checkpoint), mlm_cache="", qa_cache="", **changes)
    return work(spec, path)


def test_the_baseline_scores_what_the_checkpoint_answers(
    shop: Workshop, checkpoint: Path, tmp_path: Path
) -> None:
    folder, outcome = prepared(shop, checkpoint, tmp_path / "prepare", keeps_qa_head=True)
    assert outcome is not None, folder.log.read_text()
    assert outcome.verdict is Verdict.SUCCEEDED, outcome.message
    assert outcome.prepared is not None and outcome.prepared.keeps_qa_head
    assert seed_head.about(tasks.QA, has=True, kept=True) in folder.log.read_text()
    config = demo_config()
    spec = shop.spec(
        stage(config, "evaluate"),
        weights=folder.result,
        qa_cache=outcome.prepared.qa_cache,
    )
    scored, evaluated = work(spec, tmp_path / "evaluate")
    assert evaluated is not None, scored.log.read_text()
    found = json.loads((scored.result / "predictions.json").read_text())
    model = NasdForQuestionAnswering.from_pretrained(checkpoint).eval()
    from nasd.worker.prepare import test_questions as questions_of

    questions = questions_of(Path(outcome.prepared.qa_cache))[::10]
    assert len(questions) > 10
    for one in questions:
        assert found[one.id] == model.answer(one.question, one.context).text


def test_fine_tuning_goes_on_from_the_head_and_not_from_a_fresh_one(
    shop: Workshop, checkpoint: Path, tmp_path: Path
) -> None:
    losses = []
    for keeps in (True, False):
        folder, outcome = prepared(
            shop, checkpoint, tmp_path / f"prepare-{keeps}", keeps_qa_head=keeps
        )
        assert outcome is not None and outcome.prepared is not None, folder.log.read_text()
        assert outcome.prepared.keeps_qa_head is keeps
        spec = shop.spec(
            stage(demo_config(), "finetune", epochs=0.02, learning_rate=1e-9),
            weights=folder.result,
            qa_cache=outcome.prepared.qa_cache,
            candidate=9,  # which draws another head than the checkpoint began with
        )
        _, tuned = work(spec, tmp_path / f"tuned-{keeps}")
        assert tuned is not None
        losses.append(tuned.metrics["loss"])
    assert losses[0] < losses[1] - 0.5


def test_an_mlm_stage_leaves_the_head_behind() -> None:
    assert not seed_head.kept_by(demo_config().stages)
    assert seed_head.kept_by(demo_config().stages[-2:])
