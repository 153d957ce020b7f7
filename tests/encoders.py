"""Random small models of every family that can be a seed, as transformers has them, and tokenizers
of each kind."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

VOCABULARY = 97
POSITIONS = 32


@dataclass(frozen=True)
class Kind:
    """stem: of transformers' classes. shape: draws a config's values. heads: what it has beside the
    encoder. specials: the ids of padding, beginning, separator, unknown and mask."""

    stem: str
    shape: Callable[[Any], dict[str, Any]]
    heads: tuple[str, ...] = ("MaskedLM", "QuestionAnswering")
    more: Mapping[str, Any] = field(default_factory=dict)


def _sizes(draw: Any) -> tuple[int, int, int, int]:
    """Width, heads, blocks and the size between."""
    heads = draw(st.integers(1, 4))
    width = heads * 2 * draw(st.integers(2, 5))
    return width, heads, draw(st.integers(1, 3)), draw(st.integers(3, 40))


def _bert(draw: Any, **more: Any) -> dict[str, Any]:
    width, heads, blocks, size = _sizes(draw)
    return {
        "hidden_size": width,
        "num_hidden_layers": blocks,
        "num_attention_heads": heads,
        "intermediate_size": size,
        "hidden_act": draw(st.sampled_from(["gelu", "relu"])),
        "layer_norm_eps": draw(st.sampled_from([1e-12, 1e-5])),
        "type_vocab_size": draw(st.integers(1, 2)),
        "max_position_embeddings": POSITIONS,
        **more,
    }


def _distilbert(draw: Any) -> dict[str, Any]:
    width, heads, blocks, size = _sizes(draw)
    return {
        "dim": width,
        "n_layers": blocks,
        "n_heads": heads,
        "hidden_dim": size,
        "activation": draw(st.sampled_from(["gelu", "relu"])),
        "max_position_embeddings": POSITIONS,
    }


def _roberta(draw: Any) -> dict[str, Any]:
    padding = draw(st.integers(0, 3))
    return _bert(draw, pad_token_id=padding, max_position_embeddings=POSITIONS + padding + 1)


def _electra(draw: Any) -> dict[str, Any]:
    shape = _bert(draw)
    return {**shape, "embedding_size": draw(st.sampled_from([shape["hidden_size"], 6, 12]))}


def _modernbert(draw: Any) -> dict[str, Any]:
    """With biases or without, positions as either version tells of them, and any reach."""
    width, heads, blocks, size = _sizes(draw)
    every, some = draw(st.integers(1, 3)), draw(st.booleans())
    shape: dict[str, Any] = {
        "hidden_size": width,
        "num_hidden_layers": blocks + 1,
        "num_attention_heads": heads,
        "intermediate_size": size,
        "max_position_embeddings": POSITIONS,
        "local_attention": draw(st.sampled_from([2, 5, 8, 64])),
        "norm_eps": draw(st.sampled_from([1e-12, 1e-5])),
        "pad_token_id": draw(st.integers(0, 3)),
        "global_attn_every_n_layers": every,
        "layer_types": [
            "sliding_attention" if place % every else "full_attention"
            for place in range(blocks + 1)
        ],
        "rope_parameters": {
            kind: {"rope_type": "default", "rope_theta": draw(st.sampled_from([100.0, 10_000.0]))}
            for kind in ("full_attention", "sliding_attention")
        },
        **dict.fromkeys(("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"), 4),
    }
    if some:
        for name in ("norm", "attention", "mlp", "classifier", "decoder"):
            shape[f"{name}_bias"] = draw(st.booleans())
    return shape


KINDS = {
    "distilbert": Kind("DistilBert", _distilbert),
    "bert": Kind("Bert", _bert),
    "roberta": Kind("Roberta", _roberta),
    "xlm-roberta": Kind("XLMRoberta", _roberta),
    "camembert": Kind("Camembert", _roberta),
    "electra": Kind("Electra", _electra),
    "modernbert": Kind("ModernBert", _modernbert),
}


@st.composite
def configs(draw: Any, name: str) -> dict[str, Any]:
    return {"vocab_size": VOCABULARY, **KINDS[name].shape(draw)}


def model(name: str, head: str, config: Mapping[str, Any], seed: int = 0) -> Any:
    """A model of transformers' in which every parameter, norms and biases too, is random."""
    import transformers

    stem = KINDS[name].stem
    made = getattr(transformers, f"{stem}Config")(**config)
    found = getattr(transformers, f"{stem}{head and 'For'}{head or 'Model'}")(made).eval()
    draws = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=draws))
    return found


def batch(padding: int, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Token ids [4, 21], none of them the padding's but in the padding, and their mask."""
    draws = torch.Generator().manual_seed(seed)
    ids = torch.randint(4, VOCABULARY, (4, 21), generator=draws)
    mask = (torch.arange(21) < torch.tensor([[21], [20], [9], [1]])).long()
    return torch.where(mask.bool(), ids, padding), mask


# -- tokenizers ----------------------------------------------------------------------------------

TEXTS = [
    "Mara keeps the red kite in the old mill, and Tom mends it.",
    "Zoë hides two   drums\nbehind the long barn — who has seen them?",
    "The lamp is in the boathouse. Nobody sells it!",
]


def wordpiece(texts: list[str], size: int) -> Any:
    """BERT's."""
    from tokenizers import BertWordPieceTokenizer
    from transformers import BertTokenizerFast  # type: ignore[attr-defined]

    made = BertWordPieceTokenizer()
    made.train_from_iterator(texts, vocab_size=size, show_progress=False)
    return BertTokenizerFast(tokenizer_object=made._tokenizer)


def bytes_(texts: list[str], size: int) -> Any:
    """RoBERTa's: byte pairs, and two separators between the texts of a pair."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import RobertaTokenizerFast

    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    made = ByteLevelBPETokenizer()
    made.train_from_iterator(texts, vocab_size=size, special_tokens=special, show_progress=False)
    import json

    told = json.loads(made._tokenizer.to_str())["model"]
    return RobertaTokenizerFast(vocab=told["vocab"], merges=[tuple(m) for m in told["merges"]])


def unigram(texts: list[str], size: int) -> Any:
    """XLM-RoBERTa's: SentencePiece's unigrams, whose pieces begin with the space before them."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import XLMRobertaTokenizerFast  # type: ignore[attr-defined]

    special = ["<s>", "<pad>", "</s>", "<unk>"]
    made = Tokenizer(models.Unigram())
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=size, special_tokens=special, unk_token="<unk>", show_progress=False
    )
    made.train_from_iterator(texts, trainer)
    import json

    vocabulary = [tuple(one) for one in json.loads(made.to_str())["model"]["vocab"]]
    return XLMRobertaTokenizerFast(vocab=[*vocabulary, ("<mask>", 0.0)])


def modern(texts: list[str], size: int) -> Any:
    """ModernBERT's: byte pairs in BERT's frame, whose characters have the space before a word."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    made = Tokenizer(models.BPE(unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(texts, trainer)
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B [SEP]",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=made,
        **dict(zip(
            ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"),
            special,
            strict=True,
        )),
    )  # fmt: skip


TOKENIZERS = {"wordpiece": wordpiece, "bytes": bytes_, "unigram": unigram, "modern": modern}


def write(folder: Path, name: str, head: str, config: Mapping[str, Any], tokenizer: Any) -> Path:
    """A seed as people have them: weights, config.json, and the tokenizer beside them."""
    made = model(name, head, {**config, "vocab_size": len(tokenizer)})
    made.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
