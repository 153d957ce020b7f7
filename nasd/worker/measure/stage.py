"""The part of a stage that measures: the device is waited for, and another process does it."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nasd.contract.errors import NasdError
from nasd.contract.objectives import MEASURED
from nasd.contract.protocol import Spec, write_atomically
from nasd.worker.measure import quiet
from nasd.worker.training.progress import Progress

FILE = "measured.json"
LOOK_SECONDS = 0.2


def measured(spec: Spec, result: Path, progress: Progress) -> dict[str, float]:
    """The numbers of the spec's model; how they came about is left in the result's folder.

    Raises NasdError where something cannot be measured that the search goes by.
    """
    assert spec.weights is not None
    cores = []
    if spec.measure.device == "cpu":
        cores = quiet.cores(spec.measure.threads, progress)
    question = {
        "weights": spec.weights,
        "measure": spec.measure.model_dump(mode="json"),
        "cores": cores,
    }
    told = _ask(question, spec.measure.threads, progress)
    if "error" in told:
        raise NasdError(told["error"])
    metrics: dict[str, float] = told["metrics"]
    for name, why in told["unmeasured"].items():
        print(f"{name} is not measured: {why}", flush=True)
    missing = [name for name in spec.goes_by if name in MEASURED and name not in metrics]
    if missing:
        raise NasdError(f"{missing[0]} cannot be measured: {told['unmeasured'].get(missing[0])}")
    if metrics["latency_error"] > 0.03:
        print(f"the median latency is only known within {metrics['latency_error']:.1%}", flush=True)
    result.mkdir(parents=True, exist_ok=True)
    write_atomically(result / FILE, json.dumps(told, indent=1).encode())
    return metrics


def _ask(question: Mapping[str, object], threads: int, progress: Progress) -> dict[str, Any]:
    child = subprocess.Popen(
        [sys.executable, "-P", "-m", "nasd.worker.measure.whole"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONSAFEPATH": "1"},
    )
    try:
        assert child.stdin is not None and child.stdout is not None
        child.stdin.write(json.dumps(question))
        child.stdin.close()
        while child.poll() is None:
            progress("measuring")
            time.sleep(LOOK_SECONDS)
        lines = child.stdout.read().splitlines()
    finally:
        child.kill()
        child.wait()
    if child.returncode or not lines:
        raise NasdError(f"the process that measures ended with {child.returncode}")
    found: dict[str, Any] = json.loads(lines[-1])
    return found
