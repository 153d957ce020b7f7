"""The slots of this machine: its GPUs, or shares of its cores."""

import os
from collections.abc import Collection

from nasd.contract.config import Slots
from nasd.contract.errors import NasdError
from nasd.contract.slots import CONTEXT_BYTES, Slot, SlotKind, divided, part_of
from nasd.launch import gpus


def found(slots: Slots, begun: bool) -> tuple[Slot, ...]:
    """The slots of this machine, one a device or a share of one; raises NasdError for a GPU that is
    not there.

    begun: the search goes on, and does without a lost GPU as long as another one answers.
    """
    devices = [str(one) for one in _devices(slots, begun)]
    if slots.share > 1:
        _check_parts(devices, slots.share)
    return tuple(map(Slot.parse, divided(devices, slots.share)))


def _check_parts(devices: Collection[str], share: int) -> None:
    for gpu in gpus.list_gpus():
        name, total = str(Slot.of(SlotKind.CUDA, gpu["index"])), gpu["memory"]
        if name in devices and total and part_of(total, share) < CONTEXT_BYTES:
            raise NasdError(
                f"slots.share: {name} has {total / 1e9:.1f} GB, too little for {share} attempts at"
                f" once: take {max(1, total // (2 * CONTEXT_BYTES))} or fewer"
            )


def _devices(slots: Slots, begun: bool) -> tuple[Slot, ...]:
    if slots.devices == "auto":
        gpus_there = tuple(Slot.of(SlotKind.CUDA, gpu["index"]) for gpu in gpus.list_gpus())
        if gpus_there and os.environ.get("CUDA_VISIBLE_DEVICES"):
            raise NasdError(
                'slots.devices: "auto" would take every GPU, but CUDA_VISIBLE_DEVICES names some:'
                ' list them here instead, as in devices = ["cuda:0"]'
            )
        if gpus_there:
            return gpus_there
        if slots.share > 1:
            raise NasdError(
                f"slots.share: {slots.share} attempts are to share each GPU, and no GPU answers"
                " here: leave it out"
            )
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
