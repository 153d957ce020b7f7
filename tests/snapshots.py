"""What the tests of pure functions share: snapshots of a search, put as a test wants them."""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from nasd.contract.config import Config
from nasd.contract.genotype import Genotype, unchanged
from nasd.record.folders import StateFolder
from nasd.record.lifecycle import AttemptState, AttemptVerdict, Phase, State
from nasd.record.state import Attempt, Snapshot
from nasd.record.store import BASELINE
from tests.conftest import drive, make_tick, prepared, small_config

CONFIG = small_config()
SLOTS = ("cpu:0", "cpu:1", "cpu:2", "cpu:3")


def phase_of(number: int, phase: Phase) -> Any:
    return lambda snapshot: any(
        one.number == number and one.phase is phase for one in snapshot.generations
    )


def snapshot_when(folder: StateFolder, config: Config, until: Any) -> Snapshot:
    tick = make_tick(folder, config)
    drive(tick, until)
    snapshot = tick.store.read()
    tick.store.close()
    return snapshot


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    """The experiment has just begun: the baseline waits for prepare."""
    tick = make_tick(StateFolder(tmp_path_factory.mktemp("begun")), CONFIG)
    return tick.store.read()


@pytest.fixture(scope="module")
def generation_0(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    """Generation 0, candidates 1 to 3, has just been born, and nobody runs."""
    folder = StateFolder(tmp_path_factory.mktemp("gen0"))
    return idle(snapshot_when(folder, CONFIG, phase_of(0, Phase.CLIMBING)), "pretrain_0")


@pytest.fixture(scope="module")
def generation_1(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    """Generation 1, candidates 4 to 7, has just been born, and nobody runs. All four have the same
    work ahead."""
    folder = StateFolder(tmp_path_factory.mktemp("gen1"))
    found = idle(snapshot_when(folder, CONFIG, phase_of(1, Phase.CLIMBING)), "pretrain_0")
    return shaped(found, found.candidates[4].genotype, 4, 5, 6, 7)


def idle(snapshot: Snapshot, stage: str) -> Snapshot:
    """As if the newest generation stood at this stage and no attempt at it had been made yet."""
    assert snapshot.generation is not None
    born = [one.id for one in snapshot.born_in(snapshot.generation.number)]
    others = tuple(one for one in snapshot.attempts if not one.live and one.candidate not in born)
    found = replace(snapshot, attempts=others, leases={})
    if not snapshot.baseline.final:
        found = put(found, {BASELINE: ("evaluate", State.SCORED)})
    return put(found, dict.fromkeys(born, (stage, State.PENDING)))


def put(snapshot: Snapshot, where: Mapping[int, tuple[str, State]], reason: str = "") -> Snapshot:
    """The snapshot with these candidates at other places."""
    candidates = dict(snapshot.candidates)
    for number, (stage, state) in where.items():
        candidates[number] = replace(candidates[number], stage=stage, state=state, reason=reason)
    return replace(snapshot, candidates=candidates)


def shaped(snapshot: Snapshot, genotype: Genotype, *numbers: int) -> Snapshot:
    """The snapshot with these candidates of this architecture, with nothing new in it."""
    text = json.dumps(genotype.to_json())
    origin = json.dumps([block.to_json() for block in unchanged(genotype)])
    found = {
        number: replace(snapshot.candidates[number], genotype_json=text, lineage_json=origin)
        for number in numbers
    }
    return replace(snapshot, candidates=snapshot.candidates | found)


def attempt_of(candidate: int, stage: str, state: AttemptState, **more: Any) -> Attempt:
    given: dict[str, Any] = {"number": 1, "slots": ("cpu:0",), "process": None, "message": ""}
    given |= {"started_at": 2000.0, "verdict": "", "token": "", "id": 99}
    given["reached"] = 0
    given["ended_at"] = None if state is AttemptState.RUNNING else 2010.0
    given |= more
    given["verdict"] = AttemptVerdict(given["verdict"])
    return Attempt(candidate=candidate, stage=stage, state=state, **given)


def with_attempts(snapshot: Snapshot, *attempts: Attempt) -> Snapshot:
    return replace(snapshot, attempts=(*snapshot.attempts, *attempts))


def lost(candidate: int, times: int, verdict: str = "", stage: str = "pretrain_0") -> list[Attempt]:
    state = AttemptState.FAILED if verdict else AttemptState.LOST
    return [
        attempt_of(candidate, stage, state, verdict=verdict, message="boom", id=100 + n)
        for n in range(times)
    ]


def baseline_at(snapshot: Snapshot, stage: str, state: State, has_head: bool | None) -> Snapshot:
    found = put(snapshot, {BASELINE: (stage, state)})
    said = None if has_head is None else prepared(has_head).model_dump()
    return replace(found, experiment=replace(found.experiment, prepared=said))


def in_phase(snapshot: Snapshot, phase: Phase) -> Snapshot:
    *before, last = snapshot.generations
    return replace(snapshot, generations=(*before, replace(last, phase=phase)))
