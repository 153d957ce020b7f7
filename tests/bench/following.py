"""A search in the real daemon, `nasd run`, from its beginning until its time is up."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import tomlkit

from nasd.contract.config import PREPARE, Config, parse
from nasd.contract.errors import NasdError
from nasd.launch import interpreter
from nasd.record import snapshot
from nasd.record.folders import StateFolder
from nasd.record.lifecycle import AttemptState, State
from nasd.record.state import Snapshot
from tests.bench.contest import Contest
from tests.bench.laboratory import worked
from tests.bench.standing import Model, Standing, front
from tests.bench.worlds import Way, table_of, unknown

LOOK_SECONDS = 1.0
LEAVE_SECONDS = 180.0
GENERATIONS = 500  # more than any time is enough for


def searched(
    contest: Contest, name: str, way: Way, more: Mapping[str, Any] | None = None
) -> Standing:
    """A search of this way, until its time is up."""
    lab = contest.lab
    state = StateFolder(lab.folder / f"state-{name}")
    keys = {
        "experiment.state": state.path.name,
        "experiment.generations": GENERATIONS,
        **(more or {}),
    }
    table = table_of(lab.world, way, lab.number, keys)
    config = parse(table, name)
    path = lab.folder / f"{name}.toml"
    path.write_text(tomlkit.dumps(table), encoding="utf-8")
    shutil.copytree(lab.cache, state.cache, copy_function=os.link)  # made once for all
    log = lab.folder / f"{name}.log"
    command = [
        *interpreter.command("nasd.contract.leash", str(os.getpid())),
        *interpreter.command("nasd", "run", "--config", str(path)),
    ]
    follower = Follower(contest, config, state)
    with log.open("wb") as out:
        daemon = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
        try:
            while daemon.poll() is None and not follower.look():
                time.sleep(LOOK_SECONDS)
        finally:
            told = daemon.poll() is None
            if told:
                daemon.send_signal(signal.SIGTERM)
                try:
                    daemon.wait(LEAVE_SECONDS)
                except subprocess.TimeoutExpired:
                    daemon.kill()
                    daemon.wait()
    over = follower.look()
    notes = [f"not there yet: {key}" for key in unknown(way)]
    if not over:
        if daemon.returncode and not told:
            last = log.read_text(errors="replace").strip().splitlines()[-1:]
            raise NasdError(f"the search {name} ended: {''.join(last)} (see {log})")
        notes.append(f"ended by itself after {follower.spent:.0f} s: see {log}")
    return follower.standing(name, notes)


class Follower:
    """Looks on while a daemon searches: what is charged to it, and what its models are worth."""

    def __init__(self, contest: Contest, config: Config, state: StateFolder) -> None:
        self._contest, self._config, self._state = contest, config, state
        self._models: dict[int, Model] = {}
        self._controls: dict[int, str] = {}
        self.notes: list[str] = []
        self._kept = state.path.with_name(f"{state.path.name}-kept")
        self.spent = self.scoring = 0.0
        self._depth = 1

    def look(self) -> bool:
        """Whether the time is up."""
        try:
            with snapshot.opened(self._state.path) as connection:
                found = snapshot.read(connection)
        except NasdError:  # it has only just begun
            return False
        self._account(found)
        return self.spent >= self._contest.seconds

    def _account(self, found: Snapshot) -> None:
        """Attempts count in the order in which they ran: there is one slot."""
        spent = scoring = 0.0
        stages = {one.name: one for one in self._config.stages}
        for attempt in found.attempts:
            if attempt.live:
                continue
            seconds = worked(self._state.attempt(attempt.id).log)
            stage = stages.get(attempt.stage)
            scores = stage is not None and stage.train == "none"
            if scores:
                scoring += seconds
            if self._is_charged(attempt.stage):
                spent += seconds
            candidate = found.candidates[attempt.candidate]
            done = attempt.state is AttemptState.SUCCEEDED and candidate.state is State.SCORED
            known = candidate.id in self._models or candidate.id in self._controls
            if scores and done and not known:
                self._scored(found, candidate.id, spent)
        self.spent, self.scoring = spent, scoring

    def _is_charged(self, name: str) -> bool:
        """All but what is the same for everybody: making the caches; and a head that these children
        never use, which a seed without one must be given all the same."""
        stage = next((one for one in self._config.stages if one.name == name), None)
        if name == PREPARE:
            return False
        if stage is None:
            return True
        if stage.train == "none":
            return self._contest.charges_scoring
        return stage.train != "head" or self._config.variation.inherit_from == "mlm"

    def _scored(self, found: Snapshot, number: int, at: float) -> None:
        contest, candidate = self._contest, found.candidates[number]
        seen = found.quality(number)
        assert seen is not None
        if candidate.is_baseline:
            one = replace(contest.baseline(), at=at, seen=seen)
            if seen != contest.lab.scored.quality:  # as where one of two holds windows out
                one = replace(one, quality=None)
                self.notes.append(
                    f"its baseline is another one: sees {seen:.1f}, not"
                    f" {contest.lab.scored.quality:.1f}"
                )
                self._keep(number, found)
            self._models[number] = one
            return
        if getattr(candidate, "kind", "") == "control":  # it is charged, and no find of the search
            self._controls[number] = f"generation {candidate.generation}'s control sees {seen:.1f}"
            self._keep(number, found)
            return
        one = contest.lab.model(str(number), candidate.genotype, at, seen)
        if one in front([*self._models.values(), one]):
            self._keep(number, found)
        self._models[number] = one
        if at <= contest.seconds:
            self._depth = self._line(found, number)
        contest.say(
            f"  {at:6.0f} s: candidate {number} of generation {candidate.generation},"
            f" {one.share:.2f} of the blocks, sees {seen:.1f}"
        )

    def _keep(self, number: int, found: Snapshot) -> None:
        """By links: the search removes what it needs no more, and is judged when it is over, as a
        judge beside it would cost its workers the processor's seconds."""
        who = "baseline" if found.candidates[number].is_baseline else "candidates"
        stage = [one.name for one in self._config.ladder(who) if one.train != "none"][-1]
        folder = self._state.result(number, stage)
        if folder.is_dir():
            shutil.copytree(folder, self._kept / str(number), copy_function=os.link)

    def _line(self, found: Snapshot, number: int) -> int:
        """How many trainings behind the baseline's a candidate's line has had."""
        candidate, depth = found.candidates[number], 0
        while not candidate.is_baseline:
            depth += 1
            assert candidate.parent is not None
            candidate = found.candidates[candidate.parent]
        return max(depth, self._depth)

    def standing(self, name: str, notes: Sequence[str]) -> Standing:
        """With the judgement on all that were on the front when they stood."""
        for number in (*self._models, *self._controls):
            if not (folder := self._kept / str(number)).is_dir():
                continue
            told = self._contest.judge(folder)
            if number in self._controls:
                self.notes.append(f"{self._controls[number]}, is worth {told:.1f}")
                continue
            self._models[number] = one = replace(self._models[number], quality=told)
            self._contest.say(f"  {one.name} is worth {told:.1f}, of {one.seen:.1f} seen")
        shutil.rmtree(self._kept, ignore_errors=True)
        return Standing(
            *(name, tuple(self._models.values()), self.spent, self.scoring, self._depth),
            (*notes, *self.notes),
        )
