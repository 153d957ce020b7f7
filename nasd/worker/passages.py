"""Extractive question answering: questions to features, and logits back to answers.

A feature is one window `[CLS] question [SEP] context [SEP]` (thesis, 5.2.2; Devlin et al. 2019,
4.2). A context too long for one window gets several that overlap. Features are stored unpadded,
so that a batch is only as wide as its longest.

F: features, T: tokens of all features together, B: features of a batch, L: tokens of the longest.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from nasd.errors import NasdError
from nasd.squad import Question
from nasd.worker.progress import Progress, quiet

if TYPE_CHECKING:  # it takes seconds to import, and training never tokenises
    from transformers import PreTrainedTokenizerBase

Ints = NDArray[np.int32]
Longs = NDArray[np.int64]
Floats = NDArray[np.floating[Any]]

NO_CHARACTERS = -1  # of a token that is not of the context
CLS = 0  # the position of [CLS]: the target where the answer does not stand in the window
SPECIAL = 3  # [CLS], [SEP], [SEP]
CHUNK = 1000  # questions tokenised at once: bounds the memory


@dataclass(frozen=True, eq=False)
class QaFeatures:
    """All features of a data set, end to end; the arrays may be memory maps."""

    tokens: Ints  # [T] token ids
    bounds: Longs  # [F + 1] feature i is tokens[bounds[i]:bounds[i + 1]]
    characters: Ints  # [T, 2] first and past the last character in the context, or -1, -1
    start: Ints  # [F] position of the answer's first token in the window, or CLS
    end: Ints  # [F] position of its last token, or CLS
    question: Ints  # [F] index of the question; a question's features stand together, in order

    def __len__(self) -> int:
        return len(self.question)

    @property
    def lengths(self) -> Longs:
        """[F] tokens of each feature."""
        return np.diff(self.bounds)

    def batch(self, indices: Sequence[int] | Longs) -> dict[str, Longs]:
        """input_ids, attention_mask [B, L] and start, end [B]; padded with 0, which is masked."""
        chosen = np.asarray(indices, dtype=np.int64)
        low, high = self.bounds[chosen], self.bounds[chosen + 1]
        mask = np.arange((high - low).max()) < (high - low)[:, None]  # [B, L]
        input_ids = np.zeros(mask.shape, dtype=np.int64)
        input_ids[mask] = np.concatenate(
            [self.tokens[one:other] for one, other in zip(low, high, strict=True)]
        )
        return {
            "input_ids": input_ids,
            "attention_mask": mask.astype(np.int64),
            "start": self.start[chosen].astype(np.int64),
            "end": self.end[chosen].astype(np.int64),
        }

    def save(self, folder: Path) -> None:
        """One .npy a field. Not atomic: write to a temporary folder and rename that."""
        folder.mkdir(parents=True, exist_ok=True)
        for field in fields(self):
            np.save(folder / f"{field.name}.npy", getattr(self, field.name), allow_pickle=False)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Memory maps what `save` wrote; raises NasdError if it is not whole."""
        try:
            features = cls(
                **{
                    field.name: np.load(folder / f"{field.name}.npy", mmap_mode="r")
                    for field in fields(cls)
                }
            )
        except (OSError, ValueError, EOFError) as error:
            raise NasdError(f"{folder} is missing or damaged ({error}); delete it") from error
        count, total = len(features), len(features.tokens)
        shapes = [getattr(features, field.name).shape for field in fields(cls)]
        if shapes != [(total,), (count + 1,), (total, 2), (count,), (count,), (count,)] or (
            features.bounds[-1] != total
        ):
            raise NasdError(f"{folder} is damaged (its arrays do not fit together); delete it")
        return features


# --- questions to features ------------------------------------------------------------------


class Encoded(NamedTuple):
    """A text without special tokens: n tokens."""

    ids: Ints  # [n]
    characters: Ints  # [n, 2]


