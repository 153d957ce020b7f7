"""config.toml as typed, frozen values. Every user's mistake in it becomes one sentence.

Paths in the file are relative to the file. Nothing here touches the disk but `load`.
"""

import difflib
import json
import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from nasd.errors import NasdError
from nasd.genotype import Activation

# Strict: "8" and true are no numbers, whatever Python thinks.
Whole = Annotated[int, Field(strict=True)]
Real = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Positive = Annotated[Whole, Field(ge=1)]
Share = Annotated[Real, Field(gt=0.0, le=1.0)]
Probability = Annotated[Real, Field(ge=0.0, le=1.0)]
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]


def _devices(value: Any) -> Any:
    """Checked as one, because a union's own errors name none of the keys in the file."""
    names = value if isinstance(value, list | tuple) else ()
    if value != "auto" and not (
        names and all(isinstance(n, str) and re.fullmatch(r"(cuda|cpu):\d+", n) for n in names)
    ):
        raise ValueError(
            'take "auto", or a list such as ["cuda:0", "cuda:1"] or ["cpu:0"], not'
            f" {json.dumps(value, default=str)}"
        )
    return value


def _auto_or_bool(value: Any) -> Any:
    if value != "auto" and not isinstance(value, bool):
        raise ValueError(f'take "auto", true or false, not {json.dumps(value, default=str)}')
    return value


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Experiment(Section):
    name: str = Field(min_length=1)
    seed: Whole = 0
    state: str = "state"
    generations: Annotated[Whole, Field(ge=0)]
    budget_gpu_hours: Annotated[Real, Field(gt=0)] | None = None


class SeedModel(Section):
    source: str = Field(min_length=1)
    dropout: Probability | None = None  # None: as the seed's own config says


class Slots(Section):
    devices: Annotated[Literal["auto"] | tuple[str, ...], BeforeValidator(_devices)] = "auto"
    threads: Positive = 1
    precision: Literal["float32", "bfloat16"] = "float32"
    compile: Annotated[Literal["auto"] | bool, BeforeValidator(_auto_or_bool)] = "auto"
    widen: Annotated[bool, Field(strict=True)] = False


class SearchSpace(Section):
    blocks: tuple[Positive, Positive]
    heads: Annotated[tuple[Positive, ...], Field(min_length=1)]
    ffns: Positive
    layers: Annotated[tuple[Annotated[Whole, Field(ge=2)], ...], Field(min_length=1)]
    sizes: Annotated[tuple[Positive, ...], Field(min_length=1)]
    activations: Annotated[tuple[Activation, ...], Field(min_length=1)] = ("relu", "gelu")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.blocks[0] > self.blocks[1]:
            raise ValueError("blocks must be [fewest, most], with fewest <= most")
        return self


class Mutation(Section):
    encoder: Probability
    encoder_add: Probability
    ffn: Probability
    ffn_add: Probability
    attention: Probability


class Variation(Section):
    initial: Mutation
    offspring: Mutation
    min_distance: Positive = 1


class Population(Section):
    mu: Positive
    lambda_: Positive = Field(alias="lambda")
    tournament: Positive


class Corpus(Section):
    """One text corpus: local text files, or a data set of the hub."""

    files: tuple[str, ...] = ()
    hub: str | None = None
    config: str | None = None
    revision: str | None = None
    split: str = "train"
    column: str = "text"

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if bool(self.files) == bool(self.hub):
            raise ValueError("give either files or hub")
        return self


class MlmData(Section):
    corpora: Annotated[tuple[Corpus, ...], Field(min_length=1)]
    tokens: Annotated[Whole, Field(ge=8)]
    mask_share: Annotated[Real, Field(gt=0.0, lt=1.0)] = 0.15
    fixed_masks: Annotated[Literal["auto"] | bool, BeforeValidator(_auto_or_bool)] = "auto"
    evaluation_sequences: Positive
    max_sequences: Positive | None = None


