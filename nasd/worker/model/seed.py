"""The seed model: where it lies, what it looks like, and its weights under our names.

Checkpoints of the families in nasd.worker.model.families, and what nasd exports, are read straight
from their files, so transformers need not be imported for it. Poolers are dropped.
"""

import importlib.util
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from pickle import UnpicklingError  # torch.load's word for what it refuses to run
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from nasd.contract.errors import NasdError
from nasd.contract.genotype import Backbone, Genotype
from nasd.worker.model import families, header, phenotype, seed_heads, spans, vocabulary
from nasd.worker.model.architecture import MOST, Architecture, check_size
from nasd.worker.model.families import FAMILIES, OWN, Family
from nasd.worker.model.layers import ACTIVATIONS
from nasd.worker.model.phenotype import MaskedLM

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

CONFIG = "config.json"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
PACKAGE = "package:"
SECOND = "encoder.embeddings.second"
HEAD_SEED = 0  # draws the MLM head of a seed that came without one


@dataclass(frozen=True)
class SeedDescription:
    """What a seed is. The architecture holds the baseline's blocks and the seed's dropouts. heads:
    the tasks that it has a head for, besides MLM; labels: of a classifier's."""

    architecture: Architecture
    has_mlm_head: bool
    heads: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()

    @property
    def backbone(self) -> Backbone:
        arch = self.architecture
        return Backbone(
            arch.vocab_size,
            arch.positions,
            arch.width,
            embedding_width=arch.embedding_width,
            biases=arch.biases,
            pre_norm=arch.pre_norm,
            rotary=arch.theta is not None,
            deep_head=arch.deep_head,
            window=arch.window,
        )

    @property
    def baseline(self) -> Genotype:
        return Genotype.from_json(self.architecture.to_json())


_DAMAGES = (
    OSError,
    KeyError,
    ValueError,
    TypeError,
    AttributeError,
    RuntimeError,
    EOFError,
    UnpicklingError,
    SafetensorError,
    NasdError,
)


def resolve(source: str, base: Path) -> str | Path:
    """The folder that `source` names, or its name on the hub.

    source: `package:NAME` or `package:NAME/sub/folder` for an installed package that carries a
    model, a folder (relative to `base`), or else a model of the hub.
    """
    if source.startswith(PACKAGE):
        return _package_folder(source)
    try:
        folder = base / Path(source).expanduser()
    except RuntimeError as error:  # ~user, of a user who is not known
        raise _error(source, f"{error}: name the folder in full") from None
    if folder.is_dir():
        return folder.resolve()
    if re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", source) is None:
        raise _error(source, f"there is no folder {folder}: name the one with the model")
    return source


def describe(source: str, base: Path) -> SeedDescription:
    """Reads the seed's config.json and what its weights are like, not the weights themselves."""
    found = _look(source, base)
    return SeedDescription(found.architecture, found.has_head, found.heads, found.labels)


def load_seed(
    source: str, base: Path, dropout: float | None = None, labels: Sequence[str] = ()
) -> tuple[MaskedLM, bool]:
    """The baseline with the seed's weights, and whether its MLM head came with them.

    A head that did not is drawn afresh, always the same, and so is one whose output weights are
    other ones than the word embeddings. dropout: overrides the seed's own. labels: of the
    classifier that it is to become.
    """
    found, theirs = _read(source, base)
    family, arch = found.family, found.architecture.with_labels(labels)
    words = theirs.get(family.theirs("encoder.embeddings.word.weight"))
    output = theirs.get(family.tied)
    tied = output is None or words is None or torch.equal(output, words)
    has_head = found.has_head and tied
    if found.has_head and not tied:
        print(
            "seed: its MLM head is left, as its output weights are other ones than the word"
            " embeddings",
            flush=True,
        )
    model = phenotype.empty(MaskedLM, arch.with_dropout(dropout))
    if not has_head:
        generator = torch.Generator().manual_seed(HEAD_SEED)
        phenotype.initialise(model.head, generator, arch.initializer_range)
    left_out = () if has_head else (f"{MaskedLM.head_name}.",)
    _fill(source, model, family, found.path, theirs, left_out)
    return model, has_head


def load_with_head(
    kind: type[phenotype.Model],
    source: str,
    base: Path,
    dropout: float | None = None,
    labels: Sequence[str] = (),
    separator: int | None = None,
) -> phenotype.Model:
    """The same with the head of any task, its outputs in the order of these labels. separator: the
    token between two texts, where the tokenizer tells the second by its type."""
    found, theirs = _read(source, base)
    arch = found.architecture.with_labels(labels).with_dropout(dropout)
    second = None if separator is None else families.second_text(theirs)
    if second is not None:
        arch = replace(arch, separator=separator)
        theirs = {**theirs, SECOND: second}
    model = phenotype.empty(kind, arch)
    if labels:
        theirs = seed_heads.in_order(theirs, kind, found.family, found.labels, labels)
    _fill(source, model, found.family, found.path, theirs)
    return model


