"""How one module of a child gets its weights from its parent's: a function a kind.

`kept` copies, `fresh` draws anew (the thesis, 4.2.1), `identity` grows so that the child computes
what its parent did, and `ranked` keeps the most telling part of what stood there and refits it.
TRANSFERS has them by the names that a lineage knows; each fills the module of a `Site` in place.

Growth rests on two facts of a post-norm block. The norm of a normed vector changes nothing, so a
new layer whose output is zero changes nothing either, if its norm takes the gamma and beta of the
one below, which becomes the plain norm. And act(x) - act(-x) = x, for relu and for gelu, so a
linear layer can be slipped in behind an activation (in the spirit of Net2Net, Chen et al. 2016);
relu2, its square, has another way.
Where norms stand before the modules, a zero output adds nothing, and that is all. A gated network
grows wider, not deeper: nothing passes through a product unchanged without a bias.
Shapes: n windows of l tokens, t of them no padding; w = the backbone's width; m units.
"""

from collections.abc import Callable, Sequence
from itertools import combinations, pairwise
from typing import cast

import torch
from torch import Tensor, nn

from nasd.worker.model.attention import Attention
from nasd.worker.model.convolutions import quiet
from nasd.worker.model.feedforward import FeedForward
from nasd.worker.model.heads import grown_attention, ranked_attention
from nasd.worker.model.layers import ACTIVATIONS
from nasd.worker.model.phenotype import initialise
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
    _take_norm(site)


@torch.no_grad()
def fresh(site: Site) -> None:
    """Drawn anew; the norm of the place stays, where there was one (thesis 4.2.1)."""
    initialise(site.module, site.generator, site.spread)
    _take_norm(site)


def _take_norm(site: Site) -> None:
    """The norm that stood there, or a plain one."""
    if isinstance(site.source_norm, nn.LayerNorm) and isinstance(site.norm, nn.LayerNorm):
        site.norm.load_state_dict(site.source_norm.state_dict())
    else:
        initialise(site.norm, site.generator, site.spread)


@torch.no_grad()
def identity(site: Site) -> None:
    """Grown exactly: an FFN that is added, a larger or deeper one where one stood, or an attention
    with heads or convolutions that it had not, or longer ones.

    Raises ValueError where the new shape does not hold the old one.
    """
    if site.source is None:
        initialise(site.module, site.generator, site.spread)
        _silence(site.module)
        if site.pre_norm:
            initialise(site.norm, site.generator, site.spread)
        else:
            assert site.below is not None and isinstance(site.norm, nn.LayerNorm)
            move_up(site.below, site.norm)
        return
    if isinstance(site.source, Attention):
        assert isinstance(site.module, Attention)
        grown_attention(site.source, site.module, site)
        _take_norm(site)
        return
    assert isinstance(site.module, FeedForward)
    grown = grow(site.source, site.module, site.fresh)
    if grown is None and not site.biased:  # what has to pass through would be shifted
        site.notes.append("there are no biases to grow deeper by: refitted instead")
        ranked(site)
        return
    if grown is None:
        raise ValueError(
            f"an FFN of {_sizes(site.module)} cannot hold one of {_sizes(site.source)}"
        )
    _put(grown, site.module)
    _take_norm(site)


@torch.no_grad()
def ranked(site: Site) -> None:
    """The most telling heads or units of what stood there, refitted to what the parent gave."""
    assert site.source is not None and site.source_norm is not None, "nothing to rank"
    _take_norm(site)
    if isinstance(site.source, Attention):
        assert isinstance(site.module, Attention)
        ranked_attention(site, site.source, site.module)
    else:
        assert isinstance(site.module, FeedForward)
        gated = site.source.gated or site.module.gated
        (_ranked_gated if gated else _ranked_ffn)(site, site.source, site.module)


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
    _plain(below)


def _plain(norm: nn.Module) -> None:
    if isinstance(norm, nn.LayerNorm):
        norm.weight.fill_(1.0)
        if norm.bias is not None:
            norm.bias.zero_()


