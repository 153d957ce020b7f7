"""Divergence is told from a single wild batch."""

import math

import pytest

from nasd.worker.training.divergence import WINDOW, DivergenceMonitor


def feed(monitor: DivergenceMonitor, count: int, loss: float, norm: float) -> str | None:
    for step in range(count):
        if (reason := monitor.look(step, loss, norm)) is not None:
            return reason
    return None


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("which", ["loss", "gradient norm"])
def test_a_value_that_is_not_finite_ends_it_at_once(value: float, which: str) -> None:
    loss, norm = (value, 1.0) if which == "loss" else (1.0, value)
    reason = DivergenceMonitor().look(7, loss, norm)
    assert reason is not None
    assert which in reason
    assert "step 7" in reason


def test_exploding_gradients_with_a_rising_loss_end_it() -> None:
    monitor = DivergenceMonitor()
    assert feed(monitor, 3 * WINDOW, loss=3.0, norm=1.0) is None
    assert "exploding" in (feed(monitor, 3 * WINDOW, loss=9.0, norm=1e4) or "")


@pytest.mark.parametrize(
    ("loss", "norm", "why"),
    [(2.0, 1e4, "the loss still falls"), (9.0, 50.0, "the gradients stay in bounds")],
)
def test_one_sign_alone_does_not(loss: float, norm: float, why: str) -> None:
    monitor = DivergenceMonitor()
    feed(monitor, 3 * WINDOW, loss=3.0, norm=1.0)
    assert feed(monitor, 3 * WINDOW, loss, norm) is None, why


def test_one_wild_batch_does_not() -> None:
    monitor = DivergenceMonitor()
    feed(monitor, 3 * WINDOW, loss=3.0, norm=1.0)
    assert monitor.look(1, 50.0, 1e6) is None
    assert feed(monitor, 3 * WINDOW, loss=3.0, norm=1.0) is None


def test_its_memory_survives_a_checkpoint() -> None:
    import json

    one = DivergenceMonitor()
    feed(one, 3 * WINDOW, loss=3.0, norm=1.0)
    other = DivergenceMonitor()
    other.restore(json.loads(json.dumps(one.state())))
    assert other.state() == one.state()
    assert feed(one, WINDOW, 9.0, 1e4) == feed(other, WINDOW, 9.0, 1e4)
