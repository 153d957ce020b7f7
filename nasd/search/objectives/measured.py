"""What only a trained model on a device shows: metrics of a stage with `measure = true`."""

from collections.abc import Callable, Mapping

from nasd.search.objectives.objective import Model


def metric(name: str) -> Callable[[Model, Mapping[str, float], Model], float | None]:
    """The value of an objective that is such a metric."""

    def value(model: Model, metrics: Mapping[str, float], baseline: Model) -> float | None:
        return metrics.get(name)

    return value
