"""How well a model does its task (thesis 4.2.5)."""

from collections.abc import Mapping

from nasd.search.objectives.objective import Model, Objective


def _value(model: Model, metrics: Mapping[str, float], baseline: Model) -> float | None:
    if "quality" in metrics:  # which of them that is, the config has said
        return metrics["quality"]
    if not metrics.keys() >= {"f1", "exact_match"}:
        return None
    return (metrics["f1"] + metrics["exact_match"]) / 2


QUALITY = Objective(
    name="quality",
    unit="%",
    direction="highest",
    reference=0.0,
    words="(F1 + EM) / 2",
    title="quality",
    value=_value,
    shown=lambda value: f"{value:.2f}",
)
