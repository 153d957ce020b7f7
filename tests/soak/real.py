"""A small search with real training, served by `nasd run`: daemon, launchers and ranks are killed,
stopped and starved. On one CPU slot with one thread its weights must be equal to the last bit."""

import math
import os
import random
import re
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from nasd.contract import config as config_module
from nasd.contract import variables
from nasd.contract.errors import NasdError
from nasd.contract.protocol import Heartbeat, read, read_metrics
from nasd.launch.launcher import wait_until
from nasd.policy import endings
from nasd.presets import write_preset
from nasd.record import snapshot
from nasd.record.folders import StateFolder
from nasd.record.lifecycle import AttemptState
from nasd.record.state import Attempt, Candidate, Snapshot
from nasd.record.store import Store
from tests.conftest import ROOT, story
from tests.soak import mischief
from tests.soak.report import (
    Part,
    Progress,
    Span,
    damage,
    differences,
    done_again,
    leases_wrong,
    look_back,
    spans_by_time,
    unequal,
)
from tests.soak.simulated import Say, in_words

MARK = "NASD_SOAK"  # in the environment of all that a soak starts
CHECKPOINT_SECONDS = 1.5
STALL_SECONDS = 18.0
LONG_FROM = 10  # kills, for stages of three times the length
STAGES = 16  # that this search climbs: 3 of the baseline, 4 and 4, 1 and 4
GAP = (1.0, 12.0)  # seconds between two faults
LAST_GAP = (1.0, 5.0)  # at the last stage, so that it does not end before all kills have come
OTHERS = 1.4  # faults for a kill: some of them are no kills
GONE_SECONDS = 10.0  # for a daemon's workers to be gone behind it
GRACE_SECONDS = 130.0  # where it was asked to stop: for their checkpoints, and ten more
SEEN_SECONDS = 3.0  # to which it is known how long an attempt ran: polls, turns, a busy machine
SAVING_SECONDS = 3.0  # for a checkpoint and an evaluation, which come on top of the interval
LONGEST = 45 * 60.0
FILE_LIMIT = 16 << 10  # bytes: less than any checkpoint, more than a heartbeat

# Drawn without putting back, so that even a short soak has the three sorts of kill.
FIRST = ("daemon", "rank_starved", "launcher", "rank")
DECK = {
    "daemon": 4,
    "launcher": 3,
    "rank": 3,
    "rank_damaged": 3,
    "rank_stopped": 1,
    "rank_starved": 2,
    "daemon_asked": 2,
}
KILLS = {"daemon": "daemon", "launcher": "launcher", "rank": "rank", "rank_damaged": "rank"}


def settings(kills: int) -> tuple[str, ...]:
    longer = 3 if kills >= LONG_FROM else 1
    return (
        "population.mu=2",
        "population.lambda=2",
        "experiment.generations=1",
        'slots.devices=["cpu:0"]',
        "slots.threads=1",
        "data.mlm.max_sequences=1024",
        f"stages.pretrain_0.epochs={2 * longer}",
        f"stages.pretrain_1.epochs={2 * longer}",
        f"stages.finetune.epochs={longer}",
        "daemon.tick_seconds=0.2",
        "daemon.log_steps=5",
        f"daemon.checkpoint_minutes={CHECKPOINT_SECONDS / 60}",
        f"daemon.stall_minutes={STALL_SECONDS / 60}",
    )


def soak(folder: Path, kills: int, seed: int, say: Say) -> Part:
    """The report on a search under so many kills."""
    began = time.monotonic()
    part = Part("real training")
    paths = [
        write_preset("demo-thesis", folder / name, settings(kills), force=False)
        for name in ("undisturbed", "disturbed")
    ]
    calm, rough = (StateFolder(path.parent / "state") for path in paths)
    config = config_module.load(paths[1])
    with Box(paths[0]) as undisturbed, Box(paths[1]) as box:  # side by side, on a core each
        undisturbed.start()
        disturbed = Disturbed(box, rough, kills, random.Random(f"{seed}/real"), say)
        disturbed.run()
        say("the disturbed search has ended")
        while undisturbed.running and undisturbed.age < LONGEST:
            time.sleep(0.5)
        left = [*undisturbed.look(), *box.look()]
    part.violations += disturbed.violations
    found, plain = disturbed.read(), Disturbed(undisturbed, calm, 0, random.Random(), say).read()
    if any(one is None or one.experiment.state != "complete" for one in (found, plain)):
        part.violations.append(f"a search is not complete: see {folder}")
    if found is None or plain is None:
        return part
    killed = disturbed.killed
    part.numbers |= {
        "kills (SIGKILL)": killed.total(),
        "... of the daemon": killed["daemon"],
        "... of a launcher or rank": f"{killed['launcher']} and {killed['rank']}",
        "other faults": in_words(disturbed.others),
        "lives of the daemon": disturbed.lives,
        "halts resumed": disturbed.halts,
    }
    numbers, wrong = done_again(
        progress(rough, found), damage(disturbed.damaged), slack=SAVING_SECONDS / CHECKPOINT_SECONDS
    )
    part.numbers |= numbers
    part.check("more done again than that", wrong)
    part.check("processes left behind", [*disturbed.left, *(f"{one} is left" for one in left)])
    look_back(
        part,
        rough,
        config,
        held(rough, found, disturbed),
        [(spans_by_time(found), 0.05), (disturbed.spans(found), 0.0)],
        disturbed.polled,
    )
    stories = []
    for state in (calm, rough):
        store = Store(state.database)
        stories.append(story(store))
        store.close()
    part.check("differences from the undisturbed story", differences(*stories))
    both, wrong = unequal(calm, rough)
    part.numbers["models compared"] = both
    part.check("models that differ", wrong)
    part.numbers["minutes"] = round((time.monotonic() - began) / 60, 1)
    return part