@torch.no_grad()
def added_block(
    layers: Sequence[tuple[nn.Module, nn.LayerNorm]],
    below: nn.LayerNorm | None,
    like: tuple[Sequence[tuple[nn.Module, nn.LayerNorm]], nn.LayerNorm | None],
    generator: torch.Generator,
    spread: float,
    pre_norm: bool = False,
) -> list[str]:
    """Fills a new block that changes nothing, as all its outputs are zero. Returns notes.

    layers: the new ones, each with its norm; below: the norm on which they stand, if they do. like:
    a neighbour's, in the same way; where a shape is the same, the inputs of the new layer are the
    neighbour's, with what its norm below would have scaled them by folded in, so that gradients
    find knowledge there. Other layers are drawn anew.
    """
    theirs = like[0]
    if pre_norm or below is None:
        for number, (module, norm) in enumerate(layers):
            initialise(module, generator, spread)
            _plain(norm)
            if number < len(theirs) and _alike(module, theirs[number][0]):
                module.load_state_dict(theirs[number][0].state_dict())
                if pre_norm and isinstance(theirs[number][1], type(norm)):
                    norm.load_state_dict(theirs[number][1].state_dict())
            _silence(module)
        return [] if pre_norm else ["what it stands on has no norm, so it is normalised now"]
    gamma, beta = below.weight.clone(), below.bias.clone()
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
        _plain(norm)
    move_up(below, layers[-1][1])
    return []


def grow(
    source: FeedForward, into: FeedForward, fresh: Callable[[int, int], Tensor]
) -> list[Linear] | None:
    """The same function with the hidden sizes of `into`; None where none is known.

    New units have fresh inputs, and outputs that are zero. What is slipped in stands behind a
    layer of the source's.
    """
    if source.kind != into.kind:
        return None
    own, wanted = _sizes(source), _sizes(into)
    if source.gated:
        return _wider_gated(source, wanted[0] - own[0], fresh)
    biased = cast("nn.Linear", source.linears[0]).bias is not None
    linears = [Linear.of(one) for one in source.linears]
    for rest in combinations(range(1, len(wanted)), len(own) - 1):
        made = _grow(linears, own, wanted, (0, *rest), source.kind, fresh, biased)
        if made is not None:
            return made
    return None


def _wider_gated(
    source: FeedForward, more: int, fresh: Callable[[int, int], Tensor]
) -> list[Linear] | None:
    if more < 0:
        return None
    units, gates, outer = _gated_parts(source)
    width = units.weight.shape[1]
    halves = [
        Linear(
            torch.cat([half.weight, fresh(more, width)]),
            torch.cat([half.bias, torch.zeros(more)]),
        )
        for half in (units, gates)
    ]
    unread = torch.zeros(len(outer.weight), more)
    return [_stacked(*halves), Linear(torch.cat([outer.weight, unread], 1), outer.bias)]


def _gated_parts(ffn: FeedForward) -> tuple[Linear, Linear, Linear]:
    """What gives the units, what gives their gates, and what reads the two's products."""
    first, outer = (Linear.of(one) for one in ffn.linears)
    weights, biases = first.weight.chunk(2), first.bias.chunk(2)
    return Linear(weights[0], biases[0]), Linear(weights[1], biases[1]), outer


def _stacked(units: Linear, gates: Linear) -> Linear:
    return Linear(torch.cat([units.weight, gates.weight]), torch.cat([units.bias, gates.bias]))


