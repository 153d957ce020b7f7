"""How small a model is (thesis 4.2.5)."""

from collections.abc import Mapping

from nasd.contract.readable import of_baseline
from nasd.search.objectives.objective import Model, Objective


def _value(model: Model, metrics: Mapping[str, float], baseline: Model) -> float:
    return baseline.parameters / model.parameters


COMPRESSION = Objective(
    name="compression",
    unit="x",
    direction="highest",
    reference=0.0,
    words="the baseline's parameters over the candidate's",
    title="parameters, of the baseline's",
    value=_value,
    shown=of_baseline,
)
