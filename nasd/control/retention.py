"""Which weights are still needed, and how much disk an experiment can come to need.

What is kept, and why:

- the baseline: everything, since every comparison and every first inheritance rests on it
- a candidate on its way: the stage it starts from next, and its last MLM stage, which its own
  offspring will inherit from; one that has failed too, while its generation climbs, so that a
  person can have it tried again
- parents, and scored candidates that may become parents: their last MLM stage
- the newest control that is scored, and the one on its way: the next goes on from it
- whoever the newest generation learns from
- whoever is on the front of all that a selection has seen, and all survivors: the fine-tuned model
- a cut candidate, while its generation is the newest: the stage it was cut at, so that a person
  can have it trained on to see what the cutoff missed (thesis, Figure 9)

Optimizer state lives in checkpoints, which go when their stage is done, and in what is left at a
rung, which whoever pauses there goes on from. Predictions, curves, genotypes and logs stay.
"""

import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from nasd.contract import rungs, seeds
from nasd.contract.config import PREPARE, Config
from nasd.contract.genotype import (
    GATED,
    Backbone,
    Block,
    FeedForward,
    Genotype,
    parameters,
    weights_of_ffn,
)
from nasd.contract.protocol import AttemptFolder, checkpoints_below
from nasd.policy import endings, ladder
from nasd.record.folders import StateFolder
from nasd.record.lifecycle import CandidateKind, Phase, State
from nasd.record.state import Candidate, Scored, Snapshot
from nasd.search.objectives import point
from nasd.search.pareto import ranks

BYTES = 4  # of a weight, in float32
OPTIMIZER = 2  # AdamW's two moments, each as large as the weights
KEPT_CHECKPOINTS = 2


def needed(snapshot: Snapshot, config: Config, scored: Iterable[Scored]) -> set[tuple[int, str]]:
    """The (candidate, stage) whose weights must stay.

    snapshot: of what is in play, or more. scored: all that ever were.
    """
    wanted: set[tuple[int, str]] = set()
    for candidate in snapshot.candidates.values():
        wanted |= {(candidate.id, stage) for stage in _of(snapshot, config, candidate)}
    if snapshot.generation is not None:
        newest = snapshot.generation.number
        late = snapshot.joining(newest)
        for generation in {newest, *(one.generation for one in late if not one.final)}:
            assert generation is not None
            wanted |= ladder.teachers(snapshot, config, generation)
        for candidate in snapshot.candidates.values():  # nobody else climbs
            climbs = candidate.generation == newest or candidate in late
            if climbs and candidate.state is not State.SCORED:
                wanted |= ladder.to_inherit(snapshot, config, candidate)
            elif _may_repeat(snapshot, candidate):
                wanted |= ladder.to_inherit(snapshot, config, _repeated(config, candidate))
    models = finished_stages(config)
    names, baseline = snapshot.experiment.objectives, snapshot.baseline
    unselected = _unselected(snapshot)
    pool = [
        (one, at)
        for one in scored
        if one.id not in unselected and (at := point(names, one, one.metrics, baseline)) is not None
    ]
    points = [at for _, at in pool]
    # Of the front of all, and of that of those who hold the limits: an export may ask for either.
    missed = [snapshot.missed_by(one, one.metrics) for one, _ in pool]
    for beyond in ([], missed) if any(missed) else ([],):
        front = zip(pool, ranks(points, beyond), strict=True)
        wanted |= {(one.id, model) for (one, _), rank in front if rank == 0 for model in models}
    return wanted


def _unselected(snapshot: Snapshot) -> set[int]:
    """Whoever is still to be selected from. They keep their models anyway, and further seeds may
    lower their scores: whom they beat until then may be on the front again."""
    generation = snapshot.generation
    if generation is None:
        return set()
    if generation.phase is Phase.COMPLETE:
        return set(snapshot.late(generation.number))
    here = (*snapshot.born_in(generation.number), *snapshot.joining(generation.number))
    return {one.id for one in here}


