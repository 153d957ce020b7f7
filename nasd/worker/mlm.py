"""Masked language modelling (thesis 5.2.1): which tokens are hidden, and the loss on them."""

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from nasd.worker.corpus import MlmCorpus
from nasd.worker.phenotype import MaskedLM, QuestionAnswering
from nasd.worker.progress import Progress
from nasd.worker.task import Batch, Ranks


class MlmTask:
    """Dynamic masking with a fixed number of masks a sequence, and logits at those alone.

    15 % of the ordinary tokens are chosen; 80 % of them become [MASK], 10 % a random token, 10 %
    stay (Devlin et al. 2019). With as many masks in every sequence, a mean over sequences of
    means over masks is the mean over masks, however the batch is dealt out.
    """

    lengths: NDArray[np.int64] | None

    def __init__(
        self, model: MaskedLM, corpus: MlmCorpus, mask_share: float, trains: set[str]
    ) -> None:
        self.model: MaskedLM | QuestionAnswering = model
        self.train_size = len(corpus.train)
        self.lengths = None
        self._corpus = corpus
        self._trains = trains
        self._masks = max(1, round(mask_share * (corpus.length - 2)))
        special = corpus.tokens.special
        ordinary = np.setdiff1d(np.arange(corpus.tokens.vocab_size), np.array(special))
        self._ordinary = torch.from_numpy(ordinary)

    def trainable(self) -> set[str]:
        return self._trains

    def batch(self, indices: NDArray[np.int64], seed: int) -> Batch:
        return self._mask(self._corpus.sequences(self._corpus.train[indices]), seed)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        logits = model(batch["input_ids"], positions=batch["positions"])  # [b, masks, vocab]
        loss = F.cross_entropy(
            logits.flatten(0, 1).float(), batch["targets"].flatten(), reduction="sum"
        )
        return loss / self._masks

    @torch.no_grad()
    def evaluate(self, ranks: Ranks, batch: int, progress: Progress) -> dict[str, float]:
        """Mean loss on the held-out sequences; the masks are the same every time."""
        mine = ranks.deal(np.arange(len(self._corpus.evaluation)))
        total = torch.zeros((), dtype=torch.float64)
        for start in range(0, len(mine), batch):
            progress("evaluating", start, len(mine))
            indices = mine[start : start + batch]
            tokens = self._corpus.sequences(self._corpus.evaluation[indices])
            # Seeded by sequence, so that the masks do not depend on the number of ranks.
            parts = [self._mask(tokens[i : i + 1], int(index)) for i, index in enumerate(indices)]
            shown = {
                name: torch.cat([part[name] for part in parts]).to(ranks.device)
                for name in parts[0]
            }
            total += self.loss(self.model, shown).double().cpu()
        if ranks.world > 1:
            torch.distributed.all_reduce(total)
        return {"loss": float(total) / len(self._corpus.evaluation)}

    def _mask(self, tokens: NDArray[np.int64], seed: int) -> Batch:
        """input_ids [b, length], positions [b, masks] and targets [b, masks] of masked input."""
        generator = torch.Generator().manual_seed(seed)
        input_ids = torch.from_numpy(tokens)
        rows, length = input_ids.shape
        # The positions with the largest of random numbers: without replacement, never [CLS], [SEP].
        scores = torch.rand((rows, length - 2), generator=generator)
        positions = scores.topk(self._masks, dim=1).indices + 1
        targets = input_ids.gather(1, positions)
        fate = torch.rand(positions.shape, generator=generator)
        random = self._ordinary[
            torch.randint(len(self._ordinary), positions.shape, generator=generator)
        ]
        shown = torch.where(fate < 0.8, torch.full_like(targets, self._corpus.tokens.mask), targets)
        shown = torch.where(fate >= 0.9, random, shown)
        return {
            "input_ids": input_ids.scatter(1, positions, shown),
            "positions": positions,
            "targets": targets,
        }
