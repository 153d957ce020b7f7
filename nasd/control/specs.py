"""What a worker is told of its attempt. Pure: of a snapshot, the config and the names of paths."""

from pathlib import Path

from nasd.contract import seed_head, tasks
from nasd.contract.config import PREPARE, Config, SearchSpace
from nasd.contract.objectives import LATENCY, OBJECTIVES
from nasd.contract.protocol import Spec, Teaching, Untried
from nasd.policy import curves, endings, ladder
from nasd.record.folders import StateFolder
from nasd.record.lifecycle import CandidateKind
from nasd.record.state import Candidate, Snapshot


def spec(
    snapshot: Snapshot,
    config: Config,
    config_folder: Path,
    state: StateFolder,
    candidate: Candidate,
    attempt: int,
    slots: int,
    share: int = 1,
) -> Spec:
    """Of an attempt of the candidate at its stage, with a rank on so many slots. config_folder:
    where relative data paths start. share: how many attempts may share each of its devices."""
    prepared = snapshot.experiment.prepared or {}
    origin, inherits = ladder.weights_of(snapshot, config, candidate)
    second = ladder.second_weights_of(snapshot, config, candidate)
    head = ladder.head_of(snapshot, config, candidate)
    earlier = endings.attempts_at(snapshot, candidate.id, candidate.stage)
    stage = ladder.stage_named(config, candidate.stage)
    task = candidate.stage if stage is None else stage.task
    if candidate.kind is CandidateKind.SCREENING:
        stage = config.entry  # of whose task the losses are
    found = prepared if stage is None else tasks.prepared_of(prepared, stage.task)
    return Spec(
        attempt=attempt,
        candidate=candidate.id,
        generation=candidate.generation,
        stage=stage,
        seed=snapshot.experiment.seed,
        dropout=config.seed_model.dropout,
        source=config.seed_model.source,
        vocabulary=config.seed_model.vocabulary,
        keeps_qa_head=_keeps_qa_head(snapshot, config),
        scores_seed=config.scores_seed,
        data=config.data,
        config_folder=str(config_folder),
        genotype=candidate.genotype.to_json(),
        lineage=[block.to_json() for block in candidate.lineage],
        weights=None if origin is None else str(state.result(*origin)),
        inherits=inherits,
        second_weights=None if second is None else str(state.result(*second)),
        head_weights=None if head is None else str(state.result(*head)),
        teacher=_teaching(snapshot, config, state, candidate),
        cache=str(state.cache),
        mlm_cache=_cache(state, prepared.get("mlm_cache")),
        qa_cache=_cache(state, prepared.get("qa_cache")),
        labelled_cache=_cache(state, found.get("labelled_cache")),
        labelled_caches={
            name: _cache(state, one["labelled_cache"])
            for name, one in prepared.get("labelled_tasks", {}).items()
        },
        tensorboard=str(state.curves(candidate.generation, candidate.id, task)),
        rounds=ladder.rounds(config, candidate),
        first_step=curves.first_step(snapshot, candidate),
        shared_curve=curves.shared_curve(candidate, task),
        precision=config.slots.precision,
        threads=config.slots.threads,
        share=share,
        checkpoint_minutes=config.daemon.checkpoint_minutes,
        log_steps=config.daemon.log_steps,
        stall_minutes=config.daemon.stall_minutes,
        compile=config.slots.compile,
        packing=config.slots.packing,
        measure=config.measure,
        goes_by=tuple(name for name in OBJECTIVES if config.goes_by(name)),
        profiled=_profiled(config, candidate),
        mutants=_mutants(snapshot, config, state, candidate),
        refits=config.variation.refit,
        holds_out=config.population.screened > 1,
        fixed_masks=stage is not None
        and stage.train == "new"
        and prepared.get("fixed_masks", False),
        activation_cache_gb=config.daemon.activation_cache_gb,
        halvings=endings.halvings(snapshot, config, candidate, slots),
        resume=tuple(str(state.attempt(one.id).checkpoints) for one in reversed(earlier)),
    )


def _profiled(config: Config, candidate: Candidate) -> SearchSpace | None:
    wanted = candidate.stage == PREPARE and config.goes_by(LATENCY)
    return config.search_space if wanted else None


def _mutants(
    snapshot: Snapshot, config: Config, state: StateFolder, candidate: Candidate
) -> tuple[Untried, ...]:
    if candidate.kind is not CandidateKind.SCREENING:
        return ()
    return tuple(
        Untried(
            id=one.id,
            genotype=one.genotype.to_json(),
            lineage=[block.to_json() for block in one.lineage],
            second_weights=None if second is None else str(state.result(*second)),
        )
        for one, second in ladder.mutants_of(snapshot, config, candidate)
    )


def _teaching(
    snapshot: Snapshot, config: Config, state: StateFolder, candidate: Candidate
) -> Teaching | None:
    """Whom its stage learns from; of prepare, whom it is to bring from outside."""
    settings = config.teacher
    if settings is not None and settings.outside and candidate.stage == PREPARE:
        return Teaching(weights="", name=settings.source, settings=settings)
    if settings is None or not ladder.taught(config, candidate):
        return None
    name = ladder.teacher_name(snapshot, config, candidate)
    if settings.outside:
        folder = _cache(state, (snapshot.experiment.prepared or {}).get("teacher"))
    else:
        origin = ladder.teacher_of(snapshot, config, candidate)
        assert origin is not None, "every task that is taught has left a model"
        folder = str(state.result(*origin))
    return Teaching(weights=folder, name=name, settings=settings)


def _keeps_qa_head(snapshot: Snapshot, config: Config) -> bool:
    """Whether prepare takes the seed's head for the task that scores along, or has taken it."""
    if (prepared := snapshot.experiment.prepared) is not None:
        return bool(prepared.get("keeps_qa_head", False))
    return seed_head.kept_by(config.stages)


def _cache(state: StateFolder, found: str | None) -> str:
    """Where a cache that prepare found stands now: the state folder may have been moved since, and
    its caches with it."""
    return str(state.cache / Path(found).name) if found else ""
