"""`python -m nasd.worker.check SOURCE FOLDER`: looks at a seed and prints one JSON line.

{"backbone": …, "baseline": …, "has_mlm_head": …}, or {"error": one sentence}. Writes nothing.
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path

from nasd.errors import NasdError


def main() -> None:
    source, folder = sys.argv[1], Path(sys.argv[2])
    try:
        from nasd.worker import seed

        description = seed.describe(source, folder)
        seed.load_tokenizer(source, folder)
    except NasdError as error:
        print(json.dumps({"error": str(error)}))
        return
    print(
        json.dumps(
            {
                "backbone": asdict(description.backbone),
                "baseline": description.baseline.to_json(),
                "has_mlm_head": description.has_mlm_head,
            }
        )
    )


if __name__ == "__main__":
    main()
