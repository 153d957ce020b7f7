"""nasd as a service: what it tells systemd, and the units that bin/install-service writes."""

import importlib.machinery
import importlib.util
import json
import os
import pwd
import re
import shutil
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from nasd.control.notify import notify, watchdog_seconds
from tests.conftest import ROOT, small_dict, to_toml

UNITS = ["nasd.service", "nasd-tensorboard.service"]
EXPOSURE = 2.0  # of 10, as `systemd-analyze security` counts; lower is better


def someone() -> str:
    """A user that a service may have: whoever runs this, but not root."""
    try:
        name = pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        name = "root"
    return "daemon" if name == "root" else name


USER = someone()

analyze = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None,
    reason="systemd-analyze judges the units: install the package systemd (.ci/run does)",
)


# -- words to the service manager ----------------------------------------------------------------


@contextmanager
def manager(address: str | bytes) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(address)
        receiver.settimeout(10)
        yield receiver


def test_the_service_manager_is_told_each_field_on_a_line(tmp_path, monkeypatch):
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    with manager(str(tmp_path / "notify")) as receiver:
        assert notify(ready="1", STATUS="generation 2 von 3 – läuft")
        assert receiver.recv(1000).decode() == "READY=1\nSTATUS=generation 2 von 3 – läuft"


def test_an_address_without_a_file_is_told_as_well(monkeypatch):
    monkeypatch.setenv("NOTIFY_SOCKET", f"@nasd-test-{os.getpid()}")
    with manager(f"\0nasd-test-{os.getpid()}".encode()) as receiver:
        assert notify(watchdog="1")
        assert receiver.recv(1000) == b"WATCHDOG=1"


def test_a_status_of_several_lines_cannot_be_taken_for_other_fields(tmp_path, monkeypatch):
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    with manager(str(tmp_path / "notify")) as receiver:
        assert notify(status="halted\nREADY=1")
        assert receiver.recv(1000) == b"STATUS=halted READY=1"


def test_without_a_service_manager_nothing_is_sent(monkeypatch):
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert not notify(ready="1")


@pytest.mark.parametrize("name", ["never-there", "left-behind", "long" * 100, "vsock:2:1"])
def test_a_service_manager_that_is_gone_is_no_error(name, tmp_path, monkeypatch):
    if name == "left-behind":
        with manager(str(tmp_path / name)):
            pass
    address = name if ":" in name else str(tmp_path / name)
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    assert not notify(ready="1")


def test_a_service_manager_that_does_not_read_does_not_hold_up_the_daemon(tmp_path, monkeypatch):
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    with manager(str(tmp_path / "notify")):
        began = time.monotonic()
        while notify(status="x" * 10_000):
            assert time.monotonic() - began < 60
        assert time.monotonic() - began < 60


@pytest.mark.parametrize(
    ("microseconds", "pid", "seconds"),
    [
        ("600000000", None, 600.0),
        ("600000000", "own", 600.0),
        ("600000000", "1", None),  # meant for the process that started this one
        ("600000000", "?", None),
        ("0", None, None),
        ("soon", None, None),
        (None, "own", None),
    ],
)
def test_the_watchdog_is_the_one_that_is_set_for_this_process(
    microseconds, pid, seconds, monkeypatch
):
    for name, value in (("WATCHDOG_USEC", microseconds), ("WATCHDOG_PID", pid)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, str(os.getpid()) if value == "own" else value)
    assert watchdog_seconds() == seconds


# -- the units -----------------------------------------------------------------------------------


