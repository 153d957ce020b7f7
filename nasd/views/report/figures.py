"""All figures, in the order of the page."""

from collections.abc import Callable, Iterator

from nasd.views.report.descent import family, helped
from nasd.views.report.drawing import Drawing, styled
from nasd.views.report.findings import Findings
from nasd.views.report.fronts import pareto, volume
from nasd.views.report.losses import all_curves, correlation, curves, missed
from nasd.views.report.spending import cost
from nasd.views.report.steps import rates, untrained

DRAW: tuple[Callable[[Findings], Drawing], ...] = (
    pareto,
    volume,
    curves,
    all_curves,
    correlation,
    missed,
    helped,
    family,
    cost,
)


def drawings(findings: Findings) -> Iterator[Drawing]:
    """Those that every search has, and those of what this one's config asks for."""
    config = findings.config
    more = {
        rates: config["variation"].get("adaptive", False),
        untrained: config["population"].get("screened", 1) > 1,
    }
    for draw in (*DRAW, *(one for one, asked in more.items() if asked)):
        with styled(draw.__name__):
            yield draw(findings)
