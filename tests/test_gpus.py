"""The watch over the GPUs: the real nvidia-ml-py, in a real child, with a stub for the driver."""

import errno
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from nasd.launch import gpus
from nasd.launch.gpus import Gpu, GpuProcess, GpuWatch
from nasd.launch.launcher import wait_until
from nasd.record.folders import StateFolder
from tests.conftest import ROOT, Clock, drive, make_tick, small_config

PATIENCE = 60.0  # for what takes a moment on a busy machine
HANGS = "the driver did not answer within 20 s"

World = Callable[..., None]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a libnvidia-ml.so.1 that reads the file NVML_STUB; see nvml_stub.c."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("there is no cc or gcc to build the stub of the GPU driver with: install one")
    folder = tmp_path_factory.mktemp("nvml")
    source = ROOT / "tests" / "nvml_stub.c"
    target = folder / "libnvidia-ml.so.1"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", target, source], check=True)
    return folder


@pytest.fixture
def world(library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """Says what GPUs there are from now on, one line for each."""
    path = tmp_path / "world"
    monkeypatch.setenv("NVML_STUB", str(path))
    monkeypatch.setenv("LD_LIBRARY_PATH", str(library))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(gpus, "MOST_OF_A_CORE", 1.0)  # whatever a child costs on this machine

    def is_now(*lines: str) -> None:
        new = tmp_path / "new"
        new.write_text("".join(f"{line}\n" for line in lines))
        new.rename(path)

    return is_now


@contextmanager
def watching(*slots: str, clock: Clock | None = None) -> Iterator[GpuWatch]:
    watch = GpuWatch(slots, monotonic=clock or Clock())
    try:
        yield watch
    finally:
        watch.close()


def next_answer(watch: GpuWatch) -> Mapping[str, Gpu]:
    before = watch.look()
    assert wait_until(lambda: watch.look() is not before, PATIENCE)
    seen = watch.look()
    assert seen is not None
    return seen


def faults(seen: Mapping[str, Gpu]) -> dict[str, str]:
    return {slot: gpu.fault for slot, gpu in seen.items()}


def child_of(watch: GpuWatch) -> "subprocess.Popen[bytes]":
    assert watch._question is not None
    return watch._question._process


# -- what the driver says --------------------------------------------------------------------------


def test_a_healthy_gpu_is_told_in_full(world: World):
    world("ok name=H200 total=1000 used=300 util=37 temp=55 power=123400 proc=42:250 gproc=7:-")
    with watching("cuda:0") as watch:
        assert watch.look() is None
        processes = (GpuProcess(7, 0), GpuProcess(42, 250))
        expected = Gpu("cuda:0", "H200", "", 1000, 300, 37, 55, 123.4, processes)
        assert next_answer(watch) == {"cuda:0": expected}


def test_what_a_device_does_not_tell_is_no_fault(world: World):
    world("ok total=1000", "ok late=3")  # code 3: not supported; it shares the host's memory
    with watching("cuda:0", "cuda:1") as watch:
        assert next_answer(watch) == {
            "cuda:0": Gpu("cuda:0", "Stub", memory=1000),
            "cuda:1": Gpu("cuda:1", "Stub"),
        }


def test_a_process_with_compute_and_graphics_is_one(world: World):
    world("ok proc=42:250 proc=43:5 gproc=42:30")
    with watching("cuda:0") as watch:
        assert next_answer(watch)["cuda:0"].processes == (GpuProcess(42, 250), GpuProcess(43, 5))


def test_a_gpu_that_fails_does_not_hide_the_others(world: World):
    world("lost", "ok", "error=999", "late=10", "late=15", "ok")
    with watching(*(f"cuda:{index}" for index in range(7))) as watch:
        assert faults(next_answer(watch)) == {
            "cuda:0": "GPU is lost",
            "cuda:1": "",
            "cuda:2": "Unknown Error",
            "cuda:3": "Timeout",
            "cuda:4": "GPU is lost",
            "cuda:5": "",
            "cuda:6": "not found by the driver",
        }


def test_a_gpu_that_is_not_ours_is_not_asked(world: World):
    world("hang", "ok")
    with watching("cuda:1") as watch:
        assert faults(next_answer(watch)) == {"cuda:1": ""}


@pytest.mark.parametrize("text", ["a word in between", '{"slot": 5}', "{}", "[]", "5"])
def test_a_library_may_put_in_a_word(world: World, text: str):
    world(f"say={text}", "ok")
    with watching("cuda:0") as watch:
        assert faults(next_answer(watch)) == {"cuda:0": ""}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("init=9", "Driver Not Loaded"),
        ("init=18", "RM has detected an NVML/RM version mismatch."),
        ("exit=3", "its child ended with 3"),
        ("exit=0", "its child ended with 0"),
        ("signal=11", "its child ended with signal 11"),
    ],
)
def test_a_driver_that_cannot_be_asked_is_a_fault_of_all(world: World, line: str, words: str):
    world("ok", line)
    with watching("cuda:0", "cuda:1") as watch:
        seen = faults(next_answer(watch))
    assert seen["cuda:0"].startswith(f"the driver could not be asked: {words}")
    assert seen["cuda:1"] == seen["cuda:0"]


