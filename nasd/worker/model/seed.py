"""The seed model: where it lies, what it looks like, and its weights under our names.

DistilBERT and BERT checkpoints, and what nasd exports, are read straight from their files, so
transformers need not be imported for it. BERT differs from DistilBERT in its token types and its
pooler alone: token type 0 is added to the position embeddings, the pooler is dropped, and the
outputs stay the same.
"""

import importlib.util
import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError  # torch.load's word for what it refuses to run
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from nasd.contract.errors import NasdError
from nasd.contract.genotype import Backbone, Genotype
from nasd.worker.model import header, phenotype
from nasd.worker.model.phenotype import Architecture, MaskedLM, QuestionAnswering

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

CONFIG = "config.json"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
PACKAGE = "package:"
HEAD_SEED = 0  # draws the MLM head of a seed that came without one


@dataclass(frozen=True)
class SeedDescription:
    """What a seed is. The architecture holds the baseline's blocks and the seed's dropouts."""

    architecture: Architecture
    has_mlm_head: bool
    has_qa_head: bool

    @property
    def backbone(self) -> Backbone:
        arch = self.architecture
        return Backbone(arch.vocab_size, arch.positions, arch.width)

    @property
    def baseline(self) -> Genotype:
        return Genotype.from_json(self.architecture.to_json())


@dataclass(frozen=True)
class _Family:
    """How one model type names things.

    prefix: of the encoder's tensors, where there is a head. keys: ours to the ones of config.json.
    layer, modules: the blocks' name and our modules of a block to theirs. head: likewise for the
    MLM head. bias, output: the head's bias, and its output weights if they are written at all.

    The head for questions is qa_outputs everywhere.
    """

    prefix: str
    keys: Mapping[str, str]
    layer: str
    modules: Mapping[str, str]
    head: Mapping[str, str]
    bias: str
    output: str


_FAMILIES = {
    "distilbert": _Family(
        prefix="distilbert.",
        keys={
            "width": "dim",
            "blocks": "n_layers",
            "heads": "n_heads",
            "size": "hidden_dim",
            "activation": "activation",
            "dropout": "dropout",
            "attention_dropout": "attention_dropout",
        },
        layer="transformer.layer",
        modules={
            "attention.q": "attention.q_lin",
            "attention.k": "attention.k_lin",
            "attention.v": "attention.v_lin",
            "attention.out": "attention.out_lin",
            "attention_norm": "sa_layer_norm",
            "ffns.0.linears.0": "ffn.lin1",
            "ffns.0.linears.1": "ffn.lin2",
            "ffn_norms.0": "output_layer_norm",
        },
        head={"head.transform": "vocab_transform", "head.norm": "vocab_layer_norm"},
        bias="vocab_projector.bias",
        output="vocab_projector.weight",
    ),
    "bert": _Family(
        prefix="bert.",
        keys={
            "width": "hidden_size",
            "blocks": "num_hidden_layers",
            "heads": "num_attention_heads",
            "size": "intermediate_size",
            "activation": "hidden_act",
            "dropout": "hidden_dropout_prob",
            "attention_dropout": "attention_probs_dropout_prob",
        },
        layer="encoder.layer",
        modules={
            "attention.q": "attention.self.query",
            "attention.k": "attention.self.key",
            "attention.v": "attention.self.value",
            "attention.out": "attention.output.dense",
            "attention_norm": "attention.output.LayerNorm",
            "ffns.0.linears.0": "intermediate.dense",
            "ffns.0.linears.1": "output.dense",
            "ffn_norms.0": "output.LayerNorm",
        },
        head={
            "head.transform": "cls.predictions.transform.dense",
            "head.norm": "cls.predictions.transform.LayerNorm",
        },
        bias="cls.predictions.bias",
        output="cls.predictions.decoder.weight",
    ),
    phenotype.MODEL_TYPE: _Family(  # of an export, whose names are ours
        prefix="",
        keys={},
        layer="",
        modules={},
        head={"head.transform": "head.transform", "head.norm": "head.norm"},
        bias="head.bias",
        output="",
    ),
}
_OWN = _FAMILIES[phenotype.MODEL_TYPE]
_EMBEDDINGS = {
    "encoder.embeddings.word": "embeddings.word_embeddings",
    "encoder.embeddings.position": "embeddings.position_embeddings",
    "encoder.embeddings.norm": "embeddings.LayerNorm",
}
_DAMAGES = (
    OSError,
    ValueError,
    TypeError,
    AttributeError,
    RuntimeError,
    EOFError,
    UnpicklingError,
    SafetensorError,
    NasdError,
)
_QA_HEAD = ("qa_outputs.weight", "qa_outputs.bias")
_POSITIONS = "embeddings.position_embeddings.weight"
_TOKEN_TYPES = "embeddings.token_type_embeddings.weight"


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
    return SeedDescription(found.architecture, found.has_head, found.answers)


