"""What a person asks of `nasd compress`, put together and found to make sense."""

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nasd.contract.errors import NasdError

if TYPE_CHECKING:
    from nasd.contract.config import Config, Section
    from nasd.control.preflight import Seed


USUAL_STATE = "state"  # beside the config
TOKENS, STRIDE = 384, 128  # of a window of question and context, where the model has so many


@dataclass(frozen=True)
class Asked:
    """What a person wants. source, files: as the config will name them. task: that gives the score,
    by name. settings: of its section. target: share of the parameters. devices: of slots.devices,
    or "auto". vocabulary: tokens that are kept; None: all."""

    source: str
    files: tuple[str, ...]
    target: float
    path: Path
    state: str
    devices: str
    budget: float | None
    task: str
    settings: dict[str, Any]
    vocabulary: int | None

    @property
    def section(self) -> str:
        """Of the config."""
        from nasd.contract import tasks

        return f"data.{tasks.of(self.task).data}"


def asked_of(
    model: str,
    files: list[Path],
    target: float,
    config: Path | None,
    state: Path | None,
    devices: str,
    budget: float | None,
    task: str | None,
    settings: dict[str, Any],
    vocabulary: int | None,
) -> Asked:
    from nasd.contract import tasks

    if not 0 < target < 1:
        raise NasdError(
            f"--target {target:g}: give a share of the model's parameters between 0 and 1, as in"
            " --target 0.5"
        )
    named = tasks.QA.name if task is None else task
    files = [one.expanduser() for one in files]
    check_data(named, files, settings)
    folder = Path(model).expanduser()
    path = config
    if path is None:
        name = "".join(c if c.isalnum() or c in ".-_" else "-" for c in folder.name) or "model"
        path = Path(f"compress-{name}", "config.toml")
    return Asked(
        source=str(folder.resolve()) if folder.is_dir() else model,
        files=tuple(str(one.resolve()) for one in files),
        target=target,
        path=path,
        state=USUAL_STATE if state is None else str(state.expanduser().resolve()),
        devices=devices,
        budget=budget,
        task=named,
        settings=settings,
        vocabulary=vocabulary,
    )


def files_of(
    task: str | None, questions: list[Path], data: list[Path], more: list[Path]
) -> list[Path]:
    """Those of the option that the task has, and what stands behind it."""
    from nasd.contract import tasks

    known = [one.name for one in tasks.scoring()]
    if task is not None and task not in known:
        raise NasdError(f"--task {task}: there is no such task; take one of {', '.join(known)}")
    if task in (None, tasks.QA.name):
        if data:
            raise NasdError("--data: name the task that these texts with labels are for by --task")
        found = [*questions, *more]
        if not found:
            raise NasdError("--questions is missing: name a file of questions with their answers")
        return found
    if questions:
        raise NasdError(f"--questions: {task} has no use for them; name its texts by --data")
    found = [*data, *more]
    if not found:
        raise NasdError("--data is missing: name a file of texts with their labels")
    return found


def settings_of(given: list[str]) -> dict[str, Any]:
    """KEY=VALUE each; a bare word is a text."""
    import tomllib

    found: dict[str, Any] = {}
    for one in given:
        key, sign, value = one.partition("=")
        if not sign or not key.strip().isidentifier():
            raise NasdError(f"--set {one}: write KEY=VALUE, as in --set label=stars")
        try:
            found[key.strip()] = tomllib.loads(f"value = {value.strip()}")["value"]
        except tomllib.TOMLDecodeError:
            found[key.strip()] = value.strip()
    return found


def from_here(settings: dict[str, Any]) -> dict[str, Any]:
    """Files by their full names, as those of --data: the config may lie elsewhere."""
    names = settings.get("test_files")
    if not isinstance(names, list) or not all(isinstance(one, str) for one in names):
        return settings
    return settings | {"test_files": [str(Path(one).expanduser().resolve()) for one in names]}


def check_data(
    task: str, files: list[Path], settings: dict[str, Any], option: str = "--questions"
) -> None:
    """Raises NasdError where the files are not what the task trains on. option: that names them,
    where they are questions."""
    from pydantic import ValidationError

    from nasd.contract import labelled, mistakes, tasks
    from nasd.contract.config import Data
    from nasd.contract.squad import read_all

    asks = task == tasks.QA.name
    windows = {"tokens": TOKENS, "stride": min(STRIDE, _third(settings))} if asks else {}
    names = [str(one) for one in files]
    section = {tasks.of(task).data: {"files": names, **windows, **settings}}
    try:
        data = Data.model_validate(section)
    except ValidationError as error:
        raise NasdError(f"--set: {mistakes.sentence(error, section, Data)}") from None
    if not asks:
        labelled.of_files(tasks.labelled(data), Path(), 0)
        return
    assert data.qa is not None
    try:
        read_all(files, data.qa.skip_faulty, data.qa.no_answer)
    except NasdError as error:
        said = str(error)
        if option == "--questions":  # of `nasd compress`, which has no config yet
            said = re.sub(r"(in a search )?data\.qa\.(\w+) = true", r"--set \2=true", said)
        raise NasdError(f"{option}: {said}") from None


def _third(settings: dict[str, Any]) -> int:
    """Of a window that is asked for: what two of a context share at most."""
    tokens = settings.get("tokens")
    return tokens // 3 if isinstance(tokens, int) else STRIDE


def in_config(config: "Config", asked: Asked) -> "Section | None":
    """The section of the task's data."""
    found: Section | None = getattr(config.data, asked.section.removeprefix("data."))
    return found


def look(source: str, folder: Path) -> "Seed":
    from nasd.control.preflight import look_at_seed

    try:
        return look_at_seed(source, folder)
    except NasdError as error:
        raise NasdError(str(error).removeprefix("seed_model.source: ")) from None


def kept_by(asked: Asked, seed: "Seed") -> tuple["Seed", float]:
    """The seed with the tokens that are kept, and the target as a share of what they leave: so the
    search counts. Raises NasdError where nothing else would have to become smaller."""
    from nasd.contract.genotype import parameters

    if asked.vocabulary is None or asked.vocabulary >= seed.backbone.vocab_size:
        return seed, asked.target
    backbone = replace(seed.backbone, vocab_size=asked.vocabulary)
    whole, left = (parameters(seed.baseline, one) for one in (seed.backbone, backbone))
    if asked.target * whole >= left:
        raise NasdError(
            f"--vocabulary {asked.vocabulary}: with so few tokens the model has"
            f" {100 * left / whole:.0f} % of its parameters, and --target {asked.target:g} asks for"
            " no less: give a lower target, or more tokens"
        )
    return replace(seed, backbone=backbone), asked.target * whole / left
