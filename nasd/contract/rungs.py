"""A stage with rungs, as it is climbed: in parts, one up to each rung and one behind the last.

A part is a stage like any other to whatever decides, records or shows: it has its attempts, its
results, its curve, and a cutoff behind it. Only what trains knows that it goes on from the one
before, with one schedule and one state of the optimizer. The last part has the name of the stage,
so what a stage leaves is found under its name whether it has rungs or not.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

SIGN = "@"  # between the name of a stage and the share at which a rung stands: in no other name
ROUNDING = 1e-9  # 0.28 * 25 is a hair above 7


def places(keep: float, reached: int) -> int:
    """How many of those that reached a cutoff may go on, at most: their share, rounded up; never
    nobody. keep: above 0, at most 1."""
    return max(1, math.ceil(keep * reached - ROUNDING))


def name_of(stage: str, at: float) -> str:
    """Of the part that ends at the rung, and of the rung: `finetune@0.25`."""
    return f"{stage}{SIGN}{at:g}"


def parts(stage: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The parts of a stage, as it is written down in a config; itself where it has no rungs.

    Of each, `of` is the stage's name, and from `begin` to `until` it goes, in shares of the
    stage's steps.
    """
    rungs = stage.get("rungs") or ()
    if not rungs:
        return [dict(stage)]
    ends = [(name_of(stage["name"], one["at"]), one["at"], one["keep"]) for one in rungs]
    ends.append((stage["name"], 1.0, stage.get("keep")))
    begins = [0.0, *(one["at"] for one in rungs)]
    return [
        {
            **stage,
            "rungs": (),
            "name": name,
            "keep": keep,
            "of": stage["name"],
            "begin": begin,
            "until": until,
        }
        for begin, (name, until, keep) in zip(begins, ends, strict=True)
    ]


def climbed(stages: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """All stages of a config, as it is written down, in parts."""
    return [part for stage in stages for part in parts(stage)]
