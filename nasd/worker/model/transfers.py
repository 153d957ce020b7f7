"""How one module of a child gets its weights from its parent's: a function a kind.

`kept` copies, `fresh` draws anew (the thesis, 4.2.1), `identity` grows so that the child computes
what its parent did, and `ranked` keeps the most telling part of what stood there and refits it.
TRANSFERS has them by the names that a lineage knows; each fills the module of a `Site` in place.

Growth rests on two facts of a post-norm block. The norm of a normed vector changes nothing, so a
new layer whose output is zero changes nothing either, if its norm takes the gamma and beta of the
one below, which becomes the plain norm. And act(x) - act(-x) = x, for relu and for gelu, so a
linear layer can be slipped in behind an activation (in the spirit of Net2Net, Chen et al. 2016).
Shapes: n windows of l tokens, t of them no padding; w = the backbone's width; m units.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from nasd.worker.model.phenotype import ACTIVATIONS, Attention, FeedForward, initialise

Part = Attention | FeedForward
RIDGE = 0.01  # of the mean square of the units: how strongly a refit holds to what it starts from
LEAST_ROWS = 64  # tokens; with fewer nothing is refitted
SHIFT = 6.0  # gelu(x + SHIFT) - SHIFT = x to 2e-8, for x that a gelu has given


@dataclass
class Site:
    """Where a module is to be filled.

    module, norm: the child's, and the norm behind it; below: the norm below it. source: what stood
    there in the parent, with the norm behind it; None where nothing did. states: what the child
    computes below the module, [n, l, w]; target: what the parent has there before its norm, the
    module's output and what went past it, [n, l, w]; both None where there are no windows. mask:
    [n, l], 1 where a token is none of the padding.
    """

    module: Part
    norm: nn.LayerNorm
    below: nn.LayerNorm
    source: Part | None
    source_norm: nn.LayerNorm | None
    generator: torch.Generator
    spread: float
    states: Callable[[], Tensor] | None = None
    target: Callable[[], Tensor] | None = None
    mask: Tensor | None = None
    notes: list[str] = field(default_factory=list)

    def fresh(self, rows: int, columns: int) -> Tensor:
        """New weights as BERT draws them, [rows, columns]."""
        return torch.empty(rows, columns).normal_(0.0, self.spread, generator=self.generator)

    @cached_property
    def rows(self) -> Tensor | None:
        """The child's states of all tokens but the padding, [t, w]."""
        if self.states is None:
            return None
        assert self.mask is not None
        return self.states()[self.mask.bool()]

    @cached_property
    def wanted(self) -> Tensor | None:
        """What the module is to give for each of `rows`, [t, w]."""
        if self.rows is None or self.target is None:
            return None
        assert self.mask is not None
        return self.target()[self.mask.bool()] - self.rows


class Linear(NamedTuple):
    """weight [out, in] and bias [out]."""

    weight: Tensor
    bias: Tensor

    @classmethod
    def of(cls, module: nn.Module) -> "Linear":
        assert isinstance(module, nn.Linear)
        return cls(module.weight.detach().clone(), module.bias.detach().clone())

    def put(self, module: nn.Module) -> None:
        assert isinstance(module, nn.Linear)
        module.weight.copy_(self.weight)
        module.bias.copy_(self.bias)

    def __call__(self, inputs: Tensor) -> Tensor:
        return inputs @ self.weight.T + self.bias


# -- the four kinds ------------------------------------------------------------------------------


@torch.no_grad()
def kept(site: Site) -> None:
    """As it was, with its norm."""
    assert site.source is not None and site.source_norm is not None, "what is kept stood somewhere"
    site.module.load_state_dict(site.source.state_dict())
    site.norm.load_state_dict(site.source_norm.state_dict())


@torch.no_grad()
def fresh(site: Site) -> None:
    """Drawn anew; the norm of the place stays, where there was one (thesis 4.2.1)."""
    initialise(site.module, site.generator, site.spread)
    if site.source_norm is None:
        initialise(site.norm, site.generator, site.spread)
    else:
        site.norm.load_state_dict(site.source_norm.state_dict())


