"""A finalist's training for its score under further seeds: stages of their own behind its ladder.

Each is what the stage is, whole, by another name, and it is by that name that random choices are
drawn: another order of examples, other dropout, a head that begins otherwise. They start from what
the stage itself began with.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from nasd.contract import tasks

SIGN = "~"  # between the name of a stage and the number of the seed: in no other name


def name_of(stage: str, nth: int) -> str:
    """nth: of the seeds, from 1, which is the ladder's own."""
    return stage if nth == 1 else f"{stage}{SIGN}{nth}"


def nth_of(name: str) -> int:
    return int(name.partition(SIGN)[2] or 1)


def further(stages: Iterable[Mapping[str, Any]], count: int) -> list[dict[str, Any]]:
    """The stages that candidates climb under all seeds but the first. stages: as they are written
    down in a config. Without rungs, and nothing is measured again."""
    scoring = [one for one in stages if one["who"] != "baseline" and tasks.of(one["task"]).scores]
    return [
        {
            **one,
            "name": (name := name_of(one["name"], nth)),
            "of": name,
            "begin": 0.0,
            "until": 1.0,
            "who": "candidates",
            "rungs": (),
            "keep": None,
            "measure": False,
        }
        for nth in range(2, count + 1)
        for one in scoring
    ]


def scoring_stage(stages: Iterable[Mapping[str, Any]], nth: int) -> str:
    """The last one that candidates climb under the seed, which gives the score."""
    last = [one["name"] for one in stages if one["who"] != "baseline"][-1]
    return name_of(last, nth)
