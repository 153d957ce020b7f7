"""The soak itself: that it ends, and that it would notice what it is there to notice."""

import os
import random
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from nasd.contract import config as config_module
from nasd.contract import variables
from nasd.contract.config import Config
from nasd.launch.launcher import wait_until
from nasd.launch.simulated import save_checkpoint
from nasd.presets import write_preset
from nasd.record import snapshot
from nasd.record.folders import StateFolder
from nasd.record.lifecycle import AttemptState, State
from nasd.record.state import Snapshot
from nasd.record.store import Store
from tests.conftest import story, thesis_config
from tests.soak import __main__ as command
from tests.soak import mischief, real, report, simulated
from tests.soak.report import Part, Progress, Span
from tests.soak.serve import LastingClock, Weather

FEW = {"population": {"mu": 3, "lambda": 4}, "experiment": {"generations": 1}}


@pytest.fixture(scope="module")
def soaked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Part, Config]:
    """A short soak of a small search, and its report."""
    folder = tmp_path_factory.mktemp("soak")
    config = thesis_config(daemon=simulated.DAEMON, **FEW)
    return folder, simulated.soak(folder, 4, 3, lambda text: None, config), config


@pytest.fixture
def state(soaked: tuple[Path, Part, Config], tmp_path: Path) -> StateFolder:
    """A copy of what it left."""
    shutil.copytree(soaked[0] / "state", tmp_path / "state")
    return StateFolder(tmp_path / "state")


@contextmanager
def read(state: StateFolder, change: str = "") -> Iterator[tuple[sqlite3.Connection, Snapshot]]:
    """What the database says, doctored first."""
    connection = sqlite3.connect(state.database)
    if change:
        connection.execute(change)
        connection.commit()
    yield connection, snapshot.read(connection)
    connection.close()


def test_a_short_soak_holds(soaked: tuple[Path, Part, Config]) -> None:
    _, part, _ = soaked
    assert part.violations == []
    assert part.numbers["kills (SIGKILL)"] == 4
    assert part.numbers["lives of the daemon"] >= 5
    assert part.numbers["models compared"] > 10
    assert part.numbers["GPU-hours in the ledger"] > 1


# -- it notices ------------------------------------------------------------------------------------


def test_two_attempts_on_one_slot(state: StateFolder) -> None:
    with read(state) as (connection, found):
        spans = report.spans_by_event(connection, found)
        assert report.at_once(spans) == ([], [])
        pairs = ((a, b) for a in spans for b in spans if a.begin < b.begin < a.end)
        first, second = next(pairs)  # side by side, each on slots of its own
    moved = f"UPDATE attempt SET slots = '[\"{first.slots[0]}\"]' WHERE id = {second.attempt}"
    with read(state, moved) as (connection, found):
        doubles, twice = report.at_once(report.spans_by_event(connection, found))
    text = f"attempts {first.attempt} and {second.attempt} had {first.slots[0]} at once"
    assert text in doubles
    assert twice == []


def test_two_attempts_of_one_candidate_also_where_a_long_one_lies_between() -> None:
    spans = [Span(1, 7, ("a",), 0, 10), Span(2, 8, ("b",), 1, 2), Span(3, 7, ("c",), 9, 12)]
    assert report.at_once(spans) == ([], ["attempts 1 and 3 were of candidate 7 at once"])
    assert report.at_once(spans, slack=1.5) == ([], [])
    nested = [Span(1, 1, ("a",), 0, 10), Span(2, 2, ("a",), 1, 2), Span(3, 3, ("a",), 5, 6)]
    assert len(report.at_once(nested)[0]) == 2


def test_a_lease_that_is_nobodys(state: StateFolder) -> None:
    with read(state) as (_, found):
        assert report.leases_wrong(found) == []
        assert report.leases_wrong(replace(found, leases={"cuda:0": 1})) != []
        live = replace(found.attempts[0], state=AttemptState.RUNNING)
        assert report.leases_wrong(replace(found, attempts=(live,))) != []


def test_a_ledger_that_is_off(state: StateFolder) -> None:
    with read(state) as (connection, found):
        attempt = found.attempts[0]
        assert attempt.ended_at is not None
        seen = attempt.ended_at - attempt.started_at
        assert report.ledger(connection, found, {attempt.id: (seen, 0.1)})[1] == []
        assert len(report.ledger(connection, found, {attempt.id: (seen + 1, 0.1)})[1]) == 1
    with read(state, "UPDATE experiment SET slot_seconds = slot_seconds + 1") as (
        connection,
        found,
    ):
        assert "the ledger says" in report.ledger(connection, found, {})[1][0]


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE event SET target = 'scored' WHERE event = 'start' AND id % 2",
        "DELETE FROM event WHERE event = 'advance' AND candidate = 1",
        "UPDATE candidate SET state = 'waiting' WHERE id = 2",
        "UPDATE event SET attempt = 1 WHERE attempt = 2",
    ],
)
def test_a_history_that_cannot_be(state: StateFolder, change: str) -> None:
    with read(state) as (connection, found):
        assert report.impossible(connection, found) == []
    with read(state, change) as (connection, found):
        assert report.impossible(connection, found) != []


