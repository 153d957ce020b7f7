"""The families of encoders that can be a seed: an entry each, and nothing of one stands elsewhere.

An entry says how a family's config.json is read, and how its weights are called. What differs
between families but changes no output is folded away when a seed is read: token type 0 is added to
the position embeddings, and position embeddings that stand before the first token's are left out.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from nasd.worker.model import phenotype

POSITIONS = "embeddings.position_embeddings.weight"
TOKEN_TYPES = "embeddings.token_type_embeddings.weight"


@dataclass(frozen=True)
class Head:
    """modules: ours, below a model, to theirs. parameters: the same of single tensors."""

    modules: Mapping[str, str]
    parameters: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Family:
    """
    name        model_type in a config.json
    prefix      of the encoder's tensors, where there is a head
    keys        ours to the ones of config.json
    embeddings  modules around the blocks, ours to theirs, below the encoder
    layer       the blocks' name
    modules     our modules of a block to theirs
    mlm, qa     the heads, ours to theirs; text and token of classifiers
    tied        the MLM head's output weights, if they are written at all: the word embeddings
    settled     what its config.json leaves unsaid, of an Architecture
    first       of a config.json: the row of the position embeddings that the first token takes
    """

    name: str
    prefix: str
    keys: Mapping[str, str]
    embeddings: Mapping[str, str]
    layer: str
    modules: Mapping[str, str]
    mlm: Head
    tied: str
    text: Head
    token: Head = Head({"classifier": "classifier"})
    qa: Head = Head({"qa_outputs": "qa_outputs"})
    settled: Mapping[str, Any] = field(default_factory=dict)
    first: Callable[[Mapping[str, Any]], int] = lambda config: 0

    def theirs(self, ours: str) -> str:
        """The checkpoint's name of one of our parameters, without the prefix."""
        if self is OWN:
            return ours
        heads = (self.mlm, self.qa, self.text, self.token)
        for head in heads:
            if ours in head.parameters:
                return head.parameters[ours]
        module, _, part = ours.rpartition(".")
        encoder, _, within = module.partition(".")
        if encoder != "encoder":
            return f"{next(one.modules[module] for one in heads if module in one.modules)}.{part}"
        if within.startswith("blocks."):
            _, number, within = within.split(".", 2)
            return f"{self.layer}.{number}.{self.modules[within]}.{part}"
        return f"{self.embeddings[within]}.{part}"

    def named(self, state: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
        """The checkpoint's tensors, or as many of the same shapes, under the names that `theirs`
        gives: the encoder's without their prefix, and what lies before the first position left
        out."""
        found = {_modern(name.removeprefix(self.prefix)): one for name, one in state.items()}
        if (first := self.first(config)) and POSITIONS in found:
            found[POSITIONS] = found[POSITIONS][first:]
        return found


def with_types(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """With token type 0 in the position embeddings, where a family has such."""
    if TOKEN_TYPES not in state or POSITIONS not in state:
        return dict(state)
    return {**state, POSITIONS: state[POSITIONS] + state[TOKEN_TYPES][0]}


def shaped(shapes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """Tensors of these shapes, without content."""
    return {name: torch.empty(list(one), device="meta") for name, one in shapes.items()}


def _modern(name: str) -> str:
    """The early checkpoints call a layer norm's weight and bias gamma and beta."""
    name = name.replace("LayerNorm.gamma", "LayerNorm.weight")
    return name.replace("LayerNorm.beta", "LayerNorm.bias")


def _behind_the_padding(config: Mapping[str, Any]) -> int:
    """fairseq's way: padding has a position of its own, and the first token takes the next one."""
    padding = config.get("pad_token_id")
    return (1 if padding is None else int(padding)) + 1


_EMBEDDINGS = {
    "embeddings.word": "embeddings.word_embeddings",
    "embeddings.position": "embeddings.position_embeddings",
    "embeddings.norm": "embeddings.LayerNorm",
}
_BERT_KEYS = {
    "width": "hidden_size",
    "blocks": "num_hidden_layers",
    "heads": "num_attention_heads",
    "size": "intermediate_size",
    "activation": "hidden_act",
    "dropout": "hidden_dropout_prob",
    "attention_dropout": "attention_probs_dropout_prob",
}
_BERT_MODULES = {
    "attention.q": "attention.self.query",
    "attention.k": "attention.self.key",
    "attention.v": "attention.self.value",
    "attention.out": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "ffns.0.linears.0": "intermediate.dense",
    "ffns.0.linears.1": "output.dense",
    "ffn_norms.0": "output.LayerNorm",
}


def _roberta(name: str) -> Family:
    """BERT's blocks; positions begin behind the padding's, and the head's activation is gelu."""
    return Family(
        name=name,
        prefix="roberta.",
        keys=_BERT_KEYS,
        embeddings=_EMBEDDINGS,
        layer="encoder.layer",
        modules=_BERT_MODULES,
        mlm=Head(
            {"head.transform": "lm_head.dense", "head.norm": "lm_head.layer_norm"},
            {"head.bias": "lm_head.bias"},
        ),
        tied="lm_head.decoder.weight",
        text=Head(
            {"classifier.transform": "classifier.dense", "classifier.out": "classifier.out_proj"}
        ),
        settled={"head_activation": "gelu", "classifier_activation": "tanh"},
        first=_behind_the_padding,
    )


OWN = Family(  # of an export, whose names are ours
    name=phenotype.MODEL_TYPE,
    prefix="",
    keys={},
    embeddings={},
    layer="",
    modules={},
    mlm=Head(
        {"head.transform": "head.transform", "head.norm": "head.norm"}, {"head.bias": "head.bias"}
    ),
    tied="",
    text=Head({}),
)
FAMILIES = {
    family.name: family
    for family in (
        Family(
            name="distilbert",
            prefix="distilbert.",
            keys={
                "width": "dim",
                "blocks": "n_layers",
                "heads": "n_heads",
                "size": "hidden_dim",
                "activation": "activation",
                "dropout": "dropout",
                "attention_dropout": "attention_dropout",
            },
            embeddings=_EMBEDDINGS,
            layer="transformer.layer",
            modules={
                "attention.q": "attention.q_lin",
                "attention.k": "attention.k_lin",
                "attention.v": "attention.v_lin",
                "attention.out": "attention.out_lin",
                "attention_norm": "sa_layer_norm",
                "ffns.0.linears.0": "ffn.lin1",
                "ffns.0.linears.1": "ffn.lin2",
                "ffn_norms.0": "output_layer_norm",
            },
            mlm=Head(
                {"head.transform": "vocab_transform", "head.norm": "vocab_layer_norm"},
                {"head.bias": "vocab_projector.bias"},
            ),
            tied="vocab_projector.weight",
            text=Head({"classifier.transform": "pre_classifier", "classifier.out": "classifier"}),
        ),
        Family(  # MiniLM is one, or an XLM-RoBERTa
            name="bert",
            prefix="bert.",
            keys=_BERT_KEYS,
            embeddings=_EMBEDDINGS,
            layer="encoder.layer",
            modules=_BERT_MODULES,
            mlm=Head(
                {
                    "head.transform": "cls.predictions.transform.dense",
                    "head.norm": "cls.predictions.transform.LayerNorm",
                },
                {"head.bias": "cls.predictions.bias"},
            ),
            tied="cls.predictions.decoder.weight",
            text=Head({"classifier.transform": "pooler.dense", "classifier.out": "classifier"}),
            settled={"classifier_activation": "tanh"},
        ),
        _roberta("roberta"),
        _roberta("xlm-roberta"),
        _roberta("camembert"),
        OWN,
    )
}
# Encoders all the same, and what stands in the way of searching them.
REFUSED = {
    "albert": "all its blocks share one set of weights, so none of them can be changed by itself",
    "mpnet": "its attention adds a bias for each distance, which the blocks here do not",
    "deberta": "its attention looks at relative positions, which the blocks here do not",
    "deberta-v2": "its attention looks at relative positions, which the blocks here do not",
}


def known() -> str:
    """The families that are taken, for a sentence."""
    return ", ".join(FAMILIES)
