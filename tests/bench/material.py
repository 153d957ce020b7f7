"""What both sides start from: the same random weights, and the same random tokens.

Speed does not depend on what the tokens say. The lengths of the questions' features are SQuAD's.

    mlm/, qa/                  caches as `prepare` leaves them
    weights-mlm/, weights-qa/  as a stage leaves them
    theirs-mlm/, theirs-qa/    the same weights, as transformers' save_pretrained leaves them
"""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from transformers import DistilBertConfig, DistilBertForMaskedLM, DistilBertForQuestionAnswering

from nasd.contract.squad import Question
from nasd.worker.model import phenotype
from nasd.worker.model.seed import load_seed
from nasd.worker.model.spans import NO_CHARACTERS
from nasd.worker.tasks.corpus import SpecialTokens
from nasd.worker.tasks.passages import QaFeatures
from tests.bench.cases import BLOCKS, EVALUATION_BATCH, Shape

# The ids of [PAD], [UNK], [CLS], [SEP] and [MASK].
PAD, UNK, CLS, SEP, MASK = range(5)
TEST_FEATURES = 4 * EVALUATION_BATCH
HELD_OUT = 4  # sequences; no step looks at them


def make(folder: Path, shape: Shape, steps: int, dropout: float | None = None) -> None:
    """Fills `folder` for so many steps of training. dropout: all of the model's own by default."""
    torch.manual_seed(0)
    weights(folder, shape, dropout)
    random = np.random.default_rng(0)
    corpus(folder / "mlm", shape, steps * shape.batch, random)
    features(shape, steps * shape.qa_batch, random).save(folder / "qa" / "train")
    test = features(shape, TEST_FEATURES, random)
    test.save(folder / "qa" / "test")
    asked = [
        Question(str(n), "", "of no meaning", "which?", (("no", 3),)) for n in range(len(test))
    ]
    rows = [asdict(question) for question in asked]
    (folder / "qa" / "test_questions.json").write_text(json.dumps(rows))
    (folder / "qa" / "manifest.json").write_text("{}")
    (folder / "cache").mkdir()


def weights(folder: Path, shape: Shape, dropout: float | None) -> None:
    dropouts = {} if dropout is None else dict.fromkeys(DROPOUTS, dropout)
    config = DistilBertConfig(
        vocab_size=shape.vocabulary,
        max_position_embeddings=shape.positions,
        n_layers=BLOCKS,
        n_heads=shape.heads,
        dim=shape.width,
        hidden_dim=shape.hidden,
        pad_token_id=PAD,
        **dropouts,
    )
    theirs = DistilBertForMaskedLM(config)
    theirs.save_pretrained(folder / "theirs-mlm")
    ours, _ = load_seed("theirs-mlm", folder, None)
    phenotype.save(ours, folder / "weights-mlm")
    answering = DistilBertForQuestionAnswering.from_pretrained(folder / "theirs-mlm")
    answering.save_pretrained(folder / "theirs-qa")
    twin = phenotype.load_for_answering(folder / "weights-mlm", torch.Generator())
    twin.qa_outputs.load_state_dict(answering.qa_outputs.state_dict())
    phenotype.save(twin, folder / "weights-qa")


DROPOUTS = ("dropout", "attention_dropout", "qa_dropout")


def corpus(folder: Path, shape: Shape, sequences: int, random: np.random.Generator) -> None:
    """The files of an MlmCorpus."""
    folder.mkdir()
    total = sequences + HELD_OUT
    pieces = random.integers(MASK + 1, shape.vocabulary, (total, shape.tokens - 2))
    np.save(folder / "pieces.npy", pieces.astype(np.uint16))
    np.save(folder / "evaluation.npy", np.arange(HELD_OUT))
    np.save(folder / "train.npy", np.arange(HELD_OUT, total))
    special = SpecialTokens(CLS, SEP, MASK, PAD, shape.vocabulary, (PAD, UNK, CLS, SEP, MASK))
    (folder / "manifest.json").write_text(json.dumps({"tokens": asdict(special)}))


def features(shape: Shape, count: int, random: np.random.Generator) -> QaFeatures:
    """So many, of SQuAD's lengths, each with an answer somewhere."""
    shares = (np.arange(count) + 0.5) / count
    known = (np.arange(len(shape.qa_lengths)) + 0.5) / len(shape.qa_lengths)
    lengths = np.interp(shares, known, shape.qa_lengths).round().astype(np.int64)
    lengths = random.permutation(lengths)
    bounds = np.concatenate([[0], np.cumsum(lengths)])
    tokens = random.integers(MASK + 1, shape.vocabulary, bounds[-1]).astype(np.int32)
    tokens[bounds[:-1]], tokens[bounds[1:] - 1] = CLS, SEP
    starts = random.integers(1, lengths - 2).astype(np.int32)
    return QaFeatures(
        tokens=tokens,
        bounds=bounds,
        characters=np.full((len(tokens), 2), NO_CHARACTERS, dtype=np.int32),
        start=starts,
        end=starts + 1,
        question=np.arange(count, dtype=np.int32),
    )
