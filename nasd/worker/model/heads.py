"""Other heads: what an attention keeps of one that had more of them, or fewer, or wider ones.

Patterns and values are told apart on windows of text; the output layer is refitted at the end.
Shapes: n windows of l tokens, t of them no padding; w = the backbone's width, d = that of a head.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from nasd.worker.model.attention import Attention, rotated
from nasd.worker.model.convolutions import take_branch, take_kernels
from nasd.worker.model.site import LEAST_ROWS, Linear, Site, refitted


class _Heads(NamedTuple):
    """What an attention computes on the windows: queries, keys, values and what is attended, each
    [n, heads, l, d], and the shares that attend [n, heads, l, l]."""

    q: Tensor
    k: Tensor
    v: Tensor
    shares: Tensor
    attended: Tensor


def grown_attention(source: Attention, into: Attention, site: Site) -> None:
    """The same attention with the heads and convolutions of `into`: heads that are new are drawn,
    and nothing reads them yet; a kernel grows by zeros at its ends, one that is new passes through
    what it is given, and a new branch gives zero. Raises ValueError where what the source has finds
    no room."""
    kinds = [(one.head_width, one.window, one.theta) for one in (source, into)]
    if kinds[0] != kinds[1] or into.heads < source.heads:
        raise ValueError("an attention with other heads is not what it was")
    if any((new or 0) < (old or 0) for new, old in zip(into.kernels, source.kernels, strict=True)):
        raise ValueError(f"kernels of {into.kernels} cannot hold those of {source.kernels}")
    parts = _restored(_parts(source), (into.heads - source.heads) * into.head_width, site)
    take_kernels(source.convolutions, into, torch.arange(source.q.out_features))
    take_branch(source.branch, into.branch)
    _put(parts, into)


def ranked_attention(site: Site, source: Attention, into: Attention) -> None:
    """The heads that tell most, regrouped where they are to be wider or narrower."""
    parts, heads, size = _parts(source), source.heads, source.head_width
    # Heads that are put together otherwise have their channels mixed, and begin unconvolved.
    mixed = size != into.head_width
    reach = [(one.window, one.theta) for one in (source, into)]
    alike = not mixed and source.convolutions is None and reach[0] == reach[1]
    kept = torch.arange(source.q.out_features)  # channels, where they are not mixed

    def look() -> _Heads | None:
        if site.states is None or site.mask is None or int(site.mask.sum()) < LEAST_ROWS:
            return None
        return _seen(parts, heads, source, site.states(), site.mask, plain=mixed)

    seen = look()
    attended: Tensor | None = None
    if into.heads < heads or into.head_width > size:
        energies = _energies(parts, heads, seen, site)
        stay = energies.topk(min(heads, into.heads)).indices.sort().values.tolist()
        kept = torch.cat([torch.arange(head * size, (head + 1) * size) for head in stay])
        sizes = size, max(size, into.head_width)
        parts = _fewer(parts, stay, energies, sizes, seen, source, site)
        if seen is not None and alike:
            attended = seen.attended[:, stay]  # as before
        heads, size = len(stay), sizes[1]
        if into.head_width < size:
            seen = look()
    if into.head_width < size:
        parts = _more(parts, heads, (size, into.head_width), into.heads, seen, source, site)
        heads = into.heads
    parts = _restored(parts, (into.heads - heads) * into.head_width, site)
    take_kernels(None if mixed else source.convolutions, into, kept)
    take_branch(source.branch, into.branch)
    hidden = beside = None
    if seen is not None:
        assert site.states is not None and site.mask is not None
        states = site.states()
        if attended is None or heads != into.heads:
            attended = _seen(parts, into.heads, into, states, site.mask).attended
        hidden = attended.transpose(1, 2).flatten(2)[site.mask.bool()]
        if into.branch is not None:
            owners = (site.mask == 0).long()
            beside = into.branch(states, owners, None)[site.mask.bool()]
    parts["out"] = refitted(site, hidden, parts["out"], beside)
    _put(parts, into)


def _parts(source: Attention) -> dict[str, Linear]:
    return {name: Linear.of(getattr(source, name)) for name in ("q", "k", "v", "out")}


def _put(parts: dict[str, Linear], into: Attention) -> None:
    for name, part in parts.items():
        part.put(getattr(into, name))


def _seen(
    parts: dict[str, Linear],
    heads: int,
    of: Attention,
    states: Tensor,
    mask: Tensor,
    plain: bool = False,
) -> _Heads:
    """With these weights and heads, and the positions, reach and convolutions of an attention;
    plain: without the last."""
    given = {name: parts[name](states) for name in "qkv"}
    if of.convolutions is not None and not plain:
        owners = (mask == 0).long()
        given = {name: of.convolutions[name](one, owners) for name, one in given.items()}

    def split(values: Tensor) -> Tensor:
        examples, tokens, _ = values.shape
        return values.view(examples, tokens, heads, -1).transpose(1, 2)

    q, k, v = (split(given[name]) for name in "qkv")
    turned = (q, k)
    if of.theta is not None:
        places = torch.arange(states.shape[1])
        turned = (rotated(q, places, of.theta), rotated(k, places, of.theta))
    scores = turned[0] @ turned[1].transpose(-1, -2) / math.sqrt(q.shape[-1])
    allowed = of.seen(mask[:, None, None] != 0, states.shape[1], states.device)
    assert allowed is not None
    shares = scores.masked_fill(~allowed, -torch.inf).softmax(-1)
    return _Heads(q, k, v, shares, shares @ v)


def _per_head(values: Tensor, mask: Tensor) -> Tensor:
    """[n, heads, l, x] to [heads, t, x], without the padding."""
    return values.transpose(1, 2)[mask.bool()].transpose(0, 1)


def _split(linear: Linear, heads: int) -> list[Linear]:
    """The rows of each head."""
    weights, biases = linear.weight.chunk(heads), linear.bias.chunk(heads)
    return [Linear(weight, bias) for weight, bias in zip(weights, biases, strict=True)]


def _energies(parts: dict[str, Linear], heads: int, seen: _Heads | None, site: Site) -> Tensor:
    """[heads]: how much of the output varies with each; without tokens, how much weight it has."""
    out = parts["out"].weight.chunk(heads, dim=1)
    if seen is None:
        return torch.stack([one.square().sum() for one in out])
    assert site.mask is not None
    attended = _per_head(seen.attended, site.mask)  # [heads, t, d]
    centred = attended - attended.mean(1, keepdim=True)
    scatter = centred.transpose(1, 2) @ centred / max(1, centred.shape[1] - 1)
    return torch.stack([((one @ scatter[head]) * one).sum() for head, one in enumerate(out)])


def _restored(parts: dict[str, Linear], channels: int, site: Site) -> dict[str, Linear]:
    """With so many channels of new heads, which nothing reads."""
    if not channels:
        return parts
    width = parts["q"].weight.shape[1]
    more = {name: Linear(site.fresh(channels, width), torch.zeros(channels)) for name in "qkv"}
    unread = torch.zeros(width, channels)
    return {
        **{name: _joined([parts[name], more[name]]) for name in "qkv"},
        "out": Linear(torch.cat([parts["out"].weight, unread], 1), parts["out"].bias),
    }


def _fewer(
    parts: dict[str, Linear],
    stay: Sequence[int],
    energies: Tensor,
    sizes: tuple[int, int],
    seen: _Heads | None,
    source: Attention,
    site: Site,
) -> dict[str, Linear]:
    """These heads stay; where they are to be wider than they were, there is room for more values:
    those of the others move in with the head whose shares are most like theirs, as long as there is
    some. Queries and keys get new room as well, which adds nothing at first, as the queries there
    are zero. Rotary pairs take the places that turn as theirs did, or nearly so where no multiple
    fits."""
    old, new = sizes
    heads = len(parts["q"].bias) // old
    width = parts["q"].weight.shape[1]
    q, k, v = (_split(parts[name], heads) for name in "qkv")
    out = parts["out"].weight.chunk(heads, dim=1)
    like = torch.ones(heads, heads)
    if seen is not None:
        assert site.mask is not None
        shares = nn.functional.normalize(_per_head(seen.shares, site.mask).flatten(1))
        like = shares @ shares.T
    values = {head: [v[head]] for head in stay}
    readers = {head: [out[head]] for head in stay}
    room = dict.fromkeys(stay, new - old)
    for head in sorted(set(range(heads)) - set(stay), key=lambda one: -float(energies[one])):
        at = 0
        for host in sorted(stay, key=lambda one: (-float(like[head, one]), one)):
            count = min(room[host], old - at)
            values[host].append(
                Linear(v[head].weight[at : at + count], v[head].bias[at : at + count])
            )
            readers[host].append(out[head][:, at : at + count])
            room[host] -= count
            at += count
    for head in stay:  # what is left of it nothing reads
        values[head].append(Linear(site.fresh(room[head], width), torch.zeros(room[head])))
        readers[head].append(torch.zeros(width, room[head]))
    scale = math.sqrt(new / old)
    spare = new - old
    places = torch.arange(old) if source.theta is None else _pairs(old, new)
    order = torch.cat([places, torch.tensor(sorted(set(range(new)) - set(places.tolist())))])
    order = order.long().argsort()  # of the rows as they are put together, the old ones first
    return {
        "q": _joined(
            [
                Linear(
                    torch.cat([q[head].weight * scale, torch.zeros(spare, width)])[order],
                    torch.cat([q[head].bias * scale, torch.zeros(spare)])[order],
                )
                for head in stay
            ]
        ),
        "k": _joined(
            [
                Linear(
                    torch.cat([k[head].weight, site.fresh(spare, width)])[order],
                    torch.cat([k[head].bias, torch.zeros(spare)])[order],
                )
                for head in stay
            ]
        ),
        "v": _joined([one for head in stay for one in values[head]]),
        "out": Linear(
            torch.cat([one for head in stay for one in readers[head]], 1), parts["out"].bias
        ),
    }


def _pairs(few: int, many: int) -> Tensor:
    """[few]: where in a wider head stand the dimensions of a narrower one that turn as they do. Of
    a rotary head number i and number i + half are a pair, and the i-th turns by theta^(-i / half).
    """
    half = torch.arange(few // 2)
    there = (half * many / few).round().long()
    return torch.cat([there, there + many // 2])


def _more(
    parts: dict[str, Linear],
    heads: int,
    sizes: tuple[int, int],
    wanted: int,
    seen: _Heads | None,
    source: Attention,
    site: Site,
) -> dict[str, Linear]:
    """Each head by its best approximation with fewer dimensions; of the values that find no room as
    many as can be go to twins, which look where it looks, of the heads that would lose most. Of a
    rotary one the pairs stay that turn as those of a narrower head do."""
    old, new = sizes
    width = parts["q"].weight.shape[1]
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
        if source.theta is None:
            looks.append(_narrowed(q, k, queries, keys - keys.mean(0), new))
        else:
            rows, scale = _pairs(new, old), math.sqrt(new / old)
            looks.append(
                (
                    Linear(scale * q.weight[rows], scale * q.bias[rows]),
                    Linear(k.weight[rows], k.bias[rows]),
                )
            )
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