def _read(source: str, base: Path) -> "tuple[_Look, dict[str, Tensor]]":
    """What the seed is, and its weights, with the token types folded in."""
    found = _look(source, base)
    with _reading(source, found.path):
        state = found.state
        if state is None:
            state = found.family.named(_state(found.path), found.config)
        # Of a checkpoint in half precision: what is added up is not rounded once more.
        state = {n: one.float() if one.is_floating_point() else one for n, one in state.items()}
        theirs = families.with_types(state)
    return found, theirs


def _fill(
    source: str,
    model: phenotype.AnyModel,
    family: Family,
    path: Path,
    theirs: Mapping[str, Tensor],
    left_out: tuple[str, ...] = (),
) -> None:
    """Copies the weights into the model but for those whose names begin so; raises NasdError unless
    all fit."""
    with torch.no_grad():
        for ours, weight in model.state_dict().items():
            if ours.startswith(left_out):
                continue
            name = ours if ours == SECOND else family.theirs(ours)
            if family.lacks(name, theirs):
                weight.zero_()
                continue
            if name not in theirs:
                raise _error(source, f"{path} lacks the weights {name}: fetch the model again")
            if not bool(torch.isfinite(theirs[name]).all()):
                raise _error(
                    source,
                    f"the weights {name} in {path} are no finite numbers: take a checkpoint from"
                    " before its training broke down",
                )
            weight.copy_(theirs[name])


class _Look(NamedTuple):
    """A seed whose weights fit its config.json. state: of a file that had to be read for that."""

    family: Family
    config: Mapping[str, Any]
    architecture: Architecture
    path: Path
    has_head: bool
    heads: tuple[str, ...]
    labels: tuple[str, ...]
    state: dict[str, Tensor] | None


def _look(source: str, base: Path) -> _Look:
    family, config, arch = _architecture(source, base)
    path = file_of(source, base, WEIGHTS)
    state: dict[str, Tensor] | None = None
    with _reading(source, path):
        if path.suffix == ".safetensors":
            there = family.named(families.shaped(header.shapes(path)), config)
        else:
            there = state = family.named(_state(path), config)
    shapes = {name: list(tensor.shape) for name, tensor in there.items()}
    has_head, heads = family.has_language_head(shapes), seed_heads.found(shapes, family, config)
    with _reading(source, path):
        labels = seed_heads.labels_of(config)
    kinds: list[tuple[type[nn.Module], str]] = [(MaskedLM, "" if has_head else "head.")]
    kinds += [(seed_heads.KINDS[task], "encoder.") for task in heads]
    for kind, left_out in kinds:
        for ours, wanted in header.wanted(kind, arch.with_labels(labels)).items():
            name = family.theirs(ours)
            if (left_out and ours.startswith(left_out)) or family.lacks(name, shapes):
                continue
            if wrong := header.misfit(shapes, name, wanted):
                raise _error(source, f"{path} {wrong}: fetch the model again")
    return _Look(family, config, arch, path, has_head, heads, labels, state)


def load_tokenizer(source: str, base: Path) -> "PreTrainedTokenizerFast":
    """The seed's own tokenizer; takes seconds, as it imports transformers."""
    family, _, arch = _architecture(source, base)
    from transformers import AutoTokenizer, PretrainedConfig

    # Our own model type transformers does not know, and need not: the tokenizer names its class.
    told = {"config": PretrainedConfig()} if family is OWN else {}
    resolved = resolve(source, base)
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(
            str(resolved), trust_remote_code=False, **told
        )
    except Exception as error:  # of many kinds, among them those of parsers and of the network
        raise _error(
            source,
            f"its tokenizer cannot be read ({_first_line(error)}): put the tokenizer's files beside"
            " the model's",
        ) from error
    if not getattr(tokenizer, "is_fast", False):
        raise _error(
            source,
            "its tokenizer is not a fast one, so answers cannot be found in the text again: take a"
            " seed with a tokenizer.json",
        )
    # Where there are no files at all, transformers makes up a tokenizer without words.
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        raise _error(source, "it has no tokenizer: put the tokenizer's files beside the model's")
    if (known := vocabulary.numbers(tokenizer)) > arch.vocab_size:
        raise _error(
            source,
            f"its tokenizer knows {known} tokens, and the model only {arch.vocab_size}:"
            " take a tokenizer and a model that belong together",
        )
    for name in ("mask_token", "cls_token", "sep_token", "pad_token"):
        if getattr(tokenizer, name) is None:
            raise _error(
                source, f"its tokenizer has no {name}: take a seed with BERT's special tokens"
            )
    _check_frame(source, tokenizer)
    return cast("PreTrainedTokenizerFast", tokenizer)


