"""How much data there is, as prepare counts it."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from nasd.contract.config import QaData

FEATURE_TOKENS = 180.0  # SQuAD's features are 176 long on average; a little padding is left


@dataclass(frozen=True)
class Volumes:
    """How much data there is. qa_tokens: of a feature as it is computed, on average."""

    mlm_train_sequences: int
    mlm_evaluation_sequences: int
    qa_train_questions: int
    qa_test_questions: int
    qa_train_features: int
    qa_test_features: int
    qa_tokens: float = FEATURE_TOKENS

    @classmethod
    def of(cls, prepared: Mapping[str, Any], qa: QaData) -> "Volumes":
        """As the experiment's prepare counted them; what an older one did not count is 1."""
        counts = {one.name: prepared.get(one.name, 1) for one in fields(cls)}
        return cls(**counts | {"qa_tokens": min(FEATURE_TOKENS, float(qa.tokens))})
