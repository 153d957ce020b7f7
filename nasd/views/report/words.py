"""Numbers as they are written, and the experiment's answer in words."""

import math
import time
from collections.abc import Sequence
from itertools import groupby

from nasd.contract.readable import NOTHING, counted, duration, hours, number, of_baseline, signed
from nasd.record.lifecycle import State
from nasd.views import caveats
from nasd.views.report.findings import Findings
from nasd.views.report.rows import CandidateRow, MissedRow
from nasd.views.report.statistics import share, spearman

NEAR = 1.0  # points of quality within which a candidate counts as close to the baseline


def significant(value: float | None) -> str:
    """With its sign, and three digits."""
    if value is None or not math.isfinite(value):
        return NOTHING
    whole = math.floor(math.log10(abs(value))) if value else 0
    return signed(value, max(0, 2 - whole))


def instant(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))


def answer(findings: Findings) -> list[str]:
    """What came of it, a sentence or two each."""
    known = caveats.of(findings.snapshot.experiment.prepared or {})
    of_the_data = [f"{text[0].upper()}{text[1:]}." for text in known]
    return [
        *_best(findings),
        *_noise(findings),
        *of_the_data,
        *missed(findings),
        _where(findings),
        _price(findings),
    ]


def missed(findings: Findings) -> list[str]:
    """What each cutoff missed, as far as those whom it stopped were trained on."""
    said = []
    rows = sorted(findings.missed, key=lambda row: (row.generation, row.stage))
    for (generation, stage), group in groupby(rows, lambda row: (row.generation, row.stage)):
        found = list(group)
        peers = [
            row
            for row in findings.cutoffs
            if (row.generation, row.stage) == (generation, stage) and row.quality is not None
        ]
        best = max(found, key=lambda row: row.quality)
        kept = max((row.quality or 0.0 for row in peers if row.kept), default=None)
        told = (
            f"The cutoff after {stage} in generation {generation} stopped"
            f" {counted(len(found), 'candidate')} that went on to the end since, for"
            f" {hours(sum(row.gpu_hours for row in found))} {findings.unit}. Of them would have"
            f" survived the selection: {_which([c.candidate for c in found if c.would_survive])};"
            f" on the front of all that were scored:"
            f" {_which([c.candidate for c in found if c.front])}. The best of them, candidate"
            f" {best.candidate}, comes to {number(best.quality, 2)} %"
        )
        told += "." if kept is None else f", the best of those that went on to {number(kept, 2)} %."
        told += _speaks_for(findings, found)
        ranks = spearman([row.loss for row in peers], [row.quality or 0.0 for row in peers])
        if ranks is None:
            told += f" {counted(len(peers), 'candidate')} are too few for a correlation."
        else:
            told += (
                f" The rank correlation of loss at the cutoff and quality, among the {ranks.n}, is"
                f" {number(ranks.value, 2)} [{number(ranks.low, 2)}, {number(ranks.high, 2)}];"
                f" {number(-1.0, 0)} would be a cutoff that is always right."
            )
        said.append(told)
    return said


def _speaks_for(findings: Findings, found: list[MissedRow]) -> str:
    """Of how many that the cutoff has stopped those were drawn who were trained on, and what they
    say of all of them; "" where these are all."""
    row = found[0]
    cut = [
        one
        for one in findings.cutoffs
        if (one.generation, one.stage) == (row.generation, row.stage) and not one.kept
    ]
    told = share(sum(one.would_survive for one in found), len(found))
    if told is None or len(found) == len(cut):
        return ""
    return (
        f" They are {len(found)} of the {len(cut)} whom it cut: of all these"
        f" {number(100 * told.low, 0)} to {number(100 * told.high, 0)} % would have survived"
        " (95 %)."
    )


def _which(candidates: list[int]) -> str:
    """`none`, `1 (candidate 7)`."""
    if not candidates:
        return "none"
    names = ", ".join(str(one) for one in candidates)
    return f"{len(candidates)} (candidate{'s' if len(candidates) > 1 else ''} {names})"


def _where(findings: Findings) -> str:
    snap = findings.snapshot
    experiment, generation = snap.experiment, snap.generation
    planned = findings.config["experiment"]["generations"]
    if generation is None:
        at = "before its first generation"
    else:
        at = f"in generation {generation.number} of {planned} ({generation.phase})"
    said = {
        "complete": f"The search is complete, after {counted(planned, 'generation')} beyond the"
        " initial one.",
        "halted": f"The search has halted {at}: {experiment.reason}.",
    }.get(experiment.state, f"The search is under way, {at}, so all this may change.")
    born = [row for row in findings.candidates if not row.is_baseline]
    if not born:
        return said
    fates = [
        f"{amount} {what}"
        for what, amount in (
            ("scored", sum(row.quality is not None for row in born)),
            ("cut", sum(row.state == State.CUT for row in born)),
            ("failed", sum(row.state == State.FAILED for row in born)),
        )
        if amount
    ]
    told = ", ".join(fates) or "none of them scored yet"
    return f"{said} {counted(len(born), 'candidate')}: {told}."


