"""Keeps a tracker of others' up to what TensorBoard shows: a process of its own, beside a daemon.

    python -m nasd.views.sinks.mirror      one JSON object, a line of standard input: see Order

It ends, once all that stands is handed over, when its standard input does: so with the daemon,
however that ends. Whatever goes wrong is one sentence on its standard error, and exit code 1; the
daemon starts it again.
"""

import fcntl
import hashlib
import json
import os
import re
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from nasd.contract.errors import NasdError
from nasd.contract.protocol import write_atomically
from nasd.record.folders import StateFolder
from nasd.views.sinks import runs, sink

SAVE_SECONDS = 5.0  # between two notes of what was handed over: what is lost is handed over again
REST = 20  # it rests at least so many times as long as it has looked
IN_PASSING = {"every_minutes", "mode"}  # keys that do not say where runs go
SECRET = re.compile("KEY|TOKEN|PASS|SECRET", re.IGNORECASE)


@dataclass(frozen=True)
class Order:
    """sink: its section of the config, and settings what stands there. experiment, created_at: of
    the search. seconds: between two looks."""

    state: str
    sink: str
    settings: Mapping[str, Any]
    experiment: str
    created_at: float
    seconds: float = 30.0


class Mirror:
    """folder: of this sink, below the state folder."""

    def __init__(self, order: Order, folder: Path) -> None:
        self._order, self._folder = order, folder
        self._board = StateFolder(Path(order.state)).tensorboard
        text = f"{order.experiment} {order.created_at!r}"
        self._search = sink.Search(order.experiment, hashlib.sha256(text.encode()).hexdigest()[:8])
        self._stands = os.stat(folder).st_ino
        self._path = folder / "handed-over.json"
        self._told = self._known()  # by name: what was handed over
        self._saved = time.monotonic()
        self._at: dict[str, float] = {}  # monotonic, by name: when it was
        self._sink: sink.Sink | None = None  # whose imports take seconds

    def look(self, all_: bool = False) -> None:
        """Hands over what is new; a run that only grows waits for `every_minutes`, without `all_`.
        Raises whatever its tracker does."""
        pause, written = 60 * self._order.settings["every_minutes"], False
        for name in runs.names(self._board) if self._board.is_dir() else ():
            self._check()
            now, before = runs.told(self._board / name), self._told.get(name)
            grows = before is not None and now[0] == before[0]
            fresh = time.monotonic() - self._at.get(name, -pause) < pause
            if now == before or (grows and fresh and not all_):
                continue
            self._open().write(runs.read(self._board, name))
            self._told[name], self._at[name] = now, time.monotonic()
            written = True
            if time.monotonic() - self._saved > SAVE_SECONDS:
                self._save()
        if written or self._sink is None:
            self._save()
            self._open().flush()

    def _open(self) -> sink.Sink:
        if self._sink is None:
            order = self._order
            self._sink = sink.opened(order.sink, order.settings, self._search, self._folder)
        return self._sink

    def _known(self) -> dict[str, tuple[str, str]]:
        try:
            found = json.loads(self._path.read_text())
            if found["to"] == self._to:
                return {name: (one, other) for name, (one, other) in found["runs"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            pass
        return {}

    @property
    def _to(self) -> list[Any]:
        """Whose runs went where: of another search, or to another place, none did yet."""
        settings = self._order.settings
        return [self._search.key, {key: settings[key] for key in settings.keys() - IN_PASSING}]

    def _save(self) -> None:
        content = json.dumps({"to": self._to, "runs": self._told}).encode()
        write_atomically(self._path, content)
        self._saved = time.monotonic()

    def _check(self) -> None:
        """The state folder may hold another search by now, and this one's was set aside."""
        if not self._folder.is_dir() or os.stat(self._folder).st_ino != self._stands:
            raise NasdError(f"{self._folder} is no longer of this search")


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Waits for another mirror of this search and sink, that still hands over the last of it."""
    descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


class Until:
    """Until a file ends."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._over = threading.Event()

    def __enter__(self) -> Self:
        threading.Thread(target=self._listen, daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def wait(self, seconds: float) -> bool:
        return self._over.wait(seconds)

    def _listen(self) -> None:
        while os.read(self._descriptor, 4096):
            pass
        self._over.set()


def serve(order: Order, until: Until) -> None:
    folder = StateFolder(Path(order.state)).sinks / order.sink
    folder.mkdir(parents=True, exist_ok=True)
    with alone(folder):
        mirror, over = Mirror(order, folder), False
        while True:
            began = time.monotonic()
            mirror.look(all_=over)
            if over:
                return
            over = until.wait(max(order.seconds, REST * (time.monotonic() - began)))


def sentence(error: BaseException) -> str:
    """One line, without what the environment keeps for itself."""
    text = str(error) if isinstance(error, NasdError) else f"{type(error).__name__}: {error}"
    for name, value in os.environ.items():
        if value and SECRET.search(name):
            text = text.replace(value, "...")
    return " ".join(text.split())[:400]


def main() -> int:
    words = os.dup(sys.stderr.fileno())
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (1, 2):  # libraries talk, and nobody listens
        os.dup2(nothing, stream)
    os.nice(5)
    line = b""
    while not line.endswith(b"\n") and (some := os.read(0, 65536)):
        line += some
    try:
        with Until(0) as until:
            serve(Order(**json.loads(line)), until)
    except Exception as error:
        os.write(words, f"{sentence(error)}\n".encode())
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
