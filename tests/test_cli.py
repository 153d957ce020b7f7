"""The commands: what they print, what they refuse, and that they start fast."""

import json
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from click import Command
from typer.main import get_command
from typer.testing import CliRunner, Result

from nasd import __version__
from nasd.cli import app
from nasd.cli.options import state_folder
from nasd.contract.config import load
from nasd.contract.errors import NasdError
from nasd.presets import PRESETS, preset_text
from tests.conftest import ROOT

COMMANDS = sorted(get_command(app).commands)  # type: ignore[attr-defined]
RUNNER = CliRunner()


def invoke(*arguments: str) -> Result:
    return RUNNER.invoke(app, list(arguments), catch_exceptions=False)


def nasd(*arguments: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    fixed = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "COLUMNS": "100"}
    return subprocess.run(
        [sys.executable, "-m", "nasd", *arguments],
        cwd=folder,
        env=fixed | variables,
        capture_output=True,
        text=True,
        timeout=60,
    )


def refused(done: subprocess.CompletedProcess[str]) -> str:
    """The one sentence of a command that refuses."""
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("nasd: ")
    return line


# -- help ----------------------------------------------------------------------------------------


def test_the_commands_are_those_that_are_documented():
    assert COMMANDS == [
        "answer", "budget", "compress", "cut", "doctor", "drain", "events", "export", "init",
        "inject", "log", "metrics", "pause", "plan", "predict", "profile", "report", "resume",
        "retry", "run", "score", "serve", "show", "simulate", "status", "stop", "tensorboard",
    ]  # fmt: skip


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_every_command_shows_an_example_that_parses(name: str):
    text = invoke(name, "--help").stdout
    (example,) = [line.strip(" │") for line in text.splitlines() if "Example:" in line]
    words = shlex.split(example.removeprefix("Example:"))
    assert words[:2] == ["nasd", name]
    command: Command = get_command(app).commands[name]  # type: ignore[attr-defined]
    command.make_context(name, words[2:])  # raises for an option that there is none


@pytest.mark.parametrize("name", COMMANDS)
def test_the_lines_of_every_help_fit_80_columns_as_they_are(name: str):
    """Only the first paragraph is put into lines anew; a longer line would leave a ragged rest."""
    command: Command = get_command(app).commands[name]  # type: ignore[attr-defined]
    _, *others = (command.help or "").split("\n\n")
    assert all(len(line) <= 78 for part in others for line in part.splitlines())


@pytest.mark.parametrize("name", COMMANDS)
def test_every_help_shows_all_of_its_words(name: str):
    """What stands in square brackets is taken for a style, and not shown."""
    command: Any = get_command(app).commands[name]  # type: ignore[attr-defined]
    shown = set(re.findall(r"\w+", invoke(name, "--help").stdout))
    wanted = " ".join([command.help or "", *(one.help or "" for one in command.params)])
    assert set(re.findall(r"\w+", wanted)) <= shown


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_and_argument_says_what_it_is(name: str):
    command: Any = get_command(app).commands[name]  # type: ignore[attr-defined]
    for parameter in command.params:
        assert parameter.name == "help" or parameter.help


def test_without_a_command_the_help_is_shown():
    done = invoke()
    assert all(name in done.output for name in COMMANDS)


def test_the_version_is_that_of_the_package():
    assert invoke("--version").stdout == f"nasd {__version__}\n"


def test_an_unknown_option_is_refused_with_code_2(tmp_path: Path):
    done = nasd("run", "--speed", folder=tmp_path)
    assert done.returncode == 2
    assert "No such option" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["run", "status"])
def test_a_config_that_is_not_there_is_named(tmp_path: Path, command: str):
    assert "there is no config file config.toml" in refused(nasd(command, folder=tmp_path))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["run", "status", "doctor"])
def test_the_environment_names_the_config_unless_the_line_does(tmp_path: Path, command: str):
    def sentence(*more: str) -> str:
        done = nasd(command, *more, folder=tmp_path, NASD_CONFIG="mine.toml")
        return done.stdout + done.stderr

    assert "there is no config file mine.toml" in sentence()
    assert "there is no config file other.toml" in sentence("--config", "other.toml")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"[experiment\n", "is not a config of nasd's"),
        (b"a = 1\n", "is not a config of nasd's"),
        (b"experiment = 3\n", "is not a config of nasd's"),
        (b"\xff\xfe", "cannot be read"),
    ],
)
def test_status_names_a_file_that_is_no_config(tmp_path: Path, content: bytes, words: str):
    (tmp_path / "config.toml").write_bytes(content)
    with pytest.raises(NasdError, match=words) as caught:
        state_folder(tmp_path / "config.toml", None)
    assert "\n" not in str(caught.value)


