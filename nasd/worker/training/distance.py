"""How far a student is from its teacher: the losses of distillation.

Each is a sum over the examples of a mean over what is compared of each example, as a task's own
loss is, so it does not depend on how a batch is dealt out. Shapes: b = examples, n = tokens or
masks, w = a model's width. padding, [b, n], is true where a token is none.
"""

from math import gcd

import torch.nn.functional as F
from torch import Tensor

from nasd.contract.config import Teacher
from nasd.contract.errors import NasdError

HEAD_WIDTH = 16  # of relations, unless a config says how many heads there are


def of_logits(mine: Tensor, theirs: Tensor, temperature: float, padding: Tensor | None) -> Tensor:
    """T^2 KL(teacher || student) of logits [b, n] over positions (Hinton et al. 2015): T^2 makes up
    for what flattening takes from the gradients."""
    apart = _divergence(mine / temperature, theirs / temperature, padding)
    return temperature**2 * apart.view(len(apart), -1).mean(1).sum()


def of_classes(mine: Tensor, theirs: Tensor, temperature: float, padding: Tensor | None) -> Tensor:
    """The same of logits [b, classes], or [b, n, classes] of each token or mask."""
    apart = _divergence(mine / temperature, theirs / temperature, None)
    if apart.dim() == 1:
        return temperature**2 * apart.sum()
    return temperature**2 * _over_tokens(apart, padding)


def of_words(mine: Tensor, theirs: Tensor, temperature: float, padding: Tensor | None) -> Tensor:
    """The same of logits [b, n, vocabulary] at masks. Of the two tables one may have more rows than
    there are tokens: those are left out."""
    common = min(mine.shape[-1], theirs.shape[-1])
    return of_classes(mine[..., :common], theirs[..., :common], temperature, padding)


def of_values(mine: Tensor, theirs: Tensor, temperature: float, padding: Tensor | None) -> Tensor:
    """The square of the difference of values [b, n], which no temperature flattens."""
    return (mine.float() - theirs.float()).square().mean(1).sum()


OF_OUTPUTS = {
    "places": of_logits,
    "classes": of_classes,
    "words": of_words,
    "values": of_values,
}


def of_states(mine: Tensor, theirs: Tensor, padding: Tensor | None) -> Tensor:
    """The mean square of the difference of hidden states [b, n, w]."""
    return _over_tokens((mine.float() - theirs.float()).square().mean(-1), padding)


def of_relations(mine: Tensor, theirs: Tensor, heads: int, padding: Tensor | None) -> Tensor:
    """KL of how a layer's queries, keys or values [b, n, w], of any widths, relate to each other
    within each of so many heads (MiniLMv2, Wang et al. 2021)."""
    hidden = None if padding is None else padding[:, None, None, :]
    apart = _divergence(_related(mine, heads), _related(theirs, heads), hidden)  # [b, heads, n]
    return _over_tokens(apart.mean(1), padding)


def relation_heads(settings: Teacher, mine: int, theirs: int) -> int:
    """How many heads relations are of, where the models are so wide."""
    common = gcd(mine, theirs)
    heads = settings.relation_heads
    if heads is None:
        return max(1, common // HEAD_WIDTH)
    if common % heads:
        raise NasdError(
            f"teacher.relation_heads: {heads} heads do not divide both widths, {mine} and {theirs}:"
            f" take a divisor of {common}"
        )
    return heads


def check_widths(settings: Teacher, mine: int, theirs: int) -> None:
    """Raises NasdError where the models cannot be compared as the config says."""
    if "hidden" in settings.match and mine != theirs:
        raise NasdError(
            f'teacher.match: "hidden" compares states of one width, but the teacher\'s are {theirs}'
            f' wide and the candidates\' {mine}: take "relations"'
        )
    if "relations" in settings.match:
        relation_heads(settings, mine, theirs)


def _divergence(mine: Tensor, theirs: Tensor, padding: Tensor | None) -> Tensor:
    """KL(softmax(theirs) || softmax(mine)) over the last dimension, of what is no padding there."""
    mine, theirs = mine.float(), theirs.float()
    if padding is None:
        said, wanted = mine.log_softmax(-1), theirs.log_softmax(-1)
    else:
        said, wanted = (
            one.masked_fill(padding, -float("inf")).log_softmax(-1).masked_fill(padding, 0.0)
            for one in (mine, theirs)
        )
    apart: Tensor = F.kl_div(said, wanted, reduction="none", log_target=True).sum(-1)
    return apart


def _related(states: Tensor, heads: int) -> Tensor:
    """[b, n, w] to the scaled products of each two tokens in each head, [b, heads, n, n]."""
    examples, tokens, width = states.shape
    split = states.view(examples, tokens, heads, width // heads).transpose(1, 2)
    related: Tensor = split @ split.transpose(-1, -2) * (width // heads) ** -0.5
    return related


def _over_tokens(values: Tensor, padding: Tensor | None) -> Tensor:
    """The sum over the examples of the mean over the tokens, of values [b, n]."""
    if padding is None:
        return values.mean(1).sum()
    return (values.masked_fill(padding, 0.0).sum(1) / (~padding).sum(1)).sum()
