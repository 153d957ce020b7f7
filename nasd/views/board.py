"""What the daemon shows in TensorBoard, beside the curves that the workers write.

    search              the layout of the custom scalars, HParams' columns, one point a generation
    gen01/cutoff        its cutoffs as a line among the learning curves, and as a card
    gen01/selection     who survived, as a card
    gen01/c0005         a candidate's card, and once it has ended its features and results
    gen01/c0005/<task>  its curves, by its workers: stages of one task in a row

Each run of the daemon's is a pure function of a snapshot, and is written whole. So one that a kill
kept from being written is written by the next daemon, and no point ever stands there twice.
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from statistics import fmean

import numpy as np
from numpy.typing import NDArray
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.plugins.custom_scalar import metadata as scalars_plugin
from tensorboard.plugins.custom_scalar.layout_pb2 import (
    Category,
    Chart,
    Layout,
    MultilineChartContent,
)
from tensorboard.plugins.hparams import metadata as hparams_plugin
from tensorboard.plugins.hparams.api_pb2 import (
    DATA_TYPE_FLOAT64,
    DATA_TYPE_STRING,
    STATUS_FAILURE,
    STATUS_SUCCESS,
    Experiment,
    HParamInfo,
    MetricInfo,
    MetricName,
)
from tensorboard.plugins.hparams.plugin_data_pb2 import (
    HParamsPluginData,
    SessionEndInfo,
    SessionStartInfo,
)

from nasd.contract import tasks
from nasd.contract.genotype import Genotype, new_modules
from nasd.contract.objectives import DEFAULT
from nasd.contract.readable import of_baseline, share_of_baseline
from nasd.contract.slots import worth
from nasd.contract.summaries import scalars, string, text, value, write_run
from nasd.policy.curves import learning_curve
from nasd.record.folders import StateFolder, run_name
from nasd.record.lifecycle import DecisionKind, State
from nasd.record.readings import Reads
from nasd.record.state import Candidate, Generation, Holdings, Recorded, Selected, Snapshot
from nasd.search.fidelity.promotion import Promotion
from nasd.search.objectives import OBJECTIVES
from nasd.views.card import ancestors, architecture, hours, table

log = logging.getLogger("nasd")

Floats = NDArray[np.float64]
Runs = Iterator[tuple[str, Iterable[Event]]]  # names of runs, and what they say

# HParams' columns, and what they are. It shows five at first: those that stand in LEADING.
FEATURES = {
    "generation": "in which it was born; -1 is the baseline",
    "parent": "whom it was bred from",
    "fate": "scored, cut or failed",
    "blocks": "encoder blocks",
    "parameters": "parameters of the encoder",
    "heads_mean": "attention heads, mean of the blocks",
    "heads_least": "attention heads, least",
    "heads_most": "attention heads, most",
    "attention_width_mean": "width of all heads together, mean of the blocks",
    "ffns": "feed-forward networks",
    "ffn_layers": "linear layers of all feed-forward networks",
    "ffn_size_mean": "intermediate size, mean of all",
    "gelu_share": "share of feed-forward networks with gelu",
    "embedding_rank": "rank of the word embeddings; in full, the width",
    "new_modules": "modules that mutation made",
}
LEADING = {"fate", "blocks", "parameters", "heads_mean", "ffns"}
TEXTS = {"parent", "fate"}
NEAREST = 20  # ancestors that a card shows
ABOUT = {
    "search/hypervolume": "Of parents and scored offspring, above no quality and no compression.",
    "search/best_quality": "The quality in percent, the best among parents and offspring.",
    "search/baseline_quality": "The seed model's, trained, where it is, and scored by the same"
    " procedure; of its controls the best.",
    "search/gpu_hours": "Slots x hours held by all attempts, until the selection.",
    "search/slot_use": "Slots x time held / (slots x time from the generation's opening to its"
    " selection); slots that nothing ran on in that time are not counted.",
    "search/hours": "From the generation's opening to its selection.",
}


class Board:
    """Writes behind the decisions, which stand. What a kill in between kept from being written, the
    next daemon writes at its start; what a full disk did, comes with what is shown next."""

    def __init__(self, state: StateFolder, store: Reads) -> None:
        self._state, self._store = state, store
        self._behind = False

    def show(
        self, candidates: Iterable[int], generations: Iterable[int] = (), search: bool = False
    ) -> None:
        """Of these, whatever is not yet shown as it is now."""
        asked = list(candidates)
        if self._behind:
            found = self._store.read()
            asked, search = list(found.candidates), True
            generations = [one.number for one in found.generations]
        else:
            found = self._store.lines(asked)
        try:
            for name, events in self._runs(found, asked, generations, search):
                write_run(self._state.run(name), events, found.experiment.created_at)
            self._behind = False
        except OSError as error:
            self._behind = True
            log.warning("TensorBoard's files could not be written: %s", error)

    def _runs(
        self,
        snapshot: Snapshot,
        candidates: Iterable[int],
        generations: Iterable[int],
        search: bool,
    ) -> Runs:
        for one in candidates:
            yield _name(snapshot, one), candidate_events(snapshot, one)
        for number in generations:
            yield from generation_events(snapshot, number)
        if search:
            chosen, holdings = self._store.selected(), self._store.holdings()
            yield "search", search_events(snapshot, chosen, holdings)


# -- a candidate ---------------------------------------------------------------------------------


def candidate_events(snapshot: Snapshot, number: int) -> Iterator[Event]:
    """snapshot: with the candidate's line."""
    one = snapshot.candidates[number]
    tried = [attempt for attempt in snapshot.attempts if attempt.candidate == number]
    began = min((attempt.started_at for attempt in tried), default=snapshot.experiment.created_at)
    if not one.final:
        yield text("card", _card(snapshot, one), began)
        return
    ended = max((attempt.ended_at or began for attempt in tried), default=began)
    yield text("card", _card(snapshot, one), ended)
    start = SessionStartInfo(group_name=_name(snapshot, number), start_time_secs=began)
    for name, feature in features(snapshot, one).items():
        if isinstance(feature, str):
            start.hparams[name].string_value = feature
        else:
            start.hparams[name].number_value = feature
    status = STATUS_FAILURE if one.state is State.FAILED else STATUS_SUCCESS
    end = SessionEndInfo(status=status, end_time_secs=ended)
    opened = HParamsPluginData(session_start_info=start)
    closed = HParamsPluginData(session_end_info=end)
    yield _hparams(hparams_plugin.SESSION_START_INFO_TAG, opened, ended)
    yield _hparams(hparams_plugin.SESSION_END_INFO_TAG, closed, ended)
    yield scalars(metrics(snapshot, one), one.generation or 0, ended)


