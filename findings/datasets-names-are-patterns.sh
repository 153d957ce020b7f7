#!/usr/bin/env bash
# datasets 5.2.0: `load_dataset("text", data_files=[NAME])` takes an existing file's name for a
# pattern. A corpus named a[1].txt is read as a1.txt beside it, without a word; so is the folder
# hub[1], which reads the folder hub1.
# Seen: text of 'a[1].txt' -> ['the other file']
set -euo pipefail
there=$(mktemp -d)
trap 'rm -rf "$there"' EXIT
python3 -m venv "$there/venv"
"$there/venv/bin/pip" install --quiet --disable-pip-version-check datasets==5.2.0
mkdir "$there/home"
HOME="$there/home" HF_HUB_OFFLINE=1 "$there/venv/bin/python" - "$there" <<'PY'
import sys
from pathlib import Path

import datasets

datasets.disable_progress_bars()
folder = Path(sys.argv[1])
(folder / "a[1].txt").write_text("the named file\n")
(folder / "a1.txt").write_text("the other file\n")
rows = datasets.load_dataset("text", data_files=[str(folder / "a[1].txt")], split="train")["text"]
print(f"datasets {datasets.__version__}: text of 'a[1].txt' -> {list(rows)}")
sys.exit(list(rows) != ["the other file"])
PY
