"""Extractive question answering: questions to features, and logits back to answers.

A feature is one window of a question (nasd.worker.model.spans).

F: features, T: tokens of all features together, B: features of a batch, L: tokens of the longest.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from nasd.contract.digests import Damaged
from nasd.contract.errors import NasdError
from nasd.contract.squad import Judged, Question
from nasd.worker.model import spans
from nasd.worker.model.spans import Encoded, Floats, Ints, Longs
from nasd.worker.tasks.ragged import Ragged
from nasd.worker.training.progress import Progress, quiet

if TYPE_CHECKING:  # it takes seconds to import, and training never tokenises
    from transformers import PreTrainedTokenizerBase

CLS = 0  # the position of [CLS]: the target where the answer does not stand in the window
CHUNK = 1000  # questions tokenised at once: bounds the memory


@dataclass(frozen=True, eq=False)
class QaFeatures(Ragged):
    """All features of a data set."""

    characters: Ints  # [T, 2] first and past the last character in the context, or -1, -1
    start: Ints  # [F] position of the answer's first token in the window, or CLS
    end: Ints  # [F] position of its last token, or CLS
    question: Ints  # [F] index of the question; a question's features stand together, in order

    def take(self, indices: Longs) -> Self:
        """Some of the features, in memory."""
        places = self.places(indices)
        return type(self)(
            tokens=self.tokens[places],
            bounds=self.bounds_of(indices),
            characters=self.characters[places],
            start=self.start[indices],
            end=self.end[indices],
            question=self.question[indices],
        )

    def batch(self, indices: Sequence[int] | Longs) -> dict[str, NDArray[Any]]:
        """Beside its tokens start and end [B]."""
        chosen = np.asarray(indices, dtype=np.int64)
        return {
            **super().batch(chosen),
            "start": self.start[chosen].astype(np.int64),
            "end": self.end[chosen].astype(np.int64),
        }

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Memory maps what `save` wrote; raises Damaged if it is not whole."""
        try:
            features = cls(
                **{
                    field.name: np.load(folder / f"{field.name}.npy", mmap_mode="r")
                    for field in fields(cls)
                }
            )
        except (OSError, ValueError, EOFError) as error:
            raise Damaged(folder, f"is missing or damaged ({error})") from error
        count, total = len(features), len(features.tokens)
        shapes = [getattr(features, field.name).shape for field in fields(cls)]
        if shapes != [(total,), (count + 1,), (total, 2), (count,), (count,), (count,)] or (
            features.bounds[-1] != total
        ):
            raise Damaged(folder, "is damaged (its arrays do not fit together)")
        return features


# --- questions to features ------------------------------------------------------------------


def build_features(
    questions: Sequence[Question],
    tokenizer: "PreTrainedTokenizerBase",
    tokens: int,
    stride: int,
    chunk: int = CHUNK,
    progress: Progress = quiet,
) -> QaFeatures:
    """Each question's windows: see spans.windows. A context is tokenised once, not once per
    question (SQuAD has five on each).

    The first answer is the target. A window in which it does not wholly stand points at [CLS],
    or whatever the tokenizer begins with.
    """
    if not questions:
        raise ValueError("there are no questions to build features of")
    try:
        special = spans.frame(tokenizer)
    except ValueError as error:
        raise NasdError(
            "the seed model's tokenizer must be a fast one that puts special tokens around a pair"
            " of texts; save the seed with its tokenizer.json"
        ) from error
    ids: list[Ints] = []
    characters: list[Ints] = []
    targets: list[tuple[int, int, int]] = []  # start, end, question
    for first in range(0, len(questions), chunk):
        progress("tokenising", first, len(questions))
        part = questions[first : first + chunk]
        asked = spans.encode(tokenizer, [question.question for question in part])
        contexts = spans.encode(tokenizer, [question.context for question in part])
        for index, question in enumerate(part, start=first):
            context = contexts[question.context]
            answer = _answer_tokens(question, context)
            for window in spans.windows(asked[question.question], context, special, tokens, stride):
                ids.append(window.ids)
                characters.append(window.characters)
                targets.append((*_target(window, answer), index))
    sizes = [len(one) for one in ids]
    start_, end_, question_ = np.array(targets, dtype=np.int32).T.copy()
    return QaFeatures(
        tokens=np.concatenate(ids),
        bounds=np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
        characters=np.concatenate(characters),
        start=start_,
        end=end_,
        question=question_,
    )


def _answer_tokens(question: Question, context: Encoded) -> tuple[int, int] | None:
    """First and last token that the first answer touches; None if it has none (control signs), or
    there is no answer."""
    if not question.answers:
        return None
    text, start = question.answers[0]
    first = int(np.searchsorted(context.characters[:, 1], start, side="right"))
    last = int(np.searchsorted(context.characters[:, 0], start + len(text), side="left")) - 1
    return (first, last) if first <= last else None


def _target(window: spans.Window, answer: tuple[int, int] | None) -> tuple[int, int]:
    """Positions in the window of the answer's first and last token."""
    shown = int((window.characters[:, 0] != spans.NO_CHARACTERS).sum())
    if answer is None or answer[0] < window.low or answer[1] >= window.low + shown:
        return CLS, CLS
    start, end = (token - window.low + window.first for token in answer)
    return start, end


# --- logits to answers ----------------------------------------------------------------------


def decode(
    features: QaFeatures,
    questions: Sequence[Question],
    start_logits: Sequence[Floats],
    end_logits: Sequence[Floats],
    n_best: int,
    max_answer_tokens: int,
    progress: Progress = quiet,
) -> dict[str, str]:
    """{question id: the text of the best span over all its features}; see `judge`."""
    judged = judge(
        features, questions, start_logits, end_logits, n_best, max_answer_tokens, progress
    )
    return {name: one.answer for name, one in judged.items()}


def judge(
    features: QaFeatures,
    questions: Sequence[Question],
    start_logits: Sequence[Floats],
    end_logits: Sequence[Floats],
    n_best: int,
    max_answer_tokens: int,
    progress: Progress = quiet,
) -> dict[str, Judged]:
    """{question id: the text of the best span over all its features, cut from the context, and by
    how much there being no answer is surer}.

    questions: those the features were built from. start_logits, end_logits: one array a feature,
    [its length] or longer (padding is not looked at). An answer is "" only where the context has
    no tokens. Ties go to the earlier feature.
    """
    if not len(features) == len(start_logits) == len(end_logits):
        raise ValueError("each feature needs one array of start logits and one of end logits")
    owners = features.question.tolist()
    judged = {question.id: Judged("", math.inf) for question in questions}
    for owner, own in groupby(range(len(features)), key=owners.__getitem__):
        shown = []
        for feature in own:
            progress("decoding", feature, len(owners))
            low, high = features.bounds[feature : feature + 2]
            shown.append(
                spans.Judged(
                    features.characters[low:high],
                    start_logits[feature][: high - low],
                    end_logits[feature][: high - low],
                )
            )
        found = spans.best_answer(shown, n_best, max_answer_tokens)
        if found is not None:
            question = questions[owner]
            doubt = spans.no_answer(shown) - found.score
            found = spans.trimmed(question.context, found)
            judged[question.id] = Judged(question.context[found.low : found.high], doubt)
    return judged
