"""Checks of what the search starts from: the hub, the seed, and the data."""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from nasd.contract import seed_head, tasks, words
from nasd.contract.config import PREPARE
from nasd.control import preflight
from nasd.views import caveats
from nasd.views.doctor.case import Case, Finding

HUB_SECONDS = 5.0  # for an answer of the hub's
CACHES = ("mlm_cache", "qa_cache", "labelled_cache")  # of what prepare has found
CALLED = {"model": "model", "dataset": "data set"}


class Source(NamedTuple):
    """Something of the hub's that a key of the config names."""

    key: str
    name: str
    kind: Literal["model", "dataset"]
    revision: str | None = None


def measure(case: Case) -> Iterator[Finding]:
    """What stages are to measure, and cannot here: it stays unmeasured."""
    for name, why in preflight.unmeasured(case.config).items():
        mark: Literal["bad", "note"] = "bad" if case.config.goes_by(name) else "note"
        yield Finding("measure", mark, f"{name} stays unmeasured: {why}")


def hub(case: Case) -> Iterator[Finding]:
    """Whether what the config takes from the hub is cached, or can be had from there."""
    wanted = [] if case.prepared else list(_of_hub(case))
    if not wanted:
        return
    missing = [one for one in wanted if not _is_cached(one)]
    if not missing:
        names = ", ".join(one.name for one in wanted)
        yield Finding("hub", "good", f"not needed: there is a local cache of {names}")
        return
    for one in missing:
        trouble = _trouble(one)
        if trouble:
            case.sources_missing = True
            yield Finding("hub", "bad", trouble)
            return  # of an unreachable hub once is enough
    yield Finding("hub", "good", f"has {', '.join(one.name for one in missing)}")


def _of_hub(case: Case) -> Iterator[Source]:
    seed, data = case.config.seed_model.source, case.config.data
    if not _is_local(case, seed):
        yield Source("seed_model.source", seed, "model")
    teacher = case.config.teacher
    if (
        teacher is not None
        and teacher.outside
        and not _is_local(case, teacher.source, "teacher.source")
    ):
        yield Source("teacher.source", teacher.source, "model")
    for index, corpus in enumerate(data.corpora):
        if corpus.hub:
            yield Source(f"data.mlm.corpora[{index}].hub", corpus.hub, "dataset", corpus.revision)
    for task in tasks.all_scored(data):
        source = getattr(data, task.data)
        if source.hub:
            yield Source(f"data.{task.data}.hub", source.hub, "dataset", source.revision)


def _is_local(case: Case, source: str, key: str = "seed_model.source") -> bool:
    if source.startswith("package:"):
        return True
    return (case.folder / words.path(Path(source), key)).is_dir()


def _is_cached(one: Source) -> bool:
    """Whether anything of it is; whether it is whole, its reader will see."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    home = Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=one.name, repo_type=one.kind))
    return any((home / "snapshots").glob("*/*"))


def _trouble(one: Source) -> str:
    """Why the hub does not give it, and what to do; "" if it does."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    what = f"{one.key}: the {CALLED[one.kind]} {one.name}"
    try:
        HfApi().repo_info(one.name, repo_type=one.kind, revision=one.revision, timeout=HUB_SECONDS)
    except HFValidationError:
        return f"{what} is neither a folder below the config's nor a name of the hub"
    except GatedRepoError:
        return f"{what} is gated: accept its terms on its page, then log in with `hf auth login`"
    except RepositoryNotFoundError:
        return f"{what} is not on the hub, or private: check the name, or use `hf auth login`"
    except RevisionNotFoundError:
        return f"{what} has no revision {one.revision}: check the name"
    except Exception as error:  # of many kinds: name resolution, proxies, time-outs, offline mode
        said = (str(error).splitlines() or [repr(error)])[0]
        return (
            f"{what} is not cached, and {constants.ENDPOINT} cannot be reached ({said}): mend the"
            " network, name a mirror with HF_ENDPOINT, or bring it along: as files that the config"
            f" names, or by copying {constants.HF_HUB_CACHE} of a machine that has it"
        )
    return ""


def seed(case: Case) -> Iterator[Finding]:
    """Before the first run, whether seed and data can be read, and fit together and the config."""
    if case.begun or case.sources_missing:
        return
    found = preflight.check(case.config, case.folder, str(case.path))
    case.backbone, case.baseline = found.backbone, found.baseline
    yield Finding("seed", "good", "seed and data can be read; nothing has begun yet")
    kept, scored = seed_head.kept_by(case.config.stages), case.config.scoring
    for task in scored:
        if (has := task.name in found.heads) or kept:
            about = seed_head.about(task, has, kept, seed_head.among(scored))
            yield Finding("seed", "good", f"{case.config.seed_model.source}: {about}")
    own = case.config.seed_model.dropout
    dropout = found.attention_dropout if own is None else own
    if dropout and case.devices and not case.on_gpus:
        yield Finding(
            "seed",
            "note",
            f"attention with a dropout of {dropout:g} is not fused on a CPU, and steps take up to"
            " twice as long; seed_model.dropout = 0.0 trains without it",
        )
    for told in caveats.of(found.known, sampled=True):
        yield Finding("data", "note", told)


def prepared(case: Case) -> Iterator[Finding]:
    """Once the data is prepared, whether it still stands, and the seed's weights with it."""
    if case.prepared is None:
        return
    weights = case.state.result(0, PREPARE)
    found = [case.prepared, *case.prepared.get("labelled_tasks", {}).values()]
    caches = (one.get(name) for one in found for name in CACHES)
    needed = [weights, *(Path(one) for one in caches if one)]
    gone = [path for path in needed if not path.is_dir()]
    for path in gone:
        yield Finding(
            "data",
            "bad",
            f"{path}, made when the search began, is gone: bring it back from a copy, or begin"
            " anew with `nasd run --fresh`",
        )
    if not gone:
        yield Finding("data", "good", "the prepared data and the seed's weights stand")
    for told in caveats.of(case.prepared):
        yield Finding("data", "note", told)
