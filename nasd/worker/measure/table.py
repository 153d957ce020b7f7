"""The latency table of a search space: each kind of module measured once, and the sum fitted to a
few whole models (see nasd.contract.latency)."""

import hashlib
import json
import platform
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nasd.contract import latency
from nasd.contract.config import Measure, SearchSpace
from nasd.contract.errors import NasdError
from nasd.contract.genotype import FeedForward, Genotype
from nasd.contract.latency import Table
from nasd.contract.protocol import write_atomically
from nasd.worker.measure.engines import ENGINES, Call
from nasd.worker.measure.timing import WITHIN, Timing, by_turns, clock_of
from nasd.worker.model.architecture import Architecture, BlockShape, FeedForwardShape
from nasd.worker.model.attention import Branch
from nasd.worker.model.embeddings import Embeddings
from nasd.worker.model.encoder import Block
from nasd.worker.model.layers import Depthwise
from nasd.worker.model.phenotype import QuestionAnswering, initialise
from nasd.worker.training.progress import LONG, Progress

MODELS = 5  # whole ones, to which the sum is fitted
SECONDS = 240.0  # of measuring, at most
# A part is measured as a row of copies with weights of their own, as in a model: one alone would
# find its weights in the cache.
ROW_BYTES, SHORTEST, LONGEST = 8 << 20, 2, 8
NOTHING = "nothing"
LATER = ("convolutions", "branches", "remaining_heads")  # of a space


