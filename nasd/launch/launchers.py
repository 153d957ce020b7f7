"""The launchers by name.

A new one is a file in this room, a line here, and its name in nasd.contract.sections.machine where
a config may give it.
"""

from nasd.contract.config import Slots
from nasd.launch import local, simulated, slurm
from nasd.launch.launcher import Entry

LAUNCHERS = {"local": local.ENTRY, "slurm": slurm.ENTRY, "simulated": simulated.ENTRY}


def of(slots: Slots) -> Entry:
    return LAUNCHERS[slots.launcher]
