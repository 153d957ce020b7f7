"""Folders that nasd writes: only what it wrote there is ever removed."""

import os
from pathlib import Path
from typing import Any

import pytest

from nasd.contract import written
from nasd.contract.errors import NasdError


def make(folder: Path, **files: str) -> Path:
    for name, text in {"a.txt": "a", "sub/b.txt": "b", **files}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    written.vouch(folder)
    return folder


def replace(folder: Path) -> None:
    written.check_replaceable(folder, "a.txt", "choose another")
    with written.beside(folder) as beside:
        written.put(make(beside / "new", **{"a.txt": "new"}), folder)


def test_what_it_wrote_is_replaced_whole_and_nothing_is_left_beside(tmp_path: Path) -> None:
    folder = make(tmp_path / "out", **{"old.txt": "only there"})
    replace(folder)
    assert sorted(p.name for p in folder.iterdir()) == [written.LIST, "a.txt", "sub"]
    assert (folder / "a.txt").read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda f: (f / "mine").write_text("x"), "holds mine, which nasd did not write"),
        (lambda f: (f / "sub/mine").write_text("x"), "holds sub/mine, which nasd did not write"),
        (lambda f: (f / "empty").mkdir(), "holds empty, which nasd did not write"),
        (lambda f: (f / "a.txt").write_text("x"), "holds a.txt, which was changed since"),
        (lambda f: (f / written.LIST).write_text("{}"), "has no list of what nasd wrote there"),
        (lambda f: (f / written.LIST).unlink(), "has no list of what nasd wrote there"),
    ],
)
def test_anything_else_is_refused_by_name_and_stays(tmp_path: Path, spoil: Any, words: str) -> None:
    folder = make(tmp_path / "out")
    spoil(folder)
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    with pytest.raises(NasdError) as caught:
        replace(folder)
    assert words in str(caught.value)
    assert str(caught.value).endswith(": choose another")
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before


def test_a_link_is_never_followed(tmp_path: Path) -> None:
    elsewhere = make(tmp_path / "elsewhere")
    folder = make(tmp_path / "out")
    (folder / "a.txt").unlink()
    (folder / "a.txt").symlink_to(elsewhere / "a.txt")
    with pytest.raises(NasdError, match=r"holds a.txt, which is no file any more"):
        replace(folder)
    (tmp_path / "link").symlink_to(elsewhere)
    with pytest.raises(NasdError, match="is a link"):
        replace(tmp_path / "link")
    (folder / "a.txt").unlink()
    (folder / "more").symlink_to(elsewhere)
    with pytest.raises(NasdError, match="holds more, which nasd did not write"):
        replace(folder)
    assert sorted(p.name for p in elsewhere.iterdir()) == [written.LIST, "a.txt", "sub"]


@pytest.mark.parametrize("name", ["../outside.txt", "/outside.txt", "sub/../../outside.txt", ""])
def test_a_list_that_names_anything_outside_its_folder_is_no_list(
    tmp_path: Path, name: str
) -> None:
    folder = make(tmp_path / "out")
    outside = tmp_path / "outside.txt"
    outside.write_text("mine")
    text = (folder / written.LIST).read_text().replace("a.txt", name)
    (folder / written.LIST).write_text(text)
    assert written.stranger(folder) is not None
    written._remove(folder)
    assert outside.read_text() == "mine"


def test_what_comes_while_it_is_replaced_stays_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make(tmp_path / "out")
    rename = Path.rename

    def late(path: Path, to: Any) -> Any:
        if path == folder:
            (folder / "late.txt").write_text("mine")
        return rename(path, to)

    monkeypatch.setattr(Path, "rename", late)
    replace(folder)
    assert (tmp_path / "out.kept" / "late.txt").read_text() == "mine"
    assert (folder / "a.txt").read_text() == "new"


def test_a_pipe_or_a_long_name_is_a_sentence(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(NasdError, match="is no folder"):
        written.check_replaceable(tmp_path / "pipe", "a.txt", "choose another")


def test_what_another_command_wrote_is_not_replaced(tmp_path: Path) -> None:
    folder = make(tmp_path / "model", **{"model.safetensors": "weights"})
    with pytest.raises(NasdError, match="holds what another command of nasd's wrote: choose"):
        written.check_replaceable(folder, "index.html", "choose another")
    written.check_replaceable(folder, "model.safetensors", "choose another")
