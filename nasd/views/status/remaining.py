"""When the search will end: the work that is left, at the pace of this experiment's own stages.

A pure function of a snapshot. Nothing is known before the first stage trains; a stage that nobody
has finished yet is taken to be as fast as those most alike.
"""

import heapq
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import fmean, median

from nasd.contract import rungs
from nasd.contract.config import Config, Stage
from nasd.contract.protocol import Heartbeat
from nasd.estimate.pace import Effort
from nasd.policy import endings, ladder
from nasd.record.lifecycle import Phase, State
from nasd.record.state import Candidate, Snapshot

Beats = Mapping[int, Heartbeat]  # the newest that count the steps of a stage, by attempt


@dataclass(frozen=True)
class Remaining:
    """seconds: to the end, if all goes on. slot_hours: that it will take until then. finished: how
    many stages its pace is taken from; 0 where only running ones tell. guessed: the stages to come
    that nobody has finished yet: their pace is that of others."""

    seconds: float
    slot_hours: float
    finished: int
    guessed: tuple[str, ...]


@dataclass(frozen=True)
class _Job:
    """Stages of one candidate, one after the other. slots: that the widest of them asks for.
    slot_seconds: of whole slots; a share of a GPU is a part of one."""

    seconds: float = 0.0
    slot_seconds: float = 0.0
    slots: int = 1


def remaining(
    snapshot: Snapshot,
    config: Config,
    slots: int,
    now: float,
    beats: Beats,
    known: MutableMapping[tuple[int, str], float] | None = None,
) -> Remaining | None:
    """None where it cannot be told yet. slots: that can be used. known: see Effort."""
    if snapshot.experiment.prepared is None:
        return None
    effort = Effort(snapshot, config, known)
    samples = _samples(snapshot, config, effort, now, beats)
    if not any(samples.values()):
        return None
    work = _Work(snapshot, config, max(1, slots), now, beats, effort, _paces(config, samples))
    seconds = slot_seconds = 0.0
    for times, rounds in work.ahead():
        for jobs in rounds:
            seconds += times * _span(jobs, work.slots, config.slots.widen)
            slot_seconds += times * sum(job.slot_seconds for job in jobs)
    finished = {stage.name: len(effort.paces(stage.name)) for stage in config.parts}
    return Remaining(
        seconds,
        slot_seconds / 3600,
        sum(finished.values()),
        tuple(name for name in finished if name in work.asked and not finished[name]),
    )


def _samples(
    snapshot: Snapshot, config: Config, effort: Effort, now: float, beats: Beats
) -> dict[str, list[float]]:
    """Slot-seconds an operation, by stage: of who has finished it, or else of who trains in it."""
    samples = {stage.name: list(effort.paces(stage.name)) for stage in config.parts}
    running: dict[str, list[float]] = {}
    for attempt in snapshot.live_attempts:
        beat = beats.get(attempt.id)
        if beat is None or not beat.steps or samples.get(attempt.stage, [0.0]):
            continue
        earlier = endings.attempts_at(snapshot, attempt.candidate, attempt.stage)
        first = max((one.reached for one in earlier if not one.live), default=0)
        operations = effort.operations(snapshot.candidates[attempt.candidate], attempt.stage)
        done = operations * (beat.step - first) / beat.steps
        held = attempt.worth * (beat.age or now - attempt.started_at)
        if done > 0 and held > 0:
            running.setdefault(attempt.stage, []).append(held / done)
    return samples | running


def _paces(config: Config, samples: Mapping[str, Sequence[float]]) -> dict[str, float]:
    def kind(stage: Stage) -> tuple[str, bool]:
        return stage.task, stage.train == "none"

    everything = [pace for found in samples.values() for pace in found]
    paces = {}
    for stage in config.parts:
        alike = [
            pace
            for other in config.parts
            if kind(other) == kind(stage)
            for pace in samples[other.name]
        ]
        paces[stage.name] = median(samples[stage.name] or alike or everything)
    return paces


