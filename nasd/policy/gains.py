"""What the operators have gained by their children, from generation to generation, and the shares
that follow from it (nasd.search.variation.credit). Pure functions of a snapshot."""

from nasd.contract.config import Config
from nasd.record.lifecycle import DecisionKind
from nasd.record.state import Snapshot
from nasd.search.objectives import unscored
from nasd.search.variation.credit import Credit, credited, gain, shares


def shares_of(snapshot: Snapshot, config: Config, generation: int) -> dict[str, float] | None:
    """Of the operators, by what they have gained so far; None where they stay as they are."""
    if not config.variation.adaptive:
        return None
    assert config.variation.operators is not None
    return shares(config.variation.operators, _credits(snapshot, generation - 1))


def _credits(snapshot: Snapshot, generation: int) -> dict[str, Credit]:
    """As a generation's selection has left them."""
    selected = snapshot.decided(generation, DecisionKind.SELECT)
    found = {} if selected is None else selected.payload.get("credits", {})
    return {name: Credit(*told) for name, told in found.items()}


def credits_behind(snapshot: Snapshot, generation: int) -> dict[str, Credit]:
    """The credits behind this generation."""
    names, baseline = snapshot.experiment.objectives, snapshot.baseline
    children = []
    for one in (*snapshot.joining(generation), *snapshot.born_in(generation)):
        if not one.final:  # late itself
            continue
        origins = [snapshot.candidates[parent] for parent in one.parents]
        before = [
            snapshot.point(parent.id) or unscored(names, parent, baseline) for parent in origins
        ]
        assert snapshot.reference is not None, "gains wait for the baseline"
        gained = gain(snapshot.point(one.id), before, snapshot.reference)
        children.append((one.operators, gained))
    return credited(_credits(snapshot, generation - 1), children)
