"""A question on a text as windows, and the logits over the windows as one answer.

A window is `[CLS] question [SEP] context [SEP]` (thesis, 5.2.2; Devlin et al. 2019, 4.2), with
whatever special tokens the tokenizer itself puts there. A context too long for one window gets
several that overlap.

This file needs only numpy and a fast Hugging Face tokenizer, because it also travels with exported
models: they answer as the search scored them. n: tokens of one window, or of one text.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:  # it takes seconds to import, and decoding never tokenises
    from transformers import PreTrainedTokenizerBase

Ints = NDArray[np.int32]
Longs = NDArray[np.int64]
Floats = NDArray[np.floating[Any]]

NO_CHARACTERS = -1  # of a token that is not of the context

# --- texts to windows -----------------------------------------------------------------------


class Encoded(NamedTuple):
    """A text without special tokens."""

    ids: Ints  # [n]
    characters: Ints  # [n, 2] first and past the last character of each


class Window(NamedTuple):
    """What the model is shown at once: the context's tokens from `low` on stand from `first` on."""

    ids: Ints  # [n]
    characters: Ints  # [n, 2] first and past the last character in the context, or -1, -1
    low: int
    first: int


class Frame(NamedTuple):
    """The special tokens around a question and a context: before the first, between the two, and
    behind the second. A window points at the very first of them where it holds no answer."""

    before: Ints
    between: Ints
    after: Ints

    @property
    def size(self) -> int:
        return sum(map(len, self))


def frame(tokenizer: "PreTrainedTokenizerBase") -> Frame:
    """What the tokenizer puts around a pair; raises ValueError unless it is a fast one that begins
    a pair with a special token, and then has the first text before the second."""
    if tokenizer.is_fast:
        pair: Any = tokenizer("a", "a")
        owners = pair.sequence_ids()
        ids = np.array(pair["input_ids"], dtype=np.int32)
        texts = [place for place, owner in enumerate(owners) if owner is not None]
        first = [place for place in texts if owners[place] == 0]
        second = [place for place in texts if owners[place] == 1]
        if first and second and first[0] > 0 and first[-1] < second[0]:
            return Frame(ids[: first[0]], ids[first[-1] + 1 : second[0]], ids[second[-1] + 1 :])
    raise ValueError("the tokenizer must be a fast one that begins a pair with a special token")


def encode(tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str]) -> dict[str, Encoded]:
    """Each text once, as it would stand in a pair: tokenizers do not look across the two."""
    distinct = list(dict.fromkeys(texts))
    encoded = tokenizer(
        distinct,
        add_special_tokens=False,
        truncation=False,
        padding=False,
        return_offsets_mapping=True,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,  # a text longer than the model is what the windows are for
    )
    pairs: Iterator[tuple[list[int], list[tuple[int, int]]]] = zip(
        encoded["input_ids"], encoded["offset_mapping"], strict=True
    )
    return {
        text: Encoded(
            np.array(ids, dtype=np.int32),
            np.array([_without_space(text, *offset) for offset in offsets], dtype=np.int32).reshape(
                -1, 2
            ),
        )
        for text, (ids, offsets) in zip(distinct, pairs, strict=True)
    }


def _without_space(text: str, low: int, high: int) -> tuple[int, int]:
    """Some tokenizers count the space before a word to its first token."""
    while low < high and text[low].isspace():
        low += 1
    return low, high


def trimmed(text: str, found: "Found") -> "Found":
    """Without white space at its ends, which may be tokens of their own."""
    low, high = _without_space(text, found.low, found.high)
    while low < high and text[high - 1].isspace():
        high -= 1
    return found._replace(low=low, high=high)


