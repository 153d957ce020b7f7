"""What all figures share: colours, type, labels, and the sentence for a figure that cannot be.

Colours are roles (COLOURS): in the page each becomes a variable that follows light and dark, in
files it is the light one. So no two roles may share a light colour.
"""

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from io import StringIO
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.collections import Collection, LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.markers import MarkerStyle
from matplotlib.transforms import Bbox, offset_copy
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from nasd.contract.readable import number, of_baseline
from nasd.views.report.rows import CandidateRow

# role: (light, dark). Ranks go from strong to faint against either ground, in viridis' order, and
# the others are of Okabe and Ito's set: both can be told apart by the colour-blind.
COLOURS = {
    "paper": ("#ffffff", "#16191d"),
    "ink": ("#1d2126", "#e8eaed"),
    "muted": ("#5b646e", "#a0a9b4"),
    "faint": ("#d3d8de", "#3b434c"),
    "accent": ("#0072b2", "#56b4e9"),
    "baseline": ("#d55e00", "#ff9440"),
    "cut": ("#b3508a", "#e397c4"),
    "rank-0": ("#440154", "#fde725"),
    "rank-1": ("#3b528b", "#5ec962"),
    "rank-2": ("#21918c", "#2fb2ac"),
    "rank-3": ("#6bb536", "#7593dc"),
    "rank-4": ("#a9b0b8", "#77808a"),
}
LIGHT = {role: light for role, (light, _) in COLOURS.items()}
PAPER, INK, MUTED, FAINT = (LIGHT[role] for role in ("paper", "ink", "muted", "faint"))
ACCENT, BASE, CUT = LIGHT["accent"], LIGHT["baseline"], LIGHT["cut"]
RANKS = [LIGHT[f"rank-{rank}"] for rank in range(5)]  # the last one: and all behind it
WIDTH = 10.2  # inches
SMALL = 7.0  # points
MOST_PANELS = 12
SIZE = "parameters, % of the baseline's (left is smaller)"
STYLE = {
    "svg.fonttype": "none",  # text stays text
    "font.family": "sans-serif",
    "font.size": 8.5,
    "axes.titlesize": 8.5,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.titlecolor": INK,
    "axes.titley": 1.0,  # else the room above is looked for at each drawing
    "axes.labelsize": 8.5,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": "none",
    "axes.formatter.useoffset": False,
    "axes.unicode_minus": True,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "xtick.major.size": 3,
    "ytick.major.size": 3,
    "text.color": INK,
    "figure.facecolor": PAPER,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "legend.labelcolor": INK,
    "lines.solid_capstyle": "round",
}


@dataclass(frozen=True, slots=True)
class Mark:
    """A point among many. tip: what it says when pointed at. edge, face: colours."""

    x: float
    y: float
    tip: str
    edge: str
    face: str


