"""A teacher that is no model of the search: one that transformers loads as a model of the task, or
one that another search has made; for MLM one that could be a seed.

With the seed's vocabulary it is shown the seed's own tokens. With another one it reads the text by
itself, and only its logits can be compared (nasd.worker.tasks.by_character, and by_text); that is
not for labels of words, nor for MLM.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nasd.contract import tasks
from nasd.contract.config import Data, Teacher
from nasd.contract.errors import NasdError
from nasd.contract.labelled import NO_LABELS, Labels
from nasd.worker.model import phenotype, seed, seed_heads
from nasd.worker.model.architecture import MODEL_TYPE
from nasd.worker.model.families import FAMILIES
from nasd.worker.model.layers import Packing
from nasd.worker.model.phenotype import MaskedLM, QuestionAnswering, SequenceClassification
from nasd.worker.model.vocabulary import trimmed_model
from nasd.worker.training import distance

# What families call the modules whose outputs are an attention's queries, keys and values.
NAMES = {"q": ("query", "q_lin", "q_proj"), "k": ("key", "k_lin", "k_proj")}
NAMES |= {"v": ("value", "v_lin", "v_proj")}
SOURCE = "teacher.source"
MAPPED = "nasd_reads_text"  # in the config of a copy: it has a vocabulary of its own
LEAST_TOKENS = 64  # that a window takes, or nobody could read it


# Transformers' class for each of ours.
AUTO = {kind: f"AutoModelFor{kind.__name__}" for kind in seed_heads.KINDS.values()}


@dataclass(frozen=True)
class Wanted:
    """What a teacher is to be for. labels: of a student's outputs."""

    task: tasks.Task = tasks.QA
    labels: Labels = NO_LABELS

    @classmethod
    def of(cls, settings: Teacher, data: Data, labels: Labels) -> "Wanted":
        """labels: of the task that gives the score."""
        task = settings.of(data)
        return cls(task, labels if task.scores else NO_LABELS)

    @property
    def kind(self) -> type[Any]:
        """The class of ours that is such a model."""
        return MaskedLM if self.task is tasks.MLM else seed_heads.model_of(self.task.name)


@dataclass(frozen=True)
class Shape:
    """As much of a model as our own say of theirs."""

    width: int
    labels: tuple[str, ...] = ()


class Outside(nn.Module):
    """A model of transformers', which answers as ours do: logits of start and end, [b, l] each; or
    of labels, [b, labels] or [b, l, labels], of which `order` says where each stands among its
    own."""

    def __init__(
        self, model: Any, separator: int, labels: Sequence[str] = (), order: Sequence[int] = ()
    ) -> None:
        super().__init__()
        self.model = model
        self.separator = separator
        self.order = list(order)
        config = model.config
        width = int(getattr(config, "hidden_size", None) or config.dim)
        self.architecture = Shape(width, tuple(labels))
        self.types = int(getattr(config, "type_vocab_size", 0) or 0)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, packing: Packing | None = None
    ) -> Any:
        """packing: says what attention_mask says, and is not needed."""
        more = {}
        if self.types > 1:  # the first text is of type 0, what stands behind its [SEP] of type 1
            separators = (input_ids == self.separator).long()
            behind = separators.cumsum(1) > separators
            more["token_type_ids"] = (behind & attention_mask.bool()).long()
        said = self.model(input_ids=input_ids, attention_mask=attention_mask, **more)
        if self.order:
            return said.logits[..., self.order]
        return said.start_logits, said.end_logits

    def last_block(self) -> dict[str, nn.Module]:
        """The last block, and its attention's queries, keys and values; raises NasdError where they
        are called as no model is that we know."""
        lists = [one for one in self.model.modules() if isinstance(one, nn.ModuleList) and len(one)]
        blocks = self.model.config.num_hidden_layers
        found = [one[-1] for one in lists if len(one) == blocks]
        if len(found) == 1:
            parts: dict[str, nn.Module] = {"hidden": found[0]}
            for name, part in found[0].named_modules():
                for ours, theirs in NAMES.items():
                    if name.rpartition(".")[2] in theirs:
                        parts[ours] = part
            if len(parts) == 1 + len(NAMES):
                return parts
        raise NasdError(
            f"teacher.match: of a {self.model.config.model_type} only logits are known: take"
            ' match = ["logits"]'
        )


