"""The end of a search: final population, baseline, Pareto front, and where to look next."""

from collections.abc import Sequence
from pathlib import Path

from rich.text import Text

from nasd.contract.readable import of_baseline
from nasd.launch import interpreter
from nasd.record.state import Candidate
from nasd.views.status.facts import Facts
from nasd.views.status.header import header
from nasd.views.status.standing import ever
from nasd.views.status.table import rows_of
from nasd.views.status.text import fit, line


def summary(facts: Facts, state: Path, width: int) -> list[Text]:
    snap = facts.snapshot
    survivors = snap.survivors(snap.generations[-1].number)
    population = [snap.candidates[one] for one in survivors]
    population.sort(key=lambda one: (facts.members[one.id].rank, -(snap.quality(one.id) or 0.0)))
    front = [one for one in population if facts.members[one.id].rank == 0]
    rival = [] if snap.rival is snap.baseline else [snap.rival]
    beside = "baseline and control" if rival else "the baseline"
    found = [
        *header(facts, width, None),
        line(""),
        line((f"Final population of {snap.experiment.name}, and {beside}", "bold")),
        *rows_of(facts, [*population, *rival, snap.baseline], width),
        line(""),
        line((f"Pareto front of the final population (rank 0), and {beside}", "bold")),
        *_front(facts, front),
        line(""),
        line((f"Pareto front of all that were ever scored, and {beside}", "bold")),
        *_front(facts, ever(snap)),
    ]
    shown = [fit(text, width) if text.cell_len > width else text for text in found]
    return [*shown, line(""), *_where_next(state)]


def _front(facts: Facts, front: Sequence[Candidate]) -> list[Text]:
    snap = facts.snapshot
    rivals = dict.fromkeys([snap.rival, snap.baseline])
    rest = [one for one in rivals if one not in front]
    return [
        line(
            f"  {one.id:>4}  quality {snap.quality(one.id) or 0.0:6.2f}"
            f"  parameters {of_baseline(snap.size(one.id)):>8}"
            f"  {'' if one.called.startswith('candidate') else one.called + '  '}{one.genotype}"
        )
        for one in (*front, *rest)
    ]


def _where_next(state: Path) -> list[Text]:
    """Not cut: commands are copied."""
    folder = _shown(state)
    return [
        line(("Where to look next", "bold")),
        Text(f"  {interpreter.nasd()} tensorboard --state {folder}"),
        line("      learning curves, cutoffs and hypervolume, in a browser"),
        Text(f"  {interpreter.nasd()} report --state {folder}"),
        line("      a page with every figure and table"),
        Text(f"  {interpreter.nasd()} export best my-model --state {folder}"),
        line("      the best model, to take home and ask"),
        Text(f"  {interpreter.nasd()} status --json --state {folder}"),
        line("      everything, for a program"),
        Text(f"  {folder}/candidates/<id>/finetune"),
        line("      the trained models"),
    ]


def _shown(path: Path) -> Path:
    """As short as it can be typed from here."""
    try:
        return path.relative_to(Path.cwd())
    except ValueError:
        return path
