"""Taking a candidate home: the folder stands alone, and says what it is."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from nasd import cli
from nasd.contract import digests, written
from nasd.contract.config import parse
from nasd.contract.errors import NasdError
from nasd.contract.genotype import Backbone, Block, FeedForward, Genotype
from nasd.contract.squad import Question
from nasd.export import answer as oracle
from nasd.export.export import EARLIER, WEIGHTS, Exported, export
from nasd.launch import child
from nasd.presets.demo import squad_data
from nasd.record import daemon_lock, snapshot
from nasd.record.folders import StateFolder
from nasd.record.lifecycle import State
from nasd.record.lookup import find
from nasd.record.state import Snapshot
from nasd.views import card
from nasd.worker.model.spans import Found, Judged, best_answer, probability
from tests.conftest import (
    ROOT,
    begin,
    drive,
    make_tick,
    of_tuned_parents,
    open_quickly,
    small_config,
    small_dict,
    without_summaries,
)
from tests.damage import flip_a_bit

DEMO_SEED = ROOT / "nasd" / "demo_seed"
BACKBONE = Backbone(vocab_size=225, positions=64, width=32)  # the vocabulary of the demo's seed
BASELINE = Genotype((Block(4, (FeedForward("gelu", (64,)),)),) * 3)
TOKENS, STRIDE = 48, 16
CONFIG = small_config(
    seed_model__source="package:nasd/demo_seed",
    data__qa__tokens=TOKENS,
    data__qa__stride=STRIDE,
    data__qa__max_answer_tokens=8,
)
QUESTION = "Who keeps the red kite?"
CONTEXT = "Mara keeps a red kite in the old mill."
CODE = (  # of the model, which travels with it
    "architecture.py", "attention.py", "embeddings.py", "encoder.py", "feedforward.py", "layers.py",
    "phenotype.py", "pretrained.py", "spans.py",
)  # fmt: skip


# -- a finished search, whose models were never trained ------------------------------------------


def give_weights(state: StateFolder, candidate: int, stage: str, blocks: Any) -> None:
    import torch

    from nasd.worker.model import phenotype
    from nasd.worker.model.architecture import Architecture

    arch = Architecture(
        BACKBONE.vocab_size, BACKBONE.positions, BACKBONE.width, (), initializer_range=0.5
    ).with_blocks(blocks)
    model = phenotype.empty(phenotype.QuestionAnswering, arch)
    phenotype.initialise(model, torch.Generator().manual_seed(candidate), arch.initializer_range)
    phenotype.save(model, state.result(candidate, stage))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> StateFolder:
    """A search in virtual time; each model that was kept is a real one with random weights."""
    state = StateFolder(tmp_path_factory.mktemp("search") / "state")
    state.path.mkdir()
    store = open_quickly(state.database)
    begin(store, CONFIG, BACKBONE, BASELINE)
    with without_summaries():
        snap = drive(make_tick(state, CONFIG, store=store))
    store.close()
    for one in snap.candidates.values():
        if state.result(one.id, "finetune").is_dir():
            give_weights(state, one.id, "finetune", one.genotype.to_json()["blocks"])
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(DEMO_SEED / name, state.result(0, "prepare"))
    return state


@pytest.fixture
def search(finished: StateFolder, tmp_path: Path) -> StateFolder:
    """A copy that a test may spoil."""
    shutil.copytree(finished.path, tmp_path / "search" / "state")
    return StateFolder(tmp_path / "search" / "state")


def look(state: StateFolder) -> Snapshot:
    with snapshot.opened(state.path) as connection:
        return snapshot.read(connection)


def kept(state: StateFolder) -> list[int]:
    """Scored candidates, but for the baseline, whose weights are there."""
    return [
        one.id
        for one in look(state).candidates.values()
        if one.state is State.SCORED
        and not one.is_baseline
        and (state.result(one.id, "finetune") / WEIGHTS).is_file()
    ]


@pytest.fixture(scope="module")
def home(finished: StateFolder, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """The youngest candidate that was kept, exported."""
    folder = tmp_path_factory.mktemp("home") / "my-model"
    return export(finished.path, str(kept(finished)[-1]), folder)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """The child's work is done in this process, where torch is imported once and for all."""
    from nasd.worker import answer
    from nasd.worker import export as writer
    from nasd.worker.model import pretrained

    work = {"nasd.worker.answer": answer.answer_to, "nasd.worker.export": writer.answer_to}
    monkeypatch.setattr(child, "ask", lambda module, question, environment: work[module](question))
    for kind in (pretrained.NasdConfig, pretrained.NasdForQuestionAnswering):
        monkeypatch.setattr(kind, "_auto_class", kind._auto_class)  # a child sets it for itself


# -- the folder stands alone ---------------------------------------------------------------------