def load_seed(source: str, base: Path, dropout: float | None = None) -> tuple[MaskedLM, bool]:
    """The baseline with the seed's weights, and whether its MLM head came with them.

    A head that did not is drawn afresh, always the same. dropout: overrides the seed's own.
    """
    found, theirs = _read(source, base)
    family, arch, has_head = found.family, found.architecture, found.has_head
    words = theirs.get("embeddings.word_embeddings.weight")
    output = theirs.get(family.output)
    if output is not None and words is not None and not torch.equal(output, words):
        raise _error(
            source,
            "its MLM head has output weights other than the word embeddings, which is not"
            " supported: take a seed that ties the two",
        )
    model = phenotype.empty(MaskedLM, arch.with_dropout(dropout))
    if not has_head:
        generator = torch.Generator().manual_seed(HEAD_SEED)
        phenotype.initialise(model.head, generator, arch.initializer_range)
    names = [*_encoder_names(arch, family), *(_head_names(family) if has_head else ())]
    _fill(source, model, names, found.path, theirs)
    return model, has_head


def load_answering(source: str, base: Path, dropout: float | None = None) -> QuestionAnswering:
    """The baseline with the seed's weights, its question-answering head among them.

    Raises NasdError where there is none, or one of another kind. dropout: as in `load_seed`.
    """
    found, theirs = _read(source, base)
    arch = found.architecture
    model = phenotype.empty(QuestionAnswering, arch.with_dropout(dropout))
    head = [(name, name) for name in _QA_HEAD]
    _fill(source, model, [*_encoder_names(arch, found.family), *head], found.path, theirs)
    return model


def _read(source: str, base: Path) -> "tuple[_Look, dict[str, Tensor]]":
    """What the seed is, and its weights, with BERT's token types folded in."""
    found = _look(source, base)
    with _reading(source, found.path):
        theirs = _state(found.path, found.family) if found.state is None else found.state
    if _TOKEN_TYPES in theirs and _POSITIONS in theirs:
        theirs[_POSITIONS] = theirs[_POSITIONS] + theirs[_TOKEN_TYPES][0]
    return found, theirs


def _fill(
    source: str,
    model: MaskedLM | QuestionAnswering,
    names: Iterable[tuple[str, str]],
    path: Path,
    theirs: Mapping[str, Tensor],
) -> None:
    """Copies the weights of these names, ours and theirs; raises NasdError unless all fit."""
    with torch.no_grad():
        for ours, name in names:
            if name not in theirs:
                raise _error(source, f"{path} lacks the weights {name}: fetch the model again")
            if not bool(torch.isfinite(theirs[name]).all()):
                raise _error(
                    source,
                    f"the weights {name} in {path} are no finite numbers: take a checkpoint from"
                    " before its training broke down",
                )
            model.get_parameter(ours).copy_(theirs[name])


class _Look(NamedTuple):
    """A seed whose weights fit its config.json. state: of a file that had to be read for that."""

    family: _Family
    architecture: Architecture
    path: Path
    has_head: bool
    answers: bool
    state: dict[str, Tensor] | None


def _look(source: str, base: Path) -> _Look:
    family, arch = _architecture(source, base)
    path = file_of(source, base, WEIGHTS)
    state: dict[str, Tensor] | None = None
    with _reading(source, path):
        if path.suffix == ".safetensors":
            there = {_modern(name, family): one for name, one in header.shapes(path).items()}
        else:
            state = _state(path, family)
            there = {name: list(tensor.shape) for name, tensor in state.items()}
    has_head, answers = _has_head(set(there), family), _answers(set(there))
    kinds: list[tuple[type[nn.Module], list[tuple[str, str]]]] = [
        (
            MaskedLM,
            [*_encoder_names(arch, family), *(_head_names(family) if has_head else ())],
        ),
    ]
    if answers:
        kinds.append((QuestionAnswering, [(name, name) for name in _QA_HEAD]))
    for kind, names in kinds:
        wanted = header.wanted(kind, arch)
        for ours, name in names:
            if wrong := header.misfit(there, name, wanted[ours]):
                raise _error(source, f"{path} {wrong}: fetch the model again")
    return _Look(family, arch, path, has_head, answers, state)


def load_tokenizer(source: str, base: Path) -> "PreTrainedTokenizerFast":
    """The seed's own tokenizer; takes seconds, as it imports transformers."""
    family, arch = _architecture(source, base)
    from transformers import AutoTokenizer

    if family is _OWN:  # whose model type transformers learns by this
        from nasd.worker.model import pretrained  # noqa: F401

    resolved = resolve(source, base)
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(str(resolved), trust_remote_code=False)
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
    if len(tokenizer) > arch.vocab_size:
        raise _error(
            source,
            f"its tokenizer knows {len(tokenizer)} tokens, and the model only {arch.vocab_size}:"
            " take a tokenizer and a model that belong together",
        )
    for name in ("mask_token", "cls_token", "sep_token", "pad_token"):
        if getattr(tokenizer, name) is None:
            raise _error(
                source, f"its tokenizer has no {name}: take a seed with BERT's special tokens"
            )
    return cast("PreTrainedTokenizerFast", tokenizer)


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
            source, f"there is no {' or '.join(names)} in {resolved}: put the model's files there"
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


