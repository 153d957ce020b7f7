"""Fronts: one a generation (thesis, Figure 8), and the area that they dominate."""

import math
from collections.abc import Sequence
from itertools import pairwise
from statistics import quantiles
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from nasd.contract.objectives import DEFAULT
from nasd.contract.readable import counted, hours, number, of_baseline, share_of_baseline, signed
from nasd.search.objectives import OBJECTIVES
from nasd.search.pareto import ranks
from nasd.views.report.drawing import (
    ACCENT,
    BASE,
    FAINT,
    MOST_PANELS,
    MUTED,
    PAPER,
    RANKS,
    SIZE,
    SMALL,
    Drawing,
    Mark,
    key,
    label_marks,
    lay_out,
    outer_labels,
    panels_on,
    some_of,
    told,
)
from nasd.views.report.findings import Findings
from nasd.views.report.rows import CandidateRow, MemberRow

SHAPES = {"parent": ("o", 5.5), "offspring": ("s", 5.0)}  # and their size in points


def pareto(findings: Findings) -> Drawing:
    drawing = Drawing("pareto", "Pareto fronts per generation", thesis="Figure 8")
    shown = [
        one.generation
        for one in findings.generations
        if any(m.quality is not None for m in findings.members_of(one.generation))
    ]
    if not shown:
        drawing.missing = "Nobody is scored yet: the first front stands when candidates are."
        return drawing
    panels = some_of(shown, MOST_PANELS)
    columns = {1: 1, 2: 2, 3: 3, 4: 2}.get(len(panels), 3 if len(panels) <= 9 else 4)
    rows = math.ceil(len(panels) / columns)
    figure, grid = panels_on(rows, columns, height=3.4 if columns < 3 else 2.6, share=True)
    for axes in grid[: len(panels)]:
        _baseline_cross(axes, findings)
    ever = best_ever(findings)
    for axes, generation in zip(grid, panels, strict=False):
        _staircase(axes, ever, color=MUTED, lw=0.7, ls=":", zorder=1.5)
        members = findings.members_of(generation)
        row = next(one for one in findings.generations if one.generation == generation)
        axes.set_title(f"generation {generation}")
        for role, (shape, size) in SHAPES.items():
            marks = [
                _member(m, findings.by_id[m.candidate])
                for m in sorted(members, key=lambda m: -(m.rank or 0))
                if m.role == role and m.quality is not None
            ]
            drawing.marks(axes, marks, shape, size, zorder=4)
        _staircase(axes, [m for m in members if m.rank == 0], color=RANKS[0], lw=0.7, zorder=2)
        away = ", ".join(
            f"{amount} {what}"
            for what, amount in (("cut", row.cut), ("failed", row.failed))
            if amount
        )
        if row.hypervolume is None:
            away = f"not selected yet{', ' if away else ''}{away}"
        if away:
            axes.set_title(away, loc="right", color=MUTED, fontweight="normal", fontsize=SMALL)
    outer_labels(grid[: len(panels)], columns, SIZE, findings.quality_label)
    floor = _floor([q for row in findings.candidates if (q := row.quality) is not None])
    far = _below(findings, grid, panels, floor)
    highest = max((m.rank or 0 for m in findings.members), default=0)
    key(
        figure,
        [
            ("rank 0", {"marker": "s", "color": RANKS[0]}),
            *(
                (f"{rank}", {"marker": "s", "color": RANKS[rank]})
                for rank in range(1, min(highest, 3) + 1)
            ),
            *([("4 and more", {"marker": "s", "color": RANKS[4]})] if highest > 3 else []),
            ("parent", {"marker": "o", "color": MUTED}),
            ("offspring", {"marker": "s", "color": MUTED}),
            ("does not survive", {"marker": "s", "color": MUTED, "markerfacecolor": PAPER}),
            (findings.baseline.name, {"marker": "*", "color": BASE, "markersize": 9}),
            ("best ever scored", {"marker": "", "linestyle": ":", "lw": 1.2, "color": MUTED}),
        ],
    )
    lay_out(figure)
    for axes, generation in zip(grid, panels, strict=False):
        best = [m for m in findings.members_of(generation) if m.rank == 0]
        all_at = [
            (share_of_baseline(m.size), m.quality)
            for m in findings.members_of(generation)
            if m.quality is not None
        ]
        if findings.baseline.quality is not None:
            all_at.append((100.0, findings.baseline.quality))
        named = [(share_of_baseline(m.size), m.quality or 0.0, str(m.candidate)) for m in best]
        label_marks(axes, named, all_at)
    drawing.figure = figure
    drawing.caption = (
        "Each panel is one selection: parents and scored offspring of a generation, by quality and"
        " parameters, both better to the upper left. Numbers name the candidates of rank 0; the"
        " line"
        " bounds what they dominate. Dotted: the front of all that were ever scored, whose members"
        f" the table names. Dashed: the {findings.baseline.name}; what lies above and to the left"
        " of it is better in both." + (" Arrows: far below the frame." if far else "")
    )
    if any(m.rank is None and m.quality is not None for m in findings.members):
        drawing.caption += " Grey: not selected among, yet or at all."
    if len(panels) < len(shown):
        drawing.caption += (
            f" {len(panels)} of {len(shown)} generations are shown; members.csv holds all."
        )
    drawing.alternative = (
        f"{counted(len(panels), 'scatter plot')} of quality against parameters, one a generation."
        + _front_in_words(findings, shown[-1])
        + _baseline_words(findings)
    )
    return drawing