def test_the_last_words_of_a_child_are_told(world: World):
    world("say=no such thing", "exit=3")
    with watching("cuda:0") as watch:
        assert next_answer(watch)["cuda:0"].fault.endswith("its child ended with 3: no such thing")


def test_no_process_to_be_had_is_a_fault_and_passes(world: World, monkeypatch):
    def no_process(*_: object, **__: object) -> None:
        raise OSError(errno.EAGAIN, "Resource temporarily unavailable")

    world("ok")
    clock = Clock()
    with watching("cuda:0", clock=clock) as watch:
        with monkeypatch.context() as patch:
            patch.setattr(gpus.subprocess, "Popen", no_process)
            seen = watch.look()
        assert seen is not None
        assert seen["cuda:0"].fault.endswith("asked: Resource temporarily unavailable")
        assert watch.look() is seen  # not again at once
        clock.now += 30
        assert faults(next_answer(watch)) == {"cuda:0": ""}


# -- when it is asked ------------------------------------------------------------------------------


def test_it_is_asked_again_after_the_interval_and_not_before(world: World):
    world("ok", "ok")
    clock = Clock()
    with watching("cuda:0", "cuda:1", clock=clock) as watch:
        first = next_answer(watch)
        world("ok")
        clock.now += 29.9
        assert watch.look() is first
        assert watch._question is None
        clock.now += 0.1
        assert faults(next_answer(watch)) == {"cuda:0": "", "cuda:1": "not found by the driver"}
        world("ok", "ok")
        clock.now += 30
        assert next_answer(watch) == first


def test_a_driver_that_costs_much_is_asked_less_often(world: World, monkeypatch):
    monkeypatch.setattr(gpus, "MOST_OF_A_CORE", 1e-6)
    world("ok")
    clock = Clock()
    with watching("cuda:0", clock=clock) as watch:
        first = next_answer(watch)
        clock.now += gpus.LONGEST_SECONDS - 1
        assert watch.look() is first
        assert watch._question is None
        clock.now += 1
        assert next_answer(watch) == first


def test_an_answer_that_nobody_fetched_in_time_still_counts(world: World):
    world("ok")
    clock = Clock()
    with watching("cuda:0", clock=clock) as watch:
        watch.look()
        child_of(watch).wait(PATIENCE)
        clock.now += 3600
        seen = watch.look()
        assert seen is not None
        assert faults(seen) == {"cuda:0": ""}


# -- a driver that hangs ---------------------------------------------------------------------------


def test_a_driver_that_hangs_is_a_fault_of_all_until_it_answers_again(world: World):
    world("ok", "ok")
    clock = Clock()
    with watching("cuda:0", "cuda:1", clock=clock) as watch:
        good = next_answer(watch)
        world("hang", "ok")
        clock.now += 30
        assert watch.look() is good
        clock.now += 20
        assert watch.look() is good
        clock.now += 0.1
        seen = watch.look()
        assert seen is not None
        assert faults(seen) == {"cuda:0": HANGS, "cuda:1": HANGS}
        world("ok", "ok")
        clock.now += 30
        assert next_answer(watch) == good


def test_a_gpu_that_takes_its_time_is_waited_for_by_itself(world: World):
    world("ok", "hang")
    clock = Clock()
    with watching("cuda:0", "cuda:1", clock=clock) as watch:
        watch.look()
        question = watch._question
        assert question is not None
        assert wait_until(lambda: os.fstat(question._file).st_size > 0, PATIENCE)
        clock.now += 19
        watch.look()  # sees that the first one has answered
        clock.now += 19
        assert watch.look() is None
        clock.now += 2
        seen = watch.look()
        assert seen is not None
        assert faults(seen) == {"cuda:0": HANGS, "cuda:1": HANGS}


def test_a_child_that_says_something_now_and_then_is_not_waited_for_without_end(world: World):
    world("ok", "hang")
    clock = Clock()
    with watching("cuda:0", "cuda:1", clock=clock) as watch:
        watch.look()
        question = watch._question
        assert question is not None
        asked = clock.now
        while watch.look() is None:
            os.write(question._file, b"still at it\n")
            clock.now += 10
        assert 320 <= clock.now - asked <= 330


