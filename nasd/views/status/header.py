"""The first lines of the view: what it does, whether it is healthy, whether it gets better, when it
ends, and what it has cost."""

from collections import Counter
from collections.abc import Iterator

from rich.text import Text

from nasd.contract.readable import about, counted, duration, hours, signed, soon
from nasd.record.lifecycle import ExperimentState, State
from nasd.views.status import marks
from nasd.views.status.facts import Facts
from nasd.views.status.text import fit, fitting, line, wrapped

LABEL = 8
LABELLED = 40  # columns, from which on the lines have labels
STYLES = {"bad": "bold red", "warning": "yellow", "note": "dim"}
MOST_NOTICES = 6  # lines


def header(facts: Facts, width: int, height: int | None) -> list[Text]:
    label = LABEL if width >= LABELLED else 0
    most = MOST_NOTICES if height is None else max(1, min(MOST_NOTICES, height // 5))
    found = [_title(facts, width)]
    for index, text in enumerate(_health(facts, width - label, most)):
        found.append(_labelled("health" if index == 0 else "", text, label))
    for name, answer in (("better", _better), ("ends", _ends), ("cost", _cost)):
        found.append(_labelled(name, answer(facts, width - label), label))
    return found


def _labelled(name: str, text: Text, width: int) -> Text:
    return line((f"{name:<{width}}", "dim"), text) if width else text


# -- what is it doing ----------------------------------------------------------------------------


def _title(facts: Facts, width: int) -> Text:
    name = facts.snapshot.experiment.name
    took = duration(facts.seconds)
    where, counts = _where(facts), _counts(facts)
    long = line((name, "bold"), "  ", where, ": " + counts if counts else "")
    for text in (long, line((name, "bold"), "  ", where)):
        if text.cell_len + len(took) + 2 <= width:
            return line(fit(text, width - len(took)), (took, "dim"))
    generation = facts.snapshot.generation
    short = f"gen {generation.number}/{facts.generations}" if generation else facts.phase
    return fitting(
        width,
        line((name, "bold"), "  ", where),
        line((name, "bold"), " ", short),
        line((short, "bold"), " ", name),
    )


def _where(facts: Facts) -> str:
    generation = facts.snapshot.generation
    if generation is None:
        return facts.phase
    return f"generation {generation.number} of {facts.generations}, {facts.phase}"


def _counts(facts: Facts) -> str:
    if facts.state is ExperimentState.COMPLETE:
        return ""
    baseline = facts.snapshot.baseline
    everyone = [*facts.born, *facts.late, *([] if baseline.final else [baseline])]
    states = Counter(one.state for one in everyone)
    words = {
        State.RUNNING: "running" if facts.served else "interrupted",
        State.PENDING: "pending",
        State.WAITING: "waiting",
        State.SCORED: "scored",
        State.CUT: "cut",
        State.FAILED: "failed",
    }
    return ", ".join(f"{states[state]} {word}" for state, word in words.items() if states[state])


# -- is it healthy -------------------------------------------------------------------------------


def _health(facts: Facts, width: int, most: int) -> Iterator[Text]:
    left = most
    if all(notice.level == "note" for notice in facts.notices):
        left -= 1
        yield _well(facts, width)
    for place, notice in enumerate(facts.notices):
        if left <= 0:
            break
        more = len(facts.notices) - place - 1
        lines = wrapped(notice.text, width, max(1, min(3, left - min(more, 1))))
        left -= len(lines)
        for text in lines:
            yield line((text, STYLES[notice.level]))


def _well(facts: Facts, width: int) -> Text:
    if facts.state is ExperimentState.COMPLETE:
        return line(("complete", "green"))
    running = len(facts.where)
    return fitting(
        width,
        line(("healthy", "green"), f", {counted(running, 'attempt')} on {_busy(facts)}"),
        line(("healthy", "green")),
    )


def _busy(facts: Facts) -> str:
    busy = sum(slot in facts.snapshot.leases for slot in facts.slots)
    return f"{busy} of {counted(len(facts.slots), 'slot')}"


# -- is it getting better ------------------------------------------------------------------------


def _better(facts: Facts, width: int) -> Text:
    gained = facts.gained
    base, rival = gained.baseline, facts.snapshot.rival.called
    if gained.quality is None or gained.hypervolume is None:
        if base is None:
            return fitting(width, line(("nobody is scored yet", "dim")), line(("no score", "dim")))
        return fitting(
            width,
            line(f"the {rival} scores {base:.2f}, ", ("no candidate is scored yet", "dim")),
            line(f"{rival} {base:.2f}"),
        )
    volume = line(f"hypervolume {gained.hypervolume:.2f}")
    if gained.hypervolume_before is not None:
        volume.append_text(line(" (", _signed(gained.hypervolume - gained.hypervolume_before), ")"))
    curve = [one[1] for one in facts.selections if one[0] != _number(facts)]
    spark = marks.sparkline([*curve, gained.hypervolume], 16)
    if len(spark) < 2:
        spark = ""
    best = line(f"best quality {gained.quality:.2f}")
    short = line(f"best {gained.quality:.2f}")
    against: list[Text] = []
    if base is not None:
        against.append(line(_signed(gained.quality - base), f" on the {rival}"))
        short.append_text(line(f", {'base' if rival == 'baseline' else rival} ", f"{base:.2f}"))
    if gained.quality_before is not None:
        change = gained.quality - gained.quality_before
        against.append(line(_signed(change), f" on generation {gained.before}"))
    brief = line(best, " (", against[0], ")") if against else best
    if against:
        best = line(best, " (", Text(", ").join(against), ")")
    return fitting(
        width,
        line(best, ", ", volume, " ", (spark, "cyan")),
        line(best, ", ", volume),
        line(brief, ", ", volume),
        best,
        brief,
        short,
        line(f"best {gained.quality:.2f}"),
    )


def _signed(value: float) -> Text:
    value = round(value, 2)
    return Text(signed(value), "green" if value > 0 else "red" if value < 0 else "")


def _number(facts: Facts) -> int | None:
    return facts.snapshot.generation.number if facts.snapshot.generation else None


# -- when will it end ----------------------------------------------------------------------------


def _ends(facts: Facts, width: int) -> Text:
    if facts.state is ExperimentState.COMPLETE:
        took = duration(facts.seconds)
        at = soon(facts.snapshot.experiment.completed_at or facts.now, facts.now)
        return fitting(width, line(f"ended at {at}, after {took}"), line(f"took {took}"))
    left = facts.remaining
    if left is None:
        why = "before the first stage trains"
        if facts.snapshot.experiment.prepared is None:
            why = "before the data is prepared"
        elif facts.config is None:
            why = "the experiment is of another nasd"
        return fitting(width, line(("unknown ", ""), (why, "dim")), line("end unknown"))
    much = about(left.seconds)
    basis = "from the running stage so far"
    if left.finished:
        basis = f"from {counted(left.finished, 'finished stage')}"
    guessed = ""
    if left.guessed:
        guessed = f"; none yet of {', '.join(left.guessed)}"
    experiment = facts.snapshot.experiment
    if (
        facts.state is not ExperimentState.RUNNING
        or not facts.served
        or experiment.hold
        or experiment.pause
    ):
        return fitting(
            width,
            line(f"about {much} after it goes on ", (f"({basis}{guessed})", "dim")),
            line(f"about {much} after it goes on ", (f"({basis})", "dim")),
            line(f"about {much} left"),
            line(f"{much} left"),
        )
    at = soon(facts.now + left.seconds, facts.now)
    return fitting(
        width,
        line(f"in about {much}, {at} ", (f"({basis}{guessed})", "dim")),
        line(f"in about {much}, {at} ", (f"({basis})", "dim")),
        line(f"in about {much}, {at}"),
        line(f"in about {much}"),
        line(f"{much} left"),
    )


# -- what has it cost ----------------------------------------------------------------------------


def _cost(facts: Facts, width: int) -> Text:
    used, budget, unit = facts.gpu_hours, facts.budget, facts.unit
    spent = f"{hours(used)} of {hours(budget)} {unit}" if budget else f"{hours(used)} {unit}"
    left = facts.remaining
    if left is None:
        return fitting(width, line(spent), line(f"{hours(used)} {unit[0]}h"))
    more = f", about {hours(left.slot_hours)} more to the end"
    over = budget is not None and used + left.slot_hours > budget
    return fitting(
        width,
        line(spent, (more + (": over the budget" if over else ""), "yellow" if over else "dim")),
        line(spent, (more, "yellow" if over else "dim")),
        line(spent),
        line(f"{hours(used)} {unit}"),
        line(f"{hours(used)} h"),
    )