def best_ever(findings: Findings) -> list[CandidateRow]:
    """The front of all candidates ever scored, the smallest first. The baseline, which is in no
    population, stands beside it and takes nobody out of it."""
    scored = [r for r in findings.candidates if r.quality is not None and not r.is_baseline]
    points = [findings.snapshot.point(row.id) for row in scored]
    by_all = [(row, point) for row, point in zip(scored, points, strict=True) if point is not None]
    scored = [row for row, _ in by_all]
    places = ranks([point for _, point in by_all])
    best = [row for row, rank in zip(scored, places, strict=True) if rank == 0]
    return sorted(best, key=lambda row: -row.size)


def _front_in_words(findings: Findings, generation: int) -> str:
    members = [m for m in findings.members_of(generation) if m.quality is not None]
    front = sorted((m.size, m.quality or 0.0) for m in members if m.rank == 0)
    if not front:
        return f" Generation {generation} is not selected yet."
    (least, best), (most, worst) = front[0], front[-1]
    return (
        f" In generation {generation}, {len(front)} of {counted(len(members), 'candidate')} form"
        f" the front, from {of_baseline(least)} of the baseline's"
        f" parameters at quality {number(best)} to {of_baseline(most)} at {number(worst)}."
    )


def _member(member: MemberRow, row: CandidateRow) -> Mark:
    colour = MUTED if member.rank is None else RANKS[min(member.rank, 4)]
    return Mark(
        share_of_baseline(member.size),
        member.quality or 0.0,
        told(row, f"rank {member.rank}, {member.role}" if member.rank is not None else member.role),
        colour,
        FAINT if member.rank is None else colour if member.survives else PAPER,
    )


def _floor(values: Sequence[float]) -> float:
    """The lowest value that is no outlier: not three quartile distances below the lower quartile.
    A candidate that learned nothing must not squeeze all others into one line."""
    low, _, high = quantiles(values, n=4) if len(values) > 1 else (values[0],) * 3
    least = low - 3 * max(high - low, 1.0)
    return min(value for value in values if value >= least)


def _below(findings: Findings, grid: Sequence[Axes], panels: Sequence[int], floor: float) -> bool:
    """Frames the panels from the floor up; whether an arrow says that somebody lies below."""
    qualities = [row.quality for row in findings.candidates if row.quality is not None]
    if min(qualities) >= floor:
        return False
    margin = 0.06 * (max(qualities) - floor or 1.0)
    for axes, generation in zip(grid, panels, strict=False):
        axes.set_ylim(floor - 2 * margin, max(qualities) + margin)
        for member in findings.members_of(generation):
            if (member.quality or floor) < floor:
                axes.annotate(
                    f"▼ {member.candidate}: {number(member.quality)}",
                    (share_of_baseline(member.size), 0),
                    xycoords=("data", "axes fraction"),
                    xytext=(0, 2),
                    textcoords="offset points",
                    ha="center",
                    fontsize=SMALL,
                    color=MUTED,
                )
    return True


def _staircase(axes: Axes, front: Sequence[MemberRow | CandidateRow], **style: Any) -> None:
    line: list[tuple[float, float]] = []
    for at in sorted((share_of_baseline(m.size), m.quality or 0.0) for m in front):
        # By more objectives, some are behind others of the front in these two.
        if not line or at[1] > line[-1][1]:
            line.append(at)
    steps = [
        corner
        for (left, lower), (right, upper) in pairwise(line)
        for corner in ((left, lower), (right, lower), (right, upper))
    ]
    if steps:
        axes.plot(*zip(*steps, strict=True), **style)


