"""Attempts that span nodes, on a real Slurm of two that are one machine: bin/test-slurm."""

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from nasd.contract import variables
from nasd.launch.launcher import wait_until
from nasd.record.lifecycle import AttemptState
from tests.slurm import cluster as clusters
from tests.slurm.cluster import Cluster
from tests.slurm.disturbed import ON_SLURM, SHORT, Daemon, held_against, jobs, ranks, written

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(1200)]
PATIENCE = 120.0
SPREAD = [f"stages.{name}.slots=2" for name in ("pretrain_0", "pretrain_1", "finetune")]
QUICK = (*SHORT, *SPREAD, "experiment.generations=0")
OVER_TWO = (*ON_SLURM, "slurm.nodes=2", 'slurm.setup=["export GLOO_SOCKET_IFNAME=lo"]')


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    subprocess.run([str(Path(__file__).with_name("install"))], check=False, timeout=600)
    if why := clusters.missing():
        pytest.skip(f"no Slurm: {why}")
    with clusters.running(nodes=2) as one:
        yield one


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The state folder of the search as the local launcher runs it, on two slots."""
    daemon = Daemon(written(tmp_path_factory.mktemp("local") / "search", *QUICK, slots=2))
    daemon.start()
    assert daemon.process is not None
    try:
        daemon.process.wait(600)
    finally:
        if daemon.runs:
            daemon.end(signal.SIGKILL)
    return daemon.state


@pytest.fixture
def daemon(cluster: Cluster, tmp_path: Path) -> Iterator[Daemon]:
    """Of a search that is not begun, whose attempts on two slots are on two nodes."""
    config = written(tmp_path / "search", *QUICK, *OVER_TWO, slots=2)
    one = Daemon(config, cluster.environment)
    yield one
    if one.runs:
        one.end(signal.SIGKILL)
    cluster.ask("scancel", "--me", check=False)
    assert wait_until(lambda: not jobs(cluster), PATIENCE)


def by_node(daemon: Daemon, before: frozenset[str] = frozenset()) -> dict[str, psutil.Process]:
    """By node, the ranks of an attempt that is on both; none of those `before`, by token."""
    for token, processes in ranks(daemon.state).items():
        try:
            found = {one.environ()["SLURMD_NODENAME"]: one for one in processes}
            if len(found) == 2 and token not in before and all(map(trains, found.values())):
                return found
        except psutil.Error:  # just gone
            continue
    return {}


def trains(rank: psutil.Process) -> bool:
    """Whether it has joined its peer: a connection stands between them."""
    return any(one.status == psutil.CONN_ESTABLISHED for one in rank.net_connections("inet"))


def token(rank: psutil.Process) -> str:
    return rank.environ()[variables.TOKEN]


def test_an_attempt_spreads_over_two_nodes_and_what_fails_on_one_ends_it_on_both(
    daemon: Daemon, calm: Path, cluster: Cluster
):
    daemon.start()
    hurt: dict[str, str] = {}  # by token: what of it was killed

    def ends(kind: str) -> None:
        def there() -> bool:
            return bool(by_node(daemon, frozenset(hurt)))

        assert wait_until(there, PATIENCE), f"{kind}: {daemon.said}"
        found = by_node(daemon, frozenset(hurt))
        assert {*found} == {"node1", "node2"}, kind
        mine = token(found["node1"])
        hurt[mine] = kind
        private = Path(found["node1"].environ()[variables.RENDEZVOUS]).parent
        assert private.stat().st_mode & 0o777 == 0o700 and private.stat().st_uid == os.geteuid()
        goal = {
            "a rank": found["node2"],
            "what runs a node's": found["node2"].parent(),
            "srun": next(one for one in srun(mine) if one.name() == "srun"),
            "the job": next(one for one in srun(mine) if one.name() == "srun").parent(),
        }[kind]
        assert goal is not None
        goal.kill()
        assert wait_until(lambda: mine not in ranks(daemon.state), PATIENCE), kind

    def srun(mine: str) -> list[psutil.Process]:
        return [one for one in psutil.process_iter() if _token(one) == mine]

    for kind in ("a rank", "what runs a node's", "srun", "the job"):
        ends(kind)
    assert daemon.process is not None
    daemon.process.wait(900)
    found = daemon.read()
    assert found is not None
    assert found.experiment.state == "complete", daemon.said
    states = {one.state for one in found.attempts if one.token not in hurt}
    assert states == {AttemptState.SUCCEEDED}
    lost = [one for one in found.attempts if one.token in hurt]
    for one in lost:
        # Where all ranks are there still, Slurm lets them leave in order, if they are quick.
        in_order = hurt[one.token] in ("srun", "the job") and one.reached > 0
        left = one.state is AttemptState.PREEMPTED and in_order
        assert left or one.state is AttemptState.LOST, one
        assert not left or one.message.startswith("its job"), one
    assert all(len(one.slots) == 2 for one in lost)
    assert held_against(calm, daemon.state) == []
    assert not ranks(daemon.state)
    assert not jobs(cluster)


def _token(one: psutil.Process) -> str:
    try:
        return one.environ().get(variables.TOKEN, "")
    except psutil.Error:
        return ""
