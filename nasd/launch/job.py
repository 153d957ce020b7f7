"""What a job of a cluster runs on its node: the ranks of one attempt, and word of how they left.

    python -m nasd.launch.job ATTEMPT_FOLDER COUNT TOKEN VERSION GPUS NODES

Of several nodes it runs on the first, and has srun start nasd.launch.node on each, this one too.

The launcher and its job speak through four files of the attempt's folder, so that nothing rests on
what the cluster says of the job:

    job.json     the launcher's orders: whose folder it is, and whether it is to stop. Where they
                 are gone, or another attempt's, the job ends its ranks at once
    began.json   the job's, made once: a job that is run a second time leaves again
    pulse        the job's, another one at each look: where it stands still, the job is dead,
                 whatever the cluster says
    left.json    the job's last act, when none of its ranks is left, and why they left: of Slurm's
                 own signals it may have seen the first alone, so only Slurm can say what those mean

Each node of several follows the orders itself. Between them and their job there are three more, of
which the launcher knows nothing:

    leave.json   the job's, to its nodes: their ranks are to leave
    refused.json a node's, which cannot begin: why
    node-1.json  a node's, for as long as it may have ranks: where one is left, the job leaves no
                 word, and the launcher waits as for one that it knows nothing of

The standard library alone, as it lives as long as the attempt.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import nasd
from nasd.contract import variables
from nasd.contract.leash import die_with_parent
from nasd.launch import interpreter, ranks

ORDERS, BEGAN, PULSE, LEFT = "job.json", "began.json", "pulse", "left.json"
LEAVE, REFUSED, NODE = "leave.json", "refused.json", "node-{}.json"
TERM, KILLED = "term", "killed"  # why the ranks left, where none of nasd's had them do so
LOOK_SECONDS = 2.0  # between two looks at the orders
END: Mapping[str, Any] = {"end": True}
LIMIT_SIGNAL = signal.SIGUSR1  # ahead of the time limit
ONLOOKERS = {"NCCL_RAS_ENABLE": "0"}  # NCCL's own service for them
# Ranks on one machine talk over the loopback alone; on several, over the interface that the script
# names, or that gloo and NCCL find.
LOOPBACK = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "=lo"}


def write(path: Path, message: Mapping[str, Any]) -> None:
    """Whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("w") as file:
        json.dump(message, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def read(path: Path, token: str) -> dict[str, Any] | None:
    """What a file says of the attempt; None where it is not there, or another attempt's."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and found.get("token") == token else None


class Job:
    """One job on its first node. why: of the first that asked the ranks to leave."""

    def __init__(self, folder: Path, count: int, token: str, nodes: int = 1) -> None:
        self.folder = folder
        self.count = count
        self.token = token
        self.nodes = nodes
        self.why = ""
        self._ranks: ranks.Ranks = {}
        self._ended = threading.Event()

    def run(self, version: str, gpus: bool) -> int:
        if (refused := self._refused(version, gpus)) is not None:
            why, text = refused
            print(f"error: {text}", flush=True)
            self._leave(why, text, 1)
            return 1
        if not self._claim():  # without a word: the first run of it may still be there
            print("error: the cluster ran this job a second time", flush=True)
            return 1
        self._settle(gpus)
        signal.signal(LIMIT_SIGNAL, lambda *_: self._stop("limit"))
        threading.Thread(target=self._follow, daemon=True).start()
        if self.nodes > 1:
            code, text = self._spread(version, gpus)
        else:
            code, text = self._start(self.count), ""
        self._ended.set()
        if code < 0 or any(self._nodes()):  # killed: of their ranks nothing is known
            return 1
        if code > ranks.KILLED:  # perhaps by the cluster, which ends one process after the other
            self.why = self.why or KILLED
        self._leave("refused" if text else self.why, text, code)
        return code

    def _settle(self, gpus: bool) -> None:
        """The environment of the ranks."""
        os.environ |= {
            **ONLOOKERS,
            **(LOOPBACK if self.nodes == 1 else {}),
            variables.TOKEN: self.token,
            "PYTHONUNBUFFERED": "1",
            "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        }
        if not gpus:  # a job that asked for none sees all of the node's
            os.environ["CUDA_VISIBLE_DEVICES"] = ""

    def _start(self, count: int, share: ranks.Share | None = None) -> int:
        command = interpreter.command(ranks.WORKER, str(self.folder))
        return ranks.run(count, self.folder, command, self._ranks, self._told, share)

    def _spread(self, version: str, gpus: bool) -> tuple[int, str]:
        """Has each node run its share, until the last one has ended; one that fails ends the
        others. The code, and why one of them refused, or ""."""
        for path in (self.folder / LEAVE, self.folder / REFUSED, *self._nodes()):
            path.unlink(missing_ok=True)
        about = str(self.folder), str(self.count), self.token, version
        words = *about, "gpus" if gpus else "cores", str(self.nodes)
        signal.signal(signal.SIGTERM, lambda *_: self._told())
        with ranks.met(self.folder):
            try:
                srun = subprocess.Popen(
                    [
                        "srun",
                        f"--nodes={self.nodes}",
                        f"--ntasks={self.nodes}",
                        "--ntasks-per-node=1",
                        # It does not take these from the job.
                        f"--cpus-per-task={os.environ.get('SLURM_CPUS_PER_TASK', '1')}",
                        *("--export=ALL", "--mpi=none", "--input=none", "--unbuffered"),
                        *("--kill-on-bad-exit=1", "--wait=0"),
                        *interpreter.command("nasd.launch.node", *words),
                    ],
                    preexec_fn=partial(die_with_parent, os.getpid(), may_be_init=True),
                )
            except OSError as error:
                return 1, f"srun cannot be run on {socket.gethostname()}: {error.strerror}"
            code = srun.wait()
        found = read(self.folder / REFUSED, self.token)
        return code, "" if found is None else str(found["text"])

    def _nodes(self) -> Iterator[Path]:
        return self.folder.glob(NODE.format("*"))

    def _refused(self, version: str, gpus: bool) -> tuple[str, str] | None:
        """Why it does not begin, and the sentence for it."""
        if self._orders() == END:
            return "ordered", "it was ended before it began"
        if version != nasd.__version__:
            return "refused", (
                f"{socket.gethostname()} has nasd {nasd.__version__} and the daemon {version}:"
                " install one and the same, or name the right one with slurm.python"
            )
        if gpus and not os.environ.get("CUDA_VISIBLE_DEVICES"):
            return "refused", (
                f"Slurm gave the job no GPU on {socket.gethostname()}: ask for some with"
                " slurm.gres, or take CPU shares as slots.devices"
            )
        return None

    def _claim(self) -> bool:
        """Whether this is the first run of the job."""
        try:
            descriptor = os.open(self.folder / BEGAN, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        except FileExistsError:
            if read(self.folder / BEGAN, self.token) is not None:
                return False
            (self.folder / BEGAN).unlink()  # half written, or another attempt's: nobody begun here
            return self._claim()
        with os.fdopen(descriptor, "w") as file:
            said = {
                "token": self.token,
                "at": time.time(),
                "host": socket.gethostname(),
                "job": os.environ.get("SLURM_JOB_ID", ""),
            }
            json.dump(said, file)
        return True

    def _told(self) -> None:
        """By the cluster, with SIGTERM."""
        self.why = self.why or TERM

    def _stop(self, why: str) -> None:
        self.why = self.why or why
        if self.nodes > 1:
            with contextlib.suppress(OSError):
                write(self.folder / LEAVE, {"token": self.token})
            return
        self._signal(signal.SIGTERM)

    def _signal(self, number: int) -> None:
        for rank in list(self._ranks.values()):
            with contextlib.suppress(ProcessLookupError):
                rank.send_signal(number)

    def _follow(self) -> None:
        """In a thread of its own: does as the orders say."""
        asked = False
        while not self._ended.wait(LOOK_SECONDS):
            with contextlib.suppress(OSError):
                (self.folder / PULSE).write_text(str(time.monotonic()))
            orders = self._orders()
            if orders == END:
                self.why = "ordered"
                self._signal(signal.SIGKILL)
            elif orders.get("stop") and not asked:
                asked = True
                self._stop("ordered")

    def _orders(self) -> Mapping[str, Any]:
        """END where there are none for it; none to heed where they cannot be read just now."""
        try:
            found = json.loads((self.folder / ORDERS).read_text())
        except FileNotFoundError:
            return END
        except (OSError, ValueError):
            return {}
        return found if found.get("token") == self.token else END

    def _leave(self, why: str, text: str, code: int) -> None:
        said = {"token": self.token, "why": why, "text": text, "code": code, "at": time.time()}
        with contextlib.suppress(OSError):  # the folder is gone, or its disk is full
            write(self.folder / LEFT, said)


def main(arguments: list[str]) -> int:
    # One that waits since before an upgrade names no nodes.
    folder, count, token, version, gpus, nodes = [*arguments, "1"][:6]
    return Job(Path(folder), int(count), token, int(nodes)).run(version, gpus == "gpus")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
