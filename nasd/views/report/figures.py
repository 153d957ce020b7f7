"""All figures, in the order of the page."""

from collections.abc import Callable, Iterator

from nasd.views.report.descent import family, helped
from nasd.views.report.drawing import Drawing, styled
from nasd.views.report.findings import Findings
from nasd.views.report.fronts import pareto, volume
from nasd.views.report.losses import all_curves, correlation, curves, missed
from nasd.views.report.objectives import pairs, parallel, shown
from nasd.views.report.spending import cost
from nasd.views.report.steps import rates, untrained


def _chosen(findings: Findings) -> list[Callable[[Findings], Drawing]]:
    """Those that every search has, and those of what this one's config asks for."""
    config = findings.config
    of_all = [parallel, pairs] if shown(findings) else []
    of_losses = [curves, all_curves, correlation, missed] if findings.judged else []
    found: list[Callable[[Findings], Drawing]] = [
        pareto,
        *of_all,
        volume,
        *of_losses,
        helped,
        family,
        cost,
    ]
    if config["variation"].get("adaptive", False):
        found.append(rates)
    if config["population"].get("screened", 1) > 1:
        found.append(untrained)
    return found


def drawings(findings: Findings) -> Iterator[Drawing]:
    """All figures of a report."""
    for draw in _chosen(findings):
        with styled(draw.__name__):
            yield draw(findings)
