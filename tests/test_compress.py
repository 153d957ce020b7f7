"""`nasd compress`: a smaller model of a person's own, from their checkpoint and questions."""

import json
import os
import subprocess
import sys
import time
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nasd.cli import compress_config, compressing
from nasd.cli.compress_config import write_config
from nasd.cli.compressing import _check_same, _tell_best, _tell_changed
from nasd.cli.wish import Asked, asked_of, check_data, from_here
from nasd.contract.config import Config, load, parse
from nasd.contract.errors import NasdError
from nasd.contract.genotype import Backbone, Block, FeedForward, Genotype, parameters
from nasd.contract.limits import Limit
from nasd.control import preflight
from nasd.control.preflight import Seed, check_seed
from nasd.presets import preset_text, rewritten, smaller
from nasd.presets.demo import write_demo_data
from nasd.record import lookup, requests, snapshot
from nasd.record.folders import StateFolder
from nasd.search.variation.breeding import initial_population
from nasd.search.variation.reach import MOST, steps_to
from nasd.views.forecast.fitting import WORKING
from tests.conftest import ROOT, drive, make_tick, small_config
from tests.test_cli import refused
from tests.training import Workshop, exported, make_workshop

DISTILBERT = Genotype((Block(12, (FeedForward("gelu", (3072,)),)),) * 6)
BACKBONE = Backbone(30522, 512, 768)


def nasd(*arguments: str, folder: Path, timeout: float = 300) -> "subprocess.CompletedProcess[str]":
    """What is planned is the same on a machine of any speed."""
    if arguments[0] == "compress":
        arguments = (*arguments, "--tflops", "0.075")
    return subprocess.run(
        [sys.executable, "-m", "nasd", *arguments],
        cwd=folder,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=timeout,
    )


# -- the space -----------------------------------------------------------------------------------


def test_distilberts_space_goes_down_in_steps_from_what_it_has() -> None:
    assert smaller.space(DISTILBERT, BACKBONE, 0.6) == {
        "blocks": [3, 6],
        "heads": [3, 4, 6, 8, 12],
        "remaining_heads": [3, 6, 9],
        "ffns": 1,
        "layers": [2],
        "sizes": [768, 1536, 2304, 3072],
        "activations": ["gelu"],
        "ranks": [192, 256, 384, 512],
        "frequent_words": 1000,
    }
    assert smaller.space(DISTILBERT, BACKBONE, 0.45)["blocks"] == [2, 6]
    assert smaller.space(DISTILBERT, BACKBONE, 0.3)["blocks"] == [1, 6]


SHAPES = st.builds(
    lambda width, blocks: (
        Backbone(1000, 64, 12 * width),
        Genotype(
            tuple(
                Block(
                    heads,
                    tuple(FeedForward(act, tuple(sizes)) for act, sizes in ffns),
                    remaining=1 if heads > 1 and lost else None,
                )
                for heads, lost, ffns in blocks
            )
        ),
    ),
    st.integers(1, 16),
    st.lists(
        st.tuples(
            st.sampled_from([1, 2, 3, 4, 6, 12]),
            st.booleans(),
            st.lists(
                st.tuples(
                    st.sampled_from(["relu", "gelu"]),
                    st.lists(st.integers(1, 500), min_size=1, max_size=2),
                ),
                min_size=1,
                max_size=2,
            ),
        ),
        min_size=1,
        max_size=5,
    ),
)


@given(SHAPES, st.floats(0.01, 0.99))
def test_every_space_holds_the_model_and_reaches_the_target(
    shape: tuple[Backbone, Genotype], target: float
) -> None:
    backbone, model = shape
    try:
        space = smaller.space(model, backbone, target)
    except NasdError as error:
        least = float(str(error).split("give ")[1].split()[0])
        assert least > target - 0.01
        if least < 1:
            smaller.space(model, backbone, least)
        return
    text = rewritten(
        "compress", "# ours\n", {f"search_space.{key}": value for key, value in space.items()}
    )
    config = parse(tomllib.loads(text), "c")
    tokens = config.data.qa.model_copy(update={"tokens": 32, "stride": 8})
    config = config.model_copy(update={"data": config.data.model_copy(update={"qa": tokens})})
    check_seed(config, Seed(backbone, model, has_mlm_head=False), "c")
    smallest = smaller.smallest_of(config.search_space, model, backbone)
    assert smallest <= target * parameters(model, backbone)
    for rank in space["ranks"]:
        narrow = parameters(Genotype(model.blocks, rank, space["frequent_words"]), backbone)
        assert narrow < parameters(model, backbone) or rank == model.rank


