"""The model a genotype decodes to: a DistilBERT whose blocks may differ from each other.

Thesis 4.1: a backbone is a list of encoder blocks; each has one multi-head self-attention and one
or more feed-forward networks. Everything around the blocks (embeddings, norms, heads) is the
seed's, DistilBERT's unless the architecture says otherwise, so that the unmodified seed computes
exactly what it computed before.

Here are the encoder under the head of each task, and a model's files. This and the neighbours that
it imports need only torch and safetensors, because they also travel with exported models. Shapes:
b = examples, l = tokens of an example, k = chosen tokens of an example, w = the backbone's width.
"""

import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .architecture import CONFIG, Architecture, norm_of
from .embeddings import Embeddings
from .encoder import Encoder
from .layers import ACTIVATIONS, CLASSIFIERS, Depthwise, Dropout, Packing

WEIGHTS = "model.safetensors"
DRAWN = {nn.init.kaiming_uniform_, nn.init.normal_, nn.init.uniform_}  # what is dear in a new model


class MaskedLMHead(nn.Module):
    """Logits over the vocabulary, DistilBERT's way. Its last layer multiplies with the word
    embeddings, which it is handed rather than holds, so each weight has one name and one owner."""

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        inner = arch.embedding_width or arch.width
        self.transform = nn.Linear(arch.width, inner, bias=arch.biases)
        self.activation = ACTIVATIONS[arch.head_activation]
        self.norm = norm_of(inner, arch)
        self.bias = nn.Parameter(torch.zeros(arch.vocab_size))

    def forward(self, states: Tensor, words: Embeddings) -> Tensor:
        """[b, k, w] and the embeddings to logits [b, k, vocab_size]."""
        return words.logits(self.norm(self.activation(self.transform(states))), self.bias)


class MaskedLM(nn.Module):
    """The encoder under a masked-language-model head."""

    head_name: ClassVar[str] = "head"

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        self.architecture = arch
        self.encoder = Encoder(arch)
        self.head = MaskedLMHead(arch)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        positions: Tensor | None = None,
        known: Tensor | None = None,
    ) -> Tensor:
        """Token ids [b, l] to logits [b, l, vocab_size].

        With `positions` [b, k], the places of the wanted tokens in each example, logits
        [b, k, vocab_size] at those alone. known: see the encoder.
        """
        states = self.encoder(input_ids, attention_mask, positions, known)
        logits: Tensor = self.head(states, self.encoder.embeddings)
        return logits


class DeepHead(nn.Module):
    """ModernBERT's head of a task: a layer, its activation and a norm before the outputs."""

    def __init__(self, arch: Architecture, outputs: int, dropout: float) -> None:
        super().__init__()
        self.dense = nn.Linear(arch.width, arch.width, bias=arch.biases)
        self.activation = ACTIVATIONS[arch.head_activation]
        self.norm = norm_of(arch.width, arch)
        self.dropout = Dropout(dropout)
        self.out = nn.Linear(arch.width, outputs)

    def forward(self, states: Tensor) -> Tensor:
        """[b, k, w] to [b, k, outputs]."""
        given: Tensor = self.out(self.dropout(self.norm(self.activation(self.dense(states)))))
        return given


def answering_head(arch: Architecture) -> tuple[Dropout, nn.Module]:
    """What stands on the encoder for questions: a dropout, and what gives the two logits."""
    if arch.deep_head:
        return Dropout(0.0), DeepHead(arch, 2, arch.qa_dropout)
    return Dropout(arch.qa_dropout), nn.Linear(arch.width, 2)


