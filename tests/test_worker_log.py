"""The worker's log of a candidate: its end, and following it from one attempt to the next."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from nasd.cli import app
from nasd.contract.errors import NasdError
from nasd.contract.protocol import Outcome, Spec
from nasd.control.tick import Tick
from nasd.record.folders import StateFolder
from nasd.record.lifecycle import State
from nasd.record.state import Attempt
from nasd.views import worker_log
from nasd.views.worker_log import BLOCK, LONGEST, Wanted
from tests.conftest import advance, all_succeed, drive, make_tick, small_config

MANY = 10_000  # turns
CUT = b" ... [180,224 bytes more]"


def first_is_lost(spec: Spec, before: int) -> tuple[float, Outcome | None]:
    return (30.0, None) if spec.generation == 0 and not before else all_succeed(spec, before)


@pytest.fixture
def search(state: StateFolder) -> Iterator[Tick]:
    tick = make_tick(state, small_config(), first_is_lost)
    yield tick
    tick.store.close()


def write_logs(tick: Tick) -> None:
    """What each attempt's worker would have written: two lines, the second without its end."""
    for one in tick.store.read().attempts:
        log = tick.state.attempt(one.id).log
        if not log.exists():
            log.write_text(f"{one.id} begins\n{one.id} goes on")


def until_it_runs(tick: Tick, candidate: int) -> None:
    drive(tick, lambda snap: any(one.candidate == candidate for one in snap.live_attempts))
    write_logs(tick)


def turning(tick: Tick) -> Callable[[float], None]:
    """Lets the search go on by a turn where a reader would wait."""
    turns = iter(range(MANY))

    def wait(seconds: float) -> None:
        next(turns)
        advance(tick)
        tick()
        write_logs(tick)

    return wait


def followed(tick: Tick, wanted: Wanted) -> tuple[str, list[Attempt | None]]:
    told: list[Attempt | None] = []
    pieces = worker_log.follow(tick.state.path, wanted, 0, told.append, turning(tick))
    return b"".join(pieces).decode(), told


# -- its end -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "lines", "shown"),
    [
        (b"", 3, b""),
        (b"a\nb\nc\n", 2, b"b\nc\n"),
        (b"a\nb\nc", 2, b"b\nc"),
        (b"a\nb\nc\n", 3, b"a\nb\nc\n"),
        (b"a\nb\nc\n", 9, b"a\nb\nc\n"),
        (b"a\nb\nc\n", 0, b"a\nb\nc\n"),
        (b"\n\n\n", 2, b"\n\n"),
        (b"x\n" + b"y" * LONGEST + b"\nz\n", 2, b"y" * LONGEST + b"\nz\n"),
        (b"x\n" + b"y" * (3 << 16) + b"\nz", 2, b"y" * LONGEST + CUT + b"\nz"),
        (b"y" * (3 << 16), 0, b"y" * LONGEST + CUT),
        (b"a\n" * (1 << 17), 2, b"a\na\n"),
    ],
)
def test_the_last_lines_of_a_log(search: Tick, content: bytes, lines: int, shown: bytes):
    until_it_runs(search, 1)
    attempt = worker_log.attempt(search.state.path, Wanted(1))
    search.state.attempt(attempt.id).log.write_bytes(content)
    text = b"".join(worker_log.tail(search.state.path, attempt, lines))
    assert text == shown


def test_the_newest_attempt_is_taken_or_that_of_a_stage_and_number(search: Tick):
    drive(search)
    state = search.state.path
    newest = worker_log.attempt(state, Wanted(1))
    assert (newest.stage, newest.number) == ("evaluate", 2)
    first = worker_log.attempt(state, Wanted(1, "pretrain_0"))
    assert (first.stage, first.number) == ("pretrain_0", 2)
    lost = worker_log.attempt(state, Wanted(1, "pretrain_0", 1))
    assert (lost.number, lost.state) == (1, "lost")