def test_half_of_the_mutants_of_so_many_steps_are_small_enough() -> None:
    text = rewritten("compress", "# ours\n", {})
    config = parse(tomllib.loads(text), "c")
    about = DISTILBERT, BACKBONE, config.search_space, config.variation
    steps = {share: steps_to(share, *about) for share in (0.9, 0.7, 0.5, 0.1)}
    assert 1 < steps[0.9] < steps[0.7] < steps[0.5] < steps[0.1] == MOST
    drawn = config.variation.model_copy(update={"steps": (steps[0.5],) * 2})
    mutants = initial_population(DISTILBERT, config.search_space, drawn, 1, 3, 100)
    whole = parameters(DISTILBERT, BACKBONE)
    small = [one for one in mutants if parameters(one.genotype, BACKBONE) <= 0.5 * whole]
    assert 30 <= len(small) <= 100


def test_what_is_rewritten_keeps_the_presets_comments_under_its_own_head() -> None:
    text = rewritten(
        "compress", "# ours\n", {"data.qa.hub": None, "data.qa.files": ['a "b" ü.json']}
    )
    assert text.startswith("# ours\n\n[experiment]")
    assert tomllib.loads(text)["data"]["qa"]["files"] == ['a "b" ü.json']
    assert "hub" not in tomllib.loads(text)["data"]["qa"]
    body = preset_text("compress").partition("\n[")[2]
    assert text.count("#") == body.count("#") + 1


# -- the command ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return make_workshop(tmp_path_factory.mktemp("workshop"))


@pytest.fixture(scope="module")
def home(shop: Workshop) -> Path:
    """A folder with a person's own fine-tuned model, and their questions."""
    folder = shop.folder / "home"
    exported(shop, 1.0, folder / "mine")
    write_demo_data(folder / "data")
    return folder


QUESTIONS = ("--questions", "data/squad.json")
SPEED = ("--tflops", "0.005")  # as a core's, which is not tried then


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("mine", *QUESTIONS, "--target", "1.5"), "--target 1.5: give a share of the model's"),
        (("mine", *QUESTIONS, "--target", "0"), "--target 0: give a share of the model's"),
        (("mine", *QUESTIONS, "--target", "nan"), "--target nan: give a share of the model's"),
        (("mine",), "--questions is missing: name a file of questions"),
        (("mine", "--questions", "no.json"), "--questions: there is no file no.json"),
        (("mine", "--questions", "data/corpus.txt"), "--questions: data/corpus.txt"),
        (("mine", *QUESTIONS, "--out", "data"), "data"),
    ],
)
def test_what_makes_no_sense_is_refused_in_a_sentence_before_anything_is_looked_at(
    home: Path, arguments: tuple[str, ...], words: str
) -> None:
    before = sorted(home.rglob("*"))
    assert words in refused(nasd("compress", *arguments, folder=home))
    assert sorted(home.rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("mine", *QUESTIONS, "--target", "0.1"), "--target 0.1: the smallest encoder of this"),
        (("gpt", *QUESTIONS), "the model type 'gpt2' is not supported: take one of"),
        (("nowhere/at/all", *QUESTIONS), "there is no folder"),
        (("mine", *QUESTIONS, "--devices", "gpu"), "--devices gpu: take auto, or a list"),
        (("mine", *QUESTIONS, "--devices", "cuda:7"), "slots.devices: cuda:7 is not on"),
        (("mine", *QUESTIONS, *SPEED, "--budget-gpu-hours", "1e-6"), "do not pay the smallest"),
    ],
)
def test_a_model_or_a_wish_that_cannot_be_is_refused_in_a_sentence_and_nothing_is_written(
    home: Path, arguments: tuple[str, ...], words: str
) -> None:
    gpt = home / "gpt"
    gpt.mkdir(exist_ok=True)
    (gpt / "config.json").write_text(json.dumps({"model_type": "gpt2", "vocab_size": 5}))
    before = sorted(home.rglob("*"))
    done = nasd("compress", *arguments, folder=home)
    assert (done.returncode, done.stdout) == (2, "")
    looking, *working, line = done.stderr.splitlines()
    assert looking == "looking at the model and the data ..."
    assert working == [WORKING] * ("--budget-gpu-hours" in arguments)
    assert line.startswith("nasd: ") and words in line
    assert sorted(home.rglob("*")) == before


