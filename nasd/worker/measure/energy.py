"""Counters of energy: a GPU's own, by NVML, and a processor's packages', by RAPL."""

import os
from collections.abc import Callable
from pathlib import Path

RAPL = Path("/sys/class/powercap")
Joules = Callable[[], float]


def counter(device: str) -> Joules | str:
    """What the device has used so far, in joules from any beginning; or why that may not be read.
    device: as in [measure]."""
    return _nvml() if device == "cuda" else _rapl()


def _nvml() -> Joules | str:
    try:
        import pynvml

        pynvml.nvmlInit()
        # PyTorch's first GPU is the first of those that this process sees, counted as NVML counts.
        seen = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0]
        handle = pynvml.nvmlDeviceGetHandleByIndex(int(seen) if seen.isdigit() else 0)
        pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except Exception as error:  # of many kinds: no driver, no library, not supported
        return f"NVML's energy counter cannot be read ({error})"
    return lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3


def _rapl() -> Joules | str:
    """All packages together; a counter that has run over has begun anew since."""
    zones = [zone for zone in sorted(RAPL.glob("intel-rapl:*")) if zone.name.count(":") == 1]
    if not zones:
        return f"there is no RAPL counter below {RAPL}"
    ranges = []
    try:
        for zone in zones:
            int((zone / "energy_uj").read_text())
            ranges.append(int((zone / "max_energy_range_uj").read_text()))
    except OSError as error:
        return f"{error.filename} may not be read ({error.strerror})"
    last, over = [0] * len(zones), [0] * len(zones)

    def joules() -> float:
        for index, zone in enumerate(zones):
            now = int((zone / "energy_uj").read_text())
            if now < last[index]:
                over[index] += ranges[index]
            last[index] = now
        return (sum(last) + sum(over)) / 1e6

    return joules
