"""A whole search with real training, as a user starts it: `nasd run`."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
from safetensors.torch import load_file

from nasd.contract.errors import NasdError
from nasd.launch.launcher import wait_until
from nasd.presets import write_preset
from nasd.record import snapshot
from nasd.record.folders import StateFolder
from nasd.record.lifecycle import AttemptState, State
from nasd.record.state import Snapshot
from tests.boards import read_board, read_run

TINY = (
    "population.mu=2",
    "population.lambda=2",
    "experiment.generations=1",
    "data.mlm.max_sequences=256",
    "stages.pretrain_0.epochs=1",
    "stages.pretrain_1.epochs=1",
    "stages.finetune.epochs=0.5",
    "daemon.tick_seconds=0.2",
)


def start(config: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "nasd", "run", "--config", str(config)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def read(state: Path) -> Snapshot | None:
    try:
        with snapshot.opened(state) as connection:
            return snapshot.read(connection)
    except NasdError:
        return None


def workers(folder: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if any(str(folder) in part for part in process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def told(snap: Snapshot) -> Any:
    """What must not depend on what was killed: population, genotypes, decisions."""
    return (
        [
            (c.id, c.generation, c.parent, c.hash, c.state, c.stage)
            for c in snap.candidates.values()
        ],
        snap.decisions,
        snap.members,
        {key: (r.metrics, r.curve, r.steps) for key, r in snap.results.items()},
    )


def check_complete(folder: Path, snap: Snapshot) -> None:
    assert snap.experiment.state == "complete"
    assert [str(g.phase) for g in snap.generations] == ["complete", "complete"]
    assert all(candidate.final for candidate in snap.candidates.values())
    assert snap.baseline.state is State.SCORED
    offspring = snap.born_in(1)
    assert sorted(str(c.state) for c in offspring) == ["cut", "scored"]
    kept = next(c for c in offspring if c.state is State.SCORED)
    lost = next(c for c in offspring if c.state is State.CUT)
    ends = {c.id: snap.results[c.id, "pretrain_0"].curve[-1][1] for c in offspring}
    assert ends[kept.id] <= ends[lost.id]
    assert "pretrain_0 loss" in lost.reason
    assert snap.leases == {}
    assert not workers(folder / "state")
    model = folder / "state" / "candidates" / str(kept.id) / "finetune"
    assert load_file(model / "model.safetensors")
    assert json.loads((model / "config.json").read_text())["model_type"] == "nasd"
    check_curves(StateFolder(folder / "state"), snap)


def check_curves(state: StateFolder, snap: Snapshot) -> None:
    """TensorBoard shows each evaluation once, the MLM stages in a row."""
    for one in snap.candidates.values():
        at, curve = 0, []
        for stage in ("pretrain_0", "pretrain_1"):
            if (result := snap.results.get((one.id, stage))) is not None:
                curve += [(at + step, pytest.approx(loss)) for step, loss in result.curve]
                at += result.steps
        if curve:
            run = read_run(state.curves(one.generation, one.id, "mlm"))
            assert run["mlm/evaluation_loss"] == curve
            assert run[f"learning_curves/gen{one.generation:02d}"] == curve
            points = [step for step, _ in run.get("mlm/loss", [])]
            assert points == sorted({*points})


def test_a_search_survives_a_kill_of_its_daemon_and_ends(tmp_path: Path) -> None:
    folder = tmp_path / "search"
    one = ("population.mu=1", "population.tournament=1")
    config = write_preset("demo-thesis", folder, (*TINY, *one), force=False)
    state = folder / "state"
    first = start(config)

    def climbing() -> bool:
        snap = read(state)
        return (
            bool(snap and snap.generations and any(a.process for a in snap.live_attempts))
            or first.poll() is not None
        )

    assert wait_until(climbing, 120)
    assert first.poll() is None, first.communicate()[0]
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    assert wait_until(lambda: not workers(state), 20), "a worker outlived the daemon"
    second = start(config)
    out, _ = second.communicate(timeout=280)
    assert second.returncode == 0, out
    snap = read(state)
    assert snap is not None
    check_complete(folder, snap)
    assert any(attempt.state is AttemptState.LOST for attempt in snap.attempts)
    assert "Pareto front" in out


@pytest.mark.heavy
def test_kills_change_neither_decisions_nor_weights(tmp_path: Path) -> None:
    """On one CPU slot, weights are equal to the last bit."""
    ends = []
    for name, kills in (("undisturbed", 0), ("disturbed", 4)):
        folder = tmp_path / name
        config = write_preset(
            "demo-thesis", folder, (*TINY, 'slots.devices=["cpu:0"]'), force=False
        )
        for _ in range(kills):
            daemon = start(config)
            with pytest.raises(subprocess.TimeoutExpired):
                daemon.wait(timeout=17)
            daemon.kill()
            daemon.wait()
            assert wait_until(lambda: not workers(folder / "state"), 20)  # noqa: B023
        out, _ = start(config).communicate(timeout=280)
        snap = read(folder / "state")
        assert snap is not None, out
        check_complete(folder, snap)
        ends.append((told(snap), folder))
    (one, first), (other, second) = ends
    assert one == other
    boards = [
        {
            run: {tag: v for tag, v in tags.items() if re.match("mlm|qa|learning|results", tag)}
            for run, tags in read_board(folder / "state" / "tensorboard").items()
        }
        for folder in (first, second)
    ]
    for run, tags in boards[0].items():
        assert tags.keys() == boards[1][run].keys()
        for tag, values in tags.items():
            found = boards[1][run][tag]
            if tag.endswith("tokens_per_second"):
                values, found = ([step for step, _ in both] for both in (values, found))
            assert found == values, (run, tag)
    for path in sorted(first.glob("state/candidates/*/*/model.safetensors")):
        twin = second / path.relative_to(first)
        left, right = load_file(path), load_file(twin)
        assert left.keys() == right.keys()
        assert all((left[name] == right[name]).all() for name in left), path
