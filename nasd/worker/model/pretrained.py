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
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.modeling_outputs import (
    BaseModelOutput,
    MaskedLMOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)
from transformers.utils import can_return_tuple

# In this form only: transformers finds the files that have to travel by a pattern. All of them are
# named here, also those that only others need, as transformers 4 looks into this file alone.
from .architecture import MODEL_TYPE, Architecture
from .attention import Attention  # noqa: F401
from .embeddings import Embeddings  # noqa: F401
from .encoder import Block, Encoder
from .feedforward import FeedForward  # noqa: F401
from .layers import Dropout  # noqa: F401
from .phenotype import ClassificationHead, MaskedLMHead, answering_head
from .spans import (
    Judged,
    Window,
    best_answer,
    encode,
    frame,
    no_answer,
    probability,
    trimmed,
    windows,
)

# How a question is answered, as the thesis has it (5.2.2) with the recipe that it names: tokens of
# a window, tokens that neighbours share, starts and ends that are tried, tokens of an answer. With
# a `threshold` beside them there may be no answer: where that is surer by more.
ANSWERING = {"tokens": 384, "stride": 128, "n_best": 20, "max_answer_tokens": 30}
WINDOWS = 16  # of a long context, or texts, shown to the model at once
LONGEST = 512  # tokens of a text that is classified, unless the model was scored with another cut
UNCOUNTED = -100  # the label of a token that no loss is of


class NasdConfig(PretrainedConfig):
    """An `Architecture` as a configuration of transformers; see there for the fields.

    answering: see ANSWERING, whose values stand for those that are missing. longest: tokens that a
    text is cut to before it is classified.
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
        embedding_width: int | None = None,
        biases: bool = True,
        pre_norm: bool = False,
        theta: float | None = None,
        local_theta: float | None = None,
        window: int | None = None,
        deep_head: bool = False,
        separator: int | None = None,
        frequent: int = 0,
        answering: Mapping[str, float] | None = None,
        labels: Sequence[str] = (),
        classifier_activation: str = "relu",
        classifier_dropout: float = 0.2,
        longest: int = LONGEST,
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
        self.embedding_width = embedding_width
        self.biases = biases
        self.pre_norm = pre_norm
        self.theta = theta
        self.local_theta = local_theta
        self.window = window
        self.deep_head = deep_head
        self.separator = separator
        self.frequent = frequent
        self.answering = {**ANSWERING, **(answering or {})}
        self.labels = list(labels)
        self.classifier_activation = classifier_activation
        self.classifier_dropout = classifier_dropout
        self.longest = longest
        if labels:  # as transformers' own classifiers say it
            others["id2label"] = dict(enumerate(map(str, labels)))
            others["label2id"] = {str(label): place for place, label in enumerate(labels)}
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
        self._tokenizer: PreTrainedTokenizerBase | None = None

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, MaskedLMHead):
            nn.init.zeros_(module.bias)

    def get_input_embeddings(self) -> nn.Module:
        return self.encoder.embeddings.word

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.encoder.embeddings.word = value  # type: ignore[assignment]

    def resize_token_embeddings(self, *arguments: Any, **options: Any) -> nn.Embedding:
        """Raises ValueError where some words have embeddings of their own beside one table."""
        if self.encoder.embeddings.frequent is not None:
            raise ValueError(
                "this model's frequent words have embeddings of their own, so that its vocabulary"
                " cannot be changed by resizing one table"
            )
        found: nn.Embedding = super().resize_token_embeddings(*arguments, **options)
        return found

    def own_tokenizer(self, by: str) -> PreTrainedTokenizerBase:
        """The one beside the model, read once; raises ValueError where there is none. by: what asks
        for it."""
        if self._tokenizer is None:
            try:
                # With the config, or transformers would ask whether to trust its code once more.
                found = AutoTokenizer.from_pretrained(self.name_or_path, config=self.config)
                frame(found)
            except (OSError, ValueError) as error:
                why = (str(error).splitlines() or [repr(error)])[0]
                raise ValueError(
                    f"the tokenizer beside {self.name_or_path or 'the model'} is missing or cannot"
                    f" be read ({why}): save one there, or give one to {by}()"
                ) from error
            self._tokenizer = found
        return self._tokenizer


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
        self.dropout, self.qa_outputs = answering_head(config.architecture)
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
        without words the answer is "", with a score of 0; so it is of a model that was trained on
        questions without an answer, where it is sure enough that there is none.
        """
        tokenizer = tokenizer or self.own_tokenizer("answer")
        setting: dict[str, Any] = self.config.answering
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
        most = setting.get("threshold")
        if most is not None and no_answer(shown) - found.score > most:
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


class Prediction(NamedTuple):
    """A label and how sure the model is of it, from 0 to 1 (softmax); or, of a model that tells
    numbers, "" and the number."""

    label: str
    score: float


