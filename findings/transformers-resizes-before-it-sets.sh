#!/usr/bin/env bash
# transformers 5.23.0: a model of one's own says in `set_input_embeddings` how it takes a table of another
# size, or raises there because it cannot (its embeddings are in two tables, or quantised). But
# `resize_token_embeddings` has put the longer table into the old module by then: what is handed to the
# setter is that same module. So a refusal comes too late. The model that said no has the new rows, its
# config the old size, and what is saved of it cannot be read again. Who cannot be resized has to refuse in
# `resize_token_embeddings` itself.
# Seen: a setter that raises, and a table of 13 rows behind it for a config of 10; the module handed over is
# the old one; the saved folder is refused for its size
set -euo pipefail
there=$(mktemp -d)
trap 'rm -rf "$there"' EXIT
python3 -m venv "$there/venv"
"$there/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6 \
    transformers==5.23.0
export HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error
cat >"$there/refused.py" <<'PY'
import sys

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel


class Config(PreTrainedConfig):
    model_type = "one-of-my-own"

    def __init__(self, vocab_size=10, **others):
        self.vocab_size = vocab_size
        super().__init__(**others)


class Model(PreTrainedModel):
    config_class = Config

    def __init__(self, config):
        super().__init__(config)
        self.words = nn.Embedding(config.vocab_size, 4)
        self.post_init()

    def get_input_embeddings(self):
        return self.words

    def set_input_embeddings(self, value):
        self.handed = value
        raise ValueError("no other table, please")


model = Model(Config())
before = model.words
try:
    model.resize_token_embeddings(13, mean_resizing=False)
except ValueError as error:
    print("refused:", error)
rows, told = len(model.words.weight), model.config.vocab_size
same = object.__getattribute__(model, "_modules").get("handed") is before
del model.handed
model.save_pretrained(sys.argv[1])
try:
    Model.from_pretrained(sys.argv[1])
    again = "read"
except RuntimeError as error:
    again = "refused"
print(f"rows {rows}, config {told}, handed over the old module: {same}, read again: {again}")
sys.exit((rows, told, same, again) != (13, 10, True, "refused"))
PY
"$there/venv/bin/python" "$there/refused.py" "$there/saved"
