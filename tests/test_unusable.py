"""State folders that are read-only, gone, full or damaged: told in a sentence, over by itself."""

import logging
import signal
import sqlite3
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from nasd.cli import app
from nasd.contract.errors import NasdError
from nasd.contract.protocol import AttemptFolder, Outcome, Spec
from nasd.control import daemon, retention, unusable
from nasd.record import daemon_lock, requests, snapshot
from nasd.record.folders import StateFolder
from nasd.record.store import Store
from nasd.views.status import facts
from tests.conftest import Clock, all_succeed, make_tick, small_config, story, to_toml
from tests.damage import bound_by_modes, read_only
from tests.faults import Box, small_search

pytestmark = pytest.mark.usefixtures("no_summaries")
QUICK = small_config(daemon__tick_seconds=0.01, daemon__infrastructure_retries=10_000)


@pytest.fixture
def signals() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


class RunningClock(Clock):
    def __call__(self) -> float:
        self.now += 1
        return self.now


# -- under a daemon ------------------------------------------------------------------------------


class Mishap:
    """Something that befalls a state folder, and is mended once the daemon has said what it is."""

    def __init__(self, state: StateFolder, store: Store) -> None:
        self.state, self.store = state, store

    def befall(self) -> None: ...

    def mend(self) -> None: ...


class ReadOnly(Mishap):
    words = "cannot be written (permission denied)"

    def befall(self) -> None:
        self.stack = ExitStack()
        self.stack.enter_context(read_only(self.state.path))

    def mend(self) -> None:
        self.stack.close()


class Moved(Mishap):
    words = "is gone: put it back"

    def befall(self) -> None:
        self.state.path.rename(self.state.path.with_name("elsewhere"))

    def mend(self) -> None:
        self.state.path.with_name("elsewhere").rename(self.state.path)


class WithoutDatabase(Mishap):
    words = "nasd.db is gone: put it back"

    def befall(self) -> None:
        self.state.database.rename(self.state.path / "away.db")

    def mend(self) -> None:
        (self.state.path / "away.db").rename(self.state.database)


class Full(Mishap):
    words = "is full: make room"

    def befall(self) -> None:
        [pages] = self.store._db.execute("PRAGMA page_count").fetchone()
        self.store._db.execute(f"PRAGMA max_page_count = {pages}")

    def mend(self) -> None:
        self.store._db.execute("PRAGMA max_page_count = 1000000")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    from tests.conftest import without_summaries

    with without_summaries():
        search = small_search(StateFolder(tmp_path_factory.mktemp("calm") / "state"), all_succeed)
    return story(search.store)


@pytest.mark.usefixtures("signals")
@pytest.mark.parametrize("kind", [ReadOnly, Moved, WithoutDatabase, Full])
def test_what_befalls_a_state_folder_is_told_in_a_sentence_and_the_search_goes_on_by_itself(
    state: StateFolder,
    undisturbed: dict[str, Any],
    caplog: pytest.LogCaptureFixture,
    kind: Callable[..., Any],
) -> None:
    caplog.set_level(logging.INFO)
    said: list[str] = []
    happened: list[Mishap] = []

    def script(spec: Spec, before: int) -> tuple[float, Outcome | None]:
        if spec.attempt == 6 and not happened:
            happened.append(kind(state, tick.store))
            happened[0].befall()
        return 0.0, all_succeed(spec, before)[1]

    def say(text: str) -> None:
        said.append(text)
        if text:
            happened[0].mend()

    tick = make_tick(state, QUICK, script, RunningClock())
    tick.say = say
    assert daemon._serve(tick)
    assert story(tick.store) == undisturbed
    tick.store.close()
    assert kind.words in said[0]  # type: ignore[attr-defined]
    assert said[-1] == ""
    assert "Traceback" not in caplog.text
    assert "a tick failed" not in caplog.text
    told = [one for one in caplog.messages if one.startswith("nothing is decided or started: ")]
    assert len(told) == len([one for one in said if one])
    assert "the search goes on" in caplog.text


