"""What is trained on and scored by: a section for each kind of data."""

import re
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from nasd.contract import tasks
from nasd.contract.sections.fields import (
    Count,
    Plain,
    Real,
    Rows,
    Section,
    Whole,
    as_json,
    auto_or_bool,
)


def kind_of(section: Any) -> str:
    """Of a table of [data] by a name of its own; "" of any other."""
    found = section.get("kind") if isinstance(section, dict) else getattr(section, "kind", "")
    return found if isinstance(found, str) else ""


class Corpus(Section):
    """One text corpus: local text files, or a data set of the hub."""

    files: tuple[Plain, ...] = ()
    """UTF-8 text, a paragraph a line; or JSON lines, CSV or Parquet; gzipped or not."""
    hub: Plain | None = None
    """Or a data set of the hub."""
    config: str | None = None
    """The data set's configuration, where it has several."""
    revision: str | None = None
    """The data set's branch, tag or commit."""
    split: str = "train"
    """The data set's split."""
    column: str = "text"
    """The column with the text, of a data set, and of JSON lines, CSV and Parquet."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if bool(self.files) == bool(self.hub):
            raise ValueError("give either files or hub")
        return self


class MlmData(Section):
    corpora: Annotated[tuple[Corpus, ...], Field(min_length=1)]
    """What is read, one after the other, and then shuffled."""
    tokens: Annotated[Whole, Field(ge=8, le=10**6)]
    """In a sequence; longer texts are split."""
    mask_share: Annotated[Real, Field(gt=0.0, lt=1.0)] = 0.15
    """Of the tokens: 80 % of these are masked, 10 % replaced, 10 % left."""
    fixed_masks: Annotated[Literal["auto"] | bool, BeforeValidator(auto_or_bool)] = "auto"
    """While only new modules train: draw the masks of a sequence once, so that what frozen layers
    make of it can be kept; `"auto"`: where all of it fits into the cache."""
    evaluation_sequences: Rows
    """Held out, for the loss that the cutoff goes by."""
    max_sequences: Rows | None = None
    """Train on no more than so many."""


class QaData(Section):
    files: tuple[Plain, ...] = ()
    """In SQuAD v1.1's JSON form, or with a question a row as on the hub, as a JSON list, JSON lines
    or Parquet; gzipped or not."""
    hub: Plain | None = None
    """Or a data set of the hub."""
    revision: str | None = None
    """The data set's branch, tag or commit."""
    tokens: Annotated[Whole, Field(ge=16, le=10**6)]
    """In a window of question and context."""
    stride: Count
    """Tokens that two windows of a long context share."""
    train_share: Annotated[Real, Field(gt=0.0, lt=1.0)] = 0.8
    """Of the questions; the others give the score."""
    split_by: Literal["article", "record"] = "article"
    """`article`: no article is on both sides; `record`: questions are split one by one."""
    skip_faulty: Annotated[bool, Field(strict=True)] = False
    """Leave out faulty questions, as those that SQuAD 2.0 has no answer to, instead of refusing the
    data."""
    no_answer: Annotated[bool, Field(strict=True)] = False
    """Take questions without an answer, as SQuAD 2.0 has them: models say so where none is sure
    enough, by a threshold that is found on a tenth of the training questions, and scores are those
    of 2.0."""
    max_answer_tokens: Count = 30
    """In the longest answer."""
    n_best: Annotated[Whole, Field(ge=1, le=10_000)] = 20
    """Starts and ends that are combined to answers."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if bool(self.files) == bool(self.hub):
            raise ValueError("give either files or hub")
        if self.stride >= self.tokens:
            raise ValueError("stride must be smaller than tokens")
        return self


class LabelledData(Section):
    """Texts with labels: local files, or a data set of the hub."""

    files: tuple[Plain, ...] = ()
    """CSV (or TSV), JSON lines or Parquet, gzipped or not."""
    test_files: tuple[Plain, ...] = ()
    """Likewise, of the test part; without them a part of `files` is held out."""
    hub: Plain | None = None
    """Or a data set of the hub."""
    config: str | None = None
    """The data set's configuration, where it has several."""
    revision: str | None = None
    """The data set's branch, tag or commit."""
    split: str = "train"
    """The data set's split to train on."""
    test_split: str | None = None
    """The data set's split that gives the score; without it a part of `split` is held out."""
    label: Plain | None = None
    """The column with the labels; else found by its name."""
    tokens: Annotated[Whole, Field(ge=8, le=10**6)] = 128
    """Of an example, at most; what is longer is cut off at its end."""
    train_share: Annotated[Real, Field(gt=0.0, lt=1.0)] = 0.8
    """Of the examples, where the test part is held out from them; no text is on both sides."""
    quality: str
    """Which of the metrics is the quality."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if bool(self.files) == bool(self.hub):
            raise ValueError("give either files or hub")
        if self.hub and self.test_files:
            raise ValueError("test_files stand beside files alone: name a test_split of the hub's")
        if self.files and self.test_split:
            raise ValueError("a test_split is of a data set of the hub: name test_files")
        return self


class TextData(LabelledData):
    text: Plain | None = None
    """The column with the text, or with the first of a pair; else found by its name."""
    pair: str | None = None
    """The column with the second text of a pair; `""`: there is none; else found by its name."""


class ClassifyData(TextData):
    quality: Literal["accuracy", "f1", "matthews"] = "accuracy"
    """Which of the metrics is the quality, in percent."""
    positive: Plain | None = None
    """The label that F1 is of (binary); without it F1 is the mean over all labels (macro)."""


class RegressData(TextData):
    quality: Literal["spearman", "pearson"] = "spearman"
    """Which of the metrics is the quality, in percent."""


class TagData(LabelledData):
    words: Plain | None = None
    """The column with the words of each text, a list; else found by its name."""
    quality: Literal["f1", "precision", "recall"] = "f1"
    """Which of the metrics, of whole entities, is the quality, in percent."""


class NamedClassifyData(ClassifyData):
    kind: Literal["classify"]
    named: str


class NamedRegressData(RegressData):
    kind: Literal["regress"]
    named: str


class NamedTagData(TagData):
    kind: Literal["tag"]
    named: str


def _has_kind(value: Any) -> Any:
    """A table of a name of its own says its kind; any other key is one that there is not."""
    if isinstance(value, Section) or value is None:
        return value
    if not isinstance(value, dict) or "kind" not in value:
        raise PydanticCustomError("extra_forbidden", "there is no such key")
    if value["kind"] not in tasks.NAMEABLE:
        kinds = ", ".join(f'"{one}"' for one in tasks.NAMEABLE)
        raise ValueError(f"kind: take one of {kinds}, not {as_json(value['kind'])}")
    if re.fullmatch("[a-z][a-z0-9_]*", str(value["named"])) is None:
        raise ValueError("call it by lower-case letters, digits and _ alone, a letter first")
    return value


NamedData = Annotated[
    Annotated[NamedClassifyData | NamedRegressData | NamedTagData, Field(discriminator="kind")]
    | None,
    BeforeValidator(_has_kind),
]


class Data(Section):
    """Each kind of labels may be there several times: `[data.NAME]` with `kind = "classify"`,
    `"regress"` or `"tag"` and the keys of that section is what a stage of `task = "NAME"` reads."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, NamedData]

    @model_validator(mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        """Each table knows what it is called, for who finds a fault in it."""
        if not isinstance(value, dict):
            return value
        return {
            name: {**one, "named": name} if name not in cls.model_fields and kind_of(one) else one
            for name, one in value.items()
        }

    mlm: MlmData | None = None
    """Texts for masked language modelling; needed where a stage of `task = "mlm"` stands."""
    qa: QaData | None = None
    """Questions with contexts and answers; like the sections below, needed where a stage of its
    task stands. Where there are several of these, models are trained for each task by itself, all
    from the same architecture."""
    classify: ClassifyData | None = None
    """Texts, or pairs of them, each with a label (`task = "classify"`). There may be several such
    data sets in a search, and likewise of the two sections below: `[data.NAME]` with
    `kind = "classify"` and the same keys is what stages of `task = "NAME"` read."""
    regress: RegressData | None = None
    """Texts, or pairs of them, each with a number (`task = "regress"`)."""
    tag: TagData | None = None
    """Texts as lists of words, each word with a label in BIO form (`task = "tag"`)."""

    @property
    def corpora(self) -> tuple[Corpus, ...]:
        """Of texts; none where no stage reads any."""
        return () if self.mlm is None else self.mlm.corpora
