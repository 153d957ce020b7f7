"""The page: one HTML file that needs nothing else, light and dark."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import groupby
from typing import Any

from nasd import __version__
from nasd.contract.objectives import DEFAULT
from nasd.contract.readable import NOTHING, duration, hours, listed, number, of_baseline, signed
from nasd.record.lifecycle import ExperimentState
from nasd.search.objectives import OBJECTIVES
from nasd.views.report.drawing import COLOURS, Drawing
from nasd.views.report.findings import TABLES, Findings
from nasd.views.report.fronts import best_ever
from nasd.views.report.rows import CandidateRow, MissedRow
from nasd.views.report.words import answer, instant, significant


@dataclass
class Table:
    """texts: the columns that are not numbers. marked: rows of the baseline's. long: the last
    column may be broken into lines."""

    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""
    texts: Sequence[int] = (0,)
    marked: Sequence[int] = ()
    long: bool = False


@dataclass
class Section:
    drawing: Drawing
    svg: Any
    tables: list[Table] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def render(
    findings: Findings, drawings: Sequence[Drawing], notes: Mapping[str, str], png: bool = False
) -> str:
    """notes: sentences to stand below a figure, by its name. png: whether it lies there as one."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("nasd.views.report", "."), autoescape=True, undefined=StrictUndefined
    )
    experiment = findings.snapshot.experiment
    tables = _tables(findings)
    sections = [
        Section(
            drawing,
            Markup(inline(drawing)) if drawing.figure is not None else "",
            tables.get(drawing.name, []),
            [notes[drawing.name]] if drawing.name in notes else [],
        )
        for drawing in drawings
    ]
    return environment.get_template("page.html.jinja").render(
        version=__version__,
        name=experiment.name,
        now=instant(findings.now),
        colours=COLOURS,
        answer=answer(findings),
        population=_population(findings),
        sections=sections,
        seed=experiment.seed,
        asked=_asked(findings) if findings.asked else None,
        config=toml(findings.config),
        prepared=json.dumps(experiment.prepared, indent=1) if experiment.prepared else "",
        genotypes=json.dumps(
            [
                {
                    "candidate": row.id,
                    "hash": row.hash,
                    "genotype": json.loads(row.genotype_json),
                }
                for row in (findings.baseline, *findings.final_population)
            ]
        ),
        tables=TABLES,
        png=png,
    )


# -- figures within the page -----------------------------------------------------------------------


def inline(drawing: Drawing) -> str:
    """The SVG as a part of the page: colours follow its light and dark, ids are unique in it, marks
    say what they are, and it has a text for who cannot see it."""
    body = drawing.svg[drawing.svg.index("<svg") :]
    opening, body = body.split(">", 1)
    box = re.search(r'viewBox="[^"]*"', opening)
    assert box is not None
    opening = f'<svg {box.group()} role="img" aria-label="{escape(drawing.alternative)}">'
    name = drawing.name
    for attribute in ('id="', 'href="#', "url(#"):
        body = body.replace(attribute, f"{attribute}{name}-")
    body = body.replace("xlink:href", "href")
    body = re.sub(
        rf'<g id="{name}-(tip\d+)">',
        lambda mark: f"{mark[0]}<title>{escape(drawing.tips[mark[1]])}</title>",
        body,
    )
    for role, (light, _) in COLOURS.items():
        body = body.replace(light, f"var(--{role})")
    return opening + body


def toml(config: Mapping[str, Any]) -> str:
    """The config as a file that `nasd run` takes."""
    import tomlkit

    return tomlkit.dumps(_without_none(config))


def _without_none(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_none(one) for key, one in value.items() if one is not None}
    if isinstance(value, list):
        return [_without_none(one) for one in value]
    return value


# -- tables ----------------------------------------------------------------------------------------


def _population(findings: Findings) -> dict[str, Any]:
    rows = findings.final_population
    losses = {
        row.candidate: row.loss
        for row in findings.losses
        if findings.mlm_stages and row.stage == findings.mlm_stages[-1]
    }
    generation = max(
        (one.generation for one in findings.generations if one.hypervolume is not None),
        default=None,
    )
    complete = findings.snapshot.experiment.state is ExperimentState.COMPLETE
    name = "The final population" if complete else "The newest population"

    def line(row: CandidateRow) -> list[str]:
        loss = findings.baseline_loss if row.is_baseline else losses.get(row.id)
        return [
            row.name,
            NOTHING if row.rank is None else str(row.rank),
            _quality(row),
            signed(None if row.is_baseline else row.quality_against_baseline),
            *(number(score, 2) for score in row.scores.values()),
            of_baseline(row.size),
            f"{row.parameters:,}",
            *([number(loss, 3)] if findings.mlm_stages else []),
            NOTHING if row.generation is None else str(row.generation),
            NOTHING if row.parent is None else str(row.parent),
            hours(row.gpu_hours),
            row.genotype,
        ]

    return {
        "title": name if generation is None else f"{name}, of generation {generation}",
        "rows": rows,
        "missing": "No generation has been selected yet, so there is no population.",
        "table": Table(
            [
                "candidate",
                "rank",
                "quality, %",
                f"against {findings.baseline.name}",
                *(f"{title}, %" for title in findings.snapshot.scoring.titles),
                "of baseline's parameters",
                "parameters",
                *(["MLM loss"] if findings.mlm_stages else []),
                "born in",
                "parent",
                findings.unit,
                "genotype",
            ],
            [line(row) for row in (findings.baseline, *rows)],
            title="Best rank first. Genotypes from the embeddings upwards: heads, then feed-forward"
            " networks by activation (r for ReLU, g for GELU, gg for a gated one) and inner sizes."
            + _noise(findings),
            texts=(0, 12 if findings.mlm_stages else 11),
            marked=(0,),
            long=True,
        ),
    }


