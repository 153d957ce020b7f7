"""The families of encoders that can be a seed: an entry each, and nothing of one stands elsewhere.

An entry says how a family's config.json is read, and how its weights are called. What differs
between families but changes no output is folded away when a seed is read: token type 0 is added to
the position embeddings, position embeddings that stand before the first token's are left out, and
matrices that a family keeps in one are taken apart.
"""

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from nasd.worker.model import phenotype
from nasd.worker.model.architecture import MODEL_TYPE
from nasd.worker.model.layers import ACTIVATIONS

POSITIONS = "embeddings.position_embeddings.weight"
TOKEN_TYPES = "embeddings.token_type_embeddings.weight"
UNREAD = "(none)"  # of a head that has other layers here: it is drawn anew
ANSWERING = phenotype.QuestionAnswering.head_name


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
    activations its names of them to those of a genotype
    optional    what a checkpoint may lack, by the end of its name: it is zero then
    fused       the name of a module that holds several, to theirs
    first       of a config.json: the row of the position embeddings that the first token takes
    blocks      of a config.json: what a genotype's JSON says of each block beside its modules
    more        of a config.json: what else it says of an Architecture
    unfit       of a config.json: why its model cannot be computed here; "" if it can
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
    activations: Mapping[str, str] = field(
        default_factory=lambda: {name: name for name in ACTIVATIONS}
    )
    optional: tuple[str, ...] = ()
    fused: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    first: Callable[[Mapping[str, Any]], int] = lambda config: 0
    blocks: Callable[[Mapping[str, Any], int], list[dict[str, Any]]] = lambda config, count: (
        [{}] * count
    )
    more: Callable[[Mapping[str, Any]], dict[str, Any]] = lambda config: {}
    unfit: Callable[[Mapping[str, Any]], str] = lambda config: ""

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
        for name in list(found):
            module, _, part = name.rpartition(".")
            for fused, parts in self.fused.items():
                if module.endswith(fused):
                    above, whole = module.removesuffix(fused), found.pop(name)
                    for one, rows in zip(parts, whole.chunk(len(parts)), strict=True):
                        found[f"{above}{one}.{part}"] = rows
        return found

    def lacks(self, name: str, there: Container[str]) -> bool:
        """Whether what has this name of theirs is missing, and may be."""
        return name not in there and name.endswith(self.optional)

    def has_language_head(self, there: Container[str]) -> bool:
        found = all(f"{module}.weight" in there for module in self.mlm.modules.values())
        shared = set(self.mlm.modules.values()) & set(self.qa.modules.values())
        # Where tasks have the same layer, it is the other one's where that has outputs.
        return found and not (shared and self._has(self.qa, there))

    def answers(self, there: Container[str], config: Mapping[str, Any]) -> bool:
        """Whether a checkpoint has a head for questions, by its tensors, and where those could be
        another task's, by what it calls itself."""
        if self is OWN:
            return f"{ANSWERING}.weight" in there or f"{ANSWERING}.out.weight" in there
        if ANSWERING in self.qa.modules.values():
            return self._has(self.qa, there)
        named = [str(one) for one in config.get("architectures") or ()]
        return self._has(self.qa, there) and any("QuestionAnswering" in one for one in named)

    def _has(self, head: Head, there: Container[str]) -> bool:
        return all(f"{module}.weight" in there for module in head.modules.values())


def heads_left(config: Mapping[str, Any], blocks: int, heads: int) -> dict[int, int]:
    """Of each block that heads were pruned from (Michel et al. 2019), how many are left.

    transformers up to version 4 writes down which went, and version 5 reads it no more. Raises
    ValueError where such a head is none of the model's.
    """
    left = {}
    for block, pruned in (config.get("pruned_heads") or {}).items():
        if not 0 <= int(block) < blocks or not all(0 <= head < heads for head in pruned):
            raise ValueError(f"there are no heads {pruned} in a block {block} to be pruned")
        if pruned:
            left[int(block)] = heads - len({*pruned})
    return left


def second_text(state: Mapping[str, Tensor]) -> Tensor | None:
    """What token type 1 adds to type 0, [e]; None where there are no two, or they are the same."""
    types = state.get(TOKEN_TYPES)
    if types is None or len(types) < 2 or torch.equal(types[0], types[1]):
        return None
    return types[1] - types[0]


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


def _by_turns(config: Mapping[str, Any], count: int) -> list[dict[str, Any]]:
    """ModernBERT's blocks: every so many is global; the first has no norm for its attention."""
    every = config.get("global_attn_every_n_layers") or 3
    kinds = config.get("layer_types") or [
        "sliding_attention" if place % every else "full_attention" for place in range(count)
    ]
    roles = {"sliding_attention": "local", "full_attention": "global"}
    return [
        {"role": roles[kind], **({} if place else {"bare": True})}
        for place, kind in zip(range(count), kinds, strict=True)
    ]


