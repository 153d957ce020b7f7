"""What a node of several runs for a job: its share of the attempt's ranks.

    python -m nasd.launch.node ATTEMPT_FOLDER COUNT TOKEN VERSION GPUS NODES

It follows the launcher's orders itself, so that nothing of it is left where the job's own process,
or the way to it, is. The standard library alone, as it lives as long as the attempt.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nasd.launch.job import END, LEAVE, LEFT, LOOK_SECONDS, NODE, REFUSED, Job, read, write
from nasd.launch.ranks import Share


class Node(Job):
    def run(self, version: str, gpus: bool) -> int:
        if (refused := self._refused(version, gpus)) is not None:
            why, text = refused
            print(f"error: {text}", flush=True)
            if why == "refused":
                with contextlib.suppress(OSError):
                    write(self.folder / REFUSED, {"token": self.token, "text": text})
            return 1
        self._settle(gpus)
        threading.Thread(target=self._follow, daemon=True).start()
        here, number = self.count // self.nodes, int(os.environ["SLURM_NODEID"])
        told = self.folder / NODE.format(number)
        write(told, {"token": self.token})
        code = self._start(here, Share(here * number, self.count))
        self._ended.set()
        told.unlink()
        return code

    def _follow(self) -> None:
        asked = False
        while not self._ended.wait(LOOK_SECONDS):
            orders = self._orders()
            if orders == END:
                self._signal(signal.SIGKILL)
            elif not asked:
                leave = orders.get("stop") or read(self.folder / LEAVE, self.token) is not None
                if leave:
                    asked = True
                    self._signal(signal.SIGTERM)

    def _orders(self) -> Mapping[str, Any]:
        """Who comes up when the job is over has none."""
        over = read(self.folder / LEFT, self.token) is not None
        return END if over else super()._orders()


def main(arguments: list[str]) -> int:
    folder, count, token, version, gpus, nodes = arguments
    return Node(Path(folder), int(count), token, int(nodes)).run(version, gpus == "gpus")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
