#!/usr/bin/env bash
# torch 2.13.0: a gloo process group of one single rank, which has nobody to talk to and meets in a
# file, still opens a listening socket, and keeps it. On which interface follows
# GLOO_SOCKET_IFNAME, else the host's name.
# Seen: world size 1 -> 1 listening socket
set -euo pipefail
there=$(mktemp -d)
trap 'rm -rf "$there"' EXIT
python3 -m venv "$there/venv"
"$there/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6 psutil==7.2.2
GLOO_SOCKET_IFNAME=lo "$there/venv/bin/python" - "$there/meet" <<'PY'
import sys

import psutil
import torch
import torch.distributed as dist

store = dist.FileStore(sys.argv[1], 1)
dist.init_process_group("gloo", store=store, rank=0, world_size=1)
listening = [one for one in psutil.Process().net_connections("inet") if one.status == "LISTEN"]
print(f"torch {torch.__version__}: world size 1 -> {len(listening)} listening socket")
dist.destroy_process_group()
sys.exit(len(listening) != 1)
PY
