"""Backups of the database, and the way back to one."""

import os
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nasd.control import backups
from nasd.control.tick import Tick
from nasd.record import snapshot
from nasd.record.folders import StateFolder
from nasd.record.lifecycle import Phase
from nasd.record.state import Snapshot
from nasd.record.store import Store
from tests.conftest import begin, open_quickly, small_config, story, without_summaries
from tests.faults import (
    CIVIL,
    PATIENT,
    Box,
    Fuse,
    Killed,
    fragile,
    restore,
    small_search,
    some_diverge,
    weights_on_disk,
)

pytestmark = pytest.mark.usefixtures("no_summaries")

NOW = CIVIL
HOUR = 3600.0
Folder = Callable[[], StateFolder]


def dump(path: Path) -> list[str]:
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        return list(database.iterdump())


def names(state: StateFolder) -> list[str]:
    return sorted(path.name for path in state.backups.iterdir())


# -- making them ---------------------------------------------------------------------------------


def test_a_backup_is_the_database_whole_in_one_file(store: Store, state: StateFolder):
    path = backups.make(store, state, NOW)
    assert path == state.backups / "nasd-20231114-221320.db"
    assert names(state) == [path.name]
    assert dump(path) == dump(state.database)
    with closing(sqlite3.connect(path)) as copy:
        assert copy.execute("PRAGMA journal_mode").fetchone() == ("delete",)
    store.note("more", "", 5.0)
    assert dump(path) != dump(state.database)


def test_a_backup_is_whole_while_others_read_and_holds_what_is_only_in_the_log(
    store: Store, state: StateFolder
):
    with snapshot.opened(state.path) as reader:
        reader.execute("BEGIN")
        before = reader.execute("SELECT count(*) FROM event").fetchone()
        for number in range(50):
            store.note("more", "x" * 1000, float(number))
        path = backups.make(store, state, NOW)
        assert reader.execute("SELECT count(*) FROM event").fetchone() == before
    assert dump(path) == dump(state.database)
    with snapshot.opened(state.path) as reader:
        assert reader.execute("SELECT count(*) FROM event").fetchone()[0] == before[0] + 50


def test_a_backup_opens_as_a_database_of_its_own(store: Store, state: StateFolder, tmp_path: Path):
    found = store.read()
    path = backups.make(store, state, NOW)
    (tmp_path / "elsewhere").mkdir()
    shutil.copyfile(path, tmp_path / "elsewhere" / "nasd.db")
    again = Store(tmp_path / "elsewhere" / "nasd.db")
    assert again.read() == found
    again.close()


def test_only_the_newest_few_stay(store: Store, state: StateFolder):
    for number in range(backups.KEPT + 3):
        backups.make(store, state, NOW + number * HOUR)
    assert len(names(state)) == backups.KEPT
    assert names(state)[0] == "nasd-20231115-011320.db"
    store.backup(state.backups / "before-schema-2.db")
    (state.backups / "nasd-mine.db").write_text("a person's own")
    backups.make(store, state, NOW + 99 * HOUR)
    assert len(names(state)) == backups.KEPT + 2  # what is not of this kind is not touched
    assert {"before-schema-2.db", "nasd-mine.db"} <= set(names(state))


@settings(max_examples=30)
@given(jumps=st.lists(st.integers(-40 * 24, 40 * 24), min_size=1, max_size=14))
def test_the_newest_backup_has_the_last_name_and_stays_however_the_clock_jumps(
    tmp_path_factory: pytest.TempPathFactory, jumps: list[int]
):
    state = StateFolder(tmp_path_factory.mktemp("backups"))
    store = open_quickly(state.database)
    begin(store, small_config())
    now = NOW
    for number, jump in enumerate([0, *jumps], 1):
        now += jump * HOUR
        store.note("number", str(number), now)
        path = backups.make(store, state, now)
        assert path.name == names(state)[-1]
        assert dump(path) == dump(state.database)
        assert len(names(state)) == min(number, backups.KEPT)
    store.close()


def test_backups_within_one_second_do_not_replace_one_another(store: Store, state: StateFolder):
    one = backups.make(store, state, NOW)
    other = backups.make(store, state, NOW + 0.5)
    assert names(state) == [one.name, other.name]


