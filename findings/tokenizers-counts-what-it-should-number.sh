#!/usr/bin/env bash
# tokenizers 0.23.3: a vocab.txt in which a line stands twice is read without a word. The line's first
# number is then nobody's, and the size that is told is less than the largest number and one. So
# a table of that size lacks the last token, and the first token that is added is given the last
# one's number: both are encoded alike, and the old one is decoded as the new one. It is so for any
# vocabulary with a gap, as one that was trimmed and not numbered anew.
# Seen: size 6, largest number 6; "new" gets 6, which is zebra's, and zebra is decoded as "new"
set -euo pipefail
there=$(mktemp -d)
trap 'rm -rf "$there"' EXIT
python3 -m venv "$there/venv"
"$there/venv/bin/pip" install --quiet --disable-pip-version-check tokenizers==0.23.3
printf '%s\n' '[PAD]' '[UNK]' a cat a dog zebra >"$there/vocab.txt"
HF_HUB_OFFLINE=1 "$there/venv/bin/python" - "$there/vocab.txt" <<'PY'
import sys

import tokenizers
from tokenizers.models import WordPiece
from tokenizers.pre_tokenizers import Whitespace

made = tokenizers.Tokenizer(WordPiece.from_file(sys.argv[1], unk_token="[UNK]"))
made.pre_tokenizer = Whitespace()
size, largest = made.get_vocab_size(), max(made.get_vocab().values())
before = made.decode(made.encode("zebra").ids)
made.add_tokens(["new"])
numbers = made.encode("new zebra").ids
after = made.decode(made.encode("zebra").ids)
print(
    f"tokenizers {tokenizers.__version__}: size {size}, largest number {largest};"
    f" 'new zebra' -> {numbers}; 'zebra' is decoded as {before!r}, then as {after!r}"
)
sys.exit((size, largest, numbers, before, after) != (6, 6, [6, 6], "zebra", "new"))
PY