# Run in a folder of its own, by a Python that neither sees the checkout nor finds nasd.
ALONE = """
import sys

class NoNasd:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "nasd":
            raise ImportError("nasd is not here")

sys.meta_path.insert(0, NoNasd())
import json
from pathlib import Path
from safetensors.torch import load_file, save_file
from transformers import AutoModelForQuestionAnswering, AutoTokenizer

home, shown, out = map(Path, sys.argv[1:])
load = AutoModelForQuestionAnswering.from_pretrained
model = load(home, trust_remote_code=True)
model.save_pretrained(out / "again")
again = load(out / "again", trust_remote_code=True)
assert type(again) is not type(model)  # each has its own code
known = load_file(shown)
logits = {
    f"{name}.{end}": getattr(one(**known), f"{end}_logits").detach()
    for name, one in (("first", model), ("again", again))
    for end in ("start", "end")
}
save_file(logits, out / "logits.safetensors")
questions = json.loads((shown.parent / "questions.json").read_text())
(out / "answers.json").write_text(json.dumps([model.answer(*one) for one in questions]))
try:
    again.answer("Who?", "Mara.")
except ValueError as error:
    assert "is missing or cannot be read" in str(error), error
else:
    raise SystemExit("an answer without a tokenizer")
tokenizer = AutoTokenizer.from_pretrained(home, trust_remote_code=True)
assert model.answer(*questions[0], tokenizer) == again.answer(*questions[0], tokenizer)
model(**tokenizer(*questions[0], return_tensors="pt", truncation=True))
assert not any(name.partition(".")[0] == "nasd" for name in sys.modules)
code = (home / "README.md").read_text().split("```python\\n")[1].split("```")[0]
exec(compile(code, "README.md", "exec"))
"""


def questions(count: int = 40) -> list[Question]:
    """Of the demo's world; most contexts take several windows."""
    return [
        Question(one["id"], "t", paragraph["context"], one["question"], (("", 0),))
        for article in squad_data(articles=2)["data"]
        for paragraph in article["paragraphs"]
        for one in paragraph["qas"]
    ][:count]


def judged_as_in_the_search(model: Path) -> dict[str, str]:
    """The answers to `questions` as a stage that evaluates finds them."""
    import torch
    from transformers import AutoTokenizer

    from nasd.worker.model import phenotype
    from nasd.worker.tasks.passages import build_features, decode

    net = phenotype.load(phenotype.QuestionAnswering, model).eval()
    asked = questions()
    features = build_features(asked, AutoTokenizer.from_pretrained(DEMO_SEED), TOKENS, STRIDE)
    assert len(features) > 1.5 * len(asked)
    batch = features.batch(np.arange(len(features)))
    ids, mask = (torch.from_numpy(batch[name]) for name in ("input_ids", "attention_mask"))
    with torch.no_grad():
        start, end = (logits.numpy() for logits in net(ids, mask))
    qa = CONFIG.data.qa
    return decode(features, asked, start, end, qa.n_best, qa.max_answer_tokens)


