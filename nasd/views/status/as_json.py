"""All of it as plain JSON values, for a program: `nasd status --json`."""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic_core import PydanticSerializationError, from_json, to_json

from nasd.contract.genotype import text_of
from nasd.contract.readable import share_of_baseline
from nasd.record.lifecycle import DecisionKind
from nasd.record.state import Candidate, LoggedEvent, Snapshot
from nasd.search import noise
from nasd.search.objectives import QUALITY
from nasd.views.status import standing
from nasd.views.status.attempts import Where
from nasd.views.status.facts import Facts, read

if TYPE_CHECKING:
    from nasd.views.status.devices import Device

EVENTS = 20
STARTING = {"doing": "starting", "step": 0, "steps": 0, "at": None}


def report(state: Path, now: float | None = None, whole: bool = True) -> dict[str, Any]:
    """The experiment of a state folder; raises NasdError if there is none.

    Not whole: the baseline and the newest generation with its parents, which is what a view shows.
    """
    return as_json(read(state, now, whole))


def pieces(facts: Facts, at_once: int = 32) -> Iterator[bytes]:
    """`text` of `as_json`, so many candidates at a time: few enough for each piece to be made where
    the one before was, as memory for all of thousands takes longer than to write them into."""
    snap, tables = facts.snapshot, _Tables.of(facts.snapshot)
    begin, end = b'{\n "candidates": [', b"\n ]\n}"
    frame = text(_with(facts, tables, []))
    # A key of the outermost level stands behind a line break and one space, and nothing else does.
    before, behind = frame.split(b'\n "candidates": []')
    yield before + b'\n "candidates": ['
    for first in range(0, len(snap.individuals), at_once):
        some = snap.individuals[first : first + at_once]
        told = text({"candidates": [_candidate(facts, one, tables) for one in some]})
        assert told.startswith(begin) and told.endswith(end)
        yield (b"," if first else b"") + told[len(begin) : -len(end)]
    yield b"\n ]" + behind


def text(found: dict[str, Any]) -> bytes:
    """As `json.dumps` would write it, one value a line, ASCII alone; that takes a second for
    thousands of candidates, as Python's own writer is quick only without line breaks."""
    try:
        return to_json(found, indent=1, ensure_ascii=True)
    except PydanticSerializationError:  # bytes of a name that are no UTF-8
        return json.dumps(found, indent=1).encode()


def as_json(facts: Facts) -> dict[str, Any]:
    snap, tables = facts.snapshot, _Tables.of(facts.snapshot)
    return _with(facts, tables, [_candidate(facts, one, tables) for one in snap.individuals])


def _with(facts: Facts, tables: "_Tables", candidates: list[dict[str, Any]]) -> dict[str, Any]:
    snap = facts.snapshot
    experiment = snap.experiment
    config = experiment.config
    generation = snap.generation
    return {
        "experiment": {
            "name": experiment.name,
            "seed": experiment.seed,
            "state": experiment.state,
            "reason": experiment.reason,
            "hold": experiment.hold,
            "pause": experiment.pause,
            "pause_note": experiment.pause_note,
            "served": facts.served,
            "started_at": experiment.created_at,
            "seconds": facts.seconds,
            "generations": facts.generations,
            "mu": config["population"]["mu"],
            "lambda": config["population"]["lambda"],
            "data": experiment.prepared,
        },
        "generation": None if generation is None else generation.number,
        "phase": facts.phase,
        "notices": [asdict(one) for one in facts.notices],
        "gpu_hours": {"used": facts.gpu_hours, "budget": facts.budget, "unit": facts.unit},
        "front": [one for one, rank in facts.ranks.items() if rank == 0],
        "front_ever": [one.id for one in standing.ever(snap)],
        "gained": asdict(facts.gained),
        "remaining": _remaining(facts),
        "slots": [_slot(facts, slot) for slot in facts.slots],
        "candidates": candidates,
        "controls": [_candidate(facts, one, tables) for one in snap.controls],
        "generations": [
            {
                "number": one.number,
                "phase": str(one.phase),
                "survivors": tables.survivors.get(one.number, []),
                "hypervolume": tables.hypervolumes.get(one.number),
            }
            for one in snap.generations
        ],
        "events": [_event(event) for event in facts.events[-EVENTS:]],
    }


