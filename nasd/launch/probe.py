"""What a probe job says of its node, for `nasd doctor`.

    python -m nasd.launch.probe FOLDER

Standard library alone.
"""

import json
import socket
import sys
import time
from pathlib import Path

import nasd


def main(folder: Path) -> None:
    mine = folder / "mine"
    mine.write_text("")
    said = {
        "node": socket.gethostname(),
        "version": nasd.__version__,
        "ahead": time.time() - mine.stat().st_mtime,  # of the file server's clock
    }
    temporary = folder / ".told.json.tmp"
    temporary.write_text(json.dumps(said))
    temporary.replace(folder / "told.json")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
