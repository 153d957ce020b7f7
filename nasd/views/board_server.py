"""Starts TensorBoard on a state folder: checks what it would only log, then becomes it."""

import os
import socket
import sys
from errno import EADDRINUSE
from pathlib import Path
from typing import NoReturn
from urllib.parse import quote

from nasd.contract import tasks
from nasd.contract.errors import NasdError
from nasd.launch import interpreter
from nasd.record.folders import StateFolder, run_name
from nasd.record.snapshot import NoExperiment, opened, read

# It warns of every point that a resumed attempt did again, which buries the address.
QUIET = (
    "import logging; from tensorboard.main import run_main;"
    " logging.getLogger('tensorboard').setLevel(logging.ERROR); run_main()"
)


def command(state: Path, host: str, port: int) -> list[str]:
    """The command line; raises NasdError where there is nothing to show, or nowhere to show it."""
    folder = StateFolder(state)
    if not folder.database.exists():
        raise NoExperiment(state)
    if not folder.tensorboard.is_dir():
        raise NasdError(f"{state} has nothing to show yet: the first curves come with training")
    _check_address(host, port)
    return [
        *(sys.executable, "-P", "-c", QUIET),
        *("--logdir", str(folder.tensorboard.resolve())),
        *("--host", host, "--port", str(port)),
        *("--window_title", "nasd"),
        "--load_fast=false",  # the loader that forgets what a resumed attempt does again
    ]


def serve(state: Path, host: str, port: int) -> NoReturn:
    """Becomes TensorBoard, which ends with Ctrl-C."""
    words = command(state, host, port)
    for link in links(state, host, port):
        print(link, flush=True)
    os.execve(words[0], words, interpreter.environment())


def links(state: Path, host: str, port: int) -> list[str]:
    """Where to find the newest generation with learning curves, and cards; none before the first.

    Where there are more than 40 runs, TensorBoard chooses none of them in these tabs, unless a
    filter leaves fewer.
    """
    with opened(state) as connection:
        snap = read(connection)
    folder = StateFolder(state).tensorboard
    names = [run_name(one.number) for one in reversed(snap.generations)]
    charted = [one.name for one in tasks.ranking()]
    found: list[str] = []
    where = f"http://{host}:{port}/#"
    # A link before anything is there would show empty charts; a ladder may have no MLM stage.
    curved = next(
        (one for one in names for task in charted if any(folder.glob(f"{one}/*/{task}/events.*"))),
        None,
    )
    if curved is not None:
        runs = "|".join(["cutoff", *(f".*/{task}" for task in charted)])
        curves = quote(f"search|{curved}/({runs})", safe="")
        found.append(
            f"learning curves: {where}custom_scalars&_smoothingWeight=0&regexInput={curves}"
        )
    carded = next((one for one in names if any(folder.glob(f"{one}/*/events.*"))), None)
    if told := curved or carded:
        cards = quote(f"{told}/[^/]*$", safe="")
        found.append(f"cards:           {where}text&regexInput={cards}")
    return found


def _check_address(host: str, port: int) -> None:
    try:
        (family, kind, protocol, _, address), *_ = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        with socket.socket(family, kind, protocol) as one:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            one.bind(address)
    except socket.gaierror as error:
        raise NasdError(
            f"--host: {host} is no address of this machine ({error.strerror})"
        ) from error
    except OSError as error:
        if error.errno == EADDRINUSE:
            raise NasdError(
                f"port {port} of {host} is in use, maybe by another TensorBoard: give another one"
                " with --port"
            ) from error
        raise NasdError(
            f"TensorBoard cannot listen on port {port} of {host}: {error.strerror}"
        ) from error
