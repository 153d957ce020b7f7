"""An exported model as one of transformers' own classes: the same model, without nasd's code."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from nasd.contract.errors import NasdError
from nasd.worker import native
from nasd.worker.model import phenotype
from nasd.worker.model.architecture import Architecture
from nasd.worker.model.seed_heads import KINDS

WORDS = 40
PLAIN = Architecture(WORDS, 16, 12, (), initializer_range=0.3)


def block(heads: int = 3, activation: str = "gelu", *sizes: int, **more: Any) -> dict[str, Any]:
    return {"heads": heads, "ffns": [{"activation": activation, "sizes": list(sizes)}], **more}


def made(arch: Architecture, task: str) -> phenotype.AnyModel:
    model = phenotype.empty(KINDS[task], arch)
    phenotype.initialise(model, torch.Generator().manual_seed(1), arch.initializer_range)
    for name, one in model.named_parameters():  # biases and norms tell nothing while they are plain
        if one.dim() == 1:
            with torch.no_grad():
                one.add_(torch.randn(one.shape, generator=torch.Generator().manual_seed(len(name))))
    if arch.separator is not None:
        model.encoder.embeddings.second.normal_(generator=torch.Generator().manual_seed(2))
    return model


class Tokenizer:
    model_input_names: Any = None

    def save_pretrained(self, folder: Path) -> None:
        pass


def written(arch: Architecture, task: str, folder: Path) -> native.Native:
    return native.write(made(arch, task), Tokenizer(), folder, task)


LABELS = ("no", "yes", "maybe")
CASES = {
    "questions": (PLAIN, "qa", "DistilBertForQuestionAnswering"),
    "norms of BERT's": (replace(PLAIN, norm_eps=1e-6), "qa", "BertForQuestionAnswering"),
    "two texts": (replace(PLAIN, separator=3), "qa", "BertForQuestionAnswering"),
    "narrow embeddings": (replace(PLAIN, embedding_width=8), "qa", "ElectraForQuestionAnswering"),
    "a product of two": (replace(PLAIN, rank=4), "qa", "DistilBertForQuestionAnswering"),
    "frequent words": (
        replace(PLAIN, rank=4, frequent=3),
        "qa",
        "DistilBertForQuestionAnswering",
    ),
    "labels": (
        replace(PLAIN, labels=LABELS),
        "classify",
        "DistilBertForSequenceClassification",
    ),
    "labels behind a pooler": (
        replace(PLAIN, labels=LABELS, classifier_activation="tanh"),
        "classify",
        "BertForSequenceClassification",
    ),
    "labels of ELECTRA's": (
        replace(PLAIN, labels=LABELS, classifier_activation="gelu"),
        "classify",
        "ElectraForSequenceClassification",
    ),
    "a number": (
        replace(PLAIN, labels=("stars",)),
        "regress",
        "DistilBertForSequenceClassification",
    ),
    "words": (
        replace(PLAIN, labels=LABELS, norm_eps=1e-6),
        "tag",
        "BertForTokenClassification",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_it_loads_without_other_code_and_gives_the_same_logits(case: str, tmp_path: Path) -> None:
    arch, task, kind = CASES[case]
    arch = arch.with_blocks([block(3, "gelu", 20), block(3, "gelu", 7)])
    found = written(arch, task, tmp_path)
    assert found.auto == kind
    assert found.difference <= 1e-5
    auto = getattr(transformers, f"AutoModelFor{KINDS[task].__name__}")
    loaded = auto.from_pretrained(tmp_path, trust_remote_code=False)
    assert type(loaded).__name__ == kind
    assert sum(one.numel() for one in loaded.parameters()) == found.parameters
    if arch.labels and task != "regress":
        assert tuple(loaded.config.id2label.values()) == LABELS
    words = torch.tensor([[5, 3, 9, 3, 7]])
    mask = torch.ones_like(words)
    types = {"token_type_ids": torch.tensor([[0, 0, 1, 1, 1]])} if arch.separator else {}
    with torch.no_grad():
        expected = made(arch, task).eval()(words, mask)
        said = loaded.eval()(input_ids=words, attention_mask=mask, **types)
    first = expected[0] if isinstance(expected, tuple) else expected
    other = said.start_logits if isinstance(expected, tuple) else said.logits
    torch.testing.assert_close(other, first, atol=1e-5, rtol=0)


@settings(max_examples=15)
@given(
    st.lists(st.integers(1, 30), min_size=1, max_size=4),
    st.sampled_from([1, 2, 3, 4]),
    st.sampled_from(["relu", "gelu"]),
    st.integers(0, 3),
)
def test_of_all_widths_the_widest_is_written_and_the_zeros_change_nothing(
    tmp_path_factory: pytest.TempPathFactory,
    sizes: list[int],
    heads: int,
    activation: str,
    gone: int,
) -> None:
    folder = tmp_path_factory.mktemp("native")
    blocks: list[Any] = [block(heads, activation, size) for size in sizes]
    if gone < heads and gone:  # heads of the first
        blocks[0]["remaining"] = heads - gone
    arch = PLAIN.with_blocks(blocks)
    found = written(arch, "qa", folder)
    assert found.difference <= 1e-5
    assert transformers.AutoConfig.from_pretrained(folder).hidden_dim == max(sizes)


REFUSED = {
    "different attention heads (2, 3)": [block(3, "gelu", 8), block(2, "gelu", 8)],
    "different activations (gelu, relu)": [block(3, "gelu", 8), block(3, "relu", 8)],
    "block 2 has 3 layers": [block(3, "gelu", 8), block(3, "gelu", 8, 8)],
    "block 1 has 2 feed-forward networks": [
        {"heads": 3, "ffns": [{"activation": "gelu", "sizes": [8]}] * 2}
    ],
    "block 1 has convolutions": [block(3, "gelu", 8, convolution=3)],
    "activation is relu2": [block(3, "relu2", 8)],
}


@pytest.mark.parametrize("why", REFUSED)
def test_what_none_of_these_classes_computes_is_refused_with_what_it_is(
    why: str, tmp_path: Path
) -> None:
    with pytest.raises(NasdError) as told:
        written(PLAIN.with_blocks(REFUSED[why]), "qa", tmp_path / "native")
    assert why in str(told.value)
    assert str(told.value).startswith("--native: ")
    assert not (tmp_path / "native").exists()