def test_it_writes_a_config_that_says_what_it_chose_and_keeps_to_it(
    home: Path, tmp_path: Path
) -> None:
    place = ("--config", str(tmp_path / "c" / "config.toml"), "--write-only")
    done = nasd("compress", "mine", *QUESTIONS, "--target", "0.6", *place, folder=home)
    assert done.returncode == 0, done.stderr
    assert "its question-answering head is kept, and trained on" in done.stdout
    assert "18 % are embeddings, " in done.stdout
    assert "at their narrowest: at most 60 % in all leave" in done.stdout
    text = (tmp_path / "c" / "config.toml").read_text()
    config = parse(tomllib.loads(text), "c")
    assert config.seed_model.source == str((home / "mine").resolve())
    assert config.data.mlm is None
    # Many generations come to the target by small steps.
    assert (config.experiment.generations, config.variation.steps) == (20, (1, 3))
    assert not any(one.startswith("compression") for one in config.experiment.limits)
    assert config.scores_seed  # the model has its head: nothing but children and controls train
    again = nasd("compress", "mine", *QUESTIONS, "--target", "0.7", *place, folder=home)
    assert again.returncode == 0 and "going on with" in again.stdout
    assert (tmp_path / "c" / "config.toml").read_text() == text
    write_demo_data(tmp_path / "other", seed=1)
    for other, key in (
        (("mine", "--questions", str(tmp_path / "other" / "squad.json")), "data.qa.files"),
        ((str(home / "data"), *QUESTIONS), "seed_model.source"),
    ):
        words = f"is of another search, as its {key} says"
        done = nasd("compress", *other, *place, folder=home)
        assert done.returncode == 2 and words in done.stderr
    low = nasd("compress", "mine", *QUESTIONS, "--target", "0.1", *place, folder=home)
    assert low.returncode == 2 and "--target 0.1: the smallest encoder" in low.stderr


def planned_once(
    home: Path, path: Path, target: str, budget: str, *speed: str
) -> tuple[tuple[str, ...], "subprocess.CompletedProcess[str]", Config]:
    """What was asked, what was said, and the config: of one generation."""
    asked = ("--target", target, "--config", str(path), "--devices", "cpu:0,cpu:1", "--write-only")
    hours = ("--budget-gpu-hours", budget, *speed)
    done = nasd("compress", "mine", *QUESTIONS, *asked, *hours, folder=home)
    assert done.returncode == 0, done.stderr
    config = parse(tomllib.loads(path.read_text()), "c")
    assert (config.experiment.generations, config.population.finishing) == (0, 0)
    return asked, done, config


def test_a_budget_that_pays_few_trainings_goes_to_the_target_in_one_generation(
    home: Path, tmp_path: Path
) -> None:
    path = tmp_path / "c" / "config.toml"
    asked, done, config = planned_once(home, path, "0.5", "0.1", *SPEED)
    assert "compression >= 2" in config.experiment.limits
    least, most = config.variation.steps
    assert f"the steps: {least} to {most} at once, to at most 50 %" in done.stdout
    assert config.experiment.budget_gpu_hours == 0.1
    again = nasd("compress", "mine", *QUESTIONS, *asked, "--budget-gpu-hours", "0.1", folder=home)
    assert again.returncode == 0 and f"going on with {path}, as it stands there\n" in again.stdout
    lower = ("--target", "0.4", *asked[2:])
    told = nasd("compress", "mine", *QUESTIONS, *lower, folder=home)
    assert "its limit compression >= 2 is of another --target than 0.4" in told.stdout
    # What was planned for one budget is no plan for another; of a search that has begun it is set.
    other = ("compress", "mine", *QUESTIONS, *asked, "--budget-gpu-hours", "5")
    refusal = nasd(*other, folder=home)
    assert refusal.returncode == 2
    assert f"{path} was written for a budget of 0.1: remove it to have a search" in refusal.stderr
    state = StateFolder(path.parent / config.experiment.state)
    make_tick(state, config).store.close()
    begun = nasd(*other, folder=home)
    assert begun.returncode == 0, begun.stderr
    assert "its budget is 5 slot-hours in all from here on" in begun.stdout
    (request,) = requests.waiting(state.requests)
    told = json.loads(request.read_text())
    assert (told["action"], told["gpu_hours"]) == ("budget", 5.0)


