"""The live page at scale: what a browser waits for, and what the server takes.

bin/bench live [--candidates 10000]
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import psutil

from nasd.record.folders import StateFolder
from nasd.record.store import Store
from tests.bench.control import fill, put_in_play
from tests.conftest import ROOT

PARTS = (
    "/",
    "/page.css",
    "/page.js",
    "/api/now",
    "/api/candidates?after=0",
    "/api/curves?generation=0",
)


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="bin/bench live", description=__doc__.split("\n")[0])
    parser.add_argument("--candidates", type=int, default=10_000)
    parser.add_argument("--times", type=int, default=20, help="of an update")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="nasd-bench-") as name:
        state = StateFolder(Path(name) / "state")
        fill(state, options.candidates)
        put_in_play(state, options.candidates, 12)
        print(json.dumps(measured(state, options.times), indent=1))


def measured(state: StateFolder, times: int) -> dict[str, float]:
    with subprocess.Popen(
        [sys.executable, "-m", "nasd", "serve", "--state", str(state.path), "--port", "0"],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    ) as server:
        try:
            assert server.stdout is not None
            found = re.search(r"http://[^/]+", server.stdout.readline())
            assert found is not None
            began = time.monotonic()
            sizes = {part: len(_got(found[0] + part)) for part in PARTS}
            first = time.monotonic() - began
            seen = json.loads(_got(found[0] + "/api/candidates?after=0"))["event"]
            store = Store(state.database)
            updates, rests = [], []
            for _ in range(times):
                began = time.monotonic()
                _got(found[0] + "/api/now")
                _got(found[0] + f"/api/candidates?after={seen}")
                rests.append(time.monotonic() - began)
                now = time.time()
                with store._transaction():
                    for number in range(1, 13):
                        store._log(now, event="request", candidate=number, detail="touched")
                began = time.monotonic()
                _got(found[0] + "/api/now")
                told = json.loads(_got(found[0] + f"/api/candidates?after={seen}"))
                updates.append(time.monotonic() - began)
                assert len(told["rows"]) == 12
                seen = told["event"]
            store.close()
            memory = psutil.Process(server.pid).memory_full_info()
        finally:
            server.terminate()
    return {
        "first page, s": round(first, 3),
        "of that the candidates, MB": round(sizes[PARTS[4]] / 1e6, 2),
        "update in which 12 changed, ms": round(1000 * statistics.median(updates), 1),
        "its slowest, ms": round(1000 * max(updates), 1),
        "update in which nothing did, ms": round(1000 * statistics.median(rests), 1),
        "memory, MB": round(memory.uss / 1e6, 1),
        "resident, MB": round(memory.rss / 1e6, 1),
    }


def _got(address: str) -> bytes:
    with urllib.request.urlopen(address, timeout=60) as answer:
        return bytes(answer.read())