def test_another_story(soaked: tuple[Path, Part, Config], state: StateFolder) -> None:
    def told(folder: StateFolder) -> dict[str, object]:
        store = Store(folder.database)
        try:
            return story(store)
        finally:
            store.close()

    expected = told(StateFolder(soaked[0] / "undisturbed"))
    assert report.differences(expected, told(state)) == []
    with read(state, "UPDATE result SET metrics = '{\"loss\": 1.0}' WHERE candidate = 2"):
        pass
    assert any("results" in text for text in report.differences(expected, told(state)))


def test_an_orphan(state: StateFolder) -> None:
    with read(state) as (_, found):
        assert report.orphans(found) == []
        token = found.attempts[3].token
        environment = os.environ | {variables.TOKEN: token}
        with subprocess.Popen(["sleep", "60"], env=environment) as child:
            try:
                # While it becomes `sleep` it has no environment that could be read.
                assert wait_until(lambda: report.orphans(found), 60)
                assert f"process {child.pid} of attempt 4 is left" in report.orphans(found)[0]
            finally:
                child.kill()


def test_files_that_should_be_gone(soaked: tuple[Path, Part, Config], state: StateFolder) -> None:
    config = soaked[2]
    assert report.disk(state, config) == []
    for backup in sorted(state.backups.glob("nasd-*.db"))[:-2]:
        backup.unlink()
    with read(state) as (_, found):
        old = next(
            one.id
            for one in found.candidates.values()
            if one.generation == 0 and not (state.result(one.id, "pretrain_0")).exists()
        )
    state.result(old, "pretrain_0").mkdir()
    (state.attempt(2).checkpoints / "step-000000005").mkdir(parents=True)
    wrong = report.disk(state, config)
    assert wrong == [
        f"candidates/{old}/pretrain_0 is needed by nobody",
        "attempts/2/checkpoints is left",
    ]


def test_models_that_differ(soaked: tuple[Path, Part, Config], state: StateFolder) -> None:
    calm = StateFolder(soaked[0] / "undisturbed")
    both, wrong = report.unequal(calm, state)
    assert (both > 10, wrong) == (True, [])
    path = next(iter(sorted(state.path.glob("candidates/2/*/model.json"))))
    path.write_text("{}")
    assert report.unequal(calm, state)[1] == [f"{path.relative_to(state.path)} differs"]


def came(attempt: int, first: int, done: int, kept: int) -> Progress:
    return Progress(attempt, 5, "finetune", first, done, kept, rate=0.01)


def test_work_that_is_done_again() -> None:
    fine = [came(1, 0, 250, 200), came(2, 200, 290, 0), came(3, 200, 400, 400)]
    numbers, wrong = report.done_again(fine, {})
    assert wrong == []
    assert (numbers["steps done again"], numbers["stages begun anew"]) == (140, 0)
    assert numbers["... the most at once, in intervals"] == 0.9
    late = [came(1, 0, 350, 200), came(2, 200, 400, 400)]
    assert "did 150 steps again" in report.done_again(late, {})[1][0]
    hurt = report.damage([{"candidate": 5, "stage": "finetune", "step": 200, "before": 100}])
    assert report.done_again(late, hurt)[1] == []
    fell = [came(1, 0, 250, 200), came(2, 100, 400, 400)]
    assert report.done_again(fell, hurt)[1] == []
    too_far = [came(1, 0, 250, 200), came(2, 90, 400, 400)]
    assert "began at step 90, a checkpoint stood at 100" in report.done_again(too_far, hurt)[1][0]
    anew = [came(1, 0, 90, 80), came(2, 0, 400, 400)]
    numbers, wrong = report.done_again(anew, {})
    assert numbers["stages begun anew"] == 1
    assert wrong == [
        "attempt 2 (candidate 5 at finetune) began at step 0, a checkpoint stood at 80"
    ]


