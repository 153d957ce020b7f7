"""Recorded learning curves in the place of the made-up ones: of each candidate its own where it is
in the table, or else the mean of those of the three that are most like it.

A table is what `bin/record-curves` writes: candidates of one seed, each fine-tuned to the end for
questions with every evaluation kept. What it does not tell (MLM, other tasks, who diverges) stays
the surrogate's. In tests/data each left out in turn, the mean of the three foretells the quality of
the 198 to 5.7 points on average, with a rank correlation of 0.70 (of the nearest one alone 6.2 and
0.60; by size alone, which is all that the surrogate knows of these, 0.75).
"""

import json
import math
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

from nasd.contract.errors import NasdError
from nasd.contract.genotype import Backbone, Genotype, distance, parameters
from nasd.estimate.surrogate import Surrogate, Trained
from nasd.search.objectives.quality import QUALITY

NEAREST, MODULES_A_NAT = 3, 10.0  # a module that differs is as far as a tenth of a nat in size


@dataclass(frozen=True)
class Curve:
    """points: (step, evaluation loss), from step 0, untrained. quality: in percent, at the end."""

    genotype: Genotype
    parameters: int
    points: tuple[tuple[int, float], ...]
    quality: float

    def at(self, step: float) -> float:
        """Between two evaluations on the line between them, and behind the last one as there."""
        place = bisect_right([point[0] for point in self.points], step)
        if place == len(self.points):
            return self.points[-1][1]
        (begin, low), (end, high) = self.points[max(0, place - 1)], self.points[place]
        return low + (high - low) * (step - begin) / max(1, end - begin)


@dataclass(frozen=True)
class Table:
    """baseline: whose children they are. quality: its own, fine-tuned. tested: questions that
    qualities are of."""

    backbone: Backbone
    baseline: Genotype
    quality: float
    tested: int
    curves: tuple[Curve, ...]
    _alike: dict[str, tuple[Curve, ...]] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def read(cls, path: Path) -> "Table":
        """Raises NasdError where the file is none."""
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            curves = tuple(_curve(one) for one in data["candidates"] if "diverged" not in one)
            found = cls(
                Backbone(**data["backbone"]),
                Genotype.from_json(data["baseline"]["genotype"]),
                _quality(data["baseline"]),
                int(data["test_questions"]),
                curves,
            )
        except (OSError, ValueError, KeyError, TypeError, NasdError) as error:
            raise NasdError(f"{path} is no table of `bin/record-curves`: {error!r}") from None
        if not curves:
            raise NasdError(f"{path} tells of no candidate that came to its end")
        return found

    def alike(self, genotype: Genotype) -> tuple[Curve, ...]:
        """Its own, or the three from which fewest modules differ and that are nearest in size."""
        if genotype.hash not in self._alike:
            own = tuple(one for one in self.curves if one.genotype == genotype)
            size = parameters(genotype, self.backbone)

            def apart(one: Curve) -> float:
                nats = abs(math.log(one.parameters / size))
                return distance(genotype, one.genotype) + MODULES_A_NAT * nats

            self._alike[genotype.hash] = own or tuple(sorted(self.curves, key=apart)[:NEAREST])
        return self._alike[genotype.hash]


def _curve(one: Mapping[str, Any]) -> Curve:
    points = tuple((int(step), float(loss)) for step, loss in one["curve"])
    genotype = Genotype.from_json(one["genotype"])
    return Curve(genotype, int(one["parameters"]), points, _quality(one))


@dataclass(frozen=True)
class _Model:
    parameters: int
    figures: Mapping[str, float] = field(default_factory=dict)


def _quality(one: Mapping[str, Any]) -> float:
    model = _Model(int(one["parameters"]))
    found = QUALITY.value(model, {name: float(one[name]) for name in ("exact_match", "f1")}, model)
    assert found is not None
    return found


@dataclass(frozen=True, kw_only=True)
class Recorded(Surrogate):
    """The surrogate, but for losses of questions and the quality, which are the table's."""

    table: Table = field(hash=False, compare=False)

    def quality(self, genotype: Genotype, trained: Trained) -> float:
        if genotype == self.table.baseline:
            return self.table.quality
        return mean(one.quality for one in self.table.alike(genotype))

    def answer_loss(
        self, genotype: Genotype, stage: str, step: int | None, trained: Trained
    ) -> float:
        """step: None, after as much training as it has had: none before its first stage."""
        at = trained.all if step is None else step
        return mean(one.at(at) for one in self.table.alike(genotype))
