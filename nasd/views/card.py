"""The model card of an exported candidate: what it is, where it comes from, what it cost.

A pure function of what the database says. The front matter is the hub's (huggingface_hub knows its
form); names of the hub are the only ones that get into it, as it turns them into links.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from nasd import __version__
from nasd.contract import tasks
from nasd.contract.config import Config, Corpus, Stage
from nasd.contract.genotype import Block, BlockLineage, new_modules
from nasd.contract.objectives import DEFAULT, MEASURED
from nasd.contract.readable import counted, of_baseline
from nasd.record.state import Candidate, Snapshot
from nasd.search.objectives import COMPRESSION, OBJECTIVES, QUALITY

# As the hub's own pages have it; what does not stand here is not known.
LICENCES = {
    "distilbert/distilbert-base-uncased": "apache-2.0",
    "distilbert-base-uncased": "apache-2.0",
    "google-bert/bert-base-uncased": "apache-2.0",
    "bert-base-uncased": "apache-2.0",
    "rajpurkar/squad": "cc-by-sa-4.0",
    "wikimedia/wikipedia": "cc-by-sa-3.0, gfdl",
}
UNKNOWN = "not known to nasd"
TRAINS = {"new": "new modules", "all": "everything", "head": "the MLM head", "none": "nothing"}

USE = """\
from transformers import {card.auto}
model = {card.auto}.from_pretrained(".", trust_remote_code=True)
print(model.{card.use})
"""

NO_ANSWER = (
    'It gives "" where it is sure enough that the text holds no answer, as it was trained on some'
    " questions without one."
)

Row = Sequence[object]
CALLED = {"exact_match": "exact match"}  # in full


@dataclass(frozen=True)
class Runtimes:
    """The file for ONNX Runtime in float32, and the one in int8: quality in percent on the test
    data, bytes, and how many times as fast int8 is for one text of so many tokens on one thread."""

    quality: float
    quality_int8: float
    bytes: int
    bytes_int8: int
    speed: float
    tokens: int

    def rows(self) -> Sequence[Row]:
        return (
            (QUALITY.name, f"{self.quality:.2f}", f"{self.quality_int8:.2f}"),
            ("MB", f"{self.bytes / 1e6:.1f}", f"{self.bytes_int8 / 1e6:.1f}"),
            (f"speed, 1 thread, {self.tokens} tokens", "1.0", f"{self.speed:.1f}"),
        )


@dataclass(frozen=True)
class Native:
    """The model as one of transformers' own classes, below the other: its class, and parameters
    with the zeros that make its blocks alike. difference: the largest of a logit."""

    auto: str
    parameters: int
    difference: float


@dataclass(frozen=True)
class Files:
    """What the exported files say. parameters: of the whole model, with its head. seed_licence: as
    the seed's own card has it. onnx_difference: the largest of a logit between model.onnx and the
    model, None without one. int8: what there is to tell of model-int8.onnx, None without one."""

    weights_bytes: int
    parameters: int
    seed_of_hub: bool
    seed_licence: str | None
    onnx_difference: float | None
    int8: Runtimes | None = None
    native: Native | None = None


def text(snapshot: Snapshot, config: Config, candidate: Candidate, files: Files, now: float) -> str:
    """README.md of an exported model. snapshot: the whole search. config: focused on the model's
    task. candidate: a scored one."""
    assert snapshot.whole
    seed = config.seed_model.source
    licence = files.seed_licence or LICENCES.get(seed)
    blocks = len(candidate.genotype.blocks)
    if candidate.is_baseline:
        what = f"the baseline of an architecture search: {_code(seed)} as it is, fine-tuned"
    else:
        what = (
            f"candidate {candidate.id} of an evolutionary architecture search that began with"
            f" {_code(seed)}"
        )
    task = tasks.scored(config.data)
    words = task.card
    assert words is not None, "what gives a score can be taken home"
    parts = [
        f"---\n{_front_matter(snapshot, config, candidate, files, licence)}\n---",
        f"# {_name(snapshot, candidate)}",
        f"{words.does} It is {what}. Its encoder has {blocks}"
        f" block{'s' * (blocks != 1)}; with its head it has {files.parameters:,} parameters"
        f" ({files.weights_bytes / 1e6:.1f} MB). Made with nasd {__version__}.",
        "## Use",
        f"```python\n{USE.format(card=words)}```",
        '`"."` is this folder; give its path, or its name on the hub. It takes `torch` and'
        " `transformers`, and runs the code that lies beside the weights."
        f" {_length(config, task)}",
        "For the logits themselves there is"
        ' `AutoTokenizer.from_pretrained(".", trust_remote_code=True)`: the model takes what it'
        " gives.",
        *_onnx(files.onnx_difference, task),
        *_int8(files.int8),
        *_native(files.native, files.parameters),
        NO_ANSWER if config.data.qa is not None and config.data.qa.no_answer else words.known,
        "## Scores",
        _scores(snapshot, candidate, task),
        f"On {_examples(snapshot, task, 'test')} that it was not trained on; the search selects by"
        " these scores, which flatters a little whoever comes out first. The baseline is the seed"
        f" model, {'as it is and' if config.scores_seed else 'fine-tuned and'} scored in the same"
        f" way. Parameters are the encoder's alone{_compression(snapshot)}.",
        *_measured(config, snapshot.experiment.objectives),
        "## Architecture",
        architecture(candidate),
        f"Around the blocks it is as its seed: width {snapshot.experiment.backbone.width},"
        f" {snapshot.experiment.backbone.positions} positions,"
        f" {snapshot.experiment.backbone.vocab_size:,} tokens in the vocabulary"
        f"{_rank(candidate)}, a norm"
        f" {'before' if snapshot.experiment.backbone.pre_norm else 'after'} each module. Genotype"
        f" `{candidate.hash}`.",
        *_vocabulary(snapshot, candidate),
        *_ancestry(snapshot, config, candidate),
        "## Training",
        _training(snapshot, config, candidate),
        _cost(snapshot, candidate, now),
        f"{config.slots.precision}, AdamW{_masked(config)}. Seed of all random choices:"
        f" {snapshot.experiment.seed}.",
        "## Data and licences",
        _sources(snapshot, config, licence),
        f"{_split(config)} The modelling code is nasd's, under Apache-2.0. Look at each"
        " licence before you pass the model on.",
    ]
    return "\n\n".join(parts) + "\n"


def _compression(snapshot: Snapshot) -> str:
    names = snapshot.experiment.objectives
    if COMPRESSION.name not in names:
        return ""
    place = ("first", "second", "third", "fourth", "fifth")[names.index(COMPRESSION.name)]
    return (
        f"; the search's {place} objective, compression, is the baseline's divided by the model's"
    )


def _name(snapshot: Snapshot, candidate: Candidate) -> str:
    return f"{snapshot.experiment.name}, " + (
        "baseline" if candidate.is_baseline else f"candidate {candidate.id}"
    )


def _front_matter(
    snapshot: Snapshot,
    config: Config,
    candidate: Candidate,
    files: Files,
    licence: str | None,
) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    task = tasks.scored(config.data)
    scores = snapshot.task_scores(candidate.id, task.name)
    assert scores is not None
    source = getattr(config.data, task.data)
    assert task.card is not None
    hubs = [*(one.hub for one in config.data.corpora), source.hub]
    name = _name(snapshot, candidate)
    card = ModelCardData(
        license=licence,
        library_name="transformers",
        base_model=config.seed_model.source if files.seed_of_hub else None,
        datasets=list(dict.fromkeys(hub for hub in hubs if hub)) or None,
        metrics=[metric for metric, _ in task.shown],
        tags=[task.card.pipeline, "nasd", "neural-architecture-search", "custom_code"],
        model_name=name,
        eval_results=[
            EvalResult(
                task_type=task.card.pipeline,
                dataset_type=source.hub or "local",
                dataset_name=source.hub or _files(source.files),
                dataset_split=_held_out(config),
                metric_type=metric,
                metric_value=round(scores[metric], 2),
            )
            for metric, _ in task.shown
        ],
    )
    return card.to_yaml()


def _length(config: Config, task: tasks.Task) -> str:
    """What becomes of a long text."""
    if config.data.qa is None:
        return f"A text is cut to {task.limit(config.data)} tokens, as in the evaluation below."
    return (
        "The answer comes with a score between 0 and 1 and with its place in the text. A long text"
        f" is read in windows of {config.data.qa.tokens} tokens, as in the evaluation below."
    )


def _held_out(config: Config) -> str:
    """The test part."""
    if (qa := config.data.qa) is not None:
        return f"held-out {_percent(1 - qa.train_share)}, by {qa.split_by}"
    data = tasks.labelled(config.data)
    if data.test_files or data.test_split:
        return data.test_split or _files(data.test_files)
    return f"held-out {_percent(1 - data.train_share)}"


def _split(config: Config) -> str:
    if (qa := config.data.qa) is not None:
        return (
            f"Of the questions {_percent(qa.train_share)} are for training, split by {qa.split_by}."
        )
    return f"The test part: {_held_out(config)}."


def _onnx(difference: float | None, task: tasks.Task) -> Iterable[str]:
    said = "`start_logits` and `end_logits` [examples, tokens]"
    if task is not tasks.QA:
        said = (
            "`logits` [examples, tokens, labels]"
            if task.kind == tasks.TAG.name
            else "`logits` [examples, labels]"
        )
    if difference is not None:
        yield (
            "`model.onnx` is the same model for other runtimes: `input_ids` and `attention_mask`"
            f" [examples, tokens] to {said}. Its logits"
            f" differ by {difference:.0e} at most."
        )


def _int8(found: Runtimes | None) -> Iterable[str]:
    if found is not None:
        yield (
            "`model-int8.onnx` takes and gives the same, with weights and word embeddings in int8."
            " Activations are quantised as they come, with one scale for all of a batch, so logits"
            " depend a little on what else is in it. Scored one by one on the test data:"
        )
        yield table(("", "model.onnx", "model-int8.onnx"), found.rows())


def _native(found: Native | None, parameters: int) -> Iterable[str]:
    if found is None:
        return
    more = found.parameters - parameters
    yield (
        f"`native/` is the same model as transformers' own `{found.auto}`, for what runs no code of"
        f" others; its logits differ by {found.difference:.0e} at most."
        + (
            f" The blocks of that class are alike, so {more:,} parameters more,"
            " which are zeros or written out, make these so."
            if more > 0
            else ""
        )
    )


def _scores(snapshot: Snapshot, candidate: Candidate, task: tasks.Task) -> str:
    baseline = snapshot.rival
    own, other = (snapshot.task_scores(one.id, task.name) or {} for one in (candidate, baseline))
    all_own, all_other = (snapshot.scores(one.id) or {} for one in (candidate, baseline))
    others = snapshot.scoring.shown if len(snapshot.scoring.tasks) > 1 else ()
    rows: list[Row] = [
        *(
            (CALLED.get(metric, title), *_compared(own.get(metric), other.get(metric)))
            for metric, title in task.shown
        ),
        *(
            (f"quality of {title}", *_compared(all_own.get(metric), all_other.get(metric)))
            for metric, title in others
        ),
        (
            f"{QUALITY.name}, {snapshot.quality_words}",
            *_compared(snapshot.quality(candidate.id), snapshot.quality(baseline.id)),
        ),
    ]
    errors = [snapshot.quality_error(one.id) for one in (candidate, baseline)]
    if errors[0] is not None:
        told = ["" if one is None else f"{one:.2f}" for one in errors]
        rows.append((f"standard error of the {QUALITY.name}", *told, ""))
    counts = [snapshot.seeds(one.id) for one in (candidate, baseline)]
    if counts[0] > 1:
        why = "the model is the first one's"
        rows.append(("seeds that this is the mean of", *(str(one) for one in counts), why))
    rows.append(("parameters of the encoder", *_counts(candidate, baseline)))
    share = of_baseline(snapshot.size(candidate.id))
    rows.append(("parameters, of the baseline's", share, of_baseline(1.0), ""))
    for name in snapshot.experiment.objectives:
        if name not in DEFAULT:
            rows.append((f"{name}, {OBJECTIVES[name].words}", *_beside(snapshot, candidate, name)))
    return table(("", "this model", baseline.called, "difference"), rows)


def _beside(snapshot: Snapshot, candidate: Candidate, name: str) -> Row:
    one = OBJECTIVES[name]
    own, other = (snapshot.value(each, name) for each in (candidate.id, snapshot.rival.id))
    return (
        "" if own is None else one.shown(own),
        "" if other is None else one.shown(other),
        "" if own is None or not other else f"{100 * (own / other - 1):+.1f} %",
    )


def _measured(config: Config, names: Sequence[str]) -> list[str]:
    """Whether and on what any of it was measured."""
    if not set(names) & set(MEASURED):
        return []
    of = config.measure
    return [
        f"What depends on a machine is of a forward pass over {counted(of.batch, 'example')} of"
        f" {counted(of.tokens, 'token')} by {of.engine} in {of.precision}, on"
        f" {'a GPU' if of.device == 'cuda' else counted(of.threads, 'thread') + ' of a processor'}"
        " of the machine that searched."
    ]


def _compared(own: float | None, other: float | None) -> Row:
    return (
        "" if own is None else f"{own:.2f}",
        "" if other is None else f"{other:.2f}",
        "" if own is None or other is None else f"{own - other:+.2f}",
    )


def _counts(own: Candidate, other: Candidate) -> Row:
    return (
        f"{own.parameters:,}",
        f"{other.parameters:,}",
        f"{100 * (own.parameters / other.parameters - 1):+.1f} %",
    )


def architecture(candidate: Candidate) -> str:
    """A Markdown table of its blocks."""
    blocks = zip(candidate.genotype.blocks, candidate.lineage, strict=True)
    return table(
        ("block", "attention heads", "feed-forward networks", "new in it"),
        [
            (number, f"{block.heads_in_words}{block.convolves}", _networks(block), _new(origin))
            for number, (block, origin) in enumerate(blocks, start=1)
        ],
    )


def _networks(block: Block) -> str:
    return "; then ".join(ffn.in_words for ffn in block.ffns)


def _new(origin: BlockLineage) -> str:
    if origin.source is None:
        return "all"
    made = [f"network {n}" for n, how in enumerate(origin.ffns, start=1) if how.new]
    return ", ".join((["attention"] if origin.attention_new else []) + made)


def _rank(candidate: Candidate) -> str:
    rank, frequent = candidate.genotype.words
    beside = f", beside {frequent:,} frequent words' own" if frequent else ""
    return "" if rank is None else f", whose embeddings are a product of rank {rank}{beside}"


def _vocabulary(snapshot: Snapshot, candidate: Candidate) -> Iterable[str]:
    prepared = snapshot.experiment.prepared or {}
    if prepared.get("words_lost") is not None:
        whole = prepared["seed_parameters"]
        yield (
            f"Of the seed's vocabulary the most frequent tokens of the training texts were kept;"
            f" {100 * prepared['words_lost']:.1f} % of their words fall apart into more pieces."
            f" With its whole vocabulary the seed's encoder has {whole:,} parameters; this model's"
            f" has {100 * candidate.parameters / whole:.1f} % of them."
        )


def ancestors(snapshot: Snapshot, candidate: Candidate) -> list[Candidate]:
    """The line from the baseline to the candidate, both included."""
    line = [candidate]
    while line[-1].parent is not None:
        line.append(snapshot.candidates[line[-1].parent])
    return line[::-1]


def _ancestry(snapshot: Snapshot, config: Config, candidate: Candidate) -> Iterable[str]:
    if candidate.is_baseline:
        return
    yield "## Ancestry"
    yield table(
        (
            "candidate",
            "generation",
            "architecture",
            "new modules",
            "parameters, of the baseline's",
            "quality",
        ),
        [
            (
                one.id,
                "baseline" if one.is_baseline else one.generation,
                _code(str(one.genotype)),
                "" if one.is_baseline else new_modules(one.lineage),
                of_baseline(snapshot.size(one.id)),
                "" if (quality := snapshot.quality(one.id)) is None else f"{quality:.2f}",
            )
            for one in ancestors(snapshot, candidate)
        ],
    )
    yield f"{_kept(config)} {_began(config)}"


def _kept(config: Config) -> str:
    """Of a parent's weights, in a sentence."""
    of = (
        "of its last stage of masked language modelling"
        if config.variation.inherit_from == tasks.MLM.name
        else "fine-tuned as they were, head and all"
    )
    return f"What no mutation touched keeps the parent's weights, {of}."


