"""The configs that `nasd init` writes. The thesis's is the config.toml of this repository."""

import json
import os
import tempfile
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any

from nasd.contract import config, toml, written
from nasd.contract.errors import NasdError
from nasd.contract.protocol import write_atomically

# From a config, where it will lie, and the keys that are fixed, to values for others, in words.
Fit = Callable[[config.Config, Path, frozenset[str]], tuple[Mapping[str, Any], Sequence[str]]]
PRESETS = ("thesis", "compress", "minilm", "demo", "minilm-thesis", "demo-thesis")


def preset_text(name: str) -> str:
    """The TOML text of a preset; raises NasdError for a name that is none."""
    if name not in PRESETS:
        raise NasdError(f"there is no preset {name!r}: take one of {', '.join(PRESETS)}")
    return resources.files(__name__).joinpath(f"{name}.toml").read_text(encoding="utf-8")


def write_preset(
    name: str,
    folder: Path,
    settings: Sequence[str],
    force: bool,
    fit: Fit | None = None,
    tell: Callable[[str], None] = lambda line: None,
    tasks: Sequence[str] = (),
    files: Sequence[str] = (),
) -> Path:
    """Writes config.toml into `folder`, with each KEY=VALUE of `settings` put in its place.

    tasks: names of those that it is for; () for questions. files: the data of a single one.

    fit: chooses values for what `settings` leaves open; `tell` is told each choice, a line each.

    The result is checked before it is written. The demo's data is made beside it. A stage is
    addressed by its name: stages.finetune.epochs=2. force: in the place of a config that is there,
    which then lies beside it with another name, unless it is the same.
    """
    import tomlkit

    text = preset_text(name)
    if tasks:
        from nasd.presets.purposes import for_tasks

        text = for_tasks(text, name, tasks, files)
    document = tomlkit.parse(text)
    for setting in settings:
        _set(document, setting)
    text = tomlkit.dumps(document)
    path = folder / "config.toml"
    config.parse(tomllib.loads(text), f"{name} with --set" if settings else name)
    if os.path.lexists(path) and not force:
        raise NasdError(
            f"{path} is there already: choose another folder, or write over it with --force"
        )
    made = folder / "demo-data" if name.startswith("demo") else None
    if fit is not None:
        fixed = frozenset(one.partition("=")[0].strip() for one in settings)
        with _demo_data_beside(path, made) as place:
            keys, told = fit(config.parse(tomllib.loads(text), name), place, fixed)
        for key, value in keys.items():
            _set(document, f"{key}={value}")
        for line in (*(f"{key} as set" for key in sorted(fixed)), *told):
            tell(line)
        text = tomlkit.dumps(document)
        config.parse(tomllib.loads(text), f"{name} with --budget-gpu-hours")
    if folder.is_file():
        raise NasdError(f"{folder} is a file: name the folder that the config is to lie in")
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise NasdError(f"{path} is no file of its own: choose another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if path.exists() and path.read_bytes() != text.encode():
            written.aside(path)
    except OSError as error:
        raise NasdError(f"{folder} cannot be written: {error.strerror}") from error
    if made is not None:
        from nasd.presets.demo import write_demo_data

        write_demo_data(made)
    write_atomically(path, text.encode())
    return path


@contextmanager
def _demo_data_beside(path: Path, made: Path | None) -> Iterator[Path]:
    """The config's path, or where there are to be data beside it that are yet to be made, one in a
    temporary folder with them."""
    if made is None or made.exists():
        yield path
        return
    from nasd.presets.demo import write_demo_data

    with tempfile.TemporaryDirectory(prefix="nasd-init-") as folder:
        write_demo_data(Path(folder) / made.name)
        yield Path(folder) / path.name


def rewritten(name: str, head: str, values: Mapping[str, Any]) -> str:
    """The preset's text under another head of comments, with these keys put in their places; one
    whose value is None is taken out."""
    import tomlkit

    text = preset_text(name)
    document = tomlkit.parse(head + text[text.index("\n[") :])
    for key, value in values.items():
        if value is None:
            *above, last = key.split(".")
            place: Any = document
            for part in above:
                place = _below(place, part, key)
            del place[last]
            continue
        _set(document, f"{key}={json.dumps(value, ensure_ascii=False)}")
    return tomlkit.dumps(document)


def put_into(path: Path, values: Mapping[str, Any]) -> None:
    """These keys into a config file, the rest of which stays as it is written."""
    import tomlkit

    document = tomlkit.parse(path.read_text(encoding="utf-8-sig"))
    for key, value in values.items():
        _set(document, f"{key}={toml.written(value)}")
    text = tomlkit.dumps(document)
    config.parse(tomllib.loads(text), str(path))
    try:
        write_atomically(path, text.encode())
    except OSError as error:
        raise NasdError(f"{path} cannot be written: {error.strerror}") from error


def _set(document: Any, setting: str) -> None:
    import tomlkit

    key, found, value = setting.partition("=")
    *above, last = key.strip().split(".")
    if not found or not all((*above, last)):
        raise NasdError(f"--set {setting}: write KEY=VALUE, as in --set experiment.seed=3")
    try:
        parsed = tomlkit.value(value.strip())
    except (tomlkit.exceptions.ParseError, ValueError):
        parsed = tomlkit.string(value.strip())  # a bare word or path is meant as a string
    place = document
    for part in above:
        place = _below(place, part, key)
    if not isinstance(place, dict):
        raise NasdError(f"--set {key}: {'.'.join(above)} is not a section, so it has no {last}")
    place[last] = parsed


def _below(place: Any, part: str, key: str) -> Any:
    if isinstance(place, list):
        for one in place:
            if isinstance(one, dict) and one.get("name") == part:
                return one
        raise NasdError(f"--set {key}: there is no stage {part!r}")
    if not isinstance(place, dict):
        raise NasdError(f"--set {key}: what stands above {part} is not a section")
    if part not in place:
        import tomlkit

        place[part] = tomlkit.table()
    return place[part]
