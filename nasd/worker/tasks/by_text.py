"""A teacher of whole texts' labels, or numbers, with a vocabulary of its own: it reads each text by
its own tokeniser, and what it says of it is said of the student's example."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from nasd.contract.digests import Damaged
from nasd.contract.labelled import Example
from nasd.worker.model.outside import Reader
from nasd.worker.model.spans import Longs


class ByText(nn.Module):
    """reader: gives logits [b, labels] for what its tokenizer makes of texts, or of pairs."""

    def __init__(self, reader: Reader) -> None:
        super().__init__()
        self.reader = reader
        self.model = reader.model

    @torch.no_grad()
    def says(self, texts: Sequence[Example], device: torch.device) -> NDArray[np.float32]:
        """Logits [texts, labels] of texts that are all single, or all pairs."""
        pairs = [one.pair for one in texts if one.pair is not None]
        read = self.reader.tokenizer(
            [str(one.text) for one in texts],
            pairs or None,
            truncation="longest_first",
            max_length=self.reader.longest,
            padding=True,
            return_tensors="pt",
        )
        given = {name: one.to(device) for name, one in read.items()}
        found: NDArray[np.float32] = self.reader.logits(**given).float().cpu().numpy()
        return found


@dataclass(frozen=True)
class AskedByText:
    """Such a teacher, asked as one of the student's vocabulary is (see tasks.notes). texts: of the
    training examples, in their order. columns: labels."""

    teacher: ByText
    texts: Sequence[Example]
    columns: int

    @property
    def bounds(self) -> Longs:
        return np.arange(len(self.texts) + 1)

    def said(
        self,
        examples: Longs,
        batch: int,
        device: torch.device,
        progress: Callable[[int, int], None],
    ) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Each of the examples, and its logits [1, labels]."""
        for begin in range(0, len(examples), batch):
            progress(begin, len(examples))
            indices = [int(one) for one in examples[begin : begin + batch]]
            found = self.teacher.says([self.texts[index] for index in indices], device)
            yield from ((index, row[None]) for index, row in zip(indices, found, strict=True))


def check_same(texts: Sequence[Example], count: int, where: Path) -> None:
    """Raises Damaged unless there are as many texts as a cache has examples of."""
    if len(texts) != count:
        raise Damaged(where, "is of other texts than the config names now")