def install(into: Path, *more: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Writes units, never to where systemd looks for them unless `more` says so."""
    arguments = ["--into", str(into), "--user", USER, "--python", sys.executable, *more]
    return subprocess.run(
        [sys.executable, str(ROOT / "bin/install-service"), *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=60,
    )


def settings(unit: Path) -> dict[str, list[str]]:
    """Every value of every key of a unit."""
    found: dict[str, list[str]] = {}
    for line in unit.read_text().splitlines():
        if "=" in line and not line.startswith("#"):
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


def search(folder: Path, name: str = "my search 50%", **changes: object) -> Path:
    place = folder / name
    place.mkdir()
    config = place / "config.toml"
    config.write_text(to_toml(small_dict(**changes)))
    return config


@pytest.fixture(scope="module", params=["as shipped", "a path with a space and a percent sign"])
def rendered(request, tmp_path_factory) -> Path:
    """The units, for the checkout's own config and for one elsewhere."""
    folder = tmp_path_factory.mktemp("units")
    into = folder / "units"
    into.mkdir()
    more = [] if request.param == "as shipped" else ["--config", str(search(folder))]
    done = install(into, *more)
    assert done.returncode == 0, done.stderr
    return into


def verify(unit: Path) -> list[str]:
    """What systemd has to say against a unit. It exits with 0 for a key it does not know, and
    speaks of units of the machine's own as well."""
    done = subprocess.run(
        ["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, timeout=60
    )
    words = [line for line in (done.stdout + done.stderr).splitlines() if unit.name in line]
    return words if words or done.returncode == 0 else [f"exit code {done.returncode}"]


def exposure(unit: Path) -> tuple[float, str]:
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--no-pager", str(unit)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    if "unrecognized option" in done.stderr:
        pytest.skip("systemd-analyze is older than 250, the first that judges a unit's file")
    level = re.search(r"exposure level for \S+: ([\d.]+)", done.stdout)
    assert level, done.stdout + done.stderr
    return float(level[1]), done.stdout


@pytest.mark.parametrize("name", UNITS)
def test_nothing_of_the_template_is_left_open(rendered, name):
    assert not re.search(r"@[A-Z_]+@", (rendered / name).read_text())


@analyze
@pytest.mark.parametrize("name", UNITS)
def test_systemd_has_nothing_to_say_against_a_unit(rendered, name):
    assert verify(rendered / name) == []


@analyze
@pytest.mark.parametrize("name", UNITS)
def test_a_unit_is_well_shut_in(rendered, name):
    level, report = exposure(rendered / name)
    assert level <= EXPOSURE, report


@analyze
@pytest.mark.parametrize(
    ("line", "other", "words"),
    [
        ("ProtectClock=yes", "ProtectClocks=yes", "ProtectClocks"),
        ("Restart=on-failure", "Restart=on-failures", "on-failures"),
        ('ExecStart="', 'ExecStart="/nowhere', "/nowhere"),
    ],
)
def test_the_check_of_a_unit_can_fail(rendered, tmp_path, line, other, words):
    text = (rendered / "nasd.service").read_text()
    assert line in text
    broken = tmp_path / "nasd.service"
    broken.write_text(text.replace(line, other, 1))
    assert any(words in said for said in verify(broken))


@analyze
def test_the_check_of_the_exposure_can_fail(rendered, tmp_path):
    text = (rendered / "nasd.service").read_text()
    open_wide = tmp_path / "nasd.service"
    open_wide.write_text(re.sub(r"^(Protect|Restrict|Capab|SystemCall).*\n", "", text, flags=re.M))
    assert exposure(open_wide)[0] > EXPOSURE


def test_paths_are_quoted_as_units_want_them(tmp_path):
    config = search(tmp_path)
    assert install(tmp_path, "--config", str(config)).returncode == 0
    place = f"{tmp_path}/my search 50%%"
    unit = settings(tmp_path / "nasd.service")
    command = f'"{sys.executable}" -P -m nasd run --config "{place}/config.toml"'
    assert unit["ExecStart"] == [command]
    assert unit["ReadWritePaths"][0].startswith(f'"{place}/state" ')
    assert unit["WorkingDirectory"] == [str(ROOT)]
    assert unit["User"] == [USER]
    board = settings(tmp_path / "nasd-tensorboard.service")
    assert f'--logdir "{place}/state/tensorboard" ' in board["ExecStart"][0]
    assert "--port 6006 " in board["ExecStart"][0]
    assert "ReadWritePaths" not in board


def test_the_state_folder_is_the_one_that_the_config_names(tmp_path):
    config = search(tmp_path, experiment__state="/data/nasd")
    assert install(tmp_path, "--config", str(config)).returncode == 0
    assert settings(tmp_path / "nasd.service")["ReadWritePaths"][0].startswith('"/data/nasd" ')


def test_workers_have_the_time_for_their_checkpoints_that_the_config_gives_them(tmp_path):
    config = search(tmp_path, daemon__stop_grace_seconds=900)
    assert install(tmp_path, "--config", str(config)).returncode == 0
    assert settings(tmp_path / "nasd.service")["TimeoutStopSec"] == ["960"]


def test_home_folders_can_be_read_where_something_needed_lies_in_one(tmp_path):
    assert install(tmp_path, HF_HOME="/home/someone/hub").returncode == 0
    unit = settings(tmp_path / "nasd.service")
    assert unit["ProtectHome"] == ["read-only"]
    assert unit["ReadWritePaths"][0].endswith(' "-/home/someone/hub"')


@pytest.mark.parametrize(
    ("change", "denied"),
    [
        ({"seed_model__source": "package:nasd/demo_seed"}, "any"),
        ({"seed_model__source": "../seed"}, "any"),  # a folder that is there
        ({"seed_model__source": "distilbert/distilbert-base-uncased"}, ""),
        (
            {
                "seed_model__source": "package:nasd/demo_seed",
                "data__qa__files": None,
                "data__qa__hub": "rajpurkar/squad",
            },
            "",
        ),
    ],
)
def test_a_search_that_needs_no_hub_reaches_nothing_beyond_this_machine(tmp_path, change, denied):
    (tmp_path / "seed").mkdir()
    assert install(tmp_path, "--config", str(search(tmp_path, **change))).returncode == 0
    unit = settings(tmp_path / "nasd.service")
    assert unit["IPAddressDeny"] == [denied]
    assert unit["IPAddressAllow"] == ["localhost"]


def test_the_state_folder_of_a_service_is_made_for_its_user_alone(tmp_path):
    path = str(ROOT / "bin/install-service")
    spec = importlib.util.spec_from_loader(
        "install_service", importlib.machinery.SourceFileLoader("install_service", path)
    )
    assert spec is not None and spec.loader is not None
    installer = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(installer)
    config = search(tmp_path)
    facts = subprocess.run(
        [sys.executable, "-P", "-c", installer.ASK, str(config), "make"],
        capture_output=True,
        text=True,
        check=True,
        umask=0,
    )
    state = Path(json.loads(facts.stdout)["state"])
    assert stat.S_IMODE(state.stat().st_mode) == 0o700


def test_a_search_in_tmp_is_warned_of_because_the_service_has_a_tmp_of_its_own(tmp_path):
    config = search(tmp_path, experiment__state="/tmp/nasd-state")
    done = install(tmp_path, "--config", str(config))
    assert done.returncode == 0
    assert "has a /tmp of its own" in done.stderr


def test_installing_again_changes_nothing_and_says_so(tmp_path):
    assert install(tmp_path).stdout.count("wrote ") == 2
    before = {name: (tmp_path / name).stat().st_mtime_ns for name in UNITS}
    again = install(tmp_path).stdout
    assert "wrote " not in again
    assert again.count("unchanged: ") == 2
    assert {name: (tmp_path / name).stat().st_mtime_ns for name in UNITS} == before
    other = install(tmp_path, "--port", "7007").stdout
    assert f"unchanged: {tmp_path / 'nasd.service'}" in other
    assert f"wrote {tmp_path / 'nasd-tensorboard.service'}" in other
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(UNITS)


def test_the_search_may_be_installed_alone(tmp_path):
    done = install(tmp_path, "--no-tensorboard")
    assert [path.name for path in tmp_path.iterdir()] == ["nasd.service"]
    assert "systemctl enable --now nasd " in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--config", "gone.toml"], "there is no config file"),
        (["--config", str(ROOT / "pyproject.toml")], "unknown key build-system"),
        (["--user", "no-such-user"], "there is no user no-such-user"),
        (["--user", "root"], "does not run as root"),
        (["--port", "80"], "choose one from 1024 to 65535"),
        (["--python", "/no/python"], "/no/python cannot be run"),
        (["--into", "/no/folder"], "there is no folder /no/folder"),
    ],
)
def test_what_cannot_work_is_one_sentence_exit_code_2_and_nothing_written(
    tmp_path, arguments, words
):
    done = install(tmp_path, *arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("install-service: ")
    assert words in line
    assert list(tmp_path.iterdir()) == []


def test_a_path_that_no_unit_can_hold_is_refused(tmp_path):
    config = search(tmp_path, name='a "$HOME"')
    done = install(tmp_path, "--config", str(config))
    assert done.returncode == 2
    assert "cannot stand in a unit file" in done.stderr
    assert not list(tmp_path.glob("*.service"))


def test_a_machine_without_systemd_is_told_so(tmp_path):
    done = install(tmp_path, "--into", "/etc/systemd/system", PATH=str(tmp_path))  # no systemctl
    assert done.returncode == 2
    assert "systemd does not run this machine" in done.stderr


def test_the_help_shows_an_example(tmp_path):
    done = install(tmp_path, "--help")
    assert done.returncode == 0
    assert "Example: sudo bin/install-service --config" in done.stdout
