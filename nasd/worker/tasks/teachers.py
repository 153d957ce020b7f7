"""The model that a teacher is: the search's own, or one from outside that answers questions."""

from pathlib import Path
from typing import Any

from nasd.contract.protocol import Teaching
from nasd.worker.model import phenotype
from nasd.worker.tasks.beginning import reading


def load(teaching: Teaching, kind: Any) -> Any:
    """The teacher, on the CPU, as a `kind` of ours or what answers as one does."""
    folder = Path(teaching.weights)
    with reading(folder):
        return phenotype.load(kind, folder, 0.0)
