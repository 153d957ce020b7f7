"""Examples that differ in length, end to end in arrays and in the files of a cache.

F: examples, T: tokens of all of them together, B: examples of a batch, L: tokens of the longest.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Longs = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Ragged:
    """Examples end to end, unpadded, so that a batch is only as wide as its longest; the arrays may
    be memory maps."""

    tokens: NDArray[Any]  # [T] token ids
    bounds: Longs  # [F + 1] example i is tokens[bounds[i]:bounds[i + 1]]

    def __len__(self) -> int:
        return len(self.bounds) - 1

    @property
    def lengths(self) -> Longs:
        """[F] tokens of each example."""
        return np.diff(self.bounds)

    def places(self, indices: Longs) -> Longs:
        """Where the tokens of these examples stand, one example behind the other."""
        low, high = self.bounds[indices], self.bounds[indices + 1]
        return np.concatenate([np.arange(one, end) for one, end in zip(low, high, strict=True)])

    def bounds_of(self, indices: Longs) -> Longs:
        """The bounds of these examples alone."""
        return np.concatenate([[0], np.cumsum(self.lengths[indices])])

    def batch(self, indices: Sequence[int] | Longs) -> dict[str, NDArray[Any]]:
        """input_ids and attention_mask [B, L], padded with 0, which is masked."""
        chosen = np.asarray(indices, dtype=np.int64)
        mask = self.mask(chosen)
        ids = self.spread(self.tokens, chosen, mask, 0)
        return {"input_ids": ids, "attention_mask": mask.astype(np.int64)}

    def mask(self, indices: Longs) -> NDArray[np.bool_]:
        """[B, L] whether there is a token."""
        lengths = self.lengths[indices]
        found: NDArray[np.bool_] = np.arange(lengths.max()) < lengths[:, None]
        return found

    def spread(
        self, values: NDArray[Any], indices: Longs, mask: NDArray[np.bool_], padding: int
    ) -> Longs:
        """What [T] has for these examples, as rows of one length [B, L]."""
        found = np.full(mask.shape, padding, dtype=np.int64)
        found[mask] = values[self.places(indices)]
        return found

    @classmethod
    def files(cls) -> list[str]:
        """Names of what `save` writes."""
        return [f"{field.name}.npy" for field in fields(cls)]

    def save(self, folder: Path) -> None:
        """One .npy a field. Not atomic: write to a temporary folder and rename that."""
        folder.mkdir(parents=True, exist_ok=True)
        for field in fields(self):
            np.save(folder / f"{field.name}.npy", getattr(self, field.name), allow_pickle=False)
