"""How much data there is, as prepare counts it."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from nasd.contract.config import Data

FEATURE_TOKENS = 180.0  # SQuAD's features are 176 long on average; a little padding is left
LABELLED = ("labelled_train", "labelled_test", "labelled_tokens")
TEXT_TOKENS = 64.0  # of a labelled text, before prepare has seen them


@dataclass(frozen=True)
class Volumes:
    """How much data there is; nothing of what the config has no section of. qa_tokens,
    labelled_tokens: of a feature, and of a labelled text, as it is computed, on average. by_task:
    of a search of several tasks, with the labelled texts of each that has such."""

    mlm_train_sequences: int = 0
    mlm_evaluation_sequences: int = 0
    qa_train_questions: int = 0
    qa_test_questions: int = 0
    qa_train_features: int = 0
    qa_test_features: int = 0
    qa_tokens: float = FEATURE_TOKENS
    labelled_train: int = 0
    labelled_test: int = 0
    labelled_tokens: float = TEXT_TOKENS
    by_task: Mapping[str, "Volumes"] = field(default_factory=dict)

    def of_task(self, task: str) -> "Volumes":
        return self.by_task.get(task, self)

    @classmethod
    def of(cls, prepared: Mapping[str, Any], data: Data) -> "Volumes":
        """As the experiment's prepare counted them; what an older one did not count is 1."""
        counts = {
            one.name: prepared.get(one.name, 1) for one in fields(cls) if one.name != "by_task"
        }
        longest = FEATURE_TOKENS if data.qa is None else float(data.qa.tokens)
        counts["qa_tokens"] = min(FEATURE_TOKENS, longest)
        counts["labelled_tokens"] = prepared.get("labelled_tokens") or TEXT_TOKENS
        found = cls(**counts)
        several = {
            task: replace(found, **{name: told[name] for name in LABELLED})
            for task, told in (prepared.get("labelled_tasks") or {}).items()
        }
        return replace(found, by_task=several)