def _began(config: Config) -> str:
    """How what a mutation touched began, in a sentence."""
    alone = any(one.train == "new" for one in config.ladder("candidates"))
    behind = ", and trained alone first" if alone else ""
    if config.variation.transfers == "fresh":
        return f"What is new was drawn at random{behind}."
    fitted = ", fitted anew to what the parent computed" if config.variation.refit else ""
    return (
        f"What became smaller keeps of it what tells most{fitted}; what is new began so that it"
        f" changes nothing, where that can be, and else at random{behind}."
    )


def _training(snapshot: Snapshot, config: Config, candidate: Candidate) -> str:
    ladder = config.ladder("baseline" if candidate.is_baseline else "candidates")
    head = ("stage", "task", "trains", "epochs", "batch", "learning rate", "steps", "loss")
    return table(
        (*head, snapshot.hours_unit),
        [
            _stage(snapshot, candidate, stage)
            for stage in ladder
            if (candidate.id, stage.name) in snapshot.results
        ],
    )


def _epochs(stage: Stage) -> str:
    if stage.epochs is None:
        return ""
    several = f"{stage.soup} x " if stage.soup > 1 else ""
    return f"{several}{stage.epochs * stage.share:.3g}"


def _stage(snapshot: Snapshot, candidate: Candidate, stage: Stage) -> Row:
    result = snapshot.results[candidate.id, stage.name]
    loss = result.curve[-1][1] if result.curve else result.metrics.get("loss")
    return (
        stage.name,
        tasks.of(stage.task).words,
        TRAINS[stage.train],
        _epochs(stage),
        stage.batch,
        "" if stage.learning_rate is None else f"{stage.learning_rate:g}",
        result.steps or "",
        "" if loss is None else f"{loss:.3f}",
        f"{hours(snapshot, [candidate], stage.name):.3g}",
    )


