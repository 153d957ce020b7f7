"""Reads event files as TensorBoard does, for tests of what it will show."""

from contextlib import suppress
from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
from tensorboard.util import tensor_util

Run = dict[str, list[tuple[int, Any]]]  # by tag: (step, number or text)


class Reader:
    """One run, as a TensorBoard sees it that has been there all along."""

    def __init__(self, folder: Path) -> None:
        self._run = EventAccumulator(str(folder), size_guidance={"tensors": 0})

    def read(self) -> Run:
        self._run.Reload()
        found: Run = {}
        for tag in self._run.Tags()["tensors"]:
            values = (
                (one.step, tensor_util.make_ndarray(one.tensor_proto))
                for one in self._run.Tensors(tag)
            )
            found[tag] = [(step, _plain(value)) for step, value in values]
        return found

    def plugin(self, name: str) -> dict[str, bytes]:
        """What a plugin finds, by tag."""
        self._run.Reload()
        known = name in self._run.ActivePlugins()
        return dict(self._run.PluginTagToContent(name)) if known else {}


def _plain(value: Any) -> Any:
    plain = value.item() if value.ndim == 0 else value.tolist()
    if isinstance(plain, bytes):
        with suppress(UnicodeDecodeError):
            return plain.decode()
    return plain


def read_run(folder: Path) -> Run:
    """One run, as a TensorBoard sees it that is started now."""
    return Reader(folder).read()


def read_board(folder: Path) -> dict[str, Run]:
    """All runs below a folder."""
    runs = sorted({path.parent for path in folder.rglob("*tfevents*")})
    return {str(run.relative_to(folder)): read_run(run) for run in runs}


def steps(run: Run, tag: str) -> list[int]:
    return [step for step, _ in run[tag]]
