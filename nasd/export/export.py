"""Takes a candidate home: a folder that transformers loads without nasd, with its model card.

Reads the database and the weights, and changes neither, so a daemon may be at work meanwhile. The
folder is made beside its place and put there whole; a child process writes what takes torch.
"""

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from nasd.contract import config as config_module
from nasd.contract import tasks, written
from nasd.contract.config import PREPARE, Config
from nasd.contract.errors import NasdError
from nasd.contract.protocol import Spec, read, write_atomically
from nasd.control.retention import answering_stage
from nasd.control.specs import spec
from nasd.launch import child
from nasd.record import lookup, snapshot
from nasd.record.folders import StateFolder
from nasd.record.lifecycle import State
from nasd.record.state import Candidate, Snapshot
from nasd.search import noise
from nasd.search.objectives import QUALITY
from nasd.views import card

CARD = "README.md"
WEIGHTS = "model.safetensors"
ONNX, INT8 = "model.onnx", "model-int8.onnx"
EARLIER = {  # what an export of an earlier nasd could hold
    CARD, WEIGHTS, ONNX, "config.json",
    "pretrained.py", "phenotype.py", "spans.py",
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt",
}  # fmt: skip
ONNX_MODULES = ("onnx", "onnxscript", "onnxruntime")
SHOWN = 12  # candidates in a message


@dataclass(frozen=True)
class Exported:
    candidate: int
    folder: Path
    quality: float
    size: float
    files: card.Files


def export(
    state: Path,
    name: str,
    folder: Path,
    onnx: bool = False,
    force: bool = False,
    wish: lookup.Wish = lookup.ANY,
    int8: bool = False,
    task: str | None = None,
    native: bool = False,
) -> Exported:
    """Writes the candidate of that name into `folder`; raises NasdError, and writes nothing then.

    name: its number, `baseline`, or `best`. wish: what `best` is to mean. int8: for ONNX Runtime in
    float32 and in int8, both scored on the test data, which takes minutes. task: of the search's,
    by its name; None: it has one alone. native: as one of transformers' own classes, too.
    force: replace an exported model that stands there.
    """
    folder = _expanded(folder)
    check_place(folder, force)
    if onnx or int8:
        check_onnx("--int8" if int8 else "--onnx")
    with snapshot.opened(state) as connection:
        snap = snapshot.read(connection)
    config = config_module.parse(snap.experiment.config, f"the experiment's config in {state}")
    config = config.focused(_task(config, task))
    candidate = lookup.find(
        snap, name, wish, lambda one: (_model(state, config, one) / WEIGHTS).is_file()
    )
    check_scored(candidate)
    model = _model(state, config, candidate)
    if not (model / WEIGHTS).is_file():
        raise _collected(snap, state, config, candidate)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with written.beside(folder) as beside:
            made = beside / "model"
            made.mkdir()
            told = _write(state, snap, config, candidate, made, onnx or int8, int8, native)
            compared, own = told.pop("compared"), told.pop("native")
            # As all other files: safetensors lets none but the owner read its own.
            for weights in made.rglob(WEIGHTS):
                weights.chmod((made / "config.json").stat().st_mode)
            files = card.Files(
                weights_bytes=(made / WEIGHTS).stat().st_size,
                int8=None if compared is None else _runtimes(snap, candidate, made, compared),
                native=None if own is None else card.Native(**own),
                **told,
            )
            about = card.text(snap, config, candidate, files, time.time())
            write_atomically(made / CARD, about.encode())
            written.vouch(made)
            if _of_an_earlier_nasd(folder):
                written.aside(folder)
            written.put(made, folder)
    except OSError as error:
        raise NasdError(
            f"{folder} cannot be written ({error.strerror or error}): choose another folder, or"
            " mend that"
        ) from error
    quality = snap.quality(candidate.id)
    assert quality is not None
    return Exported(candidate.id, folder, quality, snap.size(candidate.id), files)


def _task(config: Config, name: str | None) -> str:
    """That whose model is wanted; raises NasdError."""
    found = {one.data: one.name for one in config.scoring}
    if name is None and len(found) > 1:
        raise NasdError(
            f"the search has {len(found)} tasks, and a model for each: name one with --task, of"
            f" {', '.join(found)}"
        )
    if name is not None and name not in found:
        raise NasdError(f"--task: the search has no task {name}, only {', '.join(found)}")
    return found[name] if name is not None else next(iter(found.values()))


def check_place(folder: Path, force: bool) -> None:
    """Raises NasdError unless `folder` is new, empty, or a model that nasd wrote there: it may be
    replaced if nothing was changed or added since, or moved aside if it is of an earlier nasd."""
    if not _of_an_earlier_nasd(folder):
        written.check_replaceable(folder, WEIGHTS, "choose another folder")
    if folder.is_dir() and any(folder.iterdir()) and not force:
        raise NasdError(
            f"{folder} is not empty: choose another folder, or replace the model there with --force"
        )


def _of_an_earlier_nasd(folder: Path) -> bool:
    """Whether it looks like a model that was exported before nasd kept a list of what it wrote."""
    return (
        folder.is_dir()
        and not folder.is_symlink()
        and not written.vouched(folder)
        and any(folder.iterdir())
        and all(one.name in EARLIER and one.is_file() for one in folder.iterdir())
    )


