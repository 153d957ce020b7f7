"""What a model takes of the memory while it runs."""

from nasd.contract.readable import number
from nasd.search.objectives.measured import metric
from nasd.search.objectives.objective import Objective

MEMORY = Objective(
    name="peak_memory_mb",
    unit="MB",
    direction="lowest",
    reference=2.0,
    relative=True,
    words="at the most, weights and activations",
    title="memory, MB",
    value=metric("peak_memory_mb"),
    shown=lambda value: number(value, 0 if value >= 100 else 1),
)
