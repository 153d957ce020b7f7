"""The control plane at scale: a search of thousands of candidates, as deep into it as can be.

The database is filled by SQL with what a search of that size leaves; then real ticks run on it
(synchronous = FULL, a launcher that only pretends), the real commands, and a real daemon at rest.
"""

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console

import nasd
from nasd.contract.genotype import Backbone, Block, FeedForward, Genotype, unchanged
from nasd.contract.protocol import AttemptFolder, Heartbeat, write
from nasd.control.pictures import Beside
from nasd.control.tick import Tick
from nasd.policy.decisions import next_decision
from nasd.record.folders import StateFolder
from nasd.record.readings import Readings
from nasd.record.store import Store
from nasd.views.board import Board
from nasd.views.status.facts import Reader
from nasd.views.status.text import Lines
from nasd.views.status.view import view
from tests.bench.beside import beside
from tests.conftest import Clock, FakeLauncher, begin, prepared, thesis_config

DISTILBERT = Backbone(30522, 512, 768)
SELECTS = "selects, opens, breeds, backs up and collects"
DRAWN = "draws TensorBoard's pictures of that beside the turns"
CURVE = [(50 * n, 6.0 - 0.1 * n) for n in range(1, 33)]
EVENTS_A_STAGE = 2
LADDER = ("pretrain_0", "pretrain_1", "finetune", "evaluate")


def genotypes(count: int, seed: int = 0) -> list[Genotype]:
    """So many different ones, of about the size that a search comes to."""
    draw = random.Random(seed)
    found: dict[str, Genotype] = {}
    while len(found) < count:
        blocks = tuple(
            Block(
                draw.choice([6, 8, 12]),
                tuple(
                    FeedForward(
                        draw.choice(["relu", "gelu"]),
                        tuple(draw.choice([1024, 2048, 3072]) for _ in range(draw.choice([1, 2]))),
                    )
                    for _ in range(draw.choice([1, 1, 2]))
                ),
            )
            for _ in range(draw.randint(4, 8))
        )
        one = Genotype(blocks)
        found[one.hash] = one
    return list(found.values())


def fill(state: StateFolder, candidates: int) -> None:
    """A search whose newest generation is about to be bred, behind `candidates` others."""
    config = thesis_config(experiment={"generations": 10**6})
    store = Store(state.database)
    store._db.execute("PRAGMA synchronous = OFF")
    begin(store, config, DISTILBERT, Genotype((Block(12, (FeedForward("gelu", (3072,)),)),) * 6))
    ready = json.dumps(prepared().model_dump())
    draw = random.Random(1)
    with store._transaction():
        run = store._db.conn.execute
        run("UPDATE experiment SET prepared = ?", (ready,))
        run("UPDATE candidate SET state = 'scored', stage = 'evaluate' WHERE id = 0")
        _attempt(run, 0, "evaluate", 0.0)
        _result(run, 0, "evaluate", draw)
        mu, lambda_ = config.population.mu, config.population.lambda_
        drawn = iter(genotypes(candidates))
        number, generation, parents = 1, 0, [0]
        while number <= candidates:
            run(
                "INSERT INTO generation VALUES (?, 'complete', ?, ?)",
                (generation, generation * 1e5, generation * 1e5 + 9e4),
            )
            born = []
            for _ in range(min(mu if generation == 0 else lambda_, candidates + 1 - number)):
                one = next(drawn)
                cut = generation > 0 and len(born) % 2 == 1
                stages = LADDER[:1] if cut else LADDER
                _candidate(
                    *(run, number, generation, draw.choice(parents), one),
                    *(draw.randint(20_000_000, 90_000_000), stages[-1], "cut" if cut else "scored"),
                )
                for stage in stages:
                    _attempt(run, number, stage, generation * 1e5)
                    _result(run, number, stage, draw)
                born.append(number)
                number += 1
            scored = born if generation == 0 else [*parents, *born[::2]]
            survivors = scored[-mu:]
            for role, members in (("parent", parents), ("offspring", born)):
                for member in members if generation or role == "offspring" else ():
                    run(
                        "INSERT INTO member VALUES (?, ?, ?, ?, 0, 1.0)",
                        (generation, member, role, int(member in survivors)),
                    )
            for kind, stage, payload in _decisions(generation, born, scored, survivors):
                run(
                    "INSERT INTO decision (generation, kind, stage, payload, at)"
                    " VALUES (?, ?, ?, ?, 0)",
                    (generation, kind, stage, json.dumps(payload)),
                )
            parents, generation = survivors, generation + 1
    store._db.execute(
        "UPDATE experiment SET slot_seconds = (SELECT"
        " sum(json_array_length(slots) * (ended_at - started_at)) FROM attempt)"
    )
    store._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    store.close()


