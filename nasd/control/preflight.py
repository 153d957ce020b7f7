"""Everything that can be wrong before the first row is written, checked before the first row.

The seed is looked at by a child process, because that needs torch; it answers with one JSON line.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from nasd.contract import labelled, seed_head, tasks
from nasd.contract.config import Config, Teacher, check_against_seed
from nasd.contract.errors import NasdError
from nasd.contract.formats import check_texts
from nasd.contract.genotype import Backbone, Genotype
from nasd.contract.objectives import LATENCY
from nasd.contract.squad import read_all, split
from nasd.contract.streams import stream_seed
from nasd.launch import child
from nasd.search.variation.breeding import check_genotype, check_space

SEED_TIMEOUT_SECONDS = 900  # a hub's model may have to be fetched first


@dataclass(frozen=True)
class Seed:
    backbone: Backbone
    baseline: Genotype
    has_mlm_head: bool
    heads: tuple[str, ...] = ()  # the tasks that it has a head for, besides MLM
    fault: str = ""  # why the one of the data's task cannot be kept
    # Of the data, see nasd.views.caveats.
    known: Mapping[str, Any] = field(default_factory=dict)
    attention_dropout: float = 0.0  # as its own config says


def check(config: Config, folder: Path, origin: str) -> Seed:
    """Checks data, seed, and what only fits together with the seed; raises NasdError.

    folder: where relative paths start. origin: the config file's name, for messages.
    """
    for index, corpus in enumerate(config.data.corpora):
        for name in corpus.files:
            with _named(f"{origin}: data.mlm.corpora[{index}].files"):
                check_texts(folder / name, corpus.column)
    _check_questions(config, folder, origin)
    _check_labelled(config, folder, origin)
    hubs = {
        f"data.mlm.corpora[{index}].hub": [
            corpus.hub,
            corpus.config,
            corpus.revision,
            corpus.column,
        ]
        for index, corpus in enumerate(config.data.corpora)
        if corpus.hub
    }
    for task in config.scoring:
        source = getattr(config.data, task.data)
        if source.hub:
            hubs[f"data.{task.data}.hub"] = [
                source.hub,
                getattr(source, "config", None),
                source.revision,
                getattr(source, "label", "answers"),
            ]
    data = {
        "data": config.data.model_dump(mode="json"),
        "seed": config.experiment.seed,
        "stages": [stage.model_dump(mode="json") for stage in config.stages],
    }
    with _named(origin):
        seed = look_at_seed(
            config.seed_model.source,
            folder,
            hubs,
            data,
            config.teacher,
            (config.teacher or Teacher()).of(config.data).limit(config.data),
            config.seed_model.vocabulary,
        )
    check_seed(config, seed, origin)
    _check_measure(config, origin)
    task = config.scoring[0]
    if config.scores_seed and (task.kind not in seed.heads or seed.fault):
        why = seed.fault if task.kind in seed.heads else ""
        raise NasdError(f"{origin}: {seed_head.missing(config.seed_model.source, task, why)}")
    reads = tasks.reading(config.stages, tasks.MLM.data)
    if reads and not seed.has_mlm_head and not any(stage.train == "head" for stage in reads):
        raise NasdError(
            f"{origin}: stages: the seed {config.seed_model.source} brings no MLM head; add a"
            f' stage with task = {tasks.one_of(tasks.allowing("head"))}, train = "head",'
            ' who = "baseline" to train one first'
        )
    return seed


def check_seed(config: Config, seed: Seed, origin: str) -> None:
    """Raises NasdError where the seed does not fit the config, or its search space."""
    backbone = seed.backbone
    check_against_seed(config, backbone, origin)
    kept, own = config.seed_model.vocabulary, seed.baseline.frequent
    if kept is not None and kept <= own:
        raise NasdError(
            f"{origin}: seed_model.vocabulary: {own:,} frequent words of the seed have embeddings"
            " of their own; keep more tokens than that"
        )
    with _named(origin):
        check_space(config.search_space, backbone.width)
    try:
        check_genotype(seed.baseline, config.search_space, seed.backbone.width)
    except NasdError as error:
        raise NasdError(
            f"{origin}: search_space does not hold the seed's own architecture: {error}"
        ) from error


def look_at_seed(
    source: str,
    folder: Path,
    hubs: Mapping[str, list[str | None]] = MappingProxyType({}),
    data: Mapping[str, Any] | None = None,
    teacher: Teacher | None = None,
    tokens: int = 0,
    vocabulary: int | None = None,
) -> Seed:
    """The seed's shape, from a child process; raises NasdError if it cannot be loaded.

    hubs: config keys to the [name, config, revision, column] of data sets that have to be there as
    well.
    data: what nasd.worker.data_check is to look at, or None. teacher: is looked at where it comes
    from outside; tokens: of the longest window that it is shown. vocabulary: how many of the
    seed's tokens are kept; None: all.
    """
    outside = teacher is not None and teacher.outside
    question = {
        "source": source,
        "folder": str(folder),
        "hubs": dict(hubs),
        "data": data,
        "teacher": teacher.model_dump(mode="json") if teacher is not None and outside else None,
        "tokens": tokens,
        "vocabulary": vocabulary,
    }
    try:
        answer = child.ask("nasd.worker.check", question, timeout_seconds=SEED_TIMEOUT_SECONDS)
    except child.NoAnswer as error:
        raise NasdError(f"seed_model.source: {source} cannot be checked: {error}") from None
    return Seed(
        Backbone(**answer["backbone"]),
        Genotype.from_json(answer["baseline"]),
        answer["has_mlm_head"],
        tuple(answer["heads"]),
        answer["fault"],
        answer["known"],
        answer["attention_dropout"],
    )


def _check_measure(config: Config, origin: str) -> None:
    """What the search goes by has to be measured here."""
    with _named(origin):
        for name, why in unmeasured(config).items():
            if config.goes_by(name):
                raise NasdError(
                    f"experiment: {name} cannot be measured here: {why}; mend that, or go by"
                    " another objective"
                )


def unmeasured(config: Config) -> dict[str, str]:
    """What stages are to measure, and cannot, each with the reason; raises NasdError where nothing
    can be measured as [measure] says."""
    if not config.goes_by(LATENCY) and not any(stage.measure for stage in config.stages):
        return {}
    question = {"measure": config.measure.model_dump(mode="json")}
    try:
        found = child.ask("nasd.worker.profile", question, timeout_seconds=SEED_TIMEOUT_SECONDS)
    except child.NoAnswer as error:
        raise NasdError(f"[measure] cannot be tried: {error}") from None
    told: dict[str, str] = found["unmeasured"]
    return told


def _check_questions(config: Config, folder: Path, origin: str) -> None:
    """All faults of all files, and whether what is sound can be split."""
    qa = config.data.qa
    if qa is None or not qa.files:
        return
    with _named(f"{origin}: data.qa.files"):
        found = read_all([folder / name for name in qa.files], qa.skip_faulty, qa.no_answer)
        seed = stream_seed(config.experiment.seed, 0, "questions")
        split(found.sound, qa.train_share, qa.split_by, seed)


def _check_labelled(config: Config, folder: Path, origin: str) -> None:
    """All examples of all files, and whether there is a test part that can be learned for."""
    seed = stream_seed(config.experiment.seed, 0, "examples")
    for task in config.scoring:
        data = getattr(config.data, task.data)
        if task is not tasks.QA and data.files:
            with _named(origin):
                labelled.of_files(data, folder, seed)


@contextmanager
def _named(where: str) -> Iterator[None]:
    try:
        yield
    except NasdError as error:
        raise NasdError(f"{where}: {error}") from error
