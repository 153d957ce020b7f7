"""Builders that the tests share: a small config, a fresh store, a launcher that only pretends."""

import json
import os
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from nasd.contract import config as config_module
from nasd.contract.config import PREPARE, Config
from nasd.contract.genotype import Backbone, Block, FeedForward, Genotype
from nasd.contract.latency import Table
from nasd.contract.protocol import (
    IGNORANCE,
    PARENT,
    AttemptFolder,
    Heartbeat,
    Outcome,
    Prepared,
    Spec,
    read,
    write,
)
from nasd.contract.slots import divided
from nasd.control.tick import Tick
from nasd.estimate.latency import measurements, supposed
from nasd.launch.launcher import Launcher
from nasd.record.folders import StateFolder
from nasd.record.lifecycle import DecisionKind, Event
from nasd.record.state import Snapshot
from nasd.record.store import Store
from nasd.search.fidelity import RULES
from nasd.views.board import Board

settings.register_profile(
    "nasd",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("nasd")
os.environ.pop("NASD_CONFIG", None)  # of whoever runs the tests

ROOT = Path(__file__).resolve().parent.parent
BACKBONE = Backbone(vocab_size=100, positions=64, width=32)
BASELINE = Genotype((Block(4, (FeedForward("gelu", (64,)),)),) * 3)
START = 1000.0  # when the virtual clock begins

# -- configs -------------------------------------------------------------------------------------

_RATES = {"encoder": 0.4, "encoder_add": 0.5, "ffn": 0.6, "ffn_add": 0.5, "attention": 0.6}
_SMALL: dict[str, Any] = {
    "experiment": {"name": "small", "seed": 5, "generations": 2},
    "seed_model": {"source": "seed"},
    "slots": {"devices": ["cpu:0", "cpu:1", "cpu:2", "cpu:3"]},
    "population": {"mu": 3, "lambda": 4, "tournament": 2},
    "variation": {"initial": _RATES, "offspring": _RATES},
    "search_space": {
        "blocks": [1, 5],
        "heads": [2, 4, 8],
        "ffns": 2,
        "layers": [2, 3],
        "sizes": [32, 64, 96],
    },
    "data": {
        "mlm": {
            "corpora": [{"files": ["corpus.txt"]}],
            "tokens": 32,
            "evaluation_sequences": 8,
        },
        "qa": {"files": ["squad.json"], "tokens": 48, "stride": 16},
    },
    "stages": [
        {
            "name": "pretrain_head",
            "task": "mlm",
            "train": "head",
            "who": "baseline",
            "slots": 2,
            "epochs": 1,
            "batch": 8,
            "learning_rate": 1e-3,
        },
        {
            "name": "pretrain_0",
            "task": "mlm",
            "train": "new",
            "slots": 2,
            "epochs": 1,
            "batch": 8,
            "learning_rate": 1e-3,
            "keep": 0.5,
        },
        {
            "name": "pretrain_1",
            "task": "mlm",
            "train": "all",
            "slots": 2,
            "epochs": 1,
            "batch": 8,
            "learning_rate": 1e-3,
        },
        {
            "name": "finetune",
            "task": "qa",
            "train": "all",
            "who": "all",
            "slots": 2,
            "epochs": 1,
            "batch": 8,
            "learning_rate": 1e-3,
        },
        {
            "name": "evaluate",
            "task": "qa",
            "train": "none",
            "who": "all",
            "slots": 1,
            "batch": 8,
        },
    ],
}


def small_dict(**changes: Any) -> dict[str, Any]:
    """A small config as TOML would give it; changes by dotted key, `__` for the dot, a stage by
    its name: small_dict(population__mu=2, stages__finetune__slots=1). None removes the key."""
    data = deepcopy(_SMALL)
    for key, value in changes.items():
        *above, last = key.split("__")
        place: Any = data
        for part in above:
            if isinstance(place, list):
                place = next(one for one in place if one["name"] == part)
            else:
                place = place.setdefault(part, {})
        if value is None:
            del place[last]
        else:
            place[last] = value
    return data


def of_tuned_parents(data: dict[str, Any], operators: Mapping[str, float]) -> dict[str, Any]:
    """The same search with children of fine-tuned parents, and so without MLM stages."""
    data["variation"] = {
        "inherit_from": "task",
        "transfers": "informed",
        "operators": operators,
        "steps": [1, 2],
    }
    data["stages"] = [one for one in data["stages"] if one["task"] != "mlm"]
    data["search_space"] |= {"blocks": [1, 4]}
    return data


def small_config(**changes: Any) -> Config:
    return config_module.parse(small_dict(**changes), "small.toml")


def thesis_config(**changes: Any) -> Config:
    """The config as shipped, with whole sections replaced in part."""
    config = config_module.load(ROOT / "config.toml")
    data = config.model_dump(mode="json", by_alias=True)
    for section, values in changes.items():
        data[section].update(values)
    return config_module.parse(data, "config.toml")


def to_toml(data: Mapping[str, Any]) -> str:
    import tomlkit

    return tomlkit.dumps(data)


# -- training ------------------------------------------------------------------------------------


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[Any]:
    """This process as the only rank of a group: nasd.worker.tasks.task.Ranks."""
    import torch
    import torch.distributed as dist

    from nasd.worker.tasks.task import Ranks

    dist.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1
    )
    yield Ranks(0, 1, torch.device("cpu"))
    dist.destroy_process_group()