@torch.no_grad()
def identity(site: Site) -> None:
    """Grown exactly: an FFN that is added, or a larger or deeper one where one stood.

    Raises ValueError where the new shape does not hold the old one.
    """
    if site.source is None:
        initialise(site.module, site.generator, site.spread)
        _silence(site.module)
        move_up(site.below, site.norm)
        return
    assert isinstance(site.source, FeedForward) and isinstance(site.module, FeedForward), (
        "an attention with another number of heads is not what it was"
    )
    grown = grow(site.source, site.module, site.fresh)
    if grown is None:
        raise ValueError(
            f"an FFN of {_sizes(site.module)} cannot hold one of {_sizes(site.source)}"
        )
    _put(grown, site.module)
    assert site.source_norm is not None
    site.norm.load_state_dict(site.source_norm.state_dict())


@torch.no_grad()
def ranked(site: Site) -> None:
    """The most telling heads or units of what stood there, refitted to what the parent gave."""
    assert site.source is not None and site.source_norm is not None, "nothing to rank"
    site.norm.load_state_dict(site.source_norm.state_dict())
    if isinstance(site.source, Attention):
        assert isinstance(site.module, Attention)
        _ranked_attention(site, site.source, site.module)
    else:
        assert isinstance(site.module, FeedForward)
        _ranked_ffn(site, site.source, site.module)


TRANSFERS: dict[str, Callable[[Site], None]] = {
    "kept": kept,
    "fresh": fresh,
    "identity": identity,
    "ranked": ranked,
}
EXACT = frozenset({"kept", "identity"})  # these leave what the parent computes as it is


# -- growth --------------------------------------------------------------------------------------


@torch.no_grad()
def move_up(below: nn.LayerNorm, above: nn.LayerNorm) -> None:
    """The norm above takes the gamma and beta of the one below, which becomes the plain norm."""
    above.load_state_dict(below.state_dict())
    below.weight.fill_(1.0)
    below.bias.zero_()


@torch.no_grad()
def added_block(
    layers: Sequence[tuple[nn.Module, nn.LayerNorm]],
    below: nn.LayerNorm,
    like: tuple[Sequence[tuple[nn.Module, nn.LayerNorm]], nn.LayerNorm],
    generator: torch.Generator,
    spread: float,
) -> None:
    """Fills a new block that changes nothing: all its outputs are zero.

    layers: the new ones, each with the norm behind it; below: the norm below them. like: a
    neighbour's, in the same way; where a shape is the same, the inputs of the new layer are the
    neighbour's, with what its norm below would have scaled them by folded in, so that gradients
    find knowledge there. Other layers are drawn anew.
    """
    gamma, beta = below.weight.clone(), below.bias.clone()
    theirs = like[0]
    for number, (module, norm) in enumerate(layers):
        initialise(module, generator, spread)
        if number < len(theirs) and _alike(module, theirs[number][0]):
            module.load_state_dict(theirs[number][0].state_dict())
            scale, shift = gamma, beta
            if number:
                scale, shift = theirs[number - 1][1].weight, theirs[number - 1][1].bias
            for linear in _inputs(module):
                linear.bias.add_(linear.weight @ shift)
                linear.weight.mul_(scale)
        _silence(module)
        norm.weight.fill_(1.0)
        norm.bias.zero_()
    move_up(below, layers[-1][1])


def grow(
    source: FeedForward, into: FeedForward, fresh: Callable[[int, int], Tensor]
) -> list[Linear] | None:
    """The same function with the hidden sizes of `into`; None where none is known.

    New units have fresh inputs, and outputs that are zero. What is slipped in stands behind a
    layer of the source's.
    """
    if _activation(source) != _activation(into):
        return None
    own, wanted = _sizes(source), _sizes(into)
    linears = [Linear.of(one) for one in source.linears]
    for rest in combinations(range(1, len(wanted)), len(own) - 1):
        made = _grow(linears, own, wanted, (0, *rest), _activation(source), fresh)
        if made is not None:
            return made
    return None


