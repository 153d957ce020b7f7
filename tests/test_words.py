"""Words that people give: paths, texts and names that cannot be written down or shown."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from nasd.contract import strangers, words
from nasd.contract.config import parse
from nasd.contract.errors import NasdError
from tests.test_config import small_dict

ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"}


def nasd(*arguments: str | bytes, **environment: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "nasd", *arguments],
        capture_output=True,
        env={**os.environ, **environment},
        timeout=60,
    )


PLACES: list[tuple[str, list[str]]] = [
    ("init", ["{}"]),
    ("run", ["--config", "{}"]),
    ("status", ["--state", "{}"]),
    ("show", ["1", "--state", "{}"]),
    ("report", ["--state", "{}"]),
    ("export", ["best", "{}"]),
    ("answer", ["{}", "--question", "a", "--context", "b"]),
    ("score", ["{}", "x"]),
    ("inject", ["{}"]),
    ("doctor", ["--config", "{}"]),
    ("simulate", ["--config", "{}"]),
]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        (b"r\xff", b"bytes that are not UTF-8"),
        (b"a\x1b[31mb", b"control characters"),
        (b"x" * 300, b"is too long"),
        (b"~no-such-user-here/x", b"there is no user"),
    ],
)
@pytest.mark.parametrize(("command", "arguments"), [PLACES[0], PLACES[2], PLACES[8]])
def test_a_path_that_can_be_none_is_told_in_one_sentence(
    command: str, arguments: list[str], name: bytes, told: bytes, tmp_path: Path
) -> None:
    given = name if name.startswith(b"~") else os.fsencode(tmp_path) + b"/" + name
    done = nasd(command, *(given if one == "{}" else one for one in arguments))
    assert done.returncode == 2
    assert told in done.stderr
    assert done.stderr.count(b"\n") == 1
    assert b"\x1b" not in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("command", "arguments"), PLACES)
def test_no_command_ends_in_a_traceback_on_a_terminal_without_utf_8(
    command: str, arguments: list[str], tmp_path: Path
) -> None:
    place = tmp_path / "é"
    done = nasd(command, *(str(place) if one == "{}" else one for one in arguments), **ASCII)
    assert b"Traceback" not in done.stderr
    assert done.stdout.isascii()
    assert done.stderr.isascii()


def test_a_text_whose_bytes_are_not_utf_8_is_refused(tmp_path: Path) -> None:
    done = nasd("answer", str(tmp_path), "--question", b"who\xff?", "--context", "Mara.")
    assert (done.returncode, b"--question" in done.stderr) == (2, True)


def test_json_that_nests_without_end_is_refused_where_a_person_names_it(tmp_path: Path) -> None:
    path = tmp_path / "deep.json"
    path.write_text("[" * 100_000)
    with pytest.raises(NasdError, match="nests too deeply"):
        strangers.json_object(path)
    (tmp_path / "config.json").write_text('{"a": ' * 100_000)
    for done in (
        nasd("inject", str(path)),
        nasd("answer", str(tmp_path), "--question", "a", "--context", "b"),
    ):
        assert done.returncode == 2
        assert done.stderr.count(b"\n") == 1
    (tmp_path / "link.json").symlink_to(tmp_path / "real.json")
    (tmp_path / "real.json").write_text("\ufeff" + json.dumps({"a": 1}))
    assert strangers.json_object(tmp_path / "link.json") == {"a": 1}


@pytest.mark.parametrize("key", ["experiment__name", "experiment__state", "seed_model__source"])
def test_names_in_a_config_hold_nothing_that_acts_on_a_terminal(key: str) -> None:
    with pytest.raises(NasdError) as caught:
        parse(small_dict(**{key: "a\x1b[31mb"}), "c.toml")
    sentence = str(caught.value)
    assert f"{key.replace('__', '.')}: the text has control characters" in sentence
    assert sentence.isprintable()


def test_the_name_of_an_experiment_fits_the_name_of_a_folder() -> None:
    with pytest.raises(NasdError, match=r"experiment\.name: .*at most 200"):
        parse(small_dict(experiment__name="x" * 300), "c.toml")


def test_a_plain_path_is_given_back_with_home_in_full(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert words.path(Path("~/a b/é"), "FOLDER") == Path("/home/me/a b/é")
