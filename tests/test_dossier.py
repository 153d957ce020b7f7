"""What `nasd show` and `nasd events` tell of a candidate."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from io import StringIO
from itertools import pairwise
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from nasd.cli import app
from nasd.contract.errors import NasdError
from nasd.contract.protocol import Heartbeat, Outcome, Spec, write
from nasd.control.tick import Tick
from nasd.record import daemon_lock
from nasd.record.folders import StateFolder
from nasd.record.lifecycle import Phase, State
from nasd.record.state import Snapshot
from nasd.views import dossier, dossier_view, history
from nasd.views.dossier import Dossier
from tests.conftest import ROOT, all_succeed, drive, make_tick, small_config

DIVERGED, UNLUCKY = 5, 4


def faults(spec: Spec, before: int) -> tuple[float, Outcome | None]:
    if spec.candidate == DIVERGED:
        return 30.0, Outcome(verdict="diverged", message="the loss is NaN")
    if spec.candidate == UNLUCKY and spec.stage and spec.stage.name == "pretrain_0" and not before:
        return 30.0, None  # its first attempt is lost
    return all_succeed(spec, before)


@pytest.fixture(scope="module")
def search(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tick]:
    """A whole search of two generations."""
    tick = make_tick(
        StateFolder(tmp_path_factory.mktemp("dossier") / "state"), small_config(), faults
    )
    drive(tick)
    yield tick
    tick.store.close()


def of(tick: Tick, name: object) -> Dossier:
    return dossier.compile_dossier(tick.state.path, str(name), tick.clock())


def text(found: Dossier, width: int = 120) -> str:
    console = Console(file=StringIO(), width=width, force_terminal=False, color_system=None)
    console.print(dossier_view.render(found))
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


def everybody(snap: Snapshot, state: State) -> list[int]:
    return [one.id for one in snap.candidates.values() if one.state is state]


# -- the data ------------------------------------------------------------------------------------


def test_every_candidate_is_plain_json_and_fits_a_terminal(search: Tick):
    for number, one in search.store.read().candidates.items():
        found = of(search, number)
        data = found.to_json()
        assert json.loads(json.dumps(data, allow_nan=False)) == data
        assert (data["id"], data["state"], data["hash"]) == (number, one.state, one.hash)
        assert all(len(line) <= 80 for line in text(found, 80).splitlines())


def test_the_ancestry_leads_from_the_baseline_to_the_candidate(search: Tick):
    snap = search.store.read()
    youngest = max(snap.candidates)
    line = of(search, youngest).ancestry
    assert [one.candidate for one in (line[0], line[-1])] == [snap.baseline.id, youngest]
    assert line[0].changes == ()
    for parent, child in pairwise(line):
        assert snap.candidates[child.candidate].parent == parent.candidate
        assert child.changes


def test_what_is_new_in_a_block_is_marked_as_the_lineage_says(search: Tick):
    for number, one in search.store.read().candidates.items():
        for row, block, origin in zip(
            of(search, number).blocks, one.genotype.blocks, one.lineage, strict=True
        ):
            assert row.heads == block.heads
            assert row.source == (None if origin.source is None else origin.source + 1)
            assert (row.attention != "kept") == origin.attention_new
            assert tuple(network.origin for network in row.networks) == origin.origins


def test_costs_add_up_to_the_ledger(search: Tick):
    snap = search.store.read()
    found = [of(search, number) for number in snap.candidates]
    total = sum(one.slot_hours for one in found)
    assert total == pytest.approx(snap.gpu_hours(search.clock()))
    for one in found:
        assert sum(row.slot_hours for row in one.stages) == pytest.approx(one.slot_hours)
        assert one.with_ancestors >= one.slot_hours
        assert one.unit == "slot-hours"


def test_a_cutoff_tells_the_place_among_the_others(search: Tick):
    snap = search.store.read()
    (decision,) = [d for d in snap.decisions if d.kind == "cutoff" and d.generation == 1]
    order = [int(number) for number in decision.payload["losses"]]
    for place, number in enumerate(order, 1):
        (row,) = [d for d in of(search, number).decisions if d.kind == "cutoff"]
        assert (row.facts["place"], row.facts["of"]) == (place, decision.payload["reached"])
        assert row.facts["kept"] == (number in decision.payload["kept"])
        assert row.text.startswith("kept: place" if row.facts["kept"] else "cut: place")


def test_a_selection_tells_rank_and_crowding_as_recorded(search: Tick):
    for member in search.store.read().members:
        rows = [
            row
            for row in of(search, member.candidate).decisions
            if (row.kind, row.generation) == ("select", member.generation)
        ]
        assert [row.facts["rank"] for row in rows] == [member.rank]
        assert [row.facts["crowding"] for row in rows] == [member.crowding]
        assert (f"rank {member.rank}" in rows[0].text) == (member.rank is not None)


def test_parents_know_their_offspring_and_how_often_they_were_picked(search: Tick):
    snap = search.store.read()
    for number in snap.candidates:
        found = of(search, number)
        born = [one.id for one in snap.candidates.values() if one.parent == number]
        assert [child.candidate for child in found.children] == born
        if number != snap.baseline.id:
            picked = [d.facts["picked"] for d in found.decisions if "picked" in d.facts]
            assert sum(picked) == len(born)


def test_attempts_and_stages_tell_what_happened(search: Tick):
    found = of(search, UNLUCKY)
    first, second = found.attempts[:2]
    assert (first.stage, first.number, first.state) == ("pretrain_0", 1, "lost")
    assert "gone without an outcome" in first.message
    assert (second.stage, second.number, second.state) == ("pretrain_0", 2, "succeeded")
    row = found.stages[0]
    assert (row.stage, row.state, row.steps, row.seconds) == ("pretrain_0", "done", 10, 30.0)
    assert row.loss == row.curve[-1][1]


def test_a_failed_candidate_tells_why_and_how_far_it_came(search: Tick):
    found = of(search, DIVERGED)
    assert found.why == "diverged: the loss is NaN"
    assert [row.state for row in found.stages] == ["here", "never", "never", "never"]
    assert "failed at pretrain_0" in text(found)


def test_the_weights_that_stand_are_named_with_what_export_takes(search: Tick):
    found = of(search, "baseline")
    assert [one.stage for one in found.weights] == ["prepare", "finetune"]
    assert [one.stage for one in found.weights if one.answers] == ["finetune"]
    assert all(Path(one.folder).is_dir() and one.bytes > 0 for one in found.weights)
    assert not found.weights_gone
    cut = of(search, everybody(search.store.read(), State.CUT)[0])
    assert cut.weights_gone == (not cut.weights)


def test_removed_weights_are_told_from_those_that_never_were(search: Tick, tmp_path: Path):
    shutil.copytree(search.state.path, tmp_path / "state")
    shutil.rmtree(tmp_path / "state" / "candidates")
    best = dossier.compile_dossier(tmp_path / "state", "best")
    assert best.weights_gone
    assert "removed, as nobody needs them any more" in text(best)
    failed = dossier.compile_dossier(tmp_path / "state", str(DIVERGED))
    assert not failed.weights_gone


# -- why it is in its state ----------------------------------------------------------------------


def under_way(state: StateFolder, until) -> Tick:
    tick = make_tick(state, small_config())
    drive(tick, until)
    return tick


def test_one_that_waits_for_the_cutoff_names_whom_it_waits_for(state: StateFolder):
    def some_wait(snap: Snapshot) -> bool:
        return bool(everybody(snap, State.WAITING)) and bool(everybody(snap, State.RUNNING))

    tick = under_way(state, some_wait)
    snap = tick.store.read()
    found = of(tick, everybody(snap, State.WAITING)[0])
    assert found.why.startswith("the cutoff behind pretrain_0 waits for candidate")
    assert all(str(number) in found.why for number in everybody(snap, State.RUNNING))
    assert [row.state for row in found.stages[:2]] == ["done", "ahead"]
    tick.store.close()


def test_one_that_runs_tells_where_it_is_and_its_curve_so_far(state: StateFolder):
    tick = under_way(state, lambda snap: bool(snap.generations and snap.live_attempts))
    attempt = tick.store.read().live_attempts[0]
    folder = state.attempt(attempt.id)
    write(Heartbeat(doing="training", step=400, steps=1200, at=tick.clock()), folder.heartbeat)
    lines = [
        {"kind": "evaluation", "step": 100, "loss": 5.0},
        {"kind": "training", "step": 110, "loss": 4.5},
        {"kind": "evaluation", "step": 200, "loss": 4.0},
    ]
    folder.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with daemon_lock.hold(state.lock):
        found = of(tick, attempt.candidate)
    assert found.why == (
        f"attempt {attempt.id} runs on {' '.join(attempt.slots)}: training, step 400 of 1,200"
    )
    (row,) = [one for one in found.stages if one.state == "here"]
    assert row.curve == ((100, 5.0), (200, 4.0))
    assert "█▁ from 5.000" in text(found)
    assert "no daemon serves the search" in of(tick, attempt.candidate).why
    tick.store.close()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda store: store.halt("mend it", 0.0), "the search has halted: mend it"),
        (lambda store: store.hold("the disk is full", 0.0), "the search is on hold: the disk"),
        (
            lambda store: store.change_config(
                small_config(experiment__budget_gpu_hours=1e-9).model_dump(
                    mode="json", by_alias=True
                ),
                "",
                0.0,
            ),
            "the budget is spent: raise",
        ),
        (lambda store: None, "waits for 2 free slots"),
    ],
)
def test_one_that_is_pending_tells_what_is_in_its_way(state: StateFolder, change, words):
    tick = under_way(
        state,
        lambda snap: (
            bool(everybody(snap, State.PENDING))
            and snap.generation is not None
            and snap.generation.phase is Phase.CLIMBING
        ),
    )
    change(tick.store)
    pending = everybody(tick.store.read(), State.PENDING)[-1]
    with daemon_lock.hold(state.lock):
        assert of(tick, pending).why.startswith(words)
    tick.store.close()


# -- the commands --------------------------------------------------------------------------------


def test_piped_output_is_plain_and_a_row_stays_a_line(search: Tick):
    done = CliRunner().invoke(
        app, ["show", "1", "--state", str(search.state.path)], env={"COLUMNS": "20"}
    )
    assert done.exit_code == 0
    assert "\x1b" not in done.stdout
    assert all(line == line.rstrip() for line in done.stdout.splitlines())
    lines = done.stdout.splitlines()
    assert any(" as offspring: rank " in line and line.endswith("survive") for line in lines)


def test_events_are_those_of_the_candidate_oldest_first(search: Tick):
    found = history.read(search.state.path, str(UNLUCKY), 1000)
    assert {one.candidate for one in found} == {UNLUCKY}
    assert [one.event for one in found[:4]] == ["born", "start", "interrupt", "start"]
    assert [one.at for one in found] == sorted(one.at for one in found)
    assert history.read(search.state.path, str(UNLUCKY), 2) == found[-2:]
    assert len(history.read(search.state.path, None, 7)) == 7


def test_events_of_all_are_printed_with_their_words(search: Tick):
    options = ["--state", str(search.state.path), "--last", "10000"]
    done = CliRunner().invoke(app, ["events", *options])
    assert done.exit_code == 0
    assert "generation 1 opens" in done.stdout
    data = json.loads(CliRunner().invoke(app, ["events", *options, "--json"]).stdout)
    assert len(data) == len(done.stdout.splitlines()) - 1
    assert set(data[0]) == {
        "at", "candidate", "attempt", "event", "source", "target", "stage", "detail",
    }  # fmt: skip


@pytest.mark.parametrize("command", ["show", "events", "log"])
def test_a_candidate_that_does_not_exist_is_one_sentence(search: Tick, command: str):
    done = CliRunner().invoke(app, [command, "4711", "--state", str(search.state.path)])
    assert isinstance(done.exception, NasdError)
    assert str(done.exception).startswith("there is no candidate 4711: they have the numbers 0 to")


def test_show_imports_nothing_heavy(search: Tick):
    code = (
        "import sys; sys.argv = ['nasd', 'show', '1', '--json', '--state', '.']\n"
        "from nasd.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'datasets', 'evaluate', 'sqlite_utils', 'matplotlib'}\n"
        "print('heavy:', *(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=search.state.path,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == "heavy:"
