"""The database: guarded, whole, and written by one alone."""

import json
import math
import resource
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nasd.contract.errors import NasdError
from nasd.contract.genotype import Block, FeedForward, Genotype, parameters, unchanged
from nasd.record import migrations as migration_steps
from nasd.record import snapshot
from nasd.record.folders import StateFolder
from nasd.record.lifecycle import (
    LIVE_ATTEMPT,
    AttemptState,
    AttemptVerdict,
    Event,
    ImpossibleTransition,
    Phase,
    QuarantineKind,
    State,
)
from nasd.record.migrations import migrations
from nasd.record.sqlite import Database
from nasd.record.state import Breed, Ending
from nasd.record.store import BASELINE, Ended, StageRecord, Store
from nasd.search.fidelity.promotion import Promotion
from nasd.search.variation.breeding import Bred
from tests.conftest import BACKBONE, begin, events_of, open_quickly, prepared, small_config

TABLES = ("experiment", "generation", "candidate", "attempt", "lease", "result", "decision")
ALL_TABLES = (*TABLES, "member", "event")


def contents(store: Store) -> dict[str, list[tuple[object, ...]]]:
    return {table: list(store._db.execute(f"SELECT * FROM {table}")) for table in ALL_TABLES}


def genotype(size: int) -> Genotype:
    return Genotype((Block(4, (FeedForward("relu", (size,)),)),))


def births(*sizes: int) -> list[Bred]:
    return [Bred(BASELINE, genotype(size), unchanged(genotype(size))) for size in sizes]


def open_with(store: Store, *sizes: int) -> list[int]:
    """Opens the next generation with one candidate a size."""
    number = len(store.read().generations)
    store.open_generation(number, (), 1.0)
    return store.record_births(Breed(number, tuple(births(*sizes)), "pretrain_0", {}), 2.0)


def start(store: Store, candidate: int, *slots: str, now: float = 10.0) -> int:
    stage = store.read().candidates[candidate].stage
    token = f"token {len(store.read().attempts)}"
    return store.start_attempt(candidate, stage, slots, token, now)


def lose(store: Store, attempt: int, at: float = 20.0) -> None:
    store.end_attempt(attempt, Ended(Ending(AttemptState.LOST, Event.INTERRUPT), at), at)


# -- candidates ----------------------------------------------------------------------------------


def test_an_experiment_begins_with_the_baseline_at_its_first_stage(store: Store):
    found = store.read()
    assert (found.experiment.name, found.experiment.state) == ("small", "running")
    assert found.baseline.id == BASELINE
    assert (found.baseline.stage, found.baseline.state) == ("prepare", State.PENDING)
    assert events_of(store, BASELINE) == [("born", "prepare")]
    assert (found.generation, found.attempts, found.leases) == (None, (), {})


def test_an_experiment_begins_once(store: Store):
    before = contents(store)
    with pytest.raises(sqlite3.IntegrityError):
        begin(store, small_config(experiment__name="another"))
    assert contents(store) == before


EVENTS_FROM_PENDING = {Event.START, Event.CUT}


@pytest.mark.parametrize("event", [event for event in Event if event not in EVENTS_FROM_PENDING])
def test_an_impossible_event_raises_and_leaves_nothing(store: Store, event: Event):
    before = contents(store)
    with pytest.raises(ImpossibleTransition):
        store.advance(BASELINE, event, 5.0)
    assert contents(store) == before


def test_an_event_for_a_candidate_that_is_not_there_raises(store: Store):
    before = contents(store)
    with pytest.raises(NasdError, match="no row"):
        store.advance(77, Event.START, 5.0)
    assert contents(store) == before


def test_a_stale_event_raises_and_leaves_nothing(store: Store):
    """Two readers saw the same attempt run; the second to tell its end comes too late."""
    attempt = start(store, BASELINE, "cpu:0")
    lose(store, attempt)
    before = contents(store)
    with pytest.raises(AssertionError, match="lost to lost"):
        lose(store, attempt)
    with pytest.raises(ImpossibleTransition):
        store.advance(BASELINE, Event.SCORE, 30.0)
    assert contents(store) == before


