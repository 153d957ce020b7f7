"""The latency table of a search space, and how right it was found to be."""

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from nasd.contract.config import Config
from nasd.contract.errors import NasdError
from nasd.contract.readable import counted
from nasd.launch import child
from nasd.record.folders import StateFolder

SECONDS = 3600.0


def read(config: Config, path: Path, check: int, again: bool) -> dict[str, Any]:
    """What nasd.worker.profile answers; raises NasdError where it cannot be measured here."""
    folder = path.resolve().parent
    question = {
        "measure": config.measure.model_dump(mode="json"),
        "space": config.search_space.model_dump(mode="json"),
        "source": config.seed_model.source,
        "folder": str(folder),
        "cache": str(StateFolder(folder / config.experiment.state).cache),
        "again": again,
        "check": check,
    }
    try:
        return child.ask("nasd.worker.profile", question, timeout_seconds=SECONDS)
    except child.NoAnswer as error:
        raise NasdError(f"{path}: [measure] cannot be measured: {error}") from None


def error_of(checked: Sequence[dict[str, Any]]) -> float:
    """The median of how far predictions are off, as a share of what was measured."""
    off = [abs(one["predicted"] - one["measured"]) / one["measured"] for one in checked]
    return float(median(off))


def rank_correlation(checked: Sequence[dict[str, Any]]) -> float | None:
    """Spearman's, of what was predicted and measured; None for fewer than three."""
    from nasd.views.report.statistics import spearman

    found = spearman([one["predicted"] for one in checked], [one["measured"] for one in checked])
    return None if found is None else float(found.value)


def to_json(found: dict[str, Any]) -> dict[str, Any]:
    checked = found["checked"]
    if not checked:
        return found
    return {
        **found,
        "median_error": error_of(checked),
        "rank_correlation": rank_correlation(checked),
    }


def render(found: dict[str, Any]) -> Any:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table, checked = found["table"], found["checked"]
    about = table["about"]
    parts: list[Any] = [
        Text(about["name"], style="bold"),
        Text(
            f"{about['software']}, {about['precision']}, {counted(about['threads'], 'thread')},"
            f" {counted(about['batch'], 'example')} of {counted(about['tokens'], 'token')};"
            f" by the {about['clock']}'s clock, middle half within {about['spread']:.1%}"
        ),
    ]
    shown = Table(box=None, pad_edge=False, padding=(0, 2))
    shown.add_column("module")
    shown.add_column("ms", justify="right")
    for name, value in table["parts"].items():
        shown.add_row(name, f"{value:.3f}")
    parts.append(shown)
    parts.append(
        Text(f"a model: {table['overhead']:.3f} ms + {table['scale']:.3f} x the sum of its modules")
    )
    if table["unsure"]:
        worst = max(table["unsure"], key=lambda name: table["unsure"][name])
        parts.append(
            Text(
                f"{counted(len(table['unsure']), 'median')} not known within 3 %, {worst} only"
                f" within {table['unsure'][worst]:.1%}: measure again with --again when the machine"
                " is at rest",
                style="yellow",
            )
        )
    if checked:
        unsure = sum(one["error"] > 0.03 for one in checked)
        correlation = rank_correlation(checked)
        parts.append(
            Text(
                f"{counted(len(checked), 'random model')} measured whole: median error"
                f" {error_of(checked):.1%}"
                + ("" if correlation is None else f", rank correlation {correlation:.3f}")
                + (f"; {unsure} of them not known within 3 %" if unsure else ""),
                style="bold",
            )
        )
    return Group(*parts)
