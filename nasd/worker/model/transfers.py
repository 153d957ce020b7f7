"""How one module of a child gets its weights from its parent's: a function a kind.

`kept` copies, `fresh` draws anew (the thesis, 4.2.1), `identity` grows so that the child computes
what its parent did, and `ranked` keeps the most telling part of what stood there and refits it.
TRANSFERS has them by the names that a lineage knows; each fills the module of a `Site` in place.

Growth rests on two facts of a post-norm block. The norm of a normed vector changes nothing, so a
new layer whose output is zero changes nothing either, if its norm takes the gamma and beta of the
one below, which becomes the plain norm. And act(x) - act(-x) = x, for relu and for gelu, so a
linear layer can be slipped in behind an activation (in the spirit of Net2Net, Chen et al. 2016);
relu2, its square, has another way.
Shapes: n windows of l tokens, t of them no padding; w = the backbone's width; m units.
"""

from collections.abc import Callable, Sequence
from itertools import combinations
from typing import cast

import torch
from torch import Tensor, nn

from nasd.worker.model.heads import ranked_attention
from nasd.worker.model.phenotype import ACTIVATIONS, Attention, FeedForward, initialise
from nasd.worker.model.site import LEAST_ROWS, Linear, Site, refit, refitted

SHIFT = 6.0  # gelu(x + SHIFT) - SHIFT = x to 2e-8, for x that a gelu has given
FAR = 64.0  # ((x + FAR)^2 - FAR^2) / (2 FAR) = x + x^2 / (2 FAR)
# How a value passes through an activation with one unit: what is added before it, and what it is
# multiplied with and added behind it. Through relu2 only nearly, for what is small beside FAR.
ALONE = {
    "relu": (0.0, 1.0, 0.0),
    "gelu": (SHIFT, 1.0, -SHIFT),
    "relu2": (FAR, 1 / (2 * FAR), -FAR / 2),
}


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
        ranked_attention(site, site.source, site.module)
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
    what reads them again. relu leaves them alone; gelu does so in pairs, or far from zero; relu2 in
    pairs, as (x + 1)^2 - x^2 = 2 x + 1, and what it has given is not negative."""
    one, nothing = torch.eye(units), torch.zeros(units)
    if activation == "relu2":
        if size < 2 * units:
            return None
        return (
            Linear(torch.cat([one, one]), torch.cat([nothing + 1, nothing])),
            Linear(torch.cat([one, -one], 1) / 2, nothing - 0.5),
        )
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
            shift, scale, back = ALONE[_activation(into)]
            start = Linear(reads.weight[picks], reads.bias[picks] + shift)
            code = Linear(scale * torch.eye(len(chosen)), torch.full((len(chosen),), back))
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
    made.append(refitted(site, hidden, start))
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
