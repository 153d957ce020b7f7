"""Serves the live page on a loopback address: reads, and with a token asks what the commands ask.

Every page says by its headers that nothing of other servers may be loaded into it, and a request
has to name this server as its host: no page of another site reads it through a name of its own.
"""

import hmac
import json
import mimetypes
import secrets
import socket
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from errno import EADDRINUSE
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from pydantic_core import to_json

from nasd.contract.errors import NasdError
from nasd.record import snapshot
from nasd.views import dossier, metrics
from nasd.views.live.table import Table, losses
from nasd.views.status import as_json
from nasd.views.status.facts import Facts, Reader

PAGE = Path(__file__).parent / "page"
FILES = {"/": "index.html", "/page.js": "page.js", "/page.css": "page.css"}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self';"
    " connect-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none';"
    " frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
MAY_ASK = ("pause", "drain", "resume", "cut", "retry")
LONGEST = 10_000  # bytes of what is asked
EVENTS = 40
MOST_GENERATIONS = 1000
LOCAL = ("localhost", "127.0.0.1", "::1")

Asks = Callable[[str, int | None, str], str]


class Live:
    """A search as the page asks for it. asks: has the daemon do something, for an action, a
    candidate, and why; returns the answer in words."""

    def __init__(self, state: Path, asks: Asks) -> None:
        self.state = state
        self.asks = asks
        self.token = secrets.token_urlsafe(16)
        self.table = Table(state)
        self._reader = Reader(state)
        self._one_by_one = threading.Lock()
        self._generations: tuple[int, list[dict[str, Any]]] = (-1, [])  # behind an event

    def now(self) -> dict[str, Any]:
        """What changes all the time: how it is, its slots, what has happened."""
        with self._one_by_one:
            return self._now()

    def _now(self) -> dict[str, Any]:
        facts = self._reader.read()
        told = as_json.as_json(facts)
        wanted = ("experiment", "generation", "phase", "gpu_hours", "gained", "remaining", "slots")
        running = [
            {
                "candidate": number,
                "attempt": where.attempt.id,
                "stage": where.attempt.stage,
                "slots": where.attempt.slots,
                "waits": where.attempt.message,
                "beat": None if where.beat is None else where.beat.model_dump(),
            }
            for number, where in facts.where.items()
        ]
        return {
            **{name: told[name] for name in wanted},
            "notices": told["notices"],
            "running": running,
            "generations": self._selected(facts),
            "events": [asdict(one) for one in facts.events[-EVENTS:]],
        }

    def _selected(self, facts: Facts) -> list[dict[str, Any]]:
        """Of all generations that were selected; read anew where there are more."""
        number = facts.selections[-1][0] if facts.selections else -1
        if number != self._generations[0]:
            with snapshot.opened(self.state) as connection:
                found = snapshot.selections(connection, MOST_GENERATIONS)
            names = ("generation", "hypervolume", "best")
            told = [dict(zip(names, one, strict=True)) for one in found]
            self._generations = number, told
        return self._generations[1]

    def candidate(self, name: str) -> dict[str, Any]:
        return dossier.compile_dossier(self.state, name).to_json()

    def answers(self, path: str, asked: Mapping[str, str]) -> Any:
        """What a path of the API says; None where there is no such path."""
        match path:
            case "/api/now":
                return self.now()
            case "/api/candidates":
                return self.table.since(_number(asked, "after"))
            case "/api/curves":
                return losses(self.state, _number(asked, "generation"))
            case "/api/candidate":
                return self.candidate(asked.get("id", ""))
        return None

    def ask(self, told: Any) -> str:
        """Raises NasdError where it may not be asked from here, or is refused."""
        action = told.get("action") if isinstance(told, dict) else None
        if action not in MAY_ASK:
            raise NasdError(f"the page may ask for {', '.join(MAY_ASK)}, and for nothing else")
        number = told.get("candidate")
        if (action in ("cut", "retry")) != isinstance(number, int):
            raise NasdError(f"{action} takes a candidate's number where it is about one")
        return self.asks(str(action), number, "from the live page")


