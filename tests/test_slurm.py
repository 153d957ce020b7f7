"""Slurm's launcher, on a stub of its commands; on a real one: tests/slurm."""

import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

import nasd
from nasd.contract.errors import NasdError
from nasd.contract.protocol import AttemptFolder, Outcome
from nasd.control import daemon
from nasd.launch import job, probing, sbatch, slurm
from nasd.launch.launcher import NotYet, wait_until
from nasd.launch.queue import Queue, Seen, last_line, parsed
from nasd.launch.sbatch import options
from nasd.launch.slurm import SlurmLauncher, devices
from nasd.policy.endings import heeded
from nasd.record.folders import StateFolder
from nasd.record.lifecycle import AttemptState, AttemptVerdict
from nasd.record.state import Because, Word
from nasd.record.store import Store
from nasd.views.doctor import cluster
from nasd.views.doctor.case import Case
from tests import slurm_stub
from tests.conftest import (
    Clock,
    FakeLauncher,
    advance,
    drive,
    make_tick,
    small_config,
    small_dict,
    to_toml,
)
from tests.test_simulation import spec_of

TOKEN = "4f"
PATIENCE = 30.0
# In the place of the ranks: says something, waits, and leaves when it is asked to.
WORKER = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
place = [os.environ[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")]
os.write(1, f"listens {' '.join(place)} {os.getpid()}\\n".encode())  # at once, or ranks mix
time.sleep(600)
"""


@pytest.fixture
def stub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a Slurm whose commands are found."""
    programs = slurm_stub.install(tmp_path / "slurm")
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    return tmp_path / "slurm"


def on_slurm(**changes: Any) -> Any:
    return small_config(slots__launcher="slurm", slurm__poll_seconds=0.05, **changes)


def with_worker(folder: Path, **changes: Any) -> Any:
    """A config whose jobs run WORKER for each rank."""
    (folder / "worker.py").write_text(WORKER)
    python = folder / "python"
    (folder / "starter.py").write_text(
        "import sys\n"
        "from importlib import import_module\n"
        "from nasd.launch import interpreter, ranks\n"
        "def command(module, *words):\n"
        f"    if module == ranks.WORKER: return [sys.executable, {str(folder / 'worker.py')!r}]\n"
        f"    return [{str(python)!r}, '-P', '-m', module, *words]\n"
        "interpreter.command = command\n"
        "sys.exit(import_module(sys.argv[3]).main(sys.argv[4:]))\n"
    )
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{folder / "starter.py"}" "$@"\n')
    python.chmod(0o755)
    return on_slurm(slurm__python=str(python), **changes)


@pytest.fixture
def folder(tmp_path: Path) -> AttemptFolder:
    found = AttemptFolder(tmp_path / "attempts" / "7")
    spec_of(found)
    return found


@pytest.fixture
def launcher(stub: Path, tmp_path: Path) -> Iterator[SlurmLauncher]:
    made = SlurmLauncher(with_worker(tmp_path), tmp_path)
    yield made
    (stub / "down").unlink(missing_ok=True)
    with suppress(AssertionError, NasdError), pytest.MonkeyPatch.context() as patch:
        patch.setattr(slurm, "FENCE_SECONDS", 0.0)  # nobody comes after it
        cleared(made)


def cleared(launcher: SlurmLauncher) -> None:
    def once() -> bool:
        try:
            launcher.clear(TOKEN)
        except NotYet:
            return False
        return True

    assert wait_until(once, PATIENCE)


def listens(folder: AttemptFolder) -> bool:
    return folder.log.exists() and "listens" in folder.log.read_text()


def started(launcher: SlurmLauncher, folder: AttemptFolder) -> dict[str, Any]:
    note = json.loads(json.dumps(launcher.start(folder, ("cpu:0",), TOKEN)))
    assert wait_until(lambda: listens(folder), PATIENCE)
    return dict(note)


@pytest.fixture
def spread(stub: Path, tmp_path: Path, folder: AttemptFolder) -> dict[int, psutil.Process]:
    """By their number, the ranks of an attempt on two nodes with two slots each."""
    made = SlurmLauncher(with_worker(tmp_path, slurm__nodes=2), tmp_path)
    made.start(folder, ("cpu:0", "cpu:1", "cpu:2", "cpu:3"), TOKEN)

    def all_listen() -> bool:
        return listens(folder) and folder.log.read_text().count("listens") == 4

    assert wait_until(all_listen, PATIENCE), folder.log.read_text()
    found = {}
    for line in folder.log.read_text().splitlines():
        rank, world, local, pid = (int(word) for word in line.split()[1:])
        assert (world, local) == (4, rank % 2)
        found[rank] = psutil.Process(pid)
    assert {*found} == {0, 1, 2, 3}
    above = [found[rank].ppid() for rank in range(4)]
    assert above[0] == above[1] != above[2] == above[3]
    return found


def left_word(folder: AttemptFolder) -> dict[str, Any]:
    """What the job says once it is over."""
    assert wait_until((folder.path / job.LEFT).exists, PATIENCE)
    return job.read(folder.path / job.LEFT, TOKEN) or {}


def over(spread: dict[int, psutil.Process]) -> bool:
    return wait_until(lambda: not any(one.is_running() for one in spread.values()), PATIENCE)


# -- what is asked of Slurm ----------------------------------------------------------------------


def test_a_stage_asks_for_what_its_own_table_says_and_else_for_what_all_do():
    config = on_slurm(
        slots__threads=3,
        slurm__partition="all",
        slurm__time_minutes=60,
        slurm__signal_minutes=2.0,
        slurm__memory_gb=1.5,
        slurm__extra=["--nice=7"],
        slurm__stages__finetune={"partition": "fast", "extra": ["--exclusive"]},
    )
    plain = options(config, "evaluate", ["cpu:0", "cpu:1"])
    assert "--partition=all" in plain
    assert "--cpus-per-task=6" in plain
    assert "--mem=3072M" in plain
    assert "--signal=B:USR1@120" in plain
    assert "--nice=7" in plain
    assert not any("gres" in word for word in plain)
    own = options(config, "finetune", ["cuda:0", "cuda:1"])
    assert "--partition=fast" in own
    assert "--time=60" in own
    assert "--gres=gpu:2" in own
    assert "--exclusive" in own
    assert "--nice=7" not in own
    other = on_slurm(slurm__gres="gpu:a100:{slots},ssd:1")
    assert "--gres=gpu:a100:2,ssd:1" in options(other, "finetune", ["cuda:0", "cuda:1"])


def test_an_attempt_spreads_evenly_over_nodes_and_asks_each_for_its_part():
    assert [sbatch.spread(4, nodes) for nodes in (None, 1, 2, 3, 4, 9)] == [1, 1, 2, 2, 4, 4]
    assert sbatch.spread(1, 2) == 1
    asked = on_slurm(
        slurm__nodes=2,
        slurm__memory_gb=3,
        slurm__stages={"evaluate": {"nodes": 1}},
        slots__threads=5,
    )
    found = sbatch.options(asked, "finetune", [f"cuda:{one}" for one in range(8)])
    assert {"--nodes=2", "--ntasks=2", "--ntasks-per-node=1", "--gres=gpu:4"} <= {*found}
    assert {"--cpus-per-task=20", "--mem=12288M"} <= {*found}
    here = sbatch.options(asked, "evaluate", ["cuda:0", "cuda:1"])
    assert {"--nodes=1", "--ntasks=1", "--gres=gpu:2", "--cpus-per-task=10"} <= {*here}


def test_slots_are_those_listed_or_so_many_gpus_or_shares(stub: Path):
    assert [str(one) for one in devices(on_slurm(), False)] == [f"cpu:{n}" for n in range(4)]
    many = on_slurm(slots__devices="auto", slurm__slots=3)
    assert [str(one) for one in devices(many, False)] == ["cuda:0", "cuda:1", "cuda:2"]
    shares = on_slurm(slots__devices="auto", slurm__slots=2, slurm__gres="")
    assert [str(one) for one in devices(shares, False)] == ["cpu:0", "cpu:1"]


def test_where_slurm_is_not_installed_one_sentence_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NasdError, match=r"^slots\.launcher: sbatch cannot be found: run the"):
        devices(on_slurm(), False)


@pytest.mark.parametrize(
    ("said", "key"),
    [
        ("Invalid partition name specified", "slurm.partition"),
        ("Invalid account or account/partition combination specified", "slurm.account"),
        ("Invalid qos specification", "slurm.qos"),
        ("Invalid feature specification", "slurm.constraint"),
        ("Requested time limit is invalid (missing or exceeds some limit)", "slurm.time_minutes"),
        ("Memory required by task is not available", "slurm.memory_gb"),
    ],
)
def test_what_slurm_refuses_is_told_with_the_key_that_it_is_about(stub: Path, said: str, key: str):
    (stub / "refuses").write_text(said)
    if key == "slurm.account":
        key = "slurm.partition"  # the first of the two that it names
    with pytest.raises(NasdError) as caught:
        devices(on_slurm(), False)
    assert str(caught.value).startswith(f"{key}: Slurm refuses the jobs of prepare: {said}")
    assert not isinstance(caught.value, NotYet)


def test_a_controller_that_is_down_keeps_nobody_from_going_on_but_from_beginning(stub: Path):
    (stub / "down").touch()
    assert devices(on_slurm(), True)
    with pytest.raises(NotYet, match="Unable to contact"):
        devices(on_slurm(), False)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"slurm__time_minutes": 20},
            r"slurm\.time_minutes: 20 minutes are over before .* take more than 20$",
        ),
        (
            {"slurm__stages__finetune": {"time_minutes": 3}},
            r"slurm\.stages\.finetune\.time_minutes: 3 minutes are over",
        ),
        (
            {"slurm__stages__nobody": {"time_minutes": 300}},
            r"slurm\.stages\.nobody: there is no such stage; take of prepare,",
        ),
        ({"slurm__stages__finetune": {"tme_minutes": 3}}, "did you mean time_minutes"),
    ],
)
def test_a_config_that_no_job_could_keep_to_is_refused_in_one_sentence(
    changes: dict[str, Any], sentence: str
):
    with pytest.raises(NasdError, match=sentence) as caught:
        on_slurm(**changes)
    assert "\n" not in str(caught.value)


