"""Examples of no meaning, by which a model is held against another form of itself."""

import torch
from torch import Tensor

from nasd.worker.model.architecture import Architecture


def example(arch: Architecture, examples: int, tokens: int) -> tuple[Tensor, Tensor]:
    """Token ids and a mask [examples, tokens]; every second example is padded by half, and of three
    or more the last one wholly, as runtimes fill up a batch."""
    drawn = torch.Generator().manual_seed(tokens)
    ids = torch.randint(arch.vocab_size, (examples, tokens), generator=drawn)
    mask = torch.ones_like(ids)
    mask[1::2, (tokens + 1) // 2 :] = 0
    if examples > 2:
        mask[-1] = 0
    return ids, mask
