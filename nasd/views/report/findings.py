"""What an experiment has found so far, as tables: a pure function of a snapshot.

Its tables (TABLES; their rows are in nasd.views.report.rows) are what figures are drawn from, and
what is written as CSV and Parquet.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import median
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from nasd.contract import seeds, tasks
from nasd.record.lifecycle import AttemptState, CandidateKind, DecisionKind, Phase, State
from nasd.record.state import Candidate, Granted, Snapshot
from nasd.search.objectives import QUALITY
from nasd.search.pareto import Point, covers, hypervolume, ranks, survivors
from nasd.views.report import accounts, mutations, statistics
from nasd.views.report.rows import (
    AttemptRow,
    CandidateRow,
    CorrelationRow,
    CostRow,
    CurveRow,
    CutoffRow,
    FateRow,
    GenerationRow,
    LossRow,
    MemberRow,
    MissedRow,
    MutationRow,
    ProgressRow,
)

Floats = NDArray[np.float64]
Row = TypeVar("Row", MemberRow, CurveRow)


@dataclass(frozen=True)
class Findings:
    """An experiment at the instant `now` (seconds since the epoch). asked: the requests that
    changed its story."""

    snapshot: Snapshot
    now: float
    asked: tuple[Granted, ...] = ()
    until: float | None = None  # the attempts that live held their slots; None: until now

    # -- the ladder ----------------------------------------------------------------------------

    @property
    def quality_label(self) -> str:
        """Of an axis."""
        return f"{QUALITY.name}, {self.snapshot.quality_words} in {QUALITY.unit}"

    @property
    def config(self) -> dict[str, Any]:
        return self.snapshot.experiment.config

    @cached_property
    def mlm_stages(self) -> tuple[str, ...]:
        """The MLM stages that candidates climb, in order."""
        return tuple(
            stage["name"]
            for stage in self.snapshot.experiment.stages
            if tasks.of(stage["task"]).ranks and stage["who"] != "baseline"
        )

    @cached_property
    def cutoff_stages(self) -> tuple[str, ...]:
        return tuple(
            stage["name"]
            for stage in self.snapshot.experiment.stages
            if stage.get("keep") is not None
        )

    @cached_property
    def charted(self) -> tuple[str, ...]:
        """The stages whose learning curves are drawn, in a row: those of MLM, or where there are
        none but rungs, those that a stage with rungs is climbed in."""
        if self.mlm_stages:
            return self.mlm_stages
        stages = self.snapshot.experiment.stages
        whole = {one["of"] for one in stages if "of" in one and seeds.nth_of(one["name"]) == 1}
        return tuple(stage["name"] for stage in stages if stage.get("of") in whole)

    @cached_property
    def judged(self) -> tuple[str, ...]:
        """The stages whose losses are held against the scores, in order: those that are charted,
        and those with a cutoff behind them."""
        wanted = {*self.charted, *self.cutoff_stages}
        return tuple(
            stage["name"] for stage in self.snapshot.experiment.stages if stage["name"] in wanted
        )

    def loss_words(self, stage: str) -> tuple[str, str]:
        """What people call the loss of a stage, and its unit."""
        if self._ranks(stage):
            return "MLM loss", "nats a masked token"
        return "loss", "nats"

    @cached_property
    def unit(self) -> str:
        return self.snapshot.hours_unit

    # -- candidates ----------------------------------------------------------------------------

    @cached_property
    def candidates(self) -> tuple[CandidateRow, ...]:
        """All of them, the baseline first: where it has been trained on, as its best control."""
        snap = self.snapshot
        newest = {one.candidate: one for one in snap.members if one.rank is not None}
        at = {c.id: point for c in snap.individuals if (point := snap.point(c.id)) is not None}
        front = {c for c, rank in zip(at, ranks(list(at.values())), strict=True) if rank == 0}
        base = snap.quality(snap.rival.id)
        cut = {row.candidate for row in self.cutoffs if not row.kept}
        attempts: dict[int, list[AttemptRow]] = {}
        for attempt in self.attempts:
            attempts.setdefault(attempt.candidate, []).append(attempt)
        rows = []
        for one in sorted(snap.individuals, key=lambda c: (not c.is_baseline, c.id)):
            measured = snap.rival if one.is_baseline else one
            member, quality = newest.get(one.id), snap.quality(measured.id)
            scores = snap.scores(measured.id) or {}
            tried = attempts.get(one.id, [])
            rows.append(
                CandidateRow(
                    id=one.id,
                    generation=one.generation,
                    parent=one.parent,
                    state=str(one.state),
                    stage=one.stage,
                    reason=one.reason,
                    cut=one.id in cut or one.state is State.CUT,
                    parameters=one.parameters,
                    size=snap.size(one.id),
                    scores=snap.scoring.named(scores),
                    quality=quality,
                    quality_error=snap.quality_error(measured.id),
                    seeds=snap.seeds(measured.id),
                    quality_against_baseline=(
                        None if quality is None or base is None else quality - base
                    ),
                    rank=member.rank if member else None,
                    survives=member.survives if member else None,
                    front=one.id in front,
                    mutations=(
                        "injected"
                        if one.id in self.injected
                        else mutations.in_words(self.mutated[one.id])
                    ),
                    genotype=one.genotype_text,
                    genotype_json=one.genotype_json,
                    hash=one.hash,
                    attempts=len(tried),
                    trained_on=measured is not one,
                    gpu_hours=sum(row.gpu_hours for row in tried),
                    lost_gpu_hours=sum(row.lost_gpu_hours for row in tried),
                )
            )
        return tuple(rows)

    @cached_property
    def by_id(self) -> Mapping[int, CandidateRow]:
        return {row.id: row for row in self.candidates}

    @property
    def baseline(self) -> CandidateRow:
        return self.candidates[0]

    @cached_property
    def final_population(self) -> tuple[CandidateRow, ...]:
        """The survivors of the newest generation that was selected, the best rank first."""
        selected = [one.number for one in self.snapshot.generations if one.phase is Phase.COMPLETE]
        if not selected:
            return ()
        found = [self.by_id[one] for one in self.snapshot.survivors(selected[-1])]
        return tuple(sorted(found, key=lambda row: (row.rank or 0, -(row.quality or 0.0), row.id)))

    @cached_property
    def injected(self) -> frozenset[int]:
        """Candidates that a person made: what sets them apart from their parent is no mutation."""
        return frozenset(
            one.candidate for one in self.snapshot.injections if one.candidate is not None
        )

    @cached_property
    def mutated(self) -> Mapping[int, Counter[str]]:
        """How often each kind of mutation made each candidate out of its parent."""
        snap = self.snapshot
        return {
            one.id: Counter()
            if one.parent is None
            else mutations.between(one.lineage, snap.candidates[one.parent].genotype)
            for one in snap.individuals
        }

    # -- generations ---------------------------------------------------------------------------

    @cached_property
    def members(self) -> tuple[MemberRow, ...]:
        """Whoever was late in a generation is a row of the next."""
        snap = self.snapshot
        late = {one.number: {*snap.late(one.number)} for one in snap.generations}
        return tuple(
            MemberRow(
                generation=one.generation,
                candidate=one.candidate,
                role=one.role,
                state=str(snap.candidates[one.candidate].state),
                quality=snap.quality(one.candidate),
                size=snap.size(one.candidate),
                rank=one.rank,
                survives=one.survives,
            )
            for one in snap.members
            if one.candidate not in late[one.generation]
        )

    def members_of(self, generation: int) -> Sequence[MemberRow]:
        return self._members_of.get(generation, ())

    @cached_property
    def _members_of(self) -> Mapping[int | None, Sequence[MemberRow]]:
        return _grouped(self.members)

    @cached_property
    def generations(self) -> tuple[GenerationRow, ...]:
        snap = self.snapshot
        chosen = {
            one.generation: one.payload for one in snap.decisions if one.kind is DecisionKind.SELECT
        }
        children: dict[int | None, list[Candidate]] = {}
        for candidate in snap.individuals:
            children.setdefault(candidate.generation, []).append(candidate)
        rows: list[GenerationRow] = []
        before, spent_before = self.baseline_hypervolume, 0.0
        for one in snap.generations:
            born = children.get(one.number, [])
            ended = one.completed_at if one.completed_at is not None else self.now
            spent = self.spent_by(ended)
            volume = chosen[one.number]["hypervolume"] if one.number in chosen else None
            gain = None if volume is None or before is None else volume - before
            found = self.members_of(one.number)
            qualities = [row.quality for row in found if row.quality is not None]
            rows.append(
                GenerationRow(
                    generation=one.number,
                    phase=str(one.phase),
                    hours=max(0.0, ended - one.opened_at) / 3600,
                    born=len(born),
                    scored=sum(c.state is State.SCORED for c in born),
                    cut=sum(c.state is State.CUT for c in born),
                    failed=sum(c.state is State.FAILED for c in born),
                    new_survivors=None
                    if volume is None
                    else sum(bool(row.survives) for row in found if row.role == "offspring"),
                    best_quality=max(qualities, default=None),
                    median_quality=median(qualities) if qualities else None,
                    hypervolume=volume,
                    gain=gain,
                    gpu_hours=spent,
                    gain_per_gpu_hour=None
                    if gain is None or spent <= spent_before
                    else gain / (spent - spent_before),
                )
            )
            before, spent_before = volume, spent
        return tuple(rows)

    @property
    def baseline_hypervolume(self) -> float | None:
        """What the baseline alone dominates."""
        point = self.snapshot.point(self.snapshot.baseline.id)
        above = self.snapshot.reference
        return None if point is None or above is None else hypervolume([point], above)

    def spent_by(self, instant: float) -> float:
        """The ledger as it stood at an instant, in GPU-hours."""
        slots, starts, ends = self._spans
        return float(slots @ np.clip(np.minimum(ends, instant) - starts, 0, None)) / 3600

    @cached_property
    def _spans(self) -> tuple[Floats, Floats, Floats]:
        """Of all attempts: how many slots, from when, until when."""
        tried = self.snapshot.attempts
        ends = [self.now if one.ended_at is None else one.ended_at for one in tried]
        return (
            np.array([one.worth for one in tried], dtype=float),
            np.array([one.started_at for one in tried], dtype=float),
            np.array(ends, dtype=float),
        )

    @cached_property
    def progress(self) -> tuple[ProgressRow, ...]:
        snap = self.snapshot
        scored = []
        for attempt in snap.attempts:
            one = snap.candidates[attempt.candidate]
            done = attempt.state is AttemptState.SUCCEEDED and attempt.stage == one.stage
            own = one.kind is CandidateKind.CANDIDATE and not one.is_baseline
            if done and one.state is State.SCORED and own:
                assert attempt.ended_at is not None
                scored.append((attempt.ended_at, one.id))
        rows, front, volume = [], list[Point](), 0.0
        if (above := snap.reference) is None:
            return ()
        for at, candidate in sorted(scored):
            quality, size = snap.quality(candidate), snap.size(candidate)
            point = snap.point(candidate)
            assert quality is not None and point is not None
            if not any(covers(one, point) for one in front):
                front = [one for one in front if not covers(point, one)] + [point]
                volume = hypervolume(front, above)
            rows.append(ProgressRow(candidate, self.spent_by(at), quality, size, volume))
        return tuple(rows)

    # -- losses --------------------------------------------------------------------------------

    @cached_property
    def offsets(self) -> Mapping[str, int]:
        """How many steps lie before each stage that is charted, with all of them in a row."""
        found, total = {}, 0
        for stage in self.charted:
            found[stage] = total
            total += max(
                (r.steps for (_, s), r in self.snapshot.results.items() if s == stage), default=0
            )
        return found

    def stage_end(self, stage: str) -> int:
        """The step, with all that are charted in a row, at which a stage is over."""
        lengths = [r.steps for (_, name), r in self.snapshot.results.items() if name == stage]
        return self.offsets[stage] + max(lengths, default=0)

    @cached_property
    def curves(self) -> tuple[CurveRow, ...]:
        """A stage in which a candidate has nothing to train is one evaluation, at its end."""
        snap, offsets = self.snapshot, self.offsets
        return tuple(
            CurveRow(
                snap.candidates[candidate].generation,
                candidate,
                stage,
                step,
                offsets[stage] + step if result.steps else self.stage_end(stage),
                loss,
            )
            for (candidate, stage), result in sorted(
                snap.results.items(), key=lambda item: (item[0][0], offsets.get(item[0][1], 0))
            )
            if stage in offsets and snap.candidates[candidate].kind is CandidateKind.CANDIDATE
            for step, loss in result.curve
        )

    def curves_of(self, generation: int) -> Sequence[CurveRow]:
        return self._curves_of.get(generation, ())

    @cached_property
    def _curves_of(self) -> Mapping[int | None, Sequence[CurveRow]]:
        return _grouped(self.curves)

    @cached_property
    def baseline_loss(self) -> float | None:
        """The baseline's last MLM loss, which is measured only where its head had to be trained."""
        losses = [
            result.curve[-1][1]
            for (candidate, stage), result in self.snapshot.results.items()
            if candidate == self.baseline.id and result.curve and self._ranks(stage)
        ]
        return losses[-1] if losses else None

    def _ranks(self, stage: str) -> bool:
        return any(
            tasks.of(s["task"]).ranks for s in self.snapshot.experiment.stages if s["name"] == stage
        )

    @cached_property
    def cutoffs(self) -> tuple[CutoffRow, ...]:
        rows = []
        for one in self.snapshot.cutoffs:
            found = one.promotion
            rows += [
                CutoffRow(
                    generation=one.generation,
                    stage=one.stage,
                    candidate=candidate,
                    loss=loss,
                    place=found.place(candidate),
                    reached=found.reached,
                    kept=candidate in found.kept,
                    threshold=found.threshold,
                    quality=self.snapshot.quality(candidate),
                )
                for candidate, loss in found.losses.items()
            ]
        return tuple(rows)

    @cached_property
    def losses(self) -> tuple[LossRow, ...]:
        snap = self.snapshot
        rows = []
        for one in snap.individuals:
            quality = snap.quality(one.id)
            if quality is None or one.generation is None:
                continue
            for stage in self.judged:
                result = snap.results.get((one.id, stage))
                if result is not None and result.curve:
                    loss = result.curve[-1][1]
                    rows.append(LossRow(one.generation, one.id, stage, loss, quality))
        return tuple(rows)

    @cached_property
    def correlations(self) -> tuple[CorrelationRow, ...]:
        """Among all that were scored; among those of generations without a cutoff, whom no loss
        has chosen; and among the offspring of the newest generation, as in the thesis."""
        numbers = sorted({row.generation for row in self.losses})
        cut = {row.generation for row in self.cutoffs}
        groups = {"all scored": set(numbers)}
        if numbers:
            groups["generations without a cutoff"] = set(numbers) - cut
            groups[f"generation {numbers[-1]}"] = {numbers[-1]}
        rows = []
        for stage in self.judged:
            for among, generations in groups.items():
                found = [r for r in self.losses if r.stage == stage and r.generation in generations]
                x, y = [r.loss for r in found], [r.quality for r in found]
                for method, estimate in (
                    ("Pearson", statistics.pearson(x, y)),
                    ("Spearman", statistics.spearman(x, y)),
                ):
                    rows.append(
                        CorrelationRow(stage, among, method, len(found), *statistics.ends(estimate))
                    )
        return tuple(rows)

    @cached_property
    def missed(self) -> tuple[MissedRow, ...]:
        snap = self.snapshot
        mu = self.config["population"]["mu"]
        rows = []
        for cutoff in self.cutoffs:
            if cutoff.kept or cutoff.quality is None:
                continue
            peers = [
                row
                for row in self.cutoffs
                if (row.generation, row.stage) == (cutoff.generation, cutoff.stage)
                and row.quality is not None
            ]
            members = sorted(row.candidate for row in self.members_of(cutoff.generation))
            known = {c: point for c in members if (point := snap.point(c)) is not None}
            pool, at = list(known), list(known.values())
            beyond = [snap.missed(one) for one in pool]
            chosen = {pool[index] for index in survivors(at, mu, beyond)}
            rank = dict(zip(pool, ranks(at, beyond), strict=True))
            mine, survives = rank[cutoff.candidate], cutoff.candidate in chosen
            better = sum((row.quality or 0.0) > cutoff.quality for row in peers)
            rows.append(
                MissedRow(
                    generation=cutoff.generation,
                    stage=cutoff.stage,
                    candidate=cutoff.candidate,
                    loss=cutoff.loss,
                    loss_place=1 + sum(row.loss < cutoff.loss for row in peers),
                    quality=cutoff.quality,
                    quality_place=1 + better,
                    of=len(peers),
                    size=snap.size(cutoff.candidate),
                    would_survive=survives,
                    rank=mine,
                    crowded_out=not survives and any(rank[c] == mine for c in chosen),
                    front=self.by_id[cutoff.candidate].front,
                    gpu_hours=self._spent_behind(cutoff.candidate, cutoff.stage),
                )
            )
        return tuple(rows)

    def _spent_behind(self, candidate: int, stage: str) -> float:
        names = [one["name"] for one in self.snapshot.experiment.stages]
        behind = names[names.index(stage) + 1 :]
        return sum(
            row.gpu_hours
            for row in self.attempts
            if row.candidate == candidate and row.stage in behind
        )

    # -- mutations and cost --------------------------------------------------------------------

    @cached_property
    def mutations(self) -> tuple[MutationRow, ...]:
        return mutations.table(self.snapshot, self.mutated, self.injected)

    @cached_property
    def attempts(self) -> tuple[AttemptRow, ...]:
        return accounts.attempts(self.snapshot, self.now)

    @cached_property
    def costs(self) -> tuple[CostRow, ...]:
        stages = [stage["name"] for stage in self.snapshot.experiment.stages]
        return accounts.costs(stages, self.baseline.id, self.attempts, self._controls)

    @cached_property
    def fates(self) -> tuple[FateRow, ...]:
        final = {row.id for row in self.final_population}
        kind = CandidateKind.SCREENING
        screenings = {one.id for one in self.snapshot.candidates.values() if one.kind is kind}
        aside = accounts.beside(self._controls, screenings, self.attempts)
        return (*accounts.fates(self.candidates, final), *aside)

    @property
    def _controls(self) -> set[int]:
        return {one.id for one in self.snapshot.controls}

    @cached_property
    def gpu_hours(self) -> float:
        return self.snapshot.gpu_hours(self.now if self.until is None else self.until)


def _grouped(rows: Iterable[Row]) -> dict[int | None, list[Row]]:
    """By their generation, in their order."""
    found: dict[int | None, list[Row]] = {}
    for row in rows:
        found.setdefault(row.generation, []).append(row)
    return found


TABLES = (
    "candidates",
    "generations",
    "members",
    "progress",
    "curves",
    "cutoffs",
    "losses",
    "correlations",
    "missed",
    "mutations",
    "costs",
    "fates",
    "attempts",
)
