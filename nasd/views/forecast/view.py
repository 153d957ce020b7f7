"""The forecast for a terminal, within 80 columns."""

from collections.abc import Callable, Mapping
from typing import Any

from nasd.contract import readable


def render(data: dict[str, Any], guess: str = "--tflops") -> Any:
    """The forecast as a rich renderable, within 80 columns. guess: what it is as good as where no
    rates were measured."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    runs = data["runs"]
    unit = "GPU-hours" if data["on_gpus"] else "slot-hours"
    seeds = f"search seed {runs[0]['seed']}"
    if len(runs) > 1:
        seeds = f"search seeds {runs[0]['seed']} to {runs[-1]['seed']}"
    header = Text(no_wrap=True, overflow="ellipsis")
    header.append(data["name"], style="bold")
    header.append(f"  forecast of the whole search, {data['slots']} slots, {seeds}")
    head = Table.grid(padding=(0, 2))
    head.add_row("  wall-clock", *_shown(data["wall_hours"], _wall))
    head.add_row(f"  {unit}", *_shown(data["gpu_hours"], readable.hours))
    head.add_row("  slot use", *_shown(data["slot_use"], lambda share: f"{share:.1%}"))
    parts: list[Any] = [
        header,
        head,
        *(Text(f"  {line}") for line in (_bound(data), _budget(data))),
    ]
    parts += [_stage_table(data, unit), _generation_table(data, unit)]
    rests = Table.grid(padding=(0, 1))
    for line in data["assumptions"]:
        rests.add_row("  -", Text(line))
    rate = "the measured rates" if data["inputs"]["rates"] else guess
    parts += [
        Text("This rests on", style="bold"),
        rests,
        Text(
            f"The hours are as good as {rate}: with half as many TFLOP/s they are twice as many.",
            style="yellow",
        ),
    ]
    return Group(*parts)


def _shown(one: Mapping[str, float], text: Callable[[float], str]) -> tuple[str, str]:
    least, most = text(one["least"]), text(one["most"])
    return text(one["median"]), f"({least} to {most})" if least != most else ""


def _bound(data: Mapping[str, Any]) -> str:
    """How far the makespan is from what no order of attempts could undercut: all work spread
    evenly over all slots, or the longest chain of attempts. The first knows nothing of cutoffs and
    generations, at which all slots but a few may have to wait."""
    work, chain, over = (data[name] for name in ("work_hours", "chain_hours", "over_bound"))
    bound = max(work["median"], chain["median"])
    which = "all work over all slots" if work["median"] >= chain["median"] else "the longest chain"
    factor, spread = _shown(over, lambda factor: f"{factor:.3f}")
    return (
        f"{factor} x {spread}".rstrip()
        + f" the lower bound of {readable.duration(3600 * bound)}: {which}"
    )


def _budget(data: Mapping[str, Any]) -> str:
    budget = data["budget_gpu_hours"]
    if budget is None:
        return "no budget is set (experiment.budget_gpu_hours)"
    spent = [one["budget_spent"] for one in data["runs"]]
    over = [one for one in spent if one is not None]
    if not over:
        return f"within the budget of {readable.hours(budget)}"
    middle = sorted(over, key=lambda one: one["after_hours"])[len(over) // 2]
    number = middle["generation"]
    where = "with the baseline" if number is None else f"in generation {number}"
    some = "" if len(over) == len(spent) else f", in {len(over)} of {len(spent)} runs"
    return (
        f"the budget of {readable.hours(budget)} is spent {where}, after"
        f" {readable.duration(3600 * middle['after_hours'])}{some}"
    )


def _stage_table(data: Mapping[str, Any], unit: str) -> Any:
    table = _table("stage", "slots", "attempts", "hours each", unit, "share")
    for one in data["stages"]:
        table.add_row(
            one["stage"],
            f"{one['slots']:g}",
            f"{one['attempts']:g}",
            readable.hours(one["hours"]),
            readable.hours(one["gpu_hours"]),
            f"{one['share']:.1%}",
        )
    return table


def _generation_table(data: Mapping[str, Any], unit: str) -> Any:
    table = _table("generation", "wall-clock", "", unit, "")
    for one in data["generations"]:
        table.add_row(
            str(one["generation"]),
            *_shown(one["wall_hours"], _wall),
            *_shown(one["gpu_hours"], readable.hours),
        )
    return table


def _table(*names: str) -> Any:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), expand=False, pad_edge=False)
    for index, name in enumerate(names):
        table.add_column(name, no_wrap=True, justify="right" if index and name else "left")
    return table


def _wall(hours: float) -> str:
    return readable.duration(3600 * hours)
