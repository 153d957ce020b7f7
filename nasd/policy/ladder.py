"""How a candidate climbs the ladder of stages, as pure functions of a snapshot. No I/O, no clock.

Which stages those are, where it goes from the one it has finished, what is still before it, and
which weights it starts from.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from nasd.contract import seeds, tasks
from nasd.contract.config import PREPARE, SCREEN, Config, Stage
from nasd.contract.genotype import new_modules
from nasd.contract.volumes import Volumes
from nasd.estimate.cost import work
from nasd.record.lifecycle import CandidateKind, Event, Phase, State
from nasd.record.state import Candidate, Mutant, Snapshot
from nasd.search import noise
from nasd.search.fidelity import RULES
from nasd.search.objectives import QUALITY
from nasd.search.variation.breeding import Bred


def steps_of(snapshot: Snapshot, config: Config, candidate: Candidate) -> tuple[str, ...]:
    """Names of the stages that this candidate climbs, in order."""
    if candidate.kind is CandidateKind.SCREENING:
        return (SCREEN,)
    if not candidate.is_baseline:
        climbed = [one for one in config.ladder("candidates") if climbs(one, candidate)]
        again = config.further if seeds.nth_of(candidate.stage) > 1 else ()
        return tuple(stage.name for stage in (*climbed, *again))
    prepared = snapshot.experiment.prepared
    stages = config.ladder("baseline")
    if prepared is not None and prepared["has_mlm_head"]:
        stages = tuple(stage for stage in stages if stage.train != "head")
    return (PREPARE, *(stage.name for stage in stages))


def climbs(stage: Stage, one: Candidate | Bred) -> bool:
    """Whether it climbs a stage of the candidates' ladder."""
    return stage.who != "new" or bool(new_modules(one.lineage))


def begins_at(config: Config, one: Candidate | Bred) -> str:
    """Its first stage."""
    return next(stage.name for stage in config.ladder("candidates") if climbs(stage, one))


def skipped(config: Config, candidate: Candidate) -> tuple[str, ...]:
    """The stages that it goes past, as nothing in it is new."""
    if candidate.is_baseline or candidate.kind is CandidateKind.SCREENING:
        return ()
    stages = config.ladder("candidates")
    return tuple(stage.name for stage in stages if not climbs(stage, candidate))


def stage_named(config: Config, name: str) -> Stage | None:
    """The settings of a stage, or of a part of one; None where there are none: prepare, and
    screening."""
    return next((stage for stage in config.parts if stage.name == name), None)


def cutoffs(config: Config, generation: int) -> tuple[str, ...]:
    """The stages, or parts of one, behind which a generation waits for a cutoff. Generation 0
    climbs without: its individuals need scores before they can be parents."""
    if not generation:
        return ()
    names = tuple(one.name for one in config.ladder("candidates") if one.cuts)
    return names[RULES[config.promotion.rule].spared(generation, len(names)) :]


def alike(config: Config) -> int:
    """After how many generations one waits for the same cutoffs again."""
    rungs = sum(one.cuts for one in config.ladder("candidates"))
    spared = RULES[config.promotion.rule].spared
    return next(n for n in range(1, rungs + 2) if spared(n + 1, rungs) == spared(1, rungs))


def under_way(config: Config, born: Sequence[Candidate], stage: str) -> list[Candidate]:
    """Those of a generation that the cutoff after the stage waits for: they have yet to finish it,
    or a stage before it."""
    steps = [one.name for one in config.ladder("candidates")]
    position = steps.index(stage)
    return [
        c
        for c in born
        if not c.final and steps.index(c.stage) <= position
        if not (c.state is State.WAITING and c.stage == stage)
    ]


