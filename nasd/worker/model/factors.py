"""A child's embeddings from its parent's: as they are, or as a product of two narrow factors.

What has the parent's rank is copied. A higher one computes the same: the new columns of the table
are zero, and what reads them is drawn, so that gradients find their way. A lower one keeps the
directions in which the words of the training texts differ most: principal components, weighted by
how often a word stands there. The mean word goes into the positions, since every token has one; it
moves all logits of a language model alike. Where positions have no embeddings, directions are taken
from zero instead of the mean.

Shapes: v words, r their rank, w the backbone's width.
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
    as occur there; None: all count alike."""
    if into.position is not None and source.position is not None:
        into.position.load_state_dict(source.position.state_dict())
    if into.project is not None and source.project is not None:
        into.project.load_state_dict(source.project.state_dict())
    into.norm.load_state_dict(source.norm.state_dict())
    if source.separator is not None:
        into.second.copy_(source.second)
    rank, own = _rank(into), _rank(source)
    if rank == own:
        into.load_state_dict(source.state_dict())
    elif rank is None:
        into.word.weight.copy_(full(source))
    elif own is not None and rank > own:
        _grow(into, source, own, generator)
    else:
        words = full(source)
        centre = into.position is not None
        mean, components = _principal(words, _weights(len(words), counts), rank, centre)
        _put(into, (words - mean) @ components.T, components)
        if into.position is not None:
            into.position.weight.add_(mean)


def _rank(embeddings: Embeddings) -> int | None:
    return None if embeddings.widen is None else embeddings.word.embedding_dim


def full(embeddings: Embeddings) -> Tensor:
    """The words' table, also where it is a product [v, w]."""
    table = embeddings.word.weight
    return table if embeddings.widen is None else table @ embeddings.widen.weight.T


def _grow(into: Embeddings, source: Embeddings, own: int, generator: torch.Generator) -> None:
    assert into.widen is not None and source.widen is not None
    into.word.weight.zero_()
    into.word.weight[:, :own] = source.word.weight
    drawn = torch.empty(into.widen.weight.shape).normal_(generator=generator)
    spread = source.widen.weight.std()
    into.widen.weight.copy_(drawn * spread)
    into.widen.weight[:, :own] = source.widen.weight


def _put(into: Embeddings, table: Tensor, components: Tensor) -> None:
    """table [v, r], components [r, w]."""
    assert into.widen is not None
    into.word.weight.copy_(table)
    into.widen.weight.copy_(components.T)


def _weights(words: int, counts: Tensor | None) -> Tensor:
    """[v], of sum 1."""
    weights = torch.ones(words, dtype=torch.float64)
    if counts is not None:
        seen = counts[:words].double()
        weights *= UNSEEN
        weights[: len(seen)] += seen
    return weights / weights.sum()


def _principal(words: Tensor, weights: Tensor, rank: int, centre: bool) -> tuple[Tensor, Tensor]:
    """The mean word [w], or zero, and the `rank` directions [r, w] in which words differ most from
    it."""
    exact = words.double()
    mean = weights @ exact * centre
    centred = exact - mean
    _, directions = torch.linalg.eigh(centred.T @ (centred * weights[:, None]))
    return mean.float(), directions.T.flip(0)[:rank].float().contiguous()
