"""Promotion: who goes on from a rung of the ladder, by the losses seen so far. One rule a file.

To add a rule: a file with its `Rule`, and its entry here. tests/test_fidelity.py holds every entry
to what a rule promises.
"""

from collections.abc import Sequence

from nasd.search.fidelity.promotion import Action, Budget, Curves, Promotion, Rule, Rung
from nasd.search.fidelity.share import SHARE

RULES = {rule.name: rule for rule in (SHARE,)}


def promote(rule: Rule, curves: Curves, rungs: Sequence[Rung], budget: Budget) -> Promotion | None:
    """What the rule decides on the last of the rungs, as it is to be recorded; None while it has
    anybody wait: a cutoff is one decision about all. curves: not empty."""
    choices = rule.decide(curves, rungs, budget)
    if any(one.action is Action.WAIT for one in choices.values()):
        return None
    losses = {candidate: one.loss for candidate, one in choices.items() if one.loss is not None}
    thresholds = {one.threshold for one in choices.values() if one.threshold is not None}
    assert losses.keys() == curves.keys(), f"{rule.name} judges others than it was asked about"
    assert len(thresholds) == 1, f"{rule.name} goes by {len(thresholds)} thresholds"
    order = sorted(losses, key=lambda candidate: (losses[candidate], candidate))
    reached = rungs[-1].reached
    places = budget.places(reached)
    return Promotion(
        name=rule.name,
        rule=rule.words.format(places=places, reached=reached),
        keep=budget.keep,
        places=places,
        reached=reached,
        losses={candidate: losses[candidate] for candidate in order},
        curves={candidate: curves[candidate] for candidate in order},
        threshold=thresholds.pop(),
        kept=tuple(one for one in order if choices[one].action is Action.KEEP),
        cut=tuple(one for one in order if choices[one].action is Action.CUT),
        reasons={candidate: choices[candidate].reason for candidate in order},
    )