class QaData(Section):
    files: tuple[str, ...] = ()
    hub: str | None = None
    revision: str | None = None
    tokens: Annotated[Whole, Field(ge=16)]
    stride: Positive
    train_share: Annotated[Real, Field(gt=0.0, lt=1.0)] = 0.8
    split_by: Literal["article", "record"] = "article"
    max_answer_tokens: Positive = 30
    n_best: Positive = 20

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if bool(self.files) == bool(self.hub):
            raise ValueError("give either files or hub")
        if self.stride >= self.tokens:
            raise ValueError("stride must be smaller than tokens")
        return self


class Data(Section):
    mlm: MlmData
    qa: QaData


class Stage(Section):
    """One rung of the ladder. `train` says which weights move; none of them means: only score."""

    name: Name
    task: Literal["mlm", "qa"]
    train: Literal["new", "all", "head", "none"]
    who: Literal["candidates", "baseline", "all"] = "candidates"
    slots: Positive
    epochs: Annotated[Real, Field(gt=0)] | None = None
    batch: Positive
    micro_batch: Positive | None = None
    learning_rate: Annotated[Real, Field(gt=0)] | None = None
    warmup: Probability = 0.0
    weight_decay: Annotated[Real, Field(ge=0)] = 0.0
    max_grad_norm: Annotated[Real, Field(gt=0)] = 1.0
    evaluations: Positive = 1  # per epoch
    keep: Share | None = None

    @property
    def cuts(self) -> bool:
        return self.keep is not None

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.train == "none":
            if self.epochs is not None or self.learning_rate is not None:
                raise ValueError('epochs and learning_rate have no meaning where train = "none"')
        elif self.epochs is None or self.learning_rate is None:
            raise ValueError("epochs and learning_rate are missing")
        if self.keep is not None and (self.task != "mlm" or self.train == "none"):
            raise ValueError("keep stands only on an MLM stage that trains: it reads its losses")
        if self.train == "new" and self.task != "mlm":
            raise ValueError('train = "new" stands only on an MLM stage')
        if self.train == "head" and (self.task != "mlm" or self.who != "baseline"):
            raise ValueError(
                'train = "head" stands only on an MLM stage with who = "baseline": it gives a seed'
                " without an MLM head its head"
            )
        return self


class Daemon(Section):
    tick_seconds: Annotated[Real, Field(gt=0)] = 5.0
    checkpoint_minutes: Annotated[Real, Field(gt=0)] = 15.0
    log_steps: Positive = 50
    infrastructure_retries: Annotated[Whole, Field(ge=0)] = 5
    stop_grace_seconds: Annotated[Real, Field(gt=0)] = 120.0
    start_minutes: Annotated[Real, Field(gt=0)] = 10.0
    stall_minutes: Annotated[Real, Field(gt=0)] = 10.0
    disk_reserve_gb: Annotated[Real, Field(ge=0)] = 10.0
    activation_cache_gb: Annotated[Real, Field(ge=0)] = 8.0
    backup_hours: Annotated[Real, Field(gt=0)] = 6.0


class Config(Section):
    experiment: Experiment
    seed_model: SeedModel
    slots: Slots = Slots()
    population: Population
    variation: Variation
    search_space: SearchSpace
    data: Data
    stages: Annotated[tuple[Stage, ...], Field(min_length=1)]
    daemon: Daemon = Daemon()

    def ladder(self, who: Literal["candidates", "baseline"]) -> tuple[Stage, ...]:
        """The stages that candidates, or the baseline, climb, in order."""
        return tuple(stage for stage in self.stages if stage.who in (who, "all"))

    @model_validator(mode="after")
    def _ladder(self) -> Self:
        names = [stage.name for stage in self.stages]
        for name in names:
            if names.count(name) > 1 or name == PREPARE:
                raise ValueError(f"stages: the name {name!r} is taken")
        whos: tuple[Literal["candidates", "baseline"], ...] = ("candidates", "baseline")
        for who in whos:
            ladder = self.ladder(who)
            if not ladder or (ladder[-1].task, ladder[-1].train) != ("qa", "none"):
                raise ValueError(
                    f"stages: the ladder of the {who} must end with a stage of"
                    ' task = "qa", train = "none", which gives the score'
                )
            if not any(stage.task == "qa" and stage.train == "all" for stage in ladder):
                raise ValueError(f"stages: nothing trains the {who} for question answering")
        if not any(stage.task == "mlm" and stage.train != "head" for stage in self.stages):
            raise ValueError("stages: at least one MLM stage must train the candidates")
        return self


