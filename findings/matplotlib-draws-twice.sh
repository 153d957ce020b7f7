#!/usr/bin/env bash
# matplotlib 3.11.2: Figure.savefig goes through the figure twice, once with drawing switched off (to
# let artists settle) and once to draw. canvas.print_svg goes through it once, and writes as large a
# file. For pages of many figures with thousands of marks that is half of the time.
# Seen: savefig -> 2 passes; canvas.print_svg -> 1 pass
set -euo pipefail
there=$(mktemp -d)
trap 'rm -rf "$there"' EXIT
python3 -m venv "$there/venv"
"$there/venv/bin/pip" install --quiet --disable-pip-version-check matplotlib==3.11.2
MPLCONFIGDIR="$there" "$there/venv/bin/python" - "$there" <<'PY'
import sys

import matplotlib
from matplotlib.artist import Artist
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure


class Counted(Artist):
    passes = 0

    def draw(self, renderer: object) -> None:
        Counted.passes += 1


def passes(save) -> int:
    figure = Figure()
    canvas = FigureCanvasSVG(figure)
    figure.add_artist(Counted())
    Counted.passes = 0
    save(figure, canvas)
    return Counted.passes


one = passes(lambda figure, canvas: figure.savefig(f"{sys.argv[1]}/a.svg"))
other = passes(lambda figure, canvas: canvas.print_svg(f"{sys.argv[1]}/b.svg"))
print(f"matplotlib {matplotlib.__version__}: savefig -> {one} passes; canvas.print_svg -> {other} pass")
sys.exit((one, other) != (2, 1))
PY
