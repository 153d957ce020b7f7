"""How far steps lead: pure."""

import statistics

from nasd.contract.config import SearchSpace, Variation
from nasd.contract.errors import NasdError
from nasd.contract.genotype import Backbone, Genotype, parameters
from nasd.search.variation.breeding import initial_population

DRAWN = 32  # mutants, by which a number of steps is judged
APART = 4  # between two numbers of steps
MOST = 64


def steps_to(
    share: float, baseline: Genotype, backbone: Backbone, space: SearchSpace, variation: Variation
) -> int:
    """From how many steps on half of the baseline's mutants, as `variation` draws them, have at
    most this share of its parameters; MOST where that takes more."""
    most = share * parameters(baseline, backbone)
    for steps in range(APART, MOST, APART):
        drawn = variation.model_copy(update={"steps": (steps, steps)})
        try:
            mutants = initial_population(baseline, space, drawn, 1, 0, DRAWN)
        except NasdError:  # none of them changes anything
            continue
        if statistics.median(parameters(one.genotype, backbone) for one in mutants) <= most:
            return steps
    return MOST
