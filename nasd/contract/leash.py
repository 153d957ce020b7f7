"""Runs a command that cannot outlive the process that started it.

    python -m nasd.contract.leash PARENT_PID COMMAND [ARGUMENT ...]

Workers are in a session of their own, so killing the daemon's process group does not reach them.
The kernel does: `PR_SET_PDEATHSIG` kills a process when the thread that started it dies,
and survives exec. The daemon therefore starts workers from its main thread only.

Where memory runs out, the kernel shall take the command and not the daemon.
"""

import contextlib
import ctypes
import os
import signal
import sys
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_OOM_SCORE = "500"  # of 1000; a daemon's is 0 or less


def die_with_parent(parent: int, may_be_init: bool = False) -> None:
    """Asks the kernel to SIGKILL this process when its parent dies; exits if it is already gone.

    Orphans fall to process 1, so that is no parent; but in a container the daemon may be 1 itself.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    orphaned = parent == 1 and not may_be_init
    if os.getppid() != parent or orphaned:  # it died before prctl took hold
        os._exit(1)


def die_first() -> None:
    """Offers this process, and all that it starts, to the kernel's out-of-memory killer."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(_OOM_SCORE)


if __name__ == "__main__":
    die_first()
    die_with_parent(int(sys.argv[1]), may_be_init=True)
    os.execvp(sys.argv[2], sys.argv[2:])