def _candidate(
    run: Callable[..., Any],
    number: int,
    generation: int,
    parent: int,
    one: Genotype,
    size: int,
    stage: str,
    state: str,
) -> None:
    lines = [f"{number}.{place}" for place in range(len(one.blocks))]
    run(
        "INSERT INTO candidate (id, generation, parent, genotype, hash, lineage, parameters, stage,"
        " state, ancestry) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            *(number, generation, parent, json.dumps(one.to_json()), one.hash, _lineage(one)),
            *(size, stage, state, json.dumps(lines)),
        ),
    )
    run("INSERT INTO parentage VALUES (?, 0, ?)", (number, parent))


def _lineage(one: Genotype) -> str:
    """As if its first block's attention had been altered."""
    first, *others = unchanged(one)
    return json.dumps(
        [
            b.to_json()
            for b in (replace(first, attention=replace(first.attention, transfer="fresh")), *others)
        ]
    )


def put_in_play(state: StateFolder, before: int, count: int) -> None:
    """One more generation behind `before` candidates: half of it cut, much of the rest scored, and
    four that train, with learning curves of days."""
    store = Store(state.database)
    store._db.execute("PRAGMA synchronous = OFF")
    draw = random.Random(2)
    number = _newest(store) + 1
    parents = store.read().survivors(number - 1)
    live: list[int] = []
    with store._transaction():
        run = store._db.conn.execute
        run("INSERT INTO generation VALUES (?, 'climbing', ?, NULL)", (number, time.time() - 9e4))
        for parent in parents:
            run("INSERT INTO member VALUES (?, ?, 'parent', NULL, NULL, NULL)", (number, parent))
        for place, one in enumerate(genotypes(before + count)[before:]):
            fate = "cut" if place % 2 else "scored" if place < 0.8 * count else "pending"
            fate = "running" if fate == "pending" and len(live) < 4 else fate
            done = {"cut": 1, "scored": 4}.get(fate, 1)
            candidate = before + 1 + place
            stage = "pretrain_1" if fate in ("pending", "running") else LADDER[done - 1]
            _candidate(
                *(run, candidate, number, draw.choice(parents), one),
                *(draw.randint(20_000_000, 90_000_000), stage, fate),
            )
            run(
                "INSERT INTO member VALUES (?, ?, 'offspring', NULL, NULL, NULL)",
                (number, candidate),
            )
            for stage in LADDER[:done]:
                _attempt(run, candidate, stage, time.time() - 8e4)
                _result(run, candidate, stage, draw)
            if fate == "running":
                slot = f"cuda:{len(live)}"
                cursor = run(
                    "INSERT INTO attempt (candidate, stage, number, state, slots, token,"
                    " started_at) VALUES (?, 'pretrain_1', 1, 'running', ?, ?, ?)",
                    (candidate, json.dumps([slot]), os.urandom(16).hex(), time.time() - 8e4),
                )
                live.append(cursor.lastrowid or 0)
                run("INSERT INTO lease VALUES (?, ?)", (slot, live[-1]))
    store.close()
    for attempt in live:
        folder = state.attempt(attempt)
        folder.path.mkdir(parents=True, exist_ok=True)
        beat = Heartbeat(doing="training", step=250_000, steps=400_000, at=time.time(), age=8e4)
        write(beat, folder.heartbeat)
        _log(folder, 0, 5_000)


