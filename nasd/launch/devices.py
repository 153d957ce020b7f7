"""The slots of this machine: its GPUs, or shares of its cores."""

import os

from nasd.contract.config import Slots
from nasd.contract.errors import NasdError
from nasd.contract.slots import Slot, SlotKind
from nasd.launch import gpus


def found(slots: Slots, begun: bool) -> tuple[Slot, ...]:
    """The slots of this machine, one a device; raises NasdError for a GPU that is not there.

    begun: the search goes on, and does without a lost GPU as long as another one answers.
    """
    if slots.devices == "auto":
        gpus_there = tuple(Slot.of(SlotKind.CUDA, gpu["index"]) for gpu in gpus.list_gpus())
        if gpus_there and os.environ.get("CUDA_VISIBLE_DEVICES"):
            raise NasdError(
                'slots.devices: "auto" would take every GPU, but CUDA_VISIBLE_DEVICES names some:'
                ' list them here instead, as in devices = ["cuda:0"]'
            )
        if gpus_there:
            return gpus_there
        shares = max(1, len(os.sched_getaffinity(0)) // slots.threads)
        return tuple(Slot.of(SlotKind.CPU, index) for index in range(shares))
    if len(set(slots.devices)) != len(slots.devices):
        raise NasdError("slots.devices: a device is named twice")
    listed = tuple(Slot.parse(device) for device in slots.devices)
    kinds = {slot.kind for slot in listed}
    if len(kinds) > 1:
        raise NasdError("slots.devices: take either cuda devices or cpu shares, not both")
    if SlotKind.CUDA in kinds:
        known = {str(Slot.of(SlotKind.CUDA, gpu["index"])) for gpu in gpus.list_gpus()}
        missing = [device for device in slots.devices if device not in known]
        if missing and not (begun and len(missing) < len(slots.devices)):
            raise NasdError(
                f"slots.devices: {', '.join(missing)} is not on this machine"
                f" ({', '.join(sorted(known)) or 'no GPU answers'}); for a machine without GPUs"
                ' take devices = ["cpu:0"] or "auto"'
            )
    return listed