def features(snapshot: Snapshot, candidate: Candidate) -> dict[str, float | str]:
    """What sets a genotype apart, by the names in FEATURES."""
    genotype: Genotype = candidate.genotype
    heads = [block.present for block in genotype.blocks]
    ffns = [ffn for block in genotype.blocks for ffn in block.ffns]
    found: dict[str, float | str] = {
        "generation": -1.0 if candidate.generation is None else candidate.generation,
        "parent": "" if candidate.parent is None else _name(snapshot, candidate.parent),
        "fate": str(candidate.state),
        "blocks": len(genotype.blocks),
        "parameters": candidate.parameters,
        "heads_mean": fmean(heads),
        "heads_least": min(heads),
        "heads_most": max(heads),
        "attention_width_mean": fmean(
            block.inner(snapshot.experiment.backbone.width) for block in genotype.blocks
        ),
        "ffns": len(ffns),
        "ffn_layers": sum(len(ffn.sizes) + 1 for ffn in ffns),
        "ffn_size_mean": fmean(chain.from_iterable(ffn.sizes for ffn in ffns)),
        "gelu_share": fmean(ffn.activation == "gelu" for ffn in ffns),
        "embedding_rank": genotype.rank or snapshot.experiment.backbone.width,
        "new_modules": 0 if candidate.is_baseline else new_modules(candidate.lineage),
    }
    assert [*found] == [*FEATURES]
    return found


