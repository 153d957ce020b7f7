"""What a program sees of a search, and the command. What a person sees: test_status_view."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nasd.contract.errors import NasdError
from nasd.contract.protocol import Heartbeat, Outcome, Spec, write
from nasd.control.tick import Tick
from nasd.record import daemon_lock, snapshot
from nasd.record.folders import StateFolder
from nasd.record.lifecycle import Phase, State
from nasd.record.store import Store
from nasd.views.status import as_json
from nasd.views.status.facts import read
from tests.conftest import ROOT, all_succeed, drive, make_tick, small_config, small_dict, to_toml

CANDIDATE_KEYS = {
    "id",
    "generation",
    "baseline",
    "parent",
    "stage",
    "state",
    "reason",
    "waits",
    "genotype",
    "genotype_text",
    "hash",
    "parameters",
    "size",
    "parameters_percent",
    "losses",
    "exact_match",
    "f1",
    "scores",
    "quality",
    "quality_error",
    "seeds",
    "rank_within_noise_of",
    "rank",
    "rank_so_far",
    "crowding",
    "survives",
    "progress",
    "steps_per_second",
    "attempts",
}


def one_diverges(spec: Spec, before: int) -> tuple[float, Outcome | None]:
    if spec.candidate == 5:
        return 30.0, Outcome(verdict="diverged", message="the loss is NaN")
    return all_succeed(spec, before)


def in_phase(number: int, phase: Phase) -> Any:
    return lambda found: (
        found.generation and ((found.generation.number, found.generation.phase) == (number, phase))
    )


WHEN = {  # a search at several points of its life
    "just begun": None,
    "preparing": lambda found: found.live_attempts,
    "baseline": lambda found: found.experiment.prepared,
    "generation 0": in_phase(0, Phase.CLIMBING),
    "generation 1": in_phase(1, Phase.CLIMBING),
    "running": lambda found: len(found.results) > 20 and len(found.live_attempts) > 1,
    "complete": lambda found: False,
}


@pytest.fixture(scope="module")
def searches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Tick]]:
    ticks = {}
    for name, until in WHEN.items():
        folder = StateFolder(tmp_path_factory.mktemp("status") / "state")
        ticks[name] = make_tick(folder, small_config(), one_diverges)
        if until:
            drive(ticks[name], until)
    yield ticks
    for tick in ticks.values():
        tick.store.close()


@pytest.fixture(params=WHEN)
def search(request: pytest.FixtureRequest, searches: dict[str, Tick]) -> Tick:
    return searches[request.param]


def report(tick: Tick) -> dict[str, Any]:
    return as_json.report(tick.state.path, tick.clock())


# -- as JSON -------------------------------------------------------------------------------------


def test_the_text_is_what_python_would_write(search: Tick):
    found = report(search)
    assert as_json.text(found).decode() == json.dumps(found, indent=1)
    undecodable = {"path": os.fsdecode(b"/caf\xe9")}
    assert json.loads(as_json.text(undecodable)) == undecodable


@pytest.mark.parametrize("at_once", [1, 3, 1000])
def test_what_is_written_by_pieces_is_the_same_text(search: Tick, at_once):
    facts = read(search.state.path, search.clock(), whole=True)
    found = b"".join(as_json.pieces(facts, at_once))
    assert found == as_json.text(as_json.as_json(facts))


def test_the_last_loss_of_a_result_is_that_of_its_curve(search: Tick):
    found = search.store.read().results.values()
    for one in found:
        assert one.last_loss == (one.curve[-1][1] if one.curve else None)


def test_an_empty_folder_says_that_there_is_no_experiment(tmp_path: Path):
    with pytest.raises(NasdError, match="holds no experiment yet: start one with `nasd run`"):
        as_json.report(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_it_is_plain_json_at_every_point_of_a_search(search: Tick):
    data = report(search)
    assert json.loads(json.dumps(data, allow_nan=False)) == data
    assert set(data) == {
        "experiment",
        "generation",
        "phase",
        "notices",
        "gpu_hours",
        "front",
        "front_ever",
        "gained",
        "remaining",
        "slots",
        "candidates",
        "controls",
        "generations",
        "events",
    }
    for one in data["candidates"]:
        assert set(one) == CANDIDATE_KEYS
    assert len(data["candidates"]) == len(search.store.read().candidates)


@pytest.mark.parametrize("verdict", ["diverged", "error"])
@pytest.mark.parametrize("last", [False, True])
def test_a_generation_in_which_all_failed_is_never_healthy(
    tmp_path: Path, verdict: Any, last: bool
):
    def script(spec: Spec, before: int) -> tuple[float, Outcome | None]:
        if spec.generation == 1:
            said = f"{'abcdefgh'[spec.candidate - 4]} went wrong"  # another one each time
            return 30.0, Outcome(verdict=verdict, message=said)
        return all_succeed(spec, before)

    config = small_config(experiment__generations=1 if last else 2)
    tick = make_tick(StateFolder(tmp_path / "state"), config, script)
    found = drive(tick, lambda found: found.generation is not None and found.generation.number == 2)
    with daemon_lock.hold(tick.state.lock):
        notices = report(tick)["notices"]
    assert any(
        one["level"] == "bad" and "all 4 candidates of generation 1 failed" in one["text"]
        for one in notices
    ), notices
    ends = {"error": "halted", "diverged": "complete" if last else "running"}
    assert found.experiment.state == ends[verdict]
    tick.store.close()


@pytest.mark.parametrize(
    ("name", "phase", "generation"),
    [
        ("just begun", "prepare", None),
        ("preparing", "prepare", None),
        ("generation 0", "climbing", 0),
        ("generation 1", "climbing", 1),
        ("complete", "complete", 2),
    ],
)
def test_it_names_generation_and_phase(searches, name, phase, generation):
    data = report(searches[name])
    assert (data["phase"], data["generation"]) == (phase, generation)


def test_it_tells_each_candidates_stage_state_losses_scores_size_and_rank(searches):
    found = searches["complete"].store.read()
    for one in report(searches["complete"])["candidates"]:
        candidate = found.candidates[one["id"]]
        assert (one["stage"], one["state"]) == (candidate.stage, candidate.state)
        assert one["genotype"] == candidate.genotype.to_json()
        assert one["quality"] == found.quality(one["id"])
        assert one["size"] == found.size(one["id"])
        if candidate.state is State.SCORED:
            assert one["quality"] == (one["exact_match"] + one["f1"]) / 2
            assert one["baseline"] or isinstance(one["rank"], int)
        else:
            assert (one["quality"], one["rank"], one["survives"]) == (None, None, False)
        stages = [stage for owner, stage in found.results if owner == one["id"]]
        assert list(one["losses"]) == [s for s in stages if found.results[one["id"], s].curve]
        for stage, loss in one["losses"].items():
            assert loss == found.results[one["id"], stage].curve[-1][1]
    failed = next(c for c in report(searches["complete"])["candidates"] if c["id"] == 5)
    assert (failed["state"], failed["reason"]) == ("failed", "diverged: the loss is NaN")


def test_infinite_crowding_is_written_as_a_word(searches):
    values = [one["crowding"] for one in report(searches["complete"])["candidates"]]
    assert "inf" in values


def test_how_much_is_left_does_not_depend_on_how_much_is_read(search: Tick):
    path, now = search.state.path, search.clock()
    whole, part = (as_json.report(path, now, whole) for whole in (True, False))
    assert whole["remaining"] == part["remaining"]
    assert whole["gained"] == part["gained"]
    assert whole["notices"] == part["notices"]


def test_it_tells_who_holds_which_slot(searches):
    tick = searches["running"]
    found = tick.store.read()
    holders = {slot: a.candidate for a in found.live_attempts for slot in a.slots}
    for slot in report(tick)["slots"]:
        assert slot["candidate"] == holders.get(slot["slot"])
        assert slot["attempt"] == found.leases.get(slot["slot"])
    assert holders


def test_it_tells_the_ledger_and_the_budget(searches, tmp_path: Path):
    for tick in searches.values():
        with daemon_lock.hold(tick.state.lock):
            used = report(tick)["gpu_hours"]
        assert used == {
            "used": tick.store.read().gpu_hours(tick.clock()),
            "budget": None,
            "unit": "slot-hours",
        }
    tick = make_tick(StateFolder(tmp_path), small_config(experiment__budget_gpu_hours=12.5))
    assert report(tick)["gpu_hours"]["budget"] == 12.5


def test_it_tells_the_survivors_and_the_hypervolume_of_each_generation(searches):
    data = report(searches["complete"])
    found = searches["complete"].store.read()
    volumes = [one.payload["hypervolume"] for one in found.decisions if one.kind == "select"]
    assert [one["hypervolume"] for one in data["generations"]] == volumes
    assert [one["survivors"] for one in data["generations"]] == [
        found.survivors(number) for number in range(3)
    ]
    assert report(searches["generation 0"])["generations"][0]["hypervolume"] is None


def test_it_tells_where_a_worker_is_by_its_heartbeat(tmp_path: Path):
    tick = make_tick(StateFolder(tmp_path), small_config())
    tick()
    heartbeat = tick.state.attempt(1).heartbeat
    write(Heartbeat(doing="tokenising", step=3, steps=10, at=5.0), heartbeat)
    (one,) = report(tick)["candidates"]
    assert one["progress"] == {
        "doing": "tokenising",
        "step": 3,
        "steps": 10,
        "at": 5.0,
        "age": 0.0,
        "patience": 0.0,
    }
    for broken in ("", '{"doing": '):
        heartbeat.write_text(broken)
        (one,) = report(tick)["candidates"]
        assert one["progress"]["doing"] == "starting"


def test_it_tells_whether_a_daemon_serves_the_folder(tmp_path: Path):
    tick = make_tick(StateFolder(tmp_path), small_config())
    assert report(tick)["experiment"]["served"] is False
    with daemon_lock.hold(tick.state.lock):
        assert report(tick)["experiment"]["served"] is True


def test_attempts_hold_no_slots_beyond_their_last_sign_where_no_daemon_serves(searches):
    """The daemon was killed, and they with it: a night like that costs nothing."""
    tick = searches["running"]
    (attempt, *_) = tick.store.read().live_attempts
    last = attempt.started_at + 7.0
    heartbeat = tick.state.attempt(attempt.id).heartbeat
    there = heartbeat.read_text() if heartbeat.exists() else None
    write(Heartbeat(doing="training", at=last), heartbeat)
    try:
        for later in (0.0, 1e5):
            used = as_json.report(tick.state.path, tick.clock() + later)["gpu_hours"]["used"]
            assert used <= tick.store.read().gpu_hours(last) + 1e-9
    finally:
        if there is not None:
            heartbeat.write_text(there)
        else:
            heartbeat.unlink()


def test_the_time_taken_ends_with_the_last_sign_of_life_where_no_daemon_serves(searches):
    tick = searches["running"]
    snap = tick.store.read()
    (attempt, *_) = snap.live_attempts
    heartbeat = tick.state.attempt(attempt.id).heartbeat
    there = heartbeat.read_text() if heartbeat.exists() else None
    last = tick.clock() + 50.0
    write(Heartbeat(doing="training", at=last), heartbeat)
    try:
        for later in (1e3, 1e5):
            took = as_json.report(tick.state.path, tick.clock() + later)["experiment"]["seconds"]
            assert took == pytest.approx(last - snap.experiment.created_at)
        with daemon_lock.hold(tick.state.lock):
            took = as_json.report(tick.state.path, tick.clock() + 1e3)["experiment"]["seconds"]
        assert took == pytest.approx(tick.clock() + 1e3 - snap.experiment.created_at)
    finally:
        if there is not None:
            heartbeat.write_text(there)
        else:
            heartbeat.unlink()


def test_it_tells_why_a_search_halted(tmp_path: Path):
    tick = make_tick(StateFolder(tmp_path), small_config())
    tick.store.halt("the disk is full", tick.clock())
    data = report(tick)
    assert (data["phase"], data["experiment"]["reason"]) == ("halted", "the disk is full")
    assert data["notices"] == [{"level": "bad", "text": "halted: the disk is full"}]


def test_it_answers_while_the_daemon_is_within_a_transaction(searches):
    tick = searches["running"]
    before = report(tick)
    writer = Store(tick.state.database)
    writer._db.conn.execute("BEGIN IMMEDIATE")
    writer._db.execute("UPDATE experiment SET state = 'halted'")
    assert report(tick) == before
    writer._db.conn.execute("ROLLBACK")
    writer.close()


def test_it_writes_nothing(searches):
    tick = searches["running"]
    with snapshot.opened(tick.state.path) as connection:
        before = connection.execute("PRAGMA data_version").fetchone()
        report(tick)
        assert connection.execute("PRAGMA data_version").fetchone() == before


def test_what_is_ranked_so_far_is_ranked_as_the_selection_ranks_it(searches):
    ranked = [one for one in report(searches["complete"])["candidates"] if one["rank"] is not None]
    newest = [one for one in ranked if one["generation"] == 2 or one["survives"]]
    assert newest
    for one in newest:
        if one["rank_so_far"] is not None:
            assert one["rank_so_far"] == one["rank"]


def test_it_tells_what_the_search_has_gained_on_the_generation_before(searches):
    found = searches["complete"].store.read()
    gained = report(searches["complete"])["gained"]
    volumes = {
        d.generation: d.payload["hypervolume"] for d in found.decisions if d.kind == "select"
    }
    assert gained["hypervolume"] == pytest.approx(volumes[2])
    assert (gained["before"], gained["hypervolume_before"]) == (1, volumes[1])
    assert gained["baseline"] == found.quality(found.baseline.id)
    scored = [found.quality(one) for one in found.survivors(2)]
    assert gained["quality"] == max(scored)


# -- as a command --------------------------------------------------------------------------------

HEAVY = {
    "torch",
    "transformers",
    "datasets",
    "evaluate",
    "pandas",
    "numpy",
    "sqlite_utils",
    "moocore",
    "apscheduler",
    "tensorboard",
    "jinja2",
    "matplotlib",
    "pyarrow",
    "scipy",
}

PROBE = """
import json, sys
sys.argv = ["nasd", *json.loads(sys.argv[1])]
from nasd.cli import main
try:
    main()
