"""Is it healthy? What a person should know of an experiment, the gravest first; nothing: it is.

One line of `notices` for each thing that there may be to say.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from nasd.contract.config import Config
from nasd.contract.readable import about, counted
from nasd.contract.slots import Slot
from nasd.policy import endings, scheduling
from nasd.record.lifecycle import ExperimentState, State
from nasd.record.state import PAUSED, Snapshot
from nasd.views import caveats
from nasd.views.status.attempts import Where

if TYPE_CHECKING:
    from nasd.views.status.devices import Device

OVERDUE_SECONDS = 60.0  # of silence: a worker speaks every second, or says before that it will not
GB = 1e9

Level = Literal["bad", "warning", "note"]


@dataclass(frozen=True, slots=True)
class Notice:
    """bad: a person has to do something. warning: nasd goes on by itself, but not as it could.
    note: all is well with the search, and this is worth knowing of its data."""

    level: Level
    text: str


def notices(
    snapshot: Snapshot,
    config: Config | None,
    served: bool,
    where: Mapping[int, Where],
    devices: "Mapping[str, Device]",
    now: float,
) -> list[Notice]:
    experiment = snapshot.experiment
    notes = [Notice("note", text) for text in caveats.of(experiment.prepared or {})]
    return [*_notices(snapshot, config, served, where, devices, now), *notes]


def _notices(
    snapshot: Snapshot,
    config: Config | None,
    served: bool,
    where: Mapping[int, Where],
    devices: "Mapping[str, Device]",
    now: float,
) -> list[Notice]:
    experiment = snapshot.experiment
    found: list[Notice] = []
    if experiment.state is ExperimentState.HALTED:
        found.append(Notice("bad", f"halted: {experiment.reason}"))
    elif experiment.runs and not served:
        found.append(Notice("bad", "no daemon serves it: go on with `nasd run`"))
    found += _nobody_left(snapshot)
    if not experiment.runs:
        return found
    if experiment.pause:
        said = f"{PAUSED[experiment.pause]} {experiment.pause_note}: `nasd resume` goes on"
        found.append(Notice("warning", said))
    if experiment.hold:
        found.append(Notice("warning", f"on hold: {experiment.hold}"))
    if config is not None and scheduling.budget_spent(snapshot, config, now):
        found.append(Notice("warning", "the budget is spent: what runs stops at a checkpoint"))
    found += [
        Notice("warning", f"{one.slot} is left alone: {one.reason}")
        for one in snapshot.quarantine.values()
    ]
    found += [
        Notice("warning", f"{Slot.parse(slot).device}: {device.fault}")
        for slot, device in devices.items()
        if device.fault and not snapshot.left_alone(slot) and Slot.parse(slot).place == 1
    ]
    found += _lost(snapshot)
    if served:
        found += _silent(where, now)
    return found


def _nobody_left(snapshot: Snapshot) -> Iterator[Notice]:
    """Of the two newest generations, as the newest may just have begun."""
    for one in snapshot.generations[-2:]:
        born = snapshot.born_in(one.number)
        if born and all(candidate.state is State.FAILED for candidate in born):
            last = born[-1]
            yield Notice(
                "bad",
                f"all {counted(len(born), 'candidate')} of generation {one.number} failed, the last"
                f" at {last.stage}: {last.reason}",
            )


def _lost(snapshot: Snapshot) -> Iterator[Notice]:
    tried = {(one.candidate, one.stage): one for one in snapshot.attempts if not one.live}
    for one in snapshot.candidates.values():
        if one.state in (State.PENDING, State.RUNNING) and (one.id, one.stage) in tried:
            row = endings.setbacks(snapshot, one)
            if row:
                last = tried[one.id, one.stage]
                times = counted(len(row), "attempt")
                text = f"candidate {one.id} lost {times} at {one.stage} in a row"
                yield Notice("warning", f"{text}: {last.message}" if last.message else text)


def _silent(where: Mapping[int, Where], now: float) -> Iterator[Notice]:
    for candidate, one in where.items():
        if one.beat is None:
            continue
        silent = now - one.beat.at
        if silent > max(OVERDUE_SECONDS, one.beat.patience):
            text = f"candidate {candidate} has been silent for {about(silent)} ({one.beat.doing})"
            yield Notice("warning", text)