def _tables(findings: Findings) -> dict[str, list[Table]]:
    """By the name of the figure below which they stand."""
    found: dict[str, list[Table]] = {}
    if best_ever(findings):
        found["pareto"] = [_best_ever(findings)]
    if findings.progress:
        found["hypervolume"] = [_generations(findings)]
    if findings.losses:
        found["correlation"] = [_correlations(findings)]
    if findings.missed:
        found["missed"] = [_missed(findings)]
    if any(row.candidates for row in findings.mutations):
        found["mutations"] = [_mutations(findings)]
    if findings.costs:
        found["cost"] = [_costs(findings)]
    return found


def _value(findings: Findings, row: CandidateRow, objective: str) -> str:
    one = findings.snapshot.rival.id if row.is_baseline else row.id
    value = findings.snapshot.value(one, objective)
    return NOTHING if value is None else OBJECTIVES[objective].shown(value)


def _quality(row: CandidateRow) -> str:
    if row.quality is None or row.quality_error is None:
        return number(row.quality, 2)
    seeds = f" ({row.seeds} seeds)" if row.seeds > 1 else ""
    return f"{number(row.quality, 2)} ± {number(row.quality_error, 2)}{seeds}"


def _noise(findings: Findings) -> str:
    """Whose places in the newest population rest on noise, as a sentence; "" where nobody's is
    known to."""
    snap = findings.snapshot
    numbers = [row.id for row in findings.final_population]
    unsure = {one: snap.unsure(one, numbers) for one in numbers}
    told = [f"{one} (of {listed(sorted(of))})" for one, of in sorted(unsure.items()) if of]
    if not told:
        return ""
    return (
        " Behind ± stands a standard error, as test examples are a sample. Within noise, at 95 %,"
        f" is the rank of candidate{'s' if len(told) > 1 else ''} {', '.join(told)}: what differs"
        " in quality from others that are as good in all else is no more than sampling explains."
    )


def _best_ever(findings: Findings) -> Table:
    shown = [findings.baseline, *best_ever(findings)]
    names = findings.snapshot.experiment.objectives
    others = [name for name in names if name not in DEFAULT]
    by = "quality and parameters" if not others else ", ".join(names)
    return Table(
        [
            "candidate",
            "born in",
            "quality, %",
            f"against {findings.baseline.name}",
            "of baseline's parameters",
            "parameters",
            *(OBJECTIVES[name].title for name in others),
            "in the newest population",
        ],
        [
            [
                row.name,
                NOTHING if row.generation is None else str(row.generation),
                _quality(row),
                signed(None if row.is_baseline else row.quality_against_baseline),
                of_baseline(row.size),
                f"{row.parameters:,}",
                *(_value(findings, row, name) for name in others),
                "yes" if row in findings.final_population else "no",
            ]
            for row in shown
        ],
        title="The front of all candidates ever scored, the smallest first: no other, of whatever"
        f" generation, is better than one of these in {by} at once. The"
        f" {findings.baseline.name} stands beside it.",
        texts=(0, 6 + len(others)),
        marked=(0,),
    )


def _generations(findings: Findings) -> Table:
    return Table(
        [
            "generation",
            "took",
            "born",
            "scored",
            "cut",
            "failed",
            "new survivors",
            "best quality, %",
            "median",
            "hypervolume",
            "gain",
            findings.unit,
            f"gain per {findings.unit[:-1]}",
        ],
        [
            [
                str(row.generation),
                duration(3600 * row.hours),
                *(str(amount) for amount in (row.born, row.scored, row.cut, row.failed)),
                NOTHING if row.new_survivors is None else str(row.new_survivors),
                number(row.best_quality, 2),
                number(row.median_quality, 2),
                number(row.hypervolume, 2),
                signed(row.gain),
                hours(row.gpu_hours),
                significant(row.gain_per_gpu_hour),
            ]
            for row in findings.generations
        ],
        title="Qualities are of parents and offspring together. The first gain is on what the"
        f" baseline alone dominates, the others on the generation before; {findings.unit} are those"
        " spent in all by the generation's end. Cut candidates that were trained on since count as"
        " scored.",
        texts=(0, 1),
    )


