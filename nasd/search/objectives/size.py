"""What a model takes on a disk."""

from nasd.contract.readable import size
from nasd.search.objectives.figures import figure
from nasd.search.objectives.objective import Objective

BYTES_INT8 = Objective(
    name="bytes_int8",
    unit="bytes",
    direction="lowest",
    reference=2.0,
    relative=True,
    words="weights of the exported model in int8",
    title="bytes in int8",
    value=figure("bytes_int8"),
    shown=size,
)

BYTES = Objective(
    name="bytes",
    unit="bytes",
    direction="lowest",
    reference=2.0,
    relative=True,
    words="weights of the exported model in float32",
    title="bytes",
    value=figure("bytes"),
    shown=size,
)
