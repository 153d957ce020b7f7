"""What a person sees of a search, on terminals of all sizes."""

import os
import signal
import subprocess
import sys
import termios
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from nasd.contract import readable
from nasd.contract.protocol import Heartbeat, Outcome, Spec, write
from nasd.launch.gpus import GpuProcess
from nasd.record import daemon_lock
from nasd.record.folders import StateFolder
from nasd.record.lifecycle import Phase, QuarantineKind, State
from nasd.record.state import LoggedEvent, Quarantine
from nasd.search import pareto
from nasd.views import caveats
from nasd.views.status import events, marks, standing
from nasd.views.status.devices import Device
from nasd.views.status.facts import Facts, Reader, read
from nasd.views.status.summary import summary
from nasd.views.status.text import Lines
from nasd.views.status.view import view
from nasd.views.status.watch import follow
from tests.bench.control import fill, put_in_play
from tests.conftest import (
    ROOT,
    all_succeed,
    drive,
    make_tick,
    prepared,
    small_config,
    succeeded,
)
from tests.test_status import in_phase, one_diverges

SIZES = [(20, 10), (40, 12), (80, 24), (120, 40), (200, 60)]
TWELVE = small_config(population__lambda=12, slots__devices=["cpu:0", "cpu:1", "cpu:2", "cpu:3"])


def without_head(spec: Spec, before: int) -> tuple[float, Outcome | None]:
    return 30.0, succeeded(spec, has_mlm_head=False)


def some_wait(found: Any) -> bool:
    generation = found.generation
    return bool(
        generation
        and generation.number == 1
        and sum(one.state is State.WAITING for one in found.candidates.values()) > 3
        and found.live_attempts
    )


WHEN = {
    "nothing prepared": (small_config(), lambda found: True),
    "baseline": (small_config(), lambda found: found.experiment.prepared and found.live_attempts),
    "generation 0": (small_config(), in_phase(0, Phase.CLIMBING)),
    "before the cutoff": (TWELVE, some_wait),
    "behind the cutoff": (
        TWELVE,
        lambda found: found.generation and found.generation.number == 1 and some_scored(found),
    ),
    "complete": (small_config(), lambda found: False),
    "halted": (small_config(), in_phase(1, Phase.CLIMBING)),
}


def some_scored(found: Any) -> bool:
    born = found.born_in(found.generation.number)
    return any(one.state is State.SCORED for one in born) and bool(found.live_attempts)


@pytest.fixture(scope="module")
def searches(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Facts]:
    found = {}
    for name, (config, until) in WHEN.items():
        folder = StateFolder(tmp_path_factory.mktemp("view") / "state")
        tick = make_tick(folder, config, without_head if name == "baseline" else one_diverges)
        drive(tick, until)
        if name == "halted":
            tick.store.halt("candidate 5 at pretrain_0 lost 6 attempts in a row", tick.clock())
        found[name] = read(folder.path, tick.clock())
        tick.store.close()
    many = StateFolder(tmp_path_factory.mktemp("view") / "state")
    many.path.mkdir()
    fill(many, 40)
    put_in_play(many, 40, 500)
    return found | {"500 candidates": read(many.path)}


@pytest.fixture(params=[*WHEN, "500 candidates"])
def facts(request: pytest.FixtureRequest, searches: dict[str, Facts]) -> Facts:
    return searches[request.param]


def shown(
    facts: Facts, width: int, height: int | None = None, terminal: bool = True, **more: Any
) -> list[str]:
    lines = view(facts, width, height)
    console = Console(
        file=StringIO(), width=width, force_terminal=terminal, color_system=None, **more
    )
    console.print(Lines(lines), soft_wrap=True)
    assert isinstance(console.file, StringIO)
    return console.file.getvalue().splitlines()


def text_of(facts: Facts, width: int = 80, height: int | None = 24) -> str:
    return "\n".join(shown(facts, width, height))


# -- it fits -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_no_line_is_wider_and_no_more_are_there_than_the_terminal_has(facts, width, height):
    for lines in (shown(facts, width, height), shown(facts, width, height, terminal=False)):
        assert len(lines) <= height
        assert max(map(cell_len, lines)) <= width