def test_a_target_that_is_near_has_one_long_training_each_as_well(
    home: Path, tmp_path: Path
) -> None:
    path = tmp_path / "c" / "config.toml"
    _, done, config = planned_once(home, path, "0.9", "0.06")
    assert "compression >= 1.111111" in config.experiment.limits
    assert "at once, to at most 90 %" in done.stdout and " as set" not in done.stdout


def test_fewer_tokens_are_kept_where_that_is_asked_and_the_target_is_of_the_whole_model(
    home: Path, tmp_path: Path
) -> None:
    path = tmp_path / "c" / "config.toml"
    place = ("--config", str(path), "--devices", "cpu:0,cpu:1", "--write-only")
    few = ("--vocabulary", "200", "--budget-gpu-hours", "0.1", *SPEED)
    high = nasd("compress", "mine", *QUESTIONS, "--target", "0.995", *few, *place, folder=home)
    assert high.returncode == 2 and "--vocabulary 200: with so few tokens the" in high.stderr
    assert not path.exists()
    done = nasd("compress", "mine", *QUESTIONS, "--target", "0.5", *few, *place, folder=home)
    assert done.returncode == 0, done.stderr
    config = parse(tomllib.loads(path.read_text()), "c")
    assert config.seed_model.vocabulary == 200
    known = preflight.look_at_seed(str(home / "mine"), home)
    whole, left = (
        parameters(known.baseline, replace(known.backbone, vocab_size=size))
        for size in (known.backbone.vocab_size, 200)
    )
    (asks,) = (one for one in config.experiment.limits if one.startswith("compression"))
    assert Limit.parse(asks).bound == pytest.approx(2 * left / whole, rel=1e-5)
    assert f"tokens 200 are kept, the most frequent in the data: {100 * left / whole:.0f} %" in (
        done.stdout
    )
    again = nasd("compress", "mine", *QUESTIONS, "--target", "0.5", *place, folder=home)
    assert f"going on with {path}, as it stands there\n" in again.stdout
    other = nasd("compress", "mine", *QUESTIONS, "--vocabulary", "250", *place, folder=home)
    assert other.returncode == 2 and "as its seed_model.vocabulary says" in other.stderr


def test_the_same_wish_goes_on_and_what_differs_is_named(
    home: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def asks(**changes: Any) -> Asked:
        wish: dict[str, Any] = {
            "model": str(home / "mine"),
            "files": [home / "data" / "squad.json"],
            "target": 0.6,
            "config": tmp_path / "config.toml",
            "state": None,
            "devices": "auto",
            "budget": None,
            "task": None,
            "settings": {"no_answer": False},
            "vocabulary": 10**6,  # more than the model has
        }
        return asked_of(**wish | changes)

    seen = preflight.look_at_seed(str(home / "mine"), home)
    for module in (compress_config, compressing):  # a process each
        monkeypatch.setattr(module, "look", lambda source, folder: seen)
    write_config(asks(devices="cpu:0", settings={"max_answer_tokens": 12}), None)
    there = load(tmp_path / "config.toml")
    assert there.data.qa is not None and there.data.qa.max_answer_tokens == 12
    assert there.seed_model.vocabulary is None
    for same in ({}, {"devices": "cpu:0"}, {"settings": {"max_answer_tokens": 12}}):
        assert _check_same(asks(**same), there) == 0.6
    for other, words in (
        ({"vocabulary": 100}, "as its seed_model.vocabulary says"),
        ({"settings": {"max_answer_tokens": 13}}, "as its data.qa.max_answer_tokens says"),
        ({"state": tmp_path / "elsewhere"}, "as its experiment.state says"),
        ({"devices": "cpu:0,cpu:1"}, "--devices cpu:0,cpu:1: .* change slots.devices there"),
    ):
        with pytest.raises(NasdError, match=words):
            _check_same(asks(**other), there)
    make_tick(StateFolder(tmp_path / "state"), there).store.close()
    for one in (home / "data" / "squad.json", *(home / "mine").iterdir()):
        os.utime(one, (1, 1))
    _tell_changed(asks(), there)
    assert "has changed" not in capsys.readouterr().out
    later = time.time() + 60
    os.utime(home / "mine" / "config.json", (later, later))
    _tell_changed(asks(), there)
    assert "config.json has changed since the search began" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("spent", "words"),
    [
        (True, "the budget is spent, and no candidate has at most 1 % .* a higher --budget-gpu"),
        (False, "the search is complete, and no candidate .* a higher experiment.generations in"),
    ],
)
def test_where_nobody_is_small_enough_the_nearest_is_told_and_how_to_go_on(
    tmp_path: Path, spent: bool, words: str
) -> None:
    tick = make_tick(StateFolder(tmp_path / "state"), small_config(experiment__generations=0))
    found = drive(tick)
    tick.store.close()
    asked = Asked("model", (), 0.01, tmp_path / "c.toml", "state", "auto", None, "qa", {}, None)
    least = min(found.born_in(0), key=lambda one: one.parameters)
    with pytest.raises(NasdError, match=f"{words}") as raised:
        _tell_best(asked, tmp_path / "state", spent)
    assert f"the smallest, candidate {least.id}, has" in str(raised.value)


