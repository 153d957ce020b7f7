"""How the models of one peer stand at a time: pure.

A search picks what it keeps by the scores that it sees, and the best of many such scores is too
good to be true. So a model is chosen by what its peer saw (`seen`), and told by questions that no
peer has ever seen (`quality`).
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from nasd.contract.genotype import Backbone, Genotype, parameters
from nasd.search.pareto import hypervolume, ranks

SHARES = (1.0, 0.9, 0.75, 0.5)  # of the blocks' parameters
REFERENCE = (0.0, 0.5)  # of the hypervolume: quality, and compression as the searches have it
QUARTERS = (0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class Model:
    """share: of the baseline's blocks' parameters. at: seconds of training charged when it stood.
    seen: quality by the questions that its peer chooses by; quality: by the others, None where it
    never was on its peer's front."""

    name: str
    share: float
    compression: float
    at: float
    seen: float
    quality: float | None = None


@dataclass(frozen=True)
class Standing:
    """All that came of a peer. seconds: of training, charged; scoring: of scoring, beside them;
    depth: how many trainings behind the baseline's the line of its deepest model has had."""

    peer: str
    models: tuple[Model, ...]
    seconds: float
    scoring: float = 0.0
    depth: int = 1
    notes: tuple[str, ...] = field(default=())

    def by(self, seconds: float) -> list[Model]:
        return [one for one in self.models if one.at <= seconds]


def share_of_blocks(genotype: Genotype, baseline: Genotype, backbone: Backbone) -> float:
    empty = parameters(Genotype(()), backbone)
    return (parameters(genotype, backbone) - empty) / (parameters(baseline, backbone) - empty)


def front(models: Sequence[Model]) -> list[Model]:
    """Those that no other dominates by what was seen; of equals the first."""
    found: dict[tuple[float, float], Model] = {}
    for one in models:
        found.setdefault((one.seen, one.compression), one)
    points = list(found)
    return [found[at] for at, rank in zip(points, ranks(points), strict=True) if rank == 0]


def best_within(models: Sequence[Model], share: float) -> Model | None:
    """The best seen of those with at most this share of the blocks' parameters; of equals the
    smaller, then the earlier."""
    fitting = [one for one in models if one.share <= share + 1e-9]
    return max(fitting, key=lambda one: (one.seen, one.compression, -one.at), default=None)


def volume(models: Sequence[Model]) -> float:
    """The hypervolume of the front as it was seen, by the questions that were not."""
    points = [(one.quality, one.compression) for one in front(models) if one.quality is not None]
    return hypervolume([(quality, small) for quality, small in points], REFERENCE)


def reached(standing: Standing, wanted: float) -> float | None:
    """After how many seconds the hypervolume first is as large; None if it never is."""
    moments = sorted({one.at for one in standing.models})
    return next((at for at in moments if volume(standing.by(at)) >= wanted), None)


def told(standing: Standing, seconds: float, thesis: float | None) -> dict[str, Any]:
    """A peer's figures after so many seconds; thesis: the final hypervolume of the thesis's way."""
    models = standing.by(seconds)
    best = {share: best_within(models, share) for share in SHARES}
    return {
        "peer": standing.peer,
        "models": len(models),
        "seconds": standing.seconds,
        "scoring": standing.scoring,
        "quality": {
            str(share): None if one is None else one.quality for share, one in best.items()
        },
        "chosen": {str(share): None if one is None else one.name for share, one in best.items()},
        "hypervolume": {str(part): volume(standing.by(part * seconds)) for part in QUARTERS},
        "seconds_to_thesis": None if thesis is None else reached(standing, thesis),
        "notes": list(standing.notes),
    }


def mean(values: Sequence[float | None]) -> float | None:
    """None unless every seed has one."""
    known = [one for one in values if one is not None and math.isfinite(one)]
    return statistics.mean(known) if values and len(known) == len(values) else None


def over_seeds(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The means of one peer's figures, a run a seed."""
    return {
        "peer": runs[0]["peer"],
        "models": mean([one["models"] for one in runs]),
        "seconds": mean([one["seconds"] for one in runs]),
        "scoring": mean([one["scoring"] for one in runs]),
        "quality": {
            share: mean([one["quality"][share] for one in runs]) for share in runs[0]["quality"]
        },
        "hypervolume": {
            part: mean([one["hypervolume"][part] for one in runs])
            for part in runs[0]["hypervolume"]
        },
        "seconds_to_thesis": mean([one["seconds_to_thesis"] for one in runs]),
    }


def above(ours: Sequence[dict[str, Any]], others: Sequence[dict[str, Any]]) -> int:
    """In how many seeds the final hypervolume of ours is above the other's."""
    end = str(QUARTERS[-1])
    pairs = zip(ours, others, strict=True)
    return sum(one["hypervolume"][end] > other["hypervolume"][end] for one, other in pairs)