class NasdForSequenceClassification(NasdPreTrainedModel):
    """The encoder under a head for the label of a text, or of a pair of them; or for a number."""

    def __init__(self, config: NasdConfig) -> None:
        super().__init__(config)
        self.classifier = ClassificationHead(config.architecture)
        self.post_init()

    @property
    def tells_numbers(self) -> bool:
        return len(self.config.labels) == 1

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        token_type_ids: Tensor | None = None,
    ) -> SequenceClassifierOutput:
        """Token ids [b, l] to logits [b, labels]; labels [b] of a loss, or numbers."""
        logits = self.classifier(self.encoder(input_ids, attention_mask)[:, 0])
        loss = None
        if labels is not None and self.tells_numbers:
            loss = F.mse_loss(logits.flatten(), labels.flatten().to(logits.dtype))
        elif labels is not None:
            loss = F.cross_entropy(logits, labels.flatten())
        return SequenceClassifierOutput(loss=loss, logits=logits)

    @torch.no_grad()
    def predict(
        self,
        texts: Sequence[str],
        pairs: Sequence[str] | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> list[Prediction]:
        """The label, or the number, of each text, or of each with its pair; cut as the model was
        scored. The tokenizer is the one beside the model, unless given; raises ValueError where
        there is none."""
        tokenizer = tokenizer or self.own_tokenizer("predict")
        found = []
        for first in range(0, len(texts), WINDOWS):
            part = slice(first, first + WINDOWS)
            second = None if pairs is None else list(pairs[part])
            shown = tokenizer(
                list(texts[part]), second, truncation="longest_first", padding=True,
                max_length=min(self.config.longest, self.config.positions), return_tensors="pt",
            )  # fmt: skip
            ids, mask = (shown[name].to(self.device) for name in ("input_ids", "attention_mask"))
            logits = self(ids, mask).logits.float().cpu()
            if self.tells_numbers:
                found += [Prediction("", float(one)) for one in logits[:, 0]]
                continue
            best = logits.softmax(-1).max(-1)
            found += [
                Prediction(self.config.labels[int(place)], float(score))
                for score, place in zip(best.values, best.indices, strict=True)
            ]
        return found


class NasdForTokenClassification(NasdPreTrainedModel):
    """The encoder under a head for the label of each token."""

    def __init__(self, config: NasdConfig) -> None:
        super().__init__(config)
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = nn.Linear(config.width, len(config.labels))
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        token_type_ids: Tensor | None = None,
    ) -> TokenClassifierOutput:
        """Token ids [b, l] to logits [b, l, labels]; labels [b, l] of a loss, of which UNCOUNTED do
        not count."""
        logits = self.classifier(self.dropout(self.encoder(input_ids, attention_mask)))
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=UNCOUNTED)
        return TokenClassifierOutput(loss=loss, logits=logits)

    @torch.no_grad()
    def predict(
        self,
        texts: Sequence[Sequence[str]],
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> list[list[Prediction]]:
        """The label of each word of each text, at the word's first token; "" with a score of 0 for
        a word that the model is not shown, as the text is too long or the word of no token."""
        tokenizer = tokenizer or self.own_tokenizer("predict")
        found = []
        for first in range(0, len(texts), WINDOWS):
            part = [list(words) for words in texts[first : first + WINDOWS]]
            shown = tokenizer(
                part, is_split_into_words=True, truncation=True, padding=True,
                max_length=min(self.config.longest, self.config.positions), return_tensors="pt",
            )  # fmt: skip
            ids, mask = (shown[name].to(self.device) for name in ("input_ids", "attention_mask"))
            best = self(ids, mask).logits.float().cpu().softmax(-1).max(-1)
            for place, words in enumerate(part):
                told = [Prediction("", 0.0)] * len(words)
                owners = shown.word_ids(place)
                for at in reversed(range(len(owners))):  # so that a word's first token comes last
                    if owners[at] is not None:
                        label = self.config.labels[int(best.indices[place, at])]
                        told[owners[at]] = Prediction(label, float(best.values[place, at]))
                found.append(told)
        return found


if __name__ == "nasd.worker.model.pretrained":
    # A copy that lies beside a model is found through that model's config, and serves it alone.
    AutoConfig.register(MODEL_TYPE, NasdConfig, exist_ok=True)
    AutoModel.register(NasdConfig, NasdModel, exist_ok=True)
    AutoModelForMaskedLM.register(NasdConfig, NasdForMaskedLM, exist_ok=True)
    AutoModelForQuestionAnswering.register(NasdConfig, NasdForQuestionAnswering, exist_ok=True)
    AutoModelForSequenceClassification.register(
        NasdConfig, NasdForSequenceClassification, exist_ok=True
    )
    AutoModelForTokenClassification.register(NasdConfig, NasdForTokenClassification, exist_ok=True)