def test_questions_without_an_answer_are_taken_where_that_is_asked(tmp_path: Path) -> None:
    entry = {"id": "1", "question": "Who?", "answers": []}
    article = {"title": "a", "paragraphs": [{"context": "Nobody.", "qas": [entry]}]}
    (tmp_path / "two.json").write_text(json.dumps({"version": "v2.0", "data": [article]}))
    files = [tmp_path / "two.json"]
    with pytest.raises(NasdError, match="take them by --set no_answer=true"):
        check_data("qa", files, {})
    check_data("qa", files, {"no_answer": True})
    with pytest.raises(NasdError, match=r"unknown key qa\.no_answers; did you mean no_answer"):
        check_data("qa", files, {"no_answers": True})


def test_files_of_a_setting_are_those_of_the_folder_where_it_is_typed(tmp_path: Path) -> None:
    here = Path("test.csv").resolve()
    assert from_here({"test_files": ["test.csv"], "label": "stars"}) == {
        "test_files": [str(here)],
        "label": "stars",
    }


@pytest.mark.heavy
@pytest.mark.timeout(1500)
def test_a_model_is_compressed_from_its_checkpoint_through_to_an_export_of_the_asked_size(
    home: Path, tmp_path: Path
) -> None:
    path, out = tmp_path / "c" / "config.toml", tmp_path / "small"
    command = (
        *("compress", "mine", *QUESTIONS, "--target", "0.75", "--config", str(path)),
        *("--devices", "cpu:0,cpu:1"),
    )
    done = nasd(*command, "--budget-gpu-hours", "0.04", "--write-only", folder=home)
    assert done.returncode == 0, done.stderr
    text = path.read_text()
    assert "budget_gpu_hours = 0.04" in text
    path.write_text(text.replace("budget_gpu_hours = 0.04", ""))  # on a machine of any speed
    done = nasd(*command, folder=home, timeout=900)
    assert done.returncode == 0, done.stderr
    assert "going on with" in done.stdout
    assert "the best with at most 75 % of the model's parameters: candidate" in done.stdout
    assert f"export best my-model --max-parameters 75 --config {path}" in done.stdout
    with snapshot.opened(tmp_path / "c" / "state") as connection:
        found = snapshot.read(connection)
    best = lookup.find(found, lookup.BEST, lookup.Wish(max_parameters=75.0))
    assert not best.is_baseline
    stages = [stage for one, stage in found.results if one == found.baseline.id]
    assert stages == ["prepare", "evaluate"]
    assert (found.experiment.prepared or {})["keeps_qa_head"]
    taken = nasd(*command, "--out", str(out), folder=home, timeout=300)
    assert taken.returncode == 0, taken.stderr
    assert (out / "model.safetensors").exists() and "it stands in" in taken.stdout
    refused_once = nasd(*command, "--out", str(out), folder=home)
    assert refused_once.returncode == 2 and "replace the model there with --force" in (
        refused_once.stderr
    )
    again = nasd(*command, "--out", str(out), "--force", folder=home, timeout=300)
    assert again.returncode == 0 and "it stands in" in again.stdout, again.stderr
