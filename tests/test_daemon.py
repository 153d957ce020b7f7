"""The daemon as a process: what it refuses, who may run, and that nothing outlives it."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from nasd.cli.searching import serve
from nasd.contract import config as config_module
from nasd.contract import formats, variables
from nasd.contract.config import Config
from nasd.contract.errors import NasdError
from nasd.contract.protocol import AttemptFolder, Outcome, Spec
from nasd.control import daemon, preflight
from nasd.launch import devices, local
from nasd.launch.launcher import wait_until
from nasd.launch.local import LocalLauncher
from nasd.record import daemon_lock
from nasd.record.folders import StateFolder
from nasd.record.lifecycle import AttemptState
from nasd.record.store import Store
from tests.conftest import (
    BACKBONE,
    BASELINE,
    ROOT,
    Clock,
    Script,
    all_succeed,
    drive,
    make_tick,
    of_tuned_parents,
    small_config,
    small_dict,
    to_toml,
)

PATIENCE = 60.0  # for what takes a moment on a busy machine


def squad(*about: str) -> str:
    """A question on each."""

    def answered(what: str) -> dict[str, Any]:
        answers = [{"text": f"The {what}", "answer_start": 0}]
        asked = {"id": what, "question": "What is blue?", "answers": answers}
        return {"context": f"The {what} is blue.", "qas": [asked]}

    articles = [{"title": what, "paragraphs": [answered(what)]} for what in about]
    return json.dumps({"data": articles})


def nasd(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "nasd", *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )


def write_config(folder: Path, **changes: Any) -> Path:
    path = folder / "config.toml"
    path.write_text(to_toml(small_dict(**changes)))
    return path


def with_data(folder: Path) -> Path:
    (folder / "corpus.txt").write_text("Some words.\n")
    (folder / "squad.json").write_text(squad("sea", "sky"))
    return folder


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def one_sentence(text: str) -> str:
    """The one line of an error; it may stand below a word on what is being done."""
    *doing, line = text.splitlines()
    assert all(before.endswith(" ...") for before in doing)
    assert line.startswith("nasd: ")
    return line


@contextmanager
def process(*command: str, **more: Any) -> Iterator[subprocess.Popen[str]]:
    """A process that does not outlive the test."""
    child = subprocess.Popen(command, text=True, **more)
    try:
        yield child
    finally:
        child.kill()
        child.wait()
        for pipe in (child.stdin, child.stdout, child.stderr):
            if pipe:
                pipe.close()


def python(code: str, *arguments: str, **more: Any) -> Any:
    more.setdefault("env", os.environ | {"PYTHONPATH": str(ROOT)})
    return process(sys.executable, "-c", code, *arguments, **more)


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


# -- refused at the start ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"population__muu": 3}, "config.toml: unknown key population.muu; did you mean mu?"),
        ({"slots__devices": ["cpu:0"]}, "stages.pretrain_head.slots: 2 slots are asked for"),
        ({"data__qa__files": ["gone.json"]}, "data.qa.files: there is no file"),
    ],
)
def test_a_bad_config_is_one_sentence_exit_code_2_and_nothing_written(tmp_path, change, words):
    write_config(with_data(tmp_path), **change)
    before = names(tmp_path)
    done = nasd("run", folder=tmp_path)
    assert done.returncode == 2
    assert words in one_sentence(done.stderr)
    assert done.stdout == ""
    assert names(tmp_path) == before


def fake_seed(width: int = 32, has_head: bool = True) -> preflight.Seed:
    backbone = type(BACKBONE)(BACKBONE.vocab_size, BACKBONE.positions, width)
    return preflight.Seed(backbone, BASELINE, has_head)


def bytes_of(text: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / "corpus.txt").write_bytes(text) and None


@pytest.mark.parametrize(
    ("change", "spoil", "seed", "words"),
    [
        (
            {},
            lambda f: (f / "corpus.txt").unlink(),
            {},
            r"data\.mlm\.corpora\[0\]\.files: .*corpus",
        ),
        ({}, bytes_of(b" \n\t"), {}, r"corpus\.txt is empty"),
        ({}, bytes_of(b"caf\xe9 noir\n"), {}, r"corpus\.txt is not UTF-8 text"),
        ({}, lambda f: (f / "squad.json").write_text("{"), {}, r"data\.qa\.files: .*squad\.json"),
        ({}, lambda f: (f / "squad.json").write_text("{}"), {}, r"data is missing"),
        ({}, None, {"width": 36}, r"search_space\.heads: 8 heads do not divide .* width 36"),
        ({"data__qa__tokens": 65}, None, {}, r"data\.qa\.tokens: 65 tokens are more than"),
        ({"search_space__heads": [2]}, None, {}, "does not hold the seed's own architecture"),
        ({"stages__pretrain_head__train": "new"}, None, {"has_head": False}, "brings no MLM head"),
        ({"experiment__state": "corpus.txt"}, None, {}, r"experiment\.state: .*cannot be made"),
        ({"slots__devices": ["cpu:0"] * 4}, None, {}, r"slots\.devices: a device is named twice"),
        (
            {"slots__devices": ["cpu:0", "cuda:0"]},
            None,
            {},
            r"slots\.devices: take either cuda devices or cpu shares",
        ),
    ],
)
def test_what_does_not_fit_together_is_named_and_nothing_is_written(
    tmp_path, monkeypatch, change, spoil, seed, words
):
    path = write_config(with_data(tmp_path), **change)
    if spoil:
        spoil(tmp_path)
    monkeypatch.setattr(preflight, "look_at_seed", lambda *_: fake_seed(**seed))
    before = names(tmp_path)
    with pytest.raises(NasdError, match=words) as caught:
        daemon.run(config_module.load(path), path)
    assert "\n" not in str(caught.value)
    assert names(tmp_path) == before


@pytest.mark.parametrize(
    ("heads", "fault", "words"),
    [
        ((), "", "has no question-answering head; let a stage"),
        (("qa",), "it tells 2 labels", "head cannot be kept, as it tells 2 labels; let a stage"),
        (("qa",), "", None),
    ],
)
def test_a_seed_that_cannot_be_scored_as_it_is_is_no_baseline_that_nothing_trains(
    tmp_path, monkeypatch, heads, fault, words
):
    data = of_tuned_parents(small_dict(stages__finetune__who="candidates"), {"narrow": 1})
    config = config_module.parse(data, "c.toml")
    with_data(tmp_path)
    found = replace(fake_seed(), heads=heads, fault=fault)
    monkeypatch.setattr(preflight, "look_at_seed", lambda *_: found)
    if words is None:
        assert preflight.check(config, tmp_path, "c.toml") is found
        return
    with pytest.raises(NasdError, match=r"c\.toml: stages: nothing trains the baseline") as caught:
        preflight.check(config, tmp_path, "c.toml")
    assert words in str(caught.value)


def test_a_gpu_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setattr(devices.gpus, "list_gpus", lambda: [{"index": 0}])
    with pytest.raises(NasdError, match=r"slots\.devices: cuda:1 is not on this machine \(cuda:0"):
        devices.found(small_config(slots__devices=["cuda:0", "cuda:1"]).slots, begun=False)


@pytest.mark.parametrize(
    ("gpus", "expected"),
    [
        ([{"index": 0}, {"index": 1}], ("cuda:0", "cuda:1")),
        ([], ("cpu:0", "cpu:1", "cpu:2")),
    ],
)
def test_auto_takes_the_gpus_or_else_a_share_of_the_cores_each(monkeypatch, gpus, expected):
    monkeypatch.setattr(devices.gpus, "list_gpus", lambda: gpus)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(7)))
    settings = small_config(slots__devices="auto", slots__threads=2).slots
    assert tuple(map(str, devices.found(settings, begun=False))) == expected


def test_a_long_line_of_text_is_not_taken_for_binary(tmp_path):
    """Each piece that is looked at ends in the middle of a character."""
    (tmp_path / "corpus.txt").write_bytes(b"x" + "ü".encode() * formats.BLOCK)
    formats.check_texts(tmp_path / "corpus.txt", "text")


# -- beginning, and going on ---------------------------------------------------------------------


@pytest.fixture
def begin_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """daemon.run without a real seed, and without serving."""
    monkeypatch.setattr(preflight, "look_at_seed", lambda *_: fake_seed())
    monkeypatch.setattr(daemon, "_serve", lambda tick, leaving, mirrors: False)


def run_in(folder: Path, fresh: bool = False, **changes: Any) -> None:
    path = write_config(with_data(folder), **changes)
    daemon.run(config_module.load(path), path, fresh)


def experiment_in(folder: Path) -> Any:
    store = Store(folder / "state" / "nasd.db")
    found = store.read().experiment
    store.close()
    return found


@pytest.mark.usefixtures("begin_only")
def test_a_first_run_begins_the_experiment_and_a_second_goes_on_with_it(tmp_path):
    run_in(tmp_path)
    first = experiment_in(tmp_path)
    assert (first.name, first.state) == ("small", "running")
    run_in(tmp_path)
    assert experiment_in(tmp_path) == first


@pytest.mark.usefixtures("begin_only")
def test_a_whole_config_with_a_budget_below_one_candidate_is_refused_unless_it_has_begun(tmp_path):
    def little() -> Path:
        path = write_config(with_data(tmp_path), experiment__budget_gpu_hours=1e-5)
        (tmp_path / "corpus.txt").write_text("Some words and some more.\n" * 100)
        (tmp_path / "squad.json").write_text(squad(*(f"sea {n}" for n in range(20))))
        return path

    path = little()
    before = names(tmp_path)
    words = r"config\.toml: experiment\.budget_gpu_hours: 1e-05 slot-hours do not pay one cand"
    with pytest.raises(NasdError, match=words):
        serve(config_module.load(path), path)
    assert names(tmp_path) == before
    run_in(tmp_path, experiment__budget_gpu_hours=10.0)
    path = little()
    serve(config_module.load(path), path)
    assert experiment_in(tmp_path).config["experiment"]["budget_gpu_hours"] == 1e-5


@pytest.mark.usefixtures("begin_only")
def test_a_run_that_was_killed_before_its_first_row_begins_on_the_next(tmp_path):
    Store(tmp_path / "state" / "nasd.db").close()
    run_in(tmp_path)
    assert experiment_in(tmp_path).name == "small"


@pytest.mark.usefixtures("begin_only")
def test_fresh_sets_the_old_experiment_aside_whole_but_for_the_cache(tmp_path):
    run_in(tmp_path)
    state = StateFolder(tmp_path / "state")
    state.cache.mkdir()
    state.attempt(1).path.mkdir(parents=True)
    run_in(tmp_path, fresh=True, population__mu=5)  # and may be another one
    assert experiment_in(tmp_path).config["population"]["mu"] == 5
    (old,) = (state.path / "old").iterdir()
    assert {path.name for path in old.iterdir()} >= {"nasd.db", "attempts"}
    assert state.cache.exists()
    assert not (old / "cache").exists()
    assert not state.attempt(1).path.exists()


@pytest.mark.usefixtures("begin_only")
@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"population__mu": 4}, "population.mu is 3 there and 4 in"),
        ({"experiment__seed": 6}, "experiment.seed is 5 there and 6"),
        ({"experiment__name": "other"}, "experiment.name is 'small' there and 'other'"),
        ({"stages__finetune__epochs": 2}, "stages.finetune.epochs is 1.0 there and 2.0 in"),
        ({"search_space__heads": [2, 4]}, "search_space.heads is [2, 4, 8] there and [2, 4] in"),
        ({"data__mlm__corpora": [{"files": ["squad.json"]}]}, "data.mlm.corpora[0].files[0] is"),
        ({"seed_model__dropout": 0.5}, "seed_model.dropout is None there and 0.5"),
    ],
)
def test_another_experiment_in_the_state_folder_is_refused_by_its_key(tmp_path, change, key):
    run_in(tmp_path)
    before = experiment_in(tmp_path)
    with pytest.raises(NasdError, match="holds another experiment") as caught:
        run_in(tmp_path, **change)
    assert key in str(caught.value)
    assert experiment_in(tmp_path) == before


@pytest.mark.usefixtures("begin_only")
@pytest.mark.parametrize(
    "change",
    [
        {"daemon__tick_seconds": 1.5},
        {"slots__devices": ["cpu:0", "cpu:1"]},
        {"experiment__generations": 7},
        {"experiment__budget_gpu_hours": 10.0},
    ],
)
def test_what_does_not_change_its_meaning_may_change_within_an_experiment(tmp_path, change):
    run_in(tmp_path)
    run_in(tmp_path, **change)
    config = config_module.load(tmp_path / "config.toml")
    assert experiment_in(tmp_path).config == config.model_dump(mode="json", by_alias=True)


def test_a_key_that_came_after_the_experiment_has_its_default_there(tmp_path):
    config = small_config()
    began = config.model_dump(mode="json", by_alias=True)
    del began["data"]["mlm"]["fixed_masks"]
    state, origin = StateFolder(tmp_path / "state"), tmp_path / "config.toml"
    assert daemon._changes(began, state, config, origin) == ""
    other = small_config(data__mlm__fixed_masks=True)
    with pytest.raises(NasdError, match=r"fixed_masks is .auto. there and True"):
        daemon._changes(began, state, other, origin)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a config and its search, which is complete."""
    folder = tmp_path_factory.mktemp("finished")
    config = config_module.load(write_config(with_data(folder)))
    tick = make_tick(StateFolder(folder / "state"), config)
    drive(tick)
    tick.store.close()
    return folder