# -- what becomes of a job -----------------------------------------------------------------------


def test_a_job_carries_its_token_and_leaves_word_when_it_is_told_to_go(
    launcher: SlurmLauncher, folder: AttemptFolder, stub: Path
):
    note = started(launcher, folder)
    assert slurm_stub.jobs(stub)[note["job"]]["job-name"] == f"nasd-{TOKEN}"
    assert launcher.waits(note) is None
    assert launcher.began(note) == pytest.approx(time.time(), abs=20)
    launcher.stop(TOKEN)
    assert wait_until(lambda: not launcher.alive(note), PATIENCE)
    assert launcher.word(note) is None
    left = job.read(folder.path / job.LEFT, TOKEN)
    assert left is not None
    assert (left["why"], left["code"]) == ("ordered", 0)


def test_a_job_s_ranks_on_all_nodes_leave_ahead_of_its_time_limit(
    spread: dict[int, psutil.Process], folder: AttemptFolder, stub: Path
):
    private = folder.path / "rendezvous"
    assert stat.S_IMODE(private.stat().st_mode) == 0o700
    os.kill(int(slurm_stub.jobs(stub)["1"]["pid"]), job.LIMIT_SIGNAL)
    said = left_word(folder)
    assert (said["why"], said["code"]) == ("limit", 0)
    assert over(spread) and not private.exists()


