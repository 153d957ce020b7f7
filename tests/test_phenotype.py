import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers.dynamic_module_utils import get_relative_import_files, get_relative_imports

from nasd.contract import genotype
from nasd.contract.genotype import Backbone, Genotype
from nasd.worker.model import phenotype, seed
from nasd.worker.model.architecture import Architecture
from nasd.worker.model.encoder import Encoder
from nasd.worker.model.phenotype import MaskedLM, QuestionAnswering

ARCH = Architecture(vocab_size=31, positions=16, width=12, blocks=()).with_blocks(
    [
        {"heads": 3, "ffns": [{"activation": "gelu", "sizes": [20]}]},
        {
            "heads": 4,
            "ffns": [
                {"activation": "relu", "sizes": [8, 24]},
                {"activation": "gelu", "sizes": [10]},
            ],
        },
    ]
)
CLOSE: dict[str, Any] = {"rtol": 0.0, "atol": 1e-5}


def generator(number: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def built(kind: Any, number: int = 0, arch: Architecture = ARCH) -> Any:
    """A model in which every parameter, norms and biases too, is its own random number."""
    model = kind(arch)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.3, generator=generator(number))
            number += 1000
    return model.eval()


def examples(vocab_size: int, length: int = 11) -> tuple[Tensor, Tensor]:
    """Token ids and an attention mask, [3, length]; the examples end in padding of 0, 2 and 5."""
    input_ids = torch.randint(1, vocab_size, (3, length), generator=generator(1))
    mask = (torch.arange(length) < torch.tensor([[length], [length - 2], [length - 5]])).long()
    return input_ids, mask


def states_equal(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[n], second[n]) for n in first)


# --- the same function as DistilBERT --------------------------------------------------------


@pytest.fixture(scope="module", params=["tiny", "base"])
def pair(request: Any, tmp_path_factory: Any) -> Any:
    """DistilBERT for both tasks on random weights, and our models on the same weights."""
    from transformers import (
        DistilBertConfig,
        DistilBertForMaskedLM,
        DistilBertForQuestionAnswering,
    )

    small: dict[str, Any] = {
        "dim": 24,
        "n_layers": 2,
        "n_heads": 3,
        "hidden_dim": 40,
        "activation": "relu",
    }
    config = DistilBertConfig(
        vocab_size=97, max_position_embeddings=32, **(small if request.param == "tiny" else {})
    )
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp(request.param)
    their_mlm: Any = DistilBertForMaskedLM(config)
    their_mlm.eval()
    with torch.no_grad():
        for parameter in their_mlm.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    their_mlm.save_pretrained(folder / "seed")
    mlm, has_head = seed.load_seed(str(folder / "seed"), Path("."))
    assert has_head

    their_qa: Any = DistilBertForQuestionAnswering(config)
    their_qa.eval()
    their_qa.distilbert = their_mlm.distilbert
    qa = QuestionAnswering(mlm.architecture)
    qa.encoder = mlm.encoder
    qa.qa_outputs.load_state_dict(their_qa.qa_outputs.state_dict())
    return mlm.eval(), their_mlm, qa.eval(), their_qa


@pytest.mark.parametrize("masked", [False, True])
def test_logits_are_distilberts(pair: Any, masked: bool) -> None:
    mlm, their_mlm, qa, their_qa = pair
    input_ids, mask = examples(97)
    given_mask = mask if masked else None
    with torch.no_grad():
        theirs = their_mlm(input_ids=input_ids, attention_mask=given_mask).logits
        torch.testing.assert_close(mlm(input_ids, given_mask), theirs, **CLOSE)
        answers = their_qa(input_ids=input_ids, attention_mask=given_mask)
        start, end = qa(input_ids, given_mask)
    assert start.shape == end.shape == input_ids.shape
    torch.testing.assert_close(start, answers.start_logits, **CLOSE)
    torch.testing.assert_close(end, answers.end_logits, **CLOSE)


# --- what the forward pass promises ---------------------------------------------------------


