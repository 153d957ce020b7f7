"""What the keys of a config are made of: numbers with their bounds, texts, and a section."""

import json
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from nasd.contract import genotype, words
from nasd.contract.readable import shown


def plain(value: str) -> str:
    if (found := words.fault(value)) is not None:
        raise ValueError(f"the text {found}")
    return value


def _odd(value: int) -> int:
    if value % 2 == 0:
        raise ValueError(f"take an odd number, which has a middle, not {value}")
    return value


# Strict: "8" and true are no numbers, whatever Python thinks.
Whole = Annotated[int, Field(strict=True)]
Real = Annotated[float, Field(strict=True, allow_inf_nan=False)]
# Every number has a last one: beyond these nothing means anything, and what takes them on their way
# (SQLite, timers, arrays) would break there.
Seed = Annotated[Whole, Field(ge=-(2**63), le=2**63 - 1)]  # what SQLite can hold
Count = Annotated[Whole, Field(ge=1, le=10**6)]
Rows = Annotated[Whole, Field(ge=1, le=10**12)]  # of data
Places = Annotated[Whole, Field(ge=1, le=4096)]
Hours = Annotated[Real, Field(gt=0, le=10**9)]
Seconds = Annotated[Real, Field(gt=0, le=86_400)]  # a day
Minutes = Annotated[Real, Field(gt=0, le=525_600)]  # a year
Gigabytes = Annotated[Real, Field(ge=0, le=10**9)]
Size = Annotated[Whole, Field(ge=1, le=genotype.LARGEST)]
Blocks = Annotated[Whole, Field(ge=1, le=genotype.MOST_BLOCKS)]
Steps = Annotated[Whole, Field(ge=1, le=100)]
Layers = Annotated[Whole, Field(ge=2, le=genotype.MOST_LAYERS)]
Plain = Annotated[str, AfterValidator(plain)]  # of one line, without what acts on a terminal
Share = Annotated[Real, Field(gt=0.0, le=1.0)]
Kernel = Annotated[Whole, Field(ge=3, le=genotype.LONGEST_KERNEL), AfterValidator(_odd)]
Probability = Annotated[Real, Field(ge=0.0, le=1.0)]
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]


def auto_or_bool(value: Any) -> Any:
    if value != "auto" and not isinstance(value, bool):
        raise ValueError(f'take "auto", true or false, not {as_json(value)}')
    return value


def as_json(value: Any) -> str:
    return shown(value, 60, lambda known: json.dumps(known, default=str))


class Section(BaseModel):
    # The texts below the keys are what docs/config.md says of them (nasd.cli.config_reference).
    # Deferred: most commands only ask a config that was checked before.
    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)
