"""Searches by other objectives than the thesis's two: all of them at once, and each pair."""

from collections.abc import Sequence
from functools import partial
from itertools import combinations

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

from nasd.contract.objectives import DEFAULT
from nasd.contract.readable import counted, number
from nasd.search.objectives import OBJECTIVES, Objective
from nasd.views.report.drawing import (
    BASE,
    FAINT,
    INK,
    MUTED,
    PAPER,
    RANKS,
    SMALL,
    Drawing,
    Mark,
    key,
    lay_out,
    panels_on,
    told,
)
from nasd.views.report.findings import Findings
from nasd.views.report.rows import CandidateRow

Values = dict[str, float]
FRONT, BEHIND = RANKS[0], RANKS[4]


def shown(findings: Findings) -> bool:
    """Whether there is more to see than the fronts by quality and parameters."""
    return set(findings.snapshot.experiment.objectives) != set(DEFAULT)


def _axes(findings: Findings) -> list[Objective]:
    return [OBJECTIVES[name] for name in findings.snapshot.experiment.objectives]


def _scored(findings: Findings) -> list[tuple[CandidateRow, Values]]:
    """Whoever has a value of each, the front last; the baseline, or its best control, behind it."""
    snap, found = findings.snapshot, []
    for row in findings.candidates:
        number = snap.rival.id if row.is_baseline else row.id
        if snap.point(number) is not None:
            values = {one.name: snap.value(number, one.name) for one in _axes(findings)}
            found.append((row, {name: one for name, one in values.items() if one is not None}))
    return sorted(found, key=lambda one: (one[0].is_baseline, one[0].front, one[0].id))


def _colour(row: CandidateRow) -> str:
    return BASE if row.is_baseline else FRONT if row.front else BEHIND


def _tip(row: CandidateRow, values: Values) -> str:
    where = "on the front" if row.front and not row.is_baseline else "scored"
    told_of = ", ".join(f"{name} {OBJECTIVES[name].shown(one)}" for name, one in values.items())
    return told(row, f"{where}: {told_of}")


def _key(findings: Findings, marker: str) -> list[tuple[str, dict[str, object]]]:
    line = {"marker": marker, "linestyle": "-" if not marker else "none", "lw": 1.5}
    return [
        ("front of all ever scored", {**line, "color": FRONT}),
        (
            "behind it",
            {**line, "color": BEHIND, "markeredgecolor": MUTED, "markerfacecolor": PAPER},
        ),
        (findings.baseline.name, {**line, "color": BASE}),
    ]


def parallel(findings: Findings) -> Drawing:
    axes_of = _axes(findings)
    drawing = Drawing("parallel", f"All {len(axes_of)} objectives at once")
    scored = _scored(findings)
    if not scored:
        drawing.missing = "Nobody is scored yet by all objectives."
        return drawing
    figure, (axes,) = panels_on(1, 1, height=3.4)
    ends = [_span(one, [values[one.name] for _, values in scored]) for one in axes_of]
    for row, values in scored:
        heights = [
            (values[one.name] - worst) / (best - worst)
            for one, (worst, best) in zip(axes_of, ends, strict=True)
        ]
        drawing_of = _colour(row)
        ahead = row.front or row.is_baseline
        axes.plot(
            range(len(axes_of)),
            heights,
            color=drawing_of,
            lw=1.4 if ahead else 0.7,
            ls=(0, (4, 3)) if row.is_baseline else "-",
            zorder=3 if ahead else 2,
        )
        if ahead:
            name = row.name if row.is_baseline else str(row.id)
            marks = [
                Mark(float(place), height, _tip(row, values), drawing_of, drawing_of)
                for place, height in enumerate(heights)
            ]
            drawing.marks(axes, marks, "o", 3.5, zorder=4)
            axes.annotate(
                name,
                (len(axes_of) - 1, heights[-1]),
                xytext=(6, -2.5),
                textcoords="offset points",
                fontsize=SMALL,
                color=drawing_of,
            )
    for place, (one, (worst, best)) in enumerate(zip(axes_of, ends, strict=True)):
        axes.axvline(place, color=MUTED, lw=0.7, zorder=1)
        for height, value, at in ((1, best, "bottom"), (0, worst, "top")):
            axes.annotate(
                one.shown(value),
                (place, height),
                xytext=(0, 4 if at == "bottom" else -4),
                textcoords="offset points",
                ha="center",
                va=at,
                fontsize=8,
                color=INK,
            )
    axes.set_xticks(range(len(axes_of)), [one.title for one in axes_of])
    axes.tick_params(axis="x", length=0, pad=14, labelsize=8.5, labelcolor=INK)
    axes.set_yticks([])
    axes.set_ylim(-0.04, 1.1)
    axes.set_xlim(-0.3, len(axes_of) - 0.7)
    for spine in axes.spines.values():
        spine.set_visible(False)
    key(figure, _key(findings, ""))
    lay_out(figure)
    front = [one for one in scored if one[0].front and not one[0].is_baseline]
    drawing.figure = figure
    drawing.caption = (
        "A line is a candidate, an axis an objective, from the worst value that was scored below to"
        " the best above. Nobody is better than a candidate of the front along all of them at once;"
        " lines that cross between two axes are what one objective costs in the other. Numbers at"
        " the right name the front."
    )
    drawing.alternative = (
        f"Parallel coordinates of {counted(len(scored), 'model')} along"
        f" {', '.join(one.name for one in axes_of)}; {len(front)} of them are the front."
    )
    return drawing


