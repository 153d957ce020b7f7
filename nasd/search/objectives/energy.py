"""What a model uses."""

from nasd.search.objectives.measured import metric
from nasd.search.objectives.objective import Objective

ENERGY = Objective(
    name="energy_j",
    unit="J",
    direction="lowest",
    reference=2.0,
    relative=True,
    words="of a forward pass, with what the device takes for itself",
    title="energy, J",
    value=metric("energy_j"),
    shown=lambda value: f"{value:#.3g}",
)
