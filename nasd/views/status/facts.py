"""All that there is to see of an experiment, at one instant."""

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nasd.contract import config as config_module
from nasd.contract import slots
from nasd.contract.config import PREPARE, Config
from nasd.contract.errors import NasdError
from nasd.record import daemon_lock, snapshot
from nasd.record.folders import StateFolder
from nasd.record.lifecycle import ExperimentState, Phase
from nasd.record.state import Candidate, LoggedEvent, Member, Snapshot
from nasd.search.pareto import Point
from nasd.views.status import standing
from nasd.views.status.attempts import Listener, Where
from nasd.views.status.notices import Notice, notices
from nasd.views.status.remaining import Remaining, remaining
from nasd.views.status.waits import waits

if TYPE_CHECKING:  # what samples them, most looks do without
    from nasd.views.status.devices import Device, Devices, Question

EVENTS = 60


@dataclass(frozen=True)
class Gained:
    """How good the search is by now: best quality (percent) and hypervolume of all that are scored
    in the newest generation, its parents included, and the same of the generation before it."""

    quality: float | None
    hypervolume: float | None
    baseline: float | None
    before: int | None
    quality_before: float | None
    hypervolume_before: float | None


@dataclass(frozen=True)
class Facts:
    """snapshot: of the whole search but for attempts that are out of play, or of what is in play.
    attempts: how many each of its candidates has had. config: None where it is of another
    nasd. served: whether a daemon is up. trouble: what is in its way. selections: as
    nasd.record.snapshot.selections. where: live attempts, by candidate. devices: by slot, as far as
    they are known."""

    snapshot: Snapshot
    config: Config | None
    now: float
    served: bool
    events: list[LoggedEvent]
    selections: list[tuple[int, float, float]]
    where: Mapping[int, Where]
    devices: "Mapping[str, Device]"
    attempts: Mapping[int, int] = field(default_factory=dict)
    known: dict[tuple[int, str], float] = field(default_factory=dict, repr=False)
    trouble: str = ""
    chosen: int | None = None  # the candidate that a person has chosen in the live view

    @property
    def state(self) -> ExperimentState:
        return self.snapshot.experiment.state

    @cached_property
    def phase(self) -> str:
        if self.state is not ExperimentState.RUNNING:
            return self.state
        if self.snapshot.experiment.prepared is None:
            return PREPARE
        generation = self.snapshot.generation
        return str(generation.phase) if generation else "baseline"

    @property
    def generations(self) -> int:
        """The number of the last one."""
        return int(self.snapshot.experiment.config["experiment"]["generations"])

    @property
    def seconds(self) -> float:
        """From the start to the end; where nobody serves it, to its last sign of life."""
        experiment = self.snapshot.experiment
        until = experiment.completed_at
        if until is None:
            until = self.now if self.served else min(self.now, self._last_sign)
        return max(0.0, until - experiment.created_at)

    @property
    def _last_sign(self) -> float:
        ended = (one.ended_at for one in self.snapshot.attempts if one.ended_at is not None)
        beats = (one.beat.at for one in self.where.values() if one.beat is not None)
        told = (one.at for one in self.events)
        return max(*ended, *beats, *told, self.snapshot.experiment.created_at, 0.0)

    @property
    def gpu_hours(self) -> float:
        """Where no daemon serves, its attempts went with it, at their last sign of life."""
        signs = [one.beat.at for one in self.where.values() if one.beat is not None]
        until = self.now if self.served else min(self.now, max(signs, default=0.0))
        return self.snapshot.gpu_hours(until)

    @property
    def budget(self) -> float | None:
        experiment = self.snapshot.experiment
        return experiment.budget(experiment.config["experiment"]["budget_gpu_hours"])

    @property
    def unit(self) -> str:
        return self.snapshot.hours_unit

    # -- slots ---------------------------------------------------------------------------------

    @cached_property
    def slots(self) -> tuple[str, ...]:
        """The experiment's: as its config lists them, or else all that were ever used."""
        snap = self.snapshot
        listed = snap.experiment.config["slots"]["devices"]
        used = {slot for attempt in snap.attempts for slot in attempt.slots}
        known = {*slots.devices(used if listed == "auto" else listed), *snap.quarantine}
        found = {*slots.divided(tuple(known), self.share), *snap.leases}
        return tuple(sorted(found, key=_in_order))

    @property
    def share(self) -> int:
        """How many attempts share each GPU."""
        return int(self.snapshot.experiment.config["slots"].get("share", 1))

    @property
    def question(self) -> "Question":
        """What is to be known of the devices."""
        from nasd.views.status.devices import Question

        threads = self.config.slots.threads if self.config else 1
        return Question(self.slots, self.snapshot.live_attempts, threads)

    @property
    def usable(self) -> int:
        return sum(self.snapshot.left_alone(slot) is None for slot in self.slots)

    @cached_property
    def holders(self) -> Mapping[str, Where]:
        """By slot."""
        return {slot: one for one in self.where.values() for slot in one.attempt.slots}

    # -- candidates ----------------------------------------------------------------------------

    @cached_property
    def members(self) -> Mapping[int, Member]:
        """Of each candidate, the newest that ranks it."""
        return {m.candidate: m for m in self.snapshot.members if m.rank is not None}

    @cached_property
    def born(self) -> list[Candidate]:
        """In the newest generation."""
        generation = self.snapshot.generation
        return [] if generation is None else self.snapshot.born_in(generation.number)

    @cached_property
    def parents(self) -> list[Candidate]:
        """Of the newest generation."""
        generation = self.snapshot.generation
        if generation is None:
            return []
        return [
            self.snapshot.candidates[one.candidate]
            for one in self.snapshot.members
            if one.generation == generation.number and one.role == "parent"
        ]

    @cached_property
    def late(self) -> list[Candidate]:
        """Born in the generation before, and selected from with the newest."""
        generation = self.snapshot.generation
        return [] if generation is None else self.snapshot.joining(generation.number)

    @cached_property
    def beside(self) -> list[Candidate]:
        """Of the newest generation: its control, and while it breeds what screens its mutants."""
        generation = self.snapshot.generation
        if generation is None:
            return []
        number, breeds = generation.number, generation.phase is Phase.BREEDING
        return [
            *(self.snapshot.screenings_of(number) if breeds else []),
            *(one for one in self.snapshot.controls if one.generation == number),
        ]

    @cached_property
    def points(self) -> Mapping[int, Point]:
        """Of who is scored among those that the newest generation is selected from."""
        found = {}
        for one in (*self.parents, *self.late, *self.born):
            point = self.snapshot.point(one.id)
            if point is not None:
                found[one.id] = point
        return found

    @cached_property
    def ranks(self) -> Mapping[int, int]:
        """As a selection among `points` would rank them."""
        missed = [self.snapshot.missed(one) for one in self.points]
        found = standing.ranks(list(self.points.values()), missed)
        return dict(zip(self.points, found, strict=True))

    @cached_property
    def waits(self) -> Mapping[int, str]:
        """Why those that wait do, by candidate."""
        return waits(self.snapshot, self.config, self.usable, self.now)

    # -- the five questions --------------------------------------------------------------------

    @cached_property
    def notices(self) -> list[Notice]:
        found = notices(self.snapshot, self.config, self.served, self.where, self.devices, self.now)
        return [Notice("bad", self.trouble), *found] if self.trouble else found

    @cached_property
    def gained(self) -> Gained:
        number = self.snapshot.generation.number if self.snapshot.generation else None
        before = [one for one in self.selections if number is not None and one[0] < number]
        points = list(self.points.values())
        above = self.snapshot.reference
        return Gained(
            quality=max((self.snapshot.quality(one) or 0.0 for one in self.points), default=None),
            hypervolume=standing.hypervolume(points, above) if points and above else None,
            baseline=self.snapshot.quality(self.snapshot.rival.id),
            before=before[-1][0] if before else None,
            quality_before=before[-1][2] if before else None,
            hypervolume_before=before[-1][1] if before else None,
        )

    @cached_property
    def remaining(self) -> Remaining | None:
        if self.config is None or self.state is ExperimentState.COMPLETE:
            return None
        beats = {w.attempt.id: w.counted for w in self.where.values() if w.counted is not None}
        snap = _in_play(self.snapshot)
        return remaining(snap, self.config, self.usable, self.now, beats, self.known)