def metrics(snapshot: Snapshot, candidate: Candidate) -> dict[str, float]:
    """As far as they are known: the last evaluation loss of each MLM stage, and the scores."""
    found = {
        _loss_tag(stage): result.last_loss
        for stage in _ranking_stages(snapshot)
        if (result := snapshot.results.get((candidate.id, stage))) is not None
        and result.last_loss is not None
    }
    scores = snapshot.scores(candidate.id)
    quality = snapshot.quality(candidate.id)
    if scores is not None and quality is not None:
        found |= {
            **{
                f"results/{metric}": scores[metric]
                for metric, _ in snapshot.scoring.shown
                if metric in scores
            },
            "results/quality": quality,
        }
    for name in snapshot.experiment.objectives:
        if name not in DEFAULT and (value := snapshot.value(candidate.id, name)) is not None:
            found[f"results/{name}"] = value
    size = snapshot.size(candidate.id)
    share = share_of_baseline(size)
    return {**found, "results/size": size, "results/parameters_percent": share}


def _card(snapshot: Snapshot, candidate: Candidate) -> str:
    parts = [
        f"### {_title(candidate)}",
        _fate(snapshot, candidate),
        f"`{candidate.genotype_text}` (genotype {candidate.hash}), {candidate.parameters:,}"
        f" parameters, {of_baseline(snapshot.size(candidate.id))} of the baseline's",
        architecture(candidate),
    ]
    if not candidate.is_baseline:
        parts += ["#### Ancestry", _ancestry(snapshot, candidate)]
        parts += ["#### Decisions", _decisions(snapshot, candidate)]
    return "\n\n".join(parts)


def _title(candidate: Candidate) -> str:
    if candidate.is_baseline:
        return "The baseline"
    return f"Candidate {candidate.id} of generation {candidate.generation}"


def _fate(snapshot: Snapshot, candidate: Candidate) -> str:
    if not candidate.final:
        return "On its way."
    spent = f"It took {hours(snapshot, [candidate]):.3g} hours of slots."
    scores, quality = snapshot.scores(candidate.id), snapshot.quality(candidate.id)
    if scores is not None and quality is not None:
        marks = f"quality {quality:.2f} ({snapshot.scoring.in_words(scores)})"
        return f"Scored: {marks}. {spent}"
    state = str(candidate.state).capitalize()
    return f"{state} at {candidate.stage}: {candidate.reason}. {spent}"


def _ancestry(snapshot: Snapshot, candidate: Candidate) -> str:
    line = ancestors(snapshot, candidate)
    shown = table(
        ("candidate", "architecture", "new modules", "parameters, of the baseline's", "quality"),
        [
            (
                _name(snapshot, one.id),
                f"`{one.genotype_text}`",
                "" if one.is_baseline else new_modules(one.lineage),
                of_baseline(snapshot.size(one.id)),
                "" if (quality := snapshot.quality(one.id)) is None else f"{quality:.2f}",
            )
            for one in line[-NEAREST:]
        ],
    )
    before = f"{len(line) - NEAREST} before them, from the baseline on.\n\n"
    return shown if len(line) <= NEAREST else before + shown


def _decisions(snapshot: Snapshot, candidate: Candidate) -> str:
    """What was decided about it, in the order in which it was."""
    assert candidate.parent is not None
    came = f"bred from {_name(snapshot, candidate.parent)}"
    rows: list[Sequence[object]] = [(candidate.generation, "breeding", came)]
    rows += [
        (one.generation, f"cutoff after {one.stage}", _at_cutoff(one.promotion, candidate.id))
        for one in snapshot.cutoffs
        if candidate.id in one.promotion.losses
    ]
    rows += [
        (
            one.generation,
            f"selection, as {one.role}",
            f"{'survives' if one.survives else 'does not survive'}, rank {one.rank}",
        )
        for one in snapshot.members
        if one.candidate == candidate.id and one.rank is not None
    ]
    return table(("generation", "decision", ""), rows)