class QuestionAnswering(nn.Module):
    """The encoder under a head for the answer's start and end, as its seed's family has it."""

    head_name: ClassVar[str] = "qa_outputs"

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        self.architecture = arch
        self.encoder = Encoder(arch)
        self.dropout, self.qa_outputs = answering_head(arch)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        packing: Packing | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Token ids [b, l] to the logits [b, l] of the answer's start and of its end.

        packing: says what attention_mask says, and spares computing the padding, whose logits mean
        nothing then.
        """
        states = _states(self.encoder, input_ids, attention_mask, packing)
        logits = self.qa_outputs(self.dropout(states))
        start, end = logits.unbind(-1)
        return start.contiguous(), end.contiguous()


class ClassificationHead(nn.Module):
    """DistilBERT's head on the first token's state; with tanh BERT's, whose first layer is the
    pooler."""

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        self.transform = nn.Linear(arch.width, arch.width)
        self.activation = CLASSIFIERS[arch.classifier_activation]
        self.dropout = Dropout(arch.classifier_dropout)
        self.out = nn.Linear(arch.width, len(arch.labels))

    def forward(self, states: Tensor) -> Tensor:
        """[b, w] to logits [b, labels]."""
        logits: Tensor = self.out(self.dropout(self.activation(self.transform(states))))
        return logits


class SequenceClassification(nn.Module):
    """The encoder under a head for the label of a whole text; with one label, for its number."""

    head_name: ClassVar[str] = "classifier"

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        self.architecture = arch
        self.encoder = Encoder(arch)
        self.classifier = ClassificationHead(arch)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        packing: Packing | None = None,
    ) -> Tensor:
        """Token ids [b, l] to logits [b, labels]; packing as in QuestionAnswering."""
        logits: Tensor = self.classifier(
            _states(self.encoder, input_ids, attention_mask, packing)[:, 0]
        )
        return logits


class TokenClassification(nn.Module):
    """The encoder under a head for the label of each token."""

    head_name: ClassVar[str] = "classifier"

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        self.architecture = arch
        self.encoder = Encoder(arch)
        self.dropout = Dropout(arch.dropout)
        self.classifier = nn.Linear(arch.width, len(arch.labels))

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        packing: Packing | None = None,
    ) -> Tensor:
        """Token ids [b, l] to logits [b, l, labels]; packing as in QuestionAnswering."""
        states = _states(self.encoder, input_ids, attention_mask, packing)
        logits: Tensor = self.classifier(self.dropout(states))
        return logits


def _states(
    encoder: Encoder, input_ids: Tensor, attention_mask: Tensor | None, packing: Packing | None
) -> Tensor:
    """[b, l, w]; where it is packed, 0 in the padding."""
    if packing is None:
        found: Tensor = encoder(input_ids, attention_mask)
        return found
    return encoder.packed(input_ids, packing)


AnyModel = MaskedLM | QuestionAnswering | SequenceClassification | TokenClassification
Model = TypeVar("Model", MaskedLM, QuestionAnswering, SequenceClassification, TokenClassification)


@torch.no_grad()
def initialise(module: nn.Module, generator: torch.Generator, spread: float = 0.02) -> None:
    """BERT's initialisation of all that `module` holds (Devlin et al. 2019), in place.

    Weights are normal with standard deviation `spread`, biases and the padding's embedding 0, layer
    norms the identity. The draws come from `generator`, on the CPU and in the modules' order, so
    they are the same on every device.
    """
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Embedding):
            drawn = torch.empty(part.weight.shape).normal_(0.0, spread, generator=generator)
            if isinstance(part, nn.Embedding) and part.padding_idx is not None:
                drawn[part.padding_idx] = 0.0
            part.weight.copy_(drawn)
        elif isinstance(part, nn.LayerNorm):
            part.weight.fill_(1.0)
        elif isinstance(part, Depthwise):
            part.pass_through()
        if isinstance(part, nn.Linear | nn.LayerNorm | MaskedLMHead) and part.bias is not None:
            part.bias.zero_()


def empty(kind: type[Model], arch: Architecture) -> Model:
    """A model with uninitialised weights: for who fills every one, as torch's own take a second.

    Not by way of the meta device, which torch's manual has for that: what it does in Python there
    imports sympy and torch's compiler, a second and more of each process that only reads a model
    (findings/torch-meta-device-imports-the-compiler.sh).
    """
    with Undrawn():
        return kind(arch)


class Undrawn(TorchFunctionMode):
    """Leaves what torch would draw as it lies in memory."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        return given["tensor"] if func in DRAWN else func(*args, **given)


def save(model: AnyModel, folder: Path) -> None:
    """Writes config.json and model.safetensors, each whole or not at all, and durably."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "architectures": [f"NasdFor{type(model).__name__}"],
        **model.architecture.to_json(),
    }
    state = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    _replace(folder / CONFIG, lambda path: path.write_text(json.dumps(config, indent=2) + "\n"))
    _replace(folder / WEIGHTS, lambda path: save_file(state, path, metadata={"format": "pt"}))
    _sync(folder)


def load_architecture(folder: Path) -> Architecture:
    """The architecture of a model that `save`, or transformers, wrote into `folder`."""
    return Architecture.from_json(json.loads((folder / CONFIG).read_text(encoding="utf-8")))


def load_state(folder: Path) -> dict[str, Tensor]:
    """The weights of a model that `save`, or transformers, wrote into `folder`, on the CPU."""
    return load_file(folder / WEIGHTS)


def load(
    kind: type[Model], folder: Path, dropout: float | None = None, head: Path | None = None
) -> Model:
    """The model in `folder` as a `kind`, on the CPU; `dropout` overrides all three of its own.

    head: a folder with a `kind` whose head it has, where its own folder has none. Raises ValueError
    where the folder holds another kind, or weights that do not fit.
    """
    arch = load_architecture(folder).with_dropout(dropout)
    if head is None:
        return _filled(kind, arch, folder, {})
    own = f"{kind.head_name}."
    theirs = {name: one for name, one in load_state(head).items() if name.startswith(own)}
    return _filled(kind, arch.with_labels(load_architecture(head).labels), folder, theirs)


def load_for_answering(
    folder: Path, generator: torch.Generator, dropout: float | None = None
) -> QuestionAnswering:
    """As `load`, but from a MaskedLM too: its encoder, under a head drawn from `generator`."""
    return load_under_head(QuestionAnswering, folder, generator, dropout)


def load_under_head(
    kind: type[Model],
    folder: Path,
    generator: torch.Generator,
    dropout: float | None = None,
    labels: Iterable[str] = (),
) -> Model:
    """The same of any kind. labels: a classifier's."""
    arch = load_architecture(folder).with_dropout(dropout).with_labels(labels)
    fresh = nn.ModuleDict({kind.head_name: empty(kind, arch).get_submodule(kind.head_name)})
    initialise(fresh, generator, arch.initializer_range)
    return _filled(kind, arch, folder, fresh.state_dict())


def _filled(
    kind: type[Model], arch: Architecture, folder: Path, fallback: Mapping[str, Tensor]
) -> Model:
    """A `kind` with the weights in `folder`; those it lacks come from `fallback`."""
    model = empty(kind, arch)
    state = {**fallback, **load_state(folder)}
    mine = ("encoder.", f"{kind.head_name}.")  # another kind's head is passed over
    try:
        # Copied, not adopted: where a tensor lies in the file could bend its results' last bit.
        model.load_state_dict({name: state[name] for name in state if name.startswith(mine)})
    except RuntimeError as error:
        raise ValueError(f"{folder} holds no {kind.__name__}: {error}") from error
    return model


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    """Lets `write` make a file under a temporary name; syncs it and puts it in place."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        _sync(temporary)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
