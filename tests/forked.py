"""Workers that start at once: a process that has imported what one needs, and forks one for each
attempt that it is told of. Importing torch is most of what a small attempt takes.

    python tests/forked.py

Each line of its standard input is [attempt folder, environment]; its answer is the exit code. The
forked process is what `python -m nasd.worker` is, but for the start.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from nasd.contract import variables
from nasd.contract.protocol import AttemptFolder
from nasd.launch import interpreter

_server: subprocess.Popen[str] | None = None


def run(folder: AttemptFolder, token: str) -> int:
    """Runs the attempt of one rank that the folder's spec tells of; its exit code."""
    global _server
    one_thread = {"OMP_NUM_THREADS": "1"}
    if _server is None or _server.poll() is not None:
        _server = subprocess.Popen(
            [
                *interpreter.command("nasd.contract.leash", str(os.getpid())),
                *(interpreter.this(), __file__),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=interpreter.environment(one_thread),
        )
    assert _server.stdin is not None and _server.stdout is not None
    place = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment = interpreter.environment({**one_thread, **place, variables.TOKEN: token})
    print(json.dumps([str(folder.path), environment]), file=_server.stdin, flush=True)
    return int(_server.stdout.readline())


def serve() -> None:
    import torch.distributed  # noqa: F401

    import nasd.worker.__main__
    import nasd.worker.stage

    for line in sys.stdin:
        path, environment = json.loads(line)
        child = os.fork()
        if child == 0:
            become(AttemptFolder(Path(path)), environment, nasd.worker.__main__.main)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def become(folder: AttemptFolder, environment: dict[str, str], worker: Callable[[], int]) -> None:
    """The process of that attempt, to its end."""
    os.setsid()
    os.environ.clear()
    os.environ.update(environment)
    with folder.log.open("ab") as log, open(os.devnull) as nothing:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        os.dup2(nothing.fileno(), 0)
    sys.argv = ["nasd.worker", str(folder.path)]
    code = 1
    try:
        code = worker()
    except SystemExit as error:
        code = int(error.code or 0)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    serve()