def slots_needed(config: Config, name: str, fit: int) -> int:
    """How many slots the stage leases, of `fit` that can be used: fewer than it asks for where
    there are no more, as each is to be of another device. Steps and batches stay what they are;
    only the ranks share them otherwise."""
    stage = stage_named(config, name)
    if alone(config, name):
        return max(1, fit)
    if undivided(config, name):
        return config.slots.share
    return 1 if stage is None else min(stage.slots, max(1, fit // config.slots.share))


def alone(config: Config, name: str) -> bool:
    """Whether the stage has all slots, though one process works: what it measures on the processor
    must have that to itself."""
    stage = stage_named(config, name)
    return stage is not None and stage.measure and config.measure.device == "cpu"


def undivided(config: Config, name: str) -> bool:
    """Whether the stage has all shares of a GPU that others share: what it measures there must have
    it to itself."""
    stage = stage_named(config, name)
    return stage is not None and stage.measure and config.slots.share > 1


def after(
    snapshot: Snapshot, config: Config, candidate: Candidate, has_mlm_head: bool | None = None
) -> tuple[Event, str | None]:
    """Where a candidate goes that has finished its stage: the event, and the stage to go on to.

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
    if name not in cutoffs(config, candidate.generation or 0):
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
    volumes = Volumes.of(snapshot.experiment.prepared, config.data)
    backbone = snapshot.experiment.backbone
    return sum(
        work(
            stage,
            candidate.genotype,
            candidate.lineage,
            backbone,
            config.data,
            volumes,
            config.taught_along(stage, candidate.is_baseline),
        ).flop
        for stage in way(snapshot, config, candidate)
    )


def turn(snapshot: Snapshot, config: Config, candidate: Candidate) -> tuple[float, int]:
    """Of those at one stage, who starts before whom: the lower first, of equals the older.

    Who has most work ahead, so that the long ones do not end last and alone. Offspring under an
    asynchronous rule the other way round: nobody waits for all of them, and of short ones more have
    come to each rung, and to a score, after as many hours.
    """
    work = work_ahead(snapshot, config, candidate)
    offspring = candidate.kind is CandidateKind.CANDIDATE and bool(candidate.generation)
    shortest_first = offspring and RULES[config.promotion.rule].asynchronous
    return (work if shortest_first else -work, candidate.id)


def weights_of(
    snapshot: Snapshot, config: Config, candidate: Candidate
) -> tuple[tuple[int, str] | None, bool]:
    """The (candidate, stage) whose weights this candidate's stage starts from, and whether they
    are the parent's, to be inherited by lineage.

    Within a ladder a stage starts from what one before it has left (see `before`). Where there is
    none, it inherits what its parent leaves to its children (see `left_by`).
    """
    own = before(snapshot, config, candidate, candidate.stage)
    if own is not None:
        return (candidate.id, own), False
    if candidate.parent is None:
        return None, False
    inherits = candidate.kind is not CandidateKind.SCREENING  # it is the parent
    left = left_by(snapshot, config, candidate.parent, _task_at(config, candidate.stage))
    return (candidate.parent, left), inherits


def before(snapshot: Snapshot, config: Config, candidate: Candidate, name: str) -> str | None:
    """The candidate's stage whose weights its stage of that name starts from: the newest before it
    of the same task and the same seed, or that all tasks build on. None where there is none."""
    steps, task = steps_of(snapshot, config, candidate), _task_at(config, name)
    for step in reversed(steps[: steps.index(name)]):
        stage = stage_named(config, step)
        if stage is None:  # prepare
            return step
        own = stage.task == task and seeds.nth_of(step) == seeds.nth_of(name)
        if stage.train != "none" and (own or tasks.of(stage.task).ranks):
            return step
    return None


def to_inherit(snapshot: Snapshot, config: Config, candidate: Candidate) -> set[tuple[int, str]]:
    """The (candidate, stage) whose weights it inherits at the stages that are before it."""
    steps = steps_of(snapshot, config, candidate)
    ahead = steps[steps.index(candidate.stage) :]
    fresh = [step for step in ahead if before(snapshot, config, candidate, step) is None]
    heads = (head_of(snapshot, config, replace(candidate, stage=step)) for step in ahead)
    return {
        (parent, left_by(snapshot, config, parent, _task_at(config, step)))
        for parent in candidate.parents
        for step in fresh
    } | {head for head in heads if head is not None}


def _task_at(config: Config, name: str) -> str:
    """The task of a stage; of a screening, that whose losses it goes by."""
    stage = stage_named(config, name)
    return (config.entry if stage is None else stage).task


def head_of(snapshot: Snapshot, config: Config, candidate: Candidate) -> tuple[int, str] | None:
    """The (candidate, stage) whose head stands on what the candidate's stage starts from, where
    that has none of its task: in a ladder that goes by way of MLM from a fine-tuned parent to the
    task again. None where it has, or a fresh one is drawn."""
    if config.variation.inherit_from != tasks.SCORED or candidate.parent is None:
        return None
    task = _task_at(config, candidate.stage)
    own = before(snapshot, config, candidate, candidate.stage)
    if tasks.of(task).ranks:
        name = None if own else _model_of(snapshot, config, snapshot.baseline, task)
        return None if name is None else (snapshot.baseline.id, name)
    stage = None if own is None else stage_named(config, own)
    if stage is None or stage.task == task:
        return None
    return candidate.parent, left_by(snapshot, config, candidate.parent, task)


def second_weights_of(
    snapshot: Snapshot, config: Config, candidate: Candidate
) -> tuple[int, str] | None:
    """The same of the second parent of a crossover, where the stage inherits."""
    if candidate.second is None or not weights_of(snapshot, config, candidate)[1]:
        return None
    task = _task_at(config, candidate.stage)
    return candidate.second, left_by(snapshot, config, candidate.second, task)


def mutants_of(
    snapshot: Snapshot, config: Config, screening: Candidate
) -> list[tuple[Mutant, tuple[int, str] | None]]:
    """Those that a screening tries, each with the (candidate, stage) whose weights it takes of a
    second parent. Where a parent's are tried by several, they are dealt to these by turns."""
    task = _task_at(config, screening.stage)

    def left(parent: int | None) -> tuple[int, str] | None:
        return None if parent is None else (parent, left_by(snapshot, config, parent, task))

    assert screening.generation is not None
    beside = snapshot.screenings_of(screening.generation)
    its = [one.id for one in beside if one.parent == screening.parent]
    of_parent = [one for one in snapshot.mutants if one.parent == screening.parent]
    dealt = of_parent[its.index(screening.id) :: len(its)]
    return [(one, left(one.second)) for one in dealt]


def teacher_of(snapshot: Snapshot, config: Config, candidate: Candidate) -> tuple[int, str] | None:
    """The (candidate, stage) whose weights the candidate's stage learns from as well; None where it
    learns from nobody, or from a teacher that is no model of the search.

    It is the last model that the teacher has of the stage's own task.
    """
    settings, stage = config.teacher, stage_named(config, candidate.stage)
    if settings is None or settings.outside or not taught(config, candidate):
        return None
    assert stage is not None
    teacher = _teacher(snapshot, config, candidate.generation)
    name = _model_of(snapshot, config, teacher, stage.task)
    return None if name is None else (teacher.id, name)


def taught(config: Config, candidate: Candidate) -> bool:
    """Whether the candidate's stage learns from a teacher, whoever that is."""
    stage = stage_named(config, candidate.stage)
    return stage is not None and config.taught(stage, candidate.is_baseline)


def teacher_name(snapshot: Snapshot, config: Config, candidate: Candidate) -> str:
    """What people call whom the candidate's stage learns from; "" where that is nobody."""
    settings = config.teacher
    if settings is None or not taught(config, candidate):
        return ""
    if settings.outside:
        return settings.source
    origin = teacher_of(snapshot, config, candidate)
    if origin is None:
        return ""
    return "the baseline" if origin[0] == snapshot.baseline.id else f"candidate {origin[0]}"


def teachers(snapshot: Snapshot, config: Config, generation: int) -> set[tuple[int, str]]:
    """All (candidate, stage) that the generation's candidates learn from."""
    if config.teacher is None or config.teacher.outside:
        return set()
    teacher = _teacher(snapshot, config, generation)
    names = {
        _model_of(snapshot, config, teacher, stage.task)
        for stage in config.ladder("candidates")
        if config.taught(stage, baseline=False)
    }
    return {(teacher.id, name) for name in names if name is not None}


def _teacher(snapshot: Snapshot, config: Config, generation: int | None) -> Candidate:
    """Of a generation, the same from its first attempt to its last: parents have their scores when
    it opens, and so has the baseline, where it is compared with them (see `teacher_is_known`)."""
    assert config.teacher is not None
    baseline = snapshot.baseline
    if config.teacher.source != "best" or not generation:
        return baseline
    trained_on = [one.id for one in snapshot.controls if (one.generation or 0) < generation]
    pool = [baseline.id, *trained_on] + [
        one.candidate
        for one in snapshot.members
        if one.generation == generation and one.role == "parent"
    ]
    qualities = {one: quality for one in pool if (quality := snapshot.quality(one)) is not None}
    best = max(qualities, key=lambda one: (qualities[one], -one), default=baseline.id)
    return snapshot.candidates[best]


def teacher_is_known(snapshot: Snapshot, config: Config) -> bool:
    """Whether the next generation's teacher can be told: where the baseline may be it, its score is
    waited for."""
    best = config.teacher is not None and config.teacher.source == "best"
    return snapshot.baseline.final or not best


def _model_of(snapshot: Snapshot, config: Config, teacher: Candidate, task: str) -> str | None:
    """The last stage in which it was trained for the task; prepare leaves a model for those that
    rank, and where the seed is scored as it is, that."""
    leaves = tasks.of(task).ranks or config.scores_seed
    found = PREPARE if teacher.is_baseline and leaves else None
    for name in steps_of(snapshot, config, teacher):
        stage = stage_named(config, name)
        first = seeds.nth_of(name) == 1
        if stage is not None and stage.task == task and stage.train != "none" and first:
            found = name
    return found


def left_by(snapshot: Snapshot, config: Config, parent: int, task: str) -> str:
    """The stage whose weights a candidate leaves to its children at a stage of the task: its last
    MLM stage, as the head that fine-tuning trained is no use to MLM; or, with
    variation.inherit_from = "task", the last one that trains for the same task, or for the one that
    gives the score where the stage is of MLM."""
    if config.variation.inherit_from == tasks.SCORED and tasks.of(task).ranks:
        task = config.scoring[0].name
    return leaving(snapshot, config, snapshot.candidates[parent], task)[-1]


def leaving(snapshot: Snapshot, config: Config, candidate: Candidate, task: str) -> list[str]:
    """The stages that leave a model such as children begin from at a stage of the task; prepare
    leaves one with an MLM head, or where the seed is scored as it is, one with its own."""
    wanted = config.variation.inherit_from
    names = []
    for name in steps_of(snapshot, config, candidate):
        stage = stage_named(config, name)
        if stage is None:
            if wanted != tasks.SCORED or (name == PREPARE and config.scores_seed):
                names.append(name)
        elif seeds.nth_of(name) > 1:
            continue  # the model of a candidate is that of its first seed
        elif tasks.hands_on(stage.task, wanted, task) and stage.train != "none":
            names.append(name)
    return names


def rounds(config: Config, candidate: Candidate) -> int:
    """How often those whose weights it has may have gone through its stage: the baseline, where it
    is trained, and once in each generation before its own. 0 where children do not begin from what
    the stage trains."""
    stage = stage_named(config, candidate.stage)
    wanted = config.variation.inherit_from
    if stage is None or candidate.generation is None or wanted != tasks.SCORED:
        return 0
    before = candidate.generation + (not config.scores_seed)
    return before if tasks.of(stage.task).scores else 0


def all_leaving(snapshot: Snapshot, config: Config, candidate: Candidate) -> list[list[str]]:
    """The same for each task that gives a score."""
    return [leaving(snapshot, config, candidate, one.name) for one in config.scoring]


def seed_weights_stand(snapshot: Snapshot, config: Config) -> bool:
    """Whether the baseline has climbed past everything that generation 0 starts from, or is taught
    by."""
    if snapshot.experiment.prepared is None:
        return False
    steps = steps_of(snapshot, config, snapshot.baseline)
    wanted = {left[-1] for left in all_leaving(snapshot, config, snapshot.baseline)}
    wanted |= {stage for _, stage in teachers(snapshot, config, 0)}
    last = max(map(steps.index, wanted))
    return snapshot.baseline.final or steps.index(snapshot.baseline.stage) > last


def whole_score(
    snapshot: Snapshot, config: Config, candidate: Candidate, metrics: Mapping[str, float]
) -> dict[str, float]:
    """What is recorded of the stage with which the candidate has come to a score, and which gives
    these metrics: in a search of several tasks the quality of each as well, as their last
    evaluations found it, and as `quality` what they come to; under a further seed, the mean with
    those before."""
    nth = seeds.nth_of(candidate.stage)
    found = _of_all_tasks(snapshot, config, candidate, metrics)
    if nth == 1:
        return found
    before = snapshot.results[candidate.id, seeds.scoring_stage(snapshot.config_stages, nth - 1)]
    told = [QUALITY.value(candidate, one, snapshot.baseline) for one in (before.metrics, found)]
    qualities = [one for one in told if one is not None]
    assert len(qualities) == len(told), "an evaluation gives one"
    return noise.with_another_seed(before.metrics, found, qualities[0], qualities[1])


def _of_all_tasks(
    snapshot: Snapshot, config: Config, candidate: Candidate, metrics: Mapping[str, float]
) -> dict[str, float]:
    found = dict(metrics)
    if len(config.scoring) < 2 or candidate.kind is CandidateKind.SCREENING:
        return found
    qualities, errors = {}, {}
    nth = seeds.nth_of(candidate.stage)
    for name in steps_of(snapshot, config, candidate):
        stage = stage_named(config, name)
        if stage is None or stage.train != "none" or seeds.nth_of(name) != nth:
            continue
        last = name == candidate.stage
        said = metrics if last else snapshot.results[candidate.id, name].metrics
        quality = QUALITY.value(candidate, said, snapshot.baseline)
        assert quality is not None, "an evaluation gives one"
        qualities[stage.task] = quality
        if (error := noise.error_of(said)) is not None:
            errors[stage.task] = error
    by = config.experiment.quality
    found |= {tasks.own_quality(task): one for task, one in qualities.items()}
    found |= {tasks.own_error(task): one for task, one in errors.items()}
    found.pop(noise.ERROR, None)  # of the last task
    if errors.keys() == qualities.keys():
        found[noise.ERROR] = tasks.combined_error(errors, qualities, by)
    return {**found, QUALITY.name: tasks.combined(qualities, by)}