@pytest.fixture
def complete(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "copy"))


def test_a_real_daemon_refuses_another_config_and_takes_another_tick(complete: Path):
    write_config(complete, population__mu=4)
    done = nasd("run", folder=complete)
    assert done.returncode == 2
    assert "population.mu is 3 there and 4 in config.toml" in one_sentence(done.stderr)
    write_config(complete, daemon__tick_seconds=0.25)
    done = nasd("run", folder=complete)
    assert (done.returncode, done.stderr.count("Traceback")) == (0, 0)
    assert "Pareto front" in done.stdout


# -- the lock ------------------------------------------------------------------------------------

HOLD = """
import subprocess, sys
from pathlib import Path
from nasd.record import daemon_lock
with daemon_lock.hold(Path(sys.argv[1])):
    child = subprocess.Popen(["sleep", "600"])
    print(child.pid, flush=True)
    child.wait()
"""


@contextmanager
def holder(lock: Path) -> Iterator[tuple[Any, int]]:
    """Another process that holds the lock, and a child of its own that it may leave behind."""
    with python(HOLD, str(lock), stdout=subprocess.PIPE) as child:
        left = int(child.stdout.readline())
        try:
            yield child, left
        finally:
            os.kill(left, signal.SIGKILL)


def test_a_second_daemon_is_refused_in_one_sentence(complete: Path):
    with holder(complete / "state" / "daemon.lock") as (first, _):
        done = nasd("run", folder=complete)
        assert done.returncode == 2
        sentence = one_sentence(done.stderr)
        assert f"is served by another nasd already (pid {first.pid})" in sentence