def _of_modernbert(config: Mapping[str, Any]) -> dict[str, Any]:
    """Either way in which ModernBERT's config.json tells of its positions."""
    rope = config.get("rope_parameters") or {}
    found: dict[str, float] = {}
    for kind, key, usual in (
        ("full_attention", "global_rope_theta", 160_000.0),
        ("sliding_attention", "local_rope_theta", 10_000.0),
    ):
        said = (rope.get(kind) or {}).get("rope_theta") or config.get(key, usual)
        found[kind] = float(said or found["full_attention"])
    return {
        "biases": any(config.get(f"{name}_bias") for name in ("attention", "mlp", "norm"))
        or bool(config.get("classifier_bias")),
        "pre_norm": True,
        "theta": found["full_attention"],
        "local_theta": found["sliding_attention"],
        "window": int(config["local_attention"]) // 2,
        "deep_head": True,
        "head_activation": config.get("classifier_activation", "gelu"),
        "qa_dropout": float(config.get("classifier_dropout", 0.0)),
        "norm_eps": float(config.get("norm_eps", 1e-5)),
    }


def _unfit_modernbert(config: Mapping[str, Any]) -> str:
    for one in (config.get("rope_parameters") or {}).values():
        if isinstance(one, dict) and (kind := one.get("rope_type", "default")) != "default":
            return f"its rotary positions are scaled ({kind})"
    if (act := config.get("classifier_activation", "gelu")) not in ACTIVATIONS:
        return f"its heads' activation is {act!r}"
    if int(config["local_attention"]) < 2:
        return "its local attention sees no neighbours"
    width, heads = config["hidden_size"], config["num_attention_heads"]
    return "its heads have an odd width" if width // heads % 2 else ""


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
    name=MODEL_TYPE,
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
        Family(
            name="electra",
            prefix="electra.",
            keys={**_BERT_KEYS, "embedding_width": "embedding_size"},
            embeddings={**_EMBEDDINGS, "embeddings.project": "embeddings_project"},
            layer="encoder.layer",
            modules=_BERT_MODULES,
            mlm=Head(  # the generator's
                {
                    "head.transform": "generator_predictions.dense",
                    "head.norm": "generator_predictions.LayerNorm",
                },
                {"head.bias": "generator_lm_head.bias"},
            ),
            tied="generator_lm_head.weight",
            text=Head(
                {
                    "classifier.transform": "classifier.dense",
                    "classifier.out": "classifier.out_proj",
                }
            ),
            settled={"classifier_activation": "gelu"},
            more=lambda config: {
                "head_activation": "gelu",
                "embedding_width": None
                if config["embedding_size"] == config["hidden_size"]
                else int(config["embedding_size"]),
            },
        ),
        Family(
            name="modernbert",
            prefix="model.",
            keys={
                "width": "hidden_size",
                "blocks": "num_hidden_layers",
                "heads": "num_attention_heads",
                "size": "intermediate_size",
                "activation": "hidden_activation",
                "dropout": "mlp_dropout",
                "attention_dropout": "attention_dropout",
                "window": "local_attention",
            },
            embeddings={
                "embeddings.word": "embeddings.tok_embeddings",
                "embeddings.norm": "embeddings.norm",
                "final_norm": "final_norm",
            },
            layer="layers",
            modules={
                "attention.q": "attn.Wq",
                "attention.k": "attn.Wk",
                "attention.v": "attn.Wv",
                "attention.out": "attn.Wo",
                "attention_norm": "attn_norm",
                "ffns.0.linears.0": "mlp.Wi",
                "ffns.0.linears.1": "mlp.Wo",
                "ffn_norms.0": "mlp_norm",
            },
            mlm=Head(
                {"head.transform": "head.dense", "head.norm": "head.norm"},
                {"head.bias": "decoder.bias"},
            ),
            tied="decoder.weight",
            text=Head({"classifier.transform": UNREAD, "classifier.out": UNREAD}),
            token=Head({"classifier": UNREAD}),
            qa=Head(
                {
                    "qa_outputs.dense": "head.dense",
                    "qa_outputs.norm": "head.norm",
                    "qa_outputs.out": "classifier",
                }
            ),
            activations={"gelu": "geglu"},
            optional=(".bias",),
            fused={"attn.Wqkv": ("attn.Wq", "attn.Wk", "attn.Wv")},
            blocks=_by_turns,
            more=_of_modernbert,
            unfit=_unfit_modernbert,
        ),
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
