"""How a candidate climbs the ladder of stages, as pure functions of a snapshot. No I/O, no clock.

Which stages those are, where it goes from the one it has finished, what is still before it, and
which weights it starts from.
"""

from nasd.contract import tasks
from nasd.contract.config import PREPARE, SCREEN, Config, Stage
from nasd.contract.volumes import Volumes
from nasd.estimate.cost import work
from nasd.record.lifecycle import CandidateKind, Event, Phase
from nasd.record.state import Candidate, Mutant, Snapshot


def steps_of(snapshot: Snapshot, config: Config, candidate: Candidate) -> tuple[str, ...]:
    """Names of the stages that this candidate climbs, in order."""
    if candidate.kind is CandidateKind.SCREENING:
        return (SCREEN,)
    if not candidate.is_baseline:
        return tuple(stage.name for stage in config.ladder("candidates"))
    prepared = snapshot.experiment.prepared
    stages = config.ladder("baseline")
    if prepared is not None and prepared["has_mlm_head"]:
        stages = tuple(stage for stage in stages if stage.train != "head")
    return (PREPARE, *(stage.name for stage in stages))


def stage_named(config: Config, name: str) -> Stage | None:
    """The stage's settings; None for those that have none: prepare, and screening."""
    return next((stage for stage in config.stages if stage.name == name), None)


def slots_needed(config: Config, name: str, fit: int) -> int:
    """How many slots the stage leases, of `fit` that can be used: fewer than it asks for where
    there are no more. Steps and batches stay what they are; only the ranks share them otherwise."""
    stage = stage_named(config, name)
    return 1 if stage is None else min(stage.slots, max(1, fit))


def after(
    snapshot: Snapshot, config: Config, candidate: Candidate, has_mlm_head: bool | None = None
) -> tuple[Event, str | None]:
    """Where a candidate goes that has finished its stage: the event, and the stage to go on to.

    Generation 0 climbs without cutoffs: its individuals need scores before they can be parents.
    has_mlm_head: what prepare has just found, before it is recorded.
    """
    steps = steps_of(snapshot, config, candidate)
    if has_mlm_head and candidate.stage == PREPARE:
        heads = {stage.name for stage in config.stages if stage.train == "head"}
        steps = tuple(step for step in steps if step not in heads)
    position = steps.index(candidate.stage)
    if position == len(steps) - 1:
        return Event.SCORE, None
    if _is_cut_after(snapshot, config, candidate, candidate.stage):
        return Event.HOLD, None
    return Event.ADVANCE, steps[position + 1]


def _is_cut_after(snapshot: Snapshot, config: Config, candidate: Candidate, name: str) -> bool:
    stage = stage_named(config, name)
    if stage is None or not stage.cuts or not candidate.generation:
        return False
    if candidate.kind is CandidateKind.CONTROL:
        return False
    # In a complete generation all cutoffs have been: who still climbs was cut, and is trained on.
    return any(
        one.number == candidate.generation and one.phase is not Phase.COMPLETE
        for one in snapshot.generations
    )


def way(snapshot: Snapshot, config: Config, candidate: Candidate) -> tuple[Stage, ...]:
    """The stages that a candidate has before it, from its own up to the next cutoff, or to its
    score: up to there it waits for nobody."""
    steps = steps_of(snapshot, config, candidate)
    ahead = []
    for name in steps[steps.index(candidate.stage) :]:
        if (stage := stage_named(config, name)) is not None:
            ahead.append(stage)
        if _is_cut_after(snapshot, config, candidate, name):
            break
    return tuple(ahead)


def work_ahead(snapshot: Snapshot, config: Config, candidate: Candidate) -> float:
    """Floating-point operations on its way, as nasd.estimate.cost expects them; 0 before prepare
    has counted the data."""
    if snapshot.experiment.prepared is None:
        return 0.0
    volumes = Volumes.of(snapshot.experiment.prepared, config.data.qa)
    backbone = snapshot.experiment.backbone
    return sum(
        work(stage, candidate.genotype, candidate.lineage, backbone, config.data, volumes).flop
        for stage in way(snapshot, config, candidate)
    )


def weights_of(
    snapshot: Snapshot, config: Config, candidate: Candidate
) -> tuple[tuple[int, str] | None, bool]:
    """The (candidate, stage) whose weights this candidate's stage starts from, and whether they
    are the parent's, to be inherited by lineage.

    Within a ladder a stage starts where the one before it ended. The first one inherits what its
    parent leaves to its children (see `left_by`).
    """
    steps = steps_of(snapshot, config, candidate)
    position = steps.index(candidate.stage)
    if position > 0:
        return (candidate.id, steps[position - 1]), False
    if candidate.parent is None:
        return None, False
    inherits = candidate.kind is not CandidateKind.SCREENING  # it is the parent
    return (candidate.parent, left_by(snapshot, config, candidate.parent)), inherits


def second_weights_of(
    snapshot: Snapshot, config: Config, candidate: Candidate
) -> tuple[int, str] | None:
    """The same of the second parent of a crossover, where the stage inherits."""
    if candidate.second is None or not weights_of(snapshot, config, candidate)[1]:
        return None
    return candidate.second, left_by(snapshot, config, candidate.second)


def mutants_of(
    snapshot: Snapshot, config: Config, screening: Candidate
) -> list[tuple[Mutant, tuple[int, str] | None]]:
    """Those that a screening tries, each with the (candidate, stage) whose weights it takes of a
    second parent."""
    return [
        (one, None if one.second is None else (one.second, left_by(snapshot, config, one.second)))
        for one in snapshot.mutants
        if one.parent == screening.parent
    ]


def left_by(snapshot: Snapshot, config: Config, parent: int) -> str:
    """The stage whose weights a candidate leaves to its children: its last MLM stage, as the head
    that fine-tuning trained is no use to MLM; or, with variation.inherit_from = "task", the last
    one that trains."""
    return leaving(snapshot, config, snapshot.candidates[parent])[-1]


def leaving(snapshot: Snapshot, config: Config, candidate: Candidate) -> list[str]:
    """The stages that leave a model such as children begin from; prepare leaves one with an MLM
    head."""
    wanted = config.variation.inherit_from
    names = []
    for name in steps_of(snapshot, config, candidate):
        stage = stage_named(config, name)
        if stage is None:
            if wanted != tasks.SCORED:
                names.append(name)
        elif tasks.hands_on(stage.task, wanted) and stage.train != "none":
            names.append(name)
    return names


def seed_weights_stand(snapshot: Snapshot, config: Config) -> bool:
    """Whether the baseline has climbed past everything that generation 0 starts from."""
    if snapshot.experiment.prepared is None:
        return False
    steps = steps_of(snapshot, config, snapshot.baseline)
    last = steps.index(left_by(snapshot, config, snapshot.baseline.id))
    return snapshot.baseline.final or steps.index(snapshot.baseline.stage) > last