def test_every_edge_leaves_one_event_row_with_where_from_and_where_to(store: Store):
    store.advance(BASELINE, Event.START, 5.0)
    store.advance(BASELINE, Event.ADVANCE, 6.0, stage="finetune", detail="well done")
    rows = list(
        store._db.execute("SELECT at, event, source, target, stage, detail FROM event ORDER BY id")
    )
    assert rows[1:] == [
        (5.0, "start", "pending", "running", "prepare", ""),
        (6.0, "advance", "running", "pending", "finetune", "well done"),
    ]


@settings(max_examples=30)
@given(st.lists(st.sampled_from(list(Event)), max_size=12))
def test_whatever_events_come_the_last_event_row_tells_the_state(tmp_path_factory, events):
    store = open_quickly(tmp_path_factory.mktemp("s") / "nasd.db")
    begin(store, small_config())
    for event in events:
        try:
            store.advance(BASELINE, event, 5.0)
        except ImpossibleTransition:
            continue
    last = store._db.execute("SELECT target FROM event ORDER BY id DESC").fetchone()[0]
    assert store.read().baseline.state == last
    store.close()


def test_a_reason_stays_with_cut_failed_and_interrupted_and_goes_when_it_goes_on(store: Store):
    store.advance(BASELINE, Event.START, 5.0)
    store.advance(BASELINE, Event.INTERRUPT, 6.0, detail="the machine went down")
    assert store.read().baseline.reason == "the machine went down"
    store.advance(BASELINE, Event.START, 7.0, detail="cpu:0")
    assert store.read().baseline.reason == ""
    store.advance(BASELINE, Event.FAIL, 8.0, detail="diverged: NaN")
    assert store.read().baseline.reason == "diverged: NaN"


def test_no_two_candidates_share_a_genotype(store: Store):
    store.open_generation(0, (), 1.0)
    before = contents(store)
    with pytest.raises(sqlite3.IntegrityError, match="hash"):
        store.record_births(Breed(0, tuple(births(32, 64, 32)), "pretrain_0", {}), 2.0)
    assert contents(store) == before


# -- attempts and slots --------------------------------------------------------------------------


def test_an_attempt_is_written_with_its_slots_before_any_process_exists(store: Store):
    attempt = start(store, BASELINE, "cpu:0", "cpu:1")
    found = store.read()
    assert found.leases == {"cpu:0": attempt, "cpu:1": attempt}
    (row,) = found.live_attempts
    assert (row.state, row.process, row.slots) == (
        AttemptState.STARTING,
        None,
        ("cpu:0", "cpu:1"),
    )
    assert found.baseline.state is State.RUNNING
    store.attempt_runs(attempt, {"pid": 4})
    (row,) = store.read().live_attempts
    assert (row.state, row.process) == (AttemptState.RUNNING, {"pid": 4})


def test_two_live_attempts_cannot_hold_one_slot(store: Store):
    (other,) = open_with(store, 32)
    start(store, BASELINE, "cpu:0", "cpu:1")
    before = contents(store)
    with pytest.raises(sqlite3.IntegrityError, match=r"lease\.slot"):
        start(store, other, "cpu:2", "cpu:1")
    assert contents(store) == before


def test_one_candidate_cannot_have_two_live_attempts(store: Store):
    start(store, BASELINE, "cpu:0")
    before = contents(store)
    with pytest.raises(sqlite3.IntegrityError, match=r"attempt\.candidate"):
        start(store, BASELINE, "cpu:1")
    assert contents(store) == before


@pytest.mark.parametrize("end", [end for end in AttemptState if end not in LIVE_ATTEMPT])
def test_the_end_of_an_attempt_frees_its_slots_and_lets_the_next_one_start(store: Store, end):
    first = start(store, BASELINE, "cpu:0", "cpu:1")
    ending = Ending(end, Event.INTERRUPT, message="m", verdict=AttemptVerdict.MACHINE)
    store.end_attempt(first, Ended(ending, 20.0), 21.0)
    found = store.read()
    assert found.leases == {}
    (row,) = found.attempts
    assert (row.state, row.ended_at, row.verdict, row.message) == (end, 20.0, "machine", "m")
    second = start(store, BASELINE, "cpu:0")
    assert [one.number for one in store.read().attempts] == [1, 2]
    assert store.read().leases == {"cpu:0": second}


