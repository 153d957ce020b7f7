"""A teacher with another vocabulary: what it says goes to the tokens of the same characters."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nasd.contract.config import Teacher
from nasd.contract.digests import Damaged
from nasd.contract.protocol import Spec, Teaching, Verdict
from nasd.worker import prepare
from nasd.worker.model import outside
from nasd.worker.model.phenotype import QuestionAnswering
from nasd.worker.model.seed import load_tokenizer
from nasd.worker.tasks import notes, qa, registry, teachers
from nasd.worker.tasks.by_character import ByCharacter, Window, fits, moved
from nasd.worker.tasks.passages import CLS, QaFeatures
from nasd.worker.tasks.task import Ranks
from nasd.worker.training.progress import quiet
from tests.training import SOURCE, Workshop, demo_config, make_workshop, stage, work

TEXT = 40  # characters


def cut(draw: Any, length: int) -> np.ndarray:
    """A text of so many characters in tokens, with gaps between some."""
    inner = draw(st.sets(st.integers(1, length - 1), max_size=length - 1))
    bounds = [0, *sorted(inner), length]
    return np.array(list(pairwise(bounds)), dtype=np.int64)


@st.composite
def readings(draw: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    theirs, ours = cut(draw, TEXT), cut(draw, TEXT)
    said = draw(st.lists(st.floats(-9, 9), min_size=len(theirs), max_size=len(theirs)))
    return theirs, ours, np.array(said, dtype=np.float32)


def shown(ours: np.ndarray) -> np.ndarray:
    """As a window has them, behind [CLS] q [SEP] and before [SEP]."""
    none = [[-1, -1]]
    return np.array(none * 3 + ours.tolist() + none, dtype=np.int32)


@given(readings(), st.booleans())
def test_shares_are_kept_and_stand_where_the_teachers_tokens_begin_or_end(
    reading: tuple[np.ndarray, np.ndarray, np.ndarray], last: bool
) -> None:
    theirs, ours, said = reading
    found = moved(said, theirs, -20.0, shown(ours), last)
    own = found[3:-1]
    assert np.isclose(np.logaddexp.reduce(own.astype(float)), np.logaddexp.reduce(said), atol=1e-3)
    assert found[CLS] == -20.0
    for (low, high), logit in zip(ours, own, strict=True):
        edges = theirs[:, 1] - 1 if last else theirs[:, 0]
        inside = said[(edges >= low) & (edges < high)]
        wanted = np.logaddexp.reduce(inside.astype(float)) if len(inside) else -20.0
        assert np.isclose(logit, wanted, atol=1e-4)


@given(readings(), st.booleans())
def test_of_the_same_tokens_nothing_moves(
    reading: tuple[np.ndarray, np.ndarray, np.ndarray], last: bool
) -> None:
    theirs, _, said = reading
    assert np.allclose(moved(said, theirs, 0.0, shown(theirs), last)[3:-1], said, atol=1e-5)


def test_a_window_without_context_takes_what_the_teacher_says_of_no_answer() -> None:
    empty = np.zeros((0, 2), dtype=np.int64)
    found = moved(np.zeros(0, dtype=np.float32), empty, 2.5, shown(empty), False)
    assert found.tolist() == [2.5] * 4


# -- a model of its own ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return make_workshop(tmp_path_factory.mktemp("workshop"))


@pytest.fixture(scope="module")
def roberta(shop: Workshop) -> Path:
    """A RoBERTa with pieces of bytes, drawn at random."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast, RobertaConfig, RobertaForQuestionAnswering

    pieces = Tokenizer(models.BPE())
    pieces.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    data = json.loads((shop.folder / "demo-data" / "squad.json").read_text())["data"]
    pieces.train_from_iterator([p["context"] for a in data for p in a["paragraphs"]], trainer)
    pieces.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=pieces,
        model_max_length=256,
        **dict(
            zip(
                ("cls_token", "pad_token", "sep_token", "unk_token", "mask_token"),
                special,
                strict=True,
            )
        ),
        model_input_names=["input_ids", "attention_mask"],
    )
    torch.manual_seed(0)
    config = RobertaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=258,
        type_vocab_size=1,
        pad_token_id=1,
        initializer_range=0.5,
    )
    folder = shop.folder / "roberta"
    RobertaForQuestionAnswering(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def lesson(shop: Workshop) -> Spec:
    settings = Teacher(source="roberta", share=1.0)
    teaching = Teaching(weights="", name="roberta", settings=settings)
    spec = shop.spec(stage(demo_config(), "finetune", epochs=0.2), teacher=teaching)
    copy = teachers.fetch(spec, load_tokenizer(SOURCE, shop.folder), quiet)
    assert outside.reads_text(copy)
    return spec.model_copy(update={"teacher": teaching.model_copy(update={"weights": str(copy)})})


@pytest.mark.usefixtures("roberta")
def test_a_teacher_that_reads_the_text_itself_means_the_same_characters(shop: Workshop) -> None:
    spec = lesson(shop)
    assert spec.teacher is not None
    teacher = teachers.load(spec.teacher, QuestionAnswering).eval()
    assert isinstance(teacher, ByCharacter)
    train = QaFeatures.load(Path(spec.qa_cache) / "train")
    questions = prepare.train_questions(spec, quiet)
    fits(train, questions, spec.qa_cache)
    some = train.take(np.arange(12))
    said = {
        index: (start, end)
        for index, start, end in teacher.said(
            some, questions, 5, torch.device("cpu"), lambda done, of: None
        )
    }
    assert sorted(said) == list(range(12))
    for index, (start, end) in said.items():
        window = Window.of(some, index, questions)
        low, high = window.span
        pair = teacher.tokenizer(
            window.question, window.context[low:high], return_offsets_mapping=True
        )
        with torch.no_grad():
            own = teacher.model(
                input_ids=torch.tensor([pair["input_ids"]]),
                attention_mask=torch.tensor([pair["attention_mask"]]),
            )
        of_context = [at for at, part in enumerate(pair.sequence_ids()) if part == 1]
        for mine, logits, edge in (
            (start, own.start_logits[0], 0),
            (end, own.end_logits[0], 1),
        ):
            assert len(mine) == len(window.characters)
            assert np.isclose(mine[CLS], float(logits[0]), atol=1e-4)
            shares = torch.logsumexp(logits[of_context], 0)
            inside = mine[window.characters[:, 0] >= 0]
            spread = np.logaddexp.reduce(inside.astype(float))
            assert spread >= float(shares) - 1e-3  # and the least likely ones beside
            words = [at for at in of_context if _word(window.context[low:high], pair, at)]
            best = max(words, key=lambda at, logits=logits: float(logits[at]))
            character = low + pair["offset_mapping"][best][edge] - edge
            holds = [
                at
                for at, (first, past) in enumerate(window.characters.tolist())
                if first <= character < past
            ]
            assert holds, window.context[character]
            assert float(mine[holds[0]]) >= float(logits[best]) - 1e-3


def _word(text: str, pair: Any, at: int) -> bool:
    """Whether a token stands for characters, the first of which is no blank."""
    low, high = pair["offset_mapping"][at]
    return low < high and not text[low].isspace()


@pytest.mark.usefixtures("roberta")
def test_an_attempt_learns_from_it(shop: Workshop, alone: Ranks, tmp_path: Path) -> None:
    spec = lesson(shop)
    folder, outcome = work(spec, tmp_path / "taught")
    assert outcome is not None, folder.log.read_text()
    assert outcome.verdict is Verdict.SUCCEEDED, folder.log.read_text()
    assert spec.stage is not None
    registry.ask(spec, spec.stage, alone, quiet)
    logits = notes.load(notes.place(qa.NOTEBOOK, spec))
    train = QaFeatures.load(Path(spec.qa_cache) / "train")
    assert logits.shape == (2, len(train.tokens))
    assert float(np.abs(logits).max()) > 0


def test_windows_of_other_questions_are_noticed(shop: Workshop) -> None:
    spec = shop.spec(stage(demo_config(), "finetune", epochs=0.2))
    train = QaFeatures.load(Path(spec.qa_cache) / "train")
    questions = prepare.train_questions(spec, quiet)
    with pytest.raises(Damaged, match="other questions"):
        fits(train, questions[:-1], spec.qa_cache)
