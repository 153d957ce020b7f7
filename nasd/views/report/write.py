"""A report as files: the page, each figure as SVG (and PNG if asked for), each table as CSV and
Parquet.

    <folder>/  index.html  figures/  tables/  report.json

All of it is made beside the folder and put in its place when it is whole. What stands there is
replaced only as far as nasd wrote it (nasd.contract.written).
"""

import json
import re
import time
import types
import typing
from collections.abc import Sequence
from contextlib import suppress
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np

from nasd import __version__
from nasd.contract import config as config_module
from nasd.contract import protocol, written
from nasd.contract.errors import NasdError
from nasd.contract.readable import counted, hours, share_of_baseline
from nasd.record import daemon_lock, snapshot
from nasd.record.folders import StateFolder
from nasd.record.lifecycle import Phase
from nasd.record.state import Snapshot
from nasd.views.report.drawing import Drawing
from nasd.views.report.figures import drawings
from nasd.views.report.findings import TABLES, Findings
from nasd.views.report.page import render
from nasd.views.report.regret import price, stopped

MARKER = "report.json"
PAGE = "index.html"
STEERING = ("inject", "cut", "retry")  # the requests that change the story of a search
PNG_DPI = 200
SIZE, PERCENT = "size", "parameters_percent"  # compression, and what people are shown of it


def read(state: Path, now: float | None = None) -> Findings:
    """The experiment of a state folder, read-only; raises NasdError if there is none."""
    with snapshot.opened(state) as connection:
        snap = snapshot.read(connection)
        asked = tuple(snapshot.granted(connection, *STEERING))
    now = time.time() if now is None else now
    return Findings(snap, now, asked, _until(StateFolder(state), snap, now))


def _until(state: StateFolder, snap: Snapshot, now: float) -> float:
    """When attempts that the database takes for live were so last: where no daemon serves, they
    went with it."""
    if daemon_lock.held(state.lock):
        return now
    signs = [0.0]
    for attempt in snap.live_attempts:
        with suppress(NasdError):  # none yet
            signs.append(protocol.read(protocol.Heartbeat, state.attempt(attempt.id).heartbeat).at)
    return min(now, max(signs))


def default_folder(state: Path, findings: Findings) -> Path:
    name = re.sub(r"[^\w.-]+", "-", findings.snapshot.experiment.name).strip("-.")
    return StateFolder(state).reports / (name or "report")


def write(findings: Findings, folder: Path, png: bool = False) -> Path:
    """The report in a folder, in the place of an older one; the path of its page.

    png: each figure as such a file too, for which it is drawn once more.
    A report of an earlier nasd, which kept no list of what it wrote, is moved aside. Raises
    NasdError if the folder holds anything that nasd did not write, or cannot be written.
    """
    folder = folder.parent.resolve() / folder.name
    earlier = not folder.is_symlink() and not written.vouched(folder) and _is_report(folder)
    if not earlier:
        written.check_replaceable(folder, PAGE, "name another folder with --out")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with written.beside(folder) as beside:
            made = beside / "report"
            made.mkdir()
            _fill(made, findings, png)
            written.vouch(made)
            if earlier:
                written.aside(folder)
            written.put(made, folder)
    except OSError as error:
        raise NasdError(f"the report cannot be written to {folder}: {error.strerror}") from error
    return folder / PAGE


def _is_report(folder: Path) -> bool:
    """Whether it is what an earlier nasd, which kept no list, wrote, and nothing besides."""
    known = {MARKER, PAGE, "figures", "tables"}
    return (folder / MARKER).is_file() and {one.name for one in folder.iterdir()} <= known


def _fill(folder: Path, findings: Findings, png: bool) -> None:
    figures, tables = folder / "figures", folder / "tables"
    figures.mkdir()
    tables.mkdir()
    drawn = list(drawings(findings))
    for drawing in drawn:
        _figure(drawing, figures, png)
    for name in TABLES:
        _table(name, getattr(findings, name), tables)
    page = render(findings, drawn, notes(findings), png)
    (folder / PAGE).write_text(page, encoding="utf-8")
    about = {
        "nasd": __version__,
        "experiment": findings.snapshot.experiment.name,
        "at": findings.now,
        "figures": {one.name: one.missing or one.alternative for one in drawn},
        "tables": {name: len(getattr(findings, name)) for name in TABLES},
    }
    (folder / MARKER).write_text(json.dumps(about, indent=1), encoding="utf-8")