@pytest.mark.parametrize("masked", [False, True])
def test_logits_and_gradients_at_chosen_positions_are_those_of_the_whole(masked: bool) -> None:
    model = built(MaskedLM)
    input_ids, mask = examples(31)
    given_mask = mask if masked else None
    positions = torch.tensor([[5, 0], [2, 3], [1, 4]])
    whole = model(input_ids, given_mask)
    at_positions = whole.gather(1, positions[:, :, None].expand(-1, -1, 31))
    at_positions.square().sum().backward()
    wanted = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    chosen = model(input_ids, given_mask, positions)
    chosen.square().sum().backward()
    assert chosen.shape == (3, 2, 31)
    torch.testing.assert_close(chosen, at_positions, **CLOSE)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, wanted[name], rtol=1e-4, atol=1e-4)


def test_padding_changes_nothing() -> None:
    model = built(QuestionAnswering)
    input_ids, mask = examples(31)
    start, _ = model(input_ids, mask)
    alone, _ = model(input_ids[2:, :6])
    torch.testing.assert_close(start[2:, :6], alone, **CLOSE)


def test_a_mask_of_ones_is_no_mask() -> None:
    model = built(MaskedLM)
    input_ids, mask = examples(31)
    torch.testing.assert_close(model(input_ids, torch.ones_like(mask)), model(input_ids), **CLOSE)


def test_dropouts_act_only_in_training_and_can_all_be_switched_off() -> None:
    input_ids, _ = examples(31)
    noisy = built(QuestionAnswering).train()
    assert not torch.equal(noisy(input_ids)[0], noisy(input_ids)[0])
    still = built(QuestionAnswering, arch=ARCH.with_dropout(0.0)).train()
    assert torch.equal(still(input_ids)[0], still(input_ids)[0])
    assert torch.equal(still(input_ids)[0], noisy.eval()(input_ids)[0])


def test_each_kind_of_dropout_acts_at_its_place() -> None:
    input_ids, _ = examples(31)
    off = ARCH.with_dropout(0.0)
    for name in ("dropout", "attention_dropout", "qa_dropout"):
        only: dict[str, Any] = {name: 0.5}
        model = built(QuestionAnswering, arch=replace(off, **only)).train()
        states = [model.encoder(input_ids) for _ in range(2)]
        assert torch.equal(*states) == (name == "qa_dropout")
        assert not torch.equal(model(input_ids)[0], model(input_ids)[0])


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    odd = ARCH.with_blocks([{"heads": 5, "ffns": [{"activation": "relu", "sizes": [4]}]}])
    with pytest.raises(ValueError, match="5 attention heads do not divide the width 12"):
        Encoder(odd)


FFNS = st.fixed_dictionaries(
    {
        "activation": st.sampled_from(["relu", "gelu", "relu2"]),
        "sizes": st.lists(st.integers(1, 20), min_size=1, max_size=3),
    }
)
BLOCKS = st.fixed_dictionaries(
    {
        "heads": st.sampled_from([1, 2, 3, 4, 6, 12]),
        "ffns": st.lists(FFNS, min_size=1, max_size=3),
    }
)


@given(
    st.lists(BLOCKS, min_size=1, max_size=4),
    st.integers(2, 40),
    st.integers(1, 20),
    st.sampled_from([{}, {"rank": 5}, {"rank": 5, "frequent": 1}]),
)
@settings(max_examples=60, deadline=None)
def test_the_encoder_has_the_parameters_that_its_genotype_counts(
    blocks: list[dict[str, Any]], vocab_size: int, positions: int, rank: dict[str, int]
) -> None:
    arch = Architecture(vocab_size, positions, 12, ()).with_genotype({"blocks": blocks, **rank})
    counted = genotype.parameters(
        Genotype.from_json({"blocks": blocks, **rank}), Backbone(vocab_size, positions, 12)
    )
    assert {"rank", "frequent"} & arch.to_json().keys() == rank.keys()
    assert sum(p.numel() for p in phenotype.empty(MaskedLM, arch).encoder.parameters()) == counted
    assert arch.to_json()["blocks"] == blocks
    assert Architecture.from_json(json.loads(json.dumps(arch.to_json()))) == arch


