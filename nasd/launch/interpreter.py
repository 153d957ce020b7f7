"""How nasd starts Python for itself.

Nothing is imported from the folder that somebody happens to stand in, and nothing is taken from the
environment that was meant for another program: both would run what nobody asked for.
"""

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from nasd.contract.errors import NasdError

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


def this() -> str:
    """The Python of this process."""
    return sys.executable


def command(module: str, *arguments: str, python: str = "") -> list[str]:
    """The command line of `python -m MODULE`, from wherever it is called. python: another than this
    process's, as on another machine."""
    return [python or this(), "-P", "-m", module, *arguments]


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


def nasd() -> Path:
    """How nasd is called: bin/nasd of its checkout, or the command of an environment without one.
    As short as it can be typed from here."""
    checkout = Path(__file__).resolve().parents[2] / "bin/nasd"
    path = checkout if checkout.exists() else Path(sys.executable).with_name("nasd")
    try:
        return path.relative_to(Path.cwd())
    except (ValueError, OSError):  # or the current folder is gone
        return path


def keep_asserts() -> None:
    """Begins this process anew where PYTHONOPTIMIZE has switched off what it checks itself by, and
    with it the words of --help; raises NasdError where `python -O` has."""
    if not sys.flags.optimize:
        return
    if "PYTHONOPTIMIZE" not in os.environ:
        raise NasdError(f"python -O switches off what nasd checks itself by: call {nasd()} instead")
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment())
