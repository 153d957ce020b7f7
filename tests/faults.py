"""What the tests of faults share: kills at any point, and a box on which things go wrong."""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest

from nasd.contract.config import PREPARE, Config
from nasd.contract.errors import NasdError
from nasd.contract.genotype import Genotype
from nasd.contract.protocol import AttemptFolder, Heartbeat, Outcome, Spec, read, write
from nasd.contract.slots import devices, divided, worth
from nasd.control import tick as tick_module
from nasd.control.tick import Tick
from nasd.launch.gpus import Gpu, GpuProcess
from nasd.record.folders import StateFolder
from nasd.record.lifecycle import AttemptState
from nasd.record.snapshot import opened
from nasd.record.state import Attempt, Snapshot
from nasd.record.store import Store
from tests.conftest import (
    Clock,
    FakeLauncher,
    Script,
    all_succeed,
    begin,
    drive,
    make_tick,
    open_quickly,
    small_config,
    story,
)

PATIENT = small_config(daemon__infrastructure_retries=10_000)
GPUS = ("cuda:0", "cuda:1", "cuda:2", "cuda:3")
STRANGER = 4242  # pid of a process that is not ours
CIVIL = 1.7e9  # what a wall clock shows when a box begins: some time before now, as files have it


# -- scripts and whole searches ------------------------------------------------------------------


def some_diverge(spec: Spec, before: int) -> tuple[float, Outcome | None]:
    """As all_succeed, but that one in four diverges in pretrain_0, by its genotype."""
    luck = int(Genotype.from_json(spec.genotype).hash[8:12], 16)
    if spec.stage is not None and spec.stage.name == "pretrain_0" and luck % 4 == 0:
        return 30.0, Outcome(verdict="diverged", message="the loss is NaN at step 3")
    return all_succeed(spec, before)


def at_stage(stage: str, outcomes: list[Outcome | None], candidate: int = 1) -> Script:
    """These outcomes, one after the other, for one candidate at one stage."""

    def script(spec: Spec, before: int) -> tuple[float, Outcome | None]:
        if (spec.candidate, stage_of(spec)) == (candidate, stage) and before < len(outcomes):
            return 30.0, outcomes[before]
        return all_succeed(spec, before)

    return script


def stage_of(spec: Spec) -> str:
    return PREPARE if spec.stage is None else spec.stage.name


def small_search(state: StateFolder, script: Script, config: Config = PATIENT) -> Tick:
    tick = make_tick(state, config, script)
    drive(tick)
    return tick


def attempts_of(found: Snapshot, candidate: int, stage: str) -> list[AttemptState]:
    return [a.state for a in found.attempts if (a.candidate, a.stage) == (candidate, stage)]


def begin_in(state: StateFolder, config: Config) -> None:
    store = open_quickly(state.database)
    begin(store, config)
    store.close()


def story_in(state: StateFolder) -> dict[str, Any]:
    store = open_quickly(state.database)
    told = story(store)
    store.close()
    return told


# -- kills ---------------------------------------------------------------------------------------


class Killed(BaseException):
    """In the place of SIGKILL: nothing in the control plane catches it."""


class Fuse:
    """Raises at chosen ones of the points that it guards: each gap is counted from the last."""

    def __init__(self, *gaps: int, error: BaseException | None = None) -> None:
        self.passed = 0
        self._error = error or Killed()
        self._blows_at = set(accumulate(gaps))

    def __call__(self) -> None:
        self.passed += 1
        if self.passed in self._blows_at:
            raise self._error

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def guarded(*arguments: Any, **named: Any) -> Any:
            self()
            result = function(*arguments, **named)
            self()
            return result

        return guarded


class FragileStore(Store):
    """Dies before a transaction, just before its commit, or just behind it; and in a backup."""

    fuse: Fuse

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self.fuse()
        with super()._transaction():
            yield
            self.fuse()
        self.fuse()

    def backup(self, path: Path) -> None:
        self.fuse()
        try:
            self.fuse()
        except BaseException:  # half of it is on the disk
            path.parent.mkdir(parents=True, exist_ok=True)
            path.with_name(f".{path.name}.tmp").write_bytes(b"SQLite format 3\0, and no more")
            raise
        super().backup(path)
        self.fuse()