def _at_cutoff(found: Promotion, candidate: int) -> str:
    last = "" if found.threshold is None else f"; the last one kept has {found.threshold:.4f}"
    return (
        f"{_kept_or_cut(found, candidate)}: loss {found.losses[candidate]:.4f} is number"
        f" {found.place(candidate)} of {found.reached}{last}"
    )


def _kept_or_cut(found: Promotion, candidate: int) -> str:
    return "kept" if candidate in found.kept else "cut"


# -- a generation --------------------------------------------------------------------------------


def generation_events(snapshot: Snapshot, number: int) -> Runs:
    """The runs that tell of its decisions. snapshot: with the lines of all its members."""
    decided = [one for one in snapshot.decisions if one.generation == number]
    if cutoffs := [one for one in decided if one.kind is DecisionKind.CUTOFF]:
        yield f"{run_name(number)}/cutoff", cutoff_events(snapshot, cutoffs)
    for one in decided:
        if one.kind is DecisionKind.SELECT:
            yield f"{run_name(number)}/selection", [_selection(snapshot, one)]


def cutoff_events(snapshot: Snapshot, cutoffs: Sequence[Recorded]) -> Iterator[Event]:
    """For each stage a card; and a level line of a threshold as long as its stage is."""
    stages: dict[str, list[Recorded]] = {}
    for cutoff in cutoffs:
        stages.setdefault(cutoff.stage, []).append(cutoff)
    for stage, made in stages.items():
        at = _generation(snapshot, made[0].generation).opened_at
        cards = [_cutoff_card(snapshot, one) for one in made]
        yield text(f"cutoff_after_{stage}", "\n\n".join(cards), at)
    for cutoff in cutoffs:
        at = _generation(snapshot, cutoff.generation).opened_at
        begin, end = _reach(snapshot, cutoff)
        task = _tasks(snapshot)[cutoff.stage]
        curve = (
            learning_curve(cutoff.generation) if tasks.of(task).ranks else f"{task}/evaluation_loss"
        )
        if (threshold := cutoff.promotion.threshold) is not None:
            for step in sorted({begin, end}):
                yield scalars({curve: threshold}, step, at)


def _reach(snapshot: Snapshot, cutoff: Recorded) -> tuple[int, int]:
    """From where to where its stage reaches among the steps of those of its task: the longest, as
    who had nothing to train has no steps."""
    told = _tasks(snapshot)
    stages = [name for name, task in told.items() if task == told[cutoff.stage]]
    before = stages[: stages.index(cutoff.stage)]

    def steps(candidate: int, names: Iterable[str]) -> int:
        found = (snapshot.results.get((candidate, name)) for name in names)
        return sum(result.steps for result in found if result is not None)

    reached = cutoff.promotion.losses
    return (
        max(steps(one, before) for one in reached),
        max(steps(one, (*before, cutoff.stage)) for one in reached),
    )


def _cutoff_card(snapshot: Snapshot, cutoff: Recorded) -> str:
    found = cutoff.promotion
    rows = [
        (found.place(one), _name(snapshot, one), f"{loss:.4f}", _kept_or_cut(found, one))
        for one, loss in found.losses.items()
    ]
    title = f"### Generation {cutoff.generation}: cutoff after {cutoff.stage}"
    head = ("place", "candidate", "evaluation loss", "")
    return f"{title}\n\nKept: {found.rule}.\n\n{table(head, rows)}"


