"""Files of data: exactly the one that is named, read by what it holds, or refused by its name."""

import bz2
import csv
import gzip
import io
import json
import lzma
import os
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nasd.contract import formats, squad
from nasd.contract.errors import NasdError
from nasd.worker.tasks import hub

LINES = ["mara keeps a red kite", "in the old mill, with ünï", "x"]
ROWS = [{"text": text, "n": n} for n, text in enumerate(LINES)]
JSON_LINES = "".join(json.dumps(row) + "\n" for row in ROWS)


def parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    import pyarrow
    import pyarrow.parquet

    with path.open("wb") as file:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    return path


def csv_text(delimiter: str = ",") -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, ["n", "text"], delimiter=delimiter)
    writer.writeheader()
    writer.writerows(ROWS)
    return out.getvalue()


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def packed(content: bytes) -> bytes:
    """Gzipped without the time of day: a test's name must be the same in every process."""
    return gzip.compress(content, mtime=0)


PLAIN = "\n".join(LINES).encode()


@pytest.mark.parametrize(
    ("name", "content", "form"),
    [
        ("a.txt", PLAIN, "text"),
        ("no suffix", PLAIN, "text"),
        ("a.json", PLAIN, "text"),  # what it holds counts
        ("a.txt.gz", packed(PLAIN), "text"),
        ("packed.txt", packed(PLAIN), "text"),
        ("a.jsonl", JSON_LINES.encode(), "JSON lines"),
        ("a.txt", JSON_LINES.encode(), "JSON lines"),
        ("a.txt", b"\n\n" + JSON_LINES.encode(), "JSON lines"),
        ("a.jsonl.gz", packed(JSON_LINES.encode()), "JSON lines"),
        ("a.csv", csv_text().encode(), "CSV"),
        ("a.tsv", csv_text("\t").encode(), "CSV"),
        ("A.CSV.GZ", packed(csv_text().encode()), "CSV"),
    ],
)
@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"], ids=["", "with a mark"])
def test_a_corpus_is_read_by_what_it_holds(tmp_path, name, content, form, bom):
    if content.startswith(formats.GZIP):
        content = packed(bom + gzip.decompress(content))
    else:
        content = bom + content
    path = written(tmp_path / name, content)
    assert formats.look(path).form == form
    assert [text for text in formats.texts(path, "text") if text] == LINES
    formats.check_texts(path, "text")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32"])
def test_a_mark_says_how_a_text_is_encoded(tmp_path, encoding):
    path = written(tmp_path / "a.txt", "\n".join(LINES).encode(encoding))
    assert list(formats.texts(path, "text")) == LINES
    formats.check_texts(path, "text")


def test_parquet_is_read_by_its_column(tmp_path):
    path = parquet(tmp_path / "a.txt", [{**row, "other": None} for row in ROWS])
    assert formats.look(path).form == "Parquet"
    assert list(formats.texts(path, "text")) == LINES
    with pytest.raises(
        NasdError, match="is Parquet, and has no column 'body', only text, n, other"
    ):
        formats.check_texts(path, "body")
    with pytest.raises(NasdError, match="row 1: 'n' holds 0, which is no text"):
        formats.check_texts(path, "n")
    with pytest.raises(NasdError, match="has no text in 'other'"):
        formats.check_texts(path, "other")


@pytest.mark.parametrize("content", [JSON_LINES, csv_text()])
def test_a_column_that_is_not_there_is_told_with_those_that_are(tmp_path, content):
    path = written(tmp_path / "a.csv", content.encode())
    if content is JSON_LINES:
        path = path.rename(tmp_path / "a.jsonl")
    with pytest.raises(NasdError, match=r"has no column 'body', only .*text.*; set column"):
        formats.check_texts(path, "body")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("delimiter", [";", "\t"])
def test_what_stands_in_a_header_without_commas_is_between_the_fields(
    tmp_path, delimiter: str, encoding: str
):
    path = written(tmp_path / "a.csv", csv_text(delimiter).encode(encoding))
    assert [*formats.texts(path, "text")] == LINES


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (
            "1,Well, I liked it",
            "line 2 has 3 fields, and the first line names 2: put a text with a",
        ),
        ('1,"Well, I liked it"', None),
        ("1,Well,", None),  # as a spreadsheet leaves it where a column was emptied
        ("1", None),
    ],
)
def test_a_text_is_not_cut_where_it_has_a_comma(tmp_path, line: str, said: str | None):
    path = written(tmp_path / "a.csv", f"n,text\n{line}\n".encode())
    if said is None:
        assert len([*formats.texts(path, "text")]) == 1
        return
    with pytest.raises(NasdError, match=said):
        [*formats.texts(path, "text")]