def test_the_lock_is_free_after_a_kill_even_while_children_live_on(tmp_path: Path):
    lock = tmp_path / "daemon.lock"
    with holder(lock) as (first, left):
        assert daemon_lock.held(lock)
        with pytest.raises(NasdError), daemon_lock.hold(lock):
            pass
        first.kill()
        first.wait()
        assert psutil.pid_exists(left)
        assert not daemon_lock.held(lock)
        with daemon_lock.hold(lock):
            assert daemon_lock.held(lock)
            assert lock.read_text() == f"{os.getpid()}\n"
    assert not daemon_lock.held(lock)


def test_a_lock_that_never_was_is_not_held(tmp_path: Path):
    assert not daemon_lock.held(tmp_path / "daemon.lock")
    assert list(tmp_path.iterdir()) == []


# -- serving -------------------------------------------------------------------------------------


@pytest.fixture
def signals() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def at_once(script: Script = all_succeed) -> Script:
    return lambda spec, before: (0.0, script(spec, before)[1])


def served(state: StateFolder, script: Script, config: Config | None = None) -> tuple[bool, Any]:
    tick = make_tick(state, config or small_config(daemon__tick_seconds=0.01), script)
    complete = daemon._serve(tick)
    found = tick.store.read()
    tick.store.close()
    return complete, found