@dataclass(frozen=True)
class Seen:
    """A process that a soak has started, directly or not."""

    process: psutil.Process
    token: str  # "" for the daemon itself
    command: tuple[str, ...]

    @property
    def is_launcher(self) -> bool:
        return "nasd.launch.ranks" in self.command

    @property
    def is_rank(self) -> bool:
        return "nasd.worker" in self.command

    def __str__(self) -> str:
        return f"process {self.process.pid} ({' '.join(self.command)[:100]})"


class Box:
    """Runs `nasd run`, and knows every process that comes of it."""

    def __init__(self, config: Path) -> None:
        self._config = config
        self._mark = uuid.uuid4().hex
        self._daemon: subprocess.Popen[bytes] | None = None
        self._since = 0.0

    def start(self) -> None:
        self._since = time.monotonic()
        with (self._config.parent / "daemon.log").open("ab") as log:
            self._daemon = subprocess.Popen(
                [sys.executable, "-m", "nasd", "run", "--config", str(self._config)],
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | {MARK: self._mark},
                cwd=ROOT,
                start_new_session=True,
            )

    @property
    def age(self) -> float:
        return time.monotonic() - self._since

    @property
    def running(self) -> bool:
        return self._daemon is not None and self._daemon.poll() is None

    def signal(self, number: int) -> None:
        assert self._daemon is not None
        self._daemon.send_signal(number)

    def look(self) -> list[Seen]:
        found = []
        for process in psutil.process_iter():
            try:
                said = process.environ()
                if said.get(MARK) == self._mark and process.status() != psutil.STATUS_ZOMBIE:
                    command = tuple(process.cmdline())
                    found.append(Seen(process, said.get(variables.TOKEN, ""), command))
            except psutil.Error:
                continue
        return found

    def __enter__(self) -> "Box":
        return self

    def __exit__(self, *error: object) -> None:
        for _ in range(3):
            for one in self.look():
                _signal(one.process, signal.SIGKILL)
        if self._daemon is not None:
            self._daemon.wait()


