"""What becomes of a seed's head for questions: both planes say it in the same words."""

from collections.abc import Sequence

from nasd.contract import tasks


def kept_by(stages: Sequence[tasks.OfTask]) -> bool:
    """Whether a ladder starts from the head that the seed brings: an MLM stage would leave it
    behind an encoder that it does not know."""
    return not tasks.reading(stages, tasks.MLM.data)


def about(has: bool, kept: bool) -> str:
    if not has:
        return "it has no question-answering head, so a fresh one is trained"
    if not kept:
        return "its question-answering head is left, as MLM stages train its encoder first"
    return "its question-answering head is kept, and trained on"