def _grow(
    linears: Sequence[Linear],
    own: Sequence[int],
    wanted: Sequence[int],
    places: Sequence[int],
    activation: str,
    fresh: Callable[[int, int], Tensor],
) -> list[Linear] | None:
    """With the source's hidden layers at these places among the wanted ones. What the source has
    in a hidden layer is told from what the child has there by a linear reader."""
    width = linears[0].weight.shape[1]
    reader = Linear(torch.eye(width), torch.zeros(width))
    made: list[Linear] = []
    layer = 0
    for place, size in enumerate(wanted):
        if place in places:
            real = linears[layer]
            units = own[layer]
            inner = Linear(real.weight @ reader.weight, real.weight @ reader.bias + real.bias)
            code = Linear(torch.eye(units), torch.zeros(units))  # what reads the units again
            layer += 1
        else:
            units = own[layer - 1]
            passed = _passed(units, size, activation)
            if passed is None:
                return None
            write, code = passed
            inner = Linear(write.weight @ reader.weight, write.weight @ reader.bias + write.bias)
        spare = size - inner.weight.shape[0]
        if spare < 0:
            return None
        inputs = inner.weight.shape[1]
        made.append(
            Linear(
                torch.cat([inner.weight, fresh(spare, inputs)]),
                torch.cat([inner.bias, torch.zeros(spare)]),
            )
        )
        reader = Linear(
            torch.cat([code.weight, torch.zeros(code.weight.shape[0], spare)], 1), code.bias
        )
    last = linears[-1]
    made.append(Linear(last.weight @ reader.weight, last.weight @ reader.bias + last.bias))
    return made


def _passed(units: int, size: int, activation: str) -> tuple[Linear, Linear] | None:
    """How values that an activation has given pass through one more of it: what writes them, and
    what reads them again. relu leaves them alone; gelu does so in pairs, or far from zero."""
    one, nothing = torch.eye(units), torch.zeros(units)
    if activation == "relu" and size >= units:
        return Linear(one, nothing), Linear(one, nothing)
    if size >= 2 * units:
        return (
            Linear(torch.cat([one, -one]), torch.zeros(2 * units)),
            Linear(torch.cat([one, -one], 1), nothing),
        )
    if size >= units:
        return Linear(one, nothing + SHIFT), Linear(one, nothing - SHIFT)
    return None


# -- refitting -----------------------------------------------------------------------------------


def refit(hidden: Tensor, wanted: Tensor, start: Linear, ridge: float = RIDGE) -> Linear:
    """The linear layer from hidden [t, m] to wanted [t, out] by ridge regression towards `start`.

    Where the tokens tell nothing of a direction, it is left as it starts. Never gives a number that
    is not finite: then the start stays.
    """
    centre = hidden.mean(0)
    inputs = hidden - centre
    left = wanted - start(hidden)
    gram = (inputs.T @ inputs).double()
    damping = ridge * gram.diagonal().mean().clamp_min(1e-12)
    gram.diagonal().add_(damping)
    try:
        factor = torch.linalg.cholesky(gram)
        change = torch.cholesky_solve((inputs.T @ (left - left.mean(0))).double(), factor).T.float()
    except RuntimeError:  # torch.linalg.LinAlgError is one: nearly singular all the same
        return start
    found = Linear(start.weight + change, start.bias + left.mean(0) - change @ centre)
    return found if bool(found.weight.isfinite().all() and found.bias.isfinite().all()) else start


def _refitted(site: Site, hidden: Tensor | None, start: Linear) -> Linear:
    """The output layer of a module, fitted to what the parent gave where tokens are enough."""
    wanted = site.wanted
    if hidden is None or wanted is None or len(wanted) < LEAST_ROWS:
        site.notes.append("too few tokens to refit by: the weights stay as they were ranked")
        return start
    return refit(hidden, wanted, start)


# -- ranked feed-forward networks ----------------------------------------------------------------