@dataclass
class Disturbed:
    """The search that is disturbed. seen: by token, when its processes were seen first and last.
    outlasting: tokens of attempts that ended with their daemon, or behind it."""

    box: Box
    state: StateFolder
    wanted: int
    draw: random.Random
    say: Say
    lives: int = 0
    halts: int = 0
    killed: Counter[str] = field(default_factory=Counter)
    others: Counter[str] = field(default_factory=Counter)
    damaged: list[dict[str, Any]] = field(default_factory=list)
    seen: dict[str, tuple[float, float]] = field(default_factory=dict)
    outlasting: set[str] = field(default_factory=set)
    left: list[str] = field(default_factory=list)
    polled: list[str] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._deck: list[str] = []
        self._where: tuple[int, str] | None = None
        self._quota = 0
        self._next = math.inf
        self._stopped: tuple[str, float] | None = None

    def read(self) -> Snapshot | None:
        try:
            with snapshot.opened(self.state.path) as connection:
                return snapshot.read(connection)
        except NasdError:
            return None

    def run(self) -> None:
        self._start()
        end = time.monotonic() + LONGEST
        while time.monotonic() < end:
            processes = self.box.look()
            found = self.read()
            self._record(processes, found)
            if not self.box.running:
                state = found.experiment.state if found else "nothing"
                if state == "complete":
                    break
                if state != "halted":
                    self.violations.append(f"the daemon left by itself, the search is {state}")
                    break
                self.halts += 1
                self._start()
            elif found is not None:
                self._plan(found)
                if time.monotonic() >= self._next:
                    self._strike(found, processes)
            time.sleep(0.2)
        else:
            self.violations.append(f"no end within {LONGEST / 60:g} min")
        if self.killed.total() < self.wanted:
            self.violations.append(
                f"only {self.killed.total()} of {self.wanted} kills came before the end"
            )

    def spans(self, found: Snapshot) -> list[Span]:
        """When processes of each attempt were seen."""
        return [
            Span(one.id, one.candidate, one.slots, *self.seen[one.token])
            for one in found.attempts
            if one.token in self.seen
        ]

    # -- looking -------------------------------------------------------------------------------

    def _start(self) -> None:
        self.lives += 1
        self.box.start()

    def _record(self, processes: list[Seen], found: Snapshot | None) -> None:
        now = time.time()
        tokens = {one.token for one in processes if one.token}
        for token in tokens:
            self.seen[token] = (self.seen.get(token, (now, now))[0], now)
        if found is None:
            return
        self.polled += leases_wrong(found)
        known = {one.token for one in found.attempts}
        self.polled += [
            f"{one} is of no attempt" for one in processes if one.token and one.token not in known
        ]

    def _plan(self, found: Snapshot) -> None:
        """When the next fault comes: so that all stages have their share of them."""
        live = found.live_attempts
        now = time.monotonic()
        if self._stopped is not None:  # first this has to be noticed
            token, since = self._stopped
            if all(one.token != token for one in live):
                self._stopped = None
                self._next = now + self.draw.uniform(*GAP)
            elif now - since > 3 * STALL_SECONDS:
                self.violations.append(f"a stopped rank was not noticed in {now - since:.0f} s")
                self._stopped = None
            return
        done = sum(one.state is AttemptState.SUCCEEDED for one in found.attempts)
        last = done >= STAGES - 1
        left = self.wanted - self.killed.total()
        if left <= 0:
            self._next = math.inf
        elif live and (live[0].candidate, live[0].stage) != self._where:
            self._where = live[0].candidate, live[0].stage
            share = OTHERS * left / (STAGES - done)
            self._quota = int(share + self.draw.random())
            self._next = self._gap(last, now)
        elif math.isinf(self._next):
            self._next = self._gap(last, now)

    def _gap(self, last: bool, now: float) -> float:
        if not last and self._quota <= 0:
            return math.inf
        return now + self.draw.uniform(*(LAST_GAP if last else GAP))

    # -- faults --------------------------------------------------------------------------------

    def _strike(self, found: Snapshot, processes: list[Seen]) -> None:
        """The next fault of the deck that can be had just now."""
        for kind in (*self._deck, *self._shuffled()):
            if self._do(kind, found, processes):
                break
        else:
            return
        if kind in self._deck:
            self._deck.remove(kind)
        if kind in KILLS:
            self.killed[KILLS[kind]] += 1
        if kind not in KILLS or kind == "rank_damaged":
            self.others["checkpoint_damaged" if kind == "rank_damaged" else kind] += 1
        self._quota -= 1
        self._next = math.inf  # planned anew
        where = "" if self._where is None else f" at candidate {self._where[0]} {self._where[1]}"
        self.say(f"{self.killed.total()} of {self.wanted} kills, now: {kind}{where}")

    def _shuffled(self) -> list[str]:
        if len(self._deck) > len(FIRST):
            return []
        cards = [kind for kind, count in DECK.items() for _ in range(count)]
        self.draw.shuffle(cards)
        self._deck += cards if self.killed or self.others else [*FIRST, *cards]
        return list(self._deck)

    def _do(self, kind: str, found: Snapshot, processes: list[Seen]) -> bool:
        """Brings a fault about, if that is possible."""
        if kind == "daemon":
            self._end_daemon(found, signal.SIGKILL, GONE_SECONDS)
            return True
        if kind == "daemon_asked":
            self._end_daemon(found, signal.SIGTERM, GRACE_SECONDS)
            return True
        live = found.live_attempts
        if not live or self._worn(found, found.candidates[live[0].candidate]):
            return False
        attempt = live[0]
        goals = [one for one in processes if one.token == attempt.token]
        if kind == "launcher":
            return any(_signal(one.process, signal.SIGKILL) for one in goals if one.is_launcher)
        for rank in (one.process for one in goals if one.is_rank):
            match kind:
                case "rank":
                    return _signal(rank, signal.SIGKILL)
                case "rank_damaged":
                    return self._damage(found, rank)
                case "rank_stopped":
                    return self._stop(attempt, rank)
                case "rank_starved":
                    return self._training(attempt) is not None and _limit(rank)
        return False

    def _end_daemon(self, found: Snapshot, number: int, within: float) -> None:
        """Ends the daemon and starts another. Nothing of the first may outlast it for long."""
        self._outlasts(self.read() or found)
        self.box.signal(number)

        def gone() -> bool:
            processes = self.box.look()
            self._record(processes, None)
            return not processes and not self.box.running

        if not wait_until(gone, within):
            self.left += [f"{one} outlasts its daemon" for one in self.box.look()]
        self._outlasts(self.read() or found)  # one may have begun behind the last look
        time.sleep(self.draw.uniform(0.0, 1.0))
        self._start()

    def _outlasts(self, found: Snapshot) -> None:
        self.outlasting |= {one.token for one in found.live_attempts}

    def _worn(self, found: Snapshot, candidate: Candidate) -> bool:
        """Whether it has lost two attempts in a row: with more, most of the time is back-off."""
        return len(endings.setbacks(found, candidate)) >= 2

    def _training(self, attempt: Attempt) -> Heartbeat | None:
        """Its last sign of life, if it trains just now."""
        try:
            beat = read(Heartbeat, self.state.attempt(attempt.id).heartbeat)
        except NasdError:
            return None
        return beat if beat.doing == "training" and beat.patience < STALL_SECONDS else None

    def _damage(self, found: Snapshot, rank: psutil.Process) -> bool:
        plan = mischief.checkpoint_damaged(self.state, found, self.draw, time.time())
        if plan is None:
            return False
        words, deed = plan
        self.damaged.append(words)
        deed()
        return _signal(rank, signal.SIGKILL)

    def _stop(self, attempt: Attempt, rank: psutil.Process) -> bool:
        """Stops it where it has not asked for patience, which would last half an hour."""
        if self._training(attempt) is None or not _signal(rank, signal.SIGSTOP):
            return False
        if self._training(attempt) is None:
            _signal(rank, signal.SIGCONT)
            return False
        self._stopped = attempt.token, time.monotonic()
        return True