@dataclass(frozen=True)
class Reader:
    """A teacher with a vocabulary of its own. answers: logits of start and end, [b, t] each, for
    what its tokenizer gives; logits: [b, labels]. longest: tokens that it takes. labels, order: as
    of an `Outside`."""

    model: nn.Module
    tokenizer: Any
    longest: int
    labels: tuple[str, ...] = ()
    order: tuple[int, ...] = ()

    def logits(self, **given: Tensor) -> Tensor:
        if isinstance(self.model, SequenceClassification):
            found: Tensor = self.model(given["input_ids"], given["attention_mask"])
            return found
        said: Tensor = self.model(**given).logits
        return said[..., list(self.order)]

    def answers(self, **given: Tensor) -> tuple[Tensor, Tensor]:
        if isinstance(self.model, QuestionAnswering):
            start, end = self.model(given["input_ids"], given["attention_mask"])
            return start, end
        said = self.model(**given)
        return said.start_logits, said.end_logits


def reads_text(folder: Path) -> bool:
    """Whether what `save` has left has a vocabulary of its own."""
    return (folder / MAPPED).is_file()


def load(folder: Path, kind: type[Any] = QuestionAnswering) -> Any:
    """What `save` has left; kind: of our models, as which it answers."""
    if _is_ours(folder):
        model: Any = phenotype.load(kind, folder, 0.0)
    else:
        model = _auto(kind).from_pretrained(str(folder))
    if reads_text(folder):
        longest = int((folder / MAPPED).read_text(encoding="utf-8"))
        told = (model.architecture.labels, ()) if _is_ours(folder) else _labels_of(model)
        return Reader(model, _tokenizer(str(folder), folder), longest, *told)
    if _is_ours(folder):
        return model
    return Outside(model, int(model.config.nasd_separator), *_labels_of(model))


def _labels_of(model: Any) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Of a copy of transformers': our labels, and where each stands among its own."""
    labels, order = (getattr(model.config, f"nasd_{name}", ()) for name in ("labels", "order"))
    return tuple(labels), tuple(order)


def _auto(kind: type[Any]) -> Any:
    import transformers

    return getattr(transformers, AUTO[kind])


def save(
    settings: Teacher,
    base: Path,
    tokenizer: Any,
    tokens: int,
    folder: Path,
    trims: bool = False,
    wanted: Wanted = Wanted(),
) -> None:
    """Writes the teacher that a config names, for `load`. tokenizer: the seed's; tokens: of the
    longest window. trims: the tokenizer is left with some of the seed's tokens, and so is the
    teacher. Raises NasdError where it cannot be the teacher."""
    model: Any = _checked(settings, base, tokenizer, tokens, trims, wanted)
    if isinstance(model, Reader):
        model.tokenizer.save_pretrained(str(folder))
        (folder / MAPPED).write_text(str(model.longest), encoding="utf-8")
        if model.order:
            _note_labels(model.model, model.labels, model.order)
        model = model.model
    if isinstance(model, Outside):
        model.model.config.nasd_separator = model.separator
        if model.order:
            _note_labels(model.model, model.architecture.labels, model.order)
        model = model.model
    if isinstance(model, wanted.kind):
        phenotype.save(model, folder)
    else:
        model.save_pretrained(str(folder))


def _note_labels(model: Any, labels: Sequence[str], order: Sequence[int]) -> None:
    """In the config of a copy, for `_labels_of`."""
    model.config.nasd_labels, model.config.nasd_order = list(labels), list(order)


def vocabulary(source: str, base: Path) -> dict[str, int]:
    """The numbers of its tokens."""
    found: dict[str, int] = _tokenizer(source, files(source, base)[0].parent).get_vocab()
    return found


def files(source: str, base: Path) -> list[Path]:
    """Those that the teacher is made of."""
    with _named(source):
        return [seed.file_of(source, base, names) for names in ((seed.CONFIG,), seed.WEIGHTS)]


