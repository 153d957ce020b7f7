"""The launcher of a Slurm cluster: each attempt is one job, on one node or several.

Slurm starts a job and ends it; what became of the attempt its own files say (nasd.launch.job), as
far as they can. So a controller that is down, or that takes a node for lost on which a worker still
trains, changes nothing: what is not known is taken for alive, and an attempt is over when its job's
last word stands, or when Slurm knows of no job and none has answered an order either.

A job is found again by its name, which carries the attempt's token. It is never requeued: it goes
on as another attempt, with a row of its own.
"""

import math
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import nasd
from nasd.contract.config import PREPARE, SCREEN, Config
from nasd.contract.errors import NasdError
from nasd.contract.protocol import AttemptFolder, Spec, read, write_atomically
from nasd.contract.slots import Slot, SlotKind, on_gpus
from nasd.launch import interpreter, job
from nasd.launch.launcher import Entry, Launcher, NotYet
from nasd.launch.queue import NAME, OVER, PENDING, STANDING, Queue, Seen, environment
from nasd.launch.sbatch import SUBMIT_SECONDS, options, spread, submitted
from nasd.record.state import Because, Word

PROGRAMS = ("sbatch", "squeue", "scancel")
# After a job's orders are gone, until one that Slurm no longer knows of has surely seen that: it
# looks each job.LOOK_SECONDS, and a shared file system may show it for a while what was there.
FENCE_SECONDS = 5 * job.LOOK_SECONDS
# From a job's last word until no answer of Slurm's is waited for that says who ended it: where its
# own process beside the job has died, it takes the job for alive for long.
UNTOLD_SECONDS = 60.0
# For which a job that Slurm knows nothing of may show no sign of life: one in job.LOOK_SECONDS.
UNKNOWN_SECONDS = 30.0
SWEEP_SECONDS = 60.0
FULL_SECONDS = 30.0  # after which jobs are submitted again where none were taken
# Also where all nodes are drained just now, of a job that is not submitted for good.
NO_NODES = "Requested node configuration is not available"
HELD = {"JobHeldUser": "its owner", "JobHeldAdmin": "an administrator"}
NO_SLURM = (
    "slots.launcher: {} cannot be found: run the daemon where Slurm's commands are, as on a login"
    ' node, or take launcher = "local"'
)