def _log(folder: AttemptFolder, first: int, last: int) -> None:
    with folder.metrics.open("a") as file:
        for n in range(first, last):
            line = {"kind": "train", "step": 50 * n, "loss": 2 + 40 / (n + 10)}
            file.write(json.dumps({**line, "learning_rate": 1e-4, "at": 1e9 + 15 * n}) + "\n")


def refreshes(state: StateFolder, times: int) -> dict[str, list[float]]:
    """Seconds of a refresh of `nasd status --watch`, from the read to the characters; before each
    of them something happens in the search, and every attempt writes a line."""
    store = Store(state.database)
    reader = Reader(state.path)
    live = [one.id for one in store.in_play().live_attempts]
    found: dict[str, list[float]] = {}
    for turn in range(times):
        for width, height in ((80, 24), (200, 60)):
            store.note("daemon", "started", time.time())
            for attempt in live:
                _log(state.attempt(attempt), 5_000 + turn, 5_001 + turn)
            console = Console(file=StringIO(), width=width, height=height, force_terminal=True)
            begun = time.perf_counter()
            console.print(Lines(view(reader.read(), width, height)))
            spent = time.perf_counter() - begun
            name = f"a refresh of the view, {width} x {height}"
            found.setdefault(name if turn else f"{name}, the first", []).append(spent)
    store.close()
    return found


def _decisions(
    generation: int, born: list[int], scored: list[int], survivors: list[int]
) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """As policy words them."""
    yield "breed", "", {"picked": born}
    if generation > 0:
        cutoff = {
            "rule": "every other one",
            "keep": 0.5,
            "places": len(born[::2]),
            "reached": len(born),
            "losses": {str(member): CURVE[-1][1] for member in born},
            "curves": {str(member): CURVE for member in born},
            "kept": born[::2],
            "cut": born[1::2],
        }
        yield "cutoff", "pretrain_0", cutoff
    select = {
        "points": {str(member): (50.0, 1.0) for member in scored},
        "ranks": {str(member): 0 for member in scored},
        "survivors": survivors,
        "hypervolume": 1.0,
    }
    yield "select", "", select


def _attempt(run: Callable[..., Any], candidate: int, stage: str, at: float) -> None:
    cursor = run(
        "INSERT INTO attempt (candidate, stage, number, state, slots, token, verdict, started_at,"
        " ended_at) VALUES (?, ?, 1, 'succeeded', ?, ?, 'succeeded', ?, ?)",
        (candidate, stage, '["cuda:0", "cuda:1"]', os.urandom(16).hex(), at, at + 3600),
    )
    for event in ("start", "advance"):
        run(
            "INSERT INTO event (at, candidate, attempt, event, source, target, stage) VALUES"
            " (?, ?, ?, ?, 'pending', 'running', ?)",
            (at, candidate, cursor.lastrowid, event, stage),
        )


def _result(run: Callable[..., Any], candidate: int, stage: str, draw: random.Random) -> None:
    f1 = draw.uniform(20, 80)
    metrics = {"loss": draw.uniform(2, 6), "exact_match": f1 - 10, "f1": f1}
    run(
        "INSERT INTO result VALUES (?, ?, 1, ?, ?, 1600, 3600.0, 0)",
        (candidate, stage, json.dumps(metrics), json.dumps(CURVE)),
    )


def ticks(state: StateFolder, generations: int) -> dict[str, list[float]]:
    """Seconds of each turn, by what the turn did, while so many generations climb their ladder."""
    config = thesis_config(experiment={"generations": 10**6, "seed": 1})
    clock = Clock(1e9)
    store = Store(state.database)
    launcher = FakeLauncher(clock)
    launcher.weights = []
    _stand_in_weights(state, store)
    slots = tuple(f"cpu:{n}" for n in range(4))
    config = config.model_copy(update={"slots": config.slots.model_copy(update={"devices": slots})})
    pictures = Beside(Board(state, Readings(state.path)))
    tick = Tick(
        *(store, config, state.path, state, slots, launcher, clock),
        monotonic=clock,
        pictures=pictures,
    )
    with pictures:
        return _climb(tick, launcher, clock, generations, pictures)


