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
from pathlib import Path

from nasd.launch.job import END, LEAVE, LOOK_SECONDS, REFUSED, Job, read, write
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
        here = self.count // self.nodes
        code = self._start(here, Share(here * int(os.environ["SLURM_NODEID"]), self.count))
        self._ended.set()
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


def main(arguments: list[str]) -> int:
    folder, count, token, version, gpus, nodes = arguments
    return Node(Path(folder), int(count), token, int(nodes)).run(version, gpus == "gpus")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
