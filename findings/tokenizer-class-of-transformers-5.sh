#!/usr/bin/env bash
# transformers 5.23.0 writes the class of any PreTrainedTokenizerFast as TokenizersBackend, which
# 4.57.1 does not know and refuses. With tokenizer_class set to PreTrainedTokenizerFast by hand, the
# same files load in both.
# Seen: 5.23.0 wrote TokenizersBackend; 4.57.1 -> ValueError; renamed: 4.57.1 -> loads, 5.23.0 -> loads
set -euo pipefail
there=$(mktemp -d)
trap 'rm -rf "$there"' EXIT
for version in 5.23.0 4.57.1; do
    python3 -m venv "$there/$version"
    "$there/$version/bin/pip" install --quiet --disable-pip-version-check "transformers==$version"
done
export HF_HUB_OFFLINE=1 HOME="$there"
"$there/5.23.0/bin/python" - "$there/words" 2>/dev/null <<'PY'
import sys

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

plain = Tokenizer(models.WordLevel({"[UNK]": 0, "hello": 1}, unk_token="[UNK]"))
plain.pre_tokenizer = pre_tokenizers.Whitespace()
PreTrainedTokenizerFast(tokenizer_object=plain, unk_token="[UNK]").save_pretrained(sys.argv[1])
PY
loads() {
    "$there/$1/bin/python" - "$there/words" 2>/dev/null <<'PY'
import sys

from transformers import AutoTokenizer

try:
    assert AutoTokenizer.from_pretrained(sys.argv[1])("hello")["input_ids"] == [1]
    print("loads")
except Exception as error:
    print(type(error).__name__)
PY
}
class=$(sed -n 's/.*"tokenizer_class": "\(.*\)".*/\1/p' "$there/words/tokenizer_config.json")
before=$(loads 4.57.1)
sed -i 's/TokenizersBackend/PreTrainedTokenizerFast/' "$there/words/tokenizer_config.json"
old=$(loads 4.57.1)
new=$(loads 5.23.0)
echo "5.23.0 wrote $class; 4.57.1 -> $before; renamed: 4.57.1 -> $old, 5.23.0 -> $new"
[ "$class $before $old $new" = "TokenizersBackend ValueError loads loads" ]