# --- initialisation -------------------------------------------------------------------------


def test_initialisation_is_berts_and_follows_the_generator() -> None:
    arch = replace(ARCH, vocab_size=600, width=24, pad_token_id=3)
    models = [phenotype.empty(MaskedLM, arch) for _ in range(3)]
    for model, number in zip(models, (7, 7, 8), strict=True):
        phenotype.initialise(model, generator(number), spread=0.1)
    assert states_equal(models[0], models[1])
    for name, tensor in models[0].state_dict().items():
        if "norm" in name and name.endswith("weight"):
            assert torch.equal(tensor, torch.ones_like(tensor)), name
        elif name.endswith("bias"):
            assert torch.equal(tensor, torch.zeros_like(tensor)), name
        else:
            assert not torch.equal(tensor, models[2].state_dict()[name]), name
            assert 0.08 < tensor.std() < 0.12, name
    words = models[0].encoder.embeddings.word.weight
    assert not words[3].any()
    assert words[0].any()


# --- files ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [MaskedLM, QuestionAnswering])
def test_a_saved_model_is_loaded_bit_for_bit(kind: Any, tmp_path: Path) -> None:
    model = built(kind)
    phenotype.save(model, tmp_path / "deep" / "folder")
    phenotype.save(model, tmp_path / "deep" / "folder")  # over itself
    again = phenotype.load(kind, tmp_path / "deep" / "folder")
    assert again.architecture == ARCH
    assert states_equal(again, model)
    assert sorted(path.name for path in (tmp_path / "deep" / "folder").iterdir()) == [
        "config.json",
        "model.safetensors",
    ]
    assert phenotype.load_state(tmp_path / "deep" / "folder").keys() == model.state_dict().keys()
    assert all(parameter.requires_grad for parameter in again.parameters())


def test_the_word_embeddings_are_saved_once_and_shared_with_the_head(tmp_path: Path) -> None:
    model = built(MaskedLM)
    phenotype.save(model, tmp_path)
    shapes = [tuple(tensor.shape) for tensor in phenotype.load_state(tmp_path).values()]
    assert shapes.count((31, 12)) == 1
    before = model(torch.tensor([[1]]))
    with torch.no_grad():
        model.encoder.embeddings.word.weight[7] += 1.0  # token 7 is not in the input
    changed = (model(torch.tensor([[1]])) != before)[0, 0]
    assert changed.nonzero().flatten().tolist() == [7]


def test_loading_overrides_every_dropout(tmp_path: Path) -> None:
    phenotype.save(built(QuestionAnswering), tmp_path)
    arch = phenotype.load(QuestionAnswering, tmp_path, dropout=0.0).architecture
    assert arch == ARCH.with_dropout(0.0)
    assert phenotype.load(QuestionAnswering, tmp_path).architecture == ARCH


def test_answering_starts_from_a_masked_language_model_under_a_fresh_head(tmp_path: Path) -> None:
    mlm = built(MaskedLM)
    phenotype.save(mlm, tmp_path / "mlm")
    models = [phenotype.load_for_answering(tmp_path / "mlm", generator(n), 0.0) for n in (1, 1, 2)]
    assert all(states_equal(model.encoder, mlm.encoder) for model in models)
    assert states_equal(models[0], models[1])
    assert not torch.equal(models[0].qa_outputs.weight, models[2].qa_outputs.weight)
    assert not models[0].qa_outputs.bias.any()
    assert models[0].architecture == ARCH.with_dropout(0.0)
    phenotype.save(models[0], tmp_path / "qa")
    assert states_equal(phenotype.load_for_answering(tmp_path / "qa", generator(3)), models[0])