# -- the store -----------------------------------------------------------------------------------


def begin(
    store: Store,
    config: Config,
    backbone: Backbone = BACKBONE,
    baseline: Genotype = BASELINE,
    now: float = START,
) -> None:
    store.create_experiment(
        config.experiment.name,
        config.experiment.seed,
        config.model_dump(mode="json", by_alias=True),
        backbone,
        baseline,
        PREPARE,
        now,
    )


def open_quickly(path: Path) -> Store:
    """A store that does not wait for the disk: power cuts are not for these tests."""
    store = Store(path)
    store._db.execute("PRAGMA synchronous = OFF")
    return store


def connect_quickly(path: Any, *arguments: Any, **named: Any) -> sqlite3.Connection:
    """As sqlite3.connect; a backup on its way does not wait for the disk either."""
    connection = _connect(path, *arguments, **named)
    if str(path).endswith(".tmp"):
        connection.execute("PRAGMA synchronous = OFF")
    return connection


_connect = sqlite3.connect


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    monkeypatch.setattr(sqlite3, "connect", connect_quickly)


@contextmanager
def without_summaries() -> Iterator[None]:
    """Nothing of the daemon's for TensorBoard, where that is not what is tested."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nasd.views.board.Board.show", lambda board, *what, **more: None)
        yield


@pytest.fixture
def no_summaries() -> Iterator[None]:
    with without_summaries():
        yield


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], StateFolder]:
    """New state folders, as many as are asked for."""
    return lambda: StateFolder(tmp_path_factory.mktemp("search") / "state")


@pytest.fixture
def state(tmp_path: Path) -> StateFolder:
    return StateFolder(tmp_path / "state")


@pytest.fixture
def store(state: StateFolder) -> Iterator[Store]:
    """An open store whose experiment has just begun."""
    opened = open_quickly(state.database)
    begin(opened, small_config())
    yield opened
    opened.close()


# -- a launcher that only pretends ---------------------------------------------------------------


class Clock:
    """Time that passes only when told to."""

    def __init__(self, now: float = START) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def prepared(has_mlm_head: bool = True, latency: Table | None = None) -> Prepared:
    return Prepared(
        latency={} if latency is None else latency.to_json(),
        mlm_cache="/cache/mlm",
        qa_cache="/cache/qa",
        has_mlm_head=has_mlm_head,
        parameters=1,
        mlm_train_sequences=200,
        mlm_evaluation_sequences=1,
        qa_train_questions=1,
        qa_test_questions=2000,
        qa_train_features=200,
        qa_test_features=1,
    )


def succeeded(spec: Spec, has_mlm_head: bool = True) -> Outcome:
    """The outcome of a good worker: its numbers depend on genotype and stage alone."""
    if spec.stage is None:
        space = spec.profiled
        table = None if space is None else supposed(space, BACKBONE, spec.measure)
        found = prepared(has_mlm_head, table)
        return Outcome(verdict="succeeded", has_result=True, prepared=found)
    if spec.mutants:
        hashes = {str(one.id): Genotype.from_json(one.genotype).hash for one in spec.mutants}
        losses = {number: 1 + int(name[:8], 16) % 1009 / 1009 for number, name in hashes.items()}
        return Outcome(verdict="succeeded", metrics={**losses, PARENT: 1.0, IGNORANCE: 2.5})
    luck = int(Genotype.from_json(spec.genotype).hash[:8], 16)
    if spec.stage.train == "none":
        scores = {"exact_match": float(luck % 61), "f1": float(luck % 61 + luck % 17)}
        if spec.stage.measure:
            told = measurements(Genotype.from_json(spec.genotype), BACKBONE, spec.measure)
            scores |= {name: 1.1 * value for name, value in told.items()}  # it is never as told
        return Outcome(verdict="succeeded", has_result=True, metrics={"loss": 1.0, **scores})
    loss = 2 + (luck % 1009) / 1009
    return Outcome(
        verdict="succeeded",
        has_result=True,
        metrics={"loss": loss},
        curve=[(5, loss + 1), (10, loss)],
        steps=10,
        seconds=30.0,
    )


# (spec, how often this candidate was started at this stage before) -> (seconds, outcome or None)
Script = Callable[[Spec, int], tuple[float, Outcome | None]]


def all_succeed(spec: Spec, before: int) -> tuple[float, Outcome | None]:
    return 30.0, succeeded(spec)


class FakeLauncher(Launcher):
    """Runs nothing: after its time an attempt has left the outcome that the script says, or is
    just gone where the script says None. Insists that no slot is used twice at once."""

    def __init__(self, clock: Clock, script: Script = all_succeed) -> None:
        self.clock = clock
        self.script = script
        self.jobs: dict[str, tuple[float, Outcome | None, AttemptFolder, tuple[str, ...]]] = {}
        self.specs: list[Spec] = []
        self.weights: list[dict[str, int] | None] = []  # what each of them found to start from

    def start(self, folder: AttemptFolder, slots: Sequence[str], token: str) -> dict[str, Any]:
        spec = read(Spec, folder.spec)
        for _, _, other, taken in self.jobs.values():
            assert not set(slots) & set(taken), f"{folder.path} and {other.path} share a slot"
        before = sum(
            (one.candidate, one.stage) == (spec.candidate, spec.stage) for one in self.specs
        )
        self.specs.append(spec)
        model = None if spec.weights is None else Path(spec.weights, "model.json")
        self.weights.append(None if model is None else json.loads(model.read_text()))
        seconds, outcome = self.script(spec, before)
        self.jobs[token] = (self.clock() + seconds, outcome, folder, tuple(slots))
        write(Heartbeat(doing="training", at=self.clock()), folder.heartbeat)
        return {"token": token}

    def alive(self, process: Mapping[str, Any]) -> bool:
        job = self.jobs.get(process["token"])
        if job is None:
            return False
        end, outcome, folder, _ = job
        if self.clock() < end:
            return True
        write(Heartbeat(doing="leaving", at=end), folder.heartbeat)
        if outcome is not None:
            self._leave(folder, outcome, process["token"])
        del self.jobs[process["token"]]
        return False

    def stop(self, token: str) -> None:
        if token in self.jobs:
            outcome = Outcome(verdict="stopped", message="asked to", token=token)
            write(outcome, self.jobs[token][2].outcome)
            del self.jobs[token]

    def owns(self, pid: int) -> bool | None:
        return None

    def clear(self, token: str) -> int:
        return int(self.jobs.pop(token, None) is not None)

    def _leave(self, folder: AttemptFolder, outcome: Outcome, token: str) -> None:
        if outcome.has_result:
            spec = read(Spec, folder.spec)
            folder.result.mkdir()
            said = {"candidate": spec.candidate, "attempt": spec.attempt}
            (folder.result / "model.json").write_text(json.dumps(said))
        write(outcome.model_copy(update={"token": token}), folder.outcome)


# -- a whole search ------------------------------------------------------------------------------


def make_tick(
    state: StateFolder,
    config: Config,
    script: Script = all_succeed,
    clock: Clock | None = None,
    store: Store | None = None,
) -> Tick:
    """A tick on the experiment of the state folder, which begins if there is none."""
    clock = clock or Clock()
    if store is None:
        new = not state.database.exists()
        store = open_quickly(state.database)
        if new:
            begin(store, config)
    assert config.slots.devices != "auto"
    return Tick(
        store,
        config,
        state.path,
        state,
        divided(config.slots.devices, config.slots.share),
        FakeLauncher(clock, script),
        clock,
        monotonic=clock,
        free_bytes=lambda path: 1 << 50,
        pictures=Board(state, store),
    )


def advance(tick: Tick, seconds: float = 10.0) -> None:
    """Lets time pass: until the next attempt ends, or so long where none runs."""
    assert isinstance(tick.clock, Clock)
    assert isinstance(tick.launcher, FakeLauncher)
    ends = [end for end, *_ in tick.launcher.jobs.values()]
    tick.clock.now = max(tick.clock.now + 0.1, min(ends)) if ends else tick.clock.now + seconds


def drive(
    tick: Tick,
    until: Callable[[Snapshot], bool] = lambda snapshot: False,
    most: int = 5000,
) -> Snapshot:
    """Turns until the experiment ends or `until` holds; the snapshot then."""
    for _ in range(most):
        tick()
        snapshot = tick.store.read()
        if snapshot.experiment.state != "running" or until(snapshot):
            return snapshot
        advance(tick)
    raise AssertionError(f"no end after {most} turns")


def story(store: Store) -> dict[str, Any]:
    """What may not depend on the order of events, on kills, or on lost attempts."""
    snapshot = store.read()
    return {
        "state": str(snapshot.experiment.state),
        "generations": [(one.number, one.phase) for one in snapshot.generations],
        "candidates": {
            one.id: (
                one.generation,
                one.parent,
                one.hash,
                one.lineage_json,
                one.stage,
                one.state,
                one.reason,
            )
            for one in snapshot.candidates.values()
        },
        "decisions": decisions_of(snapshot),
        "members": snapshot.members,
        "results": {
            key: (one.metrics, one.curve, one.steps) for key, one in snapshot.results.items()
        },
        "events": {number: path_of(store, number) for number in snapshot.candidates},
    }


def decisions_of(snapshot: Snapshot) -> list[tuple[int, DecisionKind, str, dict[str, Any]]]:
    """In their order. Of an asynchronous rule, which decides on one rung while another still fills,
    the order of two rungs of a generation is no part of the story: there, rung by rung."""
    made = [(one.generation, one.kind, one.stage, one.payload) for one in snapshot.decisions]
    told = snapshot.experiment.config.get("promotion", {}).get("rule", "share")
    if RULES[told].asynchronous:
        made.sort(key=lambda one: (one[0], [*DecisionKind].index(one[1]), one[2]))
    return made


def path_of(store: Store, candidate: int) -> list[tuple[str, str]]:
    """A candidate's events without the starts that came to nothing, and without failures that a
    person had it try again."""
    path: list[tuple[str, str]] = []
    for event in events_of(store, candidate):
        if event[0] == Event.INTERRUPT:
            assert path[-1][0] == Event.START
            path.pop()
        elif event[0] == Event.RETRY:
            assert [one[0] for one in path[-2:]] == [Event.START, Event.FAIL]
            del path[-2:]
        elif event[0] != "request":
            if event[0] == Event.CUT and path[-1][0] == Event.START:
                path.pop()
            path.append(event)
    return path


def events_of(store: Store, candidate: int) -> list[tuple[str, str]]:
    """(event, stage) of a candidate, in order."""
    return [
        (row[0], row[1])
        for row in store._db.execute(
            "SELECT event, stage FROM event WHERE candidate = ? ORDER BY id", (candidate,)
        )
    ]