def test_a_child_that_cannot_be_killed_stays_the_only_one(world: World, monkeypatch):
    """As one that sleeps in the driver; it may be days."""
    world("hang")
    clock = Clock()
    with watching("cuda:0", clock=clock) as watch:
        watch.look()
        child = child_of(watch)
        with monkeypatch.context() as patch:
            patch.setattr(subprocess.Popen, "kill", lambda _: None)
            for _ in range(100):
                clock.now += 3600
                seen = watch.look()
                assert child_of(watch) is child
            assert seen is not None
            assert faults(seen) == {"cuda:0": HANGS}
            patch.setattr(gpus, "CLOSE_SECONDS", 0.01)
            with watching("cuda:0") as other:
                other.look()
                left = child_of(other)
        assert left.poll() is None  # and is not waited for at the end
        world("ok")
        for one in (left, child):
            os.kill(one.pid, signal.SIGKILL)
        left.wait(PATIENCE)
        assert faults(next_answer(watch)) == {"cuda:0": ""}


def test_close_ends_a_child_that_hangs(world: World):
    world("hang")
    with watching("cuda:0") as watch:
        watch.look()
        child = child_of(watch)
    assert child.returncode == -signal.SIGKILL


PARENT = """
from nasd.launch.gpus import GpuWatch
watch = GpuWatch(["cuda:0"])
watch.look()
print(watch._question._process.pid, flush=True)
input()
"""


def test_a_child_that_hangs_dies_with_its_parent(world: World):
    world("hang")
    command = [sys.executable, "-c", PARENT]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        # The library, and no longer the leash before it.
        mapped = Path(f"/proc/{child.pid}/maps")
        assert wait_until(lambda: "libnvidia-ml" in mapped.read_text(), PATIENCE)
        parent.kill()
    assert wait_until(lambda: gone(child), PATIENCE)


def gone(process: psutil.Process) -> bool:
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


# -- the list --------------------------------------------------------------------------------------


def test_the_list_holds_the_gpus_that_answer(world: World):
    world("ok name=H200 total=1000", "lost", "ok name=H100 total=500")
    assert gpus.list_gpus() == [
        {"index": 0, "name": "H200", "memory": 1000},
        {"index": 2, "name": "H100", "memory": 500},
    ]


@pytest.mark.parametrize("line", ["init=9", "exit=0", "signal=11"])
def test_the_list_is_empty_where_no_driver_answers(world: World, line: str):
    world("ok", line)
    assert gpus.list_gpus() == []


def test_the_list_is_empty_where_the_driver_hangs(world: World, monkeypatch):
    monkeypatch.setattr(gpus, "TIMEOUT_SECONDS", 0.0)
    world("hang")
    assert gpus.list_gpus() == []


# -- whose processes -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ours", "leased", "found"),
    [
        (True, True, False),
        (True, False, False),
        (False, True, True),
        (False, False, True),
        (None, True, False),  # it may well be ours, under another number
        (None, False, True),
    ],
)
def test_a_foreign_process_is_one_that_cannot_be_ours(ours, leased, found):
    gpu = Gpu("cuda:0", processes=(GpuProcess(1, 10 << 30), GpuProcess(2, 20 << 30)))
    answers = {1: True, 2: ours}
    expected = (GpuProcess(2, 20 << 30),) if found else ()
    assert gpus.foreign(gpu, answers.__getitem__, leased) == expected


def test_a_display_server_is_in_nobodys_way_and_an_unknown_amount_is():
    gpu = Gpu("cuda:0", processes=(GpuProcess(1, 8 << 20), GpuProcess(2, 0)))
    assert gpus.foreign(gpu, lambda pid: False, False) == (GpuProcess(2, 0),)


# -- with the tick -------------------------------------------------------------------------------


def test_the_search_leaves_a_lost_gpu_and_one_in_use_alone_and_ends_on_the_others(
    world: World, tmp_path: Path
):
    """All of it but the driver is real: library, child, watch, tick, database."""
    world("ok", "ok", "ok proc=1:9000000000", "ok")  # process 1 is somebody else's
    slots = [f"cuda:{n}" for n in range(4)]
    tick = make_tick(StateFolder(tmp_path / "state"), small_config(slots__devices=slots))
    clock = tick.clock
    assert isinstance(clock, Clock)
    with watching(*slots, clock=clock) as watch:
        tick.health = watch.look

        def turn_with_news() -> None:
            clock.now += 31
            next_answer(watch)
            tick()

        turn_with_news()
        assert {one.kind for one in tick.store.read().quarantine.values()} == {"foreign"}
        world("ok", "lost", "ok", "ok")
        while "cuda:1" not in tick.store.read().quarantine:
            turn_with_news()
        found = tick.store.read()
        assert [(s, one.kind) for s, one in found.quarantine.items()] == [("cuda:1", "lost")]
        assert found.quarantine["cuda:1"].reason == "GPU is lost"
        last = found.attempts[-1].id
        tick.health = dict  # no more news: this clock runs faster than any driver answers
        assert drive(tick).experiment.state == "complete"
    used = {slot for one in tick.store.read().attempts if one.id > last for slot in one.slots}
    assert used == {"cuda:0", "cuda:2", "cuda:3"}
