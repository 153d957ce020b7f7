"""Events as a person reads them."""

from collections.abc import Sequence
from itertools import groupby

from nasd.contract.readable import clock, listed
from nasd.record.state import LoggedEvent

BASELINE = 0  # its number in the database
# What became of a candidate, by the event's name.
_OF_CANDIDATE = {
    "born": "is born",
    "start": "starts {stage}",
    "interrupt": "leaves {stage} before its end",
    "advance": "goes on to {stage}",
    "hold": "has done {stage}, and waits for the cutoff",
    "score": "is scored",
    "keep": "is kept, and goes on to {stage}",
    "cut": "is cut after {stage}",
    "fail": "failed at {stage}",
}
# Of the search itself: the word, and what stands between it and the detail.
_OF_SEARCH = {
    "generation": ("", ""),
    "phase": ("", ""),
    "daemon": ("the daemon", " "),
    "complete": ("the search is complete", ""),
    "hold": ("on hold", ": "),
    "quarantine": ("left alone", ": "),
    "resumed": ("the search goes on", ""),
}
_OF_SEVERAL = {
    "born": "are born",
    "keep": "are kept, and go on to {stage}",
    "cut": "are cut after {stage}",
}
_CUT_BY_REQUEST = "is cut by request at {stage}"
GRAVE = frozenset({"fail", "halted", "quarantine"})


def event(one: LoggedEvent) -> str:
    """One line."""
    if one.candidate is None:
        told, joint = _OF_SEARCH.get(one.event, (one.event, ": "))
    else:
        what = _OF_CANDIDATE.get(one.event, f"{one.event} {{stage}}")
        what = _CUT_BY_REQUEST if _by_request(one) else what
        who = "the baseline" if one.candidate == BASELINE else f"candidate {one.candidate}"
        told = f"{who} {what.format(stage=one.stage or '')}".strip()
        joint = " on " if one.event == "start" else ", " if _by_request(one) else ": "
    text = f"{told}{joint}{one.detail}" if one.detail else told
    return f"{clock(one.at)} {' '.join(text.split())}"


def together(events: Sequence[LoggedEvent]) -> list[tuple[str, bool]]:
    """A line for each event, and whether it is grave; what one decision does to several candidates
    is one line."""
    found = []
    for _, group in groupby(
        events, lambda one: (one.at, one.event, one.stage, bool(one.candidate))
    ):
        same = list(group)
        if len(same) == 1 or same[0].event not in _OF_SEVERAL or any(map(_by_request, same)):
            found += [(event(one), grave(one)) for one in same]
            continue
        who = listed([one.candidate for one in same if one.candidate is not None])
        what = _OF_SEVERAL[same[0].event].format(stage=same[0].stage or "")
        found.append((f"{clock(same[0].at)} candidates {who} {what}", False))
    return found


def _by_request(one: LoggedEvent) -> bool:
    """Whether a person cut it, and not a cutoff."""
    return one.event == "cut" and one.detail.startswith("by ")


def grave(one: LoggedEvent) -> bool:
    """Whether a person may want to know of it."""
    stopped = one.event == "interrupt" and not one.detail.startswith(
        ("asked to stop", "ended with")
    )
    return one.event in GRAVE or stopped or (one.event == "hold" and one.candidate is None)
