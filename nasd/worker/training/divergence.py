"""When training has gone wrong for good (thesis 6.2: two models with exploding gradients)."""

import math
from collections import deque
from statistics import median

WINDOW = 20
EXPLODED = 100.0


class Diverged(Exception):
    """The candidate's own fault: training went wrong for good."""


class DivergenceMonitor:
    """Looks at each step's loss and gradient norm (before clipping).

    Diverged is: a loss or norm that is not finite; or exploding gradients, that is the median
    norm of the last `WINDOW` steps above `EXPLODED` times the least such median seen so far while
    the loss stands above where it began. One wild batch is neither.
    """

    def __init__(self) -> None:
        self._norms: deque[float] = deque(maxlen=WINDOW)
        self._losses: deque[float] = deque(maxlen=WINDOW)
        self._least = math.inf
        self._first_loss: float | None = None

    def look(self, step: int, loss: float, norm: float) -> str | None:
        """The reason to stop, or None."""
        for name, value in (("loss", loss), ("gradient norm", norm)):
            if not math.isfinite(value):
                return f"the {name} is {value} at step {step}"
        self._norms.append(norm)
        self._losses.append(loss)
        if len(self._norms) < WINDOW:
            return None
        level, height = median(self._norms), median(self._losses)
        if self._first_loss is None:
            self._first_loss = height
        self._least = min(self._least, level)
        if level > EXPLODED * max(self._least, 1e-6) and height > self._first_loss:
            return (
                f"exploding gradients: the median norm of the last {WINDOW} steps is {level:.3g} at"
                f" step {step}, it was {self._least:.3g}"
            )
        return None

    def state(self) -> dict[str, object]:
        return {
            "norms": list(self._norms),
            "losses": list(self._losses),
            "least": None if math.isinf(self._least) else self._least,
            "first_loss": self._first_loss,
        }

    def restore(self, state: dict[str, object]) -> None:
        self._norms.extend(state["norms"])  # type: ignore[arg-type]
        self._losses.extend(state["losses"])  # type: ignore[arg-type]
        least, first = state["least"], state["first_loss"]
        self._least = math.inf if least is None else float(least)  # type: ignore[arg-type]
        self._first_loss = None if first is None else float(first)  # type: ignore[arg-type]
