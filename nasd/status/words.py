"""Numbers, times and events as a person reads them."""

import time
from collections.abc import Sequence
from itertools import groupby

from nasd.snapshot import LoggedEvent

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


def listed(numbers: Sequence[int]) -> str:
    """`3, 5 to 8 and 11`; ascending."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    parts = [
        part
        for run in runs
        for part in ([f"{run[0]} to {run[-1]}"] if len(run) > 2 else [str(one) for one in run])
    ]
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def grave(one: LoggedEvent) -> bool:
    """Whether a person may want to know of it."""
    stopped = one.event == "interrupt" and not one.detail.startswith(
        ("asked to stop", "ended with")
    )
    return one.event in GRAVE or stopped or (one.event == "hold" and one.candidate is None)


def clock(at: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(at))


def instant(at: float, now: float) -> str:
    """When something will be: the hour, and the day where it is another one."""
    then, today = time.localtime(at), time.localtime(now)
    if then[:3] == today[:3]:
        return time.strftime("%H:%M", then)
    near = at - now < 6 * 86400
    return time.strftime("%a %H:%M" if near else "%a %d %b", then)


def duration(seconds: float) -> str:
    minutes, rest = divmod(int(max(0.0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours:02} h"
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"


def about(seconds: float) -> str:
    """No more exact than a guess is."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    if minutes < 36 * 60:
        return f"{minutes // 60} h {minutes % 60 // 10 * 10:02} min"
    hours = round(minutes / 60)
    return f"{hours // 24} d {hours % 24} h"


def counted(value: int, noun: str) -> str:
    return f"{value:,} {noun}{'' if value == 1 else 's'}"


def hours(value: float) -> str:
    """Of slots: as many digits as say something."""
    return f"{value:,.{0 if value >= 100 else 1 if value >= 10 else 2}f}"


def parameters(value: int) -> str:
    return f"{value / 1e6:.2f} M" if value >= 1e6 else f"{value / 1e3:.0f} k"


def rate(value: float | None) -> str:
    """Steps a second, in three digits."""
    if value is None:
        return ""
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def signed(value: float) -> str:
    return f"{round(value, 2) + 0.0:+.2f}".replace("-", "−")


def gigabytes(value: float) -> str:
    return f"{value / 1e9:.1f}" if value >= 1e9 else f"{value / 1e9:.2f}"
