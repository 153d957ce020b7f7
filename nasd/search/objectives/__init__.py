"""What a search goes by: a registry by name. An experiment names some of them, in order, and they
are the axes of its points.

One more is a file here, a line in OBJECTIVES, and its name in nasd.contract.objectives.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from nasd.search.objectives.energy import ENERGY
from nasd.search.objectives.flop import FLOP
from nasd.search.objectives.latency import LATENCY
from nasd.search.objectives.memory import MEMORY
from nasd.search.objectives.objective import Model, Objective
from nasd.search.objectives.parameters import COMPRESSION
from nasd.search.objectives.quality import QUALITY
from nasd.search.objectives.size import BYTES, BYTES_INT8
from nasd.search.pareto import Point

__all__ = ["COMPRESSION", "OBJECTIVES", "QUALITY", "Model", "Objective"]

NOTHING: Mapping[str, float] = MappingProxyType({})
OBJECTIVES: Mapping[str, Objective] = {
    one.name: one
    for one in (QUALITY, COMPRESSION, FLOP, BYTES, BYTES_INT8, LATENCY, MEMORY, ENERGY)
}


def point(
    names: Sequence[str], model: Model, metrics: Mapping[str, float], baseline: Model
) -> Point | None:
    """The model by these objectives, each to be maximised; None where one is not measured."""
    found = []
    for name in names:
        value = OBJECTIVES[name].value(model, metrics, baseline)
        if value is None:
            return None
        found.append(OBJECTIVES[name].upwards(value))
    return tuple(found)


def reference(
    names: Sequence[str], baseline: Model, metrics: Mapping[str, float] = NOTHING
) -> Point | None:
    """Above it the hypervolume is taken; None before the baseline is measured by all of them that
    go by it. metrics: the baseline's."""
    found = []
    for name in names:
        one = OBJECTIVES[name]
        bound = one.bound(one.value(baseline, metrics, baseline))
        if bound is None:
            return None
        found.append(one.upwards(bound))
    return tuple(found)


def unscored(names: Sequence[str], model: Model, baseline: Model) -> Point:
    """The model by what can be told without its metrics; by all else it stands at the reference,
    or at 0 where not even that can be told."""
    found = []
    for name in names:
        one = OBJECTIVES[name]
        value = one.value(model, {}, baseline)
        bound = one.bound(one.value(baseline, {}, baseline))
        found.append(one.upwards(value if value is not None else bound or 0.0))
    return tuple(found)


def known(names: Sequence[str], model: Model, baseline: Model) -> Point:
    """The model by those of the objectives that need no metrics, each to be maximised."""
    values = [(OBJECTIVES[name], OBJECTIVES[name].value(model, {}, baseline)) for name in names]
    return tuple(one.upwards(value) for one, value in values if value is not None)


def told(names: Sequence[str], point: Sequence[float]) -> dict[str, float]:
    """The values that make a point, each in its own unit, by name."""
    return {name: OBJECTIVES[name].upwards(value) for name, value in zip(names, point, strict=True)}
