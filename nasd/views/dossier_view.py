"""What is known of one candidate, for a terminal: `nasd show`."""

from collections.abc import Iterable, Iterator
from typing import Any

from rich.console import Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from nasd.contract.genotype import heads_in_words
from nasd.contract.readable import (
    duration,
    listed,
    moment,
    of_baseline,
    parameters,
    size,
    sparkline,
)
from nasd.record.lifecycle import State
from nasd.search import noise
from nasd.views.dossier import AttemptRow, BlockRow, Dossier, Left, Network, StageRow

MARK = {"kept": "", "altered": "altered ", "added": "new "}
FRESH = "bold yellow"  # what was drawn at random
STATES = {
    State.RUNNING: "bold",
    State.SCORED: "green",
    State.CUT: "dim",
    State.FAILED: "bold red",
}


def render(found: Dossier) -> Any:
    """All of it, section by section, as wide as it needs to be."""
    parts: list[Any] = list(_head(found))
    for title, content in (
        ("Architecture, with what is new since its parent", _architecture(found)),
        ("Ancestry", _ancestry(found)),
        ("Stages", _stages(found)),
        ("Decisions", _decisions(found)),
        ("Attempts", _attempts(found)),
        ("Offspring", _children(found)),
        ("Weights", _weights(found)),
    ):
        parts += [Text(), Text(title, style="bold"), Padding(content, (0, 0, 0, 2))]
    return Group(*parts)


def _head(found: Dossier) -> Iterator[Text]:
    name = found.called if found.called.endswith(f" {found.id}") else f"{found.called} ({found.id})"
    first = Text.assemble((found.called if found.is_baseline else name, "bold"))
    if not found.is_baseline:
        first.append(f", generation {found.generation}, from {found.parent}")
    first.append("  ")
    first.append(f"{found.state} at {found.stage}", style=STATES.get(State(found.state), ""))
    yield first
    if found.why:
        yield Text(found.why, style="red" if found.state == State.FAILED else "")
    if found.quality is not None:
        seeds = f" (mean of {found.seeds} seeds)" if found.seeds > 1 else ""
        quality = noise.shown(found.quality, found.quality_error)
        scores = f"quality {quality}{seeds}  {found.marks}"
        if found.baseline_quality is not None and not found.is_baseline:
            difference = found.quality - found.baseline_quality
            scores += (
                f"  ({difference:+.2f} against the {found.rival}'s {found.baseline_quality:.2f})"
            )
        yield Text(scores, style="bold")
        if found.within_noise_of:
            others = found.within_noise_of
            named = f"candidate{'s' if len(others) > 1 else ''} {listed(sorted(others))}"
            yield Text(f"its rank is within noise of {named}", style="dim")
    yield Text(
        f"{parameters(found.parameters)} parameters, {of_baseline(found.size)} of the baseline's"
        f"  genotype {found.hash}"
    )
    cost = f"{found.slot_hours:.3g} {found.unit}"
    if not found.is_baseline:
        cost += f", {found.with_ancestors:.3g} with all that it descends from"
    yield Text(cost)


# -- where it comes from -------------------------------------------------------------------------


def _architecture(found: Dossier) -> Any:
    table = _table("block", "from", "attention", "feed-forward networks", right=("block", "from"))
    for row in found.blocks:
        table.add_row(str(row.number), _source(found, row), _attention(row), _networks(row))
    return table


def _source(found: Dossier, row: BlockRow) -> str | Text:
    if found.is_baseline:
        return "seed"
    return Text("new", style=FRESH) if row.source is None else str(row.source)


def _attention(row: BlockRow) -> Text:
    style = "" if row.attention == "kept" else FRESH
    heads = heads_in_words(row.heads, row.remaining)
    return Text(f"{MARK[row.attention]}{heads} heads{row.convolves}", style=style)


def _networks(row: BlockRow) -> Text:
    return Text("; ").join(map(_network, row.networks))


def _network(one: Network) -> Text:
    sizes = "-".join(map(str, one.sizes))
    style = "" if one.origin == "kept" else FRESH
    return Text(f"{MARK[one.origin]}{one.activation} {sizes}", style=style)


def _ancestry(found: Dossier) -> Any:
    table = _table(
        "candidate", "gen", "of base", "quality", "what its mutation changed",
        right=("candidate", "gen", "of base", "quality"),
    )  # fmt: skip
    for one in found.ancestry:
        table.add_row(
            str(one.candidate),
            "base" if one.generation is None else str(one.generation),
            of_baseline(one.size),
            _score(one.quality),
            "\n".join(one.changes),
        )
    return table