except SystemExit as end:
    assert end.code in (0, None), end.code
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})), file=sys.stderr)
"""


def probe(*arguments: str, folder: Path, **more: str) -> tuple[str, set[str]]:
    """What a command prints, and the packages that it has imported. more: environment."""
    done = subprocess.run(
        [sys.executable, "-c", PROBE, json.dumps(arguments)],
        cwd=folder,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "COLUMNS": "80", **more},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return done.stdout, set(json.loads(done.stderr.splitlines()[-1]))


@pytest.mark.parametrize("arguments", [("--json",), ()])
def test_the_command_answers_without_any_heavy_import(searches, tmp_path: Path, arguments):
    tick = searches["running"]
    data = small_dict(experiment__state=str(tick.state.path))
    (tmp_path / "config.toml").write_text(to_toml(data))
    out, imported = probe("status", *arguments, folder=tmp_path)
    assert imported & HEAVY == set()
    if arguments:
        told = json.loads(out)
        assert len(told["candidates"]) == len(tick.store.read().candidates)
    else:
        assert max(map(len, out.splitlines())) <= 80


def test_the_command_takes_a_state_folder_without_a_config(searches, tmp_path: Path):
    out, _ = probe("status", "--state", str(searches["complete"].state.path), folder=tmp_path)
    assert "Final population of small" in out


def test_a_pipe_that_knows_ascii_alone_gets_all_of_it(searches, tmp_path: Path):
    state = searches["running"].state.path
    out, _ = probe("status", "--state", str(state), folder=tmp_path, PYTHONIOENCODING="ascii")
    assert out.isascii()
    assert "small  generation" in out


@pytest.mark.parametrize("columns", ["1", "20"])
def test_a_very_narrow_terminal_gets_a_view(searches, tmp_path: Path, columns: str):
    state = searches["running"].state.path
    out, _ = probe("status", "--state", str(state), folder=tmp_path, COLUMNS=columns)
    assert out
    assert max(map(len, out.splitlines())) <= int(columns)
