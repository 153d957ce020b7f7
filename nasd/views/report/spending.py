"""Where the GPU-hours went."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from nasd.contract.readable import counted, hours
from nasd.views.report.drawing import ACCENT, BASE, CUT, INK, Drawing, key, panels_on
from nasd.views.report.findings import Findings
from nasd.views.report.rows import BASELINE


def cost(findings: Findings) -> Drawing:
    drawing = Drawing("cost", f"Where the {findings.unit} went")
    if not findings.gpu_hours:
        drawing.missing = "No attempt has run yet: nothing is spent."
        return drawing
    stages = list(dict.fromkeys(row.stage for row in findings.costs))
    figure, (left, right) = panels_on(
        1, 2, height=0.9 + 0.36 * max(len(stages), len(findings.fates))
    )
    for place, stage in enumerate(stages):
        y, start = len(stages) - place, 0.0
        total = sum(row.gpu_hours for row in findings.costs if row.stage == stage)
        gone = sum(row.lost_gpu_hours for row in findings.costs if row.stage == stage)
        for row in (row for row in findings.costs if row.stage == stage):
            colour = BASE if row.who == BASELINE else ACCENT
            left.barh(y, row.gpu_hours - row.lost_gpu_hours, left=start, height=0.6, color=colour)
            start += row.gpu_hours - row.lost_gpu_hours
        left.barh(y, gone, left=start, height=0.6, color=CUT)
        _bar_label(
            left,
            total,
            y,
            _spent(total, findings.gpu_hours) + (f", {hours(gone)} lost" if gone else ""),
        )
    _bars(left, stages, "by stage", findings.unit)
    for place, fate in enumerate(findings.fates):
        y = len(findings.fates) - place
        colour = BASE if fate.fate == BASELINE else ACCENT
        right.barh(y, fate.gpu_hours, height=0.6, color=colour)
        _bar_label(right, fate.gpu_hours, y, _spent(fate.gpu_hours, findings.gpu_hours))
    _bars(
        right,
        [
            row.fate if row.fate == BASELINE else f"{row.fate} ({row.candidates})"
            for row in findings.fates
        ],
        "by what became of the candidate",
        findings.unit,
    )
    key(
        figure,
        [
            ("candidates", {"marker": "s", "color": ACCENT}),
            (BASELINE, {"marker": "s", "color": BASE}),
            ("lost to interruptions and failures", {"marker": "s", "color": CUT}),
        ],
    )
    drawing.figure = figure
    drawing.caption = (
        "Slots x hours held, of every attempt. Lost: what an attempt held that ended before its"
        " stage did, less what its newest checkpoint saved, by the pace of the stage's other"
        " attempts."
    )
    drawing.alternative = "Two bar charts. " + " ".join(
        f"{row.stage} ({row.who}): {hours(row.gpu_hours)} {findings.unit} in"
        f" {counted(row.attempts, 'attempt')}."
        for row in findings.costs
    )
    return drawing


def _spent(part: float, whole: float) -> str:
    share = 100 * part / whole
    return f"{hours(part)} ({'<1' if 0 < share < 1 else f'{share:.0f}'} %)"


def _bar_label(axes: Axes, x: float, y: float, text: str) -> None:
    axes.annotate(text, (x, y), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8)


def _bars(axes: Axes, names: Sequence[str], title: str, unit: str) -> None:
    axes.set_yticks([len(names) - place for place in range(len(names))], list(names))
    axes.set_ylim(0.4, len(names) + 0.6)
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    axes.spines["left"].set_visible(False)
    axes.set_title(title)
    axes.set_xlabel(unit)
    axes.set_xlim(0, 1.35 * axes.get_xlim()[1])  # room for the labels
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