@dataclass
class Drawing:
    """One figure. alternative: what it shows, for who cannot see it. missing: why there is none.
    thesis: what in the thesis it redraws. tips: what marks say when pointed at, by their gid."""

    name: str
    title: str
    caption: str = ""
    alternative: str = ""
    missing: str = ""
    thesis: str = ""
    figure: Figure | None = None
    tips: dict[str, str] = field(default_factory=dict)

    def mark(self, axes: Axes, x: float, y: float, tip: str, **style: Any) -> None:
        """One that says something when pointed at."""
        gid = f"tip{len(self.tips)}"
        self.tips[gid] = tip
        (line,) = axes.plot([x], [y], linestyle="none", gid=gid, **style)
        line.set_in_layout(False)  # it lies within the frame, so it takes no room of its own

    def marks(
        self, axes: Axes, marks: Sequence[Mark], shape: str, size: float, zorder: float = 2
    ) -> None:
        """Very many of a shape, as one: matplotlib takes a millisecond for each thing it draws,
        and in each of several rounds. size: in points. Who comes later lies above."""
        found = axes.scatter(
            [one.x for one in marks],
            [one.y for one in marks],
            s=size**2,
            marker=shape,
            edgecolors=[one.edge for one in marks] if MarkerStyle(shape).is_filled() else None,
            facecolors=[one.face for one in marks],
            linewidths=1.0,
            zorder=zorder,
        )
        self._tell(found, [one.tip for one in marks])

    def lines(
        self,
        axes: Axes,
        lines: Sequence[Sequence[tuple[float, float]]],
        tips: Sequence[str] = (),
        **style: Any,
    ) -> None:
        """Very many, as one. style: of all of them, or lists with one for each. They do not widen
        the frame."""
        found = LineCollection(lines, **style)
        axes.add_collection(found, autolim=False)
        self._tell(found, tips)

    def _tell(self, found: Collection, tips: Sequence[str]) -> None:
        """Each of them its own; it takes no room, as it lies within the frame."""
        found.set_in_layout(False)
        names = [f"tip{len(self.tips) + place}" for place in range(len(tips))]
        found.set_urls(names or [None])  # the one thing that SVG writes of each
        self.tips |= dict(zip(names, tips, strict=True))

    @cached_property
    def svg(self) -> str:
        """As a file of its own, in the light colours; the same data gives the same text."""
        assert self.figure is not None, self.missing
        text = StringIO()
        nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
        with styled(self.name):
            lay_out(self.figure)
            # Not savefig, which draws all of it once before, to see how large it becomes.
            canvas: Any = FigureCanvasSVG(self.figure)
            canvas.print_svg(text, metadata=nothing)
        named = re.sub(r'<a xlink:href="(tip\d+)"[^>]*>', r'<g id="\1">', text.getvalue())
        return named.replace("</a>", "</g>")

    def png(self, path: Path, dpi: int) -> None:
        """Behind `svg`, which lays it out."""
        assert self.figure is not None and self.svg
        self.figure.set_dpi(dpi)
        about = PngInfo()
        for what, text in (("Title", self.title), ("Description", self.alternative)):
            about.add_itxt(what, text)
        with styled(self.name):
            canvas: Any = FigureCanvasAgg(self.figure)
            canvas.draw()
            # By matplotlib it would have an alpha that nobody sees, and take twice as long.
            image = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
        with path.open("xb") as file:
            image.save(file, "png", pnginfo=about, dpi=(dpi, dpi), compress_level=1)


@contextmanager
def styled(name: str) -> Iterator[None]:
    """Within it figures are drawn, and written: the same data gives the same bytes."""
    settings: Any = {**STYLE, "svg.hashsalt": name}
    with matplotlib.rc_context(settings):
        yield


def panels_on(
    rows: int, columns: int, height: float, share: bool = False, share_y: bool = False
) -> tuple[Figure, list[Axes]]:
    """A figure of so many panels, each `height` inches high; and the panels, row by row."""
    figure = Figure(figsize=(WIDTH, rows * height + 0.35), layout="constrained")
    axes = figure.subplots(rows, columns, sharex=share, sharey=share or share_y, squeeze=False)
    return figure, [one for line in axes for one in line]


def lay_out(figure: Figure) -> None:
    """Works out where everything stands, for good: what comes later takes no room of its own. By
    itself matplotlib does so again at each drawing, which takes longer than the drawing."""
    engine = figure.get_layout_engine()
    assert engine is not None
    engine.execute(figure)
    figure.set_layout_engine("none")
    spans = {axes: _span(axes) for axes in figure.axes}
    across = {span[1]: axes for axes, span in spans.items() if axes.get_in_layout()}
    down = {span[0]: axes for axes, span in spans.items() if axes.get_in_layout()}
    for axes, (row, column) in spans.items():
        if not axes.get_in_layout():  # between others, which have the labels
            x, y = across[column].get_position(), down[row].get_position()
            axes.set_position(Bbox.from_extents(x.x0, y.y0, x.x1, y.y1))


def _span(axes: Axes) -> tuple[int, int]:
    spec = axes.get_subplotspec()
    assert spec is not None
    return spec.rowspan.start, spec.colspan.start


def outer_labels(grid: Sequence[Axes], columns: int, x: str, y: str) -> None:
    """One label for all panels along each side; and panels that nobody needs go."""
    figure = grid[0].figure
    for axes in list(figure.axes):
        if axes not in grid:
            axes.remove()
    for place, axes in enumerate(grid):
        lowest = place + columns >= len(grid)
        if lowest:
            axes.tick_params(labelbottom=True)
        for axis in (axes.xaxis, axes.yaxis):  # it has no label, whose place would be looked for
            axis.set_label_coords(0, 0)
        # The first of each row and the last of each column need the most room.
        axes.set_in_layout(lowest or place % columns == 0)
    assert isinstance(figure, Figure)
    figure.supxlabel(x, fontsize=8.5)
    figure.supylabel(y, fontsize=8.5)


