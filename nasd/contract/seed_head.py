"""What becomes of a seed's head for the task that scores: both planes say it in the same words."""

from collections.abc import Sequence

from nasd.contract import tasks


def kept_by(stages: Sequence[tasks.OfTask]) -> bool:
    """Whether a ladder starts from the head that the seed brings: an MLM stage would leave it
    behind an encoder that it does not know, and of several tasks it is of one alone."""
    scored = {one.task for one in stages if tasks.of(one.task).scores}
    return len(scored) < 2 and not tasks.reading(stages, tasks.MLM.data)


def among(found: Sequence[tasks.Task]) -> str:
    """Why none of the seed's heads can be kept for these tasks; "" where that may be."""
    return "the search has several tasks" if len(found) > 1 else ""


def about(task: tasks.Task, has: bool, kept: bool, fault: str = "") -> str:
    """fault: why it cannot be kept; "" where it can."""
    head = f"{task.words.replace(' ', '-')} head"
    if not has:
        return f"it has no {head}, so a fresh one is trained"
    if fault:
        return f"its {head} is left, as {fault}; a fresh one is trained"
    if not kept:
        return f"its {head} is left, as MLM stages train its encoder first"
    return f"its {head} is kept, and trained on"


def missing(source: str, task: tasks.Task, fault: str = "") -> str:
    """Why the seed cannot be the baseline as it is. fault: why its head cannot be kept."""
    head = f"{task.words.replace(' ', '-')} head"
    why = f"its {head} cannot be kept, as {fault}" if fault else f"it has no {head}"
    return (
        f"stages: nothing trains the baseline, and {source} cannot be scored as it is: {why}; let a"
        ' stage with train = "all" have who = "all"'
    )
