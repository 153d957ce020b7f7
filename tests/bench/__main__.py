"""`bin/bench NAME`: measures; prints one table."""

import signal
import sys
from importlib import import_module

BENCHES = (
    "ablation", "child", "control", "fidelity", "live", "memory", "mended", "quality", "recipe",
    "rules", "search", "slots", "startup", "training", "words",
)  # fmt: skip

# Processes that a bench spawns import this file, too, and need none of it.
if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in BENCHES:
        sys.exit(f"usage: bin/bench {{{','.join(BENCHES)}}} [--help]")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # it clears up after itself
    import_module(f"tests.bench.{sys.argv[1]}").main(sys.argv[2:])