def test_it_is_told_once_however_many_turns_it_lasts_and_what_is_no_such_thing_is_raised(
    state: StateFolder, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    said: list[str] = []
    trouble = unusable.Trouble(state, said.append)

    def full() -> None:
        raise OSError(28, "No space left on device")

    for _ in range(3):
        trouble.turn(full)
    trouble.turn(lambda: None)
    assert len(said) == 2 and "full: make room" in said[0] and said[1] == ""
    assert len([one for one in caplog.records if one.levelno == logging.ERROR]) == 1
    with pytest.raises(KeyError):
        trouble.turn(lambda: {}["x"])


def test_a_turn_is_not_begun_while_something_is_in_its_way(
    state: StateFolder, store: Store
) -> None:
    trouble = unusable.Trouble(state, lambda text: None)
    with read_only(state.path):
        trouble.turn(lambda: pytest.fail("it was begun"))
    assert "make it writable" in trouble.told


def test_another_database_in_the_place_of_the_one_that_was_opened_is_noticed(
    state: StateFolder, store: Store
) -> None:
    trouble = unusable.Trouble(state, lambda text: None)
    store.backup(state.path / "copy.db")
    (state.path / "copy.db").rename(state.database)
    trouble.turn(lambda: pytest.fail("it was begun"))
    assert "is another file than when nasd began" in trouble.told


def test_the_view_has_the_daemons_word_of_it_and_calls_nothing_healthy(
    state: StateFolder, store: Store
) -> None:
    with daemon_lock.hold(state.lock) as say:
        assert facts.read(state.path).notices == []
        say(f"{state.path} cannot be written (permission denied): make it writable")
        [notice] = facts.read(state.path).notices
        assert notice.level == "bad"
        assert "make it writable" in notice.text
        told = CliRunner().invoke(app, ["status", "--state", str(state.path)]).stdout
        assert "make it writable" in " ".join(told.split())
        assert "healthy" not in told
        with pytest.raises(NasdError, match="served by another nasd already"), ExitStack() as stack:
            stack.enter_context(daemon_lock.hold(state.lock))
        say("")
        assert facts.read(state.path).notices == []


def test_the_word_of_a_daemon_that_is_gone_counts_no_more(state: StateFolder, store: Store) -> None:
    with daemon_lock.hold(state.lock) as say:
        say("it is full")
    assert not any("full" in one.text for one in facts.read(state.path).notices)


# -- at the start --------------------------------------------------------------------------------


def begun(folder: Path) -> tuple[Path, StateFolder]:
    """A config whose experiment has begun."""
    config = folder / "config.toml"
    config.write_text(to_toml(QUICK.model_dump(mode="json", by_alias=True, exclude_none=True)))
    state = StateFolder(folder / "state")
    make_tick(state, QUICK).store.close()
    return config, state


def refusal(config: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> str:
    from nasd.cli import main

    monkeypatch.setattr(sys, "argv", ["nasd", "run", "--config", str(config)])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return str(error.strip().splitlines()[-1])


def test_a_state_folder_that_is_read_only_ends_the_start_with_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config, state = begun(tmp_path)
    with read_only(state.path):
        said = refusal(config, monkeypatch, capsys)
    assert "cannot be written (permission denied): make it writable" in said


@pytest.mark.parametrize("damage", ["a page", "the head", "half of it", "a row"])
def test_a_damaged_database_ends_the_start_with_a_sentence_that_names_the_backups(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    damage: str,
) -> None:
    config, state = begun(tmp_path)
    damage_database(state.database, damage)
    said = refusal(config, monkeypatch, capsys)
    assert str(state.database) in said
    assert "is damaged" in said or "not a database" in said
    if damage != "the head":
        assert str(state.backups) in said


def damage_database(path: Path, damage: str) -> None:
    if damage == "a row":
        with sqlite3.connect(path) as connection:
            connection.execute("UPDATE candidate SET genotype = substr(genotype, 5)")
            connection.execute("UPDATE experiment SET config = substr(config, 5)")
        connection.close()
        return
    with suppress(FileNotFoundError):
        path.with_name(f"{path.name}-wal").unlink()
    content = bytearray(path.read_bytes())
    size = 4096
    match damage:
        case "a page":  # of the newest table's rows
            content[-2 * size : -size] = bytes(range(256)) * (size // 256)
        case "the head":
            content[:100] = bytes(100)
        case _:
            del content[len(content) // 2 // size * size :]
    path.write_bytes(content)


def test_looking_at_a_damaged_database_is_one_sentence(
    state: StateFolder, store: Store, tmp_path: Path
) -> None:
    store.close()
    damage_database(state.database, "a row")
    with pytest.raises(NasdError, match="is damaged"):
        facts.read(state.path)
    damage_database(state.database, "half of it")
    with pytest.raises(NasdError, match="is damaged"):
        facts.read(state.path)


# -- looking at what is read-only ----------------------------------------------------------------


@pytest.fixture
def shelved(folder: Callable[[], StateFolder]) -> StateFolder:
    """A search that is over, as it was put away."""
    state = folder()
    tick = small_search(state, all_succeed)
    tick.store.close()
    return state


@pytest.mark.parametrize("left", ["nothing beside it", "a journal", "a journal and its index"])
def test_commands_that_only_read_do_so_where_nothing_can_be_written(
    shelved: StateFolder, left: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = sqlite3.connect(shelved.database)
    if left != "nothing beside it":
        held.execute("PRAGMA journal_mode = WAL")
        held.execute("UPDATE experiment SET name = 'the newest'")
        held.commit()
        copy = {path.name: path.read_bytes() for path in shelved.path.iterdir() if path.is_file()}
        held.close()
        for name, content in copy.items():
            if left == "a journal and its index" or not name.endswith("-shm"):
                (shelved.path / name).write_bytes(content)
        if left == "a journal":
            (shelved.path / "nasd.db-shm").unlink(missing_ok=True)
    held.close()
    before = sorted(shelved.path.rglob("*"))
    with read_only(shelved.path):
        for command in (["status"], ["status", "--json"], ["show", "1"], ["events"], ["log", "1"]):
            result = CliRunner().invoke(app, [*command, "--state", str(shelved.path)])
            lacks_log = command[0] == "log" and isinstance(result.exception, NasdError)
            assert result.exit_code == 0 or lacks_log, (command, result.output, result.exception)
        with snapshot.opened(shelved.path) as connection:
            name = snapshot.read(connection).experiment.name
    assert name == ("small" if left == "nothing beside it" else "the newest")
    assert sorted(shelved.path.rglob("*")) == before


def test_a_request_that_cannot_be_filed_tells_why_and_blames_no_other_user(
    state: StateFolder, store: Store
) -> None:
    state.requests.mkdir()
    with read_only(state.path), pytest.raises(NasdError) as refused:
        requests.file(state.requests, requests.new("pause"))
    assert "mend that, and ask again" in str(refused.value)
    assert "as the user" not in str(refused.value)


# -- what people put there -----------------------------------------------------------------------


def test_copies_that_people_make_are_left_alone_and_in_nobodys_way(
    folder: Callable[[], StateFolder],
) -> None:
    box = Box(folder())
    tick = box.daemon()
    box.drive(tick, lambda found: found.generation is not None)
    state = tick.state
    strays = [
        state.path / "candidates" / "1 (copy)" / "pretrain_1" / "model.safetensors",
        state.path / "candidates" / "notes" / "a.txt",
        state.path / "candidates" / "007" / "finetune" / "model.safetensors",
        state.path / "candidates" / "file.txt",
        state.path / "attempts" / "1 (copy)" / "checkpoints" / "step-000000003" / "progress.json",
        state.path / "attempts" / "backup" / "checkpoints" / "step-1" / "progress.json",
        state.attempt(1).checkpoints / "step-000000001 (copy)" / "progress.json",
    ]
    for path in strays[:-1]:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
    tick.keep()
    retention.sweep(state, tick.store.read())
    box.drive(tick)
    assert all(path.read_text() == "mine" for path in strays[:-1])
    attempt = AttemptFolder(state.path / "attempts" / "999")
    for name in ("step-000000004", "step-000000009 (copy)", "step-latest"):
        (attempt.checkpoints / name).mkdir(parents=True)
    assert attempt.newest_step() == 4


def test_it_is_bound_by_modes_where_the_tests_say_so(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    (tmp_path / "a").chmod(0o444)
    with bound_by_modes(), pytest.raises(PermissionError):
        (tmp_path / "a").write_text("y")


def test_a_fault_of_nasds_own_is_told_where_people_look_and_the_turn_tried_again(
    state: StateFolder, caplog: pytest.LogCaptureFixture
) -> None:
    said: list[str] = []
    failures = [ZeroDivisionError("division\nby zero")]

    def script(spec: Spec, before: int) -> tuple[float, Outcome | None]:
        if failures:
            raise failures.pop()
        return 0.0, all_succeed(spec, before)[1]

    tick = make_tick(state, QUICK, script, RunningClock())
    tick.say = said.append
    assert daemon._serve(tick)
    assert said == [
        "ZeroDivisionError: division by zero, a fault of nasd's own: report it with the log; it"
        " tries on",
        "",
    ]
    assert "Traceback" in caplog.text