def test_status_without_an_experiment_says_so(tmp_path: Path):
    (tmp_path / "config.toml").write_text('[experiment]\nname = "x"\n')
    sentence = refused(nasd("status", "--json", folder=tmp_path))
    assert "holds no experiment yet" in sentence
    assert [path.name for path in tmp_path.iterdir()] == ["config.toml"]


# -- score ---------------------------------------------------------------------------------------

QUESTIONS = {"q1": ["the blue sea", "sea"], "q2": ["forty-two"], "q3": ["Ada"], "q4": ["no one"]}


@pytest.fixture
def files(tmp_path: Path) -> Path:
    context = " ".join(answer for answers in QUESTIONS.values() for answer in answers)
    qas = [
        {
            "id": key,
            "question": "?",
            "answers": [{"text": text, "answer_start": context.index(text)} for text in answers],
        }
        for key, answers in QUESTIONS.items()
    ]
    data = {"data": [{"title": "t", "paragraphs": [{"context": context, "qas": qas}]}]}
    (tmp_path / "squad.json").write_text(json.dumps(data))
    return tmp_path


def score(folder: Path, predictions: Any) -> dict[str, float]:
    (folder / "predictions.json").write_text(json.dumps(predictions))
    out = invoke("score", str(folder / "predictions.json"), str(folder / "squad.json")).stdout
    assert len(out.splitlines()) == 1
    return json.loads(out)


@pytest.mark.parametrize(
    ("predictions", "exact", "f1"),
    [
        ({"q1": "The Sea!", "q2": "forty-two", "q3": "ada", "q4": "no one"}, 100.0, 100.0),
        ({}, 0.0, 0.0),  # a question without a prediction scores 0
        ({"q3": "Ada"}, 25.0, 25.0),
        ({"q3": "Ada Lovelace"}, 0.0, 100 * (2 / 3) / 4),
        ({"q3": "Ada", "unknown": "x"}, 25.0, 25.0),
        ({"q3": ""}, 0.0, 0.0),
    ],
)
def test_score_prints_exactly_what_the_official_script_does(files, predictions, exact, f1):
    told = score(files, predictions)
    assert list(told) == ["exact_match", "f1", "total"]
    assert told == {"exact_match": exact, "f1": pytest.approx(f1), "total": 4}


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("predictions.json", "{", "predictions.json is not valid JSON"),
        ("predictions.json", "[]", "predictions.json"),
        ("predictions.json", '{"q1": 3}', "q1"),
        ("predictions.json", None, "there is no file"),
        ("squad.json", '{"data": 3}', "squad.json"),
        ("squad.json", '{"data": []}', "squad.json"),
        ("squad.json", "\x00", "squad.json is not valid JSON"),
    ],
)
def test_score_refuses_a_malformed_file_in_one_sentence(files, name, content, words):
    (files / "predictions.json").write_text("{}")
    if content is None:
        (files / name).unlink()
    else:
        (files / name).write_text(content)
    assert words in refused(nasd("score", "predictions.json", "squad.json", folder=files))


