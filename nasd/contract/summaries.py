"""TensorBoard event files, written without torch or TensorFlow, so that both planes can.

A run is a folder, and TensorBoard reads its files once each, in the order of their names. So a new
file gets a number above all others, whatever the clock says, and begins by telling from which step
on the earlier ones no longer count.
"""

import io
import os
import time
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Self

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.compat.proto.types_pb2 import DT_STRING
from tensorboard.plugins.text.metadata import create_summary_metadata as text_metadata
from tensorboard.summary.writer.record_writer import RecordWriter

FORMAT = "brain.Event:2"  # what TensorBoard asks of a file whose session starts it shall heed
PREFIX = "events.out.tfevents."


class Summaries:
    """A run's new file, which grows while a worker trains. Of what the run's earlier files say,
    TensorBoard forgets the steps from `forget_from` on, so a resumed curve has no doubled points.
    """

    def __init__(self, folder: Path, forget_from: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file = _next_file(folder).open("xb")
        self._records = RecordWriter(self._file)
        for event in _start(forget_from, time.time()):
            self._records.write(event.SerializeToString())

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Appended, and with the operating system when this returns."""
        self._records.write(scalars(values, step, time.time()).SerializeToString())
        self._file.flush()

    def sync(self) -> None:
        """To the disk, where a power cut does not reach it."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def write_run(folder: Path, events: Iterable[Event], at: float) -> bool:
    """Makes a run say these events and nothing else; whether it did not yet.

    The new file is whole or not there. The older ones stay, as a TensorBoard that is reading one of
    them would not get past its end. at: seconds since the epoch, of the file's beginning.
    """
    data = b"".join(_record(event.SerializeToString()) for event in (*_start(0, at), *events))
    files = _files(folder)
    if files and files[-1].read_bytes() == data:
        return False
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / ".new"
    temporary.write_bytes(data)
    temporary.rename(_next_file(folder))
    return True


def scalars(
    values: Mapping[str, float], step: int, at: float, about: Mapping[str, str] | None = None
) -> Event:
    """about: what a tag's chart says of itself."""
    summary = Summary()
    for tag, value in values.items():
        one = summary.value.add(tag=tag, simple_value=value)
        if about and tag in about:
            one.metadata.summary_description = about[tag]
    return Event(summary=summary, step=step, wall_time=at)


def text(tag: str, markdown: str, at: float) -> Event:
    return value(tag, text_metadata(None, None), at, string(markdown))


def value(
    tag: str, metadata: SummaryMetadata, at: float, tensor: TensorProto | None = None
) -> Event:
    """What a plugin reads. Of metadata, TensorBoard heeds the first that a run's tag comes with."""
    one = Summary.Value(tag=tag, metadata=metadata, tensor=tensor)
    return Event(summary=Summary(value=[one]), step=0, wall_time=at)


def string(content: str | bytes) -> TensorProto:
    """A tensor without dimensions."""
    data = content.encode() if isinstance(content, str) else content
    return TensorProto(dtype=DT_STRING, string_val=[data], tensor_shape=TensorShapeProto())


def _start(forget_from: int, at: float) -> tuple[Event, Event]:
    session = SessionLog(status=SessionLog.START)
    return (
        Event(file_version=FORMAT, wall_time=at),
        Event(session_log=session, step=forget_from, wall_time=at),
    )


@lru_cache(maxsize=8192)
def _record(event: bytes) -> bytes:
    """As it stands in a file, between its checksums. TensorBoard works those out byte by byte in
    Python, and from one writing of a run to the next most events are the same."""
    file = io.BytesIO()
    RecordWriter(file).write(event)
    return file.getvalue()


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"{PREFIX}*"))


def _next_file(folder: Path) -> Path:
    """Ten digits, as TensorBoard's own files begin with the seconds since the epoch."""
    numbers = [path.name.removeprefix(PREFIX).partition(".")[0] for path in _files(folder)]
    last = max((int(number) for number in numbers if number.isdecimal()), default=0)
    return folder / f"{PREFIX}{last + 1:010d}"