def pairs(findings: Findings) -> Drawing:
    axes_of = _axes(findings)
    drawing = Drawing("pairs", "Each pair of objectives")
    scored = _scored(findings)
    if not scored:
        drawing.missing = "Nobody is scored yet by all objectives."
        return drawing
    both = list(combinations(axes_of, 2))
    columns = min(len(both), 3)
    rows = -(-len(both) // columns)
    figure, grid = panels_on(rows, columns, height=2.9)
    for axes in grid[len(both) :]:
        axes.remove()
    for axes, (upright, across) in zip(grid, both, strict=False):
        _pair(drawing, axes, upright, across, scored)
    key(figure, _key(findings, "o"))
    lay_out(figure)
    drawing.figure = figure
    drawing.caption = (
        "The same candidates by two objectives at a time, each better to the upper right: what is"
        " to be low is drawn from right to left, or from above. Who is on the front of all"
        " objectives may stand behind others by two of them."
    )
    drawing.alternative = (
        f"{counted(len(both), 'scatter plot')} of {counted(len(scored), 'model')}: "
        + "; ".join(f"{upright.name} against {across.name}" for upright, across in both)
        + "."
    )
    return drawing


def _pair(
    drawing: Drawing,
    axes: Axes,
    upright: Objective,
    across: Objective,
    scored: Sequence[tuple[CandidateRow, Values]],
) -> None:
    for row, values in scored:
        colour = _colour(row)
        edge = colour if row.front or row.is_baseline else MUTED
        face = colour if row.front or row.is_baseline else PAPER
        mark = Mark(values[across.name], values[upright.name], _tip(row, values), edge, face)
        shape, size = ("*", 9.0) if row.is_baseline else ("o", 4.5 if row.front else 3.5)
        drawing.marks(axes, [mark], shape, size, zorder=4 if row.front else 3)
    axes.set_xlabel(across.title)
    axes.set_ylabel(upright.title)
    for one, axis, invert in (
        (across, axes.xaxis, axes.invert_xaxis),
        (upright, axes.yaxis, axes.invert_yaxis),
    ):
        axis.set_major_formatter(FuncFormatter(partial(_tick, one)))
        if one.direction == "lowest":
            invert()
    axes.locator_params(nbins=5)
    axes.grid(color=FAINT, lw=0.4)
    axes.set_axisbelow(True)


def _tick(one: Objective, value: float, _: int | None) -> str:
    return one.shown(value) if value > 0 else number(value, 0)


def _span(one: Objective, values: Sequence[float]) -> tuple[float, float]:
    """The worst and the best of them, apart from each other."""
    low, high = min(values), max(values)
    if low == high:
        margin = abs(low) * 0.1 or 1.0
        low, high = low - margin, high + margin
    return (low, high) if one.direction == "highest" else (high, low)
