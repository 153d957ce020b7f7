"""Who came from whom, and what their mutations did."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import median

from matplotlib.ticker import MaxNLocator

from nasd.contract.readable import counted, number, signed
from nasd.record.lifecycle import State
from nasd.views.report.drawing import (
    ACCENT,
    BASE,
    CUT,
    FAINT,
    INK,
    MUTED,
    PAPER,
    SMALL,
    WIDTH,
    Drawing,
    Mark,
    key,
    panels_on,
    told,
)
from nasd.views.report.findings import Findings
from nasd.views.report.rows import BASELINE, CandidateRow

MOST_LEAVES = 160  # rows of the family tree
MOST_TICKS = 24
TICKS = [times * 10**power for power in range(8) for times in (1, 2, 5)]  # one in so many
APART = 0.85  # rows, at which names do not touch
LONGEST = 4.0  # times the median that an interval is drawn to be


def helped(findings: Findings) -> Drawing:
    drawing = Drawing("mutations", "Which mutations helped")
    rows = [row for row in findings.mutations if row.candidates]
    if not rows:
        drawing.missing = "Nobody is bred yet: there are no mutations to judge."
        return drawing
    figure, grid = panels_on(1, 4, height=0.8 + 0.33 * len(rows), share_y=True)
    names = {"any": "any (all candidates)"}
    order = {row.mutation: len(rows) - place for place, row in enumerate(rows)}
    grid[0].set_yticks(
        list(order.values()),
        [f"{names.get(r.mutation, r.mutation)}, n = {r.candidates}" for r in rows],
    )
    grid[0].set_ylim(0.4, len(rows) + 0.6)
    panels: tuple[tuple[str, str, float], ...] = (
        ("quality", "change of quality\nagainst the parent, points", 0.0),
        ("each", "... for each such mutation,\nthe others held equal, points", 0.0),
        ("parameters_percent", "change of parameters\nagainst the parent, %", 0.0),
        ("survived", "share that survived\nthe selection, %", math.nan),
    )
    cut = False
    for axes, (name, label, zero) in zip(grid, panels, strict=True):
        axes.set_xlabel(label)
        axes.tick_params(axis="y", length=0, labelcolor=INK)
        axes.spines["left"].set_visible(False)
        axes.grid(axis="x", color=FAINT, lw=0.5)
        axes.set_axisbelow(True)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        scale = 100 if name == "survived" else 1
        known: list[tuple[float, float, float]] = []
        for row in rows:
            value, low, high = (getattr(row, f"{name}{end}") for end in ("", "_low", "_high"))
            if value is None:
                continue
            known.append((scale * value, scale * low, scale * high))
            y, colour = order[row.mutation], MUTED if row.mutation == "any" else ACCENT
            axes.plot([scale * low, scale * high], [y, y], color=colour, lw=1.3)
            drawing.mark(
                axes,
                scale * value,
                y,
                f"{row.mutation}: {number(scale * value, 2)}"
                f" [{number(scale * low, 2)}, {number(scale * high, 2)}]",
                marker="o",
                markersize=5,
                color=colour,
            )
        if known and not math.isnan(zero):
            axes.axvline(zero, color=MUTED, lw=0.9, zorder=1)
        if (frame := framed(known)) is not None:
            axes.set_xlim(*frame)
            cut = True
        if not known:
            axes.annotate(
                "too few to tell", (0.5, 0.5), xycoords="axes fraction", ha="center", color=MUTED
            )
            axes.set_xticks([])
            axes.spines["bottom"].set_visible(False)
    drawing.figure = figure
    drawing.caption = (
        "Bars are 95 % intervals (Student's, Wilson's for shares)"
        + (", and end at the frame where they are far longer than most. " if cut else ". ")
        + "The first, third and fourth"
        " panel take all candidates in which a mutation occurred, whatever else occurred beside it;"
        " the second tells them apart, by least squares on the counts of each. Qualities are of"
        " those that were scored, so the worst, which were cut, are missing. Generation 0 is held"
        " against the baseline."
    )
    drawing.alternative = (
        "Four panels of means with intervals, one row a kind of mutation. "
        + " ".join(
            f"{row.mutation} ({row.candidates:,}): quality {signed(row.quality)} points,"
            f" survived {number(None if row.survived is None else 100 * row.survived, 0)} %."
            for row in rows
        )
    )
    return drawing


def framed(known: Sequence[tuple[float, float, float]]) -> tuple[float, float] | None:
    """Where an axis of (value, low, high) should end so that an interval of two candidates, which
    may be a hundred times as long as the others, does not hide those; None where none is so."""
    if not known:
        return None
    most = LONGEST * median((high - low) / 2 for _, low, high in known)
    least = min(max(low, value - most) for value, low, _ in known)
    greatest = max(min(high, value + most) for value, _, high in known)
    if all(least <= low and high <= greatest for _, low, high in known):
        return None
    space = 0.05 * (greatest - least) or 1.0
    return least - space, greatest + space


def family(findings: Findings) -> Drawing:
    drawing = Drawing("family", "The family tree")
    everyone = [row for row in findings.candidates if not row.is_baseline]
    if not everyone:
        drawing.missing = "Nobody is bred yet: the baseline has no descendants."
        return drawing
    shown, left_out = _who_fits(findings)
    children: dict[int, list[CandidateRow]] = {}
    for row in shown:
        if row.parent is not None:
            children.setdefault(row.parent, []).append(row)
    places = tree_places(
        findings.baseline.id, {p: [c.id for c in cs] for p, cs in children.items()}
    )
    leaves = 1 + max(places.values())
    figure, (axes,) = panels_on(1, 1, height=max(2.4, 0.9 + 0.125 * leaves))
    column = {
        row.id: -1 if row.generation is None else row.generation for row in findings.candidates
    }
    final = {row.id for row in findings.final_population}
    line = lineage(findings, final)
    for strong in (False, True):
        drawing.lines(
            axes,
            [
                _branch(column[parent], places[parent], column[row.id], places[row.id])
                for row in shown
                if (parent := row.parent) is not None and (row.id in line) == strong
            ],
            colors=ACCENT if strong else FAINT,
            linewidths=1.6 if strong else 0.8,
            zorder=2 if strong else 1,
            joinstyle="round",
        )
    alike: dict[tuple[str, float], list[Mark]] = {}
    for row in shown:
        shape, size, edge, face = _node(row, row.id in final)
        tip = told(row, _fate_words(row))
        one = Mark(column[row.id], places[row.id], tip, edge, face)
        alike.setdefault((shape, size), []).append(one)
    for (shape, size), marks in alike.items():
        drawing.marks(axes, marks, shape, size, zorder=3)
    newest = max(column.values())
    small = 6 if leaves > 40 else SMALL
    wide = 72 * (WIDTH - 0.5) / (newest + 2.9)  # of a generation, in points
    crowded = False
    for row, room in _spaces(shown, column, places):
        text = _name(findings, row)
        if 0.62 * small * len(text) + 8 > wide * room:
            crowded = True
            continue
        axes.annotate(
            text,
            (column[row.id], places[row.id]),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            ha="left",
            fontsize=small,
            color=BASE if row.is_baseline else INK if row.id in line else MUTED,
            bbox={"facecolor": PAPER, "edgecolor": "none", "pad": 0.4},
            zorder=2.5,
        )
    axes.set_xlim(-1 - max(0.15, 0.006 * newest), newest + 0.75)
    axes.set_ylim(leaves - 0.4, -0.9)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    numbers = _ticks(newest)
    axes.set_xticks([-1, *numbers], ["seed", *map(str, numbers)])
    axes.set_xlabel("generation of birth")
    key(
        figure,
        [
            ("in the last population", {"marker": "o", "color": ACCENT}),
            ("scored", {"marker": "o", "color": MUTED, "markerfacecolor": PAPER}),
            ("cut", {"marker": "|", "color": CUT}),
            ("failed", {"marker": "x", "color": INK}),
            ("under way", {"marker": ".", "color": MUTED}),
            ("line that leads to it", {"marker": "", "linestyle": "-", "lw": 1.6, "color": ACCENT}),
        ],
    )
    drawing.figure = figure
    drawing.caption = (
        "Who came from whom, each by a mutation of the whole genotype. Beside a candidate stands"
        " its number, and its quality in % where it was scored. Blue: the lines that lead to the"
        " last population." + left_out + (" Without a name: point at it." if crowded else "")
    )
    drawing.alternative = (
        f"Tree of {counted(len(shown) - 1, 'candidate')} from the baseline over"
        f" {counted(newest + 1, 'generation')}. The last population descends from"
        f" {counted(len({_founder(findings, one) for one in final}), 'candidate')} of generation 0."
    )
    return drawing


def _who_fits(findings: Findings) -> tuple[list[CandidateRow], str]:
    """All, where so many rows are not too many; else those that were scored, or that lead to the
    last population; with their ancestors, and a sentence that says so."""
    final = {row.id for row in findings.final_population}
    tests: tuple[tuple[Callable[[CandidateRow], bool], str], ...] = (
        (lambda row: True, ""),
        (
            lambda row: row.quality is not None,
            " Only scored candidates and their ancestors are drawn.",
        ),
        (lambda row: row.id in final, " Only the last population and its ancestors are drawn."),
    )
    shown, said = list[CandidateRow](), ""
    for test, said in tests:  # noqa: B007
        chosen = lineage(findings, {row.id for row in findings.candidates if test(row)})
        shown = [row for row in findings.candidates if row.id in chosen or row.is_baseline]
        parents = {row.parent for row in shown}
        if sum(row.id not in parents for row in shown) <= MOST_LEAVES:
            break
    return shown, said


def lineage(findings: Findings, candidates: set[int]) -> set[int]:
    """These, and all they descend from."""
    found: set[int] = set()
    for one in candidates:
        at: int | None = one
        while at is not None and at not in found:
            found.add(at)
            at = findings.by_id[at].parent
    return found


def _founder(findings: Findings, candidate: int) -> int:
    while (parent := findings.by_id[candidate].parent) != findings.baseline.id:
        assert parent is not None
        candidate = parent
    return candidate


def tree_places(root: int, children: Mapping[int, Sequence[int]]) -> dict[int, float]:
    """A row for each node so that no two branches cross: a leaf takes the next one, a parent stands
    in the middle of its children."""
    places: dict[int, float] = {}
    leaves = 0
    stack = [(root, False)]
    while stack:
        node, seen = stack.pop()
        own = children.get(node, ())
        if not own:
            places[node] = leaves
            leaves += 1
        elif seen:
            places[node] = (places[own[0]] + places[own[-1]]) / 2
        else:
            stack.append((node, True))
            stack += [(child, False) for child in reversed(own)]
    return places


def _branch(x: float, y: float, to_x: float, to_y: float) -> list[tuple[float, float]]:
    bend = x + 0.66
    return [(x, y), (bend, y), (bend, to_y), (to_x, to_y)]


def _spaces(
    shown: Sequence[CandidateRow], column: Mapping[int, int], places: Mapping[int, float]
) -> Iterator[tuple[CandidateRow, float]]:
    """Each, and how many generations lie between it and the next one beside which its name would
    not fit."""
    right: dict[int, list[tuple[float, int]]] = {}  # by the nearest whole row: the last is nearest
    for row in sorted(shown, key=lambda row: (-column[row.id], row.id)):
        at, x = places[row.id], column[row.id]
        near = [
            next((there for y, there in reversed(right.get(one, ())) if abs(y - at) < APART), None)
            for one in (round(at) - 1, round(at), round(at) + 1)
        ]
        yield row, min((there - x for there in near if there is not None), default=math.inf)
        right.setdefault(round(at), []).append((at, x))


def _name(findings: Findings, row: CandidateRow) -> str:
    """With its quality; the baseline with its own, also where it was trained on as its control."""
    name = BASELINE if row.is_baseline else row.name
    quality = findings.snapshot.quality(row.id)
    return name if quality is None else f"{name}: {number(quality)}"


def _ticks(newest: int) -> list[int]:
    """Generations that are named: as many as can be read."""
    step = next(one for one in TICKS if one * MOST_TICKS >= newest)
    return list(range(0 if step == 1 else step, newest + 1, step))


def _node(row: CandidateRow, final: bool) -> tuple[str, float, str, str]:
    """Its shape, size in points, and colours of edge and face."""
    if row.is_baseline:
        return "*", 9, BASE, BASE
    if final:
        return "o", 5, ACCENT, ACCENT
    if row.quality is not None:
        return "o", 4, MUTED, PAPER
    if row.state == State.FAILED:
        return "x", 4, INK, INK
    if row.cut:
        return "|", 5, CUT, CUT
    return ".", 4, MUTED, MUTED


def _fate_words(row: CandidateRow) -> str:
    if row.state in (State.CUT, State.FAILED):
        return f"{row.state}: {row.reason}"
    return f"{row.state} at {row.stage}"
