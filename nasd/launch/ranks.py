"""Starts the ranks of an attempt on this machine, and ends them all when one of them fails.

    python -m nasd.launch.ranks COUNT ATTEMPT_FOLDER

The ranks find each other by a file in a folder that nobody else can enter: no socket is opened for
that, and no other user can answer one. One rank alone opens none at all. A rank is told its place
as under torchrun, by RANK, WORLD_SIZE and LOCAL_RANK, and by NASD_RENDEZVOUS where the file is.
Of an attempt that spans several machines, each runs a share of the ranks so (nasd.launch.node), and
the folder of the file is on the shared file system.

A rank cannot outlive this process, from its first instruction on: the kernel sees to it. The
standard library alone, as it lives as long as the attempt.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from nasd.contract import variables
from nasd.contract.leash import die_with_parent
from nasd.launch import interpreter

WORKER = "nasd.worker"
KILLED = 128
GRACE_SECONDS = 30.0  # for the peers of a rank that failed: what they wait for never comes

Ranks = dict[int, subprocess.Popen[bytes]]


@dataclass(frozen=True)
class Share:
    """Which of an attempt's ranks run here: from `first` on, of `world`. The place where they meet
    is there already, and stays."""

    first: int
    world: int


def run(
    count: int,
    folder: Path,
    command: Sequence[str],
    ranks: Ranks | None = None,
    told: Callable[[], None] = lambda: None,
    share: Share | None = None,
) -> int:
    """The ranks' `command` in so many processes; 0 once all have ended well, 1 where one has
    failed, and as in a shell KILLED and its number where a signal has ended one.

    ranks: where they are kept, for whoever has to end them. told: is called on SIGTERM, which they
    are handed on. share: where others run elsewhere.
    """
    with nullcontext(meeting(folder)) if share else met(folder) as private:
        return _run(count, command, {} if ranks is None else ranks, told, private / "store", share)


def meeting(folder: Path) -> Path:
    """The folder in which the ranks of an attempt meet."""
    return folder / "rendezvous"


@contextmanager
def met(folder: Path) -> Iterator[Path]:
    """Makes it, for its owner alone, and removes it behind them."""
    private = meeting(folder)
    shutil.rmtree(private, ignore_errors=True)  # of an attempt of the same number, killed
    private.mkdir(mode=0o700)
    try:
        yield private
    finally:
        shutil.rmtree(private, ignore_errors=True)


def _run(
    count: int,
    command: Sequence[str],
    ranks: Ranks,
    told: Callable[[], None],
    store: Path,
    share: Share | None,
) -> int:
    share = share or Share(0, count)

    def hand_on(number: int, frame: object) -> None:
        told()
        _signal(ranks, number)

    signal.signal(signal.SIGTERM, hand_on)
    for local in range(count):
        rank = share.first + local
        ranks[rank] = subprocess.Popen(
            command,
            env=os.environ | _place(rank, local, share.world, store),
            # In the child, ahead of the command: there is no instant in which it is on its own.
            preexec_fn=partial(die_with_parent, os.getpid(), may_be_init=True),
        )
    return _watch(ranks)


def _place(rank: int, local: int, world: int, store: Path) -> Mapping[str, str]:
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(local),
        "WORLD_SIZE": str(world),
        variables.RENDEZVOUS: str(store),
    }


def _watch(ranks: Ranks) -> int:
    """Waits for all ranks; once one has failed, its peers have a while to leave by themselves."""
    left = dict(ranks)
    while left:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)  # until one has ended
        if failed := {rank: code for rank, code in _take_ended(left).items() if code}:
            _end(left)
            for rank, code in failed.items():
                if code < 0:  # it could not say so itself
                    print(f"rank {rank} was ended by {_name(-code)}", flush=True)
            return max(KILLED - code if code < 0 else 1 for code in failed.values())
    return 0


def _take_ended(left: Ranks) -> dict[int, int]:
    """The exit codes of the ranks that have ended, which are taken out of `left`."""
    ended = {rank: code for rank, one in left.items() if (code := one.poll()) is not None}
    for rank in ended:
        del left[rank]
    return ended


def _end(left: Ranks) -> None:
    _signal(left, signal.SIGTERM)
    deadline = time.monotonic() + GRACE_SECONDS
    while left and time.monotonic() < deadline:
        time.sleep(0.05)
        _take_ended(left)
    _signal(left, signal.SIGKILL)
    for one in left.values():
        one.wait()


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _signal(ranks: Ranks, number: int) -> None:
    for process in list(ranks.values()):
        with suppress(ProcessLookupError):
            process.send_signal(number)


if __name__ == "__main__":
    attempt = sys.argv[2]
    sys.exit(run(int(sys.argv[1]), Path(attempt), interpreter.command(WORKER, attempt)))