def test_a_turn_that_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What fails in a turn and is no full disk is told, and so is a search without an end."""
    begin = simulated.start

    def start(state: StateFolder, config: Config, quickly: bool = False) -> Store:
        store = begin(state, config, quickly)
        if not quickly:
            store._db.execute(
                "CREATE TRIGGER broken BEFORE INSERT ON decision"
                " BEGIN SELECT raise(ABORT, 'it is broken'); END"
            )
        return store

    monkeypatch.setattr(simulated, "start", start)
    monkeypatch.setattr(simulated, "HANGS", 2.0)
    config = thesis_config(daemon=simulated.DAEMON, **FEW)
    part = simulated.soak(tmp_path, 0, 1, lambda text: None, config)
    text = "\n".join(part.violations)
    assert "no end after 2 s" in text
    assert "IntegrityError: it is broken" in text
    assert "the story differs in state: 'complete' and 'running'" in text


# -- the command -----------------------------------------------------------------------------------


def answer(*violations: str) -> Callable[..., Part]:
    return lambda *arguments: Part("simulated", {"kills (SIGKILL)": 1}, list(violations))


@pytest.mark.parametrize("violations", [(), ("attempts 1 and 2 had cuda:0 at once",)])
def test_its_verdict(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    violations: tuple[str, ...],
) -> None:
    monkeypatch.setattr(simulated, "soak", answer(*violations))
    monkeypatch.setattr("tempfile.mkdtemp", lambda prefix: str(tmp_path / "work"))
    told = tmp_path / "told.json"
    monkeypatch.setattr(sys, "argv", ["soak", "--only", "simulated", "--json", str(told)])
    assert command.main() == len(violations)
    out = capsys.readouterr().out
    assert ("all of it held" in out, "VIOLATED" in out) == (not violations, bool(violations))
    assert all(text in out for text in violations)
    assert (tmp_path / "work").exists() == bool(violations)
    assert f'"holds": {str(not violations).lower()}' in told.read_text()


# -- what goes wrong -------------------------------------------------------------------------------


def test_virtual_time_outlasts_its_process(tmp_path: Path) -> None:
    clock = LastingClock(tmp_path / "clock", 100.0)
    clock.advance_to(250.5)
    assert LastingClock(tmp_path / "clock")() == 250.5


def test_weather_depends_on_nothing_but_its_seed_and_the_time() -> None:
    hours = [3600.0 * n / 4 for n in range(4 * 24 * 30)]
    rough, calm = Weather(1), Weather(1, calm=True)
    skies = [(rough.ahead(t), rough.free(t), rough.gpu("cuda:1", t)) for t in hours]
    assert skies == [(Weather(1).ahead(t), Weather(1).free(t), Weather(1).gpu("cuda:1", t))
                     for t in hours]  # fmt: skip
    assert 20 < sum(ahead != 0 for ahead, _, _ in skies) < len(hours) / 3
    assert 20 < sum(free < 1e12 for _, free, _ in skies) < len(hours) / 3
    assert {bool(gpu.fault) for _, _, gpu in skies} == {True, False}
    assert not any(calm.ahead(t) or calm.gpu("cuda:1", t).fault for t in hours)


def test_only_a_checkpoint_with_a_whole_one_before_it_is_damaged(state: StateFolder) -> None:
    draw = random.Random(1)
    with read(state) as (_, found):
        assert mischief.checkpoint_damaged(state, found, draw, 0.0) is None  # all is done
        one = found.candidates[3]
        under_way = replace(one, state=State.PENDING, stage="pretrain_1")
        found = replace(found, candidates={3: under_way})
    attempt = next(a for a in found.attempts if (a.candidate, a.stage) == (3, "pretrain_1"))
    first = save_checkpoint(state.attempt(attempt.id).checkpoints, 5)
    assert mischief.checkpoint_damaged(state, found, draw, 0.0) is None
    second = save_checkpoint(state.attempt(attempt.id).checkpoints, 9)
    plan = mischief.checkpoint_damaged(state, found, draw, 0.0)
    assert plan is not None
    words, deed = plan
    assert mischief.whole(second)
    deed()
    assert {**words, "file": ""} == {
        "candidate": 3,
        "stage": "pretrain_1",
        "step": 9,
        "before": 5,
        "file": "",
    }
    assert (mischief.whole(first), mischief.whole(second)) == (True, False)
    assert mischief.checkpoint_damaged(state, found, draw, 0.0) is None


def test_the_real_search_is_what_it_says(tmp_path: Path) -> None:
    for kills in (3, 30):
        path = write_preset("demo-thesis", tmp_path / str(kills), real.settings(kills), force=False)
        config = config_module.load(path)
        ladder = len(config.ladder("candidates"))
        mu, lambda_ = config.population.mu, config.population.lambda_
        baseline = len([s for s in config.ladder("baseline") if s.train != "head"])
        born = mu * ladder + lambda_ + (lambda_ // 2) * (ladder - 1)
        assert 1 + baseline + born == real.STAGES
        assert config.slots.devices == ("cpu:0",)
