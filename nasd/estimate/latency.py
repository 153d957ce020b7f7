"""A latency table that nobody has measured, for what is only simulated."""

from nasd.contract import latency
from nasd.contract.config import Measure, SearchSpace
from nasd.contract.footprint import exported_bytes, flop
from nasd.contract.genotype import Backbone, Block, FeedForward, Genotype
from nasd.contract.latency import Table
from nasd.estimate.cost import A100_TFLOPS, CPU_THREAD_TFLOPS

PASS_WATTS = 50.0  # of a device at work


def measurements(genotype: Genotype, backbone: Backbone, measure: Measure) -> dict[str, float]:
    """What a stage that measures would say."""
    operations = flop(genotype, backbone, measure.batch, measure.tokens)
    seconds = operations / _rate(measure) / 1e12
    return {
        "latency_ms": 1e3 * seconds,
        "peak_memory_mb": 1.2 * exported_bytes(genotype, backbone) / 1e6,
        "energy_j": PASS_WATTS * seconds,
    }


def _rate(measure: Measure) -> float:
    return measure.threads * CPU_THREAD_TFLOPS if measure.device == "cpu" else A100_TFLOPS


def supposed(space: SearchSpace, backbone: Backbone, measure: Measure) -> Table:
    """By operations, at the rate of a slot."""
    rate = _rate(measure)

    def took(*blocks: Block, rank: int | None = None) -> float:
        one = Genotype(blocks, rank)
        return flop(one, backbone, measure.batch, measure.tokens) / rate / 1e9

    bare = took(Block(1, ()))

    def part(what: latency.Part) -> float:
        match what:
            case int():
                return took(Block(what, ()))
            case latency.Local():
                return took(Block(what.heads, (), "local"))
            case latency.Fewer():
                return took(Block(what.heads, (), remaining=what.remaining))
            case FeedForward():
                return took(Block(1, (what,))) - bare
            case latency.Convolutions():
                return took(Block(1, (), convolution=what.kernel)) - bare
            case latency.Beside():
                return took(Block(1, (), branch=what.kernel)) - bare
            case latency.Words():
                return took(rank=what.rank)

    known = latency.measured(space, backbone.window is not None)
    parts = {name: part(what) for name, what in known.items()}
    fewest = latency.fewest(space)
    return Table(parts, 0.0, 1.0, {"device": "none"}, {}, fewest)
