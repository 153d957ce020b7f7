"""Successive halving (Jamieson and Talwalkar 2016) with several objectives: once all of a
generation have come to a rung, the share that is preferred goes on
(nasd.search.fidelity.preference).
"""

from collections.abc import Mapping, Sequence

from nasd.search.fidelity.preference import preferred
from nasd.search.fidelity.promotion import Action, Budget, Choice, Curves, Rule, Rung, all_wait


def decide(curves: Curves, rungs: Sequence[Rung], budget: Budget) -> Mapping[int, Choice]:
    at = rungs[-1]
    if at.under_way:
        return all_wait(curves, at)
    losses = {candidate: curve[-1][1] for candidate, curve in curves.items()}
    places = budget.places(at.reached)

    def choice(place: int, candidate: int) -> Choice:
        action, among = (Action.KEEP, "is") if place < places else (Action.CUT, "is not")
        reason = (
            f"{at.stage} loss {losses[candidate]:.4f} {among} among the {places} of {at.reached}"
            f" that are preferred by loss and size (place {place + 1})"
        )
        return Choice(action, reason, losses[candidate], place=place)

    order = preferred(losses, budget)
    return {candidate: choice(place, candidate) for place, candidate in enumerate(order)}


HALVING = Rule(
    "halving", "the {places} of {reached} that are preferred by last loss and size", decide
)