def _correlations(findings: Findings) -> Table:
    rows = []
    for (stage, among), pair in groupby(findings.correlations, lambda row: (row.stage, row.among)):
        found = list(pair)
        rows.append(
            [
                stage,
                among,
                str(found[0].n),
                *(
                    "too few"
                    if row.value is None
                    else f"{number(row.value, 2)} [{number(row.low, 2)}, {number(row.high, 2)}]"
                    for row in found
                ),
            ]
        )
    return Table(
        ["loss at the end of", "among", "n", "Pearson", "Spearman"],
        rows,
        title=f"Correlation of {'MLM ' if findings.mlm_stages else ''}loss and quality, with 95 %"
        " intervals. An interval that holds 0"
        " does not tell the correlation from none.",
        texts=(0, 1),
    )


def _missed(findings: Findings) -> Table:
    return Table(
        [
            "candidate",
            "generation",
            "loss",
            "place by loss",
            "quality, %",
            "place by quality",
            "of baseline's parameters",
            "would have survived",
            "on the front",
            f"{findings.unit} more",
        ],
        [
            [
                str(row.candidate),
                str(row.generation),
                number(row.loss, 3),
                f"{row.loss_place} of {row.of}",
                number(row.quality, 2),
                f"{row.quality_place} of {row.of}",
                of_baseline(row.size),
                _survival(row),
                "yes" if row.front else "no",
                hours(row.gpu_hours),
            ]
            for row in findings.missed
        ],
        title="Cut candidates that were trained to the end, among the scored of their generation.",
        texts=(0, 7, 8),
    )


def _asked(findings: Findings) -> Table:
    return Table(
        ["when", "who", "what", "why"],
        [
            [instant(one.at), one.who, f"{one.action}: {one.answer}", one.why or NOTHING]
            for one in findings.asked
        ],
        title="What people asked of the search while it ran. It belongs to the story as the seed"
        " does.",
        texts=(0, 1, 2, 3),
        long=True,
    )


def _survival(row: MissedRow) -> str:
    if row.would_survive:
        return "yes"
    crowded = ", and the places went to others by crowding distance" if row.crowded_out else ""
    return f"no: rank {row.rank}{crowded}"


def _mutations(findings: Findings) -> Table:
    def cell(value: float | None, low: float | None, high: float | None, n: int, unit: int) -> str:
        if value is None or low is None or high is None:
            return f"too few (n = {n})"
        digits = 0 if unit == 100 else 2
        ends = f"[{number(unit * low, digits)}, {number(unit * high, digits)}]"
        return f"{number(unit * value, digits)} {ends}, n = {n}"

    any_row = findings.mutations[-1]
    return Table(
        [
            "mutation",
            "candidates",
            "times",
            "change of quality, points",
            "for each one more, points",
            "change of parameters, %",
            "survived, %",
        ],
        [
            [
                row.mutation,
                str(row.candidates),
                str(row.times),
                cell(row.quality, row.quality_low, row.quality_high, row.quality_n, 1),
                NOTHING
                if row is any_row
                else cell(row.each, row.each_low, row.each_high, any_row.quality_n, 1),
                cell(
                    row.parameters_percent,
                    row.parameters_percent_low,
                    row.parameters_percent_high,
                    row.size_n,
                    1,
                ),
                cell(row.survived, row.survived_low, row.survived_high, row.survived_n, 100),
            ]
            for row in findings.mutations
        ],
        title="Against the parent, with 95 % intervals.",
    )


def _costs(findings: Findings) -> Table:
    total = findings.gpu_hours or 1.0
    rows = [
        [
            row.stage,
            row.who,
            str(row.candidates),
            str(row.attempts),
            str(row.succeeded),
            str(row.interrupted),
            str(row.failed),
            hours(row.gpu_hours),
            f"{number(100 * row.gpu_hours / total)} %",
            hours(row.lost_gpu_hours),
        ]
        for row in findings.costs
    ]
    sums = [
        "all",
        "",
        str(len({one.candidate for one in findings.attempts})),
        *(
            str(sum(getattr(row, name) for row in findings.costs))
            for name in ("attempts", "succeeded", "interrupted", "failed")
        ),
        hours(findings.gpu_hours),
        "100 %",
        hours(sum(row.lost_gpu_hours for row in findings.costs)),
    ]
    return Table(
        [
            "stage",
            "who",
            "candidates",
            "attempts",
            "succeeded",
            "interrupted",
            "failed",
            findings.unit,
            "share",
            "lost",
        ],
        [*rows, sums],
        title="Attempts still running count among attempts alone.",
        texts=(0, 1),
        marked=[place for place, row in enumerate(findings.costs) if row.who == "baseline"],
    )
