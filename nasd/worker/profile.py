"""`python -m nasd.worker.profile`: the latency table of a search space, and how right it is.

Reads one JSON object, {"measure": [measure] of a config, "space": [search_space], "source": the
seed, "folder": where its relative paths start, "cache": the folder that tables are kept in,
"again": make it in any case, "check": how many random genotypes are measured whole}; with no
"space" it only looks whether it can be measured here, and answers {"unmeasured": {name: why}}.
Prints one JSON line: {"table", "checked":
[{"genotype", "predicted", "measured", "error": half of its interval as a share}]}, or {"error": one
sentence}.
"""

import json
import random
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from nasd.contract import latency
from nasd.contract.config import Measure, SearchSpace
from nasd.contract.errors import NasdError
from nasd.contract.latency import Table
from nasd.worker.training.progress import quiet

CHECK_SECONDS = 300.0


def main() -> None:
    question = json.load(sys.stdin)
    try:
        print(json.dumps(_answer(question)))
    except NasdError as error:
        print(json.dumps({"error": str(error)}))


def _answer(question: dict[str, Any]) -> dict[str, Any]:
    from nasd.worker.measure import table, whole

    measure = Measure(**question["measure"])
    table.check(measure)
    if question.get("space") is None:
        return {"unmeasured": whole.unmeasured(measure)}
    from nasd.worker.model import seed

    space = SearchSpace(**question["space"])
    arch = seed.describe(question["source"], Path(question["folder"])).architecture
    if measure.tokens > arch.positions:
        raise NasdError(
            f"measure.tokens: {measure.tokens} tokens are more than the seed's {arch.positions}"
            " positions"
        )
    made = table.known(arch, space, measure, Path(question["cache"]), quiet, question["again"])
    return {
        "table": made.to_json(),
        "checked": _checked(made, arch, space, measure, question["check"]),
    }


def _checked(
    made: Table, arch: Any, space: SearchSpace, measure: Measure, count: int
) -> list[dict[str, Any]]:
    """Genotypes of the space that the table was not fitted to, by turns."""
    from nasd.worker.measure import table

    rng = random.Random(1)
    drawn = {str(index): latency.drawn(space, rng) for index in range(count)}
    small = replace(arch, vocab_size=min(arch.vocab_size, 1024))  # a look-up is one row a token
    calls = {name: table.whole(one, small, measure) for name, one in drawn.items()}
    timings = table.measured(calls, measure, quiet, CHECK_SECONDS) if calls else {}
    return [
        {
            "genotype": str(one),
            "predicted": made.predict(one),
            "measured": timings[name].median,
            "error": timings[name].error,
        }
        for name, one in drawn.items()
    ]


if __name__ == "__main__":
    main()
