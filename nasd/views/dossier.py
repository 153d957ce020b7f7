"""Everything that is known of one candidate, for a person: the data of `nasd show`.

Reads the database read-only, the signs of life of its attempts, and what lies in its folders.
"""

import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from nasd.contract import config as config_module
from nasd.contract.genotype import Origin, changes
from nasd.contract.protocol import read_metrics
from nasd.control.retention import finished_stages
from nasd.policy import ladder
from nasd.record import lookup, snapshot
from nasd.record.folders import StateFolder
from nasd.record.lifecycle import CandidateKind, DecisionKind, State
from nasd.record.state import Attempt, Candidate, Member, Recorded
from nasd.search.variation.operators import TRAIN_ON
from nasd.views.card import ancestors
from nasd.views.why import Subject, why

Reached = Literal["done", "here", "ahead", "never", "skipped"]


# What is said of those that are no members of a population.
UNCHANGED = {CandidateKind.SCREENING: "nothing: its mutants are tried"}
OWN = {
    CandidateKind.SCREENING: "tries mutants of {origin} untrained, of which generation {generation}"
    " is born",
    CandidateKind.CONTROL: "the baseline, trained on as generation {generation} is, which is held"
    " against it",
}


@dataclass(frozen=True)
class Network:
    """A feed-forward network of a block, and where it comes from."""

    activation: str
    sizes: tuple[int, ...]
    origin: Origin


@dataclass(frozen=True)
class BlockRow:
    """source: the parent's block whose weights it keeps, None for one that is new. Blocks count
    from 1."""

    number: int
    source: int | None
    heads: int
    attention: Origin
    networks: tuple[Network, ...]
    convolves: str = ""
    remaining: int | None = None


@dataclass(frozen=True)
class Ancestor:
    """One of the line from the baseline to the candidate. changes: against its own parent."""

    candidate: int
    generation: int | None
    changes: tuple[str, ...]
    quality: float | None
    size: float


@dataclass(frozen=True)
class StageRow:
    """A stage of its ladder. steps: done of so many; seconds: of work in all attempts, as the
    worker measured them, None before the stage is done. curve: (step, evaluation loss), so far.
    slot_hours: of all attempts at it. teacher: whom it learns from, "" for nobody. trainings: from
    one start, of which the mean of the weights stays. average: the share of what it found in what
    it leaves."""

    stage: str
    train: str
    state: Reached
    steps: int
    seconds: float | None
    loss: float | None
    curve: tuple[tuple[int, float], ...]
    metrics: dict[str, float]
    slot_hours: float
    teacher: str
    trainings: int = 1
    average: float = 0.0


@dataclass(frozen=True)
class DecisionRow:
    """A decision in which it took part. facts: the same as `text`, for a program."""

    generation: int
    kind: str
    stage: str
    text: str
    facts: dict[str, Any]


@dataclass(frozen=True)
class AttemptRow:
    """number: counts the attempts at this stage. seconds: for which it held its slots."""

    id: int
    stage: str
    number: int
    state: str
    slots: tuple[str, ...]
    started_at: float
    seconds: float
    verdict: str
    message: str
    reached: int
    folder: str


@dataclass(frozen=True)
class Child:
    candidate: int
    generation: int | None
    state: str
    stage: str
    quality: float | None


@dataclass(frozen=True)
class Left:
    """What a finished stage left on the disk. answers: it is what `nasd export` takes."""

    stage: str
    folder: str
    bytes: int
    answers: bool