def look(
    settings: Teacher,
    base: Path,
    tokenizer: Any,
    tokens: int,
    width: int,
    wanted: Wanted = Wanted(),
) -> None:
    """Raises NasdError where the teacher cannot teach a model so wide what the config says."""
    model = _checked(settings, base, tokenizer, tokens, wanted=wanted)
    if isinstance(model, Reader):
        return
    distance.check_widths(settings, width, model.architecture.width)
    if settings.match != ("logits",) and isinstance(model, Outside):
        model.last_block()


def _checked(
    settings: Teacher,
    base: Path,
    tokenizer: Any,
    tokens: int,
    trims: bool = False,
    wanted: Wanted = Wanted(),
) -> Any:
    """The model in memory, once all is found to be as it must: a `Reader`, or one of ours or an
    `Outside` where it has the vocabulary of the tokenizer, or more of it where that is trimmed."""
    source = settings.source
    config_file, _ = files(source, base)
    folder = config_file.parent
    theirs = _tokenizer(source, folder)
    rows = _rows(theirs.get_vocab(), tokenizer.get_vocab(), trims)
    if rows is None and wanted.task.kind in (tasks.TAG.name, tasks.MLM.name):
        raise _error(
            source,
            f"its vocabulary is another one than the seed's, and a teacher for {wanted.task.words}"
            " is shown the seed's own tokens: take one with the seed's vocabulary",
        )
    if rows is None and settings.match != ("logits",):
        raise _error(
            source,
            "its vocabulary is another one than the seed's: only its logits can be compared, take"
            ' teacher.match = ["logits"], or a teacher with the seed\'s vocabulary',
        )
    if wanted.task is tasks.MLM:
        found: Any = _of_language(source, base)
        positions = found.architecture.positions
    elif _is_ours(folder):
        try:
            model: Any = phenotype.load(wanted.kind, folder, 0.0)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise _error(source, f"it holds no {_called(wanted.task)} model ({error})") from error
        positions = model.architecture.positions
        found = _reordered(source, model, wanted)
    else:
        model = _of_transformers(source, folder, wanted)
        order = _order(source, seed_heads.labels_of(model.config.to_dict()), wanted)
        found = Outside(model, int(tokenizer.sep_token_id), wanted.labels.names, order)
        positions = _positions(found.model.config.to_dict(), tokens)
    if rows is None:
        if not isinstance(found, Outside):
            return _reader(source, found, theirs, positions, wanted)
        told = (found.architecture.labels, tuple(found.order))
        return _reader(source, found.model, theirs, positions, wanted, *told)
    if positions < tokens:
        raise _error(
            source,
            f"it has {positions} positions, and data.{wanted.task.data}.tokens asks for {tokens}:"
            " take a smaller number there, or another teacher",
        )
    if not trims:
        return found
    return _with_rows(found, rows) if isinstance(found, Outside) else trimmed_model(found, rows)


def _with_rows(teacher: Outside, rows: NDArray[np.int64]) -> Outside:
    """With these word embeddings alone, numbered in their order, in place."""
    model = teacher.model
    words = model.get_input_embeddings()
    kept = nn.Embedding(len(rows), words.embedding_dim)
    kept.weight = nn.Parameter(words.weight.detach()[torch.from_numpy(rows)])
    model.set_input_embeddings(kept)
    model.config.vocab_size = len(rows)
    model.config.pad_token_id = int(np.argmax(rows == (model.config.pad_token_id or 0)))
    return teacher


def _of_language(source: str, base: Path) -> MaskedLM:
    """A model of any family that can be a seed, with its MLM head."""
    with _named(source):
        model, has_head = seed.load_seed(source, base, 0.0)
    if not has_head:
        raise _error(source, "it has no MLM head: take a model that was trained by MLM")
    return model


def _positions(config: Mapping[str, Any], otherwise: int) -> int:
    """Tokens that a model takes at once."""
    family = FAMILIES.get(config["model_type"])
    rows = int(config.get("max_position_embeddings", otherwise))
    return rows if family is None else rows - family.first(config)