def _ranked_ffn(site: Site, source: FeedForward, into: FeedForward) -> None:
    """Layer by layer: the units whose outputs vary most, weighed by what reads them, stay.

    A hidden layer that loses inputs, or computes with another activation, is refitted to what its
    units had before the activation; the output layer to what the parent gave.
    """
    linears = [Linear.of(one) for one in source.linears]
    own, wanted = _sizes(source), _sizes(into)
    before, after = ACTIVATIONS[_activation(source)], ACTIVATIONS[_activation(into)]
    theirs = _activations(linears, before, site.rows)  # of the source's hidden layers, [t, m] each
    same = _activation(source) == _activation(into)
    made: list[Linear] = []
    hidden = site.rows  # of the child
    units = torch.arange(linears[0].weight.shape[1])  # of the source, that the child has
    exact = True  # so far the child's units are what the source's are
    reads = Linear(torch.eye(len(units)), torch.zeros(len(units)))
    for place, size in enumerate(wanted):
        if place < len(own):
            layer = linears[place]
            chosen = _telling(theirs[place], linears[place + 1].weight, min(size, own[place]))
            start = Linear(
                layer.weight[chosen][:, units] @ reads.weight,
                layer.weight[chosen][:, units] @ reads.bias + layer.bias[chosen],
            )
            if not exact and hidden is not None and len(hidden) >= LEAST_ROWS:
                below = site.rows if place == 0 else theirs[place - 1]
                assert below is not None
                start = refit(hidden, layer(below)[:, chosen], start)
            exact = exact and same and len(chosen) == own[place]
            code = Linear(torch.eye(len(chosen)), torch.zeros(len(chosen)))
            units = chosen
        else:  # deeper than the source: as many of its last units as there is room for go on
            telling = _telling(theirs[-1], linears[-1].weight, own[-1])
            chosen = telling[torch.isin(telling, units)][:size].sort().values
            picks = torch.searchsorted(units, chosen)
            shift = 0.0 if _activation(into) == "relu" else SHIFT
            start = Linear(reads.weight[picks], reads.bias[picks] + shift)
            code = Linear(torch.eye(len(chosen)), torch.full((len(chosen),), -shift))
            exact = exact and len(chosen) == len(units)
            units = chosen
        spare = size - len(units)
        made.append(
            Linear(
                torch.cat([start.weight, site.fresh(spare, start.weight.shape[1])]),
                torch.cat([start.bias, torch.zeros(spare)]),
            )
        )
        reads = Linear(torch.cat([code.weight, torch.zeros(len(units), spare)], 1), code.bias)
        hidden = None if hidden is None else after(made[-1](hidden))
    if len(wanted) < len(own):  # what came behind the last layer that stays is the refit's to find
        start = Linear(torch.zeros(last_width(linears), len(units)), linears[-1].bias.clone())
    else:
        start = Linear(linears[-1].weight[:, units], linears[-1].bias.clone())
    start = Linear(start.weight @ reads.weight, start.weight @ reads.bias + start.bias)
    made.append(_refitted(site, hidden, start))
    _put(made, into)


def last_width(linears: Sequence[Linear]) -> int:
    return linears[-1].weight.shape[0]


def _activations(
    linears: Sequence[Linear], activation: Callable[[Tensor], Tensor], rows: Tensor | None
) -> list[Tensor | None]:
    found: list[Tensor | None] = []
    for linear in linears[:-1]:
        rows = None if rows is None else activation(linear(rows))
        found.append(rows)
    return found


def _telling(hidden: Tensor | None, readers: Tensor, count: int) -> Tensor:
    """The units with the largest variance times squared weights of what reads them [out, m], in
    their order; without tokens, by the weights alone."""
    weight = readers.square().sum(0)
    if hidden is not None and len(hidden) > 1:
        weight = weight * hidden.var(0)
    return weight.topk(count).indices.sort().values


# -- ranked attention ----------------------------------------------------------------------------


class _Heads(NamedTuple):
    """What an attention computes on the windows: queries, keys, values and what is attended, each
    [n, heads, l, w / heads], and the shares that attend [n, heads, l, l]."""

    q: Tensor
    k: Tensor
    v: Tensor
    shares: Tensor
    attended: Tensor


def _ranked_attention(site: Site, source: Attention, into: Attention) -> None:
    parts = {name: Linear.of(getattr(source, name)) for name in ("q", "k", "v", "out")}
    seen = None
    if site.states is not None and site.mask is not None and int(site.mask.sum()) >= LEAST_ROWS:
        seen = _seen(parts, source.heads, site.states(), site.mask)
    if into.heads < source.heads:
        parts = _fewer(parts, source.heads, into.heads, seen, site)
    elif into.heads > source.heads:
        parts = _more(parts, source.heads, into.heads, seen, site)
    hidden = None
    if seen is not None:
        assert site.states is not None and site.mask is not None
        attended = _seen(parts, into.heads, site.states(), site.mask).attended
        hidden = attended.transpose(1, 2).flatten(2)[site.mask.bool()]
    parts["out"] = _refitted(site, hidden, parts["out"])
    for name, part in parts.items():
        part.put(getattr(into, name))


