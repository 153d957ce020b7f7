"""The launcher of this machine: it runs `nasd.launch.ranks`, also for a single rank."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from nasd.contract import variables
from nasd.contract.errors import NasdError
from nasd.contract.protocol import AttemptFolder
from nasd.launch import devices, gpus, interpreter
from nasd.launch.launcher import Entry, Launcher

KILL_SECONDS = 10.0
# Ranks on one machine talk over the loopback alone; the third is NCCL's own service for onlookers.
LOOPBACK = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "=lo", "NCCL_RAS_ENABLE": "0"}


class LocalLauncher(Launcher):
    """`nasd.launch.ranks` on this machine; one rank a slot."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._children: dict[int, subprocess.Popen[bytes]] = {}
        self._roots: dict[str, psutil.Process] = {}  # what was started for a token

    def start(self, folder: AttemptFolder, slots: Sequence[str], token: str) -> dict[str, Any]:
        command = [
            *interpreter.command("nasd.contract.leash", str(os.getpid())),
            *interpreter.command("nasd.launch.ranks", str(len(slots)), str(folder.path)),
        ]
        environment = {
            **LOOPBACK,
            **gpus.visible(slots),
            variables.TOKEN: token,
            "OMP_NUM_THREADS": str(self._threads),
            "PYTHONUNBUFFERED": "1",
        }
        with folder.log.open("ab") as log:
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=interpreter.environment(environment),
                start_new_session=True,  # a Ctrl-C is the daemon's to handle
            )
        root = psutil.Process(child.pid)
        self._children[child.pid] = child
        self._roots[token] = root
        return {
            "pid": child.pid,
            "started": root.create_time(),
            "boot": _boot_id(),
        }

    def alive(self, process: Mapping[str, Any]) -> bool:
        child = self._children.get(process["pid"])
        if child is not None:
            if child.poll() is None:
                return True
            del self._children[process["pid"]]
            return False
        if process["boot"] != _boot_id():
            return False
        try:
            other = psutil.Process(process["pid"])
            return bool(other.create_time() == process["started"] and _runs(other))
        except psutil.NoSuchProcess:
            return False

    def stop(self, token: str) -> None:
        # Only the ranks: what started them would hand it on, and they be asked twice.
        for process in self._of(token):
            if "nasd.worker" in _command(process):
                _signal(process, signal.SIGTERM)

    def owns(self, pid: int) -> bool | None:
        try:
            return psutil.Process(pid).environ().get(variables.TOKEN) in self._roots
        except psutil.NoSuchProcess:
            return None
        except psutil.AccessDenied:  # another user's
            return False

    def clear(self, token: str) -> int:
        ended: set[int] = set()
        deadline = time.monotonic() + KILL_SECONDS
        while found := self._of(token):  # again: one may have been forked behind the look
            for process in found:
                _signal(process, signal.SIGKILL)
                ended.add(process.pid)
            psutil.wait_procs(found, timeout=1)
            if time.monotonic() > deadline:
                raise NasdError(
                    f"process {found[0].pid} does not die, a GPU or a disk must hang: its slots"
                    " stay taken until it does"
                )
        self._roots.pop(token, None)
        for pid, child in list(self._children.items()):
            if child.poll() is not None:
                del self._children[pid]
        return len(ended)

    def _of(self, token: str) -> list[psutil.Process]:
        """The processes of an attempt: those that carry its token, and the one started for it,
        which carries none in the instant in which the leash becomes another."""
        found = carrying(token)
        root = self._roots.get(token)
        if root is not None and root not in found and _runs(root):
            found.append(root)
        return found


ENTRY = Entry(
    devices=lambda config, begun: devices.found(config.slots, begun),
    open=lambda config, state: LocalLauncher(config.slots.threads),
    health=gpus.watched,
    leashed=True,
)


def carrying(token: str) -> list[psutil.Process]:
    """The processes that carry an attempt's token in their environment."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            if process.environ().get(variables.TOKEN) == token and _runs(process):
                found.append(process)
    return found


def _runs(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _command(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
    except psutil.NoSuchProcess:
        return []


def _signal(process: psutil.Process, number: int) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(number)


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
