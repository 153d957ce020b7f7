"""Figures of a search by small steps: how the shares of the operators went, and how well the loss
of a mutant that nobody has trained tells what comes of it."""

from typing import Any

from matplotlib.ticker import MaxNLocator

from nasd.contract.readable import number
from nasd.record.lifecycle import DecisionKind
from nasd.views.report import statistics
from nasd.views.report.drawing import (
    ACCENT,
    BASE,
    RANKS,
    Drawing,
    key,
    panels_on,
)
from nasd.views.report.findings import Findings

STYLES = ("-", (0, (5, 2)), (0, (1, 1.5)))  # one for each round of the colours


def rates(findings: Findings) -> Drawing:
    """The share of each operator, generation by generation."""
    drawing = Drawing("rates", "How the shares of the operators went")
    told = {
        one.generation: one.payload["shares"]
        for one in findings.snapshot.decisions
        if one.kind is DecisionKind.BREED and "shares" in one.payload
    }
    if not told:
        drawing.missing = "The shares follow what children have gained from generation 1 on."
        return drawing
    figure, (axes,) = panels_on(1, 1, height=3.2)
    names = [name for name in next(iter(told.values())) if any(one[name] for one in told.values())]
    colours = [ACCENT, BASE, *RANKS[:3]]
    legend = []
    for index, name in enumerate(names):
        style: dict[str, Any] = {
            "color": colours[index % len(colours)],
            "linestyle": STYLES[index // len(colours)],
        }
        shares = [100 * one[name] for one in told.values()]
        axes.plot(list(told), shares, marker="o", ms=3, lw=1.2, **style)
        legend.append((name, {"marker": "", "lw": 1.2, **style}))
    axes.set_xlabel("generation")
    axes.set_ylabel("share of the small steps, %")
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    key(figure, legend)
    drawing.figure = figure
    last = sorted(told[max(told)].items(), key=lambda one: -one[1])
    drawing.caption = (
        "By what each operator's children have added to the hypervolume of their own parents:"
        " those of older generations count less, and none falls below a floor."
    )
    drawing.alternative = f"In generation {max(told)}: " + ", ".join(
        f"{name} {number(100 * share, 0)} %" for name, share in last if share
    )
    return drawing


def untrained(findings: Findings) -> Drawing:
    """Quality against the loss by which a candidate was born."""
    drawing = Drawing("untrained", "What the loss before any training tells")
    snapshot = findings.snapshot
    found = [
        (one, one.untrained, quality)
        for one in snapshot.individuals
        if one.untrained is not None and (quality := snapshot.quality(one.id)) is not None
    ]
    if not found:
        drawing.missing = (
            "None of those who were born by their loss before any training is scored yet."
        )
        return drawing
    figure, (axes,) = panels_on(1, 1, height=3.4)
    for one, loss, quality in found:
        tip = f"candidate {one.id}: loss {number(loss, 3)} untrained, quality {number(quality, 2)}"
        drawing.mark(axes, loss, quality, tip, marker="o", ms=4, color=ACCENT)
    if findings.baseline.quality is not None:
        axes.axhline(findings.baseline.quality, color=BASE, lw=1, ls=(0, (4, 3)))
        key(
            figure,
            [(findings.baseline.name, {"linestyle": (0, (4, 3)), "marker": "", "color": BASE})],
        )
    axes.set_xlabel("loss on held-out windows before any training, nats")
    axes.set_ylabel(findings.quality_label)
    drawing.figure = figure
    rank = statistics.spearman([loss for _, loss, _ in found], [value for *_, value in found])
    said = "too few to correlate" if rank is None else f"Spearman {number(rank.value, 2)}"
    drawing.caption = (
        f"Each point is a scored candidate ({len(found)}; {said}). The lower the loss, the better a"
        " mutant does before any training; those of later generations have had more of it in their"
        " line."
    )
    drawing.alternative = f"Quality against untrained loss of {len(found)} candidates: {said}."
    return drawing