class Row(nn.Module):
    """Some layers of each block, one behind the other: [b, l, w] to [b, l, w]."""

    def __init__(self, blocks: Sequence[Block], first: int, last: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.layers = (first, last)

    def forward(self, states: Tensor) -> Tensor:
        for block in self.blocks:
            states = block(states, None, None, *self.layers)
        return states


class Chain(nn.Module):
    """Some modules, one behind the other: [b, l, w] to [b, l, w]."""

    def __init__(self, pieces: Sequence[nn.Module]) -> None:
        super().__init__()
        self.pieces = nn.ModuleList(pieces)

    def forward(self, states: Tensor) -> Tensor:
        for piece in self.pieces:
            states = piece(states)
        return states


class Convolved(nn.Module):
    """What queries, keys and values of an attention go through, or the branch beside it, as of a
    text with a mask: [b, l, w] to [b, l, w]."""

    def __init__(self, parts: Sequence[Depthwise | Branch]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, states: Tensor) -> Tensor:
        owners = torch.zeros_like(states[..., 0], dtype=torch.long)
        total = states
        for part in self.parts:
            more = (owners, None) if isinstance(part, Branch) else (owners,)
            total = total + part(states, *more)
        return total


class Nothing(nn.Module):
    """What a call takes by itself: [b, l, w] to [b, l, w]."""

    def forward(self, states: Tensor) -> Tensor:
        return states + 1.0


def device_name(device: str) -> str:
    """As people know it. device: "cuda" or "cpu"."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def about(measure: Measure) -> dict[str, Any]:
    """What a measurement was made on, and how: who compares two, compares these."""
    engine = ENGINES[measure.engine]
    return {
        "name": device_name(measure.device),
        "software": engine.version(),
        "clock": clock_of(measure.device, measure.threads)[1],
        **measure.model_dump(mode="json"),
    }


def check(measure: Measure) -> None:
    """Raises NasdError where it cannot be measured here."""
    if reason := ENGINES[measure.engine].missing(measure):
        raise NasdError(reason)


def known(
    arch: Architecture,
    space: SearchSpace,
    measure: Measure,
    cache: Path,
    progress: Progress,
    again: bool = False,
) -> Table:
    """The table as it stands in the cache, or is made now. again: made in any case."""
    check(measure)
    told = {
        **about(measure),
        # Only where there are some, so that tables from before there were such still count.
        "space": {key: value for key, value in space if value or key not in LATER},
        "backbone": [arch.positions, arch.width],
        **({} if arch.window is None else {"window": arch.window}),
    }
    key = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]
    path = cache / f"latency-{key}.json"
    if path.exists() and not again:
        try:
            return Table.from_json(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):  # a damaged one is made again
            print(f"{path} is damaged; it is made again", flush=True)
    table = make(arch, space, measure, progress)
    cache.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(table.to_json(), indent=1).encode())
    return table


def make(arch: Architecture, space: SearchSpace, measure: Measure, progress: Progress) -> Table:
    """Measures each part of the space, and some whole models by turns with them."""
    rng = random.Random(0)
    models = {f"model {index}": latency.drawn(space, rng) for index in range(MODELS)}
    with torch.random.fork_rng():
        torch.manual_seed(0)  # weights are drawn as they come: how long they take is all one
        calls, copies = _parts(arch, space, measure, progress)
        for name, genotype in models.items():
            calls[name] = whole(genotype, arch, measure)
            progress("measuring", patience=LONG)
    timings = measured(calls, measure, progress)
    nothing = timings.pop(NOTHING).median
    parts = {
        name: max(0.0, timing.median - nothing) / copies[name]
        for name, timing in timings.items()
        if name not in models
    }
    fewest = latency.fewest(space)
    plain = Table(parts, nothing, 1.0, {}, {}, fewest)
    overhead, scale = latency.fitted(
        [plain.total(one) for one in models.values()], [timings[name].median for name in models]
    )
    spreads = [one.spread for one in timings.values()]
    return Table(
        parts=parts,
        overhead=overhead,
        scale=scale,
        about={**about(measure), "at": time.time(), "spread": sorted(spreads)[len(spreads) // 2]},
        unsure={n: one.error for n, one in timings.items() if one.error > WITHIN},
        fewest=fewest,
    )


def measured(
    calls: Mapping[str, Call], measure: Measure, progress: Progress, seconds: float = SECONDS
) -> dict[str, Timing]:
    """The calls' times, on the threads that the measurement is of."""
    before = torch.get_num_threads()
    torch.set_num_threads(measure.threads)
    try:
        return by_turns(
            calls,
            clock_of(measure.device, measure.threads)[0],
            seconds,
            lambda done, of: progress("measuring", done, of),
        )
    finally:
        torch.set_num_threads(before)


def whole(genotype: Genotype, arch: Architecture, measure: Measure) -> Call:
    """A pass of a model of the genotype, with random weights, over full windows."""
    model = QuestionAnswering(arch.with_genotype(genotype.to_json()))
    return of_model(model, measure)


def of_model(model: QuestionAnswering, measure: Measure) -> Call:
    """A pass of a model over full windows; its mask is given, as whoever uses a model gives it."""
    ids = torch.randint(model.architecture.vocab_size, (measure.batch, measure.tokens))
    return ENGINES[measure.engine].load(model, (ids, torch.ones_like(ids)), measure)


def _piece(what: latency.Convolutions | latency.Beside, arch: Architecture) -> Convolved:
    if isinstance(what, latency.Beside):
        found = Convolved([Branch(arch.width, what.kernel, arch.biases)])
    else:
        found = Convolved([Depthwise(arch.width, what.kernel) for _ in range(3)])
    initialise(found, torch.Generator())
    return found


def _parts(
    arch: Architecture, space: SearchSpace, measure: Measure, progress: Progress
) -> tuple[dict[str, Call], dict[str, int]]:
    """Calls of the parts by name, and how many copies each call runs through."""
    load: Callable[..., Call] = ENGINES[measure.engine].part
    states = torch.randn(measure.batch, measure.tokens, arch.width)
    ids = torch.randint(arch.vocab_size, (measure.batch, measure.tokens))
    calls: dict[str, Call] = {NOTHING: load(Nothing(), (states,), measure)}
    copies: dict[str, int] = {}
    small = FeedForward(space.activations[0], (min(space.sizes),))
    for name, what in latency.measured(space, arch.window is not None).items():
        progress("measuring", patience=LONG)
        copies[name] = 1
        if isinstance(what, latency.Words):
            words = replace(arch, rank=what.rank, frequent=what.frequent)
            calls[name] = load(Embeddings(words), (ids,), measure)
            continue
        if isinstance(what, latency.Convolutions | latency.Beside):
            copies[name] = SHORTEST
            pieces = [_piece(what, arch) for _ in range(SHORTEST)]
            calls[name] = load(Chain(pieces), (states,), measure)
            continue
        ffn = what if isinstance(what, FeedForward) else small
        network = FeedForwardShape(ffn.activation, ffn.sizes)
        match what:
            case int():
                shape = BlockShape(what, (network,))
            case latency.Local():
                shape = BlockShape(what.heads, (network,), "local")
            case latency.Fewer():
                shape = BlockShape(what.heads, (network,), remaining=what.remaining)
            case FeedForward():
                shape = BlockShape(min(space.heads), (network,))
        layers = (1, 2) if isinstance(what, FeedForward) else (0, 1)
        one = Block(shape, arch)
        size = sum(4 * w.numel() for part in one.layers()[layers[0]] for w in part.parameters())
        copies[name] = min(LONGEST, max(SHORTEST, ROW_BYTES // size))
        row = Row([one, *(Block(shape, arch) for _ in range(copies[name] - 1))], *layers)
        calls[name] = load(row, (states,), measure)
    return calls, copies
