"""Searches on a real Slurm: bin/test-slurm. Skipped, with the reason, where none can be had."""

import random
import signal
import statistics
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nasd.launch.launcher import wait_until
from nasd.record.lifecycle import AttemptState
from tests.slurm import cluster as clusters
from tests.slurm.cluster import Cluster
from tests.slurm.disturbed import (
    MISCHIEF,
    ON_SLURM,
    SHORT,
    Daemon,
    Disturbed,
    held_against,
    jobs,
    latencies,
    ranks,
    written,
)

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(900)]
PATIENCE = 90.0


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    subprocess.run([str(Path(__file__).with_name("install"))], check=False, timeout=600)
    if why := clusters.missing():
        pytest.skip(f"no Slurm: {why}")
    with clusters.running() as one:
        yield one


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The state folder of the search as the local launcher runs it."""
    daemon = Daemon(written(tmp_path_factory.mktemp("local") / "search", *SHORT))
    daemon.start()
    assert daemon.process is not None
    try:
        daemon.process.wait(800)
    finally:
        if daemon.runs:
            daemon.end(signal.SIGKILL)
    return daemon.state


@pytest.fixture
def daemon(cluster: Cluster, tmp_path: Path) -> Iterator[Daemon]:
    """Of a search that is not begun, on Slurm."""
    one = Daemon(written(tmp_path / "search", *SHORT, *ON_SLURM), cluster.environment)
    yield one
    if one.runs:
        one.end(signal.SIGKILL)
    cluster.ask("scancel", "--me", check=False)
    assert wait_until(lambda: not jobs(cluster), PATIENCE)


def test_a_search_on_slurm_ends_as_on_this_machine_and_costs_seconds_an_attempt(
    daemon: Daemon, calm: Path, cluster: Cluster
):
    daemon.start()
    assert daemon.process is not None
    daemon.process.wait(600)
    found = daemon.read()
    assert found is not None
    assert found.experiment.state == "complete", daemon.said
    assert {one.state for one in found.attempts} == {AttemptState.SUCCEEDED}
    assert held_against(calm, daemon.state) == []
    assert not ranks(daemon.state)
    assert not jobs(cluster)
    here, there = (statistics.median(latencies(state)) for state in (calm, daemon.state))
    print(f"overhead of an attempt: {there:.1f} s on Slurm, {here:.1f} s on this machine")


def test_whatever_is_killed_the_end_is_the_same_and_nobody_is_charged_wrongly(
    daemon: Daemon, calm: Path, cluster: Cluster
):
    kinds = tuple(MISCHIEF)
    disturbed = Disturbed(cluster, daemon, len(kinds), random.Random(3), print)
    disturbed.run(kinds)
    assert disturbed.wrong == []
    assert held_against(calm, daemon.state) == []


def test_a_time_limit_interrupts_an_attempt_which_goes_on_in_another_job(
    daemon: Daemon, cluster: Cluster, tmp_path: Path
):
    slow = Daemon(
        written(tmp_path / "slow", *SHORT, *ON_SLURM, "stages.pretrain_0.epochs=200"),
        cluster.environment,
    )
    slow.start()

    def training() -> bool:
        found = slow.read()
        if found is None:
            return False
        return any(
            one.stage == "pretrain_0" and any(one_folder(slow, one.id).glob("checkpoints/step-*"))
            for one in found.live_attempts
        )

    try:
        assert wait_until(training, 2 * PATIENCE), slow.said
        (job,) = jobs(cluster).values()
        cluster.ask("scontrol", "update", f"jobid={job.id}", "timelimit=1")

        def interrupted() -> bool:
            found = slow.read()
            assert found is not None
            return any("time limit" in one.message for one in found.attempts if not one.live)

        assert wait_until(interrupted, 2 * PATIENCE), slow.said
        found = slow.read()
        assert found is not None
        (ended,) = [one for one in found.attempts if "time limit" in one.message]
        assert ended.state is AttemptState.PREEMPTED
        assert ended.reached > 0

        def goes_on() -> bool:
            found = slow.read()
            assert found is not None
            return any(
                one.id > ended.id and one.token in ranks(slow.state) for one in found.live_attempts
            )

        assert wait_until(goes_on, PATIENCE), slow.said
    finally:
        slow.end(signal.SIGKILL)


def one_folder(daemon: Daemon, attempt: int) -> Path:
    return daemon.state / "attempts" / str(attempt)


def test_a_job_that_waits_says_why_holds_nothing_and_is_found_by_the_next_daemon(
    daemon: Daemon, cluster: Cluster
):
    host = cluster.ask("sinfo", "-h", "-o", "%n").strip()
    cluster.ask("scontrol", "update", f"nodename={host}", "state=drain", "reason=test")
    try:
        daemon.start()
        assert wait_until(lambda: bool(jobs(cluster)), PATIENCE), daemon.said
        (job,) = jobs(cluster).values()
        cluster.ask("scontrol", "hold", job.id)

        def told() -> bool:
            found = daemon.read()
            return found is not None and any("held" in one.message for one in found.attempts)

        assert wait_until(told, PATIENCE), daemon.said
        daemon.end(signal.SIGKILL)
        time.sleep(1)
        daemon.start()
        assert "held by" in daemon.asks("show", "0")
        cluster.ask("scontrol", "release", job.id)
    finally:
        cluster.ask("scontrol", "update", f"nodename={host}", "state=resume")

    def succeeded() -> bool:
        found = daemon.read()
        return found is not None and found.attempts[0].state is AttemptState.SUCCEEDED

    assert wait_until(succeeded, PATIENCE), daemon.said
    found = daemon.read()
    assert found is not None
    first = found.attempts[0]
    assert first.ended_at is not None
    waited = first.started_at - found.experiment.created_at
    assert waited > 1.0, "it began when its job did, not when it was submitted"


def test_what_a_person_cancels_is_told_and_not_tried_again_until_they_say_so(
    daemon: Daemon, cluster: Cluster
):
    daemon.start()

    def cancelled() -> bool:
        job = next(iter(jobs(cluster).values()), None) if ranks(daemon.state) else None
        if job is not None:
            cluster.ask("scancel", job.id, check=False)
        found = daemon.read()
        return found is not None and bool(found.experiment.pause)

    assert wait_until(cancelled, PATIENCE), daemon.said

    def paused() -> bool:
        found = daemon.read()
        return found is not None and bool(found.experiment.pause)

    assert wait_until(paused, PATIENCE), daemon.said
    found = daemon.read()
    assert found is not None
    assert "was cancelled" in found.experiment.pause_note
    assert not found.live_attempts
    time.sleep(2)
    assert not jobs(cluster)
    daemon.asks("resume")
    assert wait_until(lambda: bool(ranks(daemon.state)), PATIENCE), daemon.said


def test_a_partition_that_is_not_there_is_told_before_anything_is_written(
    cluster: Cluster, tmp_path: Path
):
    daemon = Daemon(
        written(tmp_path / "search", *SHORT, *ON_SLURM, 'slurm.partition="nowhere"'),
        cluster.environment,
    )
    daemon.start()
    assert daemon.process is not None
    assert daemon.process.wait(PATIENCE) == 2
    last = daemon.said.strip().splitlines()[-1]
    assert last.startswith("nasd: slurm.partition: Slurm refuses the jobs of")
    assert not (daemon.state / "nasd.db").exists()


def test_gpus_are_asked_for_and_only_those_are_seen(cluster: Cluster, tmp_path: Path):
    script = tmp_path / "job.sh"
    script.write_text("#!/bin/sh\necho sees $CUDA_VISIBLE_DEVICES\n")
    out = tmp_path / "out"
    cluster.ask("sbatch", "--wait", "--gres=gpu:2", f"--output={out}", str(script))
    assert out.read_text().strip() == "sees 0,1"
