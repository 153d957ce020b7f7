"""`bin/record-curves`: random candidates of a world, each trained to the end with every evaluation
kept, as a table (tests/data) that rules of promotion are tried on.

Candidates are the baseline after random small steps, by the shares of the preset `demo`; they keep
what the fine-tuned baseline knows, and are trained by the questions as its children are. Seconds
are the processor's.
"""

import argparse
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import asdict
from io import StringIO
from pathlib import Path
from typing import Any

import torch

from nasd.contract.config import Stage, Variation
from nasd.contract.genotype import parameters
from nasd.contract.squad import answered, error, score
from nasd.contract.streams import stream
from nasd.contract.tasks import questions
from nasd.presets import preset_text
from nasd.search.variation.breeding import Offspring, child_of
from nasd.worker.model.inherit import born
from nasd.worker.prepare import test_questions
from nasd.worker.tasks.passages import QaFeatures
from nasd.worker.tasks.qa import QaTask
from nasd.worker.tasks.task import EVALUATION_BATCH
from nasd.worker.tasks.windows import of_batches
from nasd.worker.training.divergence import Diverged
from nasd.worker.training.progress import quiet
from nasd.worker.training.train import _evaluate, train
from tests.bench.laboratory import ALONE, Laboratory, in_this_process
from tests.bench.worlds import WORLDS

STEPS = (1, 12)  # small steps from the baseline
LOOKS = 16  # evaluations on the way


class Curve:
    """A recorder that keeps the evaluations, and what they took."""

    def __init__(self) -> None:
        self.points: list[tuple[int, float]] = []

    def line(self, **values: Any) -> None:
        if values["kind"] == "evaluation":
            self.points.append((values["step"], round(values["loss"], 5)))

    def sync(self) -> None: ...

    def close(self) -> None: ...


def drawn(lab: Laboratory, seed: int) -> Iterator[Offspring]:
    """Without end, no genotype twice."""
    import tomllib

    data = tomllib.loads(preset_text("demo"))["variation"]
    variation = Variation.model_validate({**data, "steps": STEPS})
    seen = {lab.baseline.hash}
    for number in range(10**6):
        rng = stream(seed, 0, "curves", number)
        made = child_of(
            *([lab.baseline], (), lab.baseline, lab.config.search_space),
            *(variation, None, variation.operators or {}, rng),
        )
        if made.genotype.hash not in seen:
            seen.add(made.genotype.hash)
            yield made


def recorded(lab: Laboratory, number: int, one: Offspring, stage: Stage) -> dict[str, Any]:
    """One candidate, trained to the end of the stage."""
    cache = Path(lab.prepared.qa_cache)
    windows = of_batches(QaFeatures.load(cache / "train"), lab.number)
    fresh = torch.Generator().manual_seed(number)
    with redirect_stdout(StringIO()):
        model = born(one.genotype, one.lineage, [lab.answering()], fresh, windows)
    task = QaTask.load(model, cache, packs=True)
    curve = Curve()
    run = in_this_process(
        *(lab.folder, curve),
        seed=lab.number,
        candidate=number,
        precision=lab.precision,
        log_steps=1000,
    )
    untrained = _evaluate(task, ALONE, run)["loss"]
    curve.points.append((0, round(untrained, 5)))
    began = time.process_time()
    found: dict[str, Any] = {
        "genotype": one.genotype.to_json(),
        "parameters": parameters(one.genotype, lab.backbone),
        "steps": 0,
    }
    try:
        result = train(task, stage, ALONE, run)
    except Diverged as reason:
        return {**found, "curve": curve.points, "diverged": str(reason)}
    seconds = time.process_time() - began
    asked, data = test_questions(cache), questions(lab.config.data)
    model.eval()
    with torch.no_grad():
        judged = task.predict(asked, data, ALONE, EVALUATION_BATCH, quiet)
    answers = answered(judged, math.inf)
    scores = score(answers, asked)
    return {
        **found,
        "steps": result.steps,
        "seconds": round(seconds, 2),
        "curve": curve.points,
        "exact_match": round(scores["exact_match"], 3),
        "f1": round(scores["f1"], 3),
        "quality_error": round(error(answers, asked), 3),
    }


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="bin/record-curves", description=__doc__)
    parser.add_argument("--world", choices=tuple(WORLDS), default="demo")
    parser.add_argument("--data", type=Path, help="a folder with questions (.json) and corpus/")
    parser.add_argument("--candidates", type=int, default=300, help="at most")
    parser.add_argument("--minutes", type=float, default=math.inf, help="at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=float, help="else as in the world's table")
    parser.add_argument("table", type=Path, help="where it is written (JSON)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="nasd-curves-") as place:
        lab = Laboratory(WORLDS[options.world], options.seed, Path(place) / "lab", options.data)
        stage = lab.stage("finetune")
        epochs = options.epochs or stage.epochs
        assert epochs is not None
        changes = {"epochs": epochs, "evaluations": max(1, round(LOOKS / epochs))}
        stage = stage.model_copy(update=changes)
        known = lab.scored.outcome.metrics
        table = {
            "command": f"bin/record-curves {' '.join(arguments)}",
            "made": time.strftime("%Y-%m-%d", time.gmtime()),
            "version": _version(),
            "machine": f"{_processor()}, {os.cpu_count()} cores, 1 thread; torch"
            f" {torch.__version__}, {lab.precision}",
            "world": options.world,
            "backbone": asdict(lab.backbone),
            "baseline": {
                "genotype": lab.baseline.to_json(),
                "parameters": parameters(lab.baseline, lab.backbone),
                "exact_match": round(known["exact_match"], 3),
                "f1": round(known["f1"], 3),
            },
            "test_questions": lab.prepared.qa_test_questions,
            "candidates": [],
        }
        made: list[dict[str, Any]] = []
        for number, one in enumerate(drawn(lab, options.seed), 1):
            if number > options.candidates or time.monotonic() - began > 60 * options.minutes:
                break
            made.append(recorded(lab, number, one, stage))
            print(number, {k: v for k, v in made[-1].items() if k != "genotype"}, flush=True)
            write(table | {"candidates": made}, options.table)
    print(f"{len(made)} candidates in {(time.monotonic() - began) / 60:.1f} min", flush=True)


def write(table: dict[str, Any], path: Path) -> None:
    """A candidate a line, whole or not at all."""
    head = {key: value for key, value in table.items() if key != "candidates"}
    rows = ",\n".join(json.dumps(one, separators=(",", ":")) for one in table["candidates"])
    text = f'{json.dumps(head, indent=1)[:-2]},\n "candidates": [\n{rows}\n]}}\n'
    half = path.with_name(f".{path.name}.tmp")
    half.write_text(text)
    half.replace(path)


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.machine())


def _version() -> str:
    asked = ["git", "describe", "--always", "--tags"]
    return subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()


if __name__ == "__main__":
    main(sys.argv[1:])