@pytest.mark.parametrize(
    "move",
    [
        lambda store, attempt: store.attempt_runs(attempt, {}),
        lambda store, attempt: lose(store, attempt),
        lambda store, attempt: store.end_attempt(
            attempt, Ended(Ending(AttemptState.SUCCEEDED, Event.ADVANCE, "finetune"), 30.0), 30.0
        ),
    ],
)
def test_an_attempt_that_has_ended_never_moves_again(store: Store, move: Callable[..., None]):
    attempt = start(store, BASELINE, "cpu:0")
    lose(store, attempt)
    start(store, BASELINE, "cpu:0")
    before = contents(store)
    with pytest.raises(AssertionError):
        move(store, attempt)
    assert contents(store) == before


def test_an_attempt_never_ends_before_it_began(store: Store):
    attempt = start(store, BASELINE, "cpu:0", now=10.0)
    lose(store, attempt, at=3.0)
    assert store.read().attempts[0].ended_at == 10.0


def test_an_attempt_that_succeeds_leaves_its_results_and_its_candidate_goes_on(store: Store):
    attempt = start(store, BASELINE, "cpu:0")
    verdict = AttemptVerdict.SUCCEEDED
    ended = Ended(
        Ending(AttemptState.SUCCEEDED, Event.ADVANCE, "finetune", verdict=verdict),
        at=20.0,
        record=StageRecord({"loss": 2.5}, [(5, 3.0), (10, 2.5)], 10, 30.0),
        prepared=prepared().model_dump(),
    )
    store.end_attempt(attempt, ended, 20.0)
    found = store.read()
    result = found.results[BASELINE, "prepare"]
    assert (result.metrics, result.curve) == ({"loss": 2.5}, [(5, 3.0), (10, 2.5)])
    assert found.baseline.stage == "finetune"
    assert found.experiment.prepared == prepared().model_dump(mode="json")


def test_an_end_whose_candidate_cannot_move_leaves_the_attempt_alive(store: Store):
    attempt = start(store, BASELINE, "cpu:0")
    before = contents(store)
    ending = Ending(AttemptState.SUCCEEDED, Event.KEEP)
    ended = Ended(ending, 20.0, record=StageRecord({}, [], 0, 0.0))
    with pytest.raises(ImpossibleTransition):
        store.end_attempt(attempt, ended, 20.0)
    assert contents(store) == before


# -- decisions -----------------------------------------------------------------------------------


def waiting(store: Store, *sizes: int) -> list[int]:
    born = open_with(store, *sizes)
    for number in born:
        attempt = start(store, number, "cpu:0")
        ended = Ended(Ending(AttemptState.SUCCEEDED, Event.HOLD), 20.0)
        store.end_attempt(attempt, ended, 20.0)
    return born


def test_births_are_one_transaction_with_their_decision_and_the_phase(store: Store):
    assert open_with(store, 32, 64) == [1, 2]
    found = store.read()
    assert found.generation is not None
    assert found.generation.phase is Phase.CLIMBING
    assert [(one.kind, one.generation) for one in found.decisions] == [("breed", 0)]
    assert [(one.candidate, one.role) for one in found.members] == [
        (1, "offspring"),
        (2, "offspring"),
    ]
    for number, size in ((1, 32), (2, 64)):
        one = found.candidates[number]
        assert one.genotype == genotype(size)
        assert one.lineage == unchanged(genotype(size))
        assert one.parameters == parameters(genotype(size), BACKBONE)
        assert (one.parent, one.generation, one.stage) == (BASELINE, 0, "pretrain_0")


def test_a_generation_cannot_be_bred_twice(store: Store):
    open_with(store, 32)
    before = contents(store)
    with pytest.raises(sqlite3.IntegrityError, match="decision"):
        store.record_births(Breed(0, tuple(births(64)), "pretrain_0", {}), 3.0)
    assert contents(store) == before


