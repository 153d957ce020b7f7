"""Data sets of the hub, or in a folder, through `datasets`: the one that the config names.

`datasets` takes a name for a folder of the current one where there is such a folder, and the name
of a folder for a pattern: both would read something else, and are refused.
"""

import re
from pathlib import Path
from typing import Any

from nasd.contract.config import Corpus, LabelledData, QaData
from nasd.contract.errors import NasdError
from nasd.worker.training.progress import DOWNLOAD, Progress

PATTERN = re.compile(r"[*?\[\]{}]|::|://")  # what is no plain name to fsspec


def place(name: str, key: str, base: Path) -> str:
    """The folder of that name, relative to `base`, or else the name on the hub; raises NasdError
    where `datasets` would read another. key: of the config, for messages."""
    folder = base / name
    if folder.is_dir():
        found = str(folder.resolve())
        if sign := PATTERN.search(found):
            raise NasdError(
                f"{key}: {found} cannot be read as a data set, because {sign.group()!r} in its name"
                " would be a pattern: rename it, or name its files with files"
            )
        return found
    if Path(name).exists():
        raise NasdError(
            f"{key}: {Path(name).resolve()} in the current folder would be read in the place of the"
            " hub's data set: start nasd in another folder, or name a folder by its whole path"
        )
    return name


def load(
    source: Corpus | QaData | LabelledData,
    key: str,
    base: Path,
    progress: Progress,
    split: str | None = None,
) -> Any:
    """The rows of the data set that a section of the config names; raises NasdError. split: another
    than its own."""
    import datasets

    assert source.hub is not None
    name = place(source.hub, key, base)
    datasets.disable_progress_bars()
    progress("downloading", patience=DOWNLOAD)
    config, own = (None, "train") if isinstance(source, QaData) else (source.config, source.split)
    split = split or own
    try:
        return datasets.load_dataset(name, config, revision=source.revision, split=split)
    except Exception as error:  # of many kinds: the name, the network, the disk, the files
        said = (str(error).splitlines() or [repr(error)])[0]
        raise NasdError(f"{key}: {source.hub} cannot be read: {said}") from error
