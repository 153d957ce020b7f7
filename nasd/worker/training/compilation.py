"""torch.compile where it pays for itself: blocks are compiled once enough training is left, and
left alone again where that gains nothing.

Compiling costs a minute or so for every architecture, and saves a share of each step. So an attempt
begins without, and what its first steps take tells what is left. What was compiled stands in

    cache/compiled

for attempts that come back, and for siblings with blocks of the same shape.
"""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
import torch.distributed as dist

from nasd.worker.model.encoder import Encoder
from nasd.worker.tasks.task import Ranks
from nasd.worker.training.progress import LONG, Progress

COST = 120.0  # seconds that compiling the blocks of an architecture may take
GAIN = 0.1  # of the time of a step that it can be expected to save
LEAST = 1.02  # so many times as fast it must be to stay
KINDS = 64  # of blocks that may differ in shape, and of their inputs
THREADS = 4  # that compile for a rank: there may be as many ranks
ROOM = 4e9  # bytes that may stay on the disk


def pays(seconds_left: float) -> bool:
    """Whether compiling now takes less time than it saves in the rest of the attempt."""
    return seconds_left * GAIN > COST


def why_not(device: torch.device, encoder: Encoder) -> str | None:
    """What stands in the way of compiling on this device; None: nothing."""
    if device.type == "cuda":
        from torch.utils._triton import has_triton

        if not has_triton():
            return "Triton is not there"
    elif shutil.which(os.environ.get("CXX", "g++")) is None:
        return "there is no C++ compiler"
    return None if len(encoder.blocks) else "there are no blocks"


def eagerly(compiled: bool) -> AbstractContextManager[object]:
    """What is called within is not compiled: evaluations have other shapes, and are few."""
    return torch.compiler.set_stance("force_eager") if compiled else nullcontext()


class Compilation:
    """Compiles a model's blocks in place once that pays, and takes it back where it gains nothing.

    forced: whatever it gains.
    """

    def __init__(self, encoder: Encoder, cache: Path, forced: bool) -> None:
        self._encoder, self._cache, self._forced = encoder, cache / "compiled", forced
        self._windows = 0  # considered since the last change
        self._eager = 0.0  # tokens per second
        self._decided = False
        self.active = False

    def consider(
        self,
        speed: float,
        seconds_left: float,
        ranks: Ranks,
        progress: Progress,
        say: Callable[[str], None],
    ) -> None:
        """Called after each window of steps; all ranks do the same.

        speed: tokens per second in the window. seconds_left: of the attempt, at that speed. The
        first window after a change is passed over, as first steps are slow.
        """
        self._windows += 1
        if self._decided or self._windows < 2:
            return
        if self.active:
            self._decided = True
            gained = speed / self._eager
            stays = _first_says(self._forced or gained >= LEAST, ranks)
            if not stays:
                torch.compiler.set_stance("force_eager")
                self.active = False
            if ranks.first:
                then = "" if stays else ", so it is taken back"
                say(f"compiled: {gained:.2f} times as fast as before{then}")
        elif _first_says(self._forced or pays(seconds_left), ranks):
            fault = _made_ready(self._cache) if ranks.first else None
            if _first_says(fault is None, ranks):  # whom the others have waited for
                if ranks.first:
                    say(f"compiling the blocks, as {seconds_left / 60:.0f} min are left")
                progress("compiling", patience=LONG)
                self._eager = speed
                self._compile()
            else:
                self._decided = True
                if ranks.first:
                    say(f"slots.compile: not compiled, as its cache cannot be written: {fault}")

    def _compile(self) -> None:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(self._cache)
        # Triton asks for it before inductor would set it; else it writes to the user's home.
        os.environ.setdefault("TRITON_CACHE_DIR", str(self._cache / "triton"))
        import torch._dynamo
        import torch._inductor.config

        # Its variable was read long ago, when the optimizer was made.
        if "TORCHINDUCTOR_COMPILE_THREADS" not in os.environ:
            torch._inductor.config.compile_threads = THREADS
        torch._dynamo.config.suppress_errors = True  # what does not compile runs as it is
        torch._dynamo.config.recompile_limit = KINDS
        for block in self._encoder.blocks:
            block.compile()
        self.active, self._windows = True, 0


def _first_says(opinion: bool, ranks: Ranks) -> bool:
    """What the first rank thinks: each has measured a little different times."""
    vote = torch.tensor([opinion], dtype=torch.uint8)
    if ranks.world > 1:
        dist.broadcast(vote, 0)
    return bool(vote)


def _made_ready(cache: Path) -> OSError | None:
    """What keeps the cache from being written to; torch itself would only raise it."""
    _make_room(cache)
    try:
        cache.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=cache).close()
    except OSError as error:
        return error
    return None


def _make_room(cache: Path) -> None:
    """Begins anew where the cache has grown too large: what is missing is compiled again."""
    with contextlib.suppress(OSError):  # another attempt may be doing the same
        if sum(path.stat().st_size for path in cache.rglob("*") if path.is_file()) > ROOM:
            shutil.rmtree(cache)