# -- what it did ---------------------------------------------------------------------------------


def _stages(found: Dossier) -> Any:
    numbers = ("steps", "worked", found.unit, "loss")
    table = _table("stage", "trains", "", *numbers, "learning curve", right=numbers)
    for row in found.stages:
        table.add_row(
            row.stage,
            row.train,
            _mark(found, row),
            f"{row.steps:,}" if row.steps else "",
            "" if row.seconds is None else duration(row.seconds),
            f"{row.slot_hours:.3g}" if row.slot_hours else "",
            "" if row.loss is None else f"{row.loss:.4f}",
            _curve(row),
            style="dim" if row.state in ("ahead", "never", "skipped") else "",
        )
    return Group(table, *_teachers(found), *_means(found))


def _teachers(found: Dossier) -> Iterator[Text]:
    """Who taught it in which stages; nothing where it learned from the data alone."""
    by_name: dict[str, list[str]] = {}
    for row in found.stages:
        if row.teacher:
            by_name.setdefault(row.teacher, []).append(row.stage)
    for name, stages in by_name.items():
        yield Text(f"learns from {name} as well, in {' and '.join(stages)}")


def _means(found: Dossier) -> Iterator[Text]:
    """Where what a stage leaves is not what a training of it came to."""
    for row in found.stages:
        parts = []
        if row.trainings > 1:
            parts.append(f"the mean of {row.trainings} trainings from one start")
        if row.average:
            parts.append(f"{100 * row.average:g} % of the weights as it found them")
        if parts:
            yield Text(f"{row.stage} leaves {', with '.join(parts)}")


def _mark(found: Dossier, row: StageRow) -> str:
    return found.state if row.state == "here" else row.state


def _curve(row: StageRow) -> str:
    if len(row.curve) < 2:
        return ""
    losses = [loss for _, loss in row.curve]
    return f"{sparkline(losses)} from {losses[0]:.3f}"


def _decisions(found: Dossier) -> Any:
    if not found.decisions:
        return Text("none", style="dim")
    table = _table("gen", "decision", "", right=("gen",))
    for row in found.decisions:
        kind = f"{row.kind} after {row.stage}" if row.stage else row.kind
        table.add_row(str(row.generation), kind, row.text)
    return table


def _attempts(found: Dossier) -> Any:
    if not found.attempts:
        return Text("none yet", style="dim")
    table = _table(
        "id", "stage", "no", "state", "began", "took", "slots", "message",
        right=("id", "no", "took"),
    )  # fmt: skip
    for row in found.attempts:
        table.add_row(
            str(row.id),
            row.stage,
            str(row.number),
            row.state,
            moment(row.started_at),
            duration(row.seconds),
            " ".join(row.slots),
            _message(row),
        )
    return table


def _message(row: AttemptRow) -> str:
    said = row.message
    if row.verdict not in ("", "succeeded") and not said.startswith(row.verdict):
        said = f"{row.verdict}: {said}" if said else row.verdict
    return f"{said}; checkpoint at step {row.reached:,}" if said and row.reached else said


def _children(found: Dossier) -> Any:
    if not found.children:
        return Text("none", style="dim")
    table = _table("candidate", "gen", "state", "stage", "quality", right=("candidate", "gen"))
    for one in found.children:
        table.add_row(
            str(one.candidate), str(one.generation), one.state, one.stage, _score(one.quality)
        )
    return table


def _weights(found: Dossier) -> Any:
    if not found.weights:
        gone = "removed, as nobody needs them any more" if found.weights_gone else "none yet"
        return Text(gone, style="dim")
    table = _table("stage", "size", "folder", right=("size",))
    for one in found.weights:
        table.add_row(one.stage, size(one.bytes), _folder(found, one))
    return table


def _folder(found: Dossier, one: Left) -> str:
    takes = found.state == State.SCORED and one.answers
    return f"{one.folder}  (nasd export {found.id} takes it)" if takes else one.folder


def _score(quality: float | None) -> str:
    return "" if quality is None else f"{quality:.2f}"


def _table(*names: str, right: Iterable[str] = ()) -> Table:
    """Columns fold where they do not fit, the last one first."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for place, name in enumerate(names):
        last = place == len(names) - 1
        table.add_column(
            Text(name),
            justify="right" if name in right else "left",
            no_wrap=not last,
            overflow="fold",
        )
    return table