def _climb(
    tick: Tick, launcher: FakeLauncher, clock: Clock, generations: int, pictures: Beside
) -> dict[str, list[float]]:
    store, config = tick.store, tick.config
    tick.begin()
    tick()  # the backup at the start, and the generation that is due
    spent: dict[str, list[float]] = {}
    last = _newest(store) + generations
    turns = 0
    while _newest(store) < last:
        ends = [end for end, *_ in launcher.jobs.values()]
        before = store.in_play()
        jobs = {*launcher.jobs}
        turns += 1
        if turns % 2:  # every other one finds nothing new
            clock.now = max(clock.now + 0.1, min(ends)) if ends else clock.now + 10
        begun = time.perf_counter()
        tick()
        seconds = time.perf_counter() - begun
        after = store.in_play()
        if after.generations != before.generations:
            kind = SELECTS
        elif len(after.decisions) > len(before.decisions):
            kind = "makes a cutoff"
        elif jobs != {*launcher.jobs}:
            kind = "ends and starts attempts"
        else:
            kind = "rests"
        spent.setdefault(kind, []).append(seconds)
        if kind == SELECTS:
            drawing = time.perf_counter()
            pictures.wait(60)
            spent.setdefault(DRAWN, []).append(time.perf_counter() - drawing)
    assert next_decision(store.in_play(), config) == next_decision(store.read(), config)
    store.close()
    return spent


def _newest(store: Store) -> int:
    generation = store.in_play().generation
    return -1 if generation is None else generation.number


def _stand_in_weights(state: StateFolder, store: Store) -> None:
    for candidate in store.in_play().candidates:
        for stage in ("prepare", *LADDER[:-1]):
            folder = state.result(candidate, stage)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "model.json").write_text(json.dumps({"candidate": candidate}))


STATUS = {"nasd status": ["status"], "nasd status --json": ["status", "--json"]}


def commands(
    state: StateFolder, asked: Mapping[str, list[str]], times: int
) -> dict[str, list[float]]:
    """Seconds of each command, of the nasd that runs this; compiled, as one that is installed is,
    whatever this environment says of that."""
    compiled = {"PYTHONPYCACHEPREFIX": str(state.path.parent / "compiled")}
    environment = os.environ | {"PYTHONPATH": str(Path(nasd.__file__).parents[1])} | compiled
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    found: dict[str, list[float]] = {}
    for name, words in asked.items():
        for nth in range(times + 1):
            begun = time.perf_counter()
            subprocess.run(
                [sys.executable, "-P", "-m", "nasd", *words, "--state", str(state.path)],
                check=True,
                capture_output=True,
                env=environment,
            )
            if nth:  # the first one has compiled it
                found.setdefault(name, []).append(time.perf_counter() - begun)
    return found


AT_REST = """
import sys
from pathlib import Path
from nasd.control import daemon
from nasd.record.folders import StateFolder
from nasd.launch.local import LocalLauncher
from nasd.record.store import Store
from nasd.control.tick import Tick
from nasd.contract.config import load
from nasd.control.pictures import Beside
from nasd.record.readings import Readings
from nasd.views.board import Board

class Idle(LocalLauncher):
    # what is started only waits: the daemon watches as it watches training
    def start(self, folder, slots, token):
        import nasd.contract.protocol as p, os, subprocess, psutil, time
        from nasd.contract import variables
        p.write(p.Heartbeat(doing="training", at=time.time()), folder.heartbeat)
        child = subprocess.Popen(["sleep", "100000"], env=os.environ | {variables.TOKEN: token})
        self._children[child.pid] = child
        return {"pid": child.pid, "started": psutil.Process(child.pid).create_time(), "boot": ""}

state = StateFolder(Path(sys.argv[1]))
config = load(Path(sys.argv[2]))
slots = tuple(f"cpu:{n}" for n in range(4))
with Beside(Board(state, Readings(state.path))) as pictures:
    store = Store(state.database)
    tick = Tick(store, config, state.path, state, slots, Idle(1), pictures=pictures)
    daemon._serve(tick)
"""


