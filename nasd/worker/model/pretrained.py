"""The phenotype as transformers knows models: the same modules under the same names.

Importing this module registers the classes, after which `AutoModelForQuestionAnswering` and its
like read a folder written by `phenotype.save`, and `phenotype.load` one by `save_pretrained`.
It imports only its neighbours, relatively, so that the files can travel with an exported model.
"""

# transformers' own functions are mostly without types.
# mypy: disable-error-code="no-untyped-call, untyped-decorator, attr-defined, call-arg"

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.modeling_outputs import (
    BaseModelOutput,
    MaskedLMOutput,
    QuestionAnsweringModelOutput,
)
from transformers.utils import can_return_tuple

# In this form only: transformers finds the files that have to travel by a pattern.
from .phenotype import MODEL_TYPE, Architecture, Block, Encoder, MaskedLMHead
from .spans import Judged, Window, best_answer, encode, frame, probability, trimmed, windows

# How a question is answered, as the thesis has it (5.2.2) with the recipe that it names: tokens of
# a window, tokens that neighbours share, starts and ends that are tried, tokens of an answer.
ANSWERING = {"tokens": 384, "stride": 128, "n_best": 20, "max_answer_tokens": 30}
WINDOWS = 16  # of a long context, shown to the model at once


class NasdConfig(PretrainedConfig):
    """An `Architecture` as a configuration of transformers; see there for the fields.

    answering: see ANSWERING, whose values stand for those that are missing.
    """

    model_type = MODEL_TYPE
    attribute_map = {"hidden_size": "width", "max_position_embeddings": "positions"}

    def __init__(
        self,
        vocab_size: int = 30522,
        positions: int = 512,
        width: int = 768,
        blocks: Sequence[dict[str, Any]] = (),
        pad_token_id: int = 0,
        dropout: float = 0.1,
        attention_dropout: float = 0.1,
        qa_dropout: float = 0.1,
        head_activation: str = "gelu",
        norm_eps: float = 1e-12,
        initializer_range: float = 0.02,
        rank: int | None = None,
        answering: Mapping[str, int] | None = None,
        **others: Any,
    ) -> None:
        self.vocab_size = vocab_size
        self.positions = positions
        self.width = width
        self.blocks = list(blocks)
        self.dropout = dropout
        self.attention_dropout = attention_dropout
        self.qa_dropout = qa_dropout
        self.head_activation = head_activation
        self.norm_eps = norm_eps
        self.initializer_range = initializer_range
        self.rank = rank
        self.answering = {**ANSWERING, **(answering or {})}
        super().__init__(pad_token_id=pad_token_id, **others)

    @property
    def architecture(self) -> Architecture:
        return Architecture.from_json(self.to_dict())

    @property
    def num_hidden_layers(self) -> int:
        return len(self.blocks)


class NasdPreTrainedModel(PreTrainedModel):
    config_class = NasdConfig
    # No module has this name: the encoder's keys are the same in all three models, so transformers
    # has no prefix to add or to take away.
    base_model_prefix = MODEL_TYPE
    _supports_sdpa = True
    _no_split_modules = [Block.__name__]

    def __init__(self, config: NasdConfig) -> None:
        super().__init__(config)
        self.encoder = Encoder(config.architecture)

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, MaskedLMHead):
            nn.init.zeros_(module.bias)

    def get_input_embeddings(self) -> nn.Module:
        return self.encoder.embeddings.word

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.encoder.embeddings.word = value  # type: ignore[assignment]


class NasdModel(NasdPreTrainedModel):
    """The encoder alone."""

    def __init__(self, config: NasdConfig) -> None:
        super().__init__(config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
    ) -> BaseModelOutput:
        """Token ids [b, l] to states [b, l, w].

        token_type_ids is accepted, as BERT's tokenizers give it, and has no effect.
        """
        return BaseModelOutput(last_hidden_state=self.encoder(input_ids, attention_mask))


class NasdForMaskedLM(NasdPreTrainedModel):
    """The encoder under its masked-language-model head."""

    def __init__(self, config: NasdConfig) -> None:
        super().__init__(config)
        self.head = MaskedLMHead(config.architecture)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        token_type_ids: Tensor | None = None,
    ) -> MaskedLMOutput:
        """Token ids [b, l] to logits [b, l, vocab_size]; the loss is the mean over the tokens whose
        label is not -100."""
        states = self.encoder(input_ids, attention_mask)
        logits = self.head(states, self.encoder.embeddings)
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten())
        return MaskedLMOutput(loss=loss, logits=logits)