def _expanded(folder: Path) -> Path:
    """With ~ in full, and no link on the way; raises NasdError for a user who is not known."""
    try:
        folder = folder.expanduser()
        return folder.parent.resolve() / folder.name if folder.name else folder.resolve()
    except (RuntimeError, OSError) as error:
        raise NasdError(f"{folder}: {error}") from None


def check_onnx(option: str) -> None:
    missing = [name for name in ONNX_MODULES if find_spec(name) is None]
    if missing:
        raise NasdError(
            f"{option} needs {', '.join(missing)}: install the extra, with `bin/setup onnx` or"
            " pip install 'nasd[onnx]'"
        )


def check_scored(candidate: Candidate) -> None:
    if candidate.state is State.SCORED:
        return
    if candidate.final:
        why = f" ({candidate.reason})" if candidate.reason else ""
        raise NasdError(
            f"candidate {candidate.id} is {candidate.state} at {candidate.stage}{why} and has no"
            " score: take a scored one, such as best"
        )
    raise NasdError(
        f"candidate {candidate.id} is {candidate.state} at {candidate.stage}: it can be exported"
        " once it is scored"
    )


def _model(state: Path, config: Config, candidate: Candidate) -> Path:
    stage = answering_stage(config, "baseline" if candidate.is_baseline else "candidates")
    return StateFolder(state).result(candidate.id, stage)


def _collected(snap: Snapshot, state: Path, config: Config, candidate: Candidate) -> NasdError:
    kept = [
        one.id
        for one in snap.individuals
        if one.state is State.SCORED and (_model(state, config, one) / WEIGHTS).is_file()
    ]
    return NasdError(
        f"the weights of candidate {candidate.id} were removed, as nobody needs them any more:"
        f" there are those of {_listed(kept) or 'no scored one'}"
    )


def _listed(numbers: Iterable[int]) -> str:
    shown = [str(number) for number in numbers]
    more = len(shown) - SHOWN
    return ", ".join(shown[:SHOWN]) + (f" and {more} more" if more > 0 else "")


def _write(
    state: Path,
    snap: Snapshot,
    config: Config,
    candidate: Candidate,
    folder: Path,
    onnx: bool,
    int8: bool,
    native: bool,
) -> dict[str, Any]:
    """Has a child write all but the card; what it tells."""
    model = _model(state, config, candidate)
    task = tasks.scored(config.data).name
    question = {
        "model": str(model.resolve()),
        "tokenizer": str(StateFolder(state).result(snap.baseline.id, PREPARE).resolve()),
        "folder": str(folder),
        "task": task,
        "settings": _settings(config, snap.task_scores(candidate.id, task) or {}),
        "source": config.seed_model.source,
        "base": config_folder(state, snap),
        "onnx": onnx,
        "native": native,
        "scoring": _scoring(state, snap, config, candidate) if int8 else None,
    }
    try:
        return child.ask("nasd.worker.export", question, child.BESIDE_A_SEARCH)
    except NasdError:
        # A daemon may collect weights at any time.
        if not (model / WEIGHTS).is_file():
            raise _collected(snap, state, config, candidate) from None
        raise
    except child.NoAnswer as error:
        raise NasdError(f"candidate {candidate.id} cannot be exported: {error}") from None


def _scoring(state: Path, snap: Snapshot, config: Config, candidate: Candidate) -> dict[str, Any]:
    """What a worker was told that scored it, but for its files for ONNX Runtime, which know one
    precision and no packing."""
    base = Path(config_folder(state, snap))
    ladder = config.ladder("baseline" if candidate.is_baseline else "candidates")
    stage = [one for one in ladder if one.train == "none" and tasks.of(one.task).scores][-1]
    then = replace(candidate, stage=stage.name)
    told = spec(snap, config, base, StateFolder(state.resolve()), then, attempt=0, slots=1)
    plain = told.model_copy(update={"precision": "float32", "packing": False, "teacher": None})
    found: dict[str, Any] = plain.model_dump(mode="json", by_alias=True)
    return found


def _runtimes(
    snap: Snapshot, candidate: Candidate, made: Path, told: dict[str, Any]
) -> card.Runtimes:
    def quality(metrics: dict[str, float]) -> float:
        found = QUALITY.value(candidate, metrics, snap.baseline)
        assert found is not None
        return found

    return card.Runtimes(
        quality=quality(told["float32"]),
        quality_int8=quality(told["int8"]),
        bytes=(made / ONNX).stat().st_size,
        bytes_int8=(made / INT8).stat().st_size,
        speed=told["speed"],
        tokens=told["tokens"],
    )


def _settings(config: Config, scores: Mapping[str, float]) -> dict[str, Any]:
    """How the model is asked, as it was scored."""
    if config.data.qa is None:
        return {"longest": tasks.labelled(config.data).tokens}
    named = {"tokens", "stride", "n_best", "max_answer_tokens"}
    threshold = {name: scores[name] for name in noise.SETTINGS if name in scores}
    return {"answering": config.data.qa.model_dump(include=named) | threshold}


def config_folder(state: Path, snap: Snapshot) -> str:
    """Where the config's relative paths start, as the first attempt was told."""
    try:
        return read(Spec, StateFolder(state).attempt(snap.attempts[0].id).spec).config_folder
    except (NasdError, IndexError):
        return str(state.resolve().parent)
