"""The blocks of the view beside the table of candidates: slots, front, events."""

from collections.abc import Sequence

from rich.text import Text

from nasd.contract.readable import counted, of_baseline, share_of_baseline
from nasd.contract.slots import Slot, on_gpus
from nasd.search.objectives import OBJECTIVES
from nasd.views.status import marks
from nasd.views.status.devices import Device
from nasd.views.status.events import together
from nasd.views.status.facts import Facts
from nasd.views.status.table import others
from nasd.views.status.text import fit, fitting, line

# -- slots ---------------------------------------------------------------------------------------


def width_of_slots(facts: Facts) -> int:
    longer = max((len(one) - len(Slot.parse(one).device) for one in facts.slots), default=0)
    return 42 + longer if on_gpus(facts.slots) else 38


def slots(facts: Facts, width: int, most: int | None) -> list[Text]:
    """One line a slot below a heading; the last one counts those that there is no room for."""
    rows = [_slot(facts, slot) for slot in facts.slots]
    if not rows:
        return [line(("no slot was used yet", "dim"))]
    if most is not None and most < min(4, len(rows) + 1):
        return [fitting(width, _in_a_line(facts))][:most]
    name = max(len(slot) for slot in facts.slots)
    if most is not None and len(rows) + 1 > most:
        shown = max(0, most - 2)
        busy = sum(slot in facts.snapshot.leases for slot in facts.slots[shown:])
        rest = f"and {counted(len(rows) - shown, 'slot')} more, {busy} busy"
        rows = [*rows[:shown], line((rest, "dim"))]
    gpus = on_gpus(facts.slots)
    memory = f"{'GB':>9} {'°C':>3}" if gpus else f"{'GB':>5}"
    heading = line((f"{'slot':<{name}}  {'use':>5} {memory}  attempt", "dim"))
    return [fitting(width, one) for one in (heading, *rows)][:most]


def _in_a_line(facts: Facts) -> Text:
    found = line((f"{counted(len(facts.slots), 'slot')}:", "dim"))
    for slot in facts.slots:
        holder = facts.holders.get(slot)
        on_it = "idle" if holder is None else str(holder.attempt.candidate)
        on_it = "left alone" if facts.snapshot.left_alone(slot) else on_it
        found.append_text(line(f" {slot} ", (on_it, "dim" if holder is None else "")))
    return found


def _slot(facts: Facts, slot: str) -> Text:
    name = max(len(one) for one in facts.slots)
    gpus = on_gpus(facts.slots)
    device = _device(facts, slot)
    use = "" if device is None or device.use is None else f"{device.use:.0f} %"
    memory = "" if device is None or device.memory is None else _gigabytes(device.memory)
    if gpus:
        total = "" if device is None or device.total is None else f"/{device.total / 1e9:.0f}"
        heat = "" if device is None or device.temperature is None else f"{device.temperature}"
        memory = f"{memory + total:>9} {heat:>3}"
    else:
        memory = f"{memory:>5}"
    return line(f"{slot:<{name}}  {use:>5} {memory}  ", _on_it(facts, slot))


def _device(facts: Facts, slot: str) -> Device | None:
    """What is told of its device; of a GPU that attempts share once, beside the first of them."""
    return facts.devices.get(slot) if Slot.parse(slot).place == 1 else None


def _on_it(facts: Facts, slot: str) -> Text:
    quarantine = facts.snapshot.left_alone(slot)
    holder = facts.holders.get(slot)
    device = _device(facts, slot)
    text = line(("idle", "dim"))
    if holder is not None:
        who = "baseline" if holder.attempt.candidate == _baseline(facts) else None
        text = line(f"{who or holder.attempt.candidate} {holder.attempt.stage}")
        if not facts.served:  # its worker went with the daemon
            text = line(text, ", interrupted")
            text.stylize("dim")
    elif quarantine is not None:
        return line((f"left alone: {quarantine.reason}", "yellow"))
    elif device is not None and device.fault:
        return line((device.fault, "yellow"))
    if device is not None and device.foreign:
        text = line(text, (f", {len(device.foreign)} foreign", "yellow"))
    return text


def _baseline(facts: Facts) -> int:
    return facts.snapshot.baseline.id


# -- the front -----------------------------------------------------------------------------------


