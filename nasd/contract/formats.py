"""What a file of data is, told from its content, and its text or rows, from exactly that file.

No name is a pattern here, whatever characters it has. Read are plain text, JSON, JSON lines and
CSV, each also gzipped, and Parquet; anything else that is known is refused by its true name. A byte
order mark is no part of a text: it says how the text is encoded, where that is not UTF-8.
"""

import codecs
import csv
import gzip
import io
import json
import re
import stat
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

from nasd.contract.errors import NasdError
from nasd.contract.readable import shown

Form = Literal["text", "JSON", "JSON lines", "CSV", "Parquet"]

PIECE = 1 << 16  # bytes that are looked at
LONGEST_LINE = 1 << 24  # bytes of a first line that may be the first of JSON lines
BLOCK = 1 << 22  # bytes that are decoded at once
ROWS = 1000  # of a Parquet file at once
LONGEST_FIELD = 1 << 30  # characters of CSV; Python's own limit is that of a short paragraph
GZIP, PARQUET = b"\x1f\x8b", b"PAR1"
BOMS = {
    b"\xef\xbb\xbf": "utf-8-sig",
    b"\xff\xfe\x00\x00": "utf-32",
    b"\x00\x00\xfe\xff": "utf-32",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
}
REFUSED = {
    b"PK\x03\x04": "a zip archive",
    b"BZh91AY&SY": "compressed by bzip2",
    b"\xfd7zXZ\x00": "compressed by xz",
    b"\x28\xb5\x2f\xfd": "compressed by Zstandard",
    b"%PDF-": "a PDF",
    b"ARROW1": "an Arrow file",
    b"\xff\xff\xff\xff": "an Arrow stream",
    b"SQLite format 3\x00": "a SQLite database",
    b"version https://git-lfs.github.com/spec/": "a pointer of Git LFS, without the file's content",
}
DELIMITERS = {",": "a comma", ";": "a semicolon", "\t": "a tab"}  # of CSV, the usual one first
TAR_AT, TAR = 257, b"ustar"
# How an object begins, or a list of objects.
JSON_BEGINS = re.compile(r'\s*(\{\s*"[^"]*"\s*:|\{\s*\}|\[\s*\{\s*"|\[\s*\]\s*$)')


@dataclass(frozen=True)
class Look:
    """What a file is. encoding: of its text."""

    form: Form
    zipped: bool = False
    encoding: str = "utf-8"


def look(path: Path) -> Look:
    """Raises NasdError where the file cannot be read, is empty, or is nothing that is read here."""
    with _reading(path):
        if stat.S_ISFIFO(path.stat().st_mode):  # to open it would wait for somebody to write
            raise NasdError(f"{path} is a pipe: name a file")
        with path.open("rb") as file:
            start = file.read(PIECE)
    if start.startswith(PARQUET):
        return Look("Parquet")
    zipped = start.startswith(GZIP)
    if zipped:
        with _reading(path), gzip.open(path) as file:
            start = file.read(PIECE)
    told = next((name for begin, name in REFUSED.items() if start.startswith(begin)), None)
    if start[TAR_AT:].startswith(TAR):
        told = "a tar archive"
    elif zipped and start.startswith((PARQUET, GZIP)):
        told = "packed once more"
    if told is not None:
        what = f"gzipped, and what is inside is {told}" if zipped else told
        raise NasdError(
            f"{path} is {what}: give plain text, JSON, JSON lines or CSV, gzipped or not, or"
            " Parquet"
        )
    encoding = next((name for bom, name in BOMS.items() if start.startswith(bom)), "utf-8")
    return Look(_form(path, zipped, encoding), zipped, encoding)


def _form(path: Path, zipped: bool, encoding: str) -> Form:
    with _text(path, zipped, encoding) as file:
        first = "\n"
        while first and not first.strip():
            first = file.readline(LONGEST_LINE)
        if not first:
            raise NasdError(f"{path} is empty")
        if path.name.lower().removesuffix(".gz").endswith((".csv", ".tsv")):
            return "CSV"
        rest = file.readline(LONGEST_LINE)
    try:
        found = json.loads(first)
    except (ValueError, RecursionError):
        return "JSON" if JSON_BEGINS.match(first + rest) else "text"
    if isinstance(found, dict) and found:
        document = isinstance(found.get("data"), list) and not rest.strip()  # as SQuAD's is
        return "JSON" if document else "JSON lines"
    return "JSON" if isinstance(found, dict) or JSON_BEGINS.match(first) else "text"


def content(path: Path, seen: Look) -> str:
    """All of a text."""
    with _text(path, seen.zipped, seen.encoding) as file:
        return file.read()


def texts(path: Path, column: str) -> Iterator[str]:
    """The records of a corpus: lines of plain text, or what stands in a column; raises NasdError
    naming the place. What is missing or null in a row is an empty text."""
    seen = look(path)
    if seen.form == "JSON":
        raise NasdError(
            f"{path} is a JSON document and no corpus of text: give plain text, JSON lines, CSV or"
            " Parquet"
        )
    if seen.form == "text":
        with _text(path, seen.zipped, seen.encoding) as file:
            for line in file:
                yield line.rstrip("\n")
        return
    for number, row in enumerate(rows(path, seen, column), start=1):
        value = row.get(column)
        if not isinstance(value, str | None):
            raise NasdError(
                f"{path}: row {number}: {column!r} holds {shown(value)}, which is no text; set"
                " column to one of texts"
            )
        yield value or ""