@pytest.mark.parametrize("error", [Killed(), OSError(28, "No space left on device")])
def test_a_backup_that_is_killed_or_fails_leaves_none_and_nothing_that_stays(
    store: Store, state: StateFolder, monkeypatch: pytest.MonkeyPatch, error: BaseException
):
    first = backups.make(store, state, NOW)

    def half(self: Store, path: Path) -> None:
        path.with_name(f".{path.name}.tmp").write_bytes(b"SQLite format 3\0")
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(Store, "backup", half)
        patch.setattr(backups, "_forget_halves", lambda state: None)  # as on a kill
        with pytest.raises(type(error)):
            backups.make(store, state, NOW + HOUR)
    assert len(names(state)) == 2
    assert backups.age(state, first.stat().st_mtime + 5) == pytest.approx(5)
    last = backups.make(store, state, NOW + 2 * HOUR)
    assert names(state) == [first.name, last.name]
    with monkeypatch.context() as patch, suppress(type(error)):
        patch.setattr(Store, "backup", half)
        backups.make(store, state, NOW + HOUR)
    assert names(state) == [first.name, last.name]  # on a full disk, at once


def test_a_backup_that_is_killed_at_its_rename_is_not_there(
    store: Store, state: StateFolder, monkeypatch: pytest.MonkeyPatch
):
    def never(self: Path, target: Path) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", never)
        with pytest.raises(Killed):
            backups.make(store, state, NOW)
    assert backups.age(state, NOW) is None
    assert not restore(state)
    backups.make(store, state, NOW)
    assert names(state) == ["nasd-20231114-221320.db"]


# -- how old the newest one is -------------------------------------------------------------------


def test_the_age_is_of_the_newest_and_never_negative(store: Store, state: StateFolder):
    assert backups.age(state, NOW) is None
    for hours in (0, 5, 3):
        path = backups.make(store, state, NOW + hours * HOUR)
        os.utime(path, (NOW + hours * HOUR,) * 2)
    assert backups.age(state, NOW + 4 * HOUR) == HOUR
    assert backups.age(state, NOW - 99 * HOUR) == 0.0  # the clock was set back


# -- when a daemon makes them --------------------------------------------------------------------


def made(tick: Tick) -> int:
    """Backups that the daemon has made so far, those that are gone included."""
    return len(getattr(tick, "kept", []))


class Counting(Tick):
    def keep(self) -> None:
        self.kept: list[float]
        if not hasattr(self, "kept"):
            self.kept = []
        self.kept.append(self.monotonic())
        super().keep()


def test_a_daemon_makes_one_at_once_and_at_each_interval(folder: Folder):
    config = small_config(daemon__backup_hours=2)
    box = Box(folder(), config, lambda spec, before: (1e6, None))
    tick = box.daemon(Counting)
    tick()
    assert made(tick) == 1
    box.turns(tick, 2 * HOUR - 60, every=60)
    assert made(tick) == 1
    box.turns(tick, 60, every=60)
    assert made(tick) == 2
    box.wall.ahead -= 1000 * HOUR  # whatever the wall's clock does
    box.turns(tick, 2 * HOUR - 60, every=60)
    box.wall.ahead += 2000 * HOUR
    assert made(tick) == 2
    box.turns(tick, 2 * HOUR, every=60)
    assert made(tick) == 3


def test_a_new_daemon_goes_by_the_age_of_the_newest(folder: Folder):
    config = small_config(daemon__backup_hours=2)
    box = Box(folder(), config, lambda spec, before: (1e6, None))
    tick = box.daemon(Counting)
    tick()
    (path,) = box.state.backups.iterdir()
    os.utime(path, (box.wall(), box.wall()))
    box.turns(tick, HOUR, every=60)
    box.kill(tick)
    tick = box.daemon(Counting)
    tick()
    assert made(tick) == 0
    box.turns(tick, HOUR - 60, every=60)
    assert made(tick) == 0
    box.turns(tick, 120, every=60)
    assert made(tick) == 1


def test_each_generation_opens_with_a_backup_and_a_collection(folder: Folder):
    box = Box(folder())
    tick = box.daemon(Counting)
    opened = 0
    while tick.store.read().experiment.state == "running":
        before = made(tick)
        tick()
        now = len(tick.store.read().generations)
        assert made(tick) - before == int(now > opened or not before)
        opened = now
        box.let_pass()
    assert made(tick) == 1 + 3
    newest = sorted(box.state.backups.iterdir())[-1]
    with closing(sqlite3.connect(newest)) as copy:
        # The new generation's births are in it.
        assert snapshot.read(copy).generations[-1].phase is Phase.CLIMBING


def test_a_daemon_killed_at_the_opening_of_a_generation_makes_up_for_its_backup(folder: Folder):
    box = Box(folder())
    tick = box.daemon(Counting)
    tick()
    (path,) = box.state.backups.iterdir()
    os.utime(path, (box.wall(), box.wall()))
    with suppress(Killed), pytest.MonkeyPatch.context() as patch:
        patch.setattr(Store, "backup", lambda self, path: Fuse(1)())
        box.let_pass()
        box.drive(tick)
    assert len(tick.store.read().generations) == 1
    box.kill(tick)
    tick = box.daemon(Counting)
    tick.begin()
    tick()
    assert made(tick) == 1


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    with without_summaries():
        state = StateFolder(tmp_path_factory.mktemp("calm") / "state")
        return story(small_search(state, some_diverge).store)


