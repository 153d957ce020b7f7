"""What the doctor finds, and that it finds what is wrong."""

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from typer.testing import CliRunner

from nasd.cli import app
from nasd.contract.errors import NasdError
from nasd.control import backups, retention
from nasd.presets import write_preset
from nasd.record import daemon_lock
from nasd.record.folders import StateFolder
from nasd.record.lifecycle import QuarantineKind
from nasd.record.store import Store
from nasd.views import doctor
from nasd.views.doctor import Finding, machine, search, service, sources
from nasd.views.doctor.case import Case
from nasd.worker import devices
from tests import test_gpus, test_service
from tests.conftest import (
    BACKBONE,
    BASELINE,
    ROOT,
    begin,
    open_quickly,
    small_config,
    small_dict,
    to_toml,
)
from tests.damage import read_only

STAGE_SLOTS = [
    f"stages__{name}__slots" for name in ("pretrain_head", "pretrain_0", "pretrain_1", "finetune")
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A config whose experiment has begun."""
    found = tmp_path / "config.toml"
    found.write_text(to_toml(small_dict(daemon__disk_reserve_gb=0)))
    (tmp_path / "seed").mkdir()
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
    assert "bad" not in {one.mark for one in findings}
    assert doctor.ready(findings)
    assert doctor.verdict(findings).startswith("ready")


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
    store.quarantine("cpu:1", QuarantineKind.LOST, "GPU is lost", 0.0)
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
        "draining by anna: a new driver: `nasd resume` goes on",
    )


def test_a_state_folder_that_is_served_is_fine(path: Path):
    with daemon_lock.hold(path.parent / "state" / "daemon.lock"):
        assert "a daemon serves" in examined(path)["state"][0].text


def test_a_state_folder_that_is_read_only_is_bad_and_the_rest_of_it_is_looked_at(path: Path):
    with read_only(path.parent / "state"):
        found = examined(path)
    assert found["state"][0].mark == "bad"
    assert "make it writable" in found["state"][0].text
    assert [one.mark for one in found["database"]] == ["good"]


@pytest.mark.parametrize(("mode", "told"), [(0o755, True), (0o700, False)])
def test_a_state_folder_that_others_may_enter_is_told(tmp_path: Path, mode: int, told: bool):
    tmp_path.chmod(mode)
    case = Case(tmp_path / "config.toml", small_config(experiment__state="."))
    assert ["look into" in one.text for one in search.others(case)] == ([True] if told else [])


def test_a_bad_config_is_one_finding(tmp_path: Path):
    path = tmp_path / "config.toml"
    path.write_text(to_toml(small_dict(population__mu=0)))
    (one,) = doctor.examine(path)
    assert (one.about, one.mark) == ("config", "bad")
    assert "population.mu" in one.text


def test_the_command_ends_with_a_verdict_and_says_by_its_exit_code_whether_it_is_good(path: Path):
    done = CliRunner().invoke(app, ["doctor", "--config", str(path)])
    assert done.exit_code == 0
    assert done.stdout.splitlines()[-1].startswith("ready")
    path.write_text(path.read_text().replace("disk_reserve_gb = 0", "disk_reserve_gb = 1e9"))
    done = CliRunner().invoke(app, ["doctor", "--config", str(path)])
    assert done.exit_code == 1
    assert done.stdout.splitlines()[-1].startswith("not ready: ")


def test_before_the_first_run_the_seed_and_the_data_are_looked_at(tmp_path: Path):
    path = write_preset("demo-thesis", tmp_path, ["daemon.disk_reserve_gb=0"], force=False)
    found = examined(path)
    assert [one.mark for one in found["seed"]] == ["good"]
    assert [one.mark for one in found["state"]] == ["note"]
    (tmp_path / "demo-data" / "squad.json").unlink()
    assert [one.mark for one in examined(path)["seed"]] == ["bad"]


@pytest.mark.parametrize(("dropout", "told"), [(None, False), (0.1, True), (0.0, False)])
def test_dropout_in_the_attention_is_told_where_slots_are_cpus(
    tmp_path: Path, dropout: float | None, told: bool
):
    changes = [] if dropout is None else [f"seed_model.dropout={dropout}"]
    changes += ["daemon.disk_reserve_gb=0"]
    path = write_preset("demo-thesis", tmp_path, changes, force=False)
    texts = [one.text for one in examined(path)["seed"] if one.mark == "note"]
    assert [text.startswith("attention with a dropout of 0.1 is not fused") for text in texts] == (
        [True] if told else []
    )


def test_it_is_told_as_json_as_well(path: Path):
    done = CliRunner().invoke(app, ["doctor", "--json", "--config", str(path)])
    data = json.loads(done.stdout)
    assert data["ready"] and data["verdict"].startswith("ready")
    assert {tuple(one) for one in data["findings"]} == {("about", "mark", "text")}
    assert {one["about"] for one in data["findings"]} >= {"config", "slots", "database", "disk"}


def test_the_verdict_says_what_to_do_first():
    good, note = Finding("slots", "good", "2"), Finding("clock", "note", "runs ahead")
    bad = [Finding("disk", "bad", "is full: make room"), Finding("seed", "bad", "is gone")]
    assert doctor.verdict([good]) == "ready"
    assert doctor.verdict([good, note]) == "ready; worth a look, but in nobody's way: clock"
    assert doctor.verdict([note, *bad]) == (
        "not ready: 2 things have to be mended, first disk: is full: make room"
    )
    assert doctor.verdict(bad[1:]) == "not ready: mend seed: is gone"


# -- what the search starts from -----------------------------------------------------------------


def case_of(folder: Path, **changes: Any) -> Case:
    return Case(folder / "config.toml", small_config(**changes))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[dict[str, int]]:
    """A hub of our own: from "models/NAME" or "datasets/NAME" to the status of its answer."""
    known: dict[str, int] = {}

    class Hub(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = self.path.removeprefix("/api/").partition("/revision/")[0]
            status = known.get(name, 404)
            self.send_response(status)
            codes = {404: "RepoNotFound", 403: "GatedRepo"}
            self.send_header("X-Error-Code", codes.get(status, ""))
            self.end_headers()
            if status == 200:
                self.wfile.write(json.dumps({"id": name.partition("/")[2]}).encode())

        def log_message(self, *arguments: object) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Hub)
    Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    yield known
    server.shutdown()
    server.server_close()


def test_without_names_of_the_hub_nobody_asks_it(tmp_path: Path):
    (tmp_path / "seed").mkdir()
    assert list(sources.hub(case_of(tmp_path))) == []


def test_a_seed_below_an_unknown_users_home_is_told_in_one_sentence(tmp_path: Path):
    case = case_of(tmp_path, seed_model__source="~nobody-of-that-name/seed")
    with pytest.raises(NasdError, match=r"^seed_model\.source: there is no user of the name"):
        list(sources.hub(case))  # which doctor shows as a finding


def test_what_the_hub_has_is_well(tmp_path: Path, hub: dict[str, int]):
    hub["models/some/seed"] = 200
    (found,) = sources.hub(case_of(tmp_path, seed_model__source="some/seed"))
    assert (found.mark, found.text) == ("good", "has some/seed")


@pytest.mark.parametrize(
    ("status", "words"),
    [(404, "is not on the hub, or private"), (403, "is gated: accept its terms")],
)
def test_what_the_hub_does_not_give_is_told_with_what_to_do(tmp_path, hub, status, words):
    hub["models/some/seed"] = status
    case = case_of(tmp_path, seed_model__source="some/seed")
    (found,) = sources.hub(case)
    assert found.mark == "bad"
    assert found.text.startswith("seed_model.source: the model some/seed ")
    assert words in found.text
    assert case.sources_missing
    assert list(sources.seed(case)) == []  # it would only ask the hub again, and wait


def test_a_hub_out_of_reach_is_told_once_with_ways_around_it(tmp_path, hub, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    case = case_of(tmp_path, data__qa={"hub": "some/questions", "tokens": 48, "stride": 16})
    (tmp_path / "seed").mkdir()
    (found,) = sources.hub(case)
    assert found.mark == "bad"
    assert found.text.startswith("data.qa.hub: the data set some/questions is not cached, and http")
    assert "HF_ENDPOINT" in found.text


def test_what_is_cached_needs_no_hub(tmp_path, hub):
    snapshot = tmp_path / "hub" / "models--some--seed" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (found,) = sources.hub(case_of(tmp_path, seed_model__source="some/seed"))
    assert found.text == "not needed: there is a local cache of some/seed"
    prepared = case_of(tmp_path, seed_model__source="other/seed")
    prepared.prepared = {"mlm_cache": "m", "qa_cache": "q"}  # the hub has given all it had to
    assert list(sources.hub(prepared)) == []


def test_prepared_data_that_is_gone_is_missed(tmp_path: Path):
    case = case_of(tmp_path)
    for name in ("mlm", "qa"):
        (tmp_path / name).mkdir()
    case.prepared = {"mlm_cache": str(tmp_path / "mlm"), "qa_cache": str(tmp_path / "qa")}
    case.state.result(0, "prepare").mkdir(parents=True)
    assert [one.mark for one in sources.prepared(case)] == ["good"]
    (tmp_path / "mlm").rmdir()
    (found,) = sources.prepared(case)
    assert found.mark == "bad" and f"{tmp_path / 'mlm'}, made when" in found.text


# -- the machine ---------------------------------------------------------------------------------

library, world = test_gpus.library, test_gpus.world


def test_gpus_are_named_with_their_driver_and_whether_they_stay_awake(tmp_path, world):
    world("ok name=A100 total=42000000000 persist=1", "ok name=A100 persist=0", "ok")
    case = case_of(tmp_path, slots__devices=["cuda:0", "cuda:1"])
    assert [one.text for one in machine.slots(case)] == [
        "cuda:0: A100, 42 GB",
        "cuda:1: A100, 86 GB",
    ]
    version, asleep = machine.driver(case)
    assert version.text == "NVIDIA 999.1, for CUDA up to 13.2"
    assert asleep.mark == "note"
    assert "persistence mode is off on cuda:1," in asleep.text
    assert asleep.text.endswith("sudo nvidia-smi -pm 1")


def test_without_gpus_no_driver_is_asked(tmp_path: Path):
    case = case_of(tmp_path)
    assert [one.text for one in machine.slots(case)] == ["4 CPU shares of 1 core each"]
    assert [*machine.driver(case), *machine.torch(case), *machine.precision(case)] == []


def test_torch_is_tried_by_a_child_but_not_beside_a_daemon(tmp_path, world):
    world("ok")
    case = case_of(tmp_path, slots__devices=["cuda:0"], **dict.fromkeys(STAGE_SLOTS, 1))
    assert [one.mark for one in machine.slots(case)] == ["good"]
    case.state.path.mkdir()
    with daemon_lock.hold(case.state.lock):
        (found,) = machine.torch(case)
        assert found.text.startswith("not tried")
    # The stub is no GPU, so torch cannot compute on it, whatever it is built for.
    with suppress(NasdError):
        assert [one.mark for one in machine.torch(case)] == ["bad"]


def test_a_processor_that_would_only_emulate_the_precision_is_told(tmp_path: Path):
    case = case_of(tmp_path, slots__precision="bfloat16")
    [*machine.slots(case)]
    told = [(one.mark, one.text) for one in machine.precision(case)]
    assert (told == []) is devices.has_bfloat16(torch.device("cpu"))
    assert all(mark == "note" and "in float32" in text for mark, text in told)


@pytest.mark.parametrize("native", [True, False])
def test_the_child_names_the_slots_that_lack_the_precision(monkeypatch, native: bool):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "amx_bf16": native})
    asked = ["cpu:0", "cpu:1"]
    assert devices._answer(asked, "bfloat16")["emulated"] == ([] if native else asked)
    assert devices._answer(asked, "float32")["emulated"] == []


def test_too_many_threads_for_the_cores_are_worth_a_note(tmp_path: Path):
    case = case_of(tmp_path, slots__threads=1000)
    case.devices = ["cpu:0"]
    (found,) = machine.cores(case)
    assert found.mark == "note" and "ask for 1000 cores" in found.text
    case = case_of(tmp_path)
    case.devices = ["cpu:0"]
    assert [one.mark for one in machine.cores(case)] == ["good"]


@pytest.mark.parametrize(
    ("devices", "gpu", "width", "mark"),
    [
        (["cpu:0"], None, 32, "good"),
        (["cpu:0"], None, 1 << 16, "note"),
        (["cuda:0"], 80e9, 768, "good"),
        (["cuda:0"], 1e9, 1 << 14, "bad"),
    ],
)
def test_memory_is_set_against_what_the_seed_takes(tmp_path, devices, gpu, width, mark):
    case = case_of(tmp_path)
    case.devices, case.backbone = devices, replace(BACKBONE, width=width)
    case.baseline = BASELINE
    if gpu:
        case.gpu_memory = {"cuda:0": int(gpu)}
    assert next(iter(machine.memory(case))).mark == mark


def test_programs_for_every_length_of_question_count_on_a_cpu_in_bfloat16(tmp_path: Path):
    def gigabytes(precision: str, devices: list[str]) -> float:
        case = case_of(tmp_path, slots__precision=precision)
        case.devices, case.backbone, case.baseline = devices, BACKBONE, BASELINE
        (found,) = machine.memory(case)
        return float(found.text.split(" about ")[1].split()[0])

    assert gigabytes("float32", ["cpu:0"]) < 1 < gigabytes("bfloat16", ["cpu:0"])
    assert gigabytes("bfloat16", ["cuda:0"]) == gigabytes("float32", ["cuda:0"])


def test_a_clock_behind_the_database_is_bad(tmp_path: Path):
    case = case_of(tmp_path)
    case.newest_event = time.time() + 7200
    (found,) = machine.clock(case)
    assert found.mark == "bad"
    assert found.text.startswith(("it is 1 h 59 min behind", "it is 2 h 00 min behind"))
    case.newest_event = time.time() - 7200
    assert "bad" not in [one.mark for one in machine.clock(case)]


def test_tensorboard_starts_here(tmp_path: Path):
    assert [one.mark for one in machine.tensorboard(case_of(tmp_path))] == ["good"]


# -- the service ---------------------------------------------------------------------------------


@pytest.fixture
def installed(tmp_path: Path) -> tuple[Case, Path]:
    """A config, and the units that bin/install-service writes for it, enabled."""
    place = tmp_path / "my search 50%"
    place.mkdir()
    (place / "config.toml").write_text(to_toml(small_dict()))
    units = tmp_path / "units"
    (units / "multi-user.target.wants").mkdir(parents=True)
    done = test_service.install(units, "--config", str(place / "config.toml"), "--port", "7007")
    assert done.returncode == 0
    (units / "multi-user.target.wants" / "nasd.service").symlink_to(units / "nasd.service")
    return Case(place / "config.toml", small_config()), units


def service_said(case: Case, units: Path) -> tuple[str, str]:
    (found,) = service.service(case, units)
    return found.mark, found.text


def test_a_service_just_installed_is_up_to_date(installed):
    assert service_said(*installed) == (
        "good",
        "installed, enabled, and up to date with this checkout",
    )


def test_a_service_that_is_not_enabled_is_worth_a_note(installed):
    case, units = installed
    (units / "multi-user.target.wants" / "nasd.service").unlink()
    mark, text = service_said(case, units)
    assert mark == "note" and "systemctl enable nasd" in text


@pytest.mark.parametrize("unit", ["nasd.service", "nasd-tensorboard.service"])
def test_a_unit_that_would_be_written_otherwise_today_is_worth_a_note(installed, unit):
    case, units = installed
    text = (units / unit).read_text().replace("LimitCORE=0", "LimitCORE=1")
    (units / unit).write_text(text)
    mark, said = service_said(case, units)
    assert mark == "note"
    assert said.startswith(f"{unit} is not what bin/install-service writes today: sudo bin/install")


def test_a_service_of_another_config_or_checkout_is_told_apart(installed, tmp_path):
    case, units = installed
    other = Case(tmp_path / "other.toml", case.config)
    assert "nasd.service serves another config, " in service_said(other, units)[1]
    text = (units / "nasd.service").read_text()
    (units / "nasd.service").write_text(text.replace(f"={ROOT}\n", "=/elsewhere\n"))
    assert "nasd.service is of the checkout /elsewhere" in service_said(case, units)[1]


def test_no_service_is_bad_for_nobody(tmp_path: Path):
    assert service_said(case_of(tmp_path), tmp_path)[0] in ("good", "note")