def key(figure: Figure, entries: Sequence[tuple[str, dict[str, Any]]]) -> None:
    """One line above the panels that says what marks mean: (name, the style of its line)."""
    handles = [
        Line2D([], [], **{"linestyle": "none", "markersize": 5, **style}) for _, style in entries
    ]
    figure.legend(
        handles,
        [name for name, _ in entries],
        loc="outside upper left",
        ncols=len(entries),
        handletextpad=0.3,
        columnspacing=1.4,
        borderaxespad=0.1,
    )


def label_marks(
    axes: Axes, labels: Sequence[tuple[float, float, str]], marks: Sequence[tuple[float, float]]
) -> None:
    """Texts beside their points, where they cover no mark and no other text; else left out. The
    figure is laid out already."""
    figure = axes.figure
    assert isinstance(figure, Figure)
    scale = figure.dpi / 72
    taken: list[tuple[float, float, float, float]] = []
    for x, y in (axes.transData.transform(point) for point in marks):
        taken.append((x - 3 * scale, y - 3 * scale, x + 3 * scale, y + 3 * scale))
    frame = axes.get_window_extent()
    edge = figure.bbox.x1
    for x, y, text in labels:
        wide, high = 0.62 * SMALL * len(text) * scale, 0.8 * SMALL * scale
        px, py = axes.transData.transform((x, y))
        for dx, dy in ((5, 4), (-5, 4), (5, -4), (-5, -4), (0, 7), (0, -7), (7, 0), (-7, 0)):
            left = px + dx * scale - (wide if dx < 0 else wide / 2 if dx == 0 else 0)
            bottom = py + dy * scale - (high if dy < 0 else high / 2 if dy == 0 else 0)
            box = (left, bottom, left + wide, bottom + high)
            right = min(frame.x1 + wide, edge)
            inside = frame.x0 <= box[0] and box[2] <= right and box[3] <= frame.y1 + high
            if inside and not any(_overlap(box, other) for other in taken):
                taken.append(box)
                axes.text(
                    x,
                    y,
                    text,
                    transform=offset_copy(axes.transData, figure, dx, dy, units="points"),
                    ha="left" if dx > 0 else "right" if dx < 0 else "center",
                    va="bottom" if dy > 0 else "top" if dy < 0 else "center",
                    fontsize=SMALL,
                )
                break


def _overlap(one: Sequence[float], other: Sequence[float]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def apart(values: Sequence[float], gap: float, low: float = -math.inf) -> list[float]:
    """Ascending values moved as little as it takes for neighbours to be `gap` apart; none of them
    below `low`."""
    groups: list[list[float]] = []  # [sum of (value - place in the group), how many]
    for value in values:
        groups.append([value, 1.0])
        while len(groups) > 1:
            (below, a), (above, b) = groups[-2], groups[-1]
            if above / b - below / a >= gap * a - 1e-12:
                break
            # Merged, the upper group's members stand `a` places further up.
            groups[-2:] = [[below + above - gap * a * b, a + b]]
    placed: list[float] = []
    for total, many in groups:
        for place in range(round(many)):
            least = placed[-1] + gap if placed else low
            placed.append(max(total / many + gap * place, least))
    return placed


def some_of(values: Sequence[int], most: int) -> list[int]:
    """At most so many, the first and the last among them."""
    if len(values) <= most:
        return list(values)
    return [values[round(place * (len(values) - 1) / (most - 1))] for place in range(most)]


def told(row: CandidateRow, more: str) -> str:
    name = row.name if row.is_baseline else f"candidate {row.id} (generation {row.generation})"
    parts = [name, more]
    if row.quality is not None:
        parts.append(f"quality {number(row.quality, 2)} %")
    parts.append(
        f"{number(row.parameters / 1e6, 2)} M parameters, {of_baseline(row.size)} of the baseline's"
    )
    if row.mutations:
        parts.append(f"from {row.parent} by {row.mutations}")
    parts.append(row.genotype)
    return "\n".join(parts)
