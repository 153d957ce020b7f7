#!/usr/bin/env bash
# moocore 0.3.2 has three answers to who is best where two points are equal, as two candidates of one
# size and score are. pareto_rank gives both rank 0. is_nondominated, by default, takes the first
# and calls the second dominated. hv_contributions gives both 0, as either is covered by the other:
# no more than a point that both dominate. So who keeps those that contribute drops the best point
# there is, twice, and who takes rank 0 and who takes the non-dominated have fronts of two sizes.
# And with one objective, of which the others tell, contributions are refused.
# Seen: for (3, 3), (3, 3) and (1, 1): ranks 0 0 1, non-dominated True False False, contributions
# 0 0 0 of a hypervolume of 9
set -euo pipefail
there=$(mktemp -d)
trap 'rm -rf "$there"' EXIT
python3 -m venv "$there/venv"
"$there/venv/bin/pip" install --quiet --disable-pip-version-check moocore==0.3.2 numpy==2.3.5
"$there/venv/bin/python" - <<'PY'
import sys

import moocore
import numpy as np

points = np.array([[3.0, 3.0], [3.0, 3.0], [1.0, 1.0]])
ranks = moocore.pareto_rank(points, maximise=True).tolist()
best = moocore.is_nondominated(points, maximise=True).tolist()
adds = moocore.hv_contributions(points, [0, 0], maximise=True).tolist()
whole = moocore.hypervolume(points, [0, 0], maximise=True)
single = moocore.hypervolume(points[:, :1], [0], maximise=True)
try:
    moocore.hv_contributions(points[:, :1], [0], maximise=True)
    one = "told"
except ValueError as error:
    one = str(error)
print(
    f"moocore {moocore.__version__}: ranks {ranks}, non-dominated {best}, contributions {adds} of"
    f" {whole}; of one objective the hypervolume is {single}, and contributions: {one}"
)
seen = ranks == [0, 0, 1] and best == [True, False, False] and adds == [0, 0, 0] and whole == 9
sys.exit(not (seen and single == 3 and "at least 2 columns" in one))
PY