def test_score_imports_nothing_heavy(files: Path):
    (files / "predictions.json").write_text("{}")
    code = (
        "import sys; sys.argv = ['nasd', 'score', 'predictions.json', 'squad.json']\n"
        "from nasd.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print(*{'torch', 'transformers', 'datasets', 'evaluate', 'numpy', 'sqlite_utils'}"
        " & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=files,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    scores, heavy = done.stdout.splitlines()
    assert json.loads(scores)["total"] == 4
    assert heavy == ""


# -- init ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PRESETS)
def test_init_writes_a_preset_as_it_is(tmp_path: Path, name: str):
    done = invoke("init", "--preset", name, str(tmp_path / "new" / "folder"))
    path = tmp_path / "new" / "folder" / "config.toml"
    assert done.exit_code == 0
    assert str(path) in done.stdout
    assert path.read_text(encoding="utf-8") == preset_text(name)
    config = load(path)
    if name.startswith("demo"):  # its data stands beside it
        assert (path.parent / config.data.qa.files[0]).exists()
        for corpus in config.data.corpora:
            assert (path.parent / corpus.files[0]).exists()


def init(folder: Path, *settings: str, preset: str = "minilm-thesis") -> Any:
    options = [part for setting in settings for part in ("--set", setting)]
    invoke("init", "--preset", preset, *options, str(folder))
    return load(folder / "config.toml")


@pytest.mark.parametrize(
    ("setting", "read"),
    [
        ("experiment.seed=3", lambda c: c.experiment.seed == 3),
        ("experiment.name=my search", lambda c: c.experiment.name == "my search"),
        ('experiment.name="3"', lambda c: c.experiment.name == "3"),
        ("experiment.budget_gpu_hours=1.5", lambda c: c.experiment.budget_gpu_hours == 1.5),
        ("slots.devices=auto", lambda c: c.slots.devices == "auto"),
        ('slots.devices=["cpu:0"]', lambda c: c.slots.devices == ("cpu:0",)),
        ("population.lambda=2", lambda c: c.population.lambda_ == 2),
        ("variation.initial.ffn=0.25", lambda c: c.variation.initial.ffn == 0.25),
        ("search_space.heads=[4, 6]", lambda c: c.search_space.heads == (4, 6)),
        ("stages.finetune.epochs=0.75", lambda c: stage(c, "finetune").epochs == 0.75),
        ("stages.pretrain_0.keep = 0.25", lambda c: stage(c, "pretrain_0").keep == 0.25),
        (
            'data.mlm.corpora=[{files=["a.txt", "b.txt"]}]',
            lambda c: c.data.mlm.corpora[0].files == ("a.txt", "b.txt"),
        ),
        ('data.qa.files=["/data/sq=uad.json"]', lambda c: c.data.qa.files[0].endswith("=uad.json")),
    ],
)
def test_init_puts_each_setting_in_its_place_and_leaves_the_rest(tmp_path: Path, setting, read):
    config = init(tmp_path, setting)
    assert read(config)
    before = tomllib.loads(preset_text("minilm-thesis"))
    key = setting.partition("=")[0].strip().partition(".")[0]
    after = tomllib.loads((tmp_path / "config.toml").read_text())
    assert {k: v for k, v in after.items() if k != key} == {
        k: v for k, v in before.items() if k != key
    }


def stage(config: Any, name: str) -> Any:
    return next(one for one in config.stages if one.name == name)


def test_init_takes_several_settings_the_last_of_a_key_counts(tmp_path: Path):
    config = init(tmp_path, "experiment.seed=3", "population.mu=2", "experiment.seed=4")
    assert (config.experiment.seed, config.population.mu) == (4, 2)


def test_init_keeps_the_comments_of_the_preset(tmp_path: Path):
    init(tmp_path, "experiment.seed=3", preset="thesis")
    text = (tmp_path / "config.toml").read_text(encoding="utf-8")
    assert text.count("[open]") == preset_text("thesis").count("[open]")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--set", "population.muu=3"), "unknown key population.muu; did you mean mu?"),
        (("--set", "populaton.mu=3"), "unknown key populaton; did you mean population?"),
        (("--set", "population.mu=many"), "population.mu"),
        (("--set", "stages.fine.epochs=3"), "there is no stage 'fine'"),
        (("--set", "stages.finetune.epoch=3"), "epoch; did you mean epochs?"),
        (("--set", "stages.finetune=3"), "stages is not a section"),
        (("--set", "population.mu"), "write KEY=VALUE"),
        (("--set", "population.mu.x=3"), "population.mu is not a section"),
        (("--set", "population.mu.x.y=3"), "what stands above x is not a section"),
        (("--set", "experiment.name.x=3"), "experiment.name is not a section"),
        (("--set", "data.mlm.corpora.x=3"), "data.mlm.corpora is not a section"),
        (("--set", "=3"), "write KEY=VALUE"),
        (("--set", "population..mu=3"), "write KEY=VALUE"),
        (("--set", "stages.pretrain_0.keep=2"), "keep"),
        (
            ("--preset", "big"),
            f"there is no preset 'big': take one of {', '.join(PRESETS)}",
        ),
    ],
)
def test_init_refuses_in_one_sentence_and_writes_nothing(tmp_path: Path, arguments, words):
    with pytest.raises(NasdError) as caught:
        invoke("init", *arguments, str(tmp_path / "new"))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_refusal_is_exit_code_2_without_a_traceback(tmp_path: Path):
    sentence = refused(nasd("init", "--preset", "big", "new", folder=tmp_path))
    assert sentence == f"nasd: there is no preset 'big': take one of {', '.join(PRESETS)}"


def test_init_does_not_write_over_a_config_unless_told_to(tmp_path: Path):
    path = tmp_path / "config.toml"
    path.write_text("mine")
    with pytest.raises(NasdError, match="is there already"):
        invoke("init", "--preset", "demo", str(tmp_path))
    assert [one.name for one in tmp_path.iterdir()] == ["config.toml"]
    assert path.read_text() == "mine"
    invoke("init", "--preset", "minilm", "--force", str(tmp_path))
    assert path.read_text() == preset_text("minilm")


def test_a_folder_named_nasd_where_it_is_called_from_is_in_nobodys_way(tmp_path: Path):
    (tmp_path / "nasd").mkdir()
    done = subprocess.run(
        [ROOT / "bin" / "nasd", "--version"], cwd=tmp_path, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, f"nasd {__version__}\n")


def test_a_state_folder_that_is_not_there_is_told_and_a_configs_folder_is_understood(
    tmp_path: Path,
):
    with pytest.raises(NasdError, match=r"there is no folder .*nowhere"):
        state_folder(Path("config.toml"), tmp_path / "nowhere")
    (tmp_path / "state").mkdir()
    assert state_folder(Path("config.toml"), tmp_path) == tmp_path / "state"