def volume(findings: Findings) -> Drawing:
    drawing = Drawing("hypervolume", f"Hypervolume per generation and per {findings.unit[:-1]}")
    if not findings.progress:
        drawing.missing = "Nobody is scored yet: there is no front to measure."
        return drawing
    figure, (left, right) = panels_on(1, 2, height=2.9, share_y=True)
    base = findings.baseline_hypervolume
    for axes in (left, right):
        axes.grid(axis="y", color=FAINT, lw=0.5)
        axes.set_axisbelow(True)
        if base is not None:
            axes.axhline(base, color=BASE, lw=1, ls=(0, (4, 3)))
    done = [one for one in findings.generations if one.hypervolume is not None]
    left.plot(
        [one.generation for one in done],
        [one.hypervolume or 0.0 for one in done],
        color=ACCENT,
        lw=1.4,
    )
    points = [
        Mark(
            one.generation,
            one.hypervolume or 0.0,
            f"generation {one.generation}: hypervolume {number(one.hypervolume)}, gain"
            f" {signed(one.gain)}, {hours(one.gpu_hours)} {findings.unit} by then",
            ACCENT,
            ACCENT,
        )
        for one in done
    ]
    drawing.marks(left, points, "o", 5)
    left.set_xlabel("generation")
    left.set_ylabel(_unit(findings))
    left.xaxis.set_major_locator(MaxNLocator(integer=True))
    left.set_title("of parents and offspring, at selection")
    x = [one.gpu_hours for one in findings.progress]
    y = [one.hypervolume for one in findings.progress]
    right.step([*x, findings.gpu_hours], [*y, y[-1]], where="post", color=ACCENT, lw=1.4)
    ends = [one.gpu_hours for one in done]
    right.vlines(ends, 0, 0.03, transform=right.get_xaxis_transform(), color=MUTED, lw=0.8)
    right.set_title("of all scored so far, as each score came in")
    right.set_xlabel(f"{findings.unit} spent (short bars: ends of generations)")
    right.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
    lay_out(figure)
    if base is not None:
        right.annotate(
            "baseline alone",
            (1, base),
            xycoords=("axes fraction", "data"),
            xytext=(0, 3),
            textcoords="offset points",
            color=BASE,
            ha="right",
            fontsize=8,
        )
    drawing.figure = figure
    drawing.caption = (
        f"{_what(findings)}: it grows when the"
        " front moves out or spreads. The baseline itself is in no population."
    )
    drawing.alternative = (
        "Two line plots. "
        + (
            f"Hypervolume goes from {number(done[0].hypervolume)} in generation"
            f" {done[0].generation} to {number(done[-1].hypervolume)} in generation"
            f" {done[-1].generation}. "
            if done
            else "No generation is selected yet. "
        )
        + f"Of all scored so far it is {number(y[-1])} after {hours(findings.gpu_hours)}"
        + f" {findings.unit}."
        + ("" if base is None else f" The baseline alone has {number(base)}.")
    )
    return drawing


def _unit(findings: Findings) -> str:
    units = " x ".join(OBJECTIVES[name].unit for name in findings.snapshot.experiment.objectives)
    return "hypervolume, % x compression" if units == "% x x" else f"hypervolume, {units}"


def _what(findings: Findings) -> str:
    names = findings.snapshot.experiment.objectives
    if names == DEFAULT:
        return (
            "The area that a population dominates above no quality and no compression (the"
            " baseline's parameters over the candidate's)"
        )
    return (
        f"What a population dominates of all {len(names)} objectives ({', '.join(names)}), above"
        " none of what is to be high and twice the baseline's of what is to be low"
    )


def _baseline_cross(axes: Axes, findings: Findings) -> None:
    quality = findings.baseline.quality
    if quality is None:
        return
    for x, y, across in (  # not axhline, which asks how far all the marks of all panels reach
        ([0, 1], [quality, quality], axes.get_yaxis_transform()),
        ([100.0, 100.0], [0, 1], axes.get_xaxis_transform()),
    ):
        axes.plot(x, y, transform=across, color=BASE, lw=0.8, ls=(0, (4, 3)), zorder=1)
    axes.plot([100.0], [quality], marker="*", markersize=9, color=BASE, linestyle="none", zorder=3)


def _baseline_words(findings: Findings) -> str:
    base = findings.baseline
    return "" if base.quality is None else f" The {base.name} has quality {number(base.quality)}."