def promotion(kept: Sequence[int], cut: Sequence[int]) -> Promotion:
    losses = dict.fromkeys((*kept, *cut), 1.0)
    return Promotion(
        name="share",
        rule="by hand",
        keep=0.5,
        places=1,
        reached=2,
        losses=losses,
        curves={one: ((1, loss),) for one, loss in losses.items()},
        threshold=1.0,
        kept=tuple(kept),
        cut=tuple(cut),
        reasons=dict.fromkeys(cut, "too high"),
    )


def test_a_cutoff_is_recorded_once_with_all_that_it_moves(store: Store):
    kept, cut = waiting(store, 32, 64)
    store.record_cutoff(0, "pretrain_0", "pretrain_1", promotion([kept], [cut]), 30.0)
    found = store.read()
    assert (found.candidates[kept].state, found.candidates[kept].stage) == ("pending", "pretrain_1")
    assert (found.candidates[cut].state, found.candidates[cut].reason) == ("cut", "too high")
    (recorded,) = found.cutoffs
    assert recorded.promotion == promotion([kept], [cut])
    before = contents(store)
    with pytest.raises(sqlite3.IntegrityError):
        store.record_cutoff(0, "pretrain_0", "pretrain_1", promotion([], []), 31.0)
    assert contents(store) == before


def test_a_cutoff_of_a_candidate_that_does_not_wait_leaves_nothing(store: Store):
    kept, cut = waiting(store, 32, 64)
    before = contents(store)
    found = promotion([kept, BASELINE], [cut])
    with pytest.raises(ImpossibleTransition):
        store.record_cutoff(0, "pretrain_0", "pretrain_1", found, 30.0)
    assert contents(store) == before


def test_a_selection_is_recorded_once_and_completes_its_generation(store: Store):
    one, other = open_with(store, 32, 64)
    store.start_selecting(0, 40.0)
    store.record_selection(
        0, {one: (True, 0, math.inf), other: (False, 1, 0.5)}, {"survivors": [one]}, 41.0
    )
    found = store.read()
    assert found.survivors(0) == [one]
    assert [(m.rank, m.crowding) for m in found.members] == [(0, math.inf), (1, 0.5)]
    assert found.generation is not None
    assert (found.generation.phase, found.generation.completed_at) == (Phase.COMPLETE, 41.0)
    before = contents(store)
    with pytest.raises(sqlite3.IntegrityError):
        store.record_selection(0, {one: (False, 3, 0.0)}, {}, 42.0)
    assert contents(store) == before


def test_a_selection_of_somebody_else_leaves_nothing(store: Store):
    (one,) = open_with(store, 32)
    store.start_selecting(0, 40.0)
    before = contents(store)
    with pytest.raises(AssertionError, match="no member"):
        store.record_selection(0, {one: (True, 0, 1.0), BASELINE: (True, 0, 1.0)}, {}, 41.0)
    assert contents(store) == before


def test_a_generation_passes_its_phases_in_order_only(store: Store):
    store.open_generation(0, (), 1.0)
    before = contents(store)
    with pytest.raises(AssertionError, match="is not climbing"):
        store.start_selecting(0, 2.0)
    with pytest.raises(AssertionError, match="is not selecting"):
        store.record_selection(0, {}, {}, 2.0)
    assert contents(store) == before


def test_a_generation_opens_once(store: Store):
    store.open_generation(0, (), 1.0)
    before = contents(store)
    with pytest.raises(sqlite3.IntegrityError):
        store.open_generation(0, (), 2.0)
    assert contents(store) == before


def test_halt_keeps_its_reason_until_the_resumption(store: Store):
    store.halt("the disk is full", 50.0)
    found = store.read().experiment
    assert (found.state, found.reason) == ("halted", "the disk is full")
    store.resume(60.0)
    found = store.read().experiment
    assert (found.state, found.reason, found.resumed_after) == ("running", "", 0)


# -- the database itself -------------------------------------------------------------------------