@given(width=st.integers(1, 260), height=st.integers(1, 90))
def test_any_size_at_all_is_kept_to(searches, width: int, height: int):
    for facts in searches.values():
        lines = shown(facts, width, height)
        assert len(lines) <= height
        assert max(map(cell_len, lines), default=0) <= width


@pytest.mark.parametrize("width", [20, 80, 200])
def test_without_a_height_every_candidate_has_a_line(facts, width: int):
    lines = shown(facts, width)
    ids = {line.split()[0] for line in lines if line.split() and line.split()[0].isdigit()}
    assert {str(one.id) for one in (*facts.born, *facts.parents)} <= ids


def test_in_a_pipe_there_are_only_plain_characters(facts):
    for width, height in SIZES:
        for line in shown(facts, width, height, terminal=False):
            assert line.isascii()
            assert line == line.rstrip()


def test_the_same_look_gives_the_same_lines(facts):
    assert shown(facts, 80, 24) == shown(facts, 80, 24)


def test_a_name_in_wide_characters_takes_no_more_columns(searches):
    facts = searches["before the cutoff"]
    experiment = replace(facts.snapshot.experiment, name="蒸留された小さな検索" * 9)
    facts = replace(facts, snapshot=replace(facts.snapshot, experiment=experiment))
    for width, height in SIZES:
        assert max(map(cell_len, shown(facts, width, height))) <= width
        assert shown(facts, width, height, terminal=False)  # whatever the pipe's encoding


# -- the five questions --------------------------------------------------------------------------


def test_it_says_what_the_search_does(searches):
    assert "small  prepare" in text_of(searches["nothing prepared"])
    assert "small  baseline" in text_of(searches["baseline"])
    assert "small  generation 1 of 2, climbing" in text_of(searches["before the cutoff"])
    wide = text_of(searches["before the cutoff"], 160, 50)
    assert "interrupted" in wide.splitlines()[0] and "waiting" in wide.splitlines()[0]


def test_it_says_that_no_daemon_serves_it_and_that_it_is_healthy_with_one(tmp_path: Path):
    tick = make_tick(StateFolder(tmp_path), small_config())
    tick()
    assert "no daemon serves it: go on with `nasd run`" in text_of(read(tmp_path, tick.clock()))
    with daemon_lock.hold(tick.state.lock):
        text = text_of(read(tmp_path, tick.clock()))
    assert "healthy, 1 attempt on 1 of 4 slots" in text


def test_what_the_data_is_worth_is_told_below_that_it_is_healthy(tmp_path: Path):
    poor = prepared().model_copy(
        update={"mlm_unknown": 0.123, "qa_skipped": 3100, "qa_test_questions": 60}
    )

    def script(spec: Spec, before: int) -> tuple[float, Outcome | None]:
        seconds, outcome = all_succeed(spec, before)
        assert outcome is not None
        if outcome.prepared is not None:
            outcome = outcome.model_copy(update={"prepared": poor})
        return seconds, outcome

    tick = make_tick(StateFolder(tmp_path), small_config(), script)
    drive(tick, lambda found: found.experiment.prepared is not None and bool(found.live_attempts))
    with daemon_lock.hold(tick.state.lock):
        facts = read(tmp_path, tick.clock())
    assert {notice.level for notice in facts.notices} == {"note"}
    text = text_of(facts, 160, 50)
    assert "healthy, " in text
    for told in caveats.of(poor.model_dump()):
        assert told in text
    narrow = text_of(facts, 40, 10)
    assert "healthy" in narrow


def test_it_says_why_a_search_halted_in_full_where_there_is_room(searches):
    text = text_of(searches["halted"], 60, 24)
    assert "halted: candidate 5 at pretrain_0 lost 6 attempts in" in text
    assert "a row" in text
    assert "paused" not in text


