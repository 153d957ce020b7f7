"""What a slot's name says: what it is, and its number among its like.

A slot is known by its name everywhere: in the config, the database, JSON and every view. Whoever
has to know more asks here.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from functools import cache


class SlotKind(StrEnum):
    CUDA = "cuda"  # a GPU
    CPU = "cpu"  # a share of the cores


@dataclass(frozen=True, slots=True)
class Slot:
    """What exactly one attempt may lease. name: as in the config, such as "cuda:0"."""

    name: str
    kind: SlotKind

    @classmethod
    @cache  # a view asks for every attempt of a search
    def parse(cls, name: str) -> "Slot":
        """Raises ValueError if no slot is called so."""
        if re.fullmatch(r"[a-z]+:[0-9]+", name) is None:
            raise ValueError(f"no slot is called {name!r}")
        return cls(name, SlotKind(name.partition(":")[0]))

    @classmethod
    def of(cls, kind: SlotKind, number: int) -> "Slot":
        return cls(f"{kind}:{number}", kind)

    @property
    def number(self) -> int:
        """Among those of its kind; of a GPU, in PCI order as NVML counts."""
        return int(self.name.partition(":")[2])

    def __str__(self) -> str:
        return self.name


def is_gpu(name: str) -> bool:
    return Slot.parse(name).kind is SlotKind.CUDA


def on_gpus(names: Iterable[str]) -> bool:
    """Whether any of the slots is a GPU."""
    return any(is_gpu(name) for name in names)


def unit(names: Iterable[str]) -> str:
    """What the time that slots were held is told in."""
    return "GPU-hours" if on_gpus(names) else "slot-hours"