def _remaining(facts: Facts) -> dict[str, Any] | None:
    left = facts.remaining
    return None if left is None else {**asdict(left), "guessed": list(left.guessed)}


@dataclass
class _Tables:
    """What other tables say of candidates, and of generations."""

    losses: dict[int, dict[str, float]] = field(default_factory=dict)
    survivors: dict[int, list[int]] = field(default_factory=dict)
    hypervolumes: dict[int, float] = field(default_factory=dict)
    unsure: dict[int, tuple[int, ...]] = field(default_factory=dict)

    @classmethod
    def of(cls, snap: Snapshot) -> "_Tables":
        found = cls()
        for (candidate, stage), result in snap.results.items():
            loss = result.last_loss
            if loss is not None:
                found.losses.setdefault(candidate, {})[stage] = loss
        for member in snap.members:
            if member.survives:
                found.survivors.setdefault(member.generation, []).append(member.candidate)
        for one in snap.decisions:
            if one.kind is DecisionKind.SELECT:
                found.hypervolumes[one.generation] = one.payload["hypervolume"]
        if snap.generation is not None:
            newest = [one for one in snap.members if one.generation == snap.generation.number]
            pool = [one.candidate for one in newest]
            found.unsure = {one: snap.unsure(one, pool) for one in pool}
        return found


def _slot(facts: Facts, slot: str) -> dict[str, Any]:
    quarantine = facts.snapshot.left_alone(slot)
    holder = facts.holders.get(slot)
    device = facts.devices.get(slot)
    return {
        "slot": slot,
        "attempt": facts.snapshot.leases.get(slot),
        "candidate": None if holder is None else holder.attempt.candidate,
        "quarantine": None if quarantine is None else quarantine.reason,
        "device": None if device is None else _device(device),
    }


def _device(device: "Device") -> dict[str, Any]:
    return {**asdict(device), "foreign": [asdict(one) for one in device.foreign]}


def _candidate(facts: Facts, candidate: Candidate, tables: _Tables) -> dict[str, Any]:
    snap = facts.snapshot
    member = facts.members.get(candidate.id)
    scores: Mapping[str, float] = snap.scores(candidate.id) or {}
    where = facts.where.get(candidate.id)
    genotype = from_json(candidate.genotype_json)
    size = snap.size(candidate.id)
    return {
        "id": candidate.id,
        "generation": candidate.generation,
        "baseline": candidate.is_baseline,
        "parent": candidate.parent,
        "stage": candidate.stage,
        "state": str(candidate.state),
        "reason": candidate.reason,
        "waits": facts.waits.get(candidate.id),
        "genotype": genotype,
        "genotype_text": text_of(genotype),
        "hash": candidate.hash,
        "parameters": candidate.parameters,
        "size": size,
        "parameters_percent": share_of_baseline(size),
        "losses": tables.losses.get(candidate.id, {}),
        "exact_match": scores.get("exact_match"),
        "f1": scores.get("f1"),
        "scores": snap.scoring.named(scores),
        "quality": QUALITY.value(candidate, scores, snap.baseline),
        "quality_error": noise.error_of(scores),
        "seeds": int(scores.get(noise.SEEDS, 1)),
        "rank_within_noise_of": list(tables.unsure.get(candidate.id, ())),
        "rank": None if member is None else member.rank,
        "rank_so_far": facts.ranks.get(candidate.id),
        "crowding": _plain(None if member is None else member.crowding),
        "survives": bool(member and member.survives),
        "progress": None if where is None else _progress(where),
        "steps_per_second": None if where is None else where.steps_per_second,
        "attempts": facts.attempts.get(candidate.id, 0),
    }


def _progress(where: Where) -> dict[str, Any]:
    if where.beat is not None:
        return where.beat.model_dump()
    return {**STARTING, "doing": where.attempt.message or STARTING["doing"]}


def _event(event: LoggedEvent) -> dict[str, Any]:
    return {name: getattr(event, name) for name in event.__slots__}


def _plain(value: float | None) -> float | str | None:
    """JSON knows no infinity."""
    return "inf" if value is not None and math.isinf(value) else value
