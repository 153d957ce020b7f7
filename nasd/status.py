"""What the experiment is doing, for a person: as JSON, as a table, and as a live view.

Reads the database read-only and the heartbeats of live attempts; works with the daemon down.
"""

import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nasd import daemon_lock, snapshot
from nasd.config import PREPARE
from nasd.errors import NasdError
from nasd.folders import StateFolder
from nasd.lifecycle import State
from nasd.snapshot import Attempt, Candidate, LoggedEvent, Member, Snapshot

EVENTS = 5
OTHERS = 80  # columns that all but the genotype take


def report(state: Path, now: float | None = None, whole: bool = True) -> dict[str, Any]:
    """The experiment as plain JSON values; raises NasdError if there is none.

    Not whole: the baseline and the newest generation with its parents, which is what a view shows.
    """
    folder = StateFolder(state)
    with snapshot.opened(state) as connection:
        snap = snapshot.read(connection, whole)
        events = snapshot.events(connection, EVENTS)
    now = time.time() if now is None else now
    experiment = snap.experiment
    config = experiment.config
    generation = snap.generation
    used = {slot for attempt in snap.attempts for slot in attempt.slots}
    devices = sorted(used | {*snap.leases, *snap.quarantine})
    about = _About.all(snap)
    return {
        "experiment": {
            "name": experiment.name,
            "seed": experiment.seed,
            "state": experiment.state,
            "reason": experiment.reason,
            "hold": experiment.hold,
            "pause": experiment.pause,
            "pause_note": experiment.pause_note,
            "served": daemon_lock.held(folder.lock),
            "started_at": experiment.created_at,
            "seconds": (experiment.completed_at or now) - experiment.created_at,
            "generations": config["experiment"]["generations"],
            "mu": config["population"]["mu"],
            "lambda": config["population"]["lambda"],
            "data": experiment.prepared,
        },
        "generation": None if generation is None else generation.number,
        "phase": _phase(snap),
        "gpu_hours": {
            "used": snap.gpu_hours(now),
            "budget": experiment.budget(config["experiment"]["budget_gpu_hours"]),
        },
        "slots": [
            {
                "slot": slot,
                "attempt": snap.leases.get(slot),
                "candidate": _holder(snap, slot),
                "quarantine": snap.quarantine[slot].reason if slot in snap.quarantine else None,
            }
            for slot in devices
        ],
        "candidates": [
            _candidate(snap, folder, one, about[one.id]) for one in snap.candidates.values()
        ],
        "generations": [
            {
                "number": one.number,
                "phase": str(one.phase),
                "survivors": snap.survivors(one.number),
                "hypervolume": _hypervolume(snap, one.number),
            }
            for one in snap.generations
        ],
        "events": [_event(event) for event in events],
    }


def _phase(snap: Snapshot) -> str:
    if snap.experiment.state != "running":
        return snap.experiment.state
    if snap.experiment.prepared is None:
        return PREPARE
    return str(snap.generation.phase) if snap.generation else "baseline"


def _holder(snap: Snapshot, slot: str) -> int | None:
    attempt = next((a for a in snap.live_attempts if slot in a.slots), None)
    return None if attempt is None else attempt.candidate


@dataclass
class _About:
    """What other tables say of one candidate."""

    live: Attempt | None = None
    attempts: int = 0
    losses: dict[str, float] = field(default_factory=dict)
    member: Member | None = None  # of the newest generation that ranked it

    @classmethod
    def all(cls, snap: Snapshot) -> "dict[int, _About]":
        found = {candidate: cls() for candidate in snap.candidates}
        for attempt in snap.attempts:
            found[attempt.candidate].attempts += 1
            if attempt.live:
                found[attempt.candidate].live = attempt
        for (candidate, stage), result in snap.results.items():
            if result.curve:
                found[candidate].losses[stage] = result.curve[-1][1]
        for member in snap.members:
            if member.rank is not None and member.candidate in found:
                found[member.candidate].member = member
        return found


def _candidate(
    snap: Snapshot, folder: StateFolder, candidate: Candidate, about: _About
) -> dict[str, Any]:
    member = about.member
    scores = snap.scores(candidate.id) or {}
    return {
        "id": candidate.id,
        "generation": candidate.generation,
        "baseline": candidate.is_baseline,
        "parent": candidate.parent,
        "stage": candidate.stage,
        "state": str(candidate.state),
        "reason": candidate.reason,
        "genotype": candidate.genotype.to_json(),
        "genotype_text": str(candidate.genotype),
        "hash": candidate.hash,
        "parameters": candidate.parameters,
        "size": snap.size(candidate.id),
        "losses": about.losses,
        "exact_match": scores.get("exact_match"),
        "f1": scores.get("f1"),
        "quality": snap.quality(candidate.id),
        "rank": None if member is None else member.rank,
        "crowding": _plain(None if member is None else member.crowding),
        "survives": bool(member and member.survives),
        "progress": None if about.live is None else _progress(folder, about.live.id),
        "attempts": about.attempts,
    }


