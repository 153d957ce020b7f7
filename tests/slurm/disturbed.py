"""A small search on a real Slurm while everything of it is killed, held against the same search on
the local launcher.

    python -m tests.slurm.disturbed [--kills 60] [--seed 1]
"""

import argparse
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from nasd.contract import variables
from nasd.contract.errors import NasdError
from nasd.launch.job import BEGAN
from nasd.launch.launcher import wait_until
from nasd.launch.queue import NAME, OVER, parsed
from nasd.policy import endings
from nasd.presets import write_preset
from nasd.record import snapshot
from nasd.record.folders import StateFolder
from nasd.record.lifecycle import AttemptState, AttemptVerdict, State
from nasd.record.state import Attempt, Snapshot
from nasd.record.store import Store
from tests.conftest import ROOT, story
from tests.slurm.cluster import KILL_WAIT_SECONDS, Cluster, running
from tests.soak.report import differences, leases_wrong, unequal

LONGEST_SECONDS = 20 * 60.0  # of a search that nothing is done to
MORE_SECONDS = 60.0  # for each thing that is
KILLS_A_GENERATION = 20  # that there is time for while it climbs
ENDED_SECONDS = KILL_WAIT_SECONDS + 30.0  # for what belongs to an ended attempt to be gone
SETTINGS = (
    "population.mu=2",
    "population.lambda=2",
    "experiment.generations=1",
    "slots.threads=1",
    "daemon.tick_seconds=0.2",
    "daemon.log_steps=5",
    "daemon.checkpoint_minutes=0.025",
    "daemon.infrastructure_retries=20",
    "daemon.stall_minutes=0.5",
    "slurm.poll_seconds=0.5",
    "slurm.signal_minutes=0.5",
)
SHORT = (
    "data.mlm.max_sequences=256",
    "stages.pretrain_0.epochs=1",
    "stages.pretrain_1.epochs=1",
    "stages.finetune.epochs=0.5",
)
LONG = (
    "data.mlm.max_sequences=1024",
    "stages.pretrain_0.epochs=4",
    "stages.pretrain_1.epochs=4",
    "stages.finetune.epochs=2",
)


def long_enough(kills: int) -> tuple[str, ...]:
    """Settings of a search that lasts until so many things were done to it."""
    return (*LONG, f"experiment.generations={max(1, round(kills / KILLS_A_GENERATION) - 1)}")


ON_SLURM = ('slots.launcher="slurm"',)


def written(folder: Path, *more: str, slots: int = 1) -> Path:
    """The config of a search with so many slots."""
    devices = ", ".join(f'"cpu:{number}"' for number in range(slots))
    return write_preset(
        "demo-thesis", folder, (*SETTINGS, f"slots.devices=[{devices}]", *more), force=False
    )


def told(state: Path) -> dict[str, Any]:
    """The story of a search that nothing serves."""
    store = Store(StateFolder(state).database)
    try:
        return story(store)
    finally:
        store.close()