def _seen(parts: dict[str, Linear], heads: int, states: Tensor, mask: Tensor) -> _Heads:
    def split(values: Tensor) -> Tensor:
        examples, tokens, _ = values.shape
        return values.view(examples, tokens, heads, -1).transpose(1, 2)

    q, k, v = (split(parts[name](states)) for name in "qkv")
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    shares = scores.masked_fill(mask[:, None, None] == 0, -torch.inf).softmax(-1)
    return _Heads(q, k, v, shares, shares @ v)


def _per_head(values: Tensor, mask: Tensor) -> Tensor:
    """[n, heads, l, x] to [heads, t, x], without the padding."""
    return values.transpose(1, 2)[mask.bool()].transpose(0, 1)


def _split(linear: Linear, heads: int) -> list[Linear]:
    """The rows of each head."""
    weights, biases = linear.weight.chunk(heads), linear.bias.chunk(heads)
    return [Linear(weight, bias) for weight, bias in zip(weights, biases, strict=True)]


def _fewer(
    parts: dict[str, Linear], heads: int, wanted: int, seen: _Heads | None, site: Site
) -> dict[str, Linear]:
    """The most telling heads stay, each with room for more values: those of the others move in
    with the head whose shares are most like theirs. Queries and keys get new room as well, which
    adds nothing at first, as the queries there are zero."""
    width = parts["q"].weight.shape[1]
    old, new = width // heads, width // wanted
    q, k, v = (_split(parts[name], heads) for name in "qkv")
    out = parts["out"].weight.chunk(heads, dim=1)
    energy = torch.stack([one.square().sum() for one in out])
    like = torch.ones(heads, heads)
    if seen is not None:
        assert site.mask is not None
        attended = _per_head(seen.attended, site.mask)
        energy = torch.stack([(attended[head] @ out[head].T).var(0).sum() for head in range(heads)])
        shares = nn.functional.normalize(_per_head(seen.shares, site.mask).flatten(1))
        like = shares @ shares.T
    stay = energy.topk(wanted).indices.sort().values.tolist()
    values = {head: [v[head]] for head in stay}
    readers = {head: [out[head]] for head in stay}
    room = dict.fromkeys(stay, new - old)
    for head in sorted(set(range(heads)) - set(stay), key=lambda one: -float(energy[one])):
        at = 0
        for host in sorted(stay, key=lambda one: (-float(like[head, one]), one)):
            count = min(room[host], old - at)
            values[host].append(
                Linear(v[head].weight[at : at + count], v[head].bias[at : at + count])
            )
            readers[host].append(out[head][:, at : at + count])
            room[host] -= count
            at += count
    scale = math.sqrt(new / old)
    spare = new - old
    return {
        "q": _joined(
            [
                Linear(
                    torch.cat([q[head].weight * scale, torch.zeros(spare, width)]),
                    torch.cat([q[head].bias * scale, torch.zeros(spare)]),
                )
                for head in stay
            ]
        ),
        "k": _joined(
            [
                Linear(
                    torch.cat([k[head].weight, site.fresh(spare, width)]),
                    torch.cat([k[head].bias, torch.zeros(spare)]),
                )
                for head in stay
            ]
        ),
        "v": _joined([one for head in stay for one in values[head]]),
        "out": Linear(
            torch.cat([one for head in stay for one in readers[head]], 1), parts["out"].bias
        ),
    }