def _progress(folder: StateFolder, attempt: int) -> dict[str, Any]:
    import json

    try:
        beat: dict[str, Any] = json.loads(folder.attempt(attempt).heartbeat.read_text())
    except (OSError, ValueError):
        return {"doing": "starting", "step": 0, "steps": 0, "at": None}
    return beat


def _hypervolume(snap: Snapshot, generation: int) -> float | None:
    found = [d for d in snap.decisions if d.kind == "select" and d.generation == generation]
    return found[0].payload["hypervolume"] if found else None


def _event(event: LoggedEvent) -> dict[str, Any]:
    return {name: getattr(event, name) for name in event.__slots__}


def _plain(value: float | None) -> float | str | None:
    """JSON knows no infinity."""
    return "inf" if value is not None and math.isinf(value) else value


# -- for a terminal ------------------------------------------------------------------------------


def render(data: dict[str, Any], width: int, height: int | None = None) -> Any:
    """The view as a rich renderable. height: of the terminal; None shows every row."""
    from rich.console import Group
    from rich.text import Text

    experiment = data["experiment"]
    header = Text(no_wrap=True, overflow="ellipsis")
    header.append(experiment["name"], style="bold")
    header.append(f"  {_where(data)}")
    header.append(f"  {_duration(experiment['seconds'])}")
    used, budget = data["gpu_hours"]["used"], data["gpu_hours"]["budget"]
    on_gpus = any(slot["slot"].startswith("cuda") for slot in data["slots"])
    unit = "GPU-hours" if on_gpus else "slot-hours"
    header.append(f"  {used:.2f} {unit}" + (f" of {budget:g}" if budget else ""))
    parts: list[Any] = [header]
    if experiment["state"] == "halted":
        parts.append(Text(f"halted: {experiment['reason']}", style="bold red"))
    elif experiment["state"] == "running" and not experiment["served"]:
        parts.append(Text("no daemon serves it: go on with `nasd run`", style="yellow"))
    if experiment["pause"]:
        said = {"pause": "paused", "drain": "draining"}[experiment["pause"]]
        parts.append(Text(f"{said} {experiment['pause_note']}: `nasd resume` goes on", "yellow"))
    if experiment["hold"]:
        parts.append(Text(f"on hold: {experiment['hold']}", style="bold yellow"))
    for slot in data["slots"]:
        if slot["quarantine"]:
            text = Text(f"{slot['slot']} is left alone: {slot['quarantine']}", style="yellow")
            text.no_wrap, text.overflow = True, "ellipsis"
            parts.append(text)
    slots = "  ".join(f"{slot['slot']} " + _slot_text(slot) for slot in data["slots"])
    if slots:
        parts.append(Text(slots, style="dim", no_wrap=True, overflow="ellipsis"))
    candidates = _in_view(data)
    events = data["events"] if experiment["state"] != "complete" else []
    if height is not None:
        room = height - sum(_lines(part, width) for part in parts) - 5  # the table's, the prompt's
        events = events[len(events) - max(0, min(len(events), room - 4)) :]  # the newest
        candidates = candidates[: max(1, room - len(events))]
    parts.append(_table(candidates, width))
    parts += [_event_line(event) for event in events]
    return Group(*parts)


def summary(data: dict[str, Any], state: Path, width: int) -> Any:
    """The end of a search: final population, baseline, Pareto front, and where to look next."""
    from rich.console import Group
    from rich.text import Text

    last = data["generations"][-1]
    population = [c for c in data["candidates"] if c["id"] in last["survivors"]]
    population.sort(key=lambda c: (c["rank"], -c["quality"]))
    baseline = [c for c in data["candidates"] if c["baseline"]]
    front = [c for c in population if c["rank"] == 0]
    parts = [
        Text(f"Final population of {data['experiment']['name']}", style="bold"),
        _table([*population, *baseline], width),
        Text("Pareto front (rank 0)", style="bold"),
        *(
            Text(
                f"  {c['id']:>4}  quality {c['quality']:6.2f}  size {c['size']:.3f}"
                f"  {c['genotype_text']}",
                no_wrap=True,
                overflow="ellipsis",
            )
            for c in front
        ),
        Text("Where to look next", style="bold"),
        Text(f"  {_shown(_tool('tensorboard'))} --logdir {_shown(state / 'tensorboard')}"),
        Text("      learning curves, cutoffs and hypervolume, in a browser"),
        Text(f"  {_shown(_tool('nasd'))} status --json --state {_shown(state)}"),
        Text("      everything, for a program"),
        Text(f"  {_shown(state)}/candidates/<id>/finetune"),
        Text("      the trained models"),
    ]
    return Group(*parts)


def _tool(name: str) -> Path:
    """A command of the environment that runs this."""
    return Path(sys.executable).parent / name


def _shown(path: Path) -> Path:
    """As short as it can be typed from here."""
    try:
        return path.relative_to(Path.cwd())
    except ValueError:
        return path