def test_it_says_what_is_wrong(tmp_path: Path):
    lost = 0

    def losing(spec: Spec, before: int) -> tuple[float, Outcome | None]:
        nonlocal lost
        if spec.candidate == 1 and lost < 2:
            lost += 1
            return 5.0, None
        return all_succeed(spec, before)

    tick = make_tick(StateFolder(tmp_path), small_config(), losing)
    drive(tick, lambda found: lost == 2 and not any(a.candidate == 1 for a in found.live_attempts))
    tick.store.hold("the disk is nearly full", tick.clock())
    tick.store.quarantine("cpu:3", QuarantineKind.LOST, "GPU is lost", tick.clock())
    (attempt, *_) = tick.store.read().live_attempts
    late = Heartbeat(doing="training", step=3, steps=10, at=tick.clock() - 120)
    write(late, tick.state.attempt(attempt.id).heartbeat)
    with daemon_lock.hold(tick.state.lock):
        text = text_of(read(tmp_path, tick.clock()), 120, 40)
    assert "on hold: the disk is nearly full" in text
    assert "cpu:3 is left alone: GPU is lost" in text
    assert "candidate 1 lost 2 attempts at pretrain_0 in a row: gone without an outcome" in text
    assert f"candidate {attempt.candidate} has been silent for 2 min (training)" in text


def test_nothing_is_said_to_run_where_no_daemon_serves(searches):
    facts = searches["before the cutoff"]
    down = text_of(replace(facts, served=False), 120, 40)
    assert "interrupted" in down and " running" not in down
    up = text_of(replace(facts, served=True), 120, 40)
    assert " running" in up and "interrupted" not in up


def test_it_says_whether_the_search_gets_better(searches):
    assert "nobody is scored yet" in text_of(searches["nothing prepared"])
    facts = searches["behind the cutoff"]
    gained = facts.gained
    assert gained.quality is not None and gained.baseline is not None
    text = text_of(facts, 160, 40)
    assert f"best quality {gained.quality:.2f}" in text
    assert f"({readable.signed(gained.quality - gained.baseline)} on the baseline" in text
    assert "on generation 0" in text
    assert "hypervolume" in text


def test_it_says_when_it_will_end_and_what_that_rests_on(searches):
    assert "unknown before the data is prepared" in text_of(searches["nothing prepared"])
    assert "unknown before the first stage trains" in text_of(searches["baseline"])
    facts = searches["before the cutoff"]
    assert facts.remaining is not None
    assert f"from {facts.remaining.finished} finished stages" in text_of(facts, 100)
    assert "after it goes on" in text_of(facts, 100)  # no daemon serves it
    running = replace(facts, served=True)
    assert f"in about {readable.about(facts.remaining.seconds)}, " in text_of(running, 100)
    assert "ended at" in text_of(searches["complete"])


def test_it_says_what_it_has_cost_of_the_budget(tmp_path: Path):
    tick = make_tick(StateFolder(tmp_path), small_config(experiment__budget_gpu_hours=0.5))
    drive(tick, in_phase(1, Phase.CLIMBING))
    facts = read(tmp_path, tick.clock())
    assert f"{facts.gpu_hours:.3f} of 0.500 slot-hours, about" in text_of(facts)
    assert "over the budget" not in text_of(facts, 120, 40)
    config = facts.snapshot.experiment.config
    config["experiment"]["budget_gpu_hours"] = facts.gpu_hours + 0.01
    assert "over the budget" in text_of(facts, 120, 40)


# -- slots ---------------------------------------------------------------------------------------


def test_a_slot_shows_its_device_what_runs_on_it_and_who_else_does(searches):
    facts = searches["behind the cutoff"]
    held, *_ = facts.holders
    where = facts.holders[held]
    used = Device(use=97.4, memory=31_200_000_000, total=40_000_000_000, temperature=64)
    shared = replace(used, foreign=(GpuProcess(1, 3_000_000_000), GpuProcess(2, 0)))
    names = {slot: slot.replace("cpu", "cuda") for slot in facts.slots}
    snap = facts.snapshot
    config = {**snap.experiment.config, "slots": {"devices": list(names.values())}}
    snap = replace(
        snap,
        experiment=replace(snap.experiment, config=config),
        attempts=tuple(replace(a, slots=tuple(names[s] for s in a.slots)) for a in snap.attempts),
        leases={names[slot]: attempt for slot, attempt in snap.leases.items()},
        quarantine={"cuda:7": Quarantine("cuda:7", QuarantineKind.LOST, "GPU is lost", 0.0)},
    )
    places = {
        candidate: replace(one, attempt=next(a for a in snap.attempts if a.id == one.attempt.id))
        for candidate, one in facts.where.items()
    }
    devices = {names[slot]: used for slot in facts.slots} | {names[held]: shared}
    facts = replace(facts, snapshot=snap, where=places, devices=devices, served=True)
    lines = shown(facts, 200, 60)
    (line,) = [one for one in lines if names[held] in one and "97 %" in one]
    assert "97 %   31.2/40  64" in line
    assert f"{where.attempt.candidate} {where.attempt.stage}, 2 foreign" in line
    assert any("left alone: GPU is lost" in one for one in lines)