def windows(
    question: Encoded, context: Encoded, special: Frame, tokens: int, stride: int
) -> Iterator[Window]:
    """Windows of at most `tokens` tokens; neighbours share `stride` tokens of the context.

    They are those of a fast Hugging Face tokenizer with truncation="only_second" and
    return_overflowing_tokens, but no question is too long: it keeps at most half of the window, and
    where it leaves less than two strides to the context, neighbours share half of what it leaves.
    """
    head = question.ids[: (tokens - special.size) // 2]
    prefix = np.concatenate([special.before, head, special.between])
    outside = np.full((1, 2), NO_CHARACTERS, dtype=np.int32)
    before, behind = outside.repeat(len(prefix), 0), outside.repeat(len(special.after), 0)
    for low, high in _cuts(len(context.ids), tokens - special.size - len(head), stride):
        yield Window(
            np.concatenate([prefix, context.ids[low:high], special.after]),
            np.concatenate([before, context.characters[low:high], behind]),
            low,
            len(prefix),
        )


def _cuts(length: int, room: int, stride: int) -> Iterator[tuple[int, int]]:
    """[low, high) of windows of `room` tokens that cover `length` tokens: at least one."""
    step = room - min(stride, room // 2)
    low = 0
    while low + room < length:
        yield low, low + room
        low += step
    yield low, length


# --- logits to an answer --------------------------------------------------------------------


class Judged(NamedTuple):
    """A window and what the model makes of it; logits may be longer, padding is not looked at."""

    characters: Ints  # [n, 2] as in a Window
    start: Floats  # [n] logits
    end: Floats  # [n]


class Found(NamedTuple):
    """An answer: characters [low, high) of the context. score: half the sum of its two logits."""

    score: float
    low: int
    high: int


def best_answer(shown: Sequence[Judged], n_best: int, max_answer_tokens: int) -> Found | None:
    """The best span over all windows of one question; None only where no window has a context.

    Ties go to the earlier window, then to the earlier start, then to the earlier end.
    """
    inner = [_context(one) for one in shown]
    best: Found | None = None
    # Where the best starts and the best ends nowhere make a span, all are tried.
    for count in (n_best, max((len(one.start) for one in inner), default=0)):
        for characters, start, end in inner:
            spans = n_best_spans(start, end, count, max_answer_tokens)
            if spans and (best is None or spans[0].score > best.score):
                span = spans[0]
                best = Found(
                    span.score, int(characters[span.start, 0]), int(characters[span.end, 1])
                )
        if best is not None:
            return best
    return None


def no_answer(shown: Sequence[Judged]) -> float:
    """How sure the model is that no window of a question has an answer, as the score of an answer:
    by the window that is least so (Devlin et al. 2019, 4.3)."""
    return min(float(_halves(one.start[:1])[0] + _halves(one.end[:1])[0]) for one in shown)


def probability(found: Found, shown: Sequence[Judged]) -> float:
    """How sure the model is of what it found, from 0 to 1.

    The softmax over the sums of all pairs of a start and an end that stand in one window, as the
    cross entropy of the two ends reads the logits in training; [CLS] apart, as an answer is sought.
    """
    totals = [_log_sum(one.start) + _log_sum(one.end) for one in map(_context, shown)]
    return float(min(1.0, np.exp(2 * found.score - np.logaddexp.reduce(totals))))


def _context(shown: Judged) -> Judged:
    """The context's part of a window, which has no holes."""
    places = np.flatnonzero(shown.characters[:, 0] != NO_CHARACTERS)
    part = slice(places[0], places[-1] + 1) if len(places) else slice(0, 0)
    return Judged(shown.characters[part], shown.start[part], shown.end[part])


def _log_sum(logits: Floats) -> float:
    return float(np.logaddexp.reduce(2 * _halves(logits))) if len(logits) else -np.inf


class Span(NamedTuple):
    """Tokens start..end, both included."""

    score: float
    start: int
    end: int


def n_best_spans(
    start_logits: Floats, end_logits: Floats, n_best: int, max_answer_tokens: int
) -> list[Span]:
    """The best n_best spans out of the n_best best starts and n_best best ends, best first.

    start_logits, end_logits: [n], of the context's tokens alone. No span ends before it starts or
    has more than max_answer_tokens tokens. Ties go to the earlier start, then the earlier end.
    """
    starts, ends = _best(start_logits, n_best), _best(end_logits, n_best)
    start, end = (grid.ravel() for grid in np.meshgrid(starts, ends, indexing="ij"))
    allowed = (start <= end) & (end - start < max_answer_tokens)
    start, end = start[allowed], end[allowed]
    scores = _halves(start_logits)[start] + _halves(end_logits)[end]
    order = np.lexsort((end, start, -scores))[:n_best]
    return [Span(float(scores[i]), int(start[i]), int(end[i])) for i in order]


def _best(logits: Floats, count: int) -> Longs:
    """Positions of the `count` highest logits, best first; ties go to the earlier one."""
    return np.argsort(-_halves(logits), kind="stable")[:count]


def _halves(logits: Floats) -> NDArray[np.float64]:
    """Sums of what comes out are finite; NaN, of a model that diverged, is the lowest."""
    return np.nan_to_num(logits.astype(np.float64), nan=-1e300, posinf=1e300, neginf=-1e300) / 2
