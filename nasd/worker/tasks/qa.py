"""Extractive question answering (thesis 5.2.2): the loss of a span's two ends, and the answers."""

from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from nasd.contract import tasks
from nasd.contract.config import QaData
from nasd.contract.squad import Question
from nasd.worker.model.phenotype import MaskedLM, Packing, QuestionAnswering
from nasd.worker.tasks.passages import QaFeatures, decode
from nasd.worker.tasks.task import Batch, Ranks, portions, to_device
from nasd.worker.training.progress import Progress

Logits = dict[int, tuple[NDArray[np.float32], NDArray[np.float32]]]  # of a window: start and end


class QaTask:
    """Fine-tuning: the mean of the cross entropies of the start and the end position.

    packs: nothing is computed for padding; else it is masked out.
    """

    def __init__(
        self,
        model: QuestionAnswering,
        train: QaFeatures,
        test: QaFeatures,
        packs: bool = False,
    ) -> None:
        self.model: MaskedLM | QuestionAnswering = model
        self.packs = packs
        self.train_size = len(train)
        self.lengths: NDArray[np.int64] | None = train.lengths
        self.longest = int(train.lengths.max())
        self._train = train
        self._test = test

    @classmethod
    def load(cls, model: QuestionAnswering, cache: Path, packs: bool = False) -> "QaTask":
        return cls(model, QaFeatures.load(cache / "train"), QaFeatures.load(cache / "test"), packs)

    def trainable(self) -> set[str]:
        return {name for name, _ in self.model.named_parameters()}

    def batch(self, indices: NDArray[np.int64], seed: int) -> Batch:
        return self._tensors(self._train, indices)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        start, end = model(  # [b, length] each
            batch["input_ids"], batch["attention_mask"], _packing(batch)
        )
        # An answer never stands in the padding; counted in, the loss would depend on who shares
        # the batch, and so on the number of ranks.
        padding = batch["attention_mask"] == 0
        start = start.float().masked_fill(padding, -torch.inf)
        end = end.float().masked_fill(padding, -torch.inf)
        return (
            F.cross_entropy(start, batch["start"], reduction="sum")
            + F.cross_entropy(end, batch["end"], reduction="sum")
        ) / 2

    @torch.no_grad()
    def evaluate(self, ranks: Ranks, batch: int, progress: Progress) -> dict[str, float]:
        """Mean loss on an even sample of the test features: for the curve, not for the score."""
        count = tasks.sampled(len(self._test))
        sample = np.linspace(0, len(self._test) - 1, count).astype(np.int64)
        mine = ranks.deal(sample)
        total = torch.zeros((), dtype=torch.float64, device=ranks.device)
        for start, shown in portions(mine, batch, self._tested, ranks.device):
            progress("evaluating", start, len(mine))
            total += self.loss(self.model, to_device(shown, ranks.device)).double()
        total = total.cpu()
        if ranks.world > 1:
            dist.all_reduce(total)
        return {"loss": float(total) / count}

    @torch.no_grad()
    def predict(
        self, questions: list[Question], data: QaData, ranks: Ranks, batch: int, progress: Progress
    ) -> dict[str, str]:
        """The answer to each test question: the best of the n-best spans over its windows.

        Every rank takes its share of the windows, `batch` at once; rank 0 gets all the answers,
        others none.
        """
        mine = ranks.deal(self._by_length())
        found: Logits = {}
        for position, features in portions(mine, batch, self._tested, ranks.device):
            progress("answering", position, len(mine))
            indices = mine[position : position + batch]
            shown = to_device(features, ranks.device)
            start, end = self.model(shown["input_ids"], shown["attention_mask"], _packing(shown))
            for index, one, other in zip(
                indices, start.float().cpu().numpy(), end.float().cpu().numpy(), strict=True
            ):
                length = int(self._test.lengths[index])
                found[int(index)] = (one[:length], other[:length])
        if ranks.world > 1:
            found = self._gathered(found, ranks)
            if not ranks.first:
                return {}
        order = range(len(self._test))
        return decode(
            self._test,
            questions,
            [found[index][0] for index in order],
            [found[index][1] for index in order],
            data.n_best,
            data.max_answer_tokens,
            progress,
        )

    def _by_length(self) -> NDArray[np.int64]:
        return np.argsort(self._test.lengths, kind="stable")

    def _gathered(self, found: Logits, ranks: Ranks) -> Logits:
        """What all ranks found, on rank 0; on the others, nothing. As bare numbers, of which rank 0
        knows how many come and what they are of: objects would have to be unpickled."""
        if not ranks.first:
            rows = [row for index in ranks.deal(self._by_length()) for row in found[int(index)]]
            if rows:
                dist.send(torch.from_numpy(np.concatenate(rows)), 0)
            return {}
        for peer in range(1, ranks.world):
            theirs = Ranks(peer, ranks.world, ranks.device).deal(self._by_length())
            lengths = np.repeat(self._test.lengths[theirs], 2)
            sent = torch.empty(int(lengths.sum()))
            if len(theirs):
                dist.recv(sent, peer)
            rows = np.split(sent.numpy(), np.cumsum(lengths))[:-1]
            for index, start, end in zip(theirs, rows[::2], rows[1::2], strict=True):
                found[int(index)] = start, end
        return found

    def _tested(self, indices: NDArray[np.int64]) -> Batch:
        return self._tensors(self._test, indices)

    def _tensors(self, features: QaFeatures, indices: NDArray[np.int64]) -> Batch:
        """input_ids and attention_mask [b, longest], start and end [b], and where it packs, the two
        of a packing."""
        batch = {name: torch.from_numpy(array) for name, array in features.batch(indices).items()}
        if self.packs:
            mask = batch["attention_mask"]
            batch["places"] = mask.flatten().nonzero()[:, 0]
            batch["offsets"] = F.pad(mask.sum(1).cumsum(0), (1, 0))
        return batch


def _packing(batch: Batch) -> Packing | None:
    return Packing(batch["places"], batch["offsets"]) if "places" in batch else None