@pytest.mark.usefixtures("signals")
def test_it_serves_until_the_search_is_complete(state: StateFolder):
    complete, found = served(state, at_once())
    assert complete
    assert found.experiment.state == "complete"


@pytest.mark.usefixtures("signals")
def test_it_leaves_when_the_search_halts_and_goes_on_when_started_again(state: StateFolder):
    config = small_config(daemon__tick_seconds=0.01, daemon__infrastructure_retries=0)
    complete, found = served(state, lambda spec, before: (0.0, None), config)
    assert (complete, found.experiment.state) == (False, "halted")
    assert "candidate 0 at prepare lost 1 attempts in a row" in found.experiment.reason
    complete, found = served(state, at_once())
    assert complete
    assert found.experiment.reason == ""


@pytest.mark.usefixtures("signals")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_told_to_stop_it_lets_attempts_write_their_checkpoints_first(state: StateFolder, number):
    def told(spec: Spec, before: int) -> tuple[float, Outcome | None]:
        if spec.attempt == 5:
            os.kill(os.getpid(), number)
        return (1e9 if spec.attempt >= 5 else 0.0), all_succeed(spec, before)[1]

    complete, found = served(state, told)
    assert not complete
    assert found.experiment.state == "running"
    assert found.live_attempts == ()
    assert found.attempts[4].state is AttemptState.PREEMPTED