def _selection(snapshot: Snapshot, selection: Recorded) -> Event:
    axes = [OBJECTIVES[name] for name in selection.objectives]
    points, first = selection.points, axes[0]
    ranks = {int(one): rank for one, rank in selection.payload["ranks"].items()}
    survivors = selection.payload["survivors"]
    born = {one.id for one in snapshot.born_in(selection.generation)}
    born |= {*snapshot.late(selection.generation - 1)}
    rows = [
        (
            _name(snapshot, one),
            "offspring" if one in born else "parent",
            *(each.shown(points[one][each.name]) for each in axes),
            ranks[one],
            "survives" if one in survivors else "",
        )
        for one in sorted(
            points, key=lambda one: (ranks[one], -first.upwards(points[one][first.name]), one)
        )
    ]
    title = f"### Generation {selection.generation}: selection"
    head = ("candidate", "role", *(each.title for each in axes), "rank", "")
    one = _generation(snapshot, selection.generation)
    at = one.completed_at or one.opened_at
    return text("selection", f"{title}\n\n{table(head, rows)}", at)


def _name(snapshot: Snapshot, candidate: int) -> str:
    """Its run."""
    return run_name(snapshot.candidates[candidate].generation, candidate)


def _generation(snapshot: Snapshot, number: int) -> Generation:
    return next(one for one in snapshot.generations if one.number == number)


# -- the search ----------------------------------------------------------------------------------


def search_events(
    snapshot: Snapshot, chosen: Sequence[Selected], holdings: Holdings
) -> Iterator[Event]:
    """snapshot: with the baseline and all generations. chosen, holdings: all that ever were."""
    began = snapshot.experiment.created_at
    metadata, layout = scalars_plugin.create_summary_metadata(), _layout(snapshot)
    content = string(layout.SerializeToString())
    yield value(scalars_plugin.CONFIG_SUMMARY_TAG, metadata, began, content)
    columns = HParamsPluginData(experiment=_columns(snapshot))
    yield _hparams(hparams_plugin.EXPERIMENT_TAG, columns, began)
    base = snapshot.quality(snapshot.rival.id)
    begins = np.array([one.opened_at for one in chosen], dtype=float)
    ends = np.array([one.completed_at for one in chosen], dtype=float)
    for one, use in zip(chosen, Ledger(holdings).use(begins, ends), strict=True):
        known = {"search/hypervolume": one.hypervolume, **use}
        if one.best_quality is not None:
            known["search/best_quality"] = one.best_quality
        if base is not None:
            known["search/baseline_quality"] = base
        yield scalars(known, one.number, one.completed_at, ABOUT)


class Ledger:
    """What attempts held, to be asked for many stretches of time at once."""

    def __init__(self, holdings: Holdings) -> None:
        spans: dict[str, list[Floats]] = {}
        for slots, held in holdings.items():
            known = np.array(held)
            for slot in slots:
                spans.setdefault(slot, []).append(known)
        self._slots = [(worth([slot]), _Held(np.concatenate(each))) for slot, each in spans.items()]

    def use(self, begins: Floats, ends: Floats) -> list[dict[str, float]]:
        """What slots did in each stretch (seconds since the epoch), and until its end."""
        until, held = np.zeros_like(ends), np.zeros_like(ends)
        used = np.zeros(len(ends))
        for part, slot in self._slots:
            until += part * slot.seconds(ends)
            here = slot.met(begins, ends)
            held += part * np.where(here, slot.seconds(ends) - slot.seconds(begins), 0.0)
            used += part * here
        found = []
        for total, within, slots, length in zip(until, held, used, ends - begins, strict=True):
            one = {"search/gpu_hours": float(total) / 3600, "search/hours": float(length) / 3600}
            if slots:
                one["search/slot_use"] = float(within / (slots * length))
            found.append(one)
        return found


