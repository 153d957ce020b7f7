"""Asynchronous successive halving (Li et al. 2020) with several objectives: whoever is among the
share preferred of those that have come to the rung so far goes on at once, so the very first one
does; the others wait, and may go on later, as more come; once nobody is under way, who still waits
is cut.

"So far" goes by the order of starts, or of promotions, and by no clock: the first n of that order,
as soon as all of them have finished the rung, or failed. So what is decided is a function of the
seed alone, whichever attempt happens to end first; one that takes long holds up promotions, and no
slot, while there is anything else to start.
"""

from collections.abc import Mapping, Sequence

from nasd.search.fidelity.preference import preferred
from nasd.search.fidelity.promotion import Action, Among, Budget, Choice, Curves, Rule, Rung


def decide(curves: Curves, rungs: Sequence[Rung], budget: Budget) -> Mapping[int, Choice]:
    at = rungs[-1]
    waiting = [one for one in curves if one not in at.promoted]
    for count in range(1, len(at.arrived) + 1):
        found = _first(at.arrived[:count], curves, at, budget)
        if found is not None:
            kept, choice = found
            return {one: choice if one == kept else _waits(at) for one in waiting}
    if at.under_way:
        return dict.fromkeys(waiting, _waits(at))
    return _last(waiting, curves, at, budget)


def _first(
    arrived: Sequence[int], curves: Curves, at: Rung, budget: Budget
) -> tuple[int, Choice] | None:
    """The one that goes on next, if it is one of those who have come so far."""
    losses = {one: curves[one][-1][1] for one in arrived if one in curves}
    places = budget.places(len(arrived))
    if len(at.promoted) >= places or not losses:
        return None
    order = preferred(losses, budget)
    among = Among(tuple(order), places, len(arrived))
    for place, one in enumerate(order[:places]):
        if one not in at.promoted:
            reason = (
                f"{at.stage} loss {losses[one]:.4f} is among the {places} of the first"
                f" {len(arrived)} that are preferred by loss and size (place {place + 1})"
            )
            return one, Choice(Action.KEEP, reason, losses[one], place=place, among=among)
    return None


def _last(waiting: Sequence[int], curves: Curves, at: Rung, budget: Budget) -> Mapping[int, Choice]:
    """Nobody comes any more."""
    losses = {one: curve[-1][1] for one, curve in curves.items()}
    order = preferred(losses, budget)
    places = budget.places(at.reached)
    among = Among(tuple(order), places, at.reached)
    left = places - len(at.promoted)
    kept = [one for one in order if one not in at.promoted][: max(0, left)]

    def choice(one: int) -> Choice:
        action, goes = (Action.KEEP, "is") if one in kept else (Action.CUT, "is not")
        place = order.index(one)
        reason = (
            f"{at.stage} loss {losses[one]:.4f} {goes} among the {places} of all {at.reached}"
            f" that are preferred by loss and size (place {place + 1})"
        )
        return Choice(action, reason, losses[one], place=place, among=among)

    return {one: choice(one) for one in waiting}


def _waits(at: Rung) -> Choice:
    return Choice(
        Action.WAIT,
        f"not among those that {at.stage} has promoted; {at.under_way} have yet to finish it",
    )


ASHA = Rule(
    "asha",
    "the {places} of the first {reached} that are preferred by last loss and size",
    decide,
    asynchronous=True,
)
