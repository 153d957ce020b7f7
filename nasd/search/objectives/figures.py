"""What a genotype gives by itself, before any of it is trained: worked out once, when a candidate
is born, and recorded with it."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from nasd.contract.footprint import exported_bytes, flop, int8_bytes
from nasd.contract.genotype import Backbone, Genotype
from nasd.contract.latency import Table
from nasd.contract.objectives import LATENCY
from nasd.search.objectives.objective import Model

if TYPE_CHECKING:  # a look at a search checks no config
    from nasd.contract.config import Measure


def figures(
    genotype: Genotype, backbone: Backbone, measure: "Measure", table: Table | None = None
) -> dict[str, float]:
    """By name, each in its objective's unit. table: of latencies, where there is one."""
    return {
        "flop": flop(genotype, backbone, measure.batch, measure.tokens),
        "bytes": exported_bytes(genotype, backbone),
        "bytes_int8": int8_bytes(genotype, backbone),
        **({} if table is None else {LATENCY: table.predict(genotype)}),
    }


def figure(name: str) -> Callable[[Model, Mapping[str, float], Model], float | None]:
    """The value of an objective that is such a figure."""

    def value(model: Model, metrics: Mapping[str, float], baseline: Model) -> float | None:
        return model.figures.get(name)

    return value
