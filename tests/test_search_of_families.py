"""A whole search from a seed of each family, as a user starts it, and its winner taken home."""

import json
import random
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch

from nasd.contract.config import parse
from nasd.contract.squad import Question
from nasd.presets.demo import write_demo_data
from nasd.record import snapshot
from nasd.record.lifecycle import State
from nasd.search.variation.breeding import child_of
from nasd.worker import export
from nasd.worker.model import phenotype, seed
from nasd.worker.model.inherit import born
from nasd.worker.prepare import caches
from nasd.worker.tasks.passages import QaFeatures, build_features, decode
from nasd.worker.tasks.qa import QaTask
from nasd.worker.tasks.task import Ranks
from nasd.worker.tasks.windows import of_batches
from nasd.worker.training.progress import quiet
from nasd.worker.training.train import train
from tests import encoders
from tests.encoders import TOKENIZERS
from tests.training import Notes, run_of

ANSWERING = {"tokens": 64, "stride": 16, "n_best": 20, "max_answer_tokens": 8}

CONFIG = """
[experiment]
name = "tiny"
seed = 3
state = "state"
generations = {generations}
[seed_model]
source = "seed"
dropout = 0.0
[slots]
devices = ["cpu:0"]
threads = 1
[population]
mu = 1
lambda = 1
tournament = 1
[variation]
transfers = "informed"
inherit_from = "task"
steps = [2, 2]
[variation.operators]
narrow = 1
widen = 1
fewer_heads = 1
add_block = 1
drop_block = 1
add_ffn = 1
[search_space]
blocks = [1, 23]
heads = [1, 2, 4]
ffns = 2
layers = [2]
sizes = [16, 24, 32, 36]
{space}
[data.qa]
files = ["squad.json"]
tokens = 64
stride = 16
max_answer_tokens = 8
[[stages]]
name = "finetune"
task = "qa"
train = "all"
who = "all"
epochs = 0.5
slots = 1
batch = 8
learning_rate = 1e-3
warmup = 0.1
weight_decay = 0.01
[[stages]]
name = "evaluate"
task = "qa"
train = "none"
who = "all"
slots = 1
batch = 32
[daemon]
tick_seconds = 0.1
disk_reserve_gb = 0.1
"""
SHAPE: dict[str, Any] = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 80,
}


def prepare(
    folder: Path, name: str, tokens: str, space: str, generations: int = 1, **config: Any
) -> list[str]:
    """A seed, a few questions on a few articles, and a config; returns the contexts."""
    write_demo_data(folder / "demo-data")
    told = json.loads((folder / "demo-data" / "squad.json").read_text())
    told["data"] = told["data"][:5]
    for article in told["data"]:
        article["paragraphs"] = article["paragraphs"][:2]
    (folder / "squad.json").write_text(json.dumps(told))
    contexts = [part["context"] for article in told["data"] for part in article["paragraphs"]]
    asked = [
        one["question"]
        for article in told["data"]
        for part in article["paragraphs"]
        for one in part["qas"]
    ]
    tokenizer = TOKENIZERS[tokens](contexts + asked, 400)
    ids = {
        f"{kind}_token_id": getattr(tokenizer, f"{kind}_token_id")
        for kind in ("pad", "cls", "sep", "bos", "eos")
    }
    values = {**SHAPE, **{key: one for key, one in ids.items() if one is not None}, **config}
    encoders.write(folder / "seed", name, "MaskedLM", values, tokenizer)
    (folder / "config.toml").write_text(CONFIG.format(space=space, generations=generations))
    return contexts


def run(folder: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "nasd", "run", "--config", str(folder / "config.toml")],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr


def nasd(*arguments: str) -> str:
    ended = subprocess.run(
        [sys.executable, "-m", "nasd", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


MODERN = 'activations = ["geglu"]'
SPACE = 'activations = ["relu", "gelu"]'
QUICK = ("roberta", "bytes", SPACE, {})
HEAVY = [
    ("xlm-roberta", "unigram", SPACE, {}),
    ("bert", "unigram", SPACE, {}),  # the multilingual MiniLM is one
    ("electra", "wordpiece", SPACE, {"embedding_size": 12}),
    (
        "modernbert",
        "modern",
        MODERN,
        {
            "local_attention": 8,
            "num_hidden_layers": 22,  # the real one's blocks, and the shape of each
            "intermediate_size": 36,
            "layer_types": [
                "sliding_attention" if place % 3 else "full_attention" for place in range(22)
            ],
        },
    ),
]


def search(folder: Path, case: Any, generations: int) -> tuple[list[str], list[int]]:
    """The contexts, and who has a score, after a search to its end."""
    name, tokens, space, config = case
    contexts = prepare(folder, name, tokens, space, generations, **config)
    run(folder)
    with snapshot.opened(folder / "state") as connection:
        snap = snapshot.read(connection)
    assert snap.experiment.state == "complete"
    told = [(one.id, one.state, one.reason) for one in snap.candidates.values()]
    assert all(one.state is State.SCORED for one in snap.candidates.values()), told
    return contexts, sorted(snap.candidates)


@pytest.mark.heavy
@pytest.mark.timeout(600)
@pytest.mark.parametrize("case", [QUICK, *HEAVY], ids=lambda case: f"{case[0]}-{case[1]}")
def test_from_every_family_models_come_home_and_answer(case: Any, tmp_path: Path) -> None:
    contexts, scored = search(tmp_path, case, 1)
    assert len(scored) == 3
    for candidate in ("baseline", str(scored[-1])):
        home = tmp_path / f"home-{candidate}"
        nasd("export", candidate, str(home), "--state", str(tmp_path / "state"))
        asked = ("--question", "Who keeps it?", "--context", contexts[0], "--json")
        said = json.loads(nasd("answer", str(home), *asked))
        assert contexts[0][said["start"] : said["end"]] == said["answer"]
        assert said["answer"] == said["answer"].strip() != ""


CASES = {f"{case[0]}-{case[1]}": case for case in (QUICK, *HEAVY)}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_child_is_born_trains_and_comes_home_where_it_answers_as_it_was_scored(
    case: Any, tmp_path: Path
) -> None:
    from transformers import AutoModelForQuestionAnswering, AutoTokenizer

    name, tokens, space, config = case
    contexts = prepare(tmp_path, name, tokens, space, **config)
    settings = parse(tomllib.loads((tmp_path / "config.toml").read_text()), "here")
    tokenizer = seed.load_tokenizer("seed", tmp_path)
    _, cache, _ = caches(settings.data, tmp_path, tokenizer, tmp_path / "cache", 5, quiet)
    tokenizer.save_pretrained(tmp_path / "prepared")
    language, _ = seed.load_seed("seed", tmp_path)
    phenotype.save(language, tmp_path / "language")
    draws = torch.Generator().manual_seed(0)
    parent = phenotype.load_for_answering(tmp_path / "language", draws)
    baseline = seed.describe("seed", tmp_path).baseline
    made = child_of(
        [baseline], [["a", "b"]], baseline, settings.search_space, settings.variation, None,
        settings.variation.operators or {}, random.Random(1),
    )  # fmt: skip
    assert made.genotype != baseline
    child = born(
        made.genotype,
        made.lineage,
        [parent],
        draws,
        of_batches(QaFeatures.load(cache / "train"), 5),
    )
    task = QaTask.load(child, cache)
    stage = settings.stages[0].model_copy(update={"epochs": 0.2})
    train(task, stage, Ranks(0, 1, torch.device("cpu")), run_of(tmp_path, Notes()))
    phenotype.save(child, tmp_path / "child")
    export.write(
        tmp_path / "child", tmp_path / "prepared", tmp_path / "home", {"answering": ANSWERING}
    )
    words = AutoTokenizer.from_pretrained(tmp_path / "home")
    asked = "Who keeps it?"
    assert words(asked, contexts[0])["input_ids"] == tokenizer(asked, contexts[0])["input_ids"]
    home: Any = AutoModelForQuestionAnswering.from_pretrained(
        tmp_path / "home", trust_remote_code=True
    )
    said = home.answer(asked, contexts[0])
    question = Question("1", "t", contexts[0], asked, (("x", 0),))
    features = build_features([question], tokenizer, ANSWERING["tokens"], ANSWERING["stride"])
    starts, ends = [], []
    with torch.no_grad():
        for place in range(len(features)):
            shown = {key: torch.from_numpy(one) for key, one in features.batch([place]).items()}
            start, end = child.eval()(shown["input_ids"], shown["attention_mask"])
            starts.append(start[0].numpy())
            ends.append(end[0].numpy())
    assert decode(features, [question], starts, ends, 20, 8) == {"1": said.text}
    assert contexts[0][said.start : said.end] == said.text != ""
