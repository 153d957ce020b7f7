"""What starts the ranks of an attempt: nobody gets in, none is left behind, all end with one."""

import ast
import os
import signal
import socket
import stat
import subprocess
import sys
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import psutil
import pytest

from nasd.launch import interpreter, ranks
from nasd.launch.launcher import wait_until
from tests.conftest import ROOT
from tests.training import Launched, Workshop, demo_config, launched, make_workshop, stage

CONFIG = demo_config()
PATIENCE = 60.0


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return make_workshop(tmp_path_factory.mktemp("workshop"))


def all_processes(attempt: Launched) -> list[psutil.Process]:
    root = psutil.Process(attempt.process["pid"])
    return [root, *root.children(recursive=True)]


def sockets(attempt: Launched) -> list[Any]:
    """Every internet socket of every process of an attempt, listening or connected."""
    return [one for process in all_processes(attempt) for one in process.net_connections("inet")]


@pytest.mark.parametrize("count", [1, 2])
def test_no_socket_of_a_running_attempt_goes_beyond_the_loopback_and_one_rank_opens_none(
    shop: Workshop, tmp_path: Path, count: int
) -> None:
    spec = shop.spec(stage(CONFIG, "pretrain_1", epochs=50), checkpoint_minutes=1e-6)
    with launched(spec, tmp_path, count) as attempt:
        attempt.until(lambda: bool(attempt.checkpoints()))  # all ranks have come to a step
        found = sockets(attempt)
        assert len(all_processes(attempt)) == 1 + count
    listening = [one for one in found if one.status == psutil.CONN_LISTEN]
    ends = [end.ip for one in found for end in (one.laddr, one.raddr) if end]
    assert all(ip_address(ip).is_loopback for ip in ends), found
    assert all(one.type == socket.SOCK_STREAM for one in found)
    # gloo's own, one a rank: nothing that tells ranks what to do, and nothing where there is no
    # peer.
    assert len(listening) == (count if count > 1 else 0), found


def test_the_place_where_ranks_meet_is_shut_to_others_and_gone_in_the_end(
    shop: Workshop, tmp_path: Path
) -> None:
    before = os.umask(0)
    try:
        with launched(shop.spec(stage(CONFIG, "evaluate")), tmp_path / "a?b#c d", 2) as attempt:
            private = attempt.folder.path / "rendezvous"
            assert wait_until(private.exists, PATIENCE)
            assert stat.S_IMODE(private.stat().st_mode) == 0o700
            attempt.ends()
    finally:
        os.umask(before)
    assert not private.exists()


def test_ranks_tell_each_other_nothing_but_numbers() -> None:
    """Objects would be unpickled from a socket, which runs what their sender likes."""
    for path in (ROOT / "nasd" / "worker").rglob("*.py"):
        called = {
            node.func.attr
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
        }
        assert not [name for name in called if "object" in name and name != "object"], path


