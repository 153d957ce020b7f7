#!/usr/bin/env bash
# optuna 5.0.0: NSGAIISampler crosses only the parameters that every finished trial of the study has.
# One network of 3 layers among 300 of 4, and the genes of the fourth layer are never inherited again:
# each child draws them anew, at random, to the end of the study, and no warning says so. Of a search
# whose depth varies, all layers above the shallowest network's are random search, while the front goes
# on getting better by the others. (The documentation says in passing that another sampler handles
# search spaces that change.)
# Seen: of 280 children, 207 have a fourth layer that stood in an earlier trial; where the first trial
# had 3 layers, 0 (of the third layer 217 and 175)
set -euo pipefail
there=$(mktemp -d)
trap 'rm -rf "$there"' EXIT
python3 -m venv "$there/venv"
"$there/venv/bin/pip" install --quiet --disable-pip-version-check optuna==5.0.0 numpy==2.4.6
"$there/venv/bin/python" - <<'PY'
import sys

import optuna

optuna.logging.set_verbosity(optuna.logging.ERROR)
POPULATION, TRIALS = 20, 300


def inherited(first_depth):
    """Of the children's values of layers 2 and 3, how many an earlier trial had, and of how many."""

    def objective(trial):
        depth = first_depth if trial.number == 0 else 4
        widths = [trial.suggest_float(f"width{layer}", 0.0, 1.0) for layer in range(depth)]
        return sum((width - 0.5) ** 2 for width in widths), sum(widths)

    sampler = optuna.samplers.NSGAIISampler(seed=0, population_size=POPULATION)
    study = optuna.create_study(directions=["minimize", "minimize"], sampler=sampler)
    study.optimize(objective, n_trials=TRIALS)
    found = {}
    for name in ("width2", "width3"):
        values = [trial.params.get(name, -1.0) for trial in study.trials]
        found[name] = sum(
            any(abs(values[child] - earlier) < 1e-12 for earlier in values[:child])
            for child in range(POPULATION, TRIALS)
        )
    return found


same, mixed = inherited(4), inherited(3)
print(
    f"optuna {optuna.__version__}: of {TRIALS - POPULATION} children, inherited: all of 4 layers {same};"
    f" the first of 3 layers {mixed}"
)
half = (TRIALS - POPULATION) // 2
sys.exit(not (min(*same.values(), mixed["width2"]) > half and mixed["width3"] == 0))
PY