def hours(snapshot: Snapshot, of: Iterable[Candidate], stage: str | None = None) -> float:
    """Slots x hours held by the ended attempts of some candidates, at all stages or at one."""
    wanted = {one.id for one in of}
    return (
        sum(
            one.worth * (one.ended_at - one.started_at)
            for one in snapshot.attempts
            if one.ended_at is not None and one.candidate in wanted and stage in (None, one.stage)
        )
        / 3600
    )


def _cost(snapshot: Snapshot, candidate: Candidate, now: float) -> str:
    line = ancestors(snapshot, candidate)
    return (
        f"{hours(snapshot, [candidate]):.3g} {snapshot.hours_unit} for this model,"
        f" {hours(snapshot, line):.3g} with all that it descends from, and"
        f" {snapshot.gpu_hours(now):.3g} for the whole search so far, with its"
        f" {len(snapshot.candidates)} candidates."
    )


def _masked(config: Config) -> str:
    mlm = config.data.mlm
    return "" if mlm is None else f", {_percent(mlm.mask_share)} of the tokens masked"


def _sources(snapshot: Snapshot, config: Config, seed_licence: str | None) -> str:
    prepared = snapshot.experiment.prepared or {}
    sequences = prepared.get("mlm_train_sequences")
    mlm = config.data.mlm
    much = f", {sequences:,} sequences of {mlm.tokens} tokens" if mlm and sequences else ""
    task = tasks.scored(config.data)
    source = getattr(config.data, task.data)
    rows: list[Row] = [
        ("seed model", _code(config.seed_model.source), seed_licence or UNKNOWN),
        *(
            (f"masked language modelling{much}", _corpus(one), LICENCES.get(one.hub or "", UNKNOWN))
            for one in config.data.corpora
        ),
        (
            f"{task.words}, {_examples(snapshot, task, 'train')}",
            _code(source.hub) if source.hub else _files(source.files),
            LICENCES.get(source.hub or "", UNKNOWN),
        ),
    ]
    return table(("for", "source", "licence"), rows)


def _corpus(corpus: Corpus) -> str:
    if not corpus.hub:
        return _files(corpus.files)
    return " ".join(filter(None, (_code(corpus.hub), corpus.config, corpus.revision)))


def _files(files: Iterable[str]) -> str:
    """Names alone: where they lie is nobody's business."""
    return ", ".join(Path(name).name for name in files)


def _examples(snapshot: Snapshot, task: tasks.Task, part: Literal["train", "test"]) -> str:
    found = task.counts(snapshot.experiment.prepared or {})[part == "test"]
    return f"{found:,} {task.example}s" if found else f"{task.example}s"


def _percent(share: float) -> str:
    return f"{100 * share:g} %"


def _code(value: Any) -> str:
    return f"`{value}`"


def table(head: Row, rows: Iterable[Row]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)