def rows(path: Path, seen: Look, column: str | None = None) -> Iterator[dict[str, Any]]:
    """The rows of JSON lines, CSV or Parquet. column: the only one that is needed; raises NasdError
    where the first row has none of its name."""
    match seen.form:
        case "JSON lines":
            found = _json_lines(path, seen)
        case "CSV":
            found = _csv(path, seen)
        case "Parquet":
            found = _parquet(path, column)
        case _:
            raise AssertionError(f"{seen.form} has no rows")
    for number, row in enumerate(found):
        if number == 0 and column is not None:
            _check_column(path, seen.form, column, row)
        yield row


def check_texts(path: Path, column: str) -> None:
    """Reads a corpus to its end, and raises NasdError as `texts` does; plain text is only decoded,
    which is quicker."""
    seen = look(path)
    if seen.form != "text":
        if not sum(bool(text.strip()) for text in texts(path, column)):
            raise NasdError(f"{path} has no text in {column!r}")
        return
    decoder = codecs.getincrementaldecoder(seen.encoding)()
    with _bytes(path, seen.zipped) as file, _reading(path):
        while block := file.read(BLOCK):
            decoder.decode(block)
        decoder.decode(b"", final=True)


def _check_column(path: Path, form: Form, column: str, names: Any) -> None:
    if column not in names:
        there = shown(", ".join(map(str, names)), 200, str)
        raise NasdError(f"{path} is {form}, and has no column {column!r}, only {there}; set column")


def _json_lines(path: Path, seen: Look) -> Iterator[dict[str, Any]]:
    with _text(path, seen.zipped, seen.encoding) as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                said = str(error).partition(";")[0]
                raise NasdError(f"{path}: line {number} is not valid JSON ({said})") from None
            if not isinstance(row, dict):
                raise NasdError(f"{path}: line {number} must be an object, not {shown(row)}")
            yield row


def _csv(path: Path, seen: Look) -> Iterator[dict[str, Any]]:
    csv.field_size_limit(LONGEST_FIELD)
    with _text(path, seen.zipped, seen.encoding, newline="") as file:
        delimiter = _delimiter(path, file.readline(LONGEST_LINE))
        file.seek(0)
        reader = csv.DictReader(file, delimiter=delimiter, strict=True)
        try:
            for row in reader:
                if any(rest := row.pop(None, ())):
                    named = len(reader.fieldnames or ())
                    raise NasdError(
                        f"{path}: line {reader.line_num} has {named + len(rest)} fields, and the"
                        f" first line names {named}: put a text with {DELIMITERS[delimiter]} in it"
                        " in double quotes"
                    )
                yield row
        except csv.Error as error:
            raise NasdError(f"{path}: line {reader.line_num} is not valid CSV ({error})") from None


def _delimiter(path: Path, header: str) -> str:
    """Between fields: tabs in .tsv, and else commas, or what stands in a header without one, as
    semicolons do where numbers have decimal commas."""
    if path.name.lower().removesuffix(".gz").endswith(".tsv"):
        return "\t"
    return next((one for one in DELIMITERS if one in header), ",")


def _parquet(path: Path, column: str | None) -> Iterator[dict[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    # The file itself, and not its name, in which pyarrow might see an address.
    with _reading(path), path.open("rb") as file:
        try:
            table = pyarrow.parquet.ParquetFile(file)
            if column is not None:
                _check_column(path, "Parquet", column, table.schema_arrow.names)
            columns = None if column is None else [column]
            for batch in table.iter_batches(batch_size=ROWS, columns=columns):
                yield from batch.to_pylist()
        except pyarrow.ArrowException as error:
            said = (str(error).splitlines() or [repr(error)])[0]
            raise NasdError(f"{path} is damaged Parquet ({said})") from None


def _bytes(path: Path, zipped: bool) -> IO[bytes]:
    with _reading(path):
        return gzip.open(path) if zipped else path.open("rb")  # type: ignore[return-value]


@contextmanager
def _text(
    path: Path, zipped: bool, encoding: str, newline: str | None = None
) -> Iterator[io.TextIOWrapper]:
    with (
        _bytes(path, zipped) as file,
        _reading(path),
        io.TextIOWrapper(file, encoding, newline=newline) as text,
    ):
        yield text


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """What goes wrong in reading the file, in one sentence."""
    try:
        yield
    except UnicodeError as error:
        raise NasdError(f"{path} is not UTF-8 text ({getattr(error, 'reason', error)})") from None
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise NasdError(f"{path} is damaged gzip ({error}): fetch it again") from None
    except FileNotFoundError:
        raise NasdError(f"there is no file {path}: correct its path") from None
    except OSError as error:
        said = error.strerror or str(error).splitlines()[0]
        raise NasdError(f"{path} cannot be read: {said}") from None