def _more(
    parts: dict[str, Linear], heads: int, wanted: int, seen: _Heads | None, site: Site
) -> dict[str, Linear]:
    """Each head by its best approximation with fewer dimensions; the values that find no room go
    to twins, which look where it looks, of the heads that would lose most."""
    width = parts["q"].weight.shape[1]
    new = width // wanted
    split = {name: _split(parts[name], heads) for name in "qkv"}
    out = parts["out"].weight.chunk(heads, dim=1)
    looks: list[tuple[Linear, Linear]] = []
    values: list[tuple[Linear, Tensor, Tensor]] = []  # values, what reads them, energy of each
    for head in range(heads):
        q, k, v = (split[name][head] for name in "qkv")
        if seen is None:
            one = torch.eye(len(q.bias))
            queries = keys = attended = one
        else:
            assert site.mask is not None
            queries, keys, attended = (
                _per_head(values, site.mask)[head] for values in (seen.q, seen.k, seen.attended)
            )
        looks.append(_narrowed(q, k, queries, keys - keys.mean(0), new))
        root = _root((attended - attended.mean(0)).T @ (attended - attended.mean(0)))
        left, size, right = torch.linalg.svd(out[head] @ root, full_matrices=False)
        turn = right @ torch.linalg.pinv(root)
        values.append((Linear(turn @ v.weight, turn @ v.bias), left * size, size.square()))
    chunks = [1] * heads  # of `new` values each, the first in the head itself
    for _ in range(wanted - heads):
        losses = [float(values[one][2][new * chunks[one] :][:new].sum()) for one in range(heads)]
        chunks[losses.index(max(losses))] += 1
    made: dict[str, list[Linear]] = {"q": [], "k": [], "v": []}
    readers = []
    for head in range(heads):
        for chunk in range(chunks[head]):
            value, reader, _ = values[head]
            part = slice(new * chunk, new * (chunk + 1))
            spare = new - len(value.bias[part])
            made["q"].append(looks[head][0])
            made["k"].append(looks[head][1])
            made["v"].append(
                Linear(
                    torch.cat([value.weight[part], site.fresh(spare, width)]),
                    torch.cat([value.bias[part], torch.zeros(spare)]),
                )
            )
            readers.append(torch.cat([reader[:, part], torch.zeros(width, spare)], 1))
    return {
        **{name: _joined(each) for name, each in made.items()},
        "out": Linear(torch.cat(readers, 1), parts["out"].bias),
    }


def _narrowed(
    q: Linear, k: Linear, queries: Tensor, keys: Tensor, new: int
) -> tuple[Linear, Linear]:
    """Queries and keys with `new` dimensions whose products are, on these tokens, as near to those
    of all dimensions as can be. What is the same for all keys changes no share."""
    roots = _root(queries.T @ queries), _root(keys.T @ keys)
    left, size, right = torch.linalg.svd(roots[0] @ roots[1])
    each = size[:new].sqrt()[:, None]
    # With fewer dimensions the scores are scaled down by less.
    scale = math.sqrt(new / len(q.bias))
    turn_q = scale * each * (left.T[:new] @ torch.linalg.pinv(roots[0]))
    turn_k = each * (right[:new] @ torch.linalg.pinv(roots[1]))
    return (
        Linear(turn_q @ q.weight, turn_q @ q.bias),
        Linear(turn_k @ k.weight, turn_k @ k.bias),
    )


def _root(square: Tensor) -> Tensor:
    """The symmetric root of a positive matrix, damped where it is nearly singular."""
    values, vectors = torch.linalg.eigh(square.double())
    values = values.clamp_min(1e-6 * float(values.max().clamp_min(1e-12)))
    root: Tensor = ((vectors * values.sqrt()) @ vectors.T).float()
    return root


def _joined(parts: Sequence[Linear]) -> Linear:
    return Linear(torch.cat([one.weight for one in parts]), torch.cat([one.bias for one in parts]))


# -- modules -------------------------------------------------------------------------------------


def _inputs(module: nn.Module) -> list[nn.Linear]:
    """The linear layers that read what comes from below."""
    if isinstance(module, Attention):
        return [module.q, module.k, module.v]
    assert isinstance(module, FeedForward)
    return [cast("nn.Linear", module.linears[0])]


def _silence(module: nn.Module) -> None:
    """Lets the module give zero."""
    last = module.out if isinstance(module, Attention) else cast("FeedForward", module).linears[-1]
    assert isinstance(last, nn.Linear)
    last.weight.zero_()
    last.bias.zero_()


def _alike(one: nn.Module, other: nn.Module) -> bool:
    if isinstance(one, Attention) and isinstance(other, Attention):
        return one.heads == other.heads
    if isinstance(one, FeedForward) and isinstance(other, FeedForward):
        return (_activation(one), _sizes(one)) == (_activation(other), _sizes(other))
    return False


def _sizes(ffn: FeedForward) -> tuple[int, ...]:
    return tuple(cast("nn.Linear", one).out_features for one in ffn.linears[:-1])


def _activation(ffn: FeedForward) -> str:
    return next(name for name, act in ACTIVATIONS.items() if act is ffn.activation)


def _put(made: Sequence[Linear], into: FeedForward) -> None:
    for linear, module in zip(made, into.linears, strict=True):
        linear.put(module)
