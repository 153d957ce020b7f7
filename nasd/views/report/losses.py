"""Losses that candidates are judged by: as they fall (thesis, Figure 9), with the score (Figure
10), and what a cutoff by them missed (6.2)."""

import math
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from nasd.contract.readable import counted, number
from nasd.record.lifecycle import State
from nasd.views.report.drawing import (
    ACCENT,
    BASE,
    CUT,
    FAINT,
    INK,
    MOST_PANELS,
    MUTED,
    PAPER,
    SMALL,
    Drawing,
    Mark,
    apart,
    key,
    label_marks,
    lay_out,
    outer_labels,
    panels_on,
    some_of,
    told,
)
from nasd.views.report.findings import Findings
from nasd.views.report.rows import CandidateRow, CutoffRow


def curves(findings: Findings) -> Drawing:
    mlm = "MLM " if findings.mlm_stages else ""
    drawing = Drawing("curves", f"{mlm}learning curves, and the cutoff", thesis="Figure 9")
    drawing.title = drawing.title[:1].upper() + drawing.title[1:]
    found = sorted({row.generation for row in findings.curves if row.generation is not None})
    if not found:
        drawing.missing = _no_curve(findings)
        return drawing
    charted = [row for row in findings.cutoffs if row.stage in findings.charted]
    decided = {row.generation for row in charted}
    generation = max((g for g in found if g in decided), default=found[-1])
    figure, (axes,) = panels_on(1, 1, height=4.6)
    lines = _draw_curves(findings, axes, generation, drawing)
    _frame_curves(findings, axes, generation)
    axes.set_xlabel(_steps(findings))
    axes.set_ylabel(_loss(findings, findings.charted[0]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    _mark_stages(findings, axes, generation)
    lay_out(figure)
    _label_ends(axes, lines)
    drawing.figure = figure
    cutoffs = [row for row in charted if row.generation == generation]
    drawing.title += f": generation {generation}"
    failed = [
        row.name
        for row in findings.candidates
        if row.generation == generation and row.state == State.FAILED
    ]
    drawing.caption = f"{_curve_key(findings)} Numbers name the candidates."
    if failed:
        one = len(failed) == 1
        drawing.caption += (
            f" Without candidate{'' if one else 's'} {', '.join(failed)}, which failed and"
            f" left no whole curve."
        )
    if not cutoffs:
        drawing.caption += " No cutoff has been made in this generation."
    first = [row for row in cutoffs if row.stage == cutoffs[0].stage]
    kept = {row.candidate for row in first if row.kept}
    drawing.alternative = (
        f"Line plot of the {mlm}evaluation loss of {counted(len(lines), 'candidate')} of generation"
        f" {generation} against steps."
        + (
            f" At the cutoff behind {first[0].stage}, {len(kept)} of"
            f" {max(row.reached for row in first)} went on{_last(first)}."
            if cutoffs
            else ""
        )
    )
    return drawing


def all_curves(findings: Findings) -> Drawing:
    drawing = Drawing("curves-all", "Learning curves of all generations")
    found = sorted({row.generation for row in findings.curves if row.generation is not None})
    if not found:
        drawing.missing = _no_curve(findings)
        return drawing
    if len(found) == 1:
        drawing.missing = "Only one generation has curves yet: they are in the figure above."
        return drawing
    panels = some_of(found, MOST_PANELS)
    columns = min(len(panels), 3 if len(panels) <= 9 else 4)
    figure, grid = panels_on(math.ceil(len(panels) / columns), columns, height=2.2, share=True)
    for axes, generation in zip(grid, panels, strict=False):
        _draw_curves(findings, axes, generation, drawing, width=0.6)
        axes.set_title(f"generation {generation}")
        for stage in (one for one in findings.charted if one in findings.cutoff_stages):
            if generation in {row.generation for row in findings.cutoffs if row.stage == stage}:
                axes.axvline(findings.stage_end(stage), color=MUTED, lw=0.8, ls=(0, (4, 3)))
        axes.xaxis.set_major_locator(MaxNLocator(3))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    _frame_curves(findings, grid[0], *panels)
    outer_labels(
        grid[: len(panels)],
        columns,
        _steps(findings),
        _loss(findings, findings.charted[0]),
    )
    drawing.figure = figure
    drawing.caption = _curve_key(findings) + " Generation 0 climbs without a cutoff."
    drawing.alternative = (
        f"{counted(len(panels), 'line plot')}, one a generation, of evaluation losses against"
        " steps."
    )
    return drawing


def _no_curve(findings: Findings) -> str:
    stage = "an MLM stage" if findings.mlm_stages else findings.charted[0]
    return f"No candidate has finished {stage} yet: there is no learning curve."


def _steps(findings: Findings) -> str:
    return f"optimizer steps{', the MLM stages in a row' if findings.mlm_stages else ''}"


def _loss(findings: Findings, stage: str) -> str:
    words, unit = findings.loss_words(stage)
    return f"{words.replace('loss', 'evaluation loss')}, {unit}"


def _curve_key(findings: Findings) -> str:
    text = "Solid: went on behind the cutoff (bold: survived the selection). Dotted: cut."
    if findings.baseline_loss is not None:
        return text + " Dashed orange: the baseline, behind the training of its MLM head."
    if not findings.mlm_stages:
        return text
    return text + " The baseline is not trained on MLM, so it has no curve here."


def _draw_curves(
    findings: Findings, axes: Axes, generation: int, drawing: Drawing, width: float = 1.0
) -> list[tuple[CandidateRow, float, float, str]]:
    """The lines, and where each ends: (candidate, step, loss, colour)."""
    if findings.baseline_loss is not None:
        axes.axhline(findings.baseline_loss, color=BASE, lw=1, ls=(0, (4, 3)))
    ends, tips, lines = [], list[str](), list[Sequence[tuple[float, float]]]()
    style: dict[str, list[Any]] = {"colors": [], "linewidths": [], "linestyles": []}
    survived = {m.candidate for m in findings.members_of(generation) if m.survives}
    by_candidate: dict[int, list[tuple[float, float]]] = {}
    for one in findings.curves_of(generation):
        by_candidate.setdefault(one.candidate, []).append((one.step, one.loss))
    for candidate, points in sorted(
        by_candidate.items(), key=lambda item: not findings.by_id[item[0]].cut
    ):
        row = findings.by_id[candidate]
        colour = CUT if row.cut else ACCENT
        words, _ = findings.loss_words(findings.charted[0])
        tip = told(row, f"last {words} {number(points[-1][1], 3)}")
        if len(points) == 1:
            drawing.mark(axes, *points[0], tip, marker="o", markersize=3, color=colour)
        else:
            tips.append(tip)
            lines.append(points)
            style["colors"].append(colour)
            strong = 1.9 if candidate in survived else 1.0
            style["linewidths"].append(1.1 if row.cut else width * strong)
            style["linestyles"].append((0, (1, 1.6)) if row.cut else "-")
        ends.append((row, *points[-1], colour))
    drawing.lines(axes, lines, tips, capstyle="round", **style)
    return ends


def _frame_curves(findings: Findings, axes: Axes, *generations: int) -> None:
    """So that what happens at the cutoff can be seen: the first steps may lie above the frame."""
    rows = [row for generation in generations for row in findings.curves_of(generation)]
    losses = [row.loss for row in rows]
    if findings.baseline_loss is not None:
        losses.append(findings.baseline_loss)
    first = findings.charted[0]
    ends: dict[int, float] = {}
    for row in rows:
        if row.stage == first:
            ends[row.candidate] = row.loss
    lowest, highest = min(losses), max(losses)
    interesting = max(ends.values(), default=highest)
    top = min(highest, lowest + 3.0 * max(interesting - lowest, 1e-3))
    margin = 0.04 * (top - lowest or 1.0)
    axes.set_ylim(lowest - margin, top + margin)
    axes.set_xlim(0, 1.05 * max(findings.stage_end(findings.charted[-1]), 1))


def _mark_stages(findings: Findings, axes: Axes, generation: int) -> None:
    """Names of the stages above, and the cutoffs."""
    for stage in findings.charted:
        start, end = findings.offsets[stage], findings.stage_end(stage)
        if end == start:
            continue
        axes.annotate(
            stage,
            ((start + end) / 2, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(0, 4),
            textcoords="offset points",
            ha="center",
            color=MUTED,
            fontsize=8,
        )
        rows = [r for r in findings.cutoffs if (r.generation, r.stage) == (generation, stage)]
        if stage != findings.charted[-1]:
            axes.axvline(end, color=INK if rows else FAINT, lw=0.9, ls=(0, (4, 3)))
        if rows:
            kept = sum(row.kept for row in rows)
            axes.annotate(
                f"cutoff: {kept} of {max(row.reached for row in rows)} go on"
                + _last(rows, ",\nthe last with a loss of"),
                (end, 1.0),
                xycoords=("data", "axes fraction"),
                xytext=(5, -3),
                textcoords="offset points",
                va="top",
                fontsize=8,
                in_layout=False,
            )


def _last(rows: Sequence[CutoffRow], words: str = "; the last one kept had a loss of") -> str:
    """The threshold of a cutoff that was made by losses alone."""
    threshold = rows[0].threshold
    return "" if threshold is None else f"{words} {number(threshold, 3)}"


def _label_ends(axes: Axes, lines: Sequence[tuple[CandidateRow, float, float, str]]) -> None:
    """Each line's candidate beside its end; those that end together are pushed apart."""
    height = axes.get_window_extent().height
    low, high = axes.get_ylim()
    aside = 0.006 * (axes.get_xlim()[1] - axes.get_xlim()[0])
    gap = 1.15 * SMALL * axes.figure.dpi / 72 / height * (high - low)
    for end in sorted({x for _, x, _, _ in lines}):
        here = sorted((one for one in lines if one[1] == end), key=lambda one: one[2])
        for (row, x, y, colour), at in zip(
            here, apart([one[2] for one in here], gap, low + gap), strict=True
        ):
            axes.annotate(
                row.name,
                (x, y),
                xytext=(x + aside, at),
                textcoords="data",
                va="center",
                ha="left",
                fontsize=SMALL,
                color=colour,
                annotation_clip=False,
                in_layout=False,
            )


def correlation(findings: Findings) -> Drawing:
    title = "MLM loss and score" if findings.mlm_stages else "Loss and score"
    drawing = Drawing("correlation", title, thesis="Figure 10")
    if not findings.losses:
        drawing.missing = (
            f"No candidate has both {'an MLM' if findings.mlm_stages else 'a'} loss and a score"
            " yet: nothing can be correlated."
        )
        return drawing
    stages = [stage for stage in findings.judged if any(r.stage == stage for r in findings.losses)]
    figure, grid = panels_on(1, len(stages), height=3.6, share_y=True)
    cut = {row.generation for row in findings.cutoffs}
    for axes, stage in zip(grid, stages, strict=True):
        found = [row for row in findings.losses if row.stage == stage]
        if findings.baseline.quality is not None:
            axes.axhline(findings.baseline.quality, color=BASE, lw=1, ls=(0, (4, 3)))
        points: dict[str, list[Mark]] = {"o": [], "^": []}
        for row in found:
            candidate = findings.by_id[row.candidate]
            colour = CUT if candidate.cut else ACCENT
            tip = told(candidate, f"loss {number(row.loss, 3)} at the end of {stage}")
            face = colour if row.generation in cut else PAPER
            shape = "^" if candidate.cut else "o"
            points[shape].append(Mark(row.loss, row.quality, tip, colour, face))
        for shape, marks in points.items():
            drawing.marks(axes, marks, shape, 4.5)
        where = "at the cutoff" if stage in findings.cutoff_stages else "at the end"
        if stage in findings.cutoff_stages or stage == findings.judged[-1]:
            axes.set_title(f"{where} ({stage})")
        else:
            axes.set_title(stage)
        axes.set_xlabel(_loss(findings, stage))
        n = len(found)
        said = [
            f"{row.method} {_estimate(row.value, row.low, row.high)}"
            for row in findings.correlations
            if (row.stage, row.among) == (stage, "all scored") and row.value is not None
        ]
        alike = min(len({row.loss for row in found}), len({row.quality for row in found})) < 2
        why = "all are alike" if alike and n > 1 else "too few to correlate"
        text = "\n".join([*said, f"n = {n}"]) if said else f"n = {n}: {why}"
        axes.set_title(text, loc="right", fontweight="normal", fontsize=8)
    grid[0].set_ylabel(findings.quality_label)
    legend: list[tuple[str, dict[str, Any]]] = []
    if any(row.generation in cut for row in findings.losses):
        legend.append(("went on behind a cutoff", {"marker": "o", "color": ACCENT}))
    if any(row.generation not in cut for row in findings.losses):
        style = {"marker": "o", "color": ACCENT, "markerfacecolor": PAPER}
        legend.append(("generation without a cutoff", style))
    if any(findings.by_id[row.candidate].cut for row in findings.losses):
        legend.append(("cut, trained all the same", {"marker": "^", "color": CUT}))
    if findings.baseline.quality is not None:
        legend.append(
            (
                findings.baseline.name,
                {"linestyle": (0, (4, 3)), "marker": "", "color": BASE, "lw": 1},
            )
        )
    key(figure, legend)
    drawing.figure = figure
    drawing.caption = (
        "Each point is a scored candidate. In brackets: 95 % intervals, Fisher's for Pearson,"
        " Bonett and Wright's for Spearman. Where a cutoff has chosen by this very loss, the range"
        " is narrower and the correlation weaker than among all offspring; generations without a"
        " cutoff are free of that (the table below tells them apart). A single point far off can"
        " carry Pearson's; Spearman's goes by ranks alone."
    )
    drawing.alternative = "Scatter plots of quality against evaluation losses. " + " ".join(
        f"{row.stage}, {row.method}: {_estimate(row.value, row.low, row.high)}, n = {row.n}."
        for row in findings.correlations
        if row.among == "all scored"
    )
    return drawing


def _estimate(value: float | None, low: float | None, high: float | None) -> str:
    if value is None or low is None or high is None:
        return "not known"
    return f"{number(value, 2)} [{number(low, 2)}, {number(high, 2)}]"


def missed(findings: Findings) -> Drawing:
    drawing = Drawing("missed", "What the cutoff missed", thesis="6.2")
    if not findings.missed:
        drawing.missing = (
            "No candidate that a cutoff stopped was trained to its end, so nobody knows what it"
            " missed."
            if any(not row.kept for row in findings.cutoffs)
            else "No cutoff has stopped anybody yet."
        )
        return drawing
    groups = sorted({(row.generation, row.stage) for row in findings.missed})[-3:]
    figure, grid = panels_on(1, len(groups), height=3.6, share_y=True)
    for axes, (generation, stage) in zip(grid, groups, strict=True):
        rows = [
            r
            for r in findings.cutoffs
            if (r.generation, r.stage) == (generation, stage) and r.quality is not None
        ]
        if findings.baseline.quality is not None:
            axes.axhline(findings.baseline.quality, color=BASE, lw=1, ls=(0, (4, 3)))
        if (threshold := rows[0].threshold) is not None:
            axes.axvline(threshold, color=INK, lw=0.9, ls=(0, (4, 3)))
        for row in rows:
            drawing.mark(
                axes,
                row.loss,
                row.quality or 0.0,
                told(findings.by_id[row.candidate], f"loss {number(row.loss, 3)} at the cutoff"),
                marker="o" if row.kept else "^",
                markersize=5,
                color=ACCENT if row.kept else CUT,
            )
        axes.set_title(f"generation {generation}")
        axes.set_xlabel(f"{findings.loss_words(stage)[0]} at the cutoff ({stage})")
    grid[0].set_ylabel(findings.quality_label)
    key(
        figure,
        [
            ("kept", {"marker": "o", "color": ACCENT}),
            ("cut, trained all the same", {"marker": "^", "color": CUT}),
            ("cutoff", {"marker": "", "linestyle": (0, (4, 3)), "color": INK, "lw": 0.9}),
            (
                findings.baseline.name,
                {"marker": "", "linestyle": (0, (4, 3)), "color": BASE, "lw": 1},
            ),
        ],
    )
    lay_out(figure)
    for axes, (generation, stage) in zip(grid, groups, strict=True):
        rows = [
            r
            for r in findings.cutoffs
            if (r.generation, r.stage) == (generation, stage) and r.quality is not None
        ]
        at = [(r.loss, r.quality or 0.0) for r in rows]
        label_marks(axes, [(r.loss, r.quality or 0.0, str(r.candidate)) for r in rows], at)
    drawing.figure = figure
    would = [row for row in findings.missed if row.would_survive]
    drawing.caption = (
        "Candidates left of the dashed line went on; those right of it were cut and trained to"
        " their end afterwards. A triangle above a circle has a higher quality than one that went"
        " on; whether it would have survived the selection, which weighs compression too, the"
        " table says."
    )
    drawing.alternative = (
        "Scatter plot of quality against the loss at the cutoff:"
        f" {counted(len(findings.missed), 'cut candidate')} trained to the end, of which"
        f" {len(would)} would have survived the selection."
    )
    return drawing