class _Held:
    """A slot's spans. Sorted once, they answer for any instant without a look at each of them."""

    def __init__(self, spans: Floats) -> None:
        """spans: (n, 2), from and until; infinite where there is no end yet."""
        spans = spans[spans[:, 1] > spans[:, 0]]
        self._origin = spans[:, 0].min(initial=np.inf)  # so that sums of instants stay small
        self._begins = np.sort(spans[:, 0] - self._origin)
        self._ends = np.sort(spans[:, 1] - self._origin)
        self._before_begin = np.concatenate([[0.0], np.cumsum(self._begins)])
        self._before_end = np.concatenate([[0.0], np.cumsum(self._ends)])

    def seconds(self, instants: Floats) -> Floats:
        """Held until each instant: since each span that had begun by then, less since each that
        had ended."""
        if not len(self._begins):
            return np.zeros_like(instants)
        at = instants - self._origin
        begun = np.searchsorted(self._begins, at, side="right")
        ended = np.searchsorted(self._ends, at, side="right")
        since: Floats = (begun - ended) * at - (self._before_begin[begun] - self._before_end[ended])
        return since

    def met(self, begins: Floats, ends: Floats) -> NDArray[np.bool_]:
        """Whether any span reaches into each stretch."""
        begun = np.searchsorted(self._begins, ends - self._origin, side="left")
        ended = np.searchsorted(self._ends, begins - self._origin, side="right")
        reached: NDArray[np.bool_] = (ends > begins) & (begun > ended)
        return reached


def _layout(snapshot: Snapshot) -> Layout:
    """Of the custom scalars: a chart of learning curves for each generation, the newest first."""

    def chart(title: str, *tags: str) -> Chart:
        return Chart(title=title, multiline=MultilineChartContent(tag=[f"^{tag}$" for tag in tags]))

    curves = [
        chart(f"generation {one.number}: MLM evaluation loss", learning_curve(one.number))
        for one in reversed(snapshot.generations)
    ]
    search = [
        chart("hypervolume", "search/hypervolume"),
        chart("the best quality, and the baseline's", "search/(best|baseline)_quality"),
        chart("slot-hours (of GPUs: GPU-hours)", "search/gpu_hours"),
        chart("slot use", "search/slot_use"),
    ]
    return Layout(
        category=[
            Category(title="Learning curves and cutoffs", chart=curves),
            Category(title="The search, by generation", chart=search),
        ]
    )


def _columns(snapshot: Snapshot) -> Experiment:
    cutoffs = {s["name"] for s in snapshot.experiment.stages if s.get("keep")}
    losses = {
        _loss_tag(stage): f"loss after {stage}" + (" (cutoff)" if stage in cutoffs else "")
        for stage in _ranking_stages(snapshot)
    }
    shown = {
        **losses,
        **{f"results/{metric}": title for metric, title in snapshot.scoring.shown},
        "results/size": "compression",
        "results/parameters_percent": "parameters, % of the baseline's",
        "results/quality": "quality",
        **{
            f"results/{name}": f"{name}, {OBJECTIVES[name].words}"
            for name in snapshot.experiment.objectives
            if name not in DEFAULT
        },
    }
    return Experiment(
        name=snapshot.experiment.name,
        time_created_secs=snapshot.experiment.created_at,
        hparam_infos=[
            HParamInfo(
                name=name,
                description=about,
                type=DATA_TYPE_STRING if name in TEXTS else DATA_TYPE_FLOAT64,
                differs=name in LEADING,  # TensorBoard puts these first
            )
            for name, about in FEATURES.items()
        ],
        metric_infos=[
            MetricInfo(name=MetricName(tag=tag), display_name=name) for tag, name in shown.items()
        ],
    )


def _hparams(tag: str, data: HParamsPluginData, at: float) -> Event:
    return value(tag, hparams_plugin.create_summary_metadata(data), at)


def _loss_tag(stage: str) -> str:
    return f"results/loss_after_{stage}"


def _ranking_stages(snapshot: Snapshot) -> list[str]:
    """That candidates climb, in order, and whose losses rank them: of MLM, and up to rungs."""
    rungs = {one["name"] for one in snapshot.experiment.stages if one.get("keep") is not None}
    return [
        name for name, task in _tasks(snapshot).items() if tasks.of(task).ranks or name in rungs
    ]


def _tasks(snapshot: Snapshot) -> dict[str, str]:
    """Of the stages that candidates climb, in order, by name."""
    return {
        one["name"]: one["task"] for one in snapshot.experiment.stages if one["who"] != "baseline"
    }