@dataclass(frozen=True)
class Dossier:
    """slot_hours: its own cost; with_ancestors: that of the whole line it descends from. unit:
    what they are called. why: the reason of its state. weights_gone: it has trained, and none of
    it is kept. baseline_quality: to compare with, of the baseline or its best control, as `rival`
    says; None while it has none. called: what people call it."""

    id: int
    is_baseline: bool
    generation: int | None
    parent: int | None
    state: str
    stage: str
    why: str
    hash: str
    genotype: dict[str, Any]
    genotype_text: str
    parameters: int
    size: float
    exact_match: float | None
    f1: float | None
    scores: dict[str, float]
    marks: str
    quality: float | None
    quality_error: float | None
    seeds: int
    within_noise_of: tuple[int, ...]
    baseline_quality: float | None
    rival: str
    called: str
    blocks: tuple[BlockRow, ...]
    ancestry: tuple[Ancestor, ...]
    stages: tuple[StageRow, ...]
    decisions: tuple[DecisionRow, ...]
    attempts: tuple[AttemptRow, ...]
    slot_hours: float
    with_ancestors: float
    unit: str
    children: tuple[Child, ...]
    weights: tuple[Left, ...]
    weights_gone: bool

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values; infinity, which JSON lacks, is "inf"."""
        return {key: _plain(value) for key, value in asdict(self).items()}


def compile_dossier(state: Path, name: str, now: float | None = None) -> Dossier:
    """The dossier of the candidate of that name; raises NasdError if there is none."""
    with snapshot.opened(state) as connection:
        snap = snapshot.read(connection)
    one = lookup.find(snap, name)
    config = config_module.parse(snap.experiment.config, f"the experiment's config in {state}")
    return _Compiler(Subject(snap, StateFolder(state), config, one, now or time.time())).dossier()


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return "inf" if isinstance(value, float) and math.isinf(value) else value


class _Compiler:
    """Compiles the parts of a dossier, one method each."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.snap = subject.snapshot
        self.folder = subject.folder
        self.config = subject.config
        self.candidate = subject.candidate
        self.attempts = subject.attempts
        self.ladder = subject.ladder
        self.now = subject.now

    def dossier(self) -> Dossier:
        snap, one = self.snap, self.candidate
        scores = snap.scores(one.id) or {}
        line = ancestors(snap, one)
        weights = tuple(self._weights())
        stages = tuple(self._stages())
        trained = any(row.state == "done" and row.train != "none" for row in stages)
        return Dossier(
            id=one.id,
            is_baseline=one.is_baseline,
            generation=one.generation,
            parent=one.parent,
            state=str(one.state),
            stage=one.stage,
            why=why(self.subject),
            hash=one.hash,
            genotype=one.genotype.to_json(),
            genotype_text=one.genotype_text,
            parameters=one.parameters,
            size=snap.size(one.id),
            exact_match=scores.get("exact_match"),
            f1=scores.get("f1"),
            scores={metric: scores[metric] for metric, _ in snap.scoring.shown if metric in scores},
            marks=snap.scoring.in_words(scores, sign="  "),
            quality=snap.quality(one.id),
            quality_error=snap.quality_error(one.id),
            seeds=snap.seeds(one.id),
            within_noise_of=self._unsure(),
            baseline_quality=None if snap.rival is one else snap.quality(snap.rival.id),
            rival=snap.rival.called,
            called=one.called,
            blocks=tuple(_blocks(one)),
            ancestry=tuple(self._ancestor(other) for other in line),
            stages=stages,
            decisions=tuple(self._decisions()),
            attempts=tuple(self._attempt(tried) for tried in self.attempts),
            slot_hours=self._hours({one.id}),
            with_ancestors=self._hours({other.id for other in line}),
            unit=snap.hours_unit,
            children=tuple(
                Child(c.id, c.generation, str(c.state), c.stage, snap.quality(c.id))
                for c in snap.individuals
                if c.parent == one.id
            ),
            weights=weights,
            weights_gone=trained and not weights,
        )

    # -- where it comes from -------------------------------------------------------------------

    def _ancestor(self, other: Candidate) -> Ancestor:
        snap = self.snap
        changed = (
            []
            if other.parent is None
            else changes(other.genotype, other.lineage, snap.candidates[other.parent].genotype)
            or [UNCHANGED.get(other.kind, "nothing: it is trained on")]
        )
        return Ancestor(
            other.id,
            other.generation,
            tuple(changed),
            snap.quality(other.id),
            snap.size(other.id),
        )

    def _unsure(self) -> tuple[int, ...]:
        """Among those that it was last selected from."""
        last = [one.generation for one in self.subject.memberships if one.rank is not None]
        if not last:
            return ()
        pool = [one.candidate for one in self.snap.members if one.generation == last[-1]]
        return self.snap.unsure(self.candidate.id, pool)

    # -- what it did ---------------------------------------------------------------------------

    def _stages(self) -> Iterator[StageRow]:
        one = self.candidate
        here = self.ladder.index(one.stage)
        over = (one.id, one.stage) in self.snap.results  # with the stage it stands at
        beyond: Reached = "never" if one.final else "ahead"
        for name in ladder.skipped(self.config, one):
            past = ladder.stage_named(self.config, name)
            assert past is not None
            yield StageRow(name, past.train, "skipped", 0, None, None, (), {}, 0.0, "")
        for place, name in enumerate(self.ladder):
            stage = ladder.stage_named(self.config, name)
            result = self.snap.results.get((one.id, name))
            curve = self._live_curve(name) if result is None else tuple(result.curve)
            steps = curve[-1][0] if curve else 0
            metrics = {} if result is None else result.metrics
            yield StageRow(
                stage=name,
                train="" if stage is None else stage.train,
                state="done" if place < here + over else "here" if place == here else beyond,
                steps=steps if result is None else result.steps,
                seconds=None if result is None else result.seconds,
                loss=curve[-1][1] if curve else metrics.get("loss"),
                curve=curve,
                metrics=metrics,
                slot_hours=self._hours({one.id}, name),
                teacher=ladder.teacher_name(self.snap, self.config, replace(one, stage=name)),
                trainings=1 if stage is None else stage.soup,
                average=0.0 if stage is None else stage.average,
            )

    def _live_curve(self, stage: str) -> tuple[tuple[int, float], ...]:
        """The evaluations of a stage that is not done yet; a later attempt's word counts."""
        points: dict[int, float] = {}
        for tried in self.attempts:
            if tried.stage == stage:
                lines, _ = read_metrics(self.folder.attempt(tried.id).metrics)
                points |= {
                    line["step"]: line["loss"] for line in lines if line.get("kind") == "evaluation"
                }
        return tuple(sorted(points.items()))

    def _attempt(self, tried: Attempt) -> AttemptRow:
        return AttemptRow(
            id=tried.id,
            stage=tried.stage,
            number=tried.number,
            state=str(tried.state),
            slots=tried.slots,
            started_at=tried.started_at,
            seconds=self._held(tried),
            verdict=tried.verdict,
            message=tried.message,
            reached=tried.reached,
            folder=str(self.folder.attempt(tried.id).path),
        )

    def _held(self, tried: Attempt) -> float:
        ended = self.now if tried.ended_at is None else tried.ended_at
        return max(0.0, ended - tried.started_at)

    def _hours(self, candidates: set[int], stage: str | None = None) -> float:
        return (
            sum(
                tried.worth * self._held(tried)
                for tried in self.snap.attempts
                if tried.candidate in candidates and stage in (None, tried.stage)
            )
            / 3600
        )

    # -- decisions -----------------------------------------------------------------------------

    def _decisions(self) -> Iterator[DecisionRow]:
        members = {one.generation: one for one in self.subject.memberships}
        for decision in self.snap.decisions:
            match decision.kind:
                case DecisionKind.BREED:
                    yield from self._bred(decision)
                case DecisionKind.CUTOFF if self.candidate.id in decision.promotion.losses:
                    yield self._cutoff(decision)
                case DecisionKind.REPEAT if self.candidate.id in decision.payload["finalists"]:
                    count = decision.payload["seeds"]
                    text = f"would be selected: trained under {count} seeds in all first"
                    facts = {"seeds": count}
                    yield DecisionRow(decision.generation, "repeat", decision.stage, text, facts)
                case DecisionKind.SELECT if decision.generation in members:
                    yield self._selection(decision, members[decision.generation])
        one = self.candidate
        if one.state is State.CUT and not self._stopped:
            facts = {"at": one.stage, "reason": one.reason}
            text = f"by request, at {one.stage}: {one.reason}"
            yield DecisionRow(one.generation or 0, "cut", "", text, facts)

    @property
    def _trained_on(self) -> bool:
        """Whether it went on behind a cutoff that had stopped it."""
        cut = any(self.candidate.id in one.promotion.cut for one in self.snap.cutoffs)
        return cut and not self._stopped

    @property
    def _stopped(self) -> bool:
        """Whether it stands where a cutoff has stopped it."""
        one = self.candidate
        return one.generation is not None and one in self.snap.stopped_in(one.generation)

    def _bred(self, decision: Recorded) -> Iterator[DecisionRow]:
        one, number = self.candidate, decision.generation
        if one.generation == number:
            origin = "the baseline" if one.parent == self.snap.baseline.id else f"{one.parent}"
            how = "drawn as a mutant of" if number == 0 else "bred from"
            if one.operators == (TRAIN_ON,):
                how = "trained on, as it stood on the front:"
            text = f"{how} {origin}"
            if (own := OWN.get(one.kind)) is not None:
                text = own.format(origin=origin, generation=number)
            facts: dict[str, Any] = {"parent": one.parent, "untrained": one.untrained}
            if one.second is not None:
                text += f" and {one.second}"
            if one.operators and one.operators != (TRAIN_ON,):
                text += f", by {', '.join(one.operators)}"
            if one.untrained is not None:
                tried = self.snap.experiment.config["population"].get("screened", 1)
                text += f"; of {tried} mutants a place among the best untrained: loss"
                text += f" {one.untrained:.4f}"
            if past := ladder.skipped(self.config, one):
                facts["skipped"] = past
                text += f"; nothing in it is new, so it goes past {' and '.join(past)}"
            yield DecisionRow(number, "breed", "", text, facts)
        picked = decision.payload.get("picked", [])
        if times := picked.count(one.id):
            text = f"picked as a parent for {times} of {len(picked)} offspring"
            yield DecisionRow(number, "breed", "", text, {"picked": times, "of": len(picked)})

    def _cutoff(self, decision: Recorded) -> DecisionRow:
        found, one = decision.promotion, self.candidate.id
        facts = {
            "place": found.place(one),
            "of": found.reached,
            "places": found.places,
            "loss": found.losses[one],
            "threshold": found.threshold,
            "kept": one in found.kept,
        }
        text = (
            f"{'kept' if facts['kept'] else 'cut'}: place {facts['place']} of {found.reached} by a"
            f" loss of {facts['loss']:.4f}; "
        )
        if found.threshold is None:
            text += f"by {found.name}, {found.rule}"
        else:
            text += f"the lowest {found.places} go on, up to {found.threshold:.4f}"
        return DecisionRow(decision.generation, "cutoff", decision.stage, text, facts)

    def _selection(self, decision: Recorded, member: Member) -> DecisionRow:
        facts = {
            "role": member.role,
            "survives": member.survives,
            "rank": member.rank,
            "crowding": member.crowding,
            "of": len(decision.payload["points"]),
            "survivors": len(decision.payload["survivors"]),
        }
        if member.rank is None or member.crowding is None:
            if member.candidate in decision.payload.get("late", ()):
                text = "selected from with the next: it was under way, and slots were idle"
            elif self._trained_on:
                text = (
                    "took no part: a cutoff had stopped it, and it was trained on after the search"
                )
            else:
                text = "not among those to choose from, as it has no score"
        else:
            alone = "inf" if math.isinf(member.crowding) else f"{member.crowding:.3f}"
            text = (
                f"{'survives' if member.survives else 'not selected'} as {member.role}: rank"
                f" {member.rank}, crowding distance {alone};"
                f" {facts['survivors']} of {facts['of']} survive"
            )
            if by := decision.payload.get("missed", {}).get(str(member.candidate)):
                facts["missed"] = by
                text += f"; breaks the limits by {100 * by:.1f} %"
        return DecisionRow(decision.generation, "select", "", text, facts)

    # -- the disk ------------------------------------------------------------------------------

    def _weights(self) -> Iterator[Left]:
        answering = finished_stages(
            self.config, "baseline" if self.candidate.is_baseline else "candidates"
        )
        for name in self.ladder:
            stage = ladder.stage_named(self.config, name)
            home = self.folder.result(self.candidate.id, name)
            if home.is_dir() and (stage is None or stage.train != "none"):
                size = sum(_size(path) for path in home.rglob("*"))
                yield Left(name, str(home), size, name in answering)


def _blocks(candidate: Candidate) -> Iterator[BlockRow]:
    pairs = zip(candidate.genotype.blocks, candidate.lineage, strict=True)
    for number, (block, origin) in enumerate(pairs, start=1):
        new = origin.source is None
        yield BlockRow(
            number=number,
            source=None if origin.source is None else origin.source + 1,
            heads=block.heads,
            attention="added" if new else "altered" if origin.attention_new else "kept",
            networks=tuple(
                Network(ffn.activation, ffn.sizes, made)
                for ffn, made in zip(block.ffns, origin.origins, strict=True)
            ),
            convolves=block.convolves,
            remaining=block.remaining,
        )


def _size(path: Path) -> int:
    try:
        return path.stat().st_size if path.is_file() else 0
    except FileNotFoundError:  # a daemon may collect weights at any time
        return 0