CANDIDATE = (
    "INSERT INTO candidate (id, generation, parent, genotype, hash, lineage, parameters, stage,"
    " state) VALUES "
)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE experiment SET state = 'asleep'",
        "INSERT INTO experiment (id, name, seed, config, backbone, state, created_at)"
        " SELECT 2, name, seed, config, backbone, state, created_at FROM experiment",
        "UPDATE experiment SET pause = 'nap'",
        "INSERT INTO request VALUES ('r', 'pause', '{}', 'me', '', 0, 0, 2, '')",
        "INSERT INTO injection VALUES (NULL, '{}', 'h', 'nobody''s', NULL, NULL)",
        "UPDATE experiment SET seed = 'many'",
        "UPDATE generation SET phase = 'resting'",
        "INSERT INTO generation VALUES (-1, 'breeding', 0, NULL)",
        "UPDATE candidate SET state = 'tired'",
        "UPDATE candidate SET parameters = 0",
        CANDIDATE + "(9, 0, NULL, '', 'h', '', 1, 's', 'pending')",  # no parent
        CANDIDATE + "(9, NULL, 0, '', 'h', '', 1, 's', 'pending')",  # a second baseline's child
        CANDIDATE + "(9, 0, 55, '', 'h', '', 1, 's', 'pending')",  # a parent that is not there
        "UPDATE attempt SET state = 'sleeping'",
        "UPDATE attempt SET ended_at = 5",  # live, and ended
        "UPDATE attempt SET state = 'lost'",  # ended, without a time
        "INSERT INTO lease VALUES ('cpu:9', 99)",
        "INSERT INTO decision VALUES (NULL, 0, 'guess', '', '{}', 0, 0)",
        "INSERT INTO member VALUES (0, 0, 'guest', NULL, NULL, NULL)",
        "INSERT INTO member VALUES (0, 0, 'parent', 2, NULL, NULL)",
    ],
)
def test_the_schema_itself_refuses_what_cannot_be(store: Store, statement: str):
    (one,) = open_with(store, 32)
    start(store, one, "cpu:0")
    with pytest.raises(sqlite3.IntegrityError), store._transaction():
        store._db.execute(statement)


