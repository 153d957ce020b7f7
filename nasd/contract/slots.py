"""What a slot's name says: what it is, and its number among its like.

A slot is known by its name everywhere: in the config, the database, JSON and every view. Whoever
has to know more asks here. A GPU that several attempts share is as many slots: "cuda:0.2/4" is the
second of four shares of "cuda:0".
"""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache

# What a process takes of a GPU's memory beside its tensors, for the driver's and the libraries' own
# part. Usually about half a gigabyte; not measured here.
CONTEXT_BYTES = 768 << 20


class SlotKind(StrEnum):
    CUDA = "cuda"  # a GPU
    CPU = "cpu"  # a share of the cores


@dataclass(frozen=True, slots=True)
class Slot:
    """What exactly one attempt may lease: a device, or a share of a GPU.

    name    such as "cuda:0" or, of a share, "cuda:0.2/4"
    device  as in the config, such as "cuda:0"
    place   among the shares of its device, from 1
    shares  that there are of its device
    """

    name: str
    kind: SlotKind
    device: str
    place: int = 1
    shares: int = 1

    @classmethod
    @cache  # a view asks for every attempt of a search
    def parse(cls, name: str) -> "Slot":
        """Raises ValueError if no slot is called so."""
        found = re.fullmatch(r"(([a-z]+):[0-9]+)(?:\.([1-9][0-9]*)/([1-9][0-9]*))?", name)
        if found is None:
            raise ValueError(f"no slot is called {name!r}")
        device, kind, place, shares = found.groups(default="1")
        if int(place) > int(shares) or (name != device and SlotKind(kind) is not SlotKind.CUDA):
            raise ValueError(f"no slot is called {name!r}")
        return cls(name, SlotKind(kind), device, int(place), int(shares))

    @classmethod
    def of(cls, kind: SlotKind, number: int) -> "Slot":
        return cls.parse(f"{kind}:{number}")

    @property
    def number(self) -> int:
        """Among those of its kind; of a GPU, in PCI order as NVML counts."""
        return int(self.device.partition(":")[2])

    def __str__(self) -> str:
        return self.name


def is_gpu(name: str) -> bool:
    return Slot.parse(name).kind is SlotKind.CUDA


def on_gpus(names: Iterable[str]) -> bool:
    """Whether any of the slots is a GPU."""
    return any(is_gpu(name) for name in names)


def divided(devices: Sequence[str], shares: int) -> tuple[str, ...]:
    """The slots of some devices, where so many attempts may share each GPU: first one of each, then
    the second of each, and so on."""
    if shares == 1:
        return tuple(devices)
    whole = (one for one in devices if not is_gpu(one))
    gpus = [one for one in devices if is_gpu(one)]
    places = range(1, shares + 1)
    return (*whole, *(f"{one}.{place}/{shares}" for place in places for one in gpus))


def devices(names: Iterable[str]) -> tuple[str, ...]:
    """The devices that some slots are of, each once, in the order in which they are met."""
    return tuple(dict.fromkeys(Slot.parse(name).device for name in names))


def one_a_device(names: Iterable[str]) -> tuple[str, ...]:
    """Of the slots that an attempt holds one on each device: there it has one process."""
    found: dict[str, str] = {}
    for name in names:
        found.setdefault(Slot.parse(name).device, name)
    return tuple(found.values())


def worth(names: Iterable[str]) -> float:
    """How many whole devices some slots come to: a share of a GPU is a part of one."""
    return sum(1 / Slot.parse(name).shares for name in names)


def sharers(names: Collection[str]) -> int:
    """How many attempts may share each device that these slots of one attempt are of: 1 where it
    holds all of their shares."""
    return round(len(devices(names)) / worth(names))


def part_of(total: int, shares: int) -> int:
    """Bytes of a GPU's memory that each of so many attempts on it may take for its tensors; not
    above 0 where there is no room for so many."""
    return total // shares - CONTEXT_BYTES


def free(names: Iterable[str], held: Collection[str]) -> list[str]:
    """Those of `names` of which nothing is held: neither they themselves, nor a share of their
    device from when it was shared otherwise."""
    divisions = {(one.device, one.shares) for one in map(Slot.parse, held)}
    counts = Counter(device for device, _ in divisions)
    return [
        one.name
        for one in map(Slot.parse, names)
        if one.name not in held and counts[one.device] == ((one.device, one.shares) in divisions)
    ]


def unit(names: Iterable[str]) -> str:
    """What the time that slots were held is told in."""
    return "GPU-hours" if on_gpus(names) else "slot-hours"
