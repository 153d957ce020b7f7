"""Masked language modelling (thesis 5.2.1): which tokens are hidden, and the loss on them."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from nasd.contract.config import MlmData, Stage
from nasd.contract.protocol import Spec
from nasd.contract.streams import stream_seed
from nasd.contract.tasks import masks_of
from nasd.worker.model import phenotype
from nasd.worker.model.phenotype import AnyModel, MaskedLM
from nasd.worker.tasks.beginning import born, drawing, lineage_of, loaded
from nasd.worker.tasks.corpus import MlmCorpus
from nasd.worker.tasks.task import Batch, Compared, Fixed, Outputs, Ranks, portions, to_device
from nasd.worker.training.activations import GB, size_of
from nasd.worker.training.progress import Progress

if TYPE_CHECKING:
    from nasd.worker.model.inherit import Windows

EVALUATION_SEED = 0
GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2**64 over the golden ratio: SplitMix64's increment


class MlmTask:
    """Masking with a fixed number of masks a sequence, and logits at those alone.

    15 % of the ordinary tokens are chosen; 80 % of them become [MASK], 10 % a random token, 10 %
    stay (Devlin et al. 2019). With as many masks in every sequence, a mean over sequences of
    means over masks is the mean over masks, however the batch is dealt out.

    mask_seed: fixes the masks of each sequence; with None they are drawn anew every time.
    """

    lengths: NDArray[np.int64] | None
    fixed: Fixed | None
    compared: Compared = "words"

    def __init__(
        self,
        model: MaskedLM,
        corpus: MlmCorpus,
        mask_share: float,
        trains: set[str],
        mask_seed: int | None = None,
    ) -> None:
        self.model: AnyModel = model
        self.train_size = len(corpus.train)
        self.lengths = None
        self.longest = corpus.length
        self.uniform = True  # every sequence is full
        self.corpus = corpus
        self.alongside = ""
        self.known: Tensor | None = None  # [train_size, tokens, width]
        self._trains = trains
        self.mask_seed = mask_seed
        self.masks = masks_of(corpus.length, mask_share)
        draw = None if mask_seed is None else (mask_seed, self.masks)
        self.fixed = None if draw is None else Fixed(draw, self.masks, corpus.length)
        self.ignorance = math.log(corpus.tokens.vocab_size)
        special = corpus.tokens.special
        self._ordinary = np.setdiff1d(np.arange(corpus.tokens.vocab_size), np.array(special))

    def trainable(self) -> set[str]:
        return self._trains

    def know(self, states: Tensor | None) -> None:
        self.known = states

    def batch(self, indices: NDArray[np.int64], seed: int) -> Batch:
        seed = seed if self.mask_seed is None else self.mask_seed
        batch = self._masked(self.corpus.train[indices], seed)
        if self.known is not None:
            batch["known"] = self.known[torch.from_numpy(indices)]
        return batch

    def outputs(self, model: nn.Module, batch: Batch) -> Outputs:
        """The logits at the masks, [b, masks, vocab]."""
        return (model(batch["input_ids"], positions=batch["positions"], known=batch.get("known")),)

    def loss(self, outputs: Outputs, batch: Batch) -> Tensor:
        (logits,) = outputs
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
            there = to_device(shown, ranks.device)
            total += self.loss(self.outputs(self.model, there), there).double()
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


def begin(spec: Spec, stage: Stage, ranks: Ranks) -> MlmTask:
    """The task of an attempt's stage, with the model that it starts from."""
    if spec.inherits:
        model = born(spec, MaskedLM, drawing(spec, stage), lambda: windows(spec))
    else:
        model = loaded(spec, lambda folder: phenotype.load(MaskedLM, folder, spec.dropout))
    corpus = MlmCorpus.load(Path(spec.mlm_cache))
    fixed = stream_seed(spec.seed, 0, "masks") if spec.fixed_masks else None
    return MlmTask(model, corpus, _data(spec).mask_share, _trained(model, spec, stage), fixed)


def _data(spec: Spec) -> MlmData:
    assert spec.data.mlm is not None, "a config with an MLM stage has texts"
    return spec.data.mlm


def windows(spec: Spec) -> "Windows":
    """What children are refitted by."""
    from nasd.worker.tasks.windows import for_language

    return for_language(Path(spec.mlm_cache), spec.seed)


def unseen(spec: Spec, model: AnyModel, ranks: Ranks) -> MlmTask:
    """A task whose evaluations are of the sequences that nobody trains on."""
    corpus = MlmCorpus.load(Path(spec.mlm_cache))
    return MlmTask(cast("MaskedLM", model), corpus, _data(spec).mask_share, set())


def _trained(model: MaskedLM, spec: Spec, stage: Stage) -> set[str]:
    names = {name for name, _ in model.named_parameters()}
    match stage.train:
        case "all":
            return names
        case "head":
            return {name for name in names if name.startswith("head.")}
        case _:
            from nasd.worker.model.inherit import new_parameters

            return new_parameters(model, lineage_of(spec))


def fixes_masks(spec: Spec, sequences: int, width: int) -> bool:
    """Whether each sequence keeps its masks while only new modules train, so that the activations
    below them can be kept. Decided once, as it changes what is learned; said in a line."""
    if spec.data.mlm is None:
        return False
    wanted = spec.data.mlm.fixed_masks
    size = size_of(sequences, spec.data.mlm.tokens, width) / GB
    fits = size <= spec.activation_cache_gb
    fixed = fits if wanted == "auto" else wanted
    why = f"as data.mlm.fixed_masks says: {'yes' if wanted else 'no'}"
    if wanted == "auto":
        why = (
            f"as the corpus's activations, {size:.2f} GB, {'' if fits else 'do not '}fit into"
            f" daemon.activation_cache_gb, {spec.activation_cache_gb:g} GB"
        )
    kept = "are drawn once a sequence" if fixed else "are drawn anew in every epoch"
    print(f"masks {kept} where only new modules train, {why}", flush=True)
    return fixed


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
