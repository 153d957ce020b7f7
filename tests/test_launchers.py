"""The registry of launchers: what nasd asks of each of them, held by all."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from nasd.contract import sections
from nasd.contract.errors import NasdError
from nasd.contract.protocol import AttemptFolder
from nasd.contract.sections import machine
from nasd.contract.slots import Slot, SlotKind, on_gpus, unit
from nasd.launch import launchers
from nasd.launch.launcher import Entry, Launcher, NotYet, wait_until
from nasd.launch.local import LocalLauncher
from nasd.launch.simulated import SimulatedLauncher
from nasd.launch.slurm import SlurmLauncher
from nasd.views.forecast.virtual_time import VirtualClock
from tests import slurm_stub
from tests.conftest import small_config
from tests.test_simulation import alone, spec_of

PATIENCE = 30.0
SLOTS = ("cpu:0", "cpu:1")
TOKEN = "the token"

# It leaves when it is asked to, as a worker does, and says when it listens.
WORKER = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
print("listens", flush=True)
time.sleep(600)
"""


@dataclass
class Rig:
    """A place in which a launcher can start an attempt that does nothing of itself.

    open: a launcher of the kind. passes: waits until something has come about. listens: whether an
    attempt can hear a request by now. elsewhere: starts the attempt by a launcher that is gone
    then, with its process if it has any, and returns the note.
    """

    open: Callable[[], Launcher]
    passes: Callable[[Callable[[], bool]], bool]
    listens: Callable[[AttemptFolder], bool]
    elsewhere: Callable[[AttemptFolder], dict[str, object]]