def test_what_is_not_there_is_said(search: Tick):
    drive(search, lambda snap: bool(snap.born_in(0)))
    state = search.state.path
    with pytest.raises(NasdError, match="candidate 3 has had no attempt yet: it is pending at"):
        worker_log.attempt(state, Wanted(3))
    with pytest.raises(NasdError, match="no stage 'fine' on the ladder of candidate 3: take one"):
        worker_log.find(state, "3", "fine", None)
    until_it_runs(search, 3)
    with pytest.raises(NasdError, match="candidate 3 has had no attempt at finetune yet"):
        worker_log.attempt(state, Wanted(3, "finetune"))
    with pytest.raises(NasdError, match="no attempt 7 at pretrain_0: the newest one is 1"):
        worker_log.attempt(state, Wanted(3, None, 7))
    attempt = worker_log.attempt(state, Wanted(3))
    search.state.attempt(attempt.id).log.unlink()
    with pytest.raises(NasdError, match="candidate 3's attempt 1 at pretrain_0 is gone"):
        list(worker_log.tail(state, attempt, 10))


def test_the_command_prints_the_log_alone_and_says_elsewhere_whose_it_is(search: Tick):
    drive(search)
    write_logs(search)
    attempt = worker_log.attempt(search.state.path, Wanted(1))
    options = ["--state", str(search.state.path)]
    done = CliRunner().invoke(app, ["log", "1", "-n", "1", *options])
    assert done.stdout == f"{attempt.id} goes on"
    assert f"attempts/{attempt.id}/worker.log" in done.stderr
    done = CliRunner().invoke(app, ["log", "1", "--follow", *options])  # final, so it ends
    assert done.stdout == f"{attempt.id} begins\n{attempt.id} goes on"


# -- what comes ----------------------------------------------------------------------------------


def test_following_goes_from_attempt_to_attempt_until_the_candidate_is_final(search: Tick):
    until_it_runs(search, 2)
    text, told = followed(search, Wanted(2))
    snap = search.store.read()
    assert snap.candidates[2].state is State.SCORED
    its = [one.id for one in snap.attempts if one.candidate == 2]
    assert [one.id for one in told if one] == its
    assert text == "".join(f"{one} begins\n{one} goes on" for one in its)


def test_following_waits_for_the_first_attempt_and_says_so_once(search: Tick):
    drive(search, lambda snap: bool(snap.born_in(0)))
    text, told = followed(search, Wanted(3))
    assert told[0] is None
    assert None not in told[1:]
    assert text.startswith(f"{told[1].id} begins")  # type: ignore[union-attr]


def test_following_a_stage_or_an_attempt_ends_with_it(search: Tick):
    until_it_runs(search, 1)
    _, told = followed(search, Wanted(1, None, 1))
    assert [(one.stage, one.number) for one in told if one] == [("pretrain_0", 1)]
    _, told = followed(search, Wanted(1, "pretrain_0"))
    assert [(one.stage, one.number) for one in told if one] == [
        ("pretrain_0", 1),
        ("pretrain_0", 2),
    ]
    assert search.store.read().candidates[1].stage == "pretrain_1"


def test_an_attempt_that_has_not_begun_to_write_is_waited_for(search: Tick, tmp_path: Path):
    until_it_runs(search, 1)
    attempt = worker_log.attempt(search.state.path, Wanted(1))
    log = search.state.attempt(attempt.id).log
    log.unlink()
    waited = []

    def wait(seconds: float) -> None:
        waited.append(seconds)
        log.write_bytes(b"here\n") if len(waited) == 1 else turning(search)(seconds)

    pieces = worker_log.follow(search.state.path, Wanted(1, None, 1), 5, lambda _: None, wait)
    assert b"".join(pieces) == b"here\n"


def test_a_huge_line_is_read_a_block_at_a_time_and_cut_also_where_it_is_followed(search: Tick):
    until_it_runs(search, 1)
    attempt = worker_log.attempt(search.state.path, Wanted(1))
    log = search.state.attempt(attempt.id).log
    with log.open("wb") as file:
        file.truncate(1 << 28)  # a line of 256 MiB, of which nothing takes room on the disk
    pieces = [len(one) for one in worker_log.tail(search.state.path, attempt, 10)]
    assert max(pieces) <= BLOCK
    assert LONGEST < sum(pieces) < LONGEST + 100
    log.write_bytes(b"y" * (3 << 16) + b"\nz\n")
    pieces = worker_log.follow(
        search.state.path, Wanted(1, None, 1), 5, lambda _: None, turning(search)
    )
    assert b"".join(pieces) == b"y" * LONGEST + CUT + b"\nz\n"