class Reader:
    """Looks at a state folder again and again; what cannot have changed is not read again.

    devices: whether those are looked at too; they must be `sampled` then.
    """

    def __init__(self, state: Path, devices: "Devices | None" = None, whole: bool = False) -> None:
        self._folder = StateFolder(state)
        self._devices = devices
        self._listener = Listener(self._folder)
        self._whole = whole
        self._known: dict[tuple[int, str], float] = {}
        self._meant: tuple[Any, ...] = ()  # what _known and _config hold for
        self._config: Config | None = None

    def read(self, now: float | None = None) -> Facts:
        """Raises NasdError if there is no experiment."""
        with snapshot.opened(self._folder.path) as connection:
            if self._whole:
                snap, attempts = snapshot.counted(connection)
            else:
                snap = snapshot.read(connection, whole=False)
                attempts = Counter(one.candidate for one in snap.attempts)
            events = snapshot.events(connection, EVENTS)
            selections = snapshot.selections(connection)
        now = time.time() if now is None else now
        served = daemon_lock.held(self._folder.lock)
        experiment = snap.experiment
        meant = experiment.created_at, experiment.config, experiment.prepared
        if meant != self._meant:
            self._meant, self._known = meant, {}
            self._config = _parsed(experiment.config)
        facts = Facts(
            snapshot=snap,
            config=self._config,
            now=now,
            served=served,
            trouble=daemon_lock.word(self._folder.lock) if served else "",
            events=events,
            selections=selections,
            where=self._listener.look(snap),
            devices={},
            known=self._known,
            attempts=attempts,
        )
        if self._devices is None:
            return facts
        return replace(facts, devices=self._devices.look(facts.question))


def read(state: Path, now: float | None = None, whole: bool = False) -> Facts:
    """A single look, without the devices. Raises NasdError if there is no experiment."""
    return Reader(state, whole=whole).read(now)


def _in_order(name: str) -> tuple[str, int, int, int]:
    slot = slots.Slot.parse(name)
    return slot.kind, slot.number, slot.shares, slot.place


def _in_play(snap: Snapshot) -> Snapshot:
    """What a snapshot that is not whole would hold, as far as attempts and results go."""
    if not snap.whole or snap.generation is None:
        return snap
    number = snap.generation.number
    ids = {one.candidate for one in snap.members if one.generation == number} | {snap.baseline.id}
    return replace(
        snap,
        attempts=tuple(one for one in snap.attempts if one.candidate in ids),
        results={key: one for key, one in snap.results.items() if key[0] in ids},
    )


def _parsed(config: dict[str, Any]) -> Config | None:
    try:
        return config_module.parse(config, "the experiment's config")
    except NasdError:  # of another nasd: what rests on it is not told
        return None