class RunningClock(Clock):
    def __call__(self) -> float:
        self.now += 1
        return self.now


@pytest.mark.usefixtures("signals")
def test_a_turn_that_fails_is_logged_and_tried_again(state: StateFolder, caplog):
    failures = [RuntimeError("disk full"), OSError("fork")]

    def failing(spec: Spec, before: int) -> tuple[float, Outcome | None]:
        if failures:
            raise failures.pop()
        return 0.0, all_succeed(spec, before)[1]

    tick = make_tick(state, small_config(daemon__tick_seconds=0.01), failing, RunningClock())
    assert daemon._serve(tick)
    assert "a tick failed and is tried again" in caplog.text
    assert "fork" in caplog.text
    assert tick.store.read().attempts[0].state is AttemptState.LOST


# -- the leash -----------------------------------------------------------------------------------

LEASHED = """
import os, subprocess, sys
child = subprocess.Popen(
    [sys.executable, "-m", "nasd.contract.leash", str(os.getpid()), "sleep", "600"],
    start_new_session=True,
)
while open(f"/proc/{child.pid}/comm").read() != "sleep\\n":
    pass
print(child.pid, flush=True)
child.wait()
"""


def test_a_leashed_process_dies_with_its_parent_even_in_a_session_of_its_own():
    with python(LEASHED, stdout=subprocess.PIPE) as parent:
        leashed = int(parent.stdout.readline())
        assert not gone(leashed)
        parent.kill()
        parent.wait()
        assert wait_until(lambda: gone(leashed), PATIENCE)


def test_a_leash_whose_parent_died_before_it_runs_nothing(tmp_path: Path):
    done = subprocess.run(
        [sys.executable, "-m", "nasd.contract.leash", "999999999", "touch", str(tmp_path / "ran")],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        timeout=PATIENCE,
    )
    assert done.returncode == 1
    assert list(tmp_path.iterdir()) == []


IN_A_CONTAINER = """
import os, subprocess, sys
assert os.getpid() == 1
command = [sys.executable, "-m", "nasd.contract.leash", "1", "sh", "-c", "exit 7"]
sys.exit(subprocess.run(command).returncode)
"""


def test_a_daemon_that_is_process_1_of_its_container_can_start_workers():
    unshare = ("unshare", "--pid", "--fork")
    if not shutil.which("unshare") or subprocess.run([*unshare, "true"]).returncode != 0:
        pytest.skip(
            "unshare --pid is not allowed here: run as root to test a daemon that is process 1"
        )
    done = subprocess.run(
        [*unshare, sys.executable, "-c", IN_A_CONTAINER],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        timeout=PATIENCE,
    )
    assert done.returncode == 7


def test_a_leash_hands_through_the_command_and_its_exit_code():
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "nasd.contract.leash",
            str(os.getpid()),
            "sh",
            "-c",
            "echo $0; exit 7",
            "hi",
        ],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        timeout=PATIENCE,
    )
    assert (done.returncode, done.stdout) == (7, b"hi\n")


# -- the local launcher --------------------------------------------------------------------------


def note_of(pid: int) -> dict[str, Any]:
    return {
        "pid": pid,
        "started": psutil.Process(pid).create_time(),
        "boot": Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
    }


def test_a_process_is_told_from_a_later_one_with_its_number():
    launcher = LocalLauncher(1)
    with process("sleep", "600") as child:
        note = note_of(child.pid)
        assert launcher.alive(note)
        assert not launcher.alive(note | {"started": note["started"] - 1})
        assert not launcher.alive(note | {"boot": "of another boot"})
        child.kill()
        assert wait_until(lambda: not launcher.alive(note), PATIENCE)  # a zombie is not alive
        child.wait()
        assert not launcher.alive(note)


def with_token(token: str, code: str = "import time; time.sleep(600)", *arguments: str) -> Any:
    environment = os.environ | {variables.TOKEN: token}
    return python(code, *arguments, env=environment, start_new_session=True)


def carries(token: str) -> bool:
    return bool(local.carrying(token))


def test_clear_ends_all_processes_of_its_token_and_no_other():
    launcher = LocalLauncher(1)
    with with_token("mine") as one, with_token("mine") as two, with_token("other") as other:
        assert wait_until(lambda: len(local.carrying("mine")) == 2 and carries("other"), PATIENCE)
        assert launcher.clear("mine") == 2
        assert gone(one.pid)
        assert gone(two.pid)
        assert not gone(other.pid)
        assert launcher.clear("mine") == 0