@dataclass
class Daemon:
    """`nasd run` of a config."""

    config: Path
    environment: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with (self.config.parent / "daemon.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "nasd", "run", "--config", str(self.config)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | self.environment,
                cwd=ROOT,
                start_new_session=True,
            )

    @property
    def state(self) -> Path:
        return self.config.parent / "state"

    @property
    def said(self) -> str:
        return (self.config.parent / "daemon.log").read_text()

    @property
    def runs(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def end(self, number: int, within: float = 60.0) -> None:
        assert self.process is not None
        with suppress(ProcessLookupError):
            self.process.send_signal(number)
        self.process.wait(within)

    def asks(self, *words: str) -> str:
        """What a command says about the search."""
        done = subprocess.run(
            [sys.executable, "-m", "nasd", *words, "--state", str(self.state)],
            env=os.environ | self.environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=120,
        )
        return done.stdout + done.stderr

    def read(self) -> Snapshot | None:
        try:
            with snapshot.opened(self.state) as connection:
                return snapshot.read(connection)
        except NasdError:
            return None


def ranks(state: Path) -> dict[str, list[psutil.Process]]:
    """By token, the processes of a search's attempts that run on this machine."""
    found: dict[str, list[psutil.Process]] = {}
    for one in psutil.process_iter():
        with suppress(psutil.Error):
            token = one.environ().get(variables.TOKEN)
            words = one.cmdline()
            ours = "nasd.worker" in words and any(str(state) in word for word in words)
            if token and ours and one.status() != psutil.STATUS_ZOMBIE:
                found.setdefault(token, []).append(one)
    return found


def jobs(cluster: Cluster) -> dict[str, Any]:
    """By token, the jobs that have not ended."""
    said = cluster.ask(
        *("squeue", "--me", "--states=all", "--noheader", "--format=%i|%T|%r|%N|%j|%Z"),
        check=False,
    )
    return {one.token: one for one in parsed(said, NAME) if one.state not in OVER}


@dataclass
class Disturbed:
    """wrong: what must not be. hurt: tokens of attempts whose processes were killed; limited: of
    those that came to their time limit, which are lost where they had not got on."""

    cluster: Cluster
    daemon: Daemon
    wanted: int
    draw: random.Random
    say: Callable[[str], None]
    killed: Counter[str] = field(default_factory=Counter)
    hurt: set[str] = field(default_factory=set)
    limited: set[str] = field(default_factory=set)
    wrong: list[str] = field(default_factory=list)
    late: dict[str, float] = field(default_factory=dict)
    lives: int = 1

    def run(self, only: tuple[str, ...] = ()) -> None:
        """Until the search is complete. only: these kinds of mischief, in this order, and else all
        of them, shuffled again and again."""
        deck = list(only)
        longest = LONGEST_SECONDS + MORE_SECONDS * self.wanted
        self.daemon.start()
        end, next_at = time.monotonic() + longest, time.monotonic() + 4
        while time.monotonic() < end:
            found = self.daemon.read()
            if found is not None:
                self._check(found)
                if found.experiment.pause:
                    self.daemon.asks("resume")
            if not self.daemon.runs:
                if found is not None and found.experiment.state == "complete":
                    break
                self.wrong.append(f"the daemon left by itself: {self.daemon.said[-300:]}")
                break
            if found is not None and time.monotonic() >= next_at and self._left() > 0:
                if not deck and not only:
                    deck = list(MISCHIEF)
                    self.draw.shuffle(deck)
                worn = self._worn(found)
                for kind in deck:
                    if worn and kind in HARMFUL:
                        continue
                    if MISCHIEF[kind](self, found):
                        deck.remove(kind)
                        self.killed[kind] += 1
                        self.say(f"{self.killed.total()} of {self.wanted}: {kind}")
                        next_at = time.monotonic() + self.draw.uniform(1.5, 5.0)
                        break
            time.sleep(0.2)
        else:
            self.wrong.append(f"no end within {longest / 60:g} min")
        if self._left() > 0:
            self.wrong.append(f"only {self.killed.total()} of {self.wanted} came before the end")
        gone = wait_until(
            lambda: not ranks(self.daemon.state) and not jobs(self.cluster), ENDED_SECONDS
        )
        if not gone:
            self.wrong.append(f"left behind: {ranks(self.daemon.state)} {jobs(self.cluster)}")
        self._charges()

    def _ranks(self) -> dict[str, list[psutil.Process]]:
        return ranks(self.daemon.state)

    def _left(self) -> int:
        return self.wanted - self.killed.total()

    def _worn(self, found: Snapshot) -> bool:
        """Whether somebody has lost two attempts in a row: with more, most of the time is
        back-off."""
        live = {one.candidate for one in found.live_attempts}
        return any(
            len(endings.setbacks(found, one)) >= 2
            for one in found.candidates.values()
            if one.id in live or one.state is State.PENDING
        )

    def _check(self, found: Snapshot) -> None:
        """No slot twice, no candidate on two at once, nothing of an attempt that has ended."""
        self.wrong += leases_wrong(found)
        there = ranks(self.daemon.state)
        by_token = {one.token: one for one in found.attempts}
        now = time.monotonic()
        busy: Counter[int] = Counter()
        for token in there:
            attempt = by_token.get(token)
            if attempt is None:
                continue  # read a moment too early
            busy[attempt.candidate] += 1
            if attempt.live:
                self.late.pop(token, None)
            elif now - self.late.setdefault(token, now) > ENDED_SECONDS:
                self.wrong.append(f"attempt {attempt.id} has ended, and {there[token]} run")
        self.wrong += [f"candidate {one} runs twice" for one, count in busy.items() if count > 1]

    def _charges(self) -> None:
        """Only what was killed itself may count as lost."""
        found = self.daemon.read()
        assert found is not None
        for one in found.attempts:
            lost = one.state is AttemptState.LOST and one.verdict is AttemptVerdict.NONE
            folder = StateFolder(self.daemon.state).attempt(one.id)
            # Of a job that the controller forgot before it began nobody can tell what became.
            forgotten = self.killed["slurmctld"] and not (folder.path / BEGAN).exists()
            fairly = one.token in self.hurt or (one.token in self.limited and not one.reached)
            if one.state is AttemptState.FAILED or (lost and not fairly and not forgotten):
                said = folder.log.read_text().splitlines()[-5:] if folder.log.exists() else []
                about = f"{one.state} {one.message}, of which its log says {said}"
                self.wrong.append(f"attempt {one.id} is charged: {about}")

    # -- mischief ------------------------------------------------------------------------------

    def _running(self, found: Snapshot) -> tuple[Attempt, list[psutil.Process]] | None:
        there = ranks(self.daemon.state)
        for one in found.live_attempts:
            if one.token in there:
                return one, there[one.token]
        return None

    def end_daemon(self, found: Snapshot, number: int) -> bool:
        live = {one.token for one in found.live_attempts}
        before = live & ranks(self.daemon.state).keys()
        self.daemon.end(number)
        if self.draw.random() < 0.5:
            time.sleep(self.draw.uniform(0, 3))
        if number == signal.SIGTERM and before:
            ended = {path.parent.name for path in self.daemon.state.glob("attempts/*/left.json")}
            gone = before - ranks(self.daemon.state).keys()
            names = {str(one.id) for one in found.live_attempts if one.token in gone}
            if names - ended:
                self.wrong.append("workers went with a daemon that was asked to leave")
        self.lives += 1
        self.daemon.start()
        return True

    def end_service(self, name: str) -> bool:
        self.cluster.kill(name)
        time.sleep(self.draw.uniform(0, 4))
        self.cluster.start(name)
        return True

    def forget_begin(self, found: Snapshot) -> bool:
        """Kills the controller as a job begins: it may not know of that when it is there again, has
        the node kill what it runs, and the node drained for it; a person has it back."""
        began = [
            (StateFolder(self.daemon.state).attempt(one.id).path / BEGAN)
            for one in found.live_attempts
        ]
        if not any(it.exists() and time.time() - it.stat().st_mtime < 1.0 for it in began):
            return False
        self.end_service("slurmctld")
        time.sleep(self.draw.uniform(1, 4))
        host = self.cluster.ask("sinfo", "-h", "-o", "%n").strip()
        self.cluster.ask("scontrol", "update", f"nodename={host}", "state=resume", check=False)
        return True

    def end_of_attempt(self, found: Snapshot, *, step: bool, job: bool, rank: bool) -> bool:
        if (it := self._running(found)) is None:
            return False
        attempt, processes = it
        above = processes[0].parent()
        own = self.cluster.steps()
        goals = [*(own if step else []), *([above] if job and above else [])]
        goals += processes if rank else []
        if job or rank:
            self.hurt.add(attempt.token)
        for one in goals:
            with suppress(psutil.Error):
                one.kill()
        return bool(goals)

    def end_node(self, found: Snapshot) -> bool:
        if self._running(found) is None:
            return False
        self.cluster.kill("slurmd")
        self.end_of_attempt(found, step=True, job=True, rank=True)
        self.cluster.start("slurmd")
        return True

    def by_a_person(self, found: Snapshot, *words: str) -> bool:
        it = self._running(found)
        job = None if it is None else jobs(self.cluster).get(it[0].token)
        if it is None or job is None:
            return False
        if words[-1] == "--signal=USR1":
            self.limited.add(it[0].token)
        self.cluster.ask(*words, job.id, check=False)
        return True

    def drain(self) -> bool:
        host = self.cluster.ask("sinfo", "-h", "-o", "%n").strip()
        about = ("scontrol", "update", f"nodename={host}")
        self.cluster.ask(*about, "state=drain", "reason=test", check=False)
        time.sleep(self.draw.uniform(1, 4))
        self.cluster.ask(*about, "state=resume", check=False)
        return True


HARMFUL = {"slurmstepd", "job", "rank", "node", "slurmd"}
MISCHIEF: dict[str, Callable[[Disturbed, Snapshot], bool]] = {
    "daemon": lambda one, found: one.end_daemon(found, signal.SIGKILL),
    "daemon asked to leave": lambda one, found: one.end_daemon(found, signal.SIGTERM),
    "slurmctld": lambda one, found: one.end_service("slurmctld"),
    "slurmctld as a job begins": lambda one, found: one.forget_begin(found),
    "slurmd": lambda one, found: one.end_service("slurmd"),
    "slurmstepd": lambda one, f: one.end_of_attempt(f, step=True, job=False, rank=False),
    "job": lambda one, f: one.end_of_attempt(f, step=False, job=True, rank=False),
    "rank": lambda one, f: one.end_of_attempt(f, step=False, job=False, rank=True),
    "node": lambda one, found: one.end_node(found),
    "scancel": lambda one, found: one.by_a_person(found, "scancel"),
    "time limit": lambda one, f: one.by_a_person(f, "scancel", "--batch", "--signal=USR1"),
    "requeue": lambda one, found: one.by_a_person(found, "scontrol", "requeue"),
    "drain": lambda one, found: one.drain(),
}


def held_against(calm: Path, rough: Path) -> list[str]:
    """What differs between the stories of two searches, and their models."""
    return [
        *differences(told(calm), told(rough)),
        *unequal(StateFolder(calm), StateFolder(rough))[1],
    ]


def latencies(state: Path) -> list[float]:
    """Seconds of each attempt that succeeded, from its row to its end, beyond what its worker ran
    for."""
    with snapshot.opened(state) as connection:
        found = snapshot.read(connection)
        asked = dict(
            connection.execute("SELECT attempt, at FROM event WHERE event = 'start'").fetchall()
        )
        ended = dict(
            connection.execute(
                "SELECT attempt, at FROM event WHERE event IN ('advance', 'hold', 'score')"
            ).fetchall()
        )
    said = re.compile(r"succeeded after ([0-9.]+) s")
    overhead = []
    for one in found.attempts:
        log = StateFolder(state).attempt(one.id).log
        if one.state is AttemptState.SUCCEEDED and one.id in asked and one.id in ended:
            match = said.search(log.read_text())
            if match is not None:
                overhead.append(ended[one.id] - asked[one.id] - float(match[1]))
    return overhead


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="nasd-slurm-"))
    began = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - began:6.0f} s  {text}", file=sys.stderr, flush=True)

    settings = long_enough(options.kills)
    local = Daemon(written(folder / "local", *settings))
    local.start()
    assert local.process is not None
    with running() as cluster:
        daemon = Daemon(written(folder / "slurm", *settings, *ON_SLURM), cluster.environment)
        disturbed = Disturbed(cluster, daemon, options.kills, random.Random(options.seed), say)
        try:
            disturbed.run()
            local.process.wait(LONGEST_SECONDS)
        finally:
            for one in (local, daemon):
                if one.runs:
                    one.end(signal.SIGKILL)
    # What is wrong at one look is so at the next one, too.
    wrong = list(dict.fromkeys([*disturbed.wrong, *held_against(local.state, daemon.state)]))
    numbers = {
        "kills": disturbed.killed.total(),
        "of": dict(disturbed.killed),
        "lives of the daemon": disturbed.lives,
        "wrong": wrong,
        "minutes": round((time.monotonic() - began) / 60, 1),
        "folder": str(folder),
    }
    print(json.dumps(numbers, indent=1))
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
