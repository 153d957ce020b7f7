"""What an attempt reads is what earlier steps wrote: damage is noticed, and mended or named."""

import errno
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nasd.contract import digests
from nasd.contract.digests import Damaged
from nasd.contract.errors import NasdError
from nasd.contract.protocol import AttemptFolder, Spec
from nasd.worker import caches, inputs, prepare
from nasd.worker.__main__ import _judged
from nasd.worker.model import phenotype
from nasd.worker.stage import run as run_stage
from nasd.worker.tasks.task import Ranks
from nasd.worker.training.progress import Progress, quiet
from tests.damage import flip_a_bit
from tests.training import Never, Workshop, demo_config, make_workshop, stage, weights, work

CONFIG = demo_config()
BITS = st.integers(0, (1 << 40) - 1)


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return make_workshop(tmp_path_factory.mktemp("workshop"))


@pytest.fixture
def shop(pristine: Workshop) -> Iterator[Workshop]:
    """The workshop, whole again afterwards."""
    kept = pristine.folder.with_name("kept")
    shutil.copytree(pristine.folder, kept)
    yield pristine
    shutil.rmtree(pristine.folder)
    kept.rename(pristine.folder)


def spec_of(shop: Workshop, name: str = "finetune", **changes: Any) -> Spec:
    return shop.spec(stage(CONFIG, name), **changes)