def tar(content: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        member = tarfile.TarInfo("a.txt")
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    return out.getvalue()


def zipped(content: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("a.txt", content)
    return out.getvalue()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (zipped(PLAIN), "is a zip archive"),
        (bz2.compress(PLAIN), "is compressed by bzip2"),
        (lzma.compress(PLAIN), "is compressed by xz"),
        (b"\x28\xb5\x2f\xfd" + PLAIN, "is compressed by Zstandard"),
        (tar(PLAIN), "is a tar archive"),
        (packed(tar(PLAIN)), "is gzipped, and what is inside is a tar archive"),
        (
            packed(packed(PLAIN)),
            "gzipped, and what is inside is packed once more",
        ),
        (b"%PDF-1.7\n", "is a PDF"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a pointer of Git LFS"),
        (b"PAR1 and no more", "is damaged Parquet"),
        (packed(PLAIN * 99)[:-20], "is damaged gzip"),
        (formats.GZIP + b"nothing of the kind", "is damaged gzip"),
        (b'{"data": [{"title": "a"}]}', "is a JSON document and no corpus"),
        (b'{\n  "data": [\n', "is a JSON document and no corpus"),
        (b'[{"text": "a"}]', "is a JSON document and no corpus"),
        (b'{"text": "a"}\n{"text": ', "line 2 is not valid JSON"),
        (b'{"text": "a"}\n["b"]\n', "line 2 must be an object"),
        (b'{"text": "a"}\n{"text": ["b"]}\n', "row 2: 'text' holds ['b'], which is no text"),
        (b"", "is empty"),
        (b" \n\n\t\n", "is empty"),
        (b"\xef\xbb\xbf\n", "is empty"),
        (packed(b""), "is empty"),
        (b"fine\n" * 99999 + b"caf\xe9 noir\n", "is not UTF-8 text"),
        (b"fine\n" * 99999 + b"caf\xc3", "is not UTF-8 text"),
    ],
)
def test_what_is_no_corpus_is_refused_by_its_true_name(tmp_path, content, words):
    path = written(tmp_path / "a.txt", content)
    with pytest.raises(NasdError) as caught:
        formats.check_texts(path, "text")
    sentence = str(caught.value)
    assert str(path) in sentence
    assert words in sentence
    assert "\n" not in sentence
    with pytest.raises(NasdError):
        list(formats.texts(path, "text"))


@pytest.mark.parametrize(
    "text",
    ["[UNK] is no list", '"quoted" it was', "{braces} in prose", "42", "[1] Footnote", "null"],
)
def test_prose_that_begins_as_json_might_is_prose(tmp_path, text):
    path = written(tmp_path / "a.txt", f"{text}\nand more\n".encode())
    assert list(formats.texts(path, "text")) == [text, "and more"]


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(NasdError, match="is a pipe: name a file"):
        formats.look(tmp_path / "pipe")
    with pytest.raises(NasdError, match="Is a directory"):
        formats.look(tmp_path)


# -- names are names -----------------------------------------------------------------------------

NAMES = ["a[1].txt", "b*.txt", "c?.txt", "d{1,2}.txt", "e::f.txt", "g://h", "**", "~", "%61", " i "]


@pytest.mark.parametrize("name", [name for name in NAMES if "/" not in name])
def test_a_name_is_no_pattern(tmp_path, name):
    for other in ("a1.txt", "bb.txt", "cc.txt", "d1.txt", "f.txt", "a", "i"):
        written(tmp_path / other, b"wrong\n")
    for content, read in (
        (b"right\n", lambda path: list(formats.texts(path, "text"))),
        (packed(b"right\n"), lambda path: list(formats.texts(path, "text"))),
    ):
        assert read(written(tmp_path / name, content)) == ["right"]
    assert list(formats.texts(parquet(tmp_path / name, [{"text": "right"}]), "text")) == ["right"]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_only_looks_like_another_is_not_there(tmp_path, name):
    for other in ("a1.txt", "bb.txt", "cc.txt", "d1.txt"):
        written(tmp_path / other, b"wrong\n")
    with pytest.raises(NasdError, match="there is no file"):
        formats.look(tmp_path / name)


def test_a_data_sets_folder_whose_name_would_be_a_pattern_is_refused(tmp_path):
    for name in ("hub[1]", "hub1"):
        (tmp_path / name).mkdir()
    with pytest.raises(NasdError, match=r"'\[' in its name would be a pattern: rename it"):
        hub.place("hub[1]", "data.qa.hub", tmp_path)
    assert hub.place("hub1", "data.qa.hub", tmp_path) == str((tmp_path / "hub1").resolve())


def test_a_folder_beside_the_user_is_not_taken_for_the_hubs_data_set(tmp_path, monkeypatch):
    (tmp_path / "here" / "some").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    assert hub.place("other/name", "data.qa.hub", tmp_path) == "other/name"
    with pytest.raises(NasdError, match=r"data\.qa\.hub: .*some in the current folder would be"):
        hub.place("some", "data.qa.hub", tmp_path)


# -- questions -----------------------------------------------------------------------------------


def entry(n: int, answer: str = "sea") -> dict[str, Any]:
    return {
        "id": str(n),
        "title": f"article {n}",
        "context": "The sea is blue.",
        "question": "What?",
        "answers": {"text": [answer] if answer else [], "answer_start": [4] if answer else []},
    }


def official(entries: list[dict[str, Any]]) -> dict[str, Any]:
    def nested(one: dict[str, Any]) -> dict[str, Any]:
        answers = [
            {"text": text, "answer_start": start}
            for text, start in zip(*one["answers"].values(), strict=True)
        ]
        asked = {"id": one["id"], "question": one["question"], "answers": answers}
        return {"context": one["context"], "qas": [asked]}

    return {"data": [{"title": one["title"], "paragraphs": [nested(one)]} for one in entries]}


def one_by_one(entry: dict[str, Any]) -> dict[str, Any]:
    (found,) = official([entry])["data"][0]["paragraphs"][0]["qas"]
    return {**entry, "answers": found["answers"]}


ENTRIES = [entry(n) for n in range(3)]
AS_LINES = "".join(json.dumps(one) + "\n" for one in ENTRIES).encode()
WRITERS: dict[str, Callable[[Path], object]] = {
    "JSON": lambda path: path.write_text(json.dumps(official(ENTRIES))),
    "indented": lambda path: path.write_text(json.dumps(official(ENTRIES), indent=1)),
    "with a mark": lambda path: path.write_text(json.dumps(official(ENTRIES)), "utf-8-sig"),
    "UTF-16": lambda path: path.write_text(json.dumps(official(ENTRIES)), "utf-16"),
    "gzip": lambda path: path.write_bytes(packed(json.dumps(official(ENTRIES)).encode())),
    "JSON lines": lambda path: path.write_bytes(AS_LINES),
    "JSON lines, gzip": lambda path: path.write_bytes(packed(AS_LINES)),
    "Parquet": lambda path: parquet(path, ENTRIES),
    "a list": lambda path: path.write_text(json.dumps(ENTRIES)),
    "a list as data": lambda path: path.write_text(json.dumps({"data": ENTRIES}, indent=1)),
    "a list on one line": lambda path: path.write_text(json.dumps({"data": ENTRIES})),
    "answers one by one": lambda path: path.write_text(json.dumps([*map(one_by_one, ENTRIES)])),
    "numbers as ids": lambda path: path.write_text(
        json.dumps([{**one, "id": int(one["id"])} for one in ENTRIES])
    ),
}


@pytest.mark.parametrize("how", WRITERS)
def test_questions_are_the_same_in_every_form(tmp_path, how):
    WRITERS[how](tmp_path / "q[1]*.data")
    found = squad.read_squad(tmp_path / "q[1]*.data")
    assert [(one.id, one.title, one.answers) for one in found] == [
        (str(n), f"article {n}", (("sea", 4),)) for n in range(3)
    ]


def test_questions_as_csv_are_refused_by_name(tmp_path):
    (tmp_path / "a.csv").write_text("id,question\n1,What?\n")
    with pytest.raises(NasdError, match="is CSV, which has no place for the answers"):
        squad.read_squad(tmp_path / "a.csv")


@given(st.lists(st.sampled_from(["sea", "land", ""]), min_size=1, max_size=12))
def test_all_faults_are_counted_and_the_first_listed_or_all_left_out(answers):
    entries = [entry(n, answer) for n, answer in enumerate(answers)]
    sound = [str(n) for n, answer in enumerate(answers) if answer == "sea"]
    faulty = len(answers) - len(sound)
    if not faulty:
        assert not squad.from_records(entries, "here").faults
        return
    with pytest.raises(NasdError) as caught:
        squad.from_records(entries, "here")
    sentence = str(caught.value)
    if faulty > 1:
        assert sentence.startswith(f"{faulty} of {len(answers)} questions are faulty: (1) here: [")
        assert ("; and " in sentence) == (faulty > squad.LISTED)
    if sound:
        them = "them" if faulty > 1 else "it"
        assert sentence.endswith(f"data.qa.skip_faulty = true leaves {them} out")
        found = squad.from_records(entries, "here", skip_faulty=True)
        assert [one.id for one in found.sound] == sound
        assert len(found.faults) == faulty
    else:
        with pytest.raises(NasdError, match="faulty"):
            squad.from_records(entries, "here", skip_faulty=True)


def test_the_unanswerable_questions_of_version_2_are_told_and_can_be_left_out(tmp_path):
    content = official([entry(1), entry(2, "")])
    content["data"][1]["paragraphs"][0]["qas"][0]["is_impossible"] = True
    path = tmp_path / "v2.json"
    path.write_text(json.dumps({"version": "v2.0", **content}))
    with pytest.raises(NasdError, match=r"qas\[0\]\.answers is empty; .*2\.0 .*skip_faulty"):
        squad.read_squad(path)
    assert [one.id for one in squad.read_all([path], skip_faulty=True).sound] == ["1"]


def test_an_id_that_two_files_have_is_a_fault_that_names_both(tmp_path):
    for name in ("one.json", "two.json"):
        (tmp_path / name).write_text(json.dumps(official([entry(1)])))
    both = [tmp_path / "one.json", tmp_path / "two.json"]
    with pytest.raises(
        NasdError, match=r"two\.json: data\[0\].* the id '1' is taken by .*one\.json"
    ):
        squad.read_all(both)
    assert len(squad.read_all(both, skip_faulty=True).sound) == 1
