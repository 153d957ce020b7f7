"""The checks in their order: each may rest on what those before it found."""

from collections.abc import Callable, Iterator
from pathlib import Path

from nasd.contract.errors import NasdError
from nasd.launch import home
from nasd.views.doctor import cluster, machine, search, service, sources, trackers
from nasd.views.doctor.case import Case, Finding
from nasd.views.forecast.planning import load

Check = Callable[[Case], Iterator[Finding]]

CHECKS: tuple[tuple[str, Check], ...] = (
    ("slots", machine.slots),
    ("driver", machine.driver),
    ("torch", machine.torch),
    ("torch", machine.precision),
    ("cores", machine.cores),
    ("state", search.state),
    ("state", search.others),
    ("database", search.experiment),
    ("nodes", cluster.nodes),
    ("hub", sources.hub),
    ("seed", sources.seed),
    ("data", sources.prepared),
    ("measure", sources.measure),
    ("memory", machine.memory),
    ("disk", search.disk),
    ("clock", machine.clock),
    ("service", service.service),
    ("TensorBoard", machine.tensorboard),
    ("sinks", trackers.sinks),
)


def examine(path: Path) -> Iterator[Finding]:
    """The findings on a config and its machine, one after the other as they are made."""
    try:
        config = load(path)
    except NasdError as error:
        yield Finding("config", "bad", str(error))
        return
    yield Finding("config", "good", f"{path} is well-formed")
    case = Case(path, config)
    home.lend(case.state.home)
    for about, check in CHECKS:
        try:
            yield from check(case)
        except NasdError as error:
            yield Finding(about, "bad", str(error))