def _check_frame(source: str, tokenizer: Any) -> None:
    """That texts stand between special tokens, one alone and two together."""
    try:
        spans.frame(tokenizer)
        alone = tokenizer("a")["input_ids"]
        framed = [alone[0], alone[-1]] == [tokenizer.cls_token_id, tokenizer.sep_token_id]
    except (ValueError, IndexError):
        framed = False
    if not framed:
        raise _error(
            source,
            "its tokenizer puts no special tokens around texts: save it with the post-processor"
            " that the model was trained with",
        )


def _package_folder(source: str) -> Path:
    name, _, below = source.removeprefix(PACKAGE).partition("/")
    # find_spec imports the parents of a dotted name: only whole packages are asked for.
    spec = importlib.util.find_spec(name) if name.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise _error(source, f"there is no package {name!r} to import: install it")
    root = Path(next(iter(spec.submodule_search_locations)))
    if below:
        if not (root / below).is_dir():
            raise _error(source, f"the package has no folder {below!r}: name one that it has")
        return root / below
    folders = sorted(path.parent for path in root.rglob(CONFIG) if _is_model(path))
    if len(folders) != 1:
        found = ", ".join(str(folder.relative_to(root)) for folder in folders) or "none"
        raise _error(
            source,
            f"the package must carry one model folder, but these were found: {found}; name one as"
            f" {PACKAGE}{name}/FOLDER",
        )
    return folders[0]


