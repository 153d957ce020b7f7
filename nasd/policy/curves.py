"""Where a worker's learning curve stands among those of its search."""

from nasd.contract import tasks
from nasd.record.folders import run_name
from nasd.record.state import Candidate, Snapshot


def learning_curve(generation: int) -> str:
    """The tag of a generation's evaluation losses, all stages in a row whose losses rank. One
    for each, so that a chart shows one generation whatever runs are chosen."""
    return f"learning_curves/{run_name(generation)}"


def first_step(snapshot: Snapshot, candidate: Candidate) -> int:
    """Where the curves of its stage begin: behind those of the same task before it."""
    tasks = {stage["name"]: stage["task"] for stage in snapshot.experiment.stages}
    return sum(
        result.steps
        for (owner, stage), result in snapshot.results.items()
        if owner == candidate.id
        and stage != candidate.stage
        and tasks.get(stage) == tasks.get(candidate.stage)
    )


def shared_curve(candidate: Candidate, task: str) -> str:
    """The tag that a generation's learning curves share; "" for those that are none of them."""
    ranking = {one.name for one in tasks.ranking()}  # prepare is none of any task
    if task not in ranking or candidate.generation is None:
        return ""
    return learning_curve(candidate.generation)
