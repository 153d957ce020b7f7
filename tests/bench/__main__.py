"""`bin/bench NAME`: measures; prints one table."""

import sys

from tests.bench import control, quality

BENCHES = {"control": control.main, "quality": quality.main}

if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in BENCHES:
        sys.exit(f"usage: bin/bench {{{','.join(BENCHES)}}} [--help]")
    BENCHES[sys.argv[1]](sys.argv[2:])
