"""How nasd starts Python for itself.

Nothing is imported from the folder that somebody happens to stand in, and nothing is taken from the
environment that was meant for another program: both would run what nobody asked for.
"""

import os
import sys
from collections.abc import Mapping

# What tells a process its place among others. One who starts nasd from within a job of theirs has
# them set, and Hugging Face's libraries and torch act on them.
_PLACES = {
    "RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "NODE_RANK",
    "GROUP_RANK", "GROUP_WORLD_SIZE", "ROLE_RANK", "ROLE_WORLD_SIZE", "ROLE_NAME",
    "MASTER_ADDR", "MASTER_PORT", "NCCL_COMM_ID",
}  # fmt: skip
_OF_LAUNCHERS = ("TORCHELASTIC_", "PET_", "ACCELERATE_", "FSDP_")
# Without asserts, what is wrong goes on unseen; and a child that stays for questions never ends.
_OF_PYTHON = {"PYTHONOPTIMIZE", "PYTHONINSPECT"}


def command(module: str, *arguments: str) -> list[str]:
    """The command line of `python -m MODULE`, from wherever it is called."""
    return [sys.executable, "-P", "-m", module, *arguments]


def environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of a child: this process's, without what is meant for others, and `more`.

    What the child starts itself keeps out of the current folder as well.
    """
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in _PLACES | _OF_PYTHON and not name.startswith(_OF_LAUNCHERS)
    }
    if "PYTHONPATH" in kept:  # an empty entry, as of "$PYTHONPATH:/lib", is the current folder
        entries = kept["PYTHONPATH"].split(os.pathsep)
        kept["PYTHONPATH"] = os.pathsep.join(one for one in entries if one not in ("", "."))
    return {**kept, "PYTHONSAFEPATH": "1", **(more or {})}
