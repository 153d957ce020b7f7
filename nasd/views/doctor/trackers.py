"""Checks of the trackers of others that a search is shown in as well."""

from collections.abc import Iterator

from nasd.views.doctor.case import Case, Finding
from nasd.views.sinks.sink import SINKS, missing


def sinks(case: Case) -> Iterator[Finding]:
    """Whether the packages are here that the config asks for."""
    for name, entry in SINKS.items():
        if getattr(case.config, name) is None:
            continue
        if why := missing(name):
            yield Finding("sinks", "bad", why)
        else:
            yield Finding("sinks", "good", f"{entry.title}: its package is here")
