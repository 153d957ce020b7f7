"""What the daemon itself shows in TensorBoard: cutoffs and selections, where the curves are."""

from nasd import policy
from nasd.folders import StateFolder
from nasd.pareto import hypervolume
from nasd.summaries import Summaries


def show_cutoff(state: StateFolder, cutoff: policy.Cutoff) -> None:
    """A card with the rule and every loss, and each candidate's loss and fate beside its curve."""
    losses = cutoff.payload["losses"]
    assert isinstance(losses, dict)
    rows = "\n".join(
        f"| {c} | {loss:.4f} | {'kept' if int(c) in cutoff.kept else 'cut'} |"
        for c, loss in losses.items()
    )
    card = f"{cutoff.payload['rule']}\n\n| candidate | loss | |\n|---|---|---|\n{rows}"
    with Summaries(state.search_curves) as summaries:
        summaries.text(f"cutoff/{cutoff.stage}", card, cutoff.generation)
        summaries.scalars(
            {
                f"cutoff/{cutoff.stage}_threshold": max(losses[str(c)] for c in cutoff.kept),
                f"cutoff/{cutoff.stage}_best": min(losses.values()),
            },
            cutoff.generation,
        )
    for candidate, loss in losses.items():
        folder = state.curves(cutoff.generation, int(candidate), cutoff.stage)
        with Summaries(folder) as summaries:
            kept = float(int(candidate) in cutoff.kept)
            summaries.scalars({"cutoff/loss": loss, "cutoff/kept": kept}, cutoff.generation)


def show_selection(state: StateFolder, selection: policy.Select, gpu_hours: float) -> None:
    points = selection.payload["points"]
    assert isinstance(points, dict)
    with Summaries(state.search_curves) as summaries:
        summaries.scalars(
            {
                "search/hypervolume": hypervolume(list(points.values()), policy.REFERENCE),
                "search/best_quality": max((p[0] for p in points.values()), default=0.0),
                "search/gpu_hours": gpu_hours,
            },
            selection.generation,
        )
