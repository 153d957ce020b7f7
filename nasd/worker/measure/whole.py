"""`python -m nasd.worker.measure.whole`: what a trained model takes, in a process of its own, so
that nothing that was computed before counts.

Reads one JSON object, {"weights": the model's folder, "measure": [measure] of a config, "cores": to
run on, of a CPU}, and prints one JSON line: {"metrics": {name: number}, "about": what it was
measured on and how, "unmeasured": {name: why}}, or {"error": one sentence}.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nasd.contract.config import Measure
from nasd.contract.errors import NasdError
from nasd.contract.leash import die_with_parent

SECONDS = 60.0  # of timing, at most
ENERGY_SECONDS = 2.0  # that a counter is read over: it moves in steps
MB = 1e6


def main() -> None:
    die_with_parent(os.getppid())
    question = json.load(sys.stdin)
    try:
        print(json.dumps(_answer(question)))
    except NasdError as error:
        print(json.dumps({"error": str(error)}))


def _answer(question: dict[str, Any]) -> dict[str, Any]:
    measure = Measure(**question["measure"])
    if measure.device == "cpu" and question["cores"]:
        os.sched_setaffinity(0, question["cores"])
    import torch

    from nasd.worker.measure import energy, table
    from nasd.worker.measure.timing import by_turns, clock_of
    from nasd.worker.model import phenotype

    table.check(measure)
    torch.set_num_threads(measure.threads)
    arch = phenotype.load_architecture(Path(question["weights"]))
    table.of_model(phenotype.QuestionAnswering(_tiny(arch)), measure)()  # what only the first takes
    before = _memory(measure, begin=True)
    model = phenotype.load_for_answering(
        Path(question["weights"]), torch.Generator().manual_seed(0)
    )
    call = table.of_model(model, measure)
    del model
    timing = by_turns({"model": call}, clock_of(measure.device, measure.threads)[0], SECONDS)[
        "model"
    ]
    metrics = {
        "latency_ms": timing.median,
        "latency_error": timing.error,
        "latency_spread": timing.spread,
        "latency_calls": float(timing.calls),
    }
    unmeasured = {}
    if before is None:
        unmeasured["peak_memory_mb"] = "the kernel does not tell a process's highest memory"
    else:
        metrics["peak_memory_mb"] = ((_memory(measure) or 0.0) - before) / MB
    joules = energy.counter(measure.device)
    if isinstance(joules, str):
        unmeasured["energy_j"] = joules
    else:
        metrics["energy_j"] = _energy(call, joules)
    about = {**table.about(measure), "cores": question["cores"]}
    return {"metrics": metrics, "about": about, "unmeasured": unmeasured}


def unmeasured(measure: Measure) -> dict[str, str]:
    """What cannot be measured here, each with the reason."""
    from nasd.worker.measure import energy

    found = energy.counter(measure.device)
    return {"energy_j": found} if isinstance(found, str) else {}


def _tiny(arch: Any) -> Any:
    from dataclasses import replace

    return replace(arch, vocab_size=8, rank=None, frequent=0, blocks=arch.blocks[:1])


def _energy(call: Callable[[], object], joules: Callable[[], float]) -> float:
    """Joules of a pass, with what the device takes meanwhile for itself."""
    calls, began, before = 0, time.monotonic(), joules()
    while time.monotonic() - began < ENERGY_SECONDS:
        call()
        calls += 1
    return (joules() - before) / calls


def _memory(measure: Measure, begin: bool = False) -> float | None:
    """Bytes: with `begin` as they are now, and else the most that there were since; None where
    nobody tells."""
    if measure.device == "cuda":
        import torch

        if begin:
            torch.cuda.reset_peak_memory_stats()
            return float(torch.cuda.memory_allocated())
        return float(torch.cuda.max_memory_allocated())
    try:
        if begin:
            Path("/proc/self/clear_refs").write_text("5")  # the highest is as it is now
        key = "VmRSS:" if begin else "VmHWM:"
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return next(
            1024.0 * int(line.split()[1]) for line in status.splitlines() if line.startswith(key)
        )
    except (OSError, StopIteration):
        return None


if __name__ == "__main__":
    main()
