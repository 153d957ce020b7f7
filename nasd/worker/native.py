"""A trained model under one of transformers' own classes, for what knows those alone: servers,
converters, and whoever runs no code of others.

Those classes have blocks that are alike, with one feed-forward network of two layers each. What a
search made narrower in some blocks alone is filled up with zeros, which computes the same and takes
more parameters; what no such class computes is refused.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from nasd.contract import tasks
from nasd.contract.errors import NasdError
from nasd.contract.genotype import GATED
from nasd.worker.examples import example
from nasd.worker.model import factors, phenotype
from nasd.worker.model.architecture import Architecture
from nasd.worker.model.families import FAMILIES, TOKEN_TYPES
from nasd.worker.model.seed import SECOND
from nasd.worker.model.seed_heads import model_of

FOLDER = "native"  # below an exported model
TOLERANCE = 1e-4  # of a logit, or of the largest one above 1, as a regressor's may be
WORDS = "encoder.embeddings.word.weight"
PRODUCT = tuple(f"encoder.embeddings.{name}" for name in ("widen.weight", "frequent.weight", "row"))
TYPES = 2  # of tokens, in BERT's way


@dataclass(frozen=True)
class Native:
    """auto: the class that transformers makes. parameters: of all, with the zeros. difference: the
    largest of a logit between it and the model."""

    auto: str
    parameters: int
    difference: float


@dataclass(frozen=True)
class _Class:
    """One of nasd.worker.model.families, as what it is written. fits: whether it computes what an
    architecture does around the blocks; told the activation in a classifier of texts, None where
    the model is none. config: what its config.json says beside the keys there."""

    fits: Callable[[Architecture, str | None], bool]
    config: Callable[[Architecture], dict[str, Any]]


def _bert_like(arch: Architecture) -> dict[str, Any]:
    return {
        "layer_norm_eps": arch.norm_eps,
        "type_vocab_size": TYPES,
        "classifier_dropout": arch.classifier_dropout,
    }


CLASSES = {  # the first that fits
    "distilbert": _Class(
        lambda arch, activation: (
            arch.embedding_width is None
            and arch.separator is None
            and arch.norm_eps == 1e-12
            and activation in (None, "relu")
        ),
        lambda arch: {
            "qa_dropout": arch.qa_dropout,
            "seq_classif_dropout": arch.classifier_dropout,
        },
    ),
    "bert": _Class(
        lambda arch, activation: arch.embedding_width is None and activation in (None, "tanh"),
        _bert_like,
    ),
    "electra": _Class(
        lambda arch, activation: activation in (None, "gelu"),
        lambda arch: {**_bert_like(arch), "embedding_size": arch.embedding_width or arch.width},
    ),
}


def write(model: phenotype.AnyModel, tokenizer: Any, folder: Path, task: str) -> Native:
    """Writes it, with the tokenizer, into `folder`. model: of seed_heads.model_of(task).

    Raises NasdError where no class of transformers computes this model, with what stands in the
    way, or computes it otherwise.
    """
    import transformers

    arch = model.architecture
    activation = arch.classifier_activation if _whole_texts(task) else None
    if reason := unfit(arch, activation):
        raise NasdError(f"--native: {reason}, which none of transformers' own classes computes")
    size = max(block.ffns[0].sizes[0] for block in arch.blocks)
    name = next(name for name, one in CLASSES.items() if one.fits(arch, activation))
    config = transformers.AutoConfig.for_model(name, **_config(name, arch, size, task))
    auto = f"AutoModelFor{model_of(task).__name__}"
    copy = getattr(transformers, auto).from_config(config)
    _fill(copy, name, _even(model, size))
    copy.eval()
    difference, largest = _difference(model.eval(), copy, by_token=not _whole_texts(task))
    if not difference <= TOLERANCE * largest:
        raise NasdError(
            f"--native: the logits of {type(copy).__name__} differ from the model's by"
            f" {difference:.1e}"
        )
    copy.save_pretrained(folder)
    names = ["input_ids", "attention_mask"]
    tokenizer.model_input_names = names if name == "distilbert" else [*names, "token_type_ids"]
    tokenizer.save_pretrained(folder)
    return Native(type(copy).__name__, sum(one.numel() for one in copy.parameters()), difference)


def unfit(arch: Architecture, activation: str | None) -> str:
    """What a model has that none of transformers' own classes computes; "" where one does.
    activation: in its classifier of texts, where it has one."""
    if arch.pre_norm or arch.theta is not None or not arch.biases:
        return "it is a ModernBERT's, whose blocks are of two kinds here"
    if not any(one.fits(arch, activation) for one in CLASSES.values()):
        return f"its classifier has {activation} around such embeddings"
    differ: dict[str, set[Any]] = {
        "attention heads": {block.heads for block in arch.blocks},
        "activations": {ffn.activation for block in arch.blocks for ffn in block.ffns},
    }
    for what, found in differ.items():
        if len(found) > 1:
            return f"its blocks have different {what} ({', '.join(map(str, sorted(found)))})"
    for place, block in enumerate(arch.blocks, 1):
        if len(block.ffns) > 1:
            return f"its block {place} has {len(block.ffns)} feed-forward networks"
        (ffn,) = block.ffns
        if len(ffn.sizes) > 1:
            return f"the feed-forward network of its block {place} has {len(ffn.sizes) + 1} layers"
        if ffn.activation in GATED or ffn.activation == "relu2":
            return f"its activation is {ffn.activation}"
        if block.convolution is not None or block.branch is not None:
            return f"its block {place} has convolutions"
        if block.role is not None or block.bare:
            return f"its block {place} attends in ModernBERT's way"
    return ""


def _whole_texts(task: str) -> bool:
    return model_of(task) is phenotype.SequenceClassification


def _config(name: str, arch: Architecture, size: int, task: str) -> dict[str, Any]:
    block = arch.blocks[0]
    told = {
        "width": arch.width,
        "blocks": len(arch.blocks),
        "heads": block.heads,
        "size": size,
        "activation": block.ffns[0].activation,
        "dropout": arch.dropout,
        "attention_dropout": arch.attention_dropout,
    }
    keys = FAMILIES[name].keys
    found = {keys[key]: value for key, value in told.items()}
    found |= {
        "vocab_size": arch.vocab_size,
        "max_position_embeddings": arch.positions,
        "pad_token_id": arch.pad_token_id,
        "initializer_range": arch.initializer_range,
        **CLASSES[name].config(arch),
    }
    if arch.labels:
        labels = dict(enumerate(arch.labels))
        found |= {"id2label": labels, "label2id": {one: place for place, one in labels.items()}}
    if tasks.kind_of(task) == tasks.REGRESS.name:
        found |= {"num_labels": 1, "problem_type": "regression"}
    return found


def _even(model: phenotype.AnyModel, size: int) -> dict[str, Tensor]:
    """Our weights with all networks as wide as the widest and all heads there, by units and heads
    that give nothing, and the word embeddings as one table."""
    arch, found = model.architecture, dict(model.state_dict())
    if arch.rank is not None:
        found = {name: weight for name, weight in found.items() if name not in PRODUCT}
        found[WORDS] = factors.full(model.encoder.embeddings).detach()
    for place in range(len(arch.blocks)):
        here = f"encoder.blocks.{place}"
        first, second = (f"{here}.ffns.0.linears.{nth}" for nth in (0, 1))
        _widen(found, [first], second, size)
        attention = f"{here}.attention"
        _widen(found, [f"{attention}.{name}" for name in "qkv"], f"{attention}.out", arch.width)
    return found


def _widen(state: dict[str, Tensor], layers: Iterable[str], reader: str, size: int) -> None:
    """Gives the layers, and what reads them, so many channels, the new ones zero, in place."""
    for layer in layers:
        more = size - len(state[f"{layer}.bias"])
        state[f"{layer}.weight"] = pad(state[f"{layer}.weight"], (0, 0, 0, more))  # rows
        state[f"{layer}.bias"] = pad(state[f"{layer}.bias"], (0, more))
    reads = state[f"{reader}.weight"]
    state[f"{reader}.weight"] = pad(reads, (0, size - reads.shape[1]))  # columns


def _fill(copy: Any, name: str, ours: Mapping[str, Tensor]) -> None:
    """Copies all of our weights; what the class has besides, a second type of tokens, is ours too,
    or nothing."""
    family, there = FAMILIES[name], copy.state_dict()
    left = set(there)
    with torch.no_grad():
        for own, weight in ours.items():
            if own == SECOND:
                continue
            theirs = family.theirs(own)
            theirs = theirs if theirs in there else f"{family.prefix}{theirs}"
            there[theirs].copy_(weight)
            left.discard(theirs)
        if (types := f"{family.prefix}{TOKEN_TYPES}") in left:
            there[types].zero_()
            if SECOND in ours:
                there[types][1].copy_(ours[SECOND])
            left.discard(types)
    assert not left, f"nothing was said of {left}"


def _difference(
    model: phenotype.AnyModel, copy: torch.nn.Module, by_token: bool
) -> tuple[float, float]:
    """The largest of a logit, over examples of several lengths, padded too; and the largest logit,
    or 1 if that is more. by_token: whether it is a token's, which counts where there is one."""
    arch, worst, largest = model.architecture, 0.0, 1.0
    for examples, tokens in ((1, 2), (2, max(2, arch.positions // 2)), (2, arch.positions)):
        words, mask = example(arch, examples, tokens)
        behind = model.encoder.embeddings.behind(words)
        types = {} if behind is None else {"token_type_ids": behind.long()}
        with torch.no_grad():
            said = model(words, mask)
            other = copy(input_ids=words, attention_mask=mask, **types)
        for one, two in zip(_logits(said), _logits(other), strict=True):
            apart = (one - two).abs()
            worst = max(worst, float((apart[mask.bool()] if by_token else apart).max()))
            largest = max(largest, float(one.abs().max()))
    return worst, largest


def _logits(said: Any) -> Iterable[Tensor]:
    if isinstance(said, Tensor):
        return (said,)
    if isinstance(said, tuple):
        return said
    return (said.start_logits, said.end_logits) if "start_logits" in said else (said.logits,)