def test_a_folder_with_another_model_is_refused(tmp_path: Path) -> None:
    phenotype.save(built(QuestionAnswering), tmp_path / "qa")
    with pytest.raises(ValueError, match="holds no MaskedLM"):
        phenotype.load(MaskedLM, tmp_path / "qa")
    phenotype.save(built(MaskedLM), tmp_path / "mlm")
    with pytest.raises(ValueError, match="holds no QuestionAnswering"):
        phenotype.load(QuestionAnswering, tmp_path / "mlm")
    wider = replace(ARCH, width=24).to_json()
    (tmp_path / "mlm" / "config.json").write_text(json.dumps(wider))
    with pytest.raises(ValueError, match="holds no MaskedLM"):
        phenotype.load(MaskedLM, tmp_path / "mlm")


def test_a_failed_write_leaves_the_old_files_and_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = built(MaskedLM)
    phenotype.save(model, tmp_path)

    def fail(state: Any, path: Path, metadata: Any) -> None:
        path.write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(phenotype, "save_file", fail)
    with pytest.raises(OSError, match="no space"):
        phenotype.save(built(MaskedLM, 5), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    assert states_equal(phenotype.load(MaskedLM, tmp_path), model)


def test_files_are_on_disk_before_they_get_their_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    fsync, rename = os.fsync, Path.replace

    def recorded_fsync(descriptor: int) -> None:
        done.append(f"sync {Path(f'/proc/self/fd/{descriptor}').readlink().name}")
        fsync(descriptor)

    def recorded_rename(path: Path, target: Path) -> Path:
        done.append(f"rename {path.name}")
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(Path, "replace", recorded_rename)
    phenotype.save(built(MaskedLM), tmp_path)
    first, second = (f".{name}.{os.getpid()}.tmp" for name in ("config.json", "model.safetensors"))
    assert done == [
        f"sync {first}",
        f"rename {first}",
        f"sync {second}",
        f"rename {second}",
        f"sync {tmp_path.name}",
    ]


def test_the_phenotype_and_its_neighbours_need_neither_nasd_nor_transformers(
    tmp_path: Path,
) -> None:
    (tmp_path / "alone").mkdir()
    for path in (phenotype.__file__, *get_relative_import_files(phenotype.__file__)):
        shutil.copy(path, tmp_path / "alone")
    code = (
        "import sys, alone.phenotype;"
        "print([name for name in sys.modules if name.split('.')[0] in ('nasd', 'transformers')])"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert shown.stdout.strip() == "[]"


def test_a_model_is_read_without_the_compiler_of_torch(tmp_path: Path) -> None:
    phenotype.save(built(QuestionAnswering), tmp_path)
    code = (
        "import sys; from pathlib import Path; from nasd.worker.model import phenotype as read;"
        "read.load(read.QuestionAnswering, Path(sys.argv[1]));"
        "print(*{'torch._dynamo', 'sympy'} & set(sys.modules))"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True
    )
    assert shown.stdout.strip() == ""


def test_the_modelling_code_names_each_file_that_travels() -> None:
    """transformers 4 copies what the first file imports, and not what those files do."""
    code = Path(phenotype.__file__).with_name("pretrained.py")
    named = {f"{code.parent / name}.py" for name in get_relative_imports(code)}
    assert named == set(get_relative_import_files(code))


# --- transformers ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def auto() -> Any:
    import transformers

    from nasd.worker.model import pretrained  # noqa: F401  # registers the classes

    return {
        None: transformers.AutoModel,
        MaskedLM: transformers.AutoModelForMaskedLM,
        QuestionAnswering: transformers.AutoModelForQuestionAnswering,
    }


@pytest.mark.parametrize("kind", [MaskedLM, QuestionAnswering])
@pytest.mark.parametrize("words", [{}, {"rank": 5}, {"rank": 5, "frequent": 4}])
def test_transformers_reads_and_writes_the_same_folders(
    kind: Any, words: dict[str, int], auto: Any, tmp_path: Path
) -> None:
    arch = replace(ARCH, **words)
    model = built(kind, arch=arch)
    phenotype.save(model, tmp_path / "ours")
    theirs, loading = auto[kind].from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(loading.values()), loading
    assert type(theirs).__name__ == f"NasdFor{kind.__name__}"
    assert states_equal(theirs, model)

    if words.get("frequent"):
        with pytest.raises(ValueError, match="frequent words have embeddings of their own"):
            theirs.resize_token_embeddings(arch.vocab_size + 2)

    theirs.save_pretrained(tmp_path / "theirs")
    again = phenotype.load(kind, tmp_path / "theirs")
    assert again.architecture == arch
    assert states_equal(again, model)

    input_ids, mask = examples(31)
    theirs.eval()
    with torch.no_grad():
        output = theirs(input_ids=input_ids, attention_mask=mask, token_type_ids=0 * mask)
        if kind is MaskedLM:
            assert torch.equal(output.logits, model(input_ids, mask))
        else:
            start, end = model(input_ids, mask)
            assert torch.equal(output.start_logits, start)
            assert torch.equal(output.end_logits, end)
        as_tuple = theirs(input_ids, mask, return_dict=False)
        assert torch.equal(as_tuple[0], output[0])


def test_the_bare_encoder_loads_from_either_model_and_back(auto: Any, tmp_path: Path) -> None:
    mlm = built(MaskedLM)
    phenotype.save(mlm, tmp_path / "mlm")
    bare = auto[None].from_pretrained(tmp_path / "mlm")
    assert states_equal(bare.encoder, mlm.encoder)
    input_ids, mask = examples(31)
    torch.testing.assert_close(
        bare.eval()(input_ids, mask).last_hidden_state, mlm.encoder(input_ids, mask), **CLOSE
    )
    bare.save_pretrained(tmp_path / "bare")
    assert states_equal(
        phenotype.load_for_answering(tmp_path / "bare", generator()).encoder, mlm.encoder
    )


def test_transformers_draws_the_head_that_a_folder_lacks(auto: Any, tmp_path: Path) -> None:
    qa = built(QuestionAnswering)
    phenotype.save(qa, tmp_path)
    drawn = auto[MaskedLM].from_pretrained(tmp_path)
    assert states_equal(drawn.encoder, qa.encoder)
    assert not drawn.head.bias.any()
    assert not drawn.head.transform.bias.any()
    assert torch.equal(drawn.head.norm.weight, torch.ones(12))
    assert 0.01 < drawn.head.transform.weight.std() < 0.03


def test_losses_are_distilberts(pair: Any, auto: Any, tmp_path: Path) -> None:
    mlm, their_mlm, qa, their_qa = pair
    input_ids, mask = examples(97)
    labels = torch.where(torch.arange(11) % 3 == 0, input_ids, -100)
    places = {
        "start_positions": torch.tensor([0, 4, 50]),  # the last one is beyond the input
        "end_positions": torch.tensor([3, 4, 50]),
    }
    phenotype.save(mlm, tmp_path / "mlm")
    phenotype.save(qa, tmp_path / "qa")
    with torch.no_grad():
        for kind, theirs, wanted in (
            (MaskedLM, their_mlm, {"labels": labels}),
            (QuestionAnswering, their_qa, places),
        ):
            folder = tmp_path / ("mlm" if kind is MaskedLM else "qa")
            ours = auto[kind].from_pretrained(folder).eval()
            loss = ours(input_ids=input_ids, attention_mask=mask, **wanted).loss
            their_loss = theirs(input_ids=input_ids, attention_mask=mask, **wanted).loss
            torch.testing.assert_close(loss, their_loss, **CLOSE)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("width", 10**9),
        ("vocab_size", 10**9),
        ("positions", 0),
        ("blocks", [{"heads": 1, "ffns": []}] * 10**4),
        ("blocks", [{"heads": 10**9, "ffns": []}]),
        ("blocks", [{"heads": 1, "ffns": [{"activation": "relu", "sizes": [10**9]}]}]),
    ],
)
def test_a_config_of_absurd_size_is_refused_by_its_key(key: str, value: Any) -> None:
    plain = {"vocab_size": 10, "positions": 8, "width": 4, "blocks": []}
    Architecture.from_json(plain)
    with pytest.raises(ValueError, match=key):
        Architecture.from_json({**plain, key: value})
