"""The thesis's schedule in virtual time, served by real processes that are killed."""

import json
import math
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nasd.contract.config import Config
from nasd.contract.errors import NasdError
from nasd.contract.genotype import BlockLineage, Genotype
from nasd.contract.protocol import AttemptFolder, Heartbeat, Spec, read
from nasd.control.tick import Tick
from nasd.estimate.cost import Timeline, work
from nasd.launch.simulated import MARKER, SimulatedLauncher
from nasd.record import snapshot
from nasd.record.folders import StateFolder
from nasd.record.state import Attempt, Snapshot
from nasd.record.store import Store
from nasd.views.forecast import premises
from nasd.views.forecast.virtual_time import VirtualClock, run
from tests.conftest import ROOT, begin, open_quickly, story, thesis_config
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
    unequal,
)
from tests.soak.serve import (
    COMPLETE,
    DIVERGING,
    HALTED,
    HOUR,
    STEP,
    VOLUMES,
    LastingClock,
    Life,
    Weather,
    teller,
    write_life,
)

SEED_MODEL = premises.DISTILBERT
SHORTEST, LONGEST = 0.02, 0.4  # seconds that a daemon serves before it is killed
PACE = 36_000.0  # virtual seconds for a real one
OFF = 0.3 * 900.0  # virtual seconds for which nobody serves between two lives, on average
LIFE = PACE * (SHORTEST + LONGEST) / 2 + OFF  # virtual seconds of a life, at most, on average
LOST = 0.4  # of the work, at least: to kills and faults
LEAST = 24 * HOUR  # virtual time that a search takes, however few the kills
EPOCH = float(1 << 20)  # when virtual time begins: seconds are exact to the last bit there
WEARS_FROM = 10  # kills, for a halt to be among the faults
MOST_HALTS = 8
HANGS = 600.0  # real seconds for a life that nobody ends
# A turn may take a quarter of an hour, and still notices what stalls.
DAEMON = {"backup_hours": 0.5, "start_minutes": 30.0, "stall_minutes": 30.0}
Say = Callable[[str], None]


def asynchronous() -> Config:
    """The thesis's schedule with rungs at which candidates pause, are promoted late or are cut, and
    finalists under two seeds: whatever decides more than once in a generation."""
    data = thesis_config(daemon=DAEMON).model_dump(mode="json", by_alias=True)
    for stage in data["stages"]:
        if stage["name"] in ("pretrain_0", "pretrain_1"):
            stage["rungs"] = [{"at": 0.25, "keep": 0.7}, {"at": 0.5, "keep": 0.7}]
    data["promotion"] = {"rule": "asha", "metric": "best"}
    data["select"] = {"seeds": 2}
    return Config.model_validate(data)


def soak(folder: Path, kills: int, seed: int, say: Say, config: Config | None = None) -> Part:
    """The report on a search under so many kills."""
    began = time.monotonic()
    part = Part("simulated")
    config = config or thesis_config(daemon=DAEMON)
    calm, rough = StateFolder(folder / "undisturbed"), StateFolder(folder / "state")
    expected, seconds, attempts = undisturbed(calm, config)
    say(f"undisturbed: {attempts} attempts in {seconds / 86400:.1f} virtual days")
    # So fast that the kills are spread over most of the search, and do not outlast it.
    disturbed = Disturbed(folder, kills, seed, seconds / max(LEAST, (1 - LOST) * kills * LIFE), say)
    start(rough, config).close()
    disturbed.run()
    with snapshot.opened(rough.path) as connection:
        found = snapshot.read(connection)
    journal = disturbed.journal()
    part.numbers |= {
        "kills (SIGKILL)": disturbed.kills,
        "... of the daemon": disturbed.kills,
        "... of a launcher or rank": 0,
        "... that left something half done": disturbed.half_done,
        "other faults": in_words(faults(rough, found, journal)),
        "lives of the daemon": disturbed.lives,
        "halts resumed": disturbed.halts,
        "turns that failed on a full disk": sum(one.get("injected", False) for one in journal),
    }
    part.violations += disturbed.violations
    failed = [one for one in journal if "failed" in one and not one["injected"]]
    part.violations += [
        f"{count} turns failed like this: {trace}"
        for trace, count in Counter(one["trace"] for one in failed).items()
    ]
    hurt = damage(one for one in journal if one.get("fault") == "checkpoint_damaged")
    numbers, wrong = done_again(progress(rough, found), hurt, slack=0.05)
    part.numbers |= numbers
    part.check("more done again than that", wrong)
    held, spans = truth(rough, found, journal, disturbed.ended)
    look_back(part, rough, config, held, [(spans, 1e-3)], disturbed.polled)
    store = Store(rough.database)
    try:
        part.check("differences from the undisturbed story", differences(expected, story(store)))
    finally:
        store.close()
    both, wrong = unequal(calm, rough)
    part.numbers["models compared"] = both
    part.check("models that differ", wrong)
    part.numbers["virtual days"] = round(disturbed.passed / 86400, 2)
    part.numbers["minutes"] = round((time.monotonic() - began) / 60, 1)
    return part