def watch(
    state: Path, interval: float = 1.0, stop: Callable[[], bool] = lambda: False
) -> dict[str, Any]:
    """The live view until the search ends, is left by Ctrl-C, or `stop()`; the last report."""
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console = Console()
    data: dict[str, Any] = {}

    def view() -> Any:
        nonlocal data
        try:
            data = report(state, whole=False)
        except NasdError as error:
            return Text(f"waiting: {error}", no_wrap=True, overflow="ellipsis")
        return render(data, console.width, console.height)

    if not console.is_terminal:
        _follow(state, interval, stop)
        return report(state, whole=False)
    with Live(view(), console=console, auto_refresh=False, transient=True) as live:
        while not stop() and not (data and data["experiment"]["state"] != "running"):
            time.sleep(interval)
            live.update(view(), refresh=True)
    return data


def _follow(state: Path, interval: float, stop: Callable[[], bool]) -> None:
    """Without a terminal: one line per event, as it comes."""
    seen = 0.0
    while True:
        ended = stop()
        try:
            with snapshot.opened(state) as connection:
                events = snapshot.events(connection, 200)
                ended = ended or snapshot.read(connection, False).experiment.state != "running"
        except NasdError:
            events = []
        for event in events:
            if event.at > seen:
                print(_event_text(_event(event)), flush=True)
        seen = max([seen, *(event.at for event in events)])
        if ended:
            return
        time.sleep(interval)


def _where(data: dict[str, Any]) -> str:
    generations = data["experiment"]["generations"]
    if data["generation"] is None:
        return str(data["phase"])
    return f"generation {data['generation']} of {generations}, {data['phase']}"


def _lines(text: Any, width: int) -> int:
    """How many lines a text takes; one more where words that do not fit may be wrapped."""
    return 1 if text.no_wrap or len(text) <= width else len(text) // width + 2


def _slot_text(slot: dict[str, Any]) -> str:
    if slot["candidate"] is not None:
        return f"candidate {slot['candidate']}"
    return "left alone" if slot["quarantine"] else "idle"


def _in_view(data: dict[str, Any]) -> list[dict[str, Any]]:
    """The newest generation, then the parents it came from, then the baseline."""
    number = data["generation"]
    born = [c for c in data["candidates"] if c["generation"] == number and not c["baseline"]]
    survivors = set(data["generations"][-2]["survivors"]) if len(data["generations"]) > 1 else set()
    parents = [c for c in data["candidates"] if c["id"] in survivors]
    return [*born, *parents, *(c for c in data["candidates"] if c["baseline"])]


def _table(candidates: list[dict[str, Any]], width: int) -> Any:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), expand=False, pad_edge=False)
    for name in ("id", "gen", "stage", "state"):
        table.add_column(name, no_wrap=True, justify="right" if name == "id" else "left")
    for name in ("params", "loss", "EM", "F1", "rank"):
        table.add_column(name, no_wrap=True, justify="right")
    wide = width >= 100
    if wide:
        table.add_column("genotype", no_wrap=True, overflow="ellipsis", max_width=width - OTHERS)
    for one in candidates:
        losses = list(one["losses"].items())
        mlm = [loss for stage, loss in losses if stage not in ("finetune", "evaluate")]
        row = [
            str(one["id"]),
            "base" if one["baseline"] else str(one["generation"]),
            one["stage"],
            _state_text(one),
            _count(one["parameters"]),
            f"{mlm[-1]:.3f}" if mlm else "",
            _number(one["exact_match"]),
            _number(one["f1"]),
            "" if one["rank"] is None else str(one["rank"]),
        ]
        table.add_row(*row, *([one["genotype_text"]] if wide else []), style=_style(one))
    return table


def _state_text(one: dict[str, Any]) -> str:
    progress = one["progress"]
    if progress is None:
        return str(one["state"])
    if progress["steps"] and progress["doing"] == "training":
        return f"{100 * progress['step'] // progress['steps']:3d} %"
    return str(progress["doing"])[:12]


def _style(one: dict[str, Any]) -> str:
    if one["baseline"]:
        return "cyan"
    return {
        State.RUNNING: "bold",
        State.CUT: "dim",
        State.FAILED: "red",
        State.SCORED: "green",
    }.get(State(one["state"]), "")


def _event_line(event: dict[str, Any]) -> Any:
    from rich.text import Text

    return Text(_event_text(event), style="dim", no_wrap=True, overflow="ellipsis")


def _event_text(event: dict[str, Any]) -> str:
    at = time.strftime("%H:%M:%S", time.localtime(event["at"]))
    who = "" if event["candidate"] is None else f"candidate {event['candidate']} "
    what = f"{event['event']} {event['stage'] or ''}".strip()
    return f"{at} {who}{what}" + (f": {event['detail']}" if event["detail"] else "")


def _count(parameters: int) -> str:
    return f"{parameters / 1e6:.2f}M" if parameters >= 1e6 else f"{parameters / 1e3:.0f}k"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days}d {hours:02d}h"
    return f"{hours}h {minutes:02d}m" if hours else f"{minutes}m {rest:02d}s"
