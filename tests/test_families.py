"""Every family that can be a seed: read from its own files, it computes what transformers does."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nasd.contract import genotype, tasks
from nasd.contract.errors import NasdError
from nasd.contract.genotype import Genotype, unchanged
from nasd.contract.squad import Question
from nasd.worker.model import families, phenotype, seed, spans
from nasd.worker.model.inherit import born
from nasd.worker.model.layers import Packing
from nasd.worker.model.phenotype import QuestionAnswering
from nasd.worker.model.vocabulary import trimmed_model
from nasd.worker.tasks.passages import build_features
from tests import encoders
from tests.encoders import KINDS, TEXTS, TOKENIZERS

CLOSE: dict[str, Any] = {"rtol": 0.0, "atol": 1e-5}
MANY = settings(
    deadline=None, max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
HERE = Path(".")


def test_every_family_is_tried_here() -> None:
    assert {*KINDS, families.OWN.name} == set(families.FAMILIES)


@pytest.mark.parametrize("name", KINDS)
@given(st.data())
@MANY
def test_the_encoder_and_its_language_head_give_what_transformers_do(
    name: str, tmp_path: Path, data: Any
) -> None:
    theirs = encoders.model(name, "MaskedLM", data.draw(encoders.configs(name)))
    theirs.save_pretrained(tmp_path)
    described = seed.describe(str(tmp_path), HERE)
    assert described.has_mlm_head and tasks.QA.name not in described.heads
    model, has_head = seed.load_seed(str(tmp_path), HERE)
    assert has_head
    model.eval()
    ids, mask = encoders.batch(theirs.config.pad_token_id)
    with torch.no_grad():
        for rows, given_mask in ((slice(None), mask), (slice(0, 1), None)):
            kept = mask[rows].bool()
            given_ids = ids[rows]
            states = theirs.base_model(input_ids=given_ids, attention_mask=given_mask)[0]
            logits = theirs(input_ids=given_ids, attention_mask=given_mask).logits
            ours = model.encoder(given_ids, given_mask)
            torch.testing.assert_close(ours[kept], states[kept], **CLOSE)
            ours = model(given_ids, given_mask)
            torch.testing.assert_close(ours[kept], logits[kept], **CLOSE)
            assert bool(ours.isfinite().all())
    counted = genotype.parameters(described.baseline, described.backbone)
    assert sum(weight.numel() for weight in model.encoder.parameters()) == counted


@pytest.mark.parametrize("name", KINDS)
@given(st.data())
@MANY
def test_a_fine_tuned_head_comes_along_and_gives_the_same_answers_packed_or_not(
    name: str, tmp_path: Path, data: Any
) -> None:
    theirs = encoders.model(name, "QuestionAnswering", data.draw(encoders.configs(name)))
    theirs.save_pretrained(tmp_path)
    described = seed.describe(str(tmp_path), HERE)
    assert tasks.QA.name in described.heads and not described.has_mlm_head
    model = seed.load_with_head(phenotype.QuestionAnswering, str(tmp_path), HERE).eval()
    ids, mask = encoders.batch(theirs.config.pad_token_id)
    kept = mask.bool()
    packing = Packing(
        mask.flatten().nonzero()[:, 0], torch.nn.functional.pad(mask.sum(1).cumsum(0), (1, 0))
    )
    with torch.no_grad():
        wanted = theirs(input_ids=ids, attention_mask=mask)
        for ours in (model(ids, mask), model(ids, mask, packing)):
            torch.testing.assert_close(ours[0][kept], wanted.start_logits[kept], **CLOSE)
            torch.testing.assert_close(ours[1][kept], wanted.end_logits[kept], **CLOSE)


@pytest.mark.parametrize("name", ["bert", "electra"])
def test_a_fine_tuned_model_is_told_the_second_text_by_its_type_as_it_was(
    name: str, tmp_path: Path
) -> None:
    shape = {
        "vocab_size": encoders.VOCABULARY,
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 20,
        "type_vocab_size": 2,
        "max_position_embeddings": encoders.POSITIONS,
        "initializer_range": 0.2,
        **({"embedding_size": 12} if name == "electra" else {}),
    }
    theirs = encoders.model(name, "QuestionAnswering", shape)
    theirs.save_pretrained(tmp_path / "seed")
    separator = 7
    model = seed.load_with_head(
        QuestionAnswering, str(tmp_path / "seed"), HERE, separator=separator
    ).eval()
    ids = torch.randint(8, encoders.VOCABULARY, (3, 12), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    for row, (first, last) in enumerate([(3, 11), (5, 8), (1, 10)]):
        ids[row, first] = ids[row, last] = separator
        mask[row, last + 1 :] = 0
    kept = mask.bool()
    ends = (ids == separator).long()
    types = (ends.cumsum(1) > ends).long() * mask
    packing = Packing(
        mask.flatten().nonzero()[:, 0], torch.nn.functional.pad(mask.sum(1).cumsum(0), (1, 0))
    )
    phenotype.save(model, tmp_path / "ours")
    again = phenotype.load(QuestionAnswering, tmp_path / "ours", 0.0).eval()
    whole = trimmed_model(model, np.arange(encoders.VOCABULARY)).eval()
    with torch.no_grad():
        wanted = theirs(input_ids=ids, attention_mask=mask, token_type_ids=types)
        alike = theirs(input_ids=ids, attention_mask=mask)
        assert float((wanted.start_logits - alike.start_logits)[kept].abs().max()) > 0.01
        packed = model(ids, mask, packing)
        for ours in (model(ids, mask), packed, again(ids, mask), whole(ids, mask)):
            torch.testing.assert_close(ours[0][kept], wanted.start_logits[kept], **CLOSE)
            torch.testing.assert_close(ours[1][kept], wanted.end_logits[kept], **CLOSE)
    rows = np.array([0, separator, *range(8, encoders.VOCABULARY)])
    fewer = trimmed_model(model, rows).eval()
    places = torch.from_numpy(np.searchsorted(rows, ids.numpy()))
    narrow = Genotype.from_json({**fewer.architecture.to_json(), "rank": 8})
    child = born(narrow, unchanged(narrow), [fewer], torch.Generator().manual_seed(0)).eval()
    with torch.no_grad():
        torch.testing.assert_close(fewer(places, mask)[0][kept], wanted.start_logits[kept], **CLOSE)
    torch.testing.assert_close(child.encoder.embeddings.second, model.encoder.embeddings.second)
    assert child.architecture.separator == 1


@pytest.mark.parametrize("name", KINDS)
@given(st.data())
@MANY
def test_states_at_some_positions_are_those_of_all(name: str, tmp_path: Path, data: Any) -> None:
    encoders.model(name, "", data.draw(encoders.configs(name))).save_pretrained(tmp_path)
    model, has_head = seed.load_seed(str(tmp_path), HERE)
    assert not has_head
    ids, mask = encoders.batch(1)
    ids, mask = ids[:2], mask[:2]
    positions = torch.tensor([[0, 3, 19], [2, 7, 8]])
    encoder = model.eval().encoder
    with torch.no_grad():
        everywhere = encoder(ids, mask)
        there = everywhere.gather(1, positions[..., None].expand(-1, -1, everywhere.shape[-1]))
        torch.testing.assert_close(encoder(ids, mask, positions), there, **CLOSE)
        for count in range(len(encoder.blocks)):  # the lowest of them frozen, and computed before
            for block in list(encoder.blocks)[: count + 1]:
                block.requires_grad_(False)
            encoder.embeddings.requires_grad_(False)
            known = encoder.below(ids, mask, positions)
            torch.testing.assert_close(encoder(ids, mask, positions, known), there, **CLOSE)


# --- what is refused ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [*families.REFUSED, "gpt2", None])
def test_an_unknown_family_is_refused_with_those_that_are_known(
    kind: str | None, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    with pytest.raises(NasdError) as caught:
        seed.describe(str(tmp_path), HERE)
    said = str(caught.value)
    assert f"the model type {kind!r} is not supported" in said
    assert all(name in said for name in families.FAMILIES)
    assert families.REFUSED.get(str(kind), "") in said
    assert "\n" not in said


# --- tokenizers -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_windows_are_what_the_tokenizer_itself_makes_of_a_pair(kind: str) -> None:
    tokenizer = TOKENIZERS[kind](TEXTS, 300)
    asked, context = "Who keeps  the kite?", " ".join(TEXTS)
    encoded = spans.encode(tokenizer, [asked, context])
    special = spans.frame(tokenizer)
    whole = list(spans.windows(encoded[asked], encoded[context], special, 512, 8))
    theirs = tokenizer(asked, context)
    assert [window.ids.tolist() for window in whole] == [theirs["input_ids"]]
    owners = np.array([owner == 1 for owner in theirs.sequence_ids()])
    assert ((whole[0].characters[:, 0] != spans.NO_CHARACTERS) == owners).all()
    room = 40
    cut = list(spans.windows(encoded[asked], encoded[context], special, room, 8))
    wanted = tokenizer(
        asked,
        context,
        truncation="only_second",
        max_length=room,
        stride=8,
        return_overflowing_tokens=True,
    )
    assert [window.ids.tolist() for window in cut] == wanted["input_ids"]


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("answer", ["old mill", "two   drums", "Zoë", "kite"])
def test_targets_cut_out_the_answer_without_the_space_before_it(kind: str, answer: str) -> None:
    tokenizer = TOKENIZERS[kind](TEXTS, 300)
    context = " ".join(TEXTS)
    one = Question("1", "t", context, "Who?", ((answer, context.index(answer)),))
    for tokens in (300, 40):
        features = build_features([one], tokenizer, tokens, 12)
        found = [n for n in range(len(features)) if features.end[n]]
        assert found
        for feature in found:
            characters = features.characters[features.bounds[feature] :]
            low = characters[features.start[feature], 0]
            high = characters[features.end[feature], 1]
            assert context[low:high] == answer


def test_an_answer_that_ends_in_white_space_is_given_without() -> None:
    found = spans.Found(1.0, 3, 9)
    assert spans.trimmed("abc  de   ", found) == spans.Found(1.0, 5, 7)
    assert spans.trimmed("abcdefghij", found) == found


def test_a_tokenizer_that_frames_no_texts_is_refused(tmp_path: Path) -> None:
    tokenizer = encoders.modern(TEXTS, 300)
    backend = tokenizer.backend_tokenizer
    from tokenizers.processors import TemplateProcessing

    backend.post_processor = TemplateProcessing(single="$A", pair="$A $B", special_tokens=[])
    shape = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8}
    encoders.write(tmp_path, "bert", "MaskedLM", {**shape, "num_hidden_layers": 1}, tokenizer)
    with pytest.raises(NasdError, match="puts no special tokens around texts: save it"):
        seed.load_tokenizer(str(tmp_path), HERE)