def start(tmp_path: Path, count: int, code: str) -> "subprocess.Popen[str]":
    """So many ranks that run `code`, under a starter of their own."""
    starter = (
        "import sys; from pathlib import Path; from nasd.launch import ranks;"
        " sys.exit(ranks.run(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]))"
    )
    return subprocess.Popen(
        [sys.executable, "-c", starter, str(count), str(tmp_path), sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(
    ("code", "expected", "said"),
    [
        ("pass", 0, []),
        # The first to end well waits for the others.
        ("import os, time; time.sleep(0.3 * int(os.environ['RANK']))", 0, []),
        (
            "import os, sys, time; os.environ['RANK'] == '1' and sys.exit(7); time.sleep(600)",
            1,
            [],
        ),
        (
            "import os, time; os.environ['RANK'] == '0' and os.kill(os.getpid(), 9);"
            " time.sleep(600)",
            128 + 9,
            ["rank 0 was ended by SIGKILL"],
        ),
    ],
)
def test_ranks_end_well_together_or_all_of_them_when_one_fails(
    tmp_path: Path, code: str, expected: int, said: list[str]
) -> None:
    started = start(tmp_path, 2, code)
    out, _ = started.communicate(timeout=PATIENCE)
    assert (started.returncode, out.splitlines()) == (expected, said)
    assert list(tmp_path.iterdir()) == []


TELLS = """
import os, signal, time
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
os.write(1, b"%d\\n" % os.getpid())  # at once: print writes the end of the line apart
time.sleep(600)
"""


def test_ranks_die_with_what_started_them_from_their_first_instruction_on(tmp_path: Path) -> None:
    started = start(tmp_path, 2, TELLS)
    assert started.stdout is not None
    pids = [int(started.stdout.readline()) for _ in range(2)]
    started.kill()
    started.wait()
    started.stdout.close()
    assert wait_until(lambda: not any(map(runs, pids)), PATIENCE)


def runs(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def test_a_request_to_leave_that_reaches_the_starter_is_handed_on(tmp_path: Path) -> None:
    """As a batch system sends it, to every process."""
    started = start(tmp_path, 2, TELLS)
    assert started.stdout is not None
    for _ in range(2):
        started.stdout.readline()
    started.send_signal(signal.SIGTERM)
    assert started.wait(PATIENCE) == 0
    started.stdout.close()


def test_peers_that_do_not_leave_are_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "GRACE_SECONDS", 0.2)
    before = signal.getsignal(signal.SIGTERM)
    others = set(psutil.Process().children())  # of tests before this one
    deaf = (
        "import os, signal, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        " os.environ['RANK'] == '1' and sys.exit(3); time.sleep(600)"
    )
    try:
        assert ranks.run(2, tmp_path, [sys.executable, "-c", deaf]) == 1
    finally:
        signal.signal(signal.SIGTERM, before)
    assert set(psutil.Process().children()) <= others


def test_what_a_killed_attempt_of_the_same_number_left_is_no_ones_peer(tmp_path: Path) -> None:
    left = tmp_path / "rendezvous"
    left.mkdir()
    (left / "store").write_text("of another life")
    code = "import os, sys; sys.exit(os.path.exists(os.environ['NASD_RENDEZVOUS']))"
    assert start(tmp_path, 1, code).wait(PATIENCE) == 0
    assert list(tmp_path.iterdir()) == []


# -- the environment and the folder that children start in ---------------------------------------

OURS_NOT = ("nasd", "torch", "psutil", "json", "numpy", "tensorboard", "transformers", "pydantic")
TRAP = "open(__file__ + '.imported', 'w').close(); raise SystemExit('the current folder')\n"


@pytest.fixture
def trapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder with files named as what nasd imports, and an environment left by others."""
    for name in OURS_NOT:
        (tmp_path / f"{name}.py").write_text(TRAP)
    (tmp_path / "nasd").mkdir()
    (tmp_path / "nasd" / "__init__.py").write_text(TRAP)
    monkeypatch.chdir(tmp_path)
    for name, value in {
        "RANK": "3",
        "WORLD_SIZE": "4",
        "LOCAL_RANK": "3",
        "MASTER_ADDR": "192.0.2.1",
        "MASTER_PORT": "1",
        "TORCHELASTIC_RUN_ID": "another",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "NCCL_COMM_ID": "192.0.2.1:1",
        "PYTHONOPTIMIZE": "2",
        "PYTHONPATH": f"{os.pathsep}/nowhere",  # as of "$PYTHONPATH:/nowhere"
    }.items():
        monkeypatch.setenv(name, value)
    return tmp_path


def imported(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*.imported"))


def test_an_attempt_imports_nothing_from_the_current_folder_and_minds_no_other_launcher(
    shop: Workshop, trapped: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    spec = shop.spec(stage(CONFIG, "pretrain_1", epochs=0.1, evaluations=1))
    with launched(spec, tmp_path_factory.mktemp("attempt"), 2) as attempt:
        attempt.ends()
        assert attempt.outcome is not None, attempt.log
        assert attempt.outcome.verdict == "succeeded"
    assert imported(trapped) == []


@pytest.mark.parametrize(
    ("how", "arguments"),
    [
        (".venv/bin/nasd", ["status", "--state", "nowhere"]),
        (".venv/bin/nasd", ["doctor", "--config", "config.toml"]),  # asks children of all kinds
        ("bin/nasd", ["status", "--state", "nowhere"]),
    ],
)
def test_the_command_in_a_folder_of_ones_own_imports_nothing_from_there(
    trapped: Path, how: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from nasd.presets import write_preset

    write_preset("demo-thesis", trapped, ["slots.threads=1"], force=False)
    command = [str(Path(sys.executable).with_name("nasd"))]
    if how == "bin/nasd":
        command = [str(ROOT / "bin/nasd")]
    else:  # what Python imports before it comes to nasd is not nasd's to say
        monkeypatch.delenv("PYTHONPATH")
    done = subprocess.run(
        [*command, *arguments],
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert imported(trapped) == [], done.stderr
    assert "Traceback" not in done.stderr


def test_an_attempts_environment_has_no_place_of_another_and_no_empty_path(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["", "/lib", ".", "/more"]))
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    made = interpreter.environment({"ADDED": "1"})
    assert made["PYTHONPATH"] == os.pathsep.join(["/lib", "/more"])
    assert made["PYTHONSAFEPATH"] == made["ADDED"] == "1"
    assert made["SLURM_JOB_ID"] == "7"
    assert not {"RANK", "TORCHELASTIC_RUN_ID"} & made.keys()


# The second and the last two name -P themselves, the third goes on as it was begun.
ALLOWED = {
    "nasd/launch/interpreter.py",
    "nasd/views/board_server.py",
    "nasd/control/daemon.py",
    "nasd/views/doctor/service.py",
    "nasd/worker/measure/stage.py",
}


def test_no_other_module_puts_a_command_line_of_python_together() -> None:
    """So that none forgets the safe path."""
    found = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "nasd").rglob("*.py")
        if "sys.executable" in path.read_text()
    }
    assert found == ALLOWED
