#!/usr/bin/env bash
# datasets 5.2.0: reading a plain local file, offline, fails where HOME names nothing that can be
# written, as for a service's user without a home; the message names the home, and not the file.
# HF_HOME in a folder that can be written mends it.
# Seen: HOME=/dev/null/nobody -> NotADirectoryError; with HF_HOME -> 1 row
set -euo pipefail
there=$(mktemp -d)
trap 'rm -rf "$there"' EXIT
python3 -m venv "$there/venv"
"$there/venv/bin/pip" install --quiet --disable-pip-version-check datasets==5.2.0
echo "a line" >"$there/corpus.txt"
read_it() {
    env -u XDG_CACHE_HOME "$@" HF_HUB_OFFLINE=1 "$there/venv/bin/python" - "$there/corpus.txt" <<'PY'
import sys

try:
    import datasets

    rows = datasets.load_dataset("text", data_files=sys.argv[1:], split="train")
    print(f"{len(rows)} row")
except Exception as error:
    print(type(error).__name__)
PY
}
without=$(read_it -u HF_HOME HOME=/dev/null/nobody 2>/dev/null | tail -n 1)
with=$(read_it HF_HOME="$there/hf" HOME=/dev/null/nobody 2>/dev/null | tail -n 1)
echo "datasets 5.2.0: HOME=/dev/null/nobody -> $without; with HF_HOME -> $with"
[ "$without" = NotADirectoryError ] && [ "$with" = "1 row" ]