def _architecture(source: str, base: Path) -> tuple[_Family, Architecture]:
    path = file_of(source, base, (CONFIG,))
    with _reading(source, path):
        config = json.loads(path.read_text(encoding="utf-8-sig"))
        if not isinstance(config, dict):
            raise ValueError("it is not an object")
    model_type = config.get("model_type")
    if model_type not in _FAMILIES:
        raise _error(
            source,
            f"the model type {model_type!r} is not supported: take one of {', '.join(_FAMILIES)},"
            " which are encoders",
        )
    family = _FAMILIES[model_type]
    if family is _OWN:
        return family, _own_architecture(source, path, config)
    missing = [
        key
        for key in ("vocab_size", "max_position_embeddings", *family.keys.values())
        if key not in config
    ]
    if missing:
        raise _error(source, f"{path} lacks the key {missing[0]!r}: fetch the model again")

    def own(name: str) -> Any:
        return config[family.keys[name]]

    positions = config.get("position_embedding_type", "absolute")
    if config.get("sinusoidal_pos_embds"):
        positions = "sinusoidal"
    if positions != "absolute":
        raise _error(
            source, f"its positions are {positions}: take a seed that learns absolute positions"
        )
    if own("activation") not in phenotype.ACTIVATIONS:
        raise _error(
            source, f"its activation is {own('activation')!r}: take a seed with gelu or relu"
        )
    block = {
        "heads": own("heads"),
        "ffns": [{"activation": own("activation"), "sizes": [own("size")]}],
    }
    with _reading(source, path):  # the sizes first: nothing of an absurd one is made
        for key in ("vocab_size", "max_position_embeddings"):
            phenotype.check_size(key, config[key])
        phenotype.check_size(family.keys["width"], own("width"))
        if own("blocks") != 0:  # which the genotype tells of
            phenotype.check_size(family.keys["blocks"], own("blocks"), phenotype.MOST["blocks"])
        genotype = Genotype.from_json({"blocks": [block] * own("blocks")})
        if own("width") % own("heads"):
            raise ValueError(f"{own('heads')} heads do not divide the width {own('width')}")
        arch = Architecture(
            vocab_size=int(config["vocab_size"]),
            positions=int(config["max_position_embeddings"]),
            width=int(own("width")),
            blocks=(),
            pad_token_id=int(config.get("pad_token_id") or 0),
            dropout=float(own("dropout")),
            attention_dropout=float(own("attention_dropout")),
            qa_dropout=float(config.get("qa_dropout", 0.1)),
            head_activation=own("activation"),
            norm_eps=float(config.get("layer_norm_eps", 1e-12)),
            initializer_range=float(config.get("initializer_range", 0.02)),
        ).with_blocks(genotype.to_json()["blocks"])
        arch.check_parameters()
    return family, arch


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
        if arch.head_activation not in phenotype.ACTIVATIONS:
            raise ValueError(f"its activation is {arch.head_activation!r}")
    return arch


def _state(path: Path, family: _Family) -> dict[str, Tensor]:
    """The checkpoint's tensors, the encoder's without their prefix."""
    if path.suffix == ".safetensors":
        state = load_file(path)
    else:
        # weights_only: no code in the file is run.
        state = torch.load(path, map_location="cpu", weights_only=True)
    return {_modern(name, family): tensor for name, tensor in state.items()}


def _modern(name: str, family: _Family) -> str:
    """The early checkpoints call a layer norm's weight and bias gamma and beta."""
    name = name.removeprefix(family.prefix)
    name = name.replace("LayerNorm.gamma", "LayerNorm.weight")
    return name.replace("LayerNorm.beta", "LayerNorm.bias")


def _has_head(names: set[str], family: _Family) -> bool:
    return all(f"{module}.weight" in names for module in family.head.values())


def _answers(names: Collection[str]) -> bool:
    return all(name in names for name in _QA_HEAD)


def _head_names(family: _Family) -> Iterator[tuple[str, str]]:
    """Each of our MLM head's parameters, and the checkpoint's name of it."""
    yield "head.bias", family.bias
    for ours, theirs in family.head.items():
        for part in ("weight", "bias"):
            yield f"{ours}.{part}", f"{theirs}.{part}"


def _encoder_names(arch: Architecture, family: _Family) -> Iterator[tuple[str, str]]:
    """Each of our encoder's parameters, and the checkpoint's name of it."""
    if family is _OWN:
        with torch.device("meta"):
            names = phenotype.Encoder(arch).state_dict()
        yield from ((f"encoder.{name}", f"encoder.{name}") for name in names)
        return
    modules = dict(_EMBEDDINGS)
    for index in range(len(arch.blocks)):
        for ours, theirs in family.modules.items():
            modules[f"encoder.blocks.{index}.{ours}"] = f"{family.layer}.{index}.{theirs}"
    for ours, theirs in modules.items():
        yield f"{ours}.weight", f"{theirs}.weight"
        if ours not in ("encoder.embeddings.word", "encoder.embeddings.position"):
            yield f"{ours}.bias", f"{theirs}.bias"


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