def _of(snapshot: Snapshot, config: Config, candidate: Candidate) -> set[str]:
    steps = ladder.steps_of(snapshot, config, candidate)
    if candidate.is_baseline:
        return set(steps)
    generation = snapshot.generation
    assert generation is not None
    if candidate.kind is CandidateKind.SCREENING:
        return set()
    here = steps.index(candidate.stage)
    left = ladder.all_leaving(snapshot, config, candidate)
    finished = {*(one[-1] for one in left), *finished_stages(config)}
    newest = candidate.generation == generation.number
    if not candidate.final and seeds.nth_of(candidate.stage) > 1:
        return finished | _on_its_way(snapshot, config, candidate, here)
    match candidate.state:
        case State.FAILED if not newest or generation.phase is not Phase.CLIMBING:
            return set()
        case State.CUT:
            return _on_its_way(snapshot, config, candidate, here + 1) if newest else set()
        case State.WAITING:
            return _on_its_way(snapshot, config, candidate, here + 1)
        case State.SCORED if candidate.kind is CandidateKind.CONTROL:
            if _may_repeat(snapshot, candidate):
                return finished | _to_repeat(snapshot, config, candidate)
            newest_one = [one for one in snapshot.controls if one.state is State.SCORED][-1]
            return finished if candidate is newest_one else set()
        case State.SCORED:
            # Until a generation's selection stands, each of its members may become a parent.
            if candidate.id in snapshot.late(generation.number):
                return finished
            members = [one for one in snapshot.members if one.generation == generation.number]
            selected = any(one.survives is not None for one in members)
            if any(
                one.candidate == candidate.id and (one.survives or not selected) for one in members
            ):
                return finished if selected else finished | _to_repeat(snapshot, config, candidate)
            return set()
    return _on_its_way(snapshot, config, candidate, here)


def _may_repeat(snapshot: Snapshot, candidate: Candidate) -> bool:
    """Whether it is a control that further seeds are still to come for: those of parents' are kept
    anyway."""
    generation = snapshot.generation
    assert generation is not None
    under_way = generation.phase in (Phase.CLIMBING, Phase.SELECTING)
    return under_way and candidate in snapshot.repeated_controls(generation.number)


def _repeated(config: Config, candidate: Candidate) -> Candidate:
    """At the first stage under a further seed."""
    return replace(candidate, stage=config.further[0].name)


def _to_repeat(snapshot: Snapshot, config: Config, candidate: Candidate) -> set[str]:
    """The stages of its own that one under a further seed would start from."""
    if not config.further:
        return set()
    again = _repeated(config, candidate)
    starts = (ladder.before(snapshot, config, again, one.name) for one in config.further)
    own = ladder.steps_of(snapshot, config, candidate)
    return {step for step in starts if step in own and seeds.nth_of(step) == 1}


def _on_its_way(snapshot: Snapshot, config: Config, candidate: Candidate, here: int) -> set[str]:
    """Of the stages that a candidate has climbed, those that one before it starts from, and what it
    leaves to its children so far. here: the number of the next one."""
    steps = ladder.steps_of(snapshot, config, candidate)
    left = ladder.all_leaving(snapshot, config, candidate)
    behind = [[step for step in one if steps.index(step) < here] for one in left]
    starts = (ladder.before(snapshot, config, candidate, step) for step in steps[here:])
    needed = {*starts, *(one[-1] for one in behind if one)}
    needed |= _to_repeat(snapshot, config, candidate)
    return {step for step in needed if step is not None and steps.index(step) < here}


def answering_stage(config: Config, who: Literal["candidates", "baseline"] = "candidates") -> str:
    """The last stage that trains, or of a baseline that none does, prepare: what it leaves is the
    model to be used. config: focused on a task, where there are several."""
    return [PREPARE, *(one.name for one in config.ladder(who) if one.train != "none")][-1]


def finished_stages(
    config: Config, who: Literal["candidates", "baseline"] = "candidates"
) -> set[str]:
    """The stages that leave a model to be used: one for each task."""
    return {answering_stage(config.focused(one.name), who) for one in config.scoring}


def collect(state: StateFolder, config: Config, wanted: set[tuple[int, str]]) -> list[str]:
    """Removes the weights that are not wanted; returns their folders, below candidates/."""
    stages = {stage.name for stage in config.parts if stage.train != "none"} | {PREPARE}
    gone = []
    for home in numbered(state.path / "candidates"):
        for half in home.glob(".*.gone"):  # of a collection that was killed
            shutil.rmtree(half)
        for stage in sorted(stages):
            folder = home / stage
            if folder.is_dir() and (int(home.name), stage) not in wanted:
                folder.rename(half := home / f".{stage}.gone")  # no half a model under its name
                shutil.rmtree(half)
                gone.append(f"{home.name}/{stage}")
    return gone


def numbered(folder: Path) -> list[Path]:
    """The folders below that nasd made; what else people put there, as a copy, is theirs."""
    return sorted(path for path in folder.glob("*") if re.fullmatch("0|[1-9][0-9]*", path.name))