def _number(asked: Mapping[str, str], name: str) -> int:
    try:
        return int(asked.get(name, "0"))
    except ValueError:
        raise NasdError(f"{name} is a whole number") from None


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: "Server"

    def do_GET(self) -> None:
        self._answered(self._get)

    def do_POST(self) -> None:
        self._answered(self._post)

    def _answered(self, answer: Callable[[], None]) -> None:
        if not self._named():
            self._send(HTTPStatus.FORBIDDEN, b"this host is not served", "text/plain")
            return
        try:
            answer()
        except NasdError as error:
            self._json({"error": str(error)}, HTTPStatus.BAD_REQUEST)
        except (BrokenPipeError, ConnectionResetError):  # the browser has left
            self.close_connection = True

    def _get(self) -> None:
        found = urlsplit(self.path)
        if self.server.only_metrics and found.path != "/metrics":
            self._send(HTTPStatus.NOT_FOUND, b"here is /metrics alone", "text/plain")
        elif found.path in FILES:
            path = PAGE / FILES[found.path]
            kind = mimetypes.guess_type(path.name)[0] or "text/plain"
            self._send(HTTPStatus.OK, path.read_bytes(), f"{kind}; charset=utf-8")
        elif found.path == "/metrics":
            text = metrics.text(self.server.live.state)
            self._send(HTTPStatus.OK, text.encode(), metrics.CONTENT)
        else:
            asked = {name: values[-1] for name, values in parse_qs(found.query).items()}
            told = self.server.live.answers(found.path, asked)
            if told is None:
                self._send(HTTPStatus.NOT_FOUND, b"there is no such page", "text/plain")
            else:
                self._json(told)

    def _post(self) -> None:
        size = self.headers.get("Content-Length", "")
        taken = size.isdigit() and int(size) <= LONGEST and not self.server.only_metrics
        if self.path != "/api/ask" or not taken:
            self.close_connection = True
            self._send(HTTPStatus.NOT_FOUND, b"there is nothing to ask here", "text/plain")
            return
        body = self.rfile.read(int(size))
        given = self.headers.get("X-Nasd-Token", "")
        if not hmac.compare_digest(given.encode(), self.server.live.token.encode()):
            self._json({"error": "this needs the token that nasd serve printed"}, 403)
            return
        try:
            told = json.loads(body)
        except ValueError:
            raise NasdError("what is asked is JSON") from None
        self._json({"answer": self.server.live.ask(told)})

    def _named(self) -> bool:
        host = urlsplit(f"//{self.headers.get('Host', '')}").hostname or ""
        return host in self.server.names

    def _json(self, told: Any, status: int = HTTPStatus.OK) -> None:
        # A browser would refuse all of it for an infinity, which JSON does not know.
        self._send(status, to_json(told, inf_nan_mode="null"), "application/json")

    def _send(self, status: int, content: bytes, kind: str) -> None:
        self.send_response(status)
        for name, value in HEADERS.items():
            self.send_header(name, value)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Nobody reads a line for each request."""


class Server(ThreadingHTTPServer):
    """Raises NasdError where it cannot listen."""

    daemon_threads = True

    def __init__(self, live: Live, host: str, port: int, only_metrics: bool = False) -> None:
        self.live = live
        self.only_metrics = only_metrics
        self.names = {*LOCAL, host}
        try:
            self.address_family = socket.getaddrinfo(host, port)[0][0]
            super().__init__((host, port), _Handler)
        except socket.gaierror as error:
            raise NasdError(f"--host: {host} is no address of this machine") from error
        except OSError as error:
            if error.errno == EADDRINUSE:
                raise NasdError(
                    f"port {port} of {host} is in use: give another one with --port"
                ) from error
            raise NasdError(f"port {port} of {host}: {error.strerror}") from error
        if host in ("0.0.0.0", "::"):  # whoever asks by any name of this machine's
            self.names |= {socket.gethostname(), socket.getfqdn()}
            with suppress(OSError):
                self.names |= {
                    str(one[4][0]) for one in socket.getaddrinfo(socket.gethostname(), None)
                }

    @property
    def port(self) -> int:
        return int(self.server_address[1])


def serve(state: Path, host: str, port: int, asks: Asks, say: Callable[[str], None]) -> None:
    """Until Ctrl-C."""
    with snapshot.opened(state):
        pass  # or there is no search
    live = Live(state, asks)
    with Server(live, host, port) as server:
        shown = f"[{host}]" if ":" in host else host
        say(f"read-only:           http://{shown}:{server.port}/")
        say(f"with pause and cut:  http://{shown}:{server.port}/#{live.token}")
        with suppress(KeyboardInterrupt):
            server.serve_forever()


def serve_metrics(state: Path, host: str, port: int, say: Callable[[str], None]) -> None:
    """Only what Prometheus asks for, until Ctrl-C."""
    with snapshot.opened(state):
        pass

    def nothing(action: str, candidate: int | None, why: str) -> str:
        raise NasdError("nothing can be asked here")

    with Server(Live(state, nothing), host, port, only_metrics=True) as server:
        say(f"http://{f'[{host}]' if ':' in host else host}:{server.port}/metrics")
        with suppress(KeyboardInterrupt):
            server.serve_forever()
