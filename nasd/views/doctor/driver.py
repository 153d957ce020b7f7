"""`python -m nasd.views.doctor.driver`: asks NVML for what `nasd.launch.gpus` does not. NVML can
hang, so this is a process of its own.

Reads {"slots": ["cuda:0", ...]} and prints one JSON line: {"driver", "cuda", "persistent": {slot:
true, false, or null where the device does not tell}}, or {"error": one sentence}.
"""

import json
import sys
from typing import Any

from nasd.contract.slots import Slot


def main() -> None:
    import pynvml

    question = json.load(sys.stdin)
    try:
        answer = _answer(pynvml, question["slots"])
    except pynvml.NVMLError as error:
        answer = {"error": f"the driver does not answer: {error}"}
    print(f"\n{json.dumps(answer)}")


def _answer(pynvml: Any, slots: list[str]) -> dict[str, Any]:
    pynvml.nvmlInit()
    version = pynvml.nvmlSystemGetCudaDriverVersion_v2()
    return {
        "driver": pynvml.nvmlSystemGetDriverVersion(),
        "cuda": f"{version // 1000}.{version % 1000 // 10}",
        "persistent": {slot: _persistent(pynvml, slot) for slot in slots},
    }


def _persistent(pynvml: Any, slot: str) -> bool | None:
    try:
        device = pynvml.nvmlDeviceGetHandleByIndex(Slot.parse(slot).number)
        return bool(pynvml.nvmlDeviceGetPersistenceMode(device))
    except pynvml.NVMLError:
        return None


if __name__ == "__main__":
    main()
