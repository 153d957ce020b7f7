"""What the devices of the slots do: real processes, and the stub for the driver."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from nasd.launch.gpus import GpuProcess
from nasd.launch.launcher import wait_until
from nasd.record.lifecycle import AttemptState
from nasd.record.state import Attempt
from nasd.views.status import devices
from nasd.views.status.devices import Device, Devices, Question
from tests.test_gpus import World, library, world

__all__ = ["library", "world"]  # fixtures

BUSY = "while True: pass"
PARENT = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {BUSY!r}])"


@contextmanager
def running(code: str) -> Iterator[psutil.Process]:
    with subprocess.Popen([sys.executable, "-c", code]) as child:
        process = psutil.Process(child.pid)
        try:
            yield process
        finally:
            for one in (*process.children(recursive=True), process):
                one.kill()


def attempt_of(process: psutil.Process, *slots: str, number: int = 1) -> Attempt:
    note = {"pid": process.pid, "started": process.create_time(), "boot": ""}
    return Attempt(
        *(number, 1, "pretrain_0", 1, AttemptState.RUNNING, slots, "token", note, "", ""),
        started_at=0.0,
        ended_at=None,
        reached=0,
    )


def test_a_cpu_share_is_that_of_all_processes_of_its_attempt():
    with running(PARENT) as process:
        assert wait_until(lambda: process.children(), 60)
        (child,) = process.children()
        assert wait_until(lambda: child.cpu_times().user > 0.2, 60)
        attempt = attempt_of(process, "cpu:0", "cpu:1")
        question = Question(("cpu:0", "cpu:1", "cpu:2"), (attempt,))
        found = Devices().once(question)
    one = found["cpu:0"]
    assert one.use is not None and 0 < one.use <= 100
    assert one.memory is not None and 1e6 < one.memory < 1e9
    assert found["cpu:1"] == one
    assert found["cpu:2"] == Device(use=0.0)


def test_of_an_attempt_that_is_gone_nothing_is_known():
    with running(BUSY) as process:
        attempt = attempt_of(process, "cpu:0")
    assert Devices().once(Question(("cpu:0",), (attempt,))) == {"cpu:0": Device()}


def test_a_process_that_took_over_the_number_is_not_taken_for_the_attempt():
    own = psutil.Process(os.getpid())
    attempt = attempt_of(own, "cpu:0")
    assert attempt.process is not None
    note = {**attempt.process, "started": own.create_time() - 100}
    other = Attempt(**{n: getattr(attempt, n) for n in attempt.__slots__} | {"process": note})
    assert Devices().once(Question(("cpu:0",), (other,))) == {"cpu:0": Device()}


def test_a_gpu_shows_what_the_driver_says_and_who_else_is_on_it(
    world: World, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(devices, "PATIENCE_SECONDS", 60.0)
    with running("import time; time.sleep(1000)") as ours, running("input()") as other:
        big = 3 << 30
        world(
            f"ok total={40 << 30} used={big} util=97 temp=64 proc={ours.pid}:{big}",
            f"ok total={40 << 30} used={big} util=12 temp=50 proc={other.pid}:{big}",
            "lost",
        )
        question = Question(("cuda:0", "cuda:1", "cuda:2"), (attempt_of(ours, "cuda:0"),))
        found = Devices().once(question)
        assert found == {
            "cuda:0": Device(97, big, 40 << 30, 64),
            "cuda:1": Device(12, big, 40 << 30, 50, (GpuProcess(other.pid, big),)),
            "cuda:2": Device(fault="GPU is lost"),
        }


def test_a_driver_that_hangs_keeps_nobody_waiting(world: World, monkeypatch: pytest.MonkeyPatch):
    world("hang")
    monkeypatch.setattr(devices, "PATIENCE_SECONDS", 0.2)
    question = Question(("cuda:0",))
    with Devices().sampled() as sampled:
        for _ in range(100):
            assert sampled.look(question) == {}
    assert Devices().once(question) == {}


def test_where_there_is_no_driver_nothing_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    monkeypatch.setattr(devices, "PATIENCE_SECONDS", 60.0)
    assert Devices().once(Question(("cuda:0",))) == {"cuda:0": Device()}
