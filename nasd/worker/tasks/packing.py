"""Examples of different lengths, without or with padding: the tasks whose examples are such."""

from typing import Literal

import torch
import torch.nn.functional as F

from nasd.contract import tasks
from nasd.contract.protocol import Spec
from nasd.worker.model.architecture import Architecture
from nasd.worker.model.attention import SPAN_WIDTH
from nasd.worker.model.layers import Packing
from nasd.worker.tasks.task import Batch, Ranks


def of(spec: Spec, arch: Architecture, ranks: Ranks) -> bool:
    """Whether examples go without padding; says it in a line."""
    chosen, reason = choose(spec.packing, spec.precision, arch, ranks.device)
    if ranks.first:
        assert spec.stage is not None
        how = "packed, so that nothing is computed for padding" if chosen else "padded"
        what = f"{tasks.of(spec.stage.task).example}s"
        print(f"{what} are {how}" + (f": {reason}" if reason else ""), flush=True)
    return chosen


def choose(
    packing: Literal["auto"] | bool, precision: str, arch: Architecture, device: torch.device
) -> tuple[bool, str]:
    """Whether examples go without padding, as slots.packing says, and why; "" where they do by
    themselves."""
    if packing != "auto":
        return packing, "slots.packing says so"
    reason = _why_padded(precision, arch, device)
    return not reason, reason


def added(batch: Batch) -> Batch:
    """The batch with the two of its packing."""
    mask = batch["attention_mask"]
    return {
        **batch,
        "places": mask.flatten().nonzero()[:, 0],
        "offsets": F.pad(mask.sum(1).cumsum(0), (1, 0)),
    }


def read(batch: Batch) -> Packing | None:
    return Packing(batch["places"], batch["offsets"]) if "places" in batch else None


def _why_padded(precision: str, arch: Architecture, device: torch.device) -> str:
    """Nothing for packed. A CPU attends to one example after the other, and loses nothing by it.
    What is fast without padding on a GPU knows no float32, and only heads of some widths; else
    torch would take example by example there, and wait for each."""
    if device.type != "cuda":
        return ""
    if precision != "bfloat16":
        return f"there is no fast attention without it in {precision}"
    widths = {arch.width // block.heads for block in arch.blocks}
    unfit = sorted(width for width in widths if width % SPAN_WIDTH)
    if unfit:
        return f"there are attention heads {unfit[0]} wide, which is no multiple of {SPAN_WIDTH}"
    return ""
