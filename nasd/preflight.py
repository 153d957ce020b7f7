"""Everything that can be wrong before the first row is written, checked before the first row.

The seed is looked at by a child process, because that needs torch; it answers with one JSON line.
"""

import codecs
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from nasd import child
from nasd.config import Config, QaData, check_against_seed
from nasd.errors import NasdError
from nasd.genotype import Backbone, Genotype
from nasd.squad import read_squad
from nasd.variation import check_genotype

PIECE = 1 << 16  # bytes of a corpus that are looked at
SEED_TIMEOUT_SECONDS = 900  # a hub's model may have to be fetched first


@dataclass(frozen=True)
class Seed:
    backbone: Backbone
    baseline: Genotype
    has_mlm_head: bool


def check(config: Config, folder: Path, origin: str) -> Seed:
    """Checks data, seed, and what only fits together with the seed; raises NasdError.

    folder: where relative paths start. origin: the config file's name, for messages.
    """
    for index, corpus in enumerate(config.data.mlm.corpora):
        for name in corpus.files:
            _check_text(folder / name, f"{origin}: data.mlm.corpora[{index}].files")
    _check_questions(config.data.qa, folder, origin)
    hubs = {
        f"data.mlm.corpora[{index}].hub": [corpus.hub, corpus.config, corpus.revision]
        for index, corpus in enumerate(config.data.mlm.corpora)
        if corpus.hub
    }
    if config.data.qa.hub:
        hubs["data.qa.hub"] = [config.data.qa.hub, None, config.data.qa.revision]
    seed = look_at_seed(config.seed_model.source, folder, hubs)
    check_seed(config, seed, origin)
    has_head_stage = any(stage.train == "head" for stage in config.stages)
    if not seed.has_mlm_head and not has_head_stage:
        raise NasdError(
            f"{origin}: stages: the seed {config.seed_model.source} brings no MLM head; add a"
            ' stage with task = "mlm", train = "head", who = "baseline" to train one first'
        )
    return seed


def check_seed(config: Config, seed: Seed, origin: str) -> None:
    """Raises NasdError where the seed does not fit the config, or its search space."""
    check_against_seed(config, seed.backbone.width, seed.backbone.positions, origin)
    try:
        check_genotype(seed.baseline, config.search_space, seed.backbone.width)
    except NasdError as error:
        raise NasdError(
            f"{origin}: search_space does not hold the seed's own architecture: {error}"
        ) from error


def look_at_seed(
    source: str, folder: Path, hubs: Mapping[str, list[str | None]] = MappingProxyType({})
) -> Seed:
    """The seed's shape, from a child process; raises NasdError if it cannot be loaded.

    hubs: config keys to the [name, config, revision] of data sets that have to be there as well.
    """
    question = {"source": source, "folder": str(folder), "hubs": dict(hubs)}
    try:
        answer = child.ask("nasd.worker.check", question, timeout_seconds=SEED_TIMEOUT_SECONDS)
    except child.NoAnswer as error:
        raise NasdError(f"seed_model.source: {source} cannot be checked: {error}") from None
    return Seed(
        Backbone(**answer["backbone"]),
        Genotype.from_json(answer["baseline"]),
        answer["has_mlm_head"],
    )


def _check_text(path: Path, key: str) -> None:
    try:
        with path.open("rb") as file:
            start = file.read(PIECE)
    except OSError as error:
        raise NasdError(f"{key}: {path} cannot be read: {error.strerror}") from error
    if not start.strip():
        raise NasdError(f"{key}: {path} is empty")
    try:
        # The piece may end within a character.
        codecs.getincrementaldecoder("utf-8")().decode(start, final=len(start) < PIECE)
    except UnicodeDecodeError as error:
        raise NasdError(f"{key}: {path} is not UTF-8 text ({error.reason})") from error


def _check_questions(data: QaData, folder: Path, origin: str) -> None:
    for name in data.files:
        try:
            read_squad(folder / name)
        except NasdError as error:
            raise NasdError(f"{origin}: data.qa.files: {error}") from error
