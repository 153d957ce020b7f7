"""What a machine's devices compute in, and `python -m nasd.worker.devices`, which tries torch on
slots of one kind. Writes nothing.

Reads {"slots": ["cuda:0", ...], "precision"}, with CUDA_VISIBLE_DEVICES naming the same GPUs in
their order, and prints one JSON line: {"torch", "cuda", "faults": {slot: in torch's own words},
"emulated": [slots that lack the precision]}, or {"error": one sentence}.
"""

import json
import sys
from typing import TYPE_CHECKING, Any

from nasd.contract.errors import NasdError
from nasd.contract.slots import on_gpus

if TYPE_CHECKING:
    import torch


def has_bfloat16(device: "torch.device") -> bool:
    """Whether the device multiplies bfloat16 matrices itself; emulated, they take many times as
    long as float32's."""
    import torch

    if device.type == "cuda":
        with torch.cuda.device(device):
            return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    # avx512_bf16, amx_bf16, sve_bf16 and the like
    return any("bf16" in name and has for name, has in torch.cpu.get_capabilities().items())


def main() -> None:
    question = json.load(sys.stdin)
    try:
        print(json.dumps(_answer(**question)))
    except NasdError as error:
        print(json.dumps({"error": str(error)}))


def _answer(slots: list[str], precision: str) -> dict[str, Any]:
    import torch

    gpus = on_gpus(slots)
    if gpus and torch.version.cuda is None:
        raise NasdError(
            f"torch {torch.__version__} is built without CUDA: install a build with it (PyTorch's"
            " installation page says how)"
        )
    faults: dict[str, str] = {}
    emulated: list[str] = []
    for index, slot in enumerate(slots):
        device = torch.device("cuda", index) if gpus else torch.device("cpu")
        try:
            one = torch.ones(64, 64, device=device)
            if float((one @ one).sum()) != 64**3:
                raise RuntimeError("a product of matrices came out wrong")
            if precision == "bfloat16" and not has_bfloat16(device):
                emulated.append(slot)
        except Exception as error:  # of many kinds: RuntimeError, AcceleratorError, AssertionError
            faults[slot] = (str(error).splitlines() or [repr(error)])[0]
    return {
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "faults": faults,
        "emulated": emulated,
    }


if __name__ == "__main__":
    main()