class Answer(NamedTuple):
    """An answer as it stands in the context, from character `start` to before `end`.

    score: how sure the model is of it, from 0 to 1: its share among all pairs of a start and an end
    in the context (softmax).
    """

    text: str
    score: float
    start: int
    end: int


class NasdForQuestionAnswering(NasdPreTrainedModel):
    """The encoder under its question-answering head."""

    def __init__(self, config: NasdConfig) -> None:
        super().__init__(config)
        self.dropout = nn.Dropout(config.qa_dropout)
        self.qa_outputs = nn.Linear(config.width, 2)
        self._tokenizer: PreTrainedTokenizerBase | None = None
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        token_type_ids: Tensor | None = None,
    ) -> QuestionAnsweringModelOutput:
        """Token ids [b, l] to start and end logits [b, l]; positions [b] beyond l do not count."""
        states = self.dropout(self.encoder(input_ids, attention_mask))
        start, end = (logits.contiguous() for logits in self.qa_outputs(states).unbind(-1))
        loss = None
        if start_positions is not None and end_positions is not None:
            length = start.shape[1]
            losses = [
                F.cross_entropy(logits, places.clamp(0, length), ignore_index=length)
                for logits, places in ((start, start_positions), (end, end_positions))
            ]
            loss = (losses[0] + losses[1]) / 2
        return QuestionAnsweringModelOutput(loss=loss, start_logits=start, end_logits=end)

    @torch.no_grad()
    def answer(
        self, question: str, context: str, tokenizer: PreTrainedTokenizerBase | None = None
    ) -> Answer:
        """The best answer to `question` in `context`, which may be of any length.

        The windows and the decoding are those that the model was scored with. The tokenizer is the
        one beside the model, unless given; raises ValueError where there is none. In a context
        without words the answer is "", with a score of 0.
        """
        tokenizer = tokenizer or self._own_tokenizer()
        setting: dict[str, int] = self.config.answering
        special = frame(tokenizer)
        encoded = encode(tokenizer, [question, context])
        tokens = min(setting["tokens"], self.config.positions)
        cut = list(windows(encoded[question], encoded[context], special, tokens, setting["stride"]))
        shown = [
            judged
            for first in range(0, len(cut), WINDOWS)
            for judged in self._judge(cut[first : first + WINDOWS])
        ]
        found = best_answer(shown, setting["n_best"], setting["max_answer_tokens"])
        if found is None:
            return Answer("", 0.0, 0, 0)
        _, low, high = trimmed(context, found)
        return Answer(context[low:high], probability(found, shown), low, high)

    def _judge(self, windows: Sequence[Window]) -> list[Judged]:
        """The start and end logits of each window, in one batch."""
        ids = [torch.from_numpy(window.ids).long() for window in windows]
        pad = self.config.pad_token_id
        shown = nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=pad)  # [b, l]
        mask = nn.utils.rnn.pad_sequence([torch.ones_like(one) for one in ids], batch_first=True)
        output = self(shown.to(self.device), mask.to(self.device))
        logits = zip(
            windows,
            output.start_logits.float().cpu().numpy(),
            output.end_logits.float().cpu().numpy(),
            strict=True,
        )
        return [
            Judged(window.characters, start[: len(window.ids)], end[: len(window.ids)])
            for window, start, end in logits
        ]

    def _own_tokenizer(self) -> PreTrainedTokenizerBase:
        if self._tokenizer is None:
            try:
                # With the config, or transformers would ask whether to trust its code once more.
                found = AutoTokenizer.from_pretrained(self.name_or_path, config=self.config)
                frame(found)
            except (OSError, ValueError) as error:
                why = (str(error).splitlines() or [repr(error)])[0]
                raise ValueError(
                    f"the tokenizer beside {self.name_or_path or 'the model'} is missing or cannot"
                    f" be read ({why}): save one there, or give one to answer()"
                ) from error
            self._tokenizer = found
        return self._tokenizer


if __name__ == "nasd.worker.model.pretrained":
    # A copy that lies beside a model is found through that model's config, and serves it alone.
    AutoConfig.register(MODEL_TYPE, NasdConfig, exist_ok=True)
    AutoModel.register(NasdConfig, NasdModel, exist_ok=True)
    AutoModelForMaskedLM.register(NasdConfig, NasdForMaskedLM, exist_ok=True)
    AutoModelForQuestionAnswering.register(NasdConfig, NasdForQuestionAnswering, exist_ok=True)
