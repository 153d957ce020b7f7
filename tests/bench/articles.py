"""Which article does a paragraph belong to: texts with labels, made of questions in SQuAD's form.

    python -m tests.bench.articles squad.json articles.csv [ARTICLES]

What it writes is a person's data as much as what it reads: neither is committed.
"""

import csv
import sys
from pathlib import Path

from nasd.contract.squad import read_squad


def write(source: Path, target: Path, most: int | None = None) -> int:
    """A row for each paragraph of the first articles; how many there are."""
    found = dict.fromkeys((one.context, one.title) for one in read_squad(source))
    titles = list(dict.fromkeys(title for _, title in found))[:most]
    rows = [pair for pair in found if pair[1] in titles]
    with target.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("text", "label"))
        writer.writerows(rows)
    return len(rows)


if __name__ == "__main__":
    most = int(sys.argv[3]) if len(sys.argv) > 3 else None
    print(write(Path(sys.argv[1]), Path(sys.argv[2]), most))