def test_a_backup_that_fails_fails_its_turn_and_removes_nothing(
    folder: Folder, undisturbed, monkeypatch: pytest.MonkeyPatch
):
    """No collection without a backup before it: weights that the last one needs all stay. The
    attempts go on, and so does the search."""
    box = Box(folder())
    tick = box.daemon()

    def full(self: Store, path: Path) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(Store, "backup", full)
    failed = 0
    for _ in range(1000):
        try:
            tick()
        except sqlite3.OperationalError:
            failed += 1
        if tick.store.read().experiment.state != "running":
            break
        box.let_pass()
    found = tick.store.read()
    assert failed == 4  # at first, and at each generation: not in every turn
    assert set(found.results) == weights_on_disk(box.state)
    assert story(tick.store) == undisturbed


# -- the way back --------------------------------------------------------------------------------


def some_way(tick: Tick, box: Box, turns: int) -> Snapshot:
    for _ in range(turns):
        tick()
        box.let_pass()
    return tick.store.read()


@settings(max_examples=10)
@given(
    before=st.integers(0, 60),
    behind=st.integers(0, 60),
    dies_in_keep=st.integers(1, 40),
    checkpoints=st.booleans(),
)
def test_a_search_taken_back_to_its_newest_backup_ends_as_if_nothing_had_been(
    folder: Folder,
    undisturbed,
    before: int,
    behind: int,
    dies_in_keep: int,
    checkpoints: bool,
):
    """The collection behind the backup has run, all of it or not; more attempts were made, whose
    numbers are given again."""
    box = Box(folder(), checkpoints=checkpoints)
    tick = box.daemon()
    tick.begin()
    some_way(tick, box, before)
    with suppress(Killed), fragile(tick, Fuse(dies_in_keep)):
        tick.keep()
    some_way(tick, box, behind)
    box.kill(tick)
    assert restore(box.state) or not before
    tick = box.daemon()
    tick.begin()
    box.drive(tick)
    assert story(tick.store) == undisturbed
    tick.store.close()
    shutil.rmtree(box.state.path)


def climbs(found: Snapshot) -> bool:
    """Generation 1 is on its way, and two attempts at pretrain_1 run."""
    stages = [one.stage for one in found.live_attempts]
    return len(found.generations) == 2 and stages.count("pretrain_1") == 2


def test_numbers_of_attempts_are_given_again_and_mean_the_new_ones(folder: Folder, undisturbed):
    box = Box(folder(), PATIENT)
    tick = box.daemon()
    found = box.drive(tick, climbs)
    tick.keep()
    last = found.attempts[-1].id
    found = box.drive(tick, lambda found: found.attempts[-1].id >= last + 4)
    assert len(found.generations) == 2
    later = {one.id: one.token for one in found.attempts if one.id > last}
    tick.stop()
    tick.store.close()
    restore(box.state)
    tick = box.daemon()
    tick.begin()
    assert tick.store.read().attempts[-1].id == last
    box.launcher.script = lambda spec, before: (77.0 + spec.attempt, some_diverge(spec, before)[1])
    box.drive(tick)
    again = {one.id: one.token for one in tick.store.read().attempts if one.id in later}
    assert set(again) == set(later)
    assert not set(again.values()) & set(later.values())
    assert story(tick.store) == undisturbed


def test_an_older_backup_halts_with_what_is_gone_rather_than_going_wrong(folder: Folder):
    """Weights that it needs were collected since."""
    box = Box(folder())
    tick = box.daemon()
    box.drive(tick, climbs)
    tick.keep()
    shutil.copyfile(sorted(box.state.backups.iterdir())[-1], aside := box.state.path / "aside.db")
    box.drive(tick)
    tick.keep()
    tick.store.close()
    shutil.copyfile(aside, sorted(box.state.backups.iterdir())[-1])
    restore(box.state)
    tick = box.daemon()
    tick.begin()
    found = box.drive(tick)
    assert found.experiment.state == "halted"
    assert "which is gone: put it back" in found.experiment.reason


def test_a_backup_that_failed_is_tried_again_before_long(folder: Folder, monkeypatch):
    box = Box(folder())
    tick = box.daemon(Counting)
    with monkeypatch.context() as patch:
        patch.setattr(Store, "backup", lambda self, path: Fuse(1, error=OSError("full"))())
        with pytest.raises(OSError, match="full"):
            tick()
    tick()
    assert made(tick) == 1  # the one that failed
    box.let_pass(601.0)
    tick()
    assert made(tick) == 2
    assert len(list(box.state.backups.iterdir())) == 1
