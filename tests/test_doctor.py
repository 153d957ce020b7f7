"""What the doctor finds, and that it finds what is wrong."""

import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from nasd import backups, daemon_lock, doctor, retention
from nasd.cli import app
from nasd.doctor import Finding
from nasd.folders import StateFolder
from nasd.presets import write_preset
from nasd.store import Store
from tests.conftest import BACKBONE, begin, open_quickly, small_config, small_dict, to_toml


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A config whose experiment has begun."""
    found = tmp_path / "config.toml"
    found.write_text(to_toml(small_dict(daemon__disk_reserve_gb=0)))
    store = open_quickly(StateFolder(tmp_path / "state").database)
    begin(store, small_config())
    store.close()
    return found


def examined(path: Path) -> dict[str, list[Finding]]:
    found: dict[str, list[Finding]] = {}
    for one in doctor.examine(path):
        found.setdefault(one.about, []).append(one)
    return found


def marks(path: Path) -> dict[str, set[str]]:
    return {about: {one.mark for one in some} for about, some in examined(path).items()}


def test_a_sound_experiment_is_ready(path: Path):
    state = StateFolder(path.parent / "state")
    store = Store(state.database)
    backups.make(store, state, 0.0)
    store.close()
    findings = list(doctor.examine(path))
    assert {one.mark for one in findings} == {"good"}
    assert doctor.verdict(findings) == "ready"


def test_it_prints_the_most_that_weights_and_checkpoints_can_take(path: Path):
    bound = retention.bound(small_config(), BACKBONE, 4)
    (said,) = [one.text for one in examined(path)["disk"]]
    assert f"{bound.models} models" in said
    assert f"{bound.total / 1e9:.1f} GB at most" in said


def test_a_disk_below_the_reserve_is_bad_and_one_below_the_bound_is_worth_a_note(path: Path):
    text = path.read_text()
    free = shutil.disk_usage(path).free / 1e9
    path.write_text(text.replace("disk_reserve_gb = 0", f"disk_reserve_gb = {free - 0.00001}"))
    assert "note" in marks(path)["disk"]
    path.write_text(text.replace("disk_reserve_gb = 0", f"disk_reserve_gb = {2 * free}"))
    assert "bad" in marks(path)["disk"]
    assert doctor.verdict(list(doctor.examine(path))).startswith("not ready")


def test_a_damaged_database_is_found(path: Path):
    database = path.parent / "state" / "nasd.db"
    content = bytearray(database.read_bytes())
    for at in range(8192, len(content), 4096):  # all but the first pages
        content[at : at + 64] = b"\xff" * 64
    database.write_bytes(content)
    found = examined(path)
    assert "bad" in {one.mark for some in found.values() for one in some}


def test_what_keeps_a_search_from_going_on_is_told(path: Path):
    store = Store(path.parent / "state" / "nasd.db")
    store.hold("the disk is nearly full", 0.0)
    store.quarantine("cpu:1", "lost", "GPU is lost", 0.0)
    store.halt("mend it", 0.0)
    store.close()
    bad = [one.text for one in doctor.examine(path) if one.mark == "bad"]
    assert bad == [
        "halted: mend it",
        "on hold: the disk is nearly full",
        "cpu:1 is left alone: GPU is lost",
    ]


def test_that_it_is_paused_is_told(path: Path):
    store = Store(path.parent / "state" / "nasd.db")
    store.pause("drain", "by anna: a new driver")
    store.close()
    (note,) = [one for one in doctor.examine(path) if one.about == "experiment"]
    assert (note.mark, note.text) == (
        "note",
        "drain by anna: a new driver: `nasd resume` goes on",
    )


def test_a_state_folder_that_is_served_is_fine(path: Path):
    with daemon_lock.hold(path.parent / "state" / "daemon.lock"):
        assert "a daemon serves" in examined(path)["state"][0].text


def test_a_bad_config_is_one_finding(tmp_path: Path):
    path = tmp_path / "config.toml"
    path.write_text(to_toml(small_dict(population__mu=0)))
    (one,) = doctor.examine(path)
    assert (one.about, one.mark) == ("config", "bad")
    assert "population.mu" in one.text


def test_the_command_ends_with_a_verdict_and_says_by_its_exit_code_whether_it_is_good(path: Path):
    done = CliRunner().invoke(app, ["doctor", "--config", str(path)])
    assert done.exit_code == 0
    assert done.stdout.splitlines()[-1] == "ready"
    path.write_text(path.read_text().replace("disk_reserve_gb = 0", "disk_reserve_gb = 1e9"))
    done = CliRunner().invoke(app, ["doctor", "--config", str(path)])
    assert done.exit_code == 1
    assert done.stdout.splitlines()[-1].startswith("not ready: ")


def test_before_the_first_run_the_seed_and_the_data_are_looked_at(tmp_path: Path):
    path = write_preset("demo", tmp_path, ["daemon.disk_reserve_gb=0"], force=False)
    found = examined(path)
    assert [one.mark for one in found["experiment"]] == ["good"]
    assert [one.mark for one in found["state"]] == ["note"]
    (tmp_path / "demo-data" / "squad.json").unlink()
    assert [one.mark for one in examined(path)["experiment"]] == ["bad"]