def of_local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rig:
    """Its leash is the real one, behind which a script stands in for the ranks."""
    (tmp_path / "worker.py").write_text(WORKER)
    real, python = sys.executable, tmp_path / "python"
    python.write_text(
        f'#!/bin/sh\nexec "{real}" -m nasd.contract.leash "$4" "{real}"'
        f' "{tmp_path}/worker.py" nasd.worker\n'
    )
    python.chmod(0o755)
    starter = (
        "import json, sys; from pathlib import Path; from nasd.launch.local import LocalLauncher;"
        " from nasd.contract.protocol import AttemptFolder; sys.executable = sys.argv[1];"
        " folder = AttemptFolder(Path(sys.argv[2]));"
        f" note = LocalLauncher(1).start(folder, {SLOTS!r}, {TOKEN!r});"
        " print(json.dumps(note), flush=True); sys.stdin.read()"
    )

    def elsewhere(folder: AttemptFolder) -> dict[str, object]:
        with subprocess.Popen(
            [real, "-c", starter, str(python), str(folder.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as daemon:
            assert daemon.stdout is not None
            note: dict[str, object] = json.loads(daemon.stdout.readline())
            assert wait_until(lambda: listens(folder), PATIENCE), folder.log.read_text()
            daemon.kill()
        return note

    def listens(folder: AttemptFolder) -> bool:
        return "listens" in folder.log.read_text()

    monkeypatch.setattr(sys, "executable", str(python))
    return Rig(
        lambda: LocalLauncher(1), lambda done: wait_until(done, PATIENCE), listens, elsewhere
    )


def of_simulated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rig:
    clock = VirtualClock()

    def passes(done: Callable[[], bool]) -> bool:
        clock.advance_to(clock() + 60)
        return done()

    def opened() -> SimulatedLauncher:
        return alone(clock)

    def elsewhere(folder: AttemptFolder) -> dict[str, object]:
        return opened().start(folder, SLOTS, TOKEN)

    return Rig(opened, passes, lambda folder: True, elsewhere)


def of_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rig:
    """Its jobs are real ones on a stub of Slurm's commands; a script stands in for the ranks."""
    (tmp_path / "worker.py").write_text(WORKER)
    starter = (
        "import sys; from nasd.launch import interpreter, job;"
        f" interpreter.command = lambda *_: [sys.executable, {str(tmp_path / 'worker.py')!r}];"
        " sys.exit(job.main(sys.argv[4:]))"
    )
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" -c "{starter}" "$@"\n')
    python.chmod(0o755)
    programs = slurm_stub.install(tmp_path / "slurm")
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    config = small_config(
        slots__launcher="slurm", slurm__python=str(python), slurm__poll_seconds=0.05
    )

    def opened() -> SlurmLauncher:
        return SlurmLauncher(config, tmp_path)

    return Rig(
        opened,
        lambda done: wait_until(done, PATIENCE),
        lambda folder: folder.log.exists() and "listens" in folder.log.read_text(),
        lambda folder: opened().start(folder, SLOTS, TOKEN),
    )


RIGS = {"local": of_local, "slurm": of_slurm, "simulated": of_simulated}


@pytest.fixture(params=launchers.LAUNCHERS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def entry(name: str) -> Entry:
    return launchers.LAUNCHERS[name]


@pytest.fixture
def rig(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    made = RIGS[name](tmp_path, monkeypatch)
    yield made
    with suppress(NasdError, AssertionError):
        cleared(made, made.open(), TOKEN)


@pytest.fixture
def folder(tmp_path: Path) -> AttemptFolder:
    found = AttemptFolder(tmp_path / "attempts" / "1")
    spec_of(found)
    return found


def cleared(rig: Rig, launcher: Launcher, token: str) -> int:
    """As often as the launcher asks for it, as in the turns of a daemon."""
    found: list[int] = []

    def once() -> bool:
        with suppress(NotYet):
            found.append(launcher.clear(token))
        return bool(found)

    assert rig.passes(once)
    return found[0]


def kept(note: dict[str, object]) -> dict[str, object]:
    """As the database gives it back."""
    found: dict[str, object] = json.loads(json.dumps(note))
    return found


def test_an_attempt_lives_until_it_is_asked_to_leave(rig: Rig, folder: AttemptFolder):
    launcher = rig.open()
    note = kept(launcher.start(folder, SLOTS, TOKEN))
    assert launcher.alive(note)
    assert rig.passes(lambda: rig.listens(folder))
    launcher.stop("another token")
    assert launcher.alive(note)
    launcher.stop(TOKEN)
    assert rig.passes(lambda: not launcher.alive(note))
    assert cleared(rig, launcher, TOKEN) == 0
    assert not launcher.alive(note)


def test_clear_leaves_nothing_of_an_attempt_and_touches_no_other(
    rig: Rig, folder: AttemptFolder, tmp_path: Path
):
    launcher = rig.open()
    note = kept(launcher.start(folder, SLOTS, TOKEN))
    assert cleared(rig, launcher, "another token") == 0
    assert launcher.alive(note)
    assert cleared(rig, launcher, TOKEN) >= 1
    assert not launcher.alive(note)
    assert cleared(rig, launcher, TOKEN) == 0
    launcher.start(folder, SLOTS, TOKEN)  # its slots are free
    assert cleared(rig, launcher, TOKEN) >= 1


def test_a_process_of_nobody_s_belongs_to_no_attempt(rig: Rig, folder: AttemptFolder):
    launcher = rig.open()
    launcher.start(folder, SLOTS, TOKEN)
    assert not launcher.owns(os.getpid())
    cleared(rig, launcher, TOKEN)


def test_an_attempt_dies_with_its_launcher_or_another_one_takes_over_as_the_entry_says(
    entry: Entry, rig: Rig, folder: AttemptFolder
):
    note = kept(rig.elsewhere(folder))
    launcher = rig.open()
    if entry.leashed:
        assert rig.passes(lambda: not launcher.alive(note))
    else:
        assert launcher.alive(note)
        launcher.stop(TOKEN)
        assert rig.passes(lambda: not launcher.alive(note))


def test_the_devices_that_a_config_lists_are_found_by_their_names(
    entry: Entry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    programs = slurm_stub.install(tmp_path / "slurm")
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    config = small_config(slots__devices=list(SLOTS))
    assert [str(slot) for slot in entry.devices(config, False)] == list(SLOTS)
    found = entry.devices(small_config(slots__devices="auto"), False)
    assert found
    assert len({slot.name for slot in found}) == len(found)
    assert all(Slot.parse(slot.name) == slot for slot in found)


def test_nothing_is_wrong_with_shares_of_the_cores(entry: Entry):
    with entry.health(SLOTS) as health:
        assert not any(gpu.fault for gpu in (health() or {}).values())


def test_a_config_names_those_that_can_be_opened_from_one_and_no_others(tmp_path: Path):
    opened = tuple(name for name, one in launchers.LAUNCHERS.items() if one.open is not None)
    assert opened == machine.LAUNCHERS
    assert RIGS.keys() == launchers.LAUNCHERS.keys()
    for name in opened:
        entry = launchers.of(small_config(slots__launcher=name).slots)
        assert entry is launchers.LAUNCHERS[name]
        assert entry.open is not None
        entry.open(small_config(), tmp_path)


@pytest.mark.parametrize("name", ["simulated", "Local", "", 3])
def test_a_launcher_that_no_config_may_name_is_refused_in_one_sentence(name: object):
    with pytest.raises(NasdError, match=r"slots\.launcher: there is no launcher .*\"local\"") as it:
        small_config(slots__launcher=name)
    assert "\n" not in str(it.value)


def test_a_slot_is_its_name_and_knows_its_kind_and_number():
    slot = Slot.parse("cuda:12")
    assert (slot.kind, slot.number, str(slot)) == (SlotKind.CUDA, 12, "cuda:12")
    assert Slot.of(SlotKind.CPU, 3) == Slot.parse("cpu:3")
    for name in ("cuda", "cuda:", "tpu:0", "cpu:-1", "cpu:0 ", "cuda:٣"):
        with pytest.raises(ValueError, match="tpu" if name == "tpu:0" else "no slot is called"):
            Slot.parse(name)
    assert not on_gpus(SLOTS)
    assert unit(SLOTS) == "slot-hours"
    assert unit((*SLOTS, "cuda:0")) == "GPU-hours"


def test_only_one_module_reads_the_names_of_slots():
    root = Path(sections.__file__).parents[2]
    for path in root.rglob("*.py"):
        text = path.read_text()
        told = [
            word for word in ('startswith("cu', 'startswith("cpu', 'split(":")') if word in text
        ]
        assert not told, f"{path.relative_to(root)}: {told}"
