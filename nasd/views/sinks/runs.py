"""What TensorBoard's files say of a candidate, of a generation's decision or of the search, as the
trackers of others know it: one run each, with curves, numbers, words and features."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.plugins.hparams import metadata as hparams_plugin
from tensorboard.plugins.hparams.api_pb2 import STATUS_FAILURE
from tensorboard.plugins.text import metadata as text_plugin

from nasd.contract.summaries import PREFIX

ALONE = ("baseline", "search")  # of no generation
LATEST = "results/"  # numbers with this before their name change; what counts is the last one


@dataclass(frozen=True)
class Point:
    value: float
    at: float  # seconds since the epoch


Curve = dict[int, Point]  # by step


@dataclass
class Run:
    """What stands of it by now, each step once.

    name: as TensorBoard's, `gen01/c0005`. curves: by the folder below it (`mlm`; of a run without
    any its own last name), then by tag. results: by tag. features: numbers are the genotype's, and
    never change; words may. card: Markdown, "" for none. began, ended: seconds since the epoch.
    """

    name: str
    curves: dict[str, dict[str, Curve]] = field(default_factory=dict)
    results: dict[str, Point] = field(default_factory=dict)
    features: dict[str, float | str] = field(default_factory=dict)
    card: str = ""
    began: float = 0.0
    ended: float | None = None
    failed: bool = False

    @property
    def group(self) -> str:
        """The generation that it is of."""
        return self.name.partition("/")[0]

    @property
    def kind(self) -> str:
        """candidate, cutoff, selection, baseline or search."""
        last = self.name.rpartition("/")[2]
        return "candidate" if last[:1] == "c" and last[1:].isdecimal() else last


def names(board: Path) -> Iterator[str]:
    """Of the runs below TensorBoard's folder, in order."""
    for name in sorted(path.name for path in board.iterdir() if path.is_dir()):
        if name in ALONE:
            yield name
        else:
            yield from (f"{name}/{one.name}" for one in sorted((board / name).iterdir()))


def told(folder: Path) -> tuple[str, str]:
    """Other texts once there is more to read: of what the daemon says of it, and its workers."""
    below = [file for one in _folders(folder) for file in _files(one)]
    return _amount(_files(folder)), _amount(below)


def read(board: Path, name: str) -> Run:
    folder, run = board / name, Run(name)
    texts: list[str] = []
    instants: list[float] = []
    for event in _events(_files(folder)[-1:]):  # each of the daemon's tells all that there is
        for value in event.summary.value:
            plugin = value.metadata.plugin_data
            if value.HasField("simple_value"):
                point = Point(value.simple_value, event.wall_time)
                if value.tag.startswith(LATEST):
                    run.results[value.tag] = point
                else:
                    curves = run.curves.setdefault(folder.name, {})
                    curves.setdefault(value.tag, {})[event.step] = point
            elif plugin.plugin_name == text_plugin.PLUGIN_NAME:
                texts.append(value.tensor.string_val[0].decode())
                instants.append(event.wall_time)
            elif plugin.plugin_name == hparams_plugin.PLUGIN_NAME:
                _take(run, value.tag, plugin.content)
    run.card = "\n\n".join(texts)
    for one in _folders(folder):
        if curves := _trained(one):
            run.curves[one.name] = curves
    instants += (p.at for each in run.curves.values() for c in each.values() for p in c.values())
    run.began = run.began or min(instants, default=0.0)
    if run.kind in ("cutoff", "selection"):
        run.ended = max(instants, default=0.0)
    return run


def _take(run: Run, tag: str, content: bytes) -> None:
    """What HParams knows of a session."""
    if tag == hparams_plugin.SESSION_START_INFO_TAG:
        start = hparams_plugin.parse_session_start_info_plugin_data(content)
        run.began = start.start_time_secs
        for name, feature in start.hparams.items():
            kind = feature.WhichOneof("kind")
            run.features[name] = getattr(feature, kind)
    elif tag == hparams_plugin.SESSION_END_INFO_TAG:
        end = hparams_plugin.parse_session_end_info_plugin_data(content)
        run.ended, run.failed = end.end_time_secs, end.status == STATUS_FAILURE


def _trained(folder: Path) -> dict[str, Curve]:
    """A worker's curves, by tag. Where a later file begins, what it tells again does not count, as
    nasd.contract.summaries writes it."""
    curves: dict[str, Curve] = {}
    for event in _events(_files(folder)):
        if event.session_log.status == SessionLog.START:
            for curve in curves.values():
                for step in [step for step in curve if step >= event.step]:
                    del curve[step]
        for value in event.summary.value:
            point = Point(value.simple_value, event.wall_time)
            curves.setdefault(value.tag, {})[event.step] = point
    return {tag: curve for tag, curve in curves.items() if curve}


def _events(files: list[Path]) -> Iterator[Event]:
    for file in files:
        yield from LegacyEventFileLoader(str(file)).Load()


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir())


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"{PREFIX}*"))


def _amount(files: list[Path]) -> str:
    return f"{len(files)} {sum(file.stat().st_size for file in files)}"