def front(facts: Facts, width: int, height: int) -> list[Text]:
    """Scores against parameters. Better is up and left."""
    if height < 4 or width < 20:
        return []
    snap = facts.snapshot
    quality = snap.quality(snap.baseline.id)
    base = [] if quality is None else [(100.0, quality)]
    trained = None if snap.rival.is_baseline else snap.quality(snap.rival.id)
    control = [] if trained is None else [(100.0, trained)]
    at = {
        one: (share_of_baseline(snap.size(one)), snap.quality(one) or 0.0) for one in facts.points
    }
    ahead = [at[one] for one in at if facts.ranks[one] == 0]
    behind = [at[one] for one in at if facts.ranks[one] > 0]
    everything = [*base, *control, *ahead, *behind]
    if not everything:
        return [line(("no scores to draw yet", "dim"))]
    xs, ys = _span([x for x, _ in everything]), _span([y for _, y in everything])
    label = 6
    rows = marks.plane(
        {marks.OTHER: behind, marks.FRONT: ahead, marks.BASELINE: base, marks.CONTROL: control},
        width - label - 1,
        height - 2,
        xs,
        ys,
    )
    legend = _legend(bool(control))
    title = fitting(
        width,
        line(("quality by parameters  ", "dim"), *legend),
        line(("quality  ", "dim"), *legend),
        line(*legend),
    )
    found = [title]
    for index, row in enumerate(rows):
        tick = f"{ys[1]:.1f}" if index == 0 else f"{ys[0]:.1f}" if index == len(rows) - 1 else ""
        found.append(line((f"{tick:>{label - 1}} │", "dim"), _coloured(row)))
    low, high = f"{xs[0]:.0f} %", f"{xs[1]:.0f} %"
    name = " of baseline" if width > label + len(low + high) + 14 else ""
    axis = f"{low}{name}{high:>{max(1, width - label - 1 - len(low + name))}}"
    found.append(line((" " * (label - 1) + " └" + axis, "dim")))
    return [fitting(width, one) for one in found]


_COLOURS = {marks.FRONT: "green", marks.BASELINE: "cyan", marks.CONTROL: "cyan"}


def _legend(control: bool) -> Sequence[tuple[str, str]]:
    """control: whether there is one, the baseline trained on as candidates are."""
    own = ((" ", ""), (marks.CONTROL, "cyan"), (" control", "dim")) if control else ()
    return (
        (marks.FRONT, "green"),
        (" front ", "dim"),
        (marks.OTHER, ""),
        (" behind ", "dim"),
        (marks.BASELINE, "cyan"),
        (" baseline", "dim"),
        *own,
    )


def _coloured(row: str) -> Text:
    text = line(row)
    for place, mark in enumerate(row):
        if mark in _COLOURS:
            text.stylize(_COLOURS[mark], place, place + 1)
    return text


def _span(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    margin = 0.0 if high > low else max(0.01, abs(high) * 0.1)
    return low - margin, high + margin


# -- events --------------------------------------------------------------------------------------


def events(facts: Facts, width: int, most: int) -> list[Text]:
    """The newest, the last one at the bottom. What starts is seen among the slots."""
    told = together([one for one in facts.events if one.event != "start"])
    return [
        fit(line((text, "yellow" if grave else "dim")), width)
        for text, grave in told[max(0, len(told) - most) :]
        if most > 0
    ]


def ahead(facts: Facts, width: int, most: int) -> list[Text]:
    """The candidates of the front, the largest quality first, and whom to compare them with: the
    baseline, and its best control."""
    first = [one for one, rank in facts.ranks.items() if rank == 0]
    first.sort(key=lambda one: -facts.points[one][0])
    if not first or most < 2:
        return []
    snap = facts.snapshot
    names = others(snap)
    titles = "".join(f" {OBJECTIVES[name].unit:>9}" for name in names)
    found = [line((f"{'front':>5} quality  of base{titles}  genotype", "dim"))]
    beside = [snap.baseline] if snap.quality(snap.baseline.id) is not None and most > 2 else []
    if beside and not snap.rival.is_baseline and most > 3:
        beside.append(snap.rival)
    shown = [snap.candidates[one] for one in first[: most - 1 - len(beside)]]
    for one in [*shown, *beside]:
        share = of_baseline(snap.size(one.id))
        values = [(OBJECTIVES[name], snap.value(one.id, name)) for name in names]
        told = "".join(f" {'' if v is None else each.shown(v):>9}" for each, v in values)
        what = "the control" if one in beside and not one.is_baseline else str(one.genotype)
        row = f"{one.id:>5} {snap.quality(one.id):>7.2f} {share:>8}{told}  {what}"
        found.append(line((row, "cyan" if one in beside else "")))
    return [fit(one, width) for one in found]


def history(facts: Facts, width: int, most: int) -> list[Text]:
    """What the newest selections came to."""
    if not facts.selections or most < 3:
        return []
    found = [line(("generation  best quality  hypervolume", "dim"))]
    for number, volume, quality in facts.selections[-(most - 1) :]:
        found.append(line(f"{number:>10}  {quality:>12.2f}  {volume:>11.2f}"))
    return [fit(one, width) for one in found]


def _gigabytes(value: float) -> str:
    """The heading says the unit."""
    return f"{value / 1e9:.1f}" if value >= 1e9 else f"{value / 1e9:.2f}"
