"""What is known at a rung of how good candidates will be, and which of it has told most so far
(nasd.search.fidelity.predictor). Pure functions of a snapshot."""

from collections.abc import Iterable, Mapping, Sequence

from nasd.contract.config import Config, Stage
from nasd.record.lifecycle import DecisionKind
from nasd.record.state import Snapshot
from nasd.search.fidelity.predictor import Metric, best

UNTRAINED = "untrained"  # of screening
START = "before {}"  # of a stage's first evaluation, where that is before its first step
MOST = 500  # pairs of each that are carried on


def losses_of(
    snapshot: Snapshot, config: Config, climbed: Sequence[Stage], candidates: Iterable[int]
) -> dict[int, dict[str, float]]:
    """What a promotion may go by, of candidates that have climbed these stages; nothing where it
    goes by the rung's own loss anyway."""
    if config.promotion.metric == "loss":
        return {}
    return {one: _losses(snapshot, climbed, one) for one in candidates}


def _losses(snapshot: Snapshot, climbed: Sequence[Stage], candidate: int) -> dict[str, float]:
    """By name, as they came: untrained, before each stage, and behind each part of one."""
    found = {}
    if (untrained := snapshot.candidates[candidate].untrained) is not None:
        found[UNTRAINED] = untrained
    for stage in climbed:
        result = snapshot.results.get((candidate, stage.name))
        if result is None or not result.curve:
            continue
        step, loss = result.curve[0]
        if step == 0 and stage.span[0] == 0 and result.steps:
            found[START.format(stage.whole)] = loss
        found[stage.name] = result.curve[-1][1]
    return found


def metric_of(
    snapshot: Snapshot,
    config: Config,
    generation: int,
    losses: Mapping[int, Mapping[str, float]],
    own: str,
) -> Metric | None:
    """What a promotion goes by; None: by the rung's own loss. losses: of those that are judged."""
    if not losses:
        return None
    names = [
        name
        for name in next(iter(losses.values()))
        if name != own and all(name in one for one in losses.values())
    ]
    match config.promotion.metric:
        case "untrained":
            return Metric(UNTRAINED) if UNTRAINED in names else None
        case "best":
            found = best(_pairs(snapshot, generation - 1), [*names, own])
            return None if found is None or found.name == own else found
    return None


def _pairs(snapshot: Snapshot, generation: int) -> dict[str, list[tuple[float, float]]]:
    """As a generation's selection has left them."""
    selected = snapshot.decided(generation, DecisionKind.SELECT)
    told = {} if selected is None else selected.payload.get("predictors", {})
    return {name: [(loss, quality) for loss, quality in pairs] for name, pairs in told.items()}


def pairs_behind(
    snapshot: Snapshot, config: Config, generation: int
) -> dict[str, list[tuple[float, float]]]:
    """The pairs of loss and quality behind this generation."""
    found = _pairs(snapshot, generation - 1)
    for one in (*snapshot.joining(generation), *snapshot.born_in(generation)):
        quality = snapshot.quality(one.id)
        if quality is None:
            continue
        for name, loss in _losses(snapshot, config.ladder("candidates"), one.id).items():
            found.setdefault(name, []).append((loss, quality))
    return {name: pairs[-MOST:] for name, pairs in found.items()}
