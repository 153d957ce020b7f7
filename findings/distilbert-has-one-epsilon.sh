#!/usr/bin/env bash
# transformers 5.23.0: every DistilBERT norm adds 1e-12, whatever the config says: it takes
# layer_norm_eps, keeps it, writes it down, and computes as if it were not there. BERT's classes
# heed it. Weights of a BERT-like model with another epsilon give other outputs under DistilBERT's
# class, without a word.
# Seen: DistilBERT's outputs differ by 0.0, BERT's by 2.2, between layer_norm_eps 1e-12 and 0.5
set -euo pipefail
there=$(mktemp -d)
trap 'rm -rf "$there"' EXIT
python3 -m venv "$there/venv"
"$there/venv/bin/pip" install --quiet --disable-pip-version-check \
    torch==2.13.0 transformers==5.23.0 numpy==2.4.6
HF_HOME="$there/home" "$there/venv/bin/python" - "$there" <<'PY'
import sys

import torch
import transformers
from transformers import AutoConfig, AutoModel

transformers.logging.set_verbosity_error()
sizes = {
    "distilbert": {"dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 4},
    "bert": {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4,
    },
}
words = torch.tensor([[1, 2, 3, 4]])
apart = {}
for kind, shape in sizes.items():
    outputs, told = [], []
    for epsilon in (1e-12, 0.5):
        torch.manual_seed(0)
        config = AutoConfig.for_model(kind, vocab_size=50, layer_norm_eps=epsilon, **shape)
        model = AutoModel.from_config(config).eval()
        model.save_pretrained(f"{sys.argv[1]}/{kind}")
        told.append(AutoConfig.from_pretrained(f"{sys.argv[1]}/{kind}").layer_norm_eps)
        with torch.no_grad():
            outputs.append(model(words).last_hidden_state)
    assert told == [1e-12, 0.5], "written down and read again"
    apart[kind] = float((outputs[0] - outputs[1]).abs().max())
print(
    f"transformers {transformers.__version__}: DistilBERT's outputs differ by"
    f" {apart['distilbert']:.1f}, BERT's by {apart['bert']:.1f}"
)
sys.exit(not (apart["distilbert"] == 0 and apart["bert"] > 0.1))
PY
