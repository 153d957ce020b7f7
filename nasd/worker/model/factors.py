"""A child's embeddings from its parent's: as they are, or as a product of two narrow factors.

What has the parent's shape is copied. A higher rank computes the same: the new columns of the table
are zero, and what reads them is drawn, so that gradients find their way. A lower one keeps the
directions in which the words of the training texts differ most: principal components, weighted by
how often a word stands there. The words that stand there most often may keep all they have, and the
components are of the others then. The mean word goes into the positions, since every token has one;
it moves all logits of a language model alike. Where positions have no embeddings, directions are
taken from zero instead of the mean.

Shapes: v words, f frequent ones, r the others' rank, w the backbone's width.
"""

import torch
from torch import Tensor

from nasd.worker.model.embeddings import Embeddings

UNSEEN = 0.1  # of an occurrence, that a word counts for which the texts do not have


@torch.no_grad()
def fill(
    into: Embeddings, source: Embeddings, generator: torch.Generator, counts: Tensor | None = None
) -> None:
    """Fills the child's embeddings, in place. counts: of each word in the training texts, as many
    as occur there; None: all count alike, and those that come first are the frequent ones."""
    if into.position is not None and source.position is not None:
        into.position.load_state_dict(source.position.state_dict())
    if into.project is not None and source.project is not None:
        into.project.load_state_dict(source.project.state_dict())
    into.norm.load_state_dict(source.norm.state_dict())
    if source.separator is not None:
        into.second.copy_(source.second)
    (rank, often), (own, theirs) = _shape(into), _shape(source)
    if (rank, often) == (own, theirs):
        into.load_state_dict(source.state_dict())
    elif rank is None:
        into.word.weight.copy_(full(source))
    elif own is not None and rank > own and often == theirs:
        _grow(into, source, own, generator)
    else:
        words = full(source)
        weights = _weights(len(words), counts)
        order = _order(source, often, weights)
        centre = into.position is not None
        rare = order[often:]
        mean, components = _principal(words[rare], weights[rare], rank, centre)
        assert into.widen is not None
        into.word.weight.copy_((words[rare] - mean) @ components.T)
        into.widen.weight.copy_(components.T)
        if into.frequent is not None:
            into.frequent.weight.copy_(words[order[:often]] - mean)
            into.row[order] = torch.arange(len(order), dtype=into.row.dtype)
        if into.position is not None:
            into.position.weight.add_(mean)


def _shape(embeddings: Embeddings) -> tuple[int | None, int]:
    """The rank, and how many frequent words there are."""
    often = 0 if embeddings.frequent is None else embeddings.frequent.num_embeddings
    return None if embeddings.widen is None else embeddings.word.embedding_dim, often


def full(embeddings: Embeddings) -> Tensor:
    """The words' table, also where it is a product [v, w]."""
    table = embeddings.word.weight
    if embeddings.widen is None:
        return table
    table = table @ embeddings.widen.weight.T
    if embeddings.frequent is None:
        return table
    return torch.cat([embeddings.frequent.weight, table])[embeddings.row]


def _order(source: Embeddings, often: int, weights: Tensor) -> Tensor:
    """The numbers of all words [v], so many frequent ones first: those that are the parent's before
    others."""
    if source.frequent is not None:
        theirs = source.row < source.frequent.num_embeddings
        weights = weights + theirs * weights.sum()
    frequent = weights.argsort(descending=True, stable=True)[:often].sort().values
    rare = torch.ones(len(weights), dtype=torch.bool)
    rare[frequent] = False
    return torch.cat([frequent, rare.nonzero()[:, 0]])


def _grow(into: Embeddings, source: Embeddings, own: int, generator: torch.Generator) -> None:
    assert into.widen is not None and source.widen is not None
    into.word.weight.zero_()
    into.word.weight[:, :own] = source.word.weight
    drawn = torch.empty(into.widen.weight.shape).normal_(generator=generator)
    spread = source.widen.weight.std()
    into.widen.weight.copy_(drawn * spread)
    into.widen.weight[:, :own] = source.widen.weight
    if into.frequent is not None and source.frequent is not None:
        into.frequent.load_state_dict(source.frequent.state_dict())
        into.row.copy_(source.row)


def _weights(words: int, counts: Tensor | None) -> Tensor:
    """[v]"""
    weights = torch.ones(words, dtype=torch.float64)
    if counts is not None:
        seen = counts[:words].double()
        weights *= UNSEEN
        weights[: len(seen)] += seen
    return weights


def _principal(words: Tensor, weights: Tensor, rank: int, centre: bool) -> tuple[Tensor, Tensor]:
    """The mean word [w], or zero, and the `rank` directions [r, w] in which words differ most from
    it."""
    exact, shares = words.double(), weights / weights.sum()
    mean = shares @ exact * centre
    centred = exact - mean
    _, directions = torch.linalg.eigh(centred.T @ (centred * shares[:, None]))
    return mean.float(), directions.T.flip(0)[:rank].float().contiguous()
