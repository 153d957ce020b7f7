"""What the tests of training share: prepared demo data, tiny specs, and real workers."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from nasd.contract.config import Config, Data, Stage, parse
from nasd.contract.genotype import Genotype, Lineage, unchanged
from nasd.contract.protocol import AttemptFolder, Outcome, Prepared, Spec, read, write
from nasd.launch.launcher import wait_until
from nasd.launch.local import LocalLauncher
from nasd.presets import preset_text
from nasd.presets.demo import write_demo_data
from nasd.worker.training.progress import quiet
from nasd.worker.training.train import Run
from tests import forked

SOURCE = "package:nasd/demo_seed"


def demo_config(**changes: Any) -> Config:
    """The demo preset with dotted keys (stages by name) replaced."""
    import tomllib

    data = tomllib.loads(preset_text("demo-thesis"))
    for key, value in changes.items():
        place: Any = data
        *above, last = key.split("__")
        for part in above:
            found = [s for s in place if s["name"] == part] if isinstance(place, list) else None
            place = found[0] if found else place.setdefault(part, {})
        place[last] = value
    return parse(data, "demo")


@dataclass
class Workshop:
    """A folder with demo data, the seed converted, and the caches made."""

    folder: Path
    prepared: Prepared
    seed_weights: Path
    baseline: Genotype
    data: Data

    def spec(self, stage: Stage | None, weights: Path | None = None, **changes: Any) -> Spec:
        """An attempt of the baseline at `stage`, in float32 without dropout."""
        base: dict[str, Any] = {
            "attempt": 1,
            "candidate": 0,
            "generation": None,
            "stage": stage,
            "seed": 5,
            "dropout": 0.0,
            "source": SOURCE,
            "data": self.data,
            "config_folder": str(self.folder),
            "genotype": self.baseline.to_json(),
            "lineage": [block.to_json() for block in unchanged(self.baseline)],
            "weights": str(weights or self.seed_weights),
            "inherits": False,
            "cache": str(self.folder / "cache"),
            "mlm_cache": self.prepared.mlm_cache,
            "qa_cache": self.prepared.qa_cache,
            "labelled_cache": self.prepared.labelled_cache,
            "tensorboard": "",
            "precision": "float32",
            "threads": 1,
            "checkpoint_minutes": 60,
            "log_steps": 1,
            "stall_minutes": 10,
        }
        return Spec(**{**base, **changes})

    def child(self, genotype: Genotype, lineage: Lineage) -> dict[str, Any]:
        """Changes for `spec` that make the attempt one of an offspring of the seed."""
        return {
            "candidate": 7,
            "generation": 1,
            "genotype": genotype.to_json(),
            "lineage": [block.to_json() for block in lineage],
            "inherits": True,
        }


def make_workshop(folder: Path, config: Config | None = None) -> Workshop:
    """config: of a search whose files are in the folder; else the demo's."""
    from nasd.worker import prepare
    from nasd.worker.model import phenotype, seed

    write_demo_data(folder / "demo-data")
    tokenizer = seed.load_tokenizer(SOURCE, folder)
    data = (config or demo_config()).data
    (folder / "cache").mkdir()
    made = prepare.caches(data, folder, tokenizer, folder / "cache", 5, quiet)
    counts = prepare.counts(*made)
    model, has_head = seed.load_seed(SOURCE, folder, 0.0, counts.get("labels", ()))
    phenotype.save(model, folder / "seed")
    return Workshop(
        folder,
        Prepared(
            mlm_cache=str(made.mlm or ""),
            qa_cache=str(made.qa or ""),
            labelled_cache=str(next(iter(made.labelled.values()), "")),
            has_mlm_head=has_head,
            parameters=1,
            **counts,
        ),
        folder / "seed",
        seed.describe(SOURCE, folder).baseline,
        data,
    )