def start(state: StateFolder, config: Config, quickly: bool = False) -> Store:
    store = open_quickly(state.database) if quickly else Store(state.database)
    begin(store, config, SEED_MODEL.backbone, SEED_MODEL.baseline, now=EPOCH)
    return store


def undisturbed(state: StateFolder, config: Config) -> tuple[dict[str, Any], float, int]:
    """The story that has to come out; how long it took in virtual time, and how many attempts."""
    store = start(state, config, quickly=True)
    clock = VirtualClock(EPOCH)
    launcher = SimulatedLauncher(
        clock,
        SEED_MODEL.backbone,
        SEED_MODEL.baseline,
        VOLUMES,
        diverging=DIVERGING,
        metrics=False,
    )
    assert config.slots.devices != "auto"
    tick = Tick(
        store,
        config,
        state.path,
        state,
        tuple(config.slots.devices),
        launcher,
        clock,
        monotonic=clock,
        free_bytes=lambda path: 1 << 50,
    )
    began = clock()
    found = run(tick, clock, launcher)
    told = story(store)
    store.close()
    return told, clock() - began, len(found.attempts)


@dataclass
class Disturbed:
    """The search that is killed, life after life. ended: in virtual time, when each life did."""

    folder: Path
    wanted: int
    seed: int
    speed: float
    say: Say
    kills: int = 0
    lives: int = 0
    halts: int = 0
    half_done: int = 0
    passed: float = 0.0
    ended: list[float] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    polled: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.state = StateFolder(self.folder / "state")
        self.draw = random.Random(f"{self.seed}/kills")
        self._halves: set[str] = set()

    def run(self) -> None:
        clock = LastingClock(self.folder / "clock", EPOCH)
        began = clock()
        code = None
        while code != COMPLETE and self.halts <= MOST_HALTS:
            code = self._live()
            now = LastingClock(self.folder / "clock")
            self.passed = now() - began
            self.ended.append(now())
            if code is None:
                self._between(now)
            elif code == HALTED:
                self.halts += 1
            elif code != COMPLETE:
                errors = (self.folder / "serve.log").read_text()[-2000:]
                self.violations.append(f"life {self.lives} ended with {code}: {errors}")
                return
        if self.halts > MOST_HALTS:
            with snapshot.opened(self.state.path) as connection:
                reason = snapshot.read(connection).experiment.reason
            self.violations.append(f"halted {self.halts} times, at last: {reason}")
        if self.kills < self.wanted:
            self.violations.append(f"only {self.kills} of {self.wanted} kills came before the end")

    def _live(self) -> int | None:
        """One life: its exit code, or None where it was killed."""
        calm = self.kills >= self.wanted
        # In one half of the lives attempts die with the daemon; in the other they live on.
        early = self.kills < self.wanted / 2
        self.lives += 1
        life = Life(
            seed=self.seed,
            number=self.lives,
            leashed=early == (self.seed % 2 == 0),
            calm=calm,
            pace=PACE,
            wears=not calm and not self.halts and self.wanted >= WEARS_FROM,
            speed=self.speed,
        )
        write_life(self.folder, life)
        with (self.folder / "serve.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.soak.serve", str(self.folder)],
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=ROOT,
            )
        assert process.stdout is not None
        with process, process.stdout as said:
            said.readline()  # it serves
            lasts = HANGS if calm else self.draw.uniform(SHORTEST, LONGEST)
            end = time.monotonic() + lasts
            while process.poll() is None and (left := end - time.monotonic()) > 0:
                self._look()
                time.sleep(max(0.0, min(left, 1.0 if calm else 0.05)))
            if process.poll() is not None:
                return process.returncode
            process.kill()
            process.wait()
        if calm:
            self.violations.append(f"no end after {HANGS:g} s without a kill")
            return COMPLETE
        self.kills += 1
        if self.kills % max(10, self.wanted // 10) == 0:
            self.say(f"{self.kills} of {self.wanted} kills, {self._where()}")
        return None

    def _look(self) -> None:
        if (found := self._found()) is not None:
            self.polled += leases_wrong(found)

    def _found(self) -> Snapshot | None:
        try:
            with snapshot.opened(self.state.path) as connection:
                return snapshot.read(connection, whole=False)
        except NasdError:
            return None

    def _where(self) -> str:
        found = self._found()
        if found is None or found.generation is None:
            return "baseline"
        return f"generation {found.generation.number}, {self.passed / 86400:.1f} virtual days"

    def _between(self, clock: VirtualClock) -> None:
        """What goes wrong while nobody serves: time passes, and files are damaged."""
        if self.draw.random() < 0.3:
            clock.advance_to(clock() + self.draw.uniform(0, 1800))
        found = self._found()
        before, self._halves = self._halves, self._half_done(found)
        self.half_done += bool(self._halves - before)
        now = clock() + Weather(self.seed).ahead(clock())
        for one in mischief.ALL if found is not None else ():
            if self.draw.random() < 0.15 and (plan := one(self.state, found, self.draw, now)):
                words, deed = plan
                teller(self.folder, self.lives)(fault=one.__name__, **words)
                deed()
        self._halves |= self._half_done(found)

    def _half_done(self, found: Snapshot | None) -> set[str]:
        """Attempts without a process, files and folders that were being written or removed."""
        starting = () if found is None else (a for a in found.live_attempts if a.process is None)
        paths = (path for end in ("tmp", "gone") for path in self.state.path.rglob(f".*.{end}"))
        return {*(str(path) for path in paths), *(f"attempt {one.id}" for one in starting)}

    def journal(self) -> list[dict[str, Any]]:
        lines = []
        for line in (self.folder / "journal.jsonl").read_text().splitlines():
            try:
                lines.append(json.loads(line))
            except ValueError:  # an empty one, or a kill cut it off
                continue
        return lines


def faults(state: StateFolder, found: Snapshot, journal: list[dict[str, Any]]) -> Counter[str]:
    counts = Counter(one["fault"] for one in journal if "fault" in one)
    fates = Counter(one["fate"] for one in journal if "began" in one)
    counts += Counter({f"attempt_{kind}": fates[kind] for kind in ("lost", "machine", "stall")})
    with snapshot.opened(state.path) as connection:
        for event, who, detail in connection.execute("SELECT event, candidate, detail FROM event"):
            if event == "hold" and who is None:
                counts["disk_below_reserve"] += 1
            elif event == "quarantine":
                kinds = {"somebody": "gpu_in_use", "is lost": "gpu_lost"}
                name = next((kind for word, kind in kinds.items() if word in detail), "gpu_suspect")
                counts[name] += 1
    return counts


def in_words(counts: Counter[str]) -> str:
    return "\n".join(f"{count} {name}" for name, count in sorted(counts.items()) if count) or "0"


# -- what really happened --------------------------------------------------------------------------


def progress(state: StateFolder, found: Snapshot) -> list[Progress]:
    """How far each attempt came that trained, by its note, its heartbeat and the cost model."""
    speed = json.loads((state.path.parent / "life.json").read_text())
    machine = Life(**speed).machine
    came = []
    for one in found.attempts:
        folder = state.attempt(one.id)
        if one.process is None or not folder.heartbeat.exists():
            continue
        spec, beat = read(Spec, folder.spec), read(Heartbeat, folder.heartbeat)
        if spec.stage is None or not beat.steps:
            continue
        genotype = Genotype.from_json(spec.genotype)
        lineage = tuple(BlockLineage.from_json(block) for block in spec.lineage)
        asked = work(spec.stage, genotype, lineage, SEED_MODEL.backbone, spec.data, VOLUMES)
        timeline = Timeline.of(
            asked, machine, spec.stage.name, len(one.slots), spec.checkpoint_minutes
        )
        came.append(
            Progress(
                one.id,
                one.candidate,
                one.stage,
                first=one.process["first"],
                done=max(beat.step, one.process["first"]),
                kept=one.reached,
                rate=timeline.per_step / timeline.every,
            )
        )
    return came


def truth(
    state: StateFolder,
    found: Snapshot,
    journal: list[dict[str, Any]],
    ended: list[float],
) -> tuple[dict[int, tuple[float, float]], list[Span]]:
    """By the attempt: the slot-seconds it held, and how exactly that is known; and its span, all in
    virtual time.

    The daemon that started an attempt holds its slots until nothing is left of it. One that it
    outlived, or went with, is known by its last sign of life: to a turn, or less exactly where it
    stalled, or where a full disk let nobody note its end for some turns.
    """
    began = {one["began"]: one for one in journal if "began" in one}
    cleared = {one["cleared"]: one for one in journal if "cleared" in one}
    first: dict[tuple[str, int], float] = {}  # when, by token and life
    for line in journal:
        if "cleared" in line:
            first.setdefault((line["cleared"], line["life"]), line["at"])
    held: dict[int, tuple[float, float]] = {}
    spans = []
    for one in found.attempts:
        if one.token not in began or one.ended_at is None:
            continue
        begin, clear = began[one.token], cleared[one.token]
        end, exact = clear["at"], 1e-3
        if begin["life"] != clear["life"]:
            folder = state.attempt(one.id)
            last = begin["at"] + _age(folder)
            end = min(end, _worker_ended(one, folder, last, ended))
            unnoted = clear["at"] - first[one.token, clear["life"]]
            exact = 1.01 * STEP + max(0.0, end - last) + unnoted
        held[one.id] = (len(one.slots) * (end - begin["at"]), len(one.slots) * exact)
        spans.append(Span(one.id, one.candidate, one.slots, begin["at"], end))
    return held, spans


def _worker_ended(
    attempt: Attempt, folder: AttemptFolder, last: float, ended: list[float]
) -> float:
    """When it left or, if it never did, when the daemon was killed that it died with."""
    marker = folder.path / MARKER
    if marker.exists():
        said = json.loads(marker.read_text())
        if said["token"] == attempt.token:
            return float(said["ended"])
    return min((end for end in ended if end >= last), default=math.inf)


def _age(folder: AttemptFolder) -> float:
    """Of an attempt, at its last sign of life."""
    return read(Heartbeat, folder.heartbeat).age if folder.heartbeat.exists() else 0.0