def sweep(state: StateFolder, snapshot: Snapshot) -> int:
    """Removes what ended attempts left and nobody will read; at how many stages there was any.

    As long as a candidate has the stage before it, its two newest checkpoints there stay.
    snapshot: the whole search.
    """
    assert snapshot.whole
    ended: dict[tuple[int, str], list[AttemptFolder]] = {}
    for attempt in snapshot.attempts:
        if not attempt.live:
            folder = state.attempt(attempt.id)
            ended.setdefault((attempt.candidate, attempt.stage), []).append(folder)
    # Of a search that was taken back to a backup: numbers are given again, and an attempt must
    # never resume what another one of its number left.
    known = {str(attempt.id) for attempt in snapshot.attempts}
    for path in numbered(state.path / "attempts"):
        if path.name not in known:
            shutil.rmtree(AttemptFolder(path).checkpoints, ignore_errors=True)
    return sum(
        _clear(snapshot.candidates[candidate], stage, folders)
        for (candidate, stage), folders in ended.items()
    )


def clear(state: StateFolder, snapshot: Snapshot, candidate: int, stage: str) -> None:
    """As sweep, for one candidate at one stage."""
    attempts = endings.attempts_at(snapshot, candidate, stage)
    folders = [state.attempt(attempt.id) for attempt in attempts if not attempt.live]
    _clear(snapshot.candidates[candidate], stage, folders)


def _clear(candidate: Candidate, stage: str, folders: list[AttemptFolder]) -> bool:
    goes_on = candidate.stage == stage and candidate.state in (State.PENDING, State.RUNNING)
    checkpoints = checkpoints_below(folder.checkpoints for folder in folders)[::-1]
    half_made = [path for folder in folders for path in folder.checkpoints.glob(".*.tmp")]
    left = [f.checkpoints for f in folders]
    if goes_on:
        left = [*checkpoints[:-KEPT_CHECKPOINTS], *half_made]
    left = [path for path in [*left, *(folder.result for folder in folders)] if path.exists()]
    for path in left:
        shutil.rmtree(path)
    return bool(left)


@dataclass(frozen=True)
class Bound:
    """The most disk that weights and checkpoints of an experiment can take, in bytes."""

    largest_model: int
    models: int  # how many of them at most
    checkpoints: int  # bytes, of all live attempts together

    @property
    def total(self) -> int:
        return self.largest_model * self.models + self.checkpoints


def bound(config: Config, backbone: Backbone, slots: int) -> Bound:
    """The bound that follows from the config: population sizes, ladder, search space, slots.

    Every member of a generation with weights of all its stages, as they may stand between two
    collections; the results of running attempts; the baseline; and, as the front of all ever
    scored, at worst every candidate that passed the cutoffs. Two checkpoints for everybody on the
    way, and one more for each attempt that is writing just now. What people inject comes on top.
    """
    space = config.search_space
    sizes = (max(space.sizes),) * (max(space.layers) - 1)
    shapes = [FeedForward(one, sizes[:1] if one in GATED else sizes) for one in space.activations]
    ffn = max(shapes, key=lambda one: weights_of_ffn(one, backbone.width))
    kernels = (max(one, default=None) for one in (space.convolutions, space.branches))
    block = Block(max(space.heads), (ffn,) * space.ffns, None, False, *kernels)
    # The question-answering or MLM head on top is at most a square matrix and a bias per token id.
    head = backbone.width * (backbone.width + 4) + backbone.vocab_size
    largest = BYTES * (parameters(Genotype((block,) * space.blocks[1]), backbone) + head)
    # What a part of a stage leaves has the state of the optimizer with it.
    training = sum(
        1 + OPTIMIZER * (stage.span[1] < 1)
        for stage in config.ladder("candidates")
        if stage.train != "none"
    )
    mu, lambda_ = config.population.mu, config.population.lambda_
    offspring = lambda_
    for stage in config.ladder("candidates"):
        if stage.keep is not None:
            offspring = min(offspring, rungs.places(stage.keep, offspring))
    scored = mu + config.experiment.generations * offspring
    again = sum(stage.train != "none" for stage in config.further)  # of a generation's finalists
    controls = (1 + training + again) * config.population.control
    members = (mu + lambda_) * training + max(mu, lambda_) * again
    in_play = members + len(config.ladder("baseline")) + 1 + controls
    return Bound(
        largest_model=largest,
        models=in_play + scored + slots,
        checkpoints=(max(mu, lambda_) * KEPT_CHECKPOINTS + slots) * (1 + OPTIMIZER) * largest,
    )