def test_a_rank_that_fails_on_one_node_ends_those_of_all(
    spread: dict[int, psutil.Process], folder: AttemptFolder
):
    spread[3].kill()
    said = left_word(folder)
    assert (said["why"], said["code"]) == (job.KILLED, 128 + signal.SIGKILL)
    assert over(spread)
    assert "rank 3 was ended by SIGKILL" in folder.log.read_text()


def test_where_a_node_s_own_process_was_killed_no_word_says_that_its_ranks_are_gone(
    spread: dict[int, psutil.Process], folder: AttemptFolder, stub: Path
):
    spread[2].parent().kill()
    assert wait_until((stub / "1.code").exists, PATIENCE)
    assert over(spread)
    assert not (folder.path / job.LEFT).exists()


def test_nodes_whose_job_is_gone_end_their_ranks_when_its_orders_are_taken_back(
    spread: dict[int, psutil.Process], folder: AttemptFolder, stub: Path
):
    os.kill(int(slurm_stub.jobs(stub)["1"]["pid"]), signal.SIGKILL)
    (folder.path / job.ORDERS).unlink()
    assert over(spread)
    assert not (folder.path / job.LEFT).exists(), "nobody knows whether a rank is left"


def test_a_node_of_several_with_another_nasd_is_told_by_its_job(
    launcher: SlurmLauncher, folder: AttemptFolder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    made = SlurmLauncher(with_worker(tmp_path, slurm__nodes=2), tmp_path)
    starter = tmp_path / "starter.py"
    old = "import os, nasd\nif os.environ.get('SLURM_NODEID') == '1': nasd.__version__ = '0.0.1'\n"
    starter.write_text(old + starter.read_text())
    note = made.start(folder, ("cpu:0", "cpu:1"), TOKEN)
    said = left_word(folder)
    assert said["why"] == "refused" and "has nasd 0.0.1" in said["text"]
    word = made.word(note)
    assert word is not None and word.because is Because.REFUSED


def test_what_ends_a_job_is_told_apart(launcher: SlurmLauncher, folder: AttemptFolder, stub: Path):
    note = started(launcher, folder)
    pid = int(slurm_stub.jobs(stub)[note["job"]]["pid"])
    os.kill(pid, job.LIMIT_SIGNAL)
    assert wait_until(lambda: not launcher.alive(note), PATIENCE)
    word = launcher.word(note)
    assert word is not None
    assert word.because is Because.LIMIT
    assert "time limit" in word.text


def test_only_a_job_that_never_began_is_asked_whether_its_node_sees_the_folder(
    launcher: SlurmLauncher, folder: AttemptFolder
):
    note = {"job": "1", "token": TOKEN, "attempt": folder.path.name}
    job.write(folder.path / job.ORDERS, {"token": TOKEN})
    seen = Seen("1", "FAILED", "JobLaunchFailure", "n1", TOKEN, folder.path)
    launcher._queue.jobs[TOKEN] = seen
    word = launcher._word(note)
    assert word is not None and "does the node see" in word.text
    job.write(folder.path / job.BEGAN, {"token": TOKEN, "at": 1.0})  # and was killed
    word = launcher._word(note)
    assert word is not None and word.text.endswith("(JobLaunchFailure): see its worker.log")


@pytest.mark.parametrize(
    ("state", "because"),
    [
        ("CANCELLED", Because.CANCELLED),
        ("PREEMPTED", Because.INTERRUPTED),
        ("TIMEOUT", Because.LIMIT),
        ("NODE_FAIL", Because.LOST),
        ("OUT_OF_MEMORY", Because.LOST),
        ("FAILED", None),  # whatever the worker says of it
        ("COMPLETED", None),
    ],
)
def test_a_signal_of_slurms_means_what_its_state_says(
    launcher: SlurmLauncher,
    folder: AttemptFolder,
    stub: Path,
    state: str,
    because: Because | None,
):
    note = started(launcher, folder)
    (stub / "ends").write_text(state)
    os.kill(int(slurm_stub.jobs(stub)[note["job"]]["pid"]), 15)
    assert wait_until(lambda: not launcher.alive(note), PATIENCE)
    word = launcher.word(note)
    assert (word.because if word else None) is because
    cleared(launcher)


@pytest.mark.parametrize(
    ("state", "because", "words"),
    [
        ("REQUEUED", Because.INTERRUPTED, "its job 1 was requeued"),
        ("CANCELLED", Because.CANCELLED, "its job 1 was cancelled"),
        ("PREEMPTED", Because.INTERRUPTED, "its job 1 was preempted"),
        ("NODE_FAIL", Because.LOST, "its job 1 lost its node on n1 (NODE_FAIL)"),
        ("FAILED", Because.LOST, "its job 1 failed on n1 (None): see its worker.log"),
    ],
)
def test_a_rank_that_slurm_killed_ahead_of_its_job_is_no_loss_where_slurm_had_the_job_end(
    launcher: SlurmLauncher,
    folder: AttemptFolder,
    stub: Path,
    state: str,
    because: Because,
    words: str,
):
    """As where a controller that was killed has forgotten that the job runs: it has the node kill
    all of its processes, one after the other, and the job waits again."""
    note = started(launcher, folder)
    assert launcher.alive(note)
    (stub / "running").touch()  # Slurm has not seen it yet
    rank = int(folder.log.read_text().split()[-1])
    os.kill(rank, signal.SIGKILL)
    assert left_word(folder)["why"] == job.KILLED
    for _ in range(5):
        time.sleep(0.06)
        assert launcher.alive(note), "Slurm has yet to say who did that"
    (stub / "ends").write_text(state)
    (stub / "running").unlink()
    assert wait_until(lambda: not launcher.alive(note), PATIENCE)
    word = launcher.word(note)
    assert word is not None and (word.because, word.text) == (because, words)
    cleared(launcher)


def test_a_rank_that_was_killed_is_not_waited_for_where_slurm_says_nothing_for_long(
    launcher: SlurmLauncher, folder: AttemptFolder, stub: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(slurm, "UNTOLD_SECONDS", 0.5)
    note = started(launcher, folder)
    (stub / "running").touch()
    os.kill(int(folder.log.read_text().split()[-1]), signal.SIGKILL)
    assert left_word(folder)["why"] == job.KILLED
    assert wait_until(lambda: not launcher.alive(note), PATIENCE)
    assert launcher.word(note) is None
    (stub / "running").unlink()
    cleared(launcher)


def test_what_nasd_cancels_itself_is_no_person_s_doing(
    launcher: SlurmLauncher, folder: AttemptFolder
):
    note = started(launcher, folder)
    with suppress(NotYet):
        launcher.clear(TOKEN)
    assert wait_until(lambda: not launcher.alive(note), PATIENCE)
    assert launcher.word(note) is None


def test_while_the_controller_is_down_nothing_changes(
    launcher: SlurmLauncher,
    folder: AttemptFolder,
    stub: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(slurm, "FULL_SECONDS", 0.1)
    note = started(launcher, folder)
    other = AttemptFolder(tmp_path / "attempts" / "8")
    spec_of(other)
    (stub / "down").touch()
    assert wait_until(lambda: launcher.away() is not None, PATIENCE)
    assert "Unable to contact slurm controller" in str(launcher.away())
    assert launcher.alive(note)
    with pytest.raises(NotYet):
        launcher.start(other, ("cpu:0",), "other")
    (stub / "down").unlink()
    assert wait_until(lambda: launcher.away() is None, PATIENCE)
    assert launcher.alive(note)


def test_a_job_that_its_daemon_never_heard_of_is_found_by_its_name_and_ended(
    launcher: SlurmLauncher, folder: AttemptFolder, stub: Path, tmp_path: Path
):
    started(launcher, folder)
    later = SlurmLauncher(with_worker(tmp_path), tmp_path)
    cleared(later)
    assert wait_until(lambda: (folder.path / job.LEFT).exists(), PATIENCE)
    assert slurm_stub.jobs(stub)["1"].get("cancelled")


def test_a_job_that_comes_up_after_its_attempt_was_ended_leaves_at_once(
    launcher: SlurmLauncher, folder: AttemptFolder, stub: Path
):
    (stub / "waits").write_text("Resources")
    note = launcher.start(folder, ("cpu:0",), TOKEN)
    assert launcher.alive(note)
    assert launcher.waits(note) in ("its job 1 waits", "its job 1 waits: Resources")
    cleared(launcher)
    script = slurm_stub.jobs(stub)["1"]["script"]
    done = subprocess.run(["sh", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "it was ended before it began" in done.stdout
    assert not (folder.path / job.BEGAN).exists()


def test_a_job_that_is_run_a_second_time_leaves_and_says_nothing_of_the_first(
    launcher: SlurmLauncher, folder: AttemptFolder, stub: Path
):
    started(launcher, folder)
    script = slurm_stub.jobs(stub)["1"]["script"]
    done = subprocess.run(["sh", script], capture_output=True, text=True, timeout=60)
    assert "a second time" in done.stdout
    assert not (folder.path / job.LEFT).exists()


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        ("Priority", "its job 1 waits: Priority"),
        ("JobHeldUser", "its job 1 is held by its owner: `scontrol release 1` lets it go"),
        ("QOSMaxCpuPerUserLimit", "its job 1 waits: QOSMaxCpuPerUserLimit"),
    ],
)
def test_a_job_that_does_not_start_says_why(
    launcher: SlurmLauncher, folder: AttemptFolder, stub: Path, reason: str, words: str
):
    (stub / "waits").write_text(reason)
    note = launcher.start(folder, ("cpu:0",), TOKEN)

    def told() -> bool:
        launcher.alive(note)
        return launcher.waits(note) == words

    assert wait_until(told, PATIENCE)
    launcher.stop(TOKEN)  # it has nothing to write a checkpoint of
    assert wait_until(lambda: not launcher.alive(note), PATIENCE)


def test_five_hundred_jobs_are_asked_for_once_a_turn_and_told_within_milliseconds(
    stub: Path, tmp_path: Path
):
    programs = stub / "bin" / "squeue"
    lines = "\n".join(
        f"{n}|{'RUNNING' if n % 2 else 'PENDING'}|Priority|n{n}|nasd-{n}|{tmp_path}/attempts/{n}"
        for n in range(500)
    )
    (stub / "said").write_text(lines + "\n")
    programs.write_text(f'#!/bin/sh\necho asked >>"{stub}/asked"; cat "{stub}/said"\n')
    launcher = SlurmLauncher(small_config(slurm__poll_seconds=60), tmp_path)
    notes = [{"job": str(n), "token": str(n), "attempt": str(n)} for n in range(500)]
    assert all(launcher.alive(note) for note in notes)
    assert sum(launcher.waits(note) is not None for note in notes) == 250
    assert (stub / "asked").read_text().splitlines() == ["asked"]


def test_jobs_of_attempts_that_are_no_more_are_swept_away(
    launcher: SlurmLauncher, folder: AttemptFolder, stub: Path
):
    started(launcher, folder)
    (folder.path / job.ORDERS).write_text("{}")  # of nobody's: it ends by itself as well
    launcher._look(at_once=True)
    launcher._sweep()
    assert not slurm_stub.jobs(stub)["1"].get("cancelled")  # not at the first sight
    launcher._sweep()
    assert slurm_stub.jobs(stub)["1"].get("cancelled")


def test_a_node_with_another_nasd_is_refused_by_the_job_itself(
    stub: Path, folder: AttemptFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    launcher = SlurmLauncher(with_worker(tmp_path), tmp_path)
    monkeypatch.setattr(nasd, "__version__", "0.0.7")
    note = launcher.start(folder, ("cpu:0",), TOKEN)
    assert wait_until(lambda: not launcher.alive(note), PATIENCE)
    word = launcher.word(note)
    assert word is not None
    assert word.because is Because.REFUSED
    assert "and the daemon 0.0.7: install one and the same" in word.text


def test_a_job_without_the_gpus_that_its_slots_are_is_refused(
    launcher: SlurmLauncher, folder: AttemptFolder, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    note = launcher.start(folder, ("cuda:0",), TOKEN)
    assert wait_until(lambda: not launcher.alive(note), PATIENCE)
    word = launcher.word(note)
    assert word is not None
    assert "ask for some with slurm.gres" in word.text


def test_a_job_that_is_dead_while_slurm_takes_it_for_alive_is_found_by_its_silence(
    stub: Path, folder: AttemptFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(slurm, "FENCE_SECONDS", 0.1)
    launcher = SlurmLauncher(with_worker(tmp_path, daemon__stall_minutes=0.07), tmp_path)
    note = started(launcher, folder)
    pulse = folder.path / job.PULSE
    assert wait_until(pulse.exists, PATIENCE)
    before = pulse.read_text()
    assert wait_until(lambda: launcher.alive(note) and pulse.read_text() != before, PATIENCE)
    record = slurm_stub.jobs(stub)["1"]
    os.kill(int(record["keeper"]), 9)  # as slurmstepd: nobody keeps the code
    os.kill(int(record["pid"]), 9)
    assert slurm_stub._state(stub, "1", record)[0] == "RUNNING"
    assert wait_until(lambda: not launcher.alive(note), PATIENCE)
    word = launcher.word(note)
    assert word is not None
    assert word.because is Because.LOST
    assert "has fallen silent on n1" in word.text


def test_silence_is_heard_also_by_a_daemon_that_looks_more_seldom_than_a_job_may_be_silent(
    stub: Path, folder: AttemptFolder, tmp_path: Path
):
    launcher = SlurmLauncher(with_worker(tmp_path, daemon__tick_seconds=1.0), tmp_path)
    job.write(folder.path / job.BEGAN, {"token": TOKEN})
    (folder.path / job.PULSE).write_text("1")
    found = []
    for _ in range(3):
        found.append(launcher._silent(TOKEN, folder, 0.1))
        time.sleep(0.3)
    assert found == [False, True, True]


def test_a_job_that_its_controller_forgot_is_left_to_run_and_was_interrupted_when_it_is_gone(
    launcher: SlurmLauncher, folder: AttemptFolder, stub: Path, monkeypatch: pytest.MonkeyPatch
):
    """A controller that was killed knows the jobs that it had written down, and no others."""
    monkeypatch.setattr(slurm, "UNKNOWN_SECONDS", 3 * job.LOOK_SECONDS)
    note = started(launcher, folder)
    assert wait_until((folder.path / job.PULSE).exists, PATIENCE)
    before = (folder.path / job.PULSE).read_text()
    (stub / "forgets").touch()

    def beats_unknown() -> bool:
        assert launcher.alive(note)
        return not launcher._queue.jobs and (folder.path / job.PULSE).read_text() != before

    assert wait_until(beats_unknown, PATIENCE)
    assert launcher.word(note) is None, "whatever ends it now, Slurm did not"
    os.kill(int(slurm_stub.jobs(stub)["1"]["pid"]), signal.SIGKILL)
    assert launcher.alive(note), "nobody can tell yet"
    assert wait_until(lambda: not launcher.alive(note), PATIENCE)
    word = launcher.word(note)
    assert word is not None and word.because is Because.INTERRUPTED
    assert word.text == "Slurm knows of its job 1 no more, and it is gone"


def test_a_job_that_never_began_and_that_slurm_does_not_know_is_lost(
    launcher: SlurmLauncher, folder: AttemptFolder, stub: Path
):
    """Else one that dies as it begins, and is forgotten at once, would be tried for ever."""
    (stub / "waits").write_text("Priority")
    (stub / "forgets").touch()
    note = launcher.start(folder, ("cpu:0",), TOKEN)
    assert wait_until(lambda: not launcher.alive(note), PATIENCE)
    assert launcher.word(note) is None


# -- the probe -----------------------------------------------------------------------------------


def case(tmp_path: Path, **changes: Any) -> Case:
    path = tmp_path / "config.toml"
    path.write_text(to_toml(small_dict(slots__launcher="slurm", **changes)))
    return Case(path, on_slurm(**changes), devices=["cpu:0"])


def test_a_probe_job_says_that_a_node_sees_the_folder_and_has_this_nasd(stub: Path, tmp_path: Path):
    (found,) = cluster.nodes(case(tmp_path))
    assert found.mark == "good", found
    assert "sees the state folder" in found.text
    assert not list(tmp_path.glob(".nasd-probe-*"))


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["exit 3"], "the nodes have to see that folder"),
        (["import_nothing_of_the_sort() { :; }; exec false"], "the nodes have to see that folder"),
    ],
)
def test_a_node_that_does_not_see_the_folder_is_found_before_the_search_begins(
    stub: Path, tmp_path: Path, lines: list[str], words: str
):
    (found,) = cluster.nodes(case(tmp_path, slurm__setup=lines))
    assert found.mark == "bad"
    assert words in found.text
    assert "\n" not in found.text


def test_a_probe_that_does_not_start_is_told_with_the_reason_and_cancelled(
    stub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(cluster, "PROBE_SECONDS", 1.5)
    (stub / "waits").write_text("Resources")
    (found,) = cluster.nodes(case(tmp_path))
    assert "its probe job 1 still waits after 1.5 s (Resources)" in found.text
    assert slurm_stub.jobs(stub)["1"].get("cancelled")


@pytest.mark.parametrize(
    ("probe", "words"),
    [
        (probing.Probe("", "n7", "0.0.7", 0.0), "n7 has nasd 0.0.7, and this is"),
        (
            probing.Probe("", "n7", nasd.__version__, 90.0),
            "the clock of n7 is 1 min 30 s ahead of this",
        ),
        (probing.Probe("", "n7", nasd.__version__, -90.0), "behind this machine's"),
    ],
)
def test_another_version_and_another_clock_are_told_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, probe: probing.Probe, words: str
):
    monkeypatch.setattr(probing, "probe", lambda *_: probe)
    (found,) = cluster.nodes(case(tmp_path))
    assert found.mark == "bad"
    assert words in found.text


# -- what the daemon makes of it -----------------------------------------------------------------


class Queueing(FakeLauncher):
    """As FakeLauncher, with a queue: attempts wait until `begin`, and what ends them is told."""

    def __init__(self, *about: Any) -> None:
        super().__init__(*about)
        self.waiting: dict[str, str] = {}
        self.words: dict[str, Word] = {}
        self.fault: str | None = None
        self.refuses: NasdError | None = None

    def start(self, folder: AttemptFolder, slots: Any, token: str) -> dict[str, Any]:
        if self.refuses is not None:
            raise self.refuses
        note = super().start(folder, slots, token)
        self.waiting[token] = "its job waits"
        return note

    def alive(self, process: Mapping[str, Any]) -> bool:
        return process["token"] in self.waiting or super().alive(process)

    def waits(self, process: Mapping[str, Any]) -> str | None:
        return self.waiting.get(process["token"])

    def begin(self) -> None:
        for token in self.waiting:
            _, outcome, folder, slots = self.jobs[token]
            self.jobs[token] = (self.clock() + 30.0, outcome, folder, slots)
        self.waiting.clear()

    def word(self, process: Mapping[str, Any]) -> Word | None:
        return self.words.get(process["token"])

    def away(self) -> str | None:
        return self.fault


@pytest.fixture
def queueing(state: StateFolder, no_summaries: None) -> Any:
    tick = make_tick(state, small_config())
    assert isinstance(tick.clock, Clock)
    tick.launcher = Queueing(tick.clock)
    tick.leashed = False
    return tick


def test_an_attempt_holds_its_slots_from_the_begin_of_its_job_and_not_before(queueing: Any):
    queueing()
    (one,) = queueing.store.read().live_attempts
    assert (one.state, one.message) == (AttemptState.STARTING, "its job waits")
    queueing.clock.now += 7200
    queueing()
    assert queueing.store.read().gpu_hours(queueing.clock()) == 0.0
    queueing.launcher.begin()
    queueing()
    (one,) = queueing.store.read().live_attempts
    assert (one.state, one.message) == (AttemptState.RUNNING, "")
    queueing.clock.now += 3600
    assert queueing.store.read().gpu_hours(queueing.clock()) == pytest.approx(1.0)
    queueing()
    ended = queueing.store.read().attempts[0]
    assert ended.state is AttemptState.SUCCEEDED
    assert queueing.store.read().gpu_hours(queueing.clock()) == pytest.approx(1.0)


def test_a_queue_that_is_away_has_nothing_started_and_then_all(queueing: Any):
    queueing.launcher.fault = "Slurm does not answer"
    queueing()
    assert not queueing.store.read().attempts
    queueing.launcher.fault = None
    queueing()
    assert len(queueing.store.read().live_attempts) == 1


def test_what_nobody_can_start_halts_the_search_with_the_sentence(queueing: Any):
    queueing.launcher.refuses = NasdError("slurm.qos: Slurm refuses the jobs of prepare")
    queueing()
    found = queueing.store.read()
    assert found.experiment.state == "halted"
    assert found.experiment.reason.startswith("slurm.qos: Slurm refuses")
    queueing.stop()
    assert not queueing.store.read().live_attempts


def test_a_job_that_may_have_been_submitted_is_no_setback(queueing: Any):
    queueing.launcher.refuses = NotYet("sbatch has not answered")
    queueing()
    queueing.launcher.refuses = None
    queueing()
    first = queueing.store.read().attempts[0]
    assert (first.state, first.verdict) == (AttemptState.LOST, AttemptVerdict.INTERRUPTED)
    assert len(queueing.store.read().live_attempts) == 1


def test_a_person_s_cancel_drains_the_search_and_resuming_tries_again(queueing: Any):
    queueing()
    queueing.launcher.begin()
    queueing()
    (one,) = queueing.store.read().live_attempts
    queueing.launcher.words[one.token] = Word(Because.CANCELLED, "its job 3 was cancelled")
    del queueing.launcher.jobs[one.token]
    queueing()
    found = queueing.store.read()
    assert found.experiment.pause == "drain"
    assert "its job 3 was cancelled" in found.experiment.pause_note
    assert found.attempts[0].state is AttemptState.PREEMPTED
    assert not found.live_attempts
    queueing.store.pause("", "")
    queueing()
    assert len(queueing.store.read().live_attempts) == 1


def test_attempts_outlive_a_daemon_that_is_told_to_leave_and_the_next_takes_them_up(queueing: Any):
    queueing()
    queueing.launcher.begin()
    queueing()
    queueing.stop()
    (one,) = queueing.store.read().live_attempts
    later = make_tick(queueing.state, small_config(), store=queueing.store, clock=queueing.clock)
    later.launcher = queueing.launcher
    later.leashed = False
    advance(later)
    later()
    assert later.store.read().attempts[0].id == one.id
    assert later.store.read().attempts[0].state is AttemptState.SUCCEEDED


def test_a_search_on_a_queue_tells_the_story_of_one_without(
    queueing: Any, folder_of: Any, no_summaries: None
):
    plain = make_tick(folder_of, small_config())
    expected = drive(plain)

    def begins(snapshot: Any) -> bool:
        queueing.launcher.begin()
        return False

    found = drive(queueing, begins)
    assert [one.hash for one in found.candidates.values()] == [
        one.hash for one in expected.candidates.values()
    ]
    assert found.decisions == expected.decisions


@pytest.fixture
def folder_of(tmp_path: Path) -> StateFolder:
    return StateFolder(tmp_path / "plain")


def test_a_time_limit_that_lets_nobody_get_on_is_a_loss_and_else_an_interruption(store: Store):
    attempt = store.start_attempt(0, "prepare", ("cpu:0",), "t", 1.0)
    snapshot = store.read()
    one = next(a for a in snapshot.attempts if a.id == attempt)
    word = Word(Because.LIMIT, "its time was up")
    asked = Outcome(verdict="stopped", message="after step 5")
    assert heeded(snapshot, one, asked, "gone", word, 0) == (
        None,
        "its time was up before it had got on: give it more time",
    )
    got_on, _ = heeded(snapshot, one, asked, "gone", word, 5)
    assert got_on is not None
    assert (got_on.verdict, got_on.message) == ("stopped", "its time was up: after step 5")
    done = Outcome(verdict="succeeded")
    assert heeded(snapshot, one, done, "gone", word, 0) == (done, "gone")


def test_an_attempt_that_leaves_in_order_as_its_job_fails_is_told_why_and_no_loss_if_it_got_on(
    store: Store,
):
    attempt = store.start_attempt(0, "prepare", ("cpu:0",), "t", 1.0)
    snapshot = store.read()
    one = next(a for a in snapshot.attempts if a.id == attempt)
    word = Word(Because.LOST, "its job 3 failed on n1")
    left = Outcome(verdict="stopped", message="asked to stop after step 1 of 8")
    told = "its job 3 failed on n1: asked to stop after step 1 of 8"
    got_on, _ = heeded(snapshot, one, left, "gone", word, 1)
    assert got_on is not None and (got_on.verdict, got_on.message) == ("stopped", told)
    assert heeded(snapshot, one, left, "gone", word, 0) == (None, told)
    assert heeded(snapshot, one, None, "gone", word, 1) == (None, "its job 3 failed on n1")


def test_a_launcher_that_cannot_see_what_runs_is_not_taken(store: Store):
    attempt = store.start_attempt(0, "prepare", ("cpu:0",), "t", 1.0)
    store.attempt_waits(attempt, {"job": "12", "token": "t", "attempt": "1"}, "its job 12 waits")
    local = daemon.launchers.of(small_config().slots)
    with pytest.raises(NasdError, match=r'slots\.launcher: .* take launcher = "slurm" back'):
        daemon._check_jobs(store, local)
    daemon._check_jobs(store, slurm.ENTRY)


# -- what Slurm says -----------------------------------------------------------------------------


def test_only_lines_of_our_jobs_are_read_of_a_queue():
    said = (
        "slurm_load_jobs error: something\n"
        "1|RUNNING|None|n1|nasd-ab|/state/attempts/1\n"
        "2|RUNNING|None|n1|other|/x\n"
        "3|PENDING|Nodes required for job are DOWN, DRAINED|n(1)|nasd-cd|/a|b/attempts/2\n"
    )
    one, two = parsed(said)
    assert (one.id, one.state, one.token, one.nodes) == ("1", "RUNNING", "ab", "n1")
    assert two.folder == Path("/a|b/attempts/2")
    assert "DRAINED" in two.reason


def test_a_command_s_last_words_come_without_who_says_them():
    said = "sbatch: error: x\nsbatch: error: Batch job submission failed: Invalid partition name."
    assert last_line(said) == "Invalid partition name"
    assert last_line("") == "no word of why"


def test_a_daemon_within_a_job_hands_none_of_its_job_to_slurms_commands(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setenv("SLURM_MEM_PER_NODE", "5")
    monkeypatch.setenv("SBATCH_PARTITION", "mine")
    monkeypatch.setenv("SLURM_CONF", "/etc/x")
    found = slurm.environment()
    assert "SLURM_MEM_PER_NODE" not in found
    assert "SBATCH_PARTITION" not in found
    assert found["SLURM_CONF"] == "/etc/x"


def test_squeue_that_hangs_holds_up_no_turn_and_is_told(stub: Path):
    (stub / "bin" / "squeue").write_text("#!/bin/sh\nexec sleep 30\n")
    queue = Queue(1.0)
    queue.look()
    assert wait_until(lambda: queue.look() is None and bool(queue.fault), 10)
    assert queue.fault == "squeue has not answered yet"
    assert queue._asking is not None
    queue._asking[0].kill()
