"""What all findings come to, for a person and for a program."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from nasd.views.doctor.case import Finding

LOOKS = {"good": ("ok", "green"), "note": ("note", "yellow"), "bad": ("BAD", "bold red")}


def ready(findings: Sequence[Finding]) -> bool:
    """Whether nothing has to be mended."""
    return all(one.mark != "bad" for one in findings)


def verdict(findings: Sequence[Finding]) -> str:
    """One sentence, with what to do first."""
    bad = [one for one in findings if one.mark == "bad"]
    notes = [one for one in findings if one.mark == "note"]
    if bad:
        many = f"{len(bad)} things have to be mended, first" if len(bad) > 1 else "mend"
        return f"not ready: {many} {bad[0].about}: {bad[0].text}"
    if notes:
        about = ", ".join(dict.fromkeys(one.about for one in notes))
        return f"ready; worth a look, but in nobody's way: {about}"
    return "ready"


def to_json(findings: Sequence[Finding]) -> dict[str, Any]:
    return {
        "ready": ready(findings),
        "verdict": verdict(findings),
        "findings": [asdict(one) for one in findings],
    }


def render(findings: Sequence[Finding]) -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 1))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for one in findings:
        word, style = LOOKS[one.mark]
        table.add_row(Text(word, style=style), one.about, Text(one.text))
    return table
