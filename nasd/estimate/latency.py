"""A latency table that nobody has measured, for what is only simulated."""

from nasd.contract import latency
from nasd.contract.config import Measure, SearchSpace
from nasd.contract.footprint import flop
from nasd.contract.genotype import Backbone, Block, FeedForward, Genotype
from nasd.contract.latency import Table
from nasd.estimate.cost import A100_TFLOPS, CPU_THREAD_TFLOPS


def supposed(space: SearchSpace, backbone: Backbone, measure: Measure) -> Table:
    """By operations, at the rate of a slot."""
    rate = measure.threads * CPU_THREAD_TFLOPS if measure.device == "cpu" else A100_TFLOPS

    def took(heads: int, *ffns: FeedForward) -> float:
        one = Genotype((Block(heads, ffns),))
        return flop(one, backbone, measure.batch, measure.tokens) / rate / 1e9

    bare = took(1)
    parts = {
        name: took(1, what) - bare
        if isinstance(what, FeedForward)
        else took(what)
        if isinstance(what, int)
        else flop(Genotype((), what.rank), backbone, measure.batch, measure.tokens) / rate / 1e9
        for name, what in latency.measured(space).items()
    }
    return Table(parts, 0.0, 1.0, {"device": "none"}, {})
