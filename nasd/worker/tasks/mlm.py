"""Masked language modelling (thesis 5.2.1): which tokens are hidden, and the loss on them."""

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from nasd.contract.tasks import masks_of
from nasd.worker.model.phenotype import MaskedLM, QuestionAnswering
from nasd.worker.tasks.corpus import MlmCorpus
from nasd.worker.tasks.task import Batch, Ranks, portions, to_device
from nasd.worker.training.progress import Progress

EVALUATION_SEED = 0
GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2**64 over the golden ratio: SplitMix64's increment


class MlmTask:
    """Masking with a fixed number of masks a sequence, and logits at those alone.

    15 % of the ordinary tokens are chosen; 80 % of them become [MASK], 10 % a random token, 10 %
    stay (Devlin et al. 2019). With as many masks in every sequence, a mean over sequences of
    means over masks is the mean over masks, however the batch is dealt out.

    mask_seed: fixes the masks of each sequence; with None they are drawn anew every time. known:
    what the frozen prefix makes of every training sequence, see nasd.worker.training.activations;
    only where the masks are fixed.
    """

    lengths: NDArray[np.int64] | None

    def __init__(
        self,
        model: MaskedLM,
        corpus: MlmCorpus,
        mask_share: float,
        trains: set[str],
        mask_seed: int | None = None,
    ) -> None:
        self.model: MaskedLM | QuestionAnswering = model
        self.train_size = len(corpus.train)
        self.lengths = None
        self.longest = corpus.length
        self.corpus = corpus
        self.known: Tensor | None = None  # [train_size, tokens, width]
        self._trains = trains
        self.mask_seed = mask_seed
        self.masks = masks_of(corpus.length, mask_share)
        special = corpus.tokens.special
        self._ordinary = np.setdiff1d(np.arange(corpus.tokens.vocab_size), np.array(special))

    def trainable(self) -> set[str]:
        return self._trains

    def batch(self, indices: NDArray[np.int64], seed: int) -> Batch:
        seed = seed if self.mask_seed is None else self.mask_seed
        batch = self._masked(self.corpus.train[indices], seed)
        if self.known is not None:
            batch["known"] = self.known[torch.from_numpy(indices)]
        return batch

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        logits = model(  # [b, masks, vocab]
            batch["input_ids"], positions=batch["positions"], known=batch.get("known")
        )
        loss = F.cross_entropy(
            logits.flatten(0, 1).float(), batch["targets"].flatten(), reduction="sum"
        )
        return loss / self.masks

    @torch.no_grad()
    def evaluate(self, ranks: Ranks, batch: int, progress: Progress) -> dict[str, float]:
        """Mean loss on the held-out sequences; the masks are the same every time."""
        mine = ranks.deal(np.arange(len(self.corpus.evaluation)))
        total = torch.zeros((), dtype=torch.float64, device=ranks.device)

        def build(indices: NDArray[np.int64]) -> Batch:
            return self._masked(self.corpus.evaluation[indices], EVALUATION_SEED)

        for start, shown in portions(mine, batch, build, ranks.device):
            progress("evaluating", start, len(mine))
            total += self.loss(self.model, to_device(shown, ranks.device)).double()
        total = total.cpu()
        if ranks.world > 1:
            torch.distributed.all_reduce(total)
        return {"loss": float(total) / len(self.corpus.evaluation)}

    def _masked(self, pieces: NDArray[np.int64], seed: int) -> Batch:
        """input_ids [b, length], positions [b, masks] and targets [b, masks] of masked input."""
        input_ids = self.corpus.sequences(pieces)
        inner, masks = input_ids.shape[1] - 2, self.masks
        drawn = noise(seed, pieces, inner + 2 * masks)
        lots, fates, words = np.split(drawn, [inner, inner + masks], axis=1)
        # The positions with the lowest lots: without replacement, and never [CLS] or [SEP].
        positions = np.argpartition(lots, masks - 1, axis=1)[:, :masks] + 1
        positions.sort(axis=1)  # the order that a partition leaves is another on other processors
        targets = np.take_along_axis(input_ids, positions, axis=1)
        shown = np.where(fates < 0.8, self.corpus.tokens.mask, targets)
        random = self._ordinary[(words * len(self._ordinary)).astype(np.int64)]
        shown = np.where(fates >= 0.9, random, shown)
        np.put_along_axis(input_ids, positions, shown, axis=1)
        arrays = {"input_ids": input_ids, "positions": positions, "targets": targets}
        return {name: torch.from_numpy(array) for name, array in arrays.items()}


def noise(seed: int, examples: NDArray[np.int64], count: int) -> NDArray[np.float64]:
    """[examples, count] uniform numbers in [0, 1); each row follows from seed and example alone.

    SplitMix64 (Steele, Lea and Flood 2014) at the state that counts up from a key of each example:
    no generator has to be set up for each, and none has a state to save.
    """
    keys = _mix(_mix(np.array([seed], dtype=np.uint64)) ^ examples.astype(np.uint64))
    steps = np.arange(1, count + 1, dtype=np.uint64) * GOLDEN
    bits = _mix(keys[:, None] + steps) >> np.uint64(11)  # as many as a float's mantissa has
    return bits.astype(np.float64) * 2.0**-53


def _mix(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's output function; the products wrap around."""
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))
