"""What a check finds, and what later checks need of earlier ones."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from nasd.contract.config import Config
from nasd.contract.genotype import Backbone, Genotype
from nasd.contract.slots import on_gpus
from nasd.record.folders import StateFolder

GB = 1e9
Mark = Literal["good", "note", "bad"]


@dataclass(frozen=True)
class Finding:
    """good: in order. note: worth a look. bad: has to be mended; the text says how."""

    about: str
    mark: Mark
    text: str


@dataclass
class Case:
    """A config and its machine, and what is known of them so far.

    devices: the slots; of a list in the config also those that are missing. gpu_memory: bytes, of
    the GPUs that answer. begun: there is a database, sound or not. backbone, baseline: of the seed,
    once it could be read. prepared: what preparing the data told, once it is done. newest_event:
    seconds since the epoch. sources_missing: seed or data cannot be had, so that looking at them is
    no use.
    """

    path: Path
    config: Config
    devices: list[str] = field(default_factory=list)
    gpu_memory: dict[str, int] = field(default_factory=dict)
    begun: bool = True
    backbone: Backbone | None = None
    baseline: Genotype | None = None
    prepared: dict[str, Any] | None = None
    newest_event: float | None = None
    sources_missing: bool = False

    @property
    def folder(self) -> Path:
        """Where the config's relative paths start."""
        return self.path.resolve().parent

    @property
    def state(self) -> StateFolder:
        return StateFolder(self.folder / self.config.experiment.state)

    @property
    def on_gpus(self) -> bool:
        return on_gpus(self.devices)
