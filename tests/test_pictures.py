"""Pictures are drawn beside the turns, none is lost, and what fails is told."""

import threading
from collections.abc import Iterable

import pytest

from nasd.contract.errors import NasdError
from nasd.control.pictures import Beside


class Slow:
    """Draws when it is let; `fails` so often."""

    def __init__(self, fails: int = 0) -> None:
        self.let, self.began = threading.Event(), threading.Event()
        self.drawn: list[tuple[list[int], list[int], bool]] = []
        self._fails = fails

    def show(
        self, candidates: Iterable[int], generations: Iterable[int] = (), search: bool = False
    ) -> None:
        self.began.set()
        assert self.let.wait(10)
        if self._fails:
            self._fails -= 1
            raise NasdError("the database cannot be read")
        self.drawn.append((list(candidates), list(generations), search))


def test_nobody_waits_for_what_is_drawn_and_what_comes_meanwhile_is_drawn_in_one_go():
    slow = Slow()
    with Beside(slow) as beside:
        beside.show([3])
        assert slow.began.wait(10)
        beside.show([5, 4], [1])
        beside.show([4], search=True)
        assert slow.drawn == []
        slow.let.set()
    assert slow.drawn == [([3], [], False), ([4, 5], [1], True)]


def test_whoever_leaves_waits_for_what_is_still_to_be_drawn():
    slow = Slow()
    with Beside(slow) as beside:
        beside.show([1], [0], search=True)
        slow.let.set()
    assert slow.drawn == [([1], [0], True)]


def test_what_failed_is_raised_where_the_next_is_asked_for_and_drawn_with_it():
    slow = Slow(fails=1)
    slow.let.set()
    with Beside(slow) as beside:
        beside.show([1], [0])
        assert beside.wait(10)
        with pytest.raises(NasdError, match="cannot be read"):
            beside.show([2])
        assert beside.wait(10)
        beside.show([3])
    assert slow.drawn == [([1, 2], [0], False), ([3], [], False)]


def test_what_failed_last_is_told_when_the_daemon_leaves(caplog: pytest.LogCaptureFixture):
    slow = Slow(fails=1)
    slow.let.set()
    with Beside(slow) as beside:
        beside.show([1])
    assert "not up to date (the database cannot be read)" in caplog.text