@contextmanager
def fragile(tick: Tick, fuse: Fuse) -> Iterator[None]:
    """Each of the tick's side effects is a point where the fuse may blow: before it, half-way
    where it has a half, and behind it."""
    remove = shutil.rmtree

    def rmtree(path: Path, *arguments: Any, **named: Any) -> None:
        fuse()
        for file in sorted(Path(path).rglob("*"))[:1]:
            if file.is_file():
                file.unlink()
        fuse()
        remove(path, *arguments, **named)
        fuse()

    assert isinstance(tick.store, FragileStore)
    before, tick.store.fuse = tick.store.fuse, fuse
    try:
        with pytest.MonkeyPatch.context() as patch:
            for name in ("write", "write_atomically"):
                patch.setattr(tick_module, name, fuse.around(getattr(tick_module, name)))
            patch.setattr(shutil, "rmtree", rmtree)
            for name in ("rename", "unlink"):
                patch.setattr(Path, name, fuse.around(getattr(Path, name)))
            for name in ("start", "clear"):
                patch.setattr(tick.launcher, name, fuse.around(getattr(tick.launcher, name)))
            yield
    finally:
        tick.store.fuse = before


def open_fragile(path: Path) -> FragileStore:
    store = FragileStore(path)
    store._db.execute("PRAGMA synchronous = OFF")
    store.fuse = Fuse()
    return store


def live_until_killed(
    state: StateFolder, config: Config, script: Script, clock: Clock, fuse: Fuse
) -> None:
    """One life of a daemon: all of its side effects are points where it may be killed, and its
    workers die with it. What stood open on the disk stays as it is."""
    store = open_fragile(state.database)
    tick = make_tick(state, config, script, clock, store)
    try:
        with fragile(tick, fuse):
            tick.begin()
            drive(tick)
    finally:
        store.close()


def live_again_and_again(
    state: StateFolder, config: Config, script: Script, lives: Sequence[int]
) -> None:
    """So many lives on one clock, each killed at its point, and one that lasts to the end."""
    clock = Clock()
    for points in lives:
        with suppress(Killed):
            live_until_killed(state, config, script, clock, Fuse(points))
    live_until_killed(state, config, script, clock, Fuse())


# -- a box ---------------------------------------------------------------------------------------


class Wall(Clock):
    """A wall clock: it goes with the time that passes, but somebody may set it."""

    def __init__(self, passed: Clock, ahead: float = CIVIL) -> None:
        self.passed = passed
        self.ahead = ahead

    def __call__(self) -> float:
        return self.passed() + self.ahead