ASKED = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
print("ready", flush=True)
time.sleep(600)
"""


def test_stop_asks_the_ranks_and_not_what_started_them():
    launcher = LocalLauncher(1)
    environment = os.environ | {variables.TOKEN: "mine"}
    more: dict[str, Any] = {"env": environment, "stdout": subprocess.PIPE}
    with (
        python(ASKED, "-m", "nasd.worker", **more) as rank,
        python(ASKED, "-m", "nasd.launch.ranks", **more) as starter,
    ):
        for one in (rank, starter):
            assert one.stdout.readline() == "ready\n"
        launcher.stop("mine")
        assert rank.wait(PATIENCE) == 7
        assert starter.poll() is None


def test_a_started_attempt_carries_its_token_and_slots_and_can_be_ended(tmp_path: Path):
    launcher = LocalLauncher(3)
    note = launcher.start(AttemptFolder(tmp_path), ("cuda:2", "cuda:3"), "the token")
    try:
        assert launcher.alive(note)
        other = LocalLauncher(1)  # of a daemon started later, which is not its parent
        assert other.alive(note)
        process = psutil.Process(note["pid"])
        # The leash becomes another, and in that instant a process has no environment.
        seen: list[dict[str, str]] = []

        def look() -> bool:
            seen.append(process.environ())
            return variables.TOKEN in seen[-1]

        assert wait_until(look, PATIENCE)
        environment = seen[-1]
        assert environment[variables.TOKEN] == "the token"
        assert environment["CUDA_VISIBLE_DEVICES"] == "2,3"
        assert environment["OMP_NUM_THREADS"] == "3"
    finally:
        assert launcher.clear("the token") >= 1
    assert not launcher.alive(note)
    assert not carries("the token")
    assert (tmp_path / "worker.log").exists()


def test_clear_ends_what_was_started_even_while_it_shows_no_token(tmp_path: Path, monkeypatch):
    bare = tmp_path / "bare"
    bare.write_text("#!/bin/sh\nexec env -i sleep 600\n")
    bare.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(bare))
    launcher = LocalLauncher(1)
    note = launcher.start(AttemptFolder(tmp_path), ("cpu:0",), "hidden")
    process = psutil.Process(note["pid"])
    try:
        assert wait_until(lambda: process.name() == "sleep" and not carries("hidden"), PATIENCE)
        assert launcher.clear("hidden") == 1
        assert not launcher.alive(note)
    finally:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def test_a_launcher_forgets_what_has_ended(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/true")
    launcher = LocalLauncher(1)
    note = launcher.start(AttemptFolder(tmp_path), ("cpu:0",), "short")
    assert wait_until(lambda: not launcher.alive(note), PATIENCE)
    with suppress(psutil.NoSuchProcess):
        assert psutil.Process(note["pid"]).create_time() != note["started"]
    assert launcher._children == {}


def test_two_experiments_set_aside_within_a_second_are_both_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(daemon.time, "strftime", lambda form: "20260101-000000")
    state = StateFolder(tmp_path)
    olds = []
    for content in ("first", "second", "third"):
        state.database.write_text(content)
        olds.append(daemon.set_aside(state))
    kept = [(old / state.database.name).read_text() for old in olds]
    assert kept == ["first", "second", "third"]


def test_an_experiment_that_was_killed_while_it_was_set_aside_is_set_aside_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = StateFolder(tmp_path)
    content = ("backups", "candidates", "nasd.db", "tensorboard")
    for name in content:
        (tmp_path / name).write_text(name)
    rename = Path.rename

    def killed(path: Path, target: Path) -> Path:
        if path.name == "nasd.db":
            raise KeyboardInterrupt
        return rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            daemon.set_aside(state)
    assert state.database.exists()
    daemon._finish_aside(state)
    (old,) = (tmp_path / "old").iterdir()
    assert sorted(path.name for path in old.iterdir()) == sorted(content)
    assert not state.database.exists()
    daemon._finish_aside(state)


def test_the_log_tells_each_score(state: StateFolder, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "nasd")
    tick = make_tick(state, small_config(experiment__generations=0))
    found = drive(tick)
    told = [one for one in caplog.messages if "evaluate: attempt" in one and "succeeded" in one]
    assert len(told) == 1 + len(found.survivors(0))
    for one in found.survivors(0):
        (line,) = (line for line in told if line.startswith(f"candidate {one} "))
        assert f": quality {found.quality(one):.2f}, " in line
        assert line.endswith(" % of the baseline's parameters")
