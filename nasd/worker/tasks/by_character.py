"""A teacher with a vocabulary of its own, asked about the student's windows of questions.

It reads the text of each window by its own tokeniser. What it says of a token of its own goes to
the student's token that holds the same character: of a start the first one, of an end the last.
Where several of its tokens begin within one of the student's, their shares are added; a token of
the student's that none begins in gets what the teacher thinks least likely.

Shapes: t tokens of the teacher's context, m of the student's window.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nasd.contract.digests import Damaged
from nasd.contract.squad import Question
from nasd.worker.model.spans import NO_CHARACTERS, Floats, Ints, Longs
from nasd.worker.tasks.passages import CLS, QaFeatures


@dataclass(frozen=True)
class Window:
    """Of the student's. characters: [m, 2] first and past the last one in the context, or
    NO_CHARACTERS."""

    question: str
    context: str
    characters: Ints

    @classmethod
    def of(cls, features: QaFeatures, index: int, questions: Sequence[Question]) -> "Window":
        low, high = features.bounds[index : index + 2]
        asked = questions[int(features.question[index])]
        return cls(asked.question, asked.context, np.asarray(features.characters[low:high]))

    @property
    def span(self) -> tuple[int, int]:
        """The characters of the context that it shows."""
        shown = self.characters[self.characters[:, 0] != NO_CHARACTERS]
        return (int(shown[0, 0]), int(shown[-1, 1])) if len(shown) else (0, 0)


def moved(said: Floats, theirs: Longs, none: float, ours: Ints, last: bool) -> Floats:
    """Logits [m] of the student's tokens, from a teacher's of its own.

    said: [t], of tokens with the characters theirs [t, 2]; none: its logit of no answer. ours: as
    in `Window.characters`. last: by the last character of a token, as an end is, else by the first.
    """
    least = min(none, float(said.min())) if len(said) else none
    found = np.full(len(ours), least, dtype=np.float64)
    found[CLS] = none
    places = np.flatnonzero(ours[:, 0] != NO_CHARACTERS)
    if len(places) and len(said):
        firsts, ends = ours[places, 0], ours[places, 1]
        if last:
            holds = np.searchsorted(firsts, theirs[:, 1] - 1, side="right") - 1
        else:
            holds = np.searchsorted(ends, theirs[:, 0], side="right")
        holds = holds.clip(0, len(places) - 1)
        sums = np.full(len(places), -np.inf)
        np.logaddexp.at(sums, holds, said.astype(np.float64))
        found[places] = np.where(np.isfinite(sums), sums, least)
    return found.astype(np.float32)


class ByCharacter(nn.Module):
    """answers: logits of start and end, [b, t] each, by the model, for what its tokenizer makes of
    pairs of texts. longest: tokens that it takes."""

    def __init__(
        self,
        answers: Callable[..., tuple[Tensor, Tensor]],
        model: nn.Module,
        tokenizer: Any,
        longest: int,
    ) -> None:
        super().__init__()
        self.answers = answers
        self.model = model
        self.tokenizer = tokenizer
        self.longest = longest

    @torch.no_grad()
    def said(
        self,
        features: QaFeatures,
        questions: Sequence[Question],
        batch: int,
        device: torch.device,
        progress: Callable[[int, int], None],
    ) -> Iterator[tuple[int, Floats, Floats]]:
        """Each of the windows, and what it says of the start and of the end at its tokens.

        questions: those that the features were built from; raises Damaged where they cannot be.
        """
        order = np.argsort(features.lengths, kind="stable")
        for begin in range(0, len(order), batch):
            progress(begin, len(order))
            indices = [int(one) for one in order[begin : begin + batch]]
            windows = [Window.of(features, index, questions) for index in indices]
            said = self._ask(windows, device)
            for index, (start, end) in zip(indices, said, strict=True):
                yield index, start, end

    def _ask(self, windows: Sequence[Window], device: torch.device) -> Iterator[list[Floats]]:
        spans = [window.span for window in windows]
        shown = [one.context[low:high] for one, (low, high) in zip(windows, spans, strict=True)]
        read = self.tokenizer(
            [window.question for window in windows],
            shown,
            truncation="only_second",
            max_length=self.longest,
            padding=True,
            return_offsets_mapping=True,
            return_attention_mask=True,
            return_tensors="np",
        )
        given = {
            name: torch.from_numpy(np.asarray(read[name], dtype=np.int64)).to(device)
            for name in self.tokenizer.model_input_names
            if name in read
        }
        ends = [one.float().cpu().numpy() for one in self.answers(**given)]
        for row, (window, (low, _), text) in enumerate(zip(windows, spans, shown, strict=True)):
            places = np.array(
                [at for at, part in enumerate(read.sequence_ids(row)) if part == 1], dtype=np.int64
            )
            theirs = _trimmed(np.asarray(read["offset_mapping"][row])[places], text)
            no_answer = int(np.argmax(read["input_ids"][row] == self.tokenizer.cls_token_id))
            yield [
                moved(
                    one[row][places],
                    theirs + low,
                    float(one[row][no_answer]),
                    window.characters,
                    last,
                )
                for one, last in zip(ends, (False, True), strict=True)
            ]


@dataclass(frozen=True)
class AskedByCharacter:
    """A teacher of another vocabulary, asked as one of the student's is (see tasks.notes)."""

    teacher: ByCharacter
    features: QaFeatures
    questions: Sequence[Question]
    columns: int = 2  # start and end

    @property
    def bounds(self) -> Longs:
        return self.features.bounds

    def said(
        self,
        examples: Longs,
        batch: int,
        device: torch.device,
        progress: Callable[[int, int], None],
    ) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Each of the windows, which are all there are, and its logits [tokens, 2]."""
        found = self.teacher.said(self.features, self.questions, batch, device, progress)
        for index, start, end in found:
            yield index, np.stack([start, end], 1).astype(np.float32)


def _trimmed(spans: Longs, text: str) -> Longs:
    """Without the blanks that some tokenisers count to the word behind them; a token that is
    nothing but blanks keeps them."""
    found = spans.reshape(-1, 2).copy()
    for row in found:
        token = text[row[0] : row[1]]
        row[0] += len(token) - len(token.lstrip()) if token.strip() else 0
    return found


def fits(features: QaFeatures, questions: Sequence[Question], where: Any) -> None:
    """Raises Damaged unless the windows can be of these questions."""
    count = int(features.question[-1]) + 1
    longest = int(np.asarray(features.characters).max(initial=0))
    if len(questions) != count or longest > max(len(one.context) for one in questions):
        raise Damaged(where, "is of other questions than data.qa names now")
