"""How much a model has to compute."""

from nasd.contract.readable import operations
from nasd.search.objectives.figures import figure
from nasd.search.objectives.objective import Objective

FLOP = Objective(
    name="flop",
    unit="FLOP",
    direction="lowest",
    reference=2.0,
    relative=True,
    words="floating-point operations of a forward pass",
    title="FLOP",
    value=figure("flop"),
    shown=operations,
)