def _signal(process: psutil.Process, number: int) -> bool:
    try:
        process.send_signal(number)
    except psutil.Error:
        return False
    return True


def _limit(process: psutil.Process) -> bool:
    """It cannot write a longer file any more, as on a full disk."""
    try:
        _, most = process.rlimit(psutil.RLIMIT_FSIZE)
        process.rlimit(psutil.RLIMIT_FSIZE, (FILE_LIMIT, most))
    except psutil.Error:
        return False
    return True


# -- what really happened --------------------------------------------------------------------------


def progress(state: StateFolder, found: Snapshot) -> list[Progress]:
    """How far each attempt came that trained, by its log, its heartbeat and its metrics."""
    came = []
    for one in found.attempts:
        folder = state.attempt(one.id)
        lines, _ = read_metrics(folder.metrics)
        lines = [line for line in lines if line["kind"] == "train"]
        log = folder.log.read_text(errors="replace") if folder.log.exists() else ""
        resumed = re.search(r"resumed at step (\d+) of", log)
        first = int(resumed[1]) if resumed else 0
        if f"{one.stage}: " not in log:  # it did not come to its first step
            continue
        beat = read(Heartbeat, folder.heartbeat)
        steps = [line["step"] for line in lines]
        pace = 0.0
        if len(lines) > 1:
            pace = (lines[-1]["at"] - lines[0]["at"]) / max(1, steps[-1] - steps[0])
        came.append(
            Progress(
                one.id,
                one.candidate,
                one.stage,
                first=first,
                done=max([first, beat.step, *steps]),
                kept=one.reached,
                rate=pace / CHECKPOINT_SECONDS,
            )
        )
    return came


def held(
    state: StateFolder, found: Snapshot, disturbed: Disturbed
) -> dict[int, tuple[float, float]]:
    """Slot-seconds of each attempt by when its processes were seen, and how exact that is: what
    went with its daemon is charged until its last sign of life."""
    seen: dict[int, tuple[float, float]] = {}
    for one in found.attempts:
        if one.token not in disturbed.seen or one.ended_at is None:
            continue
        first, last = disturbed.seen[one.token]
        exact = SEEN_SECONDS
        if one.token in disturbed.outlasting:
            exact += max(0.0, last - _last_sign(state, one))
        seen[one.id] = (last - first, exact)
    return seen


def _last_sign(state: StateFolder, attempt: Attempt) -> float:
    try:
        return max(attempt.started_at, read(Heartbeat, state.attempt(attempt.id).heartbeat).at)
    except NasdError:
        return attempt.started_at