def build_features(
    questions: Sequence[Question],
    tokenizer: "PreTrainedTokenizerBase",
    tokens: int,
    stride: int,
    chunk: int = CHUNK,
    progress: Progress = quiet,
) -> QaFeatures:
    """Windows of at most `tokens` tokens; neighbours share `stride` tokens of the context.

    The windows are those of a fast Hugging Face tokenizer with truncation="only_second" and
    return_overflowing_tokens, but each context is tokenised once, not once per question (SQuAD has
    five on each), and no question is too long: it keeps at most half of the window, and where it
    leaves less than two strides to the context, neighbours share half of what it leaves.

    The first answer is the target. A window in which it does not wholly stand points at [CLS].
    """
    if not questions:
        raise ValueError("there are no questions to build features of")
    cls, sep = tokenizer.cls_token_id, tokenizer.sep_token_id
    if not tokenizer.is_fast or not isinstance(cls, int) or not isinstance(sep, int):
        raise NasdError(
            "the seed model's tokenizer must be a fast one with [CLS] and [SEP]; save the seed with"
            " its tokenizer.json"
        )
    ids: list[Ints] = []
    characters: list[Ints] = []
    targets: list[tuple[int, int, int]] = []  # start, end, question
    outside = np.full((1, 2), NO_CHARACTERS, dtype=np.int32)
    for first in range(0, len(questions), chunk):
        progress("tokenising", first, len(questions))
        part = questions[first : first + chunk]
        asked = _encode(tokenizer, [question.question for question in part])
        contexts = _encode(tokenizer, [question.context for question in part])
        for index, question in enumerate(part, start=first):
            head = asked[question.question].ids[: (tokens - SPECIAL) // 2]
            prefix = np.array([cls, *head, sep], dtype=np.int32)
            context = contexts[question.context]
            answer = _answer_tokens(question, context)
            for low, high in _windows(len(context.ids), tokens - SPECIAL - len(head), stride):
                ids += prefix, context.ids[low:high], np.array([sep], dtype=np.int32)
                characters += outside.repeat(len(prefix), 0), context.characters[low:high], outside
                start, end = CLS, CLS
                if answer is not None and low <= answer[0] and answer[1] < high:
                    start, end = (token - low + len(prefix) for token in answer)
                targets.append((start, end, index))
    sizes = np.array([len(one) for one in ids]).reshape(-1, 3).sum(axis=1)  # three parts a feature
    start_, end_, question_ = np.array(targets, dtype=np.int32).T.copy()
    return QaFeatures(
        tokens=np.concatenate(ids),
        bounds=np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
        characters=np.concatenate(characters),
        start=start_,
        end=end_,
        question=question_,
    )


def _encode(tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str]) -> dict[str, Encoded]:
    """Each text once, as it would stand in a pair: WordPiece does not look across the two."""
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
            np.array(ids, dtype=np.int32), np.array(offsets, dtype=np.int32).reshape(-1, 2)
        )
        for text, (ids, offsets) in zip(distinct, pairs, strict=True)
    }


def _answer_tokens(question: Question, context: Encoded) -> tuple[int, int] | None:
    """First and last token that the first answer touches; None if it has none (control signs)."""
    text, start = question.answers[0]
    first = int(np.searchsorted(context.characters[:, 1], start, side="right"))
    last = int(np.searchsorted(context.characters[:, 0], start + len(text), side="left")) - 1
    return (first, last) if first <= last else None


def _windows(length: int, room: int, stride: int) -> Iterator[tuple[int, int]]:
    """[low, high) of windows of `room` tokens that cover `length` tokens: at least one."""
    step = room - min(stride, room // 2)
    low = 0
    while low + room < length:
        yield low, low + room
        low += step
    yield low, length


# --- logits to answers ----------------------------------------------------------------------


class Span(NamedTuple):
    """Tokens start..end of a feature, both included."""

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
    scores = _finite(start_logits)[start] + _finite(end_logits)[end]
    order = np.lexsort((end, start, -scores))[:n_best]
    return [Span(float(scores[i]), int(start[i]), int(end[i])) for i in order]


def _best(logits: Floats, count: int) -> Longs:
    """Positions of the `count` highest logits, best first; ties go to the earlier one."""
    return np.argsort(-_finite(logits), kind="stable")[:count]


def _finite(logits: Floats) -> NDArray[np.float64]:
    """Sums of what comes out can be compared; NaN, of a model that diverged, is the lowest."""
    return np.nan_to_num(logits.astype(np.float64), nan=-1e300, posinf=1e300, neginf=-1e300) / 2


def decode(
    features: QaFeatures,
    questions: Sequence[Question],
    start_logits: Sequence[Floats],
    end_logits: Sequence[Floats],
    n_best: int,
    max_answer_tokens: int,
    progress: Progress = quiet,
) -> dict[str, str]:
    """{question id: the text of the best span over all its features, cut from the context}.

    questions: those the features were built from. start_logits, end_logits: one array a feature,
    [its length] or longer (padding is not looked at). An answer is "" only where the context has
    no tokens. Ties go to the earlier feature.
    """
    if not len(features) == len(start_logits) == len(end_logits):
        raise ValueError("each feature needs one array of start logits and one of end logits")
    owners = features.question.tolist()
    best: dict[int, tuple[float, int, int]] = {}  # of a question: score and characters
    # Where the best starts and the best ends of a question nowhere make a span, all are tried.
    for count in (n_best, int(features.lengths.max())):
        for feature in [i for i, owner in enumerate(owners) if owner not in best]:
            progress("decoding", feature, len(owners))
            low, high = features.bounds[feature : feature + 2]
            characters = features.characters[low:high]
            context = np.flatnonzero(characters[:, 0] != NO_CHARACTERS)
            if not len(context):
                continue
            window = slice(context[0], context[-1] + 1)
            spans = n_best_spans(
                start_logits[feature][window],
                end_logits[feature][window],
                count,
                max_answer_tokens,
            )
            owner = owners[feature]
            if spans and (owner not in best or spans[0].score > best[owner][0]):
                score, start, end = spans[0]
                inside = characters[window]
                best[owner] = (score, int(inside[start, 0]), int(inside[end, 1]))
    return {
        question.id: question.context[slice(*best[index][1:])] if index in best else ""
        for index, question in enumerate(questions)
    }
