"""The candidates of the newest generation, its parents and the baseline, a line each."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, replace

from rich.text import Text

from nasd.contract import rungs, tasks
from nasd.contract.objectives import DEFAULT
from nasd.contract.readable import number, parameters, rate, share_of_baseline
from nasd.record.lifecycle import CandidateKind, State
from nasd.record.state import Candidate, Snapshot
from nasd.search.objectives import OBJECTIVES
from nasd.views.status import marks
from nasd.views.status.attempts import Where
from nasd.views.status.facts import Facts
from nasd.views.status.text import fit, line

OTHER = 9  # columns of an objective beyond the thesis's
LEAST_WHAT = 12
WHAT = 32  # columns, enough for most of what there is to say of a candidate
# Who is shown where there is no room for all.
_FIRST = (State.RUNNING, State.SCORED, State.PENDING, State.WAITING, State.FAILED, State.CUT)


# -- columns -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Columns:
    """Their widths; 0: it is left out. what: what it does, its progress, or why it waits."""

    id: int
    parent: int = 0
    stage: int = 0
    what: int = 0
    rate: int = 0
    curve: int = 0
    loss: int = 0
    quality: int = 0
    scores: int = 0
    size: int = 0
    others: int = 0
    rank: int = 0
    parameters: int = 0
    genotype: int = 0

    @classmethod
    def of(
        cls,
        width: int,
        stages: Sequence[str],
        ids: Sequence[int],
        others: int = 0,
        scores: int = 2,
    ) -> "_Columns":
        """others: columns that the objectives take beyond the thesis's; scores: that are shown."""
        number = max(3, *(len(str(one)) for one in ids)) if ids else 3
        most = 15 if any(rungs.SIGN in name for name in stages) else 12
        stage = min(most, max(5, *(len(name) for name in stages))) if stages else 5
        if width < 28:
            return cls(number, what=max(1, width - number - 1))
        if width < 45:
            return cls(number, stage=stage, what=width - number - stage - 2)
        if width < 70:
            return cls(number, stage=stage, what=width - number - stage - 10, quality=7)
        known = cls(
            number, 0, stage, 0, rate=6, curve=8, loss=6, quality=7, scores=0, size=5, rank=4
        )
        if others and (room := width - known.taken - 2 - LEAST_WHAT + 9) >= OTHER:
            shown = min(others, room // (OTHER + 1) * (OTHER + 1) - 1)
            known = replace(known, others=shown, curve=0 if width < 120 else known.curve)
        left = width - known.taken - 1
        if width < 96:
            return replace(known, what=left)
        known = replace(known, parent=max(4, number), parameters=8)
        extra = width - known.taken - 1 - WHAT
        if extra >= (taken := 6 * scores):
            known, extra = replace(known, scores=taken - 1), extra - taken
        if extra >= 30:
            return replace(known, curve=14, what=WHAT, genotype=extra - 7)
        known = replace(known, curve=8 + max(0, min(12, extra // 2)))
        return replace(known, what=width - known.taken - 1)

    @property
    def taken(self) -> int:
        """By all of them, with a space between two."""
        widths: list[int] = [width for width in astuple(self) if width]
        return sum(widths) + len(widths) - 1


_RIGHT = {
    "id", "rate", "loss", "quality", "size", "rank", "parameters", "parent", "scores", "others",
}  # fmt: skip
SHOWN = 2  # of a task's scores, as far as there is room; of several tasks one each
_NAMES = {
    "id": "id",
    "parent": "from",
    "stage": "stage",
    "what": "",
    "rate": "step/s",
    "curve": "",
    "loss": "loss",
    "quality": "quality",
    "size": "%base",
    "others": "",
    "rank": "rank",
    "parameters": "params",
    "genotype": "genotype",
}


def _row(widths: Mapping[str, int], cells: Mapping[str, str | Text]) -> Text:
    """What a candidate waits for goes on into the columns of those that train."""
    parts: list[str | Text] = []
    what = cells["what"]
    long = isinstance(what, Text) and what.cell_len > widths["what"]
    joined = "rate" in widths and long and not cells["rate"]
    for name, width in widths.items():
        if joined and name == "rate":
            continue
        if joined and name == "what":
            width += 1 + widths["rate"]
        cell = cells[name]
        if isinstance(cell, str) and cell.isascii() and len(cell) <= width:
            parts.append(cell.rjust(width) if name in _RIGHT else cell.ljust(width))
        else:
            parts.append(fit(line(cell), width, right=name in _RIGHT))
        parts.append(" ")
    return line(*parts[:-1])


# -- rows ----------------------------------------------------------------------------------------


def candidates(facts: Facts, width: int, most: int | None) -> list[Text]:
    """A heading, and at most so many lines in all; the last one counts those left out."""
    all_of_them = everyone(facts)
    shown, rest = all_of_them, ""
    if most is not None and len(all_of_them) + 1 > most:
        shown, left = _chosen(facts, all_of_them, max(0, most - 2))
        states = Counter(one.state for one in left)
        parts = [f"{states[state]} {state}" for state in _FIRST if states[state]]
        rest = f"and {len(left):,} more: {', '.join(parts)}"
    found = rows_of(facts, shown, width)
    found += [fit(line((rest, "dim")), width)] if rest else []
    return found[:most]


def height_of(facts: Facts) -> int:
    """Lines that all of them take."""
    return len(everyone(facts)) + 1


def rows_of(facts: Facts, shown: Sequence[Candidate], width: int) -> list[Text]:
    """A heading, and a line for each of them."""
    stages = [stage["name"] for stage in facts.snapshot.experiment.stages]
    names = others(facts.snapshot)
    shown_scores = facts.snapshot.scoring.titles[: _scores(facts)]
    columns = _Columns.of(
        width,
        stages,
        list(facts.snapshot.candidates),
        (OTHER + 1) * len(names) - 1 if names else 0,
        max(SHOWN, len(shown_scores)),
    )
    widths = {name: width for name, width in asdict(columns).items() if width}
    units = [OBJECTIVES[name].unit for name in names]
    titles = " ".join(title[:5].ljust(5) for title in shown_scores)
    named = {"scores": titles.rstrip(), "others": _beside(units, widths.get("others", 0))}
    heading = _row(widths, {**_NAMES, **named})
    heading.stylize("dim")
    found = [heading, *(_candidate(facts, one, widths) for one in shown)]
    return [fit(one, width) for one in found]


def _scores(facts: Facts) -> int:
    """How many scores are shown of a candidate."""
    return max(SHOWN, len(facts.snapshot.scoring.tasks))


def everyone(facts: Facts) -> list[Candidate]:
    """Newborn, parents, what else runs for them, and baseline, in the order of the rows."""
    born = {one.id for one in (*facts.born, *facts.late)}
    parents = [one for one in facts.parents if one.id not in born and not one.is_baseline]
    return [*facts.born, *facts.late, *parents, *facts.beside, facts.snapshot.baseline]


def _chosen(
    facts: Facts, everyone: Sequence[Candidate], most: int
) -> tuple[list[Candidate], list[Candidate]]:
    """Those that say most of where the search is, in their old order; and the others."""
    born = {one.id for one in facts.born}

    def weight(one: Candidate) -> tuple[bool, int, int, int, int]:
        place = _FIRST.index(one.state)
        return (
            one.id != facts.chosen,
            place > 0,
            not one.is_baseline,
            one.id not in born,
            facts.ranks.get(one.id, place),
        )

    by_weight = sorted(everyone, key=weight)
    chosen = {one.id for one in by_weight[:most]}
    return (
        [one for one in everyone if one.id in chosen],
        [one for one in everyone if one.id not in chosen],
    )


def _candidate(facts: Facts, one: Candidate, widths: Mapping[str, int]) -> Text:
    snap = facts.snapshot
    marked = snap.scoring.values(snap.scores(one.id) or {})
    quality = snap.quality(one.id)
    where = facts.where.get(one.id)
    curve, loss = _losses(facts, one)
    rank = facts.ranks.get(one.id)
    row = _row(
        widths,
        {
            "id": str(one.id),
            "parent": "" if one.parent is None else str(one.parent),
            "stage": one.stage,
            "what": _what(facts, one, widths["what"]),
            "rate": "" if where is None else rate(where.steps_per_second),
            "curve": Text(
                marks.sparkline(curve, widths.get("curve", 0)),
                "dim cyan" if where is None else "cyan",
            ),
            "loss": "" if loss is None else f"{loss:.3f}",
            "quality": "" if quality is None else f"{quality:.2f}",
            "scores": " ".join(f"{one:.2f}" for one in marked[: _scores(facts)] if one is not None),
            "size": number(share_of_baseline(snap.size(one.id))),
            "others": _values(snap, one, widths.get("others", 0)),
            "rank": "" if rank is None else str(rank),
            "parameters": parameters(one.parameters),
            "genotype": one.genotype_text if "genotype" in widths else "",
        },
    )
    row.stylize_before(_style(facts, one))
    if one.id == facts.chosen:
        row.stylize("reverse")
    return row


def others(snap: Snapshot) -> list[str]:
    """The objectives that have no columns of their own."""
    return [name for name in snap.experiment.objectives if name not in DEFAULT]


def _values(snap: Snapshot, one: Candidate, width: int) -> str:
    if not width or one.kind is CandidateKind.SCREENING:
        return ""
    values = [(OBJECTIVES[name], snap.value(one.id, name)) for name in others(snap)]
    return _beside(["" if v is None else each.shown(v) for each, v in values], width)


def _beside(texts: Sequence[str], width: int) -> str:
    """As many as there is room for."""
    count = (width + 1) // (OTHER + 1)
    return " ".join(f"{text:>{OTHER}}" for text in texts[:count])


def _what(facts: Facts, one: Candidate, width: int) -> Text:
    where = facts.where.get(one.id)
    if where is not None:
        rests = not facts.served and where.share is None  # its worker went with the daemon
        return Text("interrupted") if rests else _progress(where, width)
    if one.id in facts.waits:
        return Text(facts.waits[one.id])
    if one.state is State.FAILED:
        return Text(f"failed: {one.reason}" if one.reason else "failed")
    if one.kind is CandidateKind.SCREENING:
        return Text("screened" if one.final else f"{one.parent}'s mutants")
    if one.is_baseline or one.kind is CandidateKind.CONTROL:
        return Text(one.called)
    generation, member = facts.snapshot.generation, facts.members.get(one.id)
    assert generation is not None
    if member is not None and member.generation == generation.number and member.survives:
        return Text("survives")
    own = one.generation == generation.number or one in facts.late
    return Text(str(one.state) if own else "parent")


def _progress(where: Where, width: int) -> Text:
    """A bar and a share where steps are counted; else what it does."""
    if where.beat is None:
        return Text(where.attempt.message or "starting")
    if where.share is None:
        told = f"{100 * where.beat.step / where.beat.steps:4.0f} %" if where.beat.steps else ""
        return Text(where.beat.doing + told)
    share = f"{100 * where.share:3.0f} %"
    if width < len(share) + 6:
        return Text(share)
    done, left = marks.bar(where.share, width - len(share) - 1)
    return line((done, "cyan"), (left, "dim"), " ", share)


def _losses(facts: Facts, one: Candidate) -> tuple[Sequence[float], float | None]:
    """Of the stage that it trains in; else the evaluations of all its MLM stages."""
    where = facts.where.get(one.id)
    if where is not None and where.losses:
        return where.losses, where.losses[-1]
    stages = facts.snapshot.experiment.stages
    results = facts.snapshot.results
    losses = [
        loss
        for stage in stages
        if tasks.of(stage["task"]).ranks and (one.id, stage["name"]) in results
        for _, loss in results[one.id, stage["name"]].curve
    ]
    return losses, losses[-1] if losses else None


def _style(facts: Facts, one: Candidate) -> str:
    if one.is_baseline or one.kind is CandidateKind.CONTROL:
        return "cyan"
    rests = one.state is State.RUNNING and not facts.served  # its worker went with the daemon
    if rests or one.state in (State.CUT, State.PENDING, State.WAITING):
        return "dim"
    if one.state is State.FAILED:
        return "red"
    return "green" if facts.ranks.get(one.id) == 0 else ""
