"""Limits that an experiment sets to its objectives, as people write them: `quality >= 60`, in the
objective's unit, or `quality >= 90 % of the baseline`.

What they do to selection is said in nasd.search.pareto (constraint domination, Deb et al. 2002).
"""

import re
from dataclasses import dataclass
from functools import cache
from typing import Literal

from nasd.contract.objectives import OBJECTIVES
from nasd.contract.readable import shown

FORM = re.compile(
    r"\s*(?P<name>[a-z][a-z0-9_]*)\s*(?P<sign><=|>=)\s*(?P<number>\d+(\.\d+)?(e\d{1,2})?)"
    r"(?P<share>\s*%\s*of\s+(the\s+)?baseline)?\s*"
)
EXAMPLE = "`quality >= 60`, or `quality >= 90 % of the baseline`"


@dataclass(frozen=True, slots=True)
class Limit:
    """bound: in the objective's unit, or with `relative` a share of the baseline's value."""

    objective: str
    sign: Literal["<=", ">="]
    bound: float
    relative: bool

    @classmethod
    @cache
    def parse(cls, text: str) -> "Limit":
        """Raises ValueError with what is wrong."""
        found = FORM.fullmatch(text)
        if found is None:
            raise ValueError(f"{shown(text)} is no limit; write it as {EXAMPLE}")
        if found["name"] not in OBJECTIVES:
            known = ", ".join(OBJECTIVES)
            raise ValueError(f"there is no {shown(found['name'])} to limit; take of {known}")
        relative = found["share"] is not None
        number = float(found["number"]) / (100 if relative else 1)
        return cls(found["name"], "<=" if found["sign"] == "<=" else ">=", number, relative)

    def missed(self, value: float, baseline: float | None) -> float:
        """By what share of the limit a value breaks it; 0 where it does not. baseline: the
        baseline's value; where that is unknown, nobody breaks a limit that goes by it."""
        if self.relative and baseline is None:
            return 0.0
        bound = self.bound * baseline if self.relative and baseline is not None else self.bound
        short = bound - value if self.sign == ">=" else value - bound
        return max(0.0, short) / max(abs(bound), 1e-9)