def content(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def seed_folder(shop: Workshop) -> Path:
    """As prepare leaves it."""
    from nasd.worker.model.seed import load_tokenizer

    folder = shop.folder / "candidates" / "0" / "prepare"
    spec = spec_of(shop)
    tokenizer = load_tokenizer(spec.source, shop.folder)
    prepare.convert_seed(spec, tokenizer, folder, quiet)
    return folder


# -- digests -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sealed")
    (folder / "below").mkdir()
    for name, size in (("a.npy", 1000), ("below/b.npy", 77), ("empty", 0)):
        (folder / name).write_bytes(bytes(range(256)) * (size // 256) + bytes(size % 256))
    digests.seal(folder)
    return folder


@given(name=st.sampled_from(["a.npy", "below/b.npy", digests.SEAL]), bit=BITS)
@settings(max_examples=200)
def test_a_flipped_bit_anywhere_is_noticed_and_the_file_named(
    sealed: Path, name: str, bit: int
) -> None:
    path = sealed / name
    before = path.read_bytes()
    flipped = bytearray(before)
    flipped[bit // 8 % len(before)] ^= 1 << bit % 8
    path.write_bytes(flipped)
    try:
        with pytest.raises(Damaged) as caught:
            digests.check(sealed, ["a.npy"])
        assert caught.value.path == path
    finally:
        path.write_bytes(before)
    digests.check(sealed, ["a.npy"])


@pytest.mark.parametrize("damage", ["longer", "shorter", "gone", "a folder", "swapped"])
def test_what_is_longer_shorter_gone_or_another_is_named(
    sealed: Path, tmp_path: Path, damage: str
) -> None:
    folder = shutil.copytree(sealed, tmp_path / "copy")
    path = folder / "below" / "b.npy"
    match damage:
        case "longer":
            path.write_bytes(path.read_bytes() + b"\0")
        case "shorter":
            path.write_bytes(path.read_bytes()[:-1])
        case "swapped":
            shutil.copy(folder / "a.npy", path)
        case _:
            path.unlink()
            if damage == "a folder":
                path.mkdir()
    with pytest.raises(Damaged, match=r"below/b\.npy"):
        digests.check(folder, ["a.npy"])


@pytest.mark.parametrize("note", ["", "{}", "[]", '{"files": {}}', '{"files": {}, "digest": "x"}'])
def test_a_note_that_vouches_for_nothing_does_not_pass(
    sealed: Path, tmp_path: Path, note: str
) -> None:
    folder = shutil.copytree(sealed, tmp_path / "copy")
    (folder / digests.SEAL).write_text(note)
    with pytest.raises(Damaged, match=digests.SEAL):
        digests.check(folder, ["a.npy"])


def test_a_note_that_is_whole_but_does_not_know_a_file_that_is_needed_does_not_pass(
    sealed: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(sealed, tmp_path / "copy")
    (folder / "a.npy").rename(tmp_path / "a.npy")
    digests.seal(folder)
    shutil.copy(tmp_path / "a.npy", folder)
    with pytest.raises(Damaged, match=r"a\.npy has no digest"):
        digests.check(folder, ["a.npy"])


def test_a_folder_without_digests_is_taken_as_it_is_once_if_it_can_be_read(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("one")

    def refuse(folder: Path) -> None:
        raise Damaged(folder, "is no such thing")

    with pytest.raises(Damaged, match="no such thing"):
        digests.check(tmp_path, ["a"], proof=refuse)
    assert not digests.sealed(tmp_path)
    digests.check(tmp_path, ["a"])
    assert digests.sealed(tmp_path)
    (tmp_path / "a").write_text("two")
    with pytest.raises(Damaged):
        digests.check(tmp_path, ["a"])


# -- caches --------------------------------------------------------------------------------------

FILES = [
    ("pretrain_1", "mlm_cache", "pieces.npy"),
    ("pretrain_1", "mlm_cache", "train.npy"),
    ("pretrain_1", "mlm_cache", "manifest.json"),
    ("finetune", "qa_cache", "train/tokens.npy"),
    ("evaluate", "qa_cache", "test_questions.json"),
    ("evaluate", "qa_cache", "test/characters.npy"),
]
DAMAGES = [
    *((*place, damage) for place in FILES for damage in ("flip", "remove")),
    ("finetune", "qa_cache", digests.SEAL, "flip"),  # without it, it is an earlier nasd's
]


@pytest.mark.parametrize(("name", "which", "file", "damage"), DAMAGES)
def test_a_damaged_cache_is_made_again_as_it_was(
    shop: Workshop,
    capsys: pytest.CaptureFixture[str],
    name: str,
    which: str,
    file: str,
    damage: str,
) -> None:
    cache = Path(getattr(shop.prepared, which))
    before = content(cache)
    if damage == "flip":
        flip_a_bit(cache / file)
    else:
        (cache / file).unlink()
    inputs.check(spec_of(shop, name), quiet)
    assert content(cache) == before
    said = capsys.readouterr().out
    assert f"{cache / file} is" in said
    assert "made again" in said
    inputs.check(spec_of(shop, name), quiet)
    assert not [path for path in cache.parent.iterdir() if path.name.startswith(".")]


def test_a_cache_that_is_gone_is_made_again(shop: Workshop) -> None:
    cache = Path(shop.prepared.qa_cache)
    before = content(cache)
    shutil.rmtree(cache)
    inputs.check(spec_of(shop), quiet)
    assert content(cache) == before


@pytest.mark.parametrize("source", ["changed", "gone"])
def test_a_cache_whose_sources_have_changed_is_named_and_left_as_it_is(
    shop: Workshop, source: str
) -> None:
    cache = Path(shop.prepared.mlm_cache)
    flip_a_bit(cache / "pieces.npy")
    before = content(cache)
    corpus = shop.folder / "demo-data" / "corpus.txt"
    if source == "changed":
        corpus.write_text(corpus.read_text() * 2)
    else:
        corpus.unlink()
    with pytest.raises(Damaged, match="cannot be made again") as caught:
        inputs.check(spec_of(shop, "pretrain_1"), quiet)
    assert caught.value.path == cache / "pieces.npy"
    assert ("has changed since" if source == "changed" else "corpus.txt") in str(caught.value)
    assert content(cache) == before


def test_a_cache_of_an_earlier_nasd_is_taken_as_it_is_once_and_sealed(shop: Workshop) -> None:
    cache = Path(shop.prepared.qa_cache)
    (cache / digests.SEAL).unlink()
    before = content(cache)
    inputs.check(spec_of(shop), quiet)
    assert digests.sealed(cache)
    assert {name: one for name, one in content(cache).items() if name != digests.SEAL} == before


def test_a_cache_of_an_earlier_nasd_that_is_not_whole_is_made_again(shop: Workshop) -> None:
    cache = Path(shop.prepared.qa_cache)
    before = content(cache)
    (cache / digests.SEAL).unlink()
    tokens = (cache / "train" / "tokens.npy").read_bytes()
    (cache / "train" / "tokens.npy").write_bytes(tokens[: len(tokens) // 2])
    inputs.check(spec_of(shop), quiet)
    assert content(cache) == before


def test_who_waits_for_a_cache_that_another_attempt_makes_shows_signs_of_life_and_makes_none(
    shop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = Path(shop.prepared.qa_cache)
    kept = shutil.copytree(cache, shop.folder / "kept")
    flip_a_bit(cache / "train" / "tokens.npy")
    held = caches.alone(cache.parent, quiet)
    held.__enter__()
    waits, said = "waiting for who makes the cache", list[str]()

    def progress(doing: str, *counts: int, **more: float) -> None:
        said.append(doing)
        if doing == waits and said.count(waits) == 3:
            shutil.rmtree(cache)
            kept.rename(cache)  # the other one is done
            held.__exit__(None, None, None)

    def build(*arguments: object) -> None:
        raise AssertionError("it was there already")

    monkeypatch.setattr(prepare, "_build_qa", build)
    inputs.check(spec_of(shop), progress)
    assert said.count(waits) == 3


# -- weights -------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", digests.SEAL])
def test_damaged_weights_are_named_with_what_to_do(shop: Workshop, file: str) -> None:
    folder = shutil.copytree(seed_folder(shop), shop.folder / "candidates" / "3" / "pretrain_1")
    inputs.check(spec_of(shop, weights=folder), quiet)
    flip_a_bit(folder / file)
    with pytest.raises(Damaged, match="put it back from a copy") as caught:
        inputs.check(spec_of(shop, weights=folder), quiet)
    assert caught.value.path == folder / file


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "tokenizer.json", "all"])
def test_the_seeds_damaged_weights_are_made_again_from_the_seed(shop: Workshop, file: str) -> None:
    folder = seed_folder(shop)
    before = content(folder)
    if file == "all":
        shutil.rmtree(folder)
    else:
        flip_a_bit(folder / file, at=0.9)
    inputs.check(spec_of(shop, weights=folder), quiet)
    assert content(folder) == before
    assert [path.name for path in folder.parent.iterdir()] == ["prepare"]


def test_the_seeds_weights_are_not_replaced_by_those_of_a_seed_that_has_changed(
    shop: Workshop,
) -> None:
    folder = seed_folder(shop)
    source = shutil.copytree(shop.folder / "seed", shop.folder / "other")
    for path in folder.glob("tokenizer*"):
        shutil.copy(path, source)
    state = weights(source)
    state["head.bias"] = state["head.bias"] + 1
    model = phenotype.load(phenotype.MaskedLM, source)
    model.load_state_dict({**model.state_dict(), **state}, strict=False)
    flip_a_bit(folder / "model.safetensors")
    before = content(folder)
    made = prepare.convert_seed

    def another(*arguments: Any) -> Any:
        result = made(*arguments)
        phenotype.save(model, arguments[2])
        digests.seal(arguments[2])
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare, "convert_seed", another)
        with pytest.raises(Damaged, match="has changed since"):
            inputs.check(spec_of(shop, weights=folder), quiet)
    assert content(folder) == before


def test_weights_of_an_earlier_nasd_are_taken_as_they_are_once_and_sealed_if_they_can_be_read(
    shop: Workshop,
) -> None:
    folder = shop.seed_weights  # written without digests
    assert not digests.sealed(folder)
    inputs.check(spec_of(shop), quiet)
    assert digests.sealed(folder)
    (folder / digests.SEAL).unlink()
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(Damaged, match="not the model that was written there"):
        inputs.check(spec_of(shop), quiet)
    assert not digests.sealed(folder)


# -- whole stages --------------------------------------------------------------------------------


def done(spec: Spec, path: Path, ranks: Ranks) -> AttemptFolder:
    path.mkdir()
    folder = AttemptFolder(path)
    outcome = run_stage(spec, folder, ranks, Never())
    assert outcome.verdict == "succeeded", outcome
    return folder


def test_what_a_stage_leaves_has_digests_beside_it(
    shop: Workshop, tmp_path: Path, alone: Ranks
) -> None:
    trained = done(
        shop.spec(stage(CONFIG, "finetune", epochs=0.05), tensorboard=str(tmp_path / "t")),
        tmp_path / "finetune",
        alone,
    )
    digests.check(trained.result, inputs.WEIGHTS)
    assert digests.sealed(trained.result)
    scored = done(spec_of(shop, "evaluate", weights=trained.result), tmp_path / "evaluate", alone)
    assert digests.noted(scored.result).keys() == {"predictions.json"}


def test_the_scores_after_damage_are_those_without_it(
    shop: Workshop, tmp_path: Path, alone: Ranks
) -> None:
    trained = done(
        shop.spec(stage(CONFIG, "finetune", epochs=0.05), tensorboard=str(tmp_path / "t")),
        tmp_path / "finetune",
        alone,
    )
    spec = spec_of(shop, "evaluate", weights=trained.result)
    before = done(spec, tmp_path / "before", alone).result / "predictions.json"
    flip_a_bit(Path(shop.prepared.qa_cache) / "test" / "tokens.npy")
    flip_a_bit(Path(shop.prepared.qa_cache) / "test_questions.json")
    after = done(spec, tmp_path / "after", alone).result / "predictions.json"
    assert json.loads(after.read_text()) == json.loads(before.read_text())


def test_one_that_is_asked_to_stop_while_it_makes_a_cache_again_stops(
    shop: Workshop, tmp_path: Path, alone: Ranks
) -> None:
    class Soon:
        asked = False

    stop = Soon()

    def build(*arguments: Any) -> None:
        progress: Progress = arguments[-1]
        stop.asked = True
        progress("tokenising")

    flip_a_bit(Path(shop.prepared.qa_cache) / "test" / "tokens.npy")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare, "_build_qa", build)
        outcome = run_stage(spec_of(shop), AttemptFolder(tmp_path), alone, stop)  # type: ignore[arg-type]
    assert outcome.verdict == "stopped"
    assert not [path for path in (shop.folder / "cache").iterdir() if path.name.startswith(".")]


def test_ranks_wait_for_the_first_of_them_which_makes_a_damaged_cache_again(
    shop: Workshop, tmp_path: Path
) -> None:
    flip_a_bit(Path(shop.prepared.mlm_cache) / "pieces.npy")
    short = stage(CONFIG, "pretrain_1", epochs=0.05, evaluations=1)
    folder, outcome = work(shop.spec(short), tmp_path / "two", ranks=2)
    assert outcome is not None
    assert outcome.verdict == "succeeded", folder.log.read_text()
    assert folder.log.read_text().count("it is made again") >= 1


def test_a_worker_that_finds_damaged_weights_says_so_and_blames_no_candidate(
    shop: Workshop, tmp_path: Path
) -> None:
    trained = shutil.copytree(seed_folder(shop), shop.folder / "candidates" / "3" / "pretrain_1")
    flip_a_bit(trained / "model.safetensors")
    _, outcome = work(spec_of(shop, weights=trained), tmp_path / "attempt")
    assert outcome is not None
    assert outcome.verdict == "machine"
    assert outcome.message.startswith(f"{trained / 'model.safetensors'} is damaged")


# -- verdicts ------------------------------------------------------------------------------------


def caused(error: NasdError, cause: BaseException) -> NasdError:
    error.__cause__ = cause
    return error


DATA = NasdError("squad.json: article 3 has no title")


@pytest.mark.parametrize(
    ("error", "at_prepare", "later"),
    [
        (Damaged(Path("/c/pieces.npy"), "is damaged"), "machine", "machine"),
        (FileNotFoundError(errno.ENOENT, "No such file", "/c/train.npy"), "machine", "machine"),
        (PermissionError(errno.EACCES, "Permission denied", "/c/train.npy"), "machine", "machine"),
        (DATA, "invalid", "error"),
        (caused(NasdError("x"), ValueError("not JSON")), "invalid", "error"),
        (caused(NasdError("hub"), httpx2.ConnectError("no route")), "error", "error"),
        (caused(NasdError("hub"), ConnectionError("offline")), "error", "error"),
        (caused(NasdError("x"), OSError(errno.EIO, "I/O error")), "error", "error"),
        (KeyError("x"), "error", "error"),
        (RuntimeError("shapes cannot be multiplied"), "error", "error"),
    ],
    ids=str,
)
def test_an_error_is_the_machines_the_datas_or_of_unknown_cause(
    pristine: Workshop, error: Exception, at_prepare: str, later: str
) -> None:
    assert _judged(error, pristine.spec(None)).verdict == at_prepare
    outcome = _judged(error, spec_of(pristine))
    assert outcome.verdict == later
    if isinstance(error, OSError):
        assert str(error.filename) in outcome.message


def test_memory_that_runs_out_while_weights_are_read_is_not_their_fault() -> None:
    with pytest.raises(MemoryError), inputs.reading(Path("/weights")):
        raise MemoryError
    with pytest.raises(OSError, match="memory"), inputs.reading(Path("/weights")):
        raise OSError(errno.ENOMEM, "Cannot allocate memory")
    with pytest.raises(Damaged), inputs.reading(Path("/weights")):
        torch.empty(2, dtype=torch.float32).numpy().reshape(3)
