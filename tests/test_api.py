"""A search from Python: what docs/python.md shows is run here, on a search that it begins."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

import nasd
from nasd import Search, api
from nasd.contract.errors import NasdError
from nasd.contract.genotype import Genotype
from nasd.presets import write_preset
from tests.conftest import ROOT

PAGE = ROOT / "docs" / "python.md"
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
TINY = (
    "population.mu=1",
    "population.lambda=1",
    "experiment.generations=0",
    "data.mlm.max_sequences=64",
    "stages.pretrain_0.epochs=0.5",
    "stages.pretrain_1.epochs=0.5",
    "stages.finetune.epochs=0.2",
    "daemon.tick_seconds=0.2",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where the page's first example has run a whole search."""
    place = tmp_path_factory.mktemp("python")
    write_preset("demo-thesis", place, TINY, force=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        exec(EXAMPLES[0], {})
    yield place
    search = Search(place / "state")
    if search.served:
        search.stop()


@pytest.fixture
def search(folder: Path) -> Search:
    return Search(folder / "config.toml")


def test_importing_nasd_and_its_search_takes_no_torch_and_no_pandas():
    code = (
        "import sys; import nasd; assert 'nasd.api' not in sys.modules;"
        " from nasd import Search; print(*(set(sys.modules) & {'torch', 'transformers', 'pandas',"
        " 'matplotlib', 'datasets'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
    with pytest.raises(AttributeError, match="has no attribute 'Serch'"):
        nasd.Serch  # noqa: B018


def test_what_the_page_shows_is_short_and_runs(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(folder)
    assert len(EXAMPLES) == 4
    for example in EXAMPLES[1:]:
        assert len([line for line in example.splitlines() if line]) <= 7
        exec(example, {})
    assert "exact_match" in capsys.readouterr().out


def test_the_recipe_for_several_boxes_injects_what_the_other_search_has_alone(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    page = (ROOT / "docs" / "scale.md").read_text()
    (recipe,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    monkeypatch.chdir(folder)
    asked: list[tuple[Genotype, str]] = []
    monkeypatch.setattr(Search, "inject", lambda _, one, why: asked.append((one, why)))
    recipe = recipe.replace("/shared/box2/state", "state")
    exec(recipe, {})
    assert asked == []  # all of its own are known
    front = Search("state").front()
    exec(recipe.replace('known = {row["genotype"]', 'known = {"none of " + row["genotype"]'), {})
    assert len(asked) == len(_rows(front))
    assert {why for _, why in asked} == {"from box2"}


def test_a_search_that_was_followed_is_complete_and_its_tables_are_the_report_s(search: Search):
    assert search.state == "complete"
    assert search.wait(0) == "complete"
    assert "complete" in repr(search)
    rows = _rows(search.candidates())
    assert [row["id"] for row in rows] == [0, 1]
    assert {row["candidate"] for row in _rows(search.scores())} == {0, 1}
    assert {row["id"] for row in _rows(search.front())} <= {0, 1}
    assert _rows(search.curves())
    assert _rows(search.events(3))[-1]["event"] != ""
    assert search.status()["experiment"]["state"] == "complete"
    assert list(search.follow()) == []
    with pytest.raises(NasdError, match="there is no table nothing: take of candidates,"):
        search.table("nothing")


def test_without_pandas_tables_are_lists_of_dicts(search: Search, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    rows = search.candidates()
    assert isinstance(rows, list)
    assert rows[0]["exact_match"] is not None


def test_a_model_is_scored_by_hand_as_the_search_scored_it(search: Search):
    best = search["best"]
    told = search.score(best)
    assert best.scores is not None
    assert told["f1"] == best.scores["f1"]
    assert told["exact_match"] == best.scores["exact_match"]


def test_a_child_by_hand_knows_what_its_parent_does_and_can_be_injected(
    search: Search, tmp_path: Path
):
    child = search.breed("baseline", "add_ffn", seed=3)
    assert child.parameters > search["baseline"].parameters
    told = search.score(child, tmp_path / "kept")
    assert search["baseline"].scores is not None
    # What is added begins as doing nothing.
    assert told["f1"] == pytest.approx(search["baseline"].scores["f1"], abs=0.5)
    made = load_file(tmp_path / "kept" / "model" / "model.safetensors")
    model = child.model()
    assert not model.training
    assert {name: one.shape for name, one in model.state_dict().items()}.items() >= {
        name: one.shape for name, one in made.items()
    }.items()
    assert all(one.equal(made[name]) for name, one in model.state_dict().items() if name in made)
    assert isinstance(child.genotype, Genotype)


@pytest.mark.parametrize(
    ("parent", "operators", "sentence"),
    [
        ("baseline", ("shrink",), "there is no operator shrink of one parent: take of widen,"),
        ("baseline", ("cross",), "there is no operator cross of one parent"),
        ("nobody", ("narrow",), "there is no candidate 'nobody'"),
        (99, ("narrow",), "there is no candidate 99: they have the numbers 0 to 1"),
    ],
)
def test_what_cannot_be_bred_is_told_in_one_sentence(
    search: Search, parent: Any, operators: tuple[str, ...], sentence: str
):
    with pytest.raises(NasdError, match=sentence) as caught:
        search.breed(parent, *operators)
    assert "\n" not in str(caught.value)


def test_where_no_search_has_begun_one_sentence_says_so(tmp_path: Path):
    with pytest.raises(NasdError, match="no experiment"):
        Search(tmp_path)
    with pytest.raises(NasdError, match="there is no config file"):
        Search(tmp_path / "config.toml")


def test_a_search_that_cannot_begin_says_the_daemon_s_sentence(tmp_path: Path):
    write_preset("demo-thesis", tmp_path, ("slots.devices=['cuda:99']",), force=False)
    with pytest.raises(NasdError, match=r"slots\.devices: cuda:99 is not on this") as caught:
        Search.begin(tmp_path / "config.toml")
    assert "\n" not in str(caught.value)
    assert (tmp_path / api.LOG).exists()


def _rows(table: Any) -> list[dict[str, Any]]:
    return table if isinstance(table, list) else table.to_dict("records")
