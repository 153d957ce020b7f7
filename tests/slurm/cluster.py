"""A Slurm on this machine's loopback, with its own munge, in a folder of its own: of one node, or
of several that are one machine, each with a slurmd.

    python -m tests.slurm.cluster FOLDER      starts one and waits; Ctrl-C ends it

Nothing of the machine's own Slurm is touched: other ports, other sockets, other state. It takes
root, as slurmd does.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel", "scontrol", "sinfo")
CPUS, GPUS = 8, 2  # made up: Slurm hands out what it is told of
START_SECONDS = 30.0
KILL_WAIT_SECONDS = 10


def missing() -> str:
    """Why no Slurm can be started here; "" if one can."""
    if os.geteuid() != 0:
        return "slurmd needs root"
    absent = [name for name in PROGRAMS if _found(name) is None]
    return f"{', '.join(absent)} cannot be found: tests/slurm/install" if absent else ""


def _found(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


class Cluster:
    """Its processes are munged, slurmctld and a slurmd for each node (slurmd1, slurmd2, ... of
    several); each may be killed and started again."""

    def __init__(self, folder: Path, nodes: int = 1) -> None:
        self.nodes = (
            {"slurmd": socket.gethostname()}
            if nodes == 1
            else {f"slurmd{number}": f"node{number}" for number in range(1, nodes + 1)}
        )
        self.folder = folder
        self.conf = folder / "slurm.conf"
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o755)
        for name in ("munge", "state", "spool"):
            (folder / name).mkdir(exist_ok=True)
        (folder / "munge").chmod(0o755)
        key = folder / "munge" / "key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        self._write()

    @property
    def environment(self) -> dict[str, str]:
        """By which a client finds this one."""
        return {"SLURM_CONF": str(self.conf)}

    def start(self, *names: str) -> None:
        """All of them, or those named."""
        for name in names or ("munged", "slurmctld", *self.nodes):
            program = _found("slurmd" if name in self.nodes else name)
            assert program is not None
            with (self.folder / f"{name}.out").open("ab") as log:
                self._running[name] = subprocess.Popen(
                    [program, *self._arguments(name)],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=os.environ | self.environment,
                    start_new_session=True,
                )
            if name == "munged":
                _until(lambda: self._socket.exists())
        _until(self.answers)
        if not names:
            _until(lambda: {*self.ask("sinfo", "-h", "-N", "-o", "%t").split()} <= {"idle", "mix"})

    def kill(self, name: str) -> None:
        """By SIGKILL."""
        process = self._running.pop(name)
        process.kill()
        process.wait()

    def answers(self) -> bool:
        return "UP" in self.ask("scontrol", "ping", check=False)

    def ask(self, program: str, *arguments: str, check: bool = True) -> str:
        """What a client of Slurm's says."""
        return subprocess.run(
            [program, *arguments],
            env=os.environ | self.environment,
            capture_output=True,
            text=True,
            check=check,
            timeout=60,
        ).stdout

    def steps(self) -> list[psutil.Process]:
        """The slurmstepd processes of this cluster's jobs."""
        found = {}
        for one in psutil.process_iter():
            with suppress(psutil.Error):
                above = one.parent()  # has no environment of its own
                ours = one.environ().get("SLURM_CONF") == str(self.conf)
                if ours and above is not None and above.name().startswith("slurmstepd"):
                    found[above.pid] = above
        return list(found.values())

    def stop(self) -> None:
        with suppress(Exception):
            self.ask("scancel", "--user", "root", check=False)
        for name in reversed(list(self._running)):
            self._running[name].send_signal(signal.SIGTERM)
            try:
                self._running[name].wait(10)
            except subprocess.TimeoutExpired:
                self._running[name].kill()
                self._running[name].wait()
        self._running.clear()

    # -- inside --------------------------------------------------------------------------------

    @property
    def _socket(self) -> Path:
        return self.folder / "munge" / "socket"

    def _arguments(self, name: str) -> list[str]:
        munge = self.folder / "munge"
        return {
            "munged": [
                "--foreground",
                f"--socket={self._socket}",
                f"--key-file={munge / 'key'}",
                f"--pid-file={munge / 'pid'}",
                f"--seed-file={munge / 'seed'}",
                f"--log-file={munge / 'log'}",
            ],
            "slurmctld": ["-D", "-f", str(self.conf)],
            **{each: ["-D", "-f", str(self.conf), "-N", node] for each, node in self.nodes.items()},
        }[name]

    def _write(self) -> None:
        host = socket.gethostname()
        devices = []
        for index in range(GPUS):  # files that stand in for devices
            device = self.folder / f"gpu{index}"
            if not device.exists():
                os.mknod(device, 0o666 | 0o020000, os.makedev(1, 3))
            devices.append(device)
        nodes = [*self.nodes.values()]
        (self.folder / "gres.conf").write_text(
            "".join(
                f"NodeName={node} Name=gpu File={device}\n" for node in nodes for device in devices
            )
        )
        control, *daemons = _free_ports(1 + len(nodes))
        lines = [
            f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={CPUS}"
            f" RealMemory=4000 Gres=gpu:{GPUS} State=UNKNOWN\n"
            for node, port in zip(nodes, daemons, strict=True)
        ]
        self.conf.write_text(
            f"""\
ClusterName=nasd
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={self._socket}
CredType=cred/munge
SlurmctldPort={control}
StateSaveLocation={self.folder / "state"}
SlurmdSpoolDir={self.folder / "spool"}/%n
SlurmctldPidFile={self.folder / "slurmctld.pid"}
SlurmdPidFile={self.folder / "slurmd"}.%n.pid
SlurmctldLogFile={self.folder / "slurmctld.log"}
SlurmdLogFile={self.folder / "slurmd"}.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
ReturnToService=2
KillWait={KILL_WAIT_SECONDS}
SlurmdTimeout=300
GresTypes=gpu
JobRequeue=1
{"".join(lines)}\
PartitionName=main Nodes={",".join(nodes)} Default=YES MaxTime=60 State=UP
PartitionName=other Nodes={",".join(nodes)} MaxTime=60 State=DOWN
"""
        )


def _free_ports(count: int) -> list[int]:
    held = [socket.socket() for _ in range(count)]
    for one in held:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in held]
    for one in held:
        one.close()
    return ports


def _until(done: object, seconds: float = START_SECONDS) -> None:
    end = time.monotonic() + seconds
    while not done():  # type: ignore[operator]
        assert time.monotonic() < end, "Slurm does not come up"
        time.sleep(0.1)


@contextmanager
def running(folder: Path | None = None, nodes: int = 1) -> Iterator[Cluster]:
    """A cluster that is up, and gone behind it. Munge's socket takes a folder that all may enter:
    one below /tmp if none is named."""
    cluster = Cluster(folder or Path(tempfile.mkdtemp(prefix="nasd-cluster-", dir="/tmp")), nodes)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
        if folder is None:
            shutil.rmtree(cluster.folder, ignore_errors=True)


if __name__ == "__main__":
    with running(Path(sys.argv[1])) as one, suppress(KeyboardInterrupt):
        print(f"export SLURM_CONF={one.conf}", flush=True)
        signal.pause()
