"""The lock on a state folder, where the file system does not keep it. Two real processes at one
lock: see test_daemon."""

import errno
import fcntl
import os
from pathlib import Path

import pytest

from nasd.contract.errors import NasdError
from nasd.record import daemon_lock


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EIO])
def test_a_file_system_without_locks_is_refused_in_one_sentence(tmp_path, monkeypatch, number):
    def flock(descriptor: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    refused(tmp_path / "daemon.lock", os.strerror(number))
    assert not daemon_lock.held(tmp_path / "daemon.lock")  # nobody got it


def test_a_file_system_that_grants_a_lock_twice_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", lambda descriptor, operation: None)
    refused(tmp_path / "daemon.lock", "it grants the same lock twice")


def refused(lock: Path, why: str) -> None:
    entered = False
    with pytest.raises(NasdError) as caught, daemon_lock.hold(lock):
        entered = True
    assert not entered
    assert str(caught.value) == (
        f"the file system of {lock.parent} does not lock files ({why}), so two daemons could serve"
        " it at once: choose an experiment.state on a local disk"
    )


def test_a_refusal_leaves_no_descriptor_open(tmp_path, monkeypatch):
    before = os.listdir("/proc/self/fd")
    monkeypatch.setattr(fcntl, "flock", lambda descriptor, operation: None)
    with pytest.raises(NasdError), daemon_lock.hold(tmp_path / "daemon.lock"):
        pass
    assert os.listdir("/proc/self/fd") == before


def test_the_second_look_takes_nothing_from_the_lock(tmp_path: Path):
    """As a record lock would be lost, with the first descriptor of its file that is closed."""
    lock = tmp_path / "daemon.lock"
    with daemon_lock.hold(lock):
        assert daemon_lock.held(lock)
        with pytest.raises(NasdError, match=f"another nasd already .pid {os.getpid()}"):
            daemon_lock.hold(lock).__enter__()
        assert daemon_lock.held(lock)
    assert not daemon_lock.held(lock)


def test_the_lock_can_be_had_again_and_names_its_holder(tmp_path: Path):
    lock = tmp_path / "daemon.lock"
    lock.write_text("99999999\n")  # of one that is gone
    for _ in range(2):
        with daemon_lock.hold(lock):
            assert lock.read_text() == f"{os.getpid()}\n"


def test_a_look_at_the_lock_keeps_no_daemon_out(tmp_path, monkeypatch):
    """`held` takes it for an instant, and just then a daemon comes up."""
    lock = tmp_path / "daemon.lock"
    flock, refusals = fcntl.flock, iter([BlockingIOError(errno.EAGAIN, "taken")])

    def taken_once(descriptor: int, operation: int) -> None:
        for refusal in refusals:
            raise refusal
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", taken_once)
    with daemon_lock.hold(lock):
        assert daemon_lock.held(lock)