class RoughLauncher(FakeLauncher):
    """As FakeLauncher, on a box with two clocks. A worker gives a sign of life whenever it is
    looked at, unless it is silent: then it hangs, and never ends by itself. It insists that the
    database knows of it, on the weights that it starts from, and that what it is told to resume is
    its own.

    mute: attempts that never give a sign of life, by candidate and stage. damaged: tokens whose
    outcome will be torn. held: by token, slots x the time from an attempt's start to its clearance.
    """

    def __init__(self, passed: Clock, wall: Wall, script: Script, checkpoints: bool) -> None:
        super().__init__(passed, script)
        self.wall = wall
        self.checkpoints = checkpoints
        self.silent: set[str] = set()
        self.mute: set[tuple[int, str]] = set()
        self.damaged: set[str] = set()
        self.stuck: set[str] = set()  # processes that do not die
        self.owned: dict[int, str] = {}  # token by pid
        self.began: dict[str, tuple[float, float]] = {}
        self.held: dict[str, float] = {}

    def start(self, folder: AttemptFolder, slots: Sequence[str], token: str) -> dict[str, Any]:
        spec = read(Spec, folder.spec)
        self._known(folder, spec, slots, token)
        self._resumes_its_own(spec)
        process = super().start(folder, slots, token)
        self._starts_from_the_right_weights(spec)
        self.began[token] = self.clock(), worth(slots)
        self.owned[spec.attempt] = token
        folder.heartbeat.unlink()
        if (spec.candidate, stage_of(spec)) in self.mute:
            self.silent.add(token)
        else:
            write(Heartbeat(doing="training", at=self.wall()), folder.heartbeat)
        if self.checkpoints and spec.attempt % 2:
            checkpoint = folder.checkpoints / f"step-{spec.attempt:09d}"
            checkpoint.mkdir(parents=True)
            owner = json.dumps([spec.candidate, stage_of(spec)])
            (checkpoint / "owner.json").write_text(owner)
        return process

    def _known(self, folder: AttemptFolder, spec: Spec, slots: Sequence[str], token: str) -> None:
        with opened(folder.path.parent.parent) as connection:
            row = connection.execute(
                "SELECT id, candidate, stage, state, slots FROM attempt WHERE token = ?", (token,)
            ).fetchone()
        known = (spec.attempt, spec.candidate, stage_of(spec), "starting", json.dumps(list(slots)))
        assert row == known
        assert folder.path.name == str(spec.attempt)
        for _, _, other, _ in self.jobs.values():
            assert read(Spec, other.spec).candidate != spec.candidate, "it runs already"
        left = {path.name for path in folder.path.iterdir()} - {"spec.json"}
        assert not left, f"{left} stands in {folder.path} before it starts"

    def _resumes_its_own(self, spec: Spec) -> None:
        for path in spec.resume:
            for owner in Path(path).glob("step-*/owner.json"):
                whose = json.loads(owner.read_text())
                assert whose == [spec.candidate, stage_of(spec)], f"{owner} is of {whose}"

    def _starts_from_the_right_weights(self, spec: Spec) -> None:
        if spec.weights is not None:
            said, origin = self.weights[-1], Path(spec.weights)
            assert said is not None
            assert (str(said["candidate"]), said["stage"]) == (origin.parent.name, origin.name)
        for other in filter(None, (spec.second_weights, spec.head_weights)):
            assert Path(other).is_dir(), f"{other} is gone"

    def alive(self, process: Mapping[str, Any]) -> bool:
        token = process["token"]
        if token not in self.jobs:
            return False
        if token in self.silent or token in self.stuck:
            return True
        end, outcome, folder, _ = self.jobs[token]
        write(Heartbeat(doing="training", at=self.wall()), folder.heartbeat)
        if self.clock() < end:
            return True
        if outcome is not None:
            self._leave(folder, outcome, token)
        del self.jobs[token]
        return False

    def stop(self, token: str) -> None:
        if token not in self.silent and token not in self.stuck:
            super().stop(token)

    def owns(self, pid: int) -> bool | None:
        """As on a host whose processes can all be seen."""
        if pid == STRANGER:
            return False
        return True if self.owned.get(pid) in self.jobs else None

    def clear(self, token: str) -> int:
        if token in self.stuck:
            raise NasdError("process 7 does not die")
        if token in self.began:
            began, slots = self.began[token]
            self.held[token] = slots * (self.clock() - began)  # again, where that was not noted
        self.silent.discard(token)
        return super().clear(token)

    def _leave(self, folder: AttemptFolder, outcome: Outcome, token: str) -> None:
        super()._leave(folder, outcome, token)
        if outcome.has_result:
            spec = read(Spec, folder.spec)
            said = json.loads((folder.result / "model.json").read_text())
            said["stage"] = stage_of(spec)
            (folder.result / "model.json").write_text(json.dumps(said))
            (folder.result / "README").write_text("another file of the model")
        if token in self.damaged:
            content = folder.outcome.read_bytes()
            folder.outcome.write_bytes(content[: len(content) // 2])


class Box:
    """A machine on which things go wrong. It outlives the daemons that run on it, and where a
    test says so its workers do too."""

    def __init__(
        self,
        state: StateFolder,
        config: Config = PATIENT,
        script: Script = some_diverge,
        checkpoints: bool = False,
    ) -> None:
        self.state = state
        self.config = config
        self.passed = Clock()
        self.wall = Wall(self.passed)
        self.launcher = RoughLauncher(self.passed, self.wall, script, checkpoints)
        self.free = 1e15
        self.faults: dict[str, str] = {}  # what the driver says of a GPU
        self.strangers: set[str] = set()  # GPUs that somebody else uses
        self.health_age = 0.0  # so old an answer of the driver's may be
        self._answer: tuple[float, dict[str, Gpu]] | None = None
        if not state.database.exists():
            store = open_quickly(state.database)
            begin(store, config, now=self.wall())
            store.close()

    @property
    def slots(self) -> tuple[str, ...]:
        assert self.config.slots.devices != "auto"
        return divided(self.config.slots.devices, self.config.slots.share)

    def daemon(self, kind: type[Tick] = Tick) -> Tick:
        """A daemon that comes up, but for its first turn. Monotonic time begins anew with it."""
        booted = self.passed()
        self._answer = None
        return kind(
            open_fragile(self.state.database),
            self.config,
            self.state.path,
            self.state,
            self.slots,
            self.launcher,
            self.wall,
            monotonic=lambda: self.passed() - booted,
            health=self.health,
            free_bytes=lambda path: int(self.free),
        )

    def health(self) -> Mapping[str, Gpu]:
        now = self.passed()
        if self._answer is None or now - self._answer[0] >= self.health_age:
            self._answer = now, {slot: self._gpu(slot) for slot in self.config.slots.devices}
        return self._answer[1]

    def _gpu(self, slot: str) -> Gpu:
        if slot in self.faults:
            return Gpu(slot, fault=self.faults[slot])
        ours = [
            GpuProcess(pid, 10**9)
            for pid, token in self.launcher.owned.items()
            if token in self.launcher.jobs and slot in devices(self.launcher.jobs[token][3])
        ]
        stranger = [GpuProcess(STRANGER, 3 * 10**9)] if slot in self.strangers else []
        return Gpu(slot, memory=80 * 10**9, processes=(*ours, *stranger))

    def working(self) -> list[str]:
        """Tokens of what runs, and will come to an end."""
        idle = self.launcher.silent | self.launcher.stuck
        return [token for token in self.launcher.jobs if token not in idle]

    def let_pass(self, seconds: float | None = None) -> None:
        """So long; by default until something ends, or half a minute where nothing will."""
        ends = [self.launcher.jobs[token][0] for token in self.working()]
        if seconds is None and ends:
            self.passed.now = max(self.passed.now + 0.1, min(ends))
        else:
            self.passed.now += 30.0 if seconds is None else seconds

    def turns(self, tick: Tick, seconds: float, every: float = 30.0) -> Snapshot:
        """Turns for so long."""
        end = self.passed() + seconds
        while self.passed() + every <= end + 1e-6:
            self.let_pass(every)
            tick()
        return tick.store.read()

    def drive(
        self,
        tick: Tick,
        until: Callable[[Snapshot], bool] = lambda found: False,
        most: int = 3000,
    ) -> Snapshot:
        """Turns until the experiment ends or `until` holds; the snapshot then."""
        for _ in range(most):
            tick()
            found = tick.store.read()
            if found.experiment.state != "running" or until(found):
                return found
            self.let_pass()
        raise AssertionError(f"no end after {most} turns")

    def kill(self, tick: Tick, workers_too: bool = True) -> None:
        """SIGKILL to the daemon."""
        tick.store.close()
        if workers_too:
            self.launcher.jobs.clear()


def get(found: Snapshot, attempt: int) -> Attempt:
    return next(one for one in found.attempts if one.id == attempt)


def weights_on_disk(state: StateFolder) -> set[tuple[int, str]]:
    """The (candidate, stage) whose results stand, evaluations included."""
    return {
        (int(path.parent.name), path.name)
        for path in state.path.glob("candidates/*/*")
        if path.is_dir() and not path.name.startswith(".")
    }


def restore(state: StateFolder) -> bool:
    """Takes a stopped search back to its newest backup, as a person would; False without one."""
    newest = sorted(state.backups.glob("nasd-*.db"))[-1:]
    for path in newest:
        for end in ("-wal", "-shm"):
            Path(f"{state.database}{end}").unlink(missing_ok=True)
        shutil.copyfile(path, state.database)
    return bool(newest)