class SlurmLauncher(Launcher):
    """state: the folder below which the attempts' own stand; the nodes see it by the same path."""

    def __init__(self, config: Config, state: Path) -> None:
        self._config = config
        self._attempts = state.resolve() / "attempts"
        self._queue = Queue(config.slurm.poll_seconds)
        self._folders: dict[str, AttemptFolder] = {}  # by token
        self._submitted: dict[str, float] = {}  # monotonic, by token
        self._asked: set[str] = set()  # to stop
        self._met: dict[str, float] = {}  # monotonic, by token: when it was seen to have begun
        self._left: dict[str, float] = {}  # monotonic, by token: when its last word was seen
        # By token: since when there are no orders, and whether it was alive then.
        self._fenced: dict[str, tuple[float, bool]] = {}
        self._cancelled: dict[str, float] = {}  # by token: the answer that showed it alive
        self._words: dict[str, Word] = {}  # by token
        self._dead: set[str] = set()  # silent for too long
        # By token: when its pulse was looked at last, what it was, and since when; monotonic.
        self._pulses: dict[str, tuple[float, str, float]] = {}
        self._full: tuple[str, float] = ("", -math.inf)  # what sbatch said, and until when it holds
        self._swept = time.monotonic()
        self._stray: set[str] = set()  # tokens, as of the last sweep

    def start(self, folder: AttemptFolder, slots: Sequence[str], token: str) -> dict[str, Any]:
        path = self._attempts / folder.path.name
        self._folders[token] = AttemptFolder(path)
        spec = read(Spec, folder.spec)
        for name in (job.BEGAN, job.LEFT):
            (path / name).unlink(missing_ok=True)
        script = path / "job.sh"
        nodes = spread(len(slots), self._config.slurm.of(_stage(spec)).nodes)
        write_atomically(script, self._script(path, slots, token, nodes).encode())
        job.write(path / job.ORDERS, {"token": token})
        words = [
            *("sbatch", "--parsable", f"--job-name={NAME}{token}", f"--chdir={path}"),
            f"--comment=candidate {spec.candidate}, {_stage(spec)}, attempt {spec.attempt}",
            *("--output=" + str(path / folder.log.name).replace("%", "%%"), "--open-mode=append"),
            *options(self._config, _stage(spec), slots),
            str(script),
        ]
        self._submitted[token] = math.inf  # until it is known
        try:
            number = submitted(words, _stage(spec)).partition(";")[0]
        except NotYet as error:
            self._full = str(error), time.monotonic() + FULL_SECONDS
            raise
        self._submitted[token] = time.monotonic()
        return {"job": number, "token": token, "attempt": path.name}

    def alive(self, process: Mapping[str, Any]) -> bool:
        if "job" not in process:  # another launcher's, whose daemon took it along
            return False
        token, folder = self._known(process)
        self._look()
        seen = self._queue.jobs.get(token)
        left = job.read(folder.path / job.LEFT, token)
        if left is not None and not self._untold(token, left["why"], folder):
            return False
        if not self._knows(token):
            return True
        if seen is None:  # it may run all the same: a controller that is killed forgets some
            return left is None and self._beats(token, folder)
        if seen.state in OVER:
            return False
        patience = 60 * self._config.daemon.stall_minutes
        if seen.state not in STANDING and left is None and self._silent(token, folder, patience):
            return False
        return not self._requeued(token, seen)  # it never runs again

    def stop(self, token: str) -> None:
        folder = self._find(token)
        if folder is None:
            return
        orders = folder.path / job.ORDERS
        if token not in self._asked and orders.exists():
            job.write(orders, {"token": token, "stop": True})
        self._asked.add(token)
        seen = self._queue.jobs.get(token)
        if seen is not None and seen.state in PENDING:
            self._cancel(seen, "--state=PENDING")

    def owns(self, pid: int) -> bool | None:
        return None  # what runs, runs elsewhere

    def clear(self, token: str) -> int:
        folder = self._find(token)
        self._look()
        seen = self._queue.jobs.get(token)
        there = seen is not None and seen.state not in OVER
        left = began = None
        if folder is not None:
            left = job.read(folder.path / job.LEFT, token)
            began = job.read(folder.path / job.BEGAN, token)
            (folder.path / job.ORDERS).unlink(missing_ok=True)
        fenced, was = self._fenced.setdefault(token, (time.monotonic(), there and left is None))
        if left is None:
            if there:
                assert seen is not None
                self._cancel(seen)
                self._look(at_once=True)
                seen = self._queue.jobs.get(token)
                if seen is not None and seen.state not in OVER:
                    raise NotYet(f"Slurm is ending its job {seen.id}")
            elif not self._knows(token):
                raise NotYet(f"Slurm does not say what becomes of its job: {self._queue.fault}")
            if began is not None and time.monotonic() - fenced < FENCE_SECONDS:
                raise NotYet("Slurm knows of no job of it, which may yet have to see that it ends")
        clocks = self._submitted, self._met, self._left, self._cancelled
        for known in (*clocks, self._fenced, self._words):
            known.pop(token, None)
        self._folders.pop(token, None)
        self._pulses.pop(token, None)
        self._asked.discard(token)
        self._dead.discard(token)
        return int(was)

    def waits(self, process: Mapping[str, Any]) -> str | None:
        token, folder = self._known(process)
        seen = self._queue.jobs.get(token)
        number = process["job"]
        if seen is not None and seen.state in STANDING:
            return f"its job {number} is suspended"
        if token in self._met:  # it has begun, and is not read again
            return None
        if any(job.read(folder.path / name, token) for name in (job.BEGAN, job.LEFT)):
            return None
        if seen is None:
            return f"its job {number} waits" if not self._knows(token) else None
        if seen.state not in PENDING:
            return None
        if who := HELD.get(seen.reason):
            return f"its job {number} is held by {who}: `scontrol release {number}` lets it go"
        reason = "" if seen.reason == "None" else f": {seen.reason}"
        return f"its job {number} waits{reason}"

    def began(self, process: Mapping[str, Any]) -> float | None:
        token, folder = self._known(process)
        said = job.read(folder.path / job.BEGAN, token)
        return None if said is None else float(said["at"])

    def word(self, process: Mapping[str, Any]) -> Word | None:
        """The first one stands: once it is cleared, Slurm says that nasd cancelled it."""
        if "job" not in process:
            return None
        token, _ = self._known(process)
        if token not in self._words and (word := self._word(process)) is not None:
            self._words[token] = word
        return self._words.get(token)

    def _word(self, process: Mapping[str, Any]) -> Word | None:
        token, folder = self._known(process)
        seen = self._queue.jobs.get(token)
        left = job.read(folder.path / job.LEFT, token) or {"why": "", "text": ""}
        state = seen.state if seen is not None else ""
        what, where = (
            f"its job {process['job']}",
            f" on {seen.nodes}" if seen and seen.nodes else "",
        )
        begun = job.read(folder.path / job.BEGAN, token) is not None
        orders = job.read(folder.path / job.ORDERS, token)
        ours = orders is None or orders.get("stop", False)
        if left["why"] == "refused":
            return Word(Because.REFUSED, left["text"])
        if state == "TIMEOUT" or left["why"] == "limit":
            return Word(Because.LIMIT, f"{what} came to its time limit (slurm.time_minutes)")
        if state == "PREEMPTED":
            return Word(Because.INTERRUPTED, f"{what} was preempted")
        if seen is not None and self._requeued(token, seen) and not ours:
            return Word(Because.INTERRUPTED, f"{what} was requeued")
        if state == "CANCELLED" and not ours:
            return Word(Because.CANCELLED, f"{what} was cancelled")
        gone = token in self._dead or left["why"] == job.KILLED
        if seen is None and self._knows(token) and begun and gone:
            return Word(Because.INTERRUPTED, f"Slurm knows of {what} no more, and it is gone")
        if token in self._dead:
            return Word(Because.LOST, f"{what} has fallen silent{where}, and Slurm has not seen it")
        if state in ("NODE_FAIL", "BOOT_FAIL"):
            return Word(Because.LOST, f"{what} lost its node{where} ({state})")
        if state == "OUT_OF_MEMORY":
            return Word(Because.LOST, f"{what} took more than slurm.memory_gb{where}")
        if state in ("FAILED", "DEADLINE") and left["why"] in ("", job.KILLED):
            # Slurm calls it so as well where what had begun was killed.
            launch = seen is not None and seen.reason == "JobLaunchFailure" and not begun
            why = f"does the node see {self._attempts}?" if launch else "see its worker.log"
            reason = seen.reason if seen is not None else ""
            return Word(Because.LOST, f"{what} failed{where} ({reason}): {why}")
        return None

    def away(self) -> str | None:
        self._look()
        if fault := self._queue.fault:
            return f"Slurm does not answer, so nothing starts: {fault}"
        said, until = self._full
        return said if time.monotonic() < until else None

    # -- inside --------------------------------------------------------------------------------

    def _script(self, path: Path, slots: Sequence[str], token: str, nodes: int) -> str:
        python = self._config.slurm.python
        gpus = "gpus" if on_gpus(slots) else "cores"
        words = (str(path), str(len(slots)), token, nasd.__version__, gpus, str(nodes))
        return "\n".join(
            [
                "#!/bin/sh",
                "trap '' USR1  # until the job listens",
                f"export OMP_NUM_THREADS={self._config.slots.threads}",
                *self._config.slurm.setup,
                # As the batch shell itself: the signal ahead of the time limit is for that alone.
                f"exec {shlex.join(interpreter.command('nasd.launch.job', *words, python=python))}",
                "",
            ]
        )

    def _look(self, at_once: bool = False) -> None:
        self._queue.look(at_once)
        if time.monotonic() - self._swept >= SWEEP_SECONDS:
            self._swept = time.monotonic()
            self._sweep()

    def _sweep(self) -> None:
        """Cancels jobs that are of no attempt any more, once they have been so for two sweeps: as
        one whose sbatch was killed with its daemon, or that its steps' own end did not end."""
        stray = set()
        for token, seen in self._queue.jobs.items():
            if seen.state in OVER or seen.folder.parent != self._attempts:
                continue
            ordered = job.read(seen.folder / job.ORDERS, token) is not None
            if not ordered or job.read(seen.folder / job.LEFT, token) is not None:
                stray.add(token)
                if token in self._stray:
                    self._cancel(seen)
        self._stray = stray

    def _known(self, process: Mapping[str, Any]) -> tuple[str, AttemptFolder]:
        token = process["token"]
        if token not in self._folders:
            self._folders[token] = AttemptFolder(self._attempts / process["attempt"])
        return token, self._folders[token]

    def _find(self, token: str) -> AttemptFolder | None:
        """An attempt's folder, also where its daemon was killed before it knew of the job."""
        if token not in self._folders:
            for path in self._attempts.glob(f"*/{job.ORDERS}"):
                if job.read(path, token) is not None:
                    self._folders[token] = AttemptFolder(path.parent)
        seen = self._queue.jobs.get(token)
        if token not in self._folders and seen is not None and seen.folder.parent == self._attempts:
            self._folders[token] = AttemptFolder(seen.folder)
        return self._folders.get(token)

    def _knows(self, token: str) -> bool:
        """Whether Slurm has answered since the job was submitted."""
        submitted = self._submitted.get(token, -math.inf)
        return self._queue.asked_at > (-math.inf if submitted == math.inf else submitted)

    def _untold(self, token: str, why: str, folder: AttemptFolder) -> bool:
        """Whether Slurm has yet to say whose signals ended a job that has left its last word."""
        if why not in (job.TERM, job.KILLED) or not (folder.path / job.ORDERS).exists():
            return False
        since = self._left.setdefault(token, time.monotonic())
        return self._queue.asked_at - since < UNTOLD_SECONDS

    def _requeued(self, token: str, seen: Seen) -> bool:
        """Whether a job that has begun waits again, which an answer of before does not show."""
        if token not in self._met:
            if job.read(self._folders[token].path / job.BEGAN, token) is None:
                return False
            self._met[token] = time.monotonic()
        return seen.state in PENDING and self._queue.asked_at > self._met[token]

    def _beats(self, token: str, folder: AttemptFolder) -> bool:
        """Whether a job of which Slurm knows nothing has begun, and shows signs of life."""
        begun = job.read(folder.path / job.BEGAN, token) is not None
        return begun and not self._silent(token, folder, UNKNOWN_SECONDS)

    def _silent(self, token: str, folder: AttemptFolder, patience: float) -> bool:
        """Whether a job that has begun has shown no sign of life for so many seconds, which Slurm
        may not see for long where its own process beside it has died."""
        now = time.monotonic()
        looked, pulse, since = self._pulses.get(token, (-math.inf, "", now))
        if token in self._dead or now - looked < patience / 4:
            return token in self._dead
        if job.read(folder.path / job.BEGAN, token) is None:
            return False
        with suppress(OSError):
            found = (folder.path / job.PULSE).read_text()
            since = now if found != pulse else since
            pulse = found
        rhythm = self._config.daemon.tick_seconds
        if now - looked > 2 * max(patience, rhythm):  # nobody has listened meanwhile
            since = now
        self._pulses[token] = now, pulse, since
        if now - since > patience:
            self._dead.add(token)
        return token in self._dead

    def _cancel(self, seen: Seen, *options: str) -> None:
        """Once for each answer that shows it alive."""
        if self._cancelled.get(seen.token) == self._queue.asked_at:
            return
        self._cancelled[seen.token] = self._queue.asked_at
        with suppress(subprocess.TimeoutExpired):  # or it is gone by itself, or asked again
            subprocess.run(
                ["scancel", *options, seen.id],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                env=environment(),
                timeout=SUBMIT_SECONDS,
            )