def test_more_slots_than_there_is_room_for_are_counted(searches):
    facts = searches["before the cutoff"]
    config = {**facts.snapshot.experiment.config}
    config["slots"] = {**config["slots"], "devices": [f"cpu:{n}" for n in range(64)]}
    experiment = replace(facts.snapshot.experiment, config=config)
    facts = replace(facts, snapshot=replace(facts.snapshot, experiment=experiment))
    assert "slots more" in text_of(facts, 80, 24)
    assert "64 slots:" in text_of(facts, 60, 16)


# -- candidates ----------------------------------------------------------------------------------


def test_the_view_holds_the_generation_its_parents_and_the_baseline(searches):
    facts = searches["before the cutoff"]
    rows = [line.split() for line in shown(facts, 80)]
    ids = [int(row[0]) for row in rows if row and row[0].isdigit()]
    assert ids == [*(one.id for one in facts.born), *(one.id for one in facts.parents), 0]


def test_it_says_why_those_that_wait_do(searches):
    facts = searches["before the cutoff"]
    states = [one.state for one in facts.born]
    climbing = states.count(State.RUNNING) + states.count(State.PENDING)
    text = text_of(facts, 80, None)
    assert text.count(f"cutoff waits for {climbing} of 12") == states.count(State.WAITING) > 3
    assert text.count("waits for 2 slots") == states.count(State.PENDING)
    held = replace(facts.snapshot.experiment, hold="the disk is full")
    facts = replace(facts, snapshot=replace(facts.snapshot, experiment=held))
    assert text_of(facts, 80, None).count("  on hold") >= states.count(State.PENDING)


def test_it_says_how_long_a_candidate_backs_off(tmp_path: Path):
    def losing(spec: Spec, before: int) -> tuple[float, Outcome | None]:
        return (5.0, None) if spec.candidate == 1 and before < 3 else all_succeed(spec, before)

    tick = make_tick(StateFolder(tmp_path), small_config(), losing)
    drive(tick, lambda found: sum(a.candidate == 1 and not a.live for a in found.attempts) == 3)
    facts = read(tmp_path, tick.clock())
    assert facts.waits[1] == "lost 3 times, 2 min more"
    assert "lost 3 times, 2 min more" in text_of(facts, 80, None)


def test_a_row_shows_progress_pace_and_the_learning_curve_so_far(tmp_path: Path):
    tick = make_tick(StateFolder(tmp_path), small_config())
    drive(tick, lambda found: any(a.candidate == 1 for a in found.live_attempts))
    (attempt,) = [a for a in tick.store.read().live_attempts if a.candidate == 1]
    folder = tick.state.attempt(attempt.id)
    write(Heartbeat(doing="training", step=50, steps=200, at=tick.clock()), folder.heartbeat)
    reader = Reader(tmp_path)
    line = '{{"kind": "train", "step": {}, "loss": {}, "at": {}}}\n'
    with folder.metrics.open("w") as file:
        for n in range(1, 5):
            file.write(line.format(10 * n, 9.0 - n, 100.0 + 4 * n))
        file.write(line.format(45, "NaN", 118.0) + '{"kind": "evalu')
    facts = reader.read(tick.clock())
    where = facts.where[1]
    assert (where.share, where.losses) == (0.25, [8.0, 7.0, 6.0, 5.0])
    assert where.steps_per_second == 2.5
    with folder.metrics.open("a") as file:  # the half line is whole now, and there is one more
        file.write('ation", "step": 45, "loss": 3.0, "at": 119.0}\n' + line.format(50, 4.5, 120.0))
    assert reader.read(tick.clock()).where[1].losses == [8.0, 7.0, 6.0, 5.0, 4.5]
    (row,) = [one for one in shown(facts, 80, 24) if one.split()[:1] == ["1"]]
    assert "━━━━" in row and " 25 %" in row and "2.50" in row
    assert "█▆▃▁" in row and "5.000" in row