@dataclass
class Launched:
    """An attempt in real worker processes."""

    folder: AttemptFolder
    launcher: LocalLauncher
    process: dict[str, Any]

    @property
    def alive(self) -> bool:
        return self.launcher.alive(self.process)

    def until(self, done: Callable[[], bool]) -> None:
        """Waits for something to come about while the attempt runs."""
        assert wait_until(lambda: done() or not self.alive, 240), self.log
        assert done(), self.log

    def ends(self) -> None:
        assert wait_until(lambda: not self.alive, 240), self.log

    @property
    def log(self) -> str:
        return self.folder.log.read_text()

    @property
    def outcome(self) -> Outcome | None:
        return outcome_of(self.folder)

    def checkpoints(self) -> list[str]:
        return sorted(path.name for path in self.folder.checkpoints.glob("step-*"))

    def ranks(self) -> list[psutil.Process]:
        """The processes that train, in the order of their ranks."""
        found = []
        for process in psutil.process_iter():
            try:
                command = process.cmdline()
                if command[-2:] == ["nasd.worker", str(self.folder.path)]:
                    found.append((process.environ()["RANK"], process))
            except psutil.Error:
                continue
        return [process for _, process in sorted(found, key=lambda one: one[0])]


def written(spec: Spec, path: Path) -> AttemptFolder:
    """An attempt's folder, with its spec."""
    folder = AttemptFolder(path)
    path.mkdir(parents=True, exist_ok=True)
    if not spec.tensorboard:
        spec = spec.model_copy(update={"tensorboard": str(path / "tensorboard")})
    write(spec, folder.spec)
    return folder


def outcome_of(folder: AttemptFolder) -> Outcome | None:
    return read(Outcome, folder.outcome) if folder.outcome.exists() else None


@contextmanager
def launched(spec: Spec, path: Path, ranks: int = 1, kind: str = "cpu") -> Iterator[Launched]:
    folder = written(spec, path)
    launcher = LocalLauncher(threads=1)
    # The token is the whole path: of two tests at once, neither must end the other's workers.
    process = launcher.start(folder, [f"{kind}:{n}" for n in range(ranks)], str(path))
    try:
        yield Launched(folder, launcher, process)
    finally:
        launcher.clear(str(path))


def work(
    spec: Spec, path: Path, ranks: int = 1, kind: str = "cpu"
) -> tuple[AttemptFolder, Outcome | None]:
    """Runs an attempt to its end; None if it left no outcome. One rank on a CPU is forked from a
    process that has torch already; `launched` starts it as a daemon does."""
    if (ranks, kind) == (1, "cpu"):
        folder = written(spec, path)
        forked.run(folder, str(path))
        return folder, outcome_of(folder)
    with launched(spec, path, ranks, kind) as attempt:
        attempt.ends()
    return attempt.folder, attempt.outcome


ANSWERING = {"tokens": 96, "stride": 32, "n_best": 20, "max_answer_tokens": 8}


def exported(shop: Workshop, epochs: float, folder: Path) -> Path:
    """A person's own model: the demo's, fine-tuned so long, as `nasd export` leaves it."""
    from nasd.worker import export
    from nasd.worker.model import seed

    stage_of = stage(demo_config(), "finetune", epochs=epochs)
    tuned, outcome = work(shop.spec(stage_of), shop.folder / f"tuned-for-{folder.name}")
    assert outcome is not None, tuned.log.read_text()
    folder.mkdir(parents=True)
    export.write(
        tuned.result, Path(seed.resolve(SOURCE, shop.folder)), folder, {"answering": ANSWERING}
    )
    return folder


def losses(folder: AttemptFolder, kind: str) -> list[float]:
    lines = map(json.loads, folder.metrics.read_text().splitlines())
    return [line["loss"] for line in lines if line["kind"] == kind]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def stage(config: Config, name: str, **changes: Any) -> Stage:
    found = next(stage for stage in config.stages if stage.name == name)
    return found.model_copy(update=changes)


class Never:
    """A stop request that never comes."""

    asked = False


class Notes:
    """A recorder that keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []

    def line(self, **values: Any) -> None:
        self.lines.append(values)

    def sync(self) -> None:
        pass

    def close(self) -> None:
        pass


def run_of(folder: Path, notes: Notes, **changes: Any) -> Run:
    """Settings of a training in this process, told to `notes` step by step."""
    base: dict[str, Any] = {
        "seed": 5,
        "candidate": 0,
        "precision": "float32",
        "checkpoint_seconds": 1e9,
        "log_steps": 1,
        "checkpoints": folder / "checkpoints",
        "resume": (),
        "open_recorder": lambda step: notes,
        "stop": Never(),
        "progress": quiet,
        "say": lambda text: None,
    }
    return Run(**{**base, **changes})
