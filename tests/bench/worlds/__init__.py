"""What peers are compared on: a seed model, data, and the configs that searches run by.

Of the questions some articles are put aside (`KEPT`) before any peer begins. No peer trains on
them, and none chooses by them; all are told by them.
"""

import copy
import json
import random
import shutil
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nasd.contract.config import Config, Section, parse
from nasd.contract.errors import NasdError
from nasd.presets.demo import squad_data, town_names, write_demo_data

SEEN, KEPT = "questions.json", "kept.json"  # what searches split, and what they never see
KEPT_SHARE = 0.2  # of the articles, where there is one set of them
KEPT_SEED = 1  # of the demo's generator; 0 makes what searches see
Table = dict[str, Any]


@dataclass(frozen=True)
class World:
    """lay: puts the files of a seed into a folder; takes the folder of real data too. keys: what
    stands there in the place of a way's own, where that has the key."""

    name: str
    lay: Callable[[Path, Path | None, int], None]
    keys: Mapping[str, Any] = field(default_factory=dict)

    @property
    def table(self) -> Table:
        """What all configs of the world are made from: all stages that there are."""
        path = Path(__file__).parent / f"{self.name}.toml"
        return tomllib.loads(path.read_text(encoding="utf-8"))


def _demo(folder: Path, data: Path | None, seed: int) -> None:
    made = folder / "demo-data"
    write_demo_data(made)
    (made / "squad.json").rename(folder / SEEN)
    (made / "corpus.txt").rename(folder / "corpus.txt")
    made.rmdir()
    known = {one["title"] for one in json.loads((folder / SEEN).read_text())["data"]}
    other = squad_data(seed=KEPT_SEED, articles=len(town_names()))
    other["data"] = [one for one in other["data"] if one["title"] not in known]
    _write(other["data"], folder / KEPT)


def _minilm(folder: Path, data: Path | None, seed: int) -> None:
    if data is None:
        raise NasdError("the world minilm needs --data: a folder with questions and corpus/")
    files = sorted(data.glob("*.json"))
    if len(files) != 1 or not (data / "corpus").is_dir():
        raise NasdError(f"{data} must hold one file of questions (.json) and a folder corpus/")
    articles = json.loads(files[0].read_text(encoding="utf-8"))["data"]
    drawn = random.Random(f"kept/{seed}").sample(range(len(articles)), len(articles))
    kept = set(drawn[: max(1, round(KEPT_SHARE * len(articles)))])
    _write([one for place, one in enumerate(articles) if place not in kept], folder / SEEN)
    _write([one for place, one in enumerate(articles) if place in kept], folder / KEPT)
    shutil.copytree(data / "corpus", folder / "corpus")


def _write(articles: Sequence[Any], path: Path) -> None:
    path.write_text(json.dumps({"version": "1.1", "data": articles}), encoding="utf-8")


# Where training is dear: few that go far at once, of many that are tried.
FEW = {
    "population.mu": 3,
    "population.lambda": 3,
    "population.screened": 12,
    "variation.steps": [2, 20],
}
WORLDS = {one.name: one for one in (World("demo", _demo), World("minilm", _minilm, FEW))}


# -- configs -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Way:
    """How a search of the daemon's goes about it: the stages that it climbs, and what its config
    has that the world's has not. Keys are dotted; those that no config knows are left out, and
    said: they are of parts that are yet to come."""

    stages: tuple[str, ...]
    keys: Mapping[str, Any] = field(default_factory=dict)

    def without(self, changes: Mapping[str, Any]) -> "Way":
        """Another way; a key that is to be ABSENT has its default."""
        keys = {**self.keys, **changes}
        return Way(self.stages, {key: value for key, value in keys.items() if value is not ABSENT})


ABSENT = object()

OPERATORS = {
    "narrow": 3, "widen": 0.5, "flatten": 1, "switch": 0.3, "add_ffn": 0.3,
    "fewer_heads": 1, "more_heads": 0.5, "drop_block": 1, "cross": 2,
}  # fmt: skip

OURS = Way(
    ("start", "train_on", "evaluate"),
    {
        "population.mu": 6,
        "population.lambda": 6,
        "population.tournament": 2,
        "population.control": True,
        "population.screened": 8,
        "population.least_kept": 0.15,  # a hypervolume above no quality is of the smallest ends too
        "variation.transfers": "informed",
        "variation.inherit_from": "task",
        "variation.operators": OPERATORS,
        "variation.steps": [1, 8],
        "variation.min_distance": 1,
        "variation.adaptive": True,
        "teacher.source": "best",
    },
)
# With a drawing far away in one step, and no selection.
RANDOM = OURS.without(
    {
        "population.control": ABSENT,
        "population.screened": ABSENT,
        "variation.adaptive": ABSENT,
        "teacher.source": ABSENT,
        "variation.steps": [1, 12],
        "variation.operators": {name: one for name, one in OPERATORS.items() if name != "cross"},
    }
)
THESIS = Way(("pretrain_head", "start", "pretrain_0", "pretrain_1", "finetune", "evaluate"))

# Parts of ours, and what their absence is; a part without a key yet is left out of an ablation.
PARTS: Mapping[str, Mapping[str, Any]] = {
    "transfers": {"variation.transfers": "fresh"},
    "refit": {"variation.refit": False},
    "screening": {"population.screened": ABSENT},
    "teacher": {"teacher.source": ABSENT},
    "crossover": {"variation.operators": {**OPERATORS, "cross": 0}},
    "adaptive rates": {"variation.adaptive": ABSENT},
}


def known(key: str) -> bool:
    """Whether a config has this dotted key."""
    model: Any = Config
    for name in key.split("."):
        if not (isinstance(model, type) and issubclass(model, Section)):
            return False
        fields = {one.alias or known: one for known, one in model.model_fields.items()}
        if name not in fields:
            return False
        annotation = fields[name].annotation
        inner = [annotation, *getattr(annotation, "__args__", ())]  # of `Section | None`
        model = next((one for one in inner if isinstance(one, type)), None)
    return True


def unknown(way: Way) -> list[str]:
    return [key for key in way.keys if not known(key)]


def table_of(world: World, way: Way, seed: int, more: Mapping[str, Any] | None = None) -> Table:
    """The config of a search of this way, as TOML has it."""
    table = copy.deepcopy(world.table)
    table["experiment"]["seed"] = seed
    table["stages"] = [one for one in table["stages"] if one["name"] in way.stages]
    here = {key: world.keys.get(key, value) for key, value in way.keys.items()}
    for key, value in {**here, **(more or {})}.items():
        if not known(key):
            continue
        place = table
        *above, last = key.split(".")
        for name in above:
            place = place.setdefault(name, {})
        place[last] = value
    return table


def config_of(world: World, way: Way, seed: int) -> Config:
    return parse(table_of(world, way, seed), f"the world {world.name}")