def test_the_curve_of_a_resumed_stage_begins_with_the_attempts_before(tmp_path: Path):
    def lost_once(spec: Spec, before: int) -> tuple[float, Outcome | None]:
        return (5.0, None) if spec.candidate == 1 and not before else all_succeed(spec, before)

    tick = make_tick(StateFolder(tmp_path), small_config(), lost_once)
    drive(tick, lambda found: sum(a.candidate == 1 for a in found.attempts) == 2)
    first, second = (a.id for a in tick.store.read().attempts if a.candidate == 1)
    line = '{{"kind": "train", "step": {}, "loss": {}, "at": 1.0}}\n'
    for attempt, steps in ((first, (10, 20, 30)), (second, (20, 30, 40))):
        text = "".join(line.format(step, float(step + attempt)) for step in steps)
        tick.state.attempt(attempt).metrics.write_text(text)
    losses = read(tmp_path, tick.clock()).where[1].losses
    assert losses == [10.0 + first, 20.0 + second, 30.0 + second, 40.0 + second]


def test_who_finds_no_room_is_counted_and_who_runs_is_shown(searches):
    facts = searches["500 candidates"]
    lines = shown(facts, 80, 24)
    ids = {int(line.split()[0]) for line in lines if line.split() and line.split()[0].isdigit()}
    assert set(facts.where) | {0} <= ids
    (rest,) = [line for line in lines if line.startswith("and ")]
    everyone = len({one.id for one in (*facts.born, *facts.parents)}) + 1
    rows = sum(bool(line.split()) and line.split()[0].isdigit() for line in lines)
    assert rest.startswith(f"and {everyone - rows} more: ")
    assert sum(int(word) for word in rest.replace(",", "").split() if word.isdigit()) == 2 * (
        everyone - rows
    )


# -- the front -----------------------------------------------------------------------------------


def test_the_front_is_drawn_with_the_baseline_in_it(searches):
    facts = searches["behind the cutoff"]
    text = text_of(facts)
    assert "● front" in text
    drawn = "".join(line.partition("│")[2] for line in text.splitlines() if "│" in line)
    assert drawn.count("◆") == 1
    assert drawn.count("●") >= 1
    plain = "\n".join(shown(facts, 80, 24, terminal=False))
    assert "# front o behind B baseline" in plain


@given(
    st.integers(2, 5).flatmap(
        lambda size: st.lists(
            st.tuples(*[st.integers(0, 9).map(float)] * size), min_size=1, max_size=30
        )
    )
)
def test_ranks_and_hypervolume_are_those_of_the_selection(points):
    *points, reference = points
    assert standing.ranks(points) == pareto.ranks(points)
    assert standing.hypervolume(points, reference) == pytest.approx(
        pareto.hypervolume(points, reference)
    )


@given(st.lists(st.floats(-1e6, 1e6), max_size=50), st.integers(0, 40))
def test_a_sparkline_is_no_wider_than_asked_and_shows_the_extremes(values, width: int):
    text = marks.sparkline(values, width)
    assert len(text) == min(width, len(values))
    if text and len(values) <= width and min(values) < max(values):
        assert marks.LEVELS[0] in text and marks.LEVELS[-1] in text


# -- events, the end -----------------------------------------------------------------------------


def logged(event: str, candidate: int | None = None, at: float = 1.0, **more: Any) -> LoggedEvent:
    told = {"source": None, "target": None, "stage": None, "detail": "", "attempt": None, **more}
    return LoggedEvent(at=at, candidate=candidate, event=event, **told)