def _grow(
    linears: Sequence[Linear],
    own: Sequence[int],
    wanted: Sequence[int],
    places: Sequence[int],
    activation: str,
    fresh: Callable[[int, int], Tensor],
    biased: bool,
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
            passed = _passed(units, size, activation, biased)
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


def _passed(units: int, size: int, activation: str, biased: bool) -> tuple[Linear, Linear] | None:
    """How values that an activation has given pass through one more of it: what writes them, and
    what reads them again. relu leaves them alone; gelu does so in pairs, or far from zero, which
    takes a bias; so does relu2, in pairs, as (x + 1)^2 - x^2 = 2 x + 1, and what it has given is
    not negative."""
    one, nothing = torch.eye(units), torch.zeros(units)
    if activation == "relu2":
        if size < 2 * units or not biased:
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
    if size >= units and biased:
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
    before, after = ACTIVATIONS[source.kind], ACTIVATIONS[into.kind]
    theirs = _activations(linears, before, site.rows)  # of the source's hidden layers, [t, m] each
    same = source.kind == into.kind
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
                start = refit(hidden, layer(below)[:, chosen], start, biased=site.biased)
            taken = exact and same  # its units are some of the source's as they are
            exact = taken and len(chosen) == own[place]
            code = Linear(torch.eye(len(chosen)), torch.zeros(len(chosen)))
            units = chosen
        else:  # deeper than the source: as many of its last units as there is room for go on
            telling = _telling(theirs[-1], linears[-1].weight, own[-1])
            chosen = telling[torch.isin(telling, units)][:size].sort().values
            picks = torch.searchsorted(units, chosen)
            shift, scale, back = ALONE[into.kind] if site.biased else ALONE["relu"]
            start = Linear(reads.weight[picks], reads.bias[picks] + shift)
            code = Linear(scale * torch.eye(len(chosen)), torch.full((len(chosen),), back))
            exact, taken = exact and len(chosen) == len(units), False
            units = chosen
        spare = size - len(units)
        made.append(
            Linear(
                torch.cat([start.weight, site.fresh(spare, start.weight.shape[1])]),
                torch.cat([start.bias, torch.zeros(spare)]),
            )
        )
        reads = Linear(torch.cat([code.weight, torch.zeros(len(units), spare)], 1), code.bias)
        known = theirs[place] if taken and not spare else None
        if known is not None:
            hidden = known[:, chosen]
        else:
            hidden = None if hidden is None else after(made[-1](hidden))
    if len(wanted) < len(own):  # what came behind the last layer that stays is the refit's to find
        start = Linear(torch.zeros(last_width(linears), len(units)), linears[-1].bias.clone())
    else:
        start = Linear(linears[-1].weight[:, units], linears[-1].bias.clone())
    start = Linear(start.weight @ reads.weight, start.weight @ reads.bias + start.bias)
    made.append(refitted(site, hidden, start))
    _put(made, into)


def _ranked_gated(site: Site, source: FeedForward, into: FeedForward) -> None:
    """Between networks of which one is gated, or both: the telling units stay with their gates.
    Gates that were not there are 1, where a bias can make them so."""
    act, rows = source.activation, site.rows
    linears = [Linear.of(one) for one in source.linears]
    units, gates, outer = linears[0], None, linears[-1]
    if source.gated:
        units, gates, outer = _gated_parts(source)
    elif len(linears) > 2:  # what came behind its first layer is the refit's to find
        outer = Linear(torch.zeros(last_width(linears), len(units.bias)), outer.bias)
    hidden = None if rows is None else act(units(rows)) * (1.0 if gates is None else gates(rows))
    if not into.gated:
        wanted = _sizes(into)
        chosen = _telling(hidden, outer.weight, min(wanted[0], len(units.bias)))
        first = _first(site, Linear(units.weight[chosen], units.bias[chosen]), wanted[0])
        made = [first]
        for into_size, size in pairwise(wanted):  # deeper than what stood there
            made.append(Linear(site.fresh(size, into_size), torch.zeros(size)))
        given = rows
        for linear in made:
            given = None if given is None else into.activation(linear(given))
        start = Linear(torch.zeros(len(outer.weight), wanted[-1]), outer.bias)
        if len(wanted) == 1:
            start.weight[:, : len(chosen)] = outer.weight[:, chosen]
        _put([*made, refitted(site, given, start)], into)
        return
    size = _sizes(into)[0]
    chosen = _telling(hidden, outer.weight, min(size, len(units.bias)))
    first = _first(site, Linear(units.weight[chosen], units.bias[chosen]), size)
    if gates is not None:
        second = _first(site, Linear(gates.weight[chosen], gates.bias[chosen]), size)
    elif site.biased:
        second = Linear(torch.zeros_like(first.weight), torch.ones(size))
    else:
        second = Linear(site.fresh(size, first.weight.shape[1]), torch.zeros(size))
    start = Linear(torch.zeros(len(outer.weight), size), outer.bias)
    start.weight[:, : len(chosen)] = outer.weight[:, chosen]
    given = None if rows is None else into.activation(first(rows)) * second(rows)
    _put([_stacked(first, second), refitted(site, given, start)], into)


def _first(site: Site, kept: Linear, size: int) -> Linear:
    """With fresh units up to this size."""
    spare = size - len(kept.bias)
    return Linear(
        torch.cat([kept.weight, site.fresh(spare, kept.weight.shape[1])]),
        torch.cat([kept.bias, torch.zeros(spare)]),
    )


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
        weight = weight * (hidden - hidden.mean(0)).square_().mean(0)
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
    if isinstance(module, Attention):
        lasts = [module.out, *([] if module.branch is None else [module.branch.out])]
    else:
        lasts = [cast("nn.Linear", cast("FeedForward", module).linears[-1])]
    for last in lasts:
        quiet(last)


def _alike(one: nn.Module, other: nn.Module) -> bool:
    if isinstance(one, Attention) and isinstance(other, Attention):
        shapes = ((it.heads, it.head_width, it.window, it.kernels) for it in (one, other))
        mine, theirs = shapes
        return mine == theirs
    if isinstance(one, FeedForward) and isinstance(other, FeedForward):
        return (one.kind, _sizes(one)) == (other.kind, _sizes(other))
    return False


def _sizes(ffn: FeedForward) -> tuple[int, ...]:
    return tuple(cast("nn.Linear", one).in_features for one in ffn.linears[1:])


def _put(made: Sequence[Linear], into: FeedForward) -> None:
    for linear, module in zip(made, into.linears, strict=True):
        linear.put(module)
