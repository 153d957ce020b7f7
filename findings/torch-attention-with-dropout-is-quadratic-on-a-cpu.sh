#!/usr/bin/env bash
# torch 2.13.0 on a CPU: scaled_dot_product_attention is fused there too, and keeps nothing of size
# length x length for its gradient. With a dropout of 0.1, which nearly every BERT's config has, it
# silently takes another way: it makes the whole matrix of shares, and keeps it, in the forward pass
# of training. On a GPU the fused kernels drop shares themselves, so a run that fits there and takes
# no time for dropout is another one here. Nothing warns, and asking for the fused kernel alone by
# sdpa_kernel is an error only then.
# Seen: of 1 x 2 heads x 1,024 tokens x 32, numbers kept for the gradient: 264,192 without dropout,
# several millions with it
set -euo pipefail
there=$(mktemp -d)
trap 'rm -rf "$there"' EXIT
python3 -m venv "$there/venv"
"$there/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
cat >"$there/kept.py" <<'PY'
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention as attention

HEADS, LENGTH, WIDTH = 2, 1024, 32
torch.manual_seed(0)


def kept(dropout):
    """Numbers that stay for the gradient, and the largest of their tensors."""
    sizes = {}

    def pack(tensor):
        sizes[tensor.untyped_storage().data_ptr()] = tensor.numel()
        return tensor

    given = [torch.randn(1, HEADS, LENGTH, WIDTH, requires_grad=True) for _ in range(3)]
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = attention(*given, dropout_p=dropout)
    out.sum().backward()
    return sum(sizes.values()), max(sizes.values())


fused, dropped = kept(0.0), kept(0.1)
print(f"kept for the gradient: {fused[0]:,} numbers without dropout, {dropped[0]:,} with 0.1")
with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
    one = torch.randn(1, HEADS, LENGTH, WIDTH, requires_grad=True)
    attention(one, one, one)
    try:
        attention(one, one, one, dropout_p=0.1)
        refused = False
    except RuntimeError:
        refused = True
print(f"the fused kernel alone, with dropout: {'an error' if refused else 'taken'}")
square = HEADS * LENGTH * LENGTH
raise SystemExit(not (fused[0] < square / 4 and dropped[1] >= square and refused))
PY
echo "torch 2.13.0:"
"$there/venv/bin/python" -W ignore "$there/kept.py"