def test_an_aborted_transaction_leaves_nothing(store: Store):
    before = contents(store)

    def half() -> None:
        with store._transaction():
            store._advance(BASELINE, Event.START, 5.0)
            store._log(5.0, event="half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        half()
    assert contents(store) == before
    store.advance(BASELINE, Event.START, 5.0)  # and the next one is not hindered


def test_a_process_that_dies_within_a_transaction_leaves_nothing(store: Store, state: StateFolder):
    before = contents(store)
    dying = Store(state.database)
    dying._db.conn.execute("BEGIN IMMEDIATE")
    dying._advance(BASELINE, Event.START, 5.0)
    dying.close()
    assert contents(store) == before


def test_reopening_keeps_everything(store: Store, state: StateFolder):
    one, _ = open_with(store, 32, 64)
    start(store, one, "cpu:0")
    before, read_before = contents(store), store.read()
    store.close()
    again = Store(state.database)
    assert contents(again) == before
    assert again.read() == read_before
    again.close()


def test_a_reader_sees_the_state_before_a_transaction_while_one_is_open(
    store: Store, state: StateFolder
):
    with store._transaction():
        store._advance(BASELINE, Event.START, 5.0)
        with snapshot.opened(state.path) as connection:
            assert snapshot.read(connection).baseline.state is State.PENDING
    with snapshot.opened(state.path) as connection:
        assert snapshot.read(connection).baseline.state is State.RUNNING


def test_a_reader_cannot_write(store: Store, state: StateFolder):
    with pytest.raises(NasdError, match="readonly"), snapshot.opened(state.path) as connection:
        connection.execute("DELETE FROM event")


def foreign(path: Path, statement: str) -> None:
    path.parent.mkdir()
    connection = sqlite3.connect(path)
    connection.execute(statement)
    connection.commit()
    connection.close()


def both_refuse(path: Path, words: str) -> None:
    """The store and the readers, in one sentence that names the file, and change nothing."""
    before = path.read_bytes()
    with pytest.raises(NasdError, match=words) as caught:
        Store(path)
    assert str(path) in str(caught.value)
    with pytest.raises(NasdError, match=words), snapshot.opened(path.parent):
        pass
    assert path.read_bytes() == before


def test_a_database_of_something_else_is_refused(state: StateFolder):
    foreign(state.database, "CREATE TABLE experiment (id INTEGER)")
    both_refuse(state.database, "is not a database of nasd's")


def test_a_file_that_is_no_database_is_refused(state: StateFolder):
    state.path.mkdir()
    state.database.write_text("these are my notes, " * 100)
    both_refuse(state.database, "not a database")


def test_a_newer_schema_is_refused(store: Store, state: StateFolder):
    store._db.execute(
        "INSERT INTO _sqlite_migrations (migration_set, name, applied_at)"
        " VALUES ('nasd', 'm999_future', '2030')"
    )
    store._db.conn.execute("PRAGMA journal_mode = DELETE")
    store.close()
    both_refuse(state.database, "newer nasd")


@pytest.mark.parametrize(
    "statement",
    [
        "PRAGMA journal_mode = WAL",  # killed before the first table
        "CREATE TABLE _sqlite_migrations (id INTEGER PRIMARY KEY, migration_set TEXT, name TEXT,"
        " applied_at TEXT)",  # killed before the first migration
    ],
)
def test_a_database_whose_making_was_cut_short_is_made_anew(state: StateFolder, statement: str):
    foreign(state.database, statement)
    with pytest.raises(NasdError, match="holds no experiment yet"), snapshot.opened(state.path):
        pass
    store = Store(state.database)
    begin(store, small_config())
    assert store.read().baseline.id == BASELINE
    store.close()


def test_a_database_without_an_experiment_says_so(state: StateFolder):
    Store(state.database).close()
    with (
        pytest.raises(NasdError, match="holds no experiment yet"),
        snapshot.opened(state.path) as connection,
    ):
        snapshot.read(connection)


def test_a_state_folder_without_a_database_says_so(state: StateFolder):
    with pytest.raises(NasdError, match="holds no experiment yet"), snapshot.opened(state.path):
        pass
    assert not state.path.exists()


# -- what is read --------------------------------------------------------------------------------


def test_the_snapshot_reads_back_what_was_written(store: Store):
    config = small_config()
    found = store.read().experiment
    assert found.config == config.model_dump(mode="json", by_alias=True)
    assert (found.seed, found.backbone) == (config.experiment.seed, BACKBONE)
    assert json.loads(json.dumps(found.config)) == found.config


def test_scores_are_those_of_the_last_stage(store: Store):
    (one,) = open_with(store, 32)
    for next_stage, event, metrics in (
        ("finetune", Event.ADVANCE, {"f1": 11.0, "exact_match": 1.0}),  # on the way
        ("evaluate", Event.ADVANCE, {"loss": 1.0}),
        (None, Event.SCORE, {"f1": 70.0, "exact_match": 60.0}),
    ):
        assert store.read().quality(one) is None
        attempt = start(store, one, "cpu:0")
        record = StageRecord(metrics, [], 1, 1.0)
        ending = Ending(AttemptState.SUCCEEDED, event, next_stage)
        store.end_attempt(attempt, Ended(ending, 20.0, record=record), 20.0)
    assert store.read().quality(one) == 65.0


def test_size_is_the_baselines_parameters_by_the_candidates(store: Store):
    (one,) = open_with(store, 32)
    found = store.read()
    assert found.size(BASELINE) == 1.0
    assert found.size(one) == found.baseline.parameters / found.candidates[one].parameters > 1


@settings(max_examples=30)
@given(
    st.lists(
        st.tuples(st.integers(1, 4), st.floats(0, 1e6), st.floats(0, 1e6)), min_size=1, max_size=6
    )
)
def test_the_ledger_is_the_sum_of_slots_by_time(tmp_path_factory, held):
    path = tmp_path_factory.mktemp("s") / "nasd.db"
    store = open_quickly(path)
    begin(store, small_config())
    for slots, began, seconds in held:
        attempt = start(store, BASELINE, *(f"cpu:{n}" for n in range(slots)), now=began)
        lose(store, attempt, at=began + seconds)
    live = start(store, BASELINE, "cpu:0", "cpu:1", now=2e6)
    store.attempt_runs(live, {})
    store.close()
    store = Store(path)  # and it is the same after a restart
    closed = sum(slots * ((began + seconds) - began) for slots, began, seconds in held)
    assert store.read().gpu_hours(2e6 + 3600) == pytest.approx(closed / 3600 + 2)
    assert store.read().gpu_hours(0.0) == pytest.approx(closed / 3600)  # a clock set back
    store.close()


# -- a full disk ---------------------------------------------------------------------------------


@contextmanager
def no_file_larger_than(size: int) -> Iterator[None]:
    """For this process: what lies beyond cannot be written."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_write_that_finds_the_disk_full_leaves_nothing_and_the_next_one_is_not_hindered(
    store: Store, state: StateFolder
):
    store.note("before", "x" * 20_000, 1.0)
    before, in_play = contents(store), store.in_play()
    for _ in range(3):
        with (
            no_file_larger_than(state.database.with_name("nasd.db-wal").stat().st_size),
            pytest.raises(sqlite3.OperationalError),
        ):
            store.quarantine("cuda:0", QuarantineKind.LOST, "x" * 20_000, 2.0)
        assert contents(store) == before
        assert store.in_play() == in_play
    store.quarantine("cuda:0", QuarantineKind.LOST, "GPU is lost", 3.0)
    assert set(store.in_play().quarantine) == {"cuda:0"}


def test_a_database_that_may_not_grow_refuses_to_and_stays_whole(store: Store):
    before = contents(store)
    (pages,) = store._db.execute("PRAGMA page_count").fetchone()
    store._db.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(sqlite3.OperationalError, match="full"):
        store.note("too much", "x" * 100_000, 1.0)
    assert contents(store) == before
    store._db.execute("PRAGMA max_page_count = 1000000")
    store.note("enough", "x" * 100_000, 1.0)


# -- a database of an older nasd -----------------------------------------------------------------

OLD_ROWS: dict[str, list[tuple[object, ...]]] = {
    "experiment": [
        (1, "old", 7, "{}", json.dumps(asdict(BACKBONE)), None, "running", "", 1.0, None, 0.0)
    ],
    "generation": [(0, "climbing", 2.0, None)],
    "candidate": [
        (0, None, None, "{}", "h0", "[]", 900, "evaluate", "scored", ""),
        (1, 0, 0, "{}", "h1", "[]", 600, "pretrain_0", "running", ""),
    ],
    "attempt": [
        (1, 0, "prepare", 1, "lost", '["cpu:0"]', "t1", None, "", "gone", 10.0, 110.0),
        (2, 0, "prepare", 2, "succeeded", '["cpu:0"]', "t2", '{"pid": 5}', "", "", 120.0, 320.0),
        (3, 0, "finetune", 1, "failed", '["cpu:0","cpu:1"]', "t3", None, "error", "", 330.0, 380.0),
        (4, 1, "pretrain_0", 1, "running", '["cpu:0", "cpu:1"]', "t4", "{}", "", "", 400.0, None),
    ],
    "lease": [("cpu:0", 4), ("cpu:1", 4)],
    "result": [(0, "evaluate", 2, '{"f1": 1.0, "exact_match": 1.0}', "[]", 5, 2.0, 320.0)],
    "decision": [(1, 0, "breed", "", "{}", 3.0)],
    "member": [(0, 1, "offspring", None, None, None)],
    "event": [(n, float(n), 0, None, "born", None, "pending", "prepare", "é") for n in range(1, 9)],
}


@pytest.fixture
def old(state: StateFolder) -> StateFolder:
    """An experiment as the first schema has it, on its way."""
    state.path.mkdir()
    database = Database(str(state.database))
    migrations.apply(database, stop_before="m002_faults")
    database.conn.execute("PRAGMA journal_mode = WAL")
    with database.conn:
        for table, rows in OLD_ROWS.items():
            marks = ", ".join("?" * len(rows[0]))
            database.conn.executemany(f"INSERT INTO {table} VALUES ({marks})", rows)
    database.close()
    return state


def old_rows(path: Path) -> dict[str, list[tuple[object, ...]]]:
    """What stands in the columns that the first schema had."""
    with closing(sqlite3.connect(path)) as database:
        return {
            table: [
                row[: len(rows[0])] for row in database.execute(f"SELECT * FROM {table} ORDER BY 1")
            ]
            for table, rows in OLD_ROWS.items()
        }


def version(path: Path) -> int:
    with closing(sqlite3.connect(path)) as database:
        query = "SELECT count(*) FROM _sqlite_migrations WHERE migration_set = 'nasd'"
        return int(database.execute(query).fetchone()[0])


BEFORE = f"before-schema-{snapshot.SCHEMA}.db"


def is_brought_up_to_date(state: StateFolder) -> None:
    store = Store(state.database)
    assert version(state.database) == snapshot.SCHEMA
    assert old_rows(state.database) == OLD_ROWS
    found = store.read()
    ended = 100 + 200 + 2 * 50
    assert found.ended_slot_seconds == ended
    assert found.gpu_hours(460.0) == pytest.approx((ended + 2 * 60) / 3600)
    assert store.in_play().ended_slot_seconds == ended
    assert [one.reached for one in found.attempts] == [0] * 4
    assert (found.experiment.hold, found.quarantine) == ("", {})
    assert found.leases == {"cpu:0": 4, "cpu:1": 4}
    # And it goes on from there.
    store.end_attempt(4, Ended(Ending(AttemptState.LOST, Event.INTERRUPT), 500.0), 500.0)
    assert store.read().ended_slot_seconds == ended + 200
    assert store.in_play().ended_slot_seconds == ended + 200
    store.close()
    backup = state.backups / BEFORE
    assert version(backup) == 1
    assert old_rows(backup) == OLD_ROWS
    assert [path.name for path in state.backups.iterdir()] == [BEFORE]


def test_a_database_of_an_older_nasd_is_backed_up_and_then_brought_up_to_date(old: StateFolder):
    is_brought_up_to_date(old)
    again = Store(old.database)  # once is enough
    again.close()
    assert version(old.backups / BEFORE) == 1


def test_reading_a_database_of_an_older_nasd_says_what_to_do_and_changes_nothing(old: StateFolder):
    before = old.database.read_bytes()
    with pytest.raises(NasdError) as caught, snapshot.opened(old.path):
        pass
    assert str(caught.value) == (
        f"{old.database} was written by an older nasd (schema 1, this one knows"
        f" {snapshot.SCHEMA}): `nasd run` brings it up to date, after a backup"
    )
    assert old.database.read_bytes() == before
    assert not old.backups.exists()
    is_brought_up_to_date(old)


class Died(BaseException):
    pass


def test_killed_between_the_backup_and_the_migration_it_is_brought_up_to_date_next_time(
    old: StateFolder, monkeypatch: pytest.MonkeyPatch
):
    def never(database: Database) -> None:
        raise Died

    with monkeypatch.context() as patch:
        patch.setattr(migrations, "apply", never)
        with pytest.raises(Died):
            Store(old.database)
    assert version(old.database) == 1
    assert version(old.backups / BEFORE) == 1
    is_brought_up_to_date(old)


def test_killed_within_the_backup_it_is_brought_up_to_date_next_time(
    old: StateFolder, monkeypatch: pytest.MonkeyPatch
):
    def never(path: Path, target: Path) -> None:
        raise Died

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", never)
        with pytest.raises(Died):
            Store(old.database)
    assert version(old.database) == 1
    assert not (old.backups / BEFORE).exists()
    is_brought_up_to_date(old)


@pytest.mark.parametrize("after", range(1, 6))
def test_killed_within_a_migration_it_is_brought_up_to_date_next_time(
    old: StateFolder, monkeypatch: pytest.MonkeyPatch, after: int
):
    execute = migration_steps._execute

    def half(database: Database, statements: str) -> None:
        execute(database, ";".join(statements.split(";")[:after]))
        raise Died

    with monkeypatch.context() as patch:
        patch.setattr(migration_steps, "_execute", half)
        with pytest.raises(Died):
            Store(old.database)
    assert version(old.database) == 1
    assert old_rows(old.database) == OLD_ROWS
    is_brought_up_to_date(old)
