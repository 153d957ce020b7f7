"""The thesis's rule (4.2.4): the share with the lowest last evaluation loss goes on.

The share is of all that reached the stage, so a candidate that diverged in it frees no place for
more than were meant to go on. Ties go to the lower id.
"""

from collections.abc import Mapping, Sequence

from nasd.search.fidelity.promotion import Action, Budget, Choice, Curves, Rule, Rung, all_wait


def decide(curves: Curves, rungs: Sequence[Rung], budget: Budget) -> Mapping[int, Choice]:
    at = rungs[-1]
    if at.under_way:
        return all_wait(curves, at)
    losses = {candidate: curve[-1][1] for candidate, curve in curves.items()}
    order = sorted(losses, key=lambda candidate: (losses[candidate], candidate))
    places = budget.places(at.reached)
    kept = set(order[:places])
    threshold = losses[order[:places][-1]]

    def choice(candidate: int) -> Choice:
        action, among = (Action.KEEP, "is") if candidate in kept else (Action.CUT, "is not")
        reason = (
            f"{at.stage} loss {losses[candidate]:.4f} {among} among the lowest {places} of"
            f" {at.reached} (the last one kept has {threshold:.4f})"
        )
        return Choice(action, reason, losses[candidate], threshold, order.index(candidate))

    return {candidate: choice(candidate) for candidate in order}


SHARE = Rule("share", "the lowest {places} of {reached} by the last evaluation loss", decide)