def _stage(spec: Spec) -> str:
    if spec.stage is None:
        return PREPARE
    return SCREEN if spec.mutants else spec.stage.whole


def devices(config: Config, begun: bool) -> tuple[Slot, ...]:
    """As listed, or as many as slurm.slots says; raises NasdError where Slurm takes no such jobs.

    begun: the search goes on, and so it does while Slurm does not answer.
    """
    slurm, listed = config.slurm, config.slots.devices
    if listed == "auto":
        kind = SlotKind.CPU if slurm.gres == "" else SlotKind.CUDA
        found = tuple(Slot.of(kind, number) for number in range(slurm.slots))
    else:
        found = tuple(Slot.parse(name) for name in listed)
        if len(set(listed)) != len(listed):
            raise NasdError("slots.devices: a device is named twice")
        if len({slot.kind for slot in found}) > 1:
            raise NasdError("slots.devices: take either cuda devices or cpu shares, not both")
    for program in PROGRAMS:
        if shutil.which(program) is None:
            raise NasdError(NO_SLURM.format(program))
    names = [str(slot) for slot in found]
    tried: set[tuple[str, ...]] = set()
    for stage, count in _stages(config):
        words = tuple(options(config, stage, names[:count]))
        if words in tried:
            continue
        tried.add(words)
        try:
            submitted(["sbatch", "--test-only", *words, "--wrap=true"], stage)
        except NotYet:
            if not begun:
                raise
            break
        except NasdError as error:
            if NO_NODES not in str(error):
                raise
    return found


def _stages(config: Config) -> Iterator[tuple[str, int]]:
    """Each kind of job, and how many slots it leases."""
    yield PREPARE, 1
    for stage in config.stages:
        yield stage.name, stage.slots


ENTRY = Entry(
    devices=devices,
    open=SlurmLauncher,
    health=lambda slots: nullcontext(dict),
    leashed=False,
    here=False,
)
