"""The other side: transformers' Trainer on its own DistilBERT, by the recipes of its examples.

run_mlm.py: logits of all tokens, masks drawn by the collator. run_qa.py: features padded to the
most tokens there are, or to the longest of a random batch. All settings that the recipes leave
alone are the Trainer's own.
"""

from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    DataCollatorForLanguageModeling,
    DataCollatorWithPadding,
    PreTrainedTokenizerFast,
    TrainerCallback,
    default_data_collator,
)

from nasd.worker.tasks.corpus import MlmCorpus
from nasd.worker.tasks.passages import QaFeatures
from tests.bench.cases import CASES, EVALUATION_BATCH, MASK_SHARE, Case, Job, Shape
from tests.bench.material import CLS, MASK, PAD, SEP, UNK
from tests.bench.pace import Pacer


def run(job: Job, pacer: Pacer, device: Any) -> None:
    trainer, data = build(job, device)
    evaluates = CASES[job.case].train == "none"
    tokens = float(job.shape.batch * job.shape.tokens)
    if CASES[job.case].task == "qa":
        lengths = QaFeatures.load(job.folder / "qa" / ("test" if evaluates else "train")).lengths
        # A step costs what its padding makes it, so its own tokens would only be noise.
        tokens = float(lengths.sum() if evaluates else job.shape.qa_batch * lengths.mean())
    if not evaluates:
        trainer.add_callback(AtSteps(pacer, tokens))
        trainer.train()
    while evaluates:
        pacer.begin()
        trainer.predict(data)
        pacer.step(tokens)


def build(job: Job, device: Any) -> tuple[Any, Dataset]:
    """transformers.Trainer, and the examples. Needs accelerate."""
    from transformers import Trainer, TrainingArguments

    case, shape = CASES[job.case], job.shape
    data, collate = data_of(job.folder, case, shape, job.side.padded)
    arguments = TrainingArguments(
        output_dir=str(job.folder / f"trainer-{job.case}-{job.side}"),
        per_device_train_batch_size=shape.batch if case.task == "mlm" else shape.qa_batch,
        per_device_eval_batch_size=EVALUATION_BATCH,
        max_steps=10**6,
        bf16=job.side.precision == "bfloat16",
        use_cpu=device.type == "cpu",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    trainer = Trainer(model(job.folder, case), arguments, data_collator=collate, train_dataset=data)
    return trainer, data


class AtSteps(TrainerCallback):
    """Waits after each step of training."""

    def __init__(self, pacer: Pacer, tokens: float) -> None:
        self._pacer, self._tokens = pacer, tokens

    def on_step_end(self, *state: Any, **more: Any) -> None:
        self._pacer.step(self._tokens)


def model(folder: Path, case: Case) -> nn.Module:
    """transformers' DistilBERT, of which only what the case trains has gradients."""
    kind = AutoModelForMaskedLM if case.task == "mlm" else AutoModelForQuestionAnswering
    found: nn.Module = kind.from_pretrained(folder / f"theirs-{case.task}")
    # Else the loss is divided by a number of tokens that it was never a sum over, where batches
    # are accumulated.
    found.accepts_loss_kwargs = False  # type: ignore[assignment]
    for name, parameter in found.named_parameters():
        parameter.requires_grad_(name.startswith(case.theirs))
    return found


def data_of(
    folder: Path, case: Case, shape: Shape, padded: str
) -> tuple[Dataset, Callable[..., Any]]:
    """The examples that our side has, and what makes batches of them."""
    words = tokenizer(shape)
    if case.task == "mlm":
        corpus = MlmCorpus.load(folder / "mlm")
        sequences = corpus.sequences(corpus.train)
        rows: dict[str, Any] = {
            "input_ids": sequences,
            "attention_mask": sequences * 0 + 1,
        }
        return Dataset.from_dict(rows), DataCollatorForLanguageModeling(
            words, mlm_probability=MASK_SHARE
        )
    train = case.train != "none"
    features = QaFeatures.load(folder / "qa" / ("train" if train else "test"))
    ids = [features.tokens[a:b].tolist() for a, b in pairwise(features.bounds)]
    rows = words.pad(
        {"input_ids": ids, "attention_mask": [[1] * len(one) for one in ids]},
        padding="max_length" if padded == "most" else "do_not_pad",
        max_length=shape.qa_tokens,
    ).data
    if train:
        rows |= {"start_positions": features.start, "end_positions": features.end}
    collate = default_data_collator if padded == "most" else DataCollatorWithPadding(words)
    return Dataset.from_dict(rows), collate


def tokenizer(shape: Shape) -> PreTrainedTokenizerFast:
    """One that knows the special tokens; nothing is tokenised."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    special = {"[PAD]": PAD, "[UNK]": UNK, "[CLS]": CLS, "[SEP]": SEP, "[MASK]": MASK}
    others = {f"w{number}": number for number in range(len(special), shape.vocabulary)}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel({**special, **others}, unk_token="[UNK]")),
        **{f"{name.strip('[]').lower()}_token": name for name in special},
    )


def dense(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A batch of ours as the recipes have it: one label a token, -100 where there is no mask."""
    if "positions" not in batch:
        return {
            "input_ids": batch["input_ids"],
            "attention_mask": batch["attention_mask"],
            "start_positions": batch["start"],
            "end_positions": batch["end"],
        }
    labels = torch.full_like(batch["input_ids"], -100)
    labels.scatter_(1, batch["positions"], batch["targets"])
    return {
        "input_ids": batch["input_ids"],
        "attention_mask": torch.ones_like(labels),
        "labels": labels,
    }
