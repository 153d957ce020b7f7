"""How long a model takes."""

from collections.abc import Mapping

from nasd.contract.objectives import LATENCY as NAME
from nasd.search.objectives.objective import Model, Objective


def _value(model: Model, metrics: Mapping[str, float], baseline: Model) -> float | None:
    """As measured, or before that as the table tells."""
    return metrics.get(NAME, model.figures.get(NAME))


LATENCY = Objective(
    name=NAME,
    unit="ms",
    direction="lowest",
    reference=2.0,
    relative=True,
    words="of a forward pass",
    title="latency, ms",
    value=_value,
    shown=lambda value: f"{value:#.3g}" if value < 100 else f"{value:,.0f}",
)
