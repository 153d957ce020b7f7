"""`python -m nasd.worker.devices`: tries torch on GPUs. Writes nothing.

Reads {"slots": ["cuda:0", ...], "precision"}, with CUDA_VISIBLE_DEVICES naming the same ones in
their order, and prints one JSON line: {"torch", "cuda", "faults": {slot: in torch's own words},
"emulated": [slots that lack the precision]}, or {"error": one sentence}.
"""

import json
import sys
from typing import Any

from nasd.contract.errors import NasdError


def main() -> None:
    question = json.load(sys.stdin)
    try:
        print(json.dumps(_answer(**question)))
    except NasdError as error:
        print(json.dumps({"error": str(error)}))


def _answer(slots: list[str], precision: str) -> dict[str, Any]:
    import torch

    if torch.version.cuda is None:
        raise NasdError(
            f"torch {torch.__version__} is built without CUDA: install a build with it (PyTorch's"
            " installation page says how)"
        )
    faults: dict[str, str] = {}
    emulated: list[str] = []
    for index, slot in enumerate(slots):
        try:
            one = torch.ones(64, 64, device=f"cuda:{index}")
            if float((one @ one).sum()) != 64**3:
                raise RuntimeError("a product of matrices came out wrong")
            with torch.cuda.device(index):
                if precision == "bfloat16" and not torch.cuda.is_bf16_supported(
                    including_emulation=False
                ):
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
