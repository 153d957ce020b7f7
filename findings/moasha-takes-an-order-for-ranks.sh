#!/usr/bin/env bash
# syne-tune 0.16.0: MOASHA's priority of candidates by non-dominated fronts is, as released, the order
# in which they are preferred (who is first, who is second), where what asks for it takes it for the
# rank of each. The two agree for two candidates, and for few others: of three, the dominated one may
# be told best. So who is stopped at a rung has little to do with who is dominated.
# Seen: [1, 2, 0] for (3, 3), (1, 1) and (2, 2), whose ranks are [2, 0, 1], smaller being better
set -euo pipefail
there=$(mktemp -d)
trap 'rm -rf "$there"' EXIT
python3 -m venv "$there/venv"
"$there/venv/bin/pip" install --quiet --disable-pip-version-check numpy==2.4.6 pandas==2.3.3 \
    sortedcontainers==2.4.0 dill==0.4.0 typing_extensions==4.15.0 PyYAML==6.0.3
"$there/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps syne-tune==0.16.0
"$there/venv/bin/python" - <<'PY' 2>/dev/null
import sys
from importlib.metadata import version

import numpy
from syne_tune.optimizer.schedulers.multiobjective.multiobjective_priority import (
    NonDominatedPriority,
)

points = numpy.array([[3.0, 3.0], [1.0, 1.0], [2.0, 2.0]])  # both objectives are to be small
told = [int(one) for one in NonDominatedPriority()(points)]
print(f"syne-tune {version('syne-tune')}: {told} for three points whose ranks are [2, 0, 1]")
sys.exit(told != [1, 2, 0])
PY