def notes(findings: Findings) -> dict[str, str]:
    """What stands below a figure, by its name."""
    candidates, newest = stopped(findings.snapshot), findings.snapshot.generation
    last = findings.config["experiment"]["generations"]
    if not candidates or newest is None or newest.phase is not Phase.COMPLETE:
        return {}
    if newest.number < last:
        return {}
    try:
        settings = config_module.parse(findings.config, "the experiment's config")
        asked = price(findings.snapshot, settings, candidates)
    except NasdError:  # a config of another version of nasd, or a stage that nobody has finished
        return {}
    return {
        "missed": f"To train the {counted(len(candidates), 'cut candidate')} of generation"
        f" {candidates[0].generation} to the end with `nasd report --regret` would take about"
        f" {hours(asked.gpu_hours)} {findings.unit} ({hours(asked.low)} at the quickest pace"
        f" measured, {hours(asked.high)} at the slowest)."
    }


def _figure(drawing: Drawing, folder: Path, png: bool) -> None:
    if drawing.figure is None:
        return
    (folder / f"{drawing.name}.svg").write_text(drawing.svg, encoding="utf-8")
    if png:
        drawing.png(folder / f"{drawing.name}.png", PNG_DPI)


def _table(name: str, rows: Sequence[Any], folder: Path) -> None:
    import pyarrow
    from pyarrow import csv, parquet

    kind = typing.get_args(typing.get_type_hints(_getter(name))["return"])[0]
    types_of = {int: pyarrow.int64(), float: pyarrow.float64(), str: pyarrow.string()}
    types_of[bool] = pyarrow.bool_()
    fields: list[tuple[str, Any]] = []
    columns: list[list[Any]] = []
    for column, hint in typing.get_type_hints(kind).items():
        values = list(map(attrgetter(column), rows))
        if typing.get_origin(hint) is dict:  # numbers by name: a column each
            names = list(values[0]) if values else []
            fields += [(one, pyarrow.float64()) for one in names]
            columns += [[value[one] for value in values] for one in names]
        else:
            fields.append((column, types_of[_plain_type(hint)]))
            columns.append(values)
    schema = pyarrow.schema(fields)
    if SIZE in schema.names and PERCENT not in schema.names:
        place = schema.get_field_index(SIZE)
        schema = schema.insert(place + 1, pyarrow.field(PERCENT, pyarrow.float64()))
        columns.insert(place + 1, [share_of_baseline(row.size) for row in rows])
    table = pyarrow.Table.from_arrays(
        [_array(column, kind) for column, kind in zip(columns, schema.types, strict=True)],
        schema=schema,
    )
    csv.write_csv(table, folder / f"{name}.csv")
    parquet.write_table(table, folder / f"{name}.parquet")


def _array(values: Sequence[Any], kind: Any) -> Any:
    """As `pyarrow.array(values, kind)`, which imports pandas first: a quarter of a second."""
    import pyarrow

    known = np.array([one is not None for one in values], bool)
    buffers = [None if known.all() else np.packbits(known, bitorder="little")]
    if kind == pyarrow.string():
        texts = [b"" if one is None else one.encode() for one in values]
        buffers.append(np.cumsum([0, *map(len, texts)], dtype=np.int32))
        buffers.append(np.frombuffer(b"".join(texts), np.uint8))
    else:
        plain = np.array([0 if one is None else one for one in values], kind.to_pandas_dtype())
        buffers.append(np.packbits(plain, bitorder="little") if plain.dtype == bool else plain)
    there = [None if one is None else pyarrow.py_buffer(one) for one in buffers]
    return pyarrow.Array.from_buffers(kind, len(values), there)


def _getter(name: str) -> Any:
    """The function behind one of TABLES."""
    return vars(Findings)[name].func


def _plain_type(hint: Any) -> type:
    """int for `int | None`."""
    if isinstance(hint, types.UnionType):
        hint = next(one for one in typing.get_args(hint) if one is not types.NoneType)
    assert isinstance(hint, type)
    return hint