def _best(findings: Findings) -> list[str]:
    base = findings.baseline
    scored = [row for row in findings.candidates if row.quality is not None and not row.is_baseline]
    if not scored:
        known = (
            ""
            if base.quality is None
            else f" The {base.name} has quality {number(base.quality)} %."
        )
        return [f"No candidate is scored yet.{known}"]
    best = max(scored, key=lambda row: (row.quality or 0.0, row.size))
    titles = findings.snapshot.scoring.titles
    told = f"Best quality: {_told(best, base.name, titles)}"
    if base.quality is None:
        return [f"{told}. The {base.name} is not scored yet, so nothing can be held against it."]
    said = [f"{told}; {_rival(findings)} has {number(base.quality)} % with {_millions(base)}."]
    dominating = [row for row in scored if row.size > 1 and (row.quality or 0.0) >= base.quality]
    if dominating:
        smallest = max(dominating, key=lambda row: row.size)
        said.append(
            f"{counted(len(dominating), 'candidate')} {'is' if len(dominating) == 1 else 'are'}"
            f" smaller than the {base.name} and at least as good; the smallest of them:"
            f" {_told(smallest, base.name, titles)}."
        )
        return said
    smaller = [row for row in scored if row.size > 1]
    near = [row for row in smaller if (row.quality or 0.0) >= base.quality - NEAR]
    if near:
        smallest = max(near, key=lambda row: row.size)
        said.append(
            f"No candidate is smaller than the {base.name} and as good. The smallest within"
            f" {number(NEAR, 0)} point of it: {_told(smallest, base.name, titles)}."
        )
    elif smaller:
        closest = max(smaller, key=lambda row: row.quality or 0.0)
        said.append(
            f"No smaller candidate comes within {number(NEAR, 0)} point of the {base.name}; the"
            f" closest: {_told(closest, base.name, titles)}."
        )
    else:
        said.append(f"No scored candidate is smaller than the {base.name}.")
    return said


def _rival(findings: Findings) -> str:
    if not findings.baseline.trained_on:
        return "the baseline"
    return "the control (the baseline, trained on as candidates are)"


def _told(row: CandidateRow, rival: str, titles: Sequence[str]) -> str:
    against = row.quality_against_baseline
    told = f"candidate {row.id} (generation {row.generation}) with {number(row.quality)} %"
    named = zip(titles, row.scores.values(), strict=True)
    told += f" ({', '.join(f'{title} {number(score)}' for title, score in named)})"
    if against is not None:
        where = "above" if against > 0 else "below"
        told += f", {number(abs(against))} points {where} the {rival}," if against else ","
    return f"{told} with {_millions(row)} ({of_baseline(row.size)} of the baseline's)"


def _millions(row: CandidateRow) -> str:
    return (
        f"{row.parameters / 1e6:.1f} M parameters"
        if row.parameters >= 1e6
        else (f"{row.parameters:,} parameters")
    )


def _noise(findings: Findings) -> list[str]:
    """How far chance alone moves a score."""
    prepared = findings.snapshot.experiment.prepared
    scoring = findings.snapshot.scoring
    if prepared is None:
        return []
    # Of several tasks the one with the fewest examples, as chance moves its score most.
    each = zip(scoring.tasks, scoring.shown, strict=False)
    fewest = [(n, one, shown) for one, shown in each if (n := one.counts(prepared)[1])]
    if not fewest:
        return []
    n, task, (metric, title) = min(fewest, key=lambda found: found[0])
    first = [one for row in findings.candidates if (one := row.scores[metric]) is not None]
    if not first:
        return []
    if len(scoring.tasks) > 1:
        title = f"{task.words} quality"
    p = min(1.0, max(0.0, max(first) / 100))
    half = caveats.margin(n, p)
    an = "an" if title[0] in "aAE" else "a"
    return [
        f"Each was trained once. The choice of the {n:,} test {task.example}s alone moves"
        f" {an} {title} of"
        f" {number(100 * p)} % by ± {number(half)} points (95 %), and another random seed moves it"
        " further: smaller differences between candidates are not evidence."
    ]


def _price(findings: Findings) -> str:
    experiment = findings.snapshot.experiment
    end = experiment.completed_at or findings.now
    lost = sum(row.lost_gpu_hours for row in findings.costs)
    share = 100 * lost / findings.gpu_hours if findings.gpu_hours else 0.0
    until = f"to {instant(end)}" if experiment.completed_at else f"until now ({instant(end)})"
    said = (
        f"From {instant(experiment.created_at)} {until}, {duration(end - experiment.created_at)}:"
        f" {hours(findings.gpu_hours)} {findings.unit}"
    )
    budget = experiment.budget(findings.config["experiment"]["budget_gpu_hours"])
    if budget:
        said += f" of a budget of {hours(budget)}"
    scored = sum(row.quality is not None and not row.is_baseline for row in findings.candidates)
    if lost:
        said += (
            f", of which {hours(lost)} ({number(share)} %) were lost to interruptions and failures"
        )
    if scored:
        said += f"; {hours(findings.gpu_hours / scored)} for each scored candidate"
    return f"{said}."