def _is_model(config: Path) -> bool:
    try:
        content = json.loads(config.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and "model_type" in content


def file_of(source: str, base: Path, names: tuple[str, ...]) -> Path:
    """The first of `names` that the seed has; one of the hub is downloaded unless it is cached."""
    resolved = resolve(source, base)
    if isinstance(resolved, Path):
        for name in names:
            if (resolved / name).is_file():
                return resolved / name
        raise _error(
            source, f"there is no {' or '.join(names)} in {resolved}: {_instead(resolved, names)}"
        )
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    for name in names:
        try:
            return Path(hf_hub_download(resolved, name))
        except EntryNotFoundError as error:  # also where the hub is out of reach
            problem: Exception = error
        except Exception as error:  # of many kinds: the name, the network, the disk
            problem = error
            break
    raise _error(
        source,
        f"it is no folder below {base}, and the hub did not give its {' or '.join(names)}"
        f" ({_first_line(problem)}): check the name and the network, or download the model and"
        " name its folder",
    )


def _instead(folder: Path, names: tuple[str, ...]) -> str:
    """What to do where a folder lacks a model's files, by what people save in their place."""
    runs = [(int(one.name[11:]), one) for one in folder.glob("checkpoint-*") if _is_run(one, names)]
    if runs:
        return f"name a folder of its checkpoints, as {max(runs)[1]}"
    if (folder / "adapter_config.json").is_file():
        return (
            "it holds an adapter alone; merge it into its model and save that, by peft's"
            " merge_and_unload() and save_pretrained()"
        )
    if any((folder / f"{name}.index.json").is_file() for name in names):
        return (
            "its weights are in several files; load it and save them in one, by"
            ' save_pretrained(..., max_shard_size="100GB")'
        )
    return "put the model's files there"


def _is_run(folder: Path, names: tuple[str, ...]) -> bool:
    return folder.name[11:].isdigit() and any((folder / name).is_file() for name in names)


def _architecture(source: str, base: Path) -> tuple[Family, Mapping[str, Any], Architecture]:
    path = file_of(source, base, (CONFIG,))
    with _reading(source, path):
        config = json.loads(path.read_text(encoding="utf-8-sig"))
        if not isinstance(config, dict):
            raise ValueError("it is not an object")
    model_type = config.get("model_type")
    if model_type not in FAMILIES:
        why = families.REFUSED.get(str(model_type), "")
        raise _error(
            source,
            f"the model type {model_type!r} is not supported{why and f', as {why}'}: take one of"
            f" {families.known()}, which are encoders",
        )
    family = FAMILIES[model_type]
    if family is OWN:
        return family, config, _own_architecture(source, path, config)
    missing = [
        key
        for key in ("vocab_size", "max_position_embeddings", *family.keys.values())
        if key not in config
    ]
    if missing:
        raise _error(source, f"{path} lacks the key {missing[0]!r}: fetch the model again")

    def own(name: str) -> Any:
        return config[family.keys[name]]

    kind = config.get("position_embedding_type", "absolute")
    if config.get("sinusoidal_pos_embds"):
        kind = "sinusoidal"
    if kind != "absolute":
        raise _error(
            source, f"its positions are {kind}: take a seed that learns absolute positions"
        )
    if own("activation") not in family.activations:
        raise _error(
            source,
            f"its activation is {own('activation')!r}: take a seed with"
            f" {' or '.join(family.activations)}",
        )
    with _reading(source, path):
        unfit = family.unfit(config)
        if config.get("is_decoder"):
            unfit = "it is a decoder, whose tokens see none behind them"
        left = families.heads_left(config, own("blocks"), own("heads"))
    if 0 in left.values():
        unfit = "it has a block whose heads are all pruned"
    if unfit:
        raise _error(source, f"{unfit}, which is not computed here: take another seed")
    activation = family.activations[own("activation")]
    block = {
        "heads": own("heads"),
        "ffns": [{"activation": activation, "sizes": [own("size")]}],
    }
    with _reading(source, path):  # the sizes first: nothing of an absurd one is made
        for key in ("vocab_size", "max_position_embeddings"):
            check_size(key, config[key])
        positions = config["max_position_embeddings"] - family.first(config)
        check_size("max_position_embeddings", positions)
        check_size(family.keys["width"], own("width"))
        if own("blocks") != 0:  # which the genotype tells of
            check_size(family.keys["blocks"], own("blocks"), MOST["blocks"])
        blocks = [
            {**block, **more, **({"remaining": left[place]} if place in left else {})}
            for place, more in enumerate(family.blocks(config, own("blocks")))
        ]
        genotype = Genotype.from_json({"blocks": blocks})
        if own("width") % own("heads"):
            raise ValueError(f"{own('heads')} heads do not divide the width {own('width')}")
        told: dict[str, Any] = {
            "vocab_size": int(config["vocab_size"]),
            "positions": positions,
            "width": int(own("width")),
            "blocks": (),
            "pad_token_id": int(config.get("pad_token_id") or 0),
            "dropout": float(own("dropout")),
            "attention_dropout": float(own("attention_dropout")),
            "qa_dropout": float(config.get("qa_dropout", 0.1)),
            "head_activation": own("activation"),
            "norm_eps": float(config.get("layer_norm_eps", 1e-12)),
            "initializer_range": float(config.get("initializer_range", 0.02)),
            "classifier_dropout": seed_heads.dropout_of(config, float(own("dropout"))),
        }
        arch = Architecture(**{**told, **family.settled, **family.more(config)})
        arch = arch.with_blocks(genotype.to_json()["blocks"])
        arch.check_parameters()
    return family, config, arch


def _own_architecture(source: str, path: Path, config: Mapping[str, Any]) -> Architecture:
    """Of a model that nasd exported."""
    with _reading(source, path):
        missing = [
            key for key in ("vocab_size", "positions", "width", "blocks") if key not in config
        ]
        if missing:
            raise ValueError(f"it lacks the key {missing[0]!r}")
        arch = Architecture.from_json(config)
        for block in Genotype.from_json(arch.to_json()).blocks:
            if arch.width % block.heads:
                raise ValueError(f"{block.heads} heads do not divide the width {arch.width}")
        if arch.head_activation not in ACTIVATIONS:
            raise ValueError(f"its activation is {arch.head_activation!r}")
    return arch


def _state(path: Path) -> dict[str, Tensor]:
    """The checkpoint's tensors."""
    if path.suffix == ".safetensors":
        return load_file(path)
    # weights_only: no code in the file is run.
    state: Any = torch.load(path, map_location="cpu", weights_only=True)
    for name, one in state.items():
        if not isinstance(one, Tensor):
            raise ValueError(f"{name!r} in it is no tensor: save model.state_dict() by itself")
    return cast("dict[str, Tensor]", state)


@contextmanager
def _reading(source: str, path: Path) -> Iterator[None]:
    """Turns what goes wrong in reading `path` into one sentence."""
    try:
        yield
    except _DAMAGES as error:
        raise _error(
            source,
            f"{path} is damaged or not what it seems ({_first_line(error)}): fetch the model again",
        ) from error


def _error(source: str, problem: str) -> NasdError:
    return NasdError(f"seed_model.source: {source!r}: {problem}")


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".:")
