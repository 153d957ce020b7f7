"""Small drawings out of characters: a curve, a bar, points in a plane. Plain strings.

PLAIN has a stand-in in ASCII for each mark, for pipes and for terminals that have no others.
"""

import itertools
from collections.abc import Mapping, Sequence
from statistics import fmean

LEVELS = "▁▂▃▄▅▆▇█"
DONE, LEFT = "━", "─"
FRONT, OTHER, BASELINE, CONTROL = "●", "○", "◆", "◇"
PLAIN = str.maketrans(
    dict(zip(LEVELS, "__..--''", strict=True))
    | {DONE: "=", LEFT: "-", FRONT: "#", OTHER: "o", BASELINE: "B", CONTROL: "C"}
    | {"│": "|", "└": "+", "…": "~", "−": "-", "°": " "}
)


def sparkline(values: Sequence[float], width: int) -> str:
    """The values as a curve of at most `width` characters, from their lowest to their highest."""
    if not values or width < 1:
        return ""
    cells = min(width, len(values))
    edges = [round(cell * len(values) / cells) for cell in range(cells + 1)]
    means = [fmean(values[low:high]) for low, high in itertools.pairwise(edges)]
    low, high = min(means), max(means)
    if high == low:
        return LEVELS[0] * cells
    top = len(LEVELS) - 1
    return "".join(LEVELS[round((mean - low) / (high - low) * top)] for mean in means)


def bar(share: float, width: int) -> tuple[str, str]:
    """What is done and what is left of it, together `width` characters."""
    done = round(min(1.0, max(0.0, share)) * width)
    return DONE * done, LEFT * (width - done)


def plane(
    points: Mapping[str, Sequence[tuple[float, float]]],
    width: int,
    height: int,
    x_range: tuple[float, float],
    y_range: tuple[float, float],
) -> list[str]:
    """Points by their mark, as so many lines of so many characters; the marks named last lie on
    top. y grows upwards."""
    grid = [[" "] * width for _ in range(height)]
    for mark, places in points.items():
        for x, y in places:
            column = _cell(x, x_range, width)
            row = height - 1 - _cell(y, y_range, height)
            grid[row][column] = mark
    return ["".join(row) for row in grid]


def _cell(value: float, span: tuple[float, float], cells: int) -> int:
    low, high = span
    share = 0.5 if high <= low else (value - low) / (high - low)
    return min(cells - 1, max(0, round(share * (cells - 1))))
