"""TensorBoard event files, written without torch, so that both planes can."""

import time
from pathlib import Path
from types import TracebackType
from typing import Self

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.compat.proto.types_pb2 import DT_STRING
from tensorboard.summary.writer.event_file_writer import EventFileWriter


class Summaries:
    """One run folder. With `resume_step`, TensorBoard forgets what an earlier attempt wrote from
    that step on, so that a resumed curve has no doubled points."""

    def __init__(self, folder: Path, resume_step: int | None = None) -> None:
        self._writer = EventFileWriter(str(folder))
        if resume_step is not None:
            start = SessionLog(status=SessionLog.START)
            self._add(Event(session_log=start), resume_step)

    def scalars(self, values: dict[str, float], step: int) -> None:
        summary = Summary(value=[Summary.Value(tag=t, simple_value=v) for t, v in values.items()])
        self._add(Event(summary=summary), step)

    def text(self, tag: str, markdown: str, step: int) -> None:
        tensor = TensorProto(
            dtype=DT_STRING,
            string_val=[markdown.encode()],
            tensor_shape=TensorShapeProto(dim=[TensorShapeProto.Dim(size=1)]),
        )
        metadata = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="text"))
        value = Summary.Value(tag=f"{tag}/text_summary", metadata=metadata, tensor=tensor)
        self._add(Event(summary=Summary(value=[value])), step)

    def _add(self, event: Event, step: int) -> None:
        event.wall_time = time.time()
        event.step = step
        self._writer.add_event(event)

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