PREPARE = "prepare"


def load(path: Path) -> Config:
    """Reads and checks a config file; raises NasdError naming the file and the key."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise NasdError(
            f"there is no config file {path}: write one with `nasd init`, or name one with --config"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise NasdError(f"{path} cannot be read: {error}") from error
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise NasdError(f"{path} is not valid TOML: {error}") from error
    return parse(data, str(path))


def parse(data: dict[str, Any], origin: str) -> Config:
    """Checks a parsed config; raises NasdError with the first problem, `origin` in front."""
    try:
        return Config.model_validate(data)
    except ValidationError as error:
        # An unknown key is most often the cause of a missing one: name it first.
        errors = sorted(error.errors(), key=lambda item: item["type"] != "extra_forbidden")
        first = errors[0]
        key = _key(data, first["loc"])
        if first["type"] == "extra_forbidden":
            raise NasdError(f"{origin}: unknown key {key}{_hint(first['loc'])}") from None
        if first["type"] == "missing":
            raise NasdError(f"{origin}: the key {key} is missing") from None
        message = re.sub(r"^Value error, ", "", first["msg"]).replace("valid tuple", "valid list")
        shown = first["input"]
        given = f" (it is {shown!r})" if isinstance(shown, str | int | float | bool) else ""
        where = f"{key}: " if key else ""
        raise NasdError(f"{origin}: {where}{message[:1].lower()}{message[1:]}{given}") from None


def check_against_seed(config: Config, width: int, positions: int, origin: str) -> None:
    """What can only be checked once the seed's shape is known; raises NasdError."""
    for heads in config.search_space.heads:
        if width % heads:
            raise NasdError(
                f"{origin}: search_space.heads: {heads} heads do not divide the seed's width"
                f" {width}; take divisors of {width}"
            )
    for key, tokens in (
        ("data.mlm.tokens", config.data.mlm.tokens),
        ("data.qa.tokens", config.data.qa.tokens),
    ):
        if tokens > positions:
            raise NasdError(
                f"{origin}: {key}: {tokens} tokens are more than the seed's {positions} positions"
            )


def check_against_slots(config: Config, slots: int, origin: str) -> None:
    """Raises NasdError if a stage asks for more slots than there are."""
    for stage in config.stages:
        if stage.slots > slots:
            raise NasdError(
                f"{origin}: stages.{stage.name}.slots: {stage.slots} slots are asked for, but"
                f" slots.devices has {slots}"
            )
        if stage.train != "none" and stage.batch < stage.slots:
            raise NasdError(
                f"{origin}: stages.{stage.name}.batch: a batch of {stage.batch} cannot be dealt"
                f" out to {stage.slots} slots"
            )


def _key(data: Any, loc: Sequence[int | str]) -> str:
    """The place as the user writes it: stages go by their name, other lists by number."""
    text = ""
    for part in loc:
        inside = _below(data, part)
        if isinstance(part, int):
            name = inside.get("name") if text == "stages" and isinstance(inside, dict) else None
            text += f".{name}" if isinstance(name, str) else f"[{part}]"
        else:
            text += f".{part}" if text else part
        data = inside
    return text


def _below(data: Any, part: int | str) -> Any:
    try:
        return data[part]
    except (KeyError, IndexError, TypeError):
        return None


def _hint(loc: Sequence[int | str]) -> str:
    """`; did you mean …?` for an unknown key, from the names its section does have."""
    model: Any = Config
    for part in loc[:-1]:
        if isinstance(part, int):
            continue
        model = _section(model, str(part))
        if model is None:
            return ""
    names = [field.alias or name for name, field in model.model_fields.items()]
    close = difflib.get_close_matches(str(loc[-1]), names, n=1)
    return f"; did you mean {close[0]}?" if close else f" (known here: {', '.join(sorted(names))})"


def _section(model: type[Section], name: str) -> type[Section] | None:
    for key, field in model.model_fields.items():
        if name in (key, field.alias):
            return _find_section(field.annotation)
    return None


def _find_section(annotation: Any) -> type[Section] | None:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        found = _find_section(argument)
        if found is not None:
            return found
    return None
