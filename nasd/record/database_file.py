"""The database as a file: opened to be read wherever it lies, and what to say where it is damaged.

Standard library alone, as a look at a search starts fast.
"""

import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import quote

WAIT_SECONDS = 10


@contextmanager
def readable(path: Path) -> Iterator[sqlite3.Connection]:
    """A read-only connection. Where SQLite may not put its own files beside the database, as on a
    file system that is read-only, it is that of a copy: nobody writes there meanwhile."""
    with tempfile.TemporaryDirectory(prefix="nasd-") if _needs_copy(path) else _nothing() as folder:
        if folder is None:
            address = f"file:{quote(str(path))}?mode=ro"
        else:
            for name in (path.name, f"{path.name}-wal"):
                if (source := path.with_name(name)).exists():
                    shutil.copyfile(source, Path(folder, name))
            address = f"file:{quote(str(Path(folder, path.name)))}"
        with closing(sqlite3.connect(address, uri=True, timeout=WAIT_SECONDS)) as connection:
            yield connection


@contextmanager
def _nothing() -> Iterator[None]:
    yield None


def _needs_copy(path: Path) -> bool:
    with closing(sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True)) as connection:
        try:
            connection.execute("SELECT 1 FROM sqlite_master LIMIT 1")
        except sqlite3.OperationalError as error:
            return error.sqlite_errorname.startswith(("SQLITE_CANTOPEN", "SQLITE_READONLY"))
        except sqlite3.DatabaseError:
            return False
    return False


def fault(connection: sqlite3.Connection) -> str:
    """What SQLite finds wrong with a database, "" if nothing: it reads all of it."""
    try:
        (answer,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.DatabaseError as error:
        answer = str(error)
    return "" if answer == "ok" else " ".join(answer.split())


def unreadable(path: Path, error: Exception) -> str:
    """What it means that the database cannot be read, in a sentence."""
    name = getattr(error, "sqlite_errorname", "SQLITE_CORRUPT")
    if name.startswith("SQLITE_CORRUPT"):
        return damaged(path, error)
    return f"{path} cannot be read: {error}"


def damaged(path: Path, why: object) -> str:
    return (
        f"{path} cannot be read: it is damaged ({why}); stop nasd and go back to a copy in"
        f' {path.parent / "backups"}, as docs/operate.md says under "When something breaks"'
    )