def check_alone(python: str, home: Exported, model: Path, out: Path) -> str:
    """Loads and asks the export in a process without nasd; what the card's lines print.

    model: the folder in the state that it was made of.
    """
    import torch
    from safetensors.torch import load_file, save_file

    from nasd.worker.model import phenotype

    net = phenotype.load(phenotype.QuestionAnswering, model).eval()
    arch = net.architecture
    ids = torch.randint(
        arch.vocab_size, (3, arch.positions), generator=torch.Generator().manual_seed(1)
    )
    mask = torch.ones_like(ids)
    mask[1, 20:] = 0
    save_file({"input_ids": ids, "attention_mask": mask}, out / "shown.safetensors")
    (out / "questions.json").write_text(
        json.dumps([(one.question, one.context) for one in questions()])
    )
    done = subprocess.run(
        [python, "-I", "-c", ALONE, home.folder, out / "shown.safetensors", out],
        cwd=home.folder,
        env={
            "HF_HUB_OFFLINE": "1",
            "HF_MODULES_CACHE": str(out / "modules"),
            "HOME": str(out),
            "OMP_NUM_THREADS": "1",
            "PATH": "/usr/bin:/bin",
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.returncode == 0, done.stderr
    with torch.no_grad():
        expected = dict(zip(("start", "end"), net(ids, mask), strict=True))
    for name, logits in load_file(out / "logits.safetensors").items():
        difference = (logits - expected[name.partition(".")[2]]).abs().max()
        assert difference <= 1e-6, name
    return done.stdout


def test_it_loads_answers_and_survives_a_round_trip_where_there_is_no_nasd(
    finished: StateFolder, home: Exported, tmp_path: Path
) -> None:
    model = finished.result(home.candidate, "finetune")
    printed = check_alone(sys.executable, home, model, tmp_path)
    assert printed.startswith("Answer(text='")
    answers = json.loads((tmp_path / "answers.json").read_text())
    expected = judged_as_in_the_search(model)
    assert [text for text, *_ in answers] == list(expected.values())
    assert len(set(expected.values())) > 10
    for (text, score, start, end), asked in zip(answers, questions(), strict=True):
        assert asked.context[start:end] == text
        assert 0 < score <= 1
    assert {path.name for path in (tmp_path / "again").iterdir()} == {
        "config.json", WEIGHTS, *CODE,
    }  # fmt: skip


def test_it_holds_what_an_export_may_hold_and_no_pickle(home: Exported) -> None:
    names = {path.name for path in home.folder.iterdir()}
    assert names <= {
        "README.md", WEIGHTS, "model.onnx", "config.json", ".nasd-files.json", *CODE,
        "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt",
    }  # fmt: skip
    assert {"README.md", WEIGHTS, "config.json", "tokenizer.json", "pretrained.py"} <= names
    assert not {Path(name).suffix for name in names} & {".bin", ".pt", ".pkl"}
    modes = {path.stat().st_mode for path in home.folder.iterdir()}
    assert len(modes) == 1  # none more private than the others


def test_its_tokenizer_is_of_a_class_that_transformers_4_and_5_know(home: Exported) -> None:
    told = json.loads((home.folder / "tokenizer_config.json").read_text())
    assert told["tokenizer_class"] == "PreTrainedTokenizerFast"


def test_no_file_says_where_it_was_made(home: Exported, finished: StateFolder) -> None:
    for path in home.folder.iterdir():
        assert str(finished.path.parent.parent).encode() not in path.read_bytes(), path.name


@pytest.mark.heavy
@pytest.mark.timeout(1800)  # it installs torch
def test_a_trained_candidate_loads_in_a_clean_environment(tmp_path: Path) -> None:
    """A real search, and a virtual environment with torch and transformers alone."""
    from nasd.presets import write_preset
    from tests.test_end_to_end import TINY, start

    environment = tmp_path / "clean"
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    python = environment / "bin" / "python"
    subprocess.run(
        [
            *(python, "-m", "pip", "install", "--quiet", "-c", ROOT / "constraints.txt"),
            *("torch", "transformers", "safetensors"),
        ],
        check=True,
    )
    config = write_preset("demo-thesis", tmp_path / "search", TINY, force=False)
    out, _ = start(config).communicate(timeout=280)
    state = StateFolder(tmp_path / "search" / "state")
    home = export(state.path, str(kept(state)[0]), tmp_path / "home")
    (tmp_path / "out").mkdir()
    printed = check_alone(
        str(python), home, state.result(home.candidate, "finetune"), tmp_path / "out"
    )
    assert printed.startswith("Answer(text='"), out


# -- nasd answer ---------------------------------------------------------------------------------


def invoke(*arguments: str, given: str | None = None) -> str:
    done = CliRunner().invoke(cli.app, list(arguments), input=given, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_the_command_answers_as_the_model_does(home: Exported) -> None:
    from nasd.worker.model.pretrained import NasdForQuestionAnswering

    context = questions()[-1].context
    found = NasdForQuestionAnswering.from_pretrained(home.folder).answer(QUESTION, context)
    folder = str(home.folder)
    told = invoke("answer", folder, "--question", QUESTION, "--context", context, "--json")
    assert json.loads(told) == {
        "answer": found.text,
        "score": pytest.approx(found.score),
        "start": found.start,
        "end": found.end,
    }


@pytest.mark.usefixtures("here")
def test_the_context_may_come_from_standard_input(home: Exported) -> None:
    folder = str(home.folder)
    found = oracle.answer(home.folder, QUESTION, CONTEXT)
    plain = invoke("answer", folder, "-q", QUESTION, "--context", "-", given=CONTEXT)
    assert plain == f"{found.answer}  ({found.score:.2f})\n"


@pytest.mark.usefixtures("here")
def test_the_command_runs_no_code_of_the_folder(home: Exported, tmp_path: Path) -> None:
    folder = shutil.copytree(home.folder, tmp_path / "model")
    (folder / "pretrained.py").write_text(f"open({str(tmp_path / 'run')!r}, 'w')")
    oracle.answer(folder, QUESTION, CONTEXT)
    assert not (tmp_path / "run").exists()


def test_it_takes_an_exported_model(finished: StateFolder, tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere", finished.result(9, "finetune")):
        with pytest.raises(NasdError, match="is no exported model: make one with `nasd export"):
            oracle.answer(folder, QUESTION, CONTEXT)


@pytest.mark.parametrize(("question", "context"), [(" ", CONTEXT), (QUESTION, "\n")])
def test_it_takes_words(home: Exported, question: str, context: str) -> None:
    with pytest.raises(NasdError, match="is empty: give it some words"):
        oracle.answer(home.folder, question, context)


@pytest.mark.usefixtures("here")
def test_a_context_without_tokens_has_no_answer(home: Exported) -> None:
    found = oracle.answer(home.folder, QUESTION, "\u200b")
    assert (found.answer, found.score) == ("", 0.0)


def drop_a_tensor(path: Path) -> None:
    from safetensors.torch import load_file, save_file

    state = load_file(path)
    del state["qa_outputs.weight"]
    save_file(state, path, metadata={"format": "pt"})


def reshape_a_tensor(path: Path) -> None:
    from safetensors.torch import load_file, save_file

    state = load_file(path)
    state["qa_outputs.bias"] = state["qa_outputs.bias"].repeat(7)
    save_file(state, path, metadata={"format": "pt"})


def widen_the_config(path: Path) -> None:
    config = path.with_name("config.json")
    config.write_text(json.dumps(json.loads(config.read_text()) | {"vocab_size": 10**6}))


def grow_the_config(path: Path) -> None:
    """Each number of it could be."""
    config = path.with_name("config.json")
    block = {"heads": 1, "ffns": [{"activation": "gelu", "sizes": [10**6] * 60}] * 60}
    config.write_text(json.dumps(json.loads(config.read_text()) | {"blocks": [block] * 4}))


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda path: path.unlink(), "is damaged"),
        (lambda path: path.write_bytes(path.read_bytes()[:-9]), "is damaged"),
        (drop_a_tensor, "lacks the weights qa_outputs.weight"),
        (reshape_a_tensor, r"has qa_outputs.bias of the shape \[14\], where .* asks for \[2\]"),
        (widen_the_config, r"has encoder.embeddings.word.weight of .* asks for \[1000000, "),
        (grow_the_config, "is damaged .*asks for .* parameters, of at most"),
    ],
)
def test_a_damaged_model_is_refused(
    home: Exported, tmp_path: Path, damage: Callable[[Path], object], words: str
) -> None:
    folder = shutil.copytree(home.folder, tmp_path / "model")
    damage(folder / WEIGHTS)
    with pytest.raises(NasdError, match=words) as caught:
        oracle.answer(folder, QUESTION, CONTEXT)
    assert "\n" not in str(caught.value)


# -- how sure it is ------------------------------------------------------------------------------

LOGITS = st.lists(st.tuples(*[st.floats(-9, 9, width=32)] * 2), min_size=1, max_size=6)


@given(st.lists(LOGITS, min_size=1, max_size=3))
def test_the_score_is_the_share_of_the_best_among_all_pairs(values: Any) -> None:
    shown = []
    for window in values:
        start, end = (np.array([0.0, *column, 0.0]) for column in zip(*window, strict=True))
        inside = [(at, at + 1) for at in range(len(window))]
        shown.append(Judged(np.array([(-1, -1), *inside, (-1, -1)]), start, end))
    found = best_answer(shown, n_best=20, max_answer_tokens=9)
    assert isinstance(found, Found)
    every = [np.exp(start + end) for window in values for start, _ in window for _, end in window]
    assert probability(found, shown) == pytest.approx(np.exp(2 * found.score) / sum(every))


# -- the card ------------------------------------------------------------------------------------


def read_card(folder: Path) -> tuple[dict[str, Any], str]:
    _, front, body = (folder / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(front), body


def table(body: str, heading: str) -> list[list[str]]:
    """The rows of the table below a heading, without its head."""
    section = body.split(f"## {heading}\n")[1].split("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows[2:]]


def test_the_card_says_what_the_database_says(finished: StateFolder, home: Exported) -> None:
    snap = look(finished)
    candidate = snap.candidates[home.candidate]
    front, body = read_card(home.folder)
    scores, baseline = snap.scores(candidate.id), snap.scores(0)
    assert scores is not None
    assert baseline is not None
    assert table(body, "Scores")[:2] == [
        ["exact match", *_three(scores["exact_match"], baseline["exact_match"])],
        ["F1", *_three(scores["f1"], baseline["f1"])],
    ]
    (result,) = front["model-index"][0]["results"]
    told = {one["type"]: one["value"] for one in result["metrics"]}
    assert told == {name: scores[name] for name in ("exact_match", "f1")}
    blocks = table(body, "Architecture")
    assert [int(row[1]) for row in blocks] == [one.heads for one in candidate.genotype.blocks]
    assert [row[2].count(";") + 1 for row in blocks] == [
        len(one.ffns) for one in candidate.genotype.blocks
    ]
    line = [int(row[0]) for row in table(body, "Ancestry")]
    assert (line[0], line[-1]) == (0, candidate.id)
    assert all(snap.candidates[child_].parent == parent for parent, child_ in pairwise(line))
    assert [row[0] for row in table(body, "Training")] == [
        "pretrain_0", "pretrain_1", "finetune", "evaluate",
    ]  # fmt: skip


def _three(own: float, other: float) -> list[str]:
    return [f"{own:.2f}", f"{other:.2f}", f"{own - other:+.2f}"]


def test_the_cost_of_a_candidate_is_that_of_its_attempts(finished: StateFolder) -> None:
    snap = look(finished)
    everybody = snap.candidates.values()
    assert card.hours(snap, everybody) == pytest.approx(snap.gpu_hours(0.0))
    assert sum(card.hours(snap, [one]) for one in everybody) == pytest.approx(snap.gpu_hours(0.0))
    of_stages = [card.hours(snap, everybody, stage.name) for stage in CONFIG.stages]
    assert sum(of_stages) + card.hours(snap, everybody, "prepare") == pytest.approx(
        snap.gpu_hours(0.0)
    )


THESIS: dict[str, Any] = {
    "seed_model__source": "distilbert/distilbert-base-uncased",
    "data__qa__files": (),
    "data__qa__hub": "rajpurkar/squad",
    "data__mlm__corpora": [
        {"hub": "wikimedia/wikipedia", "config": "20231101.en"},
        {"files": ["/home/somebody/books.txt"]},
    ],
}


def test_a_card_tells_how_its_search_hands_weights_down(finished: StateFolder) -> None:
    snap = look(finished)
    child = next(one for one in snap.individuals if not one.is_baseline)
    files = card.Files(400_000_000, 66_000_000, True, None, 5e-6)
    thesis = card.text(snap, CONFIG, child, files, now=0.0)
    assert "last stage of masked language modelling. What is new was drawn at random" in thesis
    config = parse(of_tuned_parents(small_dict(), {"narrow": 1.0}), "c.toml")
    ours = card.text(snap, config, child, files, now=0.0)
    assert "fine-tuned as they were, head and all. What became smaller keeps of it what" in ours


def test_names_of_the_hub_become_links_and_their_licences_are_told(finished: StateFolder) -> None:
    snap = look(finished)
    files = card.Files(400_000_000, 66_000_000, True, None, 5e-6)
    text = card.text(snap, small_config(**THESIS), snap.baseline, files, now=0.0)
    front, body = yaml.safe_load(text.split("---\n")[1]), text
    assert front["base_model"] == "distilbert/distilbert-base-uncased"
    assert front["license"] == "apache-2.0"
    assert front["datasets"] == ["wikimedia/wikipedia", "rajpurkar/squad"]
    assert [row[1:] for row in table(body, "Data and licences")] == [
        ["`distilbert/distilbert-base-uncased`", "apache-2.0"],
        ["`wikimedia/wikipedia` 20231101.en", "cc-by-sa-3.0, gfdl"],
        ["books.txt", "not known to nasd"],
        ["`rajpurkar/squad`", "cc-by-sa-4.0"],
    ]
    assert "Ancestry" not in body
    assert "model.onnx" in body


def test_the_seeds_own_card_names_its_licence(home: Exported) -> None:
    front, body = read_card(home.folder)
    assert front["license"] == "apache-2.0"
    assert "base_model" not in front  # a package is nothing that the hub could link
    assert table(body, "Data and licences")[0][2] == "apache-2.0"


# -- whom it takes -------------------------------------------------------------------------------


def test_the_best_is_the_best_quality_and_the_smallest_of_equals(finished: StateFolder) -> None:
    snap = look(finished)
    scored = [one for one in snap.candidates.values() if one.state is State.SCORED]
    best = find(snap, "best")
    assert snap.quality(best.id) == max(snap.quality(one.id) or 0 for one in scored)
    for key, result in snap.results.items():
        snap.results[key] = replace(result, metrics_json='{"f1": 50.0, "exact_match": 50.0}')
    smallest = min(scored, key=lambda one: (one.parameters, one.id))
    assert find(snap, "best") == smallest


@pytest.mark.usefixtures("here")
def test_the_baseline_can_be_taken_too(finished: StateFolder, tmp_path: Path) -> None:
    done = invoke("export", "baseline", str(tmp_path / "b"), "--state", str(finished.path))
    assert done.startswith("the baseline (quality 60.50, 100.0 % of the baseline's parameters)")
    assert read_card(tmp_path / "b")[1].startswith("\n# small, baseline")


def test_it_can_be_taken_as_a_class_of_transformers_own_as_well(
    finished: StateFolder, tmp_path: Path
) -> None:
    import torch
    import transformers

    from nasd.worker.model import phenotype

    folder = tmp_path / "b"
    done = invoke("export", "baseline", str(folder), "--native", "--state", str(finished.path))
    assert "native/ holds it as a DistilBertForQuestionAnswering, of " in done
    assert " k parameters with the zeros that fill it up" in done
    assert "own `DistilBertForQuestionAnswering`" in read_card(folder)[1]
    own = transformers.AutoModelForQuestionAnswering.from_pretrained(folder / "native").eval()
    words = transformers.AutoTokenizer.from_pretrained(folder / "native")
    asked = words(QUESTION, CONTEXT, return_tensors="pt")
    ours = phenotype.load(phenotype.QuestionAnswering, folder).eval()
    with torch.no_grad():
        said = own(**asked)
        starts, ends = ours(asked["input_ids"], asked["attention_mask"])
    torch.testing.assert_close(said.start_logits, starts, atol=1e-4, rtol=0)
    torch.testing.assert_close(said.end_logits, ends, atol=1e-4, rtol=0)
    assert not list((folder / "native").glob("*.py"))
    assert written.stranger(folder) is None


def test_a_model_that_no_class_of_transformers_own_computes_is_refused_whole(
    finished: StateFolder, tmp_path: Path
) -> None:
    with snapshot.opened(finished.path) as connection:
        snap = snapshot.read(connection)
    kept = [
        one
        for one in snap.individuals
        if one.state is State.SCORED and (finished.result(one.id, "finetune")).is_dir()
    ]
    uneven = next(one for one in kept if len({b.heads for b in one.genotype.blocks}) > 1)
    sentence = refused(finished, str(uneven.id), tmp_path / "x", native=True)
    assert sentence.startswith("--native: its blocks have different attention heads")


def refused(state: StateFolder, name: str, folder: Path, **options: bool) -> str:
    """The sentence; nothing may have been written."""
    before = sorted(folder.parent.rglob("*")) if folder.parent.is_dir() else None
    with pytest.raises(NasdError) as caught:
        export(state.path, name, folder, **options)
    assert "\n" not in str(caught.value)
    assert before is None or sorted(folder.parent.rglob("*")) == before
    return str(caught.value)


@pytest.mark.parametrize("name", ["99", "-1", "first", "1.5", "", "٣"])
def test_a_candidate_that_does_not_exist_is_named(
    finished: StateFolder, tmp_path: Path, name: str
) -> None:
    assert re.match(f"there is no candidate '?{name}'?: ", refused(finished, name, tmp_path / "x"))


def test_who_has_no_score_is_refused_with_state_and_stage(
    finished: StateFolder, tmp_path: Path
) -> None:
    sentence = refused(finished, "4", tmp_path / "x")
    assert sentence.startswith("candidate 4 is cut at pretrain_0 (pretrain_0 loss")
    new = StateFolder(tmp_path / "new" / "state")
    new.path.mkdir(parents=True)
    store = open_quickly(new.database)
    begin(store, CONFIG, BACKBONE, BASELINE)
    store.close()
    (tmp_path / "home").mkdir()
    for name, words in (
        ("baseline", "candidate 0 is pending at prepare: it can be exported once it is scored"),
        ("best", "no candidate has a score yet"),
    ):
        assert words in refused(new, name, tmp_path / "home" / "x")


def test_where_there_is_no_experiment_it_says_so(tmp_path: Path) -> None:
    state = StateFolder(tmp_path / "state")
    assert "holds no experiment yet" in refused(state, "best", tmp_path / "x")


def test_collected_weights_are_told_with_those_that_are_kept(
    finished: StateFolder, tmp_path: Path
) -> None:
    sentence = refused(finished, "1", tmp_path / "x")
    assert "the weights of candidate 1 were removed" in sentence
    assert sentence.endswith(f": there are those of 0, {', '.join(map(str, kept(finished)))}")


ASK = """
import json, sys
from transformers import AutoModelForQuestionAnswering, AutoTokenizer
model = AutoModelForQuestionAnswering.from_pretrained(sys.argv[1], trust_remote_code=True)
AutoTokenizer.from_pretrained(sys.argv[1], trust_remote_code=True)
found = model.answer(sys.argv[2], sys.argv[3])
print(json.dumps([found.text, round(found.score, 4)]))
"""


@pytest.mark.heavy
@pytest.mark.timeout(1800)  # it installs torch
@pytest.mark.parametrize("version", ["4.57.1", "5.23.0"])
def test_it_loads_and_answers_alike_in_a_clean_environment_of_either_transformers(
    version: str, home: Exported, tmp_path: Path
) -> None:
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    python = tmp_path / "venv/bin/python"
    packages = ["torch==2.13.0", f"transformers=={version}"]
    subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True)
    asked = "Who keeps the red kite?", "Mara keeps a red kite in the old mill."
    done = subprocess.run(
        [python, "-P", "-c", ASK, home.folder, *asked],
        capture_output=True,
        text=True,
        env={"HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "PATH": os.environ["PATH"]},
    )
    assert done.returncode == 0, done.stderr
    text, score = json.loads(done.stdout.splitlines()[-1])
    here = oracle.answer(home.folder, *asked)
    assert (text, score) == (here.answer, round(here.score, 4))


# -- where it puts it ----------------------------------------------------------------------------


def test_a_place_that_is_taken_is_refused(finished: StateFolder, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    assert "is no folder" in refused(finished, "9", tmp_path / "file", force=True)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "notes.txt").write_text("mine")
    for force in (False, True):
        sentence = refused(finished, "9", tmp_path / "notes", force=force)
        assert "has no list of what nasd wrote there: choose another folder" in sentence
    assert (tmp_path / "notes" / "notes.txt").read_text() == "mine"


def test_a_place_that_cannot_be_written_is_named(finished: StateFolder, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    assert "cannot be written" in refused(finished, "9", tmp_path / "file" / "model")


@pytest.mark.usefixtures("here")
def test_an_exported_model_is_replaced_whole_if_told_to(
    finished: StateFolder, home: Exported, tmp_path: Path
) -> None:
    folder = shutil.copytree(home.folder, tmp_path / "model")
    assert "with --force" in refused(finished, "9", folder)
    export(finished.path, "0", folder, force=True)
    assert "small, baseline" in (folder / "README.md").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.usefixtures("here")
def test_a_model_with_a_flipped_bit_is_refused_and_one_of_an_earlier_nasd_is_not(
    search: StateFolder, tmp_path: Path
) -> None:
    home = search.result(9, "finetune")
    digests.seal(home)
    flip_a_bit(home / WEIGHTS)
    assert f"{home / WEIGHTS} is damaged" in refused(search, "9", tmp_path / "home" / "model")
    (home / digests.SEAL).unlink()
    export(search.path, "9", tmp_path / "home" / "model")


@pytest.mark.usefixtures("here")
def test_a_model_that_an_earlier_version_exported_is_moved_aside_whole(
    finished: StateFolder, home: Exported, tmp_path: Path
) -> None:
    folder = shutil.copytree(home.folder, tmp_path / "model")
    for name in {path.name for path in folder.iterdir()} - EARLIER:  # it had one file for the model
        (folder / name).unlink()
    (folder / "README.md").write_text("with notes of mine")
    assert "with --force" in refused(finished, "9", folder)
    export(finished.path, "0", folder, force=True)
    assert (tmp_path / "model.before" / "README.md").read_text() == "with notes of mine"
    assert "small, baseline" in (folder / "README.md").read_text()


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("name", ["README.md", "notes.txt", "__pycache__/x.pyc", "config.json/a"])
def test_what_a_person_put_into_an_exported_model_or_changed_there_is_never_removed(
    name: str, finished: StateFolder, home: Exported, tmp_path: Path
) -> None:
    folder = shutil.copytree(home.folder, tmp_path / "model")
    mine = folder / name
    if mine.parent.is_file():
        mine.parent.unlink()
    mine.parent.mkdir(exist_ok=True)
    mine.write_text("mine")
    sentence = refused(finished, "0", folder, force=True)
    assert f"holds {name.split('/')[0]}" in sentence
    assert mine.read_text() == "mine"


@pytest.mark.usefixtures("here")
def test_a_failure_leaves_what_stood_there(
    search: StateFolder, home: Exported, tmp_path: Path
) -> None:
    folder = shutil.copytree(home.folder, tmp_path / "home" / "model")
    weights = search.result(9, "finetune") / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-9])
    assert "is missing or damaged" in refused(search, "9", folder, force=True)
    assert (folder / WEIGHTS).read_bytes() == (home.folder / WEIGHTS).read_bytes()


@pytest.mark.usefixtures("here")
def test_an_empty_folder_and_one_below_none_are_as_good_as_new(
    finished: StateFolder, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "empty", tmp_path / "a" / "b" / "c"):
        assert (export(finished.path, "9", folder).folder / WEIGHTS).exists()


# -- beside a daemon -----------------------------------------------------------------------------


@pytest.mark.usefixtures("here")
def test_it_reads_alone_while_a_daemon_serves_the_search(
    search: StateFolder, tmp_path: Path
) -> None:
    before = {path: path.read_bytes() for path in search.path.rglob("*") if path.is_file()}
    with daemon_lock.hold(search.lock):
        export(search.path, "best", tmp_path / "model")
    search.lock.unlink()
    after = {path: path.read_bytes() for path in search.path.rglob("*") if path.is_file()}
    assert after == before


@pytest.mark.usefixtures("here")
def test_weights_that_are_collected_meanwhile_are_told(
    search: StateFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = child.ask

    def late(*arguments: Any) -> Any:
        shutil.rmtree(search.result(9, "finetune"))
        return ask(*arguments)

    monkeypatch.setattr(child, "ask", late)
    (tmp_path / "home").mkdir()
    sentence = refused(search, "9", tmp_path / "home" / "model")
    assert "the weights of candidate 9 were removed" in sentence
    assert "9" not in sentence.partition(": ")[2]


@pytest.mark.usefixtures("here")
def test_a_tokenizer_that_is_gone_is_told(search: StateFolder, tmp_path: Path) -> None:
    (search.result(0, "prepare") / "tokenizer.json").unlink()
    (tmp_path / "home").mkdir()
    assert "the tokenizer in" in refused(search, "9", tmp_path / "home" / "model")


def test_a_child_that_dies_is_no_answer(tmp_path: Path) -> None:
    with pytest.raises(child.NoAnswer, match=r"No module named nasd\.worker\.nothing"):
        child.ask("nasd.worker.nothing", {})


# -- ONNX ----------------------------------------------------------------------------------------


def test_without_the_extra_it_is_named(
    finished: StateFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nasd.export.export.ONNX_MODULES", ("onnx_of_nobody",))
    sentence = refused(finished, "9", tmp_path / "x", onnx=True)
    assert sentence.startswith("--onnx needs onnx_of_nobody: install the extra")


def test_onnx_gives_the_same_logits(finished: StateFolder, tmp_path: Path) -> None:
    import torch

    runtime = pytest.importorskip(
        "onnxruntime", reason="the extra onnx is not installed: bin/setup onnx"
    )
    pytest.importorskip("onnxscript", reason="the extra onnx is not installed: bin/setup onnx")
    from nasd.worker.model import phenotype

    done = export(finished.path, "9", tmp_path / "model", onnx=True)
    assert done.files.onnx_difference is not None
    net = phenotype.load(phenotype.QuestionAnswering, done.folder).eval()
    session = runtime.InferenceSession(tmp_path / "model" / "model.onnx")
    for examples, tokens in ((1, 3), (5, 17)):  # others than it was made and checked with
        ids = torch.arange(examples * tokens).view(examples, tokens) % BACKBONE.vocab_size
        mask = (torch.arange(tokens) < torch.arange(1, examples + 1)[:, None] * 3).long()
        if examples > 1:
            mask[0] = 0  # an empty example that only fills up the batch
        with torch.no_grad():
            expected = net(ids, mask)
        given = {"input_ids": ids.numpy(), "attention_mask": mask.numpy()}
        for one, other in zip(session.run(None, given), expected, strict=True):
            assert np.abs(one - other.numpy()).max() <= 1e-4
    assert "model.onnx" in read_card(done.folder)[1]


def give_questions(state: StateFolder) -> None:
    """The demo's, as prepare leaves them."""
    from nasd.presets.demo import write_corpus, write_squad
    from nasd.worker import prepare
    from nasd.worker.model import seed
    from nasd.worker.training.progress import quiet
    from tests.training import demo_config

    made = state.path / "data"
    (made / "demo-data").mkdir(parents=True)
    write_squad(made / "demo-data/squad.json", articles=5)
    write_corpus(made / "demo-data/corpus.txt", documents=60)
    (made / "cache").mkdir()
    data = demo_config(data__qa__tokens=TOKENS, data__qa__stride=STRIDE).data
    tokenizer = seed.load_tokenizer(str(DEMO_SEED), made)
    _, found, _ = prepare.caches(data, made, tokenizer, made / "cache", 5, quiet)
    state.cache.mkdir(exist_ok=True)
    found.rename(state.cache / "qa")  # as the database has it


@pytest.mark.usefixtures("here")
def test_int8_is_told_beside_float32_in_the_card_and_at_the_end(
    search: StateFolder, tmp_path: Path
) -> None:
    pytest.importorskip("onnxscript", reason="the extra onnx is not installed: bin/setup onnx")
    (tmp_path / "models").mkdir()  # beside the search, whose database leaves files where it is read
    folder = tmp_path / "models" / "model"
    sentence = refused(search, "9", folder, int8=True)
    assert sentence.startswith(f"int8 cannot be scored, as the test data in {search.cache / 'qa'}")
    give_questions(search)
    told = invoke("export", "9", str(folder), "--state", str(search.path), "--int8")
    rows = {line[:30].strip(): line[30:].split() for line in told.splitlines()[-4:]}
    assert rows[""] == ["float32", "int8"]
    sizes = [(folder / name).stat().st_size for name in ("model.onnx", "model-int8.onnx")]
    assert rows["MB"] == [f"{one / 1e6:.1f}" for one in sizes]
    body = read_card(folder)[1]
    found = {line[0]: line[1:] for line in table(body, "Use")}
    assert found["quality"] == rows["quality"]
    assert all(0 <= float(one) <= 100 for one in rows["quality"])
    assert written.vouched(folder)
    asked = ("answer", str(folder), "-q", QUESTION, "--context", CONTEXT, "--json")
    assert json.loads(invoke(*asked, "--onnx"))["answer"] == json.loads(invoke(*asked))["answer"]
    assert json.loads(invoke(*asked, "--int8"))["answer"] in CONTEXT
    with pytest.raises(NasdError, match="two files: take one"):
        oracle.file_of(True, True)
