"""What a Slurm cluster says of the jobs of nasd's: one squeue for all of them, not waited for."""

import math
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from nasd.launch import interpreter

NAME = "nasd-"  # of a job, before its attempt's token
FORMAT = "%i|%T|%r|%N|%j|%Z"
ANSWER_SECONDS = 1.0  # for which a turn waits for squeue
PATIENCE_SECONDS = 120.0  # until one that does not answer is ended

PENDING = {"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT"}
STANDING = {"SUSPENDED", "STOPPED"}
OVER = {
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY",
    "PREEMPTED", "REVOKED", "TIMEOUT",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Seen:
    """A job as squeue lists it. reason: why it waits, or why it ended. nodes: "" before it has any.
    folder: its attempt's."""

    id: str
    state: str
    reason: str
    nodes: str
    token: str
    folder: Path


class Queue:
    """What squeue said last.

    jobs: by token, those that have ended for a while too. asked_at: when that was asked for,
    monotonic. fault: why there was no answer since.
    """

    def __init__(self, poll_seconds: float, name: str = NAME) -> None:
        self._poll = poll_seconds
        self._name = name
        self._asking: tuple[subprocess.Popen[bytes], IO[bytes], float] | None = None
        self._heard = -math.inf
        self.jobs: dict[str, Seen] = {}
        self.asked_at = -math.inf
        self.fault = ""

    def look(self, at_once: bool = False) -> None:
        """Asks where it is time, or `at_once`, and takes the answer where there is one."""
        now = time.monotonic()
        if self._asking is None and (at_once or now - self._heard >= self._poll):
            self._asking = *_ask(), now
            while self._asking[0].poll() is None and time.monotonic() - now < ANSWER_SECONDS:
                time.sleep(0.002)
        if self._asking is None:
            return
        asked, said, since = self._asking
        if asked.poll() is None:
            if time.monotonic() - since > ANSWER_SECONDS:
                self.fault = self.fault or "squeue has not answered yet"
            if time.monotonic() - since > PATIENCE_SECONDS:
                asked.kill()
            return
        self._asking, self._heard = None, time.monotonic()
        with said:
            said.seek(0)
            text = said.read().decode(errors="replace")
        if asked.returncode != 0:
            self.fault = last_line(text)
            return
        self.asked_at, self.fault = since, ""
        self.jobs = {one.token: one for one in parsed(text, self._name)}


def _ask() -> tuple[subprocess.Popen[bytes], IO[bytes]]:
    # A pipe would hold it up where there are thousands of jobs.
    said = tempfile.TemporaryFile()  # noqa: SIM115
    words = ["squeue", "--me", "--states=all", "--noheader", f"--format={FORMAT}"]
    asked = subprocess.Popen(
        words, stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.STDOUT, env=environment()
    )
    return asked, said


def parsed(text: str, begins: str = NAME) -> Iterator[Seen]:
    """The jobs that are nasd's, of what squeue prints; other lines are for other people."""
    for line in text.splitlines():
        parts = line.split("|", 5)
        if len(parts) == 6 and parts[4].startswith(begins):
            number, state, reason, nodes, name, folder = parts
            yield Seen(number, state, reason, nodes, name.removeprefix(begins), Path(folder))


def environment() -> dict[str, str]:
    """Of Slurm's commands: where the daemon is in a job of its own, not what that was given."""
    kept = ("SLURM_CONF", "SLURM_JWT")
    return {
        name: value
        for name, value in interpreter.environment().items()
        if not name.startswith(("SLURM_", "SBATCH_", "SQUEUE_", "SCANCEL_")) or name in kept
    }


def last_line(said: str) -> str:
    """What a command of Slurm's says last, without who says so."""
    line = (said.strip().splitlines() or ["no word of why"])[-1]
    for prefix in ("error:", "fatal:", "failure:", "failed:"):
        line = line.rpartition(prefix)[2]
    return line.strip().rstrip(".")[:300]
