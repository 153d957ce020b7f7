"""Promotion: who goes on from a rung of the ladder, by the losses seen so far. One rule a file.

To add a rule: a file with its `Rule`, its entry here, and its name in
nasd.contract.sections.search.
tests/test_fidelity.py holds every entry to what a rule promises.
"""

from collections.abc import Sequence

from nasd.search.fidelity.asha import ASHA
from nasd.search.fidelity.curve import CURVE
from nasd.search.fidelity.halving import HALVING
from nasd.search.fidelity.hyperband import HYPERBAND
from nasd.search.fidelity.promotion import Action, Among, Budget, Curves, Promotion, Rule, Rung
from nasd.search.fidelity.share import SHARE

RULES = {rule.name: rule for rule in (SHARE, HALVING, HYPERBAND, ASHA, CURVE)}


def promote(rule: Rule, curves: Curves, rungs: Sequence[Rung], budget: Budget) -> Promotion | None:
    """What the rule decides on the last of the rungs, as it is to be recorded; None while nobody is
    to be moved. Unless the rule is asynchronous, that is so while it has anybody wait: a cutoff is
    one decision about all then. curves: not empty."""
    at = rungs[-1]
    choices = rule.decide(curves, rungs, budget)
    assert choices.keys() == curves.keys() - {*at.promoted}, (
        f"{rule.name} judges others than it was asked about"
    )
    judged = {one: choice for one, choice in choices.items() if choice.action is not Action.WAIT}
    if not judged or (len(judged) < len(choices) and not rule.asynchronous):
        return None
    losses = {one: choice.loss for one, choice in judged.items() if choice.loss is not None}
    thresholds = {one.threshold for one in judged.values()}
    assert losses.keys() == judged.keys(), f"{rule.name} moves somebody without a loss"
    assert len(thresholds) == 1, f"{rule.name} goes by {len(thresholds)} thresholds"
    places = [choice.place for choice in judged.values() if choice.place is not None]
    assert len({*places}) == len(judged), f"{rule.name} gives no place, or gives one twice"
    order = sorted(judged, key=lambda candidate: judged[candidate].place or 0)
    everybody = Among((), budget.places(at.reached), at.reached)
    among = judged[order[0]].among or everybody
    assert {choice.among or everybody for choice in judged.values()} == {among}
    return Promotion(
        name=rule.name,
        rule=rule.words.format(places=among.places, reached=among.reached),
        keep=budget.keep,
        places=among.places,
        reached=among.reached,
        losses={candidate: losses[candidate] for candidate in order},
        curves={candidate: curves[candidate] for candidate in order},
        threshold=thresholds.pop(),
        kept=tuple(one for one in order if judged[one].action is Action.KEEP),
        cut=tuple(one for one in order if judged[one].action is Action.CUT),
        reasons={candidate: judged[candidate].reason for candidate in order},
        among={candidate: curves[candidate][-1][1] for candidate in among.order},
    )