def test_what_one_decision_does_to_several_is_one_line():
    found = events.together(
        [
            *(logged("born", n, stage="pretrain_0", detail="from 0") for n in (4, 5, 6, 9)),
            logged("cut", 4, at=2.0, stage="pretrain_0", detail="the loss is too high"),
            logged("fail", 5, at=3.0, stage="pretrain_1", detail="diverged:\n nan"),
            logged("phase", at=4.0, detail="generation 1: climbing"),
        ]
    )
    assert [(text[9:], grave) for text, grave in found] == [
        ("candidates 4 to 6 and 9 are born", False),
        ("candidate 4 is cut after pretrain_0: the loss is too high", False),
        ("candidate 5 failed at pretrain_1: diverged: nan", True),
        ("generation 1: climbing", False),
    ]


def test_a_cut_by_request_is_told_from_a_cutoffs():
    asked = {"event": "cut", "stage": "pretrain_0", "detail": "by ann: too slow"}
    found = events.together([logged(candidate=n, source="running", **asked) for n in (4, 5)])
    assert [text[9:] for text, _ in found] == [
        f"candidate {n} is cut by request at pretrain_0, by ann: too slow" for n in (4, 5)
    ]


def test_events_are_told_in_one_line_each(facts):
    for one in facts.events:
        assert "\n" not in events.event(one)


def test_without_a_terminal_the_live_view_tells_each_event_once(tmp_path: Path, capsys):
    tick = make_tick(StateFolder(tmp_path), small_config())
    drive(tick)
    follow(tmp_path, 0.01, lambda: False)
    lines = capsys.readouterr().out.splitlines()
    assert any("candidate 1 is scored" in line for line in lines)
    assert len(lines) == min(200, len(list(tick.store._db.execute("SELECT 1 FROM event"))))


@pytest.mark.parametrize("width", [20, 80, 200])
def test_the_summary_shows_population_baseline_front_and_where_to_look(searches, width: int):
    facts = searches["complete"]
    lines = [one.plain for one in summary(facts, Path("/state"), width)]
    survivors = {str(one) for one in facts.snapshot.survivors(2)}
    rows = {line.split()[0] for line in lines if line.split() and line.split()[0].isdigit()}
    assert survivors | {"0"} == rows
    text = "\n".join(lines)
    assert "nasd tensorboard --state /state" in text
    front = [one for one in survivors if facts.members[int(one)].rank == 0]
    assert front
    for one in front:
        assert sum(line.split()[:2] == [one, "quality"] for line in lines) == 1


# -- in a real terminal --------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "height"), [(20, 10), (80, 24)])
def test_the_live_view_fills_a_real_terminal_and_leaves_at_ctrl_c(searches_on_disk, width, height):
    keyboard, screen = os.openpty()
    termios.tcsetwinsize(screen, (height, width))
    command = [sys.executable, "-m", "nasd", "status", "--watch", "--interval", "0.1"]
    environment = {**os.environ, "TERM": "xterm-256color", "PYTHONPATH": str(ROOT)}
    environment = {k: v for k, v in environment.items() if k not in ("COLUMNS", "LINES")}
    with subprocess.Popen(
        [*command, "--state", str(searches_on_disk)],
        stdin=screen,
        stdout=screen,
        stderr=screen,
        env=environment,
        start_new_session=True,
    ) as child:
        os.close(screen)
        text = b""
        while text.count(b"\x1b[H") < 3:  # each look begins at the top
            text += os.read(keyboard, 65536)
        child.send_signal(signal.SIGINT)
        try:
            while more := os.read(keyboard, 65536):
                text += more
        except OSError:  # it has left
            pass
    assert child.returncode == 0
    told = text.decode()
    assert "\x1b[?1049h" in told and "\x1b[?1049l" in told  # a screen of its own, given back
    assert "Traceback" not in told
    assert "no daemon" in told
    os.close(keyboard)


@pytest.fixture
def searches_on_disk(tmp_path: Path) -> Path:
    tick = make_tick(StateFolder(tmp_path / "state"), small_config(), one_diverges)
    drive(tick, in_phase(1, Phase.CLIMBING))
    tick.store.close()
    return tmp_path / "state"
