"""What a tracker of others' is to nasd, and which there are."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from nasd.contract.errors import NasdError
from nasd.views.sinks.runs import Run


class Sink(Protocol):
    def write(self, run: Run) -> None:
        """Makes it say of a run what stands of it by now. Whatever was written before, or was being
        written when it was killed, nothing stands there twice."""
        ...

    def flush(self) -> None:
        """Once several runs were written."""
        ...


@dataclass(frozen=True)
class Search:
    """Whose runs they are. key: of this search alone, also where one before had its name."""

    name: str
    key: str


@dataclass(frozen=True)
class Entry:
    """title: for people. module: has `open(settings, search, folder)`, of a sink whose own files
    stand in the folder. package: what it imports; extra: of pyproject.toml, that brings it."""

    title: str
    module: str
    package: str
    extra: str


# By the name of its section in a config.
SINKS: Mapping[str, Entry] = {
    "wandb": Entry("Weights & Biases", "nasd.views.sinks.weights_and_biases", "wandb", "wandb"),
    "mlflow": Entry("MLflow", "nasd.views.sinks.tracking", "mlflow", "mlflow"),
}


def missing(name: str) -> str:
    """Why a section asks for what is not here, in a sentence; or ""."""
    entry = SINKS[name]
    if find_spec(entry.package) is not None:
        return ""
    return (
        f"[{name}] asks for the package {entry.package}, which is not installed: run"
        f" bin/setup {entry.extra}, or take [{name}] out of the config"
    )


def opened(name: str, settings: Mapping[str, Any], search: Search, folder: Path) -> Sink:
    """Raises NasdError where its package is not installed."""
    if why := missing(name):
        raise NasdError(why)
    sink: Sink = import_module(SINKS[name].module).open(settings, search, folder)
    return sink