def _called(task: tasks.Task) -> str:
    """As in "a question-answering model"."""
    return task.words.replace(" ", "-")


def _order(source: str, theirs: Sequence[str], wanted: Wanted) -> list[int]:
    """Where each of our labels stands among a teacher's; raises NasdError where one does not."""
    if wanted.task is tasks.QA or not wanted.labels.names:
        return []
    if fault := seed_heads.misfit(theirs, wanted.labels):
        raise _error(source, f"{fault}: take a teacher that tells the labels of the data")
    found = seed_heads.places(theirs, wanted.labels.names)
    assert found is not None, "they fit"
    return found


def _reordered(source: str, model: Any, wanted: Wanted) -> Any:
    """One of ours, whose outputs stand as the labels do."""
    order = _order(source, model.architecture.labels, wanted)
    if not order:
        return model
    state = model.state_dict()
    last = seed_heads.parameters(wanted.task.name)[-2:]
    made = phenotype.empty(type(model), model.architecture.with_labels(wanted.labels.names))
    made.load_state_dict({**state, **{name: state[name][order] for name in last}})
    return made


def _of_transformers(source: str, folder: Path, wanted: Wanted) -> Any:
    from transformers.utils import logging

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # it is said below
    called = _called(wanted.task)
    try:
        model, loading = _auto(wanted.kind).from_pretrained(
            str(folder), output_loading_info=True, trust_remote_code=False
        )
    except Exception as error:  # of many kinds: an unknown family, damaged files
        raise _error(
            source,
            f"transformers cannot load it as a {called} model ({_first_line(error)}):"
            " take one that is",
        ) from error
    if missing := sorted(loading["missing_keys"]):
        does = "to answer questions" if wanted.task is tasks.QA else f"for {wanted.task.words}"
        raise _error(
            source,
            f"it was not trained {does}, as it lacks {missing[0]}: fine-tune it first,"
            " or take another",
        )
    return model


def _reader(
    source: str,
    model: nn.Module,
    tokenizer: Any,
    positions: int,
    wanted: Wanted,
    labels: tuple[str, ...] = (),
    order: tuple[int, ...] = (),
) -> Reader:
    """positions: of a text's tokens that the model knows."""
    by_character = wanted.task is tasks.QA
    if by_character and (not tokenizer.is_fast or tokenizer.cls_token_id is None):
        raise _error(
            source,
            "its vocabulary is another one than the seed's, and its tokenizer does not say which"
            " characters its tokens stand for: take a teacher with a tokenizer.json and a [CLS]",
        )
    longest = min(int(min(tokenizer.model_max_length, 10**6)), positions)
    if longest < LEAST_TOKENS:
        raise _error(source, f"it takes {longest} tokens at once: take one with {LEAST_TOKENS}")
    return Reader(model, tokenizer, longest, labels, order)


def _tokenizer(source: str, folder: Path) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
    except Exception as error:  # of many kinds, among them those of parsers
        raise _error(
            source,
            f"its tokenizer cannot be read ({_first_line(error)}): put the tokenizer's files beside"
            " the model's",
        ) from error


def _rows(
    theirs: Mapping[str, int], ours: Mapping[str, int], trims: bool
) -> NDArray[np.int64] | None:
    """The teacher's numbers of our tokens; None where they are not the same ones, or, of a
    vocabulary that is trimmed, where it lacks some."""
    if not all(token in theirs if trims else theirs.get(token) == ours[token] for token in ours):
        return None
    return np.array([theirs[token] for token in sorted(ours, key=lambda one: ours[one])])


def _is_ours(folder: Path) -> bool:
    try:
        content = json.loads((folder / seed.CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and content.get("model_type") == MODEL_TYPE


@contextmanager
def _named(source: str) -> Iterator[None]:
    """The same sentences as of a seed, under the key that names the teacher."""
    try:
        yield
    except NasdError as error:
        told = str(error).removeprefix(f"seed_model.source: {source!r}: ")
        raise _error(source, told) from error


def _error(source: str, problem: str) -> NasdError:
    return NasdError(f"{SOURCE}: {source!r}: {problem}")


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".:")
