"""Asks the driver for its GPUs, in a process of its own: NVML can hang.

python -m nasd.gpus        one JSON list: [{"index": 0, "name": "…", "memory": bytes}, …]
"""

import json
import subprocess
import sys
from typing import Any

TIMEOUT_SECONDS = 20


def list_gpus() -> list[dict[str, Any]]:
    """The GPUs that answer; none where there is no driver, or where it does not answer in time."""
    try:
        done = subprocess.run(
            [sys.executable, "-m", "nasd.gpus"],
            capture_output=True,
            timeout=TIMEOUT_SECONDS,
            check=True,
        )
    except (subprocess.TimeoutExpired, subprocess.CalledProcessError):
        return []
    gpus: list[dict[str, Any]] = json.loads(done.stdout)
    return gpus


def _ask() -> list[dict[str, Any]]:
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    found = []
    for index in range(pynvml.nvmlDeviceGetCount()):
        try:  # each by itself: a lost one must not hide the others
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            memory = pynvml.nvmlDeviceGetMemoryInfo(handle).total
            found.append(
                {"index": index, "name": pynvml.nvmlDeviceGetName(handle), "memory": memory}
            )
        except pynvml.NVMLError as error:
            print(f"GPU {index}: {error}", file=sys.stderr)
    return found


if __name__ == "__main__":
    print(json.dumps(_ask()))