def at_rest(state: StateFolder, seconds: float) -> dict[str, float]:
    """A real daemon that watches four running attempts: share of a core, and memory."""
    root = Path(__file__).resolve().parents[2]
    store = Store(state.database)
    _stand_in_weights(state, store)
    store.close()
    with subprocess.Popen(
        [sys.executable, "-c", AT_REST, str(state.path), str(root / "config.toml")],
        stderr=subprocess.DEVNULL,
    ) as child:
        process = psutil.Process(child.pid)
        try:
            time.sleep(10)  # starts, and has its first turns behind it
            before, begun = process.cpu_times(), time.monotonic()
            time.sleep(seconds)
            assert child.poll() is None, "the daemon at rest has ended"
            after, passed = process.cpu_times(), time.monotonic() - begun
            used = after.user + after.system - before.user - before.system
            return {
                "share of a core": used / passed,
                "resident MB": process.memory_info().rss / 1e6,
                "private MB": process.memory_full_info().uss / 1e6,
            }
        finally:
            for worker in process.children(recursive=True):
                worker.kill()
            child.kill()


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="bin/bench control", description=__doc__)
    parser.add_argument("--candidates", type=int, default=10_000)
    parser.add_argument("--in-play", type=int, default=500, help="of them, while status looks")
    parser.add_argument("--generations", type=int, default=3, help="that climb while it measures")
    parser.add_argument("--rest", type=float, default=60.0, help="seconds of watching the daemon")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--report", type=int, default=2_000, help="candidates of `nasd report`")
    parser.add_argument("--beside", type=Path, help="another checkout, in turns with this one")
    given = parser.parse_args(arguments)
    if given.beside is not None:
        root = Path(__file__).resolve().parents[2]
        beside(given.beside, root, given.candidates, given.report, given.generations)
        return
    with tempfile.TemporaryDirectory(prefix="nasd-bench-") as folder:
        state = StateFolder(Path(folder) / "state")
        fill(state, given.candidates)
        size = state.database.stat().st_size / 1e6
        figures: dict[str, Any] = {
            "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
            "candidates": given.candidates,
            "database MB": size,
        }
        print(f"{given.candidates} candidates, {size:.0f} MB of database", flush=True)
        found = {f"a turn that {k}": v for k, v in ticks(state, given.generations).items()}
        found |= commands(state, STATUS, 7)
        smaller = StateFolder(Path(folder) / "smaller")
        fill(smaller, given.report)
        report = ["report", "--out", str(Path(folder) / "report")]
        found |= commands(smaller, {f"nasd report, {given.report} candidates": report}, 3)
        busy = StateFolder(Path(folder) / "busy")
        fill(busy, given.candidates - given.in_play)
        put_in_play(busy, given.candidates - given.in_play, given.in_play)
        found |= refreshes(busy, 20)
        print(f"{'':58}{'n':>5}{'median':>10}{'most':>10}")
        for name, values in found.items():
            middle, most = statistics.median(values), max(values)
            figures[name] = {"n": len(values), "median": middle, "most": most}
            print(f"{name:58}{len(values):5}{1e3 * middle:7.1f} ms{1e3 * most:7.1f} ms")
        figures["daemon at rest"] = at_rest(state, given.rest) if given.rest else {}
        for name, value in figures["daemon at rest"].items():
            shown = f"{100 * value:.2f} %" if name.startswith("share") else f"{value:.0f}"
            print(f"daemon at rest, {name:42}{shown:>15}")
    if given.json:
        given.json.write_text(json.dumps(figures, indent=1))
