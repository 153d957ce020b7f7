"""Checks of a cluster that attempts are to run on: whether its nodes can serve the search."""

from collections.abc import Iterator

import nasd
from nasd.contract.readable import duration
from nasd.launch import launchers, probing, slurm
from nasd.views.doctor.case import Case, Finding

PROBE_SECONDS = 60.0
CLOCK_SLACK_SECONDS = 5.0  # by which a node's clock may be off


def nodes(case: Case) -> Iterator[Finding]:
    """By a job of a moment: whether a node sees the state folder, and has this nasd and this
    clock."""
    if launchers.of(case.config.slots) is not slurm.ENTRY or not case.devices:
        return
    found = probing.probe(case.config, case.state.path, PROBE_SECONDS)
    if found.fault:
        yield Finding("nodes", "bad", found.fault)
        return
    if found.version != nasd.__version__:
        yield Finding(
            "nodes",
            "bad",
            f"{found.node} has nasd {found.version}, and this is {nasd.__version__}: install one"
            " and the same, or name the right one with slurm.python",
        )
    if abs(found.ahead) > CLOCK_SLACK_SECONDS:
        apart = f"{duration(abs(found.ahead))} {'ahead of' if found.ahead > 0 else 'behind'}"
        yield Finding(
            "nodes",
            "bad",
            f"the clock of {found.node} is {apart} this machine's, so durations would be wrong:"
            " set both right, with chrony or ntpd",
        )
    elif found.version == nasd.__version__:
        yield Finding("nodes", "good", f"{found.node} sees the state folder, and runs this nasd")