class _Work:
    """What is left, in rounds: within one, nobody waits for another; between two, all do."""

    def __init__(
        self,
        snapshot: Snapshot,
        config: Config,
        slots: int,
        now: float,
        beats: Beats,
        effort: Effort,
        paces: Mapping[str, float],
    ) -> None:
        self.slots = slots
        self.asked: set[str] = set()  # the stages that are still to come
        self._snapshot = snapshot
        self._config = config
        self._now = now
        self._live = {one.candidate: (one, beats.get(one.id)) for one in snapshot.live_attempts}
        self._effort = effort
        self._paces = paces
        self._means: dict[str, float] = {}  # operations, by stage
        self._ways: dict[str, tuple[Stage, ...]] = {}  # of candidates, by stage

    def ahead(self) -> Iterator[tuple[int, Iterator[list[_Job]]]]:
        """How often the rounds of a generation are to come, and those rounds."""
        yield 1, self._this_generation()
        generation = self._snapshot.generation
        last = self._config.experiment.generations
        if generation is None:
            yield 1, self._generation(0)
        done = 0 if generation is None else generation.number
        period = ladder.alike(self._config)
        for number in range(done + 1, min(done + period, last) + 1):
            yield (last - number) // period + 1, self._generation(number)

    def _this_generation(self) -> Iterator[list[_Job]]:
        baseline = self._snapshot.baseline
        first = [] if baseline.final else [self._job_of(baseline)]
        generation = self._snapshot.generation
        if generation is not None:
            late = self._snapshot.joining(generation.number)
            first += [self._job_of(one) for one in late if not one.final]
        if generation is None or generation.phase is not Phase.CLIMBING:
            again = [one for one in self._born if not one.final]  # under further seeds
            again += [] if generation is None else self._controls(generation.number)
            yield first + [self._job_of(one) for one in again]
            if generation is not None and generation.phase is Phase.BREEDING:
                yield from self._generation(generation.number)
            return
        climbing = [one for one in self._born if not one.final]
        busy = [one for one in climbing if one.state is not State.WAITING]
        busy += self._controls(generation.number)
        yield first + [self._job_of(one) for one in busy]
        parts = self._parts(generation.number)
        steps = [stage.name for stage in self._config.ladder("candidates")]
        at = max((steps.index(one.stage) for one in climbing), default=len(steps))
        reach = 0
        for part in parts:
            end = steps.index(part[-1].name)
            if steps.index(part[0].name) > at:
                yield [self._usual(part)] * reach
            elif end >= at:  # where they climb just now
                reach = sum(not one.final or steps.index(one.stage) >= end for one in self._born)
            reach = _kept(part, reach)
        yield self._again(reach)

    def _generation(self, number: int) -> Iterator[list[_Job]]:
        population = self._config.population
        reach = population.lambda_ if number else population.mu
        for part in self._parts(number):
            yield [self._usual(part)] * (reach + population.control)
            reach = _kept(part, reach)
        yield self._again(reach)

    def _again(self, reach: int) -> list[_Job]:
        """Finalists under further seeds: of those who come so far, at most as many as survive, and
        the control."""
        if not (stages := self._config.further):
            return []
        population = self._config.population
        return [self._usual(stages)] * (min(reach, population.mu) + population.control)

    def _controls(self, generation: int) -> list[Candidate]:
        """That are under way."""
        return [one for one in self._snapshot.controls_of(generation) if not one.final]

    def _parts(self, number: int) -> list[list[Stage]]:
        """The ladder, a part up to each cutoff."""
        stages = self._config.ladder("candidates")
        cutoffs = ladder.cutoffs(self._config, number)
        parts: list[list[Stage]] = [[]]
        for stage in stages:
            parts[-1].append(stage)
            if stage.name in cutoffs and stage is not stages[-1]:
                parts.append([])
        return parts

    @cached_property
    def _born(self) -> list[Candidate]:
        generation = self._snapshot.generation
        return [] if generation is None else self._snapshot.born_in(generation.number)

    def _usual(self, part: Sequence[Stage]) -> _Job:
        """What a candidate takes for it on average, all those of this generation considered."""
        everyone = self._born or [self._as_if_bred]
        for stage in part:
            if stage.name not in self._means:
                self._means[stage.name] = fmean(
                    self._effort.operations(one, stage.name) for one in everyone
                )
        return self._job(part, lambda stage: self._means[stage] * self._paces[stage])

    @cached_property
    def _as_if_bred(self) -> Candidate:
        """The baseline, as if a feed-forward network in its middle were new."""
        blocks = [block.to_json() for block in self._snapshot.baseline.lineage]
        blocks[len(blocks) // 2]["ffns"][0]["transfer"] = "fresh"
        return replace(self._snapshot.baseline, id=-1, lineage_json=json.dumps(blocks))

    def _job_of(self, candidate: Candidate) -> _Job:
        """What is left of its way, up to where it waits for others."""
        if candidate.is_baseline:
            way = ladder.way(self._snapshot, self._config, candidate)
        elif candidate.stage in self._ways:
            way = self._ways[candidate.stage]
        else:
            way = ladder.way(self._snapshot, self._config, candidate)
            self._ways[candidate.stage] = way

        def expected(stage: str) -> float:
            whole = self._effort.operations(candidate, stage) * self._paces[stage]
            live = stage == candidate.stage and candidate.id in self._live
            return self._left(candidate, whole) if live else whole

        return self._job(way, expected)

    def _job(self, stages: Iterable[Stage], expected: Callable[[str], float]) -> _Job:
        """expected: slot-seconds of a stage."""
        seconds = slot_seconds = 0.0
        most = 1
        for stage in stages:
            self.asked.add(stage.name)
            share = self._config.slots.share
            slots = ladder.slots_needed(self._config, stage.name, self.slots)
            seconds += share * expected(stage.name) / slots
            slot_seconds += expected(stage.name)
            most = max(most, slots)
        return _Job(seconds, slot_seconds, most)

    def _left(self, candidate: Candidate, slot_seconds: float) -> float:
        """Of a stage that runs just now: by its steps, or else by the time it has held."""
        attempt, beat = self._live[candidate.id]
        if beat is not None and beat.steps:
            return slot_seconds * max(0.0, 1 - beat.step / beat.steps)
        return max(0.0, slot_seconds - attempt.worth * (self._now - attempt.started_at))


def _kept(part: Sequence[Stage], reach: int) -> int:
    """How many go on behind the last stage of a part."""
    share = part[-1].keep
    return reach if share is None or not reach else rungs.places(share, reach)


def _span(jobs: Sequence[_Job], slots: int, widen: bool) -> float:
    """Seconds that a round takes: the longest first, each where it ends soonest."""
    if not jobs:
        return 0.0
    if widen:  # what would be idle is given to those who run
        return sum(job.slot_seconds for job in jobs) / slots
    ends = [0.0] * max(1, slots // max(job.slots for job in jobs))
    for seconds in sorted((job.seconds for job in jobs), reverse=True):
        heapq.heapreplace(ends, ends[0] + seconds)
    return max(ends)
